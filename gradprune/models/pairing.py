"""Find the norm that follows a convolution one-to-one, from the autograd graph of one forward pass.

The order of parameters() does not show it: in a pre-activation ResNet the tensor after a convolution's weight belongs
to another branch. Autograd's graph shows which step uses which output, whatever the model's code looks like.
A BatchNorm is paired by the graph alone. Any other norm is tested: it is paired only if a channel is zero behind it
when the norm's own numbers for that channel are zero.
"""

import copy
from collections import Counter, defaultdict
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from gradprune.base.errors import InputError, require
from gradprune.models.inference import evaluating

_SIZES = (32, 64, 224)
# Steps of the graph that only move data; and those that keep a channel of zeros zero.
_MOVES = ("Permute", "Transpose", "View", "UnsafeView", "ReshapeAlias", "Clone", "Unsqueeze", "Squeeze", "Mean")
_KEEP_ZEROS = ("Relu", "LeakyRelu", "RreluWithNoise", "Prelu", "Hardtanh", "Hardswish", "Silu", "Mish", "Gelu", "Elu",
               "Tanh", "Abs", "MaxPool", "AvgPool", "MkldnnMaxPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "Dropout",
               "NativeDropout", "FeatureDropout", "Upsample", "ConstantPad", "Pad", "ToCopy", "FakeQuantize", "Mul",
               "Div", "Cat", "ChannelShuffle", "NativeChannelShuffle")
_MIXING = (_ConvNd, nn.Linear, nn.Bilinear, nn.MultiheadAttention)  # layers that make new channels
_CAST = "ToCopy"  # a cast of weights under autocast, not the step that uses them


class Pairing(NamedTuple):
    """By convolution: its norm (`norms`), and the norm that turns its silence into a constant (`leaks`)."""

    norms: dict[str, str]
    leaks: dict[str, str]


class _Call(NamedTuple):
    """A call of a norm in the pass: the step that made its input, and the input."""

    name: str
    module: nn.Module
    source: Any
    inputs: Tensor


def pair(model: nn.Module, example: Tensor | None = None) -> Pairing:
    """Map each convolution's name to the norm that takes its output alone and is the only step to do so.

    Convolutions whose output is also used elsewhere (an addition, a second branch) are left out.
    example: float (1, C, H, W); see `filters`.
    Raises InputError if no forward pass succeeds, or the logits depend on none of the model's convolutions.
    """
    owner = {id(module.weight): (name, module) for name, module in model.named_modules()
             if isinstance(module, nn.Conv2d | _BatchNorm) and module.weight is not None}
    called: dict[Any, tuple[str, nn.Module]] = {}  # the convolution behind an output, which distinguishes tied ones
    calls: list[_Call] = []
    with ExitStack() as hooks, evaluating(model, gradients=True):
        for name, module in model.named_modules():
            for hook in _watch(name, module, called, calls):
                hooks.enter_context(hook)
        nodes, consumers = _graph(_run(model, example))
    module_of = {node: owner[id(variable)]
                 for node in nodes for variable in _variables(node)
                 if id(variable) in owner and not node.name().startswith(_CAST)}
    module_of |= {node: called[node] for node in nodes if node in called}  # also tied ones, and cast weights
    require(any(isinstance(module, nn.Conv2d) for _, module in module_of.values()),
            "the model's answers come from none of its own convolutions: its forward() detaches them or runs under "
            "no_grad, or was set on the instance and refers to another model.")
    uses = Counter(name for name, _ in module_of.values())
    found = Pairing({}, {})
    for node, (name, module) in module_of.items():
        if not isinstance(module, nn.Conv2d):
            continue
        alone = len(consumers[node]) == 1
        given = [call for call in reversed(calls) if call.source is node  # the innermost first
                 and not _keeps_zeros(call.module, call.inputs)]
        norm_name, norm = module_of.get(consumers[node][0], ("", None)) if alone else ("", None)
        once = alone and uses[name] == 1
        if (isinstance(norm, _BatchNorm) and once and uses[norm_name] == 1
                and norm.num_features == module.out_channels):
            found.norms[name] = norm_name
        elif fit := next((call for call in given if once and sum(other.name == call.name for other in calls) == 1
                          and can_be_silenced(call.module, call.inputs, module.out_channels)), None):
            found.norms[name] = fit.name
        elif leak := _norm_behind(node, consumers, calls):
            found.leaks[name] = leak
    return found


def own_numbers(norm: nn.Module) -> list[str]:
    """The names of a norm's numbers per channel: scale and shift, or else the running mean."""
    own = [kind for kind in ("weight", "bias") if isinstance(getattr(norm, kind, None), Tensor)]
    return own or [kind for kind in ("running_mean",) if isinstance(getattr(norm, kind, None), Tensor)]


