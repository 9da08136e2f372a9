"""Blended (Chen et al., 2017, arXiv:1712.05526): a faint whole-image pattern, mixed in."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.attacks.triggers.position import in_channels
from gradprune.attacks.triggers.trigger import Trigger
from gradprune.base.errors import require


class Blended(Trigger):
    """(1 - alpha) * image + alpha * pattern.

    alpha: the pattern's share, 0..1 (the paper's and the field's usual value is 0.2).
    seed: which pattern; it is drawn once as a (3, 8, 8) grid of random colours and scaled to the image's size.
    """

    name = "blended"

    def __init__(self, alpha: float = 0.2, seed: int = 0) -> None:
        super().__init__(alpha=alpha, seed=seed)
        require(0 <= alpha <= 1, f"alpha must lie in 0..1, got {alpha}.")
        self.alpha = alpha
        grid = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        self.grid = nn.Buffer(grid, persistent=False)

    def pattern(self, height: int, width: int, channels: int = 3) -> Tensor:
        """The pattern at this size, (channels, height, width) in [0, 1]."""
        return in_channels(F.interpolate(self.grid, size=(height, width), mode="nearest")[0], channels)

    def stamp(self, images: Tensor) -> Tensor:
        """Mix the pattern in."""
        channels, height, width = images.shape[1:]
        return (1 - self.alpha) * images + self.alpha * self.pattern(height, width, channels).to(images)
