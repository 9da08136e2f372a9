"""Figures of the notebooks, each making one point with plain numbers; like all views they return a `Picture`."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from torch import Tensor

from gradprune.base.errors import require
from gradprune.pruning import Filters
from gradprune.views.figures import style
from gradprune.views.figures.picture import Picture, count
from gradprune.views.figures.plots import heat_map
from gradprune.views.figures.style import CLEAN, TRIGGERED, plain


def losses_compared(losses: Mapping[str, float], classes: int, guess: float | None = None) -> Picture:
    """Losses as bars, with lines for the loss of pure guessing among `classes` and for the learner's guess, if any.

    losses: mean cross-entropies by name, in the order to show. Raises InputError without losses.
    """
    require(len(losses) > 0, "there are no losses to show.")
    chance = math.log(classes)
    with style.sheet(0.5 * len(losses) + 1.15) as (figure, (ax,)):
        for row, (name, value) in enumerate(losses.items()):
            mark = CLEAN if name.startswith("clean") else TRIGGERED
            style.draw_values(ax, [row], [value], mark, ".2f")
        top = max(*losses.values(), chance, guess or 0.0)
        style.rule(ax, chance, f"pure guessing: {chance:.1f}", color=style.FAINT, linewidth=1.2, linestyle="--")
        if guess is not None:
            style.rule(ax, guess, f"your guess: {guess:.1f}", 17, **style.GUESS)
        ax.set(xlim=(-0.012 * top, 1.1 * top), xlabel="mean cross-entropy")
        style.name_rows(ax, list(losses), fontsize=style.NORMAL)
    told = "; ".join(f"{name}: {value:.2f}" for name, value in losses.items())
    return Picture(figure, f"Mean cross-entropy: {told}. Pure guessing among {classes} classes gives {chance:.2f}.")


def turned_down(shares: Sequence[float], losses: Sequence[float], slope: float, name: str,
                guess: float | None = None) -> Picture:
    """The loss while one filter is turned down from 0 to 1 (silent), and the straight line that its gradient predicts.

    shares: how much of the filter is gone, 0 first. losses: the loss at each. slope: the predicted change at share 1
    (minus the filter's taylor score). name: the filter. guess: the learner's guess of the last loss.
    Raises InputError unless there are at least two shares and as many losses.
    """
    require(len(shares) == len(losses) >= 2,
            f"shares and losses must have the same length, at least 2, got {len(shares)} and {len(losses)}.")
    line = [losses[0] + slope * share for share in shares]
    with style.sheet(3.5) as (figure, (ax,)):
        ax.axhspan(min(0.0, *line), 0, color=style.EMPTY, linewidth=0, zorder=0)
        ax.plot(shares, line, color=CLEAN.color, linestyle="--", label="predicted")
        ax.plot(shares, losses, color=TRIGGERED.color, marker=TRIGGERED.marker, zorder=3, clip_on=False, label="real")
        for values, mark, word in ((line, CLEAN, "predicted"), (losses, TRIGGERED, "real")):
            style.label(ax, f"{word}: {values[-1]:.1f}", (shares[-1], values[-1]), (8, 0), va="center",
                        color=mark.color, fontweight="bold")
        if guess is not None:
            ax.axhline(guess, **style.GUESS)
            style.label(ax, f"your guess: {guess:.1f}", (0, guess), (4, 3))
        if min(line) < 0:
            style.label(ax, "no cross-entropy is below 0", (0, 0), (4, -12), color=style.FAINT)
        ax.set(title=f"Turning {plain(name, 40, tail=True)} down", xlabel="share of the filter that is gone",
               ylabel="unlearning loss", xlim=(0, 1))
        ax.margins(y=0.06)
    near = next((share for share, value, flat in zip(shares, losses, line, strict=True)
                 if abs(value - flat) > 0.1 * abs(losses[0])), None)
    until = "all the way" if near is None else f"until about {near:.0%} of it is gone"
    return Picture(figure, f"With {name} silent, the unlearning loss goes from {losses[0]:.2f} to {losses[-1]:.2f}; "
                           f"the straight line predicts {line[-1]:.2f} and holds {until}.")


def predicted_against_real(predictions: Mapping[str, Tensor], real: Tensor, names: Sequence[str],
                           label: int = 3) -> Picture:
    """Each filter's score against the real fall of the loss on its removal, one panel per score.

    predictions: scores by name, each float (filters,). real: float (filters,), positive where the loss fell.
    names: the filters' names. label: how many of the largest real falls are named.
    Raises InputError unless all have the same length.
    """
    require(len({len(names), len(real), *(len(values) for values in predictions.values())}) == 1,
            "scores, real changes and names must have the same length.")
    fall, best = real.double().numpy(), real.argsort(descending=True)[:label].tolist()
    told = []
    with style.sheet(3.6, 1, len(predictions), sharey=True) as (figure, panels):
        for ax, (name, scores) in zip(panels, predictions.items(), strict=True):
            values = scores.double().numpy()
            ranks = pd.DataFrame({"score": values, "fall": fall}).corr("spearman").fillna(0)  # all equal: 0
            likeness = float(ranks.loc["score", "fall"])
            told.append(f"{name} {likeness:.2f}")
            ax.axhline(0, color=style.FAINT, linewidth=0.8)
            if signed := bool(values.min() < 0):  # a prediction in the loss's own unit
                ax.axvline(0, color=style.FAINT, linewidth=0.8)
                ax.axline((0, 0), slope=1, color=style.FAINT, linewidth=1, linestyle="--", zorder=1)
            others = [place for place in range(len(fall)) if place not in best]
            ax.scatter(values[others], fall[others], s=18, color=CLEAN.color, alpha=0.55, linewidths=0)
            ax.scatter(values[best], fall[best], s=34, color=TRIGGERED.color, marker=TRIGGERED.marker, linewidths=0)
            for row, place in enumerate(best):
                style.label(ax, str(row + 1), (values[place], fall[place]), (-6, 1), ha="right", fontweight="bold",
                            color=TRIGGERED.color)
            ax.set_title(f"{name}: rank correlation {likeness:.2f}", fontsize=style.NORMAL)
            ax.set_xlabel("predicted fall (dashed: as predicted)" if signed else f"{name} score (not a fall)")
            pads = [0.09 * (data.max() - data.min() or 1) for data in (values, fall)]
            ax.set(xlim=(values.min() - pads[0], values.max() + pads[0]),
                   ylim=(fall.min() - pads[1], fall.max() + pads[1]))
        panels[0].set_ylabel("real fall of the loss")
    listed = ", ".join(f"{row + 1} {names[place]} ({fall[place]:+.2f})" for row, place in enumerate(best))
    return Picture(figure, f"Rank correlation of score and real fall over {count(len(fall), 'filter')}: "
                           f"{', '.join(told)}. Largest real falls: {listed}.")


def score_maps(found: Filters, scores: Mapping[str, Tensor], top: int = 5) -> Picture:
    """Several scores of the same filters, one heat map each; the highest is framed, the `top` highest are ringed.

    scores: float (number of filters,) by name. Raises InputError for another length.
    """
    require(all(len(values) == len(found) for values in scores.values()), f"each score needs {len(found)} values.")
    best = {name: values.argsort(descending=True, stable=True)[:top].tolist() for name, values in scores.items()}
    with style.sheet(2.3 * len(scores) + 0.2, len(scores), 1) as (figure, panels):
        for ax, (name, values) in zip(panels, scores.items(), strict=True):
            note = heat_map(ax, found, values, best[name][0], top=best[name])
            ax.set_title(f"{name}{note}")
            if ax is not panels[-1]:
                ax.set(xlabel="", xticks=[])
    told = "; by ".join(f"{name}: {', '.join(str(found[place]) for place in places[:3])}"
                        for name, places in best.items())
    shared = set.intersection(*map(set, best.values()))
    return Picture(figure, f"Highest three by {told}. {count(len(shared), 'filter')} "
                           f"{'is' if len(shared) == 1 else 'are'} among the highest {top} (ringed) of every score.")
