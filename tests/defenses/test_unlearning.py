"""Unlearning a suspected class: what is searched for, what is unlearned, and when the rounds end."""

import importlib
from collections import Counter

import pytest
import torch
from conftest import defend, interrupt_call
from torch import nn

from gradprune.defenses import Scan, unlearning
from gradprune.defenses.scan import Row
from gradprune.defenses.unlearning import Strengthened, far_leading
from gradprune.models import predict
from gradprune.pruning import fine_tuning, unpaired
from gradprune.search import SEARCHABLE, Alternating, Change, Inversion

repairing = importlib.import_module("gradprune.defenses.repair")


@pytest.fixture(scope="module")
def images(victim):
    return unpaired(victim.data.defense.subset(range(24))).clean


@pytest.fixture
def found(victim, monkeypatch):
    """The scan suspects the target; the others need 5 and more. The search finds what the attacker put on, of these norms."""
    rows = [Row(kind, label, 5.0 + label if label != victim.target else 2.0, 1.0, 0.0, 1.0, True, label == victim.target)
            for kind in ("mask", "whole image") for label in range(4)]
    least = min(row.norm for row in rows if row.label != victim.target)
    norms, seeds = [], []

    def searched(model, images, label, *, seed, **settings):
        assert label == victim.target and len(images) == 3 * 10 and settings["steps"] == 7
        seeds.append(seed)
        return Inversion(victim.trigger, norms[len(seeds) - 1], 1.0, [], True)

    scanned = Scan(rows, tuple("abcd"), 2.0, victim.target, "mask", None, "The verdict.", victim.data.defense, {}, [], [])
    monkeypatch.setattr(repairing, "unsteadiness", lambda *_: 0.3)
    monkeypatch.setattr(repairing, "scan", lambda *_, **__: scanned)
    monkeypatch.setattr(unlearning, "far_leading", lambda *_: [])
    monkeypatch.setitem(unlearning.KINDS, "mask", searched)
    monkeypatch.setitem(unlearning.KINDS, "whole image", lambda *_, **__: Inversion(victim.trigger, least, 1.0, [], True))
    return norms, seeds


ROUNDS = {"changes": 2, "spc": 10, "sturdy": 0.2, "searches": 2, "round_steps": 7, "suspect_steps": 40}


@pytest.mark.parametrize(("norms", "told"), [
    ([4.0, 6.0, 9.0, 8.0], "Rounds of unlearning: 1; then it was no easier to reach than the other classes."),
    ([4.0] * 6, "Rounds of unlearning: 3, the most allowed; the last one was not checked.")])
def test_the_suspect_is_unlearned_until_it_needs_what_the_others_need(victim, found, norms, told):
    found[0].extend(norms)
    result = defend("repair", victim, **ROUNDS)
    after = victim.evaluate(result.model)
    assert result.stopped.endswith(told) and found[1] == list(range(len(norms))) and result.suspect == victim.target
    assert after.asr < 0.3 and after.acc > 0.9
    assert sum("kept" in row for row in result.history) == (1 if ": 1;" in told else 3)
    assert [row["epoch"] for row in result.history] == sorted(row["epoch"] for row in result.history)
    assert f" {result.history[-1]['val_clean_loss']:.3f}" in str(result).split("fine-tuned")[1], "the last round is shown"


def test_what_a_round_unlearns_is_strengthened(victim, found, monkeypatch):
    """Both small triggers of the only round, each by the setting; interrupted, so that nothing follows."""
    found[0].extend([4.0] * 2)
    seen = []
    monkeypatch.setattr(unlearning, "Alternating", lambda ways: seen.extend(ways) or Alternating(ways))
    interrupt_call(monkeypatch, fine_tuning, "_epoch", 1)
    defend("repair", victim, **ROUNDS, strength=1.7)
    assert [(type(one), one.way, one.most) for one in seen] == [(Strengthened, victim.trigger, 1.7)] * 2


