"""The exercises of notebook 02: the unlearning loss, a measured slope, and the score of a filter."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.lessons.runtime.feedback import Seen
from gradprune.lessons.runtime.grading import Complaint, Function, as_tensor, exercise, loss_and_gradients

# ---- unlearning_loss


def _small_models() -> list[tuple[Any, ...]]:
    """A linear model with random weights, two batches, an additive trigger, and a target that is not everyone's."""
    cases = []
    for seed, count, target in ((0, 6, 1), (1, 9, 3)):
        generator = torch.Generator().manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        images = torch.rand(count, 3, 2, 2, generator=generator) * 0.6
        cases.append((model.eval(), images, torch.arange(count) % 4, _brighter_corner, target))
    return cases


def _brighter_corner(images: Tensor) -> Tensor:
    images = images.clone()
    images[:, :, 1, 1] += 0.4
    return images


@exercise("02", cases=_small_models,
          observe=lambda function, case: loss_and_gradients(function, case, list(case[0].parameters())),
          praise="triggered images, true labels, the mean over the batch, and a gradient that flows.")
def unlearning_loss(model: nn.Module, images: Tensor, labels: Tensor, trigger: Function, target: int) -> Tensor:
    """Mean cross-entropy of triggered images and their true labels."""
    return F.cross_entropy(model(trigger(images)), labels)


def _loss(loss: Function) -> Function:
    """A loss of the outputs for clean and for triggered images, of the true labels and of the target."""
    return lambda model, images, labels, trigger, target: loss(model(images), model(trigger(images)), labels, target)

unlearning_loss.wrong_answers({
    "the labels are the attacker's. This loss is LOW while the backdoor works, and minimising it would teach the "
    "backdoor. Unlearning needs the TRUE labels.":
        _loss(lambda clean, marked, labels, target: F.cross_entropy(marked, torch.full_like(labels, target))),
    "this is the attacker's loss, negated. It says where the images should not go, but not where they should; use the "
    "TRUE labels instead.":
        _loss(lambda clean, marked, labels, target: -F.cross_entropy(marked, torch.full_like(labels, target))),
    "the images are clean. On those the model is right already, so the gradient says nothing about the backdoor: put "
    "the trigger on first.": _loss(lambda clean, marked, labels, target: F.cross_entropy(clean, labels)),
    "you took the sum over the images, not the mean: it would grow with the size of the batch.":
        _loss(lambda clean, marked, labels, target: F.cross_entropy(marked, labels, reduction="sum")),
    "softmax is applied first. `F.cross_entropy` takes the model's raw outputs and does the softmax itself.":
        _loss(lambda clean, marked, labels, target: F.cross_entropy(marked.softmax(1), labels)),
    "the value is right, but no gradient flows from it. Leave out `.item()`, `.detach()` and `torch.no_grad()`: the "
    "gradient is what we need.": lambda *case: unlearning_loss.reference(*case).detach(),
    "the loss includes both clean and triggered images. That is the loss of fine-tuning (notebook 03); here only "
    "triggered ones count.":
        _loss(lambda clean, marked, labels, target: F.cross_entropy(clean, labels) + F.cross_entropy(marked, labels)),
    "images of the target class are left out. That is for counting successes (notebook 01); here every image should "
    "get its true label.":
        _loss(lambda clean, marked, labels, target:
              F.cross_entropy(marked[labels != target], labels[labels != target])),
})


# ---- slope

Loss = Callable[[Tensor], Any]


def _curved() -> list[tuple[Any, ...]]:
    """Losses that bend, in double precision, with steps so large that each way of measuring gives its own number."""
    weights = torch.tensor([2.0, -6.0, 0.5], dtype=torch.float64)
    return [(_bent, weights, 1, 0.1), (_bent, weights, 0, 0.25), (_bent, weights[[1, 2, 0]], 1, 0.5)]


def _bent(weights: Tensor) -> float:
    return float((weights * torch.tensor([1.0, 0.5, -2.0])).exp().sum() + weights.prod() ** 2)


def _sum_of_cubes(weights: Tensor) -> Tensor:
    return (weights ** 3).sum()


def _rise(loss: Loss, weights: Tensor, place: int, ahead: float, behind: float) -> float:
    """How much higher the loss is with the weight moved `ahead` than with the weight moved `behind`."""
    def moved(by: float) -> float:
        return float(loss(weights.index_add(0, torch.tensor([place]), torch.tensor([by], dtype=weights.dtype))))
    return moved(ahead) - moved(behind)


