"""The first exercise of notebook 04: the loss that a search for a trigger makes small."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.lessons.runtime.feedback import Seen
from gradprune.lessons.runtime.grading import Exercise, Function, Misconception, as_tensor, require_no_backward

# ---- search_loss(model, images, mask, pattern, target, cost) -> scalar with a gradient to mask and pattern


def _laid(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    return (1 - mask) * images + mask * pattern


def _error(logits: Tensor, target: int, **settings: Any) -> Tensor:
    return F.cross_entropy(logits, torch.full((len(logits),), target), **settings)


def _reached(m: nn.Module, x: Tensor, k: Tensor, p: Tensor, t: int) -> Tensor:
    return _error(m(_laid(x, k, p)), t)


def _search_loss(model: nn.Module, images: Tensor, mask: Tensor, pattern: Tensor, target: int, cost: float) -> Tensor:
    return _reached(model, images, mask, pattern, target) + cost * mask.sum()


def _searches() -> list[tuple[Any, ...]]:
    """A linear model, a batch, and a mask and pattern in the midst of a search, twice."""
    cases = []
    for seed, count, target, cost in ((0, 6, 1, 0.2), (1, 9, 3, 0.05)):
        generator = torch.Generator().manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        images, mask, pattern = (torch.rand(shape, generator=generator)
                                 for shape in ((count, 3, 2, 2), (1, 2, 2), (3, 2, 2)))
        cases.append((model.eval(), images, mask.requires_grad_(), pattern.requires_grad_(), target, cost))
    return cases


def _loss_and_gradients(function: Function, case: Sequence[Any]) -> Seen:
    """The loss, and the gradients that flow from it into mask and pattern."""
    loss = function(*case)
    value, free = as_tensor(loss), list(case[2:4])
    require_no_backward(*free)
    if value.ndim:
        return [value]
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        return [value, torch.zeros(1)]  # no gradient at all
    gradients = torch.autograd.grad(loss, free, allow_unused=True)
    return [value, *(torch.zeros_like(tensor).double() if gradient is None else gradient.double()
                     for tensor, gradient in zip(free, gradients, strict=True))]


def _unmoved(*case: Any) -> Tensor:
    with torch.no_grad():
        return _search_loss(*case)


SEARCH_LOSS = Exercise(
    notebook="04", name="search_loss", signature="search_loss(model, images, mask, pattern, target, cost)",
    praise="the pattern is laid over the images where the mask is, the class is asked for, and each bit of mask costs.",
    reference=_search_loss, cases=_searches, observe=_loss_and_gradients,
    misconceptions=(
        Misconception("the size of the mask costs nothing. Every class can be reached by painting over the whole "
                      "image: add `cost * mask.sum()`.", lambda m, x, k, p, t, c: _reached(m, x, k, p, t)),
        Misconception("the mask's mean, not its sum. That is 1,024 times smaller on these images, and the same cost "
                      "would mean another thing for each image size.",
                      lambda m, x, k, p, t, c: _reached(m, x, k, p, t) + c * k.mean()),
        Misconception("the mask is squared. Then many faint pixels cost next to nothing, and the mask spreads over the "
                      "image; the plain sum (L1) sets most of them to zero.",
                      lambda m, x, k, p, t, c: _reached(m, x, k, p, t) + c * k.square().sum()),
        Misconception("covered pixels are counted (`mask > 0.5`). A count moves in jumps and has no gradient, so "
                      "nothing would make the mask smaller: take the plain sum.",
                      lambda m, x, k, p, t, c: _reached(m, x, k, p, t) + c * (k > 0.5).float().sum()),
        Misconception("the pattern pays, not the mask. Where the mask is 0 the pattern does not matter: the mask says "
                      "how much of the image is taken.",
                      lambda m, x, k, p, t, c: _reached(m, x, k, p, t) + c * p.abs().sum()),
        Misconception("mask times pattern pays. A black pattern would then be free, however much it covers: let the "
                      "mask pay.", lambda m, x, k, p, t, c: _reached(m, x, k, p, t) + c * (k * p).sum()),
        Misconception("mask and pattern both pay. Where the mask is 0 the pattern does not matter: let the mask alone "
                      "pay.", lambda m, x, k, p, t, c: _reached(m, x, k, p, t) + c * (k.sum() + p.sum())),
        Misconception("the cost has the wrong sign: a LARGE mask is rewarded.",
                      lambda m, x, k, p, t, c: _reached(m, x, k, p, t) - c * k.sum()),
        Misconception("the cost is left out of the sum: the mask's size counts in full, and the model hardly at all.",
                      lambda m, x, k, p, t, c: _reached(m, x, k, p, t) + k.sum()),
        Misconception("the cost weighs both terms. Then it changes nothing about which of the two wins: weigh the mask "
                      "alone.", lambda m, x, k, p, t, c: c * (_reached(m, x, k, p, t) + k.sum())),
        Misconception("the cross-entropy has the wrong sign: this search flees from the class. Whatever reaches the "
                      "class must make the loss LOW.",
                      lambda m, x, k, p, t, c: -_reached(m, x, k, p, t) + c * k.sum()),
        Misconception("mask and image are exchanged: where the mask is 0, the IMAGE must stay.",
                      lambda m, x, k, p, t, c: _reached(m, x, 1 - k, p, t) + c * k.sum()),
        Misconception("the pattern is added to the image, and pixels leave 0..1. Take away what it covers: "
                      "`(1 - mask) * images + mask * pattern`.",
                      lambda m, x, k, p, t, c: _error(m(x + k * p), t) + c * k.sum()),
        Misconception("the mask is left out: the pattern covers the whole image.",
                      lambda m, x, k, p, t, c: _error(m(p.expand_as(x)), t) + c * k.sum()),
        Misconception("the image itself is gone, only mask times pattern is left: add `(1 - mask) * images`.",
                      lambda m, x, k, p, t, c: _error(m((k * p).expand_as(x)), t) + c * k.sum()),
        Misconception("the images are clean: lay the pattern over them first.",
                      lambda m, x, k, p, t, c: _error(m(x), t) + c * k.sum()),
        Misconception("the sum over the images, not the mean: with more images the mask would count for less.",
                      lambda m, x, k, p, t, c: _error(m(_laid(x, k, p)), t, reduction="sum") + c * k.sum()),
        Misconception("one loss per image is returned. Take the mean: a gradient needs a single number to start from.",
                      lambda m, x, k, p, t, c: _error(m(_laid(x, k, p)), t, reduction="none") + c * k.sum()),
        Misconception("softmax came first. `F.cross_entropy` takes the model's raw outputs and does the softmax "
                      "itself.", lambda m, x, k, p, t, c: _error(m(_laid(x, k, p)).softmax(1), t) + c * k.sum()),
        Misconception("the value is right, but no gradient flows to mask and pattern. Leave out `.item()`, `.detach()` "
                      "and `torch.no_grad()`: the search follows that gradient.", _unmoved),
    ))
