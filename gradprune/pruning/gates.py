"""Gates: scale every filter by a number between 0 (silent) and 1 (as it is), with gradients."""

from typing import Any

from torch import Tensor, nn

from gradprune.pruning.filters import Filters
from gradprune.pruning.pairing import mixes, own_numbers


def gated(model: nn.Module, found: Filters, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Scale each filter by a gate, differentiably: parameters for `torch.func.functional_call`.

    weight, bias: float (number of filters,), factors of the scale and shift of the norm that a filter feeds
    one-to-one, or of its own weights and bias where there is none. With both 0 a filter is silent. A norm without scale
    and shift takes a mean from the filter, which then goes with the weights (no gradient passes through it). Where a
    norm's channels share their statistics the filter's own weights are scaled as well.
    """
    scaled = {}
    for layer in found.layers:
        part = slice(layer.start, layer.start + layer.count)
        for name, norm in layer.pairs:
            for place in _carriers(model, name, norm):
                carrier: Any = model.get_submodule(place)
                for kind, gates in (("weight", weight), ("bias", bias)):
                    if (tensor := getattr(carrier, kind, None)) is not None:
                        scaled[f"{place}.{kind}"] = tensor.detach() * gates[part].reshape(-1, *[1] * (tensor.ndim - 1))
            if norm and norm not in _carriers(model, name, norm):
                mean: Any = model.get_submodule(norm).running_mean
                scaled[f"{norm}.running_mean"] = mean * weight[part].detach()
    return scaled


def _carriers(model: nn.Module, name: str, norm: str | None) -> list[str]:
    """The modules whose numbers a gate scales."""
    if norm is None or own_numbers(model.get_submodule(norm)) == ["running_mean"]:
        return [name]
    return [name, norm] if mixes(model.get_submodule(norm)) else [norm]
