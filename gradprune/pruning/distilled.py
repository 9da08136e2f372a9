"""Fine-tuning without labels: the original model is the teacher, on new views and mixes of the few images."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.attacks.augment import Augment, copies_for
from gradprune.attacks.pairs import Pairs
from gradprune.models.inference import predict
from gradprune.pruning.filters import FilterMask
from gradprune.pruning.fine_tuning import Loss, fine_tune, half_cosine, passes

STEPS = 160  # approximately, rounded up to whole epochs
BATCH = 32   # pairs per step
LR = 1e-3    # falls to zero along half a cosine
VIEWS = 8    # of each validation image, for `judge`

Judge = Callable[[nn.Module], float]


class Distilled:
    """KL(given(x) || f(trigger(x))) + weight * KL(given(x) || f(x)), a loss for `fine_tune`.

    The original model is the teacher: with or without the trigger, match its output on the clean image. No label is
    needed, so x may be any image, or a mix of two.
    given: the teacher; it is not changed.
    weight: of the clean term.
    Source of distillation: Hinton et al., 2015.
    """

    def __init__(self, given: nn.Module, weight: float = 3.0) -> None:
        self.given, self.weight = given, weight

    def __call__(self, model: nn.Module, batch: Pairs) -> Tensor:
        """The loss of one batch, a scalar tensor; the labels are not read."""
        wanted = predict(self.given, batch.clean).log_softmax(1)
        return self.between(model(torch.cat([batch.clean, batch.triggered])), wanted)

    def between(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """The loss of logits (2N, classes), clean images first, against log-probabilities `wanted` (N, classes)."""
        kept, unlearned = (F.kl_div(now.log_softmax(1), wanted, log_target=True, reduction="batchmean")
                           for now in logits.split(len(wanted)))
        return unlearned + self.weight * kept


def judge(given: nn.Module, validation: Pairs, augment: Augment, seed: int) -> Judge:
    """A model's validation loss: `Distilled` over `VIEWS` views of each held-out image; lower is better.

    Clean and triggered images have the same weight, like ACC and ASR in the DER.
    The accuracy on ten images is coarse, whereas the logits of eighty views change with everything that affects the
    clean task or the backdoor. So this shows when fine-tuning costs more than it gains, and which of several models to
    keep.
    """
    views = augment(validation, torch.Generator().manual_seed(seed), VIEWS)
    images, wanted = torch.cat([views.clean, views.triggered]), predict(given, views.clean).log_softmax(1)
    return lambda model: Distilled(given, 1.0).between(predict(model, images), wanted).item()


def distilled_tune(given: nn.Module, model: nn.Module, mask: FilterMask, train: Pairs, validation: Pairs,
                   augment: Augment, watch: Judge, *, seed: int = 0, progress: bool = True) -> list[dict[str, Any]]:
    """Fine-tune `model` in place with `Distilled` on the pairs, new views of them and mixes; returns the history rows.

    given: the teacher.
    watch: the validation loss (see `judge`), each row's `val_loss`; the epoch with the lowest one, or the start, is
        kept.
    Dropout is off, as in the teacher; on few images its noise only costs accuracy. Ctrl-C keeps the best epoch so far.
    """
    return tune_on_views(model, mask, train, validation, augment, Distilled(given), lr=LR,
                         epochs=epochs_for(len(train.labels)), batch_size=BATCH, watch=watch, seed=seed,
                         progress=progress)


def tune_on_views(model: nn.Module, mask: FilterMask, train: Pairs, validation: Pairs, augment: Augment, loss: Loss, *,
                  lr: float, epochs: int, batch_size: int, watch: Judge | None = None, seed: int, progress: bool
                  ) -> list[dict[str, Any]]:
    """`fine_tune` for exactly `epochs` epochs, on new views and mixes, lr along half a cosine, without dropout."""
    return fine_tune(model, mask, train, validation, loss=loss, lr=lr, decay=half_cosine(epochs),
                     batch_size=batch_size, patience=epochs, max_epochs=epochs, seed=seed, renew=augment.mixed,
                     dropout=False, watch=watch, progress=progress)


def epochs_for(pairs: int, steps: int | None = None, batch_size: int = BATCH) -> int:
    """Epochs that make at least `steps` steps (None: `STEPS`) with this number of training pairs and their views."""
    return passes(steps or STEPS, pairs * (1 + copies_for(pairs)), batch_size)
