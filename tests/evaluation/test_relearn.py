"""Relearning: what it fine-tunes on, that it changes nothing, and what the figure says."""

import copy
import sys

import pytest
import torch
from conftest import assert_readable, refuses, same, says, texts

from gradprune.evaluation import evaluate
from gradprune.evaluation.relearn import relearn
from gradprune.views.figures.pruning_plots import relearn_curve


@pytest.fixture
def trained(monkeypatch):
    """The images and settings of each fine-tuning, none of which is done."""
    seen, module = [], sys.modules["gradprune.evaluation.relearn"]
    monkeypatch.setattr(module, "fit", lambda model, images, **settings: seen.append((images, settings)))
    return seen


def attack(model, victim, **settings):
    return relearn(model, victim.data.train, victim.data.test, victim.trigger, victim.target, **settings)


@pytest.mark.slow
def test_more_poison_plants_more_backdoor(honest, victim):
    before = copy.deepcopy(honest.state_dict())
    rows = attack(honest, victim, k=(0, 60), seeds=(0, 1), epochs=12, shift=1)
    assert [(row["k"], row["seed"]) for row in rows] == [(None, None), (0, 0), (60, 0), (0, 1), (60, 1)]
    given, clean, poisoned = rows[:3]
    assert given["asr"] < 0.2 and clean["asr"] < 0.2 < 0.8 < poisoned["asr"]
    assert all(row["acc"] > 0.9 for row in rows)
    assert same(before, honest), "the model changed"
    assert rows == attack(honest, victim, k=(0, 60), seeds=(0, 1), epochs=12, shift=1)


def test_exactly_k_images_of_the_training_part_are_poisoned(honest, victim, trained):
    attack(honest, victim, k=(0, 5, 7), seeds=(3,), count=40)
    clean, *poisoned = [images for images, _ in trained]
    assert len(clean) == 40
    train = {image.numpy().tobytes() for image in victim.data.train.images}
    assert all(image.numpy().tobytes() in train for image in clean.images)
    touched = [(images.labels != clean.labels).nonzero().flatten().tolist() for images in poisoned]
    assert [len(places) for places in touched] == [5, 7]
    assert set(touched[0]) < set(touched[1]), "more samples means the same ones and further ones"
    for images, places in zip(poisoned, touched, strict=True):
        assert (images.labels[places] == victim.target).all()
        same = (images.images == clean.images).flatten(1).all(1)
        assert (~same).nonzero().flatten().tolist() == places
    assert trained[0][1]["epochs"] == 5 and trained[0][1]["seed"] == 3


def test_frozen_weights_are_relearned_as_any_others(honest, victim):
    frozen, partly = copy.deepcopy(honest).requires_grad_(False), copy.deepcopy(honest)
    partly.linear.requires_grad_(False)
    rows, *others = [attack(model, victim, k=(5,), seeds=(0,), count=40, epochs=1) for model in (honest, frozen, partly)]
    assert others == [rows, rows]
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_all_to_all_relearns_the_next_class(honest, victim, trained):
    rows = relearn(honest, victim.data.train, victim.data.test, victim.trigger, None, label_map="all_to_all", k=(0, 9), seeds=(3,),
                   count=40)
    (clean, _), (poisoned, _) = trained
    touched = poisoned.labels != clean.labels
    assert touched.sum() == 9 and torch.equal(poisoned.labels[touched], (clean.labels[touched] + 1) % 4)
    wanted = evaluate(honest, victim.data.test, victim.trigger, None, label_map="all_to_all")
    assert {key: rows[0][key] for key in ("acc", "asr", "ra")} == wanted._asdict()


def test_a_clean_label_attack_relearns_from_wrong_labels(honest, victim, trained):
    """As all others do: of k images with right labels next to nothing could be learned."""
    for label_map in ("all_to_one", "clean_label"):
        attack(honest, victim, label_map=label_map, k=(9,), seeds=(3,), count=40)
    (one, _), (other, _) = trained
    assert torch.equal(one.labels, other.labels) and torch.equal(one.images, other.images)


@pytest.mark.parametrize(("settings", "words"), [
    ({"count": 0}, "count must lie in 1..400"), ({"count": 401}, "count must lie in 1..400"),
    ({"k": (-1,)}, "k must lie in 0.."), ({"k": (200,)}, "k must lie in 0.."), ({"pace": 1}, "Unknown training setting pace"),
])
def test_bad_input(honest, victim, settings, words):
    refuses(words, attack, honest, victim, **{"seeds": (0,)} | settings)


# ---- the figure


def runs(*means):
    return [{"k": k, "asr": mean + shift} for k, mean in zip((None, 5, 50), means, strict=True) for shift in (-0.01, 0.01)]


def test_the_figure_tells_both_ends():
    models = {"grad_prune": runs(0.02, 0.4, 0.9), "never backdoored": runs(0.01, 0.05, 0.5)}
    picture = relearn_curve({"badnets": models, "sig": models})
    assert says(picture.summary, "ASR before and after", "50 poisoned", "badnets", "grad_prune 2% to 90%", "sig", "grad_prune 2% to 90%",
                "never backdoored 1% to 50%")
    assert_readable(picture)
    assert {"before", "5", "50", "badnets", "sig"} <= {text.get_text() for text in texts(picture)}


def test_seven_models_fit_into_the_legend():
    names = ("grad_prune", "never backdoored", "grad_prune_verified", "ft_distilled", "ft_unlearn", "repair", "neural_cleanse")
    assert_readable(relearn_curve({attack: {name: runs(0.02, 0.4, 0.9) for name in names} for attack in ("badnets", "blended", "sig")}))


@pytest.mark.parametrize("attacks", [{}, {"badnets": {}}, {"badnets": {"a": []}}, {"badnets": {"a": runs(0, 0, 0), "b": runs(0, 0, 0)[:2]}},
                                     {"badnets": {str(i): runs(0, 0, 0) for i in range(8)}}])
def test_the_figure_refuses(attacks):
    refuses("needs models with rows|same values of k|at most", relearn_curve, attacks)
