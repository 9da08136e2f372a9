"""Which BatchNorm follows a convolution one-to-one: read off the autograd graph of one forward pass.

The order of parameters() cannot tell: in a pre-activation ResNet the tensor after a convolution's weight belongs to
another branch. The graph that autograd records shows who consumes whose output, whatever the model's code looks like.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from gradprune.errors import InputError
from gradprune.models.inference import evaluating

_SIZES = (32, 64, 224)


def batch_norm_of(model: nn.Module, example: Tensor | None = None) -> dict[str, str]:
    """Map each convolution's name to the BatchNorm whose only input is its output, and which is its only consumer.

    Convolutions whose output goes elsewhere as well (an addition, a second branch) are left out.
    example: float (1, C, H, W); see `filters`. Raises InputError when no forward pass succeeds.
    """
    owner = {id(module.weight): (name, module) for name, module in model.named_modules()
             if isinstance(module, nn.Conv2d | nn.BatchNorm2d) and module.weight is not None}
    with evaluating(model, gradients=True):
        nodes, consumers = _graph(_run(model, example))
    module_of = {node: owner[id(variable)] for node in nodes for variable in _variables(node) if id(variable) in owner}
    uses: dict[str, int] = defaultdict(int)
    for name, _ in module_of.values():
        uses[name] += 1
    pairs = {}
    for node, (name, module) in module_of.items():
        if not isinstance(module, nn.Conv2d) or uses[name] != 1 or len(consumers[node]) != 1:
            continue
        norm_name, norm = module_of.get(consumers[node][0], ("", None))
        if isinstance(norm, nn.BatchNorm2d) and uses[norm_name] == 1 and norm.num_features == module.out_channels:
            pairs[name] = norm_name
    return pairs


def _run(model: nn.Module, example: Tensor | None) -> list[Tensor]:
    """One forward pass with gradients recorded; returns the output tensors."""
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    weight, reason = first.weight, ""
    tries = [example] if example is not None else [torch.zeros(1, first.in_channels, size, size) for size in _SIZES]
    for images in tries:
        try:
            with torch.enable_grad():
                return _tensors(model(images.to(weight.device, weight.dtype)))
        except Exception as error:  # a stranger's forward() may raise anything
            reason = reason or f"{type(error).__name__}: {error}"
    raise InputError(f"the model could not be run on an image of shape {tuple(tries[0].shape[1:])} ({reason}); "
                     "pass one image batch as `example`.")


def _tensors(output: Any) -> list[Tensor]:
    """All tensors in a model's output, however it is wrapped."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _graph(outputs: list[Tensor]) -> tuple[list[Any], dict[Any, list[Any]]]:
    """All autograd nodes behind the outputs, and for each node the nodes that consume its output."""
    waiting = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    nodes: dict[Any, None] = dict.fromkeys(waiting)
    consumers: dict[Any, list[Any]] = defaultdict(list)
    while waiting:
        node = waiting.pop()
        for child, _ in node.next_functions:
            if child is None:
                continue
            consumers[child].append(node)
            if child not in nodes:
                nodes[child] = None
                waiting.append(child)
    return list(nodes), consumers


def _variables(node: Any) -> list[Tensor]:
    """The parameters that feed an autograd node directly."""
    return [child.variable for child, _ in node.next_functions if hasattr(child, "variable")]
