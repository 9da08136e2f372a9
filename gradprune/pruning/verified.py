"""Recipe `verified`: the gradient proposes, a trial decides, and held-out images say whether pruning pays.

The gradient is a first-order estimate. Here it only makes a shortlist: each of the filters with the highest scores is
actually removed, and the removal with the lowest `Objective` is kept (`verified`). Then the model is fine-tuned with
and without the pruning, and the best of these repairs is kept (`best_repair`). `grad_prune(recipe="verified")` does
both.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.attacks.augment import Augment
from gradprune.attacks.pairs import Pairs
from gradprune.base.errors import require
from gradprune.models.inference import predict
from gradprune.pruning.candidate_removals import CandidateRemovals, fastest_candidate
from gradprune.pruning.distilled import distilled_tune, judge
from gradprune.pruning.filters import FilterMask, Filters, silent
from gradprune.pruning.loop import Chosen, Pruned, Validation, check_limits, remove_in_rounds, validate
from gradprune.pruning.scores import filter_scores

K = 16        # filters on the shortlist
WEIGHT = 3.0  # of the clean term against the unlearning loss


def verified(model: nn.Module, found: Filters, train: Pairs, validation: Pairs, *, score: str = "gate",
             alpha: float = 0.10, patience: int = 10, k: int = K, weight: float = WEIGHT,
             progress: bool = True) -> Pruned:
    """Remove, in each round, the filter on the shortlist whose removal helps most; `model` is pruned in place.

    The filter that helps most has the lowest `Objective` on the training pairs, even if it is higher than before: two
    filters together may carry what neither carries alone.
    found: all filters of the model.
    train, validation: image pairs on the model's device.
    score: a name in `SCORES`, for the shortlist.
    alpha: a candidate that would lower clean accuracy on the training pairs by this (0..1) or more is excluded.
    patience: stop after this many rounds without a lower validation objective.
    k: filters on the shortlist.
    weight: of the clean term in the objective.
    It also stops when all candidates are excluded, when one filter is left, and on Ctrl-C. Then it returns to the round
    with the lowest validation objective.
    Raises InputError for k below 1, a negative weight, or a score, alpha or patience out of range.
    """
    require(k >= 1, f"k must be at least 1 filter, got {k}.")
    require(weight >= 0, f"weight must not be negative, got {weight}.")
    check_limits(alpha)  # `remove_in_rounds` is given none, and checks patience
    trials = CandidateRemovals(model, found, train.clean[:2])
    goal, check = (Objective(model, pairs, weight) for pairs in (train, validation))
    logits = predict(model, goal.images)
    terms = goal.terms(logits)  # each image's contribution to the objective
    mistakes = float(goal.wrong(logits).sum()) + goal.pairs * (alpha - 1e-6)

    def choose(alive: Tensor) -> Chosen:
        nonlocal terms
        if alive.sum() <= 1:
            return "one filter was left"
        scores, loss = filter_scores(model, found, train.triggered, train.labels, score)
        shortlist = scores.masked_fill(~alive, -torch.inf).topk(min(k, int(alive.sum()) - 1)).indices.tolist()
        won = fastest_candidate(trials, goal, shortlist, terms, mistakes)
        if won is None:
            return f"every trial would cost {alpha:.0%} of clean accuracy on the training pairs"
        choice, terms = won
        return shortlist[choice], {"score": float(scores[shortlist[choice]]), "train_loss": loss, "rank": choice,
                                   "objective": float(terms.sum()) / goal.pairs}

    def judge() -> tuple[Validation, float, dict[str, float]]:
        logits = predict(model, check.images)
        objective = float(check(logits))
        return validate(model, validation, logits), objective, {"val_objective": objective}

    return remove_in_rounds(model, FilterMask(found, before=silent(model, found)), choose, judge, rounds=len(found) - 1,
                            alpha=None, patience=patience, watched="objective", progress=progress)


def best_repair(given: nn.Module, pruned: nn.Module, mask: FilterMask, train: Pairs, validation: Pairs,
                augment: Augment, *, seed: int = 0, progress: bool = True
                ) -> tuple[nn.Module, FilterMask, list[dict[str, Any]]]:
    """The best of three repairs by `judge`: pruned, pruned and fine-tuned, fine-tuned without pruning.

    Pruning helps on some models and harms others; the held-out images decide.
    given: the original model.
    pruned, mask: a pruned copy and its mask.
    Returns the model, its mask (without filters if pruning did not help), and history rows: those of its fine-tuning,
    if any, then one per repair (stage "choose": repair, val_loss, kept).
    """
    watch = judge(given, validation, augment, seed)
    none = FilterMask(mask.filters, before=mask.before)
    choices: dict[str, tuple[nn.Module, FilterMask, list[dict[str, Any]]]] = {
        "pruned": (copy.deepcopy(pruned), mask, [])}
    for name, start, held in (("fine-tuned", given, none), ("pruned and fine-tuned", pruned, mask)):
        if name == "fine-tuned" or mask.positions:
            model = copy.deepcopy(start)
            history = distilled_tune(given, model, held, train, validation, augment, watch, seed=seed,
                                     progress=progress)
            choices[name] = model, held, history
            if "interrupted" in history[-1]:
                break
    losses = {name: watch(model) for name, (model, _, _) in choices.items()}
    kept = min(losses, key=losses.__getitem__)
    cut_short = {"interrupted": True} if any("interrupted" in rows[-1] for *_, rows in choices.values() if rows) else {}
    rows = [{"stage": "choose", "repair": name, "val_loss": loss, "kept": name == kept, **cut_short}
            for name, loss in losses.items()]
    model, held, history = choices[kept]
    return model, held, history + rows


class Objective:
    """Unlearning loss + weight * KL(given model's output || output now) on the clean images, as a mean over pairs.

    The second term compares with the original model's output, right or wrong: it changes with every removal that
    affects the clean task, long before ten images show a mistake.
    """

    def __init__(self, given: nn.Module, pairs: Pairs, weight: float) -> None:
        self.pairs = len(pairs.labels)
        self.images = torch.cat([pairs.clean, pairs.triggered])
        self.labels = pairs.labels.repeat(2)
        self.is_clean = torch.arange(len(self.labels), device=self.labels.device) < self.pairs
        answers = predict(given, pairs.clean).softmax(1)
        true = F.one_hot(pairs.labels, answers.shape[1]).to(answers)  # KL(true || answers) is the cross-entropy
        self.wanted = torch.cat([answers, true])
        self.weights = torch.where(self.is_clean, weight, 1.0)

    def __call__(self, logits: Tensor) -> Tensor:
        """The objective (...) of logits (..., 2N, classes) of `images`, clean ones first."""
        return self.terms(logits).sum(-1) / self.pairs

    def terms(self, logits: Tensor) -> Tensor:
        """Each image's contribution to N times the objective, never below zero: float (..., 2N)."""
        apart = F.kl_div(logits.log_softmax(-1), self.wanted.expand_as(logits), reduction="none").sum(-1)
        return self.weights * apart

    def wrong(self, logits: Tensor) -> Tensor:
        """Which images are clean and misclassified: bool (..., 2N)."""
        return self.is_clean & (logits.argmax(-1) != self.labels)

    def of(self, chosen: Tensor) -> "Objective":
        """The objective restricted to some of the images, int64 (M,), in that order; the number of pairs stays N."""
        part = copy.copy(self)
        for name in ("images", "labels", "is_clean", "wanted", "weights"):
            setattr(part, name, getattr(self, name)[chosen])
        return part
