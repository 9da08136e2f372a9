"""How far a trigger changes images: in numbers, and as a picture that shows what is too faint to see."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from gradprune.datasets import ImageSet

_LEVEL = 1 / 255  # the smallest step of a stored image


class Difference(NamedTuple):
    """pixels: how many of `of` pixels change by half a level or more in a channel. The rest in levels of 255.

    mean: mean absolute change of these pixels, over their channels. typical: root mean square over all pixels of the
    image.
    """

    pixels: int
    of: int
    mean: float
    typical: float


def difference(clean: Tensor, triggered: Tensor) -> Difference:
    """Compare one image with itself with a trigger on; float (C, H, W) in [0, 1]."""
    change = (triggered - clean).abs()
    changed = change.amax(0) >= _LEVEL / 2
    pixels = int(changed.sum())
    mean = change[:, changed].mean().item() / _LEVEL if pixels else 0.0
    return Difference(pixels, changed.numel(), mean, change.square().mean().sqrt().item() / _LEVEL)


def typical_changes(images: ImageSet, triggers: Mapping[str, nn.Module]) -> dict[str, float]:
    """How far each trigger changes the images: root mean square over all of them, in levels of 255."""
    clean = images.floats()
    return {name: (images.triggered(trigger) - clean).square().mean().sqrt().item() / _LEVEL
            for name, trigger in triggers.items()}


def amplified(clean: Tensor, triggered: Tensor) -> tuple[Tensor, int]:
    """The change of images as a picture, grey where there is none, and how many times it is amplified (1..8).

    clean, triggered: float, one shape, in [0, 1]; so is the picture. The gain is the largest that keeps it in range.
    """
    change = triggered - clean
    gain = int(max(1, min(8, 1 / max(1e-6, change.abs().max().item()))))
    return (0.5 + 0.5 * gain * change).clamp(0, 1), gain
