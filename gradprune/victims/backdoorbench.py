"""Attacked models of BackdoorBench (Wu et al., 2022, arXiv:2206.12654): attack_result.pt, read without its code.

The layout is public (SCLBD/BackdoorBench, utils/save_load_attack.py): model_name, num_classes, model (a state dict),
clean_data (the data set's name), img_size, data_path, bd_train and bd_test. In current files the last two say which
images were poisoned and where their pictures are; in those of 2022 they contain the poisoned images themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from reprlib import repr  # shortens deeply nested content
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradprune.base.errors import InputError, require, unknown
from gradprune.models import build
from gradprune.models.limits import in_proportion
from gradprune.models.weights import fit_weights, read_file, state_dict

# How each data set was normalised; models for gtsrb and celeba take pixels in [0, 1] as they are.
NORMALIZED: dict[str, tuple[list[float], list[float]]] = {
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.261]),
    "cifar100": ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    "tiny": ([0.4802, 0.4481, 0.3975], [0.2302, 0.2265, 0.2262]),
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "gtsrb": ([0.0] * 3, [1.0] * 3), "celeba": ([0.0] * 3, [1.0] * 3)}

# Their name -> our name, the settings that give their network, and its first convolution (whose filters are the width).
# Their PreActResNet has no BatchNorm after the last block.
_MODELS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "preactresnet18": ("preact_resnet18", {"last_norm": False}, "conv1.weight"),
    "vgg19_bn": ("vgg19_bn", {"small": False}, "features.0.weight"),
    "resnet18": ("resnet18", {"small": False}, None)}

_MOST = 10_000_000  # images that a data set may have
NOT_READ = ("Of attack_result.pt the model and the record of what was poisoned are read; the poisoned test pictures "
            "beside it (bd_test_dataset) are not: ASR and RA are measured with the trigger given here, on the test "
            "images of the data.")


@dataclass(frozen=True)
class AttackResult:
    """The content of an attack_result.pt.

    model: in eval mode, for images in [0, 1].
    settings: name and settings for `models.build`.
    data: the data set's name.
    size: (height, width) of its images, or None.
    poisoned_train, poisoned_test: positions of the poisoned images in that data set, int64; empty if not given.
    target: the label of all poisoned images; None if they have several or it is not given.
    """

    model: nn.Module
    settings: dict[str, Any]
    data: str
    size: tuple[int, int] | None
    poisoned_train: Tensor
    poisoned_test: Tensor
    target: int | None


def is_attack_result(content: Any) -> bool:
    """Whether what `models.weights.read_file` returned has BackdoorBench's layout."""
    return isinstance(content, Mapping) and isinstance(content.get("model_name"), str) and {
        "num_classes", "model"} <= set(content)


def read_attack_result(path: str | Path, *, mean: list[float] | None = None, std: list[float] | None = None
                       ) -> AttackResult:
    """Read a file attack_result.pt (or defense_result.pt); no code from it is run, see `models.weights.read_file`.

    mean, std: of the model's input, for a data set that is not in `NORMALIZED`.
    Raises InputError for a file of another layout, an unknown model, or weights that do not fit it.
    """
    content = read_file(path)
    require(is_attack_result(content), f"{path} is no attack_result.pt: it lacks model_name, num_classes or model.")
    return from_content(content, path, mean=mean, std=std)


def from_content(content: Mapping[str, Any], path: str | Path, *, mean: list[float] | None = None,
                 std: list[float] | None = None) -> AttackResult:
    """As `read_attack_result`, for a file that has already been read."""
    theirs, count, data = content["model_name"], content["num_classes"], content.get("clean_data", "")
    data = "" if data is None else data
    require(isinstance(count, Integral) and isinstance(data, str),
            f"num_classes and clean_data in {path} must be a number and a name, got {repr(count)} and {repr(data)}.")
    if theirs not in _MODELS:
        raise InputError(f"{unknown('BackdoorBench model', theirs, _MODELS)} Or give your own code of it with --model.")
    require(data in NORMALIZED or (mean is not None and std is not None),
            f"{path} does not say how the model's images were normalised (data set {data!r}); give mean and std.")
    known = NORMALIZED.get(data, ([], []))
    name, settings, first = _MODELS[theirs]
    tensors = state_dict({"model": content["model"]}, path)
    settings = {"name": name, **settings, "mean": mean or known[0], "std": std or known[1]}
    if first in tensors:
        settings["width"] = len(tensors[first])
    model = build(**settings, num_classes=int(count), largest=in_proportion(Path(path)))
    try:
        train, test = (content.get(key) or {} for key in ("bd_train", "bd_test"))
        size = content.get("img_size")
        told = ((int(size[0]), int(size[1])) if size else None, _poisoned(train), _poisoned(test),
                _target(test or train))
    except Exception:  # the record may be anything
        raise InputError(f"the record of poisoned images in {path} is not laid out as BackdoorBench does.") from None
    return AttackResult(fit_weights(model, tensors, path), {**settings, "num_classes": int(count)}, data, *told)


def _poisoned(part: Mapping[str, Any]) -> Tensor:
    """Positions of the poisoned images: marked in current files, listed in old ones."""
    found = part.get("original_index")
    if "poison_indicator" in part:
        found = _row(part["poison_indicator"]).nonzero().flatten()
    return torch.empty(0, dtype=torch.int64) if found is None else _row(found)


def _row(values: Any) -> Tensor:
    """Values as a flat row of whole numbers; anything else may raise any error."""
    if not isinstance(values, Tensor | np.ndarray):
        return torch.tensor([int(value) for value in values], dtype=torch.int64)
    require(values.ndim == 1 and len(values) <= _MOST, "no row")
    return torch.as_tensor(values).long()


def _target(part: Mapping[str, Any]) -> int | None:
    """The label that the poisoned images were given; None unless it is a single one."""
    records = part.get("bd_data_container", {}).get("data_dict", {}).values()
    labels = [record["other_info"][0] if isinstance(record, Mapping) else record[1] for record in records]
    if "y" in part:
        labels = _row(part["y"]).tolist()
    given = {int(label) for label in labels}
    return given.pop() if len(given) == 1 else None
