"""The method: find filters, score them by the unlearning gradient, remove the worst, fine-tune."""

from collections.abc import Callable

from gradprune.attacks.augment import Augment
from gradprune.attacks.pairs import Pairs, pair_up, unpaired
from gradprune.pruning.distilled import Distilled, distilled_tune, judge
from gradprune.pruning.filters import Filter, FilterMask, Filters, Layer, silence
from gradprune.pruning.fine_tuning import clean_loss, fine_tune
from gradprune.pruning.loop import Pruned, Validation, validate
from gradprune.pruning.paper import paper
from gradprune.pruning.scores import SCORES, filter_scores, unlearning_loss
from gradprune.pruning.verified import best_repair, verified

RECIPES: dict[str, Callable[..., Pruned]] = {"paper": paper, "verified": verified}

__all__ = ["RECIPES", "SCORES", "Augment", "Distilled", "Filter", "FilterMask", "Filters", "Layer", "Pairs", "Pruned",
           "Validation", "best_repair", "clean_loss", "distilled_tune", "filter_scores", "fine_tune", "judge",
           "pair_up", "paper", "silence", "unlearning_loss", "unpaired", "validate", "verified"]
