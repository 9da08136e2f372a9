"""Fine-tune without any trigger: the model is to answer alike with every small change of the image.

    loss = KL(g(x) || f(T(x))) + 3 KL(g(x) || f(x))

g is the given model, f the copy that learns, x views and mixes of the defender's few images, T one change of the whole
batch (see `changes`): drawn in half of the steps, searched on f as it is now in the others. A backdoor is a small
change that moves the model much, so it is among what the search finds. Our own; nearest are SAU (arXiv:2307.10562),
whose changes are one an image, and I-BAU (arXiv:2110.03735), which has one kind of change.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.models.inference import evaluating, predict
from gradprune.pruning.augment import Augment
from gradprune.pruning.changes import FAMILIES, Change, draw, search_change
from gradprune.pruning.distilled import Distilled, epochs_for, tune_on_views
from gradprune.pruning.filters import FilterMask
from gradprune.pruning.unlearning import Pairs

CONSISTENCY: dict[str, Any] = {
    "steps": 300,        # optimiser steps, about: whole epochs are run
    "batch_size": 32,    # images in a step, each with the change and without
    "lr": 1e-2,          # of SGD with momentum; falls to zero along half a cosine
    "many": 120,         # images; with fewer, the rate falls with the root of their number
    "weight": 3.0,       # of the clean term
    "drawn": 4,          # changes that a step draws; beside them it tries as many of the pool
    "first": 600,        # changes drawn and tried before the first step
    "pool": 48,          # changes that moved the model most when they were last tried, and are tried again
    "tried_on": 16,      # images of the batch on which they are tried; the change that moves the model most is used
    "searched": 0.5,     # share of the steps that search its content first
    "search_steps": 6,   # signed gradient steps of a search
    "toward": 0.7,       # share of the searches that lead to a class, drawn at random; the others lead away
    "settle": 20,        # passes over clean views and mixes, from which BatchNorm takes its statistics at the end
}


class Consistent(Distilled):
    """The loss above, for `fine_tune`: it finds a new change for every batch.

    given: the model whose answers are wanted; it is not changed. families: names in `FAMILIES`.
    """

    def __init__(self, given: nn.Module, settings: dict[str, Any], generator: torch.Generator,
                 families: Sequence[str] = tuple(FAMILIES)) -> None:
        super().__init__(given, settings["weight"])
        self.settings, self.generator, self.families = settings, generator, families
        self.pool: list[tuple[float, Change]] = []

    def __call__(self, model: nn.Module, batch: Pairs) -> Tensor:
        """The loss of one batch, a scalar tensor; the labels are not read."""
        wanted = predict(self.given, batch.clean).log_softmax(1)
        with evaluating(model):
            change = self.find(model, batch.clean, wanted)
        with torch.no_grad():
            changed = change(batch.clean)
        return self.between(model(torch.cat([batch.clean, changed])), wanted)

    def find(self, model: nn.Module, images: Tensor, wanted: Tensor) -> Change:
        """The change that moves the model most, of a few drawn and a few of the pool; maybe searched on from there.

        So what once moved the model comes back until it does so no more: a search alone finds few waves, since next to
        the wrong frequency no gradient tells of the right one.
        """
        settings, generator = self.settings, self.generator
        search, toward = (torch.rand(2, generator=generator) < torch.tensor([settings["searched"], settings["toward"]])
                          ).tolist()
        target = int(torch.randint(wanted.shape[1], (), generator=generator)) if search and toward else None
        again = set(torch.randperm(len(self.pool), generator=generator)[:settings["drawn"]].tolist())
        count = settings["drawn"] if self.pool else settings["first"]
        tried = [draw(images.shape[1:], generator, self.families) for _ in range(count)]
        tried += [self.pool[place][1] for place in sorted(again)]
        moved, led = self._measured(model, images, wanted, tried, target)
        best = tried[led.index(max(led))]
        if search:
            best = search_change(model, images, wanted, best, target=target, steps=settings["search_steps"])
            tried, moved = [*tried, best], moved + self._measured(model, images, wanted, [best], None)[0]
        kept = [entry for place, entry in enumerate(self.pool) if place not in again]
        self.pool = sorted(kept + list(zip(moved, tried, strict=True)), key=lambda entry: -entry[0])[:settings["pool"]]
        return best

    def _measured(self, model: nn.Module, images: Tensor, wanted: Tensor, changes: list[Change], target: int | None
                  ) -> tuple[list[float], list[float]]:
        """For each change KL(g(x) || f(T(x))), and what a search would raise: that, or the target's log-probability."""
        few = slice(self.settings["tried_on"])
        with torch.no_grad():
            answers = [model(change(images[few])).log_softmax(1) for change in changes]
        moved = [float(F.kl_div(said, wanted[few], log_target=True, reduction="none").sum(1).mean())
                 for said in answers]
        return moved, moved if target is None else [float(said[:, target].mean()) for said in answers]


def consistent_tune(given: nn.Module, model: nn.Module, mask: FilterMask, train: Pairs, validation: Pairs,
                    augment: Augment, families: Sequence[str] = tuple(FAMILIES), *, seed: int = 0,
                    progress: bool = True, **changes: Any) -> list[dict[str, Any]]:
    """Fine-tune `model` in place with `Consistent`; returns the history rows. The last epoch is kept.

    train, validation: pairs without triggered images. changes: values of `CONSISTENCY`. Dropout is off. At the end
    BatchNorm's statistics are those of clean images: in training every second image has a change. Ctrl-C keeps the last
    epoch.
    """
    settings = CONSISTENCY | changes
    images, size = len(train.labels), settings["batch_size"]
    history = tune_on_views(
        model, mask, train, validation, augment,
        Consistent(given, settings, torch.Generator().manual_seed(seed), families),
        lr=settings["lr"] * min(1, images / settings["many"]) ** 0.5,
        epochs=epochs_for(images, settings["steps"], size), batch_size=size, seed=seed, progress=progress)
    settle(model, train, augment, settings["settle"], seed)
    return history


@torch.no_grad()
def settle(model: nn.Module, train: Pairs, augment: Augment, passes: int, seed: int) -> None:
    """Let BatchNorm take its statistics anew, in place: the mean over so many passes of clean views and mixes."""
    norms = [module for module in model.modules()
             if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats]
    generator, usual = torch.Generator().manual_seed(seed), [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None  # a plain mean of all batches
        for _ in range(passes if norms else 0):
            model(augment.mixed(train, generator).clean)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
