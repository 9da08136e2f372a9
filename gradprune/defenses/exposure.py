"""How far small changes of the image move a model: what an owner can measure who knows no trigger.

Fresh changes of each family are drawn, and those that lead one half of the images furthest to a class are searched on
from there. What they do is measured on the other half. Families and search: `search/changes.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradprune.base.errors import require
from gradprune.defenses.scan import moved
from gradprune.models.inference import evaluating, predict
from gradprune.search import FAMILIES, Change, Part, draw, inflow, search_changes

FEW = 16  # images that changes are drawn and searched on


class Reach(NamedTuple):
    """The class that a change of one family leads to most. share: of the images of other classes, 0 to 1."""

    family: str
    label: int
    share: float
    change: Change


def exposure(model: nn.Module, images: Tensor, *, families: Sequence[str] = tuple(FAMILIES), seed: int = 0,
             drawn: int = 24, searched: int = 2, steps: int = 6) -> list[Reach]:
    """One row a family, the furthest first; the model is not changed.

    images: float (N, C, H, W) in [0, 1], clean, on the model's device; they are split in two. drawn: changes a family;
    searched: classes a family that are searched on; steps: of such a search.
    Raises InputError for fewer than two images.
    """
    require(len(images) >= 2,
            "exposure needs two images or more: changes are found on one half and measured on the other.")
    generator = torch.Generator().manual_seed(seed)
    some, others = images[::2][:FEW], images[1::2]
    part, usual = Part(some, predict(model, some).log_softmax(1)), predict(model, others).argmax(1)
    rows = []
    for family in families:
        changes = [draw(images.shape[1:], generator, [family]) for _ in range(drawn)]
        with evaluating(model):
            furthest, places = inflow(model, [part] * drawn, changes).max(0)
            labels = furthest.argsort(descending=True)[:searched].cpu().tolist()
            begun = [changes[places[label]] for label in labels]
            found = search_changes(model, [part._replace(target=label) for label in labels], begun, steps)
        reached = [Reach(family, label, moved(model, change.__call__, others[usual != label], label), change)
                   for label, change in zip(labels * 2, begun + found, strict=True)]
        rows.append(max(reached, key=lambda row: row.share))
    return sorted(rows, key=lambda row: -row.share)
