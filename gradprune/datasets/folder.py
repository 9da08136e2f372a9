"""Folders of pictures, one folder per class: read once, resized, cached, split into the three parts."""

import hashlib
import logging
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import psutil
import torch
from PIL import ExifTags, Image
from tqdm import tqdm

from gradprune.base.errors import InputError, listed, require
from gradprune.base.paths import cache_folder
from gradprune.datasets.cache import Arrays, recall
from gradprune.datasets.image_set import Dataset, ImageSet, split_off
from gradprune.datasets.layouts import Layout, find_pictures, ignored_folders, readable

SIZE = 32                # side of the images in pixels, by default
LARGEST = 64_000_000     # pixels of a picture; one that claims more may be a decompression bomb and is not decoded
TEST_SHARE, DEFENSE_SHARE = 0.2, 0.1  # of every class, where the folder has no such part
FORMATS = ("PNG", "JPEG", "PPM", "BMP", "WEBP")  # for some others Pillow may start external programs
_VERSION = 3             # increase it with every change of what is cached
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderImages:
    """The images read from a folder.

    data: train, defense and test, uint8 RGB.
    skipped: the pictures that could not be read, as "class/name: reason".
    grey: how many pictures without colour were converted to RGB.
    turned: how many have a rotation in their EXIF data, which is ignored.
    """

    data: Dataset
    skipped: tuple[str, ...]
    grey: int
    turned: int


def read_folder(path: str | Path, *, size: int = SIZE, seed: int = 0) -> FolderImages:
    """Read pictures of any size from a folder with one folder per class.

    path: a folder in one of the layouts that `layouts.find_pictures` lists.
    size: side of the images in pixels, 8..512; a picture that is not square is squeezed.
    seed: which images are split off. Without a test part, 20 % of every class become the test part; without a defense
        part, 10 % of what is left for training become that part.
    The images are cached, and read again when a name, size or time in the folder changes. Warnings are logged for
    pictures that cannot be read (skipped), grey ones (converted to RGB), EXIF rotations (ignored, as by torchvision's
    ImageFolder), and other kinds of pictures or folders inside a class (ignored).
    Raises InputError for a folder in no known layout, or for a class with too few readable pictures.
    """
    root = Path(path).expanduser()
    require(root.is_dir(), f"No folder at {root}.")
    require(isinstance(size, int) and 8 <= size <= 512, f"size must be a whole number in 8..512, got {size!r}.")
    layout = find_pictures(root)
    place = hashlib.sha256(f"{root.resolve()} {size}".encode(errors="surrogateescape")).hexdigest()[:16]
    arrays = recall(cache_folder() / f"folder-{place}.npz", _listing(root, layout),
                    lambda: _convert(root, layout, size))
    skipped, grey, turned = tuple(arrays["skipped"].tolist()), int(arrays["grey"]), int(arrays["turned"])
    for count, told in (
            (len(skipped), f"cannot be read, left out: {listed(skipped, '; ')}"),
            (grey, "without colour, turned into RGB"),
            (turned, "with a rotation in the EXIF data, which is ignored, as by torchvision's ImageFolder")):
        if count:
            _log.warning("%d picture%s in %s %s.", count, "s"[:count > 1], root, told)
    if others := ignored_folders(root, layout):
        _log.warning("%d in %s passed over, folders beside the parts or in a class, or pictures of other kinds: %s.",
                     len(others), root, listed(others))
    if layout.others and "test" not in layout.parts:
        _log.warning("No folder in %s has the name of a test part (test, val, eval ...), so %.0f %% of the training "
                     "pictures are the test images.", root, 100 * TEST_SHARE)
    return FolderImages(_split(root, arrays, seed), skipped, grey, turned)


def _listing(root: Path, layout: Layout) -> str:
    """A digest of the names, sizes and times of the folder's pictures, which shows whether it changed."""
    digest = hashlib.sha256(f"version {_VERSION} {layout.classes}".encode(errors="backslashreplace"))
    for part, pictures in layout.parts.items():
        for path, label in pictures:
            try:
                found = path.stat()
                state = f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
            except OSError:
                state = "unreadable"
            name = path.relative_to(root).as_posix()
            digest.update(f"{part} {label} {name} {state}\n".encode(errors="backslashreplace"))
    return digest.hexdigest()


