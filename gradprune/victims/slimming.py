"""Slimming: actually cut out silent filters, so that the model becomes smaller with the same answers.

A filter can be cut if all layers that its channel feeds read only zeros from it. In a pre-activation network that is
not certain: the channel of a shortcut sum passes a BatchNorm whose shift turns silence into a constant, and the padding
of the next convolution turns the constant into an edge. So a forward pass shows where there are zeros.
torch-pruning (Fang et al., 2023, arXiv:2301.12900) finds which layers depend on each other.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradprune.base.errors import InputError, require, told_as
from gradprune.models.cost import macs, parameters
from gradprune.models.inference import copy_of, evaluating, predict
from gradprune.models.working import lay_out, layout
from gradprune.pruning.filters import Filter, Filters, filters, silent

NEEDS_TORCH_PRUNING = "slimming needs torch-pruning; install it with: pip install 'gradprune[slim]'"
TOLERANCE = 1e-4  # largest absolute difference of the logits


@dataclass(frozen=True)
class Slim:
    """A smaller model.

    cut: the silent filters that were cut out, by their names in the given model.
    left: those that had to stay, still silent.
    parameters, macs: before and after; macs are multiply-adds for one image.
    """

    model: nn.Module
    cut: list[Filter]
    left: list[Filter]
    parameters: tuple[int, int]
    macs: tuple[int, int]

    def __str__(self) -> str:
        cut, left, (p, q), (m, n) = len(self.cut), len(self.left), self.parameters, self.macs
        return (f"{cut} of {cut + left} silent filters cut out, {left} cannot be cut alone and stay masked: "
                f"{p:,} to {q:,} parameters, {m:,} to {n:,} multiply-adds per image")

    __repr__ = __str__


def slim(model: nn.Module, example: Tensor) -> Slim:
    """Cut the silent filters (see `filters.silent`) out of a copy of `model`, as far as its answers stay the same.

    example: float (N, C, H, W) in [0, 1], images for which the logits must agree within 1e-4.
    One filter of each layer stays, and so do those of grouped convolutions.
    Raises InputError if torch-pruning is not installed, or for a model that cannot be traced or cut.
    """
    with told_as(lambda _: NEEDS_TORCH_PRUNING, (ModuleNotFoundError,)):
        import torch_pruning
    small, found, wanted = copy_of(model), filters(model, example[:1]), predict(model, example)
    gone = silent(model, found)
    graph = _follow(torch_pruning.DependencyGraph(), small, example[:1].to(wanted.device, copy=True))
    try:
        with evaluating(small, gradients=True), torch.enable_grad():
            cut = _cut(small, found, gone, graph, _zeros(small, example))
        for mine, given in zip(small.parameters(), model.parameters(), strict=True):  # cut layers have new parameters
            mine.requires_grad_(given.requires_grad)
        lay_out(small, layout(model))
        answers = predict(small, example)
        require(torch.allclose(answers, wanted, rtol=0, atol=TOLERANCE), "its answers would change")
    except Exception as error:  # a foreign model may do anything with its channels
        raise InputError(f"the model cannot be slimmed ({type(error).__name__}: {error}); masked it works as it is."
                         ) from None
    return Slim(small, [found[place] for place in sorted(cut)], [found[place] for place in gone if place not in cut],
                (parameters(model), parameters(small)), (macs(model, example[:1]), macs(small, example[:1])))


def _follow(graph: Any, model: nn.Module, image: Tensor) -> Any:
    """Let torch-pruning find which layers depend on each other; returns its graph."""
    try:
        with evaluating(model, gradients=True), torch.enable_grad():
            return graph.build_dependency(model, image, verbose=False)
    except Exception as error:  # it divides by zero where channels are shuffled
        raise InputError("the model cannot be slimmed: torch-pruning cannot follow its channels, for example where "
                         "they are shuffled (ShuffleNet) or reshaped; masked it works as it is.") from error


def _cut(model: nn.Module, found: Filters, gone: list[int], graph: Any, zeros: dict[str, Tensor]) -> set[int]:
    """Cut all silent filters that can go, in place; returns their positions."""
    name_of = {module: name for name, module in model.named_modules()}
    plan: dict[nn.Module, dict[int, set[int]]] = {}  # layer -> index -> the filters cut with it, including itself
    planned: set[int] = set()
    for position in gone:
        name, index = found[position]
        layer = model.get_submodule(name)
        if position not in planned and layer in graph.module2node:
            together = _together(_group(graph, layer, [index]), graph, name_of, found, zeros)
            if together and together <= set(gone):
                plan.setdefault(layer, {})[index] = together
                planned |= together
    cut: set[int] = set()
    for layer, indices in plan.items():
        while indices and not graph.check_pruning_group(_group(graph, layer, list(indices))):
            indices.popitem()  # one filter has to stay
        if indices:
            _group(graph, layer, list(indices)).prune()
            cut |= set().union(*indices.values())
    return cut


def _group(graph: Any, layer: nn.Module, indices: list[int]) -> Any:
    """All channels to be cut with these output channels of a layer, as pairs (dependency, indices)."""
    return graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, indices)


def _together(group: Any, graph: Any, names: dict[nn.Module, str], found: Filters,
              zeros: dict[str, Tensor]) -> set[int]:
    """The filters that feed a group's channel; none if a layer is not plain or reads anything but zeros from it."""
    feeding: set[int] = set()
    for dependency, indices in group:
        module, gives = dependency.target.module, graph.is_out_channel_pruning_fn(dependency.handler)
        plain = isinstance(module, nn.Conv2d) and module.groups == 1
        if plain and gives:
            feeding |= {found.position(names[module], index) for index in indices}
        elif (plain or isinstance(module, nn.Linear)) and not gives:
            if not bool(zeros[names[module]][indices].all()):
                return set()
        elif isinstance(module, nn.Parameter) or type(module).__name__ == "_OutputOp" or (
                module in names and not isinstance(module, nn.BatchNorm2d)):
            return set()
    return feeding


def _zeros(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """For each Conv2d and Linear, by name: which of its input channels are zero everywhere; bool (inputs,)."""
    zeros: dict[str, Tensor] = {}
    name_of: dict[nn.Module, str] = {module: name for name, module in model.named_modules()
                                     if isinstance(module, nn.Conv2d | nn.Linear)}

    def look(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        given = next(iter([*inputs, *named.values()]))
        empty = (given == 0).movedim(1 if isinstance(module, nn.Conv2d) else -1, 0).flatten(1).all(1)
        zeros[name_of[module]] = zeros.get(name_of[module], empty) & empty

    with ExitStack() as hooks:
        for module in name_of:
            hooks.enter_context(module.register_forward_pre_hook(look, with_kwargs=True))
        predict(model, images)
    return zeros
