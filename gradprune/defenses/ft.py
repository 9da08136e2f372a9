"""FT: fine-tune on the few clean images; no trigger, no pruning. The baseline of every clean-data defence.

Source: the fine-tuning baseline of Liu et al., 2018, arXiv:1805.12185, section 4.2.
"""

from torch import nn

from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work
from gradprune.defenses.result import DefenseResult
from gradprune.pruning import clean_loss, fine_tune


def ft(model: nn.Module, clean: ImageSet, trigger: nn.Module | None = None, *, spc: int = 10, seed: int = 0,
       progress: bool = True, lr: float = 0.01, epochs: int = 100) -> DefenseResult:
    """Fine-tune a copy of `model` on clean images alone and keep the last epoch; `trigger` is not used.

    clean: the defender's images, of which `spc` per class are drawn. lr, epochs: of SGD with momentum 0.9, weight decay
    5e-4, batch 128. Nothing measurable on clean images tells when a backdoor is gone, so there is no early stopping.
    Raises InputError for bad arguments, too few images, or a loss that is not finite.
    """
    work = Work(model, clean, None, spc, seed)
    with work.stage("tune"):
        work.history = fine_tune(work.model, work.mask, work.train, work.validation, loss=clean_loss, lr=lr,
                                 max_epochs=epochs, seed=seed, progress=progress)
    return work.result("ft", {"spc": spc, "lr": lr, "epochs": epochs, "seed": seed})
