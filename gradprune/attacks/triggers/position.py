"""The place of a mark that is smaller than the image, and a coloured mark on grey images."""

from collections.abc import Sequence
from numbers import Integral

from torch import Tensor

from gradprune.base.errors import require

Position = str | tuple[int, int]
CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right", "center")


def check_position(position: Position) -> None:
    """Raise InputError for what is neither a corner's name, nor "center", nor two whole numbers."""
    right = position in CORNERS if isinstance(position, str) else (
        isinstance(position, Sequence) and len(position) == 2 and all(isinstance(part, Integral) for part in position))
    require(right, f"position must be one of {', '.join(CORNERS)} or (row, column), got {position!r}.")


def corner(position: Position, mark: tuple[int, int], image: tuple[int, int], what: str, margin: int = 0
           ) -> tuple[int, int]:
    """Row and column of a mark's top-left pixel.

    position: a corner's name, "center", or row and column themselves.
    mark, image: their sizes, (height, width) in pixels.
    what: the mark's name, for the message.
    margin: pixels between the mark and the edges of its corner.
    Raises InputError if the mark does not fit.
    """
    if not isinstance(position, str):
        row, column = position
    elif position == "center":
        row, column = ((side - own) // 2 for side, own in zip(image, mark, strict=True))
    else:
        row = margin if "top" in position else image[0] - mark[0] - margin
        column = margin if "left" in position else image[1] - mark[1] - margin
    require(0 <= row <= image[0] - mark[0] and 0 <= column <= image[1] - mark[1],
            f"{what} at row {row}, column {column} does not fit a {image[0]}x{image[1]} image.")
    return row, column


def put(images: Tensor, mark: Tensor, row: int, column: int) -> Tensor:
    """A copy of images (N, C, H, W) with a coloured mark (3, h, w) whose top-left pixel is at this row and column."""
    images = images.clone()
    images[:, :, row:row + mark.shape[1], column:column + mark.shape[2]] = in_channels(mark, images.shape[1]).to(images)
    return images


def in_channels(mark: Tensor, channels: int) -> Tensor:
    """A coloured mark, float (..., 3, H, W), as it is for 3 channels, or its mean over the channels for 1."""
    return mark if channels == 3 else mark.mean(dim=-3, keepdim=True)
