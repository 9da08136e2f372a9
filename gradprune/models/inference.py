"""Inspect a model, or compute its logits, without changing it."""

import copy
import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gradprune.base.devices import halving
from gradprune.base.errors import InputError, require

Net = TypeVar("Net", bound=nn.Module)

_OWN = {"_parameters", "_buffers", "_modules"}  # of nn.Module; other attributes may hold features that a model keeps
_ATTENTION = re.compile("(attention|attn|qkv)(?!_?pool)", re.IGNORECASE)  # in the name of a layer or its class
_NORMS = 2  # norms in a block of a transformer
_KEPT = 1000  # longer lists are not searched


@contextmanager
def evaluating(model: nn.Module, gradients: bool = False) -> Iterator[None]:
    """Keep the model in eval mode (BatchNorm statistics stay as they are), then restore each module's own mode.

    gradients: also record gradients, for every parameter of floats, whatever its requires_grad says.
    Features that the model's forward() stores on it are detached, because a model with a graph cannot be copied.
    Raises InputError if gradients are wanted of weights that were made under inference mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    require(not (gradients and any(parameter.is_inference() for parameter, _ in flags)),
            "the model's weights were made under torch.inference_mode(), so they take no gradients: build it outside.")
    with ExitStack() as stack:
        try:
            model.eval()
            if gradients:
                for parameter, _ in flags:
                    parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.enable_grad())
            yield
        finally:
            for module, mode in modes:
                module.training = mode
                _let_go(module)
            for parameter, flag in flags:
                if parameter.requires_grad != flag:
                    parameter.requires_grad_(flag)


def copy_of(model: Net) -> Net:
    """An independent copy; features that forward() stored on the model are detached first, as by `evaluating`."""
    for module in model.modules():
        _let_go(module)
    return copy.deepcopy(model)


def _let_go(module: nn.Module) -> None:
    """Detach what a forward pass left on a module, in place."""
    for kept in (vars(module), module._buffers):
        for name, value in list(kept.items()):
            if name not in _OWN and _holds_graph(value):
                kept[name] = _cut(value)


def _holds_graph(value: Any, deep: int = 3) -> bool:
    """Whether a value holds tensors that cannot be copied, or cannot take part in gradients."""
    if isinstance(value, Tensor):
        return not value.is_leaf or value.is_inference()
    if type(value) not in (dict, list, tuple) or not deep or len(value) > _KEPT:
        return False
    return any(_holds_graph(part, deep - 1) for part in (value.values() if isinstance(value, dict) else value))


def _cut(value: Any, deep: int = 3) -> Any:
    """The same value with plain tensors in it."""
    if isinstance(value, Tensor):
        return value.detach().clone() if value.is_inference() else value.detach()
    if type(value) not in (dict, list, tuple) or not deep:
        return value
    if isinstance(value, dict):
        return {key: _cut(part, deep - 1) for key, part in value.items()}
    return type(value)(_cut(part, deep - 1) for part in value)


def check_model(model: Any, whole: bool = False) -> None:
    """Raise InputError unless this is a network whose layers can be used; whole: a TorchScript program will do."""
    require(isinstance(model, nn.Module), f"the model must be an nn.Module, got {type(model).__name__}.")
    require(whole or not isinstance(model, torch.jit.ScriptModule),
            "the model is a TorchScript program, whose layers cannot be changed: give the network it was made from.")
    tensors = [*model.parameters(), *model.buffers()]
    require(not any(map(is_lazy, tensors)), "the model has lazy layers that have seen no image yet: run it once on one "
                                            "or load its weights.")
    require(not any(tensor.is_meta for tensor in tensors), "the model lies on the device 'meta', where tensors have no "
                                                           "numbers: make it on a real one and load its weights.")


def check_unwrapped(model: nn.Module) -> None:
    """Raise InputError for a wrapper that runs copies of the network, whose weights cannot be scaled for one run."""
    require(not isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel),
            f"this defence cannot reach the weights through {type(model).__name__}: give it the network inside, "
            "model.module.")


def check_convolutional(model: nn.Module) -> None:
    """Raise InputError for a transformer, that is, if all attention is behind the last convolution."""
    names, layers = zip(*model.named_modules(), strict=True)
    behind = max((place for place, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)), default=len(layers))
    attends = [place for place, layer in enumerate(layers)
               if _ATTENTION.search(f"{names[place].rpartition('.')[2]} {type(layer).__name__}")]
    norms = sum(isinstance(layer, nn.LayerNorm | nn.RMSNorm) for layer in layers[behind:])
    require(not attends or attends[0] < behind or norms < _NORMS,
            "the network is a transformer, whose blocks of attention stand behind its convolutions and have no "
            "filters: the defences and scans here are for convolutional networks.")


def is_lazy(tensor: Tensor) -> bool:
    """Whether a parameter or buffer of a lazy layer has no shape yet."""
    return isinstance(tensor, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer)


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's parameters or buffers; the CPU if it has none."""
    return next((tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())), torch.device("cpu"))


