"""Small changes of images, one for all images of a batch: what a trigger may look like, where nobody knows it.

A family draws where, how large and how strong a change is, and leaves its content open: numbers in [-1, 1], which are
drawn as well, or searched. The ranges go from what a person hardly notices to a plain sticker; they follow from the
images' size and range, not from any attack. The search: signed gradient steps (Madry et al., 2018, arXiv:1706.06083) on
one change for all images (Moosavi-Dezfooli et al., 2017, arXiv:1610.08401).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = Sequence[int]  # channels, height, width
Content = Callable[[Tensor, Tensor], Tensor]  # images (N, C, H, W), numbers -> images, not yet held in [0, 1]


class Change(NamedTuple):
    """A change of images. family: its name in `FAMILIES`; numbers: its content, in [-1, 1]; content: puts it on."""

    family: str
    numbers: Tensor
    content: Content

    def __call__(self, images: Tensor) -> Tensor:
        """The images with the change; float (N, C, H, W) in [0, 1], and so returned."""
        return self.content(images, self.numbers.to(images)).clamp(0, 1)


def draw(shape: Shape, generator: torch.Generator, families: Sequence[str]) -> Change:
    """A change of one of the families, all of it drawn."""
    name = families[_int(generator, 0, len(families) - 1)]
    size, content = FAMILIES[name](shape, generator)
    return Change(name, 2 * torch.rand(size, generator=generator) - 1, content)


def search_change(model: nn.Module, images: Tensor, wanted: Tensor, change: Change, *, target: int | None = None,
                  steps: int = 6) -> Change:
    """The change with the content that leads `images` to class `target`, or, for None, away from `wanted`.

    images: float (N, C, H, W) in [0, 1]; wanted: log-probabilities (N, classes) of what the model should say. The
    search begins with the content that is there; a family that has no gradient comes back as it is. The model is to be
    in eval mode; it is not changed.
    """
    if change.family not in SEARCHABLE:
        return change
    numbers, size = change.numbers.to(images.device), 3 / steps
    for _ in range(steps):
        numbers.requires_grad_()
        answers = model(change._replace(numbers=numbers)(images)).log_softmax(1)
        goal = (F.kl_div(answers, wanted, log_target=True, reduction="batchmean") if target is None
                else answers[:, target].mean())
        slope = torch.autograd.grad(goal, numbers)[0]
        numbers = (numbers.detach() + size * slope.sign()).clamp(-1, 1)
    return change._replace(numbers=numbers)


def _int(generator: torch.Generator, low: int, high: int) -> int:
    """An integer from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _float(generator: torch.Generator, low: float, high: float) -> float:
    """A number from low to high."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def _patches(shape: Shape, generator: torch.Generator) -> tuple[Sequence[int], Content]:
    """One to four copies of a square of 1/16 to 1/4 of the image's side, anywhere."""
    channels, height, width = shape
    side = _int(generator, max(1, height // 16), max(1, height // 4))
    spots = [(_int(generator, 0, height - side), _int(generator, 0, width - side))
             for _ in range(_int(generator, 1, 4))]

    def content(images: Tensor, numbers: Tensor) -> Tensor:
        images = images.clone()
        for y, x in spots:
            images[:, :, y:y + side, x:x + side] = (numbers + 1) / 2
        return images

    return (channels, side, side), content


def _sparse(shape: Shape, generator: torch.Generator) -> tuple[Sequence[int], Content]:
    """One to five per cent of the pixels, anywhere, replaced."""
    where = torch.rand(1, *shape[1:], generator=generator) < _float(generator, 0.01, 0.05)
    return shape, lambda images, numbers: torch.where(where.to(images.device), (numbers + 1) / 2, images)


def _blend(shape: Shape, generator: torch.Generator) -> tuple[Sequence[int], Content]:
    """Another picture, of any fineness, blended in at 5 to 30 per cent."""
    share, cells = _float(generator, 0.05, 0.3), 2 ** _int(generator, 2, int(math.log2(shape[1])))

    def content(images: Tensor, numbers: Tensor) -> Tensor:
        return (1 - share) * images + share * (_enlarged(numbers, images) + 1) / 2

    return (shape[0], cells, cells), content


def _bounded(shape: Shape, generator: torch.Generator) -> tuple[Sequence[int], Content]:
    """Every pixel moved by up to 0.02 to 0.15."""
    bound = _float(generator, 0.02, 0.15)
    return shape, lambda images, numbers: images + bound * numbers


def _smooth(shape: Shape, generator: torch.Generator) -> tuple[Sequence[int], Content]:
    """A field of three to eight cells a side, of up to 0.05 to 0.25, added."""
    bound, cells = _float(generator, 0.05, 0.25), _int(generator, 3, 8)
    return (shape[0], cells, cells), lambda images, numbers: images + bound * _enlarged(numbers, images)


def _waves(shape: Shape, generator: torch.Generator) -> tuple[Sequence[int], Content]:
    """One to three plane waves of up to an eighth of the pixels in periods, each of up to 0.05 to 0.2, added."""
    bound, count = _float(generator, 0.05, 0.2), _int(generator, 1, 3)
    most = max(2, shape[1] // 4)
    periods = [(_int(generator, 0, most), _int(generator, -most, most)) for _ in range(count)]

    def content(images: Tensor, numbers: Tensor) -> Tensor:
        y, x = (torch.arange(size, device=images.device) / size for size in images.shape[2:])
        for (down, across), (cosine, sine) in zip(periods, numbers.unbind(0), strict=True):
            phase = 2 * math.pi * (down * y[:, None] + across * x)
            wave = cosine[:, None, None] * phase.cos() + sine[:, None, None] * phase.sin()
            images = images + bound / 2 ** 0.5 * wave
        return images

    return (count, 2, shape[0] if _int(generator, 0, 1) else 1), content


def _warp(shape: Shape, generator: torch.Generator) -> tuple[Sequence[int], Content]:
    """Bent by a field of two to six cells a side, by up to 1/32 to 1/8 of the image's side."""
    bound, cells = _float(generator, 1 / 16, 1 / 4), _int(generator, 2, 6)

    def content(images: Tensor, numbers: Tensor) -> Tensor:
        identity = torch.eye(2, 3, device=images.device)[None]
        grid = F.affine_grid(identity, [1, 1, *images.shape[2:]], align_corners=False)
        moved = grid + bound * _enlarged(numbers, images).permute(0, 2, 3, 1)
        return F.grid_sample(images, moved.expand(len(images), -1, -1, -1), padding_mode="border", align_corners=False)

    return (2, cells, cells), content


def _quantised(shape: Shape, generator: torch.Generator) -> tuple[Sequence[int], Content]:
    """Two to eight levels a channel, dithered or not."""
    steps, noise = _int(generator, 1, 7), 0.5 * _int(generator, 0, 1)
    return shape, lambda images, numbers: (images * steps + noise * numbers).round() / steps


def _tinted(shape: Shape, generator: torch.Generator) -> tuple[Sequence[int], Content]:
    """Another contrast and brightness of each channel."""
    bound = _float(generator, 0.1, 0.4)
    return (2, shape[0], 1, 1), lambda images, numbers: images * (1 + bound * numbers[0]) + bound / 2 * numbers[1]


def _enlarged(numbers: Tensor, images: Tensor) -> Tensor:
    """Cells (C, k, k) as a smooth field of the images' size, (1, C, H, W)."""
    if numbers.shape[1:] == images.shape[2:]:
        return numbers[None]
    return F.interpolate(numbers[None], size=images.shape[2:], mode="bicubic", align_corners=False).clamp(-1, 1)


FAMILIES: dict[str, Callable[[Shape, torch.Generator], tuple[Sequence[int], Content]]] = {
    "patches": _patches, "sparse": _sparse, "blend": _blend, "bounded": _bounded, "smooth": _smooth, "waves": _waves,
    "warp": _warp, "quantised": _quantised, "tinted": _tinted}
SEARCHABLE = tuple(name for name in FAMILIES if name != "quantised")  # the others have a gradient
