"""What CIFAR-10 asks of a machine without a GPU: reading it, an epoch of the zoo's network of width 16, memory.

`python tests/benchmarks/bench_photographs.py`, with CIFAR-10 downloaded before (`gradprune data get cifar10`). The images
are read again and again in this one process, so the disk is not in the seconds, nor is the import of torch.
"""

import platform
import resource
import sys
import time

import torch

import gradprune as gp
from gradprune.zoo import PHOTOGRAPHS

IMAGES = 50_000


def load_seconds(repeats=5):
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        gp.load("cifar10")
        taken.append(time.perf_counter() - start)
    return sorted(taken)


def main():
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
          f"torch {torch.__version__}")
    gp.load("cifar10")
    low, *_, high = taken = load_seconds()
    print(f"reading CIFAR-10: {taken[len(taken) // 2]:.2f} s, range {low:.2f}..{high:.2f} (target <= 2)")
    for short in (True, False):
        victim = gp.attack(**PHOTOGRAPHS["cifar10/badnets"] | {"epochs": 1, "bfloat16": short}, progress=False)
        share = IMAGES / len(victim.data.train)
        print(f"an epoch on {IMAGES:,} images, {'bfloat16' if short else 'float32'}: {victim.seconds * share:.0f} s "
              "(target <= 90)")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
    print(f"peak memory of all this: {peak:.2f} GB (target <= 2.5)")


if __name__ == "__main__":
    main()
