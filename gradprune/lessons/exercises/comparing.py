"""The exercises of notebook 05: one figure for a defence, and a ranking in which a failure counts as one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from gradprune import evaluation
from gradprune.evaluation import Metrics
from gradprune.lessons.runtime.feedback import Seen
from gradprune.lessons.runtime.grading import Function, as_tensor, exercise

# ---- der


def _models() -> list[tuple[Any, ...]]:
    """Good, harmful, useless and lucky defences: falls and rises of ACC, ASR and RA in all combinations."""
    figures = (((0.95, 0.99, 0.01), (0.91, 0.03, 0.80)), ((0.90, 0.80, 0.15), (0.93, 0.20, 0.50)),
               ((0.92, 0.85, 0.10), (0.89, 0.95, 0.04)), ((0.88, 0.70, 0.20), (0.90, 0.75, 0.18)),
               ((0.94, 0.60, 0.30), (0.24, 0.35, 0.10)))
    return [(Metrics(*before), Metrics(*after)) for before, after in figures]


der = exercise("05", cases=_models, examples=lambda: [(Metrics(0.9, 0.8, 0.1), Metrics(0.8, 0.2, 0.6))],
               praise="falls of ASR count for the defence, falls of ACC count against it, and rises count for nothing."
               )(evaluation.der)


def _of_falls(rate: Function) -> Function:
    """A figure of the fall of ASR and of the fall of ACC."""
    return lambda before, after: rate(before.asr - after.asr, before.acc - after.acc)

der.wrong_answers({
    "before and after are swapped: a fall is before minus after.": lambda before, after: evaluation.der(after, before),
    "one max(0, ...) is around the whole difference. Each fall needs its own, or no defence could be rated worse than "
    "useless.": _of_falls(lambda asr, acc: (max(0, asr - acc) + 1) / 2),
    "ACC is left out. A model that answers nonsense has no backdoor either: subtract the fall of ACC.":
        _of_falls(lambda asr, acc: (max(0, asr) + 1) / 2),
    "only the 1 is halved. Python divides before it adds: put brackets around everything that is halved.":
        _of_falls(lambda asr, acc: max(0, asr) - max(0, acc) + 1 / 2),
    "1 is added after halving. Python divides before it adds: put brackets around everything that is halved.":
        _of_falls(lambda asr, acc: (max(0, asr) - max(0, acc)) / 2 + 1),
    "the fall of ACC is added. It is the cost, so subtract it.":
        _of_falls(lambda asr, acc: (max(0, asr) + max(0, acc) + 1) / 2),
    "a rise of ASR costs points: put max(0, ...) around the fall of ASR, too.":
        _of_falls(lambda asr, acc: (asr - max(0, acc) + 1) / 2),
    "a rise of ACC earns points: put max(0, ...) around the fall of ACC, too.":
        _of_falls(lambda asr, acc: (max(0, asr) - acc + 1) / 2),
    "max(0, ...) is missing in both terms. A defence that raises ACC must not earn points for it, or a gain in ACC "
    "could make up for a working backdoor.": _of_falls(lambda asr, acc: (asr - acc + 1) / 2),
    "the rise of RA is used in place of the fall of ASR. A good idea, but a different figure: DER ignores RA, and "
    "section 4 shows what that costs. Use ASR here.":
        lambda before, after: (max(0, after.ra - before.ra) - max(0, before.acc - after.acc) + 1) / 2,
})


# ---- mean_rank


def _scores() -> list[tuple[Any, ...]]:
    """Scores with ties, failures and harm (below 0.5), on which no two wrong ways give the same ranks.

    One failure a block: whether two share the last places or are both the very last is left open.
    """
    nan = np.nan
    tables = ([[0.9, 0.8, 0.8, nan], [0.3, nan, 0.6, 0.45], [0.7, 0.95, 0.7, 0.99], [0.2, 0.97, 0.3, 0.98],
               [0.9, 0.6, 0.4, 0.8]],
              [[0.5, 0.9, nan], [0.99, 0.45, 0.4], [0.6, 0.6, 0.6], [nan, 0.4, 0.7], [0.3, 0.8, 0.8], [0.4, nan, 0.2]])
    return [(pd.DataFrame(rows, columns=[*"abcd"][:len(rows[0])]),) for rows in tables]


def _one_a_defence(function: Function, case: Sequence[Any]) -> Seen:
    """The ranks in the order of the columns, whatever kind of table they come in."""
    ranks, names = function(*case), list(case[0])
    if isinstance(ranks, pd.Series | dict) and set(ranks.keys()) == set(names):
        ranks = [ranks[name] for name in names]
    if isinstance(ranks, pd.Series | pd.DataFrame):
        ranks = ranks.to_numpy()
    return [as_tensor(ranks)]


def _ranks(scores: pd.DataFrame, **settings: Any) -> pd.DataFrame:
    return scores.rank(**{"axis": 1, "ascending": False, "na_option": "bottom"} | settings)


@exercise("05", cases=_scores, observe=_one_a_defence,
          examples=lambda: [(pd.DataFrame({"a": [0.9, 0.6], "b": [0.8, np.nan], "c": [0.8, 0.7]}),)],
          praise="each block is ranked by itself, ties share a rank, and failures come last.")
def mean_rank(scores: pd.DataFrame) -> pd.Series:
    """The mean rank of each defence; 1 is the best."""
    return _ranks(scores).mean()

mean_rank.wrong_answers({
    "ties are broken by the order of the columns. Equal scores share the average rank, which is what `rank` does "
    "unless told otherwise.": lambda scores: _ranks(scores, method="first").mean(),
    "each column is ranked by itself, attack against attack. Rank defence against defence: `axis=1`.":
        [lambda scores: _ranks(scores, axis=0).mean(), lambda scores: _ranks(scores, axis=0, na_option="keep").mean(),
         lambda scores: _ranks(scores, axis=0, ascending=True, na_option="keep").mean()],
    "the order is reversed: rank 1 is for the HIGHEST score (`ascending=False`).":
        [lambda scores: _ranks(scores, ascending=True).mean(),
         lambda scores: _ranks(scores, ascending=True, na_option="keep").mean()],
    "failed cells get no rank, and the mean leaves them out. A defence that fails on the hard attacks and shines on "
    "the easy ones would win: rank failures last (`na_option=\"bottom\"`).":
        lambda scores: _ranks(scores, na_option="keep").mean(),
    "a failure gets a rank beyond the last: among four defences, the last rank is 4.":
        lambda scores: _ranks(scores, na_option="keep").fillna(scores.shape[1] + 1).mean(),
    "every block in which something failed is thrown away. One weak defence would decide on which attacks all others "
    "are judged: keep the block and rank the failure last.": lambda scores: _ranks(scores.dropna()).mean(),
    "failures are scored 0.5, no net gain. That beats a defence that does harm, although both leave the user with a "
    "working backdoor: rank failures last.": lambda scores: _ranks(scores.fillna(0.5)).mean(),
    "these are the ranks of the mean scores. One easy attack with large differences would decide everything: rank in "
    "each block first, then take the mean.": lambda scores: scores.mean().rank(ascending=False),
    "this is the mean score. Scores on different attacks share no common scale; ranks do. Rank in each block first, "
    "then take the mean.": lambda scores: scores.mean(),
})
