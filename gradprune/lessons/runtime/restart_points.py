"""Restart points: exactly the objects that the cells below one need, however the notebook was entered."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from gradprune.base.errors import require_known
from gradprune.base.paths import data_folder
from gradprune.bench import read_results
from gradprune.datasets import Dataset, ImageSet, draw_defense_images, load
from gradprune.defenses import DefenseResult, grad_prune
from gradprune.lessons.runtime.notebook_setup import mode
from gradprune.lessons.runtime.scanning import search_settings
from gradprune.lessons.runtime.workshop import MEAN, STD, TARGET, photographs, workshop
from gradprune.models import build, load_weights, normalized
from gradprune.pruning import Pairs, pair_up
from gradprune.search import invert
from gradprune.victims import Own, Victim, load_victim
from gradprune.victims.zoo import SHIPPED, attack

Point = Callable[[str], Any]  # from a mode to objects
POINTS: dict[str, Point] = {}
SPC = 10  # clean images per class that the defender of the lessons has


def checkpoint(name: str) -> Any:
    """The objects of a restart point, as a tuple where there are several.

    The victim is loaded (mode "full": trained) once per kernel; each call hands out copies of its own, so whatever
    the cells did to theirs is undone. Raises InputError for an unknown name, with the nearest.

        victim, pairs = checkpoint("02_scores")
    """
    require_known("restart point", name, POINTS)
    value = POINTS[name](mode())
    shared = {id(part.data): part.data for part in (value if isinstance(value, tuple) else (value,))
              if isinstance(part, Victim)}
    return copy.deepcopy(value, shared)  # the images are shared: nobody writes to them


def point(*names: str) -> Callable[[Point], Point]:
    """Register a function as what `checkpoint` returns for these names."""

    def register(make: Point) -> Point:
        POINTS.update(dict.fromkeys(names, make))
        return make

    return register


@cache
def _victim(name: str, now: str) -> Victim:
    """A victim by zoo name: shipped, or trained here in mode "full"."""
    if now != "full":
        return load_victim(name)
    victim = attack(**SHIPPED[name])
    _finished(victim.card["training"]["interrupted"])
    return victim


def _finished(interrupted: bool) -> None:
    """Raise KeyboardInterrupt where work was cut short: it must not be kept for the rest of the kernel's life."""
    if interrupted:
        raise KeyboardInterrupt("the work was cut short, so the restart point has nothing to hand out; run it again")


@point("01_start", "01_rates", "01_maps")
def signs(_: str) -> Dataset:
    """`data`: the rendered signs, parts train, defense and test."""
    return load("signs")


@point("00_start", "01_measure", "01_picture", "02_start", "03_start", "07_start", "08_start")
def victim(now: str) -> Victim:
    """`victim`: the badnets victim: model, trigger, target, data, card."""
    return _victim("badnets", now)


@point("02_scores", "02_look")
@cache
def victim_and_pairs(now: str) -> tuple[Victim, Pairs]:
    """`victim, pairs`: and the defender's training images (spc 10), clean and triggered, with true labels."""
    victim = _victim("badnets", now)
    return victim, pair_up(draw_defense_images(victim.data.defense, SPC).train, victim.trigger)


@point("03_peek")
def faint(now: str) -> Victim:
    """`faint`: the sig victim, whose trigger is a faint wave over the whole image."""
    return _victim("sig", now)


@point("03_tune", "03_masks")
@cache
def victim_and_result(now: str) -> tuple[Victim, DefenseResult]:
    """`victim, result`: the sig victim, and what the paper's recipe (spc 10) made of it, before fine-tuning."""
    victim = _victim("sig", now)
    result = grad_prune(victim.model, victim.data.defense, victim.trigger, spc=SPC, recipe="paper", tune=False,
                        progress=False)
    _finished(result.interrupted)
    return victim, result


@point("03_trials")
def spread(now: str) -> Victim:
    """`spread`: the blended victim, whose trigger is a faint pattern over the whole image."""
    return _victim("blended", now)


@point("04_start", "04_search", "08_search")
def victim_and_images(now: str) -> tuple[Victim, ImageSet]:
    """`victim, images`: the badnets victim, and the 108 clean images that its defender works with."""
    victim = _victim("badnets", now)
    return victim, draw_defense_images(victim.data.defense, SPC).train


@point("04_prune")
@cache
def victim_and_synthesised(now: str) -> tuple[Victim, nn.Module]:
    """`victim, synthesised`: and the trigger found for its target; searches for other classes are left out."""
    victim, images = victim_and_images(now)
    return victim, invert(victim.model, images.floats(), victim.target, **search_settings()).trigger


@point("04_table")
def measured_scans(_: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`scans, defended`: measured scans, one row each, and models cleaned with known, synthesised and no trigger."""
    results = data_folder() / "results"
    defended, cells = pd.read_csv(results / "scan_defense.csv"), read_results(results / "signs")
    chosen = cells[(cells["defense"] == "repair") & (cells["spc"] == SPC) & (cells["seed"] == 0)]
    rows = chosen.rename(columns={"attack": "model"}).assign(state="repaired, trigger never seen")
    return pd.read_csv(results / "scan.csv"), pd.concat([defended, rows[["model", "state", "acc", "asr", "ra"]]])


@point("05_table", "05_rank", "05_more")
def bench(_: str) -> pd.DataFrame:
    """`table`: the measured bench of this repository, one row per cell; the same in every mode."""
    return read_results(data_folder() / "results" / "signs")


@point("06_start")
def own_folder(_: str) -> Path:
    """`here`: the folder with pictures, weights and sticker; the kernel works there from now on."""
    return workshop(code=False)


@point("06_model")
def own_network(_: str) -> tuple[Dataset, nn.Module]:
    """`data, model`: the pictures of that folder, and its network with its weights, normalised as it was trained."""
    workshop()
    data = load("photos")
    model = build("mynet:SignNet", num_classes=len(data.test.classes), code=True)
    return data, normalized(load_weights(model, "bought.pth"), MEAN, STD)


@point("06_scan", "06_save")
def own_victim(_: str) -> Victim:
    """`victim`: all of that and the sticker, as one object."""
    workshop()
    return Own("mynet:SignNet", "photos", trigger="patch.png", target=TARGET, mean=MEAN, std=STD).victim("bought.pth")


@point("06_photographs")
def real_photographs(_: str) -> Victim | None:
    """`victim`: the shipped model of CIFAR-10, or None, and a sentence, where the images are not here."""
    return photographs("cifar10/badnets")
