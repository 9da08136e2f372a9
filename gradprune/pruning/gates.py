"""Gates: scale every filter by a number between 0 (silent) and 1 (as it is), with gradients."""

from torch import Tensor, nn

from gradprune.pruning.filters import Filters


def gated(model: nn.Module, found: Filters, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Scale each filter by a gate, differentiably: parameters for `torch.func.functional_call`.

    weight, bias: float (number of filters,), factors of the scale and shift of the BatchNorm that a filter feeds
    one-to-one, or of its own weights and bias where there is none. With both 0 a filter is silent.
    """
    scaled = {}
    for layer in found.layers:
        name = layer.norm or layer.name
        carrier, part = model.get_submodule(name), slice(layer.start, layer.start + layer.count)
        for kind, gates in (("weight", weight), ("bias", bias)):
            tensor = getattr(carrier, kind)
            if tensor is not None:
                scaled[f"{name}.{kind}"] = tensor.detach() * gates[part].reshape(-1, *[1] * (tensor.ndim - 1))
    return scaled


def scaled_filters(model: nn.Module, found: Filters, factors: Tensor) -> dict[str, Tensor]:
    """Scale what each convolution gives, before any BatchNorm, differentiably: parameters for `functional_call`.

    factors: float (number of filters,), of a filter's weights and bias alone.
    """
    parameters = {}
    for layer in found.layers:
        for kind in ("weight", "bias"):
            tensor = getattr(model.get_submodule(layer.name), kind)
            if tensor is not None:
                part = factors[layer.start:layer.start + layer.count]
                parameters[f"{layer.name}.{kind}"] = tensor.detach() * part.reshape(-1, *[1] * (tensor.ndim - 1))
    return parameters
