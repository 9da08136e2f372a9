"""How much should the suspect weigh in what `repair` unlearns, and does a step back help then?

One round each, on tuning models alone.

    python tests/benchmarks/weights_table.py FOLDER [victims]     # about eight minutes of a core for each

FOLDER: that of tuning_models.py. Writes data/results/weights.csv: ACC, ASR and RA of each victim as given and after one
round of unlearning, by the weights of KL_suspect (`barred`) and KL_others (`restored`); with those of the default also
after each share `back` of the way back to the given weights. What is unlearned is the same in all. One thread, defence
seed 100, ten images.
"""

import copy
import sys
from pathlib import Path

import torch
from strength_table import BACK, SEED, SPC, fill
from tuning_models import tuning_victim

from gradprune.defenses.common import Work
from gradprune.defenses.consistency import step_back
from gradprune.defenses.repair import DEFAULTS
from gradprune.defenses.scan import scan
from gradprune.defenses.unlearning import UNLEARNING, unlearn_suspect

OUT = Path(__file__).resolve().parents[2] / "data/results/weights.csv"
VICTIMS = "photo_resnet_low_frequency_11,photo_resnet_badnets_11,photo_vgg_badnets_11"
WEIGHTS = ((1.0, 1.0), (1.0, 0.0), (1.0, 0.3), (2.0, 0.0), (2.0, 0.2), (2.0, 0.6), (3.0, 0.3))
DEFAULT = (UNLEARNING["barred"], UNLEARNING["restored"])


def measure(folder, kind, training):
    """The rows of one victim; none but the given model's if the scan suspects no class."""
    victim = tuning_victim(folder, kind, training)
    yield {"barred": 0, "restored": 0, "back": 0, **victim.evaluate(victim.model)._asdict()}
    scanned = scan(victim.model, victim.data.defense, spc=SPC, seed=SEED, progress=False, steps=DEFAULTS["scan_steps"])
    for weights in WEIGHTS if scanned.suspect == victim.target else ():
        work = Work(victim.model, victim.data.defense, None, SPC, SEED, hold_out=False, searches=True)
        tried = dict(zip(("barred", "restored"), weights, strict=True))
        unlearn_suspect(work, scanned, DEFAULTS | {"rounds": 1, **tried}, SEED, False)
        for back in BACK if weights == DEFAULT else BACK[:1]:
            model = copy.deepcopy(work.model)
            step_back(model, work.given, back)
            yield {**tried, "back": back, **victim.evaluate(model)._asdict()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    fill(OUT, measure, sys.argv[1], *sys.argv[2:] or [VICTIMS])
