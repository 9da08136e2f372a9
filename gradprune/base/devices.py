"""Where models run (on a GPU if there is one), and what to do when memory runs out."""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from tqdm.auto import tqdm

from gradprune.base.errors import InputError, require

Result = TypeVar("Result")
CPU = torch.device("cpu")

# How many devices of each kind there are; "auto" takes the first kind with at least one.
DEVICES: dict[str, Callable[[], int]] = {
    "cuda": lambda: torch.cuda.device_count() if torch.cuda.is_available() else 0,
    "mps": lambda: int(torch.backends.mps.is_available()),
    "cpu": lambda: 1,
}


def choose_device(name: str = "auto") -> torch.device:
    """The device of this name: "cpu", "cuda", "cuda:1" or "mps"; "auto" takes CUDA, then MPS, then the CPU.

    Raises InputError for a device that does not exist.
    """
    there = {kind: count() for kind, count in DEVICES.items()}
    if name == "auto":
        name = next(kind for kind, count in there.items() if count)
    kind, colon, number = name.partition(":")
    if kind not in DEVICES or (colon and not number.isdecimal()):
        raise InputError(f"Unknown device {name!r}; known: auto, {', '.join(DEVICES)}.")
    found = ", ".join(kind if count == 1 else f"{kind}:0 to {count - 1}" for kind, count in there.items() if count)
    require(int(number or 0) < there[kind], f"there is no device {name!r} here; there is {found}.")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """The name of a device: the model of a GPU, otherwise just the kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes with bfloat16 itself: GPUs do; a CPU without it emulates it, 12 times as slowly."""
    return device.type != "cpu" or (torch.backends.mkldnn.is_available()
                                    and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread: sums over several threads differ in the last bits, and so would results."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Draw the CPU's and this device's random numbers from `seed`, then go on where they were.

    Unlike `torch.manual_seed`, it leaves those of other devices alone.
    """
    gpu: Any = {"cuda": torch.cuda, "mps": torch.mps}.get(device.type)
    with torch.random.fork_rng(devices=[]), torch.cuda.device(device) if gpu is torch.cuda else nullcontext():
        torch.default_generator.manual_seed(int(seed))
        state = gpu and gpu.get_rng_state()
        try:
            if gpu:
                gpu.manual_seed(int(seed))
            yield
        finally:
            if gpu:
                gpu.set_rng_state(state)


def keep_freed_memory() -> None:
    """Let glibc keep up to 2 GB of freed memory for the next tensors, whatever MALLOC_TRIM_THRESHOLD_ says.

    Dask sets that to 64 KB in its workers. Then nearly every freed tensor goes back to the system and is faulted in
    again: a bench cell takes 2.3 times as long. Does nothing if the C library is not glibc.
    """
    if sys.platform == "linux" and (tune := getattr(ctypes.CDLL(None), "mallopt", None)):
        tune(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        tune(-3, 32 << 20)   # M_MMAP_THRESHOLD, the highest it takes


def halving(work: Callable[[int], Result], batch_size: int) -> Result:
    """Return `work(batch_size)`; if memory runs out, try once more with half the batch and say so on stderr.

    Raises InputError if memory runs out again.
    """
    half = max(1, batch_size // 2)
    try:
        return work(batch_size)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    torch.cuda.empty_cache()  # not inside `except`: there the exception still holds the tensors of its frames
    tqdm.write(f"Out of memory with batches of {batch_size} images; going on with {half}.", file=sys.stderr)
    try:
        return work(half)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise InputError(f"there is not enough memory for batches of {batch_size} images, nor for {half}; take smaller "
                         "batches, a smaller model or another device.") from None


def out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out, on the GPU or the computer; torch reports this in several ways."""
    message = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in message for words in ("out of memory", "allocate memory", "not enough memory"))
