"""The exercise of notebook 02 that checks a gradient: the slope of a loss, measured by a small step both ways."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradprune.lessons.runtime.grading import Exercise, Misconception

Loss = Callable[[Tensor], Any]

# ---- slope(loss, weights, place, step) -> number


def _moved(weights: Tensor, place: int, by: float) -> Tensor:
    weights = weights.clone()
    weights[place] += by
    return weights


def _change(loss: Loss, weights: Tensor, place: int, ahead: float, behind: float) -> float:
    """How much higher the loss is `ahead` than `behind`, both counted from where the weight is."""
    return float(loss(_moved(weights, place, ahead))) - float(loss(_moved(weights, place, behind)))


def _slope(loss: Loss, weights: Tensor, place: int, step: float) -> float:
    return _change(loss, weights, place, step, -step) / (2 * step)


def _curved() -> list[tuple[Any, ...]]:
    """Losses that bend, in double precision, with steps so large that each way to measure gives another number."""
    weights = torch.tensor([2.0, -6.0, 0.5], dtype=torch.float64)
    return [(_bent, weights, 1, 0.1), (_bent, weights, 0, 0.25), (_bent, weights[[1, 2, 0]], 1, 0.5)]


def _bent(weights: Tensor) -> float:
    return float((weights * torch.tensor([1.0, 0.5, -2.0])).exp().sum() + weights.prod() ** 2)


def _square() -> list[tuple[Any, ...]]:
    """A loss that can be worked out by hand."""
    return [(_sum_of_cubes, torch.tensor([1.0, 2.0]), 1, 1.0)]


def _sum_of_cubes(weights: Tensor) -> Tensor:
    return (weights ** 3).sum()


def _all_moved(loss: Loss, weights: Tensor, place: int, step: float) -> float:
    return (float(loss(weights + step)) - float(loss(weights - step))) / (2 * step)


def _scaled(loss: Loss, weights: Tensor, place: int, step: float) -> float:
    return _change(loss, weights, place, step * float(weights[place]), -step * float(weights[place])) / (2 * step)


def _set_to_the_step(loss: Loss, weights: Tensor, place: int, step: float) -> float:
    here = float(weights[place])
    return _change(loss, weights, place, step - here, -step - here) / (2 * step)


def _every_place(loss: Loss, weights: Tensor, place: int, step: float) -> Tensor:
    return torch.tensor([_slope(loss, weights, one, step) for one in range(len(weights))])


SLOPE = Exercise(
    notebook="02", name="slope", signature="slope(loss, weights, place, step)",
    praise="a step up, a step down, and the rise between them per unit of weight.",
    reference=_slope, cases=_curved, examples=_square,
    misconceptions=(
        Misconception("only one step is taken, upwards. That measures a slope, too, but half a step on. Go both "
                      "ways, and the errors cancel.", lambda f, w, k, h: _change(f, w, k, h, 0) / h),
        Misconception("only one step is taken, downwards. Go both ways: the errors of the two then cancel.",
                      lambda f, w, k, h: _change(f, w, k, 0, -h) / h),
        Misconception("divided by one step, but the two places lie TWO steps apart.",
                      lambda f, w, k, h: _change(f, w, k, h, -h) / h),
        Misconception("nothing is divided: this is how much the loss changes, not how much for each unit of weight.",
                      lambda f, w, k, h: _change(f, w, k, h, -h), (lambda f, w, k, h: _change(f, w, k, h, 0),)),
        Misconception("one step is taken, and divided by two. Either take both steps, or divide by one.",
                      lambda f, w, k, h: _change(f, w, k, h, 0) / (2 * h)),
        Misconception("the sign is turned around: the loss at the larger weight comes first.",
                      lambda f, w, k, h: -_slope(f, w, k, h)),
        Misconception("the brackets are missing: Python divides by 2 and MULTIPLIES by the step.",
                      lambda f, w, k, h: _change(f, w, k, h, -h) / 2 * h),
        Misconception("all weights are moved. Move the one at `place` alone, on a copy: `up = weights.clone()`, then "
                      "`up[place] += step`.", _all_moved),
        Misconception("the weight is multiplied, not moved: add and subtract the step.", _scaled),
        Misconception("the weight is replaced by the step. Move it from where it is: `+=` instead of `=`.",
                      _set_to_the_step),
        Misconception("the slopes along all weights are returned. One number is wanted, for the weight at `place`.",
                      _every_place),
        Misconception("this is the loss itself.", lambda f, w, k, h: float(f(w))),
        Misconception("the mean of both losses is taken. Take their difference: a slope is how fast a thing changes.",
                      lambda f, w, k, h: (float(f(_moved(w, k, h))) + float(f(_moved(w, k, -h)))) / (2 * h)),
    ))
