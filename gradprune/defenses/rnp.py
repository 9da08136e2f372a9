"""RNP: make the model forget its clean task, let filters recover it, and remove those that did not help.

Source: Li et al., 2023, "Reconstructive Neuron Pruning", arXiv:2305.14876. Once the clean task is unlearned, what is
left is the backdoor; filters that recovery wants closed are the ones that carry it.
Settings are the authors' released ones: BatchNorm goes by the batch in both stages, recovery weighs its loss by 0.2.
Unlike theirs, the mask scales a BatchNorm's shift too, as removal does, and the gradient's norm is cut to 20 before
each step of the ascent (theirs is cut where it is still empty).
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from tqdm.auto import trange

from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, adopted, batch_statistics, closed, endless
from gradprune.defenses.result import DefenseResult
from gradprune.pruning import Filters, Pairs, gated, in_order

DEFAULTS: dict[str, Any] = {
    "unlearn_lr": 0.01,   # of the ascent's SGD, momentum 0.9, weight decay 5e-4
    "unlearn_steps": 84,  # at most (released: 21 epochs over 500 images, batch 128; lr / 10 after 40 steps)
    "unlearned": 2.0,     # the ascent ends at this multiple of chance accuracy (released: 0.20 for 10 classes)
    "recover_lr": 0.2,    # of the masks' SGD, momentum 0.9
    "recover_weight": 0.2,  # of the loss in recovery
    "recover_steps": 80,  # released: 20 epochs over 500 images, batch 128
    "batch_size": 64,     # images per step of both (released: 128)
    "threshold": 0.9,     # filters whose mask falls below this may go; how many, the validation accuracy decides
}


def unlearn(model: nn.Module, train: Iterable[Pairs], lr: float, steps: int, goal: float) -> int:
    """Raise the clean loss of `model` in place until its accuracy on a batch is at most `goal` (0..1).

    train: batches without end. Returns the number of steps made, at most `steps`.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    with batch_statistics(model):
        for step, batch in zip(range(steps), train, strict=False):
            logits = model(batch.clean)
            if (logits.argmax(1) == batch.labels).float().mean() <= goal:
                return step
            optimizer.zero_grad()
            (-F.cross_entropy(logits, batch.labels)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 20.0)  # the ascent has no bottom
            optimizer.step()
    return steps


def recover(model: nn.Module, found: Filters, train: Iterable[Pairs], lr: float, weight: float, steps: int,
            progress: bool = True) -> Tensor:
    """Learn one mask value per filter, float in [0, 1], with which the unlearned `model` knows its clean task again.

    train: batches without end. The model's weights stay as they are, BatchNorm's statistics move; a mask scales all
    that belongs to a filter.
    """
    mask = torch.ones(len(found), device=next(model.parameters()).device, requires_grad=True)
    optimizer = torch.optim.SGD([mask], lr=lr, momentum=0.9)
    turns = trange(steps, desc="recovering", disable=not progress, leave=False)
    with batch_statistics(model):
        for _, batch in zip(turns, train, strict=False):
            logits = functional_call(model, gated(model, found, mask, mask), (batch.clean,))
            mask.grad = torch.autograd.grad(weight * F.cross_entropy(logits, batch.labels), mask)[0]
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
    paper = adopted("rnp", DEFAULTS, changes)
    work = Work(model, clean, None, spc, seed)
    stream = endless(work.train, torch.Generator().manual_seed(seed), paper["batch_size"])
    scratch, values = copy.deepcopy(work.model), torch.ones(len(work.found))
    with work.stage("unlearn"):
        unlearn(scratch, stream, paper["unlearn_lr"], paper["unlearn_steps"], paper["unlearned"] / work.classes)
    if not work.interrupted:
        with work.stage("recover"):
            values = recover(scratch, work.found, stream, paper["recover_lr"], paper["recover_weight"],
                             paper["recover_steps"], progress).cpu()
    stopped = work.prune(in_order, closed(values, paper["threshold"]), values, alpha=alpha, progress=progress)
    return work.result("rnp", {"spc": spc, "alpha": alpha, **paper, "seed": seed}, pruned=work.model, stopped=stopped)
