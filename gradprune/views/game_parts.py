"""The lower half of the game's figure: validation figures move by move, and the test figures at the end."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradprune.evaluation import Metrics
from gradprune.pruning import Validation
from gradprune.views import style
from gradprune.views.panel_parts import place
from gradprune.views.style import CLEAN, METRICS, TRIGGERED

_HIDDEN = "hidden until you finish:\nfigures that helped to choose\nno longer measure anything"


def draw_progress(figure: Figure, rows: Sequence[Validation]) -> None:
    """Losses and accuracy on the validation images after each removal."""
    losses, accuracy = place(figure, 0.45, 3.55, 1.9, 1.25), place(figure, 3.85, 3.55, 1.45, 1.25)
    style.draw_lines(losses, range(len(rows)), {"unlearning": ([row.unlearning_loss for row in rows], TRIGGERED),
                                                "clean": ([row.clean_loss for row in rows], CLEAN)})
    style.draw_lines(accuracy, range(len(rows)), {"": ([row.acc for row in rows], METRICS["acc"])}, shares=True)
    for ax, title in ((losses, "Validation losses"), (accuracy, "Validation accuracy")):
        ax.set_title(title, fontsize=style.NORMAL)
        ax.set_xlabel("filters removed")
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.set_xlim(-0.1, max(1, len(rows) - 1))


def draw_test(ax: Axes, test: Mapping[str, Metrics] | None) -> None:
    """A table of the test figures by player, or why there is none yet."""
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
