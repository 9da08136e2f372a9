"""Recipe `paper` on the shipped sign models: the README's result table, and data/results/zoo_paper.csv.

    python tests/benchmarks/zoo_table.py     # about five minutes on 2 cores

Every row is one draw of the defender's images (seed 0, 1, 2); the test images only measure. `ft_unlearn` is the
baseline: fine-tuning on the same images with the same loss, but no pruning.
"""

import platform
import sys
from pathlib import Path

import pandas as pd
import torch

import gradprune as gp
from gradprune.datasets import draw_defense_images
from gradprune.paths import write_atomic
from gradprune.pruning import fine_tune, pair_up

OUT = Path(__file__).resolve().parents[2] / "data/results/zoo_paper.csv"
STAGES = ["before", "pruned", "tuned", "ft_unlearn"]


def rows():
    for attack in ("badnets", "blended", "sig"):
        victim = gp.load_victim(attack)
        for spc in (2, 10):
            for seed in (0, 1, 2):
                images, trigger = victim.data.defense, victim.trigger
                result = gp.grad_prune(victim.model, images, trigger, spc=spc, seed=seed, progress=False)
                parts = (pair_up(part, trigger) for part in draw_defense_images(images, spc, seed))
                alone = gp.load_victim(attack).model
                fine_tune(alone, gp.FilterMask(gp.filters(alone)), *parts, seed=seed, progress=False)
                models = dict(zip(STAGES, (victim.model, result.pruned, result.model, alone), strict=True))
                for stage, model in models.items():
                    yield {"attack": attack, "spc": spc, "seed": seed, "stage": stage,
                           "filters": len(result.mask.positions) if stage in ("pruned", "tuned") else 0,
                           **{name: round(value, 4) for name, value in victim.evaluate(model)._asdict().items()},
                           "prune_seconds": round(result.seconds["prune"], 2),
                           "gradprune": gp.__version__, "torch": torch.__version__.split("+")[0],
                           "machine": platform.machine(), "threads": torch.get_num_threads()}
                print(attack, spc, seed, result.mask, result.stopped, file=sys.stderr, flush=True)


def main():
    table = pd.DataFrame(rows())
    OUT.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(OUT, lambda temporary: table.to_csv(temporary, index=False))
    for (attack, spc), group in table.groupby(["attack", "spc"], sort=False):
        cells = []
        for stage in STAGES:
            part = group[group.stage == stage]
            cells.append(" / ".join(f"{100 * part[name].mean():.1f} ± {100 * (part[name].max() - part[name].min()) / 2:.1f}"
                                    for name in ("acc", "asr", "ra")))
        counts = group[group.stage == "pruned"].filters
        print(f"| {attack}, spc {spc} | {' | '.join(cells)} | {counts.min()}..{counts.max()} |")


if __name__ == "__main__":
    main()
