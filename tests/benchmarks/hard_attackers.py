"""What does `repair` do against attackers it was not made for? One who knows it, and one without a single target class.

    python tests/benchmarks/hard_attackers.py [spc] [defence seeds]

"adaptive" trains on what `repair` trains on: half of the clean images of every batch carry a change, searched on the
model of that moment, of the very families that `repair` searches, with their true labels. The model then resists these
changes from the start, and only the trigger misleads it. "all_to_all" leads each class to the next one.
Writes data/results/hard_attackers.csv, a row a run, and goes on where it stopped. One thread; a training takes minutes.
"""

import platform
import sys
from pathlib import Path

import pandas as pd
import torch

import gradprune as gp
from gradprune.attacks import make_trigger
from gradprune.attacks.poisoning import poison
from gradprune.attacks.training import fit
from gradprune.base.paths import write_atomic
from gradprune.defenses import repair
from gradprune.evaluation import evaluate
from gradprune.models import build
from gradprune.search.changes import FAMILIES, Part, draw, search_changes
from gradprune.victims.zoo import DEFAULT_MODEL, TARGET

OUT = Path(__file__).resolve().parents[2] / "data/results/hard_attackers.csv"
ATTACKERS = [("adaptive", "badnets"), ("adaptive", "blended"), ("adaptive", "sig"), ("all_to_all", "badnets")]
FIGURES = ("acc", "asr", "ra")
STEPS = 3  # of the attacker's search, for each batch
RATES = {"adaptive": 0.1, "all_to_all": 0.5}  # with 0.1 and 8 epochs the all-to-all backdoor does not take (ASR 0.6 %)
EPOCHS = {"adaptive": 8, "all_to_all": 24}


class Hardening:
    """A training hook: every second clean image carries a change that was searched for this batch, with its true label."""

    def __init__(self, model, poisoned, count):
        self.model, self.clean = model, torch.ones(count, dtype=torch.bool)
        self.clean[poisoned] = False

    def __call__(self, images, labels, indices, generator):
        change = draw(images.shape[1:], generator, tuple(FAMILIES))
        self.model.eval()
        with torch.no_grad():
            usual = self.model(images).log_softmax(1)
        change, = search_changes(self.model, [Part(images, usual)], [change], steps=STEPS)
        self.model.train()
        worn = self.clean[indices] & (torch.rand(len(images), generator=generator) < 0.5)
        return torch.where(worn[:, None, None, None], change(images), images), labels


def attacked(kind, trigger):
    """The attacked model with its mark and data; training seed 0."""
    data, mark = gp.load("signs"), make_trigger(trigger)
    label_map = "all_to_all" if kind == "all_to_all" else "all_to_one"
    model = build(num_classes=len(data.train.classes), **DEFAULT_MODEL, seed=0).to(memory_format=torch.channels_last)
    poisoned = poison(data.train, mark, TARGET, RATES[kind], 0, label_map)
    hook = Hardening(model, poisoned.touched, len(data.train)) if kind == "adaptive" else None
    fit(model, poisoned.images, seed=0, progress=False, hook=hook, epochs=EPOCHS[kind])
    return model, mark, data, label_map


def main(spc="10", seeds="0,1,2"):
    """Run what is missing, then print the means."""
    names = ["attacker", "trigger", "spc", "seed"]
    table = pd.read_csv(OUT) if OUT.exists() else pd.DataFrame(columns=names)
    done = set(table[names].itertuples(index=False, name=None))
    for kind, trigger in ATTACKERS:
        missing = [seed for seed in map(int, seeds.split(",")) if (kind, trigger, int(spc), seed) not in done]
        model, mark, data, label_map = attacked(kind, trigger) if missing else (None,) * 4
        for seed in missing:
            result = repair(model, data.defense, spc=int(spc), seed=seed, progress=False)
            before, after = (evaluate(one, data.test, mark, TARGET, label_map=label_map) for one in (model, result.model))
            print(kind, trigger, spc, seed, before, after, result.stopped, flush=True)
            row = {"attacker": kind, "trigger": trigger, "spc": int(spc), "seed": seed,
                   **{f"{key}_before": round(getattr(before, key), 4) for key in FIGURES},
                   **{key: round(getattr(after, key), 4) for key in FIGURES}, "road": result.stopped,
                   "gradprune": gp.__version__, "torch": torch.__version__.split("+")[0], "machine": platform.machine()}
            table = pd.concat([table, pd.DataFrame([row])])
            write_atomic(OUT, lambda temporary, table=table: table.to_csv(temporary, index=False))
    figures = [f"{key}_before" for key in FIGURES] + list(FIGURES)
    print((100 * table.groupby(["attacker", "trigger", "spc"])[figures].mean()).round(1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
