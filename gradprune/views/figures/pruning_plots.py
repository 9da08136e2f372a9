"""Figures of the pruning lesson: ways to choose filters, what trials and fine-tuning add, what comes back."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import pandas as pd
import seaborn
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gradprune.base.errors import require
from gradprune.evaluation import Metrics
from gradprune.views.figures import style
from gradprune.views.figures.bench_plots import looks
from gradprune.views.figures.picture import Picture, Row, changes, count
from gradprune.views.figures.style import CLEAN, METRICS, TRIGGERED, plain

_MOST = 7  # models in a figure


def choices(groups: Mapping[str, Sequence[float]], guess: float | None = None, metric: str = "asr") -> Picture:
    """One metric under several ways to choose filters, one row each with its mean.

    groups: shares in 0..1 by name, top row first. guess: the learner's, drawn as a line. metric: "acc", "asr" or "ra".
    Raises InputError without groups, or for an empty one.
    """
    require(len(groups) > 0 and all(len(values) > 0 for values in groups.values()), "each group needs some values.")
    mark = METRICS[metric]
    with style.sheet(0.72 * len(groups) + 1.0) as (figure, (ax,)):
        for row, values in enumerate(groups.values()):
            heights = [row + 0.11 * (i - (len(values) - 1) / 2) / max(1, len(values) - 1) for i in range(len(values))]
            ax.scatter(values, heights, s=42, color=mark.color, marker=mark.marker, alpha=0.75, linewidths=0,
                       zorder=3, clip_on=False)
            mean = fmean(values)
            style.draw_mean(ax, row, mean)
            side = "left" if mean < 0.06 else "right" if mean > 0.94 else "center"
            style.label(ax, f"mean {mean:.0%}", (mean, row - 0.3), (0, 3), ha=side, fontweight="bold")
        if guess is not None:
            ax.axvline(guess, **style.GUESS)
            style.label(ax, "your guess", (guess, 1), (4, -2), xycoords=("data", "axes fraction"), va="top")
        ax.set(xlim=(0, 1), xticks=[0, 0.25, 0.5, 0.75, 1])
        style.percent(ax.xaxis)
        style.name_rows(ax, list(groups), fontsize=style.NORMAL)
        ax.set_ylim(top=-0.6)
        ax.tick_params(axis="y", pad=9)  # marks at 0 reach over the axis
        ax.grid(axis="x")
        ax.set_xlabel(f"{mark.name} ({'lower' if metric == 'asr' else 'higher'} is better for the defender)")
    told = "; ".join(f"{' '.join(name.split())}, {fmean(values):.0%} ({min(values):.0%} to {max(values):.0%})"
                     for name, values in groups.items())
    return Picture(figure, f"Mean {mark.name}, with lowest and highest: {told}.")


def with_and_without(runs: Mapping[str, Mapping[str, Metrics]]) -> Picture:
    """ACC, ASR and RA of several ways to defend, a block of rows for each attack, every value written out.

    runs: attack -> way -> metrics (shares in 0..1); the first way of each attack is the given model.
    Raises InputError without runs, or for an attack without ways.
    """
    require(len(runs) > 0 and all(len(ways) > 0 for ways in runs.values()), "each attack needs some results.")
    lines, heads, told, y = [], [], [], 0.0
    for attack, ways in runs.items():
        heads.append((y, plain(attack)))
        for way, metrics in ways.items():
            y += 1
            lines.append((y, plain(way), metrics))
        told.append(f"{attack}: " + ", ".join(f"{way} {m.acc:.1%} / {m.asr:.1%}" for way, m in ways.items()))
        y += 1.45
    with style.sheet(0.235 * y + 0.85, 1, 3, sharey=True) as (figure, panels):
        for ax, (key, mark) in zip(panels, METRICS.items(), strict=True):
            style.draw_values(ax, [height for height, *_ in lines], [getattr(line[2], key) for line in lines], mark,
                              fontsize=style.SMALL)
            ax.set(xlim=(0, 1), ylim=(y - 0.8, -0.7), xticks=[])
            ax.set_title(f"{mark.name}: {'lower' if key == 'asr' else 'higher'} is better")
            ax.tick_params(length=0)
            ax.spines["bottom"].set_visible(False)
        panels[0].set_yticks([height for height, *_ in (*heads, *lines)], [text for _, text, *_ in (*heads, *lines)],
                             fontsize=style.NORMAL)
        for label in panels[0].get_yticklabels()[:len(heads)]:
            label.set_fontweight("bold")
    return Picture(figure, f"ACC / ASR on test images. {'; '.join(told)}.")


def regrowth(held: Sequence[float], forgotten: Sequence[float], removed: int) -> Picture:
    """How large the removed filters are after each training step, with the mask held and without.

    held, forgotten: their size as a share of what it was in the given model, one value per step, step 0 first.
    removed: how many filters. Raises InputError unless both have the same length.
    """
    require(len(held) == len(forgotten) > 1,
            f"held and forgotten must have the same length, at least two steps, got {len(held)} and {len(forgotten)}.")
    steps = range(len(held))
    with style.sheet(2.7) as (figure, (ax,)):
        style.draw_lines(ax, steps, {"mask forgotten": (forgotten, TRIGGERED), "mask held": (held, CLEAN)})
        style.percent(ax.yaxis, 1)
        ax.set(title=f"Size of {count(removed, 'removed filter')}, as a share of the original", xlabel="training step")
    told = f"{count(len(held) - 1, 'training step')} without a mask, {count(removed, 'removed filter')}"
    return Picture(figure, f"After {told} {'has' if removed == 1 else 'have'} {forgotten[-1]:.1%} of the original "
                           f"size; with the mask held, {held[-1]:.1%}.")


def relearn_curve(attacks: Mapping[str, Mapping[str, Sequence[Row]]]) -> Picture:
    """ASR against the number of poisoned samples: one panel per attack, one line per model, a band over the draws.

    attacks: attack -> model's name -> rows of `evaluation.relearn` (`k`, None for the model before fine-tuning, and
    `asr` in 0..1), from one or more runs, all with the same values of k.
    Raises InputError without rows, for more than seven models, or where the runs differ in k.
    """
    runs = [rows for models in attacks.values() for rows in models.values()]
    require(len(runs) > 0 and all(len(rows) > 0 for rows in runs), "each attack needs models with rows.")
    steps = sorted({row["k"] for row in runs[0]}, key=lambda k: -1 if k is None else k)
    require(all({row["k"] for row in rows} == set(steps) for rows in runs), "all runs must have the same values of k.")
    table = pd.DataFrame([{"attack": attack, "defense": plain(name), "place": steps.index(row["k"]), "asr": row["asr"]}
                          for attack, models in attacks.items() for name, rows in models.items() for row in rows])
    marks = looks(table)
    require(len(marks) <= _MOST, f"a figure shows at most {_MOST} models, got {len(marks)}.")
    colors, markers = ({name: look[key] for name, look in marks.items()} for key in ("color", "marker"))
    with style.sheet(3.8, 1, len(attacks), sharey=True) as (figure, panels):
        for ax, (attack, own) in zip(panels, table.groupby("attack", sort=False), strict=True):
            seaborn.lineplot(own, x="place", y="asr", hue="defense", style="defense", palette=colors, markers=markers,
                             style_order=markers, errorbar=("pi", 100), ax=ax)
            for line in ax.get_lines():
                line.set_clip_on(len(line.get_xdata()) == 0)  # the legend's lines are empty
            ax.set_xticks(range(len(steps)), ["before" if step is None else str(step) for step in steps])
            ax.set(title=plain(attack), ylim=(0, 1), yticks=[0, 0.5, 1], xlabel="",
                   ylabel="ASR (lower is better for the defender)")
            style.percent(ax.yaxis)
            ax.grid(axis="y")
        lines = {name: line for ax in panels for line, name in zip(*ax.get_legend_handles_labels(), strict=True)}
        for ax in panels:
            ax.get_legend().remove()
        figure.supxlabel("poisoned samples in the fine-tuning set", fontsize=style.SMALL)
        figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=min(3, len(lines)),
                      handlelength=3)
    mean = table.groupby(["attack", "defense", "place"], sort=False)["asr"].mean().unstack()
    told = "; ".join(f"{attack}: " + ", ".join(f"{name} {row.iloc[0]:.0%} to {row.iloc[-1]:.0%}" for name, row
                                               in own.droplevel(0).sort_index(axis=1).iterrows())
                     for attack, own in mean.groupby("attack", sort=False))
    first = "before" if steps[0] is None else f"with {steps[0]}"
    return Picture(figure, f"Mean ASR {first} and after fine-tuning with {steps[-1]} poisoned samples. {told}.")


def trajectories(runs: Mapping[str, Sequence[Row]], kept: Mapping[str, int], guess: float | None = None) -> Picture:
    """ACC, ASR and RA against the number of filters removed, one panel each, for several ways to prune one model.

    runs: by name, the baseline first (drawn hollow), what `evaluation.replay` returns. kept: by name, the round whose
    state was returned; it is ringed, and later rounds are paler. guess: the learner's guess of the last run's ASR.
    Test figures explain the choice and play no part in it. Raises InputError without runs, or for an unknown round.
    """
    require(len(runs) > 0 and all(0 <= kept.get(name, -1) < len(rows) for name, rows in runs.items()),
            "each run needs its rows and the round that was kept.")
    with style.sheet(3.2, 1, 3, sharey=True, sharex=True) as (figure, panels):
        for ax, (key, mark) in zip(panels, METRICS.items(), strict=True):
            for number, (name, rows) in enumerate(runs.items()):
                values, end, look = [row[key] for row in rows], kept[name], _look(mark.color, mark.marker, number)
                ax.plot(range(end, len(values)), values[end:], alpha=0.3, zorder=3, **look)
                ax.plot(range(end + 1), values[:end + 1], zorder=4, **look)
                ax.scatter([end], [values[end]], s=130, facecolors="none", edgecolors=style.INK, linewidths=1.3,
                           zorder=5, clip_on=False)
            ax.set(ylim=(0, 1), yticks=[0, 0.5, 1], xlabel="filters removed")
            ax.set_title(f"{mark.name}: {'lower' if key == 'asr' else 'higher'} is better")
            ax.grid(axis="y")
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        style.percent(panels[0].yaxis)
        if guess is not None:
            panels[1].axhline(guess, **style.GUESS)
            style.label(panels[1], "your guess", (1, guess), (0, 3 if guess < 0.9 else -12), ha="right",
                        xycoords=("axes fraction", "data"))
        lines = [Line2D([], [], label=plain(name), **_look(style.INK, "o", number)) for number, name in enumerate(runs)]
        ring = Line2D([], [], linestyle="", marker="o", markersize=11, markerfacecolor="none", markeredgewidth=1.3,
                      markeredgecolor=style.INK, label="kept; later rounds were undone")
        figure.legend(handles=[*lines, ring], loc="outside upper left", ncols=len(lines) + 1, handlelength=3.2)
    told = "; ".join(f"{name}, {count(kept[name], 'filter')}: {changes(rows[0], rows[kept[name]])}"
                     for name, rows in runs.items())
    return Picture(figure, f"On test images, before any fine-tuning. {told}.")


def _look(color: str, marker: str, number: int) -> dict[str, Any]:
    """How the run of this number is drawn: the first dashed and hollow, the second solid and filled, and so on."""
    return {"color": color, "marker": marker, "linestyle": ("--", "-", ":")[number % 3], "clip_on": False,
            "markerfacecolor": color if number % 3 == 1 else style.PAPER, "markeredgecolor": color,
            "markeredgewidth": 1.3}
