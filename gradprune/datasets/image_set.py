"""Images and labels as two tensors in memory, and the defender's few images drawn from them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradprune.base.errors import plain, require


def class_name(label: int, classes: Sequence[str]) -> str:
    """The name of a class; a model may have more classes than the images."""
    return classes[label] if label < len(classes) else f"class {label}"


MOST_CLASSES = 30_000  # the largest data sets in use have 22,000


@dataclass(frozen=True)
class ImageSet:
    """A labelled set of images, held in memory as two tensors.

    images: uint8 (N, C, H, W), values 0..255.
    labels: int64 (N,), values 0..len(classes)-1.
    classes: the class names, in label order.
    Raises InputError for any other type, shape or range.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        images, labels, count = self.images, self.labels, len(self.classes)
        for name, value in (("images", images), ("labels", labels)):
            hint = f": give torch.from_numpy({name})" if type(value).__module__ == "numpy" else ""
            require(isinstance(value, Tensor), f"{name} must be a torch tensor, got {type(value).__name__}{hint}.")
        require(not isinstance(self.classes, str), f"classes must be a list of names, got {self.classes!r}.")
        require(images.dtype == torch.uint8 and images.ndim == 4,
                f"images must be uint8 (N, C, H, W), got {images.dtype} {tuple(images.shape)}.")
        require(images.shape[1] in (1, 3), f"images must have 1 or 3 channels, got {images.shape[1]}.")
        require(labels.dtype == torch.int64 and labels.shape == images.shape[:1],
                f"labels must be int64 ({len(images)},), got {labels.dtype} {tuple(labels.shape)}.")
        if len(labels):
            low, high = int(labels.min()), int(labels.max())
            require(low >= 0 and high < count, f"labels must lie in 0..{count - 1}, got {low}..{high}.")

    @classmethod
    def from_dataset(cls, dataset: Any, classes: Sequence[str] | None = None) -> "ImageSet":
        """The images of a torchvision Dataset, a DataLoader, or anything else that yields (image, label, ...).

        dataset: its images are PIL pictures, uint8 (C, H, W) or (H, W, C), or float (C, H, W) in [0, 1], all of one
            size. Its transform is applied, so it must not normalise: the model does that (see `models.normalized`).
        classes: the class names; by default the dataset's own, or else the labels as strings.
        Raises InputError for images of different sizes or another range, or labels that are not whole numbers.
        """
        from gradprune.datasets.from_dataset import gather  # late: it imports `folder`, which imports this module
        return cls(*gather(dataset, classes))

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        n, c, h, w = self.images.shape
        return f"ImageSet({n} images, {c}x{h}x{w}, {len(self.classes)} classes)"

    def floats(self) -> Tensor:
        """The images as float32 in [0, 1], shape (N, C, H, W): what triggers and models take."""
        return (self.images.float() / 255).contiguous()  # not channels_last: a `.view` may follow

    def triggered(self, trigger: nn.Module) -> Tensor:
        """The images with the trigger applied, as `floats`; raises InputError if it changes their shape or range."""
        clean = self.floats()
        with torch.no_grad():
            stamped = trigger(clean).contiguous()
        require(stamped.shape == clean.shape,
                f"the trigger changed the images' shape from {tuple(clean.shape)} to {tuple(stamped.shape)}.")
        if len(stamped):
            low, high = stamped.min().item(), stamped.max().item()
            require(low >= -1e-6 and high <= 1 + 1e-6,
                    f"the trigger left the pixel range 0..1: it gave {low:.3g}..{high:.3g}.")
        return stamped

    def subset(self, indices: Tensor) -> "ImageSet":
        """The images at `indices` (int64 positions or a bool mask), in that order."""
        return ImageSet(self.images[indices], self.labels[indices], self.classes)

    def check_target(self, target: int) -> None:
        """Raise InputError unless `target` is one of the labels."""
        index = isinstance(target, Tensor) and target.shape == () and target.dtype == torch.int64
        require(isinstance(target, Integral) or index, f"target must be a whole number, got {target!r}.")
        require(0 <= target < len(self.classes), f"target must be a class in 0..{len(self.classes) - 1}, got {target}.")

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same set with both tensors on `device`."""
        return ImageSet(self.images.to(device), self.labels.to(device), self.classes)


def check_images(name: str, value: Any) -> None:
    """Raise InputError unless an argument is an ImageSet; the message says how to get one from another type."""
    hint = f"{name}.defense or {name}.test" if isinstance(value, tuple) else f"ImageSet.from_dataset({name})"
    require(isinstance(value, ImageSet), f"{name} must be an ImageSet, got {type(value).__name__}: give {hint}.")


class Dataset(NamedTuple):
    """Three parts that never mix.

    train: the attacker's training images.
    defense: never used in training; the defender draws its few clean images from it.
    test: only for the final figures.
    """

    train: ImageSet
    defense: ImageSet
    test: ImageSet

    def digest(self) -> str:
        """SHA-256 of the defender's and the test images with their labels."""
        found = hashlib.sha256()
        for part in (self.defense, self.test):
            found.update(part.images.numpy().tobytes() + part.labels.numpy().tobytes())
        return found.hexdigest()


class DefenseImages(NamedTuple):
    """The defender's few clean images: a training part and a validation part."""

    train: ImageSet
    validation: ImageSet


def draw_defense_images(pool: ImageSet, spc: int, seed: int = 0) -> DefenseImages:
    """Draw `spc` images per class and split off a validation part.

    Validation is 10 % of spc, at least one image per class. Up to spc 9 that image is in addition to spc
    (2 -> 2 + 1); from 10 on it is part of spc (10 -> 9 + 1, 100 -> 90 + 10).
    Raises InputError, naming the class, if one has too few images.
    """
    check_images("clean", pool)
    require(isinstance(spc, Integral), f"spc (images per class) must be a whole number, got {spc!r}.")
    require(spc >= 1, f"spc (images per class) must be at least 1, got {spc}.")
    require(type(seed) is int and abs(seed) < 2**63,
            f"seed must be a whole number below 2^63, as an int, got {seed!r}.")
    validation = max(1, round(0.1 * spc))
    training = spc if spc < 10 else spc - validation
    generator = torch.Generator().manual_seed(seed)
    train, held = [], []
    for label, name in enumerate(pool.classes):
        members = torch.nonzero(pool.labels.cpu() == label).flatten()
        require(len(members) >= training + validation,
                f"spc={spc} needs {training + validation} images of each class ({training} to train, {validation} to "
                f"validate), but class {name!r} has {len(members)} in the defender's part: lower spc, give more "
                "images, or give the folder a part defense/CLASS/.")
        chosen = members[torch.randperm(len(members), generator=generator)]
        train.append(chosen[:training])
        held.append(chosen[training:training + validation])
    return DefenseImages(pool.subset(torch.cat(train)), pool.subset(torch.cat(held)))


def split_off(images: ImageSet, share: float, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """Split off `share` (0..1) of every class, at least one image of each; returns (rest, split-off)."""
    require(0 < share < 1, f"share must lie between 0 and 1, got {share}.")
    generator = torch.Generator().manual_seed(plain(seed))
    off = torch.zeros(len(images), dtype=torch.bool)
    for label in range(len(images.classes)):
        members = torch.nonzero(images.labels == label).flatten()
        count = min(max(1, round(share * len(members))), len(members))
        off[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return images.subset(~off), images.subset(off)
