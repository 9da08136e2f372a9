"""The exercises of notebook 02: the unlearning loss, a measured slope (see there), and the score of a filter."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.lessons.exercises.slope import SLOPE
from gradprune.lessons.runtime.feedback import Seen
from gradprune.lessons.runtime.grading import (
    Complaint,
    Exercise,
    Function,
    Misconception,
    as_tensor,
    require_no_backward,
)

# ---- unlearning_loss(model, images, labels, trigger, target) -> scalar with a gradient


def _unlearning_loss(model: nn.Module, images: Tensor, labels: Tensor, trigger: Function, target: int) -> Tensor:
    return F.cross_entropy(model(trigger(images)), labels)


def _small_models() -> list[tuple[Any, ...]]:
    """A linear model with random weights, two batches, an additive trigger, and a target that is not everyone's."""
    cases = []
    for seed, count, target in ((0, 6, 1), (1, 9, 3)):
        generator = torch.Generator().manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        images = torch.rand(count, 3, 2, 2, generator=generator) * 0.6
        labels = torch.arange(count) % 4
        cases.append((model.eval(), images, labels, _brighter_corner, target))
    return cases


def _brighter_corner(images: Tensor) -> Tensor:
    images = images.clone()
    images[:, :, 1, 1] += 0.4
    return images


def _loss_and_gradient(function: Function, case: Sequence[Any]) -> Seen:
    """The loss, and the gradient that flows from it into the model's weights."""
    model = case[0]
    loss = function(*case)
    require_no_backward(*model.parameters())
    value = as_tensor(loss)
    if value.numel() == 1 and (not isinstance(loss, Tensor) or not loss.requires_grad):
        return [value, torch.zeros(1)]  # no gradient at all
    if value.ndim:
        return [value]
    return [value, *(gradient.double() for gradient in torch.autograd.grad(loss, list(model.parameters())))]


def _without_gradient(*case: Any) -> Tensor:
    with torch.no_grad():
        return _unlearning_loss(*case)


UNLEARNING_LOSS = Exercise(
    notebook="02", name="unlearning_loss", signature="unlearning_loss(model, images, labels, trigger, target)",
    praise="triggered images, true labels, the mean over the batch, and a gradient that flows.",
    reference=_unlearning_loss, cases=_small_models, observe=_loss_and_gradient,
    misconceptions=(
        Misconception("the labels are the attacker's. This loss is LOW while the backdoor lives, and "
                      "following it down would teach the backdoor. Unlearning asks for the TRUE labels.",
                      lambda m, x, y, t, k: F.cross_entropy(m(t(x)), torch.full_like(y, k))),
        Misconception("this is that loss negated: climbing away from the target. It says where the images "
                      "should not go, but not where they should; ask for the TRUE labels instead.",
                      lambda m, x, y, t, k: -F.cross_entropy(m(t(x)), torch.full_like(y, k))),
        Misconception("the images are clean. On those the model is right already, so the gradient knows "
                      "nothing of the backdoor: put the trigger on first.",
                      lambda m, x, y, t, k: F.cross_entropy(m(x), y)),
        Misconception("the sum over the images, not the mean: it would grow with the size of the batch.",
                      lambda m, x, y, t, k: F.cross_entropy(m(t(x)), y, reduction="sum")),
        Misconception("one loss per image is returned. Take the mean: a gradient needs a single number to "
                      "start from.", lambda m, x, y, t, k: F.cross_entropy(m(t(x)), y, reduction="none")),
        Misconception("the sign is turned around. The loss must be HIGH while triggered images get wrong "
                      "labels.", lambda m, x, y, t, k: -F.cross_entropy(m(t(x)), y)),
        Misconception("softmax came first. `F.cross_entropy` takes the model's raw outputs and does the "
                      "softmax itself.", lambda m, x, y, t, k: F.cross_entropy(m(t(x)).softmax(1), y)),
        Misconception("this is the accuracy. It moves in jumps and has no gradient; use the cross-entropy.",
                      lambda m, x, y, t, k: (m(t(x)).argmax(1) == y).float().mean()),
        Misconception("the value is right, but no gradient flows from it. Leave out `.item()`, `.detach()` "
                      "and `torch.no_grad()`: the gradient is what we are after.", _without_gradient),
        Misconception("clean and triggered images are both in it. That is the loss of fine-tuning (notebook "
                      "03); here only triggered ones count.",
                      lambda m, x, y, t, k: F.cross_entropy(m(x), y) + F.cross_entropy(m(t(x)), y)),
        Misconception("images of the target class are left out. That is for counting successes (notebook 01); here "
                      "every image should get its true label.",
                      lambda m, x, y, t, k: F.cross_entropy(m(t(x[y != k])), y[y != k])),
        Misconception("clean and triggered images are averaged together. Only the triggered ones belong "
                      "here.", lambda m, x, y, t, k: F.cross_entropy(m(torch.cat([x, t(x)])), y.repeat(2))),
    ))

