"""The exercises of notebook 05: one figure for a defence, and a ranking in which a failure counts as one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from gradprune.evaluation import Metrics
from gradprune.evaluation import der as _der
from gradprune.lessons.runtime.feedback import Seen
from gradprune.lessons.runtime.grading import Complaint, Exercise, Function, Misconception, as_tensor

# ---- der(before, after) -> number


def _models() -> list[tuple[Any, ...]]:
    """Good, harmful, useless and lucky defences: falls and rises of ACC, ASR and RA in all combinations."""
    figures = (((0.95, 0.99, 0.01), (0.91, 0.03, 0.80)), ((0.90, 0.80, 0.15), (0.93, 0.20, 0.50)),
               ((0.92, 0.85, 0.10), (0.89, 0.95, 0.04)), ((0.88, 0.70, 0.20), (0.90, 0.75, 0.18)),
               ((0.94, 0.60, 0.30), (0.24, 0.35, 0.10)))
    return [(Metrics(*before), Metrics(*after)) for before, after in figures]


def _one_defence() -> list[tuple[Any, ...]]:
    """Ten points of accuracy for sixty of attack."""
    return [(Metrics(0.9, 0.8, 0.1), Metrics(0.8, 0.2, 0.6))]


def _drops(before: Metrics, after: Metrics) -> tuple[float, float]:
    return before.asr - after.asr, before.acc - after.acc


DER = Exercise(
    notebook="05", name="der", signature="der(before, after)",
    praise="falls of ASR count for the defence, falls of ACC against it, rises count for nothing.",
    reference=_der, cases=_models, examples=_one_defence,
    misconceptions=(
        Misconception("before and after are exchanged: a fall is before minus after.", lambda b, a: _der(a, b)),
        Misconception("max(0, ...) is missing in both terms. A defence that raises ACC must not earn points for it, "
                      "or a harmless change could make up for a living backdoor.",
                      lambda b, a: (_drops(b, a)[0] - _drops(b, a)[1] + 1) / 2),
        Misconception("a rise of ACC earns points: put max(0, ...) around the fall of ACC, too.",
                      lambda b, a: (max(0, _drops(b, a)[0]) - _drops(b, a)[1] + 1) / 2),
        Misconception("a rise of ASR costs points: put max(0, ...) around the fall of ASR, too.",
                      lambda b, a: (_drops(b, a)[0] - max(0, _drops(b, a)[1]) + 1) / 2),
        Misconception("the fall of ACC is added. It is the price, so subtract it.",
                      lambda b, a: (max(0, _drops(b, a)[0]) + max(0, _drops(b, a)[1]) + 1) / 2),
        Misconception("the scale is not moved: yours runs from -1 to 1. Add 1, then halve.",
                      lambda b, a: 2 * _der(b, a) - 1),
        Misconception("1 is added, but nothing is halved: yours runs from 0 to 2.", lambda b, a: 2 * _der(b, a)),
        Misconception("1 is added after halving. Python divides before it adds: put brackets around all that is "
                      "halved.", lambda b, a: _der(b, a) + 0.5),
        Misconception("only the 1 is halved. Python divides before it adds: put brackets around all that is halved.",
                      lambda b, a: max(0, _drops(b, a)[0]) - max(0, _drops(b, a)[1]) + 1 / 2),
        Misconception("1 is missing: yours runs from -0.5 to 0.5, and no effect is 0.",
                      lambda b, a: _der(b, a) - 0.5),
        Misconception("ACC is left out. A model that answers nonsense has no backdoor either.",
                      lambda b, a: (max(0, _drops(b, a)[0]) + 1) / 2,
                      (lambda b, a: _drops(b, a)[0], lambda b, a: max(0, _drops(b, a)[0]))),
        Misconception("ASR is left out. The backdoor is what the defence is for.",
                      lambda b, a: (1 - max(0, _drops(b, a)[1])) / 2),
        Misconception("the rise of RA stands in place of the fall of ASR. A good idea, but another figure: DER does "
                      "not know RA, and section 4 shows what that costs.",
                      lambda b, a: (max(0, a.ra - b.ra) - max(0, _drops(b, a)[1]) + 1) / 2),
        Misconception("one max(0, ...) stands around the whole difference. Each fall needs its own, or no defence "
                      "could be worse than useless.",
                      lambda b, a: (max(0, _drops(b, a)[0] - _drops(b, a)[1]) + 1) / 2),
        Misconception("the falls are divided by what was there before. DER counts points, not shares of them.",
                      lambda b, a: (max(0, 1 - a.asr / b.asr) - max(0, 1 - a.acc / b.acc) + 1) / 2),
        Misconception("the absolute change counts. A rise is not a fall: use max(0, ...).",
                      lambda b, a: (abs(_drops(b, a)[0]) - abs(_drops(b, a)[1]) + 1) / 2),
        Misconception("the price is turned around: a RISE of ACC is subtracted. Before minus after, as for ASR.",
                      lambda b, a: (max(0, _drops(b, a)[0]) - max(0, -_drops(b, a)[1]) + 1) / 2),
        Misconception("`min(0, ...)` keeps the rises and drops the falls: `max(0, ...)`.",
                      lambda b, a: (min(0, _drops(b, a)[0]) - min(0, _drops(b, a)[1]) + 1) / 2),
        Misconception("before plays no part. A model whose ASR was low from the start owes nothing to the defence.",
                      lambda b, a: (1 - a.asr + a.acc) / 2),
        Misconception("this is in per cent. All figures here are shares, 0 to 1.", lambda b, a: 100 * _der(b, a)),
    ))

# ---- mean_rank(scores) -> one number a defence


def _mean_rank(scores: pd.DataFrame) -> pd.Series:
    return _ranks(scores).mean()


def _ranks(scores: pd.DataFrame, **settings: Any) -> pd.DataFrame:
    return scores.rank(axis=1, **{"ascending": False, "na_option": "bottom"} | settings)


def _scores() -> list[tuple[Any, ...]]:
    """Scores with ties, failures and harm done (below 0.5), in which no two wrong ways lead to the same ranks.

    One failure a block: whether two share the last places or are both the very last is left open.
    """
    nan = np.nan
    tables = ([[0.9, 0.8, 0.8, nan], [0.3, nan, 0.6, 0.45], [0.7, 0.95, 0.7, 0.99], [0.2, 0.97, 0.3, 0.98],
               [0.9, 0.6, 0.4, 0.8]],
              [[0.5, 0.9, nan], [0.99, 0.45, 0.4], [0.6, 0.6, 0.6], [nan, 0.4, 0.7], [0.3, 0.8, 0.8], [0.4, nan, 0.2]])
    return [(pd.DataFrame(rows, columns=[*"abcd"][:len(rows[0])]),) for rows in tables]


def _two_blocks() -> list[tuple[pd.DataFrame]]:
    return [(pd.DataFrame({"a": [0.9, 0.6], "b": [0.8, np.nan], "c": [0.8, 0.7]}),)]


def _one_a_defence(function: Function, case: Sequence[Any]) -> Seen:
    """The ranks in the order of the columns, whatever kind of table they come in."""
    scores = case[0].copy()
    ranks = function(scores)
    if not scores.equals(case[0]):
        raise Complaint("your function changes the table that it is given. Whoever calls it needs that again: work on "
                        "what `scores.rank(...)` returns.")
    if isinstance(ranks, pd.Series) and set(ranks.index) == set(scores.columns):
        ranks = ranks[scores.columns]
    if isinstance(ranks, dict) and set(ranks) == set(scores.columns):
        ranks = [ranks[name] for name in scores.columns]
    if isinstance(ranks, pd.Series | pd.DataFrame):
        ranks = ranks.to_numpy()
    return [as_tensor(ranks)]


def _wins(scores: pd.DataFrame) -> pd.Series:
    return (_ranks(scores) == 1).mean()


MEAN_RANK = Exercise(
    notebook="05", name="mean_rank", signature="mean_rank(scores)",
    praise="each block ranked by itself, ties share a rank, failures come last.",
    reference=_mean_rank, cases=_scores, observe=_one_a_defence, examples=_two_blocks,
    misconceptions=(
        Misconception("failed cells get no rank, and the mean leaves them out. Whoever fails on the hard attacks and "
                      "shines on the easy ones would win: rank failures last (`na_option=\"bottom\"`).",
                      lambda s: _ranks(s, na_option="keep").mean()),
        Misconception("a failure gets a rank behind the last: of four defences the last one is 4th.",
                      lambda s: _ranks(s, na_option="keep").fillna(s.shape[1] + 1).mean()),
        Misconception("failed cells come first. Last is meant: `na_option=\"bottom\"`.",
                      lambda s: _ranks(s, na_option="top").mean()),
        Misconception("every block in which something failed is thrown away. One weak defence would decide on which "
                      "attacks all others are judged: keep the block and rank the failure last.",
                      lambda s: _ranks(s.dropna()).mean()),
        Misconception("failures are filled in with 0.5, no effect. That beats a defence that does harm, and a user of "
                      "either has a working backdoor: rank failures last.", lambda s: _ranks(s.fillna(0.5)).mean()),
        Misconception("failures are filled in with the defence's own mean. So its failures cost it nothing: rank "
                      "them last.", lambda s: _ranks(s.fillna(s.mean())).mean()),
        Misconception("failures are filled in with the mean of the block. Nobody measured that: rank them last.",
                      lambda s: _ranks(s.T.fillna(s.mean(axis=1)).T).mean()),
        Misconception("the order is turned around: rank 1 is for the HIGHEST score (`ascending=False`).",
                      lambda s: _ranks(s, ascending=True).mean(), (lambda s: s.rank(axis=1).mean(),)),
        Misconception("each column is ranked by itself, attack against attack. Defence against defence is meant: "
                      "`axis=1`.", lambda s: s.rank(axis=0, ascending=False, na_option="bottom").mean(),
                      (lambda s: s.rank().mean(), lambda s: s.rank(ascending=False).mean())),
        Misconception("these are the ranks of the mean scores. One easy attack with large differences would decide "
                      "for all: rank in each block first, then take the mean.",
                      lambda s: s.mean().rank(ascending=False)),
        Misconception("this is the mean score. Scores of different attacks are on no common scale; ranks are.",
                      lambda s: s.mean()),
        Misconception("ties are broken by the order of the columns. Equal scores share the average rank, which is "
                      "what `rank` does unless told otherwise.", lambda s: _ranks(s, method="first").mean()),
        Misconception("ties get the best of their ranks (`method=\"min\"`). The average is fair: it keeps the sum of "
                      "ranks in a block.", lambda s: _ranks(s, method="min").mean()),
        Misconception("ties get the worst of their ranks (`method=\"max\"`). The average is fair: it keeps the sum "
                      "of ranks in a block.", lambda s: _ranks(s, method="max").mean()),
        Misconception("ranks are dense: after a tie no rank is left out. A block with ties would then count for less.",
                      lambda s: _ranks(s, method="dense").mean()),
        Misconception("a failure gets rank 0 and so beats everybody: last is meant (`na_option=\"bottom\"`).",
                      lambda s: _ranks(s, na_option="keep").fillna(0).mean()),
        Misconception("ranks are shares of the number of defences (`pct=True`). Leave them as places.",
                      lambda s: _ranks(s, pct=True).mean()),
        Misconception("ranks begin at 0. By custom 1 is the best.", lambda s: _ranks(s).mean() - 1),
        Misconception("the median of the ranks, not the mean: with a few blocks it jumps.",
                      lambda s: _ranks(s).median()),
        Misconception("the sum of the ranks, not the mean: it grows with the number of blocks.",
                      lambda s: _ranks(s).sum()),
        Misconception("the mean runs along the blocks (`axis=1`), where it is always the same. One number for each "
                      "DEFENCE is wanted: mean over the rows.", lambda s: _ranks(s).mean(axis=1)),
        Misconception("these are the ranks of every block. Take their mean for each defence.", _ranks),
        Misconception("this counts how often each defence wins. Second places then count no more than last ones.",
                      _wins),
        Misconception("this is each defence's best rank: the lucky block, not the rule.", lambda s: _ranks(s).min()),
    ))

COMPARING_EXERCISES = (DER, MEAN_RANK)
