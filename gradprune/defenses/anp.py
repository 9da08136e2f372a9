"""ANP: find the filters that turn the answer when weights are shaken, and remove them.

Source: Wu & Wang, 2021, "Adversarial Neuron Pruning", arXiv:2110.14430. Settings are the authors' released ones
but for the mask's steps, their batches, and BatchNorm, which there goes by the batch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from tqdm.auto import trange

from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, adopted, closed, endless
from gradprune.defenses.result import DefenseResult
from gradprune.models.inference import evaluating
from gradprune.pruning import Filters, Pairs, gated, in_order

DEFAULTS: dict[str, Any] = {
    "eps": 0.4,         # mask and bias may be shaken by up to this share
    "balance": 0.2,     # weight of the clean loss; 1 - balance goes to the shaken loss
    "lr": 0.2,          # of the mask's SGD, momentum 0.9
    "iterations": 100,  # mask steps (the paper: 2000, and batches of 128, on a GPU)
    "batch_size": 32,   # images per step
    "threshold": 0.2,   # filters whose mask falls below this may go
}


def mask_gradient(model: nn.Module, found: Filters, mask: Tensor, batch: Pairs, eps: float, balance: float,
                  generator: torch.Generator) -> Tensor:
    """Gradient, by the mask, of balance * L(m w, b) + (1 - balance) * L((m + d) w, (1 + e) b).

    mask: float (number of filters,) in [0, 1]. d and e, in [-eps, eps] for each filter, are the worst ones that a
    single signed gradient step finds from a random start.
    """
    ones = torch.ones_like(mask)
    shaken = [(2 * torch.rand(len(mask), generator=generator) - 1).to(mask) * eps for _ in range(2)]

    def loss(weight: Tensor, bias: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, gated(model, found, weight, bias), (batch.clean,)), batch.labels)

    shaken = [shift.requires_grad_() for shift in shaken]
    uphill = torch.autograd.grad(loss(mask + shaken[0], ones + shaken[1]), shaken)
    shaken = [(shift + eps * gradient.sign()).clamp(-eps, eps).detach()
              for shift, gradient in zip(shaken, uphill, strict=True)]
    mask = mask.detach().requires_grad_()
    total = balance * loss(mask, ones) + (1 - balance) * loss(mask + shaken[0], ones + shaken[1])
    return torch.autograd.grad(total, mask)[0]


def anp(model: nn.Module, clean: ImageSet, trigger: nn.Module | None = None, *, spc: int = 10, seed: int = 0,
        progress: bool = True, alpha: float = 0.10, **changes: Any) -> DefenseResult:
    """Learn a mask over the filters of `model` under adversarial shaking; remove those it closes. No trigger is used.

    clean: the defender's images, of which `spc` per class are drawn. alpha: filters go in order of their mask until
    clean validation accuracy would have fallen by this much. changes: any value of `DEFAULTS`. BatchNorm keeps the
    model's statistics: those of a few images would shake the model on their own.
    Raises InputError for bad arguments or too few images.
    """
    paper = adopted("anp", DEFAULTS, changes)
    work = Work(model, clean, None, spc, seed)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(len(work.found), device=work.train.clean.device)
    optimizer = torch.optim.SGD([mask], lr=paper["lr"], momentum=0.9)
    steps = trange(paper["iterations"], desc="anp", disable=not progress, leave=False)
    with work.stage("mask"), evaluating(work.model, gradients=True):
        for _, batch in zip(steps, endless(work.train, generator, paper["batch_size"]), strict=False):
            mask.grad = mask_gradient(work.model, work.found, mask, batch, paper["eps"], paper["balance"], generator)
            optimizer.step()
            mask.clamp_(0, 1)
    values = mask.cpu()
    stopped = work.prune(in_order, closed(values, paper["threshold"]), values, alpha=alpha, progress=progress)
    return work.result("anp", {"spc": spc, "alpha": alpha, **paper, "seed": seed}, pruned=work.model, stopped=stopped)
