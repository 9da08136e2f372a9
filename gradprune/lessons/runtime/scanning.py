"""What notebook 04 uses: settings by mode, a search with the learner's own loss, and a second alarm rule."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from gradprune.attacks.triggers.learning import descend
from gradprune.defenses.scan import FASTER
from gradprune.lessons.runtime.notebook_setup import mode
from gradprune.search import Inverted

SEED = 0
_SEARCHES: dict[str, dict[str, Any]] = {"quick": FASTER, "ci": {**FASTER, "steps": 40, "batch_size": 8},
                                        "full": {"factor": FASTER["factor"]}}
_REPAIRS: dict[str, dict[str, Any]] = {"quick": {"steps": 50, "first": 6, "lr": 6e-3},
                                       "ci": {"steps": 20, "first": 4}, "full": {}}


def search_settings() -> dict[str, Any]:
    """Settings of `invert` and `perturb` that the mode allows: a scan's, fewer steps in "ci", all steps in "full"."""
    return {"progress": False, **_SEARCHES[mode()]}


def repair_settings() -> dict[str, Any]:
    """Settings of `repair` that the mode allows: some of its steps, fewer in "ci", all in "full"."""
    return {"progress": False, **_REPAIRS[mode()]}


def own_search(loss: Callable[..., Tensor], model: nn.Module, images: Tensor, target: int, cost: float) -> Inverted:
    """Search mask and pattern that make the learner's loss small, at one fixed cost; the model is not changed.

    loss: (model, images, mask, pattern, target, cost) -> scalar. images: clean, float (N, C, H, W) in [0, 1].
    Unlike `invert`, which adapts the cost, this makes 60 steps (in mode "ci" 20) and keeps the last.
    """
    generator = torch.Generator().manual_seed(SEED)
    free = [nn.Parameter(torch.randn(size, *images.shape[2:], generator=generator)) for size in (1, images.shape[1])]

    def shaped() -> list[Tensor]:
        return [0.5 * (tensor.tanh() + 1) for tensor in free]  # both stay in 0..1

    descend(free, lambda batch: loss(model, batch, *shaped(), target, cost), images,
            steps=20 if mode() == "ci" else 60, lr=0.1, seed=SEED, batch_size=16)
    return Inverted(*(tensor.detach() for tensor in shaped()))


def index_alone(scans: pd.DataFrame) -> pd.DataFrame:
    """The table data/results/scan.csv with the `suspect` that the anomaly index alone would have named.

    One row per model: `mask_class` and `whole_class` hold the class with the smallest norm, `..._share` its share of
    the median, `..._index_alone_alarms` whether its index is above 2. Where both kinds accuse, the smaller share
    decides.
    """
    shares, classes = (pd.DataFrame({kind: scans[f"{kind}_{part}"].where(scans[f"{kind}_index_alone_alarms"])
                                     for kind in ("mask", "whole")}) for part in ("share", "class"))
    by_mask = shares["mask"].fillna(2) <= shares["whole"].fillna(2)  # no share of a smallest norm is above 1
    return scans.assign(suspect=classes["mask"].where(by_mask, classes["whole"]))
