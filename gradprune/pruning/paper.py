"""Recipe `paper`: in each round, remove the filter with the highest score by the gradient of the unlearning loss.

Source: Dunnett et al., 2024, arXiv:2405.03918.
"""

import torch
from torch import Tensor, nn

from gradprune.attacks.pairs import Pairs
from gradprune.pruning.filters import FilterMask, Filters, silent
from gradprune.pruning.loop import Chosen, Pruned, Validation, remove_in_rounds, validate
from gradprune.pruning.scores import filter_scores


def paper(model: nn.Module, found: Filters, train: Pairs, validation: Pairs, *, score: str = "gradient",
          alpha: float = 0.10, patience: int = 10, progress: bool = True) -> Pruned:
    """The paper's greedy rule: remove the filter with the highest score, one per round; `model` is pruned in place.

    found: all filters of the model.
    train, validation: image pairs on the model's device.
    score: a name in `SCORES`.
    alpha, patience: stop when validation accuracy has fallen by `alpha` (0..1), or after `patience` rounds without a
        lower validation unlearning loss.
    It also stops when one filter is left, and on Ctrl-C. Then it returns to the round with the lowest such loss among
    those that lost less than alpha.
    Raises InputError for a score, alpha or patience out of range. Source: Dunnett et al., 2024.
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