def mixes(norm: nn.Module) -> bool:
    """Whether silencing a filter changes the norm's output for others, because channels share their statistics."""
    return not hasattr(norm, "running_var")  # an InstanceNorm has one, which may be None


def can_be_silenced(norm: nn.Module, inputs: Tensor, channels: int) -> bool:
    """Whether zeroing the norm's own numbers makes a silent channel zero behind it and keeps the others."""
    own = own_numbers(norm)
    if not own or inputs.ndim != 4 or any(getattr(norm, kind).shape != (channels,) for kind in own):
        return False
    scratch, silent = copy.deepcopy(norm).eval(), inputs.clone()
    silent[:, -1] = 0
    try:
        with torch.no_grad():
            before = scratch(silent)
            for kind in own:
                getattr(scratch, kind)[-1] = 0
            after = scratch(silent)
    except Exception:  # a foreign norm may do anything
        return False
    return (isinstance(after, Tensor) and after.shape == inputs.shape and not bool(after[:, -1].any())
            and torch.equal(after[:, :-1], before[:, :-1]))


def _keeps_zeros(norm: nn.Module, inputs: Tensor, moved: bool = False) -> bool:
    """Whether a silent channel stays zero behind a norm, whatever its numbers are; moved: channels may come last."""
    last = (..., -1) if moved else (slice(None), -1)
    scratch, silent = copy.deepcopy(norm).eval(), inputs.clone()
    silent[last] = 0
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for tensor in [*scratch.parameters(), *scratch.buffers()]:
                if tensor.is_floating_point():
                    tensor += torch.rand(tensor.shape, generator=generator).to(tensor)
            return not bool(scratch(silent)[last].any())
    except Exception:  # a foreign norm may do anything
        return False


def _watch(name: str, module: nn.Module, called: dict[Any, tuple[str, nn.Module]], calls: list[_Call]) -> list[Any]:
    """Hooks that record what a convolution returned and what a norm was given.

    A norm is a module with "norm" in its class's name or with numbers of its own, but without layers that mix channels.
    """
    def returned(_: nn.Module, __: object, output: Any) -> None:
        if isinstance(output, Tensor) and output.grad_fn is not None:
            called[output.grad_fn] = (name, module)

    def given(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        first = next(iter([*inputs, *named.values()]), None)
        if isinstance(first, Tensor) and first.grad_fn is not None:
            calls.append(_Call(name, module, first.grad_fn, first.detach()))

    if isinstance(module, nn.Conv2d):
        return [module.register_forward_hook(returned)]
    own = next(module.parameters(), None) is not None or next(module.buffers(), None) is not None
    if (own or "norm" in type(module).__name__.lower()) and not any(isinstance(part, _MIXING)
                                                                    for part in module.modules()):
        return [module.register_forward_pre_hook(given, with_kwargs=True)]
    return []


def _norm_behind(node: Any, consumers: dict[Any, list[Any]], calls: list[_Call]) -> str | None:
    """The norm that turns a silent channel into a constant.

    It is directly behind the convolution, or behind steps that keep zeros (an activation, pooling, concatenation) or
    move them, for example to tokens or channels last.
    """
    waiting = [(node, False)]
    for step, moved in waiting:
        for call in reversed(calls):  # the innermost first
            if call.source is step and not _keeps_zeros(call.module, call.inputs, moved):
                return call.name
        met = {one for one, _ in waiting}
        waiting += [(one, moved or one.name().startswith(_MOVES)) for one in dict.fromkeys(consumers[step])
                    if one.name().startswith((*_MOVES, *_KEEP_ZEROS)) and one not in met]
    return None


def _run(model: nn.Module, example: Tensor | None) -> list[Tensor]:
    """One forward pass with gradients recorded; returns the output tensors."""
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    weight, reason = first.weight, ""
    tries = [example] if example is not None else [torch.zeros(1, first.in_channels, size, size) for size in _SIZES]
    for images in tries:
        try:
            with torch.enable_grad():
                return _tensors(model(images.to(weight.device, weight.dtype, copy=True)))  # it may normalise in place
        except Exception as error:  # foreign code may raise anything
            reason = reason or f"{type(error).__name__}: {error}"
    raise InputError(f"the model could not be run on an image of shape {tuple(tries[0].shape[1:])} ({reason}); "
                     "pass one image batch as `example`.")


def _tensors(output: Any) -> list[Tensor]:
    """All tensors in a model's output, however it is wrapped."""
    if isinstance(output, Tensor):
        return [output]
    output = vars(output) if hasattr(output, "__dict__") and not isinstance(output, dict) else output
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
