"""Grad-Prune: unlearn a backdoor by pruning filters along the unlearning gradient, then fine-tune.

Source: Dunnett, Arablouei, Miller, Dedeoglu & Jurdak, 2024, arXiv:2405.03918.
"""

import copy
from dataclasses import replace
from typing import Any

from torch import nn

from gradprune.base.errors import require_known
from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, known
from gradprune.defenses.result import DefenseResult
from gradprune.defenses.scan import Scan
from gradprune.pruning import RECIPES, SCORES, best_repair, fine_tune

OWN_SCORE = {"paper": "gradient", "verified": "gate"}


def grad_prune(model: nn.Module, clean: ImageSet, trigger: nn.Module, *, spc: int = 10, recipe: str = "verified",
               score: str | None = None, alpha: float = 0.10, patience: int = 10, tune: bool = True, seed: int = 0,
               progress: bool = True) -> DefenseResult:
    """Remove a backdoor from a copy of `model`; the given model is not changed.

    clean: the defender's clean images, of which `spc` per class are drawn (see `draw_defense_images`); never the
        test set.
    trigger: float images (N, C, H, W) in [0, 1] -> the same shape and range.
    recipe: a name in `RECIPES`. "paper" is the published method. "verified" also augments the images, and fine-tunes by
        `best_repair`: the model stays pruned only if that helps on the validation images.
    score: a name in `SCORES`; None for the recipe's own.
    alpha, patience: when to stop (see the recipe).
    tune: fine-tune after pruning.
    Runs on the model's device. Ctrl-C ends the current stage and keeps what is finished.
    Raises InputError for bad arguments, too few images, a model without convolutions or losses that are not finite.

        victim = gradprune.load_victim("badnets")
        result = gradprune.grad_prune(victim.model, victim.data.defense, victim.trigger, spc=10)
    """
    require_known("recipe", recipe, RECIPES)
    score = score or OWN_SCORE[recipe]
    require_known("score", score, SCORES)
    work = Work(model, clean, known(trigger), spc, seed)
    train, given = work.train, copy.deepcopy(work.model)
    if recipe == "verified":
        train = work.augment.add_to(train, seed)
    stopped = work.prune(RECIPES[recipe], train, score=score, alpha=alpha, patience=patience, progress=progress)
    pruned = work.model
    if tune and not work.interrupted:
        with work.stage("tune"):
            if recipe == "verified":
                work.model, work.mask, history = best_repair(
                    given, pruned, work.mask, work.train, work.validation, work.augment, seed=seed,
                    progress=progress)
                stopped += "; kept: " + next(row["repair"] for row in history if row.get("kept") and "repair" in row)
            else:
                work.model = copy.deepcopy(pruned)
                history = fine_tune(work.model, work.mask, work.train, work.validation, seed=seed, progress=progress)
            work.history += history
    settings = {"recipe": recipe, "score": score, "spc": spc, "alpha": alpha, "patience": patience, "tune": tune,
                "seed": seed}
    return work.result("grad_prune", settings, pruned=pruned, stopped=stopped)


def grad_prune_paper(model: nn.Module, clean: ImageSet, trigger: nn.Module, *, spc: int = 10, recipe: str = "paper",
                     seed: int = 0, progress: bool = True, **settings: Any) -> DefenseResult:
    """`grad_prune` with recipe "paper", called "grad_prune" in tables; settings: those of `grad_prune`."""
    return grad_prune(model, clean, trigger, spc=spc, recipe=recipe, seed=seed, progress=progress, **settings)


def grad_prune_verified(model: nn.Module, clean: ImageSet, trigger: nn.Module, *, spc: int = 10, seed: int = 0,
                        progress: bool = True, **settings: Any) -> DefenseResult:
    """`grad_prune` with recipe "verified", under a separate name in tables."""
    result = grad_prune(model, clean, trigger, spc=spc, recipe="verified", seed=seed, progress=progress, **settings)
    return replace(result, name="grad_prune_verified")


def prune_scanned(model: nn.Module, clean: ImageSet, scanned: Scan, *, spc: int = 10, seed: int = 0, **settings: Any
                  ) -> DefenseResult:
    """Run `grad_prune` with the trigger that a scan synthesised; without a suspect, return an unchanged copy.

    settings: those of `grad_prune`, which lists the errors raised. Without a suspect, `stopped` is the scan's verdict.
    """
    if scanned.trigger is not None:
        return grad_prune(model, clean, scanned.trigger, spc=spc, seed=seed, **settings)
    work = Work(model, clean, None, spc, seed)
    work.measure("given")
    kept = {name: value for name, value in settings.items() if name != "progress"}
    return work.result("grad_prune", {"spc": spc, "seed": seed, **kept}, pruned=work.model, stopped=scanned.verdict)
