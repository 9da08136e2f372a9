"""The first long exercise: the whole of recipe `paper`, judged by the filters that it removes."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from gradprune.lessons.runtime.feedback import Seen
from gradprune.lessons.runtime.grading import Exercise, Function, Misconception, as_tensor
from gradprune.pruning import Filters, Pairs, filter_scores, paper, silence, validate
from gradprune.pruning.filters import filters

# ---- prune(model, found, train, validation, alpha, patience) -> positions that stay removed, in order

Row = tuple[float, float, float]  # accuracy, clean loss, unlearning loss


def _prune(model: nn.Module, found: Filters, train: Pairs, validation: Pairs, alpha: float, patience: int) -> list[int]:
    return paper(model, found, train, validation, alpha=alpha, patience=patience, progress=False).mask.positions


def _wrong(*, living: bool = True, again: bool = True, sign: int = 1, scored: str = "triggered", own: bool = True,
           judged: bool = True, loss: int = 2, keep: Callable[[list[int], int], list[int]] | None = None,
           fallen: Callable[[list[Row], float], bool] = lambda rows, alpha: rows[0][0] - rows[-1][0] >= alpha,
           late: bool = False, waits: Callable[[int, int], int] = lambda now, best: now - best) -> Function:
    """The loop with one thing about it changed; `rows` are the figures after each round so far."""
    def loop(model: nn.Module, found: Filters, train: Pairs, validation: Pairs, alpha: float,
             patience: int) -> list[int]:
        removed: list[int] = []
        rows: list[Row] = [validate(model, validation if judged else train)]
        best, scores = 0, torch.zeros(0)
        source = train if own else validation
        while len(removed) < len(found) - 1:
            if again or not removed:
                scores = sign * filter_scores(model, found, getattr(source, scored), source.labels)[0]
            dead = torch.zeros(len(found), dtype=torch.bool)
            dead[removed] = living
            removed.append(int(scores.masked_fill(dead, -torch.inf).argmax()))
            silence(model, found, removed[-1:])
            rows.append(validate(model, validation if judged else train))
            over = fallen(rows, alpha)
            if over and not late:
                break
            if rows[-1][loss] < rows[best][loss]:
                best = len(removed)
            if over or waits(len(removed), best) >= patience:
                break
        return keep(removed, best) if keep else removed[:best]
    return loop


def _from_the_best(rows: list[Row], alpha: float) -> bool:
    return max(row[0] for row in rows) - rows[-1][0] >= alpha


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
    found = filters(model, torch.zeros(1, 3, 8, 8))
    parts = []
    for _ in range(2):
        clean = torch.rand(16, 3, 8, 8, generator=generator) * torch.rand(16, 3, 1, 1, generator=generator)
        triggered = clean.clone()
        triggered[:, :, 4:, 4:] = torch.tensor([1.0, 1.0, 0.0])[:, None, None]
        with torch.no_grad():
            labels = model(clean).argmax(1)
        labels[:4] = torch.randint(4, (4,), generator=generator)  # accuracy may rise, too
        parts.append(Pairs(clean, triggered, labels))
    return model, found, *parts, alpha, patience


def _filters(function: Function, case: Sequence[Any]) -> Seen:
    """The removed filters; a mask or names will do as well as positions."""
    model, found, *rest = case
    removed = function(copy.deepcopy(model), found, *rest)
    removed = getattr(removed, "positions", removed)
    if isinstance(removed, list | tuple):
        removed = [found.position(*one) if isinstance(one, tuple) else one for one in removed]
    return [as_tensor(removed)]


PRUNE = Exercise(
    notebook="08", name="prune", signature="prune(model, found, train, validation, alpha, patience)",
    praise="the package removes the same filters in the same order.",
    reference=_prune, cases=_small_runs, observe=_filters, pure=False,
    misconceptions=(
        Misconception("the scores are taken once. Each removal changes the model, and with it the gradient: score "
                      "again in every round.", _wrong(again=False)),
        Misconception("dead filters are picked again. The loss would love to use them, so their gradient is large: "
                      "look for the highest score among the living.", _wrong(living=False)),
        Misconception("the filter with the LOWEST score goes first: `argmax`, not `argmin`.", _wrong(sign=-1)),
        Misconception("the scores come from clean images. Those accuse no backdoor: give `train.triggered` with the "
                      "true labels.", _wrong(scored="clean")),
        Misconception("the scores come from the validation images. Those are kept to judge by; whoever proposes with "
                      "them has nothing left to judge with: score on `train`.", _wrong(own=False)),
        Misconception("the rounds are judged on the images that gave the scores: call `validate` with `validation`.",
                      _wrong(judged=False)),
        Misconception("you keep every removal. The loop runs on after its best round to be sure of it: go back to that "
                      "round.", _wrong(keep=lambda removed, best: removed)),
        Misconception("you keep all but the last. It is the best round that counts, and that may lie further back.",
                      _wrong(keep=lambda removed, best: removed[:-1])),
        Misconception("one too many stays removed: after the best round, number r, r filters are gone.",
                      _wrong(keep=lambda removed, best: removed[:best + 1])),
        Misconception("one too few stays removed: after the best round, number r, r filters are gone.",
                      _wrong(keep=lambda removed, best: removed[:max(0, best - 1)])),
        Misconception("the best round is that of the lowest CLEAN loss, which does not see the backdoor: take the "
                      "unlearning loss.", _wrong(loss=1)),
        Misconception("a fall of exactly alpha passes. By alpha or more is too much: `>=`.",
                      _wrong(fallen=lambda rows, alpha: rows[0][0] - rows[-1][0] > alpha)),
        Misconception("accuracy never ends it. Stop once validation accuracy has fallen by alpha or more.",
                      _wrong(fallen=lambda rows, alpha: False)),
        Misconception("the round that lost too much may still be the best one. Stop first, and only then ask whether "
                      "the loss is lower than ever.", _wrong(late=True)),
        Misconception("the fall is counted from the best accuracy so far. It counts from the given model.",
                      _wrong(fallen=_from_the_best)),
        Misconception("the fall is counted from one round to the next. Many small losses would add up unseen: compare "
                      "with the given model.", _wrong(fallen=lambda rows, alpha: rows[-2][0] - rows[-1][0] >= alpha)),
        Misconception("patience counts all rounds. It counts those since the best one.",
                      _wrong(waits=lambda now, best: now)),
        Misconception("patience is never used up. Stop after `patience` rounds without a lower unlearning loss.",
                      _wrong(waits=lambda now, best: 0)),
        Misconception("you stop at the first round that is no better. The loss goes up and down: wait `patience` "
                      "rounds.", _wrong(waits=lambda now, best: 99 * (now > best))),
    ))
