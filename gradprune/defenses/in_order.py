"""Pruning by a fixed ranking of the filters, for defences that score them once."""

from collections.abc import Iterable
from itertools import count

from torch import Tensor, nn

from gradprune.attacks.pairs import Pairs
from gradprune.pruning.filters import FilterMask, Filters, silent
from gradprune.pruning.loop import Chosen, Pruned, remove_in_rounds, validate


def in_order(model: nn.Module, found: Filters, order: Iterable[int], values: Tensor, validation: Pairs, *,
             alpha: float | None, progress: bool = True) -> Pruned:
    """Remove filters in a given order for as long as clean validation accuracy holds; `model` is pruned in place.

    order: positions in the flat list, in the order of removal; filters that are already silent are skipped.
    values: float (number of filters,), the scores behind the order, for the history.
    alpha: stop when accuracy has fallen by alpha (0..1) or more, and restore the last filter; None removes all.
    Ctrl-C keeps what has been removed and measured.
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
