"""CLP: remove the channels whose Lipschitz bound stands out in their layer; no data needed.

Source: Zheng et al., 2022, arXiv:2208.03111. A small trigger can flip the answer only through channels that amplify
small changes much more than their neighbours do. The released code takes any BatchNorm that is listed after a
convolution for the one it feeds; here it must really feed it, or the weights alone count.
"""

import torch
from torch import Tensor, nn

from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, positive
from gradprune.defenses.result import DefenseResult
from gradprune.pruning import Filters, in_order


def lipschitz_bounds(model: nn.Module, found: Filters) -> Tensor:
    """Upper bound on how much each filter amplifies a change of its input, float (number of filters,).

    The largest singular value of the filter's weights as a matrix (inputs, height * width), times
    |scale| / sqrt(running variance + eps) of the BatchNorm that follows one-to-one, where there is one.
    """
    bounds = []
    for layer in found.layers:
        weight = model.get_submodule(layer.name).weight.detach()  # type: ignore[operator]
        bound = torch.linalg.matrix_norm(weight.flatten(2), ord=2)
        norm = model.get_submodule(layer.norm) if layer.norm else None
        if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
            bound = bound * norm.weight.detach().abs() / (norm.running_var + norm.eps).sqrt()
        bounds.append(bound.cpu())
    return torch.cat(bounds)


def deviations(bounds: Tensor, found: Filters) -> Tensor:
    """Each filter's distance from the mean of its layer, in standard deviations of the layer (population)."""
    layers = bounds.split([layer.count for layer in found.layers])
    return torch.cat([(part - part.mean()) / part.std(correction=0).clamp_min(1e-12) for part in layers])


def clp(model: nn.Module, clean: ImageSet, trigger: nn.Module | None = None, *, spc: int = 10, seed: int = 0,
        progress: bool = True, u: float | None = 3.0, alpha: float = 0.10) -> DefenseResult:
    """Remove every filter with a Lipschitz bound above mean + u * std of its layer; `trigger` is not used.

    u: the paper's 3 for CIFAR-10; then `spc` clean images per class only measure, and nothing depends on them. With
    u=None the images choose it: filters go in order of their deviation, down to 1, until clean validation accuracy
    would have fallen by `alpha`; the history shows the whole curve. (In a layer of n filters no deviation exceeds
    sqrt(n - 1), so u = 3 removes nothing from layers of up to 10 filters.)
    Raises InputError for bad arguments or too few images.
    """
    positive(u=1.0 if u is None else u)
    work = Work(model, clean, None, spc, seed)
    distance = deviations(lipschitz_bounds(work.model, work.found), work.found)
    above = torch.nonzero(distance > (1.0 if u is None else u)).flatten().tolist()
    order = sorted(above, key=lambda position: -float(distance[position]))
    stopped = work.prune(in_order, order, distance, alpha=alpha if u is None else None, progress=progress)
    return work.result("clp", {"spc": spc, "u": u, "alpha": alpha, "seed": seed}, pruned=work.model, stopped=stopped)
