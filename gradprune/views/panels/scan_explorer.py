"""ScanExplorer: choose a class, and see the trigger synthesised for it, what it does, and its norm among the others."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradprune.base.errors import require
from gradprune.datasets import draw_defense_images
from gradprune.models import predict
from gradprune.search import Inversion, outliers
from gradprune.victims import Victim
from gradprune.views.figures import style
from gradprune.views.figures.drawing import blank, place
from gradprune.views.figures.picture import Picture
from gradprune.views.figures.scan_plots import alarm_line, norm_bars
from gradprune.views.figures.trigger_pictures import Row, draw_row
from gradprune.views.panels.controls import choice, slider
from gradprune.views.panels.panel import Panel

_SIDE = 1.3  # inches: an image


class Chosen(NamedTuple):
    """The values of the controls: a class, and one of the defender's images."""

    label: int
    image: int


class Seen(NamedTuple):
    """The image without and with the trigger, float (2, C, H, W); probabilities (2, classes); the share it moves."""

    chosen: Chosen
    images: Tensor
    chances: Tensor
    moved: float


class ScanExplorer(Panel):
    """The synthesised trigger of each class on the defender's images, and its norm beside those of the other classes.

    victim: its own trigger is not used. inversions: one search per class, in class order, as `invert` or `perturb`
    returns it. spc: images per class; the defender's training part of them is shown. Raises InputError unless there
    is one search for each of at least three classes.
    """

    State = Chosen

    def __init__(self, victim: Victim, inversions: Sequence[Inversion], spc: int = 10) -> None:
        super().__init__(victim)
        self.classes = victim.data.defense.classes
        require(len(inversions) == len(self.classes) >= 3,
                f"The explorer takes one search per class, at least 3; got {len(inversions)} for {len(self.classes)}.")
        self.found, self.norms = list(inversions), [one.norm for one in inversions]
        self.images = draw_defense_images(victim.data.defense, spc).train.to("cpu")
        names = [(f"{label}: {name}", label) for label, name in enumerate(self.classes)]
        self.label = choice("Class", names, int(np.argmin(self.norms)))
        self.image = slider("Image", 0, len(self.images) - 1, 0)
        self.show([self.label, self.image])

    def compute(self, state: Chosen) -> Seen:
        """Put the trigger on all images of other classes, and on the chosen one."""
        model, trigger = self.victim.model, self.found[state.label].trigger
        device = next(model.parameters()).device
        clean = self.images.floats().to(device)
        with torch.no_grad():
            marked = trigger(clean)
        others = self.images.labels != state.label
        moved = (predict(model, marked).argmax(1).cpu() == state.label)[others].float().mean()
        pair = torch.stack([clean[state.image], marked[state.image]])
        return Seen(state, pair.cpu(), predict(model, pair).softmax(1).cpu(), float(moved))

    def draw(self, computed: Seen) -> Picture:
        """The image without and with the trigger and the change; beside them the norms, the chosen class framed."""
        label, truth = computed.chosen.label, int(self.images.labels[computed.chosen.image])
        with blank(3.4) as figure:
            row = Row(computed.images, computed.chances, truth, label)
            draw_row(figure, row, self.classes, 0.42, _SIDE, "triggered")
            note = place(figure, 0.15, 2.5, 4.1, 0.9)
            note.set_axis_off()
            words = f"{computed.moved:.0%} of the images of other classes\ngo to “{self.written(label)}”"
            style.write(note, words, (0, 1), (0, 0), va="top", fontsize=style.LARGE, fontweight="bold")
            ax = place(figure, 5.75, 0.42, 2.5, 2.45)
            line, smallest = alarm_line(self.norms), int(np.argmin(self.norms))
            alarms = [smallest] if line is not None and self.norms[smallest] < line else []
            norm_bars(ax, self.norms, self.classes, line, alarms)
            ax.barh(label, self.norms[label], height=0.7, **style.SELECTED)
            ax.set_title("norm by class")
        return Picture(figure, self._tell(computed, truth))

    def _tell(self, computed: Seen, truth: int) -> str:
        (label, image), middle = computed.chosen, float(np.median(self.norms))
        norm, rank = self.norms[label], 1 + sum(other < self.norms[label] for other in self.norms)
        side, name = "below" if norm < middle else "above", self.named(label)
        answers = [f"“{self.named(int(chance.argmax()))}”" for chance in computed.chances]
        lost = "" if self.found[label].converged else " The search did not reach its goal, so the norm means little."
        index = outliers(self.norms)[0][label]
        return (f"“{name}”: norm {norm:.1f}, {norm / middle:.0%} of the median, place {rank} of {len(self.norms)}, "
                f"anomaly index {index:.1f} {side} the median; its trigger moves {computed.moved:.0%} of the images of "
                f"other classes. Image {image}, true class “{self.named(truth)}”: clean, it is taken for {answers[0]}, "
                f"with the trigger for {answers[1]}.{lost}")
