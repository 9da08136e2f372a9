"""Scans of 20 clean models and of every shipped sign model: who is suspected, and where the target stands.

    python tests/benchmarks/scan_scores.py [name ...]

Writes data/results/scan_scores.csv, a row a model, and goes on where it stopped. The clean models (clean101 .. clean120, of three
widths) are trained from nothing and kept in out/scan. The alarm was chosen on other models, of other images: see
docs/decisions/unknown_trigger.md. One thread; a scan takes about a minute of CPU time.
"""

import sys
import time
from pathlib import Path

import pandas as pd
import torch

import gradprune as gp
from gradprune.base.paths import write_atomic
from gradprune.defenses import scan
from gradprune.defenses.driven import multiple
from gradprune.models.checkpoints import save_checkpoint
from gradprune.victims.zoo import SHIPPED

OUT = Path(__file__).resolve().parents[2] / "data/results/scan_scores.csv"
CLEAN = [f"clean{seed}" for seed in range(101, 121)]
WIDTHS = (8, 12, 16)  # of the clean models, in turn
SPC, SEED = 10, 0


def clean_victim(path, **recipe):
    """A model that was never attacked, named after its seed, trained where it is not there yet; recipe: of `gp.attack`."""
    seed = int(path.name.removeprefix("clean"))
    if not path.with_suffix(".json").is_file():
        made = gp.attack("badnets", rate=0.0, seed=seed, target=5 * seed % 12, epochs=6, progress=False, **recipe,
                         model={"name": "preact_resnet", "width": WIDTHS[seed % 3], "blocks": [1, 1, 1]})
        save_checkpoint(path, made.model, made.card, made.trigger)
    return gp.load_victim(path)


def victim_of(name):
    """A shipped model, or a clean one."""
    return clean_victim(Path("out/scan", name)) if name in CLEAN else gp.load_victim(name)


def place(values, label):
    """The rank of a class, 1 for the highest value."""
    return 1 + sum(value > values[label] for value in values)


def row(name):
    """One scan."""
    victim, start = victim_of(name), time.process_time()
    found = scan(victim.model, victim.data.defense, spc=SPC, seed=SEED, progress=False)
    seconds, attacked = time.process_time() - start, victim.card["attack"]["rate"] > 0
    target = victim.target if attacked else None
    ranks = {f"rank_{voice}".replace(" ", "_"): place(told, target) if attacked else None for voice, told in found.voices.items()}
    nearest = max(range(len(found.scores)), key=found.scores.__getitem__)
    print(name, found.verdict, flush=True)
    return {"model": name, "attacked": attacked, "target": target, "suspect": found.suspect, "highest": max(found.scores),
            "score_of_target": found.scores[target] if attacked else None,
            "rank_of_target": place(found.scores, target) if attacked else None, **ranks,
            "driven_multiple": multiple(found.reached, nearest), "rank_driven": place(found.reached, target) if attacked else None,
            "cpu_seconds": round(seconds, 1), "spc": SPC, "seed": SEED}


def main(names):
    """Scan what is missing, then print how often an alarm is raised, and how often it names the target."""
    table = pd.read_csv(OUT) if OUT.exists() else pd.DataFrame(columns=["model"])
    for name in names:
        if name not in set(table["model"]):
            table = pd.concat([table, pd.DataFrame([row(name)])]).round(3)
            write_atomic(OUT, lambda temporary, table=table: table.to_csv(temporary, index=False, float_format="%g"))
    for attacked, part in table.groupby("attacked"):
        told = f", the target {int((part['suspect'] == part['target']).sum())} times" if attacked else ""
        print(f"{'attacked' if attacked else 'clean'}: {int(part['suspect'].notna().sum())} alarms on {len(part)} models{told}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:] or [*SHIPPED, *CLEAN])
