"""BatchNorm channels: scale each by a learned mask, and close those with a low mask, as far as accuracy allows.

Source: Wu & Wang, 2021, arXiv:2110.14430, on whose released code RNP's is based. Channels of every BatchNorm count,
including one behind an addition, which belongs to no single filter. A closed channel has a scale of zero; its shift
stays.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradprune.attacks.pairs import Pairs
from gradprune.base.errors import require
from gradprune.models.inference import batch_normalised, evaluating
from gradprune.pruning.filters import FilterMask, Filters, silent
from gradprune.pruning.loop import Pruned, check_limits, row, validate

STEP = 0.05  # between the thresholds that are tried


def batch_norms(model: nn.Module) -> dict[str, int]:
    """The name and number of channels of each BatchNorm with a scale, in the order of the network.

    Raises InputError if there is none.
    """
    found = {name: module.num_features for name, module in model.named_modules()
             if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine}
    require(len(found) > 0, "this defence masks the channels of BatchNorm layers, and the network has none.")
    return found


def scaled_channels(model: nn.Module, weight: Tensor, bias: Tensor | None = None) -> dict[str, Tensor]:
    """Parameters for `torch.func.functional_call` that scale each BatchNorm channel, differentiably.

    weight, bias: float (number of channels,), factors of scale and shift; without `bias` the shift does not change.
    """
    factors, norms = {"weight": weight, "bias": bias}, batch_norms(model)
    return {f"{name}.{kind}": getattr(model.get_submodule(name), kind).detach() * part
            for kind, gates in factors.items() if gates is not None
            for name, part in zip(norms, gates.split(list(norms.values())), strict=True)}


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """A context with gradients for all parameters, BatchNorm in training mode, and everything else in eval mode."""
    with evaluating(model, gradients=True), batch_normalised():
        for module in model.modules():
            module.train(isinstance(module, nn.modules.batchnorm._BatchNorm))
        yield


def check_closing(alpha: float, threshold: float) -> None:
    """Raise InputError for a limit of `close_below` that is outside 0..1, before the masks are learned."""
    check_limits(alpha)
    require(threshold <= 1, f"threshold must lie in 0..1, got {threshold}.")


def close_below(model: nn.Module, found: Filters, mask: Tensor, validation: Pairs, *, alpha: float,
                top: float) -> Pruned:
    """Close the channels up to the highest threshold at which validation accuracy falls by less than `alpha`, in place.

    mask: float (number of channels,) in [0, 1]; a channel closes if its mask is at most the threshold.
    alpha: 0..1; if every threshold costs this much or more, no channel closes.
    top: all thresholds from 0 to this are tried, in steps of `STEP`.
    No filter counts as removed, so the result's mask is empty; history rows have `threshold` and `channels`, and the
    one that was taken says `kept`. Ctrl-C takes the best of those tried so far.
    """
    norms = [model.get_submodule(name) for name in batch_norms(model)]
    given = [norm.weight.detach().clone() for norm in norms]  # type: ignore[operator]

    def close(threshold: float) -> int:
        """Restore the given scales, then close the channels up to the threshold; returns their number."""
        closed = (mask <= threshold + 1e-6).to(given[0].device)
        with torch.no_grad():
            for norm, scale, part in zip(norms, given, closed.split([len(scale) for scale in given]), strict=True):
                norm.weight.copy_(scale.masked_fill(part, 0))  # type: ignore[operator]
        return int(closed.sum())

    none = FilterMask(found)  # no filter is removed

    def measured(**more: float) -> dict[str, Any]:
        rows.append(row(len(rows), none, validate(model, validation), **more))
        return rows[-1]

    rows: list[dict[str, Any]] = []
    start = kept = measured()
    best, interrupted = -1.0, False
    try:
        for threshold in (step * STEP for step in range(round(top / STEP) + 1)):
            now = measured(threshold=threshold, channels=close(threshold))
            if start["val_acc"] - now["val_acc"] < alpha - 1e-6:
                best, kept = threshold, now
    except KeyboardInterrupt:
        interrupted = True
    kept["kept"] = True
    closed, total = close(best), sum(map(len, given))
    said = (f"up to a mask of {best:.2f}, {closed} of {total} BatchNorm channels were closed" if best >= 0 else
            f"no BatchNorm channel was closed: each threshold costs accuracy (alpha is {100 * alpha:.3g} points)")
    return Pruned(FilterMask(found, before=silent(model, found)), rows, said, interrupted)
