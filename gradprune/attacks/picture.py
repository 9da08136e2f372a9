"""A trigger from a picture file: a patch in one place, or a picture over the whole image."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gradprune.attacks.placing import Position, check_position, corner, in_channels
from gradprune.attacks.trigger import Trigger
from gradprune.datasets.folder import FORMATS, eight_bits
from gradprune.errors import InputError, require

_LARGEST = 4_000_000  # pixels; a trigger is as large as the images at most


class Picture(Trigger):
    """(1 - a) * image + a * picture, where a is the picture's own transparency times `opacity`.

    size: (height, width) of the picture in pixels; one as large as the image covers it all. position: a corner's name,
    "center", or (row, column) of the picture's top-left pixel. opacity: 0..1; a blended trigger's share.
    The picture itself is learned, as it were: `Picture.read` takes it from a file, and a checkpoint keeps it.
    """

    name = "picture"

    def __init__(self, size: tuple[int, int], position: Position = "bottom_right", opacity: float = 1.0) -> None:
        super().__init__(size=list(size), position=position, opacity=opacity)
        require(0 < opacity <= 1, f"opacity must lie in 0..1, above 0, got {opacity}.")
        check_position(position)
        self.position, self.opacity = position, opacity
        self.register_buffer("picture", torch.zeros(3, *size))
        self.register_buffer("alpha", torch.ones(1, *size))
        self.picture: Tensor
        self.alpha: Tensor

    @classmethod
    def read(cls, path: str | Path, position: Position = "bottom_right", opacity: float = 1.0) -> "Picture":
        """The trigger in a picture file (PNG, JPEG ...), with its transparency if it has one.

        Raises InputError for a file that is missing or no picture.
        """
        from PIL import Image
        from torchvision.transforms.functional import pil_to_tensor  # late: it takes most of a second to import
        require(Path(path).is_file(), f"there is no trigger picture at {path}.")
        try:
            with Image.open(path, formats=FORMATS) as image:
                require(image.width * image.height <= _LARGEST, f"it claims {image.width} x {image.height} pixels")
                pixels = pil_to_tensor(eight_bits(image).convert("RGBA")).float() / 255
        except Exception as error:  # Pillow raises many kinds for damaged files
            why = f": {error}, and {_LARGEST:,} are read at most" if isinstance(error, InputError) else ""
            raise InputError(f"{path} cannot be read as a picture{why}.") from None
        trigger = cls((pixels.shape[1], pixels.shape[2]), position, opacity)
        trigger.picture, trigger.alpha = pixels[:3], pixels[3:]
        require(bool(trigger.alpha.any()), f"the trigger picture {path} is transparent everywhere.")
        return trigger

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
        require((high, wide) != (height, width) or bool((alpha < 1).any()),
                "the trigger picture hides the whole image; blend it with an opacity below 1 (often 0.2), or "
                "use a smaller one.")
        picture = in_channels(self.picture, channels)
        edges = (column, width - wide - column, row, height - high - row)
        alpha, picture = F.pad(alpha, edges), F.pad(picture, edges)
        return ((1 - alpha) * images + alpha * picture).to(images.dtype)
