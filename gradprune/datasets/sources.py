"""Where images come from: a data set's name, a folder of pictures, or a file of arrays."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from gradprune.datasets.cache import Arrays, recall
from gradprune.datasets.folder import SIZE, read_folder
from gradprune.datasets.image_set import Dataset, ImageSet, split_off
from gradprune.datasets.signs import RENDER_VERSION, render_signs
from gradprune.errors import InputError, require, unknown
from gradprune.paths import cache_folder


def load(source: str | Path, *, seed: int = 0, size: int | None = None) -> Dataset:
    """Load images by name, from a folder or from a file, as the three parts train, defense and test.

    source: "signs", the rendered traffic signs (12 classes, 32x32; drawn once, then read from the cache);
        or a folder of pictures, one folder a class (see `datasets.read_folder`);
        or an ".npz" file with x_train, y_train, x_test, y_test and optionally x_defense, y_defense, classes:
        images uint8 0..255, shape (N, H, W, C), (N, C, H, W) or (N, H, W); labels integers 0..K-1, shape
        (N,); classes K strings. Without x_defense, 10 % of every class of x_train becomes that part.
        A name goes before a folder of that name; "./signs" is the folder.
    seed: which signs are drawn, or which images are split off.
    size: the side in pixels to which the pictures of a folder are resized, 32 if not given.
    Raises InputError for an unknown name, or naming the file and the array that is missing or wrong.
    """
    require(isinstance(source, str | Path), f"source must be a name or a path, got {type(source).__name__}.")
    require(isinstance(seed, int) and seed >= 0, f"seed must be a whole number from 0 on, got {seed!r}.")
    path = Path(source).expanduser()
    if source not in SOURCES and path.is_dir():
        return read_folder(path, size=SIZE if size is None else size, seed=seed).data
    require(size is None, f"size is for folders of pictures, and {str(source)!r} is none.")
    if source in SOURCES:
        return SOURCES[str(source)](seed)
    if isinstance(source, Path) or path.suffix or path.exists():
        return _from_file(path, seed)
    require(path.name == str(source), f"No folder or file at {path}.")
    raise unknown("data set", source, SOURCES)


def _signs(seed: int) -> Dataset:
    """The signs, drawn once and then read from the cache."""
    def draw() -> Arrays:
        signs = render_signs(seed)
        arrays = {f"{letter}_{part}": tensor.numpy() for part, images in signs._asdict().items()
                  for letter, tensor in (("x", images.images), ("y", images.labels))}
        return {**arrays, "classes": np.array(signs.train.classes)}

    arrays = recall(cache_folder() / f"signs-v{RENDER_VERSION}-seed{seed}.npz", "", draw)
    classes = tuple(arrays["classes"].tolist())
    return Dataset(*(ImageSet(torch.from_numpy(arrays[f"x_{part}"]), torch.from_numpy(arrays[f"y_{part}"]),
                              classes) for part in Dataset._fields))


# ---- a file of arrays


def _from_file(path: Path, seed: int) -> Dataset:
    arrays = _read_arrays(path)
    own_defense = "x_defense" in arrays or "y_defense" in arrays
    names = ("train", "test", "defense") if own_defense else ("train", "test")
    for name in (f"{letter}_{part}" for part in names for letter in "xy"):
        require(name in arrays, f"{path} has no array {name}, only {', '.join(sorted(arrays)) or 'others'}.")
    images = {part: _images(path, f"x_{part}", arrays[f"x_{part}"]) for part in names}
    shapes = {f"x_{part}": tuple(tensor.shape[1:]) for part, tensor in images.items()}
    require(len(set(shapes.values())) == 1, f"Images in {path} must share one shape (C, H, W), got {shapes}.")
    classes = _classes(path, arrays)
    parts = {part: ImageSet(images[part], _labels(path, part, arrays, len(classes)), classes)
             for part in names}
    if not own_defense:
        for label, count in enumerate(torch.bincount(parts["train"].labels).tolist()):
            require(count != 1, f"x_train in {path} has one image of class {classes[label]!r}: "
                                "splitting off a defense part takes two (or add x_defense, y_defense).")
        parts["train"], parts["defense"] = split_off(parts["train"], 0.1, seed)
    return Dataset(**parts)


def _read_arrays(path: Path) -> Arrays:
    """The arrays of the file that have a meaning here; others are left unread."""
    require(path.is_file(), f"No file at {path}.")
    try:
        file = np.load(path, allow_pickle=False)
    except Exception:  # pickles, pictures, cut downloads: each fails in its own way and means the same
        file = None
    if not isinstance(file, NpzFile):
        raise InputError(f"{path} is not a readable .npz file; write one with numpy.savez.")
    known = {"classes"} | {f"{letter}_{part}" for letter in "xy" for part in Dataset._fields}
    arrays = {}
    with file:
        for name in known & set(file.files):
            try:
                arrays[name] = file[name]
            except Exception as error:  # damaged bytes, or Python objects, which are never unpickled
                raise InputError(f"{name} in {path} cannot be read: {str(error).rstrip('.')}.") from None
    return arrays


def _classes(path: Path, arrays: Arrays) -> tuple[str, ...]:
    """The names given; without them the labels of y_train, as strings."""
    if "classes" in arrays:
        names = arrays["classes"]
        require(names.dtype.kind == "U" and names.ndim == 1 and len(names) > 1,
                f"classes in {path} must be 2 or more strings, got {names.dtype} {names.shape}.")
        return tuple(names.tolist())
    used = np.unique(_labels(path, "train", arrays, None))
    require(len(used) > 1 and used[0] == 0 and used[-1] == len(used) - 1,
            f"y_train in {path} must use every label of 0..K-1, K > 1, got {len(used)} different ones in "
            f"{used[0]}..{used[-1]}; renumber them, or add the array 'classes'.")
    return tuple(str(label) for label in used)


def _images(path: Path, name: str, images: np.ndarray) -> Tensor:
    """Images as uint8 (N, C, H, W), whichever layout they came in."""
    if images.dtype.kind == "f" and images.size:
        low, high = images.min(), images.max()
        cure = "multiply by 255" if low >= 0 and high <= 1 else "undo the normalisation, bring it to 0..255"
        raise InputError(f"{name} in {path} must be uint8 0..255, got {images.dtype} {low:.3g}..{high:.3g}; "
                         f"{cure} and cast to uint8.")
    require(images.dtype == np.uint8, f"{name} in {path} must be uint8 0..255, got {images.dtype}.")
    shape = images.shape
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3):
        images = np.moveaxis(images, -1, 1)
    require(images.ndim == 4 and images.shape[1] in (1, 3) and images.size > 0,
            f"{name} in {path} must be (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, "
            f"got {shape}.")
    return torch.from_numpy(np.ascontiguousarray(images))


def _labels(path: Path, part: str, arrays: Arrays, count: int | None) -> Tensor:
    """Labels as int64 (N,), one for each image, below `count` where that is known."""
    labels, images = arrays[f"y_{part}"], len(arrays[f"x_{part}"])
    require(labels.dtype.kind in "iu" and labels.shape == (images,),
            f"y_{part} in {path} must be integers ({images},), one for each image, "
            f"got {labels.dtype} {labels.shape}.")
    if count is not None:
        low, high = labels.min(), labels.max()
        require(low >= 0 and high < count,
                f"y_{part} in {path} must lie in 0..{count - 1}, got {low}..{high}.")
    return torch.from_numpy(labels.astype(np.int64))


SOURCES: dict[str, Callable[[int], Dataset]] = {"signs": _signs}  # name -> function of the seed
