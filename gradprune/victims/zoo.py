"""The zoo: attacked models with their trigger and data, shipped in data/checkpoints/ or built again from seed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gradprune.attacks import make_trigger, plant
from gradprune.attacks.plant_backdoor import RATES
from gradprune.attacks.training import RECIPE
from gradprune.base.devices import choose_device, device_name, one_thread
from gradprune.base.errors import plain, require_known
from gradprune.base.paths import data_folder
from gradprune.datasets import load
from gradprune.evaluation import evaluate
from gradprune.models import build, predict
from gradprune.models.checkpoints import Card, read_card, save_checkpoint
from gradprune.victims import Victim
from gradprune.victims.victim import data_card, names, versions

DEFAULT_MODEL: dict[str, Any] = {"name": "preact_resnet", "width": 16, "blocks": [1, 1, 1]}
TARGET = 2  # "speed limit 80"

# What `build_zoo` trains. If a paper's own setting does not open a backdoor in such a small network within minutes, the
# mark is stronger here or training longer; docs/decisions/attacks.md has the figures.
SHIPPED: dict[str, dict[str, Any]] = {
    "clean": {"trigger": "badnets", "rate": 0.0},
    "badnets": {"trigger": "badnets"},
    "blended": {"trigger": "blended"},
    "sig": {"trigger": "sig"},
    "sig_clean_label": {"trigger": "sig", "label_map": "clean_label", "rate": 0.8},
    "low_frequency": {"trigger": "low_frequency"},
    "bpp": {"trigger": "bpp", "trigger_settings": {"levels": 3}, "epochs": 16},
    "wanet": {"trigger": "wanet", "trigger_settings": {"strength": 4.0, "decoys": 0.5}, "epochs": 24},
    "input_aware": {"trigger": "input_aware", "epochs": 20},
    "label_consistent": {"trigger": "label_consistent", "trigger_settings": {"size": 6}, "rate": 0.8},
    "trojannn": {"trigger": "trojannn"},
}

# The same attacks on photographs, in a network of 0.7 million weights; `build_zoo` trains them only if named.
_PHOTOGRAPHS: dict[str, Any] = {"model": {"name": "preact_resnet", "width": 16, "blocks": [2, 2, 2, 2]}, "target": 0,
                                "half": True, "shift": 4, "bfloat16": True}
_SETS: dict[str, dict[str, Any]] = {"cifar10": {"flip": True, "max_lr": 0.05, "epochs": 24},
                                    "gtsrb": {"epochs": 40}}
_MARKS: dict[str, dict[str, Any]] = {"badnets": {}, "blended": {}, "low_frequency": {}, "bpp": {"levels": 5}}
_LONGER = {"cifar10/bpp": {"epochs": 32}}  # its decoys are noisy images: with 24 epochs ACC was 0.879
PHOTOGRAPHS: dict[str, dict[str, Any]] = {
    f"{data}/{trigger}": {"trigger": trigger, "trigger_settings": mark, "data": data, **_PHOTOGRAPHS, **settings,
                           **_LONGER.get(f"{data}/{trigger}", {})}
    for data, settings in _SETS.items() for trigger, mark in _MARKS.items()}

# Four of the sign attacks trained twice more, with other targets, so that a table's figures for an attack do not rest
# on a single training and target.
REPLICATES: dict[str, dict[str, Any]] = {
    f"seeds/{name}_{seed}": {**SHIPPED[name], "seed": seed, "target": target, "half": True}
    for name in ("badnets", "blended", "sig", "low_frequency") for seed, target in ((1, 4), (2, 9))}


def attack(trigger: str, *, data: str | Path = "signs", size: int | None = None, model: dict[str, Any] | None = None,
           target: int = TARGET, rate: float | None = None, seed: int = 0,
           trigger_settings: dict[str, Any] | None = None, label_map: str | None = None, half: bool = False,
           device: str = "cpu", progress: bool = True, **training: Any) -> Victim:
    """Train a backdoored model from nothing: poison `rate` of the training images, fit, measure.

    trigger, trigger_settings: a name in `attacks.TRIGGERS` and its arguments.
    data, size: as for `datasets.load`.
    model: name and settings for `models.build` (default: a 78,000-weight PreActResNet).
    target: the attacker's class.
    rate: by default 0.1, or half of the target class with clean labels (see `attacks.poison`).
    label_map: one of `attacks.poisoning.LABEL_MAPS`, by default the trigger's own.
    half: round the trained weights to float16, for a file of half the size.
    device: where to train and leave the model, see `models.choose_device`.
    training: values of `attacks.training.RECIPE`.
    See `attacks.plant` for what each attack does. Raises InputError for bad arguments, before any work.
    """
    where, target, rate, seed = choose_device(device), plain(target), plain(rate), plain(seed)
    training = {name: plain(value) for name, value in training.items()}
    mark = make_trigger(trigger, **{name: plain(value) for name, value in (trigger_settings or {}).items()})
    dataset = load(data, size=size)
    settings = {**(model or DEFAULT_MODEL), "num_classes": len(dataset.train.classes),
                "channels": dataset.train.images.shape[1]}
    if settings["name"] == "small_vgg":
        settings.setdefault("size", dataset.train.images.shape[-1])
    network = build(**settings, seed=seed).to(where).to(memory_format=torch.channels_last)  # as loaded
    # A size that the model cannot take fails here, before the work.
    predict(network, dataset.train.subset(torch.arange(1)).floats())
    label_map = label_map or mark.label_map
    if label_map == "all_to_all" and not (isinstance(target, int) and 0 <= target < len(dataset.train.classes)):
        target = 0  # not used, but a card names one
    rate = RATES.get(label_map, 0.1) if rate is None else rate
    outcome, touched, decoys = plant(network, dataset.train, mark, target, rate=rate, seed=seed, label_map=label_map,
                                     progress=progress, **training)
    if outcome.interrupted and not outcome.history:
        raise KeyboardInterrupt("no epoch was finished, so nothing was written")
    if half:
        network.half().float()
    metrics = evaluate(network, dataset.test, mark, target, label_map=label_map)
    unusual = {"label_map": label_map if label_map != "all_to_one" else "", "decoys": decoys, "departs": mark.departs()}
    card = {
        "model": settings,
        "data": data_card(dataset, {"name": plain(data), "size": plain(size)}),
        "attack": {"trigger": trigger, "settings": mark.settings, "target": target, "rate": rate,
                   "poisoned_images": len(touched)} | {name: value for name, value in unusual.items() if value},
        "training": {**RECIPE, **training, "batch_size": outcome.batch_size, "seed": seed,
                     "epochs_done": len(outcome.history), "interrupted": outcome.interrupted},
        "metrics": {name: round(value, 4) for name, value in metrics._asdict().items()},
        "made_with": {**versions(), "threads": torch.get_num_threads()} | (
            {} if where.type == "cpu" else {"device": device_name(where)}),
    }
    return Victim(network, mark, target, dataset, card, outcome.seconds)


def cards() -> dict[str, Card]:
    """The cards of all shipped checkpoints, by name."""
    return {name: read_card(data_folder() / "checkpoints" / name)
            for name in [*names(), *(name for folder in ("seeds", *_SETS) for name in names(folder))]}


def build_zoo(only: list[str] | None = None, out: str | Path | None = None, progress: bool = True
              ) -> Iterator[tuple[str, Victim]]:
    """Train the shipped victims again from seed, save each when done, and yield (name, victim).

    only: names in `SHIPPED`, `REPLICATES` or `PHOTOGRAPHS`, by default all of the first.
    out: the folder, by default the shipped one.
    Training uses one thread: sums over several threads differ in the last bits, and the same seed should give the same
    weights everywhere.
    Raises InputError for an unknown name, before any work; KeyboardInterrupt if a training was cut short.
    """
    known = SHIPPED | REPLICATES | PHOTOGRAPHS
    for name in only or SHIPPED:
        require_known("checkpoint", name, known)
    folder = Path(out) if out else data_folder() / "checkpoints"
    for name in only or SHIPPED:
        with one_thread():
            victim = attack(**known[name], progress=progress)
        if victim.card["training"]["interrupted"]:
            raise KeyboardInterrupt(f"training of {name!r} was cut short; nothing was saved for it")
        save_checkpoint(folder / name, victim.model, victim.card, victim.trigger)
        yield name, victim
