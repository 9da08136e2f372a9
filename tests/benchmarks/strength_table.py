"""How strong must the triggers be that `repair` unlearns, for how long, and does a step back help?

One round each, on tuning models alone.

    python tests/benchmarks/strength_table.py FOLDER [victims]     # about six minutes of a core for each

FOLDER: that of tuning_models.py. Writes data/results/strength.csv: ACC, ASR and RA of each victim as given and after
one round of unlearning, with triggers as strong as they were found (1) and up to 2.5 times as strong, for 112 and 224
steps; of the last one also after each share `back` of the way back to the given weights. What is unlearned is the same
in all. One thread, defence seed 100, ten images.
"""

import copy
import itertools
import sys
from pathlib import Path

import pandas as pd
import torch
from tuning_models import DEFENSE_SEEDS, tuning_victim

from gradprune.base.paths import write_atomic
from gradprune.defenses.common import Work
from gradprune.defenses.consistency import step_back
from gradprune.defenses.repair import DEFAULTS
from gradprune.defenses.scan import scan
from gradprune.defenses.unlearning import unlearn_suspect

OUT = Path(__file__).resolve().parents[2] / "data/results/strength.csv"
VICTIMS = "photo_resnet_badnets_11,photo_resnet_low_frequency_11,photo_resnet_bpp_12,photo_vgg_badnets_11"
SPC, SEED = 10, DEFENSE_SEEDS[0]
RUNS = [*itertools.product((1.0, 2.5), (112, 224))]
BACK = (0, 0.1, 0.2, 0.3, 0.5)


def measure(folder, kind, training):
    """The rows of one victim; none but the given model's if the scan suspects no class."""
    victim = tuning_victim(folder, kind, training)
    yield {"strength": 0, "steps": 0, "back": 0, **victim.evaluate(victim.model)._asdict()}
    scanned = scan(victim.model, victim.data.defense, spc=SPC, seed=SEED, progress=False, steps=DEFAULTS["scan_steps"])
    for strength, steps in RUNS if scanned.suspect == victim.target else ():
        work = Work(victim.model, victim.data.defense, None, SPC, SEED, hold_out=False, searches=True)
        unlearn_suspect(work, scanned, DEFAULTS | {"rounds": 1, "strength": strength, "suspect_steps": steps}, SEED, False)
        for back in BACK if (strength, steps) == RUNS[-1] else BACK[:1]:
            model = copy.deepcopy(work.model)
            step_back(model, work.given, back)
            yield {"strength": strength, "steps": steps, "back": back, **victim.evaluate(model)._asdict()}


def fill(out, measured, folder, victims):
    """Measure the victims that the file `out` lacks, then print the figures."""
    for name in victims.split(","):
        table = pd.read_csv(out) if out.exists() else pd.DataFrame(columns=["victim"])
        if name not in set(table["victim"]):
            kind, training = name.rsplit("_", 1)
            rows = pd.DataFrame(measured(folder, kind, int(training))).assign(victim=name)
            table = pd.concat([table, rows])
            write_atomic(out, lambda temporary, table=table: table.round(4).to_csv(temporary, index=False))
            print(rows.round(3), flush=True)


def main(folder, victims=VICTIMS):
    fill(OUT, measure, folder, victims)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
