"""Fine-tuning alone: `ft`, the baseline of every clean-data defence, and the controls of both recipes of `grad_prune`.

Source of `ft`: the fine-tuning baseline of Liu et al., 2018, arXiv:1805.12185, section 4.2, with the published settings
of BackdoorBench (Wu et al., 2022, arXiv:2206.12654): SGD, lr 0.01 along a cosine, momentum 0.9, weight decay 5e-4.
A control is a recipe without its pruning, which the pruning must beat: `ft_unlearn` is the second half of Grad-Prune
(Dunnett et al., 2024, arXiv:2405.03918), `ft_distilled` the fine-tuning of recipe `verified`.
"""

from torch import nn

from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, known
from gradprune.defenses.result import DefenseResult
from gradprune.pruning import distilled_tune, fine_tune, judge


def ft(model: nn.Module, clean: ImageSet, trigger: nn.Module | None = None, *, spc: int = 10, seed: int = 0,
       progress: bool = True, lr: float = 0.01, steps: int = 400) -> DefenseResult:
    """Fine-tune a copy of `model` on new views of clean images and keep the last epoch; `trigger` is not used.

    clean: the defender's images, of which `spc` per class are drawn.
    lr: the initial learning rate.
    steps: of SGD, batch 128 (published: 1,000 of batch 256, on 2,500 images).
    Clean images cannot show when a backdoor is gone, so there is no early stopping, and the images that other methods
    hold out are used for training, too.
    Raises InputError for bad arguments, too few images, or a loss that is not finite.
    """
    work = Work(model, clean, None, spc, seed, hold_out=False)
    work.tune(lr=lr, steps=steps, seed=seed, progress=progress)
    return work.result("ft", {"spc": spc, "lr": lr, "steps": steps, "seed": seed})


def ft_unlearn(model: nn.Module, clean: ImageSet, trigger: nn.Module, *, spc: int = 10, seed: int = 0,
               progress: bool = True, lr: float = 1e-3, epochs: int = 100, patience: int = 10) -> DefenseResult:
    """Unlearn the trigger in a copy of `model` by fine-tuning alone, with the settings of `grad_prune`'s second half.

    clean: the defender's images, of which `spc` per class are drawn.
    trigger: float images (N, C, H, W) in [0, 1] -> the same shape and range.
    lr, epochs, patience: see `fine_tune`; the best epoch on the validation images is kept.
    Raises InputError for bad arguments, too few images, or a loss that is not finite.
    """
    work = Work(model, clean, known(trigger), spc, seed)
    with work.stage("tune"):
        work.history = fine_tune(work.model, work.mask, work.train, work.validation, lr=lr, max_epochs=epochs,
                                 patience=patience, seed=seed, progress=progress)
    return work.result("ft_unlearn", {"spc": spc, "lr": lr, "epochs": epochs, "patience": patience, "seed": seed})


def ft_distilled(model: nn.Module, clean: ImageSet, trigger: nn.Module, *, spc: int = 10, seed: int = 0,
                 progress: bool = True) -> DefenseResult:
    """Unlearn the trigger in a copy of `model` by `distilled_tune` alone.

    clean: the defender's images, of which `spc` per class are drawn.
    trigger: float images (N, C, H, W) in [0, 1] -> the same shape and range.
    Raises InputError for bad arguments, too few images, or a loss that is not finite.
    """
    work = Work(model, clean, known(trigger), spc, seed)
    with work.stage("tune"):
        watch = judge(model, work.validation, work.augment, seed)
        work.history = distilled_tune(model, work.model, work.mask, work.train, work.validation, work.augment, watch,
                                      seed=seed, progress=progress)
    return work.result("ft_distilled", {"spc": spc, "seed": seed})
