"""Models and images that settings are chosen on; they share no image and no weights with anything that is reported.

    python tests/benchmarks/tuning_models.py FOLDER [kinds] [training seeds]

FOLDER gets signs rendered from a seed of their own (`RENDER_SEED`; everything that is reported uses seed 0) and the
victims trained on them, with training seeds from 11 on and another target in each. Kinds that begin with "photo_" are
networks of CIFAR-10, those with "gtsrb_" of GTSRB: trained, defended and measured on parts of the TRAINING images that
nothing reported defends with or measures on. What is there is not made again.
"""

import sys
from pathlib import Path

import numpy as np
import torch

import gradprune as gp
from gradprune.base.paths import write_atomic
from gradprune.datasets import Dataset, render_signs
from gradprune.models.checkpoints import save_checkpoint
from gradprune.victims.zoo import SHIPPED, attack

RENDER_SEED = 1001  # of the tuning images; `gradprune.load("signs")` is seed 0
TRAINING_SEEDS = "11,12"
DEFENSE_SEEDS = (100, 101, 102)  # which of the tuning images the defender draws; tables use 0, 1, 2
KINDS = "badnets,blended,sig,sig_clean_label,low_frequency,wanet"
VGG = {"model": {"name": "small_vgg", "width": 16}, "epochs": 12, "max_lr": 0.05, "flip": True, "shift": 4, "bfloat16": True}
RESNET = {"epochs": 12, "max_lr": 0.05, "flip": True, "shift": 4, "bfloat16": True}
GTSRB = {"epochs": 60, "shift": 4, "bfloat16": True}
PHOTOS = {"photo_vgg_badnets": {"trigger": "badnets", "trigger_settings": {"size": 4, "color": "white"}, **VGG},
          "photo_vgg_blended": {"trigger": "blended", **VGG},
          **{f"photo_resnet_{name}": {"trigger": name, **RESNET} for name in ("badnets", "blended", "low_frequency")},
          "photo_resnet_bpp": {"trigger": "bpp", "trigger_settings": {"levels": 5}, **RESNET, "epochs": 16},
          "photo_resnet_clean": {"trigger": "badnets", "rate": 0.0, **RESNET},
          **{f"gtsrb_{name}": {"trigger": name, **GTSRB} for name in ("badnets", "blended", "low_frequency")},
          "gtsrb_clean": {"trigger": "badnets", "rate": 0.0, **GTSRB}}
PARTS = {"photographs": ("cifar10", 20_000, 5_000), "road_signs": ("gtsrb", 1_870, 1_000)}  # images to train, to defend


def signs():
    """Signs that nothing reported has seen."""
    return render_signs(RENDER_SEED)


def photographs(name, train, defense):
    """The training images of a set in three parts, without those that `gp.load` sets aside for the defender."""
    pool = gp.load(name).train
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(RENDER_SEED))[:train + 2 * defense]
    return Dataset(*(pool.subset(part) for part in order.split([train, defense, len(order) - train - defense])))


def images(folder, name, read):
    """A tuning data set as a file that `gp.load` reads."""
    path = Path(folder).resolve() / f"{name}_{RENDER_SEED}.npz"
    if not path.exists():
        data = read()
        arrays = {f"{letter}_{part}": tensor for part, one in data._asdict().items()
                  for letter, tensor in (("x", one.images.permute(0, 2, 3, 1).numpy()), ("y", one.labels.numpy()))}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda temporary: np.savez(temporary, **arrays, classes=np.array(data.test.classes)))
    return str(path)


def tuning_victim(folder, kind, seed=11):
    """A victim trained on the tuning images, with settings of the shipped one but another seed and target."""
    path = Path(folder) / f"{kind}_{seed}"
    if not path.with_suffix(".json").exists():
        if kind in PHOTOS:
            name = "road_signs" if kind.startswith("gtsrb") else "photographs"
            recipe = {**PHOTOS[kind], "data": images(folder, name, lambda: photographs(*PARTS[name])), "target": (5 * seed) % 10}
        else:
            recipe = {**SHIPPED[kind], "data": images(folder, "signs", signs), "target": (5 * seed) % 12}
        made = attack(**recipe, seed=seed, progress=False)
        save_checkpoint(path, made.model, made.card, made.trigger)
        print(path.name, "target", made.target_name, made.card["metrics"], f"{made.seconds:.0f} s", flush=True)
    return gp.load_victim(path)


def main(folder, kinds=KINDS, seeds=TRAINING_SEEDS):
    """Train what is missing."""
    for seed in map(int, seeds.split(",")):
        for kind in kinds.split(","):
            tuning_victim(folder, kind, seed)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
