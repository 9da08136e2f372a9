"""Which pictures a folder contains, and the label of each; no picture is opened here."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from gradprune.base.errors import InputError, listed, require
from gradprune.base.paths import read_bytes

ENDINGS = (".png", ".jpg", ".jpeg", ".ppm", ".bmp", ".webp")
_OTHERS = (".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".pgm", ".pnm", ".jfif", ".jpe")  # not read
PARTS = {"train": ("train", "training", "trn", "trainval"), "test": ("test", "testing", "tst", "eval", "evaluation",
                                                                     "holdout"),
         "val": ("val", "valid", "validation", "dev", "devel"), "defense": ("defense", "defence")}
_WITH = r"(set|data|dataset|images?|imgs?|pictures|photos|split|part)$"  # what may follow the name of a part
_ENOUGH = 10  # pictures per class that a validation part needs to serve as the defender's
_ANNOTATIONS = "val_annotations.txt"  # Tiny ImageNet's table of labels, beside the pictures in images/
_TABLE = 64_000_000  # bytes of a table of labels
_NAME = 255  # bytes of a file's name, the most that file systems allow
Picture = tuple[Path, int]  # a file, and its label


class Layout(NamedTuple):
    """The pictures of a folder by part ("train", "test", "defense"; or "all", still to be split), and the classes.

    others: folders beside the parts that are not used.
    """

    parts: dict[str, list[Picture]]
    classes: tuple[str, ...]
    others: tuple[str, ...] = ()


def find_pictures(root: Path) -> Layout:
    """Find the pictures below `root`, in an order that depends on their names alone.

    Known layouts: root/CLASS/*; root/train/CLASS/*, optionally with root/test/CLASS/*, root/val/CLASS/* (the test part
    if there is no other; otherwise the defender's, if it has ten pictures of each class) and root/defense/CLASS/*,
    under these or similar names in upper or lower case, also inside a single folder; GTSRB's own, Training/00000/* with
    Final_Test/Images/* and GT-final_test.csv, in root or in root/GTSRB; Tiny ImageNet's, with the pictures of a class
    in CLASS/images/, and the labels of val/images/* in val/val_annotations.txt.
    Classes are sorted by name, as in torchvision's ImageFolder. Hidden files, other endings and links that lead out of
    `root` are ignored.
    Raises InputError if there is no class, only one, or an empty one.
    """
    for base in (root / "GTSRB", root):
        for training in (base / "Training", base / "Final_Training" / "Images"):
            if training.is_dir() and (base != root or (base / "Final_Test").is_dir()):
                return _gtsrb(root, training, base / "Final_Test" / "Images")
    base, parts = _parts(root)
    if "train" not in parts:
        return Layout({"all": _by_class(root, root, classes := _classes(root, root))}, classes)
    classes = _classes(root, parts["train"])
    val = parts.pop("val", None)
    if val and "test" not in parts:
        parts["test"] = val
    elif val and "defense" not in parts and _has_enough(root, val, classes):
        parts["defense"] = val
    used = {folder.relative_to(base).parts[0] for folder in parts.values()}
    others = tuple((base / name).relative_to(root).as_posix() for name in _folders(root, base) if name not in used)
    if "test" not in parts:
        parts["all"] = parts.pop("train")
    return Layout({part: _by_class(root, folder, classes) for part, folder in parts.items()}, classes, others)


def _parts(root: Path) -> tuple[Path, dict[str, Path]]:
    """The folder that contains the parts (`root` or a single folder in it), and the folder of each part found."""
    base = root
    for _ in range(3):
        found = {part: folder for part, names in PARTS.items() if (folder := _part(root, base, names))}
        if "train" in found:
            return base, found
        inner = _folders(root, base)
        if len(inner) != 1 or _pictures(root, base):
            break
        base = base / inner[0]
    return root, {}


def _part(root: Path, base: Path, names: tuple[str, ...]) -> Path | None:
    """The folder of a part, with class folders: the first of these names, in upper or lower case.

    Otherwise a folder whose name contains one of them (seg_train, val2017, Test Set) and that has no pictures itself.
    """
    inner = _folders(root, base)
    exact = {name.lower(): base / name for name in inner}
    for name in names:
        if name in exact and (found := _class_level(root, exact[name])):
            return found
    for name in inner:
        words = re.findall("[a-z]+", name.lower())
        words += [re.sub(_WITH, "", word) for word in words]
        if set(words) & set(names) and not _pictures(root, base / name) and (found := _class_level(root, base / name)):
            return found
    return None


def _class_level(root: Path, folder: Path) -> Path | None:
    """The folder itself, or a single one in it, that contains the class folders; None if there is none."""
    inner = _folders(root, folder)
    if len(inner) == 1 and not _pictures(root, folder) and not _pictures(root, folder / inner[0]):
        return _class_level(root, folder / inner[0])
    return folder if _annotated(root, folder) or (inner and inner != ["images"]) else None


def _has_enough(root: Path, folder: Path, classes: tuple[str, ...]) -> bool:
    """Whether a validation part can serve as the defender's: it has the same classes, none of them nearly empty."""
    if _annotated(root, folder):
        count = Counter(label for _, label in _by_annotations(root, folder, classes))
        return all(count[label] >= _ENOUGH for label in range(len(classes)))
    return (set(_folders(root, folder)) == set(classes)
            and all(len(_of_class(root, folder / name)) >= _ENOUGH for name in classes))


def _gtsrb(root: Path, training: Path, test: Path) -> Layout:
    """The official layout of GTSRB: training pictures by class, test pictures with a table of labels."""
    classes = _classes(root, training)
    pictures = _by_class(root, training, classes)
    if not test.is_dir() or not _inside(root, test):
        return Layout({"all": pictures}, classes)
    table = next((path for folder in (root, test.parents[1], test)
                  if (path := folder / "GT-final_test.csv").is_file() and _inside(root, path)), None)
    if table is None:
        raise InputError(f"the labels of the pictures in {test} are missing: put GT-final_test.csv into {root}.")
    labels = {name.lstrip("0") or "0": label for label, name in enumerate(classes)}
    label_of = {}
    for line in filter(None, read_bytes(table, _TABLE).decode("utf-8-sig", "replace").splitlines()[1:]):
        cells = [cell.strip() for cell in line.split(";")]  # Filename;Width;Height;...;ClassId
        require(_is_name(cells[0]) and cells[-1] in labels,
                f"{table} has a row without a file name and one of the {len(classes)} classes: {line[:80]!r}.")
        label_of[test / cells[0]] = labels[cells[-1]]
    return Layout({"train": pictures, "test": _there(root, label_of)}, classes)


def _annotated(root: Path, folder: Path) -> bool:
    """Whether the labels of the pictures in `images` are in a table beside it, as in Tiny ImageNet's val."""
    table = folder / _ANNOTATIONS
    return table.is_file() and _inside(root, table) and "images" in _folders(root, folder)


def _by_annotations(root: Path, folder: Path, classes: tuple[str, ...]) -> list[Picture]:
    """The pictures of a folder with such a table; rows of classes without training pictures are left out."""
    table, labels = folder / _ANNOTATIONS, {name: label for label, name in enumerate(classes)}
    label_of = {}
    for line in filter(None, read_bytes(table, _TABLE).decode("utf-8-sig", "replace").splitlines()):
        name, _, rest = line.partition("\t")  # name, class, and the four numbers of a box
        require(_is_name(name) and bool(rest), f"{table} has a row without a file name and a class: {line[:80]!r}.")
        if (label := labels.get(rest.split("\t")[0].strip())) is not None:
            label_of[folder / "images" / name] = label
    require(bool(label_of), f"{table} names none of the {len(classes)} classes of the training pictures.")
    return _there(root, label_of)


def _is_name(text: str) -> bool:
    """Whether this is a plain file name, without folders."""
    return text == Path(text).name != "" and text.isprintable() and len(text.encode()) <= _NAME


def _there(root: Path, label_of: dict[Path, int]) -> list[Picture]:
    """The pictures of a table, sorted; a missing one stays in the list, so that it is reported."""
    return sorted((path, label) for path, label in label_of.items()
                  if _inside(root, path) and (path.is_file() or not path.exists()))


def _classes(root: Path, folder: Path) -> tuple[str, ...]:
    """The names of the class folders."""
    names = _folders(root, folder)
    require(bool(names) or not _pictures(root, folder), f"{folder} holds pictures, but no class folders: put the "
            "pictures of each class into a folder with the name of that class.")
    require(bool(names), f"{folder} is no data set: it holds no class folders.")
    inner = f" Are the classes in {folder / names[0]}?" if _folders(root, folder / names[0]) else ""
    require(len(names) > 1, f"{folder} has one class folder only, {readable(names[0])!r}; a classifier takes two or "
                            f"more.{inner}")
    return tuple(names)


def _by_class(root: Path, folder: Path, classes: tuple[str, ...]) -> list[Picture]:
    """The pictures in the class folders of `folder`, by class and sorted by name; or those of its table."""
    if _annotated(root, folder):
        return _by_annotations(root, folder, classes)
    names = _folders(root, folder)
    strange = [readable(name) for name in names if name not in classes]
    require(not strange, f"{folder} has folders that are no class: {', '.join(strange[:3])}.")
    found = []
    for label, name in enumerate(classes):
        pictures = _of_class(root, folder / name)
        require(bool(pictures) or name not in names, f"class {readable(name)!r} is empty: there is no picture in "
                f"{folder / name} ({', '.join(ENDINGS)}){_instead(folder / name)}.")
        found += [(path, label) for path in pictures]
    return found


def _instead(folder: Path) -> str:
    """What a class without pictures contains instead, for the message."""
    held = _visible(folder)
    files = sorted({path.suffix.lower() for path in held if path.suffix.lower() in _OTHERS})
    folders = [readable(path.name) for path in held if path.is_dir()]
    told = f", only pictures of kinds that are not read ({', '.join(files)}): save them as .png" if files else ""
    return told or (f", only folders ({listed(folders)}): is each of them a class?" if folders else "")


def ignored_folders(root: Path, layout: Layout) -> list[str]:
    """What is ignored although its owner may expect it to count: folders in a class, pictures of other kinds."""
    folders = dict.fromkeys(path.parent for pictures in layout.parts.values() for path, _ in pictures)
    beside = [f"{readable(name)} ({'no known part' if _class_level(root, root / name) else 'no class folders'})"
              for name in layout.others]
    return beside + [readable(path.relative_to(root).as_posix()) for folder in folders for path in _visible(folder)
                     if path.suffix.lower() in _OTHERS or (path.suffix.lower() not in ENDINGS and path.is_dir())]


def _folders(root: Path, folder: Path) -> list[str]:
    return [path.name for path in _visible(folder) if path.is_dir() and _inside(root, path)]


def _pictures(root: Path, folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.suffix.lower() in ENDINGS and path.is_file()
            and (not path.is_symlink() or _inside(root, path))]


def _of_class(root: Path, folder: Path) -> list[Path]:
    """The pictures of a class: in its folder or, as in Tiny ImageNet, in `images` below it."""
    found = _pictures(root, folder)
    return _pictures(root, folder / "images") if not found and "images" in _folders(root, folder) else found


def _visible(folder: Path) -> list[Path]:
    """The entries of a folder, sorted by name, without hidden ones; none if there is no such folder."""
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
    """A file's name as printable text: bytes that are not valid characters are escaped."""
    return name.encode(errors="backslashreplace").decode()
