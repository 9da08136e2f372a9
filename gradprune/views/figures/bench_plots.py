"""Figures of a bench, a table with one row per cell (attack, defense, spc, seed): results, costs, uncertainty.

A defence has one colour and one marker in all figures of a table; failed cells are left out, or shown as failed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gradprune.base.errors import require
from gradprune.bench import ranking, summarise
from gradprune.bench.summary import attack_kind, checked, even_means
from gradprune.views.figures import style
from gradprune.views.figures.picture import Picture, change, count, per_class
from gradprune.views.figures.style import METRICS, plain

_COLORS = ("#0072B2", "#C45500", "#007F5C", "#AA3377", "#56B4E9", "#E69F00", "#1F2328", "#8A939B", "#332288", "#999933",
           "#882255", "#44AA99")
_MARKERS = "osD^vPX<>*pd"
_NAME = 20  # characters of a name that are shown


def looks(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Colour and marker of each defence, in the table's order: the first 144 are unlike, the first twelve in both."""
    return {name: {"color": _COLORS[i % 12], "marker": _MARKERS[(i + i // 12) % 12]}
            for i, name in enumerate(dict.fromkeys(table["defense"]))}


def der_heatmap(table: pd.DataFrame, spc: int) -> Picture:
    """Mean DER of each defence (row) under each attack (column) at one spc, in per cent; the highest mean on top.

    The mean column comes from `ranking`: it covers only the blocks in which every defence has a cell.
    Raises InputError for an spc without cells.
    """
    rows = _at(table, spc)
    best = ranking(rows).sort_values("der", ascending=False)
    cells = summarise(rows).set_index(["defense", "attack"])
    names, attacks = list(best["defense"]), list(dict.fromkeys(rows["attack"]))
    values = cells["der"].unstack().reindex(index=names, columns=attacks)
    failed = cells["failed"].unstack().reindex_like(values)
    grid, lost = np.c_[values, best["der"]], np.c_[failed, np.zeros(len(names))] > 0
    texts = [f"{100 * value:.1f}" + "*" * int(bad) if value == value else "failed" if bad else "–"
             for value, bad in zip(grid.flat, lost.flat, strict=True)]
    columns = [*(plain(name, _NAME) for name in attacks), "mean"]
    colors = seaborn.color_palette("crest", as_cmap=True).with_extremes(under=style.EMPTY)
    low = min(0.5, float(np.nanmin(grid)))
    width = min(style.WIDTH, max(4.6, 2.3 + 0.58 * grid.shape[1]))
    with style.sheet(1.6 + 0.3 * len(names), width=width) as (figure, (ax,)):
        seaborn.heatmap(np.nan_to_num(grid, nan=low - 1), annot=np.reshape(texts, grid.shape), fmt="", cmap=colors,
                        vmin=low, vmax=1, annot_kws={"fontsize": style.SMALL}, linewidths=0.8, linecolor=style.PAPER,
                        cbar=False, xticklabels=columns, yticklabels=[plain(name, _NAME) for name in names], ax=ax)
        for text, value in zip(ax.texts, grid.flat, strict=True):  # seaborn would write pale text on the middle greens
            text.set_color(style.PAPER if (value - low) / (1 - low) > 0.35 else style.INK)
        ax.axvline(len(attacks), color=style.PAPER, linewidth=6)
        ax.set_xticks(ax.get_xticks(), columns, rotation=40, ha="left", rotation_mode="anchor")
        ax.tick_params(axis="y", rotation=0)  # seaborn turns the names of two or three rows upright, onto each other
        ax.xaxis.tick_top()
        style.bare(ax)
        figure.suptitle(f"DER in per cent, {per_class(spc)}", x=0.015, ha="left", fontweight="bold",
                        fontsize=style.LARGE)
    partly, common = int(((failed > 0) & values.notna()).sum(axis=None)), count(best["attacks"].iloc[0], "attack")
    return Picture(figure, f"Mean DER at {per_class(spc)} over {common}: {_ends(best, 'der')}; 50 is no net gain"
                   + f"; * in {count(partly, 'cell')} some seeds failed" * (partly > 0) + ".")


def acc_against_asr(table: pd.DataFrame, spc: int) -> Picture:
    """ACC against ASR after each defence, one point per attack (mean over seeds), and the given models; best: top left.

    Both axes have square-root scales, which give more room to the corner of the good results. Raises InputError for
    an spc without cells.
    """
    rows = _at(table, spc)
    means = summarise(rows).dropna(subset=["acc"])
    given = checked(rows).query("~failed").groupby("attack")[["acc_before", "asr_before"]].mean()
    lowest = min(means["acc"].min(), given["acc_before"].min())
    with style.sheet(4.6) as (figure, (ax,)):
        for name, look in looks(table).items():
            own = means[means["defense"] == name]
            if len(own):
                ax.scatter(own["asr"], 1 - own["acc"], s=58, alpha=0.85, linewidths=0.5, edgecolors="white", zorder=3,
                           clip_on=False, label=plain(name, _NAME), **look)
        ax.scatter(given["asr_before"], 1 - given["acc_before"], s=60, facecolors="none", edgecolors=style.INK,
                   linewidths=1.3, zorder=4, clip_on=False, label="given, one per attack")
        ax.scatter([0], [0], s=330, marker="*", color=style.INK, zorder=2, clip_on=False)
        style.label(ax, "ideal", (0, 0), (11, 5), fontweight="bold", fontsize=style.NORMAL)
        _root_axis(ax, "x", [0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1], 1.0, "{:.0%}".format)
        _root_axis(ax, "y", [0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.5, 0.7, 1], 1 - lowest, lambda x: f"{1 - x:.0%}")
        ax.invert_yaxis()
        ax.grid()
        ax.set(xlabel=f"ASR: {METRICS['asr'].meaning} (square-root scale)",
               ylabel=f"ACC: {METRICS['acc'].meaning} (square-root scale)")
        ax.tick_params(axis="y", pad=10)
        ax.set_title(f"ACC against ASR, {per_class(spc)}", pad=26)
        figure.legend(loc="outside right upper", labelspacing=0.7)
    return Picture(figure, f"At {per_class(spc)}, {_nearest(means)}; the given models have "
                           f"{given['acc_before'].mean():.1%} and {given['asr_before'].mean():.1%}.")


def _nearest(means: pd.DataFrame) -> str:
    """Which defence is nearest to no error and no ASR, over the attacks for which every defence has results."""
    common = means[means.groupby("attack")["defense"].transform("nunique") == means["defense"].nunique()]
    if common.empty:
        return "no attack has results for every defence, so none is nearest to the ideal corner"
    common = common.assign(far=np.hypot(common["asr"], 1 - common["acc"]))
    own = even_means(common, ["defense"], ["far", "acc", "asr"]).sort_values("far").iloc[0]
    over = count(common["attack"].map(attack_kind).nunique(), "attack")
    return f"{own.name} is nearest to the ideal corner on average over {over}: ACC {own.acc:.1%} and ASR {own.asr:.1%}"


def mean_ranks(table: pd.DataFrame, spc: int, metric: str = "der") -> Picture:
    """Mean rank of each defence at one spc with its 95 % interval; see `bench.ranking` for how.

    Raises InputError for an spc without cells, or where no attack and seed has a cell for every defence.
    """
    ranked = ranking(_at(table, spc), metric).reset_index(drop=True)
    blocks = ranked["blocks"].iloc[0]
    require(blocks > 0, f"no attack and seed has a cell for every defence at spc {spc}, so there is no common ranking.")
    with style.sheet(1.0 + 0.3 * len(ranked)) as (figure, (ax,)):
        for row, line in ranked.iterrows():
            style.draw_range(ax, row, line[["rank_low", "rank_high"]], [line["rank"]], **looks(table)[line["defense"]])
            sure = f"  ({line['rank_low']:.1f} to {line['rank_high']:.1f})" if line["attacks"] > 1 else ""
            style.write(ax, f"{line['rank']:.1f}{sure}", (1, 1 - (row + 0.5) / len(ranked)), (12, 0), va="center")
        name_defences(ax, list(ranked["defense"]))
        ax.set(xlim=(1 - 0.02 * len(ranked), max(2, len(ranked))), xlabel="mean rank (1 is best)",
               title=f"Mean rank by {metric.upper()}, {per_class(spc)}")
        ax.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        ax.grid(axis="x")
    interval = "lines: 95% intervals over attacks" if ranked["attacks"].iloc[0] > 1 else "one attack: no interval"
    return Picture(figure, f"Mean rank by {metric.upper()} at {per_class(spc)}, over {count(blocks, 'pair')} of attack "
                           f"and seed: {_ends(ranked, 'rank')}; {interval}.")


def costs(table: pd.DataFrame) -> Picture:
    """Seconds of each defence on a log scale: the median cell of each spc, with a line from lowest to highest."""
    good = checked(table).query("~failed & seconds > 0")
    require(len(good) > 0, "no cell records how many seconds it took.")
    median = good.groupby("defense")["seconds"].median().sort_values()
    sizes = sorted(good["spc"].unique())
    with style.sheet(1.1 + len(median) * (0.2 + 0.11 * len(sizes))) as (figure, (ax,)):
        seaborn.pointplot(good, x="seconds", y="defense", hue="spc", order=median.index, hue_order=sizes, orient="y",
                          estimator="median", errorbar=("pi", 100), dodge=0.6 * (1 - 1 / len(sizes)),
                          palette=seaborn.color_palette("crest", max(2, len(sizes)))[:len(sizes)], clip_on=False,
                          markers=list(_MARKERS[:len(sizes)]), linestyle="none", err_kws={"linewidth": 1.8},
                          markersize=6.5, ax=ax)
        handles, _ = ax.get_legend_handles_labels()
        ax.get_legend().remove()
        name_defences(ax, list(median.index))
        powers = np.floor(np.log10(good["seconds"].min())), np.floor(np.log10(good["seconds"].max())) + 1
        ax.set(xscale="log", xlim=[10.0**power for power in powers], ylabel="",
               xlabel="seconds (log scale): median, and from the fastest to the slowest cell")
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        ax.grid(axis="x")
        figure.suptitle("What a defence costs", x=0.015, ha="left", fontweight="bold", fontsize=style.LARGE)
        figure.legend(handles, map(per_class, sizes), loc="outside right upper")
    ends = _ends(median.reset_index(), "seconds")
    return Picture(figure, f"Median seconds per cell: {ends}.")


def by_spc(table: pd.DataFrame, metric: str = "der") -> Picture:
    """One metric (der, acc, asr or ra) against the images per class: one line per defence, the mean over attacks.

    Every attack has the same weight; bands: lowest to highest seed. Raises InputError for fewer than two spc values.
    """
    require(metric in ("der", *METRICS), f"metric must be der, acc, asr or ra, got {metric!r}.")
    good = checked(table).query("~failed")
    seeds = good.groupby(["defense", "spc", "seed"])[metric].mean().groupby(["defense", "spc"])
    sizes = sorted(good["spc"].unique())
    require(len(sizes) > 1, f"a line needs at least two values of spc, got {', '.join(map(str, sizes))}.")
    mean = even_means(good, ["defense", "spc"], [metric])[metric].unstack()
    mean = mean.reindex([name for name in looks(table) if name in mean.index])
    with style.sheet(4.8) as (figure, (ax,)):
        for name, line in mean.iterrows():
            look, line = looks(table)[name], line.dropna()
            places = [sizes.index(spc) for spc in line.index]
            low, high = (getattr(seeds, end)()[name].reindex(line.index) for end in ("min", "max"))
            ax.fill_between(places, low, high, color=look["color"], alpha=0.05 + 0.3 / len(mean), linewidth=0)
            ax.plot(places, line, clip_on=False, **look)
        ax.margins(x=0.02, y=0.06)
        last = mean.ffill(axis=1).iloc[:, -1]
        bottom, top = ax.get_ylim()
        heights = style.spread(list(last), bottom, top, min(0.055, 1 / len(last)))
        for (name, value), height in zip(last.items(), heights, strict=True):
            look, end = looks(table)[name], mean.loc[name].last_valid_index()
            text = plain(name, _NAME) + ("" if end == sizes[-1] else f" (to {end})")
            ax.annotate(text, (len(sizes) - 1, value), (1.08, height), textcoords=("axes fraction", "data"),
                        va="center", color=look["color"], fontsize=style.SMALL, annotation_clip=False, arrowprops={
                            "arrowstyle": "-", "color": look["color"], "lw": 0.7, "shrinkB": 5, "relpos": (0, 0.5)})
        ax.set_xticks(range(len(sizes)), [str(spc) for spc in sizes])
        ax.set_xlabel("clean images per class")
        style.percent(ax.yaxis)
        ax.grid(axis="y")
        ax.set_title(f"{metric.upper()} by images per class (bands: lowest to highest seed)", pad=14)
    whole = mean.dropna()
    told = "; ".join(change(name, row.iloc[0], row.iloc[-1]) for name, row in whole.iterrows())
    partly = mean.index.difference(whole.index)
    rest = f"; without a result at every size: {', '.join(partly)}" * (len(partly) > 0)
    return Picture(figure, f"Mean {metric.upper()} from {sizes[0]} to {sizes[-1]} images per class: {told}{rest}.")


def _at(table: pd.DataFrame, spc: int) -> pd.DataFrame:
    """The cells of one spc."""
    rows = table[table["spc"] == spc]
    require(len(rows) > 0, f"there is no cell at spc {spc}; known: {', '.join(map(str, sorted(set(table['spc']))))}.")
    return rows


def _ends(ranked: pd.DataFrame, key: str) -> str:
    """The first and the last of a sorted table that have a value."""
    known = ranked.dropna(subset=[key])
    if known.empty:
        return "no defence has a result"
    form = {"rank": "{:.1f}", "seconds": "{:.3g} s"}.get(key, "{:.1%}")
    first, last = (f"{known['defense'].iloc[i]} {form.format(known[key].iloc[i])}" for i in (0, -1))
    best, worst = {"rank": ("best", "worst"), "seconds": ("fastest", "slowest")}.get(key, ("highest", "lowest"))
    return f"{best} {first}, {worst} {last}" if len(known) > 1 else first


def name_defences(ax: Axes, names: Sequence[str]) -> None:
    """Defences from top to bottom, one row each."""
    style.name_rows(ax, [plain(name, _NAME) for name in names])
    ax.spines["left"].set_visible(False)


def _root_axis(ax: Axes, axis: str, ticks: Sequence[float], top: float, form: Callable[[float], str]) -> None:
    """A square-root scale from 0 to just above `top` with ticks in per cent."""
    top = min(1.0, 1.15 * top + 0.01)
    ticks = [tick for tick in ticks if tick <= top]
    getattr(ax, f"set_{axis}scale")("function", functions=(lambda v: np.sqrt(np.maximum(v, 0)), np.square))
    getattr(ax, f"set_{axis}ticks")(ticks, [form(tick) for tick in ticks])
    getattr(ax, f"set_{axis}lim")(0, top)
