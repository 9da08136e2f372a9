"""The voices of a scan: standings by hand, and that each family leads the attacked toy to the attacker's class."""

import pytest
import torch
from torch import nn
from toys import Wired

from gradprune.defenses.voices import AT_ONCE, LED, MOST, led, margins, standings


def test_standings_by_hand():
    """Median 2, distances 2 1 0 1 98: their median is 1, so a standard deviation is 1.4826."""
    assert standings([0.0, 1.0, 2.0, 3.0, 100.0]) == pytest.approx([-2 / 1.4826, -1 / 1.4826, 0, 1 / 1.4826, MOST])
    assert standings([None, 1.0, 2.0, 3.0])[0] == -MOST, "what is never reached is the hardest"
    assert standings([None, 1.0, 2.0]) == [0.0] * 3, "two values say nothing"
    assert standings([5.0] * 4) == [0.0] * 4


@pytest.mark.parametrize("family", ["bounded", "patches"])
def test_the_target_is_the_easiest_to_reach(victim, family):
    told = led(victim.model, victim.data.defense.floats()[:40], 4, family)
    assert max(range(4), key=told.__getitem__) == victim.target and all(-14 <= one <= 0 for one in told)
    assert told == led(victim.model, victim.data.defense.floats()[:40], 4, family), "same seed, same figures"


@pytest.mark.parametrize("family", LED)
def test_every_family_speaks_for_more_classes_than_fit_at_once(family):
    """Class k is the more likely, the closer the mean of the red channel is to k / 14."""
    colours = Wired(lambda _, images: -50 * (images[:, :1].mean((2, 3)) - torch.arange(15.0) / 14).square())
    assert AT_ONCE < 15
    told = led(colours, torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)), 15, family)
    assert len(told) == 15 and told[7] > told[0] and told[7] > told[14], "the mean of noise is a half"


def test_margins_of_a_known_model():
    """Logits are the channels' means: a class leads by 1 where its channel is white and the others are black."""
    means = Wired(lambda net, images: net.scale * images.mean((2, 3)), scale=nn.Parameter(torch.tensor([1.0, 1.0, 3.0])))
    assert margins(means, (3, 4, 4), 3) == pytest.approx([1.0, 1.0, 3.0], abs=0.05)
