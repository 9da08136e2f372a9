"""Figures of notebook 01: a poisoned set, what ACC, ASR and RA count, poison rates, and answers by true class."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from gradprune.attacks import Poisoned
from gradprune.base.errors import require
from gradprune.datasets import ImageSet
from gradprune.evaluation import Metrics
from gradprune.models import predict
from gradprune.views.figures import style
from gradprune.views.figures.drawing import blank, judge, place, show_image, written
from gradprune.views.figures.example_images import amplified, typical_changes
from gradprune.views.figures.picture import Picture, change, count
from gradprune.views.figures.style import ATTACKED, METRICS, RIGHT, Verdict, plain
from gradprune.views.figures.trigger_kinds import KINDS, OTHER

_LEFT_OUT = Verdict(style.FAINT, "–")


def poisoned_images(clean: ImageSet, poisoned: Poisoned, columns: int = 6) -> Picture:
    """Some of the training images that the attacker touched: as they were, and as the model will learn them.

    clean: the set before; poisoned: what `poison` returned for it. The images shown are of as many classes as possible.
    Raises InputError where no image was touched.
    """
    touched = poisoned.touched.cpu()
    require(len(touched) > 0, "no image was poisoned: raise the poison rate.")
    labels = clean.labels.cpu()[touched].tolist()
    first = [labels.index(label) for label in sorted(set(labels))]
    shown = touched[(first + [i for i in range(len(labels)) if i not in first])[:columns]].tolist()
    rows = (("before\n(label)", clean, RIGHT.color, ""),
            ("after\n(label)", poisoned.images, ATTACKED.color, f"{ATTACKED.symbol} "))
    with blank(3.2) as figure:
        for row, (title, images, color, symbol) in enumerate(rows):
            axes = [place(figure, 1.05 + 1.22 * column, 0.1 + 1.55 * row, 1.1, 1.1) for column in range(len(shown))]
            style.write(axes[0], title, (0, 0.5), (-10, 0), ha="right", va="center", fontweight="bold")
            for ax, image in zip(axes, shown, strict=True):
                show_image(ax, images.images[image] / 255)
                label = written(int(images.labels[image]), images.classes, 16)
                style.write(ax, symbol + label, (0.5, 0), (0, -14), ha="center", color=color)
    new = poisoned.images.labels.cpu()[touched].unique().tolist()
    label = f"label “{clean.classes[new[0]]}”" if len(new) == 1 else "label of the next class"
    return Picture(figure, f"{len(touched):,} of {len(clean):,} training images ({len(touched) / len(clean):.1%}) now "
                           f"carry the trigger and the {label}; all others are unchanged.")


def counting(model: nn.Module, images: ImageSet, trigger: nn.Module, target: int) -> Picture:
    """What ACC, ASR and RA count: one image of each class, clean and triggered, with marks, and three fractions.

    images: the first image of each class is taken, the target's last; that one counts in ACC alone. target: the
    attacker's class. Raises InputError for a set without images of another class.
    """
    images = images.to("cpu")
    images.check_target(target)
    present = sorted(set(images.labels.tolist()), key=lambda label: (label == target, label))[-12:]
    require(present != [target], "ASR and RA need images of a class other than the target.")
    shown = images.subset(torch.tensor([images.labels.tolist().index(label) for label in present]))
    truth = shown.labels.tolist()
    answers = [predict(model, pixels).argmax(1).tolist() for pixels in (shown.floats(), shown.triggered(trigger))]
    clean = [judge(a, y, None) for a, y in zip(answers[0], truth, strict=True)]
    marked = [_LEFT_OUT if y == target else judge(a, y, target) for a, y in zip(answers[1], truth, strict=True)]
    with blank(2.55) as figure:
        rows = (("Test images as they are", shown.floats(), clean),
                ("The same images with the trigger on", shown.triggered(trigger), marked))
        for row, (title, pixels, marks) in enumerate(rows):
            for column, (image, mark) in enumerate(zip(pixels, marks, strict=True)):
                ax = place(figure, 0.15 + 0.54 * column, 0.42 + 1.28 * row, 0.5, 0.5)
                show_image(ax, image, alpha=0.25 if mark is _LEFT_OUT else 1)
                style.write(ax, mark.symbol, (0.5, 0), (0, -15), ha="center", color=mark.color, fontsize=style.LARGE)
                if column == 0:
                    style.write(ax, title, (0, 1), (0, 9), fontweight="bold", fontsize=style.LARGE)
        of = len(truth) - marked.count(_LEFT_OUT)
        counts = {"acc": (clean.count(RIGHT), RIGHT, len(truth), 0.42),
                  "asr": (marked.count(ATTACKED), ATTACKED, of, 1.5), "ra": (marked.count(RIGHT), RIGHT, of, 2.0)}
        for key, (number, verdict, of, top) in counts.items():
            ax, look = place(figure, 6.75, top, 1.5, 0.5), {"color": METRICS[key].color, "fontweight": "bold"}
            ax.set_axis_off()
            style.write(ax, f"{METRICS[key].name} {number / of:.0%}", (0, 0.5), (0, 1), fontsize=15, **look)
            style.write(ax, f"{number} {verdict.symbol} of {of}", (0, 0.5), (0, -13), **look)
    told = {key: f"{number} of {of}" for key, (number, _, of, _) in counts.items()}
    left_out = f"; the “{images.classes[target]}” ({_LEFT_OUT.symbol}) counts in neither" * (_LEFT_OUT in marked)
    return Picture(figure, f"ACC: {told['acc']} clean images are right ({RIGHT.symbol}). With the trigger on, ASR: "
                           f"{told['asr']} go to the attacker's class ({ATTACKED.symbol}), RA: {told['ra']} keep their "
                           f"true class ({RIGHT.symbol}){left_out}.")


def poison_rates(measured: pd.DataFrame, own: Mapping[float, Metrics] | None = None) -> Picture:
    """ACC and ASR against the poison rate: the mean over trainings as a line, each training as a faint mark.

    measured: one row per training with rate (0..1), poisoned_images, acc and asr, shares in 0..1. own: the learner's
    trainings by rate, drawn as stars. Raises InputError for a table without rows.
    """
    require(len(measured) > 0, "the table of poison rates is empty.")
    mean = measured.groupby("rate")[["acc", "asr", "poisoned_images"]].mean()
    rates, places, own = mean.index.to_numpy(), np.arange(len(mean)), dict(own or {})
    with style.sheet(3.9) as (figure, (ax,)):
        for key in ("acc", "asr"):
            ax.scatter(np.searchsorted(rates, measured["rate"]), measured[key], s=26, alpha=0.35, linewidths=0,
                       marker=METRICS[key].marker, color=METRICS[key].color, clip_on=False, zorder=2)
        for rate, figures in own.items():
            x = float(np.interp(rate, rates, places))
            for size, value, mark in ((320, figures.acc, METRICS["acc"]), (120, figures.asr, METRICS["asr"])):
                ax.scatter(x, value, s=size, marker="*", color=mark.color, edgecolors="black", linewidths=0.8,
                           clip_on=False, zorder=5)
            ax.axvline(x, color=style.INK, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
            side, offset = ("right", -6) if x > places[-1] / 2 else ("left", 6)
            style.label(ax, f"★ yours: {rate:.1%}", (x, 0.75), (offset, 0), ha=side, fontweight="bold")
        lines = {METRICS[key].name: (mean[key].tolist(), METRICS[key]) for key in ("acc", "asr")}
        style.draw_lines(ax, places.tolist(), lines, shares=True)
        ax.set_xticks(places, [f"{rate:.1%}\n{images:,.0f}" for rate, images in mean["poisoned_images"].items()])
        ax.set_xlabel("share of the training images that carry the trigger, and their number")
        ax.set_title("ACC and ASR by poison rate (faint marks: single trainings)", pad=14)
    enough = mean.index[mean["asr"] > 0.9]
    text = f"From a poison rate of {rates[0]:.1%} to {rates[-1]:.1%} "
    text += change("ASR", mean["asr"].iloc[0], mean["asr"].iloc[-1])
    text += f" and first passed 90% at {enough[0]:.1%}" if len(enough) else " and never passed 90%"
    text += f"; ACC stayed between {mean['acc'].min():.1%} and {mean['acc'].max():.1%}"
    return Picture(figure, text + "".join(f"; yours at {rate:.1%}: {figures}" for rate, figures in own.items()) + ".")


def answer_maps(maps: Mapping[str, Tensor], classes: Sequence[str]) -> Picture:
    """The answers under each attack's trigger: a grid of true class against answer for each, side by side.

    maps: by name, float (K, K): of each class's triggered images (row) the share given each answer (column).
    Raises InputError without a grid, or for one that is not K x K.
    """
    require(len(maps) > 0, "there is no grid to show.")
    for name, shares in maps.items():
        require(shares.shape == (len(classes),) * 2, f"grid {name!r} must be {len(classes)} x {len(classes)}.")
    names = [written(label, classes, 16) for label in range(len(classes))]
    with style.sheet(4.9, 1, len(maps), sharey=True) as (figure, panels):
        for ax, (name, shares) in zip(panels, maps.items(), strict=True):
            seaborn.heatmap(shares.numpy(), vmin=0, vmax=1, cmap="rocket_r", cbar=False, square=True,
                            xticklabels=names, yticklabels=names, ax=ax)
            ax.tick_params(rotation=0)
            ax.tick_params(axis="x", rotation=90)
            style.bare(ax)
            ax.set(title=plain(name, 30), xlabel="answer with the trigger on")
        panels[0].set_ylabel("true class")
        bar = figure.colorbar(panels[0].collections[0], ax=list(panels), aspect=30, pad=0.02)
        style.percent(bar.ax.yaxis)
    told = [f"{name}: " + ", ".join(f"{shares[row, column]:.0%} of “{classes[row]}” become “{classes[column]}”"
                                    for row, column in _strongest(shares)) for name, shares in maps.items()]
    return Picture(figure, "With the trigger on: " + "; ".join(told) + ".")


def attack_family(images: ImageSet, triggers: Mapping[str, nn.Module], shown: int = 0) -> Picture:
    """One image with each trigger on, and the amplified difference; below, the family and how much images change.

    images: number `shown` is drawn; the changes are root mean squares over all of them, in levels of 255. triggers: by
    name; names in `KINDS` get their family. Raises InputError for no trigger, or no image of that number.
    """
    require(0 <= shown < len(images), f"there is no image {shown} among {len(images)}.")
    require(len(triggers) > 0, "there is no trigger to show.")
    images = images.to("cpu")
    one, sizes = images.subset(torch.tensor([shown])), typical_changes(images, triggers)
    families = {name: KINDS.get(name, OTHER).family for name in triggers}
    order, wide = sorted(sizes, key=lambda name: sizes[name]), min(1.2, 7.2 / len(triggers))
    side = wide - 0.06
    with blank(1.75 + 2 * wide) as figure:
        clean = place(figure, 0.12, 0.5, side, side), place(figure, 0.12, 0.8 + wide, side, side)
        clean[1].set_axis_off()
        _write_column(clean, "clean", one.floats()[0], ("difference", "family", "levels\nof 255"), True)
        for column, (name, trigger) in enumerate(triggers.items()):
            left, marked = 8.33 - wide * (len(triggers) - column), one.triggered(trigger)[0]
            axes = place(figure, left, 0.5, side, side), place(figure, left, 0.8 + wide, side, side)
            difference, gain = amplified(one.floats()[0], marked)
            show_image(axes[1], difference)
            _write_column(axes, name, marked, (f"× {gain}", families[name], f"{sizes[name]:.1f}"), name == order[0])
    groups = [f"{family} ({', '.join(name for name in triggers if families[name] == family)})"
              for family in dict.fromkeys(families.values())]
    return Picture(figure, f"{order[0]} changes images least (by {sizes[order[0]]:.1f} of 255 levels, root mean square "
                           f"over {count(len(images), 'image')}), {order[-1]} most ({sizes[order[-1]]:.1f}); the "
                           f"families: {', '.join(groups)}.")


def _write_column(axes: tuple[Axes, Axes], name: str, image: Tensor, texts: tuple[str, str, str], bold: bool) -> None:
    """An image under its name; above the axes below it the gain, below them family and number (`bold` or not)."""
    show_image(axes[0], image)
    style.write(axes[0], plain(name).replace("_", "\n"), (0, 1), (0, 5), fontweight="bold", fontsize=8.5)
    look, weight = {"color": style.FAINT, "va": "top"}, "bold" if bold else "normal"
    style.write(axes[1], texts[0], (0, 1), (0, 14), **look)
    style.write(axes[1], texts[1].replace(" ", "\n"), (0, 0), (0, -6), **look)
    style.write(axes[1], texts[2], (0, 0), (0, -36), va="top", fontweight=weight)


def _strongest(shares: Tensor) -> list[tuple[int, int]]:
    """The two largest shares off the diagonal, in different rows."""
    off = shares.clone().fill_diagonal_(-1)
    rows = off.amax(1).argsort(descending=True, stable=True)[:2].tolist()
    return [(row, int(off[row].argmax())) for row in rows]
