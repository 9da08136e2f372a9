"""The first layer of every model: from pixels in [0, 1] to the range that the network was trained on."""

import copyreg
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from gradprune.base.errors import require

Net = TypeVar("Net", bound=nn.Module)


class Normalize(nn.Module):
    """Shift and scale pixels in [0, 1] to about zero mean and unit spread.

    As the first layer of a model, it lets triggers, defences and pictures all work in pixel space.
    mean, std: one number for all channels, or one per channel. They are settings, not part of the state dict.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | list[float] = 0.5, std: float | list[float] = 0.25) -> None:
        super().__init__()
        self.register_buffer("mean", _per_channel(mean), persistent=False)
        self.register_buffer("std", _per_channel(std), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """images: float (N, C, H, W) in [0, 1]; returns the same shape."""
        return (images - self.mean) / self.std


def normalized(net: Net, mean: float | list[float], std: float | list[float]) -> Net:
    """Make `net`, in place, shift and scale its images first, as `Normalize` does; its parameters keep their names.

    So its checkpoints still fit. Calling it again replaces the numbers.
    mean, std: one number for all channels, or one per channel.
    Raises InputError for a network whose `forward` was set on the instance, which would bypass this.
    """
    require("forward" not in vars(net), "a `forward` was set on the instance of the network, and it would bypass the "
                                        "normalisation; remove it first, or normalise in it.")
    if not isinstance(net, _Normalized):
        own: Any = type(net)
        net.__class__ = _class_of(own)
    for name, value in (("pixel_mean", mean), ("pixel_std", std)):
        net.register_buffer(name, _per_channel(value), persistent=False)
    return net


def _per_channel(value: float | list[float]) -> Tensor:
    """A setting as a tensor (channels or 1, 1, 1) of the new weights' type; NumPy's float64 would widen the images."""
    return torch.tensor(value, dtype=torch.get_default_dtype()).reshape(-1, 1, 1)


class _Normalized(nn.Module if TYPE_CHECKING else object):  # type: ignore[misc]  # a mix-in, put before a network's own class
    """What `normalized` adds to a network: buffers, not a layer, since nn.Sequential would run a new layer last.

    The class is created at run time, so a pickle names the network's own class, from which it is created again.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """images: float (N, C, H, W) in [0, 1]; returns what the network returns."""
        return super().forward((images - self.pixel_mean) / self.pixel_std)

    def __reduce_ex__(self, protocol: Any) -> Any:
        make, given, *state = super().__reduce_ex__(protocol)
        if make is not copyreg.__newobj__:  # type: ignore[attr-defined]  # a class with its own constructor
            return (make, given, *state)
        return (_again, (type(self).__bases__[1], *given[1:]), *state)


@cache
def _class_of(net: Any) -> Any:
    """The normalising subclass of a network's class."""
    return type(net.__name__, (_Normalized, net), {"__module__": net.__module__, "__doc__": net.__doc__})


def _again(net: Any, *given: Any) -> Any:
    """An empty network of the normalising subclass, for pickle and copy to fill."""
    made = _class_of(net)
    return made.__new__(made, *given)
