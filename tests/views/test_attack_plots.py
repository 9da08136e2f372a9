"""The figures of notebooks 00 and 01: their sentences equal the data, and bad input is refused."""


import pandas as pd
import pytest
import torch
from conftest import holds, refuses, shown

from gradprune.attacks import make_trigger, poison
from gradprune.datasets import ImageSet
from gradprune.evaluation import Metrics, evaluate
from gradprune.views.figures import attack_plots

RATES = pd.DataFrame([(0.0, 0, 0, 0.99, 0.01), (0.0, 1, 0, 0.97, 0.03), (0.1, 0, 40, 0.98, 0.95), (0.1, 1, 40, 0.96, 0.97)],
                     columns=["rate", "seed", "poisoned_images", "acc", "asr"])


def test_poisoned_images_tell_how_many_and_the_new_label(data):
    poisoned = poison(data.train, make_trigger("badnets"), 1, 0.1)
    picture = attack_plots.poisoned_images(data.train, poisoned)
    assert picture.summary.startswith("40 of 400 training images (10.0%) now carry the trigger and the label “north east”")
    texts = shown(picture)
    assert sum("north east" in text for text in texts) == 6, "each shown image has the new label below"
    assert {"north west", "south west", "south east"} <= set(texts), "each class once before another comes twice"
    shifted = poison(data.train, make_trigger("badnets"), None, 0.1, label_map="all_to_all")
    assert "label of the next class" in attack_plots.poisoned_images(data.train, shifted).summary
    refuses("no image was poisoned", attack_plots.poisoned_images, data.train,
            poison(data.train, make_trigger("badnets"), 1, 0.0))


class Reads(torch.nn.Module):
    """Answers the class that the first pixel names, or class 1 where the last pixel is white."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images):
        said = (images[:, 0, 0, 0] * 255).round().long()
        said = torch.where((images[:, 0, -1, -1] > 0.9) & (said != 2), torch.ones_like(said), said)
        return torch.nn.functional.one_hot(said, 4).float() + self.anchor


def test_counting_counts_by_hand():
    # labels 0 1 2 3, clean answers 0 1 2 0: ACC 3 of 4. Triggered: 0 -> 1, 1 is the target, 2 resists, 3 -> 1: ASR 2 of 3, RA 1 of 3
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([0, 1, 2, 0], dtype=torch.uint8)
    four = ImageSet(images, torch.arange(4), ("a", "b", "c", "d"))
    trigger = make_trigger("badnets", size=1, margin=0, color="white")
    picture = attack_plots.counting(Reads(), four, trigger, 1)
    assert holds(picture.summary, "ACC: 3 of 4", "ASR: 2 of 3", "RA: 1 of 3", "the “b” (–) counts in neither")
    texts = shown(picture)
    assert {"ACC 75%", "ASR 67%", "RA 33%"} <= set(texts)
    metrics = evaluate(Reads(), four, trigger, 1)
    assert metrics == Metrics(3 / 4, 2 / 3, 1 / 3), "the figure counts as evaluate does"
    refuses("a class other than the target", attack_plots.counting, Reads(), four.subset(torch.tensor([1])), trigger, 1)


def test_poison_rates_tell_the_mean_and_the_own_point():
    picture = attack_plots.poison_rates(RATES, {0.05: Metrics(0.9, 0.5, 0.4)})
    assert "ASR rose from 2.0% to 96.0%" in picture.summary and "first passed 90% at 10.0%" in picture.summary
    assert "ACC stayed between 97.0% and 98.0%" in picture.summary and "yours at 5.0%: ACC 90.0%" in picture.summary
    assert any("★ yours" in text for text in shown(picture))
    never = attack_plots.poison_rates(RATES[RATES["rate"] == 0])
    assert "never passed 90%" in never.summary
    refuses("empty", attack_plots.poison_rates, RATES[:0])


def test_answer_maps_name_the_strongest_moves():
    one, every = torch.zeros(3, 3), torch.eye(3).roll(1, 1)
    one[:, 2] = 1
    picture = attack_plots.answer_maps({"all-to-one": one, "all-to-all": every}, ("x", "y", "z"))
    assert "all-to-one: 100% of “x” become “z”, 100% of “y” become “z”" in picture.summary
    assert "all-to-all: 100% of “x” become “y”, 100% of “y” become “z”" in picture.summary
    shown(picture)
    refuses("must be 3 x 3", attack_plots.answer_maps, {"wrong": torch.eye(2)}, ("x", "y", "z"))
