"""FT-SAM: fine-tune on clean images with sharpness-aware steps, which shrink the large weights that carry a backdoor.

Source: Zhu et al., 2023, arXiv:2304.11823; the adaptive step is that of Kwon et al., 2021, arXiv:2102.11600. Settings
are those published by BackdoorBench (Wu et al., 2022, arXiv:2206.12654) for CIFAR-10, without its label smoothing of
0.1, which it leaves out for traffic signs (there, rho is 8).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, positive
from gradprune.defenses.result import DefenseResult


class SharpnessAware(torch.optim.SGD):
    """SGD with the gradient at the worst point nearby: at w + e, with e = rho * T^2 g / |T g|, T = |w|.

    BatchNorm's statistics in `model` change only in the pass at w.
    """

    def __init__(self, parameters: Any, rho: float, model: nn.Module, **settings: Any) -> None:
        super().__init__(parameters, **settings)
        self.rho = rho
        self.weights: list[Tensor] = [weight for group in self.param_groups for weight in group["params"]
                                      if weight.requires_grad]
        self.norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    def perturbation(self) -> list[Tensor]:
        """The step e for each parameter's current gradient; |e / T| = rho over all of them (Euclidean norm)."""
        scaled = [torch.zeros_like(weight) if weight.grad is None else weight.detach().abs() * weight.grad
                  for weight in self.weights]
        norm = torch.stack([value.norm() for value in scaled]).norm() + 1e-12
        return [self.rho * weight.detach().abs() * value / norm
                for weight, value in zip(self.weights, scaled, strict=True)]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take two gradients: at w to find the worst point, and there for the step from w."""
        assert closure is not None  # `fine_tune` always passes one
        with torch.enable_grad():
            loss = closure()
        before = [weight.clone() for weight in self.weights]
        for weight, shift in zip(self.weights, self.perturbation(), strict=True):
            weight.add_(shift)
        tracked = [norm for norm in self.norms if norm.track_running_stats]
        try:
            for norm in tracked:
                norm.track_running_stats = False
            with torch.enable_grad():
                closure()
        finally:
            for norm in tracked:
                norm.track_running_stats = True
        for weight, value in zip(self.weights, before, strict=True):
            weight.copy_(value)
        super().step()
        return loss


def ft_sam(model: nn.Module, clean: ImageSet, trigger: nn.Module | None = None, *, spc: int = 10, seed: int = 0,
           progress: bool = True, rho: float = 2.0, lr: float = 0.01, steps: int = 400) -> DefenseResult:
    """Fine-tune a copy of `model` with sharpness-aware steps and keep the last epoch; `trigger` is not used.

    clean: the defender's images, of which `spc` per class are drawn.
    rho: the radius of the perturbation, in units of the weights.
    lr, steps: as for `ft`; a step costs as much as two there.
    Raises InputError for bad arguments, too few images, or a loss that is not finite.
    """
    positive(rho=rho)
    work = Work(model, clean, None, spc, seed, hold_out=False)
    work.tune(lr=lr, steps=steps, seed=seed, progress=progress,
              optimizer=partial(SharpnessAware, rho=rho, model=work.model))
    return work.result("ft_sam", {"spc": spc, "rho": rho, "lr": lr, "steps": steps, "seed": seed})
