"""The first exercise of notebook 03: when to stop pruning, and which round to go back to."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from gradprune.lessons.runtime.feedback import Seen
from gradprune.lessons.runtime.grading import Complaint, Exercise, Function, Misconception, as_tensor

Rows = list[dict[str, float]]

# ---- stopping_rule(history, alpha) -> number of filters to keep removed


def _stopping_rule(history: Rows, alpha: float) -> int:
    return _best(_within(history, alpha), "val_unlearning_loss")


def _within(rows: Rows, alpha: float) -> Rows:
    return [row for row in rows if rows[0]["val_acc"] - row["val_acc"] < alpha]


def _best(rows: Rows, key: str) -> int:
    return min(rows, key=lambda row: row[key])["round"]  # type: ignore[return-value]


def _histories() -> list[tuple[Rows, float]]:
    """Runs as `paper` leaves them, ended by a fall of alpha or by patience; each wrong rule keeps another round.

    Accuracies are multiples of 1/64, so that a fall of exactly alpha is one in floating point, too; test figures lie
    there as a temptation.
    """
    return [(_rows([56, 58, 62, 57, 55, 50, 44], [4.0, 2.6, 2.8, 1.9, 2.0, 1.2, 0.6], [9, 8, 10, 90, 20, 50, 30],
                   [99, 80, 20, 40, 1, 30, 2]), 0.125),
            (_rows([48, 50, 46, 47, 40, 32], [3.0, 2.0, 1.0, 1.3, 1.1, 0.5], [20, 19, 50, 18, 60, 90],
                   [97, 50, 40, 5, 30, 20]), 0.25),
            (_rows([40, 40, 41, 34, 38, 39, 36], [3.0, 1.4, 1.6, 0.7, 0.9, 0.8, 1.1], [12, 14, 11, 95, 16, 13, 18],
                   [98, 60, 70, 45, 30, 20, 10]), 0.125),
            (_rows([52, 50, 49, 40], [2.0, 2.4, 2.6, 1.0], [50, 40, 70, 80], [99, 70, 50, 1]), 0.125),
            (_rows([40, 44, 50, 47, 30], [3.0, 2.0, 0.8, 1.5, 0.9], [50, 40, 45, 30, 80], [99, 70, 60, 65, 1]), 0.125)]


def _rows(*columns: Sequence[float]) -> Rows:
    """A history from its accuracies (in 64ths), unlearning losses, clean losses and test ASRs (both in per cent)."""
    names, scales = ("val_acc", "val_unlearning_loss", "val_clean_loss", "test_asr"), (64, 1, 100, 100)
    return [{"round": number} | {name: value / scale for name, value, scale in zip(names, values, scales, strict=True)}
            for number, values in enumerate(zip(*columns, strict=True))]


def _short_run() -> list[tuple[Rows, float]]:
    """A history short enough to be read."""
    rows = ((1.0, 3.0), (0.95, 0.5), (0.97, 0.8), (0.6, 0.1))
    names = "val_acc", "val_unlearning_loss"
    return [([{"round": number} | dict(zip(names, row, strict=True)) for number, row in enumerate(rows)], 0.1)]


def _round(function: Function, case: Sequence[Any]) -> Seen:
    """The chosen round; what follows in the notebook cannot use a whole row."""
    chosen = function(*case)
    if isinstance(chosen, dict):
        raise Complaint("a whole row is returned. How many filters stay removed is its `\"round\"`.")
    return [as_tensor(chosen)]


def _both_losses(rows: Rows, alpha: float) -> int:
    both = [row | {"sum": row["val_clean_loss"] + row["val_unlearning_loss"]} for row in rows]
    return _best(_within(both, alpha), "sum")


def _first_rise(rows: Rows, alpha: float) -> int:
    return next(before["round"]  # type: ignore[return-value]
                for before, after in pairwise(rows)
                if after["val_unlearning_loss"] > before["val_unlearning_loss"] or after not in _within(rows, alpha))


def _lowest_below(fall: Callable[[Rows, int], float]) -> Function:
    """The rule with another notion of a fall, worked out for each round."""
    return lambda rows, alpha: _best([row for place, row in enumerate(rows) if not place or fall(rows, place) < alpha],
                                     "val_unlearning_loss")


def _fall(rows: Rows, start: float, place: int) -> float:
    return start - rows[place]["val_acc"]


STOPPING_RULE = Exercise(
    notebook="03", name="stopping_rule", signature="stopping_rule(history, alpha)",
    praise="the lowest validation unlearning loss among the rounds that lost less than alpha.",
    reference=_stopping_rule, cases=_histories, observe=_round, examples=_short_run,
    misconceptions=(
        Misconception("you keep the last round, or the first that loses too much. Pruning goes on for a while after "
                      "its best moment to be sure that it was the best: go BACK to the round with the lowest "
                      "validation unlearning loss.", lambda h, a: h[-1]["round"]),
        Misconception("you keep the last round within alpha. Among those rounds, the one with the lowest "
                      "validation unlearning loss is the best.", lambda h, a: _within(h, a)[-1]["round"]),
        Misconception("a fall of exactly alpha passes. “Fallen by alpha” means by alpha or more, so what may stay has "
                      "lost LESS than alpha: `<`, not `<=`.",
                      _lowest_below(lambda h, p: _fall(h, h[0]["val_acc"], p) - 1e-9)),
        Misconception("a RISE of accuracy counts as a fall: leave out `abs()`. A model that got better has lost "
                      "nothing.",
                      _lowest_below(lambda h, p: abs(_fall(h, h[0]["val_acc"], p)))),
        Misconception("the fall is counted as a share of the first accuracy. Alpha means points: subtract one accuracy "
                      "from the other, and do not divide.",
                      _lowest_below(lambda h, p: _fall(h, h[0]["val_acc"], p) / h[0]["val_acc"])),
        Misconception("the fall is counted from the best accuracy so far. It counts from the given model, row 0; a "
                      "lucky round in between changes nothing.",
                      _lowest_below(lambda h, p: _fall(h, max(row["val_acc"] for row in h[:p]), p)),
                      (_lowest_below(lambda h, p: _fall(h, max(row["val_acc"] for row in h), p)),)),
        Misconception("the fall is counted from one round to the next. Many small losses would add up unseen: compare "
                      "with row 0.", _lowest_below(lambda h, p: _fall(h, h[p - 1]["val_acc"], p))),
        Misconception("this is the HIGHEST unlearning loss within alpha, where the backdoor is strongest: `min`, not "
                      "`max`.", lambda h, a: max(_within(h, a), key=lambda row: row["val_unlearning_loss"])["round"]),
        Misconception("alpha is ignored: the lowest loss may come from a model that has lost its accuracy. "
                      "First drop the rounds that lost alpha or more.",
                      lambda h, a: _best(h, "val_unlearning_loss")),
        Misconception("alpha is taken as a floor for the accuracy itself. It limits the FALL: compare with "
                      "row 0.",
                      lambda h, a: _best([row for row in h if row["val_acc"] > 1 - a] or h[:1], "val_unlearning_loss")),
        Misconception("you chose by the test ASR. Whoever picks by test figures reports a result that "
                      "nobody can get on new data: the test set must decide nothing.",
                      lambda h, a: _best(h, "test_asr")),
        Misconception("you chose by the test ASR, if within alpha. The test set must decide nothing: use "
                      "the validation unlearning loss.", lambda h, a: _best(_within(h, a), "test_asr")),
        Misconception("you chose the highest accuracy. That hardly prunes anything; the backdoor costs no "
                      "accuracy.", lambda h, a: max(h, key=lambda row: row["val_acc"])["round"]),
        Misconception("you chose by the clean loss. It does not see the backdoor: use the unlearning loss.",
                      lambda h, a: _best(_within(h, a), "val_clean_loss")),
        Misconception("you chose by the sum of both losses. A good idea, and close to how fine-tuning is "
                      "stopped; the paper's rule watches accuracy through alpha and the unlearning loss "
                      "alone.", _both_losses),
        Misconception("you stop at the first round in which the loss rises. It goes up and down: look at "
                      "all rounds.", _first_rise),
        Misconception("one too many: row 0 is the model before any pruning, so row r has r filters removed.",
                      lambda h, a: _stopping_rule(h, a) + 1),
        Misconception("one too few: row 0 is the model before any pruning, so row r has r filters removed.",
                      lambda h, a: _stopping_rule(h, a) - 1),
        Misconception("row 0 is left out. If no round helps, the given model is the best: 0 filters.",
                      lambda h, a: _best(_within(h, a)[1:] or h[1:2], "val_unlearning_loss")),
        Misconception("this is the loss itself. Return how many filters stay removed: the row's `round`.",
                      lambda h, a: min(row["val_unlearning_loss"] for row in _within(h, a))),
    ))
