"""Neural Cleanse: synthesise a trigger for every class, take the one that is suspiciously small, and unlearn it.

Source: Wang et al., 2019, "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks", IEEE S&P.
Search and outlier rule have the authors' released settings, but for fewer and smaller steps (theirs: up to 1000 times
31 batches of 32 per class). Unlearning: the paper shows the trigger on a fifth of the images, once through a tenth of
the training set, at its learning rate; here fine-tuning is that of `grad_prune`, with fewer steps.
"""

from typing import Any

from torch import nn

from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, passes, positive
from gradprune.defenses.result import DefenseResult
from gradprune.errors import require
from gradprune.pruning import Inversion, fine_tune, invert, outliers

FASTER: dict[str, Any] = {"steps": 100, "batch_size": 16}  # over `pruning.inversion.SEARCH`


def neural_cleanse(model: nn.Module, clean: ImageSet, trigger: nn.Module | None = None, *, spc: int = 10, seed: int = 0,
                   progress: bool = True, threshold: float = 2.0, lr: float = 1e-3, tune_steps: int = 30,
                   **search: Any) -> DefenseResult:
    """Find the backdoor's class in a copy of `model` and unlearn the trigger synthesised for it.

    `trigger` is not used: the method makes its own. clean: the defender's images, of which `spc` per class are drawn.
    threshold: the anomaly index from which a class is suspected. search: any value of `pruning.inversion.SEARCH`,
    over those of `FASTER`. lr, tune_steps: of `fine_tune`, at most, with the smallest suspected trigger and true
    labels. Where no class is suspected, the model comes back as it was, as in the paper.
    History: a row for each class (stage "invert": norm, index, success), then "tune".
    Raises InputError for bad arguments, too few images, or fewer than three classes.
    """
    positive(threshold=threshold, lr=lr, tune_steps=tune_steps)
    search = FASTER | search
    work = Work(model, clean, None, spc, seed)
    require(work.classes >= 3, f"an outlier needs at least 3 classes, the model has {work.classes}.")
    work.measure("given")
    found: list[Inversion] = []
    index: list[float] = []
    suspects: list[int] = []
    with work.stage("invert"):
        for target in range(work.classes):
            found.append(invert(work.model, work.train.clean, target, seed=seed, progress=progress, **search))
        index, suspects = outliers([inversion.norm for inversion in found], threshold)
    work.history += [{"stage": "invert", "class": target, "norm": one.norm, "success": one.success,
                      "index": index[target] if index else None} for target, one in enumerate(found)]
    stopped = "no class has a suspiciously small trigger"
    if suspects:
        stopped = f"suspected target {clean.classes[suspects[0]]!r} (anomaly index {index[suspects[0]]:.1f})"
        synthetic = found[suspects[0]].trigger
        pairs = (part._replace(triggered=synthetic(part.clean)) for part in (work.train, work.validation))
        with work.stage("tune"):
            work.history += fine_tune(work.model, work.mask, *pairs, lr=lr, seed=seed, progress=progress,
                                      max_epochs=passes(tune_steps, len(work.train.labels), 128))
    settings = {"spc": spc, "threshold": threshold, "lr": lr, "tune_steps": tune_steps, **search, "seed": seed}
    return work.result("neural_cleanse", settings, stopped=stopped)
