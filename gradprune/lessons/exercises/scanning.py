"""The exercises of notebook 04: the loss of a search, an outlier rule, and how often an alarm is right."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.lessons.runtime.feedback import Seen
from gradprune.lessons.runtime.grading import Complaint, Function, as_tensor, exercise, loss_and_gradients

# ---- search_loss


def _searches() -> list[tuple[Any, ...]]:
    """A linear model, a batch, and a mask and pattern in the middle of a search, twice."""
    cases = []
    for seed, count, target, cost in ((0, 6, 1, 0.2), (1, 9, 3, 0.05)):
        generator = torch.Generator().manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        images, mask, pattern = (torch.rand(shape, generator=generator)
                                 for shape in ((count, 3, 2, 2), (1, 2, 2), (3, 2, 2)))
        cases.append((model.eval(), images, mask.requires_grad_(), pattern.requires_grad_(), target, cost))
    return cases


def _laid(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    return (1 - mask) * images + mask * pattern


def _error(outputs: Tensor, target: int, **settings: Any) -> Tensor:
    return F.cross_entropy(outputs, torch.full((len(outputs),), target), **settings)


@exercise("04", cases=_searches,
          observe=lambda function, case: loss_and_gradients(function, case, case[2:4], unused=True),  # mask and pattern
          praise="the pattern covers the images where the mask is, the loss pulls towards the class, and the mask has "
                 "its cost.")
def search_loss(model: nn.Module, images: Tensor, mask: Tensor, pattern: Tensor, target: int, cost: float) -> Tensor:
    """What the search for a trigger makes small."""
    return _error(model(_laid(images, mask, pattern)), target) + cost * mask.sum()


def _changed(model, images, mask, pattern, target, cost, lay=_laid, squash=lambda outputs: outputs, reduction="mean",
             whole=lambda error, mask, cost: error + cost * mask.sum()):
    """The loss with one thing about it changed."""
    return whole(_error(squash(model(lay(images, mask, pattern))), target, reduction=reduction), mask, cost)


search_loss.wrong_answers({
    "the cross-entropy has the wrong sign: this search moves away from the class. Reaching the class must make the "
    "loss LOW.": partial(_changed, whole=lambda error, mask, cost: cost * mask.sum() - error),
    "the cost has the wrong sign: a LARGE mask is rewarded. Add the cost to the loss.":
        partial(_changed, whole=lambda error, mask, cost: error - cost * mask.sum()),
    "you took the mask's mean, not its sum. That is 1,024 times smaller on the notebook's images, and the same cost "
    "would mean something else for each image size: `mask.sum()`.":
        partial(_changed, whole=lambda error, mask, cost: error + cost * mask.mean()),
    "the size of the mask costs nothing. Every class can be reached by painting over the whole image: add `cost * "
    "mask.sum()`.": partial(_changed, whole=lambda error, mask, cost: error),
    "softmax is applied first. `F.cross_entropy` takes the model's raw outputs and does the softmax itself.":
        partial(_changed, squash=lambda outputs: outputs.softmax(1)),
    "you took the sum over the images, not the mean: with more images the mask would count for less.":
        partial(_changed, reduction="sum"),
    "the images are clean: lay the pattern over them first.":
        partial(_changed, lay=lambda images, mask, pattern: images),
    "the pattern is added to the image, and pixels leave 0..1. Remove what it covers: `(1 - mask) * images + mask * "
    "pattern`.": partial(_changed, lay=lambda images, mask, pattern: images + mask * pattern),
    "mask and image are swapped: where the mask is 0, the IMAGE must stay.":
        partial(_changed, lay=lambda images, mask, pattern: mask * images + (1 - mask) * pattern),
    "the value is right, but no gradient flows to mask and pattern. Leave out `.item()`, `.detach()` and "
    "`torch.no_grad()`: the search follows that gradient.": lambda *case: search_loss.reference(*case).detach(),
})


# ---- anomaly

_HUGE = 1e4  # above anything that another fault gives: a division by 0, or by what rounding left of it


def _norms() -> list[tuple[Tensor]]:
    """Norms with one far too small and one far too large, six and seven of them, and without any outlier."""
    lists = ([80.0, 12.0, 95.0, 101.0, 70.0, 240.0], [5.5, 6.1, 2.0, 7.4, 9.9, 6.6, 5.0], [60.0, 66.0, 71.0, 83.0])
    return [(torch.tensor(values),) for values in lists]


def _below(function: Function, case: Sequence[Any]) -> Seen:
    """The index of each class; the value above the median does not matter, as long as it is not positive."""
    index = as_tensor(function(*case))
    if index.ndim == 0:
        raise Complaint("one number is returned. Each class needs its own: keep `norms` a whole tensor.")
    if not bool(torch.isfinite(index).all()) or bool((index.abs() > _HUGE).any()):
        raise Complaint("the scatter in the denominator comes out as 0. Distances from the median without `abs()` lie "
                        "half above it and half below, so their median is always 0: take the absolute values first.")
    return [index.clamp(min=0)]


def _middle(values: Tensor) -> Tensor:
    return values.quantile(0.5)


@exercise("04", cases=_norms, observe=_below, examples=lambda: [(torch.tensor([10.0, 40.0, 50.0, 60.0]),)],
          praise="the distance below the median, in a unit that outliers cannot stretch.")
def anomaly(norms: Tensor) -> Tensor:
    """How far below the median each norm lies, in robust standard deviations."""
    below = _middle(norms) - norms
    return below / (1.4826 * _middle(below.abs()))


def _either(index: Function) -> list[Function]:
    """The wrong functions of an index, one for each median: of norms, distances below the median, and their median."""
    def wrong(norms: Tensor, median: Function) -> Any:
        below = median(norms) - norms
        return index(norms, below, median(below.abs()))

    return [partial(wrong, median=median) for median in (_middle, torch.median)]


_lower_scatter, _lower_both = _either(lambda norms, below, scatter: below / (1.4826 * below.abs().median()))

anomaly.wrong_answers({
    "the distance counts in both directions. A class that needs far MORE than the others is not suspect: leave "
    "`abs()` out of the numerator.": _either(lambda norms, below, scatter: below.abs() / (1.4826 * scatter)),
    "the sign is wrong: a class is suspected for needing LESS than the median, so the index is positive below it.":
        _either(lambda norms, below, scatter: -below / (1.4826 * scatter)),
    "you return the distance alone. 40 less is much where all others agree to within 5, and little where they scatter "
    "by 50: divide by the scatter.": _either(lambda norms, below, scatter: below),
    "the brackets below the fraction line are missing: Python divides by 1.4826 and MULTIPLIES by the scatter.":
        _either(lambda norms, below, scatter: below / 1.4826 * scatter),
    "the factor 1.4826 is missing. It makes the index a number of standard deviations for normal data, and only then "
    "does a threshold of 2 mean anything.": _either(lambda norms, below, scatter: below / scatter),
    "you took the mean of the absolute distances: one outlier stretches it. Take their median.":
        _either(lambda norms, below, scatter: below / (1.4826 * below.abs().mean())),
    "the median is right, the standard deviation is not: one outlier stretches it. Take the median of the absolute "
    "distances.": _either(lambda norms, below, scatter: below / norms.std()),
    "you took mean and standard deviation. The outlier pulls the mean towards itself and stretches the deviation, and "
    "so hides itself: take medians.":
        [*_either(lambda norms, below, scatter: (norms.mean() - norms) / norms.std()),
         *_either(lambda norms, below, scatter: (norms - norms.mean()) / norms.std()),
         *_either(lambda norms, below, scatter: (norms.mean() - norms) / norms.std(correction=0))],
    "the scatter is measured with `.median()`, which returns the lower of the two values in the middle. Use "
    "`.quantile(0.5)` for both.": _lower_scatter,
    "`norms.median()` returns the lower of the two values in the middle, and with 12 classes there are two. "
    "`norms.quantile(0.5)` is halfway between them.": _lower_both,
})


# ---- alarm_rates


def _tables() -> list[tuple[pd.DataFrame]]:
    """Scans with right, missing and wrong suspects, class 0 among them, of attacked and of clean models."""
    nan = np.nan
    rows = ((True, 2, 2), (True, 0, 0), (True, 4, 1), (True, 3, nan), (True, 5, 0), (True, 1, 1), (True, 1, 1),
            (False, nan, nan), (False, nan, 0), (False, nan, nan), (False, nan, 3), (False, nan, nan))
    other = ((False, nan, nan), (True, 7, 7), (False, nan, nan), (False, nan, 6), (True, 0, nan), (False, nan, nan),
             (True, 3, 5), (True, 2, nan), (False, nan, nan), (True, 6, 6), (True, 8, nan))
    none = ((True, 3, 5), (True, 2, nan), (False, nan, nan), (False, nan, nan), (False, nan, nan))  # found or accused
    return [(pd.DataFrame(table, columns=["attacked", "target", "suspect"]),) for table in (rows, other, none)]


def _few_scans() -> list[tuple[pd.DataFrame]]:
    """Four scans: one target named, one missed, one false alarm, one clean model left alone."""
    return [(pd.DataFrame({"attacked": [True, True, False, False], "target": [2, 3, np.nan, np.nan],
                           "suspect": [2, np.nan, 0, np.nan]}),)]


def _two_shares(function: Function, case: Sequence[Any]) -> Seen:
    """Both shares; what follows in the notebook would take a dict's names for them."""
    rates = function(*case)
    if isinstance(rates, dict):
        raise Complaint("a dict is returned. Return two numbers: the share found, then the share of false alarms.")
    rates = list(rates) if isinstance(rates, tuple) else rates
    return [as_tensor(rates.to_numpy() if isinstance(rates, pd.Series) else rates)]


