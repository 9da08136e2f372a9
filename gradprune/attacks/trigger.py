"""What a trigger is: a small module that maps an image to the same image with the attacker's mark on it."""

from typing import Any

from torch import Tensor, nn

from gradprune.errors import require


class Trigger(nn.Module):
    """Base of all triggers: float images (N, C, H, W) in [0, 1] -> the same shape and range.

    Deterministic for its settings (random patterns come from a `seed` setting), so it composes with
    torchvision.transforms.v2 and can be written to a card as `name` + `settings`.
    """

    name = "trigger"

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def stamp(self, images: Tensor) -> Tensor:
        """Put the mark on checked images; each trigger writes this one method."""
        raise NotImplementedError  # pragma: no cover

    def forward(self, images: Tensor) -> Tensor:
        """images: float (N, C, H, W) in [0, 1]; one image (C, H, W) works too. Raises InputError otherwise."""
        require(images.is_floating_point() and images.ndim in (3, 4),
                f"a trigger takes float images (N, C, H, W), got {images.dtype} {tuple(images.shape)}.")
        single = images.ndim == 3
        stamped = self.stamp(images[None] if single else images).clamp(0, 1)
        return stamped[0] if single else stamped

    def extra_repr(self) -> str:
        """The settings, for `print(trigger)`."""
        return ", ".join(f"{key}={value!r}" for key, value in self.settings.items())
