"""The subject: find filters, score them by the unlearning gradient, remove the worst, fine-tune."""

from gradprune.pruning.filters import Filter, FilterMask, Filters, Layer, silence
from gradprune.pruning.fine_tuning import fine_tune
from gradprune.pruning.recipes import RECIPES, Pruned, Validation, paper, validate
from gradprune.pruning.unlearning import SCORES, Pairs, filter_scores, pair_up, unlearning_loss

__all__ = ["RECIPES", "SCORES", "Filter", "FilterMask", "Filters", "Layer", "Pairs", "Pruned", "Validation",
           "filter_scores", "fine_tune", "pair_up", "paper", "silence", "unlearning_loss", "validate"]
