"""The published data sets: which files contain them, and the one-time conversion to an .npz file."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from gradprune.base.errors import InputError, require_known
from gradprune.base.paths import downloads_folder, locked, output_folder, write_atomic
from gradprune.datasets import archives
from gradprune.datasets.cache import Arrays
from gradprune.datasets.download import Remote, fetch, md5_of
from gradprune.datasets.image_set import Dataset
from gradprune.datasets.npz import read_npz

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """A published data set.

    about: one line for the user.
    choices: sets of files, each sufficient on its own; the first is downloaded, the others are used if already there.
        They have torchvision's paths, so its folder can be shared.
    convert: makes x_train, y_train, x_test and y_test from the paths of one such set.
    classes: the class names, in label order.
    """

    about: str
    choices: tuple[tuple[Remote, ...], ...]
    convert: Callable[..., Arrays]
    classes: tuple[str, ...]


_TORONTO = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")
_ERDA = ("https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/",)
_FASHION = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/")


def _at(servers: tuple[str, ...], folder: str, name: str, md5: str, size: int) -> Remote:
    return Remote(folder + name, tuple(server + name for server in servers), md5, size)


PUBLISHED = {
    "cifar10": Published(
        "60,000 photographs, 32x32, 10 classes (Krizhevsky 2009)",
        ((_at(_TORONTO, "", "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", 170_052_171),),
         (_at(_TORONTO, "", "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", 170_498_071),)),
        archives.cifar10,
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")),
    "gtsrb": Published(
        "39,270 photographs of German traffic signs, made 32x32, 43 classes (Stallkamp et al. 2012)",
        ((_at(_ERDA, "gtsrb/", "GTSRB-Training_fixed.zip", "513f3c79a4c5141765e10e952eaa2478", 187_490_228),
          _at(_ERDA, "gtsrb/", "GTSRB_Final_Test_Images.zip", "c7e4e6327067d32654124b0fe9e82185", 88_978_620),
          _at(_ERDA, "gtsrb/", "GTSRB_Final_Test_GT.zip", "fe31e9c9270bbcd7b84b7f21a9d9d9e5", 99_620)),),
        archives.gtsrb,
        ("speed limit 20", "speed limit 30", "speed limit 50", "speed limit 60", "speed limit 70", "speed limit 80",
         "end of speed limit 80", "speed limit 100", "speed limit 120", "no passing", "no passing for lorries",
         "priority at the next crossing", "priority road", "give way", "stop", "no vehicles", "no lorries", "no entry",
         "danger", "bend left", "bend right", "double bend", "bumpy road", "slippery road", "road narrows on the right",
         "road works", "traffic lights", "pedestrians", "children", "bicycles", "ice or snow", "wild animals",
         "end of all limits", "turn right ahead", "turn left ahead", "ahead only", "ahead or right", "ahead or left",
         "keep right", "keep left", "roundabout", "end of no passing", "end of no passing for lorries")),
    "fashion_mnist": Published(
        "70,000 grey pictures of clothes, 28x28, 10 classes (Xiao et al. 2017)",
        (tuple(_at(_FASHION, "FashionMNIST/raw/", f"{name}-ubyte.gz", md5, size) for name, md5, size in (
            ("train-images-idx3", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880),
            ("train-labels-idx1", "25c81989df183df01b3e8a0aad5dffbe", 29_515),
            ("t10k-images-idx3", "bef4ecab320f06d8554ea6380940ec79", 4_422_102),
            ("t10k-labels-idx1", "bb300cfdad3c16e7a12a480ee83cd310", 5_148))),
         tuple(_at((), "FashionMNIST/raw/", f"{name}-ubyte", md5, size) for name, md5, size in (
            ("train-images-idx3", "f4a8712d7a061bf5bd6d2ca38dc4d50a", 47_040_016),
            ("train-labels-idx1", "9018921c3c673c538a1fc5bad174d6f9", 60_008),
            ("t10k-images-idx3", "8181f5470baa50b63fa0f6fddb340f0a", 7_840_016),
            ("t10k-labels-idx1", "15d484375f8d13e6eb1aabb0c3f46965", 10_008)))),
        archives.fashion_mnist,
        ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")),
}


def get(name: str, folder: str | Path | None = None, *, progress: bool = True) -> Path:
    """Download a published data set and convert it, unless that is already done; returns the path of its .npz file.

    name: "cifar10", "gtsrb" or "fashion_mnist".
    folder: where its files go, by default `GRADPRUNE_DATA` or data/downloads/.
    An interrupted download resumes where it stopped; two processes at once wait for each other.
    Raises InputError for an unknown name, a folder that is not writable, a full disk, or a failed download; the message
    says which file to put where by hand.
    """
    published, folder, path = _place(name, folder)
    with nullcontext() if path.exists() else _alone(folder, name):  # a finished file may be in a read-only folder
        if not path.exists():
            _convert(name, _verified(published, folder) or _fetched(published.choices[0], folder, progress), path)
    _read(name, path, 0)
    return path


def load_published(name: str, seed: int = 0, folder: str | Path | None = None) -> Dataset:
    """Load a published data set from its .npz file, which is made first if only the published files are there.

    Needs no network. Raises InputError if neither is there or a file is not the published one.
    """
    published, folder, path = _place(name, folder)
    if not path.exists():
        if not (files := _verified(published, folder)):
            raise _absent(name, published, folder)
        with _alone(folder, name):
            if not path.exists():
                _convert(name, files, path)
    return _read(name, path, seed)


def state(name: str, folder: str | Path | None = None) -> str:
    """The state of a data set: "ready", "downloaded" (converted when first loaded), "damaged" or "absent".

    Its files are read completely, which takes about a second.
    """
    published, folder, path = _place(name, folder)
    if path.exists():
        with suppress(InputError):
            _read(name, path, 0)
            return "ready"
        return "damaged"
    if not any(_here(choice, folder) for choice in published.choices):
        return "absent"
    return "downloaded" if _verified(published, folder) else "damaged"


def _fetched(needed: tuple[Remote, ...], folder: Path, progress: bool) -> list[Path]:
    """Download the files of a set; if one fails, the message names all that are still missing."""
    try:
        return [fetch(remote, folder, progress) for remote in needed]
    except InputError as error:
        absent = sum(not (folder / remote.path).is_file() for remote in needed)
        if absent < 2 or "put the file from" not in str(error):
            raise
        raise InputError(f"{error} All that is still missing: {_missing(needed, folder)}.") from None


def _place(name: str, folder: str | Path | None) -> tuple[Published, Path, Path]:
    """A data set, the folder of its files, and its .npz file."""
    require_known("published data set", name, PUBLISHED)
    folder = Path(folder).expanduser() if folder else downloads_folder()
    return PUBLISHED[name], folder, folder / f"{name}.npz"


def _here(choice: tuple[Remote, ...], folder: Path) -> bool:
    return all((folder / remote.path).is_file() for remote in choice)


def _verified(published: Published, folder: Path) -> list[Path]:
    """The first choice of files that is there with every MD5 right; empty if there is none."""
    for choice in published.choices:
        if _here(choice, folder) and all(md5_of(folder / remote.path) == remote.md5 for remote in choice):
            return [folder / remote.path for remote in choice]
    return []


def _absent(name: str, published: Published, folder: Path) -> InputError:
    """The error that says what to do if files are missing or not the published ones."""
    here = [(folder / remote.path, remote.md5) for choice in published.choices for remote in choice]
    wrong = [path for path, md5 in here if path.is_file() and md5_of(path) != md5]
    needed = published.choices[0]
    command = f"run `gradprune data get {name}` ({sum(remote.size for remote in needed) / 1e6:.0f} MB)"
    if wrong:
        return InputError(f"{wrong[0]} is not the published file (wrong MD5); {command}.")
    return InputError(f"The data set {name} is not here; {command}, or put by hand {_missing(needed, folder)}.")


def _missing(needed: tuple[Remote, ...], folder: Path) -> str:
    """The missing files, where to get them and where to put them; all files of a set share one server and folder."""
    absent = [remote for remote in needed if not (folder / remote.path).is_file()]
    server, names = absent[0].urls[0].rpartition("/")[0], [Path(remote.path).name for remote in absent]
    return f"{', '.join(names)} from {server}/ into {(folder / absent[0].path).parent}"


def _convert(name: str, files: list[Path], path: Path) -> None:
    """Convert the published files to the .npz file, written completely or not at all; the caller holds the lock."""
    published = PUBLISHED[name]
    try:
        arrays = published.convert(*files)
    except Exception as error:  # a damaged archive raises almost anything
        reason = str(error).rstrip(".") or type(error).__name__
        raise InputError(f"{', '.join(map(str, files))} cannot be read ({reason}).") from error
    stored: dict[str, Any] = {**arrays, "classes": np.array(published.classes)}
    try:
        write_atomic(path, lambda temporary: np.savez(temporary, **stored))
    except InputError as error:
        size = round(sum(array.nbytes for array in arrays.values()) / 1e6) + 1
        raise InputError(f"{str(error).rstrip('.')}; make room ({size} MB) or choose another folder with "
                         "GRADPRUNE_DATA.") from None


def _read(name: str, path: Path, seed: int) -> Dataset:
    try:
        return read_npz(path, seed)
    except InputError as error:
        raise InputError(f"{str(error).rstrip('.')}; move {path} away and run `gradprune data get {name}`.") from None


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of a data set; a second process waits here for the first."""
    lock = FileLock(output_folder(folder) / f".{name}.lock")
    if not locked(lock):
        _log.warning("Another process is fetching %s; waiting for it.", name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
