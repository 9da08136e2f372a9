"""What CIFAR-10 asks of a machine without a GPU: reading it, an epoch of the zoo's network of width 16, memory.

`python tests/benchmarks/bench_photographs.py`, with CIFAR-10 downloaded before (`gradprune data get cifar10`). The images
are read again and again in this one process, so the disk is not in the seconds, nor is the import of torch.
"""

import resource

from bench_core import machine, peak_memory, seconds

import gradprune as gp
from gradprune.victims.zoo import PHOTOGRAPHS

IMAGES = 50_000


def main():
    print(machine())
    gp.load("cifar10")
    low, _, middle, _, high = sorted(seconds(lambda: gp.load("cifar10")) for _ in range(5))
    print(f"reading CIFAR-10: {middle:.2f} s, range {low:.2f}..{high:.2f} (target <= 2)")
    for short in (True, False):
        victim = gp.attack(**PHOTOGRAPHS["cifar10/badnets"] | {"epochs": 1, "bfloat16": short}, progress=False)
        share = IMAGES / len(victim.data.train)
        print(f"an epoch on {IMAGES:,} images, {'bfloat16' if short else 'float32'}: {victim.seconds * share:.0f} s "
              "(target <= 90)")
    print(f"peak memory of all this: {peak_memory(resource.RUSAGE_SELF):.2f} GB (target <= 2.5)")


if __name__ == "__main__":
    main()
