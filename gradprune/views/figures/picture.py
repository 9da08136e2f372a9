"""What every plot returns: a figure and one sentence that states its finding from the data."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from gradprune.base.paths import write_atomic
from gradprune.datasets import ImageSet
from gradprune.pruning.filters import Filters
from gradprune.views.figures.style import ATTACKED, METRICS, RIGHT, WRONG, in_style

Row = Mapping[str, Any]
_SENTENCE = 480  # pixels: the sentence may be this wide below a narrower picture


@dataclass(repr=False)
class Picture:
    """A figure with its finding in one sentence, which is also its caption and alternative text.

    The last expression of a notebook cell shows both; `print` gives the sentence.
    """

    figure: Figure
    summary: str

    def png(self) -> bytes:
        """The figure as PNG."""
        buffer = io.BytesIO()
        with in_style():
            FigureCanvasAgg(self.figure).print_png(buffer)  # savefig would lay the figure out twice
        self.figure.set_layout_engine("none")  # the layout is final: drawn again, the PNG has the same bytes
        return buffer.getvalue()

    def save(self, path: str | Path) -> Path:
        """Write the figure as PNG, whole or not at all; raises InputError if that is impossible."""
        content = self.png()
        return write_atomic(path, lambda temporary: temporary.write_bytes(content))

    def html(self, png: bytes | None = None) -> str:
        """An HTML `<figure>` with the image embedded; pass `png` if it has been drawn already."""
        data, text = base64.b64encode(png or self.png()).decode(), html.escape(self.summary)
        width = round(self.figure.get_figwidth() * 100)
        widest = max(width, _SENTENCE)
        return (f'<figure style="margin:0.6em 0;max-width:{widest}px"><img src="data:image/png;base64,{data}" '
                f'alt="{text}" width="{width}" style="max-width:100%;height:auto;border-radius:4px">'
                f"<figcaption>{text}</figcaption></figure>")

    def _repr_html_(self) -> str:
        return self.html()

    __html__ = _repr_html_  # templates insert a picture unescaped

    def __str__(self) -> str:
        return self.summary

    __repr__ = __str__


# ---- the sentences


def change(name: str, before: float, after: float, form: str = ".1%") -> str:
    """How a value changed, in words: "ASR fell from 98.0% to 2.0%"."""
    first, last = format(before, form), format(after, form)
    if first == last:
        return f"{name} stayed at {last}"
    return f"{name} {'fell' if after < before else 'rose'} from {first} to {last}"


def changes(before: Row, after: Row) -> str:
    """How ACC, ASR and RA changed."""
    return ", ".join(change(mark.name, before[key], after[key]) for key, mark in METRICS.items())


def count(number: int, noun: str) -> str:
    """A number and its noun: "1 filter", "3 filters"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def per_class(spc: int) -> str:
    """"1 image per class", "10 images per class"."""
    return f"{count(spc, 'image')} per class"


def about_images(answers: Mapping[str, Sequence[Tensor]], images: ImageSet, wanted: Tensor) -> str:
    """How the models did on the images; answers: by model name, those to the clean and to the triggered images;
    wanted: the attacker's labels."""  # noqa: D209
    labels, others, parts = images.labels, images.labels != wanted, []
    aims = wanted.unique().tolist()
    aim = f"“{images.classes[aims[0]]}”" if len(aims) == 1 else "the next class"
    for name, (clean, triggered) in answers.items():
        hits, kept = int((triggered == wanted)[others].sum()), int((triggered == labels)[others].sum())
        right = f"{int((clean == labels).sum())} of {count(len(labels), 'clean image')} right"
        parts.append(f"{name[:1].upper()}{name[1:]}: {right}; with the trigger {hits} of {int(others.sum())} "
                     f"go to {aim} and {kept} are still right.")
    key = f"({RIGHT.symbol} right, {ATTACKED.symbol} the attacker's class, {WRONG.symbol} wrong)"
    return " ".join([*parts, key])


def about_scores(found: Filters, values: np.ndarray, ranking: Sequence[int], removed: Sequence[int], score: str) -> str:
    """Which filter leads the ranking and by how much, and what was removed."""
    first, middle = ranking[0], float(np.median(np.abs(values)))
    ratio = f", {values[first] / middle:,.0f} times the median" if middle > 0 else ""
    text = (f"{found[first]} has the highest {score} score of {count(len(found), 'filter')} in "
            f"{count(len(found.layers), 'layer')}: {values[first]:.3g}{ratio}")
    if removed:
        names = ", ".join(str(found[position]) for position in removed[:4]) + ", ..." * (len(removed) > 4)
        text += f"; {count(len(removed), 'removed filter')} marked by a cross: {names}"
    return text + "."


def about_rounds(rows: Sequence[Row], replayed: Sequence[Row] | None, kept: int | None) -> str:
    """What the kept state (the last one where none is named) gained over the given model."""
    last = rows[-1]["round"]
    if kept == 0:
        return "Nothing was pruned" + f": {count(last, 'round')} tried and undone" * (last > 0) + "."
    end = last if kept is None else kept
    after = next(row for row in rows if row["round"] == end)
    text = f"With {count(end, 'filter')} removed" + f" (kept of {count(last, 'round')} tried)" * (kept is not None)
    loss = "val_unlearning_loss"  # without a trigger there is none
    parts = [change("the validation unlearning loss", rows[0][loss], after[loss], ".3f")] if loss in after else []
    text += ", " + " and ".join([*parts, change("accuracy", rows[0]["val_acc"], after["val_acc"])])
    if replayed:
        tested = next(row for row in replayed if row["round"] == end)
        text += "; on test images " + changes(replayed[0], tested)
    return text + "."
