"""Which pictures a folder holds, and the label of each; no picture is opened here."""

import csv
import os
from pathlib import Path
from typing import NamedTuple

from gradprune.errors import InputError, require

ENDINGS = (".png", ".jpg", ".jpeg", ".ppm", ".bmp", ".webp")
Picture = tuple[Path, int]  # a file, and its label


class Layout(NamedTuple):
    """The pictures of a folder by part ("train", "test", "defense"; or "all", still to be split), and the classes."""

    parts: dict[str, list[Picture]]
    classes: tuple[str, ...]


def find_pictures(root: Path) -> Layout:
    """Find the pictures below `root`, in an order that depends on their names alone.

    Known layouts: root/CLASS/*; root/train/CLASS/* with root/test/CLASS/* (or val) and optionally root/defense/CLASS/*;
    GTSRB's own, Training/00000/* with Final_Test/Images/* and GT-final_test.csv, in root or in root/GTSRB. Classes are
    sorted by name, as torchvision's ImageFolder does. Hidden files, other endings and links that lead out of `root`
    are passed over. Raises InputError for no class, a single one or an empty one.
    """
    for base in (root, root / "GTSRB"):
        for training in (base / "Training", base / "Final_Training" / "Images"):
            if training.is_dir():
                return _gtsrb(root, training, base / "Final_Test" / "Images")
    test = next((root / name for name in ("test", "val") if _folders(root, root / name)), None)
    if not test or not _folders(root, root / "train"):
        parts = {"all": root}
    else:
        parts = {"train": root / "train", "test": test}
        parts |= {"defense": root / "defense"} if _folders(root, root / "defense") else {}
    classes = _classes(root, next(iter(parts.values())))
    return Layout({part: _by_class(root, folder, classes) for part, folder in parts.items()}, classes)


def _gtsrb(root: Path, training: Path, test: Path) -> Layout:
    """The official layout of GTSRB: training pictures by class, test pictures with a table of labels."""
    classes = _classes(root, training)
    pictures = _by_class(root, training, classes)
    if not test.is_dir():
        return Layout({"all": pictures}, classes)
    table = next((folder / "GT-final_test.csv" for folder in (root, test.parents[1], test)
                  if (folder / "GT-final_test.csv").is_file()), None)
    if table is None:
        raise InputError(f"the labels of the pictures in {test} are missing: put GT-final_test.csv into {root}.")
    labels = {name.lstrip("0") or "0": label for label, name in enumerate(classes)}
    found = []
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        for row in csv.DictReader(lines, delimiter=";", skipinitialspace=True):
            name, label = row.get("Filename") or "", labels.get(row.get("ClassId") or "")
            require(name == Path(name).name != "" and label is not None,
                    f"{table} has a row without a file name and one of the {len(classes)} classes: {row}.")
            if _inside(root, test / name):
                found.append((test / name, label or 0))
    return Layout({"train": pictures, "test": sorted(found)}, classes)


def _classes(root: Path, folder: Path) -> tuple[str, ...]:
    """The names of the class folders."""
    names = _folders(root, folder)
    if not names and _pictures(root, folder):
        raise InputError(f"{folder} holds pictures, but no class folders: put the pictures of each class into a folder "
                         "with the name of that class.")
    require(bool(names), f"{folder} is no data set: it holds no class folders.")
    require(len(names) > 1, f"{folder} has one class folder only, {readable(names[0])!r}; a classifier takes two or "
                            "more.")
    return tuple(names)


def _by_class(root: Path, folder: Path, classes: tuple[str, ...]) -> list[Picture]:
    """The pictures in the class folders of `folder`, class by class, sorted by name."""
    names = _folders(root, folder)
    strange = [readable(name) for name in names if name not in classes]
    require(not strange, f"{folder} has folders that are no class: {', '.join(strange[:3])}.")
    found = []
    for label, name in enumerate(classes):
        pictures = _pictures(root, folder / name)
        require(bool(pictures) or name not in names, f"class {readable(name)!r} is empty: there is no picture in "
                                                     f"{folder / name} ({', '.join(ENDINGS)}).")
        found += [(path, label) for path in pictures]
    return found


def _folders(root: Path, folder: Path) -> list[str]:
    return [path.name for path in _visible(folder) if path.is_dir() and _inside(root, path)]


def _pictures(root: Path, folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.suffix.lower() in ENDINGS and path.is_file()
            and (not path.is_symlink() or _inside(root, path))]


def _visible(folder: Path) -> list[Path]:
    """The entries of a folder, sorted by name, without hidden ones; none where there is no such folder."""
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror or error}.") from None
    return [folder / name for name in names if not name.startswith(".") and name != "__MACOSX"]


def _inside(root: Path, path: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())


def readable(name: str) -> str:
    """A file's name for a text: bytes that are no character are spelled out."""
    return name.encode(errors="backslashreplace").decode()
