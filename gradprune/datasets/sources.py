"""Where images come from: a data set's name, a folder of pictures, or a file of arrays."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gradprune.base.errors import InputError, require, told_as, unknown
from gradprune.base.paths import cache_folder
from gradprune.datasets.cache import Arrays, recall
from gradprune.datasets.folder import SIZE, read_folder
from gradprune.datasets.image_set import Dataset, ImageSet
from gradprune.datasets.npz import read_npz
from gradprune.datasets.published import PUBLISHED, load_published
from gradprune.datasets.signs import RENDER_VERSION, render_signs

_log = logging.getLogger(__name__)


def load(source: str | Path, *, seed: int = 0, size: int | None = None) -> Dataset:
    """Load images by name, from a folder or from a file, as the three parts train, defense and test.

    source: "signs", the rendered traffic signs (12 classes, 32x32; drawn once, then read from the cache);
        or "cifar10", "gtsrb" or "fashion_mnist", once `datasets.get` has fetched it: nothing is downloaded here;
        or a folder of pictures, one folder per class (see `datasets.read_folder`);
        or an ".npz" file with x_train, y_train, x_test, y_test and optionally x_defense, y_defense, classes:
        images uint8 0..255, shape (N, H, W, C), (N, C, H, W) or (N, H, W); labels integers 0..K-1, shape
        (N,); classes K strings. Without x_defense, 10 % of every class of x_train becomes that part.
        A name takes precedence over a folder of that name; "./signs" is the folder (a warning says so).
    seed: which signs are drawn, or which images are split off.
    size: the side in pixels to which the pictures of a folder are resized, 32 by default.
    Raises InputError for an unknown name, or for a file with a missing or wrong array; the message names both.
    """
    require(isinstance(source, str | Path), f"source must be a name or a path, got {type(source).__name__}.")
    require(isinstance(seed, int) and 0 <= seed < 2**61, f"seed must be a whole number from 0 to 2^61, got {seed!r}.")
    path = _path(source)
    if source not in SOURCES and path.is_dir():
        return read_folder(path, size=SIZE if size is None else size, seed=seed).data
    require(size is None or not (source in SOURCES or path.exists()),
            f"size is for folders of pictures, and {str(source)!r} is none.")
    if source in SOURCES:
        if path.is_dir():
            _log.warning("%r is the data set of that name; the folder here is './%s'.", source, source)
        return SOURCES[str(source)](seed)
    if isinstance(source, Path) or path.suffix or path.exists():
        return read_npz(path, seed)
    require(path.name == str(source), f"No folder or file at {path}.")
    raise InputError(f"{unknown('data set', source, SOURCES)} There is no folder or file of that name here either.")


def _path(source: str | Path) -> Path:
    """The name as a path; raises InputError for one that cannot be looked up."""
    with told_as(lambda error: f"{str(source)!r} is no name of a data set and no path: {error}.",
                 (OSError, RuntimeError, ValueError)):  # too long, forbidden, or the home of an unknown user
        path = Path(source).expanduser()
        path.exists()
    return path


def _signs(seed: int) -> Dataset:
    """The rendered signs, drawn once and then read from the cache."""
    def draw() -> Arrays:
        signs = render_signs(seed)
        arrays = {f"{letter}_{part}": tensor.numpy() for part, images in signs._asdict().items()
                  for letter, tensor in (("x", images.images), ("y", images.labels))}
        return {**arrays, "classes": np.array(signs.train.classes)}

    arrays = recall(cache_folder() / f"signs-v{RENDER_VERSION}-seed{seed}.npz", "", draw)
    classes = tuple(arrays["classes"].tolist())
    return Dataset(*(ImageSet(torch.from_numpy(arrays[f"x_{part}"]), torch.from_numpy(arrays[f"y_{part}"]),
                              classes) for part in Dataset._fields))


# name -> function of the seed
SOURCES: dict[str, Callable[[int], Dataset]] = {
    "signs": _signs, **{name: partial(load_published, name) for name in PUBLISHED}}
