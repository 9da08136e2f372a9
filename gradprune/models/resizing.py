"""Smaller versions of a network that `build` knows: the channels of each layer, as plain numbers for a card."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from gradprune.base.errors import require

# The attributes that hold a layer's size, in the order of its tensors' dimensions.
_COUNTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("out_channels", "in_channels"), nn.Linear: ("out_features", "in_features"),
    nn.BatchNorm2d: ("num_features",)}


def sizes(model: nn.Module) -> dict[str, list[int]]:
    """The size of every Conv2d and Linear, [outputs, inputs], and of every BatchNorm2d, [channels], by name."""
    return {name: [getattr(module, count) for count in _COUNTS[type(module)]]
            for name, module in model.named_modules() if type(module) in _COUNTS}


def resize(model: nn.Module, wanted: Mapping[str, Sequence[int]]) -> None:
    """Cut layers down, in place, to the `wanted` sizes (see `sizes`), keeping their first channels.

    This gives a network the shapes of a slimmed one, whose weights can then be loaded.
    Raises InputError if `wanted` is no mapping, or for an unknown layer or a size that does not fit the layer.
    """
    require(isinstance(wanted, Mapping), f"sizes must name layers, each with its size, got {wanted!r}.")
    known = sizes(model)
    for name, size in wanted.items():
        require(name in known, f"there is no layer {name!r} whose size could be set.")
        fits = (isinstance(size, list | tuple) and len(size) == len(known[name])
                and all(type(new) is int and 1 <= new <= old for new, old in zip(size, known[name], strict=True)))
        require(fits, f"layer {name!r} has size {known[name]}; it cannot become {size}.")
        _cut(model.get_submodule(name), size)


def _cut(module: Any, size: Sequence[int]) -> None:
    """Keep the first channels of one layer's tensors, and update the layer's size attributes."""
    def first(tensor: Tensor) -> Tensor:
        return tensor[tuple(slice(count) for count in size[:tensor.ndim])].clone()

    for key, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, key, nn.Parameter(first(parameter.detach()), parameter.requires_grad))
    for key, buffer in list(module.named_buffers(recurse=False)):
        if buffer.ndim:  # not BatchNorm's count of batches
            setattr(module, key, first(buffer))
    for attribute, count in zip(_COUNTS[type(module)], size, strict=True):
        setattr(module, attribute, count)
