"""Models and images that settings are chosen on; they share no image and no weights with anything that is reported.

    python tests/benchmarks/tuning_models.py FOLDER [kinds] [training seeds]

FOLDER gets signs rendered from a seed of their own (`RENDER_SEED`; everything that is reported uses seed 0) and the
victims trained on them, with training seeds from 11 on and another target in each. What is there is not made again.
"""

import sys
from pathlib import Path

import numpy as np
import torch

import gradprune as gp
from gradprune.datasets import render_signs
from gradprune.models.checkpoints import save_checkpoint
from gradprune.paths import write_atomic
from gradprune.zoo import SHIPPED, attack

RENDER_SEED = 1001  # of the tuning images; `gradprune.load("signs")` is seed 0
TRAINING_SEEDS = (11, 12)
DEFENSE_SEEDS = (100, 101, 102)  # which of the tuning images the defender draws; tables use 0, 1, 2
KINDS = ("badnets", "blended", "sig", "sig_clean_label", "low_frequency", "wanet")


def images(folder):
    """The rendered signs as a file that `gp.load` reads."""
    path = Path(folder).resolve() / f"signs_{RENDER_SEED}.npz"
    if not path.exists():
        arrays = {f"{letter}_{part}": tensor for part, one in render_signs(RENDER_SEED)._asdict().items()
                  for letter, tensor in (("x", one.images.permute(0, 2, 3, 1).numpy()), ("y", one.labels.numpy()))}
        classes = np.array(gp.load("signs").test.classes)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda temporary: np.savez(temporary, **arrays, classes=classes))
    return path


def tuning_victim(folder, kind, seed=11):
    """A victim trained on the tuning images, with settings of the shipped one but another seed and target."""
    path = Path(folder) / f"{kind}_{seed}"
    if not path.with_suffix(".json").exists():
        made = attack(**SHIPPED[kind], data=str(images(folder)), seed=seed, target=(5 * seed) % 12, progress=False)
        save_checkpoint(path, made.model, made.card, made.trigger)
        print(path.name, "target", made.target_name, made.card["metrics"], f"{made.seconds:.0f} s", flush=True)
    return gp.load_victim(path)


def main(folder, kinds=",".join(KINDS), seeds=",".join(map(str, TRAINING_SEEDS))):
    """Train what is missing."""
    for seed in map(int, seeds.split(",")):
        for kind in kinds.split(","):
            tuning_victim(folder, kind, seed)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
