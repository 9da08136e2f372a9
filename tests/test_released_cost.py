"""The benchmark's released code: where its faults cannot matter, it does what recipe `paper` does."""

import copy

import pytest
import torch
from benchmarks.released_cost import released
from conftest import lived_in
from torch import nn

from gradprune.models import build
from gradprune.pruning import pair_up, paper
from gradprune.pruning.filters import filters

ROUNDS = 6


@pytest.fixture(scope="module")
def parts(victim):
    """Training, validation and test pairs."""
    images = victim.data.defense
    cuts = (images.subset(slice(0, 16)), images.subset(slice(16, 32)), victim.data.test.subset(slice(0, 20)))
    return [pair_up(part, victim.trigger) for part in cuts]


def plain(classes=4):
    """No BatchNorm to drift, a bias after every filter, and a ReLU that gives dead filters no gradient."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(),
                         nn.Flatten(), nn.Linear(8 * 7 * 7, classes))


def test_it_removes_the_filters_that_the_recipe_removes(parts):
    ours, theirs = plain(), plain()
    rows = released(theirs, *parts, ROUNDS)
    recipe = paper(ours, filters(ours, parts[0].clean[:1]), *parts[:2], alpha=1.0, patience=ROUNDS, progress=False)
    history = recipe.history[1:]
    assert [(row["layer"], row["index"]) for row in rows] == [(row["layer"], row["index"]) for row in history][:ROUNDS]
    assert len({(row["layer"], row["index"]) for row in rows}) == ROUNDS
    assert [row["val_loss"] for row in rows] == pytest.approx([row["val_unlearning_loss"] for row in history][:ROUNDS])
    assert [row["val_acc"] for row in rows] == pytest.approx([row["val_acc"] for row in history][:ROUNDS])


def test_it_runs_the_whole_test_set_twice_a_round(parts):
    model, seen = plain(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    released(model, *parts, 2)
    assert sum(seen) == 2 * (16 + 2 * 16 + 2 * 20)  # training; validation and test, clean and triggered


def test_its_faults_are_there(parts):
    train, *others = parts
    model = lived_in(build("preact_resnet", 4, width=4, blocks=(1, 1)), train.clean)
    before = copy.deepcopy(model)
    row, = released(model, train, *others, 1)
    moved = {name for name, tensor in model.state_dict().items() if not tensor.equal(before.state_dict()[name])}
    assert "stages.0.0.bn1.running_mean" in moved, "the first batch moves the statistics"
    assert not model.get_submodule(row["layer"]).weight[row["index"]].any()
    names = [name for name, _ in model.named_parameters()]
    after = names[names.index(f"{row['layer']}.weight") + 1]
    assert after in moved and not model.get_parameter(after)[row["index"]].any(), "the next tensor is no bias here"


def test_a_dead_filter_is_picked_again_without_a_mask(parts):
    model = build("preact_resnet", 4, width=4, blocks=(1,)).eval()
    rows = released(model, *parts, 12)
    assert len({(row["layer"], row["index"]) for row in rows}) < 12 <= len(filters(model))
