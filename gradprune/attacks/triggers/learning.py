"""Fit a trigger's own tensors to images: the optimisation loop that the learned triggers share."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def descend(tensors: Sequence[nn.Parameter], loss: Callable[[Tensor], Tensor], images: Tensor, *, steps: int,
            lr: float, seed: int = 0, batch_size: int = 64) -> None:
    """Minimise `loss(batch)` over `tensors` in place by Adam; nothing else gets a gradient.

    images: float (N, C, H, W) in [0, 1], at least one.
    seed: which `batch_size` images each step draws.
    The tensors' requires_grad is off afterwards: except to its attack, a trigger is a constant.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(tensors, lr=lr)
    try:
        for tensor in tensors:
            tensor.requires_grad_(True)
        for _ in range(steps):
            batch = torch.randperm(len(images), generator=generator)[:batch_size].to(images.device)
            gradients = torch.autograd.grad(loss(images[batch]), tensors)
            for tensor, gradient in zip(tensors, gradients, strict=True):
                tensor.grad = gradient
            optimizer.step()
    finally:
        for tensor in tensors:
            tensor.requires_grad_(False)
            tensor.grad = None
