"""All defences by one metric of a bench, seed by seed: the figure of the comparer, with and without its controls.

A defence that lacks cells which others have is drawn hollow and is not compared, because its mean is over other cells.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from gradprune.base.errors import require, require_known
from gradprune.bench.summary import attack_kind, checked, even_means
from gradprune.views.figures import style
from gradprune.views.figures.bench_plots import looks, name_defences
from gradprune.views.figures.drawing import blank, heading, place
from gradprune.views.figures.picture import Picture, count, per_class
from gradprune.views.figures.style import plain

HIGH_IS_GOOD = {"der": True, "acc": True, "asr": False, "ra": True, "seconds": False}
SORTS = ("best first", "steadiest first", "by name")
_TOO_FEW = {1: "one seed has no spread and settles nothing", 2: "two seeds are too few to settle anything"}
_ROW, _TOP, _BOTTOM = 0.29, 0.66, 0.55  # inches


class Comparison(NamedTuple):
    """What the figure shows: one line per defence, in the order to show.

    lines: index defense; columns mean, spread (half the distance from lowest to highest seed, NaN for one seed), values
    (one per seed), ra (mean), lost (cells that failed or were not run, of those that any defence has), failed.
    cells: of a line that lost none. given: the value before any defence, or None. looks: colour and marker by defence.
    """

    attack: str | None
    spc: int
    metric: str
    lines: pd.DataFrame
    attacks: int
    seeds: int
    cells: int
    given: float | None
    looks: dict[str, dict[str, Any]]


def compare(table: pd.DataFrame, attack: str | None = None, spc: int = 2, metric: str = "der",
            sort: str = "best first") -> Comparison:
    """Mean and spread over seeds of one metric for each defence of a bench, for one attack or (None) over all.

    table: one row per cell, see `bench.summarise`. A seed's value over all attacks is the mean of its cells;
    in the mean over all attacks, each has the same weight, whatever failed.
    Raises InputError for a bad table, and for an unknown attack, spc, metric or order.
    """
    table = checked(table)
    if attack:
        require_known("attack", attack, set(table["attack"]))
    require_known("metric", metric, HIGH_IS_GOOD)
    require_known("order", sort, SORTS)
    chosen = table[(table["spc"] == spc) & (table["attack"].eq(attack) if attack else True)]
    require(len(chosen) > 0, f"there is no cell of {attack or 'any attack'} at spc {spc}.")
    names = list(dict.fromkeys(table["defense"]))
    good = chosen[~chosen["failed"]]
    seeds = good.groupby(["defense", "seed"])[metric].mean().groupby("defense")
    cells = len(chosen[["attack", "seed"]].drop_duplicates())
    means = even_means(good.assign(own=good[metric]), ["defense"], ["own", "ra"])
    lines = pd.DataFrame({"mean": means["own"], "spread": ((seeds.max() - seeds.min()) / 2).where(seeds.size() > 1),
                          "values": seeds.agg(list), "ra": means["ra"],
                          "lost": cells - good.groupby("defense").size(),
                          "failed": chosen.groupby("defense")["failed"].sum()}, index=names).fillna({"lost": cells})
    if sort == "by name":
        lines = lines.sort_index()
    else:
        key = "mean" if sort == "best first" else "spread"
        lines = lines.sort_values(key, ascending=key == "spread" or not HIGH_IS_GOOD[metric], kind="stable")
    before = f"{metric}_before"
    given = None if before not in good else even_means(good.assign(all=0), ["all"], [before])[before].mean()
    given = 0.5 if metric == "der" else given
    given = None if given is None or np.isnan(given) else given  # NaN where every cell failed
    return Comparison(attack, spc, metric, lines, chosen["attack"].map(attack_kind).nunique(), chosen["seed"].nunique(),
                      cells, given, looks(table))


def defences_compared(table: pd.DataFrame, attack: str | None = None, spc: int = 2, metric: str = "der",
                      sort: str = "best first") -> Picture:
    """The figure of `compare`: every seed a point, the mean a bar, the given model a line; errors as there."""
    return draw_comparison(compare(table, attack, spc, metric, sort))


def draw_comparison(chart: Comparison) -> Picture:
    """A row for each defence; the sentence names the best and says whether its lead exceeds the spread."""
    lines, form = chart.lines, _form(chart.metric)
    with blank(_TOP + _ROW * len(lines) + _BOTTOM) as figure:
        ax = place(figure, 1.6, _TOP, 4.75, _ROW * len(lines))
        for row, (name, line) in enumerate(lines.iterrows()):
            if line["mean"] == line["mean"]:
                style.draw_range(ax, row, line["values"], line["values"], **chart.looks[name], hollow=line["lost"] > 0)
                style.draw_mean(ax, row, line["mean"])
            style.write(ax, _told(line, chart), (1, 1 - (row + 0.5) / len(lines)), (12, 0), va="center")
        _axis(ax, chart)
        name_defences(ax, list(lines.index))
        if chart.given is not None:
            what = "no net gain" if chart.metric == "der" else "given model"
            side = "right" if chart.given > sum(ax.get_xlim()) / 2 else "left"
            style.rule(ax, chart.given, f"{what} {form(chart.given)}", ha=side, color=style.INK, linewidth=1.2,
                       linestyle="--", zorder=1)
        heading(figure, f"{_metric(chart.metric)}, {_where(chart)}")
        style.write(ax, "mean ± spread" if chart.seeds > 1 else "one seed", (1, 1), (12, 3))
    return Picture(figure, _words(chart, form))


def _axis(ax: Axes, chart: Comparison) -> None:
    """Limits around all points and the given model; points are read by position, so the axis need not start at 0."""
    numbers = [*chart.lines["values"].explode().dropna(), *([] if chart.given is None else [chart.given])]
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
    ax.grid(axis="x")
    if chart.metric == "seconds":
        ax.set(xscale="log", xlim=(max(low, 1e-3) / 1.3, max(high, 1e-3) * 1.3), xlabel="seconds (log scale)")
        ax.xaxis.set_major_locator(LogLocator(subs=[1, 2, 5]))
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        return
    pad = max(0.04 * (high - low), 0.01)
    ax.set(xlim=(max(low - pad, -0.01), min(high + pad, 1.01)),
           xlabel=f"{chart.metric.upper()}: {'higher' if HIGH_IS_GOOD[chart.metric] else 'lower'} is better")
    ax.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(PercentFormatter(1, 0 if high - low > 0.05 else 1))


# ---- the words


def _words(chart: Comparison, form: Callable[[float], str]) -> str:
    ordered = chart.lines.sort_values("mean", ascending=not HIGH_IS_GOOD[chart.metric], kind="stable")
    whole = ordered[(ordered["lost"] == 0) & ordered["mean"].notna()]
    if whole.empty:
        return f"{_metric(chart.metric)}, {_where(chart)}: no defence has all {count(chart.cells, 'cell')}."
    first = whole.iloc[0]
    text = (f"{'Highest' if HIGH_IS_GOOD[chart.metric] else 'Lowest'} mean {_metric(chart.metric)}, {_where(chart)}, "
            f"{count(chart.seeds, 'seed')}: {whole.index[0]} {_with_spread(first, form)}")
    text += f" (its RA {first['ra']:.1%})" if chart.metric == "asr" else ""
    if len(whole) > 1:
        second = whole.iloc[1]
        lead, spread = abs(first["mean"] - second["mean"]), first["spread"] + second["spread"]
        text += f", then {whole.index[1]} {_with_spread(second, form)}; "
        text += _TOO_FEW.get(chart.seeds) or _lead(lead, spread, chart.metric)
    out, best = len(ordered) - len(whole), ordered["mean"].iloc[0]
    text += f"; left out for missing cells: {count(out, 'defence')}" * (out > 0)
    better = f", of which {ordered.index[0]} has a better mean ({form(best)}) over the cells that it has"
    return text + better * bool(best != first["mean"]) + "."


def _lead(lead: float, spread: float, metric: str) -> str:
    """Whether the best leads by more than chance: its lead against the spreads of both."""
    digits = 2 if f"{100 * lead:.1f}" == f"{100 * spread:.1f}" else 1  # avoids "0.4 is larger than 0.4"
    size, limit = (f"{value:.2g} s" if metric == "seconds" else f"{100 * value:.{digits}f} points"
                   for value in (lead, spread))
    if lead > spread:
        return f"the lead of {size} is larger than both spreads together ({limit})"
    return f"the lead of {size} is not larger than both spreads together ({limit}), so these seeds do not settle it"


def _told(line: pd.Series, chart: Comparison) -> str:
    """The text at the end of a row."""
    if line["mean"] != line["mean"]:
        return "failed" if line["failed"] > 0 else "not run"
    lost = f" (only {chart.cells - int(line['lost'])} of {chart.cells} cells)" if line["lost"] else ""
    return _with_spread(line, _form(chart.metric)) + lost


def _with_spread(line: pd.Series, form: Callable[[float], str]) -> str:
    value, spread = form(line["mean"]), line["spread"]
    return value if np.isnan(spread) else f"{value} ± {form(spread).rstrip('% s')}"


def _form(metric: str) -> Callable[[float], str]:
    return "{:.2g} s".format if metric == "seconds" else "{:.1%}".format


def _metric(metric: str) -> str:
    return metric if metric == "seconds" else metric.upper()


def _where(chart: Comparison) -> str:
    attack = plain(chart.attack, 30) if chart.attack else f"mean of {count(chart.attacks, 'attack')}"
    return f"{attack}, {per_class(chart.spc)}"
