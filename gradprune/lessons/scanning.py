"""What notebook 04 leans on: how long a search may be, a search with the learner's own loss, and measured scans.

`python -m gradprune.lessons.scanning` measures data/results/lessons/scans.csv again, in about two minutes; it is
written after each model.
"""

import argparse
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from gradprune.attacks.learning import descend
from gradprune.defenses import scan
from gradprune.defenses.scan import FASTER, KINDS, Row
from gradprune.evaluation import load_victim
from gradprune.lessons.attacking import table
from gradprune.lessons.session import mode
from gradprune.paths import data_folder, write_atomic
from gradprune.pruning import Inverted

MODELS = ("blended", "wanet", "trojannn", "clean")
SPC, SEED = 10, 0
_BY_MODE: dict[str, dict[str, Any]] = {"quick": FASTER, "ci": {**FASTER, "steps": 40, "batch_size": 8},
                                       "full": {"factor": FASTER["factor"]}}


def search_settings() -> dict[str, Any]:
    """Settings of `invert` and `perturb` that the mode allows: a scan's, fewer steps in "ci", all steps in "full"."""
    return {"progress": False, **_BY_MODE[mode()]}


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


# ---- scans that were measured before


def measured_rows(model: str) -> list[Row]:
    """All classes and kinds of a measured scan, as `Scan.rows`: those of `MODELS`, each with ten images per class."""
    rows = table("scans")
    rows = rows[rows["model"] == model].astype(object).where(lambda values: values.notna(), None)
    return [Row(*row) for row in rows[list(Row._fields)].itertuples(index=False)]


def index_alone(scans: pd.DataFrame) -> pd.DataFrame:
    """The table data/results/scan.csv with the `suspect` that the anomaly index alone would have named.

    A row a model: `mask_class` and `whole_class` hold the class with the smallest norm, `..._share` its share of the
    median, `..._index_alone_alarms` whether its index is above 2. Where both kinds accuse, the smaller share decides.
    """
    shares, classes = (pd.DataFrame({kind: scans[f"{kind}_{part}"].where(scans[f"{kind}_index_alone_alarms"])
                                     for kind in ("mask", "whole")}) for part in ("share", "class"))
    by_mask = shares["mask"].fillna(2) <= shares["whole"].fillna(2)  # no share of a smallest norm is above 1
    return scans.assign(suspect=classes["mask"].where(by_mask, classes["whole"]))


def measure(path: Path, names: tuple[str, ...] = MODELS) -> None:
    """Scan the shipped models by both searches and write the table "scans" after each."""
    rows: list[dict[str, Any]] = []
    made = {"spc": SPC, "seed": SEED, "steps": FASTER["steps"], "torch": torch.__version__.split("+")[0],
            "machine": f"{platform.system()} {platform.machine()}", "threads": torch.get_num_threads()}
    for name in names:
        victim = load_victim(name)
        found = scan(victim.model, victim.data.defense, spc=SPC, seed=SEED, progress=False)
        rows += [{"model": name, **row._asdict(), **made} for row in found.rows]
        _write(path, rows)
        print(f"{name}, {len(KINDS)} searches a class: {found.verdict}", flush=True)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    write_atomic(path, lambda temporary: pd.DataFrame(rows).round(4).to_csv(temporary, index=False))


def main(arguments: list[str] | None = None) -> None:
    """Measure the table of scans again."""
    parser = argparse.ArgumentParser(prog="python -m gradprune.lessons.scanning", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=data_folder() / "results" / "lessons")
    torch.set_num_threads(1)
    measure(parser.parse_args(arguments).out / "scans.csv")


if __name__ == "__main__":
    main()
