"""The published archives as arrays. Members are read inside the archive: nothing is unpacked to the disk."""

import csv
import gzip
import io
import pickle
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gradprune.base.errors import require
from gradprune.base.pickles import check_pickle
from gradprune.datasets.cache import Arrays
from gradprune.datasets.folder import SIZE, decode

_MEMBER = 64 << 20  # most bytes that are read of a member; the largest known one has 47 MB
_BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


def cifar10(archive: Path) -> Arrays:
    """CIFAR-10 from cifar-10-binary.tar.gz or cifar-10-python.tar.gz: x_PART uint8 (N, 3, 32, 32), y_PART (N,)."""
    read = _pickled if "python" in archive.name else _binary
    wanted = {name for names in _BATCHES.values() for name in names}
    batches = {}
    with tarfile.open(archive, "r:gz") as file:
        for member in file:
            require(member.size <= _MEMBER, f"{member.name!r} in it has {member.size} bytes")  # skipping one unpacks it
            name = Path(member.name).name.removesuffix(".bin")
            if name in wanted and member.isfile():
                content = file.extractfile(member)
                batches[name] = read(content.read(_MEMBER) if content else b"")
    require(batches.keys() == wanted, f"{archive} lacks {', '.join(sorted(wanted - batches.keys()))}.")
    arrays = {}
    for part, names in _BATCHES.items():
        arrays[f"x_{part}"] = np.concatenate([batches[name][1] for name in names]).reshape(-1, 3, 32, 32)
        arrays[f"y_{part}"] = np.concatenate([batches[name][0] for name in names])
    return arrays


def _binary(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Labels and pixels of a binary batch: rows of one byte for the label and 3072 for the image."""
    rows = np.frombuffer(content, np.uint8).reshape(-1, 3073)
    return rows[:, 0].astype(np.int64), rows[:, 1:]


def _pickled(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Labels and pixels of a batch in the Python version, a pickle."""
    check_pickle(io.BytesIO(content), "a batch")
    batch = _Plain(io.BytesIO(content), encoding="bytes").load()
    return np.array(batch[b"labels"], np.int64), np.asarray(batch[b"data"], np.uint8)


class _Plain(pickle.Unpickler):
    """An unpickler for numbers, strings, lists, dicts and NumPy arrays; it calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.ndarray.__reduce__(np.empty(0))[0]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def fashion_mnist(x_train: Path, y_train: Path, x_test: Path, y_test: Path) -> Arrays:
    """Fashion-MNIST from its four IDX files, gzipped or not: x_PART uint8 (N, 28, 28), y_PART (N,)."""
    return {"x_train": _idx(x_train, 3), "y_train": _idx(y_train, 1).astype(np.int64),
            "x_test": _idx(x_test, 3), "y_test": _idx(y_test, 1).astype(np.int64)}


def _idx(path: Path, axes: int) -> np.ndarray:
    """Read an IDX file of bytes: two zeros, 8 for uint8, the number of axes, their lengths (big-endian), the values."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        content = file.read(_MEMBER)
    shape = np.frombuffer(content[4:4 + 4 * axes], ">u4")
    require(content[:4] == bytes((0, 0, 8, axes)) and len(content) == 4 + 4 * axes + int(shape.prod(dtype=np.int64)),
            f"{path} is not a whole IDX file of {axes} axes.")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape.tolist())


def gtsrb(training: Path, test: Path, labels: Path) -> Arrays:
    """GTSRB from its three zip files, resized: x_PART uint8 (N, 3, 32, 32), y_PART (N,)."""
    with zipfile.ZipFile(labels) as file, file.open("GT-final_test.csv") as member:
        lines = member.read(_MEMBER).decode().splitlines()
    label_of = {row["Filename"]: int(row["ClassId"]) for row in csv.DictReader(lines, delimiter=";")}
    arrays: Arrays = {}
    for part, archive in (("train", training), ("test", test)):
        found: list[tuple[str, int]] = []
        with zipfile.ZipFile(archive) as file:
            for name in sorted(file.namelist()):
                if match := re.search(r"/(?:(\d{5})|Images)/([^/]+\.ppm)$", name):
                    found.append((name, int(match[1]) if match[1] else label_of[match[2]]))
            images = np.empty((len(found), 3, SIZE, SIZE), np.uint8)
            for i, (name, _) in enumerate(tqdm(found, archive.name, delay=1, leave=False, disable=None)):
                with file.open(name) as member:
                    images[i] = decode(io.BytesIO(member.read(_MEMBER)), SIZE)[0]
        arrays |= {f"x_{part}": images, f"y_{part}": np.array([label for _, label in found], np.int64)}
    return arrays
