"""What a model costs: parameters, multiply-adds, seconds."""

import time
from statistics import median

from torch import Tensor, nn

from gradprune.models.inference import predict


def parameters(model: nn.Module) -> int:
    """The number of learned parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, image: Tensor) -> int:
    """Multiply-adds of the convolutions and matrix products for one image, float (1, C, H, W)."""
    from torch.utils.flop_counter import FlopCounterMode  # late: the import takes a third of a second
    with FlopCounterMode(display=False) as counter:
        predict(model, image)
    return int(counter.get_total_flops()) // 2


def timed(before: nn.Module, after: nn.Module, images: Tensor, repeats: int = 15) -> tuple[float, float]:
    """Median seconds of two models' forward passes over float images (N, C, H, W), measured alternately."""
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(repeats + 1):
        for model, times in zip((before, after), seconds, strict=True):
            start = time.perf_counter()
            predict(model, images)
            times.append(time.perf_counter() - start)
    return median(seconds[0][1:]), median(seconds[1][1:])  # the first pass warms up
