"""Look at a model, or ask it, without changing it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradprune.errors import InputError, require
from gradprune.models.devices import halving


@contextmanager
def evaluating(model: nn.Module, gradients: bool = False) -> Iterator[None]:
    """Hold the model in eval mode (BatchNorm statistics stay as they are), then restore each module's own mode.

    gradients: also let every parameter take part in gradients meanwhile, whatever its requires_grad says.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    if gradients:
        model.requires_grad_(True)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def batch_normalised() -> Iterator[None]:
    """Around training: where BatchNorm gets one value a channel, which has no spread, raise InputError, not ValueError.

    It gets that from a single image whose maps have one pixel.
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

    The mode that each module of the model was in is restored. Where the memory runs out, the batch is halved once.
    Raises InputError for images the model cannot take, for too little memory, for an output that is no such tensor, or
    where the answers are not numbers: NaN would pass for a class.
    """
    logits = answers(model, images, batch_size)
    require(not bool(logits.isnan().any()), "the model answers NaN: its weights or the images hold values that are not "
                                            "finite.")
    return logits


def answers(model: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """The same, for callers that know what to do with NaN."""
    device = next(model.parameters()).device
    try:
        with evaluating(model), torch.inference_mode():
            return halving(lambda size: torch.cat([_logits(model(batch.to(device))) for batch in images.split(size)]),
                           batch_size)
    except Exception as error:  # a stranger's forward() may raise anything
        if isinstance(error, InputError | MemoryError) or "memory" in str(error):
            raise
        kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
        raise InputError(f"the model cannot take images of shape {tuple(images.shape[1:])}: {kind}{error}") from error


def _logits(output: Any) -> Tensor:
    """What a model returned, if it is one row of logits an image."""
    shape = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    require(isinstance(output, Tensor) and output.ndim == 2, f"the model must return logits (N, classes), got {shape}: "
                                                             "wrap it so that it returns these alone.")
    return output
