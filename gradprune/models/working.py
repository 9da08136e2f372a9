"""The copy of a model that a defence changes: independent, as fast as its code allows, and returning logits only.

Users' networks may flatten with `.view`, return more in training mode than in eval mode, store features on themselves,
or have a `forward` that was set on the instance. What does not work is reported here, before any other work.
"""

from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gradprune.base.errors import InputError, require
from gradprune.models.inference import copy_of, evaluating, first_logits, predict

Net = TypeVar("Net", bound=nn.Module)


def working_copy(model: Net, images: Tensor) -> Net:
    """A copy of `model` to train and prune, in channels_last (about 1.4 times as fast on a CPU) if its code allows.

    images: float (N, C, H, W) in [0, 1], a few that the model accepts, on its device.
    The copy returns only logits in training mode. `hand_back` undoes what was done to it.
    Raises InputError for a model that cannot be copied, whose copy uses the original's weights, or that has no gradient
    or no logits in training mode.
    """
    classes = predict(model, images).shape[1]
    try:
        copied = copy_of(model)
    except Exception as error:  # foreign attributes may be anything
        raise InputError(f"the model cannot be copied ({type(error).__name__}: {error}).") from error
    if _changes(copied, images):
        copied.register_forward_pre_hook(_of_its_own)
    _stands_alone(copied, model, images)
    if not prefers_channels_last(copied, images):
        copied.register_forward_hook(partial(_logits_alone, classes))
    return copied


def prefers_channels_last(model: nn.Module, images: Tensor) -> bool:
    """Convert the model's weights to channels_last, in place, unless its code cannot be trained in that layout.

    images: as for `working_copy`. Returns whether the model returns nothing but logits in training mode.
    Raises InputError for a model that cannot be trained on the images in either layout.
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
    """Whether this layer's gradient in channels_last crashes Python: torch 2.14 writes beyond its memory on a CPU."""
    return (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.stride != (1, 1)
            and layer.in_channels < 8)


def layout(model: nn.Module) -> dict[str, bool]:
    """For each tensor of four dimensions, by name: True if it has torch's default layout, False for channels_last."""
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
    """Whether a tensor has exactly the strides of this format.

    With one channel `is_contiguous` is true for both formats, but sums over them differ in the last bits.
    """
    return tensor.stride() == torch.empty_like(tensor, device="meta", memory_format=kind).stride()


def hand_back(copied: Net, model: nn.Module) -> Net:
    """Make the working copy ready for the user, in place: no hooks, no gradients, eval mode, the layout of `model`."""
    for hooks in (copied._forward_hooks, copied._forward_pre_hooks):
        for key, hook in list(hooks.items()):
            if getattr(hook, "func", hook) in (_logits_alone, _of_its_own):
                del hooks[key]
    lay_out(copied, layout(model))
    copied.zero_grad()
    copied.eval()  # its return value is not used: foreign code may override train() and return None
    return copied


def _logits_alone(classes: int, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
    """A forward hook, given the classes, that keeps only the logits of what a model returns in training mode."""
    return first_logits(output, len(inputs[0]), classes) if module.training else output


def _of_its_own(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A forward pre-hook that gives the model its own copy of the images, which it may change."""
    return (inputs[0].clone(), *inputs[1:])


def _changes(model: nn.Module, images: Tensor) -> bool:
    """Whether the model changes the images it is given, for example by normalising in place."""
    given = images.clone()
    with evaluating(model), torch.no_grad():
        model(given)
    return not torch.equal(given, images)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict([*model.named_parameters(), *model.named_buffers()])


def _stands_alone(copied: nn.Module, model: nn.Module, images: Tensor) -> None:
    """Refuse a copy that computes with the original's weights, for example through a function set on the instance."""
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
                    "`forward` that was set on the instance, refers to them; remove that first.")
            for child, _ in getattr(node, "next_functions", ()):
                if child is not None and child not in seen:
                    seen.add(child)
                    waiting.append(child)


def _trained(model: nn.Module, images: Tensor) -> bool:
    """Train a scratch copy for one step; returns whether it returns nothing but logits in training mode."""
    images = images[:2] if len(images) > 1 else torch.cat([images, images])
    try:
        scratch = copy_of(model)
        with torch.random.fork_rng(devices=[]), evaluating(scratch, gradients=True):
            classes = first_logits(scratch(images), len(images)).shape[1]
            scratch.train()
            output = scratch(images)
            logits = first_logits(output, len(images), classes)
            logits.sum().backward()
    except Exception as error:  # foreign code may raise anything
        if isinstance(error, MemoryError) or "memory" in str(error):  # as in `predict`: not the model's fault
            raise
        told = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise InputError(f"the model cannot be trained on images of shape {tuple(images.shape[1:])}: {told}") from error
    return output is logits
