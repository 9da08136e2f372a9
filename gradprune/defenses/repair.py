"""Repair: clean a model with the trigger unknown, by one of two methods.

If small changes of the image hardly affect a network, a backdoor stands out: `consistent_tune` makes the network ignore
all such changes, without suspecting a class. A network for photographs is often affected by any change, and repairing
all that would cost too much accuracy: for it, `scan` looks for the one class that is too easy to reach. Triggers that
lead there are searched for from several starts and unlearned together, until the class is as hard to reach as the
others. The given model's answers to random changes decide between the two. Source of the searches: Wang et al., 2019,
"Neural Cleanse"; the rest is ours.
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

IGNORED = "so the model learned to ignore them (consistency)"  # which of the two ways, in `stopped`; the report asks
SCANNED = "too many to unlearn, so a scan looked for a target"
LOCAL = ("patches", "sparse", "bounded")  # families that leave an image recognisable wherever they are
DEFAULTS: dict[str, Any] = CONSISTENCY | {
    "sturdy": 0.1,        # below this share of altered answers consistency is used: see `unsteadiness`
    "changes": 36,        # how many are drawn for that decision
    "scan_steps": 150,    # of each search of the scan: with 60 a real target was close to the threshold
    "rounds": 3,          # of searching for triggers of the suspected class and unlearning them, at most
    "searches": 3,        # starts per round
    "round_steps": 80,    # of each search: with more, the mask shrinks to what only these images need
    "suspect_lr": 2e-3,   # of SGD with momentum, half a cosine per round
    "suspect_steps": 112,  # optimiser steps per round
}


def unsteadiness(model: nn.Module, images: Tensor, count: int = DEFAULTS["changes"], seed: int = 0) -> float:
    """The share (0..1) of the model's answers that random changes of the families in `LOCAL` alter.

    images: float (N, C, H, W) in [0, 1], clean.
    count: how many changes are drawn, each applied to all images.
    """
    generator = torch.Generator().manual_seed(seed)
    usual = predict(model, images).argmax(1)
    drawn = (draw(images.shape[1:], generator, LOCAL) for _ in range(count))
    return float(torch.stack([predict(model, change(images)).argmax(1) != usual for change in drawn]).float().mean())


def repair(model: nn.Module, clean: ImageSet, trigger: nn.Module | None = None, *, spc: int = 10, seed: int = 0,
           progress: bool = True, families: tuple[str, ...] = tuple(FAMILIES), **changes: Any) -> DefenseResult:
    """Clean a copy of `model` with the trigger unknown; `trigger` is not used.

    clean: the defender's images, of which `spc` per class are drawn; the model learns from all of them.
    families: names in `FAMILIES`, the changes used by `consistent_tune`.
    changes: any value of `DEFAULTS`.
    `stopped` of the result says which method was used, and why. If the scan suspects no class, the model stays as it
    is. Ctrl-C keeps what has been reached. Raises InputError for bad arguments or too few images.
    """
    paper = override_positive("repair", DEFAULTS, changes)
    work = Work(model, clean, None, spc, seed, hold_out=False, searches=True)
    altered = unsteadiness(work.model, work.train.clean, paper["changes"], seed)
    told = f"small random changes alter {altered:.0%} of the answers, "
    with work.stage("tune"):
        if altered < paper["sturdy"]:
            told += IGNORED
            work.history = consistent_tune(model, work.model, work.mask, work.train, work.validation, work.augment,
                                           families, seed=seed, progress=progress,
                                           **{name: paper[name] for name in CONSISTENCY})
        else:
            scanned = scan(model, clean, spc=spc, seed=seed, progress=progress, steps=paper["scan_steps"])
            told += f"{SCANNED}. {scanned.verdict}"
            if scanned.suspect is not None:
                told += unlearn_suspect(work, scanned, paper, seed, progress)
    return work.result("repair", {"spc": spc, "families": families, **paper, "seed": seed}, stopped=told)


def unlearn_suspect(work: Work, scanned: Scan, paper: dict[str, Any], seed: int, progress: bool) -> str:
    """Search for triggers of the suspected class and unlearn all small ones, round by round; returns how it ended.

    A small trigger has a norm below `SMALL` times the median of the other classes, as in the scan. The copy learns to
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
            rounds = f"{turn} round{'s' * (turn != 1)}"
            return f" After {rounds} of unlearning, it is no easier to reach than the other classes."
        triggers += small
        augment = Augment(work.given, Alternating(triggers), work.train)
        work.history += tune_on_views(work.model, work.mask, augment.paired(work.train.clean, work.train.labels),
                                      work.validation, augment, Distilled(work.given), lr=paper["suspect_lr"],
                                      epochs=epochs, batch_size=paper["batch_size"], seed=seed + turn,
                                      progress=progress)
    return f" {paper['rounds']} rounds of unlearning were made; the last one was not checked."
