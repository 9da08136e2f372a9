"""The shortlist of recipe `verified`: what the gradient predicts for each filter on it, and what a trial finds."""

from typing import NamedTuple

from matplotlib.axes import Axes
from torch import Tensor, nn

from gradprune.attacks.pairs import Pairs
from gradprune.pruning.candidate_removals import CandidateRemovals
from gradprune.pruning.filters import Filters
from gradprune.pruning.verified import WEIGHT, K, Objective
from gradprune.views.figures import style
from gradprune.views.figures.drawing import blank, heading, place
from gradprune.views.figures.picture import Picture, count
from gradprune.views.figures.style import CLEAN, TRIGGERED, plain


class Tried(NamedTuple):
    """A shortlist, highest score first: flat positions, and how the objective changes without each filter, (k,).

    predicted: by the gradient; real: found by a trial.
    """

    positions: list[int]
    predicted: list[float]
    real: list[float]


def try_shortlist(model: nn.Module, found: Filters, pairs: Pairs, scores: Tensor, k: int = K) -> Tried:
    """Remove each of the `k` best filters by itself on trial, as recipe `verified` does in its first round.

    pairs: float images (N, C, H, W) in 0..1 with their true labels. scores: float (number of filters,) by `gate` on
    these pairs. The objective is that of `verified`. Its clean term is flat at the given model, so the gradient covers
    the unlearning loss alone, and only the trial shows the cost for clean images. The model is left unchanged.
    """
    positions = scores.topk(min(k, len(found))).indices.tolist()
    goal = Objective(model, pairs, WEIGHT)
    before, without = CandidateRemovals(model, found, pairs.clean[:2]).logits(goal.images, positions)
    return Tried(positions, (-scores[positions]).tolist(), (goal(without) - goal(before)).tolist())


def predicted_and_real(tried: Tried, found: Filters) -> Picture:
    """The filters of a shortlist in the gradient's order, each with the predicted and the real change."""
    with blank(2.9) as figure:
        pairs_of_bars(place(figure, 0.65, 0.72, 7.55, 1.7), tried)
        heading(figure, "Without the filter: predicted and real")
    return Picture(figure, describe_tried(tried, found))


def pairs_of_bars(ax: Axes, tried: Tried, selected: int | None = None) -> None:
    """A pair of bars for each filter; a change far above zero is cut off at the upper edge and written out there.

    selected: a flat position; its pair has a darker background, if it is on the list.
    """
    places, best = range(1, len(tried.positions) + 1), tried.real.index(min(tried.real))
    low = min(*tried.predicted, *tried.real, -1e-9)
    high = min(max(*tried.predicted, *tried.real, 0.0), -0.6 * low)
    ax.axhline(0, color=style.INK, linewidth=1, zorder=4)
    if selected is not None and selected in tried.positions:
        here = tried.positions.index(selected) + 1
        ax.axvspan(here - 0.5, here + 0.5, color=style.EMPTY, linewidth=0, zorder=0)
    for side, values, color, face in ((-0.19, tried.predicted, CLEAN.color, style.PAPER),
                                      (0.19, tried.real, TRIGGERED.color, TRIGGERED.color)):
        ax.bar([here + side for here in places], [min(value, high) for value in values], width=0.32, zorder=3,
               facecolor=face, edgecolor=color, linewidth=1.3)
    for here, value in zip(places, tried.real, strict=True):
        if value > high:
            style.label(ax, f"\N{BLACK UP-POINTING TRIANGLE} {value:+.3g}", (here + 0.19, high), (0, 2), ha="center",
                        fontweight="bold", color=TRIGGERED.color)
    style.label(ax, f"best trial\n{tried.real[best]:+.3g}", (best + 1.19, low), (0, -1), ha="center", va="top",
                fontweight="bold", color=TRIGGERED.color)
    ax.set(xlim=(0.4, len(tried.positions) + 0.6), ylim=(low, high - 0.05 * low), xticks=[])
    ax.tick_params(length=0)
    ax.grid(axis="y")
    ax.spines["bottom"].set_visible(False)
    for left, mark, text in ((0.0, CLEAN, "\N{WHITE SQUARE} predicted by the gradient"),
                             (0.3, TRIGGERED, "\N{BLACK SQUARE} found by trial")):
        style.write(ax, text, (left, 1), (0, 13), color=mark.color, fontweight="bold")
    style.write(ax, "change of the objective, in the gradient's order", (1, 1), (0, 13), ha="right", color=style.FAINT)


def describe_tried(tried: Tried, found: Filters) -> str:
    """Which trial is the best, where the gradient ranks it, and which removals do harm."""
    names = [plain(found[position], 40, tail=True) for position in tried.positions]
    best, worst = tried.real.index(min(tried.real)), tried.real.index(max(tried.real))
    harmful = sum(value > 0 for value in tried.real)
    harm = f"{harmful or 'none'} of the trials {'make' if harmful > 1 else 'makes'} it worse"
    text = (f"Of {count(len(names), 'filter')} on the shortlist, each removed by itself, {names[best]} has the best "
            f"trial, place {best + 1} in the gradient's order (objective {tried.real[best]:+.3g}, predicted "
            f"{tried.predicted[best]:+.3g}); {harm}")
    if harmful:
        name = f", {names[worst]} most" if harmful > 1 else f": {names[worst]}"
        text += f"{name} ({tried.real[worst]:+.3g}, predicted {tried.predicted[worst]:+.3g})"
    return text + "."
