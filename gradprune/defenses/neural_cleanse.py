"""Neural Cleanse: synthesise a trigger for every class, take those that are suspiciously small, and unlearn them.

Source: Wang et al., 2019, "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks", IEEE S&P.
Search and outlier rule have the authors' released settings, except for fewer and smaller steps (theirs: up to 1000
times 31 batches of 32 per class; BackdoorBench's: up to 80 times 10 batches of 256). Unlearning is BackdoorBench's: a
fifth of the images get the trigger, all keep their true labels, and all are augmented; the learning rate is its 0.01,
along half a cosine. It makes 1,000 steps, and draws its fifth once (here it is drawn again in each pass). Held-out
images decide nothing, so the method learns from all.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradprune.base.errors import require
from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, positive
from gradprune.defenses.result import DefenseResult
from gradprune.pruning import Pairs
from gradprune.search import Inversion, invert, outliers

FASTER: dict[str, Any] = {"steps": 100, "batch_size": 16}  # over `search.inversion.SEARCH`
SHARE = 0.2  # of the images have the trigger while it is unlearned


def add_triggers(pairs: Pairs, triggers: Sequence[nn.Module], generator: torch.Generator) -> Pairs:
    """The images, a random `SHARE` of them (at least one) with a trigger, once with each trigger. Labels stay."""
    order = torch.randperm(len(pairs.labels), generator=generator).to(pairs.labels.device)
    count = max(1, round(SHARE * len(order)))
    some, rest = order[:count], order[count:]
    with torch.no_grad():
        images: list[Tensor] = [pairs.clean[rest], *(trigger(pairs.clean[some]) for trigger in triggers)]
    labels = [pairs.labels[rest], *[pairs.labels[some]] * len(triggers)]
    return pairs._replace(clean=torch.cat(images), labels=torch.cat(labels))


def neural_cleanse(model: nn.Module, clean: ImageSet, trigger: nn.Module | None = None, *, spc: int = 10, seed: int = 0,
                   progress: bool = True, threshold: float = 2.0, lr: float = 1e-2, tune_steps: int = 100,
                   **search: Any) -> DefenseResult:
    """Find the backdoor's class in a copy of `model` and unlearn the trigger synthesised for it.

    clean: the defender's images, of which `spc` per class are drawn.
    trigger: not used; the method makes its own.
    threshold: the anomaly index above which a class is suspected.
    lr, tune_steps: of the unlearning (released: 0.01, 1,000), with the trigger of each suspected class.
    search: any value of `search.inversion.SEARCH`, instead of those of `FASTER`.
    If no class is suspected, the model stays as it was, as in the paper. History: a row for each class (stage "invert":
    norm, index, success), then "tune"; its figures are measured on images that the method has learned from.
    Raises InputError for bad arguments, too few images, or fewer than three classes.
    """
    positive(threshold=threshold, lr=lr, tune_steps=tune_steps)
    search = FASTER | search
    work = Work(model, clean, None, spc, seed, hold_out=False, searches=True)
    require(work.classes >= 3, f"an outlier needs at least 3 classes, the model has {work.classes}.")
    work.measure("given")
    found, index, suspects = list[Inversion](), list[float](), list[int]()
    with work.stage("invert"):
        for target in range(work.classes):
            found.append(invert(work.model, work.train.clean, target, seed=seed, progress=progress, **search))
        index, suspects = outliers([inversion.norm for inversion in found], threshold)
    work.history += [{"stage": "invert", "class": target, "norm": one.norm, "success": one.success,
                      "index": index[target] if index else None} for target, one in enumerate(found)]
    stopped = "no class has a suspiciously small trigger"
    if suspects:
        stopped = f"suspected target {work.names[suspects[0]]!r} (anomaly index {index[suspects[0]]:.1f})"
        if len(suspects) > 1:
            stopped += " and also " + ", ".join(repr(work.names[target]) for target in suspects[1:])
        triggers = [found[target].trigger for target in suspects]
        work.tune(lr=lr, steps=tune_steps, seed=seed, progress=progress,
                  renew=lambda pairs, generator: add_triggers(work.augment(pairs, generator), triggers, generator))
    settings = {"spc": spc, "threshold": threshold, "lr": lr, "tune_steps": tune_steps, **search, "seed": seed}
    return work.result("neural_cleanse", settings, stopped=stopped)