@contextmanager
def batch_normalised() -> Iterator[None]:
    """Around training: raise InputError, not ValueError, if BatchNorm gets a single value per channel.

    That happens with one image whose maps have one pixel.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError("BatchNorm cannot learn from a batch of one image, since its maps have a single pixel there: "
                         "take more images, or larger batches.") from None


def predict(model: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """The model's logits for float images (N, C, H, W) in [0, 1], in eval mode; returns (N, classes).

    Each module's own mode is restored afterwards. If memory runs out, the batch is halved once.
    Raises InputError for images the model cannot take, too little memory, an output that is no such tensor, or NaN in
    the logits, whose argmax would pass as a class.
    """
    logits = answers(model, images, batch_size)
    require(not bool(logits.isnan().any()), "the model answers NaN: its weights or the images hold values that are not "
                                            "finite.")
    return logits


def answers(model: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """As `predict`, for callers that handle NaN themselves."""
    check_model(model, whole=True)
    device = device_of(model)
    try:
        with evaluating(model), torch.inference_mode():
            return halving(lambda size: torch.cat([_logits(model(_own(batch, device)), len(batch))
                                                   for batch in images.split(size)]), batch_size)
    except Exception as error:  # foreign code may raise anything
        if isinstance(error, InputError | MemoryError) or "memory" in str(error):
            raise
        kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
        advice = "model.float()" if images.dtype is torch.float32 else "images.float()"
        require(kinds <= {images.dtype} or "type" not in str(error),
                f"the model cannot take images of {images.dtype}, since it has weights of "
                f"{', '.join(sorted(map(str, kinds - {images.dtype})))}: give {advice}.")
        kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
        raise InputError(f"the model cannot take images of shape {tuple(images.shape[1:])}: {kind}{error}") from error


def _own(images: Tensor, device: torch.device) -> Tensor:
    """A contiguous copy of the images, because forward() may normalise in place and use view()."""
    return images.to(device, copy=True, memory_format=torch.contiguous_format)


def _logits(output: Any, rows: int) -> Tensor:
    """A model's output, checked to be one row of logits per image."""
    shape = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    require(rows > 1 or not isinstance(output, Tensor) or output.ndim != 1,
            f"the model must return logits (N, classes) of a single image, too, got {shape}: does its squeeze() remove "
            "the batch dimension? Write flatten(1).")
    require(isinstance(output, Tensor) and output.ndim == 2, f"the model must return logits (N, classes), got {shape}: "
                                                             "wrap it so that it returns these alone.")
    require(output.layout is torch.strided and not output.is_complex() and output.shape[1] > 1,
            f"the model must return logits, one real number per class, got {tuple(output.shape)} of {output.dtype}, "
            f"{output.layout}; one of two classes takes two numbers.")
    require(len(output) == rows, f"the model must return one row of logits per image, got {len(output)} "
                                 f"rows for {rows}.")
    return output


def first_logits(output: Any, rows: int, classes: int | None = None) -> Tensor:
    """The logits in a model's output in training mode: the first matching tensor, whatever else is returned.

    output: a tensor, or a list, tuple or dict with one.
    rows: the number of images.
    classes: the number of classes, if known, so that features are not taken for logits.
    Raises InputError if there is none with one row per image.
    """
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        output = next((part for part in output if isinstance(part, Tensor) and part.ndim == 2
                       and classes in (None, part.shape[1])), output)
    return _logits(output, rows)
