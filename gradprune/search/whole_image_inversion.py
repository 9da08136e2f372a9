"""Unknown trigger that covers the whole image: one bounded pattern, added to every image, that leads to one class.

Source: Moosavi-Dezfooli, Fawzi, Fawzi & Frossard, 2017, "Universal Adversarial Perturbations", CVPR, arXiv:1610.08401,
in its targeted form. They add up steps for single images under a fixed bound; here Adam descends on minibatches, and
within the bound the norm is made as small as the goal allows, as Neural Cleanse does with its mask, so that the norms
of the classes can be compared. A mask finds a sticker, but a faint wave over the whole image has no small mask.
"""

from typing import Any

import torch
from torch import Tensor, nn

from gradprune.base.errors import override, require
from gradprune.search.inversion import SEARCH, Inversion, search

WHOLE: dict[str, Any] = SEARCH | {
    "cost": 1e-2,   # first weight of the perturbation's L2 norm
    "bound": 0.25,  # no pixel moves by more than this
    "factor": 1.5,  # the weight rises by this, and falls by this to the power of 1.5
}


class Perturbed(nn.Module):
    """A synthesised trigger: image + pattern, clamped to [0, 1].

    Takes and returns float (N, C, H, W) in [0, 1].
    pattern: float (C, H, W), of either sign.
    """

    pattern: Tensor

    def __init__(self, pattern: Tensor) -> None:
        super().__init__()
        self.register_buffer("pattern", pattern)

    def forward(self, images: Tensor) -> Tensor:
        """Add the pattern to the images."""
        return (images + self.pattern.to(images.device)).clamp(0, 1)


def perturb(model: nn.Module, images: Tensor, target: int, *, seed: int = 0, progress: bool = True,
            **changes: Any) -> Inversion:
    """Search for the smallest pattern that, added to `images`, sends them to class `target`; the model is not changed.

    images: float (N, C, H, W) in [0, 1], clean, on the model's device.
    changes: any value of `WHOLE`.
    The pattern with the lowest L2 norm among the steps that reached the goal is kept; if none did, the last one is.
    Raises InputError for unknown settings, a bound outside 0..1, or as `invert` does.
    """
    settings = override("search", WHOLE, changes)
    require(0 < settings["bound"] <= 1, f"bound must lie in 0..1, above 0, got {settings['bound']}.")

    def form(free: list[Tensor]) -> tuple[nn.Module, Tensor]:
        pattern = settings["bound"] * free[0].tanh()
        return Perturbed(pattern), pattern.norm()

    generator = torch.Generator().manual_seed(seed)
    start = 0.1 * torch.randn(images.shape[1:], generator=generator)
    return search(model, images, target, [start], form, settings, generator, progress)
