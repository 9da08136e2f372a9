"""Networks, built by name: `build("preact_resnet", num_classes=12, width=16)`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from gradprune.base.devices import choose_device, seeded
from gradprune.base.errors import InputError, require, unknown
from gradprune.models.imported import mobilenet_v3_small, resnet18, timm_model
from gradprune.models.inference import evaluating, predict
from gradprune.models.layers import Normalize, normalized
from gradprune.models.limits import AtMost
from gradprune.models.own import own_model
from gradprune.models.preact_resnet import PreActResNet, preact_resnet18
from gradprune.models.resizing import resize
from gradprune.models.vgg import VGG, SmallVGG
from gradprune.models.weights import load_weights

MODELS: dict[str, Callable[..., nn.Module]] = {
    "preact_resnet": PreActResNet, "preact_resnet18": preact_resnet18, "small_vgg": SmallVGG,
    "vgg16_bn": partial(VGG, 16), "vgg19_bn": partial(VGG, 19), "resnet18": resnet18,
    "mobilenet_v3_small": mobilenet_v3_small}

__all__ = ["MODELS", "Normalize", "PreActResNet", "SmallVGG", "build", "choose_device", "evaluating", "load_weights",
           "normalized", "predict"]


def build(name: str, num_classes: int, *, seed: int = 0, sizes: dict[str, list[int]] | None = None, code: bool = False,
          largest: int | None = None, **settings: Any) -> nn.Module:
    """Build a network by name with weights drawn from `seed`; the global random state is not changed.

    name: one of `MODELS`, "timm/NAME", or "module:function", which imports the user's own code.
    num_classes: the number of logits.
    sizes: the sizes of layers that are smaller than the settings make them, as in a slimmed model (see
        `models.resizing`).
    code: whether the name came from the user; "module:function" is refused otherwise.
    largest: most numbers that the network may hold, for settings from an untrusted file; None for no limit.
    settings: the network's own arguments (width, blocks, channels, mean, std ...).
    Raises InputError for an unknown name or setting, a size that does not fit, or more numbers than `largest`.
    """
    make = _maker(name, code)
    try:
        with seeded(seed, torch.get_default_device()), AtMost(largest):
            model = make(num_classes, **settings)
    except Exception as error:  # wrong settings raise almost anything
        if isinstance(error, InputError):
            raise
        told = {"num_classes": num_classes, **settings}
        raise InputError(f"Model {name!r} cannot be built with {told}: {str(error).rstrip('.')}.") from error
    resize(model, {} if sizes is None else sizes)
    return model


def _maker(name: str, code: bool) -> Callable[..., nn.Module]:
    """The function that makes a network of this name from `num_classes` and settings."""
    require(isinstance(name, str), f"the name of a model must be a text, got {name!r}.")
    if name in MODELS:
        return MODELS[name]
    if name.startswith("timm/"):
        return partial(timm_model, name.removeprefix("timm/"))
    if ":" in name:
        require(code, f"the model {name!r} is somebody's own code, which runs only if you name it: --model {name}")
        return partial(own_model, name)
    raise InputError(f"{unknown('model', name, MODELS)}{' Or name your own code: module:function.' * code}")
