"""Arrays that are computed once and read from the cache afterwards."""

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
    """The arrays cached at `path`, or else those that `make` returns, which are then cached.

    key: what the arrays are made from; they are made again if the cached copy has another key or is damaged.
    If the cache cannot be written, the arrays are returned all the same.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        require(str(arrays.pop("digest")) == _digest(path.name + key, arrays), "its digest does not match")
        return arrays
    except FileNotFoundError:
        pass
    except Exception as error:  # a damaged zip raises almost anything; making the arrays again repairs it
        _log.info("Making %s again: the cached copy cannot be used (%s).", path, error)
    arrays = make()
    stored: dict[str, Any] = {**arrays, "digest": np.array(_digest(path.name + key, arrays))}
    try:
        write_atomic(path, lambda temporary: np.savez(temporary, **stored))
    except InputError as error:
        _log.info("%s is not cached: %s", path.name, error)
    return arrays


def _digest(name: str, arrays: Arrays) -> str:
    """SHA-256 of the key and of every array's name, type, shape and bytes."""
    digest = hashlib.sha256(name.encode())
    for key, array in sorted(arrays.items()):
        digest.update(f"{key} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
