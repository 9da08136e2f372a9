"""Look at a model, or ask it, without changing it."""

from collections.abc import Iterator
from contextlib import contextmanager

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


def predict(model: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """The model's logits for float images (N, C, H, W) in [0, 1], in eval mode; returns (N, classes).

    The mode that each module of the model was in is restored. Where the memory runs out, the batch is halved once.
    Raises InputError for images the model cannot take, for too little memory, or where the answers are not numbers: NaN
    would pass for a class.
    """
    device = next(model.parameters()).device
    try:
        with evaluating(model), torch.inference_mode():
            logits = halving(lambda size: torch.cat([model(batch.to(device)) for batch in images.split(size)]),
                             batch_size)
    except RuntimeError as error:
        if "memory" in str(error):
            raise
        raise InputError(f"the model cannot take images of shape {tuple(images.shape[1:])}: {error}") from None
    require(not bool(logits.isnan().any()), "the model answers NaN: its weights or the images hold values that are not "
                                            "finite.")
    return logits
