"""FT-unlearn: fine-tune on clean images and their triggered copies with true labels; no pruning.

This is the second half of Grad-Prune alone (Dunnett et al., 2024, arXiv:2405.03918), which pruning must beat.
"""

from torch import nn

from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work
from gradprune.defenses.result import DefenseResult
from gradprune.pruning import fine_tune


def ft_unlearn(model: nn.Module, clean: ImageSet, trigger: nn.Module, *, spc: int = 10, seed: int = 0,
               progress: bool = True, lr: float = 1e-3, epochs: int = 100, patience: int = 10) -> DefenseResult:
    """Unlearn the trigger in a copy of `model` by fine-tuning alone, with the settings of `grad_prune`'s second half.

    clean: the defender's images, of which `spc` per class are drawn.
    trigger: float images (N, C, H, W) in [0, 1] -> the same shape and range.
    lr, epochs, patience: see `fine_tune`; the best epoch on the validation images is kept.
    Raises InputError for bad arguments, too few images, or a loss that is not finite.
    """
    work = Work(model, clean, trigger, spc, seed)
    with work.stage("tune"):
        work.history = fine_tune(work.model, work.mask, work.train, work.validation, lr=lr, max_epochs=epochs,
                                 patience=patience, seed=seed, progress=progress)
    return work.result("ft_unlearn", {"spc": spc, "lr": lr, "epochs": epochs, "patience": patience, "seed": seed})
