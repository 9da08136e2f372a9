"""The lower half of the game's figure: the player's results now and move by move, and the test results at the end."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradprune.evaluation import Metrics
from gradprune.views.figures import style
from gradprune.views.figures.drawing import place
from gradprune.views.figures.style import METRICS

_HIDDEN = "hidden until you finish:\nfigures that helped to choose\nno longer measure anything"


def draw_now(figure: Figure, rows: Sequence[Metrics], images: int) -> None:
    """ACC, ASR and RA on the player's images, large, with those of the given model below."""
    ax = place(figure, 0.15, 3.6, 2.6, 1.25)
    ax.set_axis_off()
    ax.set_title(f"Your {images} images, now", fontsize=style.NORMAL)
    for column, (key, mark) in enumerate(METRICS.items()):
        given, now = (f"{getattr(metrics, key):.0%}" for metrics in (rows[0], rows[-1]))
        style.write(ax, mark.name, (column / 3, 1), (0, -14), color=mark.color, fontweight="bold")
        style.write(ax, now, (column / 3, 1), (0, -40), color=mark.color, fontweight="bold", fontsize=16)
        style.write(ax, f"given {given}", (column / 3, 1), (0, -58), color=style.FAINT)


def draw_progress(figure: Figure, rows: Sequence[Metrics]) -> None:
    """ACC, ASR and RA on the player's images, move by move."""
    ax = place(figure, 3.3, 3.6, 1.75, 0.85)
    style.draw_lines(ax, range(len(rows)), {mark.name: ([getattr(row, key) for row in rows], mark)
                                            for key, mark in METRICS.items()}, shares=True)
    ax.set_title("Move by move", fontsize=style.NORMAL)
    ax.set_xlabel("filters silenced")
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.set_xlim(-0.1, max(1, len(rows) - 1))


def draw_test(ax: Axes, test: Mapping[str, Metrics] | None) -> None:
    """A table of the test results by player, or why there is none yet."""
    ax.set_axis_off()
    ax.set_title("Test figures", fontsize=style.NORMAL)
    if test is None:
        style.write(ax, _HIDDEN, (0, 1), (0, -6), va="top", color=style.FAINT)
        return
    for row, name in enumerate(test):
        style.write(ax, name, (0, 1), (0, -30 - 18 * row))
    for right, (key, mark) in zip((0.5, 0.75, 1.0), METRICS.items(), strict=True):
        style.write(ax, mark.name, (right, 1), (0, -12), ha="right", color=mark.color, fontweight="bold")
        for row, metrics in enumerate(test.values()):
            text = f"{getattr(metrics, key):.1%}"
            style.write(ax, text, (right, 1), (0, -30 - 18 * row), ha="right", color=mark.color)
