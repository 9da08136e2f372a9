"""A data set in an .npz file, checked array by array."""

import zipfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradprune.base.errors import InputError, listed, require, told_as
from gradprune.datasets.cache import Arrays
from gradprune.datasets.image_set import MOST_CLASSES, Dataset, ImageSet, split_off

_HARMLESS, _PACKED = 256_000_000, 50  # a file may unpack to so many bytes, or to this multiple of its own size


def read_npz(path: Path, seed: int) -> Dataset:
    """The data set in an .npz file; `datasets.load` says which arrays it needs and what is refused."""
    arrays, there = _read_arrays(path)
    own_defense = "x_defense" in arrays or "y_defense" in arrays
    names = ("train", "test", "defense") if own_defense else ("train", "test")
    for name in (f"{letter}_{part}" for part in names for letter in "xy"):
        require(name in arrays, f"{path} has no array {name}, only {listed(sorted(there)) or 'nothing'}.")
    images = {part: _images(path, f"x_{part}", arrays[f"x_{part}"]) for part in names}
    shapes = {f"x_{part}": tuple(tensor.shape[1:]) for part, tensor in images.items()}
    require(len(set(shapes.values())) == 1, f"Images in {path} must share one shape (C, H, W), got {shapes}.")
    classes = _classes(path, arrays)
    parts = {part: ImageSet(images[part], _labels(path, part, arrays, len(classes)), classes) for part in names}
    if not own_defense:
        for label, count in enumerate(torch.bincount(parts["train"].labels).tolist()):
            require(count != 1, f"x_train in {path} has one image of class {classes[label]!r}: "
                                "splitting off a defense part takes two (or add x_defense, y_defense).")
        parts["train"], parts["defense"] = split_off(parts["train"], 0.1, seed)
    return Dataset(**parts)


def _read_arrays(path: Path) -> tuple[Arrays, list[str]]:
    """The arrays that are used here, and the names of all; the others are not read."""
    require(path.is_file(), f"No file at {path}.")
    unreadable = f"{path} is not a readable .npz file; write one with numpy.savez."
    with told_as(lambda _: unreadable):  # pickles, pictures, incomplete downloads: each fails in its own way
        file: Any = np.load(path, allow_pickle=False)
        require(any(name.endswith(".npy") for name in file.zip.namelist()), unreadable)
    known = {"classes"} | {f"{letter}_{part}" for letter in "xy" for part in Dataset._fields}
    arrays = {}
    with file:
        archive = file.zip
        claimed = sum(member.file_size for member in archive.infolist())
        require(claimed <= max(_PACKED * path.stat().st_size, _HARMLESS), f"{path} would unpack to "
                f"{claimed / 1e6:.0f} MB, more than {_PACKED} times its size: write it with numpy.savez.")
        for name in sorted(known & set(file.files)):
            try:
                _check_header(archive, name if name in archive.namelist() else f"{name}.npy")
                arrays[name] = file[name]
            except Exception as error:  # damaged bytes, or Python objects, which are never unpickled
                raise InputError(f"{name} in {path} cannot be read: {str(error).rstrip('.')}.") from None
    return arrays, file.files


def _check_header(archive: zipfile.ZipFile, member: str) -> None:
    """Refuse an array whose header claims more bytes than follow it; a damaged one raises NumPy's own errors."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        require(version in read, f"its format has version {version}")
        shape, _, kind = read[version](file)
        left = archive.getinfo(member).file_size - file.tell()
        require(prod(shape) * kind.itemsize == left or kind.hasobject, f"its header claims {shape} of {kind}, and "
                                                                       f"{left} bytes follow")


def _classes(path: Path, arrays: Arrays) -> tuple[str, ...]:
    """The names in the file, or else the labels of y_train as strings."""
    if "classes" in arrays:
        names = arrays["classes"]
        require(names.dtype.kind == "U" and names.ndim == 1 and len(names) > 1,
                f"classes in {path} must be 2 or more strings, got {names.dtype} {names.shape}.")
        require(len(names) <= MOST_CLASSES,
                f"classes in {path} must be at most {MOST_CLASSES} strings, got {len(names)}.")
        return tuple(names.tolist())
    used = np.unique(_labels(path, "train", arrays, None))
    require(1 < len(used) <= MOST_CLASSES and used[0] == 0 and used[-1] == len(used) - 1,
            f"y_train in {path} must use every label of 0..K-1, K > 1, got {len(used)} different ones in "
            f"{used[0]}..{used[-1]}; renumber them, or add the array 'classes'.")
    return tuple(str(label) for label in used)


def _images(path: Path, name: str, images: np.ndarray) -> Tensor:
    """Images as uint8 (N, C, H, W), from any of the known layouts."""
    if images.dtype.kind == "f" and images.size:
        low, high = images.min(), images.max()
        cure = "undo the normalisation, bring it to 0..255 and "
        if low >= 0 and high <= 255:
            cure = "multiply by 255 and " if high <= 1 else ""
        raise InputError(f"{name} in {path} must be uint8 0..255, got {images.dtype} {low:.3g}..{high:.3g}; "
                         f"{cure}cast to uint8.")
    require(images.dtype == np.uint8, f"{name} in {path} must be uint8 0..255, got {images.dtype}.")
    shape = images.shape
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3):
        images = np.moveaxis(images, -1, 1)
    require(images.ndim == 4 and images.shape[1] in (1, 3) and images.size > 0,
            f"{name} in {path} must be (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, got {shape}.")
    return torch.from_numpy(np.ascontiguousarray(images))


def _labels(path: Path, part: str, arrays: Arrays, count: int | None) -> Tensor:
    """Labels as int64 (N,), one for each image, below `count` unless that is None."""
    labels, images = arrays[f"y_{part}"], len(arrays[f"x_{part}"])
    labels = labels[:, 0] if labels.shape == (images, 1) else labels  # as Keras has them
    require(labels.dtype.kind in "iu" and labels.shape == (images,),
            f"y_{part} in {path} must be integers ({images},), one for each image, got {labels.dtype} {labels.shape}.")
    if count is not None:
        low, high = labels.min(), labels.max()
        require(low >= 0 and high < count, f"y_{part} in {path} must lie in 0..{count - 1}, got {low}..{high}.")
    return torch.from_numpy(labels.astype(np.int64))
