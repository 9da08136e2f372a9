"""FT-distilled: the fine-tuning of recipe `verified` without any pruning, as the control of `grad_prune_verified`.

The pruning of that recipe must beat this.
"""

from torch import nn

from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work
from gradprune.defenses.result import DefenseResult
from gradprune.pruning import distilled_tune, judge


def ft_distilled(model: nn.Module, clean: ImageSet, trigger: nn.Module, *, spc: int = 10, seed: int = 0,
                 progress: bool = True) -> DefenseResult:
    """Unlearn the trigger in a copy of `model` by `distilled_tune` alone.

    clean: the defender's images, of which `spc` per class are drawn.
    trigger: float images (N, C, H, W) in [0, 1] -> the same shape and range.
    Raises InputError for bad arguments, too few images, or a loss that is not finite.
    """
    work = Work(model, clean, trigger, spc, seed)
    with work.stage("tune"):
        watch = judge(model, work.validation, work.augment, seed)
        work.history = distilled_tune(model, work.model, work.mask, work.train, work.validation, work.augment, watch,
                                      seed=seed, progress=progress)
    return work.result("ft_distilled", {"spc": spc, "seed": seed})
