"""Unlearn every easy way to a suspected class, round by round, with the trigger unknown.

    loss = KL(g(x) || f(T(x))) + 3 KL(g(x) || f(x))

g is the given model, f the copy that learns, x views and mixes of the defender's few images, and T one of the triggers
and changes that lead f to the class more easily than to the others, strengthened. A new search decides whether another
round follows. Source of the searches: Wang et al., 2019, "Neural Cleanse"; the rest is ours.
"""

from typing import Any

import torch
from torch import Tensor, nn

from gradprune.defenses.common import Work
from gradprune.defenses.scan import FASTER, KINDS, Scan
from gradprune.models.inference import predict
from gradprune.pruning import Augment, Distilled
from gradprune.pruning.distilled import epochs_for, tune_on_views
from gradprune.search import SEARCHABLE, Alternating, Change, Part, draw, inflow, search_changes

Way = nn.Module | Change  # a trigger or another change of images: (N, C, H, W) -> the same
UNLEARNED = "Rounds of unlearning"
UNLEARNING: dict[str, Any] = {
    "rounds": 3,          # of searching for triggers of the suspected class and unlearning them, at most
    "searches": 3,        # starts per round of either kind of trigger
    "round_steps": 80,    # of each of these: with more, the mask shrinks to what only these images need
    "tries": 6,           # searched changes of each family per round
    "tries_on": 96,       # images for these, evenly chosen: half for the search, half to judge it
    "far": 0.5,           # share of the latter that such a change must lead to the class
    "suspect_lr": 2e-3,   # of SGD with momentum, half a cosine per round
    "suspect_steps": 224,  # optimiser steps per round
    "strength": 4.0,      # what is unlearned is up to so many times as strong as what was found
}


def unlearn_suspect(work: Work, scanned: Scan, settings: dict[str, Any], seed: int, progress: bool) -> str:
    """Search for ways to the suspected class and unlearn all easy ones, round by round; returns how it ended.

    settings: as in `UNLEARNING`, and `batch_size`.
    The copy learns to answer an image with one of them as the original model answers the clean image (see `Distilled`).
    Ctrl-C ends the rounds and keeps what has been reached.
    """
    assert scanned.suspect is not None
    others, ways = work.train.clean[work.train.labels != scanned.suspect], list[nn.Module]()
    generator = torch.Generator().manual_seed(seed)
    epochs = epochs_for(len(work.train.labels), settings["suspect_steps"], settings["batch_size"])
    for turn in range(settings["rounds"]):
        easy = small_triggers(work.model, others, scanned, settings, seed + turn * settings["searches"], progress)
        easy += far_leading(work.model, others, scanned.suspect, settings, seed + turn)
        if not easy:
            return f" {UNLEARNED}: {turn}; then it was no easier to reach than the other classes."
        ways += [Strengthened(way, settings["strength"], generator) for way in easy]
        augment = Augment(work.given, Alternating(ways), work.train)
        rows = tune_on_views(work.model, work.mask, augment.paired(work.train.clean, work.train.labels),
                             work.validation, augment, Distilled(work.given), lr=settings["suspect_lr"], epochs=epochs,
                             batch_size=settings["batch_size"], seed=seed + turn, progress=progress)
        work.history += [{**row, "epoch": row["epoch"] + turn * epochs} for row in rows]
        if "interrupted" in work.history[-1]:
            raise KeyboardInterrupt
    return f" {UNLEARNED}: {settings['rounds']}, the most allowed; the last one was not checked."


def small_triggers(model: nn.Module, others: Tensor, scanned: Scan, settings: dict[str, Any], seed: int, progress: bool
                   ) -> list[Way]:
    """Triggers of both kinds that lead to the suspect with a smaller norm than any other class needed in the scan.

    others: the clean images of the other classes.
    """
    small = list[Way]()
    for kind, search in KINDS.items():
        least = min((row.norm for row in scanned.rows
                     if row.kind == kind and row.converged and row.label != scanned.suspect), default=0.0)
        for start in range(settings["searches"]):
            one = search(model, others, scanned.suspect, seed=seed + start, progress=progress,
                         **FASTER | {"steps": settings["round_steps"]})
            if one.converged and one.norm < least:
                small.append(one.trigger)
    return small


def far_leading(model: nn.Module, others: Tensor, suspect: int, settings: dict[str, Any], seed: int) -> list[Way]:
    """Searched changes that lead more than `far` of the images to the suspect.

    They are searched for on one half of a few of `others` and judged on the other half. A family counts if at least
    half of its changes lead so far: one or two of six can lead to any class of a network of photographs.
    """
    generator, others = torch.Generator().manual_seed(seed), others[::-(-len(others) // settings["tries_on"])]
    half, rest = (Part(images, predict(model, images).log_softmax(1), suspect)
                  for images in (others[::2], others[1::2]))
    far = list[Way]()
    for family in SEARCHABLE:
        drawn = [draw(others.shape[1:], generator, [family]) for _ in range(settings["tries"])]
        found = search_changes(model, [half] * len(drawn), drawn)
        led = inflow(model, [rest] * len(found), found)[:, suspect].tolist()
        leading = [change for change, share in zip(found, led, strict=True) if share > settings["far"]]
        if 2 * len(leading) >= len(found):
            far += leading
    return far


class Strengthened(nn.Module):
    """A trigger or change with its effect on each image multiplied by a random factor. (N, C, H, W) -> the same.

    A search ends at the weakest trigger that still works, and the attacker's is stronger.
    most: the factor is uniform in 1..most.
    """

    def __init__(self, way: Way, most: float, generator: torch.Generator) -> None:
        super().__init__()
        self.way, self.most, self.generator = way, most, generator

    def forward(self, images: Tensor) -> Tensor:
        """Apply the way, strengthened."""
        factor = 1 + (self.most - 1) * torch.rand(len(images), 1, 1, 1, generator=self.generator).to(images)
        return (images + factor * (self.way(images) - images)).clamp(0, 1)
