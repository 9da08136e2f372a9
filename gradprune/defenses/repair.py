"""Repair: clean a model whose trigger nobody knows, by one of two roads.

Where small changes of the image hardly move a network, a backdoor stands out as what does: `consistent_tune` makes it
ignore them all, with no class suspected. A network of photographs is often moved by anything, and to mend all that
costs more accuracy than there is: there `scan` looks for the one class that is reached too easily, and `grad_prune` by
recipe "verified" unlearns the trigger that the scan synthesised. The given model's answers to drawn changes decide.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, adopted
from gradprune.defenses.grad_prune import grad_prune
from gradprune.defenses.result import DefenseResult
from gradprune.defenses.scan import scan
from gradprune.models.inference import predict
from gradprune.pruning import CONSISTENCY, FAMILIES, consistent_tune, draw

LOCAL = ("patches", "sparse", "bounded")  # families that leave an image readable wherever they fall
DEFAULTS: dict[str, Any] = CONSISTENCY | {
    "sturdy": 0.1,   # a model is, where drawn changes alter a smaller share of its answers: see `unsteadiness`
    "changes": 36,   # how many are drawn to tell
}


def unsteadiness(model: nn.Module, images: Tensor, count: int = DEFAULTS["changes"], seed: int = 0) -> float:
    """The share of the model's answers that changes of the families in `LOCAL` alter, 0 to 1.

    images: float (N, C, H, W) in [0, 1], clean. count: how many changes are drawn, each for all images.
    """
    generator = torch.Generator().manual_seed(seed)
    usual = predict(model, images).argmax(1)
    drawn = (draw(images.shape[1:], generator, LOCAL) for _ in range(count))
    return float(torch.stack([predict(model, change(images)).argmax(1) != usual for change in drawn]).float().mean())


def repair(model: nn.Module, clean: ImageSet, trigger: nn.Module | None = None, *, spc: int = 10, seed: int = 0,
           progress: bool = True, families: tuple[str, ...] = tuple(FAMILIES), **changes: Any) -> DefenseResult:
    """Clean a copy of `model`; `trigger` is not used.

    clean: the defender's images, of which `spc` per class are drawn, all of them to learn from. families: names in
    `FAMILIES`, the changes that the first road draws and searches. changes: any value of `DEFAULTS`. `stopped` of the
    result says which road was taken, and why. Where the second road suspects no class the model stays as it is.
    Ctrl-C keeps what is reached. Raises InputError for bad arguments or too few images.
    """
    paper = adopted("repair", DEFAULTS, changes)
    work = Work(model, clean, None, spc, seed, hold_out=False)
    altered = unsteadiness(work.model, work.train.clean, paper["changes"], seed)
    settings = {"spc": spc, "families": families, **paper, "seed": seed}
    why = f"small drawn changes alter {altered:.0%} of the answers"
    if altered < paper["sturdy"]:
        with work.stage("tune"):
            work.history = consistent_tune(model, work.model, work.mask, work.train, work.validation, work.augment,
                                           families, seed=seed, progress=progress,
                                           **{name: paper[name] for name in CONSISTENCY})
        return work.result("repair", settings, stopped=f"{why}: consistency")
    found = scan(model, clean, spc=spc, seed=seed, progress=progress)
    if found.trigger is None:
        work.measure("given")
        return work.result("repair", settings, stopped=f"{why}: scan; {found.verdict}")
    treated = grad_prune(model, clean, found.trigger, recipe="verified", spc=spc, seed=seed, progress=progress)
    return replace(treated, name="repair", settings=settings, stopped=f"{why}: scan; {treated.stopped}")
