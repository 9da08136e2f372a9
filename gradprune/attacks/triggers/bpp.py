"""BppAttack (Wang et al., 2022, arXiv:2205.13383): fewer colours, dithered; no pattern.

With the paper's 8 levels the difference is hard to see. The shipped models need 3 (signs) and 5 (photographs), where it
is obvious: see docs/decisions/attacks.md.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from gradprune.attacks.triggers.trigger import Trigger
from gradprune.base.errors import require


class Bpp(Trigger):
    """Every channel rounded to `levels` values, with the rounding errors spread over the neighbours (Floyd-Steinberg).

    levels: values a channel can take, 2..256 (the paper's squeezing to d bits is 2**d levels).
    dither: spread the errors, as the paper does; without it, plain rounding leaves visible steps.
    decoys: for each poisoned image, this many others get the rounding errors of a WRONG image and keep their label:
        the paper's negative samples, which stop the model from reacting to any faint noise.
    """

    name = "bpp"
    published: ClassVar[Mapping[str, float]] = {"levels": 8}

    def __init__(self, levels: int = 8, dither: bool = True, decoys: float = 1.0) -> None:
        super().__init__(levels=levels, dither=dither, decoys=decoys)
        require(2 <= levels <= 256, f"levels must lie in 2..256, got {levels}.")
        self.levels, self.dither, self.decoys = levels, dither, decoys

    def stamp(self, images: Tensor) -> Tensor:
        """Quantise."""
        top = self.levels - 1
        return dithered(images, top) if self.dither else (images * top).round() / top

    def decoy(self, images: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
        """Images with the rounding errors of others."""
        return (images + self(others) - others).clamp(0, 1)


def dithered(images: Tensor, top: int) -> Tensor:
    """Error-diffusion dithering (Floyd & Steinberg, 1976) to the values 0, 1/top, ..., 1.

    images: float (N, C, H, W) in [0, 1] -> the same shape. A pixel needs the errors of its left neighbour and of the
    three above; pixels with the same column + 2 * row do not depend on each other, so they are done in one step.
    """
    height, width = images.shape[2:]
    work = images.new_zeros(height + 1, width + 2, *images.shape[:2])  # with a border for the errors beyond the edge
    work[:height, 1:-1] = images.permute(2, 3, 0, 1) * top  # pixels first, so that values read together are adjacent
    all_rows = torch.arange(height, device=images.device)
    for front in range(width + 2 * height - 2):
        rows = all_rows[max(0, (front - width + 2) // 2):front // 2 + 1]
        columns = front - 2 * rows + 1
        value = work[rows, columns]
        rounded = value.round().clamp(0, top)
        work[rows, columns] = rounded
        error = value - rounded
        for down, right, share in ((0, 1, 7 / 16), (1, -1, 3 / 16), (1, 0, 5 / 16), (1, 1, 1 / 16)):
            work[rows + down, columns + right] += share * error
    return work[:height, 1:-1].permute(2, 3, 0, 1).contiguous() / top
