"""Limits for untrusted settings and files: a tensor that exceeds them is never allocated."""

from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gradprune.base.errors import require

SMALL = 150_000_000  # numbers that any network may hold (600 MB)
_TENSORS = 20_000    # tensors in a network; the largest known ones have a few thousand
_MAKERS = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}


def in_proportion(weights: Path) -> int:
    """How many numbers a network with this file of weights may hold: as many as the file has bytes, or `SMALL`."""
    return max(SMALL, weights.stat().st_size if weights.is_file() else 0)


class AtMost(TorchFunctionMode):
    """A context (`with`) in which new tensors may hold this many numbers in all; None for no limit.

    Raises InputError if more are requested, before the memory is allocated.
    """

    def __init__(self, numbers: int | None) -> None:
        super().__init__()
        self.left, self.tensors = numbers, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the numbers of a tensor that is about to be made from a shape, then make it."""
        if self.left is not None and func in _MAKERS:
            shape = args[0] if args and isinstance(args[0], list | tuple) else args
            self.left, self.tensors = self.left - prod(shape), self.tensors + 1
            require(self.left >= 0 and self.tensors <= _TENSORS,
                    "the settings ask for far more numbers than the file of weights has bytes.")
        return func(*args, **(kwargs or {}))


class Within(TorchDispatchMode):
    """A context (`with`) in which no tensor may extend beyond its storage.

    torch enlarges the storage to whatever the tensor claims, which in a file can be any number.
    Raises InputError before the memory is allocated.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Check where the tensor's last number would be, then run the operation."""
        if func is torch.ops.aten.set_.source_Storage_storage_offset:
            tensor, storage, offset, size, *stride = args  # without strides the numbers are contiguous
            last = (sum((count - 1) * step for count, step in zip(size, *stride, strict=True)) if stride
                    else prod(size) - 1)
            require(prod(size) == 0 or (offset + last + 1) * tensor.element_size() <= storage.nbytes(),
                    "a tensor in it lies where there are no numbers.")
        return func(*args, **(kwargs or {}))
