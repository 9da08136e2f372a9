"""Pruning recipes: which filter goes next, when to stop, and which state to keep."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from gradprune.base.errors import require
from gradprune.models.inference import answers
from gradprune.pruning.filters import FilterMask, Filters, keep_filter, silent
from gradprune.pruning.unlearning import Pairs, filter_scores


class Validation(NamedTuple):
    """What a round measures on the validation part: clean accuracy (0..1), clean loss, and unlearning loss (NaN where
    no trigger is known)."""  # noqa: D209

    acc: float
    clean_loss: float
    unlearning_loss: float

    def figures(self) -> dict[str, float]:
        """The figures as they stand in a history row."""
        row = {"val_acc": self.acc, "val_clean_loss": self.clean_loss}
        return row if math.isnan(self.unlearning_loss) else {**row, "val_unlearning_loss": self.unlearning_loss}


@dataclass
class Pruned:
    """What a recipe returns: the mask to keep, one history row a round, and why it stopped.

    Row 0 is the given model. Rows after the kept state are rounds that were tried and taken back.
    """

    mask: FilterMask
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = ""
    interrupted: bool = False


def validate(model: nn.Module, pairs: Pairs, logits: Tensor | None = None) -> Validation:
    """Measure a model on clean and triggered validation images, in batches; the model is not changed.

    logits: the model's answers to the clean images and then the triggered ones, (2N, classes), where the caller has
    them already. Raises InputError as `predict` does, but for answers that are not finite, which the figures show.
    """
    if logits is None:
        logits = answers(model, torch.cat([pairs.clean, pairs.triggered]))
    clean, triggered = logits[: len(pairs.labels)], logits[len(pairs.labels):]
    acc = (clean.argmax(1) == pairs.labels).float().mean().item()
    return Validation(acc, F.cross_entropy(clean, pairs.labels).item(),
                      F.cross_entropy(triggered, pairs.labels[: len(triggered)]).item())  # of no images: NaN


def paper(model: nn.Module, found: Filters, train: Pairs, validation: Pairs, *, score: str = "gradient",
          alpha: float = 0.10, patience: int = 10, progress: bool = True) -> Pruned:
    """The paper's greedy rule: remove the best-scoring living filter, one a round; `model` is pruned in place.

    Stops when validation accuracy has fallen by `alpha` (0..1), after `patience` rounds without a lower validation
    unlearning loss, or when one filter is left; then goes back to the round with the lowest such loss among those
    that lost less than alpha. Ctrl-C stops the rounds the same way. Source: Dunnett et al., 2024.
    """
    require(0 < alpha <= 1, f"alpha must lie in 0..1, got {alpha}.")
    require(patience >= 1, f"patience must be at least 1 round, got {patience}.")
    mask, undo = FilterMask(found, before=silent(model, found)), []
    start = validate(model, validation)
    result = Pruned(mask, [row(0, mask, start)])
    best, best_round = start.unlearning_loss, 0
    bar = tqdm(total=len(found) - 1, desc="pruning", unit="filter", disable=not progress, leave=False)
    with bar:
        try:
            while mask.alive.sum() > 1:
                scores, loss = filter_scores(model, found, train.triggered, train.labels, score)
                position = int(scores.masked_fill(~mask.alive, -torch.inf).argmax())
                undo.append(keep_filter(model, found, position))
                mask.remove(model, position)
                now = validate(model, validation)
                round_ = len(mask.positions)
                result.history.append(row(round_, mask, now, score=float(scores[position]), train_loss=loss))
                bar.update()
                bar.set_postfix(loss=f"{now.unlearning_loss:.3f}", acc=f"{now.acc:.2f}", refresh=False)
                if cost := fell(start, now, alpha):
                    result.stopped = cost
                    break
                if now.unlearning_loss < best:
                    best, best_round = now.unlearning_loss, round_
                if round_ - best_round >= patience:
                    result.stopped = f"{patience} rounds without a lower validation loss"
                    break
            else:
                result.stopped = "one filter was left"
        except KeyboardInterrupt:
            result.stopped, result.interrupted = "interrupted", True
        bar.total = bar.n  # done, not cut short: a notebook shows a bar that is not full in red
    return undo_to_round(result, best_round, undo)


def undo_to_round(result: Pruned, round_: int, undo: list[Callable[[], None]]) -> Pruned:
    """Put back what fell after a round, the last first, in the model and in the result's mask; returns the result.

    undo: one call a round, see `filters.saved`. The round's history row says `kept`.
    """
    result.history[round_]["kept"] = True
    for restore in reversed(undo[round_:]):
        restore()
    result.mask = FilterMask(result.mask.filters, result.mask.positions[:round_], result.mask.before)
    return result


def in_order(model: nn.Module, found: Filters, order: Iterable[int], values: Tensor, validation: Pairs, *,
             alpha: float | None, progress: bool = True) -> Pruned:
    """Remove filters in a given order for as long as clean validation accuracy holds; `model` is pruned in place.

    order: positions in the flat list, first to go first. values: float (number of filters,), what the order rests on;
    for the history. alpha: the first filter with which accuracy has fallen by alpha (0..1) or more is put back, and
    that ends it; None removes all. Filters that are silent already are passed over. Ctrl-C keeps what has been
    removed and measured.
    """
    require(alpha is None or 0 < alpha <= 1, f"alpha must lie in 0..1, got {alpha}.")
    mask, undo, kept = FilterMask(found, before=silent(model, found)), [], 0
    start = validate(model, validation)
    result = Pruned(mask, [row(0, mask, start)], "all filters that the method picked were removed")
    waiting = [position for position in order if mask.alive[position]]
    bar = tqdm(total=len(waiting), desc="pruning", unit="filter", disable=not progress, leave=False)
    with bar:
        try:
            for position in waiting:
                undo.append(keep_filter(model, found, position))
                mask.remove(model, position)
                now = validate(model, validation)
                result.history.append(row(len(mask.positions), mask, now, score=float(values[position])))
                bar.update()
                if alpha is not None and (cost := fell(start, now, alpha)):
                    result.stopped = cost
                    break
                kept += 1
        except KeyboardInterrupt:
            result.stopped, result.interrupted = "interrupted", True
        bar.total = bar.n
    return undo_to_round(result, kept, undo)


def fell(start: Validation, now: Validation, alpha: float) -> str:
    """The sentence that ends a recipe once validation accuracy has fallen by alpha (0..1) or more; empty before."""
    cost = start.acc - now.acc
    if cost < alpha - 1e-6:
        return ""
    return f"validation accuracy fell by {100 * cost:.3g} points (alpha is {100 * alpha:.3g})"


def row(round_: int, mask: FilterMask, now: Validation, **more: Any) -> dict[str, Any]:
    """One history row: the round, the filter that fell in it, and the validation figures after it."""
    fallen = mask.removed[-1] if mask.positions else None
    return {"stage": "prune", "round": round_, "layer": fallen and fallen.layer, "index": fallen and fallen.index,
            **more, **now.figures()}
