"""`check.<exercise>(attempt)`: says what is right or wrong and hands back a function that works, so Run All goes on."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from gradprune.base.errors import unknown
from gradprune.lessons.exercises import attack, by_hand, comparing, own_model, pruning, scanning, scoring
from gradprune.lessons.runtime import progress
from gradprune.lessons.runtime.grading import Exercise
from gradprune.lessons.runtime.notebook_setup import say

EXERCISES: dict[str, Exercise] = {found.name: found
                                  for room in (attack, scoring, pruning, scanning, comparing, own_model, by_hand)
                                  for found in vars(room).values() if isinstance(found, Exercise)}
_TITLES = {"correct": ("✔", "Correct:"), "wrong": ("✘", "Not yet right:"), "untouched": ("○", "Not attempted yet:")}


class CheckFailed(AssertionError):
    """An exercise was not solved, under `GRADPRUNE_STRICT=1`."""


class Checks:
    """All checks, one attribute per exercise.

        score = check.score(score)

    Each returns the attempt if it is correct and the reference otherwise, shows which, and never raises; only with
    GRADPRUNE_STRICT=1 does it raise CheckFailed unless the attempt is correct.
    """

    def __getattr__(self, name: str) -> Callable[[Any], Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in EXERCISES:
            raise AttributeError(str(unknown("exercise", name, EXERCISES)))
        return partial(_check, EXERCISES[name])

    def __dir__(self) -> list[str]:
        return sorted(EXERCISES)

    def __repr__(self) -> str:
        return "check: " + ", ".join(f"{name} (notebook {exercise.notebook})" for name, exercise in EXERCISES.items())


check = Checks()


def whose(function: Any) -> str:
    """"Your", or "The reference" where the check handed the reference back: whose work a later figure shows."""
    return "The reference" if any(function is exercise.reference for exercise in EXERCISES.values()) else "Your"


def _check(exercise: Exercise, attempt: Any = None) -> Any:
    """Judge, tell, remember; the attempt if it is correct, else the reference."""
    verdict = exercise.judge(attempt)
    symbol, title = _TITLES[verdict.state]
    correct = verdict.state == "correct"
    say(symbol, verdict.message + " The notebook goes on with a working version." * (not correct), title)
    key = f"{exercise.notebook}.{exercise.name}"
    if correct or progress.recall("exercises", key) != "correct":
        progress.remember("exercises", key, verdict.state)  # once solved, it stays solved
    if not correct and os.environ.get("GRADPRUNE_STRICT") == "1":
        raise CheckFailed(f"{exercise.name}: {verdict.state}: {verdict.message}")
    return attempt if correct else exercise.reference
