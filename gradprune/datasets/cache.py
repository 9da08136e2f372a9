"""Arrays that were worked out once and are read from the cache afterwards."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gradprune.base.errors import InputError, require
from gradprune.base.paths import write_atomic

Arrays = dict[str, np.ndarray]
_log = logging.getLogger(__name__)


def recall(path: Path, key: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays cached at `path`, or those that `make` gives, which are then cached.

    key: what the arrays were made from. A copy with another key, a damaged one or none at all means making them
    (again); where nothing can be written all still works.
    """
    try:
        return _read(path, key)
    except FileNotFoundError:
        pass
    except Exception as error:  # a damaged zip raises almost anything; whatever it is, making the arrays mends it
        _log.info("Making %s again: the cached copy cannot be used (%s).", path, error)
    arrays = make()
    stored: dict[str, Any] = {**arrays, "digest": np.array(_digest(path.name + key, arrays))}
    try:
        write_atomic(path, lambda temporary: np.savez(temporary, **stored))
    except InputError as error:
        _log.info("%s is not cached: %s", path.name, error)
    return arrays


def _read(path: Path, key: str) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    require(str(arrays.pop("digest")) == _digest(path.name + key, arrays), "its digest does not match")
    return arrays


def _digest(name: str, arrays: Arrays) -> str:
    """SHA-256 over what the arrays were made from, and every array's name, type, shape and bytes."""
    digest = hashlib.sha256(name.encode())
    for key, array in sorted(arrays.items()):
        digest.update(f"{key} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
