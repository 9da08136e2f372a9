"""The filters of a model: find them, name them, silence them, and keep them silent.

A filter is one output channel of one convolution. All filters of a model form one list, in module order;
scores and masks are flat tensors along that list.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradprune.base.errors import InputError, require
from gradprune.models.inference import check_model
from gradprune.models.pairing import own_numbers, pair


class Filter(NamedTuple):
    """One filter: the convolution's name in the model and the output channel's index."""

    layer: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used here

    def __str__(self) -> str:
        return f"{self.layer}[{self.index}]"


@dataclass(frozen=True)
class Layer:
    """One convolution.

    name: in the model.
    norm: the norm that its filters feed one-to-one, or None.
    count: the number of its filters.
    start: the position of the first one in the flat list.
    shape: of a filter's weights (inputs, height, width).
    leak: the norm behind it that turns a silent filter into a constant and cannot be silenced with it.
    twins: other convolutions with the same weights, each with its norm; they are silenced with it and are not layers
        themselves.
    """

    name: str
    norm: str | None
    count: int
    start: int
    shape: tuple[int, ...]
    leak: str | None = None
    twins: tuple[tuple[str, str | None], ...] = ()

    @property
    def pairs(self) -> tuple[tuple[str, str | None], ...]:
        """All convolutions with these weights, each with its norm."""
        return ((self.name, self.norm), *self.twins)

    @property
    def ends(self) -> tuple[str, ...]:
        """The modules at whose outputs a silent filter's channel is zero."""
        return tuple(norm or name for name, norm in self.pairs)


