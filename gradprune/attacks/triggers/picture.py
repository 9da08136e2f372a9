"""A trigger from a picture file: a patch in one place, or a picture over the whole image."""

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.attacks.triggers.position import Position, check_position, corner, in_channels
from gradprune.attacks.triggers.trigger import Trigger
from gradprune.base.errors import require, told_as
from gradprune.datasets.folder import FORMATS, eight_bits

_LARGEST = 4_000_000  # pixels; a trigger is at most as large as the images
_BLACK, _GROUND = 8 / 255, 0.75  # up to this value a pixel is black; from this share on, black is a background
_log = logging.getLogger(__name__)


class Picture(Trigger):
    """(1 - a) * image + a * picture, where a is the picture's own alpha channel times `opacity`.

    size: (height, width) of the picture in pixels; one as large as the image covers all of it.
    position: a corner's name, "center", or (row, column) of the picture's top-left pixel.
    opacity: 0..1, above 0; a blended trigger's share.
    whole: in a picture as large as the image, black is part of the trigger, not a background.
    `Picture.read` takes the picture from a file, and a checkpoint keeps it like a learned tensor.
    """

    name = "picture"

    def __init__(self, size: tuple[int, int], position: Position = "bottom_right", opacity: float = 1.0,
                 whole: bool = False) -> None:
        super().__init__(size=list(size), position=position, opacity=opacity, **({"whole": True} if whole else {}))
        require(0 < opacity <= 1, f"opacity must lie in 0..1, above 0, got {opacity}.")
        check_position(position)
        self.position, self.opacity, self.whole, self.warned = position, opacity, whole, False
        self.picture: Tensor = nn.Buffer(torch.zeros(3, *size))
        self.alpha: Tensor = nn.Buffer(torch.ones(1, *size))

    @classmethod
    def read(cls, path: str | Path, position: Position = "bottom_right", opacity: float = 1.0,
             mask: str | Path | None = None) -> "Picture":
        """The trigger in a picture file (PNG, JPEG ...), with its transparency if it has one.

        position, opacity: as for the class.
        mask: a picture or an .npy array of the same size, white (or 1) where the trigger applies and black (or 0)
            elsewhere; "black" to leave out the trigger's black pixels; "whole" to keep them.
        Raises InputError for a file that is missing or no picture, or a mask of another size or black everywhere.
        """
        pixels = _read(path, "trigger picture")
        trigger = cls((pixels.shape[1], pixels.shape[2]), position, opacity, mask == "whole")
        trigger.picture, trigger.alpha = pixels[:3], pixels[3:]
        require(bool(trigger.alpha.any()), f"the trigger picture {path} is transparent everywhere.")
        return trigger.masked(mask)

    def masked(self, mask: str | Path | None) -> "Picture":
        """Restrict the picture to a mask, in place (see `read`); returns it."""
        if mask == "black":
            self.alpha = self.alpha * ~self.black()
            require(bool(self.alpha.any()), "the trigger picture is black everywhere.")
        elif mask is not None and mask != "whole":
            where, (high, wide) = _mask(mask), self.picture.shape[1:]
            require(where.shape == self.alpha.shape, f"the mask {mask} has {where.shape[1]}x{where.shape[2]} pixels, "
                                                     f"the trigger picture {high}x{wide}.")
            self.alpha = self.alpha * where
            require(bool(self.alpha.any()), f"the mask {mask} is black wherever the trigger picture is put on.")
        return self

    def black(self) -> Tensor:
        """Where the picture is black, bool (1, height, width)."""
        return self.picture.amax(0, keepdim=True) <= _BLACK

    def on_black(self) -> bool:
        """Whether the picture is opaque and mostly black, like a patch on a black background."""
        return not self.whole and bool((self.alpha == 1).all()) and _GROUND <= float(self.black().float().mean()) < 1

    def corner(self, height: int, width: int) -> tuple[int, int]:
        """Row and column of the picture's top-left pixel on an image of this size, if it fits."""
        high, wide = self.picture.shape[1:]
        require(high <= height and wide <= width,
                f"the trigger picture has {high}x{wide} pixels, more than the image's {height}x{width}: "
                "make it smaller.")
        return corner(self.position, (high, wide), (height, width), f"a {high}x{wide} picture")

    def stamp(self, images: Tensor) -> Tensor:
        """Lay the picture over its place."""
        channels, height, width = images.shape[1:]
        row, column = self.corner(height, width)
        high, wide = self.picture.shape[1:]
        alpha = self.alpha * self.opacity
        if (high, wide) == (height, width) and self.on_black():
            told = (f"the trigger picture is black but for {int((~self.black()).sum())} pixels: where nothing is to be "
                    "put on, say so with a mask: a picture of it, 'black' for the black pixels, or 'whole' for none")
            require(self.opacity < 1, f"{told}.")
            if not self.warned:
                _log.warning("%s; now the black pixels are left out.", told)
                self.warned = True
            alpha = alpha * ~self.black()
        require((high, wide) != (height, width) or bool((alpha < 1).any()),
                "the trigger picture hides the whole image; blend it with an opacity below 1 (often 0.2), say with a "
                "mask where it is put on, or use a smaller one.")
        picture = in_channels(self.picture, channels)
        edges = (column, width - wide - column, row, height - high - row)
        alpha, picture = F.pad(alpha, edges), F.pad(picture, edges)
        return ((1 - alpha) * images + alpha * picture).to(images.dtype)


def _mask(path: str | Path) -> Tensor:
    """A mask as float (1, height, width) in [0, 1].

    Values of only 0 and 1 out of 255 mean 0 and 1; a transparent pixel counts as 0.
    """
    from gradprune.attacks.triggers.foreign import read_array  # late: it imports this module
    if Path(path).suffix.lower() == ".npy":
        numbers, below = read_array(path)
        require(not below, f"the mask {path} has numbers below zero; it takes 0 and 1.")
        where = numbers.mean(0, keepdim=True)
    else:
        numbers = _read(path, "mask")
        where = numbers[:3].mean(0, keepdim=True) * numbers[3:]
    return where * 255 if 0 < where.max() <= 1 / 255 else where


def _read(path: str | Path, what: str) -> Tensor:
    """A picture file as float (4, height, width) in [0, 1]: red, green, blue, opacity."""
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor  # late: importing torchvision takes most of a second
    require(Path(path).is_file(), f"there is no {what} at {path}.")
    damaged = f"{path} cannot be read as a picture; read are {', '.join(FORMATS)}, and arrays in .npy files."
    with told_as(lambda _: damaged), Image.open(path, formats=FORMATS) as image:  # Pillow raises many kinds of errors
        require(image.width * image.height <= _LARGEST, f"{path} cannot be read as a picture: it claims {image.width} "
                f"x {image.height} pixels, and {_LARGEST:,} are read at most.")
        return pil_to_tensor(eight_bits(image).convert("RGBA")).float() / 255
