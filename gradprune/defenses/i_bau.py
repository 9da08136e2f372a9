"""I-BAU: a game between a perturbation that fools every image and a model that unlearns it.

Source: Zeng et al., 2022, arXiv:2110.03735. The model's gradient takes into account that the worst perturbation changes
with the model (the implicit hypergradient). Settings and loop are those of the authors' release: the perturbation is
searched for on all images, but the model learns from batches in which one image in a hundred has it; the others keep
the model accurate. Only this small share makes the learning rate tolerable; here it is at least one image (theirs: none
in a batch of fewer than 100). The release's 50 steps of each kind are one pass over 5,000 images; here they take as
many passes as needed. No image is augmented, as in the release.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import trange

from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, endless, override_positive
from gradprune.defenses.result import DefenseResult
from gradprune.models.inference import evaluating
from gradprune.pruning import Pairs

DEFAULTS: dict[str, Any] = {
    "rounds": 1,         # of the game (released: 1; its README: 3; BackdoorBench: 5 of 10 steps)
    "inner_steps": 50,   # gradient steps per round from zero to the worst perturbation, one batch each
    "inner_lr": 10.0,    # of those steps
    "radius": 10.0,      # largest Euclidean norm of the perturbation after them
    "outer_steps": 50,   # model steps per round, one batch each
    "outer_lr": 1e-3,    # of the model's Adam (BackdoorBench: 1e-4)
    "batch_size": 100,   # images per step
    "share": 0.01,       # of a batch's images that have the perturbation in a model step, at least one image
    "fixed_points": 5,   # terms of the hypergradient
    "map_lr": 0.1,       # step of the map whose fixed point is the worst perturbation
    "cost": 1e-3,        # weight of the perturbation's squared norm, which makes the worst one unique
}


def hypergradient(outer: Tensor, inner: Tensor, delta: Tensor, parameters: Sequence[Tensor], iterations: int,
                  rate: float) -> list[Tensor]:
    """The total derivative of outer(delta*(parameters), parameters) for the parameters, where delta* minimises `inner`.

    delta* is a fixed point of F(delta) = delta - rate * d inner / d delta, so the total derivative is
    d outer / d parameters + (dF / d parameters)^T v, iterating v = (dF / d delta)^T v + d outer / d delta from zero.
    outer, inner: scalars computed from delta (a leaf near delta*) and the parameters.
    Returns one tensor per parameter.
    """
    slope, *direct = torch.autograd.grad(outer, [delta, *parameters], retain_graph=True, allow_unused=True)
    moved = delta - rate * torch.autograd.grad(inner, delta, create_graph=True)[0]
    v = slope
    for _ in range(iterations - 1):
        v = torch.autograd.grad(moved, delta, v, retain_graph=True)[0] + slope
    indirect = torch.autograd.grad(moved, parameters, v, allow_unused=True)
    return [torch.zeros_like(parameter) + sum(part for part in parts if part is not None)
            for parameter, *parts in zip(parameters, direct, indirect, strict=True)]


def worst(model: nn.Module, stream: Iterator[Pairs], example: Tensor, paper: dict[str, Any]) -> Tensor:
    """The perturbation that changes the model's answers on the stream's images the most.

    example: float (1, C, H, W); returns a new leaf of that shape.
    """
    delta = torch.zeros_like(example, requires_grad=True)
    for _ in range(paper["inner_steps"]):
        batch = next(stream)
        with torch.no_grad():
            answers = model(batch.clean).argmax(1)
        loss = paper["cost"] * delta.pow(2).sum() - F.cross_entropy(model(batch.clean + delta), answers)
        delta = (delta - paper["inner_lr"] * torch.autograd.grad(loss, delta)[0]).detach().requires_grad_()
    return project(delta, paper["radius"])


def project(delta: Tensor, radius: float) -> Tensor:
    """The perturbation, shortened to `radius` if it is longer; a new leaf."""
    return (delta.detach() * (radius / delta.norm()).clamp(max=1)).requires_grad_()


def add_perturbation(batch: Pairs, delta: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The batch's clean images, a random `share` (0..1) of them, but at least one, with the perturbation."""
    wearers = torch.zeros(len(batch.labels), 1, 1, 1)
    wearers[torch.randperm(len(wearers), generator=generator)[:max(1, int(share * len(wearers)))]] = 1
    return batch.clean + wearers.to(delta) * delta


def i_bau(model: nn.Module, clean: ImageSet, trigger: nn.Module | None = None, *, spc: int = 10, seed: int = 0,
          progress: bool = True, **changes: Any) -> DefenseResult:
    """Unlearn, in a copy of `model`, the worst perturbation common to all clean images; `trigger` is not used.

    clean: the defender's images, of which `spc` per class are drawn; the model learns from all of them.
    changes: any value of `DEFAULTS`.
    BatchNorm keeps the model's statistics, and dropout is off. There is one history row per round; the last is kept.
    Raises InputError for bad arguments or too few images.
    """
    paper = override_positive("i_bau", DEFAULTS, changes)
    work = Work(model, clean, None, spc, seed, hold_out=False, searches=True)
    generator = torch.Generator().manual_seed(seed)
    stream = endless(work.train, generator, paper["batch_size"])
    parameters = [one for one in work.model.parameters() if one.is_floating_point() or one.is_complex()]
    optimizer = torch.optim.Adam(parameters, lr=paper["outer_lr"])
    first = next(stream)  # the images of the hypergradient's inner loss

    work.measure("tune", epoch=0)
    plain = sdpa_kernel(SDPBackend.MATH)  # the fast forms of attention have no second derivative
    with work.stage("tune"), evaluating(work.model, gradients=True), plain:
        for round_ in trange(1, paper["rounds"] + 1, desc="i_bau", disable=not progress, leave=False):
            delta = worst(work.model, stream, first.clean[:1], paper)
            for _ in range(paper["outer_steps"]):
                batch = next(stream)
                some = add_perturbation(batch, delta, paper["share"], generator)
                outer = F.cross_entropy(work.model(some), batch.labels)
                inner = (paper["cost"] * delta.pow(2).sum()
                         - F.cross_entropy(work.model(first.clean + delta), first.labels))
                for parameter, gradient in zip(parameters, hypergradient(
                        outer, inner, delta, parameters, paper["fixed_points"], paper["map_lr"]), strict=True):
                    parameter.grad = gradient
                optimizer.step()
                work.mask.apply(work.model)
            work.measure("tune", epoch=round_)
    work.model.zero_grad(set_to_none=True)
    if work.interrupted:  # in the middle of a round
        work.measure("tune", epoch=len(work.history))
    return work.result("i_bau", {"spc": spc, **paper, "seed": seed})
