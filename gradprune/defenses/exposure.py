"""How far small changes of the image can move a model, for an owner to measure if the trigger is unknown.

Changes of each family are drawn, and the search continues from those that lead one half of the images furthest to a
class. Their effect is measured on the other half. Families and search: `search/changes.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradprune.base.errors import require, require_known
from gradprune.defenses.scan import moved
from gradprune.models.inference import predict
from gradprune.search import FAMILIES, Change, Part, draw, inflow, search_changes

FEW = 16      # images for drawing and searching changes
SEARCHED = 2  # searches per family, each from the change that leads furthest to another class


class Reach(NamedTuple):
    """The class to which a change of one family leads the most images; share: of the other classes' images, 0..1."""

    family: str
    label: int
    share: float
    change: Change


def exposure(model: nn.Module, images: Tensor, *, families: Sequence[str] = tuple(FAMILIES), seed: int = 0,
             drawn: int = 24, toward: int | None = None) -> list[Reach]:
    """The reach of each family of changes, one row per family, the furthest first; the model is not changed.

    images: float (N, C, H, W) in [0, 1], clean, on the model's device; they are split in two.
    families: names in `FAMILIES`.
    drawn: changes per family.
    toward: a class; only ways there are searched for and counted. None: each family shows its furthest class.
    Raises InputError for fewer than two images, or a class that the model does not have.
    """
    require(len(images) >= 2,
            "exposure needs two images or more: changes are found on one half and measured on the other.")
    for family in families:
        require_known("family", family, FAMILIES)
    generator = torch.Generator().manual_seed(seed)
    some, others = images[::2][:FEW], images[1::2]
    part, usual = Part(some, predict(model, some).log_softmax(1)), predict(model, others).argmax(1)
    classes = part.wanted.shape[1]
    require(toward is None or 0 <= toward < classes, f"toward must be a class, 0 to {classes - 1}, got {toward}.")
    rows = []
    for family in families:
        changes = [draw(images.shape[1:], generator, [family]) for _ in range(drawn)]
        led = inflow(model, [part] * drawn, changes)
        if toward is None:
            furthest, places = led.max(0)
            labels = furthest.argsort(descending=True)[:SEARCHED].cpu().tolist()
            begun = [changes[places[label]] for label in labels]
        else:
            nearest = led[:, toward].argsort(descending=True)[:SEARCHED].cpu().tolist()
            begun, labels = [changes[place] for place in nearest], [toward] * len(nearest)
        found = search_changes(model, [part._replace(target=label) for label in labels], begun)
        reached = [Reach(family, label, moved(model, change.__call__, others[usual != label], label), change)
                   for label, change in zip(labels * 2, begun + found, strict=True)]
        rows.append(max(reached, key=lambda row: row.share))
    return sorted(rows, key=lambda row: -row.share)
