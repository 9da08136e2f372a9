"""Label-consistent attack (Turner et al., 2019, arXiv:1912.02771): every poisoned image carries its right label."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.attacks.triggers.trigger import Trigger
from gradprune.base.errors import require
from gradprune.datasets import ImageSet
from gradprune.models.inference import evaluating


class LabelConsistent(Trigger):
    """A small black and white pattern in all four corners; only images OF the target class are poisoned.

    If the image itself is easy, a right label teaches the model nothing about the mark. So the poisoned images are made
    hard first: an adversarial change (PGD on a clean model) hides their class, which leaves only the mark to learn. At
    test time only the mark is applied.
    amplitude: added to the pattern's white pixels and subtracted from its black ones, 0..1 (1: plain black and white).
    size: side of each corner's pattern in pixels.
    epsilon: largest adversarial change of a pixel, 0..1 (the middle one of the paper's 8, 16 and 32 of 255).
    steps: of PGD.
    """

    name = "label_consistent"
    published: ClassVar[Mapping[str, float]] = {"size": 3}
    label_map = "clean_label"
    needs_model = True

    def __init__(self, amplitude: float = 1.0, size: int = 3, epsilon: float = 16 / 255, steps: int = 20) -> None:
        super().__init__(amplitude=amplitude, size=size, epsilon=epsilon, steps=steps)
        require(0 <= amplitude <= 1, f"amplitude must lie in 0..1, got {amplitude}.")
        require(0 <= epsilon <= 1, f"epsilon must lie in 0..1, got {epsilon}.")
        require(size >= 1 and steps >= 1, f"size and steps must be at least 1, got {size} and {steps}.")
        self.amplitude, self.size, self.epsilon, self.steps = amplitude, size, epsilon, steps

    def pattern(self, height: int, width: int) -> Tensor:
        """+1 where a pixel gets lighter, -1 where darker, 0 elsewhere; float (height, width)."""
        size = self.size
        require(2 * size <= min(height, width), f"four corners of {size} pixels do not fit a {height}x{width} image.")
        index = torch.arange(size)
        corner = 1.0 - 2.0 * ((index[:, None] + index) % 2)
        pattern = torch.zeros(height, width)
        pattern[:size, :size], pattern[:size, -size:] = corner, corner.flip(1)
        pattern[-size:, :size], pattern[-size:, -size:] = corner.flip(0), corner.flip(0, 1)
        return pattern

    def stamp(self, images: Tensor) -> Tensor:
        """Put the pattern in the corners."""
        return images + self.amplitude * self.pattern(*images.shape[2:]).to(images)

    def disguise(self, model: nn.Module | None, images: ImageSet) -> Tensor:
        """The images, changed by at most epsilon so that the clean model no longer knows their class."""
        if model is None:
            return images.floats()
        device = next(model.parameters()).device
        with evaluating(model):
            hard = [self._attack(model, part.to(device), labels.to(device)) for part, labels in
                    zip(images.floats().split(256), images.labels.split(256), strict=True)]
        return torch.cat(hard).to(images.images.device)

    def _attack(self, model: nn.Module, clean: Tensor, labels: Tensor) -> Tensor:
        """Projected gradient ascent on the loss of the true labels (Madry et al., 2018, arXiv:1706.06083)."""
        hard = clean
        for _ in range(self.steps):
            hard = hard.detach().requires_grad_(True)
            gradient, = torch.autograd.grad(F.cross_entropy(model(hard), labels), hard)
            moved = hard.detach() + 2.5 * self.epsilon / self.steps * gradient.sign()
            hard = (clean + (moved - clean).clamp(-self.epsilon, self.epsilon)).clamp(0, 1)
        return hard
