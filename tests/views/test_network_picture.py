"""The network, drawn: who reads whom, and the trigger's signal, which a cut ends."""

import copy

import pytest
import torch
from conftest import refuses, says
from torch import nn

from gradprune.models import build
from gradprune.pruning import Pairs, silence
from gradprune.pruning.filters import filters
from gradprune.views.figures.network_picture import network_drawn, readers, signal


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
    cut = copy.deepcopy(model)
    silence(cut, found, [2])
    assert signal(cut, found, pairs)[0][2] == 0
    still, _, _ = signal(model, found, Pairs(pairs.clean, pairs.clean, pairs.labels))
    assert still.abs().max() < 1e-6


def test_the_picture_says_how_much_arrives(drawn):
    model, found, pairs = drawn
    dead = copy.deepcopy(model)
    silence(dead, found, range(found.layers[0].count))
    picture = network_drawn({"as given": model, "no first layer": dead}, found, pairs, {"no first layer": range(8)})
    assert says(picture.summary, "signal", "as given", "100%", "no first layer", "0%")
    assert len(picture.figure.axes) == 3  # two models and the colour bar
    refuses("no model", network_drawn, {}, found, pairs, {})


def test_a_model_that_cannot_be_traced_has_no_arrows(drawn):
    class Odd(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    assert readers(Odd(), drawn[1]) == []
