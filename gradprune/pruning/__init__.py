"""The subject: find filters, score them by the unlearning gradient, remove the worst, fine-tune."""

from collections.abc import Callable

from gradprune.pruning.augment import Augment
from gradprune.pruning.changes import FAMILIES, SEARCHABLE, Change, Part, draw, inflow, search_changes
from gradprune.pruning.channels import batch_norms, close_below, scaled_channels
from gradprune.pruning.consistency import CONSISTENCY, Consistent, consistent_tune
from gradprune.pruning.distilled import Distilled, best_repair, distilled_tune, judge
from gradprune.pruning.filters import Filter, FilterMask, Filters, Layer, silence
from gradprune.pruning.fine_tuning import clean_loss, fine_tune
from gradprune.pruning.gates import gated
from gradprune.pruning.inversion import Alternating, Inversion, Inverted, invert, outliers
from gradprune.pruning.recipes import Pruned, Validation, in_order, paper, validate
from gradprune.pruning.unlearning import SCORES, Pairs, filter_scores, pair_up, unlearning_loss, unpaired
from gradprune.pruning.verified import verified
from gradprune.pruning.whole_image_inversion import Perturbed, perturb

RECIPES: dict[str, Callable[..., Pruned]] = {"paper": paper, "verified": verified}

__all__ = ["CONSISTENCY", "FAMILIES", "RECIPES", "SCORES", "SEARCHABLE", "Alternating", "Augment", "Change",
           "Consistent", "Distilled", "Filter", "FilterMask", "Filters", "Inversion", "Inverted", "Layer", "Pairs",
           "Part", "Perturbed", "Pruned", "Validation", "batch_norms", "best_repair", "clean_loss", "close_below",
           "consistent_tune", "distilled_tune", "draw", "filter_scores", "fine_tune", "gated", "in_order", "inflow",
           "invert",
           "judge", "outliers", "pair_up", "paper", "perturb", "scaled_channels", "search_changes", "silence",
           "unlearning_loss", "unpaired", "validate", "verified"]
