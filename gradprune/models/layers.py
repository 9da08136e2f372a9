"""The first layer of every model here, and the shapes a model accepts."""

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Shift and scale pixels in [0, 1] to about zero mean and unit spread.

    It is a model's first layer, so triggers, defences and pictures all work in pixel space.
    mean, std: one number for all channels, or one per channel. Not part of the state dict: they are settings.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | list[float] = 0.5, std: float | list[float] = 0.25) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """images: float (N, C, H, W) in [0, 1]; returns the same shape."""
        return (images - self.mean) / self.std
