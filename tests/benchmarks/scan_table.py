"""The two classic searches of a scan on clean and shipped models, and defences with known and synthesised trigger: data/results/scan*.csv.

    python tests/benchmarks/scan_table.py [name ...]

Names: clean25, clean41 .. clean43 (trained from nothing, kept in out/scan) and the shipped models; all if none is given. Rows of
these names are made again, the others stay. One thread. A scan takes half a minute of CPU time.
"""

import sys
from pathlib import Path

import pandas as pd
import torch

import gradprune as gp
from gradprune.defenses import prune_scanned, scan
from gradprune.defenses.scan import KINDS
from gradprune.models.checkpoints import save_checkpoint
from gradprune.paths import data_folder, write_atomic

SPC, SEED = 10, 0
CLEAN = [f"clean{seed}" for seed in (25, 41, 42, 43)]  # 21 to 24 and 31 served to find the rule for an alarm
COMPARED = ["badnets", "trojannn", "blended", "wanet", "low_frequency", "input_aware"]
SHIPPED = [*COMPARED, "clean", "sig", "sig_clean_label", "bpp", "label_consistent"]
SCANS, DEFENSES = "scan.csv", "scan_defense.csv"


def victim_of(name):
    if name not in CLEAN:
        return gp.load_victim(name)
    path = Path("out/scan", name)
    if not path.with_suffix(".json").is_file():
        made = gp.attack("badnets", rate=0.0, seed=int(name.removeprefix("clean")), progress=False)
        save_checkpoint(path, made.model, made.card, made.trigger)
    return gp.load_victim(path)


def scan_row(name, victim, found):
    attacked = victim.card["attack"]["rate"] > 0
    target = victim.target if attacked else None
    alone = min((one for one in found.rows if one.alarm), key=lambda one: one.share, default=None)
    suspect, by = (alone.label, alone.kind) if alone else (None, None)  # of the searches that accuse a class by themselves
    row = {"model": name, "attacked": attacked, "target": target, "suspect": suspect, "by": by, "right": suspect == target}
    for kind in KINDS:
        rows = [one for one in found.rows if one.kind == kind]
        first = min(rows, key=lambda one: one.norm)
        key = kind.split()[0]
        row |= {f"{key}_class": first.label, f"{key}_index": first.anomaly, f"{key}_share": first.share,
                f"{key}_norm": first.norm, f"{key}_success": first.success, f"{key}_converged": sum(one.converged for one in rows),
                f"{key}_index_of_target": None if target is None else rows[target].anomaly,
                f"{key}_share_of_target": None if target is None else rows[target].share,
                f"{key}_index_alone_alarms": max(one.anomaly or 0 for one in rows) > 2}
    return row | {"spc": SPC, "seed": SEED}


def defense_rows(name, victim, found):
    known = gp.grad_prune(victim.model, victim.data.defense, victim.trigger, spc=SPC, recipe="paper", seed=SEED, progress=False)
    blind = prune_scanned(victim.model, victim.data.defense, found, spc=SPC, recipe="paper", seed=SEED, progress=False)
    models = {"given": victim.model, "known, pruned": known.pruned, "known, fine-tuned": known.model,
              "synthesised, pruned": blind.pruned, "synthesised, fine-tuned": blind.model}
    return [{"model": name, "state": state, **victim.evaluate(model)._asdict(),
             "filters": len({"known": known, "synthesised": blind}[state.split(",")[0]].mask.positions)
             if state != "given" else 0, "spc": SPC, "seed": SEED} for state, model in models.items()]


def keep(file, name, rows):
    """Replace the rows of this model in the file."""
    path = data_folder() / "results" / file
    old = pd.read_csv(path) if path.is_file() else pd.DataFrame({"model": []})
    table = pd.concat([frame for frame in (old[old.model != name], pd.DataFrame(rows)) if len(frame)])
    order = [*CLEAN, *SHIPPED]
    table = table.sort_values("model", key=lambda names: names.map(order.index), kind="stable").round(4)
    for column in ("target", "suspect"):
        if column in table:
            table[column] = table[column].astype("Int64")
    write_atomic(path, lambda temporary: table.to_csv(temporary, index=False))


def main(names):
    torch.set_num_threads(1)
    for name in names:
        victim = victim_of(name)
        found = scan(victim.model, victim.data.defense, spc=SPC, seed=SEED, progress=False)
        print(name, found.verdict, flush=True)
        keep(SCANS, name, [scan_row(name, victim, found)])
        if name in COMPARED:
            keep(DEFENSES, name, defense_rows(name, victim, found))


if __name__ == "__main__":
    main(sys.argv[1:] or [*CLEAN, *SHIPPED])
