"""What does `exposure` tell an owner who knows no trigger? Tuning models, attacked and clean, before and after `repair`.

    python tests/benchmarks/exposure_table.py FOLDER [models]

FOLDER: that of tuning_models.py; clean models (clean51 .. clean58, of three widths) are trained there where they are
missing. Changes are searched anew, with a seed that the repair did not use. Writes data/results/exposure.csv, a row per
model and stage with each family's share, goes on where it stopped, and prints the means. One thread; two minutes a model.
"""

import sys
from pathlib import Path

import pandas as pd
import torch
from scan_scores import clean_victim
from tuning_models import DEFENSE_SEEDS, images, signs, tuning_victim

from gradprune.base.paths import write_atomic
from gradprune.datasets import draw_defense_images
from gradprune.defenses import exposure, repair
from gradprune.search import FAMILIES

OUT = Path(__file__).resolve().parents[2] / "data/results/exposure.csv"
ATTACKED = ("badnets_11", "sig_11", "sig_clean_label_12", "blended_11", "low_frequency_11", "badnets_12", "sig_12",
            "sig_clean_label_11")
CLEAN = tuple(f"clean{seed}" for seed in range(51, 59))
MODELS = ",".join(name for pair in zip(ATTACKED, CLEAN, strict=True) for name in pair)  # as many of each
SPC, SEED = 10, DEFENSE_SEEDS[0]


def victim_of(folder, name):
    """A tuning model, attacked or clean, trained where it is missing."""
    if name not in CLEAN:
        kind, seed = name.rsplit("_", 1)
        return tuning_victim(folder, kind, int(seed))
    return clean_victim(Path(folder, name), data=images(folder, "signs", signs))


def rows_of(victim, name):
    """The shares of the given and of the repaired model."""
    pixels = draw_defense_images(victim.data.defense, SPC, SEED).train.floats()
    repaired = repair(victim.model, victim.data.defense, spc=SPC, seed=SEED, progress=False)
    for stage, model in (("given", victim.model), ("repaired", repaired.model)):
        told = victim.evaluate(model)
        shares = {row.family: round(row.share, 4) for row in exposure(model, pixels, seed=SEED + 1)}
        yield {"model": name, "attacked": name not in CLEAN, "stage": stage, "acc": round(told.acc, 4),
               "asr": round(told.asr, 4), "mean": round(sum(shares.values()) / len(shares), 4),
               "largest": max(shares.values()), **{family: shares[family] for family in FAMILIES}}


def main(folder, names=MODELS):
    """Run what is missing, then print the figures."""
    table = pd.read_csv(OUT) if OUT.exists() else pd.DataFrame(columns=["model"])
    for name in names.split(","):
        if name not in set(table["model"]):
            table = pd.concat([table, pd.DataFrame(rows_of(victim_of(folder, name), name))], ignore_index=True)
            write_atomic(OUT, lambda path, table=table: table.to_csv(path, index=False))
    for (attacked, stage), some in table.groupby(["attacked", "stage"]):
        print(f"{len(some)} {'attacked' if attacked else 'clean'} models, {stage}: " + "; ".join(
            f"{name} share {some[name].mean():.0%} ({some[name].min():.0%} to {some[name].max():.0%})"
            for name in ("mean", "largest")) + f"; ASR {some['asr'].mean():.1%}, ACC {some['acc'].mean():.1%}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
