"""The loop of all recipes: choose a filter, remove it, measure, stop, and return to the best state."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from gradprune.attacks.pairs import Pairs
from gradprune.base.errors import require
from gradprune.models.inference import answers
from gradprune.pruning.filters import FilterMask, keep_filter


class Validation(NamedTuple):
    """Figures of a round on the validation part: clean accuracy (0..1), clean loss, unlearning loss.

    The unlearning loss is NaN if the trigger is unknown.
    """

    acc: float
    clean_loss: float
    unlearning_loss: float

    def figures(self) -> dict[str, float]:
        """The figures as entries of a history row."""
        row = {"val_acc": self.acc, "val_clean_loss": self.clean_loss}
        return row if math.isnan(self.unlearning_loss) else {**row, "val_unlearning_loss": self.unlearning_loss}


@dataclass
class Pruned:
    """The result of a recipe: the mask to keep, one history row per round, and why it stopped.

    Row 0 is the given model. Rows after the kept state are rounds that were tried and undone.
    """

    mask: FilterMask
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = ""
    interrupted: bool = False


def validate(model: nn.Module, pairs: Pairs, logits: Tensor | None = None) -> Validation:
    """Measure a model on clean and triggered validation images, in batches; the model is not changed.

    logits: the model's logits for the clean images and then the triggered ones, (2N, classes), if already computed.
    Raises InputError as `predict` does, except for NaN, which shows in the figures.
    """
    if logits is None:
        logits = answers(model, torch.cat([pairs.clean, pairs.triggered]))
    clean, triggered = logits[: len(pairs.labels)], logits[len(pairs.labels):]
    acc = (clean.argmax(1) == pairs.labels).float().mean().item()
    return Validation(acc, F.cross_entropy(clean, pairs.labels).item(),
                      F.cross_entropy(triggered, pairs.labels[: len(triggered)]).item())  # of no images: NaN


Chosen = tuple[int, dict[str, Any]] | str  # a position and its entries for the history row, or why none is left


def check_limits(alpha: float | None, patience: int | None = None) -> None:
    """Raise InputError for alpha outside 0..1 or patience below 1; None is no limit."""
    require(alpha is None or 0 < alpha <= 1, f"alpha must lie in 0..1, got {alpha}.")
    require(patience is None or patience >= 1, f"patience must be at least 1 round, got {patience}.")


def remove_in_rounds(model: nn.Module, mask: FilterMask, choose: Callable[[Tensor], Chosen],
                     judge: Callable[[], tuple[Validation, float, dict[str, Any]]], *, rounds: int,
                     alpha: float | None, patience: int | None = None, watched: str = "loss", progress: bool = True
                     ) -> Pruned:
    """The loop of all recipes: choose a filter, remove it, measure, and at the end return to the best round.

    model, mask: changed in place; no filter of the mask has been removed yet.
    choose: the next filter, given the filters that are alive, bool (number of filters,).
    judge: measures the model: its validation figures, the value that decides which round is best (lower is better), and
        further entries for the history.
    rounds: the largest possible number, for the bar.
    alpha, patience: stop when validation accuracy has fallen by `alpha` (0..1), or after `patience` rounds without a
        lower value; a round that lost alpha is never the best.
    watched: the name of that value.
    It also stops when `choose` names no filter, and on Ctrl-C. Raises InputError as `check_limits` does.
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
        bar.total = bar.n  # a notebook would show an incomplete bar in red, as a failure
    result.history[kept]["kept"] = True
    for restore in undo[kept:]:
        restore()
    result.mask = FilterMask(mask.filters, mask.positions[:kept], mask.before)
    return result


def fell(start: Validation, now: Validation, alpha: float) -> str:
    """The reason to stop once validation accuracy has fallen by alpha (0..1) or more; empty before that."""
    cost = start.acc - now.acc
    if cost < alpha - 1e-6:
        return ""
    return f"validation accuracy fell by {100 * cost:.3g} points (alpha is {100 * alpha:.3g})"


def row(round_: int, mask: FilterMask, now: Validation, **more: Any) -> dict[str, Any]:
    """One history row: the round, the filter removed in it, and the validation figures after it."""
    fallen = mask.removed[-1] if mask.positions else None
    return {"stage": "prune", "round": round_, "layer": fallen and fallen.layer, "index": fallen and fallen.index,
            **more, **now.figures()}
