"""Small changes of images, the same for all images of a batch: what an unknown trigger may look like.

A family draws the place, size and strength of a change. Its content is a tensor of numbers in [-1, 1], which are drawn
or searched for. The ranges go from hardly noticeable changes to a clearly visible sticker; they follow from the images'
size and range, not from any attack. The search takes signed gradient steps (Madry et al., 2018, arXiv:1706.06083) on
one change for all images (Moosavi-Dezfooli et al., 2017, arXiv:1610.08401).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.base.devices import halving
from gradprune.models.inference import evaluating

Shape = Sequence[int]  # channels, height, width
Content = Callable[[Tensor, Tensor], Tensor]  # images (N, C, H, W), numbers -> images, not yet clamped to [0, 1]
WAVE_BOUND = (0.05, 0.2)  # range of a wave's strength


class Change(NamedTuple):
    """A change of images: its name in `FAMILIES`, its numbers in [-1, 1], and the function that applies them."""

    family: str
    numbers: Tensor
    content: Content

    def __call__(self, images: Tensor) -> Tensor:
        """Apply the change; takes and returns float (N, C, H, W) in [0, 1]."""
        return self.content(images, self.numbers.to(images)).clamp(0, 1)


def draw(shape: Shape, generator: torch.Generator, families: Sequence[str]) -> Change:
    """A random change of one of the families, for images of this shape (channels, height, width)."""
    name = families[_int(generator, 0, len(families) - 1)]
    size, content = FAMILIES[name](shape, generator)
    return Change(name, 2 * torch.rand(size, generator=generator) - 1, content)


class Part(NamedTuple):
    """Some images, the model's correct output for them, and the class to which a change should lead them.

    images: float (N, C, H, W) in [0, 1].
    wanted: log-probabilities (N, classes).
    target: None leads away from `wanted`.
    """

    images: Tensor
    wanted: Tensor
    target: int | None = None


@torch.enable_grad()
def search_changes(model: nn.Module, parts: Sequence[Part], changes: Sequence[Change], steps: int = 6) -> list[Change]:
    """For each part, search for the content of its change that leads furthest towards the part's goal.

    model: not changed; its dropout is off.
    parts, changes: equally many; the search starts with the given content. Families without a gradient stay unchanged.
    steps: signed gradient steps.
    """
    changes = list(changes)
    free = [place for place, change in enumerate(changes) if change.family in SEARCHABLE]
    numbers = [changes[place].numbers.to(parts[place].images.device, copy=True) for place in free]
    with evaluating(model):
        for _ in range(steps if free else 0):
            for tensor in numbers:
                tensor.requires_grad_()
            worn = [changes[place]._replace(numbers=tensor)(parts[place].images)
                    for place, tensor in zip(free, numbers, strict=True)]
            answers = model(torch.cat(worn)).log_softmax(1).split([len(images) for images in worn])
            goal = torch.stack([_led(said, parts[place]) for place, said in zip(free, answers, strict=True)]).sum()
            slopes = torch.autograd.grad(goal, numbers)
            numbers = [(tensor.detach() + 3 / steps * slope.sign()).clamp(-1, 1)
                       for tensor, slope in zip(numbers, slopes, strict=True)]
    for place, tensor in zip(free, numbers, strict=True):
        changes[place] = changes[place]._replace(numbers=tensor)
    return changes


def _led(answers: Tensor, part: Part) -> Tensor:
    """How far the answers (log-probabilities) have come towards the part's goal, a scalar tensor."""
    if part.target is None:
        return F.kl_div(answers, part.wanted, log_target=True, reduction="batchmean")
    return answers[:, part.target].mean()


