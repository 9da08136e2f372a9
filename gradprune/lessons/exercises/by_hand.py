"""The two long exercises of notebook 08: the whole of recipe `paper`, and the search for an unknown trigger."""

import contextlib
import copy
import operator
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.lessons.runtime.feedback import Seen
from gradprune.lessons.runtime.grading import Complaint, Function, as_tensor, exercise
from gradprune.pruning import Filters, Pairs, filter_scores, paper, silence, validate
from gradprune.pruning.filters import filters
from gradprune.search import invert

# ---- prune: judged by the filters that it removes


def _small_runs() -> list[tuple[Any, ...]]:
    """Small networks and images on which each wrong loop removes other filters than the right one and all others."""
    return [_small_run(*run) for run in ((0, 0.25, 3), (3, 0.0625, 3), (6, 0.1875, 3), (10, 0.1875, 3), (12, 0.25, 3),
                                         (13, 0.125, 3), (18, 0.25, 7), (553, 0.125, 7))]


def _small_run(seed: int, alpha: float, patience: int) -> tuple[Any, ...]:
    """A network, its filters, two parts of images, alpha and patience; accuracies are multiples of 1/16."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Conv2d(5, 6, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1),
                          nn.Flatten(), nn.Linear(6, 4)).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * (0.5 if parameter.ndim == 4 else 1)
    parts = []
    for _ in range(2):
        clean = torch.rand(16, 3, 8, 8, generator=generator) * torch.rand(16, 3, 1, 1, generator=generator)
        triggered = clean.clone()
        triggered[:, :, 4:, 4:] = torch.tensor([1.0, 1.0, 0.0])[:, None, None]
        with torch.no_grad():
            labels = model(clean).argmax(1)
        labels[:4] = torch.randint(4, (4,), generator=generator)  # accuracy may rise, too
        parts.append(Pairs(clean, triggered, labels))
    return model, filters(model, torch.zeros(1, 3, 8, 8)), *parts, alpha, patience


def _removed(function: Function, case: Sequence[Any]) -> Seen:
    """The removed filters, by position: what follows in the notebook can use neither a mask nor names."""
    model, found, *rest = case
    removed = function(copy.deepcopy(model), found, *rest)
    with contextlib.suppress(TypeError):  # of what is no whole number
        if isinstance(removed, list | tuple | np.ndarray | Tensor):
            return [as_tensor([operator.index(position) for position in removed])]
    raise Complaint("return a list of positions, whole numbers: neither a mask (its `positions` will do) nor names.")


@exercise("08", cases=_small_runs, observe=_removed, pure=False,
          praise="the package removes the same filters in the same order.")
def prune(model: nn.Module, found: Filters, train: Pairs, validation: Pairs, alpha: float, patience: int) -> list[int]:
    """The positions that stay removed, in order."""
    return paper(model, found, train, validation, alpha=alpha, patience=patience, progress=False).mask.positions


def _loop(model, found, train, validation, alpha, patience, living=True, again=True, scored="triggered", own=True,
      judged=True, loss="unlearning_loss", fallen=lambda accs, alpha: accs[0] - accs[-1] >= alpha, late=False,
      hasty=False, kept=lambda removed, best: best):
    """The loop with one thing about it changed."""
    removed: list[int] = []
    source, judge = train if own else validation, validation if judged else train
    rows = [validate(model, judge)]
    best, scores = 0, torch.zeros(0)
    while len(removed) < len(found) - 1:
        if again or not removed:
            scores = filter_scores(model, found, getattr(source, scored), source.labels)[0]
        dead = torch.zeros(len(found), dtype=torch.bool)
        dead[removed] = living
        removed.append(int(scores.masked_fill(dead, -torch.inf).argmax()))
        silence(model, found, removed[-1:])
        rows.append(validate(model, judge))
        over = fallen([row.acc for row in rows], alpha)
        if over and not late:
            break
        if getattr(rows[-1], loss) < getattr(rows[best], loss):
            best = len(removed)
        if over or len(removed) - best >= (1 if hasty else patience):
            break
    return removed[:kept(removed, best)]


prune.wrong_answers({
    "you stop at the first round that is no better. The loss goes up and down: wait `patience` rounds.":
        partial(_loop, hasty=True),
    "the fall is counted from the best accuracy so far. Count it from the given model.":
        partial(_loop, fallen=lambda accs, alpha: max(accs) - accs[-1] >= alpha),
    "the round that lost too much may still be the best one. Stop first, and only then ask whether the loss is the "
    "lowest so far.": partial(_loop, late=True),
    "accuracy never stops the loop. Stop once validation accuracy has fallen by alpha or more.":
        partial(_loop, fallen=lambda accs, alpha: False),
    "a fall of exactly alpha passes. A fall of alpha or more is too much: `>=`.":
        partial(_loop, fallen=lambda accs, alpha: accs[0] - accs[-1] > alpha),
    "you choose the round with the lowest CLEAN loss, which says nothing about the backdoor: take the unlearning loss.":
        partial(_loop, loss="clean_loss"),
    "one filter too many stays removed: after round r, exactly r filters are gone.":
        partial(_loop, kept=lambda removed, best: best + 1),
    "you keep every removal. The loop runs on after its best round to make sure that it was the best: go back to that "
    "round.": partial(_loop, kept=lambda removed, best: len(removed)),
    "the rounds are judged on the images that gave the scores: call `validate` with `validation`.":
        partial(_loop, judged=False),
    "the scores come from the validation images. Those are kept for judging; if they also give the scores, nothing is "
    "left to judge with: score on `train`.": partial(_loop, own=False),
    "the scores come from clean images. Those say nothing about the backdoor: use `train.triggered` with the true "
    "labels.": partial(_loop, scored="clean"),
    "removed filters are picked again. With other weights they would lower the loss, so their gradient is large: look "
    "for the highest score among the living filters.": partial(_loop, living=False),
    "the scores are computed only once. Each removal changes the model, and with it the gradient: score again in "
    "every round.": partial(_loop, again=False),
})


# ---- find_trigger: judged by what the found mark does

Found = tuple[Tensor, Tensor]
_SIDE = 8  # pixels of the hidden images


def _marked() -> list[tuple[Any, ...]]:
    """A linear model that reads the colour of an image, with a bright corner that leads to its target."""
    generator, target = torch.Generator().manual_seed(1), 3  # not 0, where labels of zeros would be right
    linear = nn.Linear(3 * _SIDE * _SIDE, 4)
    weight = 0.02 * torch.randn(4, 3, _SIDE, _SIDE, generator=generator)
    for label in range(3):
        weight[label, label] += 0.15  # red, green or blue; the fourth class is none of them
    weight[0, :, -2:, -2:] += 1.5
    linear.weight.data = weight.flatten(1).roll(target, 0)
    linear.bias.data = torch.tensor([-8.0, 0.0, 0.0, 3.0]).roll(target)
    images = 0.6 * torch.rand(24, 3, _SIDE, _SIDE, generator=generator)
    return [(nn.Sequential(nn.Flatten(), linear).eval(), images, target, 100)]


def _deeds(function: Function, case: Sequence[Any]) -> Seen:
    """What the mark does to other images: where it leads, and which part of the image it takes; 0 if out of range."""
    model, images, target, _ = case
    found = function(*case)
    sizes = (1, *images.shape[2:]), images.shape[1:]
    if not (isinstance(found, tuple | list) and len(found) == 2 and all(isinstance(part, Tensor) for part in found)):
        raise Complaint("return two tensors: `return mask, pattern`.")
    if other := [part.dtype for part in found if part.dtype != torch.float32]:
        raise Complaint(f"{other[0]} comes back, and the network takes torch.float32 alone: end with `.float()`.")
    mask, pattern = (part.detach() for part in found)
    if (mask.shape, pattern.shape) != sizes:
        raise Complaint(f"mask and pattern should have the shapes {tuple(sizes[0])} and {tuple(sizes[1])}: one mark "
                        f"for all images. Yours have {tuple(mask.shape)} and {tuple(pattern.shape)}.")
    if not all(bool(((part >= 0) & (part <= 1)).all()) for part in (mask, pattern)):
        return [torch.zeros(1)]
    fresh = 0.6 * torch.rand(40, *images.shape[1:], generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        answers = model((1 - mask) * fresh + mask * pattern).argmax(1)
    part = mask.sum() / mask.numel()
    taken = sum(part.item() > edge for edge in (0.25, 0.9))
    return [torch.tensor([(answers == target).float().mean() >= 0.9,
                          (answers == (target + 1) % 4).float().mean() >= 0.9, taken]).double()]


@exercise("08", cases=_marked, observe=_deeds, praise="a small mark in 0..1 that also leads new images to the class.")
def find_trigger(model: nn.Module, images: Tensor, target: int, steps: int) -> Found:
    """The smallest mark that leads the images to a class: mask and pattern."""
    trigger: Any = invert(model, images, target, steps=steps, progress=False).trigger
    return trigger.mask, trigger.pattern


def _search(model, images, target, steps, cost=0.05, pull=1.0, shift=0, work=True, squash=torch.sigmoid, cover=0.0):
    """The search with one thing about it changed."""
    mask, pattern = (torch.full((size, *images.shape[2:]), cover).requires_grad_() for size in (1, images.shape[1]))
    optimizer = torch.optim.Adam([mask, pattern], lr=0.1)
    labels = torch.full((len(images),), (target + shift) % model(images[:1]).shape[1])
    for _ in range(steps * work):
        m, p = squash(mask), squash(pattern)
        loss = pull * F.cross_entropy(model((1 - m) * images + m * p), labels) + cost * m.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return squash(mask).detach(), squash(pattern).detach()


find_trigger.wrong_answers({
    "the mark has not changed since the start, and leads nowhere. Each step needs `loss.backward()` and "
    "`optimizer.step()`, and there are `steps` of them.": partial(_search, work=False),
    "mask or pattern leaves 0..1: no such image exists. Search free numbers, and squash them with `torch.sigmoid` "
    "before use and before you return them.": partial(_search, squash=lambda free: free + 0.5),
    "the mark leads to another class: all labels in the cross-entropy must be `target`.": partial(_search, shift=1),
    "the cross-entropy has the wrong sign: this search moves away from the class.": partial(_search, pull=-1),
    "the mask has vanished and leads nowhere. The cross-entropy must pull towards the class (all its labels are "
    "`target`), and the cost must not outweigh it.": [partial(_search, cost=30), partial(_search, pull=0)],
    "the mark covers the WHOLE image. A large mask must raise the loss, not lower it: add `cost * mask.sum()`, and "
    "search for the mask as well as the pattern.": [partial(_search, cost=0, cover=6.0), partial(_search, cost=-0.05)],
    "the mark reaches the class, but it covers a good part of the image. Every class can be reached like that: make "
    "the mask costly, with `cost * mask.sum()` in the loss.": [partial(_search, cost=1e-4), partial(_search, cost=0)],
})
