"""What do fewer steps, or shorter searches, save in `repair` by consistency, and what do they cost? Tuning models alone.

    python tests/benchmarks/length_table.py FOLDER [victims] [spc]     # about ten minutes of a core for each

FOLDER: that of tuning_models.py. Writes data/results/length.csv: ACC, ASR and RA of each victim as given (0 steps) and
after `repair` with other values of `steps` and `search_steps`, and the CPU time. One thread, defence seed 100.
"""

import sys
import time
from pathlib import Path

import pandas as pd
import torch
from tuning_models import DEFENSE_SEEDS, tuning_victim

from gradprune.base.paths import write_atomic
from gradprune.defenses.repair import IGNORED, repair

OUT = Path(__file__).resolve().parents[2] / "data/results/length.csv"
VICTIMS = ("badnets_11,sig_11,blended_11,low_frequency_11,label_consistent_11,sig_clean_label_11,input_aware_11,wanet_11,"
           "sig_12,sig_clean_label_12")  # all numbers of optimiser steps were run on the first four alone
RUNS = {2: [(0, 0), (200, 1), (300, 1), (300, 3), (300, 6)],  # by images per class: steps, steps of each search
        10: [(0, 0), (75, 6), (150, 6), (200, 6), (300, 6), (450, 6), (300, 3), (300, 1), (200, 1)],
        50: [(0, 0), (300, 6), (300, 1)]}
KEYS = ["victim", "spc", "steps", "search_steps"]


def measure(victim, spc, steps, search_steps):
    """Figures and CPU time of one run; those of the given model for 0 steps."""
    start, model = time.process_time(), victim.model
    if steps:
        result = repair(victim.model, victim.data.defense, spc=spc, seed=DEFENSE_SEEDS[0], progress=False, steps=steps,
                        search_steps=search_steps)
        assert IGNORED in result.stopped, result.stopped
        model = result.model
    spent = time.process_time() - start
    return {**victim.evaluate(model)._asdict(), "cpu_seconds": spent}


def main(folder, victims=VICTIMS, spcs="2,10"):
    """Measure what is missing, then print the figures."""
    table = pd.read_csv(OUT) if OUT.exists() else pd.DataFrame(columns=KEYS)
    for name, spc in ((name, spc) for name in victims.split(",") for spc in map(int, spcs.split(","))):
        kind, training = name.rsplit("_", 1)
        victim, done = tuning_victim(folder, kind, int(training)), set(table[KEYS].itertuples(index=False, name=None))
        for run in RUNS[spc]:
            if (name, spc, *run) not in done:
                row = dict(zip(KEYS, (name, spc, *run), strict=True)) | measure(victim, spc, *run)
                table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
                write_atomic(OUT, lambda temporary, table=table: table.round(4).to_csv(temporary, index=False))
                print(row, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
