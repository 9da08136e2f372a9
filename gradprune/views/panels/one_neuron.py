"""OneNeuron: the smallest possible backdoor, with its two weights on sliders, and what its gradient predicts."""

import math
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from gradprune.views.figures import style
from gradprune.views.figures.drawing import blank, heading, place
from gradprune.views.figures.picture import Picture
from gradprune.views.figures.style import CLEAN, TRIGGERED
from gradprune.views.panels.controls import buttons, slider
from gradprune.views.panels.panel import BasePanel

_REACH = 8.0  # the sliders' range, both ways
_NAMES = "w₁ (sign)", "w₂ (sticker)"


class Setting(NamedTuple):
    """The values of the controls: the two weights, and whether the sticker is on the image."""

    weights: tuple[float, float]
    triggered: bool


class Neuron(NamedTuple):
    """Probability of the true class, loss, and by weight: gradient, predicted and real fall of the loss without it."""

    setting: Setting
    chance: float
    loss: float
    gradient: tuple[float, float]
    predicted: tuple[float, float]
    real: tuple[float, float]


class OneNeuron(BasePanel):
    """One neuron that decides between the true class and the target: z = w₁x₁ + w₂x₂, loss -ln sigmoid(z).

    x₁ = 1: the sign is seen; x₂ = 1: the sticker is. Two plots show the loss along each weight, the gradient as its
    tangent, and the values of the tangent and of the loss itself when the weight becomes 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sign, self.sticker = (slider(name, -_REACH, _REACH, value, 0.5, "+.1f")
                                   for name, value in zip(_NAMES, (2.0, -6.0), strict=True))
        self.image = buttons("Image", [("clean", False), ("triggered", True)], True)
        self.show([self.sign, self.sticker, self.image])

    def state(self) -> Setting:
        """The controls as plain values."""
        return Setting((self.sign.value, self.sticker.value), self.image.value)

    def compute(self, state: Setting) -> Neuron:
        """Loss and gradient by hand: with p = sigmoid(z), dL/dw = (p - 1) x."""
        inputs = 1.0, float(state.triggered)
        z = sum(w * x for w, x in zip(state.weights, inputs, strict=True))
        loss, chance = _loss(z), math.exp(-_loss(z))
        sign, sticker = ((chance - 1) * x + 0.0 for x in inputs)
        predicted = state.weights[0] * sign + 0.0, state.weights[1] * sticker + 0.0
        first, second = (loss - _loss(z - w * x) for w, x in zip(state.weights, inputs, strict=True))
        return Neuron(state, chance, loss, (sign, sticker), predicted, (first, second))

    def draw(self, computed: Neuron) -> Picture:
        """The loss along each weight, with the other one fixed."""
        with blank(3.5) as figure:
            for column in (0, 1):
                _curve(place(figure, 0.6 + 4.1 * column, 0.75, 3.4, 2.2), computed, column)
            heading(figure, f"Probability of the true class {computed.chance:.0%}, loss {computed.loss:.2f}")
        told = "; ".join(f"{name} {weight:+.1f}: gradient {gradient:+.2f}, fall of the loss without it {real:+.2f}, "
                         f"predicted {predicted:+.2f}" for name, weight, gradient, predicted, real in zip(
                             _NAMES, computed.setting.weights, *computed[3:], strict=True))
        image = "Triggered" if computed.setting.triggered else "Clean"
        return Picture(figure, f"{image} image: the true class has a probability of {computed.chance:.0%}, the loss "
                               f"is {computed.loss:.2f}. {told}.")


def _loss(z: float) -> float:
    """-ln sigmoid(z), without overflow."""
    return math.log1p(math.exp(-abs(z))) + max(0.0, -z)


def _curve(ax: Axes, neuron: Neuron, column: int) -> None:
    """The loss, its tangent, and the values of both at a weight of 0."""
    weight, slope = neuron.setting.weights[column], neuron.gradient[column]
    x = 1.0 if column == 0 else float(neuron.setting.triggered)
    rest = (neuron.setting.weights[0] + neuron.setting.weights[1] * neuron.setting.triggered) - weight * x
    along = np.linspace(-_REACH, _REACH, 161)
    color = TRIGGERED.color if neuron.setting.triggered else CLEAN.color
    ax.plot(along, [_loss(rest + w * x) for w in along], color=color)
    ax.plot(along, neuron.loss + slope * (along - weight), color=style.INK, linewidth=1.2, linestyle="--")
    ax.axvline(0, color=style.FAINT, linewidth=0.8)
    ax.plot(weight, neuron.loss, "o", color=color, markersize=9, zorder=4)
    ax.plot(0, neuron.loss - neuron.predicted[column], "D", color=style.PAPER, markeredgecolor=style.INK,
            markeredgewidth=1.2, markersize=7, zorder=5, clip_on=False)
    ax.plot(0, neuron.loss - neuron.real[column], "s", color=style.INK, markersize=5, zorder=6)
    ax.set(xlim=(-_REACH, _REACH), ylim=(-3, 2 * _REACH), xticks=[-8, -4, 0, 4, 8], yticks=[0, 5, 10, 15])
    ax.set_title(f"{_NAMES[column]}: gradient {slope:+.2f}", fontsize=style.NORMAL)
    ax.set_ylabel("loss" if column == 0 else "")
    ax.set_xlabel(f"removed: \N{WHITE DIAMOND} predicted fall {neuron.predicted[column]:+.2f}, "
                  f"\N{BLACK SQUARE} real {neuron.real[column]:+.2f}")
