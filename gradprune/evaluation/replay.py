"""Replay a pruning run on test images, afterwards: what each round did to ACC, ASR and RA."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from gradprune.base.errors import require
from gradprune.datasets import ImageSet
from gradprune.evaluation.metrics import exam, measure
from gradprune.models.inference import copy_of
from gradprune.pruning.filters import filters, silence


def replay(model: nn.Module, history: Iterable[dict[str, Any]], test: ImageSet, trigger: nn.Module,
           target: int | None, label_map: str = "all_to_one") -> list[dict[str, Any]]:
    """Silence the filters of a run's history one by one in a copy of the given model, measuring each state.

    model: the model that the defence was given.
    history: `DefenseResult.history`; rounds that were undone are included.
    trigger, target, label_map: as in `evaluate`.
    Returns rows (round, layer, index, acc, asr, ra), row 0 for the given model. The figures explain a run afterwards
    and never influence it. Raises InputError as `evaluate` does, and for a run that closed channels or features.
    """
    copied, questions = copy_of(model), exam(test, trigger, target, label_map)
    found = filters(copied, test.floats()[:1])
    rows = []
    for row in history:
        if row["stage"] != "prune":
            continue
        require(row["layer"] is not None or row["round"] == 0,
                "the run closed channels or features, not filters, so its rounds cannot be replayed.")
        if row["layer"] is not None:
            silence(copied, found, [found.position(row["layer"], row["index"])])
        metrics = measure(copied, questions)
        rows.append({key: row[key] for key in ("round", "layer", "index")} | metrics._asdict())
    return rows
