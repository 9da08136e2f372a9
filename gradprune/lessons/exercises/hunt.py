"""The second long exercise: the search for an unknown trigger, judged by what the found mark does."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.lessons.runtime.feedback import Seen
from gradprune.lessons.runtime.grading import Complaint, Exercise, Function, Misconception, Untouched
from gradprune.search import invert

# ---- find_trigger(model, images, target, steps) -> mask (1, H, W), pattern (C, H, W)

Found = tuple[Tensor, Tensor]
_SIDE = 8  # pixels of the hidden images


def _find_trigger(model: nn.Module, images: Tensor, target: int, steps: int) -> Found:
    trigger: Any = invert(model, images, target, steps=steps, progress=False).trigger
    return trigger.mask, trigger.pattern


def _hunt(cost: float = 0.05, pull: float = 1.0, shift: int = 0, work: bool = True, free: int = 2,
          squash: Callable[[Tensor], Tensor] = torch.sigmoid, cover: float = 0.0) -> Function:
    """The search with one thing about it changed."""
    def search(model: nn.Module, images: Tensor, target: int, steps: int) -> Found:
        mask, pattern = (torch.full((size, *images.shape[2:]), cover).requires_grad_() for size in (1, images.shape[1]))
        optimizer = torch.optim.Adam([mask, pattern][2 - free:], lr=0.1)
        labels = torch.full((len(images),), (target + shift) % model(images[:1]).shape[1])
        for _ in range(steps * work):
            m, p = squash(mask), squash(pattern)
            loss = pull * F.cross_entropy(model((1 - m) * images + m * p), labels) + cost * m.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return squash(mask).detach(), squash(pattern).detach()
    return search


def _marked() -> list[tuple[Any, ...]]:
    """A linear model that reads the colour of an image, with a bright corner that leads to its target."""
    generator, target = torch.Generator().manual_seed(1), 0
    linear = nn.Linear(3 * _SIDE * _SIDE, 4)
    weight = 0.02 * torch.randn(4, 3, _SIDE, _SIDE, generator=generator)
    for label in range(3):
        weight[label, label] += 0.15  # red, green or blue; the fourth class is none of them
    weight[target, :, -2:, -2:] += 1.5
    linear.weight.data, linear.bias.data = weight.flatten(1), torch.tensor([-8.0, 0.0, 0.0, 3.0])
    images = 0.6 * torch.rand(24, 3, _SIDE, _SIDE, generator=generator)
    return [(nn.Sequential(nn.Flatten(), linear).eval(), images, target, 100)]


def _deeds(function: Function, case: Sequence[Any]) -> Seen:
    """What the mark does to other images: in range or not, where it leads, and which part of the image it takes."""
    model, images, target, _ = case
    found = function(*case)
    if found is None or found is ...:
        raise Untouched
    sizes = (1, *images.shape[2:]), images.shape[1:]
    if not (isinstance(found, tuple | list) and len(found) == 2 and all(isinstance(part, Tensor) for part in found)):
        raise Complaint("give back two tensors: `return mask, pattern`.")
    mask, pattern = (part.detach().float() for part in found)
    if (mask.shape, pattern.shape) != sizes:
        raise Complaint(f"mask and pattern should have the shapes {tuple(sizes[0])} and {tuple(sizes[1])}: one mark "
                        f"for all images. Yours have {tuple(mask.shape)} and {tuple(pattern.shape)}.")
    inside = all(bool(((part >= 0) & (part <= 1)).all()) for part in (mask, pattern))
    fresh = 0.6 * torch.rand(40, *images.shape[1:], generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        answers = model((1 - mask) * fresh + mask * pattern).argmax(1)
    part = mask.sum() / mask.numel()
    taken = sum(part.item() > edge for edge in (0.25, 0.9))
    return [torch.tensor([inside, (answers == target).float().mean() >= 0.9,
                          (answers == (target + 1) % 4).float().mean() >= 0.9, taken]).double()]


FIND_TRIGGER = Exercise(
    notebook="08", name="find_trigger", signature="find_trigger(model, images, target, steps)",
    praise="a small mark in 0..1 that leads other images to the class, too.",
    reference=_find_trigger, cases=_marked, observe=_deeds,
    misconceptions=(
        Misconception("the mark reaches the class, but it covers a good part of the image. Every class can be reached "
                      "like that: let the mask pay, `cost * mask.sum()`, in the loss.",
                      _hunt(cost=0), (_hunt(cost=1e-4),)),
        Misconception("the mark covers the WHOLE image. A large mask must cost, not pay: add `cost * mask.sum()`, and "
                      "search the mask as well as the pattern.", _hunt(cost=-0.05), (_hunt(cost=0, cover=6.0),)),
        Misconception("the mask has vanished and reaches nothing. The cross-entropy must pull towards the class, and "
                      "the cost must not outweigh it.", _hunt(pull=0), (_hunt(cost=30),)),
        Misconception("the cross-entropy has the wrong sign: this search flees from the class.", _hunt(pull=-1)),
        Misconception("the mark leads to another class: the labels of the cross-entropy are all `target`.",
                      _hunt(shift=1)),
        Misconception("mask or pattern leaves 0..1: no such image exists. Search free numbers, and squash them with "
                      "`torch.sigmoid` before use and before you return them.", _hunt(squash=lambda free: free + 0.5)),
        Misconception("the mark is still as it began, and reaches nothing. Each step needs `loss.backward()` and "
                      "`optimizer.step()`, and there are `steps` of them.", _hunt(work=False)),
    ))
