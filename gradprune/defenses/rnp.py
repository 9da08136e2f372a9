"""RNP: make the model forget its clean task, let channels recover it, and close those that did not help.

Source: Li et al., 2023, "Reconstructive Neuron Pruning", arXiv:2305.14876. After the clean task has been unlearned, the
backdoor is left; the channels that recovery closes are the ones that carry it.
Settings are the authors' released ones: the mask multiplies the scale of each BatchNorm channel, BatchNorm uses the
batch's statistics in both stages, images are augmented. Unlike theirs, the gradient's norm is clipped to 20 before each
step of the ascent (theirs is clipped while it is still empty). The release lists figures for thresholds up to 0.9, of
which BackdoorBench takes the one with the lowest ASR on test images; here held-out clean images choose, as in `anp`.
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
from gradprune.defenses.channels import batch_norms, batch_statistics, check_closing, close_below, scaled_channels
from gradprune.defenses.common import Work, endless, override_positive
from gradprune.defenses.result import DefenseResult
from gradprune.models.inference import check_unwrapped
from gradprune.pruning import Pairs

DEFAULTS: dict[str, Any] = {
    "unlearn_lr": 0.01,   # of the ascent's SGD, momentum 0.9, weight decay 5e-4
    "unlearn_steps": 84,  # at most (released: 21 epochs over 500 images)
    "decay_steps": 40,    # after each of which the ascent's rate falls to a tenth (released: after 10 and 20 epochs)
    "unlearned": 2.0,     # the ascent ends at this multiple of chance accuracy (released: 0.20 for 10 classes)
    "recover_lr": 0.2,    # of the masks' SGD, momentum 0.9
    "recover_weight": 0.2,  # of the loss in recovery
    "recover_steps": 80,  # released: 20 epochs over 500 images
    "batch_size": 128,    # images per step of both
    "threshold": 0.9,     # the highest one tried, in steps of 0.05
}


def unlearn(model: nn.Module, train: Iterable[Pairs], lr: float, steps: int, decay_steps: int, goal: float) -> int:
    """Raise the clean loss of `model` in place until its accuracy on a batch is at most `goal` (0..1).

    train: an endless stream of batches.
    decay_steps: the rate falls to a tenth each time after so many steps.
    Returns the number of steps made, at most `steps`.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, decay_steps)
    with batch_statistics(model):
        for step, batch in zip(range(steps), train, strict=False):
            logits = model(batch.clean)
            if (logits.argmax(1) == batch.labels).float().mean() <= goal:
                return step
            optimizer.zero_grad()
            (-F.cross_entropy(logits, batch.labels)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 20.0)  # the ascent is unbounded
            optimizer.step()
            schedule.step()
    return steps


def recover(model: nn.Module, train: Iterable[Pairs], lr: float, weight: float, steps: int,
            progress: bool = True) -> Tensor:
    """Learn a mask, float (BatchNorm channels,) in [0, 1], with which the unlearned `model` recovers its task.

    train: an endless stream of batches. The model's weights do not change, but BatchNorm's statistics do.
    """
    mask = torch.ones(sum(batch_norms(model).values()), device=next(model.parameters()).device, requires_grad=True)
    optimizer = torch.optim.SGD([mask], lr=lr, momentum=0.9)
    turns = trange(steps, desc="recovering", disable=not progress, leave=False)
    with batch_statistics(model):
        for _, batch in zip(turns, train, strict=False):
            logits = functional_call(model, scaled_channels(model, mask), (batch.clean,), tie_weights=False)
            mask.grad = torch.autograd.grad(weight * F.cross_entropy(logits, batch.labels), mask)[0]
            optimizer.step()
            mask.data.clamp_(0, 1)
    return mask.detach()


def rnp(model: nn.Module, clean: ImageSet, trigger: nn.Module | None = None, *, spc: int = 10, seed: int = 0,
        progress: bool = True, alpha: float = 0.10, **changes: Any) -> DefenseResult:
    """Unlearn and recover in a scratch copy of `model`, then close the channels found in another copy.

    clean: the defender's images, of which `spc` per class are drawn.
    trigger: not used.
    alpha: the highest threshold is taken at which accuracy on views of the held-out images falls by less than this.
    changes: any value of `DEFAULTS`.
    No filter is silent, so the result's mask is empty; `stopped` and the history count channels.
    Raises InputError for bad arguments, too few images, or a network without BatchNorm.
    """
    paper = override_positive("rnp", DEFAULTS, changes)
    check_closing(alpha, paper["threshold"])
    check_unwrapped(model)
    work = Work(model, clean, None, spc, seed)
    work.validation = work.augment.add_to(work.validation, seed)
    stream = endless(work.train, torch.Generator().manual_seed(seed), paper["batch_size"], renew=work.augment)
    scratch, mask = copy.deepcopy(work.model), torch.ones(sum(batch_norms(work.model).values()))
    with work.stage("unlearn"):
        unlearn(scratch, stream, paper["unlearn_lr"], paper["unlearn_steps"], paper["decay_steps"],
                min(paper["unlearned"] / work.classes, (1 + 1 / work.classes) / 2))  # below 1 with two classes, too
    if not work.interrupted:
        with work.stage("recover"):
            mask = recover(scratch, stream, paper["recover_lr"], paper["recover_weight"], paper["recover_steps"],
                           progress)
    stopped = work.prune(close_below, mask, alpha=alpha, top=paper["threshold"])
    return work.result("rnp", {"spc": spc, "alpha": alpha, **paper, "seed": seed}, pruned=work.model, stopped=stopped)
