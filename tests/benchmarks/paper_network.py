"""The paper's own network on a CPU: PreActResNet-18 (11.2 million weights) on GTSRB: data/results/paper_network.csv.

    python tests/benchmarks/paper_network.py FOLDER [attacks] [spc] [defences]

FOLDER keeps the victims, which are trained on first use (10 epochs of 3,870 images: half an hour each on one thread of a
CPU that has no bfloat16). Needs `gradprune data get gtsrb`, or the copy that `shared_data.py` makes. One draw of the
defender's images; test images only measure. `seconds` is the defence's wall time on all cores; `load` is the machine's
load average at its end, so that a row of a busy machine can be told.
"""

import os
import platform
import sys
from pathlib import Path

import pandas as pd
import torch

import gradprune as gp
from gradprune.base.paths import write_atomic
from gradprune.defenses import defense
from gradprune.evaluation import der
from gradprune.models.checkpoints import save_checkpoint
from gradprune.victims.zoo import attack

OUT = Path(__file__).resolve().parents[2] / "data/results/paper_network.csv"
DEFENSES = "grad_prune,grad_prune_verified,ft_distilled,ft_unlearn"
TRAINING = {"data": "gtsrb", "model": {"name": "preact_resnet18"}, "target": 0, "epochs": 10, "max_lr": 0.05,
            "batch_size": 64, "shift": 4, "bfloat16": True}
KEYS = ["attack", "spc", "seed", "defense", "stage"]


def victim_of(folder, trigger):
    path = Path(folder) / trigger
    if not path.with_suffix(".json").exists():
        made = attack(trigger, **TRAINING)
        save_checkpoint(path, made.model, {**made.card, "training": {**made.card["training"], "seconds": round(made.seconds, 1)}},
                        made.trigger)
        print(trigger, made.card["metrics"], f"{made.seconds:.0f} s", flush=True)
    return gp.load_victim(path)


def rows(folder, attacks, spcs, methods, done):
    for trigger in attacks:
        victim = victim_of(folder, trigger)
        given = victim.evaluate()
        for spc in spcs:
            for name in methods:
                if (trigger, spc, 0, name, "final") in done:
                    continue
                result = defense(name)(victim.model, victim.data.defense, victim.trigger, spc=spc, seed=0, progress=False)
                load = os.getloadavg()[0]
                stages = {"given": given, "final": victim.evaluate(result.model)}
                if result.pruned is not None:
                    stages["pruned"] = victim.evaluate(result.pruned)
                for stage, figures in stages.items():
                    print(trigger, spc, name, stage, figures, {k: round(v, 1) for k, v in result.seconds.items()}, flush=True)
                    yield {"attack": trigger, "spc": spc, "seed": 0, "defense": name, "stage": stage,
                           **{key: round(value, 4) for key, value in figures._asdict().items()},
                           "der": round(der(given, figures), 4), "filters_removed": len(result.mask.positions),
                           "seconds": round(sum(result.seconds.values()), 1), "load": round(load, 1),
                           "threads": torch.get_num_threads(), "gradprune": gp.__version__,
                           "torch": torch.__version__.split("+")[0], "machine": platform.machine()}


def main(folder, attacks="badnets,blended", spcs="2,10", methods=DEFENSES):
    """Add the rows that are missing; delete the file to measure anew."""
    table = pd.read_csv(OUT) if OUT.exists() else pd.DataFrame(columns=KEYS)
    done = set(table[KEYS].itertuples(index=False, name=None))
    for row in rows(folder, attacks.split(","), list(map(int, spcs.split(","))), methods.split(","), done):
        table = pd.concat([table, pd.DataFrame([row])]).drop_duplicates(KEYS, keep="last")
        write_atomic(OUT, lambda temporary, table=table: table.to_csv(temporary, index=False))
    print(table.to_string(index=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
