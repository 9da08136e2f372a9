"""Images from a torchvision Dataset, a Subset of one, a DataLoader or a Hugging Face dataset."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gradprune.base.errors import InputError, require
from gradprune.datasets.folder import eight_bits
from gradprune.datasets.image_set import MOST_CLASSES

# Keys of the image and the label in the items of Hugging Face datasets.
_NAMED = (("image", "img", "pixel_values"), ("label", "labels", "fine_label"))


def gather(dataset: Any, classes: Sequence[str] | None) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images uint8 (N, C, H, W), labels int64 (N,) and the names of the classes; see `ImageSet.from_dataset`."""
    if isinstance(dataset, torch.utils.data.DataLoader):
        dataset = _behind(dataset)
    images, labels = [], []
    for place, item in enumerate(_items(dataset)):
        if isinstance(item, Mapping):
            item = [next((item[name] for name in names if name in item), None) for names in _NAMED]
        require(isinstance(item, tuple | list) and len(item) >= 2,
                f"item {place} of the dataset must be (image, label), got {type(item).__name__}.")
        images.append(_pixels(item[0], place))
        labels.append(_label(item[1], place))
        require(images[-1].shape[1:] == images[0].shape[1:],
                f"image {place} of the dataset has shape {tuple(images[-1].shape)}, the first {tuple(images[0].shape)}:"
                " give the dataset a transform that resizes them.")
    require(len(images) > 0, "the dataset is empty.")
    colours = max(len(image) for image in images)  # grey pictures among others become RGB, as in a folder
    images = [image.expand(colours, -1, -1) if len(image) == 1 else image for image in images]
    names = classes if classes is not None else _classes(dataset)
    require(names is not None or max(labels) < MOST_CLASSES,
            f"the labels go up to {max(labels)}: number the classes from 0 on, or give their names.")
    names = tuple(map(str, names)) if names is not None else tuple(map(str, range(max(labels) + 1)))
    return torch.stack(images), torch.tensor(labels), names


def _behind(loader: "torch.utils.data.DataLoader[Any]") -> Any:
    """The images that a loader yields, each once, in the order of its dataset; `collate_fn` is not used."""
    drawn, plain = loader.batch_sampler, type(loader.batch_sampler) is torch.utils.data.BatchSampler
    if not hasattr(loader.dataset, "__getitem__") or drawn is None or (plain and isinstance(
            loader.sampler, torch.utils.data.SequentialSampler | torch.utils.data.RandomSampler)):
        return loader.dataset
    with torch.random.fork_rng(devices=[]):  # a sampler may draw from the global state
        chosen = loader.sampler if plain else (place for batch in drawn for place in batch)
        return torch.utils.data.Subset(loader.dataset, sorted(set(chosen)))


def _items(dataset: Any) -> Iterable[Any]:
    """The items in order; by index where possible, since some datasets never raise IndexError."""
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return (_item(dataset, place) for place in range(len(dataset)))
    require(isinstance(dataset, Iterable), f"a dataset gives images and labels, got {type(dataset).__name__}.")
    return dataset


def _item(dataset: Any, place: int) -> Any:
    try:
        return dataset[place]
    except Exception as error:  # foreign code may raise anything
        raise InputError(f"item {place} of the dataset cannot be read ({type(error).__name__}: {error}).") from error


def _classes(dataset: Any) -> Sequence[str] | None:
    """The dataset's own class names, also those of the dataset behind a Subset."""
    while dataset is not None:
        features = getattr(dataset, "features", None)  # of a Hugging Face dataset
        labels = [features[name] for name in _NAMED[1] if name in features] if isinstance(features, Mapping) else []
        for names in (getattr(dataset, "classes", None), *(getattr(label, "names", None) for label in labels)):
            if isinstance(names, list | tuple):
                return names
        dataset = getattr(dataset, "dataset", None)
    return None


def _pixels(image: Any, place: int) -> Tensor:
    """One image as uint8 (C, H, W)."""
    if isinstance(image, Image.Image):
        image = eight_bits(image)
        image = np.array(image if image.mode in ("L", "RGB", "F") else image.convert("RGB"))
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.array(image, order="C"))  # a copy: the given one may be read-only
    require(isinstance(image, Tensor), f"image {place} of the dataset must be a picture or a tensor, got "
                                       f"{type(image).__name__}.")
    image = image.detach()
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
    with suppress(Exception):  # a foreign label may be anything
        number = np.asarray(label).reshape(-1)
        if number.size == 1 and number.dtype.kind in "iub" and number[0] >= 0:
            return int(number[0])
    raise InputError(f"label {place} of the dataset must be one whole number from 0 on, got {label!r}.")
