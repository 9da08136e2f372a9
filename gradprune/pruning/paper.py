"""Recipe `paper`: the filter that the gradient of the unlearning loss scores highest goes, one a round.

Source: Dunnett et al., 2024, arXiv:2405.03918.
"""

import torch
from torch import Tensor, nn

from gradprune.pruning.filters import FilterMask, Filters, silent
from gradprune.pruning.loop import Chosen, Pruned, Validation, remove_in_rounds, validate
from gradprune.pruning.scores import Pairs, filter_scores


def paper(model: nn.Module, found: Filters, train: Pairs, validation: Pairs, *, score: str = "gradient",
          alpha: float = 0.10, patience: int = 10, progress: bool = True) -> Pruned:
    """The paper's greedy rule: remove the best-scoring living filter, one a round; `model` is pruned in place.

    Stops when validation accuracy has fallen by `alpha` (0..1), after `patience` rounds without a lower validation
    unlearning loss, or when one filter is left; then goes back to the round with the lowest such loss among those
    that lost less than alpha. Ctrl-C stops the rounds the same way. Source: Dunnett et al., 2024.
    """
    def choose(alive: Tensor) -> Chosen:
        if alive.sum() <= 1:
            return "one filter was left"
        scores, loss = filter_scores(model, found, train.triggered, train.labels, score)
        position = int(scores.masked_fill(~alive, -torch.inf).argmax())
        return position, {"score": float(scores[position]), "train_loss": loss}

    def judge() -> tuple[Validation, float, dict[str, float]]:
        now = validate(model, validation)
        return now, now.unlearning_loss, {}

    return remove_in_rounds(model, FilterMask(found, before=silent(model, found)), choose, judge, rounds=len(found) - 1,
                            alpha=alpha, patience=patience, progress=progress)
