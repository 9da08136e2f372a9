"""FT: fine-tune on the few clean images; no trigger, no pruning. The baseline of every clean-data defence.

Source: the fine-tuning baseline of Liu et al., 2018, arXiv:1805.12185, section 4.2, with the published settings of
BackdoorBench (Wu et al., 2022, arXiv:2206.12654): SGD, lr 0.01 along a cosine, momentum 0.9, weight decay 5e-4.
"""

from torch import nn

from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work
from gradprune.defenses.result import DefenseResult


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
