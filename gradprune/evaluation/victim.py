"""A victim: an attacked model with its trigger, its data and its card; loaded by zoo name or by path."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from gradprune.attacks import Trigger, make_trigger
from gradprune.datasets import Dataset, load
from gradprune.errors import require, unknown
from gradprune.evaluation.metrics import Exam, Metrics, exam, measure
from gradprune.models.checkpoints import Card, load_checkpoint, load_learned
from gradprune.paths import data_folder


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
        return measure(model or self.model, self.exam())

    def exam(self) -> Exam:
        """The test set with this attack's trigger, to measure many models with `evaluation.measure`."""
        label_map = self.card.get("attack", {}).get("label_map", "all_to_one")
        return exam(self.data.test, self.trigger, self.target, label_map)


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
    require(card["data"].get("classes", list(data.test.classes)) == list(data.test.classes),
            f"the classes of {card['data']['name']} have other names or another order than when {path} was trained.")
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