@exercise("02", cases=_curved, examples=lambda: [(_sum_of_cubes, torch.tensor([1.0, 2.0]), 1, 1.0)],
          praise="a step up, a step down, and the rise between them per unit of weight.")
def slope(loss: Loss, weights: Tensor, place: int, step: float) -> float:
    """How fast the loss rises with one weight."""
    return _rise(loss, weights, place, step, -step) / (2 * step)

slope.wrong_answers({
    "you divide by one step, but the two places are TWO steps apart.":
        lambda loss, weights, place, step: _rise(loss, weights, place, step, -step) / step,
    "only one step is taken, downwards. Go both ways: the errors of the two then cancel.":
        lambda loss, weights, place, step: _rise(loss, weights, place, 0, -step) / step,
    "only one step is taken, upwards. That measures a slope, too, but half a step further on. Go both ways, and the "
    "errors cancel.": lambda loss, weights, place, step: _rise(loss, weights, place, step, 0) / step,
    "nothing is divided: this is how much the loss changes, not how much for each unit of weight.":
        [lambda loss, weights, place, step: _rise(loss, weights, place, step, -step),
         lambda loss, weights, place, step: _rise(loss, weights, place, step, 0)],
    "the sign is wrong: the loss at the larger weight comes first.": lambda *case: -slope.reference(*case),
    "the brackets are missing: Python divides by 2 and MULTIPLIES by the step.":
        lambda loss, weights, place, step: _rise(loss, weights, place, step, -step) / 2 * step,
    "`up = weights` makes no copy: both names mean ONE tensor, and the second step takes the first one back. Write "
    "`weights.clone()`, once for each.":
        [lambda loss, weights, place, step: _rise(loss, weights, place, step, 0) / (2 * step), lambda *case: 0.0],
    "all weights are moved. Move the one at `place` alone, on a copy: `up = weights.clone()`, then `up[place] += "
    "step`.": lambda loss, weights, _, step: (float(loss(weights + step)) - float(loss(weights - step))) / (2 * step),
})


# ---- score


def _layers() -> list[tuple[Tensor, Tensor]]:
    """Weights and gradients of a 3x3, a 1x1 and a square layer: shapes that reveal a wrong axis."""
    generator = torch.Generator().manual_seed(5)
    shapes = ((6, 4, 3, 3), (3, 5, 1, 1), (4, 4, 3, 3))
    return [(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)) for shape in shapes]


def _two_filters() -> list[tuple[Tensor, Tensor]]:
    return [(torch.tensor([1.0, 2.0, 3.0, 4.0]).view(2, 1, 1, 2), torch.tensor([1.0, -3.0, 0.0, 1.0]).view(2, 1, 1, 2))]


def _per_filter(function: Function, case: Sequence[Any]) -> Seen:
    scores = as_tensor(function(*case))
    if scores.ndim == 4 and scores.shape[1:] == (1, 1, 1):
        raise Complaint("the axes that you averaged over are still there (size 1): leave out `keepdim=True`.")
    return [scores]


@exercise("02", cases=_layers, observe=_per_filter, examples=_two_filters,
          praise="the mean absolute gradient over each filter's own weights.")
def score(weight: Tensor, gradient: Tensor) -> Tensor:
    """One number per filter: the mean absolute gradient."""
    return gradient.abs().mean(dim=(1, 2, 3))

score.wrong_answers({
    "you averaged before abs(). Positive and negative gradients cancel in the mean: take the absolute value of every "
    "number first.": lambda weight, gradient: gradient.mean(dim=(1, 2, 3)).abs(),
    "abs() is missing: positive and negative gradients cancel in the mean.":
        lambda weight, gradient: gradient.mean(dim=(1, 2, 3)),
    "you took the sum, not the mean. A filter with more weights would score higher for its size alone, and one ranking "
    "over all layers would be unfair.": lambda weight, gradient: gradient.abs().sum(dim=(1, 2, 3)),
    "the mean keeps the input channels (axis 1) and runs over the filters. A filter is an OUTPUT channel: keep axis 0.":
        lambda weight, gradient: gradient.abs().mean(dim=(0, 2, 3)),
    "the gradients are squared: a few large ones would outweigh all others. Use abs().":
        lambda weight, gradient: gradient.square().mean(dim=(1, 2, 3)),
    "this is the `taylor` score, sum of weight times gradient: a good one, which you meet further down. Here use the "
    "gradient alone.": lambda weight, gradient: (weight * gradient).sum(dim=(1, 2, 3)),
})
