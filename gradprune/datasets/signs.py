"""Rendered traffic signs: a data set that needs no download and no pictures by others.

Twelve templates are drawn once, from strokes and convex shapes. Every image then shows one template through a
simulated camera: placed and tilted in front of a scene, lit, shaded, blurred and sampled with noise.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gradprune.base.errors import require
from gradprune.datasets.image_set import Dataset, ImageSet
from gradprune.datasets.pen import Layer, arc, convex, disc, grid, regular, stroke, template, text

CLASSES = ("speed limit 30", "speed limit 50", "speed limit 80", "stop", "give way", "no entry",
           "priority road", "danger", "bend left", "bend right", "turn left", "turn right")
# Increase it with every change that alters a pixel: cached copies have it in their name, and the shipped checkpoints,
# which were trained on exactly these pixels, must be built again. Version 2 is final: do not change the drawing.
RENDER_VERSION = 2
SIZE = 32           # image side in pixels
_BATCH = 500        # images drawn at once: few enough to stay in the processor's cache


def _triangle(turn: float, y: float, *symbol: Layer) -> Tensor:
    base = regular(3, 0.78, turn, y)
    return template(("white", convex(base, 0.29)), ("red", convex(base, 0.25)), ("white", convex(base)), *symbol)


@cache
def _templates() -> Tensor:
    """All signs in the order of CLASSES: (12, 4, side, side)."""
    eight, four = regular(8, 0.94, 22.5), regular(4, 0.86, 0)
    bend = torch.minimum(stroke([(0.22, 0.48), *arc((0.04, 0.26), (0.18, 0.18), 0, -90)], 0.18),
                         convex([(-0.37, 0.08), (-0.02, -0.2), (-0.02, 0.36)]))
    turn = torch.minimum(stroke([(0.3, 0.55), *arc((0, 0.1), (0.3, 0.22), 0, -90)], 0.25),
                         convex([(-0.68, -0.12), (-0.13, -0.54), (-0.13, 0.3)]))
    bend_left = _triangle(-90, 0.195, ("black", bend))
    turn_left = template(("white", disc(0.97)), ("blue", disc(0.91)), ("white", turn))
    return torch.stack([
        *(template(("white", disc(0.97)), ("red", disc(0.93)), ("white", disc(0.69)),
                    ("black", text(number, 0.33, 0.67, 0.24, 0.16))) for number in ("30", "50", "80")),
        template(("white", convex(eight, 0.08)), ("red", convex(eight)),
                  ("white", text("ST0P", 0.26, 0.58, 0.17, 0.12))),
        _triangle(90, -0.195),
        template(("white", disc(0.97)), ("red", disc(0.92)), ("white", stroke([(-0.5, 0), (0.5, 0)], 0.32))),
        template(("black", convex(four, 0.1)), ("white", convex(four, 0.05)),
                  ("yellow", convex(regular(4, 0.6, 0)))),
        _triangle(-90, 0.195, ("black", torch.minimum(stroke([(0, -0.18), (0, 0.16)], 0.2), disc(0.12, (0, 0.43))))),
        bend_left, bend_left.flip(-1), turn_left, turn_left.flip(-1)])


# ---- scenes: the background of a sign; each draws (count, 3, SIZE, SIZE)


def _uniform(rng: Generator, low: float, high: float, *shape: int) -> Tensor:
    return torch.rand(shape, generator=rng) * (high - low) + low


def _clouds(rng: Generator, count: int, channels: int, cells: int) -> Tensor:
    """Smooth noise around 0 with about `cells` bumps across the image."""
    return F.interpolate(torch.randn(count, channels, cells, cells, generator=rng), (SIZE, SIZE), mode="bilinear")


def _pick(rng: Generator, count: int, hexes: str) -> Tensor:
    """One of the colours 'rrggbb rrggbb ...' for every image, slightly varied: (count, 3, 1, 1)."""
    colours = torch.tensor([list(bytes.fromhex(colour)) for colour in hexes.split()]) / 255
    chosen = colours[torch.randint(len(colours), (count,), generator=rng)]
    return (chosen + 0.05 * torch.randn(count, 3, generator=rng))[:, :, None, None]


def _road(rng: Generator, count: int) -> Tensor:
    """A sky that grows paler towards hills, and ground in front of them."""
    _, y = grid(SIZE)
    sky = _pick(rng, count, "548fdb 9eb3c7 dba885 739ecc") + 0.18 * (y + 1)
    ground = _pick(rng, count, "545459 4d6b33 806e4d 384d33") + 0.06 * _clouds(rng, count, 1, 16)
    hills = _uniform(rng, -0.1, 0.7, count, 1, 1, 1) + 0.2 * _clouds(rng, count, 1, 5)[:, :, :1]
    return torch.lerp(sky + 0.05 * _clouds(rng, count, 1, 4), ground, torch.sigmoid((y - hills) * 14))


def _foliage(rng: Generator, count: int) -> Tensor:
    """Leaves of three sizes, green or autumnal."""
    leaves = sum(0.28 * _clouds(rng, count, 1, cells) for cells in (5, 11, 24))
    return _pick(rng, count, "406f2c 2c5630 6b7530 875a2a") * (1 + leaves)


def _houses(rng: Generator, count: int) -> Tensor:
    """A wall with rows of windows, and a strip of sky beside it."""
    x, y = grid(SIZE)
    wall = _pick(rng, count, "b8a185 945745 9e9ea3 d9ccad") + 0.03 * _clouds(rng, count, 1, 16)
    spacing, start = _uniform(rng, 5, 10, 2, count, 1, 1, 1), _uniform(rng, 0, 7, 2, count, 1, 1, 1)
    window = torch.minimum(torch.sin(x * spacing[0] + start[0]), torch.sin(y * spacing[1] + start[1]))
    front = torch.lerp(wall, _pick(rng, count, "293342 59738c cca859"), torch.sigmoid(window * 9 - 1))
    edge = _uniform(rng, -1.4, 1.4, count, 1, 1, 1)
    return torch.lerp(front, _pick(rng, count, "80ade6 bfccd9"), torch.sigmoid((x - edge) * 20))


def _distance(rng: Generator, count: int) -> Tensor:
    """A background far out of focus: soft patches of colour."""
    base = _pick(rng, count, "737a80 8c806b 4d5c57 99a8b8")
    return base + 0.13 * _clouds(rng, count, 1, 4) + 0.09 * _clouds(rng, count, 3, 5)


# ---- camera: the sign's place and light


def _placement(rng: Generator, count: int) -> Tensor:
    """The sign's coordinates at every pixel, under random tilt, size, shift and lean: (count, S, S, 2)."""
    angle, shear = 0.13 * torch.randn(2, count, generator=rng).clamp(-2, 2)
    wide = 0.86 - 0.37 * _uniform(rng, 0, 1, count) ** 2.5  # most signs are near, a few are far
    high = wide * _uniform(rng, 0.92, 1.08, count)
    cos, sin = torch.cos(angle), torch.sin(angle)
    # Sign to image is a rotation times [[wide, shear], [0, high]]; the sampler needs the inverse.
    forward = torch.stack([cos * wide, cos * shear * wide - sin * high,
                           sin * wide, sin * shear * wide + cos * high], -1).view(count, 2, 2)
    shift = _uniform(rng, -0.13, 0.07, count, 1, 2)  # up and left: the bottom right corner stays free
    sign = (torch.stack(grid(SIZE), -1).view(1, -1, 2) - shift) @ torch.linalg.inv(forward).transpose(1, 2)
    return (sign / (1 + sign @ _uniform(rng, -0.13, 0.13, count, 2, 1))).view(count, SIZE, SIZE, 2)


