"""TriggerStudio: put a trigger on an image and see at once how the model answers."""

from collections.abc import Sequence
from functools import cached_property
from itertools import zip_longest
from typing import Any, NamedTuple

import ipywidgets as widgets
import torch
from torch import Tensor, nn

from gradprune.attacks import TRIGGERS
from gradprune.attacks.poisoning import attack_labels
from gradprune.base.paths import data_folder
from gradprune.datasets import ImageSet
from gradprune.evaluation import Metrics, evaluate
from gradprune.models import predict
from gradprune.models.checkpoints import load_checkpoint, read_card
from gradprune.victims import Victim
from gradprune.views.figures.drawing import table_html
from gradprune.views.figures.picture import Picture
from gradprune.views.figures.trigger_kinds import KINDS, OTHER, Kind, learns, shipped
from gradprune.views.figures.trigger_pictures import Row, draw_rows, tell
from gradprune.views.panels.controls import WIDE, choice, fit_choice, fit_slider, number, slider, switch
from gradprune.views.panels.panel import Panel

_ROWS = 5  # measurements in the table, newest first
_STEP = 165  # pixels: two buttons fit beside the number on a page 600 pixels wide
_RANGES, _CHOICES = (max(len(knobs) for knobs in kinds) for kinds in (
    [kind.ranges for kind in KINDS.values()], [kind.choices for kind in KINDS.values()]))


class Setting(NamedTuple):
    """The values of the controls: the image, and the trigger to put on it (strength 1: the trigger as it is).

    knobs: (setting, value) of each knob that the kind has. below: whether the second row is shown.
    """

    image: int
    kind: str
    strength: float
    knobs: tuple[tuple[str, Any], ...]
    below: bool = False


class Seen(NamedTuple):
    """The image clean and triggered with the model's answers; below it a decoy or a disguise, if chosen."""

    setting: Setting
    rows: tuple[Row, ...]
    note: str


class Scaled(nn.Module):
    """A trigger whose change of the image is multiplied by `strength`."""

    def __init__(self, trigger: nn.Module, strength: float) -> None:
        super().__init__()
        self.trigger, self.strength = trigger, strength

    def forward(self, images: Tensor) -> Tensor:
        """images: float (N, C, H, W) in [0, 1] -> the same."""
        return (images + self.strength * (self.trigger(images.clone()) - images)).clamp(0, 1)


