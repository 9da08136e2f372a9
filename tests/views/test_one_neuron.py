"""The neuron of notebook 02: its figures are those that torch finds, and its sliders move them."""

import pytest
import torch
import torch.nn.functional as F
from conftest import says

from gradprune.views import OneNeuron
from gradprune.views.panels.one_neuron import Setting


@pytest.fixture
def panel(make):
    return make(OneNeuron)


@pytest.mark.parametrize("weights", [(2.0, -6.0), (-8.0, -8.0), (0.0, 0.0), (8.0, 3.5)])
@pytest.mark.parametrize("triggered", [False, True])
def test_the_figures_are_those_of_torch(panel, weights, triggered):
    found = panel.compute(Setting(weights, triggered))
    w, x = torch.tensor(weights, dtype=torch.float64, requires_grad=True), torch.tensor([1.0, float(triggered)]).double()
    loss = -F.logsigmoid(w @ x)
    gradient, = torch.autograd.grad(loss, w)
    falls = [loss + F.logsigmoid((w * keep) @ x) for keep in (torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))]
    assert found.loss == pytest.approx(loss.item()) and found.chance == pytest.approx(torch.sigmoid(w @ x).item())
    assert found.gradient == pytest.approx(gradient.tolist())
    assert found.predicted == pytest.approx((w * gradient).tolist())
    assert found.real == pytest.approx([fall.item() for fall in falls])


def test_the_sliders_and_the_image_are_followed(panel):
    assert says(panel.sentence, "Triggered image", "true class", "2%", "loss", "4.02")
    assert "w₂ (sticker) -6.0: gradient -0.98, fall of the loss without it +3.89, predicted +5.89." in panel.sentence
    panel.sticker.set_state({"value": 0.0})
    assert "probability of 88%" in panel.sentence
    panel.image.set_state({"index": 0})
    assert panel.sentence.startswith("Clean image") and "w₂ (sticker) +0.0: gradient +0.00" in panel.sentence
