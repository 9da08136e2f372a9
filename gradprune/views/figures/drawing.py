"""The parts of a panel: a figure with fixed places, its image, the red error message, a table."""

import base64
import html
import io
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from gradprune.base.errors import InputError
from gradprune.datasets import class_name
from gradprune.pruning.filters import Filters
from gradprune.views.figures import style
from gradprune.views.figures.picture import Picture

ERROR_CLASS = "gradprune-error"  # the class of the red message, for which tests search a page


@contextmanager
def blank(height: float) -> Iterator[Figure]:
    """An empty figure in our style, without automatic layout: `place` puts axes on it."""
    with style.in_style():
        yield Figure(figsize=(style.WIDTH, height), dpi=style.DPI)


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches from the upper left corner."""
    total = figure.get_figheight()
    return figure.add_axes((left / style.WIDTH, 1 - (top + height) / total, width / style.WIDTH, height / total))


def heading(figure: Figure, text: str) -> None:
    """The title of a `blank` figure, in its upper left corner."""
    figure.text(0.15 / style.WIDTH, 1 - 0.27 / figure.get_figheight(), text, fontsize=style.LARGE, fontweight="bold")


def show_image(ax: Axes, image: Tensor, alpha: float = 1) -> None:
    """An image, float (C, H, W) in [0, 1], without ticks."""
    ax.imshow(image.permute(1, 2, 0).squeeze(2).cpu().numpy(), cmap="gray", vmin=0, vmax=1, alpha=alpha)
    ax.set_axis_off()


def written(answer: int, classes: Sequence[str], limit: int = 24) -> str:
    """The name of a class for a figure, on one line; its number where our font lacks one of its letters."""
    name = class_name(answer, classes)
    return style.plain(name, limit) if style.drawable(name) else f"class {answer}"


def bands_of(found: Filters, columns: int, gap: float = 0) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Each filter's column and line, (filters, 2), in one band per layer; and the upper and lower edge of each band."""
    places, edges, upper = [], [], 0.0
    for layer in found.layers:
        index = np.arange(layer.count)
        places.append(np.stack([index % columns, upper + index // columns], 1))
        edges.append((upper, upper - (-layer.count // columns)))
        upper = edges[-1][1] + gap
    return np.concatenate(places), edges


def with_room(ax: Axes, places: Sequence[float], points: float = style.SMALL, across: bool = False) -> list[int]:
    """Which of the places along the vertical (`across`: the horizontal) axis can be named, `points` apart at least."""
    ends, size = (ax.get_xlim(), ax.bbox.width) if across else (ax.get_ylim(), ax.bbox.height)
    gap = points * style.DPI / 72 * abs(ends[1] - ends[0]) / size
    named: list[int] = []
    for number, place in enumerate(places):
        if not named or place - places[named[-1]] >= gap:
            named.append(number)
    return named


def draw_cells(ax: Axes, corners: np.ndarray, values: np.ndarray, colors: ScalarMappable, removed: Sequence[int] = (),
               edge: str = style.PAPER) -> None:
    """A square cell at each upper left corner (N, 2), coloured by its value, with crosses on the removed ones."""
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
    cells = PolyCollection(list(corners[:, None] + square), edgecolors=edge, linewidths=0.4)
    cells.set(array=values, cmap=colors.cmap, norm=colors.norm)
    ax.add_collection(cells)
    x, y = (corners[list(removed)] + 0.5).T
    ax.scatter(x, y, s=34, label="removed", **style.REMOVED)
    style.bare(ax)


def judge(answer: int, truth: int, target: int | None) -> style.Verdict:
    """How to mark an answer: right, the attacker's class (None: there is none), or wrong."""
    return style.RIGHT if answer == truth else style.ATTACKED if answer == target else style.WRONG


def write_answer(ax: Axes, verdict: style.Verdict, name: str, sure: float, below: float) -> None:
    """The answer to an image with its mark, and its probability, on two lines that begin `below` points under it."""
    for line, text in enumerate((f"{verdict.symbol} {name}", f"{sure:.0%}")):
        style.write(ax, text, (0.5, 0), (0, -below - 11 * line), ha="center", color=verdict.color)


def answer_bars(ax: Axes, chances: np.ndarray, names: Sequence[str], truth: int, target: int) -> None:
    """Probabilities (2, classes) as a pair of bars for each class; the true one and the attacker's are marked."""
    chances = chances[:, :len(names)]
    weight = chances.max(0) + 2.0 * np.isin(np.arange(len(names)), (truth, target))
    shown = sorted(np.argsort(-weight, kind="stable")[:12].tolist())  # more do not fit
    for offset, values, mark in zip((-0.2, 0.2), chances[:, shown], (style.CLEAN, style.TRIGGERED), strict=True):
        drawn = ax.barh(np.arange(len(shown)) + offset, values, height=0.32, color=mark.color)
        texts = [f"{value:.0%}" if value >= 0.05 else "" for value in values]
        ax.bar_label(drawn, texts, padding=4, fontsize=7.5, color=mark.color)
    signs = {target: f"{style.ATTACKED.symbol} ", truth: f"{style.RIGHT.symbol} "}
    labels = [signs.get(c, "") + written(c, names, 18) for c in shown]
    ax.set(xlim=(0, 1), xticks=[])
    style.name_rows(ax, labels)
    for label, c in zip(ax.get_yticklabels(), shown, strict=True):
        label.set_color(style.RIGHT.color if c == truth else style.ATTACKED.color if c == target else style.INK)
    ax.spines["bottom"].set_visible(False)
    ax.set_title("The model's answer", x=-0.75)


def image_html(picture: Picture) -> str:
    """The figure as an image that does not shift the page: its size is known before it is decoded."""
    canvas, buffer = FigureCanvasAgg(picture.figure), io.BytesIO()
    with style.in_style():
        canvas.draw()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(buffer, "png", compress_level=1)
    FigureCanvasBase(picture.figure)  # frees the pixels now, not at garbage collection
    width, height = (round(100 * size) for size in picture.figure.get_size_inches())
    return (f'<img alt="{html.escape(picture.summary)}" decoding="sync" width="{width}" height="{height}" '
            f'style="max-width:100%;height:auto;border-radius:4px;display:block" '
            f'src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">')


def error_html(error: Exception) -> str:
    """The red message: one sentence for bad input; for any other error its type, with the traceback below."""
    told = html.escape(str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}")
    if not isinstance(error, InputError):
        trace = html.escape("".join(traceback.format_exception(error)))
        told += ('<details><summary>Traceback</summary><pre style="color:#fff;background:none;max-height:240px;'
                 f'overflow:auto;margin:6px 0 0;font-size:12px;line-height:1.35">{trace}</pre></details>')
    return (f'<div class="{ERROR_CLASS}" role="alert" style="background:#b3261e;color:#fff;border-radius:4px;'
            f'padding:8px 12px;line-height:1.45"><b>This did not work.</b> {told}</div>')


def table_html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A small table in the colours of the page, light or dark; the first column is text, the others figures."""
    def cells(tag: str, texts: Sequence[str]) -> str:
        return "".join(f'<{tag} style="padding:2px 14px 2px 0;text-align:{"right" if i else "left"};'
                       f'border-bottom:1px solid rgba(128,128,128,.4)">{html.escape(text)}</{tag}>'
                       for i, text in enumerate(texts))
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (f'<table role="status" style="border-collapse:collapse;line-height:1.45;font-variant-numeric:tabular-nums">'
            f"<thead><tr>{cells('th', head)}</tr></thead><tbody>{body}</tbody></table>")
