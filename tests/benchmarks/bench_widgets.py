"""How fast the panels react at the default model: the median over many updates, and what an hour of use leaves behind.

    python tests/benchmarks/bench_widgets.py [checkpoint] [updates]

A reaction is the time from a control's new value to the finished page, as the kernel sees it. CPU seconds are told
beside wall seconds: on a busy machine the first say more.
"""

import gc
import statistics
import sys
import time

import ipywidgets as widgets
import psutil
import torch

import gradprune as gp
from gradprune.base.paths import data_folder
from gradprune.bench import read_results
from gradprune.views import BeatGradPrune, DefenceComparer, FilterExplorer, PruningPlayer, TriggerStudio

LIMIT = 0.3  # seconds


def updates(panel, number):
    """Values for the panel's controls, one a turn, in the order somebody would try them."""
    if isinstance(panel, TriggerStudio):
        turns = [(panel.strength, 0.1 * i) for i in range(20)] + [(panel.image, i) for i in range(20)]
        turns += [(panel.knobs[0], i) for i in range(1, 9)]
    elif isinstance(panel, PruningPlayer):
        rounds = range(min(len(run.rows) for run in panel.runs.values()))
        turns = [turn for i in rounds for turn in ((panel.recipe, list(panel.runs)[i % len(panel.runs)]), (panel.round, i))]
    elif isinstance(panel, DefenceComparer):
        turns = [(control, value) for control in (panel.attack, panel.metric, panel.spc, panel.sort)
                 for _, value in [*control.options[1:], control.options[0]]]
    elif isinstance(panel, BeatGradPrune):
        turns = [(panel.map.cells, str(panel.found[place])) for place in panel.order[:24]]
    else:
        turns = [(panel.chosen.rank, i) for i in range(1, 25)]
    return (turns * (1 + number // len(turns)))[:number]


def put(control, value):
    """Set a control the way the browser does: a choice by the value's place."""
    if isinstance(control, widgets.ToggleButtons | widgets.SelectionSlider):
        options = [option[1] if isinstance(option, tuple) else option for option in control.options]
        control.set_state({"index": options.index(value)})
    else:
        control.set_state({"value": value})


def measure(panel, number):
    """Wall and CPU seconds of each update that changed something."""
    wall, cpu = [], []
    for control, value in updates(panel, number):
        if control.value != value:
            start, busy = time.perf_counter(), time.process_time()
            put(control, value)
            wall.append(time.perf_counter() - start)
            cpu.append(time.process_time() - busy)
    return wall, cpu


def panels(checkpoint):
    """Name and maker of each panel, in the states that cost most."""
    victim = gp.load_victim(checkpoint)
    runs = {recipe: gp.grad_prune(victim.model, victim.data.defense, victim.trigger, recipe=recipe, tune=False,
                                  progress=False) for recipe in ("paper", "verified")}

    def trials():
        panel = FilterExplorer(victim)
        put(panel.below, True)
        return panel

    def recipes():
        panel = PruningPlayer(victim, runs["paper"])
        panel.runs["verified"] = panel.replay_run(runs["verified"])
        return panel

    yield "TriggerStudio", lambda: TriggerStudio(victim)
    yield "FilterExplorer", lambda: FilterExplorer(victim)
    yield "  its trials", trials
    yield "PruningPlayer", lambda: PruningPlayer(victim, runs["paper"])
    yield "  both recipes", recipes
    yield "BeatGradPrune", lambda: BeatGradPrune(victim)
    yield "DefenceComparer", lambda: DefenceComparer(read_results(data_folder() / "results" / "signs"))


def main(checkpoint="badnets", number=200):
    print(f"{checkpoint}, {torch.get_num_threads()} threads, load {psutil.getloadavg()[0]:.1f}, {number} updates each")
    print(f"{'panel':<16}{'open':>8}{'CPU':>9}{'median':>9}{'slowest tenth':>15}{'CPU median':>12}{'memory':>10}")
    slow = []
    for name, make in panels(checkpoint):
        start, busy = time.perf_counter(), time.process_time()
        panel = make()
        opened, paid = time.perf_counter() - start, time.process_time() - busy
        measure(panel, 20)
        gc.collect()
        before = psutil.Process().memory_info().rss
        wall, cpu = measure(panel, number)
        gc.collect()
        grown = (psutil.Process().memory_info().rss - before) / 2**20
        median, tenth = statistics.median(wall), statistics.quantiles(wall, n=10)[-1]
        print(f"{name:<16}{opened:>6.2f} s{paid:>7.2f} s{median:>7.3f} s{tenth:>13.3f} s{statistics.median(cpu):>10.3f} s"
              f"{grown:>+7.1f} MB", flush=True)
        if median > LIMIT:
            slow.append(name.strip())
        panel.close()
    print(f"limit: median under {LIMIT} s. " + (f"Too slow: {', '.join(slow)}." if slow else "All inside."))
    return bool(slow)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2], *map(int, sys.argv[2:3])))
