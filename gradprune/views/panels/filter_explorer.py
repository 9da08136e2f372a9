"""FilterExplorer: walk through the filters by score, and see what each does and what its removal changes."""

from contextlib import ExitStack
from functools import cache
from typing import NamedTuple, cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from gradprune.datasets import draw_defense_images
from gradprune.models import evaluating
from gradprune.models.inference import copy_of
from gradprune.pruning import SCORES, Filters, filter_scores, pair_up, silence, unlearning_loss
from gradprune.pruning.filters import filters, keep_filter
from gradprune.victims import Victim
from gradprune.views.figures import style
from gradprune.views.figures.drawing import blank, place
from gradprune.views.figures.filter_picture import montage, responses
from gradprune.views.figures.picture import Picture
from gradprune.views.figures.plots import heat_map
from gradprune.views.figures.shortlist import Tried, describe_tried, pairs_of_bars, try_shortlist
from gradprune.views.figures.style import CLEAN, TRIGGERED, plain
from gradprune.views.panels.controls import buttons, choice, number, slider
from gradprune.views.panels.panel import Panel

ALL = -1  # in place of a layer: all of them


class FilterChoice:
    """Two controls that choose one filter together: a layer, or all layers, and the rank by score within it."""

    def __init__(self, found: Filters, scores: Tensor) -> None:
        self.found, self.position = found, int(scores.argmax())
        layers = [(plain(layer.name, tail=True), layer.start) for layer in found.layers]
        self.layer = choice("Layer", [("all layers", ALL), *layers], ALL)
        self.rank = slider("Rank", 1, len(found), 1)
        self.rescore(scores)

    def rescore(self, scores: Tensor) -> None:
        """Take new scores: ranks change, the chosen filter stays."""
        self.scores = scores
        self.go(self.position)

    def ranking(self) -> list[int]:
        """Positions in the chosen layer, or in all of them, highest score first."""
        if self.layer.value == ALL:
            return self.scores.argsort(descending=True, stable=True).tolist()
        layer = self.found.layer_of(self.layer.value)
        part = self.scores[layer.start:layer.start + layer.count]
        return (part.argsort(descending=True, stable=True) + layer.start).tolist()

    def go(self, position: int) -> None:
        """Choose a filter by its flat position and set both controls to it."""
        self.position = position
        if self.layer.value != ALL:
            self.layer.value = self.found.layer_of(position).start
        ranking = self.ranking()
        self.rank.max = len(ranking)
        self.rank.value = ranking.index(position) + 1

    def wire(self, panel: Panel) -> None:
        """Let the panel follow the controls; a new layer starts at its highest score."""
        panel.on_change([self.layer], lambda: self.go(self.ranking()[0]))
        panel.on_change([self.rank], lambda: self.go(self.ranking()[self.rank.value - 1]))


class Setting(NamedTuple):
    """The values of the controls: score, a flat filter position, a defence image, trials shown or not."""

    score: str
    position: int
    image: int
    trials: bool


class Detail(NamedTuple):
    """One filter: kernel (inputs, h, w), its response clean and triggered (2, H, W), the unlearning loss without it.

    tried: the shortlist of recipe `verified`, if it is shown.
    """

    setting: Setting
    image: Tensor
    kernel: Tensor
    maps: Tensor
    loss: float
    tried: Tried | None


