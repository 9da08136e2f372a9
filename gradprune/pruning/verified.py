"""Recipe `verified`: the gradient proposes, a real trial decides.

The gradient is a first-order guess. Here it only makes a shortlist: the best-scoring living filters are removed one by
one for real, and the removal that leaves the lowest objective stays (`fastest_candidate` finds it in little time).
"""

from collections.abc import Callable

import torch
from torch import nn
from tqdm.auto import tqdm

from gradprune.base.errors import require
from gradprune.models.inference import predict
from gradprune.pruning.candidate_removals import CandidateRemovals
from gradprune.pruning.fastest_candidate import fastest_candidate
from gradprune.pruning.filters import FilterMask, Filters, keep_filter, silent
from gradprune.pruning.objective import Objective
from gradprune.pruning.recipes import Pruned, Validation, row, undo_to_round, validate
from gradprune.pruning.unlearning import Pairs, filter_scores

K = 16        # filters on the shortlist
WEIGHT = 3.0  # of the clean term against the unlearning loss


def verified(model: nn.Module, found: Filters, train: Pairs, validation: Pairs, *, score: str = "gate",
             alpha: float = 0.10, patience: int = 10, k: int = K, weight: float = WEIGHT,
             progress: bool = True) -> Pruned:
    """Remove, round by round, the filter on the shortlist whose removal helps most; `model` is pruned in place.

    The shortlist: the `k` best living filters by `score`. What helps most: the lowest `Objective` on the training
    pairs, even where it is no fall: two filters may carry what neither carries alone. A trial with which clean
    accuracy on the training pairs would have fallen by `alpha` (0..1) or more does not count. Stops when none counts,
    after `patience` rounds without a lower validation objective, or when one filter is left; the round with the lowest
    one stays. Ctrl-C stops the rounds the same way.
    Raises InputError for k below 1, a negative weight, or alpha and patience out of range.
    """
    require(k >= 1, f"k must be at least 1 filter, got {k}.")
    require(weight >= 0, f"weight must not be negative, got {weight}.")
    require(0 < alpha <= 1, f"alpha must lie in 0..1, got {alpha}.")
    require(patience >= 1, f"patience must be at least 1 round, got {patience}.")
    mask = FilterMask(found, before=silent(model, found))
    undo: list[Callable[[], None]] = []
    trials = CandidateRemovals(model, found, train.clean[:2])
    goal, check = (Objective(model, pairs, weight) for pairs in (train, validation))

    def judge() -> tuple[Validation, float]:
        """The model's validation figures and objective, from one prediction."""
        logits = predict(model, check.images)
        return validate(model, validation, logits), float(check(logits))

    start, best = judge()
    best_round, logits = 0, predict(model, goal.images)
    terms = goal.terms(logits)  # what each image adds to the objective
    mistakes = float(goal.wrong(logits).sum()) + goal.pairs * (alpha - 1e-6)
    result = Pruned(mask, [row(0, mask, start, val_objective=best)])
    bar = tqdm(total=len(found) - 1, desc="pruning", unit="filter", disable=not progress, leave=False)
    with bar:
        try:
            while mask.alive.sum() > 1:
                scores, loss = filter_scores(model, found, train.triggered, train.labels, score)
                living = scores.masked_fill(~mask.alive, -torch.inf)
                shortlist = living.topk(min(k, int(mask.alive.sum()) - 1)).indices.tolist()
                won = fastest_candidate(trials, goal, shortlist, terms, mistakes)
                if won is None:
                    result.stopped = f"every trial would cost {alpha:.0%} of clean accuracy on the training pairs"
                    break
                choice, terms = won
                position = shortlist[choice]
                undo.append(keep_filter(model, found, position))
                mask.remove(model, position)
                now, objective = judge()
                round_ = len(mask.positions)
                result.history.append(row(round_, mask, now, score=float(scores[position]), train_loss=loss,
                                          rank=choice, objective=float(terms.sum()) / goal.pairs,
                                          val_objective=objective))
                bar.update()
                bar.set_postfix(objective=f"{objective:.3f}", acc=f"{now.acc:.2f}", refresh=False)
                if objective < best:
                    best, best_round = objective, round_
                if round_ - best_round >= patience:
                    result.stopped = f"{patience} rounds without a lower validation objective"
                    break
            else:
                result.stopped = "one filter was left"
        except KeyboardInterrupt:
            result.stopped, result.interrupted = "interrupted", True
        bar.total = bar.n  # as in `recipes`
    return undo_to_round(result, best_round, undo)
