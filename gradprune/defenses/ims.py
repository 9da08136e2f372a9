"""IMS (Invertible Masking using Selection): a soft mask of the filters, whose inverse keeps the backdoor.

Source: Dunnett et al., 2025, "Backdoor Mitigation via Invertible Pruning Masks", arXiv:2509.15497, by the authors of
gradient-based unlearning pruning. The inverse mask looks for small changes of the images that change the given model's
answer in a way that the inverse follows; the mask must resist them. No weight is trained.
Losses and settings are those of the authors' release, github.com/WhoDunnett/BackdoorBenchmark (defense/ims.py): no
augmentation, no validation, BatchNorm's statistics fixed, and gates that stay soft at the end.
"""

from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, override_positive
from gradprune.defenses.inverse_masks import Masks, gated
from gradprune.defenses.result import DefenseResult
from gradprune.models.inference import check_unwrapped, evaluating

DEFAULTS: dict[str, Any] = {
    "steepness": 20.0,    # of the sigmoid in a gate
    "lr": 0.02,           # of the gates' AdamW
    "kept": 10.0,         # weight of mean(1 - s) in the first and the third part
    "first_rounds": 100,  # most of the first part, in which the inverse learns to fail the clean task
    "rounds": 200,        # most of the second and third: it also follows the changes, and the mask resists them
    "patience": 25,       # consecutive rounds without an improvement that end a part
    "improvement": 0.98,  # an improvement must fall below this share of the best loss so far
    "search_steps": 5,    # AdamW steps per round that look for the changes (released: 20 of 1e-3)
    "search_lr": 4e-3,    # of those steps: a pixel moves by 0.02 at most, as there (the released bound is 1)
    "batch_size": 32,     # images per round (released: 256)
}


def ims(model: nn.Module, clean: ImageSet, trigger: nn.Module | None = None, *, spc: int = 10, seed: int = 0,
        progress: bool = True, **changes: Any) -> DefenseResult:
    """Learn a gate for every filter of `model` and scale the filters of a copy by it; `trigger` is not used.

    clean: the defender's images, of which `spc` per class are drawn; all are used, without their labels.
    changes: any value of `DEFAULTS`.
    A gate scales the filter's output before its BatchNorm, whose shift stays, and is at least 4.5e-5. So no filter is
    silent, the result's mask is empty, and `stopped` and the history count gates below one half. Dropout is off.
    Raises InputError for bad arguments or too few images.
    """
    paper = override_positive("ims", DEFAULTS, changes)
    check_unwrapped(model)
    work = Work(model, clean, None, spc, seed, hold_out=False, searches=True)
    work.measure("prune", round=0, layer=None, index=None)
    masks, generator = Masks(work.model, work.found, paper), torch.Generator().manual_seed(seed)
    parts = ((paper["first_rounds"], True, paper["kept"]), (paper["rounds"], False, 0.0),
             (paper["rounds"], False, paper["kept"]))
    bar = tqdm(total=sum(part[0] for part in parts), desc="ims", disable=not progress, leave=False)
    with work.stage("prune"), evaluating(work.model), bar:
        for rounds, first, weight in parts:
            for _ in masks.learn(work.train.clean, rounds, generator, first=first, weight=weight):
                bar.update()
    factors = masks.factors().detach()
    with torch.no_grad():
        for name, tensor in gated(work.model, work.found, factors).items():
            work.model.get_parameter(name).copy_(tensor)
    closed = int((factors < 0.5).sum())
    work.measure("prune", round=1, layer=None, index=None, channels=closed, kept=True)
    return work.result("ims", {"spc": spc, **paper, "seed": seed}, pruned=work.model,
                       stopped=f"{closed} of {len(factors)} gates are below one half")
