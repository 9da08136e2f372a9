"""Images from what people have: a torchvision Dataset, a Subset of one, a DataLoader."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gradprune.datasets.folder import eight_bits
from gradprune.errors import InputError, require


def gather(dataset: Any, classes: Sequence[str] | None) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images uint8 (N, C, H, W), labels int64 (N,) and the names of the classes; see `ImageSet.from_dataset`."""
    if isinstance(dataset, torch.utils.data.DataLoader):
        dataset = dataset.dataset
    images, labels = [], []
    for place, item in enumerate(_items(dataset)):
        require(isinstance(item, tuple | list) and len(item) >= 2,
                f"item {place} of the dataset must be (image, label), got {type(item).__name__}.")
        images.append(_pixels(item[0], place))
        labels.append(_label(item[1], place))
        require(images[-1].shape == images[0].shape,
                f"image {place} of the dataset has shape {tuple(images[-1].shape)}, the first {tuple(images[0].shape)}:"
                " give the dataset a transform that resizes them.")
    require(len(images) > 0, "the dataset is empty.")
    names = classes if classes is not None else _classes(dataset)
    names = tuple(map(str, names)) if names is not None else tuple(map(str, range(max(labels) + 1)))
    return torch.stack(images), torch.tensor(labels), names


def _items(dataset: Any) -> Iterable[Any]:
    """The items one after another; by index where there are indices, as some never raise IndexError."""
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return (dataset[place] for place in range(len(dataset)))
    require(isinstance(dataset, Iterable), f"a dataset gives images and labels, got {type(dataset).__name__}.")
    return dataset


def _classes(dataset: Any) -> Sequence[str] | None:
    """The dataset's own names of classes, also behind a Subset."""
    while dataset is not None:
        if isinstance(names := getattr(dataset, "classes", None), list | tuple):
            return names
        dataset = getattr(dataset, "dataset", None)
    return None


def _pixels(image: Any, place: int) -> Tensor:
    """One image as uint8 (C, H, W)."""
    if isinstance(image, Image.Image):
        image = eight_bits(image)
        image = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(image))
    require(isinstance(image, Tensor), f"image {place} of the dataset must be a picture or a tensor, got "
                                       f"{type(image).__name__}.")
    image = image[None] if image.ndim == 2 else image
    if image.ndim == 3 and image.shape[0] not in (1, 3) and image.shape[2] in (1, 3):
        image = image.permute(2, 0, 1)
    if image.is_floating_point():
        low, high = float(image.min()), float(image.max())
        require(low >= 0 and high <= 1, f"image {place} of the dataset must lie in 0..1, got {low:.3g}..{high:.3g}: "
                                        "leave Normalize out of its transform, and give mean and std to the model.")
        image = (image * 255).round().to(torch.uint8)
    require(image.dtype == torch.uint8 and image.ndim == 3,
            f"image {place} of the dataset must be uint8 or float (C, H, W), got {image.dtype} {tuple(image.shape)}.")
    return image.contiguous()


def _label(label: Any, place: int) -> int:
    try:
        number = np.asarray(label).reshape(-1)
        if number.size == 1 and number.dtype.kind in "iub":
            return int(number[0])
    except Exception:  # a stranger's label may be anything
        number = None
    raise InputError(f"label {place} of the dataset must be one whole number, got {label!r}.")
