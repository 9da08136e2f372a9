"""The exercises of notebook 04: the loss of a search (see there), an outlier rule, and how often an alarm is right."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gradprune.lessons.exercises.search import SEARCH_LOSS
from gradprune.lessons.runtime.feedback import Seen
from gradprune.lessons.runtime.grading import Complaint, Exercise, Function, Misconception, as_tensor

# ---- anomaly(norms) -> how far below the median each lies


def _middle(values: Tensor) -> Tensor:
    return values.quantile(0.5)


def _anomaly(norms: Tensor) -> Tensor:
    return (_middle(norms) - norms) / (1.4826 * _distance(norms, _middle))


def _distance(norms: Tensor, median: Function) -> Tensor:
    return median((norms - median(norms)).abs())


_HUGE = 1e4  # above all that any other fault gives: a division by 0, or by what rounding left of it


def _norms() -> list[tuple[Tensor]]:
    """Norms with one far too small and one far too large, six and seven of them, and without any outlier."""
    lists = ([80.0, 12.0, 95.0, 101.0, 70.0, 240.0], [5.5, 6.1, 2.0, 7.4, 9.9, 6.6, 5.0], [60.0, 66.0, 71.0, 83.0])
    return [(torch.tensor(values),) for values in lists]


def _few_norms() -> list[tuple[Tensor]]:
    return [(torch.tensor([10.0, 40.0, 50.0, 60.0]),)]


def _below(function: Function, case: Sequence[Any]) -> Seen:
    """The index of each class; what stands for a class above the median is no matter, as long as it is not positive."""
    index = as_tensor(function(*case))
    if index.ndim == 0:
        raise Complaint("one number is returned. Each class needs its own: leave `norms` a whole tensor.")
    if not bool(torch.isfinite(index).all()) or bool((index.abs() > _HUGE).any()):
        raise Complaint("the scatter in the denominator comes out as 0. Distances from the median without `abs()` lie "
                        "half above it and half below, so their median is always 0: take the absolute values first.")
    return [index.clamp(min=0)]


def _spread_about(center: Tensor, norms: Tensor) -> Tensor:
    return 1.4826 * _middle((norms - center).abs())


def _either(message: str, wrong: Callable[[Tensor, Function], Tensor]) -> Misconception:
    """A fault beside that of the median: told first, whichever median stands with it (n: norms, m: the median)."""
    return Misconception(message, lambda n: wrong(n, _middle), (lambda n: wrong(n, torch.median),))


ANOMALY = Exercise(
    notebook="04", name="anomaly", signature="anomaly(norms)",
    praise="the distance below the median, in units that no outlier can stretch.",
    reference=_anomaly, cases=_norms, observe=_below, examples=_few_norms,
    misconceptions=(
        Misconception("mean and standard deviation. The outlier pulls the mean towards itself and stretches the "
                      "deviation, and so hides itself: take medians.", lambda n: (n.mean() - n) / n.std(),
                      (lambda n: (n - n.mean()) / n.std(),)),
        Misconception("mean and standard deviation (of the population). The outlier pulls the one and stretches the "
                      "other, and so hides itself: take medians.", lambda n: (n.mean() - n) / n.std(correction=0)),
        _either("the median is right, the standard deviation is not: one outlier stretches it. Take the median of the "
                "absolute distances.", lambda n, m: (m(n) - n) / n.std()),
        _either("the mean of the absolute distances, not their median: one outlier stretches it.",
                lambda n, m: (m(n) - n) / (1.4826 * (n - m(n)).abs().mean())),
        Misconception("distances from the mean. One outlier pulls the mean: use the median there, too.",
                      lambda n: (n.mean() - n) / _spread_about(n.mean(), n)),
        _either("the factor 1.4826 is missing. It makes the index a number of standard deviations for normal data, and "
                "only then does a threshold of 2 mean anything.", lambda n, m: (m(n) - n) / _distance(n, m)),
        _either("1.4826 stands on the wrong side: multiply the median of the distances by it, and divide by the "
                "product.", lambda n, m: 1.4826 * (m(n) - n) / _distance(n, m)),
        _either("the brackets below the fraction line are missing: Python divides by 1.4826 and MULTIPLIES by the "
                "scatter.", lambda n, m: (m(n) - n) / 1.4826 * _distance(n, m)),
        _either("the distance alone. 40 less is much where all others agree to within 5, and little where they scatter "
                "by 50: divide by the scatter.", lambda n, m: m(n) - n),
        _either("the sign is turned around: a class is suspected for needing LESS than the median, so the index is "
                "positive below it.", lambda n, m: (n - m(n)) / (1.4826 * _distance(n, m))),
        _either("the distance counts in both directions. A class that needs far MORE than the others is no suspect: "
                "leave `abs()` out of the numerator.", lambda n, m: (n - m(n)).abs() / (1.4826 * _distance(n, m))),
        Misconception("`norms.median()` returns the lower one of two values in the middle, and with 12 classes there "
                      "are two. Halfway between them lies `norms.quantile(0.5)`.",
                      lambda n: (n.median() - n) / (1.4826 * _distance(n, torch.median))),
        Misconception("the scatter is measured with `.median()`, which returns the lower one of two values in the "
                      "middle. Use `.quantile(0.5)` for both.",
                      lambda n: (_middle(n) - n) / (1.4826 * (n - _middle(n)).abs().median())),
        _either("this is the share of the median. The alarm uses that as well, further down; the index asks how "
                "unusual the distance is.", lambda n, m: n / m(n)),
        _either("this is the distance as a share of the median. Divide by the scatter of the classes instead.",
                lambda n, m: 1 - n / m(n)),
        _either("the scatter is the median of the norms themselves. Take the distances from the median first.",
                lambda n, m: (m(n) - n) / (1.4826 * m(n))),
        _either("the distances are squared: the index is no longer in standard deviations.",
                lambda n, m: (m(n) - n).square() / (1.4826 * _distance(n, m)).square()),
        Misconception("the scatter is the distance between the quartiles. A fair choice, but another index than the "
                      "one whose threshold is 2: use the median of the absolute distances.",
                      lambda n: (_middle(n) - n) / (n.quantile(0.75) - n.quantile(0.25))),
    ))

# ---- alarm_rates(scans) -> (share found, share of false alarms)


def _alarm_rates(scans: pd.DataFrame) -> tuple[float, float]:
    attacked, honest = scans[scans["attacked"]], scans[~scans["attacked"]]
    return (attacked["suspect"] == attacked["target"]).mean(), honest["suspect"].notna().mean()


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
    """Four scans: one target named, one missed, one false alarm, one rest."""
    return [(pd.DataFrame({"attacked": [True, True, False, False], "target": [2, 3, np.nan, np.nan],
                           "suspect": [2, np.nan, 0, np.nan]}),)]


def _two_shares(function: Function, case: Sequence[Any]) -> Seen:
    scans = case[0].copy()
    rates = function(scans)
    if not scans.equals(case[0]):
        raise Complaint("your function changes the table that it is given. Whoever calls it needs that again.")
    rates = list(rates.values()) if isinstance(rates, dict) else list(rates) if isinstance(rates, tuple) else rates
    return [as_tensor(rates.to_numpy() if isinstance(rates, pd.Series) else rates)]


def _parts(scans: pd.DataFrame) -> tuple[pd.Series, pd.Series, pd.Series]:
    """A row each: whether the model was attacked, whether there was an alarm, and whether that named the target."""
    return scans["attacked"], scans["suspect"].notna(), scans["suspect"] == scans["target"]


def _from_parts(rates: Any) -> Function:
    """A function of the table that looks at its parts alone."""
    return lambda scans: rates(*_parts(scans))


ALARM_RATES = Exercise(
    notebook="04", name="alarm_rates", signature="alarm_rates(scans)",
    praise="of the attacked models, those whose target was named; of the clean ones, those that were accused.",
    reference=_alarm_rates, cases=_tables, observe=_two_shares, examples=_few_scans,
    misconceptions=(
        Misconception("both are divided by ALL models. How many attacked ones somebody happened to scan would then "
                      "decide: divide each count by its own group.",
                      _from_parts(lambda a, s, r: (r.mean(), (s & ~a).mean()))),
        Misconception("any alarm on an attacked model counts as found. If it names the wrong class, the trigger made "
                      "for that class opens no door: compare `suspect` with `target`.",
                      _from_parts(lambda a, s, r: (s[a].mean(), s[~a].mean()))),
        Misconception("false alarms are divided by the alarms. That is a good question, too (how often is an alarm "
                      "wrong?), but it depends on how many models were attacked: divide by the CLEAN models.",
                      _from_parts(lambda a, s, r: (r[a].mean(), (s & ~a).sum() / s.sum()))),
        Misconception("both are shares of the alarms. They then say nothing of the attacked models that raised none: "
                      "divide by the attacked and by the clean models.",
                      _from_parts(lambda a, s, r: (r.sum() / s.sum(), (s & ~a).sum() / s.sum()))),
        Misconception("accusing the wrong class of an attacked model is a miss, not a false alarm: the second share is "
                      "about clean models alone.", _from_parts(lambda a, s, r: (r[a].mean(), (s & ~r).mean()))),
        Misconception("`any()` asks whether there is one at all. How many are there? A comparison's mean is a share.",
                      _from_parts(lambda a, s, r: (r[a].any(), s[~a].any())),
                      (_from_parts(lambda a, s, r: (r[a].mean(), s[~a].any())),
                       _from_parts(lambda a, s, r: (r[a].any(), s[~a].mean())))),
        Misconception("attacked models without an alarm are left out of the first share (`dropna`). A trigger that was "
                      "missed is a miss: divide by ALL attacked models.",
                      _from_parts(lambda a, s, r: (r[a & s].mean(), s[~a].mean()))),
        Misconception("the two are exchanged: first the share found, then the share of false alarms.",
                      _from_parts(lambda a, s, r: (s[~a].mean(), r[a].mean()))),
        Misconception("these are counts. Divide each by the size of its group.",
                      _from_parts(lambda a, s, r: (r[a].sum(), (s & ~a).sum()))),
        Misconception("these are per cent; all shares here lie in 0..1.",
                      _from_parts(lambda a, s, r: (100 * r[a].mean(), 100 * s[~a].mean()))),
        Misconception("the second is the share of clean models WITHOUT an alarm. Wanted is the share with one.",
                      _from_parts(lambda a, s, r: (r[a].mean(), (~s)[~a].mean()))),
        Misconception("the first is the share that was missed. Wanted is the share that was found.",
                      _from_parts(lambda a, s, r: ((~r)[a].mean(), s[~a].mean()))),
        Misconception("class 0 does not count as a suspect. It is a class like any other: only NaN means no alarm "
                      "(`notna()`).",
                      lambda t: ((t["suspect"] == t["target"])[t["attacked"] & (t["suspect"] > 0)].sum()
                                 / t["attacked"].sum(), (t["suspect"] > 0)[~t["attacked"]].mean())),
        Misconception("class 0 does not count as a suspect of a clean model. Only NaN means no alarm (`notna()`).",
                      lambda t: (_alarm_rates(t)[0], (t["suspect"] > 0)[~t["attacked"]].mean())),
        Misconception("every clean model counts as accused. In pandas an empty cell is NaN, which is neither None nor "
                      "equal to itself: ask `notna()`.", lambda t: (_alarm_rates(t)[0], 1.0)),
        Misconception("no clean model can be accused this way: its `target` is NaN, and NaN equals nothing. For clean "
                      "models any suspect is a false alarm.",
                      _from_parts(lambda a, s, r: (r[a].mean(), r[~a].mean()))),
        Misconception("the first is the share of ALL models that were judged right, clean ones among them. Found are "
                      "only attacked ones.",
                      _from_parts(lambda a, s, r: ((r | ~a & ~s).mean(), s[~a].mean()))),
        Misconception("the first looks at whether there was an alarm at all, on any model. Count the attacked models "
                      "whose target was named.", _from_parts(lambda a, s, r: (s.mean(), s[~a].mean()))),
        Misconception("one number is returned. Two are wanted: the share found and the share of false alarms.",
                      _from_parts(lambda a, s, r: r[a].mean())),
    ))

SCANNING_EXERCISES = (SEARCH_LOSS, ANOMALY, ALARM_RATES)
