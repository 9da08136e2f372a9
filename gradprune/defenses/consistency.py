"""Fine-tune with the trigger unknown: the model should give the same answer for every small change of the image.

    loss = KL(g(x) || f(T(x))) + 3 KL(g(x) || f(x))

g is the given model, f the copy that learns, x views and mixes of the defender's few images. Each part of a batch has
its own change T (see `search.changes`) from a random family: either a newly drawn one or one that led f far before,
whichever leads f further to one class; in half of the cases the search continues from there. A backdoor is a small
change that leads to one class, so the search finds it, too. This method is ours; the nearest are SAU
(arXiv:2307.10562), with a change for each image, and I-BAU (arXiv:2110.03735), with one kind of change.
"""

import copy
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from gradprune.attacks.augment import copies_for
from gradprune.base.devices import halving
from gradprune.models.inference import evaluating, predict
from gradprune.pruning import Augment, Distilled, FilterMask, Pairs, validate
from gradprune.pruning.distilled import epochs_for, tune_on_views
from gradprune.search.changes import FAMILIES, Change, Part, draw, every_wave, inflow, search_changes

CONSISTENCY: dict[str, Any] = {
    "steps": 300,        # optimiser steps, rounded up to whole epochs
    "batch_size": 32,    # images per step, each with a change and without
    "lr": 1e-2,          # of SGD with momentum; falls to zero along half a cosine
    "many": 120,         # images; with fewer, the rate falls with the square root of their number, and `back` applies
    "weight": 3.0,       # of the clean term
    "parts": 16,         # of a batch, each with its own change
    "pool": 6,           # changes per family, those that led the model furthest when last tried
    "first": 24,         # changes per family drawn and tried before the first step, besides every single wave
    "first_on": 16,      # images for trying these
    "searched": 0.5,     # share of the parts for which the content is searched for
    "search_steps": 6,   # signed gradient steps of a search
    "toward": 0.7,       # share of the searches that lead to a random class; the others lead away
    "back": 0.1,         # share of the way back to the given weights at the end, which restores accuracy
    "settle": 20,        # passes over clean views and mixes for BatchNorm's statistics at the end
}


