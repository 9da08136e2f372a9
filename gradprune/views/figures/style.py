"""One look for every figure: what each colour, marker and line style means, and the blank figure to draw on.

Colours are Okabe & Ito's, safe for the colour-blind (red and green a little darker, for text), and one purple
of Paul Tol's; each comes with a marker and a line style, so that no figure depends on colour alone.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple, cast

import matplotlib
import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import FuncNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import PercentFormatter


class Mark(NamedTuple):
    """How one quantity looks everywhere, and what it is called."""

    color: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]
    name: str
    meaning: str


METRICS = {
    "acc": Mark("#0072B2", "o", "-", "ACC", "clean images recognised"),
    "asr": Mark("#C45500", "^", "--", "ASR", "triggered images sent to the target"),
    "ra": Mark("#007F5C", "s", "-.", "RA", "triggered images recognised"),
}
CLEAN = Mark("#4A5560", "o", "-", "clean", "images as they are")
TRIGGERED = Mark("#AA3377", "D", (0, (3, 1)), "triggered", "images with the trigger on")
TRAINING = Mark("#1F2328", "o", "-", "training", "images of the training set")


class Verdict(NamedTuple):
    """How a prediction is marked: by colour and by symbol."""

    color: str
    symbol: str


RIGHT = Verdict(METRICS["ra"].color, "\N{CHECK MARK}")
ATTACKED = Verdict(METRICS["asr"].color, "\N{BLACK FLAG}")
WRONG = Verdict("#4A5560", "\N{BALLOT X}")

INK, FAINT, PAPER, EMPTY = "#1F2328", "#667078", "#FFFFFF", "#EDEFF1"
REMOVED: dict[str, Any] = {"marker": "X", "c": "black", "edgecolors": "white", "linewidths": 0.8, "zorder": 4}
SELECTED: dict[str, Any] = {"fill": False, "edgecolor": "black", "linewidth": 1.8, "zorder": 3,
                            "path_effects": [withStroke(linewidth=4, foreground="white")]}
GUESS: dict[str, Any] = {"color": INK, "linewidth": 1.4, "linestyle": (0, (1, 1.5)), "zorder": 4}  # a learner's guess
HALO = [withStroke(linewidth=3, foreground=PAPER)]  # around names that overlap lines and dots
_LINE = 11.0  # points between one small name and the next below it
SMALL, NORMAL, LARGE = 9, 10, 11.5  # points; shown at 100 pixels per inch, so that 9 points are 12.5 pixels
WIDTH = 8.4  # inches of 100 pixels: as wide as a page of a notebook
DPI = 150  # 1.5 pixels for each one shown: sharp on high-resolution screens, fast enough for sliders

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": NORMAL, "text.color": INK, "text.usetex": False,
    "figure.facecolor": PAPER, "axes.facecolor": PAPER, "savefig.facecolor": PAPER, "savefig.bbox": None,
    "savefig.transparent": False, "axes.edgecolor": FAINT, "axes.labelcolor": INK, "axes.labelsize": SMALL,
    "axes.titlesize": LARGE, "axes.titlecolor": INK, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "axes.titlepad": 8.0, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": False,
    "axes.axisbelow": True, "axes.linewidth": 0.8, "grid.color": "#DDE1E5", "grid.linewidth": 0.8,
    "grid.linestyle": "-", "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "xtick.labelsize": SMALL, "ytick.labelsize": SMALL, "lines.linewidth": 2.0, "lines.markersize": 5.0,
    "lines.markeredgewidth": 0.0, "image.interpolation": "nearest", "legend.frameon": False, "legend.fontsize": SMALL,
}


def in_style() -> Any:
    """A context in which artists are made and drawn in our style, whatever style the user has set."""
    return matplotlib.rc_context(_RC)  # type: ignore[arg-type]


@contextmanager
def sheet(height: float, rows: int = 1, columns: int = 1, width: float = WIDTH,
          **grid: Any) -> Iterator[tuple[Figure, Any]]:
    """A new figure in our style, unknown to pyplot, with its axes row by row; sizes in inches of 100 pixels."""
    with in_style():
        figure = Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
        yield figure, list(figure.subplots(rows, columns, squeeze=False, **grid).flat)


@cache
def _letters() -> frozenset[int]:
    return frozenset(get_font(findfont(str(_RC["font.family"]))).get_charmap())


def drawable(text: str) -> bool:
    """Whether our font has all letters of a text: missing ones would be drawn as boxes."""
    return {ord(letter) for letter in text if letter.isprintable()} <= _letters()


def plain(text: object, limit: int = 24, tail: bool = False) -> str:
    """A user's name as literal text on one line: no mathematics, letters that our font lacks escaped, at most `limit`
    characters, the first or (`tail`) the last: layers of a deep network differ at the end."""  # noqa: D209
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    line = "".join(c if ord(c) in _letters() else c.encode("ascii", "backslashreplace").decode() for c in line)
    if len(line) > limit:
        line = f"\u2026{line[1 - limit:]}" if tail else f"{line[:limit - 1]}\u2026"
    return line.replace("$", r"\$")


def plain_lines(text: object, width: int = 20, lines: int = 2) -> str:
    """A user's name on up to `lines` lines of `width` characters, literal as in `plain`; the rest is cut."""
    parts = textwrap.wrap(str(text), width, max_lines=lines, placeholder="\N{HORIZONTAL ELLIPSIS}")
    return "\n".join(plain(part, width) for part in parts)