# ---- score(weight, gradient) -> one number per filter


def _score(weight: Tensor, gradient: Tensor) -> Tensor:
    return gradient.abs().mean(dim=(1, 2, 3))


def _layers() -> list[tuple[Tensor, Tensor]]:
    """Weights and gradients of a 3x3, a 1x1 and a square layer: shapes that betray a wrong axis."""
    generator = torch.Generator().manual_seed(5)
    shapes = ((6, 4, 3, 3), (3, 5, 1, 1), (4, 4, 3, 3))
    return [(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)) for shape in shapes]


def _one_filter() -> list[tuple[Tensor, Tensor]]:
    """A layer of two filters with two numbers each."""
    return [(torch.tensor([1.0, 2.0, 3.0, 4.0]).view(2, 1, 1, 2), torch.tensor([1.0, -3.0, 0.0, 1.0]).view(2, 1, 1, 2))]


def _per_filter(function: Function, case: Sequence[Any]) -> Seen:
    scores = as_tensor(function(*case))
    if scores.ndim == 4 and scores.shape[1:] == (1, 1, 1):
        raise Complaint("the axes that you averaged over are still there (size 1): leave out `keepdim=True`.")
    return [scores]


SCORE = Exercise(
    notebook="02", name="score", signature="score(weight, gradient)",
    praise="the mean absolute gradient over each filter's own weights.",
    reference=_score, cases=_layers, observe=_per_filter, examples=_one_filter,
    misconceptions=(
        Misconception("you averaged before abs(). Positive and negative gradients cancel in the mean: take "
                      "the absolute value of every number first.", lambda w, g: g.mean(dim=(1, 2, 3)).abs()),
        Misconception("abs() is missing: positive and negative gradients cancel in the mean.",
                      lambda w, g: g.mean(dim=(1, 2, 3))),
        Misconception("the sum, not the mean. A filter with more weights would score higher for its size "
                      "alone, and one ranking over all layers would be unfair.",
                      lambda w, g: g.abs().sum(dim=(1, 2, 3))),
        Misconception("the mean runs over the filters, too, and one number is left for the whole layer. "
                      "Keep axis 0.", lambda w, g: g.abs().mean()),
        Misconception("the mean keeps the input channels (axis 1) and runs over the filters. A filter is an "
                      "OUTPUT channel: keep axis 0.", lambda w, g: g.abs().mean(dim=(0, 2, 3))),
        Misconception("the mean runs over the kernel alone and leaves (filters, inputs). All inputs belong "
                      "to the filter: average over axes 1, 2 and 3.", lambda w, g: g.abs().mean(dim=(2, 3))),
        Misconception("the mean runs over axis 1 alone. The two kernel axes belong to the filter, too: "
                      "dim=(1, 2, 3).", lambda w, g: g.abs().mean(dim=1)),
        Misconception("these are the sizes of the weights. A large weight is not a guilty one: use the "
                      "gradient.", lambda w, g: w.abs().mean(dim=(1, 2, 3))),
        Misconception("the largest gradient of each filter, not the mean: one lucky weight would decide.",
                      lambda w, g: g.abs().amax(dim=(1, 2, 3))),
        Misconception("gradients are squared, not made absolute: single large ones would drown all others.",
                      lambda w, g: g.square().mean(dim=(1, 2, 3))),
        Misconception("this is the root of the mean square, which a few large gradients rule. The paper's score is the "
                      "mean of absolute values.", lambda w, g: g.square().mean(dim=(1, 2, 3)).sqrt()),
        Misconception("the gradient is divided by the weights. Here the weights play no part.",
                      lambda w, g: g.abs().mean(dim=(1, 2, 3)) / w.abs().mean(dim=(1, 2, 3)),
                      (lambda w, g: (g / w).abs().mean(dim=(1, 2, 3)),)),
        Misconception("this is the norm, the root of squares. The paper's score is the mean of absolute "
                      "values.", lambda w, g: g.flatten(1).norm(dim=1)),
        Misconception("this is the `taylor` score, sum of weight times gradient: a good one, which you meet "
                      "further down. Here the weights play no part.",
                      lambda w, g: (w * g).sum(dim=(1, 2, 3))),
        Misconception("weights and gradients are multiplied. That leads to the `taylor` score further down; "
                      "here the gradient alone counts.", lambda w, g: (w * g).abs().mean(dim=(1, 2, 3))),
    ))

SCORING_EXERCISES = (UNLEARNING_LOSS, SLOPE, SCORE)
