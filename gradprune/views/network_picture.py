"""The network, drawn: layers as columns of filters, who reads whom, and how far the trigger's signal comes."""

from collections.abc import Mapping, Sequence

import numpy as np
import seaborn
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.patches import FancyArrowPatch
from matplotlib.ticker import PercentFormatter
from torch import Tensor, fx, nn

from gradprune.errors import require
from gradprune.models import evaluating
from gradprune.pruning import Filters, Pairs
from gradprune.views import style
from gradprune.views.picture import Picture
from gradprune.views.style import TRIGGERED, plain

_HIGH = 16  # filters in a column of cells
_GAP = 1.6  # cells between two layers


def network_drawn(models: Mapping[str, nn.Module], found: Filters, pairs: Pairs,
                  removed: Mapping[str, Sequence[int]]) -> Picture:
    """Each model as a row: a cell a filter, dark where the trigger moves what it says; removed filters are crossed.

    models: the given model first, then others of the same shape. pairs: the images, clean and triggered. removed:
    flat positions by model. The signal of a filter is the mean change of its output (behind its own norm) that the
    trigger makes, as a share of the layer's largest in the given model. Arcs lead past the layers between.
    Raises InputError without models.
    """
    require(len(models) > 0, "there is no model to draw.")
    signals = {name: signal(model, found, pairs) for name, model in models.items()}
    given, whole = next(iter(signals.values()))
    arrived = {name: f"{answer / max(whole, 1e-9):.0%}" for name, (_, answer) in signals.items()}
    parts = given.split([layer.count for layer in found.layers])
    peaks = torch.cat([part.max().clamp(min=1e-9).expand(len(part)) for part in parts])
    lefts = np.cumsum([0.0, *(-(-layer.count // _HIGH) + _GAP for layer in found.layers)])
    colors = ScalarMappable(Normalize(0, 1), seaborn.light_palette(TRIGGERED.color, as_cmap=True))
    with style.in_style():
        figure = style.new_figure(8.4, 1.75 * len(models) + 0.5)
        panels = figure.subplots(len(models), 1, squeeze=False)[:, 0]
        for ax, (name, (values, _)) in zip(panels, signals.items(), strict=True):
            _draw(ax, found, (values / peaks).clamp(max=1).numpy(), lefts, colors, removed.get(name, ()))
            ax.set_title(f"{name}: {arrived[name]} of the trigger's signal reaches the answer")
            _arcs(ax, found, readers(next(iter(models.values())), found), lefts)
            ax.set_xlim(-0.5, lefts[-1])
        names = [f"{plain(layer.name.removeprefix('stages.'), 14)}{chr(10)}+ norm" if layer.norm
                 else plain(layer.name.removeprefix("stages."), 14) for layer in found.layers]
        panels[-1].set_xticks([left + -(-layer.count // _HIGH) / 2 for left, layer in zip(
            lefts, found.layers, strict=False)], names, fontsize=style.SMALL - 1, rotation=20)
        bar = figure.colorbar(colors, ax=list(panels), location="right", aspect=30, pad=0.01, shrink=0.8,
                              label="signal of the trigger")
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1, 0))
    told = "; ".join(f"{name}, {share}" for name, share in arrived.items())
    return Picture(figure, f"How much of the trigger's signal reaches the answer: {told}.")


def signal(model: nn.Module, found: Filters, pairs: Pairs) -> tuple[Tensor, float]:
    """By how much the trigger changes each filter's output, on average over images and places: float (filters,).

    And by how much it changes the model's outputs, on average over images and classes.
    """
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> torch.utils.hooks.RemovableHandle:
        return model.get_submodule(name).register_forward_hook(lambda _, __, output: kept.update({name: output}))

    ends = [layer.ends[0] for layer in found.layers]
    handles = [keep(name) for name in ends]
    try:
        with evaluating(model), torch.inference_mode():
            clean, triggered = model(torch.cat([pairs.clean, pairs.triggered])).split(len(pairs.clean))
    finally:
        for handle in handles:
            handle.remove()
    halves = [kept[name].split(len(pairs.clean)) for name in ends]
    moved = torch.cat([(after - before).abs().mean(dim=(0, 2, 3)) for before, after in halves]).cpu()
    return moved, (triggered - clean).abs().mean().item()


def readers(model: nn.Module, found: Filters) -> list[tuple[int, int]]:
    """Pairs of layers (from, to): the second one reads what the first wrote, with no layer between; by torch.fx.

    Empty for a model that cannot be traced.
    """
    numbers = {layer.name: number for number, layer in enumerate(found.layers)}
    try:
        nodes = fx.symbolic_trace(model).graph.nodes
    except Exception:  # a stranger's forward() may do what no trace can follow
        return []
    written: dict[fx.Node, set[int]] = {}
    pairs = []
    for node in nodes:
        reads = set().union(*(written[source] for source in node.all_input_nodes))
        own = numbers.get(str(node.target)) if node.op == "call_module" else None
        pairs += [] if own is None else [(source, own) for source in sorted(reads)]
        written[node] = reads if own is None else {own}
    return pairs


def _draw(ax: Axes, found: Filters, shares: np.ndarray, lefts: np.ndarray, colors: ScalarMappable,
          removed: Sequence[int]) -> None:
    """A cell for each filter, and a cross on those that were removed."""
    square, corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]), np.empty((len(found), 2))
    for left, layer in zip(lefts, found.layers, strict=False):
        index = np.arange(layer.count)
        corners[layer.start:layer.start + layer.count] = np.stack([left + index // _HIGH, index % _HIGH], 1)
    cells = PolyCollection(list(corners[:, None] + square), edgecolors=style.EMPTY, linewidths=0.5)
    cells.set(array=shares, cmap=colors.cmap, norm=colors.norm)
    ax.add_collection(cells)
    crosses = corners[list(removed)] + 0.5
    ax.scatter(crosses[:, 0], crosses[:, 1], s=30, **style.REMOVED)
    ax.set(ylim=(_HIGH + 0.3, -4.5), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def _arcs(ax: Axes, found: Filters, pairs: Sequence[tuple[int, int]], lefts: np.ndarray) -> None:
    """Straight arrows to the next layer, arcs over those that are passed by."""
    widths = [-(-layer.count // _HIGH) for layer in found.layers]
    for source, reader in pairs:
        near = reader == source + 1
        start, end = ((lefts[layer] + widths[layer] / 2, -0.2) for layer in (source, reader))
        bend = f"arc3,rad={-2.2 / (end[0] - start[0]):.2f}"  # all arcs are about as high
        if near:
            start, end = (lefts[source] + widths[source] + 0.1, _HIGH / 2), (lefts[reader] - 0.1, _HIGH / 2)
            bend = "arc3"
        ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=7, linewidth=0.9, color=style.FAINT,
                                     connectionstyle=bend, shrinkA=0, shrinkB=0))
