"""Which way does a model need, and can `repair` tell? Both ways on tuning models alone, and the figures that choose.

    python tests/benchmarks/repair_ways.py FOLDER [victims] [spc]

FOLDER: that of tuning_models.py. Writes data/results/repair_ways.csv: for each victim the share of answers that random
changes alter, the share kept on trial, what the scan says, and ACC, ASR and RA of the given model, of the one repaired
by consistency and of the one in which the scan's suspect was unlearned. One thread; about ten minutes of a core a victim.
"""

import sys
from pathlib import Path

import pandas as pd
import torch
from tuning_models import DEFENSE_SEEDS, tuning_victim

from gradprune.base.paths import write_atomic
from gradprune.defenses.common import Work
from gradprune.defenses.repair import DEFAULTS, kept_on_trial, tune_consistently, unsteadiness
from gradprune.defenses.scan import scan
from gradprune.defenses.unlearning import unlearn_suspect
from gradprune.search import FAMILIES

OUT = Path(__file__).resolve().parents[2] / "data/results/repair_ways.csv"
VICTIMS = ",".join(f"{kind}_11" for kind in (
    "photo_resnet_badnets", "photo_resnet_blended", "photo_resnet_low_frequency", "photo_resnet_bpp", "photo_resnet_clean",
    "photo_vgg_badnets", "photo_vgg_blended", "gtsrb_badnets", "gtsrb_blended", "gtsrb_low_frequency", "gtsrb_clean"))


def measure(victim, spc, seed):
    """One row: what `repair` could know, and how each way ends."""
    row, clean = {}, victim.data.defense

    def measured(way, model):
        told = victim.evaluate(model)
        row.update({f"{way} acc": told.acc, f"{way} asr": told.asr, f"{way} ra": told.ra})

    def work():
        return Work(victim.model, clean, None, spc, seed, hold_out=False, searches=True)

    measured("given", victim.model)
    row["altered"] = unsteadiness(victim.model, work().train.clean, DEFAULTS["changes"], seed)
    row["kept"] = kept_on_trial(victim.model, clean, spc, tuple(FAMILIES), DEFAULTS, seed, False)
    tried = work()
    tune_consistently(tried, tuple(FAMILIES), DEFAULTS, DEFAULTS["steps"], seed, False)
    measured("consistency", tried.model)
    scanned = scan(victim.model, clean, spc=spc, seed=seed, progress=False, steps=DEFAULTS["scan_steps"])
    row["score"] = max(scanned.scores)
    row["suspect"] = "none" if scanned.suspect is None else "target" if scanned.suspect == victim.target else "another"
    if scanned.suspect is not None:
        tried = work()
        row["ended"] = unlearn_suspect(tried, scanned, DEFAULTS, seed, False).strip()
        measured("unlearned", tried.model)
    return row


def main(folder, victims=VICTIMS, spc="10"):
    """Measure what is missing, then print the figures."""
    for name in victims.split(","):
        table = pd.read_csv(OUT) if OUT.exists() else pd.DataFrame(columns=["victim", "spc", "seed"])
        if ((table["victim"] == name) & (table["spc"] == int(spc))).any():
            continue
        kind, training = name.rsplit("_", 1)
        victim = tuning_victim(folder, kind, int(training))
        row = {"victim": name, "spc": int(spc), "seed": DEFENSE_SEEDS[0], **measure(victim, int(spc), DEFENSE_SEEDS[0])}
        table = pd.concat([table, pd.DataFrame([row])])
        write_atomic(OUT, lambda temporary, table=table: table.round(4).to_csv(temporary, index=False))
        print(row, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
