"""The trigger studio's picture: an image before and after, their difference, the answers, and the sentences."""

import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from torch import Tensor

from gradprune.views.figures import style
from gradprune.views.figures.drawing import answer_bars, blank, judge, place, show_image, written
from gradprune.views.figures.example_images import amplified, difference
from gradprune.views.figures.style import CLEAN, TRIGGERED

_SIDE, _LEFT, _FIRST, _HIGH = 1.68, 0.15, 3.35, 2.85  # inches: an image, the left edge, the first row, each further row
_BESIDE = _LEFT + 3 * (_SIDE + 0.12) + 0.1


class Row(NamedTuple):
    """An image before and after: images float (2, C, H, W) in [0, 1], chances float (2, classes), its true class.

    wanted: the attacker's class for it, -1 for none. title: what the row shows; "" for the trigger itself.
    """

    images: Tensor
    chances: Tensor
    truth: int
    wanted: int
    title: str = ""


def draw_rows(rows: Sequence[Row], classes: Sequence[str]) -> Figure:
    """Each row's two images with the answers below, and their amplified difference.

    The first row has the probability of each class beside it, the others have their titles.
    """
    with blank(_FIRST + _HIGH * (len(rows) - 1)) as figure:
        for line, row in enumerate(rows):
            top = 0.42 + (_FIRST + _HIGH * (line - 1)) * bool(line)
            draw_row(figure, row, classes, top, _SIDE, "changed" if line else "triggered")
            if line:
                beside = place(figure, _BESIDE, top, 2.4, _SIDE)
                beside.set_axis_off()
                style.write(beside, textwrap.fill(row.title, 34), (0, 1), (0, 0), va="top", fontsize=style.NORMAL)
            else:
                answer_bars(place(figure, 6.85, top, 1.05, 2.75), row.chances.numpy(), classes, row.truth, row.wanted)
    return figure


def draw_row(figure: Figure, row: Row, classes: Sequence[str], top: float, side: float, after: str) -> None:
    """An image before and `after`, each with the answer below, and their amplified difference; `side` in inches."""
    (shown, gain), changed = amplified(*row.images), difference(*row.images)
    fontsize, limit = (style.LARGE, 18) if side > 1.5 else (style.SMALL, 16)
    columns = ((row.images[0], "● clean", CLEAN.color), (row.images[1], f"◆ {after}", TRIGGERED.color),
               (shown, f"difference × {gain}", style.INK))
    for column, (image, title, color) in enumerate(columns):
        ax = place(figure, _LEFT + column * (side + 0.12), top, side, side)
        show_image(ax, image)
        ax.set_title(title, color=color)
        if column == 2:
            told = f"{changed.pixels:,} of {changed.of:,} pixels\nby {changed.mean:.0f} of 255 levels"
            style.write(ax, f"grey: none\n{told}", (0, 0), (0, -7), va="top", color=style.FAINT)
            continue
        answer = int(row.chances[column].argmax())
        verdict = judge(answer, row.truth, row.wanted if column else row.truth)
        style.write(ax, f"{verdict.symbol} {written(answer, classes, limit)}", (0, 0), (0, -16), color=verdict.color,
                    fontsize=fontsize, fontweight="bold")
        style.write(ax, f"{row.chances[column, answer]:.1%} sure", (0, 0), (0, -31), color=verdict.color)


def tell(rows: Sequence[Row], named: Callable[[int], str], image: str, trigger: str, idea: str) -> list[str]:
    """What the rows show, a sentence or two for each; `trigger` in words, `idea` in half a sentence or ""."""
    first, answers = rows[0], [_answer(row, named) for row in rows]
    changed = difference(*first.images)
    end = ", the attacker's class" if first.chances[1].argmax() == first.wanted != first.truth else ""
    told = [f"{image}, true class “{named(first.truth)}”: clean, it is taken for {answers[0][0]}, with {trigger} for "
            f"{answers[0][1]}{end}.",
            f"{changed.pixels:,} of {changed.of:,} pixels change, by {changed.mean:.0f} of 255 levels on average "
            f"(the difference is shown × {amplified(*first.images)[1]})" + f": {idea}" * bool(idea) + "."]
    return told + [f"Below: {row.title[:1].lower()}{row.title[1:]}; it was taken for {before} and is now taken for "
                   f"{after}; its label stays “{named(row.truth)}”."
                   for row, (before, after) in zip(rows[1:], answers[1:], strict=True)]


def _answer(row: Row, named: Callable[[int], str]) -> list[str]:
    return [f"“{named(int(chance.argmax()))}” ({chance.amax():.1%})" for chance in row.chances]
