"""Fine-Pruning: close the features that are dormant on clean images, then fine-tune.

Source: Liu, Dolan-Gavitt & Garg, 2018, arXiv:1805.12185. A backdoor hides in features that clean images do not
activate. The inputs of the last linear layer are pruned one by one, as in BackdoorBench (Wu et al., 2022,
arXiv:2206.12654), whose settings are used except for the number of steps. BackdoorBench measures the lost accuracy on
the test set; here it is measured on views of the held-out images.
"""

import copy
import math
from typing import Any

from torch import Tensor, nn

from gradprune.base.errors import require
from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, logit_layer, positive, sgd_then
from gradprune.defenses.result import DefenseResult
from gradprune.pruning import FilterMask, Filters, Pairs, Pruned, validate
from gradprune.pruning.filters import silent
from gradprune.pruning.loop import check_limits, row

DEFAULTS: dict[str, Any] = {
    "alpha": 0.10,  # share of the given model's clean accuracy at which pruning ends
    "once": 0.01,   # share of the features closed between two measurements, at least one feature
    "lr": 0.01,     # of the fine-tuning: SGD, momentum 0.9, weight decay 5e-4, half a cosine, new views
    "steps": 400,   # released: 1,000, 100 epochs over 2,500 images in batches of 256
}


def close_features(model: nn.Module, found: Filters, layer: nn.Linear, order: Tensor, validation: Pairs, *,
                   alpha: float, once: float) -> Pruned:
    """Close features in `order`, in place, until validation accuracy has fallen by the share `alpha`.

    A closed feature has zero weights in `layer`; one always stays open. History rows count closed features as
    `channels`; the row that was taken says `kept`. Ctrl-C takes the last one measured.
    """
    mask, given = FilterMask(found, before=silent(model, found)), layer.weight.detach().clone()
    stride = math.ceil(once * len(order))
    rows, interrupted = [row(0, mask, validate(model, validation), channels=0)], False
    kept = start = rows[0]
    try:
        for count in range(stride, len(order), stride):
            layer.weight.data[:, order[:count]] = 0
            rows.append(row(count // stride, mask, validate(model, validation), channels=count))
            if rows[-1]["val_acc"] <= (1 - alpha) * start["val_acc"]:
                break
            kept = rows[-1]
    except KeyboardInterrupt:
        interrupted = True
    kept["kept"], closed = True, kept["channels"]
    layer.weight.data.copy_(given)
    layer.weight.data[:, order[:closed]] = 0
    return Pruned(mask, rows, f"{closed} of {len(order)} features of the last layer were closed", interrupted)


def fine_pruning(model: nn.Module, clean: ImageSet, trigger: nn.Module | None = None, *, spc: int = 10, seed: int = 0,
                 progress: bool = True, alpha: float = DEFAULTS["alpha"], once: float = DEFAULTS["once"],
                 lr: float = DEFAULTS["lr"], steps: int = DEFAULTS["steps"]) -> DefenseResult:
    """Close dormant features of a copy of `model`, then fine-tune it; `trigger` is not used.

    clean: the defender's images, of which `spc` per class are drawn.
    alpha, once, lr, steps: see `DEFAULTS`.
    Closed features stay closed. No filter is silent, so the result's mask is empty, and `stopped` counts features.
    Raises InputError for bad arguments, too few images, a loss that is not finite, or a model whose last
    layer is not linear.
    """
    positive(alpha=alpha, once=once, lr=lr, steps=steps)
    check_limits(alpha)
    require(once <= 1, f"once must lie in 0..1, got {once}.")
    work = Work(model, clean, None, spc, seed)
    layer, inputs = logit_layer(work.model, work.train.clean)
    work.validation = work.augment.add_to(work.validation, seed)
    order = inputs.mean(0).argsort(stable=True)
    stopped = work.prune(close_features, layer, order, alpha=alpha, once=once)
    closed = order[:next((one["channels"] for one in work.history if one.get("kept")), 0)]
    pruned = copy.deepcopy(work.model)

    def close_again() -> None:
        layer.weight.data[:, closed] = 0

    if not work.interrupted:
        work.tune(lr=lr, steps=steps, seed=seed, progress=progress, optimizer=sgd_then(close_again))
    settings = {"spc": spc, "alpha": alpha, "once": once, "lr": lr, "steps": steps, "seed": seed}
    return work.result("fine_pruning", settings, pruned=pruned, stopped=stopped)
