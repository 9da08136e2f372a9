"""The zoo: attacked models with their trigger and data, shipped in data/checkpoints/ or built again from seed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradprune import __version__
from gradprune.attacks import Trigger, make_trigger, plant
from gradprune.attacks.planting import RATES
from gradprune.attacks.training import RECIPE
from gradprune.datasets import Dataset, load
from gradprune.errors import require, unknown
from gradprune.evaluation import Metrics, evaluate
from gradprune.models import build, predict
from gradprune.models.checkpoints import Card, load_checkpoint, load_learned, read_card, save_checkpoint
from gradprune.paths import data_folder

DEFAULT_MODEL: dict[str, Any] = {"name": "preact_resnet", "width": 16, "blocks": [1, 1, 1]}
TARGET = 2  # "speed limit 80": what the sticker turns every sign into
SHIPPED: dict[str, dict[str, Any]] = {
    "clean": {"trigger": "badnets", "rate": 0.0},
    "badnets": {"trigger": "badnets"},
    "blended": {"trigger": "blended"},
    "sig": {"trigger": "sig"},
}


@dataclass
class Victim:
    """A model that somebody attacked, and all that an experiment needs beside it.

    model: in eval mode. trigger, target: the attack. data: its train, defense and test images. card: how it was made.
    seconds: wall time of the training, where it was just trained.
    """

    model: nn.Module
    trigger: Trigger
    target: int
    data: Dataset
    card: Card
    seconds: float | None = None

    @property
    def target_name(self) -> str:
        """The name of the target class."""
        return self.data.test.classes[self.target]

    def evaluate(self, model: nn.Module | None = None) -> Metrics:
        """ACC, ASR and RA on the test set, of this model or of another one under the same attack."""
        label_map = self.card.get("attack", {}).get("label_map", "all_to_one")
        return evaluate(model or self.model, self.data.test, self.trigger, self.target, label_map=label_map)


def attack(trigger: str, *, data: str = "signs", model: dict[str, Any] | None = None, target: int = TARGET,
           rate: float | None = None, seed: int = 0, trigger_settings: dict[str, Any] | None = None,
           label_map: str | None = None, progress: bool = True, **training: Any) -> Victim:
    """Train a backdoored model from nothing: poison `rate` of the training images, fit, measure.

    trigger: a name in `attacks.TRIGGERS`; data: what `datasets.load` takes; model: name and settings for
    `models.build` (default: a 78,000-weight PreActResNet); label_map: one of `attacks.poisoning.LABEL_MAPS`, by default
    the trigger's own; rate: by default 0.1, or half of the target class with clean labels (see `attacks.poison`);
    training: values of `attacks.training.RECIPE`. See `attacks.plant` for what each attack does.
    Raises InputError for bad arguments before any work starts.
    """
    mark = make_trigger(trigger, **(trigger_settings or {}))
    dataset = load(data)
    settings = {**(model or DEFAULT_MODEL), "num_classes": len(dataset.train.classes),
                "channels": dataset.train.images.shape[1]}
    if settings["name"] == "small_vgg":
        settings.setdefault("size", dataset.train.images.shape[-1])
    network = build(**settings, seed=seed)
    predict(network, dataset.train.floats()[:1])  # a size that the model cannot take fails here, before the work
    label_map = label_map or mark.label_map
    rate = RATES.get(label_map, 0.1) if rate is None else rate
    outcome, touched, decoys = plant(network, dataset.train, mark, target, rate=rate, seed=seed, label_map=label_map,
                                     progress=progress, **training)
    metrics = evaluate(network, dataset.test, mark, target, label_map=label_map)
    card = {
        "model": settings,
        "data": {"name": data, "classes": list(dataset.train.classes)},
        "attack": {"trigger": trigger, "settings": mark.settings, "target": target, "rate": rate,
                   "poisoned_images": len(touched)} | _unusual(label_map, decoys),
        "training": {**RECIPE, **training, "seed": seed, "epochs_done": len(outcome.history),
                     "interrupted": outcome.interrupted},
        "metrics": {name: round(value, 4) for name, value in metrics._asdict().items()},
        "made_with": {"gradprune": __version__, "torch": torch.__version__.split("+")[0],
                      "threads": torch.get_num_threads()},
    }
    return Victim(network, mark, target, dataset, card, outcome.seconds)


def _unusual(label_map: str, decoys: int) -> dict[str, Any]:
    """What a card says of an attack only where it is not plain all-to-one poisoning."""
    return ({} if label_map == "all_to_one" else {"label_map": label_map}) | ({"decoys": decoys} if decoys else {})


def load_victim(checkpoint: str | Path) -> Victim:
    """Load a victim by zoo name ("badnets") or by path; its data set is loaded too.

    Raises InputError for an unknown name (with the nearest), or a missing, damaged or incomplete checkpoint.
    """
    path = checkpoint_path(checkpoint)
    model, card = load_checkpoint(path)
    made = card.get("attack"), card.get("data")
    require(all(isinstance(part, dict) for part in made) and isinstance(card["attack"].get("trigger"), str)
            and isinstance(card["attack"].get("target"), int) and isinstance(card["data"].get("name"), str)
            and isinstance(card["attack"].get("settings", {}), dict),
            f"the card of {path} does not say which attack and data made the model.")
    trigger = make_trigger(card["attack"]["trigger"], **card["attack"].get("settings", {}))
    load_learned(path, trigger)
    data = load(card["data"]["name"])
    data.test.check_target(card["attack"]["target"])
    require(len(data.test.classes) == card["model"]["num_classes"],
            f"the model of {path} has {card['model']['num_classes']} classes, its data {len(data.test.classes)}.")
    return Victim(model, trigger, card["attack"]["target"], data, card)


def checkpoint_path(checkpoint: str | Path) -> Path:
    """The path of a checkpoint given by zoo name or by path; raises InputError for a name that nobody knows."""
    shipped = data_folder() / "checkpoints" / str(checkpoint)
    if shipped.with_name(shipped.name + ".json").is_file():
        return shipped
    path = Path(checkpoint)
    if path.parent == Path() and not path.suffix and not path.with_name(path.name + ".json").is_file():
        raise unknown("checkpoint", checkpoint, names())
    return path


def names() -> list[str]:
    """The names of the shipped checkpoints."""
    return sorted(path.stem for path in (data_folder() / "checkpoints").glob("*.json"))


def cards() -> dict[str, Card]:
    """The cards of all shipped checkpoints, by name."""
    return {name: read_card(data_folder() / "checkpoints" / name) for name in names()}


def build_zoo(only: list[str] | None = None, out: str | Path | None = None, progress: bool = True
              ) -> Iterator[tuple[str, Victim]]:
    """Train the shipped victims again from seed and save each as it is done (name, victim).

    only: names in `SHIPPED`, all by default. out: the folder, by default the shipped one. Trains on one thread: sums
    over several threads differ in the last bits, and the same seed should give the same weights everywhere.
    Raises InputError for an unknown name, before any work; KeyboardInterrupt where a training was cut short.
    """
    for name in only or SHIPPED:
        if name not in SHIPPED:
            raise unknown("checkpoint", name, SHIPPED)
    folder = Path(out) if out else data_folder() / "checkpoints"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in only or SHIPPED:
            victim = attack(**SHIPPED[name], progress=progress)
            if victim.card["training"]["interrupted"]:
                raise KeyboardInterrupt(f"training of {name!r} was cut short; nothing was saved for it")
            save_checkpoint(folder / name, victim.model, victim.card, victim.trigger)
            yield name, victim
    finally:
        torch.set_num_threads(threads)
