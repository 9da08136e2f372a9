"""Choosing one filter of a model: controls that keep in step, and the heat-map that shows where it stands."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from gradprune.pruning import Filters
from gradprune.views import style
from gradprune.views.controls import choice, number, slider
from gradprune.views.panel import Panel
from gradprune.views.style import plain


class FilterChoice:
    """Four controls that choose one filter and keep in step: short list, layer, rank in the layer, index."""

    def __init__(self, found: Filters, scores: Tensor, top: int = 10) -> None:
        self.found, self.position, self.count = found, int(scores.argmax()), top
        layers = [(f"{plain(layer.name, 40)} ({layer.count} filters)", layer.start) for layer in found.layers]
        self.top = choice(f"Top {top} of all", [("", -1)], -1)
        self.layer = choice("Layer", layers, 0)
        self.rank = slider("Rank in layer", 1, 1, 1)
        self.index = number("Filter index", 0, 0, 0)
        self.rescore(scores)

    def rescore(self, scores: Tensor) -> None:
        """Take new scores: ranks and short list change, the chosen filter stays."""
        self.scores = scores
        best = scores.argsort(descending=True, stable=True)[: self.count].tolist()
        names = [f"{rank}. {self.found[position]}: {scores[position]:.3g}" for rank, position in enumerate(best, 1)]
        self.top.options = [("(another filter)", -1), *zip(names, best, strict=True)]
        self.go(self.position)

    def ranking(self) -> list[int]:
        """Positions of the chosen filter's layer, highest score first."""
        layer = self.found.layer_of(self.position)
        part = self.scores[layer.start:layer.start + layer.count]
        return (part.argsort(descending=True, stable=True) + layer.start).tolist()

    def go(self, position: int) -> None:
        """Choose a filter by its flat position and set all controls to it."""
        self.position, layer = position, self.found.layer_of(position)
        self.layer.value = layer.start
        self.rank.max = self.index.max = layer.count
        self.index.max = layer.count - 1
        self.rank.value, self.index.value = self.ranking().index(position) + 1, position - layer.start
        self.top.value = position if position in [value for _, value in self.top.options] else -1

    def wire(self, panel: Panel) -> None:
        """Let the panel follow the controls; a new layer starts at its highest score."""
        def to_layer() -> None:
            self.position = self.layer.value
            self.go(self.ranking()[0])
        panel.on_change([self.layer], to_layer)
        panel.on_change([self.rank], lambda: self.go(self.ranking()[self.rank.value - 1]))
        panel.on_change([self.index], lambda: self.go(self.layer.value + self.index.value))
        panel.on_change([self.top], lambda: self.go(self.position if self.top.value < 0 else self.top.value))


def heat_map(ax: Axes, found: Filters, scores: Tensor, selected: int, removed: Iterable[int] = (),
             top: Sequence[int] | Tensor = (), sort: bool = False) -> str:
    """Draw a layer a row, wide layers in several, with frame, crosses and rings; returns a note on the colour scale."""
    values = scores.double().numpy()
    columns = min(max(layer.count for layer in found.layers), max(64, math.isqrt(3 * len(found))))
    rows, places, starts = 0, np.empty((len(found), 2), int), []
    for layer in found.layers:
        part = slice(layer.start, layer.start + layer.count)
        order = np.argsort(np.argsort(-values[part], kind="stable")) if sort else np.arange(layer.count)
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
    ax.set_xlabel("rank in the layer" if sort else "filter index in the layer")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    dots, crosses = places[list(top)], places[list(removed)]
    ax.scatter(dots[:, 0], dots[:, 1], s=15, facecolors=style.PAPER, edgecolors=style.INK, linewidths=0.8)
    ax.scatter(crosses[:, 0], crosses[:, 1], s=34, **style.REMOVED)
    ax.add_patch(Rectangle(tuple(places[selected] - 0.6), 1.2, 1.2, **style.SELECTED))
    ax.set(xlim=(-0.7, columns - 0.3), ylim=(rows - 0.4, -0.6))
    return note
