"""Repair: clean a model whose trigger nobody knows, by one of two roads.

Where small changes of the image hardly move a network, a backdoor stands out as what does: `consistent_tune` makes it
ignore them all, with no class suspected. A network of photographs is often moved by anything, and to mend all that
costs more accuracy than there is: there `scan` looks for the one class that is reached too easily. Triggers that lead
there are searched from several starts and unlearned together, until the class needs as much as the others do. The given
model's answers to drawn changes decide. Source of the searches: Wang et al., 2019, "Neural Cleanse"; the rest is ours.
"""

from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, override_positive
from gradprune.defenses.consistency import CONSISTENCY, consistent_tune
from gradprune.defenses.result import DefenseResult
from gradprune.defenses.scan import FASTER, KINDS, SMALL, Scan, scan
from gradprune.models.inference import predict
from gradprune.pruning import Augment, Distilled
from gradprune.pruning.distilled import epochs_for, tune_on_views
from gradprune.search import FAMILIES, Alternating, draw

LOCAL = ("patches", "sparse", "bounded")  # families that leave an image readable wherever they fall
DEFAULTS: dict[str, Any] = CONSISTENCY | {
    "sturdy": 0.1,        # a model is, where drawn changes alter a smaller share of its answers: see `unsteadiness`
    "changes": 36,        # how many are drawn to tell
    "scan_steps": 150,    # of each search of the scan: with 60 a real target lay next to the alarm
    "rounds": 3,          # of searching the suspected class and unlearning, at most
    "searches": 3,        # starts of a round
    "round_steps": 80,    # of each search: further on the mask shrinks to what only these images need
    "suspect_lr": 2e-3,   # of SGD with momentum, a half cosine a round
    "suspect_steps": 112,  # optimiser steps a round
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
    paper = override_positive("repair", DEFAULTS, changes)
    work = Work(model, clean, None, spc, seed, hold_out=False, searches=True)
    altered = unsteadiness(work.model, work.train.clean, paper["changes"], seed)
    told = f"small drawn changes alter {altered:.0%} of the answers: "
    with work.stage("tune"):
        if altered < paper["sturdy"]:
            told += "consistency"
            work.history = consistent_tune(model, work.model, work.mask, work.train, work.validation, work.augment,
                                           families, seed=seed, progress=progress,
                                           **{name: paper[name] for name in CONSISTENCY})
        else:
            scanned = scan(model, clean, spc=spc, seed=seed, progress=progress, steps=paper["scan_steps"])
            told += f"scan. {scanned.verdict}"
            if scanned.suspect is not None:
                told += unlearn_suspect(work, scanned, paper, seed, progress)
    return work.result("repair", {"spc": spc, "families": families, **paper, "seed": seed}, stopped=told)


def unlearn_suspect(work: Work, scanned: Scan, paper: dict[str, Any], seed: int, progress: bool) -> str:
    """Search triggers of the suspected class and unlearn all that are small, round by round; returns how it ended.

    Small is a norm below `SMALL` times the median of the other classes, the scan's own measure. The copy learns to
    answer an image with one of the triggers as the original model answers the clean image (see `Distilled`); the last
    step of a round is kept.
    """
    label, kind = scanned.suspect, scanned.kind or "mask"
    usual = median(row.norm for row in scanned.rows if row.kind == kind and row.converged and row.label != label)
    others, triggers = work.train.clean[work.train.labels != label], list[nn.Module]()
    epochs = epochs_for(len(work.train.labels), paper["suspect_steps"], paper["batch_size"])
    for turn in range(paper["rounds"]):
        searched = [KINDS[kind](work.model, others, label, seed=seed + turn * paper["searches"] + start,
                                progress=progress, **FASTER | {"steps": paper["round_steps"]})
                    for start in range(paper["searches"])]
        small = [one.trigger for one in searched if one.converged and one.norm < SMALL * usual]
        if not small:
            return f" After {turn} rounds of unlearning it needs what the others need."
        triggers += small
        augment = Augment(work.given, Alternating(triggers), work.train)
        work.history += tune_on_views(work.model, work.mask, augment.paired(work.train), work.validation, augment,
                                      Distilled(work.given), lr=paper["suspect_lr"], epochs=epochs,
                                      batch_size=paper["batch_size"], seed=seed + turn, progress=progress)
    return f" After {paper['rounds']} rounds of unlearning it was not looked at again."
