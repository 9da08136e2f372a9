"""A drawing of the network: layers as columns of filters, their connections, how far the trigger's signal gets."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import seaborn
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import FancyArrowPatch
from torch import Tensor, fx, nn

from gradprune.base.errors import require
from gradprune.models import evaluating
from gradprune.pruning import Filters, Pairs
from gradprune.views.figures import style
from gradprune.views.figures.drawing import bands_of, draw_cells, with_room
from gradprune.views.figures.picture import Picture
from gradprune.views.figures.style import TRIGGERED, plain

_GAP = 1.6  # cells between two layers
_FEW = 20  # images per batch, clean and triggered: their feature maps then fit into a processor's cache


def network_drawn(models: Mapping[str, nn.Module], found: Filters, pairs: Pairs,
                  removed: Mapping[str, Sequence[int]]) -> Picture:
    """One row per model, one cell per filter, dark where the trigger changes its output; crosses on removed filters.

    models: the given model first, then others of the same shape. pairs: the images, clean and triggered. removed:
    flat positions by model. The signal of a filter is the mean change that the trigger makes to its output (after its
    own norm), as a share of the largest in that layer of the given model. Arcs are connections that skip layers.
    Raises InputError without models.
    """
    require(len(models) > 0, "there is no model to draw.")
    signals = {name: signal(model, found, pairs) for name, model in models.items()}
    answers = [(triggered - clean).abs().mean().item() for _, clean, triggered in signals.values()]
    arrived = {name: f"{answer / max(answers[0], 1e-9):.0%}" for name, answer in zip(signals, answers, strict=True)}
    given = next(iter(signals.values()))[0]
    reads, colors = readers(next(iter(models.values())), found), signal_colors()
    with style.sheet(1.75 * len(models) + 0.5, len(models), 1) as (figure, panels):
        for ax, (name, (values, *_)) in zip(panels, signals.items(), strict=True):
            draw_network(ax, found, shares(found, values, given), colors, reads, removed.get(name, ()))
            ax.set_title(f"{name}: {arrived[name]} of the trigger's signal reaches the answer")
            if ax is not panels[-1]:
                ax.set_xticks([])
        bar = figure.colorbar(colors, ax=list(panels), location="right", aspect=30, pad=0.01, shrink=0.8,
                              label="signal of the trigger")
        style.percent(bar.ax.yaxis)
    told = "; ".join(f"{name}, {share}" for name, share in arrived.items())
    return Picture(figure, f"How much of the trigger's signal reaches the answer: {told}.")


def signal_colors() -> ScalarMappable:
    """Colours for shares of a signal, 0..1; new ones for each figure, as shared ones would keep it in memory."""
    return ScalarMappable(Normalize(0, 1), seaborn.light_palette(TRIGGERED.color, as_cmap=True))


def shares(found: Filters, values: Tensor, given: Tensor) -> np.ndarray:
    """Each filter's signal as a share, 0..1, of the largest in its layer of the given model."""
    parts = given.split([layer.count for layer in found.layers])
    peaks = torch.cat([part.max().clamp(min=1e-9).expand(len(part)) for part in parts])
    return (values / peaks).clamp(max=1).numpy()


def signal(model: nn.Module, found: Filters, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """How much the trigger changes each filter's output, on average over images and positions: float (filters,).

    Also returns the model's outputs for the clean and the triggered images, float (N, classes). All on the CPU.
    """
    kept: dict[str, Tensor] = {}
    ends = [layer.ends[0] for layer in found.layers]
    moved, answers = torch.zeros(len(found)), []
    with ExitStack() as hooks, evaluating(model), torch.inference_mode():
        for name in ends:
            hooks.enter_context(model.get_submodule(name).register_forward_hook(
                lambda _, __, output, name=name: kept.update({name: output})))
        for clean, triggered in zip(pairs.clean.split(_FEW), pairs.triggered.split(_FEW), strict=True):
            answers.append(model(torch.cat([clean, triggered])).cpu().split(len(clean)))
            halves = [kept[name].split(len(clean)) for name in ends]
            moved += torch.cat([(after - before).abs().mean(dim=(2, 3)).sum(0) for before, after in halves]).cpu()
    clean, triggered = map(torch.cat, zip(*answers, strict=True))
    return moved / len(pairs.clean), clean, triggered


def readers(model: nn.Module, found: Filters) -> list[tuple[int, int]]:
    """Pairs of layers (from, to) where the second reads the first's output, with no layer between; by torch.fx.

    Empty for a model that cannot be traced.
    """
    numbers = {layer.name: number for number, layer in enumerate(found.layers)}
    try:
        nodes = fx.symbolic_trace(model).graph.nodes
    except Exception:  # torch.fx cannot follow every forward()
        return []
    written: dict[fx.Node, set[int]] = {}
    pairs = []
    for node in nodes:
        reads = set().union(*(written[source] for source in node.all_input_nodes))
        own = numbers.get(str(node.target)) if node.op == "call_module" else None
        pairs += [] if own is None else [(source, own) for source in sorted(reads)]
        written[node] = reads if own is None else {own}
    return pairs


def corners(found: Filters) -> np.ndarray:
    """The left and the upper edge of each filter's cell, float (filters, 2), in cells."""
    return bands_of(found, _high(found), _GAP)[0][:, ::-1]  # bands from left to right, filled from top to bottom


def draw_network(ax: Axes, found: Filters, values: np.ndarray, colors: ScalarMappable,
                 reads: Sequence[tuple[int, int]], removed: Sequence[int] = ()) -> None:
    """A column of cells for each layer with its name below, crosses on removed filters, arrows between layers."""
    high = _high(found)
    draw_cells(ax, corners(found), values, colors, removed, style.EMPTY)
    lefts, rights = np.array(bands_of(found, high, _GAP)[1]).T
    ax.set(xlim=(-0.5, rights[-1] + 0.5), ylim=(high + 0.3, -0.24 * high), yticks=[])
    middles = (lefts + rights) / 2
    named = with_room(ax, middles, 3 * style.SMALL, across=True)
    names = [plain(layer.name.removeprefix("stages."), 14, tail=True) + "\n+ norm" * bool(layer.norm)
             for layer in (found.layers[number] for number in named)]
    ax.set_xticks(middles[named], names, fontsize=style.SMALL - 1, rotation=20)
    for source, reader in reads:  # straight arrows to the next layer, arcs over the layers skipped
        start, end = (((lefts[layer] + rights[layer]) / 2, -0.2) for layer in (source, reader))
        bend = f"arc3,rad={-0.1375 * high / (end[0] - start[0]):.2f}"  # makes all arcs about equally high
        if reader == source + 1:
            start, end, bend = (rights[source] + 0.1, high / 2), (lefts[reader] - 0.1, high / 2), "arc3"
        ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=7, linewidth=0.9, color=style.FAINT,
                                     connectionstyle=bend, shrinkA=0, shrinkB=0))


def _high(found: Filters) -> int:
    """Cells in a column: more in a network of thousands of filters."""
    return max(16, round(0.7 * len(found) ** 0.5))
