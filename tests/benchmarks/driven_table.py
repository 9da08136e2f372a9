"""Driven filters on tuning models, attacked and clean: how far the target stands out, for pushes of three sizes.

    python tests/benchmarks/driven_table.py FOLDER [victim ...]

FOLDER: that of tuning_models.py. Writes data/results/driven.csv: for each push the rank of the target (of a clean model
the class reached furthest) and how far it is reached, as a multiple of the next class. One thread; training is minutes a
model, measuring seconds.
"""

import importlib
import sys
from pathlib import Path

import pandas as pd
import torch
from scan_scores import clean_victim, place
from tuning_models import DEFENSE_SEEDS, images, signs, tuning_victim

from gradprune.base.paths import write_atomic
from gradprune.defenses.common import Work

driving = importlib.import_module("gradprune.defenses.driven")
OUT = Path(__file__).resolve().parents[2] / "data/results/driven.csv"
PUSHES = (5.0, 10.0, 20.0)
ATTACKED = [f"{kind}_{seed}" for seed in (11, 12) for kind in ("badnets", "sig", "sig_clean_label")] + [
    f"{kind}_11" for kind in ("blended", "low_frequency", "wanet", "label_consistent", "bpp", "gtsrb_low_frequency",
                              "photo_resnet_badnets", "photo_resnet_blended", "photo_resnet_low_frequency", "photo_resnet_bpp",
                              "photo_vgg_badnets", "photo_vgg_blended")] + ["photo_resnet_bpp_12"]
CLEAN = [f"clean{seed}" for seed in range(51, 61)] + ["gtsrb_clean_11", "photo_resnet_clean_11", "photo_resnet_clean_12"]


def victim_of(folder, name):
    """A tuning model; those named clean51 .. clean60 are of signs, and of three widths."""
    if "_" not in name:
        return clean_victim(Path(folder) / name, data=images(folder, "signs", signs))
    kind, seed = name.rsplit("_", 1)
    return tuning_victim(folder, kind, int(seed))


def row(victim, name):
    """One model's figures."""
    work = Work(victim.model, victim.data.defense, None, 10, DEFENSE_SEEDS[0], hold_out=False, searches=True)
    target, told = victim.target if victim.card["attack"]["rate"] > 0 else None, {}
    for push in PUSHES:
        driving.PUSH = push
        reached = driving.driven(work.model, work.found, work.train.clean)
        label = max(range(work.classes), key=reached.__getitem__) if target is None else target
        told |= {f"rank {push:g}": place(reached, label),
                 f"multiple {push:g}": driving.multiple(reached, label)}
    return {"victim": name, "attacked": target is not None, "filters": len(work.found), **told}


def main(folder, *victims):
    """Measure what is missing, then print the figures."""
    for name in victims or [*ATTACKED, *CLEAN]:
        table = pd.read_csv(OUT) if OUT.exists() else pd.DataFrame(columns=["victim"])
        if name not in set(table["victim"]):
            table = pd.concat([table, pd.DataFrame([row(victim_of(folder, name), name)])]).round(3)
            write_atomic(OUT, lambda temporary, table=table: table.to_csv(temporary, index=False))
    print(table.to_string(index=False))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
