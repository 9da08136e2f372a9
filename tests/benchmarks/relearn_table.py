"""Does the backdoor come back? The shipped models, purified and fine-tuned with k poisoned samples.

    python tests/benchmarks/relearn_table.py     # about a quarter of an hour on one free core

Writes data/results/relearn.csv, a row a run, and relearn.png beside it. Three draws of the defender's images (spc 10) and of
the poisoned samples, with the same seed; the control is the model that never had a backdoor. The poisoned samples come
from the training part, the figures from the test part.
"""

import platform
import sys
import time
from pathlib import Path

import pandas as pd
import torch

import gradprune as gp
from gradprune.defenses import defense
from gradprune.evaluation import relearn
from gradprune.paths import write_atomic
from gradprune.views.relearn_plot import relearn_curve

OUT = Path(__file__).resolve().parents[2] / "data/results/relearn.csv"
DEFENSES = ("grad_prune", "ft_unlearn", "ft", "anp", "fine_pruning")
CONTROL = "never backdoored"


def rows():
    clean = gp.load_victim("clean").model
    for seed in (0, 1, 2):
        for attack in ("badnets", "blended", "sig"):
            victim = gp.load_victim(attack)
            given = (victim.data.train, victim.data.test, victim.trigger, victim.target)
            for name in (*DEFENSES, CONTROL):
                start = time.perf_counter()
                model = clean if name == CONTROL else defense(name)(
                    victim.model, victim.data.defense, victim.trigger, spc=10, seed=seed, progress=False).model
                found = relearn(model, *given, seeds=(seed,))
                for row in found:
                    yield {"attack": attack, "model": name, "draw": seed, "k": row["k"],
                           **{figure: round(row[figure], 4) for figure in ("acc", "asr", "ra")},
                           "gradprune": gp.__version__, "torch": torch.__version__.split("+")[0],
                           "machine": platform.machine(), "threads": torch.get_num_threads()}
                print(attack, seed, name, *(f"{row['acc']:.3f}/{row['asr']:.3f}" for row in found),
                      f"{time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


def draw(table):
    """The figure of a table, as written or read back."""
    plain = table.astype({"k": object}).where(table.k.notna(), None)
    return relearn_curve({attack: {name: runs.to_dict("records") for name, runs in group.groupby("model", sort=False)}
                          for attack, group in plain.groupby("attack", sort=False)})


def main():
    torch.set_num_threads(1)
    table = pd.DataFrame(rows())
    write_atomic(OUT, lambda temporary: table.to_csv(temporary, index=False))
    picture = draw(table)
    picture.save(OUT.with_suffix(".png"))
    print(picture)
    means = table.fillna({"k": -1}).groupby(["attack", "model", "k"], sort=False)[["acc", "asr"]].mean()
    print((100 * means).round(1).unstack("k").to_string())


if __name__ == "__main__":
    main()
