"""Triggers in the forms that other toolboxes use: an array that is added to the image, or the user's own function."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradprune.attacks.triggers.position import in_channels
from gradprune.attacks.triggers.trigger import Trigger
from gradprune.base.errors import InputError, require, told_as
from gradprune.models.own import current_folder_first, look_up

_LARGEST = 4_000_000  # numbers
_ROUNDING, _SMALLEST = 0.01, 2  # fractions may exceed 1 by this through rounding; 0..255 has a value of at least this


class Added(Trigger):
    """image + opacity * pattern, clamped to [0, 1]: an array with values below zero means this (BackdoorBench's LF).

    size: (height, width) of the pattern in pixels, equal to that of the images.
    opacity: factor of the pattern.
    `read_trigger` takes the pattern from a file, and a checkpoint keeps it.
    """

    name = "added"

    def __init__(self, size: tuple[int, int], opacity: float = 1.0) -> None:
        super().__init__(size=list(size), opacity=opacity)
        self.opacity = opacity
        self.pattern: Tensor = nn.Buffer(torch.zeros(3, *size))

    def stamp(self, images: Tensor) -> Tensor:
        """Add the pattern, which must have the images' size."""
        high, wide = self.pattern.shape[1:]
        require((high, wide) == images.shape[2:], f"the trigger's array is for images of {high}x{wide} pixels, these "
                                                  f"have {images.shape[2]}x{images.shape[3]}.")
        return images + self.opacity * in_channels(self.pattern, images.shape[1]).to(images)


def read_array(path: str | Path) -> tuple[Tensor, bool]:
    """The trigger in a .npy file as float (3, H, W), and whether it is to be added (it has values below zero).

    Numbers above 1, beyond rounding errors, mean the range 0..255. No object is unpickled.
    Raises InputError for a file that is missing, damaged, too large or no image, or numbers that are neither in 0..1
    nor in 0..255.
    """
    require(Path(path).is_file(), f"there is no trigger at {path}.")
    unreadable = f"{path} is no readable .npy file of numbers."
    with told_as(lambda _: unreadable):  # pickles, pictures, incomplete downloads: each fails in its own way
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    require(isinstance(array, np.ndarray) and array.dtype.kind in "buif" and 0 < array.size <= _LARGEST,
            f"{path} must hold an array of at most {_LARGEST:,} numbers.")
    pixels: np.ndarray = np.array(array, np.float32)
    pixels = pixels[0] if pixels.ndim == 4 and len(pixels) == 1 else pixels  # a batch of one
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3):
        pixels = np.moveaxis(pixels, 0, -1)
    require(pixels.ndim == 3 and pixels.shape[2] in (1, 3),
            f"{path} must hold one image, (H, W), (H, W, 3) or (3, H, W), got {array.shape}.")
    low, high = float(pixels.min()), float(pixels.max())
    require(math.isfinite(low) and math.isfinite(high), f"{path} holds numbers that are not finite.")
    if array.dtype.kind == "f" and low >= 0 and high < _SMALLEST:
        require(high <= 1 + _ROUNDING, f"{path} must hold fractions in 0..1 or numbers in 0..255, got {low:.3g}.."
                                       f"{high:.3g}.")
        pixels = pixels.clip(0, 1)
    if float(np.abs(pixels).max()) > 1 or (array.dtype.kind == "i" and bool((pixels < 0).any())):
        pixels = pixels / 255
    require(float(np.abs(pixels).max()) <= 1, f"{path} must hold numbers in -255..255.")
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).expand(3, -1, -1).contiguous(), bool((pixels < 0).any())


class Called(Trigger):
    """A function in the user's own code, "module:function": float images (N, C, H, W) in [0, 1] -> the same.

    This runs that code; a class, such as an nn.Module, is created first, without arguments.
    Raises InputError if the function cannot be imported or created, or does not return a tensor.
    """

    def __init__(self, place: str) -> None:
        super().__init__()
        self.name = place
        with current_folder_first():
            function: Any = look_up(place)
            try:
                self.function = function() if isinstance(function, type) else function
            except Exception as error:  # foreign code may raise anything
                raise InputError(f"{place} failed with {type(error).__name__}: {error}.") from error
        require(callable(self.function), f"{place} must be a function of images, or a class of such.")
        if isinstance(self.function, nn.Module):
            self.function.eval().requires_grad_(False)

    def stamp(self, images: Tensor) -> Tensor:
        """Call the function."""
        stamped = self.function(images)
        require(isinstance(stamped, Tensor), f"{self.name} must return images, got {type(stamped).__name__}.")
        return stamped

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Nothing: the code is not on the card, and `--trigger` names it again."""
        return {}


def names_code(source: str) -> bool:
    """Whether a trigger's source is "module:function" and no file."""
    return ":" in source and not Path(source).exists() and source.rpartition(":")[2].isidentifier()


def read_trigger(source: str, position: Any = "bottom_right", opacity: float = 1.0, mask: str | None = None) -> Trigger:
    """A trigger from "module:function", an .npy file, or a picture file.

    See `Called`, `read_array` and `Picture.read` for the arguments and the errors raised.
    """
    from gradprune.attacks.triggers.picture import Picture
    if names_code(source):
        require((mask, position, opacity) == (None, "bottom_right", 1),
                "mask, position and opacity are for pictures; a trigger from your own code takes none.")
        return Called(source)
    if Path(source).suffix.lower() != ".npy":
        return Picture.read(source, position, opacity, mask)
    pixels, added = read_array(source)
    if added:
        require((mask, position) == (None, "bottom_right") and opacity > 0,
                "an array that is added takes no mask and no position, and an opacity above 0.")
        trigger: Trigger = Added((pixels.shape[1], pixels.shape[2]), opacity)
        trigger.pattern = pixels
        return trigger
    picture = Picture((pixels.shape[1], pixels.shape[2]), position, opacity, mask == "whole")
    picture.picture = pixels
    return picture.masked(mask)

