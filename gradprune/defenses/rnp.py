"""RNP: make the model forget its clean task, let filters recover it, and remove those that did not help.

Source: Li et al., 2023, "Reconstructive Neuron Pruning", arXiv:2305.14876. Once the clean task is unlearned, what is
left is the backdoor; filters that recovery wants closed are the ones that carry it.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from tqdm.auto import trange

from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, closed, endless, settled
from gradprune.defenses.result import DefenseResult
from gradprune.models.inference import evaluating, predict
from gradprune.pruning import Filters, Pairs, clean_loss, gated

DEFAULTS: dict[str, Any] = {
    "unlearn_lr": 0.01,    # of the ascent's SGD, momentum 0.9, weight decay 5e-4
    "unlearn_steps": 200,  # at most; the ascent ends when accuracy has come down to chance (the paper: 10 of 100 %)
    "recover_lr": 0.2,     # of the masks' SGD, momentum 0.9
    "recover_steps": 80,   # the paper's 20 epochs over 500 images in batches of 128
    "threshold": 0.9,      # filters whose mask falls below this may go; how many, the validation accuracy decides
}


def unlearn(model: nn.Module, train: Pairs, lr: float, steps: int, chance: float, generator: torch.Generator) -> int:
    """Raise the clean loss of `model` in place until its accuracy on `train` is at most `chance` (0..1).

    BatchNorm keeps the model's statistics. Returns the number of steps made, at most `steps`.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    with evaluating(model, gradients=True):
        for step, batch in zip(range(steps), endless(train, generator), strict=False):
            if (predict(model, train.clean).argmax(1) == train.labels).float().mean() <= chance:
                return step
            optimizer.zero_grad()
            (-clean_loss(model, batch)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 20.0)  # the ascent has no bottom
            optimizer.step()
    return steps


def recover(model: nn.Module, found: Filters, train: Pairs, lr: float, steps: int, generator: torch.Generator,
            progress: bool = True) -> Tensor:
    """Learn one mask value per filter, float in [0, 1], with which the unlearned `model` knows its clean task again.

    The model's weights stay as they are; a mask scales all that belongs to a filter.
    """
    mask = torch.ones(len(found), device=train.clean.device, requires_grad=True)
    optimizer = torch.optim.SGD([mask], lr=lr, momentum=0.9)
    turns = trange(steps, desc="recovering", disable=not progress, leave=False)
    with evaluating(model, gradients=True):
        for _, batch in zip(turns, endless(train, generator), strict=False):
            logits = functional_call(model, gated(model, found, mask, mask), (batch.clean,))
            mask.grad = torch.autograd.grad(F.cross_entropy(logits, batch.labels), mask)[0]
            optimizer.step()
            mask.data.clamp_(0, 1)
    return mask.detach()


def rnp(model: nn.Module, clean: ImageSet, trigger: nn.Module | None = None, *, spc: int = 10, seed: int = 0,
        progress: bool = True, alpha: float = 0.10, **changes: Any) -> DefenseResult:
    """Unlearn and recover in a scratch copy of `model`, then remove the filters found from another. No trigger is used.

    clean: the defender's images, of which `spc` per class are drawn. alpha: filters go in order of their mask until
    clean validation accuracy would have fallen by this much. changes: any value of `DEFAULTS`.
    Raises InputError for bad arguments or too few images.
    """
    paper = settled("rnp", DEFAULTS, changes)
    work = Work(model, clean, None, spc, seed)
    generator = torch.Generator().manual_seed(seed)
    scratch, values = copy.deepcopy(work.model), torch.ones(len(work.found))
    with work.stage("unlearn"):
        unlearn(scratch, work.train, paper["unlearn_lr"], paper["unlearn_steps"], 1 / work.classes, generator)
    if not work.interrupted:
        with work.stage("recover"):
            values = recover(scratch, work.found, work.train, paper["recover_lr"], paper["recover_steps"], generator,
                             progress).cpu()
    stopped = work.prune(closed(values, paper["threshold"]), values, alpha, progress)
    return work.result("rnp", {"spc": spc, "alpha": alpha, **paper, "seed": seed}, pruned=work.model, stopped=stopped)
