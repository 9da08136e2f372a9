"""Does `repair` know the test? Every shipped sign attack with all families of changes, and without the one that is like it.

    python tests/benchmarks/repair_table.py [spc] [seeds]

Writes data/results/repair.csv, a row a run, and goes on where it stopped (delete the table to begin anew). `clean` is the
model that was never attacked: what repairing a healthy one costs. One thread; a run takes about a minute and a half.
"""

import platform
import sys
from itertools import product
from pathlib import Path

import pandas as pd
import torch

import gradprune as gp
from gradprune.base.paths import write_atomic
from gradprune.defenses import repair
from gradprune.search import FAMILIES

OUT = Path(__file__).resolve().parents[2] / "data/results/repair.csv"
LIKE = {"badnets": "patches", "label_consistent": "patches", "trojannn": "patches", "blended": "blend", "sig": "waves",
        "sig_clean_label": "waves", "low_frequency": "smooth", "wanet": "warp", "bpp": "quantised", "input_aware": "sparse"}
FIGURES = ("acc", "asr", "ra")


def row(attack, spc, seed, left_out):
    """One run: the model as given, and repaired without a family ("" for all of them)."""
    victim = gp.load_victim(attack)
    families = tuple(name for name in FAMILIES if name != left_out)
    result = repair(victim.model, victim.data.defense, spc=spc, seed=seed, families=families, progress=False)
    before, after = victim.evaluate(), victim.evaluate(result.model)
    print(attack, spc, seed, left_out or "all families", before, after, result.stopped, flush=True)
    return {"attack": attack, "spc": spc, "seed": seed, "left_out": left_out,
            **{f"{key}_before": round(getattr(before, key), 4) for key in FIGURES},
            **{key: round(getattr(after, key), 4) for key in FIGURES}, "seconds": round(sum(result.seconds.values()), 1),
            "road": result.stopped, "gradprune": gp.__version__, "torch": torch.__version__.split("+")[0],
            "machine": platform.machine(), "threads": torch.get_num_threads()}


def main(spcs="10,2", seeds="0"):
    """Run what is missing, then print the means."""
    table = pd.read_csv(OUT, keep_default_na=False) if OUT.exists() else pd.DataFrame(columns=["attack", "spc", "seed", "left_out"])
    done = set(table[["attack", "spc", "seed", "left_out"]].itertuples(index=False, name=None))
    for spc, seed, attack in product(map(int, spcs.split(",")), map(int, seeds.split(",")), (*LIKE, "clean")):
        for left_out in dict.fromkeys(("", LIKE.get(attack, ""))):
            if (attack, spc, seed, left_out) not in done:
                table = pd.concat([table, pd.DataFrame([row(attack, spc, seed, left_out)])])
                write_atomic(OUT, lambda temporary, table=table: table.to_csv(temporary, index=False))
    attacked = table[table["attack"] != "clean"]
    print((100 * attacked.groupby(["spc", attacked["left_out"] != ""])[[*FIGURES, "acc_before"]].mean()).round(1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
