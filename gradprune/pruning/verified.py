"""Recipe `verified`: the gradient proposes, an actual trial decides.

The gradient is a first-order estimate. Here it only makes a shortlist: each of the filters with the highest scores is
actually removed, and the removal with the lowest `Objective` is kept. No image lowers the objective, so a candidate
whose loss on some images exceeds another's on all of them is beaten: `fastest_candidate` starts with the images that
cost most, and most candidates are beaten after a few.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.base.errors import require
from gradprune.models.inference import predict
from gradprune.pruning.candidate_removals import CandidateRemovals
from gradprune.pruning.filters import FilterMask, Filters, silent
from gradprune.pruning.loop import Chosen, Pruned, Validation, check_limits, remove_in_rounds, validate
from gradprune.pruning.scores import Pairs, filter_scores

K = 16        # filters on the shortlist
WEIGHT = 3.0  # of the clean term against the unlearning loss
PIECE = 32    # images between two checks of which candidates are beaten


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
    check_limits(alpha, patience)
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


def fastest_candidate(trials: CandidateRemovals, goal: Objective, positions: list[int], expected: Tensor,
                      mistakes: float) -> tuple[int, Tensor] | None:
    """The candidate with the lowest objective, as its index in `positions`, and its terms (2N,); None if none is left.

    expected: float (2N,), a forecast of each image's contribution. It decides which images come first and when a
        candidate is paused. A wrong forecast costs time but never changes the result: a paused candidate that may still
        win is resumed.
    mistakes: a candidate that misclassifies this many clean images is excluded.
    """
    expected = expected.cpu().double().clamp(min=0)
    order = expected.argsort(descending=True, stable=True)
    pieces = order.split(PIECE)
    ahead = torch.stack([expected[order[start:]].sum() for start in range(0, len(order) + PIECE, PIECE)])
    terms = torch.zeros(len(positions), len(order), dtype=torch.float64)
    lost, wrong = terms.sum(1), terms.sum(1)
    done = torch.zeros(len(positions), dtype=torch.int64)  # pieces that each trial has run
    while done[lead := int(lost.argmin())] < len(pieces) and lost[lead] < torch.inf:
        for number, chosen in enumerate(pieces):
            running = ((done == number) & (lost <= (lost + ahead[done]).min())).nonzero().flatten()
            if len(running) == 0:
                continue
            part = goal.of(chosen)
            _, logits = trials.logits(part.images, [positions[trial] for trial in running])
            terms[running[:, None], chosen] = part.terms(logits).cpu().double()
            wrong[running] += part.wrong(logits).sum(-1).cpu()
            done[running] += 1
            total = terms[running].sum(1)
            lost[running] = total.masked_fill((wrong[running] >= mistakes) | total.isnan(), torch.inf)
    return (lead, terms[lead]) if lost[lead] < torch.inf else None
