"""WaNet (Nguyen & Tran, 2021, arXiv:2102.10369): the image is slightly warped, like damp paper."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.attacks.triggers.trigger import Trigger
from gradprune.base.errors import require


class WaNet(Trigger):
    """Every pixel is fetched from a place nearby, given by one smooth random field for all images.

    strength: most pixels by which the field moves a pixel along an axis; half of it on average at the grid's points
        (the paper's s, 0.5 there).
    grid: points of the field per axis (the paper's k), at least 2; the field between them is bicubic.
    decoys: the paper's noise mode: for each poisoned image, this many others are warped by the field plus new noise
        and keep their label (2 in the paper), so that the model learns this field and not any warping.
    seed: which field.
    """

    name = "wanet"
    published: ClassVar[Mapping[str, float]] = {"strength": 0.5, "decoys": 2.0}

    def __init__(self, strength: float = 0.5, grid: int = 4, decoys: float = 2.0, seed: int = 0) -> None:
        super().__init__(strength=strength, grid=grid, decoys=decoys, seed=seed)
        require(strength >= 0, f"strength must not be negative, got {strength}.")
        require(grid >= 2, f"grid must be at least 2 points, got {grid}.")
        self.strength, self.decoys = strength, decoys
        points = torch.rand(1, 2, grid, grid, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        self.points = nn.Buffer(points / points.abs().mean(), persistent=False)

    def field(self, height: int, width: int) -> Tensor:
        """Where each pixel comes from, in pixels to the right and down, (2, height, width) in -strength..strength."""
        field = F.interpolate(self.points, size=(height, width), mode="bicubic", align_corners=True)[0]
        return self.strength / 2 * field.clamp(-2, 2)

    def stamp(self, images: Tensor) -> Tensor:
        """Warp the images."""
        return bend(images, self.field(*images.shape[2:])[None])

    def decoy(self, images: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
        """Images warped by the field and, at each pixel, by up to half a pixel of noise (the paper's 1 / side)."""
        noise = torch.rand(len(images), 2, *images.shape[2:], generator=generator) - 0.5
        return bend(images, self.field(*images.shape[2:]) + noise.to(images)).clamp(0, 1)


def bend(images: Tensor, field: Tensor) -> Tensor:
    """Fetch every pixel from `field` pixels away, bilinearly; beyond the edge, take the edge's own pixel.

    images: float (N, C, H, W); returns the same shape.
    field: float (1 or N, 2, H, W), in pixels to the right and down.
    """
    height, width = images.shape[2:]
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in (height, width)), indexing="ij")
    scale = images.new_tensor([2 / max(1, width - 1), 2 / max(1, height - 1)])  # grid_sample counts in -1..1
    places = torch.stack([x, y], dim=-1).to(images) + field.to(images).permute(0, 2, 3, 1) * scale
    return F.grid_sample(images, places.expand(len(images), -1, -1, -1), padding_mode="border", align_corners=True)
