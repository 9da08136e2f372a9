"""The figures of the lessons: their sentences equal the data, their texts can be read, and bad input is refused."""

import pandas as pd
import pytest
import torch
from conftest import assert_readable, holds, refuses, says, shown, texts
from torch import nn
from toys import ReadsTheCorner, silenced

from gradprune.attacks import make_trigger, poison
from gradprune.datasets import ImageSet
from gradprune.evaluation import Metrics, evaluate
from gradprune.models import build, predict
from gradprune.pruning import Pairs
from gradprune.pruning.filters import filters
from gradprune.views.figures import attack_plots
from gradprune.views.figures.feature_plane import _plane, feature_plane
from gradprune.views.figures.network_picture import network_drawn, readers, signal
from gradprune.views.figures.pruning_plots import choices, regrowth, with_and_without

# ---- poisoning


RATES = pd.DataFrame([(0.0, 0, 0, 0.99, 0.01), (0.0, 1, 0, 0.97, 0.03), (0.1, 0, 40, 0.98, 0.95), (0.1, 1, 40, 0.96, 0.97)],
                     columns=["rate", "seed", "poisoned_images", "acc", "asr"])


def test_poisoned_images_tell_how_many_and_the_new_label(data):
    picture = attack_plots.poisoned_images(data.train, poison(data.train, make_trigger("badnets"), 1, 0.1))
    assert picture.summary.startswith("40 of 400 training images (10.0%) now carry the trigger and the label “north east”")
    texts = shown(picture)
    assert sum("north east" in text for text in texts) == 6, "each shown image has the new label below"
    assert {"north west", "south west", "south east"} <= set(texts), "each class once before another comes twice"
    shifted = poison(data.train, make_trigger("badnets"), None, 0.1, label_map="all_to_all")
    assert "label of the next class" in attack_plots.poisoned_images(data.train, shifted).summary
    refuses("no image was poisoned", attack_plots.poisoned_images, data.train,
            poison(data.train, make_trigger("badnets"), 1, 0.0))


class Reads(ReadsTheCorner):
    """... or answers class 1 where the last pixel is white, unless the first one names class 2."""

    def forward(self, images):
        read = super().forward(images)
        fired = (images[:, 0, -1, -1] > 0.9) & (read.argmax(1) != 2)
        return torch.where(fired[:, None], self.one_hot[1] + self.anchor, read)


def test_counting_counts_by_hand():
    # labels 0 1 2 3, clean answers 0 1 2 0: ACC 3 of 4. Triggered: 0 -> 1, 1 is the target, 2 resists, 3 -> 1: ASR 2 of 3, RA 1 of 3
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([0, 1, 2, 0], dtype=torch.uint8)
    four = ImageSet(images, torch.arange(4), ("a", "b", "c", "d"))
    trigger = make_trigger("badnets", size=1, margin=0, color="white")
    picture = attack_plots.counting(Reads(4), four, trigger, 1)
    assert holds(picture.summary, "ACC: 3 of 4", "ASR: 2 of 3", "RA: 1 of 3", "the “b” (–) counts in neither")
    assert {"ACC 75%", "ASR 67%", "RA 33%"} <= set(shown(picture))
    assert evaluate(Reads(4), four, trigger, 1) == Metrics(3 / 4, 2 / 3, 1 / 3), "the figure counts as evaluate does"
    alone = four.subset(torch.tensor([1]))
    refuses("a class other than the target", attack_plots.counting, Reads(4), alone, trigger, 1)


def test_poison_rates_tell_the_mean_and_the_own_point():
    picture = attack_plots.poison_rates(RATES, {0.05: Metrics(0.9, 0.5, 0.4)})
    assert "ASR rose from 2.0% to 96.0%" in picture.summary and "first passed 90% at 10.0%" in picture.summary
    assert "ACC stayed between 97.0% and 98.0%" in picture.summary and "yours at 5.0%: ACC 90.0%" in picture.summary
    assert any("★ yours" in text for text in shown(picture))
    assert "never passed 90%" in attack_plots.poison_rates(RATES[RATES["rate"] == 0]).summary
    refuses("empty", attack_plots.poison_rates, RATES[:0])


def test_answer_maps_name_the_strongest_moves():
    one, every = torch.zeros(3, 3), torch.eye(3).roll(1, 1)
    one[:, 2] = 1
    picture = attack_plots.answer_maps({"all-to-one": one, "all-to-all": every}, ("x", "y", "z"))
    assert "all-to-one: 100% of “x” become “z”, 100% of “y” become “z”" in picture.summary
    assert "all-to-all: 100% of “x” become “y”, 100% of “y” become “z”" in picture.summary
    shown(picture)
    refuses("must be 3 x 3", attack_plots.answer_maps, {"wrong": torch.eye(2)}, ("x", "y", "z"))


# ---- the plane of features


def test_the_shares_are_the_answers_and_every_image_is_drawn(victim):
    test, home = victim.data.test, 0
    found = filters(victim.model, test.floats()[:1])
    dead = silenced(victim.model, found, *range(found.layers[0].count))
    picture = feature_plane({"given": victim.model, "dead": dead}, test, victim.trigger, victim.target, home)
    signs = test.subset(test.labels == home).triggered(victim.trigger)
    shares = [[f"{(predict(model, signs).argmax(1) == label).float().mean():.0%}" for label in (victim.target, home)]
              for model in (victim.model, dead)]
    assert f"given, {' and '.join(shares[0])}; dead, {' and '.join(shares[1])}." in picture.summary
    drawn = [sum(len(dots.get_offsets()) for dots in ax.collections) for ax in picture.figure.axes]
    others = int((test.labels != victim.target).sum())
    named = int(((test.labels == home) | (test.labels == victim.target)).sum())
    assert drawn == [len(test) + others + named] * 2
    assert picture.png()