def inflow(model: nn.Module, parts: Sequence[Part], changes: Sequence[Change]) -> Tensor:
    """How much more likely a change makes each class: float (parts, classes), the mean over the images of its part.

    model: not changed; its dropout is off.
    parts, changes: equally many.
    """
    largest = max(len(part.images) for part in parts)

    def led(size: int) -> Tensor:
        rows, many = list[Tensor](), max(1, size // largest)
        for start in range(0, len(parts), many):
            some = parts[start:start + many]
            worn = [change(part.images) for part, change in zip(some, changes[start:start + many], strict=True)]
            answers = model(torch.cat(worn)).softmax(1).split([len(images) for images in worn])
            rows += [said.mean(0) - part.wanted.exp().mean(0) for said, part in zip(answers, some, strict=True)]
        return torch.stack(rows)

    with evaluating(model), torch.no_grad():
        return halving(led, 64 * largest)


def every_wave(shape: Shape, generator: torch.Generator) -> list[Change]:
    """A change with a single wave for each plane wave of the family "waves", with random phase and strength."""
    most = _periods(shape)
    return [Change("waves", F.normalize(torch.randn(1, 2, 1, generator=generator), dim=1).expand(1, 2, shape[0]),
                   _wave([(down, across)], _float(generator, *WAVE_BOUND)))
            for down in range(most + 1) for across in range(-most if down else 1, most + 1)]


def _int(generator: torch.Generator, low: int, high: int) -> int:
    """A random integer from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _float(generator: torch.Generator, low: float, high: float) -> float:
    """A random number from low to high."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def _patches(shape: Shape, generator: torch.Generator) -> tuple[Sequence[int], Content]:
    """One to four copies of a square of 1/16 to 1/4 of the image's shorter side, anywhere."""
    channels, height, width = shape
    shorter = min(height, width)
    side = _int(generator, max(1, shorter // 16), max(1, shorter // 4))
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
    """Another picture, coarse or fine, blended in at 5 to 30 per cent."""
    share, cells = _float(generator, 0.05, 0.3), 2 ** _int(generator, 2, int(math.log2(shape[1])))

    def content(images: Tensor, numbers: Tensor) -> Tensor:
        return (1 - share) * images + share * (_enlarged(numbers, images) + 1) / 2

    return (shape[0], cells, cells), content


def _bounded(shape: Shape, generator: torch.Generator) -> tuple[Sequence[int], Content]:
    """Every pixel changed by up to 0.02 to 0.15."""
    bound = _float(generator, 0.02, 0.15)
    return shape, lambda images, numbers: images + bound * numbers


def _smooth(shape: Shape, generator: torch.Generator) -> tuple[Sequence[int], Content]:
    """A smooth field of three to eight cells per side added, with a strength of up to 0.05 to 0.25."""
    bound, cells = _float(generator, 0.05, 0.25), _int(generator, 3, 8)
    return (shape[0], cells, cells), lambda images, numbers: images + bound * _enlarged(numbers, images)


def _waves(shape: Shape, generator: torch.Generator) -> tuple[Sequence[int], Content]:
    """One to three plane waves added, with periods of at least four pixels and strengths of up to 0.05 to 0.2."""
    bound, count, most = _float(generator, *WAVE_BOUND), _int(generator, 1, 3), _periods(shape)
    periods = [(_int(generator, 0, most), _int(generator, -most, most)) for _ in range(count)]
    return (count, 2, shape[0] if _int(generator, 0, 1) else 1), _wave(periods, bound)


def _periods(shape: Shape) -> int:
    """The most periods of a wave across an image; 16 in large ones, so that all waves can be tried."""
    return min(16, max(2, shape[1] // 4))


def _wave(periods: list[tuple[int, int]], bound: float) -> Content:
    """Waves with these periods (down, across); the numbers (waves, 2, channels) are the weights of cosine and sine."""
    def content(images: Tensor, numbers: Tensor) -> Tensor:
        y, x = (torch.arange(size, device=images.device) / size for size in images.shape[2:])
        for (down, across), (cosine, sine) in zip(periods, numbers.unbind(0), strict=True):
            phase = 2 * math.pi * (down * y[:, None] + across * x)
            wave = cosine[:, None, None] * phase.cos() + sine[:, None, None] * phase.sin()
            images = images + bound / 2 ** 0.5 * wave
        return images

    return content


def _warp(shape: Shape, generator: torch.Generator) -> tuple[Sequence[int], Content]:
    """Warped by a field of two to six cells per side, by up to 1/32 to 1/8 of the image's side."""
    bound, cells = _float(generator, 1 / 16, 1 / 4), _int(generator, 2, 6)

    def content(images: Tensor, numbers: Tensor) -> Tensor:
        identity = torch.eye(2, 3, device=images.device)[None]
        grid = F.affine_grid(identity, [1, 1, *images.shape[2:]], align_corners=False)
        moved = grid + bound * _enlarged(numbers, images).permute(0, 2, 3, 1)
        return F.grid_sample(images, moved.expand(len(images), -1, -1, -1), padding_mode="border", align_corners=False)

    return (2, cells, cells), content


def _quantised(shape: Shape, generator: torch.Generator) -> tuple[Sequence[int], Content]:
    """Two to eight levels per channel, dithered or not."""
    steps, noise = _int(generator, 1, 7), 0.5 * _int(generator, 0, 1)
    return shape, lambda images, numbers: (images * steps + noise * numbers).round() / steps


def _tinted(shape: Shape, generator: torch.Generator) -> tuple[Sequence[int], Content]:
    """Another contrast and brightness of each channel."""
    bound = _float(generator, 0.1, 0.4)
    return (2, shape[0], 1, 1), lambda images, numbers: images * (1 + bound * numbers[0]) + bound / 2 * numbers[1]


def _enlarged(numbers: Tensor, images: Tensor) -> Tensor:
    """Interpolate cells (C, k, k) to a smooth field of the images' size, (1, C, H, W)."""
    if numbers.shape[1:] == images.shape[2:]:
        return numbers[None]
    return F.interpolate(numbers[None], size=images.shape[2:], mode="bicubic", align_corners=False).clamp(-1, 1)


FAMILIES: dict[str, Callable[[Shape, torch.Generator], tuple[Sequence[int], Content]]] = {
    "patches": _patches, "sparse": _sparse, "blend": _blend, "bounded": _bounded, "smooth": _smooth, "waves": _waves,
    "warp": _warp, "quantised": _quantised, "tinted": _tinted}
SEARCHABLE = tuple(name for name in FAMILIES if name != "quantised")  # the others have a gradient
