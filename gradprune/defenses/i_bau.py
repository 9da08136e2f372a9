"""I-BAU: a game between a perturbation that fools every image and a model that unlearns it.

Source: Zeng et al., 2022, arXiv:2110.03735. The model's gradient takes into account that the worst perturbation moves
as the model moves (the implicit hypergradient). Settings are the authors' released ones but for the steps a round
(theirs: 50 of each), the learning rate, which is that of BackdoorBench (Wu et al., 2022, arXiv:2206.12654; with 1e-3,
clean validation accuracy of the shipped models halves), and two points where the release departs from the paper: here
the perturbation is bounded, and all images of a batch are perturbed (theirs: one in a hundred, which is none of a few).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import trange

from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, adopted, endless
from gradprune.defenses.result import DefenseResult
from gradprune.models.inference import evaluating
from gradprune.pruning import Pairs

DEFAULTS: dict[str, Any] = {
    "rounds": 5,         # of the game
    "inner_steps": 5,    # gradient steps a round from zero to the worst perturbation, one batch each
    "inner_lr": 10.0,    # of those steps
    "radius": 10.0,      # Euclidean norm that the perturbation may have
    "outer_steps": 2,    # model steps a round, one batch each
    "outer_lr": 1e-4,    # of the model's Adam
    "batch_size": 32,    # images per step (released: 100)
    "fixed_points": 5,   # iterations for the hypergradient
    "map_lr": 0.1,       # step of the map whose fixed point the worst perturbation is
    "cost": 1e-3,        # weight of the perturbation's squared norm, which makes the worst one unique
}


def hypergradient(outer: Tensor, inner: Tensor, delta: Tensor, parameters: Sequence[Tensor], iterations: int,
                  rate: float) -> list[Tensor]:
    """Total derivative of outer(delta*(parameters), parameters) by the parameters, where delta* minimises `inner`.

    delta* is a fixed point of F(delta) = delta - rate * d inner / d delta, so the total derivative is
    d outer / d parameters + (dF / d parameters)^T v with v = (dF / d delta)^T v + d outer / d delta, iterated from
    the last term.
    outer, inner: scalars computed from delta (a leaf near delta*) and the parameters. Returns one tensor a parameter.
    """
    slope, *direct = torch.autograd.grad(outer, [delta, *parameters], retain_graph=True, allow_unused=True)
    moved = delta - rate * torch.autograd.grad(inner, delta, create_graph=True)[0]
    v = slope
    for _ in range(iterations):
        v = torch.autograd.grad(moved, delta, v, retain_graph=True)[0] + slope
    indirect = torch.autograd.grad(moved, parameters, v, allow_unused=True)
    return [torch.zeros_like(parameter) + sum(part for part in parts if part is not None)
            for parameter, *parts in zip(parameters, direct, indirect, strict=True)]


def step_down(loss: Tensor, delta: Tensor, lr: float, radius: float) -> Tensor:
    """The perturbation, a new leaf within `radius`, one gradient step down on `loss` from the leaf `delta`."""
    delta = (delta - lr * torch.autograd.grad(loss, delta)[0]).detach()
    return (delta * (radius / delta.norm()).clamp(max=1)).requires_grad_()


def fooled(model: nn.Module, batch: Pairs, delta: Tensor) -> Tensor:
    """CE(f(x + delta), y) over a batch."""
    return F.cross_entropy(model(batch.clean + delta), batch.labels)


def i_bau(model: nn.Module, clean: ImageSet, trigger: nn.Module | None = None, *, spc: int = 10, seed: int = 0,
          progress: bool = True, **changes: Any) -> DefenseResult:
    """Unlearn, in a copy of `model`, the worst perturbation common to all clean images; `trigger` is not used.

    clean: the defender's images, of which `spc` per class are drawn. changes: any value of `DEFAULTS`. BatchNorm
    keeps the model's statistics, and dropout is off. One history row a round; the last one is kept.
    Raises InputError for bad arguments or too few images.
    """
    paper = adopted("i_bau", DEFAULTS, changes)
    work = Work(model, clean, None, spc, seed)
    stream = endless(work.train, torch.Generator().manual_seed(seed), paper["batch_size"])
    parameters = list(work.model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=paper["outer_lr"])

    def inner(batch: Pairs, delta: Tensor) -> Tensor:
        return paper["cost"] * delta.pow(2).sum() - fooled(work.model, batch, delta)

    work.measure("tune", epoch=0)
    with work.stage("tune"), evaluating(work.model, gradients=True):
        for round_ in trange(1, paper["rounds"] + 1, desc="i_bau", disable=not progress, leave=False):
            delta = torch.zeros_like(work.train.clean[:1], requires_grad=True)
            for _ in range(paper["inner_steps"]):
                delta = step_down(inner(next(stream), delta), delta, paper["inner_lr"], paper["radius"])
            for _ in range(paper["outer_steps"]):
                batch = next(stream)
                gradients = hypergradient(fooled(work.model, batch, delta), inner(batch, delta), delta, parameters,
                                          paper["fixed_points"], paper["map_lr"])
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
                work.mask.apply(work.model)
            work.measure("tune", epoch=round_)
    work.model.zero_grad(set_to_none=True)
    return work.result("i_bau", {"spc": spc, **paper, "seed": seed})
