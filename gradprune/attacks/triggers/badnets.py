"""BadNets (Gu et al., 2017, arXiv:1708.06733): a small sticker in one place."""

import torch
from torch import Tensor, nn

from gradprune.attacks.triggers.position import Position, check_position, corner, put
from gradprune.attacks.triggers.trigger import Trigger
from gradprune.base.errors import require

_COLORS = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0), "yellow": (1.0, 0.9, 0.0),
           "red": (0.9, 0.1, 0.1), "green": (0.1, 0.8, 0.2), "blue": (0.1, 0.3, 0.9)}


class BadNets(Trigger):
    """A square sticker, by default a small yellow one, like the note that the paper put on stop signs.

    size: side in pixels.
    position: a corner's name, "center", or (row, column) of the sticker's top-left pixel.
    margin: distance in pixels from the corner's edges.
    color: "checker", a name, or (r, g, b) in 0..1.
    Raises InputError for a size, margin, position or colour out of range.
    """

    name = "badnets"

    def __init__(self, size: int = 3, position: Position = "bottom_right", margin: int = 1,
                 color: str | tuple[float, float, float] = "yellow") -> None:
        super().__init__(size=size, position=position, margin=margin, color=color)
        require(size >= 1, f"size must be at least 1 pixel, got {size}.")
        require(margin >= 0, f"margin must not be negative, got {margin}.")
        check_position(position)
        self.size, self.position, self.margin = size, position, margin
        self.patch = nn.Buffer(_patch(size, color), persistent=False)

    def corner(self, height: int, width: int) -> tuple[int, int]:
        """Row and column of the sticker's top-left pixel on an image of this size."""
        return corner(self.position, (self.size, self.size), (height, width), f"a {self.size}-pixel sticker",
                      self.margin)

    def stamp(self, images: Tensor) -> Tensor:
        """Overwrite the sticker's square."""
        return put(images, self.patch, *self.corner(*images.shape[2:]))


def _patch(size: int, color: str | tuple[float, float, float]) -> Tensor:
    """The sticker itself, (3, size, size)."""
    if isinstance(color, str) and color == "checker":
        index = torch.arange(size)
        return ((index[:, None] + index) % 2 == 0).float().expand(3, size, size).clone()
    require(not isinstance(color, str) or color in _COLORS,
            f"color must be 'checker', one of {', '.join(_COLORS)} or (r, g, b) in 0..1, got {color!r}.")
    rgb = _COLORS[color] if isinstance(color, str) else color
    require(len(rgb) == 3 and all(0 <= value <= 1 for value in rgb), f"color must be (r, g, b) in 0..1, got {color!r}.")
    return torch.tensor([float(value) for value in rgb]).reshape(3, 1, 1).expand(3, size, size).clone()
