"""Does the backdoor come back? Fine-tune a purified model on a few images, k of them poisoned, and measure again.

Source: Min, Qin, Zhang, Shen & Cheng, 2024, arXiv:2410.09838: models that look purified relearn their backdoor from a
handful of poisoned samples, much faster than a model that never had one. Their retuning attack, as published, uses a
small part of the training images, 5 of them replaced by poisoned ones, and SGD with momentum 0.9 and learning rate 0.01
for 5 epochs over all weights.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from gradprune.attacks.poisoning import attack_labels, poison
from gradprune.attacks.training import fit
from gradprune.base.errors import plain, require
from gradprune.datasets import ImageSet
from gradprune.evaluation.metrics import exam, measure
from gradprune.models.inference import copy_of

RECIPE: dict[str, Any] = {
    "epochs": 5,
    "batch_size": 64,      # with 200 images: 20 steps
    "max_lr": 0.01,        # peak of `fit`'s one-cycle schedule, whose mean is half of that
    "weight_decay": 0.0,
}


def relearn(model: nn.Module, train: ImageSet, test: ImageSet, trigger: nn.Module, target: int | None, *,
            label_map: str = "all_to_one", k: Sequence[int] = (5, 10, 50), seeds: Sequence[int] = (0, 1, 2),
            count: int = 200, **changes: Any) -> list[dict[str, Any]]:
    """Fine-tune copies of `model` on `count` training images, k of them poisoned; the model is not changed.

    train: the attacker's images, of which each seed draws `count`.
    trigger, target, label_map: as in `evaluate`. After a clean-label attack, too, the poisoned images get wrong labels,
        since k images with right labels teach next to nothing.
    k: how many of the drawn images get the trigger and the attacker's label, which differs from their own; 0 shows the
        effect of clean fine-tuning alone.
    seeds: one run for each.
    changes: values of `attacks.training.RECIPE`.
    Frozen weights and removed filters may change, too: whoever fine-tunes the model does not know of them.
    Returns rows (k, seed, acc, asr, ra), shares in 0..1 on `test`; the first, with k and seed None, is the given model.
    Raises InputError for a k or count out of range, a bad setting, or what `poison` and `evaluate` refuse.
    """
    require(1 <= count <= len(train), f"count must lie in 1..{len(train)}, the training images, got {count}.")
    questions = exam(test, trigger, target, label_map)
    dirty = "all_to_one" if label_map == "clean_label" else label_map
    rows: list[dict[str, Any]] = [{"k": None, "seed": None, **measure(model, questions)._asdict()}]
    for seed in seeds:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(plain(seed)))
        drawn = train.subset(order[:count].to(train.labels.device))
        others = int((attack_labels(drawn, target, dirty) != drawn.labels).sum())
        for poisoned in k:
            require(0 <= poisoned <= others, f"k must lie in 0..{others}, the drawn images whose label the attacker "
                                             f"changes, got {poisoned}.")
            images = poison(drawn, trigger, target, poisoned / count, seed, dirty).images
            tuned = copy_of(model)
            for parameter in tuned.parameters():
                parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
            fit(tuned, images, seed=seed, progress=False, **(RECIPE | changes))
            rows.append({"k": poisoned, "seed": seed, **measure(tuned, questions)._asdict()})
    return rows
