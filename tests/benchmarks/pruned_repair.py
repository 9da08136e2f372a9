"""Is it worth pruning before `repair`'s consistency? Filters scored by changes that were found, on tuning models alone.

    python tests/benchmarks/pruned_repair.py FOLDER [victims] [spc]

FOLDER: that of tuning_models.py. Nobody knows the trigger. Changes of half of the families are searched on the given
model; recipe `verified` prunes with them as the triggers, and keeps a round only where changes of the OTHER families,
searched as well, are answered better on held-out images. Then both copies, pruned and not, are fine-tuned by
`consistent_tune`. Writes data/results/pruned_repair.csv: a row for each victim, size and stage, with the ASR after
relearning on 200 images of which 5 are poisoned. One thread; about four minutes of a core a victim.
"""

import copy
import sys
from pathlib import Path

import pandas as pd
import torch
from tuning_models import DEFENSE_SEEDS, tuning_victim

from gradprune.base.paths import write_atomic
from gradprune.defenses.common import Work
from gradprune.defenses.consistency import CONSISTENCY, Consistent, consistent_tune
from gradprune.evaluation.relearn import relearn
from gradprune.models import predict
from gradprune.models.inference import evaluating
from gradprune.pruning import FilterMask, Pairs, verified
from gradprune.search import FAMILIES, Part, search_changes

OUT = Path(__file__).resolve().parents[2] / "data/results/pruned_repair.csv"
PRUNED_BY = ("patches", "blend", "smooth", "waves", "bounded")
JUDGED_BY = tuple(family for family in FAMILIES if family not in PRUNED_BY)
VICTIMS = "badnets_11,blended_11,sig_11,low_frequency_11,badnets_12,sig_clean_label_12"
EACH = 4  # changes of a family


def paired(given, pairs, families, seed):
    """The images with the changes that lead the given model furthest, searched on from the best of those drawn."""
    loss = Consistent(given, CONSISTENCY, torch.Generator().manual_seed(seed), families)
    part = Part(pairs.clean, predict(given, pairs.clean).log_softmax(1))
    with evaluating(given):
        loss._fill(given, Part(part.images[:16], part.wanted[:16]))
        begun = [change for pool in loss.pools.values() for _, change in pool[:EACH]]
        found = search_changes(given, [part] * len(begun), begun, steps=20)
    changed = pairs.clean.clone()
    for place, change in enumerate(found):
        changed[place::len(found)] = change(pairs.clean[place::len(found)])
    return Pairs(pairs.clean, changed, pairs.labels)


def rows_of(victim, spc, seed):
    """The figures of each stage: given; then without and with pruning, pruned alone and repaired."""
    def measured(stage, model, removed=0):
        told = victim.evaluate(model)
        again = relearn(model, victim.data.train, victim.data.test, victim.trigger, victim.target, k=(5,), seeds=(0,))
        return {"stage": stage, "acc": told.acc, "asr": told.asr, "ra": told.ra, "relearned_asr": again[-1]["asr"],
                "removed": removed}

    work = Work(victim.model, victim.data.defense, None, spc, seed, searches=True)
    pruned = copy.deepcopy(work.model)
    outcome = verified(pruned, work.found, paired(work.model, work.train, PRUNED_BY, seed),
                       paired(work.model, work.validation, JUDGED_BY, seed + 1), progress=False)
    yield measured("given", victim.model)
    yield measured("pruned", pruned, len(outcome.mask.positions))
    everything = Work(victim.model, victim.data.defense, None, spc, seed, hold_out=False, searches=True)
    for stage, start, mask in (("repaired", victim.model, FilterMask(work.found, before=work.mask.before)),
                               ("pruned and repaired", pruned, outcome.mask)):
        model = copy.deepcopy(start)
        consistent_tune(victim.model, model, mask, everything.train, everything.validation, everything.augment, seed=seed,
                        progress=False)
        yield measured(stage, model, len(mask.positions))


def main(folder, victims=VICTIMS, spcs="10"):
    """Run what is missing, then print the figures."""
    table = pd.read_csv(OUT) if OUT.exists() else pd.DataFrame(columns=["victim", "spc"])
    for spc in map(int, spcs.split(",")):
        for name in victims.split(","):
            if ((table["victim"] == name) & (table["spc"] == spc)).any():
                continue
            kind, seed = name.rsplit("_", 1)
            rows = list(rows_of(tuning_victim(folder, kind, int(seed)), spc, DEFENSE_SEEDS[0]))
            table = pd.concat([table, pd.DataFrame([{"victim": name, "spc": spc, **row} for row in rows])])
            write_atomic(OUT, lambda temporary, table=table: table.round(4).to_csv(temporary, index=False))
            print(table[table["victim"] == name].to_string(), flush=True)
    print((100 * table.groupby(["spc", "stage"])[["acc", "asr", "ra", "relearned_asr"]].mean()).round(1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
