"""Networks, built by name: `build("preact_resnet", num_classes=12, width=16)`."""

from typing import Any

import torch
from torch import nn

from gradprune.errors import InputError, unknown
from gradprune.models.inference import evaluating, predict
from gradprune.models.layers import Normalize
from gradprune.models.preact_resnet import PreActResNet
from gradprune.models.resizing import resize
from gradprune.models.vgg import SmallVGG

MODELS = {"preact_resnet": PreActResNet, "small_vgg": SmallVGG}

__all__ = ["MODELS", "Normalize", "PreActResNet", "SmallVGG", "build", "evaluating", "predict"]


def build(name: str, num_classes: int, *, seed: int = 0, sizes: dict[str, list[int]] | None = None,
          **settings: Any) -> nn.Module:
    """Build a network by name with weights drawn from `seed`; the global random state is left alone.

    settings: the class's own arguments (width, blocks, channels, mean, std ...). sizes: of layers that are smaller
    than these settings make them, as in a slimmed model (see `models.resizing`).
    Raises InputError for an unknown name or setting, or a size that does not fit.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = MODELS[name](num_classes, **settings)
        except TypeError as error:
            raise InputError(f"Model {name!r} cannot be built with {settings}: {error}.") from None
    resize(model, {} if sizes is None else sizes)
    return model