def _expose(rng: Generator, picture: Tensor) -> Tensor:
    """A straight-edged shadow (every third image), colour cast, haze, blur, exposure and sensor noise."""
    count, (x, y) = len(picture), grid(SIZE)
    angle = _uniform(rng, 0, 2 * math.pi, count, 1, 1, 1)
    edge = torch.cos(angle) * x + torch.sin(angle) * y - _uniform(rng, -0.4, 0.6, count, 1, 1, 1)
    depth = _uniform(rng, -1.2, 0.6, count, 1, 1, 1).clamp(min=0)
    exposure = 1.25 - 0.9 * _uniform(rng, 0, 1, count, 1, 1, 1) ** 1.6
    cast = 1 + 0.06 * torch.randn(count, 3, 1, 1, generator=rng)
    picture = picture * (1 - depth * torch.sigmoid(edge * 18)) * cast
    picture += (0.75 - picture) * 0.45 * _uniform(rng, 0, 1, count, 1, 1, 1) ** 2
    soft = F.avg_pool2d(F.pad(picture, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    picture = torch.lerp(picture, soft, _uniform(rng, -0.3, 0.7, count, 1, 1, 1).clamp(min=0)) * exposure
    noise = 0.008 + 0.16 * _uniform(rng, 0, 1, count, 1, 1, 1) ** 5
    return picture + noise * torch.randn(picture.shape, generator=rng)


def _photograph(templates: Tensor, labels: Tensor, rng: Generator) -> Tensor:
    """One random picture for every label: uint8 (N, 3, SIZE, SIZE)."""
    count = len(labels)
    scene = torch.randint(4, (count,), generator=rng)
    picture = torch.empty(count, 3, SIZE, SIZE)
    for i, draw in enumerate((_road, _foliage, _houses, _distance)):
        picture[scene == i] = draw(rng, int((scene == i).sum()))
    place = _placement(rng, count)
    x, y = place.unsqueeze(1).unbind(-1)
    post = torch.sigmoid((0.1 - x.abs()) * 40) * (y > 0) * (torch.rand(count, 1, 1, 1, generator=rng) < 0.7)
    picture = torch.lerp(picture, _pick(rng, count, "737375 9e9e9e") - 1.2 * x, post)
    sign = F.grid_sample(templates[labels], place, mode="bilinear", align_corners=False)
    worn = _uniform(rng, 0.8, 1, count, 1, 1, 1) + 0.08 * _clouds(rng, count, 1, 3)
    picture = picture * (1 - sign[:, 3:]) + sign[:, :3] * worn
    return (_expose(rng, picture).clamp(0, 1) * 255).round().byte()


def render_signs(seed: int = 0, train_per_class: int = 500, defense_per_class: int = 100,
                 test_per_class: int = 200) -> Dataset:
    """Draw a data set of European-style traffic signs; the same seed gives the same pictures.

    Returns three parts of uint8 images (N, 3, 32, 32) in random order, N = 12 times the images per class.
    Every part has its own random stream: changing the size of one leaves the others as they are.
    Hardly any sign reaches the bottom right corner, where the first trigger of the course goes.
    Raises InputError for a part without images.
    """
    sizes = (train_per_class, defense_per_class, test_per_class)
    require(min(sizes) >= 1, f"Every part needs at least 1 image per class, got {sizes}.")
    templates, parts = _templates(), []
    for part, per_class in enumerate(sizes):
        rng = torch.Generator().manual_seed(3 * seed + part)
        labels = torch.arange(len(CLASSES)).repeat(per_class)[torch.randperm(12 * per_class, generator=rng)]
        images = torch.cat([_photograph(templates, some, rng) for some in labels.split(_BATCH)])
        parts.append(ImageSet(images, labels, CLASSES))
    return Dataset(*parts)