class Filters:
    """All filters of a model, in one flat list; `print` shows them layer by layer."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        self.layers = tuple(layers)
        self._starts = [layer.start for layer in self.layers]

    def __len__(self) -> int:
        return sum(layer.count for layer in self.layers)

    def __getitem__(self, position: int) -> Filter:
        layer = self.layer_of(position)
        return Filter(layer.name, position - layer.start)

    def layer_of(self, position: int) -> Layer:
        """The layer of this position in the flat list; raises IndexError where there is none."""
        if not 0 <= position < len(self):
            raise IndexError(f"filter position must lie in 0..{len(self) - 1}, got {position}")
        return self.layers[bisect_right(self._starts, position) - 1]

    def position(self, layer: str, index: int) -> int:
        """The flat position of a filter; raises InputError for an unknown layer or index."""
        for entry in self.layers:
            if any(name == layer for name, _ in entry.pairs):
                require(0 <= index < entry.count, f"layer {layer!r} has filters 0..{entry.count - 1}, got {index}.")
                return entry.start + index
        names = ", ".join(entry.name for entry in self.layers)
        raise InputError(f"no convolution is named {layer!r}; there are {names}.")

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        lines = [f"{len(self)} filters in {len(self.layers)} convolutions",
                 f"  {'layer':<{width}}  filters  each looks at  silenced with"]
        for layer in self.layers:
            looks = "x".join(map(str, layer.shape))
            norm = layer.norm or "its own weights alone"
            norm += f"; not zero but constant behind {layer.leak}" if layer.leak else ""
            norm += "".join(f"; {name}, which has the same weights" for name, _ in layer.twins)
            lines.append(f"  {layer.name:<{width}}  {layer.count:>7}  {looks:>13}  {norm}")
        return "\n".join(lines)

    __repr__ = __str__


def filters(model: nn.Module, example: Tensor | None = None) -> Filters:
    """Find all filters of a model and the norm that follows each one-to-one.

    Convolutions with tied weights count as one layer.
    example: a float image batch (1, C, H, W) for the trace; by default zeros of 32, 64, then 224 pixels are tried.
    Raises InputError for a model without convolutions, one that cannot be run, or parametrized convolutions.
    """
    check_model(model)
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    require(len(convolutions) > 0, "the model has no Conv2d layer, so there is no filter to prune.")
    for name, module in convolutions.items():
        require(isinstance(module.weight, nn.Parameter),
                f"the weights of {name!r} are computed (parametrized); remove the parametrization first.")
    norms, leaks = pair(model, example)
    tied: dict[int, list[str]] = {}
    for name, module in convolutions.items():
        tied.setdefault(id(module.weight), []).append(name)
    layers, start = [], 0
    for name, *others in tied.values():
        count = convolutions[name].out_channels
        leak = next((leaks[one] for one in (name, *others) if one in leaks), None)
        layers.append(Layer(name, norms.get(name), count, start, tuple(convolutions[name].weight.shape[1:]), leak,
                            tuple((other, norms.get(other)) for other in others)))
        start += count
    return Filters(layers)


def silence(model: nn.Module, found: Filters, positions: Iterable[int]) -> None:
    """Make filters silent, in place: set weights and bias, and scale and shift of the paired norm, to zero.

    Their output channels are then exactly zero, also behind that norm (but not behind a layer's `leak`).
    positions: in the flat list.
    """
    with torch.no_grad():
        for position in positions:
            for tensor in own_tensors(model, found, position):
                tensor.zero_()


def own_tensors(model: nn.Module, found: Filters, position: int) -> list[Tensor]:
    """Views of all numbers of one filter: weights, bias, and the norm's scale and shift, where present."""
    layer = found.layer_of(position)
    tensors: dict[int, Tensor] = {}
    for name, norm in layer.pairs:
        convolution = model.get_submodule(name)
        held = [convolution.weight, convolution.bias]
        if norm:
            held += [getattr(model.get_submodule(norm), kind) for kind in own_numbers(model.get_submodule(norm))]
        tensors |= {id(tensor): tensor for tensor in held if isinstance(tensor, Tensor)}
    return [tensor.data[position - layer.start] for tensor in tensors.values()]


def keep_filter(model: nn.Module, found: Filters, position: int) -> Callable[[], None]:
    """Copy one filter's numbers; the returned function restores them."""
    kept = [(tensor, tensor.clone()) for tensor in own_tensors(model, found, position)]

    def restore() -> None:
        for tensor, copy in kept:
            tensor.copy_(copy)

    return restore


def silent(model: nn.Module, found: Filters) -> list[int]:
    """The positions of filters whose numbers are all zero, as in a model that was pruned before."""
    return [position for position in range(len(found))
            if not any(bool(tensor.any()) for tensor in own_tensors(model, found, position))]


class FilterMask:
    """The removed filters, in the order of removal; they stay silent.

    Works with any training loop: `mask.hold(optimizer, model)` silences them again after each step.
    found: all filters of the model.
    removed: positions of filters that are silent already.
    before: positions that were silent from the start (see `silent`); they are not alive and are kept silent, too.
    """

    def __init__(self, found: Filters, removed: Iterable[int] = (), before: Iterable[int] = ()) -> None:
        self.filters = found
        self.positions = list(removed)
        self.before = tuple(before)

    @property
    def removed(self) -> list[Filter]:
        """The removed filters, in the order of removal."""
        return [self.filters[position] for position in self.positions]

    @property
    def alive(self) -> Tensor:
        """Bool (number of filters,): True for filters that have not been removed."""
        alive = torch.ones(len(self.filters), dtype=torch.bool)
        alive[[*self.positions, *self.before]] = False
        return alive

    def remove(self, model: nn.Module, position: int) -> None:
        """Silence one more filter of the model; raises InputError if it has been removed before."""
        require(bool(self.alive[position]), f"filter {self.filters[position]} has been removed already.")
        silence(model, self.filters, [position])
        self.positions.append(position)

    def apply(self, model: nn.Module) -> None:
        """Silence all removed filters in a model (again)."""
        silence(model, self.filters, [*self.positions, *self.before])

    def hold(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.utils.hooks.RemovableHandle:
        """Apply the mask after each optimizer step; `.remove()` of the returned handle ends that."""
        return optimizer.register_step_post_hook(lambda *_: self.apply(model))

    def __str__(self) -> str:
        names = ", ".join(map(str, self.removed[:6])) + (" ..." if len(self.positions) > 6 else "")
        return f"{len(self.positions)} of {len(self.filters)} filters removed" + (f": {names}" if names else "")

    __repr__ = __str__