class Consistent(Distilled):
    """The loss above, for `fine_tune`: it finds new changes for every batch.

    given: the teacher; it is not changed.
    settings: as in `CONSISTENCY`.
    families: names in `FAMILIES`.
    """

    def __init__(self, given: nn.Module, settings: dict[str, Any], generator: torch.Generator,
                 families: Sequence[str] = tuple(FAMILIES)) -> None:
        super().__init__(given, settings["weight"])
        self.settings, self.generator, self.families = settings, generator, families
        self.pools: dict[str, list[tuple[float, Change]]] = {}

    def __call__(self, model: nn.Module, batch: Pairs) -> Tensor:
        """The loss of one batch, a scalar tensor; the labels are not read."""
        wanted = predict(self.given, batch.clean).log_softmax(1)
        size = -(-len(wanted) // self.settings["parts"])
        parts = [Part(*both) for both in zip(batch.clean.split(size), wanted.split(size), strict=True)]
        if not self.pools:
            few = slice(self.settings["first_on"])
            self._fill(model, Part(batch.clean[few], wanted[few]))
        changes = self.find(model, parts)
        worn = [change(part.images) for part, change in zip(parts, changes, strict=True)]
        return self.between(model(torch.cat([batch.clean, *worn])), wanted)

    def find(self, model: nn.Module, parts: list[Part]) -> list[Change]:
        """For each part, the change that leads it further, of a new one and one from the pool; half are searched from.

        So a change that once misled the model returns until it no longer does. A search alone finds few waves, since
        near a wrong frequency the gradient does not point to the right one.
        """
        shape, classes = parts[0].images.shape[1:], parts[0].wanted.shape[1]
        families = [self.families[self._int(len(self.families))] for _ in parts]
        drawn = [draw(shape, self.generator, [family]) for family in families]
        again = [pool.pop(self._int(len(pool)))[1] if (pool := self.pools[family])
                 else draw(shape, self.generator, [family]) for family in families]
        searched = [place for place in range(len(parts)) if self._chance("searched")]
        for place in searched:
            target = self._int(classes) if self._chance("toward") else None
            parts[place] = parts[place]._replace(target=target)
        led = inflow(model, parts * 2, drawn + again).view(2, len(parts), classes)
        goal = torch.stack([led[:, place].amax(1) if part.target is None else led[:, place, part.target]
                            for place, part in enumerate(parts)], dim=1)
        tried, led = drawn + again, led.flatten(0, 1)
        chosen = [place + len(parts) * int(better) for place, better in enumerate(goal.argmax(0))]
        if searched:  # the result replaces the starting point
            some, starts = [parts[place] for place in searched], [chosen[place] for place in searched]
            found = search_changes(model, some, [tried[start] for start in starts], self.settings["search_steps"])
            led[starts] = inflow(model, some, found)
            for start, change in zip(starts, found, strict=True):
                tried[start] = change
        self._keep(tried, led)
        return [tried[place] for place in chosen]

    def _int(self, count: int) -> int:
        """A random integer in 0..count-1."""
        return int(torch.randint(count, (), generator=self.generator))

    def _chance(self, name: str) -> bool:
        """True with the probability that the settings give for `name`."""
        return float(torch.rand((), generator=self.generator)) < self.settings[name]

    def _fill(self, model: nn.Module, part: Part) -> None:
        """The first changes of every pool."""
        shape = part.images.shape[1:]
        for family in self.families:
            tried = [draw(shape, self.generator, [family]) for _ in range(self.settings["first"])]
            tried += every_wave(shape, self.generator) if family == "waves" else []
            self._keep(tried, inflow(model, [part] * len(tried), tried))

    def _keep(self, changes: list[Change], led: Tensor) -> None:
        """Put changes into the pools of their families, and drop those that lead least far."""
        for change, furthest in zip(changes, led.amax(-1).cpu().tolist(), strict=True):
            pool = self.pools.setdefault(change.family, [])
            pool.append((furthest, change))
            pool.sort(key=lambda entry: -entry[0])
            del pool[self.settings["pool"]:]


def consistent_tune(given: nn.Module, model: nn.Module, mask: FilterMask, train: Pairs, validation: Pairs,
                    augment: Augment, families: Sequence[str] = tuple(FAMILIES), *, seed: int = 0,
                    progress: bool = True, **changes: Any) -> list[dict[str, Any]]:
    """Fine-tune `model` in place with `Consistent` and keep the last epoch; returns the history rows.

    given: the teacher.
    train, validation: pairs without triggered images.
    families: names in `FAMILIES`.
    changes: values of `CONSISTENCY`.
    Dropout is off. If images are few, the weights finally move part of the way back (see `step_back`). Then BatchNorm's
    statistics are taken from clean images, since in training every second image has a change. Ctrl-C keeps the last
    epoch.
    """
    settings = CONSISTENCY | changes
    images = len(train.labels)
    epochs = epochs_for(images, settings["steps"], settings["batch_size"])
    loss = Consistent(given, settings, torch.Generator().manual_seed(seed), families)
    history = tune_on_views(model, mask, train, validation, augment, loss, epochs=epochs,
                            lr=settings["lr"] * min(1, images / settings["many"]) ** 0.5,
                            batch_size=settings["batch_size"], seed=seed, progress=progress)
    if images < settings["many"]:
        step_back(model, given, settings["back"])
        mask.apply(model)
    try:
        settle(model, train, augment, settings["settle"], seed)
    except KeyboardInterrupt:
        history.append({**history[-1], "interrupted": True})
    now = validate(model, validation)
    next(row for row in history if row.get("kept")).update(now.figures(), val_loss=now.clean_loss)
    return history


@torch.no_grad()
def step_back(model: nn.Module, given: nn.Module, share: float) -> None:
    """Move the weights and BatchNorm statistics of `model`, in place, by `share` of the way to those of `given`.

    Source: Wortsman et al., 2022, "Robust fine-tuning of zero-shot models", arXiv:2109.01903.
    """
    both = (chain(one.parameters(), one.buffers()) for one in (model, given))
    for now, old in zip(*both, strict=True):
        if now.is_floating_point():
            now.lerp_(old, share)


@torch.no_grad()
def settle(model: nn.Module, train: Pairs, augment: Augment, passes: int, seed: int) -> None:
    """Renew BatchNorm's statistics, in place: the mean over `passes` passes of clean views and mixes.

    Ctrl-C restores the former ones.
    """
    norms = [module for module in model.modules()
             if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats]
    usual = [norm.momentum for norm in norms]
    former = [copy.deepcopy(norm.state_dict()) for norm in norms]

    def renew(size: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None  # a plain mean of all batches
        for _ in range(passes if norms else 0):
            images = augment.mixed(train, generator).clean
            for part in images.tensor_split(-(-len(images) // size)):
                model(part)

    try:
        with evaluating(model):
            halving(renew, len(train.labels) * (1 + copies_for(len(train.labels))))
    except KeyboardInterrupt:
        for norm, state in zip(norms, former, strict=True):
            norm.load_state_dict(state)
        raise
    finally:
        for norm, momentum in zip(norms, usual, strict=True):
            norm.momentum = momentum
