"""The relearning curve: how fast a backdoor comes back. Numbers in, a `Picture` out."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes

from gradprune.base.errors import require
from gradprune.views.figures import style
from gradprune.views.figures.picture import Picture
from gradprune.views.figures.style import Mark, plain

Rows = Sequence[Mapping[str, Any]]

# Okabe & Ito's colours, the light ones darkened; marker and line style tell the lines apart without colour.
_MARKS = [Mark("#0072B2", "o", "-", "", ""), Mark("#C45500", "^", "--", "", ""), Mark("#007F5C", "s", "-.", "", ""),
          Mark("#AA3377", "D", (0, (3, 1)), "", ""), Mark("#7A6A00", "v", (0, (5, 1, 1, 1)), "", ""),
          Mark("#1F2328", "P", (0, (1, 1)), "", ""), Mark("#56B4E9", "X", (0, (6, 2)), "", "")]


def relearn_curve(attacks: Mapping[str, Mapping[str, Rows]]) -> Picture:
    """ASR against the number of poisoned samples: a panel per attack, a line per model, a band over the draws.

    attacks: attack -> model's name -> rows of `evaluation.relearn` (`k`, None for the model before, and `asr`, a share
    in 0..1), of one or more runs together; the same k everywhere, six models at most.
    Raises InputError without rows, for more models, or where runs differ in their k.
    """
    runs = [rows for models in attacks.values() for rows in models.values()]
    require(len(runs) > 0 and all(len(rows) > 0 for rows in runs), "each attack needs models with rows.")
    steps = list(dict.fromkeys(row["k"] for row in sorted(runs[0], key=_order)))
    require(all({row["k"] for row in rows} == set(steps) for rows in runs), "all runs must have the same values of k.")
    names = list(dict.fromkeys(name for models in attacks.values() for name in models))
    require(len(names) <= len(_MARKS), f"at most {len(_MARKS)} models can be told apart, got {len(names)}.")
    looks = dict(zip(names, _MARKS, strict=False))
    with style.in_style():
        figure = style.new_figure(8.4, 3.6)
        panels = figure.subplots(1, len(attacks), sharey=True, squeeze=False)[0]
        for ax, (attack, models) in zip(panels, attacks.items(), strict=True):
            for name, rows in models.items():
                _draw(ax, steps, rows, looks[name], name)
            ax.set_title(plain(attack))
            ax.set_xticks(range(len(steps)), ["before" if step is None else str(step) for step in steps])
            ax.set(ylim=(0, 1), yticks=[0, 0.5, 1])
            style.percent(ax.yaxis)
            ax.grid(axis="y")
        panels[0].set_ylabel("ASR (lower is better for the defender)")
        figure.supxlabel("poisoned samples in the fine-tuning set", fontsize=style.SMALL)
        lines = {line.get_label(): line for ax in panels for line in ax.get_lines()}
        figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=min(6, len(lines)),
                      frameon=False, fontsize=style.SMALL, handlelength=3)
    told = "; ".join(f"{attack}: " + ", ".join(f"{name} {_mean(rows, steps[0]):.0%} to {_mean(rows, steps[-1]):.0%}"
                                               for name, rows in models.items()) for attack, models in attacks.items())
    first = "before" if steps[0] is None else f"with {steps[0]}"
    return Picture(figure, f"Mean ASR {first} and after fine-tuning with {steps[-1]} poisoned samples. {told}.")


def _order(row: Mapping[str, Any]) -> int:
    """The model before comes first, then by k."""
    return -1 if row["k"] is None else int(row["k"])


def _mean(rows: Rows, step: int | None) -> float:
    """Mean ASR of the draws at one k."""
    return fmean(row["asr"] for row in rows if row["k"] == step)


def _draw(ax: Axes, steps: Sequence[int | None], rows: Rows, mark: Mark, name: str) -> None:
    """One line through the means, and a band from the lowest to the highest draw."""
    draws = [[row["asr"] for row in rows if row["k"] == step] for step in steps]
    places = range(len(steps))
    ax.fill_between(places, [min(values) for values in draws], [max(values) for values in draws], color=mark.color,
                    alpha=0.15, linewidth=0)
    ax.plot(places, [fmean(values) for values in draws], color=mark.color, marker=mark.marker, linestyle=mark.line,
            label=plain(name), clip_on=False, zorder=3)
