"""Fine-tuning and the whole defence."""

import copy
import inspect

import pytest
import torch
from conftest import interrupt_call, refuses
from torch import nn
from toys import parts

from gradprune.datasets import ImageSet
from gradprune.defenses import grad_prune
from gradprune.pruning import FilterMask, fine_tune, fine_tuning
from gradprune.pruning.filters import filters


@pytest.fixture(scope="module")
def result(victim):
    return grad_prune(victim.model, victim.data.defense, victim.trigger, spc=10, recipe="paper", score="gate", progress=False)


def test_the_main_job(victim, result):
    before, after = victim.evaluate(), victim.evaluate(result.model)
    assert before.asr >= 0.95 and after.asr <= 0.1
    assert after.acc >= before.acc - 0.1
    rows = result.rows("prune")
    assert victim.evaluate(result.pruned).asr < before.asr / 2
    assert rows[len(result.mask.positions)]["val_acc"] > rows[0]["val_acc"] - 0.1


def test_removed_filters_stay_dead_through_fine_tuning(result):
    """Fault 2 of the released code: they regrew."""
    assert len(result.mask.positions) > 0
    for model in (result.pruned, result.model):
        for layer, index in result.mask.removed:
            assert (model.get_submodule(layer).weight[index] == 0).all()
    moved = [name for name, tensor in result.pruned.named_parameters()
             if not torch.equal(tensor, result.model.get_parameter(name))]
    assert moved, "fine-tuning moved nothing, so this test would prove nothing"


def test_the_defence_never_sees_a_test_set():
    names = set(inspect.signature(grad_prune).parameters) | set(inspect.signature(fine_tune).parameters)
    assert not {name for name in names if "test" in name or "target" in name or "asr" in name}


def test_a_model_that_was_pruned_before_is_not_pruned_again(victim, result):
    """Filters that are silent already are neither picked nor allowed to grow."""
    again = grad_prune(result.model, victim.data.defense, victim.trigger, spc=10, recipe="paper", score="gate", progress=False)
    assert again.mask.before == tuple(sorted(result.mask.positions))
    assert not set(again.mask.positions) & set(result.mask.positions)
    fallen = {(row["layer"], row["index"]) for row in again.rows("prune")[1:]}
    assert fallen and not fallen & set(result.mask.removed)
    for layer, index in result.mask.removed:
        assert (again.model.get_submodule(layer).weight[index] == 0).all()


# --- fine-tuning ---


def test_fine_tuning_lowers_both_losses_and_keeps_the_mode(victim):
    model = copy.deepcopy(victim.model).train()
    history = fine_tune(model, FilterMask(filters(model)), *parts(victim, 5), max_epochs=20, progress=False)
    best = min(history, key=lambda row: row["val_loss"])
    assert best["val_unlearning_loss"] < history[0]["val_unlearning_loss"] / 2
    assert model.training


def test_interruption_keeps_the_best_epoch(victim, monkeypatch):
    interrupt_call(monkeypatch, fine_tuning, "_epoch", 3)
    result = grad_prune(victim.model, victim.data.defense, victim.trigger, spc=5, recipe="paper", progress=False)
    assert result.interrupted
    assert len(result.rows("tune")) >= 3


# --- bad input ---


def test_models_that_do_not_fit(victim, data):
    grey = ImageSet(data.defense.images[:, :1], data.defense.labels, data.defense.classes)
    two = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for model, images, words in (
            (nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), data.defense, "no Conv2d layer"),
            (two, data.defense, "the model knows 2 classes, but the defence images have 4"),
            (victim.model, grey, r"cannot take images of shape \(1, 16, 16\)")):
        refuses(words, grad_prune, model, images, victim.trigger, progress=False)
