"""Images clean and triggered: how much they differ, in numbers and as a picture, and what models answer."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from gradprune.attacks.poisoning import LABEL_MAPS, attack_labels
from gradprune.base.errors import require
from gradprune.datasets import ImageSet
from gradprune.models.inference import predict
from gradprune.views.figures import style
from gradprune.views.figures.drawing import judge, show_image, write_answer, written
from gradprune.views.figures.picture import Picture, about_images
from gradprune.views.figures.style import plain

_LEVEL = 1 / 255  # the smallest step of a stored image

def examples(models: nn.Module | Mapping[str, nn.Module], images: ImageSet, trigger: nn.Module, target: int,
             columns: int = 6, label_map: str = LABEL_MAPS[0]) -> Picture:
    """Clean images, triggered images and their difference, with each model's answer and confidence.

    models: one model, or several by name ({"before": ..., "after": ...}) to compare. images: all are shown if
    there are at most `columns`, otherwise the first one of each class, the target's last. target: the
    attacker's class; label_map: as in `attacks.poisoning`; with all-to-all, the attacker's class is each image's next.
    Raises InputError for an empty set, a target out of range or a trigger that changes the images' shape or range.
    """
    require(len(images) > 0, "there is no image to show.")
    images.check_target(target)
    images = images.to("cpu")
    if len(images) > columns:
        first = first_of_each(images, 1)
        images = first.subset((first.labels == target).int().argsort(stable=True)[:columns])
    named = dict(models) if isinstance(models, Mapping) else {"the model": models}
    wanted = attack_labels(images, target, label_map)
    clean, triggered = images.floats(), images.triggered(trigger)
    chances = {name: [predict(model, pixels).softmax(1).cpu() for pixels in (clean, triggered)]
               for name, model in named.items()}
    shown, gain = amplified(clean, triggered)
    rows = {"clean": clean, "triggered": triggered, f"difference × {gain}\n(grey: none)": shown}
    width, height = max(3.2, 1.5 + 1.15 * len(images)), 3.9 + 0.82 * (len(named) - 1)
    with style.sheet(height, 3, len(images), width) as (figure, panels):
        grid = np.reshape(np.array(panels), (3, -1))
        for row, (axes, title, pixels) in enumerate(zip(grid, rows, rows.values(), strict=True)):
            style.write(axes[0], title, (0, 0.5), (-18, 0), ha="right", va="center", fontweight="bold")
            for ax, picture in zip(axes, pixels, strict=True):
                show_image(ax, picture)
            for line, name in enumerate(named if row < 2 else ()):
                below = 14 + 29 * line
                _write_answers(axes, below, chances[name][row], images, wanted if row else None)
                if len(named) > 1:
                    style.write(axes[0], plain(name, 14), (0, 0), (-18, -below), ha="right", color=style.FAINT)
    answers = {name: [chance.argmax(1) for chance in pair] for name, pair in chances.items()}
    return Picture(figure, about_images(answers, images, wanted))


def first_of_each(images: ImageSet, each: int) -> ImageSet:
    """The first `each` images of every class that has some, class by class."""
    found = [(images.labels == label).nonzero()[:each, 0] for label in range(len(images.classes))]
    return images.subset(torch.cat(found))


def _write_answers(axes: Sequence[Axes], below: float, chances: Tensor, images: ImageSet,
                   wanted: Tensor | None) -> None:
    """Write answers and confidences under a row of images; wanted: the attacker's labels, if the trigger is on."""
    aims = [None] * len(images) if wanted is None else wanted.tolist()
    for ax, chance, truth, aim in zip(axes, chances, images.labels.tolist(), aims, strict=True):
        answer = int(chance.argmax())
        write_answer(ax, judge(answer, truth, aim), written(answer, images.classes, 14), float(chance[answer]), below)


class Difference(NamedTuple):
    """pixels: how many of `of` pixels change by half a level or more in a channel. The others are in levels of 255.

    mean: mean absolute change of these pixels, over their channels. typical: root mean square over all pixels of the
    image.
    """

    pixels: int
    of: int
    mean: float
    typical: float


def difference(clean: Tensor, triggered: Tensor) -> Difference:
    """Compare an image without and with a trigger; float (C, H, W) in [0, 1]."""
    change = (triggered - clean).abs()
    changed = change.amax(0) >= _LEVEL / 2
    pixels = int(changed.sum())
    mean = change[:, changed].mean().item() / _LEVEL if pixels else 0.0
    return Difference(pixels, changed.numel(), mean, change.square().mean().sqrt().item() / _LEVEL)


def typical_changes(images: ImageSet, triggers: Mapping[str, nn.Module]) -> dict[str, float]:
    """How much each trigger changes the images: root mean square over all of them, in levels of 255."""
    clean = images.floats()
    return {name: (images.triggered(trigger) - clean).square().mean().sqrt().item() / _LEVEL
            for name, trigger in triggers.items()}


def amplified(clean: Tensor, triggered: Tensor) -> tuple[Tensor, int]:
    """The change of images as a picture, grey where there is none, and how many times it is amplified (1..8).

    clean, triggered and the picture: float, of one shape, in [0, 1]. The gain is the largest that keeps it in range.
    """
    change = triggered - clean
    gain = int(max(1, min(8, 1 / max(1e-6, change.abs().max().item()))))
    return (0.5 + 0.5 * gain * change).clamp(0, 1), gain
