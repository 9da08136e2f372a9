"""Choosing one filter of a model: controls that keep in step, and the heat-map that shows where it stands."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from gradprune.pruning import Filters
from gradprune.views.figures import style
from gradprune.views.figures.style import plain
from gradprune.views.panels.controls import choice, slider
from gradprune.views.panels.panel import Panel

ALL = -1  # in place of a layer: all of them


class FilterChoice:
    """Two controls that choose one filter and keep in step: a layer or all of them, and the rank there by score."""

    def __init__(self, found: Filters, scores: Tensor) -> None:
        self.found, self.position = found, int(scores.argmax())
        layers = [(plain(layer.name), layer.start) for layer in found.layers]
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


def heat_map(ax: Axes, found: Filters, scores: Tensor, selected: int, removed: Iterable[int] = (),
             top: Sequence[int] | Tensor = ()) -> str:
    """Draw a layer a row, wide layers in several, with frame, crosses, rings and a colour bar; returns a note on it."""
    values = scores.double().numpy()
    columns = min(max(layer.count for layer in found.layers), max(64, math.isqrt(3 * len(found))))
    rows, places, starts = 0, np.empty((len(found), 2), int), []
    for layer in found.layers:
        part = slice(layer.start, layer.start + layer.count)
        order = np.arange(layer.count)
        places[part] = np.stack([order % columns, rows + order // columns], 1)
        starts.append(rows)
        rows += math.ceil(layer.count / columns)
    sheet = np.full((rows, columns), np.nan)
    sheet[places[:, 1], places[:, 0]] = values
    colors, note = style.score_colors(values)
    shades = colors.cmap.with_extremes(bad=style.EMPTY)(colors.norm(np.ma.masked_invalid(sheet)), bytes=True)
    ax.imshow(shades, aspect="auto")  # colours are worked out by cell here, not by pixel
    ax.hlines(np.array(starts[1:]) - 0.5, -0.5, columns - 0.5, color=style.PAPER, linewidth=3)
    ax.set_yticks([(a + b - 1) / 2 for a, b in zip(starts, [*starts[1:], rows], strict=True)],
                  [plain(layer.name) for layer in found.layers])
    style.score_bar(ax, colors)
    ax.set_xlabel("filter index in the layer")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    dots, crosses = places[list(top)], places[list(removed)]
    ax.scatter(dots[:, 0], dots[:, 1], s=15, facecolors=style.PAPER, edgecolors=style.INK, linewidths=0.8)
    ax.scatter(crosses[:, 0], crosses[:, 1], s=34, **style.REMOVED)
    ax.add_patch(Rectangle(tuple(places[selected] - 0.6), 1.2, 1.2, **style.SELECTED))
    ax.set(xlim=(-0.7, columns - 0.3), ylim=(rows - 0.4, -0.6))
    return note
