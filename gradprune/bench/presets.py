"""Complete benches by name, as plain data: `gradprune bench --preset paper`."""

import sys
import time
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from gradprune.attacks import make_trigger
from gradprune.base.errors import require, require_known
from gradprune.bench import Grid
from gradprune.datasets import draw_defense_images, load
from gradprune.evaluation import Metrics
from gradprune.models.checkpoints import paths, save_checkpoint
from gradprune.victims.zoo import attack

ATTACKS = ("badnets", "blended", "low_frequency", "bpp")  # those of the paper

# name -> arguments of `Grid`. With `train`, the attacks are triggers, and `zoo.attack` first trains a victim of each
# with these settings. Those of `paper`: batches of 512 under a one-cycle schedule with its peak after a fifth of 30
# epochs, label smoothing, flips and shifts of 4 pixels, as is usual for CIFAR-10 in minutes on one GPU (Page, 2018,
# "How to train your ResNet"; Smith & Topin, 2017); the attacks have their papers' settings, the target is class 0.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"attacks": ATTACKS, "seeds": 1, "spc": (2, 10, 100),
              "defenses": ("grad_prune", "grad_prune_verified", "ft_distilled", "ft_unlearn"),
              "train": {"data": "cifar10", "model": {"name": "preact_resnet18"}, "target": 0, "epochs": 30,
                        "batch_size": 512, "max_lr": 0.4, "warm_up": 0.2, "label_smoothing": 0.1, "flip": True,
                        "shift": 4}},
    "cifar10": {"attacks": tuple(f"cifar10/{name}" for name in ATTACKS), "defenses": "all", "spc": (2, 10, 100),
                "seeds": 3},
    "gtsrb": {"attacks": tuple(f"gtsrb/{name}" for name in ATTACKS), "defenses": "all", "spc": (2, 10), "seeds": 3},
}


def prepare(name: str, out: str | Path, *, device: str = "cpu", progress: bool = True, attacks: Any = None,
            defenses: Any = None, spc: Any = None, seeds: Any = None, **training: Any) -> Grid:
    """The grid of a preset; if it trains its victims, those that are not yet in `out`/victims are trained first.

    device: where to train, see `models.choose_device`.
    attacks, defenses, spc, seeds: as for `Grid`, instead of the preset's; if the preset trains, attacks are triggers.
    training: arguments of `zoo.attack`, instead of the preset's.
    A victim's card says how long its training took, and on which device. An existing victim is used however it was
    trained.
    Raises InputError for bad arguments, before any work; KeyboardInterrupt if a training was cut short.
    """
    require_known("preset", name, PRESETS)
    given = {"attacks": None if attacks == "all" else attacks, "defenses": defenses, "spc": spc, "seeds": seeds}
    settings = PRESETS[name] | {key: value for key, value in given.items() if value is not None}
    recipe = settings.pop("train", None)
    if recipe is None:
        require(not training, f"the preset {name!r} trains nothing, so it takes no {', '.join(training)}.")
        return Grid(**settings)
    recipe, folder = {**recipe, **training}, Path(out, "victims")
    triggers = settings.pop("attacks")
    grid = Grid([(folder / trigger).as_posix() for trigger in triggers], **settings)
    pool = load(recipe["data"]).defense
    for trigger in triggers:
        make_trigger(trigger)
    for count in grid.spc:
        draw_defense_images(pool, count)
    for trigger in triggers:
        if not paths(folder / trigger)[1].is_file():
            _train(trigger, folder / trigger, device=device, progress=progress, **recipe)
    return grid


def _train(trigger: str, path: Path, **recipe: Any) -> None:
    """Train one victim and save it."""
    start = time.perf_counter()
    victim = attack(trigger, **recipe)
    seconds = round(time.perf_counter() - start, 1)  # including the clean model that some attacks need first
    training = victim.card["training"]
    if training["interrupted"]:
        raise KeyboardInterrupt(f"the training of {trigger!r} was cut short; the victims before it are kept in "
                                f"{path.parent}, and the same command goes on from there")
    save_checkpoint(path, victim.model, {**victim.card, "training": {**training, "seconds": seconds}}, victim.trigger)
    tqdm.write(f"{trigger}: trained in {seconds} s, {Metrics(**victim.card['metrics'])}", file=sys.stderr)
