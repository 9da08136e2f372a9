"""PruningPlayer: scrub through a pruning run, round by round."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import ipywidgets as widgets
import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from gradprune.datasets import ImageSet
from gradprune.defenses import DefenseResult, grad_prune
from gradprune.errors import require
from gradprune.evaluation import Victim, replay
from gradprune.models import predict
from gradprune.pruning import silence
from gradprune.pruning.filters import filters
from gradprune.views import style
from gradprune.views.controls import slider
from gradprune.views.panel import Panel
from gradprune.views.panel_parts import blank, judge, place, show_image
from gradprune.views.picture import Picture, count
from gradprune.views.style import METRICS, plain

_SHOWN = 6  # example images: the first test image of as many classes, the target left out
_GIVEN = {"stage": "prune", "round": 0, "layer": None, "index": None}  # a run before its first round


class Frame(NamedTuple):
    """One round: all rows of the replay, the round that was kept, the one shown, its answers (images,) and how sure."""

    rows: Sequence[dict[str, Any]]
    kept: int
    round: int
    answers: Tensor
    sure: Tensor


class PruningPlayer(Panel):
    """ACC, ASR and RA over the rounds of a pruning run; which filter fell; what became of some triggered images.

    victim: the model the run began with. result: what `grad_prune` returned for it; without one, a button runs it
    (recipe `paper`, no fine-tuning). each: test images per class that are replayed, once. The figures explain the run,
    they never steer it. Raises InputError for a history without pruning rows or of another model.
    """

    def __init__(self, victim: Victim, result: DefenseResult | None = None, each: int = 20) -> None:
        super().__init__(victim)
        self.sample = first_of_each(victim.data.test.to("cpu"), each)
        others = self.sample.subset(self.sample.labels != victim.target)
        self.shown = first_of_each(others, 1)
        self.shown = self.shown.subset(torch.arange(min(_SHOWN, len(self.shown))))
        self.pixels = self.shown.triggered(victim.trigger)
        self.round = slider("Round", 0, 1, 0)
        self.play = widgets.Play(min=0, max=1, interval=900, description="Play the rounds")
        self.run = self.button("Run Grad-Prune", self._run, "Pruning ...", 146)
        self.take(result)
        self.on_change([self.round], lambda: setattr(self.play, "value", self.round.value))
        self.on_change([self.play], lambda: setattr(self.round, "value", self.play.value))
        label = widgets.Label("Play the rounds", layout=widgets.Layout(width="110px", justify_content="flex-end"))
        self.show([self.round, label, self.play] + [self.run] * (result is None))

    def take(self, result: DefenseResult | None) -> None:
        """Replay a run on the sample; the slider goes to the round that was kept."""
        self.kept = len(result.mask.positions) if result else 0
        self.result, history = result, result.rows("prune") if result else [_GIVEN]
        require(len(history) > 0, "the result's history has no pruning rounds.")
        self.rows = replay(self.victim.model, history, self.sample, self.victim.trigger, self.victim.target)
        model = copy.deepcopy(self.victim.model)
        found, chances = filters(model, self.pixels[:1]), []
        for row in self.rows:
            if row["layer"] is not None:
                silence(model, found, [found.position(row["layer"], row["index"])])
            chances.append(predict(model, self.pixels).softmax(1).cpu())
        self.chances = torch.stack(chances)
        self.round.max = self.play.max = max(1, len(self.rows) - 1)
        self.round.disabled = self.play.disabled = len(self.rows) == 1
        self.round.value = self.play.value = self.kept

    def state(self) -> int:
        """The round to show."""
        return int(self.round.value)

    def compute(self, state: int) -> Frame:
        """Look the round up; everything was measured once."""
        sure, answers = self.chances[state].max(1)
        return Frame(self.rows, self.kept, state, answers, sure)

    def draw(self, computed: Frame) -> Picture:
        """Curves with the round marked; the triggered images with the answers of that round."""
        row, target, names = computed.rows[computed.round], self.victim.target, self.shown.classes
        rounds, truths = [r["round"] for r in computed.rows], self.shown.labels.tolist()
        with style.in_style():
            figure = blank(3.95)
            ax = place(figure, 0.65, 0.72, 3.55, 2.65)
            curves = {mark.name: ([r[key] for r in computed.rows], mark) for key, mark in METRICS.items()}
            style.draw_lines(ax, rounds, curves, shares=True)
            if computed.kept < rounds[-1]:
                ax.axvspan(computed.kept, rounds[-1], color=style.EMPTY, linewidth=0, zorder=0)
                style.write(ax, "tried, then taken back", (1, 0.5), (-6, 6), ha="right", color=style.FAINT)
            ax.axvline(computed.round, color=style.INK, linewidth=1.5)
            ax.set_xlabel("round")
            ax.xaxis.set_major_locator(MaxNLocator(10, integer=True))
            if rounds[-1] == 0:
                ax.set(xlim=(-0.2, 9), xticks=[0])
                style.write(ax, "here the rounds appear", (0.55, 0.5), (0, 0), ha="center", color=style.FAINT)
            fell = f"{plain(row['layer'])}[{row['index']}] fell" if row["layer"] else "the given model"
            when = f"Round {computed.round} of {rounds[-1]}" if rounds[-1] else "Nothing pruned yet"
            style.write(ax, f"{when}: {fell}", (0, 1), (-30, 24), fontsize=style.LARGE,
                        fontweight="bold")
            for i, (answer, truth) in enumerate(zip(computed.answers.tolist(), truths, strict=True)):
                tile = place(figure, 4.95 + 1.15 * (i % 3), 0.52 + 1.7 * (i // 3), 1.1, 1.1)
                show_image(tile, self.pixels[i])
                verdict = judge(answer, truth, target)
                style.write(tile, f"{verdict.symbol} {plain(self.named(answer), 14)}", (0.5, 0), (0, -13), ha="center",
                            color=verdict.color)
                style.write(tile, f"{computed.sure[i]:.0%}", (0.5, 0), (0, -24), ha="center", color=verdict.color)
            style.write(ax, "Triggered test images", (0, 1), (4.3 * 72, 24), fontsize=style.LARGE, fontweight="bold")
        hits = int((computed.answers == target).sum())
        right = int((computed.answers == self.shown.labels).sum())
        figures = ", ".join(f"{mark.name} {row[key]:.1%}" for key, mark in METRICS.items())
        return Picture(figure, f"{when}, {fell}: {figures} on "
                               f"{count(len(self.sample), 'test image')}; of {count(len(truths), 'triggered example')} "
                               f"{right} right, {hits} taken for “{names[target]}”.")

    def _run(self) -> None:
        victim = self.victim
        self.take(grad_prune(victim.model, victim.data.defense, victim.trigger, tune=False, progress=False))


def first_of_each(images: ImageSet, each: int) -> ImageSet:
    """The first `each` images of every class that has some."""
    found = [(images.labels == label).nonzero()[:each, 0] for label in range(len(images.classes))]
    return images.subset(torch.cat(found))
