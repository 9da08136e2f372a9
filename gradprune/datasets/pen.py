"""Drawing of signs: strokes, convex shapes and letters, as signed distances over a grid that spans -1..1.

Edges are smooth, because each pixel takes as much of a colour as the shape covers of it.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

FINE = 48  # side of a template in pixels: twice a sign's size in the image, so that bilinear sampling stays clean
COLOURS = {"red": (0.80, 0.07, 0.10), "white": (0.96, 0.96, 0.94), "black": (0.07, 0.07, 0.08),
            "blue": (0.03, 0.30, 0.68), "yellow": (0.99, 0.76, 0.05)}
Point = tuple[float, float]
Layer = tuple[str, Tensor]  # a colour's name, and the signed distance to a shape's edge, negative inside


def grid(side: int) -> tuple[Tensor, ...]:
    """The coordinates x (right) and y (down) of the pixel centres of a picture that spans -1..1."""
    line = (torch.arange(side) + 0.5) * 2 / side - 1
    return torch.meshgrid(line, line, indexing="xy")


def stroke(points: Sequence[Point], pen: float) -> Tensor:
    """A stroke of width `pen` through the points, with round ends and corners."""
    x, y = grid(FINE)
    near = torch.full_like(x, 9.0)
    for (ax, ay), (bx, by) in itertools.pairwise(points):
        dx, dy = bx - ax, by - ay
        along = (((x - ax) * dx + (y - ay) * dy) / max(dx * dx + dy * dy, 1e-9)).clamp(0, 1)
        near = torch.minimum(near, torch.hypot(x - ax - along * dx, y - ay - along * dy))
    return near - pen / 2


def convex(points: Sequence[Point], grow: float = 0) -> Tensor:
    """A convex shape, corners in clockwise order; `grow` moves its edges outwards, which rounds the corners."""
    x, y = grid(FINE)
    closed = [*points, points[0]]
    edges = torch.stack([((x - ax) * (by - ay) - (y - ay) * (bx - ax)) / math.hypot(bx - ax, by - ay)
                         for (ax, ay), (bx, by) in itertools.pairwise(closed)]).amax(0)
    return torch.where(edges < 0, edges, stroke(closed, 0)) - grow


def disc(radius: float, centre: Point = (0, 0)) -> Tensor:
    """A filled circle."""
    return stroke([centre, centre], 2 * radius)


def arc(centre: Point, radii: Point, start: float, end: float, steps: int = 16) -> list[Point]:
    """Points on an ellipse from `start` to `end` degrees; 0 points right, 90 down."""
    angles = [math.radians(start + (end - start) * i / steps) for i in range(steps + 1)]
    return [(centre[0] + radii[0] * math.cos(a), centre[1] + radii[1] * math.sin(a)) for a in angles]


def regular(corners: int, radius: float, turn: float, y: float = 0) -> list[Point]:
    """The corners of a regular polygon around (0, y), the first one `turn` degrees from the right."""
    return arc((0, y), (radius, radius), turn, turn + 360, corners)[:-1]


# Characters as pen strokes in a box of width and height 1 around (0, 0).
_LETTERS: dict[str, list[list[Point]]] = {
    "0": [arc((0, 0), (0.5, 0.5), 0, 360)],
    "3": [[*arc((0, -0.25), (0.45, 0.25), -160, 90), *arc((0, 0.23), (0.5, 0.27), -90, 160)]],
    "5": [[(0.42, -0.5), (-0.36, -0.5), (-0.44, -0.04), *arc((-0.02, 0.17), (0.52, 0.33), -150, 150)]],
    "8": [arc((0, -0.26), (0.42, 0.24), 0, 360), arc((0, 0.24), (0.5, 0.26), 0, 360)],
    "S": [[*arc((0, -0.25), (0.45, 0.25), -20, -270), *arc((0, 0.25), (0.45, 0.25), -90, 160)]],
    "T": [[(-0.5, -0.5), (0.5, -0.5)], [(0, -0.5), (0, 0.5)]],
    "P": [[(-0.4, 0.5), (-0.4, -0.5), *arc((0, -0.22), (0.42, 0.28), -90, 90), (-0.4, 0.06)]],
}


def text(word: str, width: float, height: float, gap: float, pen: float) -> Tensor:
    """A word in the middle of the sign; `width`, `height` and `gap` are taken between stroke centres."""
    starts = [(i - (len(word) - 1) / 2) * (width + gap) for i in range(len(word))]
    strokes = [stroke([(start + x * width, y * height) for x, y in line], pen)
               for start, letter in zip(starts, word, strict=True) for line in _LETTERS[letter]]
    return torch.stack(strokes).amin(0)


def template(*layers: Layer) -> Tensor:
    """Paint layers from back to front; returns (4, side, side), colours already multiplied by the coverage."""
    picture = torch.zeros(4, FINE, FINE)
    for colour, distance in layers:
        cover = (0.5 - distance * FINE / 2).clamp(0, 1)
        picture = torch.lerp(picture, torch.tensor([*COLOURS[colour], 1.0])[:, None, None], cover)
    return picture
