"""The unlearning loss and the per-filter scores that come from its gradient: sections 1 and 2 of the method.

Source: Dunnett et al., 2024, arXiv:2405.03918. The loss is high while the backdoor works; its gradient points to the
filters that implement it.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.base.devices import halving
from gradprune.base.errors import require, require_known
from gradprune.models.inference import evaluating
from gradprune.pruning.filters import Filters, Layer

SCORES = {
    "gradient": "mean |dL/dW| over the filter's weights (the paper's)",
    "taylor": "sum W * dL/dW: first-order fall of the loss if the weights are removed",
    "gate": "the same at the BatchNorm that follows one-to-one (scale and shift), where there is one",
}


def unlearning_loss(model: nn.Module, triggered: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of triggered images against their TRUE labels; a scalar tensor."""
    return F.cross_entropy(model(triggered), labels)


def filter_scores(model: nn.Module, found: Filters, triggered: Tensor, labels: Tensor, score: str = "gradient",
                  batch_size: int = 500) -> tuple[Tensor, float]:
    """Score every filter by one gradient of the unlearning loss; the model is not changed.

    triggered: float (N, C, H, W) in [0, 1].
    labels: int64 (N,), the true ones.
    score: a name in `SCORES`.
    batch_size: does not change the result; it is halved once if memory runs out.
    Returns (scores float (number of filters,), higher = remove first; loss). BatchNorm stays in eval mode.
    Raises InputError for an unknown score, a loss or gradient that is not finite, or too little memory.
    """
    require_known("score", score, SCORES)
    with evaluating(model, gradients=True), torch.enable_grad():
        groups = [_score_tensors(model, layer, score) for layer in found.layers]
        tensors = [tensor for group in groups for tensor in group]
        gradients, loss = halving(lambda size: _gradients(model, tensors, triggered, labels, size), batch_size)
    values: Iterator[tuple[Tensor, Tensor]] = zip(tensors, gradients, strict=True)
    scores = [sum((_reduce(*next(values), score) for _ in group), start=torch.zeros(())) for group in groups]
    return torch.cat([value.detach().cpu() for value in scores]), loss


def _score_tensors(model: nn.Module, layer: Layer, score: str) -> list[Tensor]:
    """The parameters whose gradient scores this layer's filters; all have the filter as first dimension."""
    if score != "gate":
        return [model.get_submodule(layer.name).weight]  # type: ignore[list-item]
    tensors: dict[int, Tensor] = {}
    for name, norm in layer.pairs:
        carriers = [model.get_submodule(place) for place in (norm, name) if place]
        learned = [[tensor for tensor in (carrier.weight, carrier.bias) if isinstance(tensor, nn.Parameter)]
                   for carrier in carriers]  # a norm may have no learned parameters
        tensors |= {id(tensor): tensor for tensor in next(filter(None, learned))}
    return list(tensors.values())


def _gradients(model: nn.Module, tensors: list[Tensor], triggered: Tensor, labels: Tensor,
               batch_size: int) -> tuple[list[Tensor], float]:
    """The gradient of the mean unlearning loss for each tensor, summed over batches, and the loss."""
    totals = [torch.zeros_like(tensor) for tensor in tensors]
    loss_sum = 0.0
    for x, y in zip(triggered.split(batch_size), labels.split(batch_size), strict=True):
        share = len(x) / len(triggered)
        loss = unlearning_loss(model, x.clone(), y) * share  # a forward pass may normalise in place
        for total, gradient in zip(totals, torch.autograd.grad(loss, tensors, allow_unused=True), strict=True):
            if gradient is not None:  # None for a convolution that the forward pass never uses
                total += gradient
        loss_sum += loss.item()
    require(math.isfinite(loss_sum), f"the unlearning loss is {loss_sum}: the model or the images hold values that are "
                                     "not finite.")
    require(all(bool(total.isfinite().all()) for total in totals),
            "the gradient of the unlearning loss is not finite, so it ranks no filter.")
    return totals, loss_sum


def _reduce(tensor: Tensor, gradient: Tensor, score: str) -> Tensor:
    """One number per filter from a parameter and its gradient."""
    if score == "gradient":
        return gradient.abs().flatten(1).mean(1)
    return (tensor.detach() * gradient).reshape(len(tensor), -1).sum(1)