def test_the_first_direction_is_where_the_trigger_pushes():
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(40, 6, generator=generator)
    for push in (9.0, -9.0):
        moved = clean + push * torch.eye(6)[2]
        middle, plane = _plane(clean, moved)
        left, right = (((part - middle) @ plane)[:, 0] for part in (clean, moved))
        assert right.min() > left.max()
        assert torch.allclose(plane.T @ plane, torch.eye(2), atol=1e-5)


def test_planes_refuse_bad_input(victim):
    for models, home, message in (({}, 0, "no model"), ({"given": victim.model}, victim.target, "two classes with images")):
        refuses(message, feature_plane, models, victim.data.test, victim.trigger, victim.target, home)


# ---- the network, and the trigger's signal in it, which a cut ends


@pytest.fixture(scope="module")
def drawn():
    model = build("preact_resnet", 4, width=8, seed=0).eval()
    clean = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    triggered = clean.clone()
    triggered[..., -3:, -3:] = 1
    return model, filters(model, clean[:1]), Pairs(clean, triggered, torch.arange(5) % 4)


def test_readers_follow_shortcuts(drawn):
    model, found, _ = drawn
    names = [layer.name for layer in found.layers]
    pairs = {(names[source], names[reader]) for source, reader in readers(model, found)}
    assert {("conv1", "stages.0.0.conv1"), ("stages.0.0.conv1", "stages.0.0.conv2"), ("conv1", "stages.1.0.conv1"),
            ("stages.0.0.conv2", "stages.1.0.conv1"), ("stages.0.0.conv2", "stages.1.0.shortcut")} <= pairs
    assert ("conv1", "stages.0.0.conv2") not in pairs


def test_a_silent_filter_has_no_signal_and_an_equal_pair_none_at_all(drawn):
    model, found, pairs = drawn
    moved, before, after = signal(model, found, pairs)
    assert torch.allclose(before, model(pairs.clean), atol=1e-5) and torch.allclose(after, model(pairs.triggered), atol=1e-5)
    first = nn.functional.conv2d(pairs.triggered, model.conv1.weight, padding=1) - nn.functional.conv2d(
        pairs.clean, model.conv1.weight, padding=1)
    scale = moved[:8] / first.abs().mean(dim=(0, 2, 3))
    assert torch.allclose(scale, scale[:1].expand(8), rtol=0.5)
    assert signal(silenced(model, found, 2), found, pairs)[0][2] == 0
    still, _, _ = signal(model, found, Pairs(pairs.clean, pairs.clean, pairs.labels))
    assert still.abs().max() < 1e-6


def test_the_picture_says_how_much_arrives(drawn):
    model, found, pairs = drawn
    dead = silenced(model, found, *range(found.layers[0].count))
    picture = network_drawn({"as given": model, "no first layer": dead}, found, pairs, {"no first layer": range(8)})
    assert says(picture.summary, "signal", "as given", "100%", "no first layer", "0%")
    assert len(picture.figure.axes) == 3  # two models and the colour bar
    refuses("no model", network_drawn, {}, found, pairs, {})


def test_a_model_that_cannot_be_traced_has_no_arrows(drawn):
    class Odd(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    assert readers(Odd(), drawn[1]) == []


# ---- pruning


WAYS = {"given": Metrics(0.99, 1.0, 0.0), "pruned": Metrics(0.93, 0.64, 0.24), "fine-tuned alone": Metrics(0.97, 0.0, 0.8),
        "pruned + fine-tuned": Metrics(1.0, 0.031, 0.999)}


@pytest.mark.parametrize("guess", [None, 0.0, 0.5])
def test_choices_tells_mean_and_range(guess):
    picture = choices({"Validation\nchooses": [0.1, 0.5, 0.6], "as reported": [0.0, 0.0], "fresh": [1.0]}, guess)
    assert holds(picture.summary, "Validation chooses, 40% (10% to 60%)", "as reported, 0% (0% to 0%)")
    assert_readable(picture)
    shown = {text.get_text() for text in texts(picture)}
    assert {"mean 40%", "mean 0%", "mean 100%"} <= shown
    assert ("your guess" in shown) == (guess is not None)


@pytest.mark.parametrize("attacks", [("badnets",), ("badnets", "blended", "sig")])
def test_with_and_without_writes_every_value(attacks):
    picture = with_and_without(dict.fromkeys(attacks, WAYS))
    shown = [text.get_text() for text in texts(picture)]
    for attack in attacks:
        assert attack in shown
        assert f"{attack}: given 99.0% / 100.0%, pruned 93.0% / 64.0%" in picture.summary
    assert shown.count("3.1%") == len(attacks)
    assert_readable(picture)


@pytest.mark.parametrize("grown", [[0.0, 0.01, 0.034], [0.0, 0.0, 0.0]])
def test_regrowth_tells_both_ends(grown):
    picture = regrowth(held=[0.0, 0.0, 0.0], forgotten=grown, removed=5)
    assert says(picture.summary, "2 training steps", "5 removed filters", f"{grown[-1]:.1%}", "mask held", "0.0%")
    assert_readable(picture)


@pytest.mark.parametrize("draw", [lambda: choices({}), lambda: choices({"a": []}), lambda: with_and_without({}),
                                  lambda: with_and_without({"badnets": {}}), lambda: regrowth([0.0], [0.0], 1),
                                  lambda: regrowth([0.0, 0.1], [0.0, 0.1, 0.2], 1)])
def test_bad_input_is_refused(draw):
    refuses("", draw)