@exercise("04", cases=_tables, observe=_two_shares, examples=_few_scans,
          praise="of the attacked models, those whose target was named; of the clean ones, those that were accused.")
def alarm_rates(scans: pd.DataFrame) -> tuple[float, float]:
    """The share of attacked models whose target was named, and of clean models that were accused."""
    attacked, clean = scans[scans["attacked"]], scans[~scans["attacked"]]
    return (attacked["suspect"] == attacked["target"]).mean(), clean["suspect"].notna().mean()


def _rated(rates: Function) -> Function:
    """Rates from which models were attacked, which raised an alarm, and whose target was named."""
    return lambda scans: rates(scans["attacked"], scans["suspect"].notna(), scans["suspect"] == scans["target"])

alarm_rates.wrong_answers({
    "no clean model can be accused this way: its `target` is NaN, and NaN equals nothing. For clean models any "
    "suspect is a false alarm.": _rated(lambda attacked, alarm, named: (named[attacked].mean(), 0.0)),
    "every clean model counts as accused. In pandas an empty cell is NaN, which is neither None nor equal to itself: "
    "use `notna()`.": _rated(lambda attacked, alarm, named: (named[attacked].mean(), 1.0)),
    "the two are swapped: first comes the share found, then the share of false alarms.":
        _rated(lambda attacked, alarm, named: (alarm[~attacked].mean(), named[attacked].mean())),
    "attacked models without an alarm are left out of the first share (`dropna`). A missed trigger counts as a miss: "
    "divide by ALL attacked models.":
        _rated(lambda attacked, alarm, named: (named[attacked & alarm].mean(), alarm[~attacked].mean())),
    "accusing the wrong class of an attacked model is a miss, not a false alarm: the second share is about clean "
    "models alone.": _rated(lambda attacked, alarm, named: (named[attacked].mean(), (alarm & ~named).mean())),
    "false alarms are divided by the alarms. That is a good question, too (how often is an alarm wrong?), but it "
    "depends on how many models were attacked: divide by the CLEAN models.":
        _rated(lambda attacked, alarm, named: (named[attacked].mean(), (~attacked)[alarm].mean())),
    "any alarm on an attacked model counts as found. If it names the wrong class, the trigger found for that class is "
    "not the attacker's: compare `suspect` with `target`.":
        _rated(lambda attacked, alarm, named: (alarm[attacked].mean(), alarm[~attacked].mean())),
    "both are divided by ALL models. The shares would then depend on how many attacked models were scanned: divide "
    "each count by the size of its own group.":
        _rated(lambda attacked, alarm, named: (named.mean(), (alarm & ~attacked).mean())),
    "class 0 does not count as a suspect. It is a class like any other: only NaN means no alarm (`notna()`).":
        lambda scans: alarm_rates.reference(scans.assign(suspect=scans["suspect"].where(scans["suspect"] > 0))),
})