def test_ctrl_c_in_a_round_ends_the_repair_and_keeps_what_is_reached(victim, found, monkeypatch):
    """It comes in the second of the first round's epochs: nothing is searched for after it."""
    found[0].extend([4.0] * 6)
    epochs = interrupt_call(monkeypatch, fine_tuning, "_epoch", 2)
    result = defend("repair", victim, **ROUNDS)
    assert result.interrupted and result.stopped == "interrupted"
    assert len(epochs) == 2 and found[1] == [0, 1]
    assert [row["epoch"] for row in result.history] == [0, 1, 1]
    assert not torch.equal(*(next(model.parameters()) for model in (victim.model, result.model)))


FAR = {"tries": 6, "tries_on": 96, "far": 0.5}


def test_few_images_evenly_chosen_show_what_leads_far(victim, monkeypatch):
    """Of 100 images with a limit of 40, every third: 17 for the search and 17 to judge it."""
    seen = []
    monkeypatch.setattr(unlearning, "search_changes", lambda model, parts, drawn: seen.append(parts[0].images) or drawn)
    monkeypatch.setattr(unlearning, "inflow", lambda model, parts, found: seen.append(parts[0].images) or torch.zeros(1, 4))
    others = torch.arange(100.0).view(-1, 1, 1, 1).expand(-1, 3, 32, 32) / 100
    assert far_leading(victim.model, others, 0, FAR | {"tries": 1, "tries_on": 40}, 0) == []
    assert torch.equal(seen[0], others[::6]) and torch.equal(seen[1], others[3::6])


def test_changes_that_lead_far_are_found_and_others_are_not(victim, images):
    """On the other half of the images: a backdoor of patches is found as patches, and as nothing in a model without one."""
    others = images[predict(victim.model, images).argmax(1) != victim.target]
    found = far_leading(victim.model, others, victim.target, FAR, 0)
    assert "patches" in {one.family for one in found}
    for one in found:
        assert isinstance(one, Change)
        assert predict(victim.model, one(others[1::2])).softmax(1)[:, victim.target].mean() > 0.5
    assert far_leading(victim.model, others, victim.target, FAR | {"far": 1.0}, 0) == []


@pytest.mark.parametrize(("led", "count"), [([0.6, 0.7, 0.5, 0, 0, 0], 0), ([0.6, 0.7, 0.51, 0, 0, 0], 3), ([1.0] * 6, 6)])
def test_a_family_counts_if_half_of_its_changes_lead_far(victim, images, monkeypatch, led, count):
    """Exactly `far` is not far. The suspect is class 2; the others are not read."""
    shares = torch.ones(6, 4).index_copy(1, torch.tensor([2]), torch.tensor(led)[:, None])
    monkeypatch.setattr(unlearning, "search_changes", lambda model, parts, drawn: drawn)
    monkeypatch.setattr(unlearning, "inflow", lambda *_: shares)
    found = far_leading(victim.model, images, 2, FAR, 0)
    assert Counter(one.family for one in found) == dict.fromkeys(SEARCHABLE if count else (), count)


def test_a_strengthened_trigger_is_one_to_so_many_times_as_strong(images):
    """Each image has a factor of its own; the result stays an image, and the same seed gives the same factors."""
    def strengthened(way, images, seed=0):
        return Strengthened(way, 2.5, torch.Generator().manual_seed(seed))(images)
    grey = torch.full_like(images, 0.3)
    factors = (strengthened(lambda images: images + 0.1, grey) - 0.3) / 0.1
    assert torch.allclose(factors, factors[:, :1, :1, :1].expand_as(factors), atol=1e-4)
    assert 1 <= factors.min() < 1.2 and 2.3 < factors.max() <= 2.5 + 1e-4
    assert torch.equal(strengthened(lambda images: images + 0.9, grey), torch.ones_like(images))
    assert torch.equal(strengthened(lambda images: images * 0.9, images, 1), strengthened(lambda images: images * 0.9, images, 1))
    assert torch.equal(strengthened(nn.Identity(), images), images)
