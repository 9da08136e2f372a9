"""How fast the panels react at the default model: the median over many updates, and what an hour of use leaves behind.

    python tests/benchmarks/bench_widgets.py [checkpoint] [updates]

A reaction is the time from a control's new value to the finished page, as the kernel sees it. CPU seconds are told
beside wall seconds: on a busy machine the first say more.
"""

import gc
import statistics
import sys
import time

import psutil
import torch

import gradprune as gp
from gradprune.views import BeatGradPrune, FilterExplorer, PruningPlayer, TriggerStudio

LIMIT = 0.3  # seconds


def updates(panel, number):
    """Values for the panel's controls, one a turn, in the order somebody would try them."""
    if isinstance(panel, TriggerStudio):
        turns = [(panel.strength, 0.1 * i) for i in range(20)] + [(panel.image, i) for i in range(20)]
        turns += [(panel.knobs[0], i) for i in range(1, 9)]
    elif isinstance(panel, PruningPlayer):
        turns = [(panel.round, i) for i in range(len(panel.rows))]
    else:
        turns = [(panel.chosen.rank, i) for i in range(1, 13)] + [(panel.chosen.index, i) for i in range(12)]
    return (turns * (1 + number // len(turns)))[:number]


def measure(panel, number):
    """Wall and CPU seconds of each update that changed something."""
    wall, cpu = [], []
    for control, value in updates(panel, number):
        if control.value != value:
            start, busy = time.perf_counter(), time.process_time()
            control.set_state({"value": value})
            wall.append(time.perf_counter() - start)
            cpu.append(time.process_time() - busy)
    return wall, cpu


def main(checkpoint="badnets", number=200):
    victim = gp.load_victim(checkpoint)
    result = gp.grad_prune(victim.model, victim.data.defense, victim.trigger, tune=False, progress=False)
    print(f"{checkpoint}, {torch.get_num_threads()} threads, load {psutil.getloadavg()[0]:.1f}, {number} updates each")
    print(f"{'panel':<16}{'open':>8}{'median':>9}{'slowest tenth':>15}{'CPU median':>12}{'memory':>10}")
    slow = []
    for kind in (TriggerStudio, FilterExplorer, PruningPlayer, BeatGradPrune):
        start = time.perf_counter()
        panel = kind(victim, result) if kind is PruningPlayer else kind(victim)
        opened = time.perf_counter() - start
        measure(panel, 20)
        gc.collect()
        before = psutil.Process().memory_info().rss
        wall, cpu = measure(panel, number)
        gc.collect()
        grown = (psutil.Process().memory_info().rss - before) / 2**20
        median, tenth = statistics.median(wall), statistics.quantiles(wall, n=10)[-1]
        print(f"{kind.__name__:<16}{opened:>6.2f} s{median:>7.3f} s{tenth:>13.3f} s{statistics.median(cpu):>10.3f} s"
              f"{grown:>+7.1f} MB")
        if statistics.median(wall) > LIMIT:
            slow.append(kind.__name__)
        panel.close()
    print(f"limit: median under {LIMIT} s. " + (f"Too slow: {', '.join(slow)}." if slow else "All inside."))
    return bool(slow)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2], *map(int, sys.argv[2:3])))
