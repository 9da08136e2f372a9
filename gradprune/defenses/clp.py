"""CLP: close the channels whose Lipschitz bound stands out in their layer; no data needed.

Source: Zheng et al., 2022, arXiv:2208.03111. A small trigger can change the answer only through channels that amplify
small changes much more than their neighbours do. As in the released code, channels are those of a BatchNorm, judged
together with the convolution listed before it. In a pre-activation ResNet that BatchNorm is in the next block, behind
the addition: closing its channel leaves the skip path open.
"""

import torch
from torch import Tensor, nn

from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, positive
from gradprune.defenses.result import DefenseResult
from gradprune.pruning import FilterMask, Filters, Pairs, Pruned, validate
from gradprune.pruning.filters import silent
from gradprune.pruning.loop import row


def lipschitz_bounds(model: nn.Module) -> dict[str, Tensor]:
    """By BatchNorm, upper bounds on how much each channel amplifies a change before its convolution, float (channels,).

    The bound is the largest singular value of the filter's weights as a matrix (inputs, height * width), times |scale|
    / sqrt(running variance + eps); without eps, as in the release, a dead channel hides its whole layer. A BatchNorm
    counts if the last convolution listed before it has as many channels; those of linear layers do not.
    """
    bounds, last = {}, None
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            last = module
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.BatchNorm1d) \
                and last is not None and module.affine and module.running_var is not None \
                and module.num_features == last.out_channels:
            size = torch.linalg.matrix_norm(last.weight.detach().flatten(2), ord=2)
            bounds[name] = size * module.weight.detach().abs() / (module.running_var + module.eps).sqrt()
    return bounds


def close_standing_out(model: nn.Module, found: Filters, u: float, validation: Pairs) -> Pruned:
    """Close every BatchNorm channel that stands out, in place; see `clp`."""
    mask = FilterMask(found, before=silent(model, found))
    rows, closed, bounds = [row(0, mask, validate(model, validation))], 0, lipschitz_bounds(model)
    with torch.no_grad():
        for name, bound in bounds.items():
            open_ = 1.0 - (bound > bound.mean() + u * bound.std()).to(bound)  # std with n - 1, as released
            for kind, tensor in model.get_submodule(name).named_parameters():
                if kind in ("weight", "bias"):  # a norm of the user's own may have others
                    tensor.mul_(open_)
            closed += int((open_ == 0).sum())
    rows.append(row(1, mask, validate(model, validation), channels=closed, kept=True))
    total = sum(map(len, bounds.values()))
    return Pruned(mask, rows, f"{closed} of {total} BatchNorm channels stood out and were closed")


def clp(model: nn.Module, clean: ImageSet, trigger: nn.Module | None = None, *, spc: int = 10, seed: int = 0,
        progress: bool = True, u: float = 3.0) -> DefenseResult:
    """Close every BatchNorm channel with a Lipschitz bound above mean + u * std of its layer; `trigger` is not used.

    clean: `spc` images per class are drawn, only to measure the history's figures.
    progress: not used.
    u: 3, as released. Among n channels no bound is more than (n - 1) / sqrt(n) deviations above the mean, so u = 3
        closes nothing in layers of up to 10 channels.
    A closed channel has scale and shift zero; no filter is silent, so the result's mask is empty, and `stopped` and the
    history count channels. Raises InputError for bad arguments or too few images.
    """
    positive(u=u)
    work = Work(model, clean, None, spc, seed)
    stopped = work.prune(close_standing_out, u)
    return work.result("clp", {"spc": spc, "u": u, "seed": seed}, pruned=work.model, stopped=stopped)
