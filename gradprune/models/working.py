"""The copy of a model that a defence changes: it stands on its own, is as fast as its code allows, and answers logits.

People's networks flatten with `.view`, return more in training than in use, keep features on themselves, or have a
`forward` that was put on the instance. What does not work is told here, before any work is done.
"""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gradprune.base.errors import InputError, require
from gradprune.models.inference import evaluating, first_logits, predict

Net = TypeVar("Net", bound=nn.Module)


def working_copy(model: Net, images: Tensor) -> Net:
    """A copy of `model` to train and prune; in channels_last, about 1.4 x as fast on a CPU, where its code allows that.

    images: float (N, C, H, W) in [0, 1], a few that the model takes, on its device. What the model returns in training
    beside its logits is left out. `hand_back` undoes what was done to the copy.
    Raises InputError for a model that cannot be copied, whose copy answers with the given one's weights, or that gives
    no gradient or no logits in training mode.
    """
    classes = predict(model, images).shape[1]  # also lets go of what an earlier pass left there: no copy takes that
    try:
        copied = copy.deepcopy(model)
    except Exception as error:  # a stranger's attributes may be anything
        raise InputError(f"the model cannot be copied ({type(error).__name__}: {error}).") from error
    if _changes(copied, images):
        copied.register_forward_pre_hook(_OfItsOwn())
    _stands_alone(copied, model, images)
    if not prefers_channels_last(copied, images):
        copied.register_forward_hook(_LogitsAlone(classes))
    return copied


def prefers_channels_last(model: nn.Module, images: Tensor) -> bool:
    """Lay the model's weights out in channels_last, in place, or as they came where its code cannot be trained so.

    images: as for `working_copy`. Returns whether the model answers nothing but logits in training mode.
    Raises InputError for a model that cannot be trained on the images either way.
    """
    if any(map(_corrupts, model.modules())):
        model.to(memory_format=torch.contiguous_format)
        return _trained(model, images.contiguous())
    given = layout(model)
    model.to(memory_format=torch.channels_last)
    try:
        return _trained(model, images.contiguous(memory_format=torch.channels_last))
    except InputError:
        lay_out(model, given)
        return _trained(model, images.contiguous())


def _corrupts(layer: nn.Module) -> bool:
    """Whether torch (2.14, on a CPU) writes past its memory in this layer's gradient in channels_last; Python dies."""
    return (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.stride != (1, 1)
            and layer.in_channels < 8)


def layout(model: nn.Module) -> dict[str, bool]:
    """For each tensor of four dimensions, by name: whether it lies in memory as torch makes it, not channels_last."""
    return {name: _lies_so(tensor, torch.contiguous_format) for name, tensor in _tensors(model).items()
            if tensor.ndim == 4}


def lay_out(model: nn.Module, wanted: dict[str, bool]) -> None:
    """Give the model's tensors this layout (see `layout`), in place."""
    for name, tensor in _tensors(model).items():
        if name in wanted:
            kind = torch.contiguous_format if wanted[name] else torch.channels_last
            if not _lies_so(tensor, kind):
                tensor.data = torch.empty_like(tensor, memory_format=kind).copy_(tensor.data)


def _lies_so(tensor: Tensor, kind: torch.memory_format) -> bool:
    """Whether its strides are those of this format; with one channel `is_contiguous` says yes to two; sums differ."""
    return tensor.stride() == torch.empty_like(tensor, device="meta", memory_format=kind).stride()


def hand_back(copied: Net, model: nn.Module) -> Net:
    """The working copy as its user gets it, in place: in eval mode, its tensors laid out as the given model's are."""
    for hooks in (copied._forward_hooks, copied._forward_pre_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(hook, _LogitsAlone | _OfItsOwn):
                del hooks[key]
    lay_out(copied, layout(model))
    copied.eval()  # what it returns may be nothing, where a stranger's train() is asked
    return copied


class _LogitsAlone:
    """A forward hook: of what a model returns in training, its logits."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
        return first_logits(output, len(inputs[0]), self.classes) if module.training else output


class _OfItsOwn:
    """A forward pre-hook: the model gets images of its own, which it may change."""

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].clone(), *inputs[1:])


def _changes(model: nn.Module, images: Tensor) -> bool:
    """Whether the model changes the images that it is given, as where it normalises in place."""
    given = images.clone()
    with evaluating(model), torch.no_grad():
        model(given)
    return not torch.equal(given, images)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict([*model.named_parameters(), *model.named_buffers()])


def _stands_alone(copied: nn.Module, model: nn.Module, images: Tensor) -> None:
    """Refuse a copy whose answers come from the given model, as where a function on the instance holds on to it."""
    theirs = {id(parameter) for parameter in model.parameters()}
    with evaluating(model, gradients=True), evaluating(copied, gradients=True):
        waiting = [first_logits(copied(images[:1]), 1).grad_fn]
        require(waiting[0] is not None, "the model's answers have no gradient: does its forward() run under no_grad or "
                                        "detach them?")
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            require(id(getattr(node, "variable", None)) not in theirs,
                    "a copy of the model answers with the weights of the model itself: something on it, such as a "
                    "`forward` that was set on the instance, holds on to them; take that off first.")
            for child, _ in getattr(node, "next_functions", ()):
                if child is not None and child not in seen:
                    seen.add(child)
                    waiting.append(child)


def _trained(model: nn.Module, images: Tensor) -> bool:
    """Whether logits are all that the model returns in training mode, found out with a scratch copy."""
    images = images[:2] if len(images) > 1 else torch.cat([images, images])
    try:
        scratch = copy.deepcopy(model)
        with torch.random.fork_rng(devices=[]), evaluating(scratch, gradients=True):
            classes = first_logits(scratch(images), len(images)).shape[1]
            scratch.train()
            output = scratch(images)
            logits = first_logits(output, len(images), classes)
            logits.sum().backward()
    except Exception as error:  # a stranger's forward() may raise anything
        if isinstance(error, MemoryError) or "memory" in str(error):  # as in `predict`: no word on the model
            raise
        told = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise InputError(f"the model cannot be trained on images of shape {tuple(images.shape[1:])}: {told}") from error
    return output is logits
