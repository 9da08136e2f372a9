"""A victim: an attacked model with its trigger, its data and its card; loaded by zoo name or by path."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from gradprune.attacks import Trigger, make_trigger
from gradprune.datasets import Dataset, ImageSet, load
from gradprune.errors import require, unknown
from gradprune.evaluation.metrics import Exam, Metrics, exam, measure
from gradprune.models.checkpoints import Card, load_checkpoint, load_learned
from gradprune.models.devices import choose_device
from gradprune.paths import data_folder

SYNTHESISED = "synthesised"  # the name of a trigger that a scan found


@dataclass
class Victim:
    """A model that somebody attacked, and all that an experiment needs beside it.

    model: in eval mode. trigger, target: the attack. data: its train, defense and test images. card: how it was made.
    seconds: wall time of the training, where it was just trained. notes: what its user should know of it.
    """

    model: nn.Module
    trigger: Trigger
    target: int
    data: Dataset
    card: Card
    seconds: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def target_name(self) -> str:
        """The name of the target class."""
        return self.data.test.classes[self.target]

    def evaluate(self, model: nn.Module | None = None) -> Metrics:
        """ACC, ASR and RA on the test set, of this model or of another one under the same attack."""
        return measure(model or self.model, self.exam())

    def exam(self) -> Exam:
        """The test set with this attack's trigger, to measure many models with `evaluation.measure`."""
        label_map = self.card.get("attack", {}).get("label_map", "all_to_one")
        return exam(self.data.test, self.trigger, self.target, label_map)


def load_victim(checkpoint: str | Path, code: str | None = None, device: str = "cpu") -> Victim:
    """Load a victim by zoo name ("badnets") or by path; its data set is loaded too.

    code: the "module:function" that builds the model, where the card names one, see `models.build`.
    device: where the model goes, see `models.choose_device`; defences run where the model is.
    Raises InputError for an unknown name (with the nearest), or a missing, damaged or incomplete checkpoint.
    """
    where = choose_device(device)
    path = checkpoint_path(checkpoint)
    model, card = load_checkpoint(path, code)
    made = card.get("attack"), card.get("data")
    require(all(isinstance(part, dict) for part in made) and isinstance(card["attack"].get("trigger"), str)
            and isinstance(card["attack"].get("target"), int) and isinstance(card["data"].get("name"), str)
            and isinstance(card["attack"].get("settings", {}), dict),
            f"the card of {path} does not say which attack and data made the model.")
    trigger = trigger_of(path, card)
    data, notes = in_color(images_of(card["data"], path), model)
    data.test.check_target(card["attack"]["target"])
    require(len(data.test.classes) == card["model"]["num_classes"],
            f"the model of {path} has {card['model']['num_classes']} classes, its data {len(data.test.classes)}.")
    return Victim(model.to(where), trigger, card["attack"]["target"], data, card, notes=notes)


def trigger_of(path: str | Path, card: Card) -> Trigger:
    """The trigger that a checkpoint's card names, with what it learned; raises InputError for one that is not known."""
    name = card["attack"]["trigger"]
    require(name != SYNTHESISED,
            f"the trigger of {path} was synthesised by a scan; give --trigger a picture of the real one.")
    trigger = make_trigger(name, **card["attack"].get("settings", {}))
    load_learned(path, trigger)
    return trigger


def images_of(told: dict[str, Any], path: str | Path) -> Dataset:
    """The images that the card of `path` names, with `size` for a folder's; raises InputError if the classes differ."""
    data = load(told["name"], size=told["size"]) if told.get("size") else load(told["name"])
    require(told.get("classes", list(data.test.classes)) == list(data.test.classes),
            f"the classes of {told['name']} have other names or another order than when {path} was trained.")
    return data


def in_color(data: Dataset, model: nn.Module) -> tuple[Dataset, list[str]]:
    """Give grey images three equal channels where the model takes colour; returns them, and a sentence that says so."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if data.test.images.shape[1] != 1 or first is None or first.in_channels != 3:
        return data, []
    parts = (ImageSet(part.images.repeat(1, 3, 1, 1), part.labels, part.classes) for part in data)
    return Dataset(*parts), ["The images are grey and the model takes colour: each was given three equal channels."]


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