def score_colors(values: np.ndarray) -> tuple[ScalarMappable, str]:
    """Colours for scores, and a note on the scale: a root where one huge score would flatten all others.

    Scores with negative values get a map centred at 0, others one from light to dark. The darkest colour stands for
    at least 1, a fall of the loss by 1, so that the scores of an honest model, hundreds of times smaller, stay pale.
    """
    sizes = np.abs(values)
    peak = sizes.max() or 1.0
    middle = np.median(sizes[sizes > 0]) / peak if sizes.any() else 1.0
    root = next((root for root in (1, 2, 3) if middle ** (1 / root) >= 0.1), 4)
    signed = bool(values.min() < 0)
    scale = (lambda v: np.sign(v) * np.abs(v) ** (1 / root)), (lambda v: np.sign(v) * np.abs(v) ** root)
    limit = max(peak, 1.0)
    norm = FuncNorm(scale, -limit if signed else 0.0, limit)
    colors = seaborn.color_palette("vlag" if signed else "rocket_r", as_cmap=True)
    name = {1: "", 2: "square", 3: "cube", 4: "fourth"}
    return ScalarMappable(norm, colors), f"; {name[root]}-root colour scale" if root > 1 else ""


def score_bar(ax: Axes, colors: ScalarMappable) -> None:
    """A colour bar for scores to the right of the axes, with five numbers at most."""
    bar = ax.figure.colorbar(colors, cax=ax.inset_axes((1.012, 0, 0.016, 1)))
    values = colors.norm.inverse(np.linspace(0, 1, 5))  # type: ignore[attr-defined]
    bar.set_ticks(values, labels=[f"{value:.2g}" for value in values])
    bar.ax.tick_params(length=2, labelsize=SMALL)
    bar.outline.set_visible(False)