class TriggerStudio(Panel):
    """Choose an image, a trigger, its strength and knobs: the image clean, triggered, the difference, the answers.

    victim: its model answers, and its test images are shown. Its own trigger is used for that kind; those of the
    other kinds come from the shipped victims. A switch shows a decoy or, with clean labels, a training image below.
    A button measures ASR over all test images; `measured` keeps the results by setting.
    Raises InputError for anything but a `Victim`.
    """

    def __init__(self, victim: Victim) -> None:
        super().__init__(victim)
        self.images: ImageSet = victim.data.test.to("cpu")
        self.own = str(getattr(victim.trigger, "name", type(victim.trigger).__name__))
        self.wanted = attack_labels(self.images, victim.target, self.label_map)
        self.measured: dict[str, Metrics] = {}
        self.known: dict[str, tuple[nn.Module, bool]] = {self.own: (victim.trigger, True)}
        kinds = [(f"{name} (the attacker's)" if name == self.own else name, name) for name in {**TRIGGERS, self.own: 0}]
        foreign = self.images.labels != self.wanted
        self.image = number("Image", 0, len(self.images) - 1, int(foreign.nonzero()[0]) if foreign.any() else 0)
        self.kind = choice("Trigger", kinds, self.own)
        self.strength = slider("Strength", 0.0, 2.0, 1.0, 0.1, ".0%")
        self.knobs = [slider("Knob", 0.0, 1.0, 0.0, 1.0) for _ in range(_RANGES)]
        self.choices = [choice("Knob", ["-"], "-") for _ in range(_CHOICES)]
        self.below = switch("Show a decoy below")
        self.previous = self.button("Previous image", lambda: self._step(-1), width=_STEP)
        self.next = self.button("Next image", lambda: self._step(1), width=_STEP)
        self.measure = self.button("Measure ASR on all test images", self._measure, "Measuring ...", WIDE)
        self.board = widgets.HTML()
        self._take_kind()
        self.on_change([self.kind], self._take_kind)
        self.show([self.image, self.previous, self.next], [self.kind, self.strength, *self.knobs, *self.choices],
                  [self.below], below=[self.measure, self.board])

    @property
    def caution(self) -> str:
        """In an all-to-all attack, the attacker's class differs from image to image."""
        return super().caution and " This attack is all-to-all: the attacker's class is always the next one."

    def state(self) -> Setting:
        """The controls as plain values."""
        kind, settings = self._kind(self.kind.value), self._settings(self.kind.value)
        knobs = [(knob.setting, int(control.value) if isinstance(knob.step, int) else control.value)
                 for knob, control in zip(kind.ranges, self.knobs, strict=False) if knob.setting in settings]
        knobs += [(knob.setting, control.value) for knob, control in zip(kind.choices, self.choices, strict=False)
                  if knob.setting in settings]
        return Setting(self.image.value, self.kind.value, self.strength.value, tuple(knobs),
                       self.below.value and not self.below.disabled)

    def compute(self, state: Setting) -> Seen:
        """Put the trigger on the image and get the answers to both; then the row below."""
        trigger, note = self._made(state)
        one = self.images.subset(torch.tensor([state.image]))
        first = self._row(self.victim.model, one.floats(), one.triggered(self.trigger(state)),
                          int(one.labels), int(self.wanted[state.image]))
        return Seen(state, (first, *([self._below(state, trigger)] if state.below else [])), note)

    def draw(self, computed: Seen) -> Picture:
        """The rows of images with the answers; beside the first row, the probability of each class for both images."""
        setting = computed.setting
        said = tell(computed.rows, self.named, f"Image {setting.image}", self.words(setting),
                    self._kind(setting.kind).idea)
        return Picture(draw_rows(computed.rows, self.images.classes), " ".join([*said, computed.note]).strip())

    def trigger(self, setting: Setting) -> nn.Module:
        """The trigger that a setting describes."""
        trigger = self._made(setting)[0]
        return trigger if setting.strength == 1 else Scaled(trigger, setting.strength)

    def words(self, setting: Setting) -> str:
        """The trigger of a setting in words."""
        kind, values = self._kind(setting.kind), dict(setting.knobs)
        parts = [knob.words.format(values[knob.setting]) for knob in kind.ranges if knob.setting in values]
        parts += [_word(knob.options, values[knob.setting]) for knob in kind.choices if knob.setting in values]
        return f"{setting.kind} ({', '.join([*parts, f'strength {setting.strength:.0%}'])})"

    # ---- triggers

    def _kind(self, name: str) -> Kind:
        return KINDS.get(name, OTHER)

    def _known(self, name: str) -> tuple[nn.Module, bool]:
        """The attacker's or the shipped trigger of a kind, and whether its learned part is complete."""
        if name not in self.known:
            self.known[name] = shipped(name)
        return self.known[name]

    def _settings(self, name: str) -> dict[str, Any]:
        return dict(getattr(self._known(name)[0], "settings", {}))

    def _made(self, setting: Setting) -> tuple[nn.Module, str]:
        """The trigger at full strength, and a note where its learned part is missing."""
        (trigger, complete), usual = self._known(setting.kind), self._settings(setting.kind)
        changed = {key for key, value in setting.knobs if value != usual[key]}
        ranges = self._kind(setting.kind).ranges
        anew = learns(trigger) and any(knob.anew and knob.setting in changed for knob in ranges)
        if changed:
            fresh = type(trigger)(**usual | dict(setting.knobs))
            if not anew:
                fresh.load_state_dict(trigger.state_dict())
            trigger = fresh
        why = "with these settings it would have to be trained again" if anew else \
            f"no checkpoint “{setting.kind}” is installed"
        return trigger, "" if complete and not anew else f"The untrained trigger is shown: {why}."

    # ---- rows

    def _row(self, model: nn.Module, clean: Tensor, marked: Tensor, truth: int, wanted: int, title: str = "") -> Row:
        images = torch.cat([clean, marked])
        return Row(images, predict(model, images).softmax(1).cpu(), truth, wanted, title)

    def _below(self, state: Setting, trigger: Any) -> Row:
        """A decoy, this image with almost the mark; or, with clean labels, a training image made hard to recognise."""
        truth, wanted = int(self.images.labels[state.image]), int(self.wanted[state.image])
        if decoy := self._kind(state.kind).decoy:
            pair = self.images.subset(torch.tensor([state.image, (state.image + 1) % len(self.images)])).floats()
            with torch.no_grad():
                marked = trigger.decoy(pair[:1], pair[1:], torch.Generator().manual_seed(0))
            return self._row(self.victim.model, pair[:1], marked, truth, wanted, f"A decoy {decoy}")
        victims = (self.images.labels == self.wanted).nonzero().flatten().tolist() or [state.image]
        one = self.images.subset(torch.tensor(victims[:1]))
        model, name = self.honest
        title = f"A training image made hard to recognise for {name}, before the mark is added"
        return self._row(model, one.floats(), trigger.disguise(model, one), int(one.labels), -1, title)

    @cached_property
    def honest(self) -> tuple[nn.Module, str]:
        """The model for the disguise and its name: the shipped clean one or, for other classes, the victim's."""
        path = data_folder() / "checkpoints" / "clean"
        if path.with_name("clean.json").is_file() and \
                read_card(path).get("data", {}).get("classes") == list(self.images.classes):
            return load_checkpoint(path)[0], "an honest model"
        return self.victim.model, "this model"

    # ---- wiring

    def _take_kind(self) -> None:
        """Fit the knobs to the kind of trigger."""
        kind, settings = self._kind(self.kind.value), self._settings(self.kind.value)
        for control, knob in zip_longest(self.knobs, kind.ranges):
            fit_slider(control, knob, settings)
        for control, knob in zip_longest(self.choices, kind.choices):
            fit_choice(control, knob, settings)
        clean_label = kind.family == "clean label"
        self.below.disabled = not (kind.decoy or clean_label)
        self.below.description = "Show a disguised training image" if clean_label else \
            "Show a decoy below" if kind.decoy else "No decoys in this attack"

    def _step(self, by: int) -> None:
        self.image.value = (self.image.value + by) % len(self.images)

    def _measure(self) -> None:
        """ASR and RA over all test images, newest first in the table."""
        setting = self.state()
        metrics = evaluate(self.victim.model, self.images, self.trigger(setting), self.victim.target,
                           label_map=self.label_map)
        self.measured = {self.words(setting): metrics, **self.measured}
        rows = [[words, f"{m.asr:.1%}", f"{m.ra:.1%}"] for words, m in list(self.measured.items())[:_ROWS]]
        self.board.value = table_html(["trigger", "ASR", "RA"], rows)


def _word(options: Any, value: Any) -> str:
    """A choice in words; the attacker's own value may not be one of the usual ones."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return str(tuple(value))
    return str(options.get(value, value))
