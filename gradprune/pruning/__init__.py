"""The subject: find filters, score them by the unlearning gradient, remove the worst, fine-tune."""

from gradprune.pruning.filters import Filter, FilterMask, Filters, Layer, silence
from gradprune.pruning.fine_tuning import clean_loss, fine_tune
from gradprune.pruning.gates import gated
from gradprune.pruning.inversion import Inversion, Inverted, invert, outliers
from gradprune.pruning.recipes import RECIPES, Pruned, Validation, in_order, paper, validate
from gradprune.pruning.universal import Perturbed, perturb
from gradprune.pruning.unlearning import SCORES, Pairs, filter_scores, pair_up, unlearning_loss, unpaired

__all__ = ["RECIPES", "SCORES", "Filter", "FilterMask", "Filters", "Inversion", "Inverted", "Layer", "Pairs",
           "Perturbed", "Pruned", "Validation", "clean_loss", "filter_scores", "fine_tune", "gated", "in_order",
           "invert", "outliers", "pair_up", "paper", "perturb", "silence", "unlearning_loss", "unpaired", "validate"]
