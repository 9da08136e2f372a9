"""Figures of a scan: the norm that each class needs, synthesised triggers side by side, and when an alarm is raised."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import nn

from gradprune.base.errors import require
from gradprune.datasets import ImageSet, class_name
from gradprune.defenses.driven import multiple
from gradprune.defenses.exposure import Reach
from gradprune.defenses.scan import LOUD, SMALL, Row
from gradprune.models import predict
from gradprune.search import outliers
from gradprune.views.figures import style
from gradprune.views.figures.drawing import blank, judge, place, show_image, written
from gradprune.views.figures.example_images import amplified, typical_changes
from gradprune.views.figures.picture import Picture, count
from gradprune.views.figures.style import ATTACKED, CLEAN, METRICS, plain

THRESHOLD = 2.0
_KINDS = {"mask": ("mask", "o"), "whole": ("whole image", "D")}  # by columns of a table: name, marker


def norms(rows: Sequence[Row], classes: Sequence[str], threshold: float = THRESHOLD) -> Picture:
    """The norm of each class's trigger, by kind, with the alarm line; searches that did not converge are hatched.

    rows: the rows of a scan. Raises InputError if there are none.
    """
    require(len(rows) > 0, "the scan has no rows.")
    kinds = list(dict.fromkeys(row.kind for row in rows))
    told = []
    with style.sheet(1.3 + 0.26 * len(classes), 1, len(kinds), sharey=True) as (figure, panels):
        for ax, kind in zip(panels, kinds, strict=True):
            own = [row for row in rows if row.kind == kind]
            line = alarm_line([row.norm for row in own if row.converged], threshold)
            norm_bars(ax, [row.norm for row in own], classes, line, [row.label for row in own if row.alarm],
                      [row.label for row in own if not row.converged])
            ax.set_title(f"{kind}: norm by class")
            least = min(own, key=lambda row: row.norm)
            told.append(f"by {kind}, “{classes[least.label]}” has the smallest norm: {least.norm:.1f}, against a "
                        f"median of {np.median([row.norm for row in own]):.1f}")
    return Picture(figure, "B" + "; ".join(told)[1:] + ".")


def norm_bars(ax: Axes, values: Sequence[float], classes: Sequence[str], line: float | None,
              alarms: Sequence[int] = (), lost: Sequence[int] = ()) -> None:
    """A bar for each class, `alarms` in another colour, `lost` (not converged) hatched, and the alarm line."""
    for label, value in enumerate(values):
        color = style.EMPTY if label in lost else METRICS["asr" if label in alarms else "acc"].color
        ax.barh(label, value, color=color, hatch="//" * (label in lost), height=0.7)
    if line is not None:
        ax.axvline(line, color=style.INK, linestyle="--", linewidth=1.2)
    ax.set_xlabel("no norm could be small enough for an alarm" if line is None else "alarm left of the dashed line")
    style.name_rows(ax, [written(label, classes) for label in range(len(classes))])


def alarm_line(values: Sequence[float], threshold: float = THRESHOLD) -> float | None:
    """The norm below which a class raises an alarm, or None where that is below 0 or cannot be computed."""
    if len(values) < 3:
        return None
    index, _ = outliers(values)
    middle = float(torch.tensor(values, dtype=torch.double).quantile(0.5))
    far = max(range(len(values)), key=lambda i: index[i])
    line = middle - threshold * abs(values[far] - middle) / index[far] if index[far] else middle
    return min(line, SMALL * middle) if line > 0 else None


def class_norms(values: Sequence[float], index: Sequence[float], classes: Sequence[str],
                guess: float | None = None) -> Picture:
    """The norms of one search with each class's anomaly index beside it, and the learner's guess.

    values, index: one number per class. guess: the smallest norm as a share of the median, drawn as a line.
    Raises InputError unless there are at least three classes, and a norm and an index for each.
    """
    require(len(values) == len(index) == len(classes) >= 3,
            f"each of {len(classes)} classes needs a norm and an index, got {len(values)} and {len(index)}.")
    middle, order = float(np.median(values)), np.argsort(values, kind="stable")
    alarms = [label for label in order.tolist() if index[label] > THRESHOLD and values[label] < SMALL * middle]
    with style.sheet(1.4 + 0.26 * len(classes)) as (figure, (ax,)):
        norm_bars(ax, values, classes, alarm_line(values), alarms)
        for label, (value, own) in enumerate(zip(values, index, strict=True)):
            mark = METRICS["asr" if label in alarms else "acc"]
            symbol = f"{ATTACKED.symbol} " * (label in alarms)
            style.label(ax, f"{symbol}{value:.0f}, index {round(own, 1) + 0:.1f}", (value, label), (5, 0), va="center",
                        color=mark.color, bbox={"facecolor": style.PAPER, "linewidth": 0, "pad": 0.5})
        style.rule(ax, middle, "median", color=style.FAINT, linewidth=1, zorder=0)
        if guess is not None:
            style.rule(ax, guess * middle, "your guess", 15, **style.GUESS)
        ax.set_xlim(0, 1.2 * max(values))
        ax.set_title("Norm of the smallest mask found for each class", pad=16 if guess is None else 28)
    least, second = order[:2].tolist()
    told = f"an alarm for {', '.join(f'“{classes[label]}”' for label in alarms)}" if alarms else "no alarm"
    return Picture(figure, f"“{classes[least]}” needs the smallest mask: {values[least]:.0f}, "
                           f"{values[least] / middle:.0%} of the median ({middle:.0f}), anomaly index "
                           f"{index[least]:.1f}; next is “{classes[second]}” at {values[second] / middle:.0%}; {told}.")


def triggers_compared(model: nn.Module, images: ImageSet, triggers: Mapping[str, nn.Module], target: int,
                      columns: int = 4) -> Picture:
    """Several triggers, one row each: triggered images with the model's answers, the change alone, how many it moves.

    images: clean; those of classes other than `target` are all counted, and the first of some classes are shown.
    triggers: by name. Raises InputError without a trigger, or without an image of another class.
    """
    images.check_target(target)
    require(len(triggers) > 0, "there is no trigger to show.")
    images = images.to("cpu")
    others = images.subset(images.labels != target)
    require(len(others) > 0, "triggers are judged on images of classes other than the target, and there are none.")
    present = others.labels.unique()
    chosen = present[torch.linspace(0, len(present) - 1, min(columns, len(present))).round().long()]
    first = [int((others.labels == label).nonzero()[0]) for label in chosen]
    shown, sizes, told = others.subset(torch.tensor(first)), typical_changes(others, triggers), []
    with blank(0.3 + 1.42 * len(triggers)) as figure:
        for row, (name, trigger) in enumerate(triggers.items()):
            answers = predict(model, others.triggered(trigger)).argmax(1).cpu()
            moved = float((answers == target).float().mean())
            axes = [place(figure, 1.4 + 1.12 * column, 0.25 + 1.42 * row, 1.04, 1.04)
                    for column in range(len(first) + 1)]
            style.write(axes[0], plain(name), (0, 0.5), (-10, 0), ha="right", va="center", fontweight="bold")
            for ax, image, place_of in zip(axes, shown.triggered(trigger), first, strict=False):
                show_image(ax, image)
                verdict = judge(int(answers[place_of]), int(others.labels[place_of]), target)
                style.write(ax, verdict.symbol, (0.5, 0), (0, -13), ha="center", color=verdict.color)
            change, gain = amplified(shown.floats()[0], shown.triggered(trigger)[0])
            show_image(axes[-1], change)
            style.write(axes[-1], f"change × {gain} (grey: none)", (0, 0), (0, -13), color=style.FAINT)
            style.write(axes[-1], f"{ATTACKED.symbol} {moved:.0%}", (1, 1), (12, -4), va="top", fontsize=15,
                        color=ATTACKED.color, fontweight="bold")
            words = f"of {len(others)} images go\nto the target,\nchanged by\n{sizes[name]:.0f} of 255 levels"
            style.write(axes[-1], words, (1, 1), (12, -24), va="top")
            told.append(f"{name}: {moved:.0%} of {count(len(others), 'image')} of other classes go to "
                        f"“{images.classes[target]}”, changed by {sizes[name]:.0f} of 255 levels")
    return Picture(figure, "; ".join(told) + " (root mean square).")


def alarm_map(scans: pd.DataFrame) -> Picture:
    """Each scanned model by its nearest class: share of the median norm against anomaly index, once for each search.

    scans: one row per model, as in data/results/scan.csv. Raises InputError for a table without rows.
    """
    require(len(scans) > 0, "the table of scans is empty.")
    marks = pd.concat([scans[["model", "attacked"]].assign(kind=kind, share=scans[f"{key}_share"],
                                                           index=scans[f"{key}_index"])
                       for key, (kind, _) in _KINDS.items()])
    high = marks[marks["index"] > THRESHOLD]
    with style.sheet(4.4) as (figure, (ax,)):
        ax.axvspan(0, SMALL, THRESHOLD / (top := 1.1 * max(marks["index"].max(), THRESHOLD)), color=style.EMPTY,
                   linewidth=0, zorder=0)
        for attacked, (kind, marker) in itertools.product((True, False), _KINDS.values()):
            own = marks[(marks["attacked"] == attacked) & (marks["kind"] == kind)]
            color = METRICS["asr"].color if attacked else CLEAN.color
            ax.scatter(own["share"], own["index"], s=52, marker=marker, edgecolors=color, linewidths=1.6, zorder=3,
                       c=color if attacked else style.PAPER, label=f"{'attacked' if attacked else 'clean'}, {kind}")
        marks["low"] = marks["index"] <= THRESHOLD
        named = marks.sort_values(["low", "share"]).drop_duplicates("model")  # once: names would overlap
        for row in named[named["attacked"] | (named["index"] > THRESHOLD)].to_dict("records"):
            near = (marks["share"] - row["share"]).between(1e-3, 0.04) & ((marks["index"] - row["index"]).abs() < 0.35)
            offset, side = (((-6, -11), "right") if row["index"] <= THRESHOLD else
                            ((-7, 3), "right") if near.any() else ((7, 3), "left"))
            style.label(ax, plain(row["model"], 16), (row["share"], row["index"]), offset, ha=side,
                        color=(METRICS["asr"] if row["attacked"] else CLEAN).color, path_effects=style.HALO)
        ax.axhline(THRESHOLD, color=style.INK, linestyle="--", linewidth=1.2)
        ax.axvline(SMALL, color=style.INK, linestyle="--", linewidth=1.2)
        ax.set(xlim=(0, 1.02), ylim=(0, top), xlabel="norm as a share of the median of the classes",
               ylabel="anomaly index")
        style.percent(ax.xaxis)
        ax.set_title("The nearest class of each model (grey: both conditions for an alarm hold)")
        figure.legend(loc="outside lower center", ncols=4)
    told = []
    for accused, words in ((high, f"With an index above {THRESHOLD:g} alone"),
                           (high[high["share"] < SMALL], f"with a norm below {SMALL:.0%} of the median as well")):
        of = [f"{accused.loc[accused['attacked'] == attacked, 'model'].nunique()} of "
              f"{int((scans['attacked'] == attacked).sum())} {name}"
              for attacked, name in ((False, "clean"), (True, "attacked"))]
        told.append(f"{words}, {' and '.join(of)} models are accused")
    return Picture(figure, f"{'; '.join(told)}.")


def driven_bars(reached: Mapping[str, Sequence[float]], classes: Sequence[str], limit: float = LOUD) -> Picture:
    """How far driven filters lead to each class, one panel per model; a class that they accuse is marked.

    reached: by model, what `defenses.driven` returned. limit: how many times as far as the next class accuses.
    Raises InputError without a model, or for fewer than two classes.
    """
    require(len(reached) > 0 and all(len(shares) == len(classes) >= 2 for shares in reached.values()),
            "driven_bars needs a model or more, and a share for each of two classes or more.")
    told = []
    with style.sheet(1.3 + 0.26 * len(classes), 1, len(reached), sharey=True) as (figure, panels):
        for ax, (name, shares) in zip(panels, reached.items(), strict=True):
            first, second = sorted(range(len(classes)), key=lambda label: -shares[label])[:2]
            times = multiple(shares, first)
            accused = times > limit
            bars = ax.barh(range(len(shares)), shares, color=METRICS["acc"].color, height=0.7)
            if accused:
                bars[first].set_facecolor(ATTACKED.color)
                style.label(ax, ATTACKED.symbol, (shares[first], first), (5, 0), va="center", color=ATTACKED.color)
            style.name_rows(ax, [written(label, classes) for label in range(len(classes))])
            style.percent(ax.xaxis)
            ax.set(xlim=(0, 1.15 * max(map(max, reached.values()))), xlabel="rise in probability", title=plain(name))
            told.append(f"{name}: “{classes[first]}”, {times:.1f} times as much as "
                        f"“{classes[second]}”{', enough for an alarm' * accused}")
    return Picture(figure, "Filters turned up raise one class most: " + "; ".join(told) + ".")


def reach(images: ImageSet, given: Sequence[Reach], repaired: Sequence[Reach] = ()) -> Picture:
    """The share of images that each family of changes moves to one class, before and after repair, with examples.

    images: clean; the first one of another class is shown. given, repaired: rows of `defenses.exposure`. Raises
    InputError without rows.
    """
    require(len(given) > 0, "there is no change to show.")
    height, after = 0.64, {row.family: row for row in repaired}
    with blank(0.75 + height * len(given)) as figure:
        ax = place(figure, 2.3, 0.35, 5.6, height * len(given))
        for y, row in enumerate(given):
            image = images.subset(images.labels != row.label).floats()[:1]
            thumb = place(figure, 1.5, 0.37 + height * y, 0.58, 0.58)
            show_image(thumb, row.change(image)[0].cpu())
            style.write(thumb, row.family, (0, 0.5), (-8, 0), ha="right", va="center", fontweight="bold")
            shares = [(row, METRICS["asr"]), *([(after[row.family], CLEAN)] if row.family in after else [])]
            ax.plot([one.share for one, _ in shares], [y] * len(shares), color=style.EMPTY, linewidth=3, zorder=1)
            for one, mark in shares:
                ax.scatter(one.share, y, s=64, marker=mark.marker, color=mark.color, zorder=3, clip_on=False)
            style.label(ax, f"to {written(row.label, images.classes)}", (row.share, y), (0, 9),
                        ha="right" if row.share > 0.5 else "left", color=style.FAINT)
        ax.set(xlim=(0, 1), ylim=(len(given) - 0.5, -0.5), yticks=[])
        style.percent(ax.xaxis)
        ax.set_title(f"Images moved to one class{' (triangle: given, dot: repaired)' * bool(after)}", loc="left")
    most = max(given, key=lambda row: row.share)
    goal = class_name(most.label, images.classes)
    told = f"The family {most.family} moves the most images: {most.share:.0%} to “{goal}”"
    left = max(repaired, key=lambda row: row.share, default=None)
    return Picture(figure, f"{told}; after the repair, {left.family} moves the most: {left.share:.0%}." if left else
                   f"{told}.")