class FilterExplorer(Panel):
    """All scores as a heat map; for one filter its kernel, its responses and the effect of its removal.

    Or, in the filter's place, the shortlist of recipe `verified`: what the gradient predicts and what a trial finds.
    victim: the panel works on a copy of its model. spc: defence images per class for the scores, as in `grad_prune`.
    top: how many filters are ringed in the map. Raises InputError as `draw_defense_images` and `filters` do.
    """

    def __init__(self, victim: Victim, spc: int = 10, top: int = 10) -> None:
        super().__init__(victim)
        self.model = copy_of(victim.model)
        train, _ = draw_defense_images(victim.data.defense, spc)
        self.pairs = pair_up(train, victim.trigger, next(self.model.parameters()).device)
        self.found = filters(self.model, self.pairs.clean[:1])
        measured = {score: filter_scores(self.model, self.found, self.pairs.triggered, self.pairs.labels, score)
                    for score in SCORES}
        self.scores = {score: values for score, (values, _) in measured.items()}
        self.loss = measured["gradient"][1]
        self._loss_without = cache(self._measure)
        self._tried = cache(lambda: try_shortlist(self.model, self.found, self.pairs, self.scores["gate"]))
        self.top = top
        self.score = buttons("Score", list(SCORES), "gradient")
        self.image = number("Image", 0, len(train) - 1, 0)
        self.below = buttons("Below", [("the filter", False), ("the shortlist, tried", True)], False)
        self.chosen = FilterChoice(self.found, self.scores["gradient"])
        self.on_change([self.score], lambda: self.chosen.rescore(self.scores[self.score.value]))
        self.chosen.wire(self)
        self.show([self.score, self.below], [self.chosen.layer, self.chosen.rank, self.image])

    def state(self) -> Setting:
        """The controls as plain values."""
        return Setting(self.score.value, self.chosen.position, self.image.value, self.below.value)

    def compute(self, state: Setting) -> Detail:
        """Responses to one image, and the loss on all training pairs; the trials of the shortlist, if it is shown."""
        layer, index = self.found[state.position]
        convolution = cast(nn.Conv2d, self.model.get_submodule(layer))
        images = torch.stack([self.pairs.clean[state.image], self.pairs.triggered[state.image]])
        maps = responses(self.model, layer, index, images)
        kernel = convolution.weight[index].detach()
        return Detail(state, images.cpu(), kernel.cpu(), maps, self._loss_without(state.position),
                      self._tried() if state.trials else None)

    def _measure(self, position: int) -> float:
        """The unlearning loss with one filter silent; the copy is restored afterwards."""
        with ExitStack() as undo, evaluating(self.model), torch.no_grad():
            undo.callback(keep_filter(self.model, self.found, position))
            silence(self.model, self.found, [position])
            return unlearning_loss(self.model, self.pairs.triggered, self.pairs.labels).item()

    def draw(self, computed: Detail) -> Picture:
        """The heat map above; below it the chosen filter, or the shortlist."""
        state, scores, tried = computed.setting, self.scores[computed.setting.score], computed.tried
        best = scores.argsort(descending=True, stable=True)[:self.top].tolist()
        with blank(4.9) as figure:
            ax = place(figure, 1.55, 0.42, 6.15, 2.25)
            ringed = tried.positions if tried else best
            note = heat_map(ax, self.found, scores, state.position, top=ringed)
            rings = "the shortlist, by gate score" if tried else f"the {self.top} highest"
            ax.set_title(f"{state.score.capitalize()} scores, \N{WHITE CIRCLE} {rings}{note}")
            if tried:
                pairs_of_bars(place(figure, 0.65, 3.45, 7.55, 1.0), tried, state.position)
            else:
                self._draw_filter(figure, computed)
        return Picture(figure, self._about_trials(tried, state.position) if tried else self._about_filter(computed))

    def _draw_filter(self, figure: Figure, computed: Detail) -> None:
        clean, triggered = computed.maps.numpy()
        kernel, peak = computed.kernel.numpy(), max(abs(clean).max(), abs(triggered).max())
        tiles = {f"kernel {'×'.join(map(str, kernel.shape))}": montage(kernel), "response: clean": clean,
                 "triggered": triggered, "difference": triggered - clean}
        for column, (title, values) in enumerate(tiles.items()):
            tile = place(figure, 0.15 + 1.43 * column, 3.45, 1.3, 1.3)
            limit = peak if 0 < column < 3 else np.nanmax(abs(values))
            tile.imshow(values, cmap="vlag", vmin=-max(limit, 1e-9), vmax=max(limit, 1e-9))
            tile.set_axis_off()
            tile.set_title(title, fontsize=style.SMALL)
        bars(place(figure, 6.1, 3.45, 2.15, 1.3), self._changes(computed))

    def _changes(self, computed: Detail) -> dict[str, float]:
        """How much the loss changes without the filter: as each score predicts it, and in fact."""
        position = computed.setting.position
        guesses = ("taylor", "gate") if self.found.layer_of(position).norm else ("taylor",)
        changes = {score: -float(self.scores[score][position]) for score in guesses}
        return changes | {"real": computed.loss - self.loss}

    def _about_filter(self, computed: Detail) -> str:
        state, scores, (clean, triggered) = computed.setting, self.scores[computed.setting.score], computed.maps.numpy()
        *predicted, (_, real) = self._changes(computed).items()
        told = ", ".join(f"{value:+.3g} by {score}" for score, value in predicted)
        return (f"{self.found[state.position]} has rank {1 + int((scores > scores[state.position]).sum())} of "
                f"{len(self.found)} by {state.score} score ({scores[state.position]:.3g}); "
                f"without it the unlearning loss goes from {self.loss:.3f} to {computed.loss:.3f} "
                f"({real:+.3g}; predicted {told}); the trigger changes its response by up to "
                f"{abs(triggered - clean).max():.3g} (clean: up to {abs(clean).max():.3g}).")

    def _about_trials(self, tried: Tried, position: int) -> str:
        name, text = self.found[position], describe_tried(tried, self.found)
        if position not in tried.positions:
            return f"{text} {name}, framed, is not on the shortlist."
        here = tried.positions.index(position)
        return (f"{text} {name}, framed, has place {here + 1}: predicted {tried.predicted[here]:+.3g}, "
                f"found {tried.real[here]:+.3g}.")


def bars(ax: Axes, changes: dict[str, float]) -> None:
    """Predicted and real change of the loss as bars around zero, each with its name and value above."""
    for row, (name, value) in enumerate(changes.items()):
        real = name == "real"
        ax.barh(row + 0.68, value, height=0.34, color=TRIGGERED.color if real else CLEAN.color)
        text = f"{'real' if real else 'predicted: ' + name}  {value:+.3g}"
        style.write(ax, text, (0, 1 - row / 3), (0, -2), va="top", fontweight="bold" if real else "normal")
    limit = max(map(abs, changes.values())) or 1
    ax.set(xlim=(min(0, *changes.values()) - 0.01 * limit, max(0, *changes.values()) + 0.01 * limit), ylim=(3, 0))
    ax.axvline(0, color=style.INK, linewidth=1)
    style.label(ax, "0", (0, 3), (0, -2), ha="center", va="top")
    ax.set_axis_off()
    ax.set_title("change of loss if removed", fontsize=style.SMALL)