def draw_lines(ax: Axes, x: Sequence[float], series: Mapping[str, tuple[Sequence[float], Mark]],
               shares: bool = False) -> None:
    """Lines with their names at the right ends ("" for none); `shares` fixes the axis to 0..100 %."""
    for values, mark in series.values():
        ax.plot(x, values, color=mark.color, marker=mark.marker, linestyle=mark.line, clip_on=False, zorder=3,
                markevery=max(1, len(x) // 25))
    ax.grid(axis="y")
    ax.margins(x=0.012)
    if shares:
        ax.set(ylim=(0, 1), yticks=[0, 0.5, 1])
        percent(ax.yaxis)
    else:
        ax.set_ylim(bottom=0)
    ends = [values[-1] for values, _ in series.values()]
    high = _LINE * cast(Figure, ax.figure).dpi / 72 / ax.bbox.height  # a name's height as a share of the panel's
    gap = min(max(0.12, high), 1 / len(ends))
    for height, (name, (_, mark)) in zip(spread(ends, *ax.get_ylim(), gap), series.items(), strict=True):
        label(ax, name, (x[-1], height), (10, 0), va="center", color=mark.color, fontweight="bold",
              path_effects=HALO)  # at 0 a name overlaps the axis


def bare(ax: Axes) -> None:
    """Remove the frame and the ticks, but not their labels."""
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def rule(ax: Axes, x: float, text: str, lift: float = 3, ha: str = "center", **look: Any) -> None:
    """A vertical line at a data position, its name `lift` points above the axes."""
    ax.axvline(x, **look)
    label(ax, text, (x, 1), (0, lift), xycoords=("data", "axes fraction"), ha=ha, color=look["color"])


def name_rows(ax: Axes, names: Sequence[str], **look: Any) -> None:
    """A row for each name, from top to bottom."""
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_yticks(range(len(names)), names, **look)
    ax.tick_params(axis="y", length=0)


def draw_values(ax: Axes, rows: Sequence[float], values: Sequence[float], mark: Mark, form: str = ".1%",
                fontsize: float = NORMAL) -> None:
    """A thin bar from 0 to each value, with its marker at the end and the value beside it."""
    ax.barh(rows, values, height=0.14, color=mark.color)
    ax.scatter(values, rows, s=60, color=mark.color, marker=mark.marker, clip_on=False, zorder=3)
    for row, value in zip(rows, values, strict=True):
        label(ax, format(value, form), (value, row), (8, 0), va="center", fontweight="bold", color=mark.color,
              fontsize=fontsize)


def draw_range(ax: Axes, row: float, ends: Sequence[float], points: Sequence[float], color: str, marker: str,
               hollow: bool = False) -> None:
    """A row of points on a line from the lowest to the highest of `ends`."""
    ax.plot([min(ends), max(ends)], [row, row], color=color, linewidth=2, zorder=2)
    ax.scatter(points, [row] * len(points), s=44, marker=marker, facecolors=PAPER if hollow else color, zorder=3,
               edgecolors=color, linewidths=1.2, alpha=0.9, clip_on=False)


def draw_mean(ax: Axes, row: float, mean: float) -> None:
    """A vertical bar at the mean of a row."""
    ax.plot([mean, mean], [row - 0.3, row + 0.3], color=INK, linewidth=2.2, zorder=4, clip_on=False)


def spread(places: Sequence[float], low: float, high: float, gap: float = 0.12) -> list[float]:
    """Move label heights as little as possible until they are `gap` of the axis apart, inside low..high."""
    step, order = gap * (high - low), np.argsort(places, kind="stable")
    blocks: list[list[float]] = []  # labels that touch form a block around their common middle
    for rank, i in enumerate(order):
        blocks.append([places[i] - rank * step])
        while len(blocks) > 1 and np.mean(blocks[-2]) >= np.mean(blocks[-1]):
            joined = blocks.pop()
            blocks[-1] += joined
    room, moved = step * np.arange(len(places)), np.zeros(len(places))
    heights = np.array([np.mean(block) for block in blocks for _ in block]) + room
    moved[order] = heights.clip(low + room, high - room[::-1])
    return moved.tolist()


def mark_kept(panels: Sequence[Axes], kept: float, text: str) -> None:
    """A vertical line through all panels at the state that was kept, its label over the first one."""
    for ax in panels:
        ax.axvline(kept, color=INK, linewidth=1.2, zorder=2)
    side = "right" if kept > sum(panels[0].get_xlim()) / 2 else "left"
    label(panels[0], text, (kept, 1), (0, 5), xycoords=("data", "axes fraction"), ha=side, fontweight="bold")


def percent(axis: Axis, digits: int = 0) -> None:
    """Shares on an axis in per cent."""
    axis.set_major_formatter(PercentFormatter(1, digits))


def label(ax: Axes, text: str, place: Any, offset: tuple[float, float], **look: Any) -> None:
    """Small text at a data position, moved by an offset in points; it may be outside the axes."""
    ax.annotate(text, place, offset, textcoords="offset points",
                **{"fontsize": SMALL, "annotation_clip": False, **look})


def write(ax: Axes, text: str, place: tuple[float, float], offset: tuple[float, float], **look: Any) -> None:
    """Small text at a position in the axes (0..1), moved by an offset in points; it may be outside the axes."""
    label(ax, text, place, offset, xycoords="axes fraction", **{"linespacing": 1.4, **look})
