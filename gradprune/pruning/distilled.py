"""Fine-tuning that keeps what pruning won: new views every epoch, the given model's own answers as the clean target."""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.models.inference import predict
from gradprune.pruning.augment import ENOUGH, Augment
from gradprune.pruning.filters import FilterMask
from gradprune.pruning.fine_tuning import STATISTICS, fine_tune
from gradprune.pruning.unlearning import Pairs

EPOCHS = 40  # of each run
BATCH = 32   # pairs in a step
LR = {"moving": 3e-3, "fixed": 1e-3}  # falls to zero along a cosine; without moving statistics large steps diverge


class Distilled:
    """CE(f(trigger(x)), y) + weight * KL(given model's answers || f(x)), a loss for `fine_tune`.

    given: the model whose answers on clean images are held on to; it is not changed. Source: Hinton et al., 2015.
    """

    def __init__(self, given: nn.Module, weight: float = 3.0) -> None:
        self.given, self.weight = given, weight

    def __call__(self, model: nn.Module, batch: Pairs) -> Tensor:
        """The loss of one batch, a scalar tensor."""
        wanted = predict(self.given, batch.clean).log_softmax(1)
        clean, triggered = model(torch.cat([batch.clean, batch.triggered])).split(len(batch.labels))
        kept = F.kl_div(clean.log_softmax(1), wanted, log_target=True, reduction="batchmean")
        return F.cross_entropy(triggered, batch.labels) + self.weight * kept


def distilled_tune(given: nn.Module, model: nn.Module, mask: FilterMask, train: Pairs, validation: Pairs,
                   augment: Augment, *, seed: int = 0, progress: bool = True) -> list[dict[str, Any]]:
    """Fine-tune `model` in place with `Distilled` on new views of the training pairs; returns the history rows.

    A few images may be too few for BatchNorm's statistics, or the old statistics may belong to the backdoor, and nobody
    can know which: so one run lets them move, one keeps them, and the one with the lower validation loss of both terms
    stays (never a worse one than before, see `fine_tune`). Ctrl-C keeps the best so far.
    """
    copies = math.ceil(ENOUGH / len(train.labels))
    start = copy.deepcopy(model.state_dict())
    best: tuple[float, list[dict[str, Any]], dict[str, Tensor]] | None = None
    for statistics in STATISTICS:
        model.load_state_dict(start)
        history = fine_tune(model, mask, train, validation, loss=Distilled(given), lr=LR[statistics],
                            decay=lambda epoch: 0.5 + 0.5 * math.cos(math.pi * epoch / EPOCHS), batch_size=BATCH,
                            patience=EPOCHS, max_epochs=EPOCHS, seed=seed, statistics=statistics, progress=progress,
                            renew=lambda pairs, generator: augment(pairs, generator, copies))
        loss = min(row["val_loss"] for row in history)
        if best is None or loss < best[0]:
            best = loss, [{**row, "statistics": statistics} for row in history], copy.deepcopy(model.state_dict())
        if "interrupted" in history[-1]:
            break
    assert best is not None  # the first run made one
    model.load_state_dict(best[2])
    return best[1]
