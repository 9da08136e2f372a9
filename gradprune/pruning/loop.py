"""The loop of all recipes: choose a filter, remove it, measure, stop, and go back to the best state."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from gradprune.base.errors import require
from gradprune.models.inference import answers
from gradprune.pruning.filters import FilterMask, Filters, keep_filter, silent
from gradprune.pruning.scores import Pairs


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


Chosen = tuple[int, dict[str, Any]] | str  # a position with what the history row tells of it, or why none is left


def check_limits(alpha: float | None, patience: int | None = None) -> None:
    """Raise InputError for alpha outside of 0..1 or patience below 1; None is no limit."""
    require(alpha is None or 0 < alpha <= 1, f"alpha must lie in 0..1, got {alpha}.")
    require(patience is None or patience >= 1, f"patience must be at least 1 round, got {patience}.")


def remove_in_rounds(model: nn.Module, mask: FilterMask, choose: Callable[[Tensor], Chosen],
                     judge: Callable[[], tuple[Validation, float, dict[str, Any]]], *, rounds: int,
                     alpha: float | None, patience: int | None = None, watched: str = "loss", progress: bool = True
                     ) -> Pruned:
    """The loop of all recipes: choose a filter, remove it, measure, and in the end go back to the best round.

    mask: of all the model's filters, none removed yet. choose: from which filters are alive, bool (number of filters,),
    to the next one. judge: measures the model as it is: its validation figures, the value that says which round is best
    (lower is better), and more for the history.
    Stops when `choose` names none, once validation accuracy has fallen by `alpha` (0..1), or after `patience` rounds
    without a lower value; a round that lost alpha is never the best. rounds: how many there can be, for the bar;
    watched: what that value is called. Ctrl-C stops the rounds the same way. `model` and `mask` are changed in place.
    Raises what `check_limits` does.
    """
    check_limits(alpha, patience)
    start, best, more = judge()
    result, kept, undo = Pruned(mask, [row(0, mask, start, **more)]), 0, []
    bar = tqdm(total=rounds, desc="pruning", unit="filter", disable=not progress, leave=False)
    with bar:
        try:
            while not result.stopped:
                chosen = choose(mask.alive)
                if isinstance(chosen, str):
                    result.stopped = chosen
                    break
                position, figures = chosen
                undo.append(keep_filter(model, mask.filters, position))
                mask.remove(model, position)
                now, value, more = judge()
                round_ = len(mask.positions)
                result.history.append(row(round_, mask, now, **figures, **more))
                bar.update()
                shown = {watched: f"{value:.3f}"} if patience else {}
                bar.set_postfix(acc=f"{now.acc:.2f}", **shown, refresh=False)
                result.stopped = "" if alpha is None else fell(start, now, alpha)
                if not result.stopped and value < best:
                    best, kept = value, round_
                if not result.stopped and patience and round_ - kept >= patience:
                    result.stopped = f"{patience} rounds without a lower validation {watched}"
        except KeyboardInterrupt:
            result.stopped, result.interrupted = "interrupted", True
        bar.total = bar.n  # done, not cut short: a notebook shows a bar that is not full in red
    return undo_to_round(result, kept, undo)


def undo_to_round(result: Pruned, round_: int, undo: list[Callable[[], None]]) -> Pruned:
    """Put back what fell after a round, the last first, in the model and in the result's mask; returns the result.

    undo: one call a round, see `filters.keep_filter`. The round's history row says `kept`.
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
    mask = FilterMask(found, before=silent(model, found))
    waiting = [position for position in order if mask.alive[position]]
    queue, rounds = iter(waiting), count(0, -1)  # the last round is the best

    def choose(alive: Tensor) -> Chosen:
        position = next(queue, None)
        if position is None:
            return "all filters that the method picked were removed"
        return position, {"score": float(values[position])}

    return remove_in_rounds(model, mask, choose, lambda: (validate(model, validation), next(rounds), {}),
                            rounds=len(waiting), alpha=alpha, progress=progress)


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
