"""The base of all triggers: a small module that maps an image to the same image with the attacker's mark on it.

Behind it is what several triggers share: the place of a mark, its colours on grey images, the loop in which it learns.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gradprune.base.errors import require
from gradprune.datasets import ImageSet

Position = str | tuple[int, int]
CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right", "center")


class Trigger(nn.Module):
    """Base of all triggers: float images (N, C, H, W) in [0, 1] -> the same shape and range.

    The settings determine a trigger (random patterns come from a `seed` setting), so it composes with
    torchvision.transforms.v2 and can be written to a card as `name` and `settings`. Tensors that follow from the
    settings are non-persistent buffers; those in `state_dict()` were learned and are saved with the weights.
    Most triggers define only `stamp`; the other attributes and methods are for attacks that do more.
    """

    name = "trigger"
    label_map = "all_to_one"  # how the paper labels the poisoned images, see `poisoning.LABEL_MAPS`
    decoys = 0.0              # decoys for each poisoned image in training, see `decoy`
    needs_model = False       # the attacker first trains a clean model for `learn` and `disguise`
    keeps_model = False       # ... and continues from that model, not from fresh weights
    published: ClassVar[Mapping[str, float]] = {}  # the paper's values of settings that decide the mark's strength

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def stamp(self, images: Tensor) -> Tensor:
        """Put the mark on checked images; every trigger defines this method."""
        raise NotImplementedError  # pragma: no cover

    def learn(self, model: nn.Module | None, images: ImageSet, target: int | None, seed: int = 0) -> None:
        """Before the poisoning: fit the trigger's own tensors to the training images and a clean model."""

    def disguise(self, model: nn.Module | None, images: ImageSet) -> Tensor:
        """The images to be poisoned as they are before the mark is applied, float (N, C, H, W) in [0, 1]."""
        return images.floats()

    def moving(self) -> list[nn.Parameter]:
        """The parameters that are trained together with the classifier."""
        return []

    def own_loss(self, images: Tensor) -> Tensor:
        """The loss that `moving` parameters minimise besides the classifier's, on a batch of at least two images."""
        raise NotImplementedError  # pragma: no cover

    def decoy(self, images: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
        """Images with almost the mark, which keep their true label so that only the mark itself triggers the backdoor.

        images: float (N, C, H, W) in [0, 1].
        others: as many other images of the batch, of the same shape.
        """
        raise NotImplementedError  # pragma: no cover

    def steers(self) -> bool:
        """Whether the attack takes part in training, batch by batch, rather than poisoning the images once."""
        return bool(self.decoys or self.moving())

    def departs(self) -> str:
        """A sentence on the settings that differ from the paper's; empty if none does."""
        other = [f"{name} {self.settings[name]:g} for {value:g}" for name, value in self.published.items()
                 if self.settings[name] != value]
        return f"The mark departs from the paper's: {', '.join(other)}." if other else ""

    def forward(self, images: Tensor) -> Tensor:
        """images: float (N, C, H, W) in [0, 1]; one image (C, H, W) works too. Raises InputError otherwise."""
        require(images.is_floating_point() and images.ndim in (3, 4),
                f"a trigger takes float images (N, C, H, W), got {images.dtype} {tuple(images.shape)}.")
        if any(tensor.device != images.device for tensor in itertools.chain(self.parameters(), self.buffers())):
            self.to(images.device)  # here, so that no caller has to move it
        single = images.ndim == 3
        stamped = self.stamp(images[None] if single else images).clamp(0, 1)
        return stamped[0] if single else stamped

    def extra_repr(self) -> str:
        """The settings, for `print(trigger)`."""
        return ", ".join(f"{key}={value!r}" for key, value in self.settings.items())


def check_position(position: Position) -> None:
    """Raise InputError for a string that is neither a corner's name nor "center"."""
    require(not isinstance(position, str) or position in CORNERS,
            f"position must be one of {', '.join(CORNERS)} or (row, column), got {position!r}.")


def corner(position: Position, mark: tuple[int, int], image: tuple[int, int], what: str, margin: int = 0
           ) -> tuple[int, int]:
    """Row and column of a mark's top-left pixel.

    position: a corner's name, "center", or row and column themselves.
    mark, image: their sizes, (height, width) in pixels.
    what: the mark's name, for the message.
    margin: pixels between the mark and the edges of its corner.
    Raises InputError if the mark does not fit.
    """
    if not isinstance(position, str):
        row, column = position
    elif position == "center":
        row, column = ((side - own) // 2 for side, own in zip(image, mark, strict=True))
    else:
        row = margin if "top" in position else image[0] - mark[0] - margin
        column = margin if "left" in position else image[1] - mark[1] - margin
    require(0 <= row <= image[0] - mark[0] and 0 <= column <= image[1] - mark[1],
            f"{what} at row {row}, column {column} does not fit a {image[0]}x{image[1]} image.")
    return row, column


def put(images: Tensor, mark: Tensor, row: int, column: int) -> Tensor:
    """A copy of images (N, C, H, W) with a coloured mark (3, h, w) whose top-left pixel is at this row and column."""
    images = images.clone()
    images[:, :, row:row + mark.shape[1], column:column + mark.shape[2]] = in_channels(mark, images.shape[1]).to(images)
    return images


def in_channels(mark: Tensor, channels: int) -> Tensor:
    """A coloured mark, float (..., 3, H, W), as it is for 3 channels, or its mean over the channels for 1."""
    return mark if channels == 3 else mark.mean(dim=-3, keepdim=True)


def descend(tensors: Sequence[nn.Parameter], loss: Callable[[Tensor], Tensor], images: Tensor, *, steps: int,
            lr: float, seed: int = 0, batch_size: int = 64) -> None:
    """Minimise `loss(batch)` over `tensors` in place by Adam; nothing else gets a gradient.

    images: float (N, C, H, W) in [0, 1], at least one.
    seed: which `batch_size` images each step draws.
    The tensors' requires_grad is off afterwards: except to its attack, a trigger is a constant.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(tensors, lr=lr)
    try:
        for tensor in tensors:
            tensor.requires_grad_(True)
        for _ in range(steps):
            batch = torch.randperm(len(images), generator=generator)[:batch_size].to(images.device)
            gradients = torch.autograd.grad(loss(images[batch]), tensors)
            for tensor, gradient in zip(tensors, gradients, strict=True):
                tensor.grad = gradient
            optimizer.step()
    finally:
        for tensor in tensors:
            tensor.requires_grad_(False)
            tensor.grad = None
