"""Fine-Pruning: remove the filters that sleep on clean images, then fine-tune.

Source: Liu, Dolan-Gavitt & Garg, 2018, arXiv:1805.12185. A backdoor hides in filters that clean images do not wake.
Settings of the fine-tuning and `alpha` are those published by BackdoorBench (Wu et al., 2022, arXiv:2206.12654).
Pruned is the last convolution, as in the paper; where a shortcut is added to its output, the shortcut stays.
"""

import copy

import torch
from torch import Tensor, nn

from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work
from gradprune.defenses.result import DefenseResult
from gradprune.models.inference import evaluating
from gradprune.pruning import Filters, in_order


def activity(model: nn.Module, found: Filters, images: Tensor) -> tuple[Tensor, list[int]]:
    """How much each filter of the last convolution answers to `images`, after its BatchNorm if it has one and a ReLU.

    images: float (N, C, H, W). Returns (mean activation, float (number of filters,), zero for those of other layers;
    the positions of the last convolution, by order of execution).
    """
    answers: dict[str, Tensor] = {}

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def keep(_: nn.Module, __: object, output: Tensor) -> None:
            answers.pop(name, None)  # so that the order is that of the last call
            answers[name] = output.relu().mean((0, 2, 3))
        return model.get_submodule(name).register_forward_hook(keep)

    hooks = [watch(layer.norm or layer.name) for layer in found.layers]
    try:
        with evaluating(model), torch.inference_mode():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    last = next(layer for layer in found.layers if (layer.norm or layer.name) == list(answers)[-1])
    means = torch.zeros(len(found))
    positions = list(range(last.start, last.start + last.count))
    means[positions] = answers[last.norm or last.name].cpu()
    return means, positions


def fine_pruning(model: nn.Module, clean: ImageSet, trigger: nn.Module | None = None, *, spc: int = 10, seed: int = 0,
                 progress: bool = True, alpha: float = 0.10, lr: float = 0.01, steps: int = 50) -> DefenseResult:
    """Remove sleeping filters of the last convolution from a copy of `model`, then fine-tune; `trigger` is not used.

    clean: the defender's images, of which `spc` per class are drawn. alpha: pruning ends before clean validation
    accuracy has fallen by this much, as in the other defences that rank filters (the paper: 4 points, which with fewer
    than 25 validation images would allow no mistake at all). lr, steps: as for `ft`.
    Raises InputError for bad arguments, too few images, or a loss that is not finite.
    """
    work = Work(model, clean, None, spc, seed)
    means, positions = activity(work.model, work.found, work.train.clean)
    order = sorted(positions, key=lambda position: float(means[position]))[:-1]  # one filter must stay
    stopped = work.prune(in_order, order, means, alpha=alpha, progress=progress)
    pruned = copy.deepcopy(work.model)
    if not work.interrupted:
        work.tune(lr=lr, steps=steps, seed=seed, progress=progress)
    settings = {"spc": spc, "alpha": alpha, "lr": lr, "steps": steps, "seed": seed}
    return work.result("fine_pruning", settings, pruned=pruned, stopped=stopped)
