"""Repair: clean a model with the trigger unknown, by one of two methods.

If a network can learn to ignore small changes of the image and keep its clean answers, that removes the backdoor, too:
`consistent_tune` does so without suspecting a class. A network that random changes hardly affect always can. For any
other, `scan` looks for the one class that is too easy to reach. Triggers and changes that lead there are searched for
and unlearned together, until that class is as hard to reach as the others. If no class is suspected, consistency is
tried on half of the images, and used if the clean answers to the other half survive. Source of the scan's searches:
Wang et al., 2019, "Neural Cleanse"; the rest is ours.
"""

from typing import Any

import torch
from torch import Tensor, nn

from gradprune.base.errors import require, require_known
from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, override_positive
from gradprune.defenses.consistency import CONSISTENCY, consistent_tune
from gradprune.defenses.result import DefenseResult
from gradprune.defenses.scan import scan
from gradprune.defenses.unlearning import UNLEARNING, unlearn_suspect
from gradprune.models.inference import predict
from gradprune.pruning import Pairs
from gradprune.pruning.distilled import VIEWS
from gradprune.search import FAMILIES, draw

IGNORED = "so the model learned to ignore them (consistency)"  # which of the two ways, in `stopped`; the report asks
LOCAL = ("patches", "sparse", "bounded")  # families that leave an image recognisable wherever they are
DEFAULTS: dict[str, Any] = CONSISTENCY | UNLEARNING | {
    "sturdy": 0.1,        # below this share of altered answers consistency is used at once: see `unsteadiness`
    "changes": 36,        # how many are drawn for that decision
    "trial_steps": 75,    # above it, where no class is suspected, it is tried for so many steps on half of the images
    "kept": 0.78,         # and must keep this share of the answers on the other half
    "scan_steps": 150,    # of each search of the scan: with 60 a real target was close to the threshold
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
    `stopped` of the result says which method was used, and why; `suspect` is the class that was unlearned, or None. If
    the scan suspects no class and the trial of consistency fails, the model stays as it is. Ctrl-C keeps what has been
    reached. Raises InputError for bad arguments or too few images.
    """
    paper = override_positive("repair", DEFAULTS, changes)
    require(len(families) > 0, "families must name at least one family of changes.")
    for name in families:
        require_known("family", name, FAMILIES)
    work = Work(model, clean, None, spc, seed, hold_out=False, searches=True)
    altered = unsteadiness(work.model, work.train.clean, paper["changes"], seed)
    told, share, scanned = f"small random changes alter {altered:.0%} of the answers, ", 1.0, None
    with work.stage("tune"):
        if altered >= paper["sturdy"]:
            if work.classes >= 3:
                scanned = scan(model, clean, spc=spc, seed=seed, progress=progress, steps=paper["scan_steps"])
            told += (f"so a scan looked for a target. {scanned.verdict}" if scanned else
                     "and a scan needs at least three classes.")
            if scanned is None or scanned.suspect is None:
                share = kept_on_trial(model, clean, spc, families, paper, seed, progress)
                told += f" Learning to ignore such changes kept {share:.0%} of the clean answers in a trial, "
        if scanned is not None and scanned.suspect is not None:
            told += unlearn_suspect(work, scanned, paper, seed, progress)
        elif share >= paper["kept"]:
            told += IGNORED
            work.history = tune_consistently(work, families, paper, paper["steps"], seed, progress)
        else:
            told += "so the model was left as it is"
    return work.result("repair", {"spc": spc, "families": families, **paper, "seed": seed}, stopped=told,
                       suspect=scanned and scanned.suspect)


def tune_consistently(work: Work, families: tuple[str, ...], paper: dict[str, Any], steps: int, seed: int,
                      progress: bool) -> list[dict[str, Any]]:
    """Run `consistent_tune` on the copy; returns the history rows."""
    settings = {name: paper[name] for name in CONSISTENCY} | {"steps": steps}
    return consistent_tune(work.given, work.model, work.mask, work.train, work.validation, work.augment, families,
                           seed=seed, progress=progress, **settings)


def kept_on_trial(model: nn.Module, clean: ImageSet, spc: int, families: tuple[str, ...], paper: dict[str, Any],
                  seed: int, progress: bool) -> float:
    """The share (0..1) of its answers that the model keeps in a short `consistent_tune`.

    It learns from one half of the images; the answers are those to views of the other half. Ctrl-C ends the repair.
    """
    trial = Work(model, clean, None, spc, seed, hold_out=False, searches=True)
    mixed = torch.randperm(len(trial.train.labels), generator=torch.Generator().manual_seed(seed))
    trial.train, trial.validation = (
        Pairs(trial.train.clean[half], trial.train.clean[:0], trial.train.labels[half])
        for half in mixed.to(trial.train.labels.device).tensor_split(2))
    history = tune_consistently(trial, families, paper, paper["trial_steps"], seed, progress)
    if "interrupted" in history[-1]:
        raise KeyboardInterrupt
    views = trial.augment(trial.validation, torch.Generator().manual_seed(seed), VIEWS).clean
    before, now = (predict(one, views).argmax(1) for one in (model, trial.model))
    return float((before == now).float().mean())
