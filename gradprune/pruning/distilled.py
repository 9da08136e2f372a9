"""Fine-tuning that keeps what pruning won: the given model's own answers are the lesson, on new views and mixes."""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.attacks.training import portions
from gradprune.models.inference import predict
from gradprune.pruning.augment import Augment, copies_for
from gradprune.pruning.filters import FilterMask
from gradprune.pruning.fine_tuning import STATISTICS, fine_tune, half_cosine
from gradprune.pruning.unlearning import Pairs

STEPS = 160  # about: whole epochs are run
BATCH = 32   # pairs in a step
LR = 1e-3    # falls to zero along a cosine


class Distilled:
    """KL(given(x) || f(trigger(x))) + weight * KL(given(x) || f(x)), a loss for `fine_tune`.

    With the trigger or without, the model is to say what the given one says of the clean image. No label is needed, so
    x may be any image, a mix of two as well. given: the model whose answers are wanted; it is not changed. Source of
    distillation: Hinton et al., 2015.
    """

    def __init__(self, given: nn.Module, weight: float = 3.0) -> None:
        self.given, self.weight = given, weight

    def __call__(self, model: nn.Module, batch: Pairs) -> Tensor:
        """The loss of one batch, a scalar tensor; the labels are not read."""
        wanted = predict(self.given, batch.clean).log_softmax(1)
        answers = model(torch.cat([batch.clean, batch.triggered])).log_softmax(1).split(len(wanted))
        kept, unlearned = (F.kl_div(now, wanted, log_target=True, reduction="batchmean") for now in answers)
        return unlearned + self.weight * kept


def distilled_tune(given: nn.Module, model: nn.Module, mask: FilterMask, train: Pairs, validation: Pairs,
                   augment: Augment, *, seed: int = 0, progress: bool = True) -> list[dict[str, Any]]:
    """Fine-tune `model` in place with `Distilled` on the pairs, new views of them and mixes; returns the history rows.

    The last epoch is kept, not the best: with one validation image a class the lowest loss of both terms often lies
    where chance put it. But it has to be lower than before. If no epoch's is, the images may have been too few for
    BatchNorm's statistics, and a second run keeps those; if that is no better either, the model stays as it was.
    Ctrl-C keeps what is reached.
    """
    start, epochs = copy.deepcopy(model.state_dict()), epochs_for(len(train.labels))
    for statistics in STATISTICS:
        model.load_state_dict(start)
        history = fine_tune(model, mask, train, validation, loss=Distilled(given), lr=LR,
                            decay=half_cosine(epochs), batch_size=BATCH,
                            patience=epochs, max_epochs=epochs, keep="last", seed=seed, statistics=statistics,
                            renew=augment.mixed, progress=progress)
        if min(row["val_loss"] for row in history) < history[0]["val_loss"] or "interrupted" in history[-1]:
            break
    return [{**row, "statistics": statistics} for row in history]


def epochs_for(pairs: int) -> int:
    """Epochs that come to `STEPS` steps, for a number of training pairs; each has views beside it."""
    return math.ceil(STEPS / len(portions(pairs * (1 + copies_for(pairs)), BATCH)))
