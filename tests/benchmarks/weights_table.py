"""How much should the suspect weigh in what `repair` unlearns, and does a step back help then?

One round each, on tuning models alone. `repair` weighs all classes alike (1 and 1).

    python tests/benchmarks/weights_table.py FOLDER [victims]     # about five minutes of a core for each, 25 with 43 classes

FOLDER: that of tuning_models.py. Writes data/results/weights.csv: ACC, ASR and RA of each victim as given and after one
round of unlearning, by the weights of KL_suspect (`barred`) and KL_others (`restored`); with 2 and 0.2 also after each
share `back` of the way back to the given weights. What is unlearned is the same in all. One thread, defence seed 100,
ten images.
"""

import copy
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from strength_table import BACK, SEED, SPC, fill
from tuning_models import tuning_victim

from gradprune.defenses import unlearning
from gradprune.defenses.common import Work
from gradprune.defenses.consistency import step_back
from gradprune.defenses.repair import DEFAULTS
from gradprune.defenses.scan import scan
from gradprune.pruning import Distilled

OUT = Path(__file__).resolve().parents[2] / "data/results/weights.csv"
VICTIMS = "photo_resnet_low_frequency_11,photo_resnet_badnets_11,photo_vgg_badnets_11,gtsrb_low_frequency_11"
WEIGHTS = ((1.0, 1.0), (1.0, 0.0), (2.0, 0.2), (2.0, 0.6))
STEPPED_BACK = (2.0, 0.2)


class Weighted(Distilled):
    """`barred` KL_suspect(g(x) || f(T(x))) + `restored` KL_others(g(x) || f(T(x))) + 3 KL(g(x) || f(x))."""

    def __init__(self, given, suspect, barred, restored):
        super().__init__(given)
        self.suspect, self.barred, self.restored = suspect, barred, restored

    def between(self, logits, wanted):
        clean, changed = logits.log_softmax(1).split(len(wanted))
        suspect = divergence(*map(self.suspect_or_not, (wanted, changed)))
        others = divergence(wanted, changed) - suspect
        return self.barred * suspect + self.restored * others + self.weight * divergence(wanted, clean)

    def suspect_or_not(self, answers):
        """Log-probabilities (N, classes) -> (N, 2), of the suspect and of all others together."""
        others = answers[:, torch.arange(answers.shape[1]) != self.suspect]
        return torch.stack([answers[:, self.suspect], others.logsumexp(1)], dim=1)


def divergence(wanted, now):
    """KL(wanted || now), the mean over the rows of log-probabilities."""
    return F.kl_div(now, wanted, log_target=True, reduction="batchmean")


def measure(folder, kind, training):
    """The rows of one victim; none but the given model's if the scan suspects no class."""
    victim = tuning_victim(folder, kind, training)
    yield {"barred": 0, "restored": 0, "back": 0, **victim.evaluate(victim.model)._asdict()}
    scanned = scan(victim.model, victim.data.defense, spc=SPC, seed=SEED, progress=False, steps=DEFAULTS["scan_steps"])
    for weights in WEIGHTS if scanned.suspect == victim.target else ():
        work = Work(victim.model, victim.data.defense, None, SPC, SEED, hold_out=False, searches=True)
        unlearning.Distilled = partial(Weighted, suspect=scanned.suspect, barred=weights[0], restored=weights[1])
        unlearning.unlearn_suspect(work, scanned, DEFAULTS | {"rounds": 1}, SEED, False)
        for back in BACK if weights == STEPPED_BACK else BACK[:1]:
            model = copy.deepcopy(work.model)
            step_back(model, work.given, back)
            yield {"barred": weights[0], "restored": weights[1], "back": back, **victim.evaluate(model)._asdict()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    fill(OUT, measure, sys.argv[1], *sys.argv[2:] or [VICTIMS])
