"""LF, the low-frequency attack (Zeng et al., 2021, arXiv:2104.03413): a smooth pattern without telltale edges."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.attacks.triggers.learning import descend
from gradprune.attacks.triggers.position import in_channels
from gradprune.attacks.triggers.trigger import Trigger
from gradprune.base.errors import require
from gradprune.datasets import ImageSet
from gradprune.models.inference import evaluating

STEPS, LR = 100, 0.1  # Adam for the pattern's coefficients


class LowFrequency(Trigger):
    """image + delta * pattern, where the pattern is a sum of only the slowest cosines (DCT), scaled to a peak of 1.

    The paper searches for a perturbation that fools a clean model and that a low-pass filter leaves unchanged. Here the
    constraint is built in: there are only `cutoff` x `cutoff` cosine coefficients per channel, which `learn` optimises
    until a clean model predicts the target.
    delta: largest change of a pixel, 0..1.
    cutoff: cosines per axis, at least 2; the fastest one has (cutoff - 1) / 2 periods across the image.
    seed: of the random smooth pattern before `learn`.
    """

    name = "low_frequency"
    needs_model = True

    def __init__(self, delta: float = 0.1, cutoff: int = 6, seed: int = 0) -> None:
        super().__init__(delta=delta, cutoff=cutoff, seed=seed)
        require(0 <= delta <= 1, f"delta must lie in 0..1, got {delta}.")
        require(cutoff >= 2, f"cutoff must be at least 2 cosines, got {cutoff}.")
        self.delta = delta
        drawn = torch.randn(3, cutoff, cutoff, generator=torch.Generator().manual_seed(seed))
        self.coefficients = nn.Parameter(drawn, requires_grad=False)

    def pattern(self, height: int, width: int, channels: int = 3) -> Tensor:
        """The pattern at this size, (channels, height, width) in [-1, 1]."""
        cutoff = self.coefficients.shape[1]
        require(cutoff <= min(height, width), f"cutoff must be at most the image's side, got {cutoff} cosines for "
                                              f"{height}x{width} pixels.")
        rows, columns = (_cosines(cutoff, side).to(self.coefficients) for side in (height, width))
        pattern = in_channels(rows.T @ self.coefficients @ columns, channels)
        return pattern / pattern.abs().amax().clamp_min(1e-9)

    def stamp(self, images: Tensor) -> Tensor:
        """Add the pattern."""
        channels, height, width = images.shape[1:]
        return images + self.delta * self.pattern(height, width, channels).to(images)

    def learn(self, model: nn.Module | None, images: ImageSet, target: int | None, seed: int = 0) -> None:
        """Find the coefficients that send the images of other classes to `target` on a clean model."""
        if model is None or target is None:
            return
        others = images.subset(images.labels != target).to(next(model.parameters()).device).floats()
        wanted = torch.tensor([target], device=others.device)
        with evaluating(model):
            descend([self.coefficients], lambda x: F.cross_entropy(model(self(x)), wanted.expand(len(x))), others,
                    steps=STEPS, lr=LR, seed=seed)


def _cosines(count: int, side: int) -> Tensor:
    """The `count` slowest vectors of the cosine transform (DCT-II), float (count, side)."""
    place = (torch.arange(side) + 0.5) * math.pi / side
    return torch.cos(torch.arange(count)[:, None] * place)
