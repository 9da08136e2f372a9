"""Replay a pruning run on test images, after the fact: what each round did to ACC, ASR and RA."""

import copy
from collections.abc import Iterable
from typing import Any

from torch import nn

from gradprune.datasets import ImageSet
from gradprune.evaluation.metrics import evaluate
from gradprune.pruning.filters import filters, silence


def replay(model: nn.Module, history: Iterable[dict[str, Any]], test: ImageSet, trigger: nn.Module,
           target: int) -> list[dict[str, Any]]:
    """Silence the filters of a run's history one by one in a copy of the given model, measuring each state.

    model: the model the defence was given. history: `DefenseResult.history`; rounds that were taken back are shown
    too. Returns rows (round, layer, index, acc, asr, ra), row 0 for the given model. The defence is over when this
    runs: the figures explain a run, they never steer one.
    """
    copied = copy.deepcopy(model)
    found = filters(copied, test.floats()[:1])
    rows = []
    for row in history:
        if row["stage"] != "prune":
            continue
        if row["layer"] is not None:
            silence(copied, found, [found.position(row["layer"], row["index"])])
        metrics = evaluate(copied, test, trigger, target)
        rows.append({key: row[key] for key in ("round", "layer", "index")} | metrics._asdict())
    return rows
