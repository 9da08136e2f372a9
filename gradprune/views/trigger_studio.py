"""TriggerStudio: put a trigger on an image and see at once what the model makes of it."""

from typing import Any, NamedTuple

import ipywidgets as widgets
import torch
from torch import Tensor, nn

from gradprune.attacks import TRIGGERS, make_trigger
from gradprune.datasets import ImageSet
from gradprune.evaluation import Metrics, Victim, evaluate
from gradprune.models import predict
from gradprune.views import style
from gradprune.views.controls import WIDE, choice, number, slider
from gradprune.views.panel import Panel
from gradprune.views.panel_parts import answer_bars, blank, judge, place, show_image, table_html
from gradprune.views.picture import Picture
from gradprune.views.style import CLEAN, TRIGGERED, plain

_KNOBS = {"badnets": ("size", "Size", "{} pixels wide", 1, 12), "blended": ("seed", "Pattern", "pattern {}", 0, 9),
          "sig": ("frequency", "Waves", "{} waves", 1, 16)}  # kind -> setting, control, in words, lowest, highest
_PLACES = ("top_left", "top_right", "center", "bottom_left", "bottom_right")
_ROWS = 5  # measurements in the table, newest first


class Setting(NamedTuple):
    """What the controls say: which image, and the trigger to put on it (strength 1 = as the trigger is made)."""

    image: int
    kind: str
    strength: float
    knob: int
    position: str | tuple[int, int]


class Seen(NamedTuple):
    """An image clean and triggered, float (2, C, H, W), and the model's probabilities, float (2, classes)."""

    setting: Setting
    images: Tensor
    chances: Tensor


class Scaled(nn.Module):
    """A trigger whose change of the image is multiplied by `strength`."""

    def __init__(self, trigger: nn.Module, strength: float) -> None:
        super().__init__()
        self.trigger, self.strength = trigger, strength

    def forward(self, images: Tensor) -> Tensor:
        """images: float (N, C, H, W) in [0, 1] -> the same."""
        return (images + self.strength * (self.trigger(images) - images)).clamp(0, 1)


