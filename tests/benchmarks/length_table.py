"""What do fewer steps, or shorter searches, save in `repair` by consistency, and what do they cost? Tuning models alone.

    python tests/benchmarks/length_table.py FOLDER [victims]     # about ten minutes of a core for each

FOLDER: that of tuning_models.py. Writes data/results/length.csv: ACC, ASR and RA of each victim as given (0 steps) and
after `repair` with other values of `steps` and `search_steps`, and the CPU time. One thread, defence seed 100, ten images.
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
VICTIMS = "badnets_11,sig_11,blended_11,low_frequency_11"
RUNS = [(75, 6), (150, 6), (200, 6), (300, 6), (450, 6), (300, 3), (300, 1)]  # steps, steps of each search


def measure(victim):
    """The rows of one victim."""
    yield {"steps": 0, "search_steps": 0, **victim.evaluate(victim.model)._asdict(), "cpu_seconds": 0.0}
    for steps, search_steps in RUNS:
        start = time.process_time()
        result = repair(victim.model, victim.data.defense, spc=10, seed=DEFENSE_SEEDS[0], progress=False, steps=steps,
                        search_steps=search_steps)
        spent = time.process_time() - start
        assert IGNORED in result.stopped, result.stopped
        yield {"steps": steps, "search_steps": search_steps, **victim.evaluate(result.model)._asdict(),
               "cpu_seconds": spent}


def main(folder, victims=VICTIMS):
    """Measure what is missing, then print the figures."""
    for name in victims.split(","):
        table = pd.read_csv(OUT) if OUT.exists() else pd.DataFrame(columns=["victim"])
        if name not in set(table["victim"]):
            kind, training = name.rsplit("_", 1)
            rows = pd.DataFrame(measure(tuning_victim(folder, kind, int(training)))).assign(victim=name)
            table = pd.concat([table, rows])
            write_atomic(OUT, lambda temporary, table=table: table.round(4).to_csv(temporary, index=False))
            print(rows.round(3), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
