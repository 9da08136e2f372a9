"""Does the backdoor come back? The shipped models, cleaned and then fine-tuned with k poisoned samples.

    python tests/benchmarks/relearn_table.py     # roughly an hour on one free core

Writes data/results/relearn.csv, one row per run, and relearn.png beside it. If interrupted, it resumes where it stopped
(delete the table to begin anew). Three draws of the defender's images (spc 10) and of the poisoned samples, with the same
seed; the controls are the model that never had a backdoor, as it is and repaired. The poisoned samples come from the
training part, the figures from the test part.
"""

import math
import platform
import sys
import time
from itertools import product
from pathlib import Path

import pandas as pd
import torch

import gradprune as gp
from gradprune.base.paths import write_atomic
from gradprune.defenses import defense
from gradprune.evaluation import relearn
from gradprune.views.figures.pruning_plots import relearn_curve

OUT = Path(__file__).resolve().parents[2] / "data/results/relearn.csv"
ATTACKS = ("badnets", "blended", "sig")
CONTROL, REPAIRED = "never backdoored", "clean, repaired"
MODELS = ("grad_prune", CONTROL, "grad_prune_verified", "ft_distilled", "ft_unlearn", "repair", REPAIRED)


def runs(attack, seed, name):
    """The rows of one model: cleaned with this draw, then fine-tuned with k poisoned samples of the same draw."""
    victim, start = gp.load_victim(attack), time.perf_counter()
    model = gp.load_victim("clean").model if name in (CONTROL, REPAIRED) else victim.model
    if name != CONTROL:
        method = defense("repair" if name == REPAIRED else name)
        model = method(model, victim.data.defense, victim.trigger, spc=10, seed=seed, progress=False).model
    found = relearn(model, victim.data.train, victim.data.test, victim.trigger, victim.target,
                    label_map=victim.label_map, seeds=(seed,))
    print(attack, seed, name, *(f"{row['acc']:.3f}/{row['asr']:.3f}" for row in found),
          f"{time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    return [{"attack": attack, "model": name, "draw": seed, "k": row["k"],
             **{figure: round(row[figure], 4) for figure in ("acc", "asr", "ra")},
             "gradprune": gp.__version__, "torch": torch.__version__.split("+")[0],
             "machine": platform.machine(), "threads": torch.get_num_threads()} for row in found]


def draw(table):
    """The figure of a table, as written or read back: the models whose nine runs are there."""
    rows = [{**row, "k": None if math.isnan(row["k"]) else int(row["k"])} for row in table.to_dict("records")]
    complete = [name for name in MODELS
                if len({(row["attack"], row["draw"]) for row in rows if row["model"] == name}) == 3 * len(ATTACKS)]
    return relearn_curve({attack: {name: [row for row in rows if (row["attack"], row["model"]) == (attack, name)]
                                   for name in complete} for attack in ATTACKS})


def main():
    torch.set_num_threads(1)
    table = pd.read_csv(OUT) if OUT.is_file() else pd.DataFrame(columns=["attack", "draw", "model"])
    for name, seed, attack in product(MODELS, (0, 1, 2), ATTACKS):
        run = attack, seed, name
        if run not in set(zip(table.attack, table.draw, table.model, strict=True)):
            table = pd.DataFrame([*table.to_dict("records"), *runs(*run)])
            write_atomic(OUT, lambda temporary, now=table: now.to_csv(temporary, index=False))
    picture = draw(table)
    picture.save(OUT.with_suffix(".png"))
    print(picture)
    means = table.fillna({"k": -1}).groupby(["attack", "model", "k"], sort=False)[["acc", "asr"]].mean()
    print((100 * means).round(1).unstack("k").to_string())


if __name__ == "__main__":
    main()
