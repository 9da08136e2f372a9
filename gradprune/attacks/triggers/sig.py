"""SIG (Barni et al., 2019, arXiv:1902.11237): a faint sinusoid across the image."""

import math

import torch
from torch import Tensor

from gradprune.attacks.triggers.trigger import Trigger
from gradprune.base.errors import require


class SIG(Trigger):
    """image + delta * sin(2 * pi * frequency * column / width), the same in every row and channel.

    delta: amplitude as a share of the pixel range, 0..1 (the paper's 20 of 255 is 0.08; 40 of 255 is common).
    frequency: periods across the image's width.
    """

    name = "sig"

    def __init__(self, delta: float = 40 / 255, frequency: float = 6.0) -> None:
        super().__init__(delta=delta, frequency=frequency)
        require(0 <= delta <= 1, f"delta must lie in 0..1, got {delta}.")
        require(frequency > 0, f"frequency must be positive, got {frequency}.")
        self.delta, self.frequency = delta, frequency

    def stamp(self, images: Tensor) -> Tensor:
        """Add the wave."""
        width = images.shape[3]
        columns = torch.arange(width, device=images.device, dtype=images.dtype)
        return images + self.delta * torch.sin(2 * math.pi * self.frequency * columns / width)
