"""ANP: find the BatchNorm channels that change the answer when scales and shifts are perturbed, and close them.

Source: Wu & Wang, 2021, "Adversarial Neuron Pruning", arXiv:2110.14430. Settings and steps are those of the authors'
release: the mask scales only a channel's scale, the noise its scale and shift; BatchNorm uses the batch's statistics;
noise is a random start and one signed step, not clipped to `eps`; images are augmented. The mask is learned in a
scratch copy, and channels are closed in the model as it was given. The release lists figures for thresholds up to 0.9.
Of those that cost at most a tenth of the accuracy, BackdoorBench takes the one with the lowest ASR on test images; a
defender has no such images, so here held-out clean images choose, and the highest one is taken.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from tqdm.auto import trange

from gradprune.datasets import ImageSet
from gradprune.defenses.channels import batch_norms, batch_statistics, check_closing, close_below, scaled_channels
from gradprune.defenses.common import Work, endless, override_positive
from gradprune.defenses.result import DefenseResult
from gradprune.models.inference import check_unwrapped
from gradprune.pruning import Pairs

DEFAULTS: dict[str, Any] = {
    "eps": 0.4,         # of the noise: a uniform start in [-eps, eps] and a signed step of this size
    "balance": 0.2,     # weight of the clean loss; 1 - balance is that of the perturbed loss
    "lr": 0.2,          # of the mask's SGD, momentum 0.9
    "iterations": 100,  # mask steps (released: 2,000)
    "batch_size": 128,  # images per step
    "threshold": 0.9,   # the highest one tried, in steps of 0.05
}


def mask_gradient(model: nn.Module, mask: Tensor, batch: Pairs, eps: float, balance: float,
                  generator: torch.Generator) -> Tensor:
    """The gradient of balance * L(m w, b) + (1 - balance) * L((m + d) w, (1 + e) b) for the mask m.

    mask: float (number of BatchNorm channels,) in [0, 1].
    eps: of the noise d and e of each channel: a start in [-eps, eps] and a step of eps that raises the loss.
    """
    shaken = [((2 * torch.rand(len(mask), generator=generator) - 1).to(mask) * eps).requires_grad_() for _ in range(2)]

    def loss(weight: Tensor, bias: Tensor | None = None) -> Tensor:
        parameters = scaled_channels(model, weight, bias)
        return F.cross_entropy(functional_call(model, parameters, (batch.clean,), tie_weights=False), batch.labels)

    uphill = torch.autograd.grad(loss(mask + shaken[0], 1 + shaken[1]), shaken)
    shaken = [(shift + eps * gradient.sign()).detach() for shift, gradient in zip(shaken, uphill, strict=True)]
    mask = mask.detach().requires_grad_()
    total = balance * loss(mask) + (1 - balance) * loss(mask + shaken[0], 1 + shaken[1])
    return torch.autograd.grad(total, mask)[0]


def anp(model: nn.Module, clean: ImageSet, trigger: nn.Module | None = None, *, spc: int = 10, seed: int = 0,
        progress: bool = True, alpha: float = 0.10, **changes: Any) -> DefenseResult:
    """Learn a mask over the BatchNorm channels under adversarial noise, and close the low ones in a copy of `model`.

    clean: the defender's images, of which `spc` per class are drawn.
    trigger: not used.
    alpha: the highest threshold is taken at which accuracy on views of the held-out images falls by less than this.
    changes: any value of `DEFAULTS`.
    No filter is silent, so the result's mask is empty; `stopped` and the history count channels.
    Raises InputError for bad arguments, too few images, or a network without BatchNorm.
    """
    paper = override_positive("anp", DEFAULTS, changes)
    check_closing(alpha, paper["threshold"])
    check_unwrapped(model)
    work = Work(model, clean, None, spc, seed)
    work.validation = work.augment.add_to(work.validation, seed)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(sum(batch_norms(work.model).values()), device=work.train.clean.device)
    optimizer = torch.optim.SGD([mask], lr=paper["lr"], momentum=0.9)
    stream = endless(work.train, generator, paper["batch_size"], renew=work.augment)
    steps = trange(paper["iterations"], desc="anp", disable=not progress, leave=False)
    scratch = copy.deepcopy(work.model)
    with work.stage("mask"), batch_statistics(scratch):
        for _, batch in zip(steps, stream, strict=False):
            mask.grad = mask_gradient(scratch, mask, batch, paper["eps"], paper["balance"], generator)
            optimizer.step()
            mask.clamp_(0, 1)
    stopped = work.prune(close_below, mask, alpha=alpha, top=paper["threshold"])
    return work.result("anp", {"spc": spc, "alpha": alpha, **paper, "seed": seed}, pruned=work.model, stopped=stopped)
