"""Gates: scale what every filter gives by a number between 0 (silent) and 1 (as it is), with gradients."""

from torch import Tensor, nn

from gradprune.pruning.filters import Filters


def gated(model: nn.Module, found: Filters, factors: Tensor) -> dict[str, Tensor]:
    """Scale what each convolution gives, before any BatchNorm: parameters for `torch.func.functional_call`.

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
