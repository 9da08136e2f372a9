"""Speed and memory of the main job: `make bench`. Ratios come from alternating runs in this one process.

Seconds differ from machine to machine and from minute to minute; the ratios and the table of results should not.
"""

import copy
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from statistics import median

import torch

import gradprune as gp
from gradprune.datasets import draw_defense_images
from gradprune.defenses.grad_prune import grad_prune_paper
from gradprune.defenses.scan import scan
from gradprune.evaluation.metrics import BATCH
from gradprune.models import evaluating, predict
from gradprune.pruning import Augment, pair_up, paper, unlearning_loss, verified


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def round_ratio(victim, spc, repeats=7):
    """Cost of a pruning round over one forward+backward on the training part + one forward on the validation part."""
    train, validation = (pair_up(part, victim.trigger) for part in draw_defense_images(victim.data.defense, spc))
    found = gp.filters(victim.model, train.clean[:1])
    model = copy.deepcopy(victim.model)
    parameters = [parameter.requires_grad_(True) for parameter in model.parameters()]

    def baseline():
        with evaluating(model):
            torch.autograd.grad(unlearning_loss(model, train.triggered, train.labels), parameters)
            with torch.no_grad():
                model(validation.clean)

    ratios = []
    for _ in range(repeats):
        rounds = []
        whole = seconds(lambda: rounds.extend(paper(copy.deepcopy(victim.model), found, train, validation, alpha=1.0,
                                                    progress=False).history))
        floor = seconds(lambda: [baseline() for _ in range(len(rounds) - 1)])
        ratios.append(whole / floor)
    return median(ratios), min(ratios), max(ratios)


def verified_ratio(victim, spc, repeats=5):
    """Cost of a round of recipe `verified`, k = 16, over a round of `paper`; and the seconds of its whole pruning."""
    train, validation = (pair_up(part, victim.trigger) for part in draw_defense_images(victim.data.defense, spc))
    found, views = gp.filters(victim.model, train.clean[:1]), Augment(victim.model, victim.trigger, train).add_to(train, 0)
    ratios, wall = [], []
    for _ in range(repeats):
        cost = []
        for recipe, images in ((paper, train), (verified, views)):
            rounds = []
            whole = seconds(lambda recipe=recipe, images=images, rounds=rounds: rounds.extend(recipe(
                copy.deepcopy(victim.model), found, images, validation, alpha=1.0, progress=False).history))
            cost.append(whole / len(rounds))  # the last round of `verified`, in which no trial helps, leaves no row
        ratios.append(cost[1] / cost[0])
        wall.append(whole)
    return median(ratios), min(ratios), max(ratios), median(wall)


def batch_ratio(victim, repeats=7):
    """Cost of answering the test images in batches of 250 over batches of `metrics.BATCH`, as measuring does."""
    images = victim.data.test.floats()
    ratios = [seconds(lambda: predict(victim.model, images, 250)) / seconds(lambda: predict(victim.model, images, BATCH))
              for _ in range(repeats)]
    return median(ratios), min(ratios), max(ratios)


def repair_cost(spc, attacks=("badnets", "sig")):
    """Processor seconds of `repair` and of a `scan`, and each over those of `grad_prune`, recipe `paper`: one line an attack."""
    for name in attacks:
        victim = gp.load_victim(name)
        cost = []
        for work, *more in ((grad_prune_paper, victim.trigger), (gp.repair,), (scan,)):
            start = time.process_time()
            work(victim.model, victim.data.defense, *more, spc=spc, progress=False)
            cost.append(time.process_time() - start)
        yield (f"{name} at spc {spc}: `repair` {cost[1]:.0f} processor seconds (target <= 60), {cost[1] / cost[0]:.0f} x `paper`; "
               f"`scan` {cost[2]:.0f}, {cost[2] / cost[0]:.0f} x")


def import_seconds(repeats=5):
    """Median seconds of `import torch`, and of `import gradprune` with every public name on top of it."""
    code = ("import time; a = time.perf_counter(); import torch; b = time.perf_counter(); from gradprune import *; "
            "c = time.perf_counter(); print(b - a, c - b)")
    pairs = [tuple(map(float, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                                             check=True).stdout.split())) for _ in range(repeats)]
    return median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)


def demo(*options):
    """Wall seconds, peak memory in GB and JSON of one `gradprune demo` in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gradprune", "demo", *options, "--json", "--out", folder]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        wall = time.perf_counter() - start
    return wall, peak_memory(resource.RUSAGE_CHILDREN), json.loads(done.stdout.splitlines()[-1])


def peak_memory(who):
    """In GB, of this process (resource.RUSAGE_SELF) or of the largest that it has started (RUSAGE_CHILDREN)."""
    scale = 1e9 if sys.platform == "darwin" else 1e6  # bytes on macOS, kilobytes elsewhere
    return resource.getrusage(who).ru_maxrss / scale


def machine():
    return (f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
            f"torch {torch.__version__}")


def main():
    print(machine())
    torch_seconds, own_seconds = import_seconds()
    print(f"import: torch {torch_seconds:.2f} s, gradprune on top of it {own_seconds:.2f} s (target <= 0.3)")
    wall, memory, result = demo()
    print(f"gradprune demo: {wall:.1f} s (target <= 30), peak memory {memory:.2f} GB (target <= 1.5), "
          f"pruning alone {result['seconds']['prune']:.2f} s (target <= 3)")
    for stage in ("before", "pruned", "tuned"):
        print(f"  {stage:>6}: " + "  ".join(f"{name.upper()} {value:.3f}" for name, value in result[stage].items()))
    if "--train" in sys.argv:
        wall, memory, _ = demo("--train")
        print(f"gradprune demo --train: {wall:.1f} s (target <= 120), peak memory {memory:.2f} GB (target <= 1.5)")
    victim = gp.load_victim("badnets")
    for spc in (2, 10, 50):
        middle, low, high = round_ratio(victim, spc)
        print(f"a pruning round at spc {spc}: {middle:.2f} x the floor, range {low:.2f}..{high:.2f} (target <= 1.25)")
    middle, low, high = batch_ratio(victim)
    print(f"measuring in batches of 250: {middle:.2f} x batches of {BATCH}, range {low:.2f}..{high:.2f}")
    for name in ("badnets", "blended"):
        middle, low, high, whole = verified_ratio(gp.load_victim(name), 10)
        print(f"a round of `verified` on {name} at spc 10: {middle:.2f} x one of `paper`, range {low:.2f}..{high:.2f} "
              f"(target <= 4); pruning in all {whole:.1f} s (target <= 15)")
    for line in repair_cost(10):
        print(line)


if __name__ == "__main__":
    main()