def _convert(root: Path, layout: Layout, size: int) -> Arrays:
    """Decode every picture: x_PART uint8 (N, 3, size, size) and y_PART int64 (N,), classes, skipped, grey, turned."""
    total = sum(map(len, layout.parts.values()))
    needed, free = total * 3 * size * size, psutil.virtual_memory().available
    require(needed < free / 2, f"{total} pictures of {size} x {size} pixels take {needed / 1e9:.1f} GB, and "
                               f"{free / 1e9:.1f} GB of memory are free: choose a smaller size.")
    arrays: Arrays = {"classes": np.array([readable(name) for name in layout.classes])}
    skipped: list[str] = []
    grey = turned = 0
    with tqdm(total=total, desc=f"reading {root.name}", delay=1, leave=False, disable=None) as bar:
        for part, pictures in layout.parts.items():
            images = np.empty((len(pictures), 3, size, size), np.uint8)
            kept: list[int] = []
            for path, label in pictures:
                try:
                    pixels, colour, turn = decode(path, size)
                except MemoryError:  # not the picture's fault
                    raise
                except Exception as error:  # a damaged picture raises almost anything
                    name = path.relative_to(root).as_posix()
                    skipped.append(readable(f"{name}: {_reason(path, error)}"))
                else:
                    images[len(kept)] = pixels
                    kept.append(label)
                    grey += not colour
                    turned += turn
                bar.update()
            arrays |= {f"x_{part}": images[:len(kept)], f"y_{part}": np.array(kept, np.int64)}
    require(len(skipped) < total, f"none of the {total} pictures in {root} can be read ({''.join(skipped[:1])}).")
    return {**arrays, "skipped": np.array(skipped, np.str_), "grey": np.array(grey), "turned": np.array(turned)}


def peek(path: str | Path, size: int, count: int) -> ImageSet:
    """Read about `count` pictures of a folder, spread over the classes, without the cache; damaged ones are left out.

    size: side of the images in pixels. Raises InputError as `read_folder` does, or if no picture can be read.
    """
    layout = find_pictures(Path(path).expanduser())
    part = next(part for part in ("test", "defense", "all", "train") if part in layout.parts)
    pictures, pixels, labels = layout.parts[part], [], []
    for place in np.linspace(0, len(pictures) - 1, min(count, len(pictures))).astype(int):
        with suppress(Exception):  # a damaged picture raises almost anything
            pixels.append(decode(pictures[place][0], size)[0])
            labels.append(pictures[place][1])
    require(bool(pixels), f"none of the pictures tried in {path} can be read.")
    return ImageSet(torch.from_numpy(np.stack(pixels)), torch.tensor(labels), tuple(map(readable, layout.classes)))


def decode(source: Path | BinaryIO, size: int) -> tuple[np.ndarray, bool, bool]:
    """One picture as uint8 RGB (3, size, size), whether it has colours, and whether an EXIF rotation was ignored.

    Raises almost anything if it is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warning of large pictures, which are refused below
        with Image.open(source, formats=FORMATS) as file:
            picture: Image.Image = file
            require(picture.width * picture.height <= LARGEST, "too many pixels")
            picture.draft(None, (2 * size, 2 * size))  # for JPEG: decode no more than is needed
            picture = eight_bits(picture)
            colour = picture.mode not in ("1", "L", "LA")
            rgb = picture.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
            turned = False
            with suppress(Exception):  # damaged EXIF data do no harm
                turned = file.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1)), colour, turned


def eight_bits(picture: Image.Image) -> Image.Image:
    """Convert a grey picture of 16 bits per pixel to 8; others (Pillow converts colours itself) stay as they are."""
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture).astype(np.int64) // 256).clip(0, 255).astype(np.uint8))


def _reason(path: Path, error: Exception) -> str:
    """Why a picture could not be read, in a few words."""
    if isinstance(error, InputError | Image.DecompressionBombError):
        return "it claims too many pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "it is empty" if not path.stat().st_size else "damaged, or no picture of a kind that is read"


def _split(root: Path, arrays: Arrays, seed: int) -> Dataset:
    """Train, defense and test; missing parts are split off."""
    classes = tuple(arrays["classes"].tolist())
    parts = {part: ImageSet(torch.from_numpy(arrays[f"x_{part}"]), torch.from_numpy(arrays[f"y_{part}"]), classes)
             for part in ("all", "train", "defense", "test") if f"x_{part}" in arrays}
    pool = parts["all" if "all" in parts else "train"]
    needed = 1 + ("test" not in parts) + ("defense" not in parts)
    for name, count in zip(classes, torch.bincount(pool.labels, minlength=len(classes)).tolist(), strict=True):
        require(count >= needed, f"class {name!r} in {root} has {count} picture{'s' * (count != 1)} that can be read; "
                                 f"it takes {needed}, one for each part.")
    rest, test = (pool, parts["test"]) if "test" in parts else split_off(pool, TEST_SHARE, seed)
    require(len(test) > 0, f"no test picture in {root} can be read.")
    counts = torch.bincount(test.labels, minlength=len(classes))
    if missing := [name for name, count in zip(classes, counts, strict=True) if not count]:
        _log.warning("The test part of %s has no picture of %s, so no figure covers that.", root, listed(missing))
    train, defense = (rest, parts["defense"]) if "defense" in parts else split_off(rest, DEFENSE_SHARE, seed)
    return Dataset(train, defense, test)