class TriggerStudio(Panel):
    """Choose an image, a trigger, its strength, size and place: both images and the model's answers to both.

    victim: whose model is asked; the images are its test images. A button measures ASR over all of them.
    `measured` keeps the figures by setting. Raises InputError for anything but a `Victim`.
    """

    def __init__(self, victim: Victim) -> None:
        super().__init__(victim)
        self.images: ImageSet = victim.data.test.to("cpu")
        self.own = str(getattr(victim.trigger, "name", type(victim.trigger).__name__))
        self.measured: dict[str, Metrics] = {}
        kinds = [(f"{name} (the attacker's)" if name == self.own else name, name) for name in {**TRIGGERS, self.own: 0}]
        foreign = self.images.labels != victim.target
        first = int(foreign.nonzero()[0]) if foreign.any() else 0
        self.image = number("Image", 0, len(self.images) - 1, first, WIDE)
        self.kind = choice("Trigger", kinds, self.own)
        self.strength = slider("Strength", 0.0, 2.0, 1.0, 0.1, ".0%")
        self.knob = slider("Size", 0, 16, 1)
        self.position = choice("Position", ["-"], "-")
        self.previous = self.button("Previous image", lambda: self._step(-1))
        self.next = self.button("Next image", lambda: self._step(1))
        self.measure = self.button("Measure ASR on all test images", self._measure, "Measuring ...", WIDE)
        self.board = widgets.HTML()
        self._take_kind()
        self.on_change([self.kind], self._take_kind)
        self.on_change([self.image, self.strength, self.knob, self.position])
        self.show([self.image, self.previous, self.next], [self.kind, self.position], [self.strength, self.knob],
                  below=[self.measure, self.board])

    def state(self) -> Setting:
        """The controls as plain values."""
        return Setting(self.image.value, self.kind.value, self.strength.value, self.knob.value, self.position.value)

    def trigger(self, setting: Setting) -> nn.Module:
        """The trigger that a setting describes."""
        usual, trigger = self._settings(setting.kind), self.victim.trigger
        knob = _KNOBS.get(setting.kind, ("",))[0]
        settings = usual | {key: value for key, value in ((knob, setting.knob), ("position", setting.position))
                            if key in usual and (key != knob or value != round(usual[key]))}
        if setting.kind != self.own or settings != usual:
            trigger = (TRIGGERS[setting.kind] if setting.kind != self.own else type(trigger))(**settings)
        return trigger if setting.strength == 1 else Scaled(trigger, setting.strength)

    def compute(self, state: Setting) -> Seen:
        """Stamp the image and ask the model about both."""
        one = self.images.subset(torch.tensor([state.image]))
        images = torch.cat([one.floats(), one.triggered(self.trigger(state))])
        return Seen(state, images, predict(self.victim.model, images).softmax(1).cpu())

    def draw(self, computed: Seen) -> Picture:
        """The two images with the answers below; beside them the probability of each class for both."""
        truth, target, names = int(self.images.labels[computed.setting.image]), self.victim.target, self.images.classes
        with style.in_style():
            figure, told = blank(3.45), []
            for column, (title, mark) in enumerate({"● clean": CLEAN, "◆ triggered": TRIGGERED}.items()):
                ax = place(figure, 0.15 + 2.45 * column, 0.42, 2.33, 2.33)
                show_image(ax, computed.images[column])
                answer = int(computed.chances[column].argmax())
                ax.set_title(title, color=mark.color)
                share = f"{computed.chances[column, answer]:.1%}"
                verdict = judge(answer, truth, target if column else truth)
                told.append(f"“{self.named(answer)}” ({share})")
                says = f"{verdict.symbol} {plain(self.named(answer), 20)}"
                style.write(ax, says, (0, 0), (0, -17), color=verdict.color, fontsize=style.LARGE, fontweight="bold")
                style.write(ax, f"{share} sure", (0, 0), (0, -32), color=verdict.color)
            answer_bars(place(figure, 6.25, 0.42, 1.6, 2.8), computed.chances.numpy(), names, truth, target)
        end = ", the attacker's class" if computed.chances[1].argmax() == target != truth else ""
        return Picture(figure, f"Image {computed.setting.image}, truly “{names[truth]}”: clean it is taken for "
                               f"{told[0]}, with {self.words(computed.setting)} for {told[1]}{end}.")

    def words(self, setting: Setting) -> str:
        """The trigger of a setting in words."""
        parts = [_KNOBS[setting.kind][2].format(setting.knob)] if setting.kind in _KNOBS else []
        parts += [_words(setting.position)] if setting.position != "-" else []
        return f"{setting.kind} ({', '.join([*parts, f'strength {setting.strength:.0%}'])})"

    # ---- wiring

    def _settings(self, kind: str) -> dict[str, Any]:
        """The settings of a kind of trigger: the attacker's own for its kind, the usual ones for others."""
        return dict(getattr(self.victim.trigger if kind == self.own else make_trigger(kind), "settings", {}))

    def _take_kind(self) -> None:
        """Let knob and place fit the kind of trigger."""
        settings, kind = self._settings(self.kind.value), self.kind.value
        name, text, _, low, high = _KNOBS.get(kind, ("", "Size", "", 0, 0))
        self.knob.disabled = name not in settings
        self.knob.min, self.knob.max = min(low, self.knob.max), max(high, self.knob.min)
        self.knob.value = round(settings.get(name, 0))
        self.knob.min, self.knob.max, self.knob.description = low, high, text
        place_ = settings.get("position")
        self.position.disabled = place_ is None
        places = [] if place_ is None else [*_PLACES] if place_ in _PLACES else [*_PLACES, place_]
        self.position.options = [(_words(p), p) for p in places] or [("everywhere", "-")]
        self.position.value = place_ or "-"

    def _step(self, by: int) -> None:
        self.image.value = (self.image.value + by) % len(self.images)

    def _measure(self) -> None:
        """ASR and RA over all test images, newest first in the table."""
        setting = self.state()
        metrics = evaluate(self.victim.model, self.images, self.trigger(setting), self.victim.target)
        self.measured = {self.words(setting): metrics, **self.measured}
        rows = [[words, f"{m.asr:.1%}", f"{m.ra:.1%}"] for words, m in list(self.measured.items())[:_ROWS]]
        self.board.value = table_html(["trigger", "ASR", "RA"], rows)


def _words(place_: str | tuple[int, int]) -> str:
    return place_.replace("_", " ") if isinstance(place_, str) else f"row {place_[0]}, column {place_[1]}"
