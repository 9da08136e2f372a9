"""Driven filters of a scan: by hand, what is left of the model, and that a backdoor's class stands out."""

import copy
import importlib

import pytest
import torch
from conftest import same
from torch import nn

from gradprune.defenses.driven import driven
from gradprune.pruning.filters import filters, silence

driving = importlib.import_module("gradprune.defenses.driven")


class Layers(nn.Module):
    """Two 1x1 convolutions that pass three channels on; the logits are the means of the channels. One more is not used."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.idle = (nn.Conv2d(3, 3, 1, bias=False) for _ in range(3))
        for layer in (self.first, self.second, self.idle):
            nn.init.dirac_(layer.weight)

    def forward(self, images):
        return self.second(self.first(images).relu()).mean((2, 3))


@pytest.fixture
def model():
    return Layers().eval()


@pytest.fixture
def images():
    return torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_by_hand(model, images, monkeypatch):
    """A filter that is pushed up by ten spreads of its layer adds them to its class's logit; the unused layer adds nothing."""
    spread = images.transpose(0, 1).flatten(1).std(1, unbiased=False).mean()
    logits, usual = model(images).detach(), model(images).softmax(1).mean(0)
    raised = [(logits + 10 * spread * torch.eye(3)[label]).softmax(1).mean(0) - usual for label in (0, 1, 2, 0, 1, 2)]
    expected = (torch.stack(raised).clamp_min(0).sum(0) / 9).tolist()
    assert driven(model, filters(model, images[:1]), images) == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr(driving, "AT_ONCE", 2)
    assert driven(model, filters(model, images[:1]), images) == pytest.approx(expected, abs=1e-6)


def test_of_many_filters_and_images_evenly_chosen_ones(model, images, monkeypatch):
    """Of nine filters every third, the first of each layer; of five images the first, third and fifth."""
    found, pushed = filters(model, images[:1]), []
    monkeypatch.setattr(driving, "MANY", 4)
    monkeypatch.setattr(driving, "FEW", 3)
    monkeypatch.setattr(driving, "_answers", lambda model, module, channels, images: pushed.append((module, channels, images)) or [torch.zeros(3)])
    driven(model, found, images)
    assert [(module, channels) for module, channels, _ in pushed] == [(model.first, [0]), (model.second, [0]), (model.idle, [0])]
    assert torch.equal(pushed[0][2], images[::2])


def test_a_backdoors_class_stands_out_and_the_model_stays_as_it_was(victim):
    given, images = copy.deepcopy(victim.model), victim.data.defense.floats()[::9]
    reached = driven(victim.model, filters(victim.model), images)
    assert max(range(4), key=reached.__getitem__) == victim.target
    assert same(victim.model, given)
    assert not any(module._forward_hooks for module in victim.model.modules())


def test_silent_filters_stay_silent(model, images):
    """Pruned filters are not woken up: with one of nine silent the mean is over eight, with all of them nothing rises."""
    found = filters(model, images[:1])
    rises = torch.tensor(driven(model, found, images)) * 9
    silence(model, found, [8])  # of the layer that is not used
    assert driven(model, found, images) == pytest.approx((rises / 8).tolist(), abs=1e-6)
    silence(model, found, range(9))
    assert driven(model, found, images) == [0.0] * 3


def test_a_layer_that_is_not_used_image_by_image_leads_nowhere(images):
    class Patches(nn.Module):
        """Its convolution sees the quarters of every image as images."""

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, images):
            quarters = images.unflatten(2, (2, -1)).unflatten(4, (2, -1)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
            return self.conv(quarters).mean((2, 3)).view(len(images), 4, 3).mean(1)

    model = Patches().eval()
    assert driven(model, filters(model, images[:1]), images) == [0.0] * 3
