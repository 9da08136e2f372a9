"""A victim: an attacked model with its trigger, its data and its card; loaded by zoo name or by path."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradprune import __version__
from gradprune.attacks import Trigger, make_trigger
from gradprune.attacks.poisoning import LABEL_MAPS
from gradprune.base.devices import choose_device
from gradprune.base.errors import InputError, require, told_as, unknown
from gradprune.base.paths import data_folder
from gradprune.datasets import Dataset, ImageSet, load
from gradprune.datasets.sources import SOURCES
from gradprune.evaluation.metrics import Exam, Metrics, exam, measure
from gradprune.models.checkpoints import Card, load_checkpoint, load_learned, paths
from gradprune.models.limits import AtMost, in_proportion

_log = logging.getLogger(__name__)
_LARGEST = 4096  # largest number in a trigger's settings: pixels, points, cosines, filters
SYNTHESISED = "synthesised"  # the name of a trigger that a scan found


@dataclass
class Victim:
    """An attacked model, and everything else that an experiment needs.

    model: in eval mode.
    trigger, target: the attack.
    data: its train, defense and test images.
    card: how it was made.
    seconds: wall time of the training, if it was just trained.
    notes: what its user should know about it.
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

    @property
    def leads_to(self) -> str:
        """Where the trigger leads, for a sentence."""
        return "each class to the next" if self.label_map == "all_to_all" else f"to {self.target_name!r}"

    @property
    def label_map(self) -> str:
        """The attacker's labels, one of `attacks.poisoning.LABEL_MAPS`."""
        return str(self.card.get("attack", {}).get("label_map", LABEL_MAPS[0]))

    def evaluate(self, model: nn.Module | None = None) -> Metrics:
        """ACC, ASR and RA on the test set, of this model or another one under the same attack."""
        return measure(model or self.model, self.exam())

    def exam(self) -> Exam:
        """The test set with this attack's trigger, for measuring many models with `evaluation.measure`."""
        return exam(self.data.test, self.trigger, self.target, self.label_map)


def load_victim(checkpoint: str | Path, code: str | None = None, device: str = "cpu") -> Victim:
    """Load a victim by zoo name ("badnets") or by path, with its data set.

    code: the "module:function" that builds the model, if the card names one, see `models.build`.
    device: where the model goes, see `models.choose_device`; defences run where the model is.
    Raises InputError for an unknown name (with the nearest), or a missing, damaged or incomplete checkpoint.
    """
    where = choose_device(device)
    path = checkpoint_path(checkpoint)
    model, card = load_checkpoint(path, code)
    attack, told = card.get("attack", {}), card.get("data", {})
    require(isinstance(attack, dict) and isinstance(told, dict) and isinstance(attack.get("trigger"), str)
            and isinstance(attack.get("target"), int) and isinstance(told.get("name"), str)
            and isinstance(attack.get("settings", {}), dict),
            f"the card of {path} does not say which attack and data made the model.")
    require(attack.get("label_map", LABEL_MAPS[0]) in LABEL_MAPS and isinstance(attack.get("rate", 0.0), int | float),
            f"the attack on the card of {path} has a label map or a rate that makes no sense.")
    trigger = trigger_of(path, card)
    data, notes = in_color(images_of(told, path, on_card=True), model)
    data.test.check_target(attack["target"])
    try_on(trigger, data, path)
    require(len(data.test.classes) == card["model"]["num_classes"],
            f"the model of {path} has {card['model']['num_classes']} classes, its data {len(data.test.classes)}.")
    return Victim(model.to(where), trigger, attack["target"], data, card, notes=notes)


def trigger_of(path: str | Path, card: Card) -> Trigger:
    """The trigger that a checkpoint's card names, with its learned tensors; raises InputError for an unknown one."""
    name = card["attack"]["trigger"]
    require(name != SYNTHESISED,
            f"the trigger of {path} was synthesised by a scan; give --trigger a picture of the real one.")
    require(":" not in str(name), f"the trigger {name!r} of {path} is somebody's own code, which runs only if you name "
                                  f"it: --trigger {name}")
    settings = card["attack"].get("settings", {})
    require(isinstance(settings, dict) and all(_modest(value) for key, value in settings.items() if key != "seed"),
            f"the trigger's settings on the card of {path} must be numbers up to {_LARGEST}, lists of such, or names.")
    with told_as(lambda error: f"the trigger {name!r} on the card of {path} cannot be made: {error}."):
        with AtMost(in_proportion(paths(path)[0])):
            trigger = make_trigger(name, **settings)  # settings of the wrong kind raise almost anything
        load_learned(path, trigger)
    return trigger


def try_on(trigger: nn.Module, data: Dataset, path: str | Path) -> None:
    """Apply a trigger to one image as a test; raises InputError if that fails."""
    with told_as(lambda error: f"the trigger of {path} cannot be put on an image: {error}."):
        data.test.subset(torch.arange(1)).triggered(trigger)


def _modest(value: Any) -> bool:
    """Whether a setting is a name, a number within limits, or a short list of such numbers."""
    if isinstance(value, list):
        return len(value) <= 4 and all(isinstance(part, int | float) and _modest(part) for part in value)
    return isinstance(value, str | None) or (isinstance(value, int | float) and abs(value) <= _LARGEST)


def data_card(data: Dataset, told: dict[str, Any]) -> dict[str, Any]:
    """A card's entry on the images, for `images_of`."""
    size = {"size": told["size"]} if told.get("size") else {}
    return {"name": told["name"], "classes": list(data.test.classes)} | size


def versions() -> dict[str, str]:
    """The versions of gradprune and torch, as rows, cards and pages name them."""
    return {"gradprune": __version__, "torch": torch.__version__.split("+")[0]}


def images_of(told: dict[str, Any], path: str | Path, on_card: bool = False) -> Dataset:
    """The images of a card's entry `told`; raises InputError if their classes differ from the entry's.

    on_card: whether only the card of `path` named them, as the message of an error then says.
    """
    try:
        data = load(told["name"], size=told["size"]) if told.get("size") else load(told["name"])
        require(told.get("classes", list(data.test.classes)) == list(data.test.classes),
                f"the classes of {told['name']} have other names or another order than when {path} was trained.")
    except InputError as error:
        if not on_card or told["name"] in SOURCES:
            raise
        raise InputError(f"{error} The card of {path} names these images, {told['name']!r}; --data gives it others."
                         ) from None
    return data


def doubts(answers: Tensor, labels: Tensor) -> list[str]:
    """Sentences on why the model and the images may not fit together, from the logits of clean images."""
    right = int((answers.argmax(1) == labels).sum())
    told = []
    if right < len(labels) / 2:
        told.append(f"Of {len(labels)} clean images the given model gets {right} right. If it should know better: the "
                    "data's classes must stand in the model's order, its pictures have the size, and its pixels be "
                    "shifted and scaled (--mean, --std) as in the training.")
    if bool((answers >= 0).all()) and torch.allclose(answers.sum(1), torch.ones(len(answers)), atol=1e-3):
        told.append("The model seems to return probabilities; leave its softmax out: the losses here take logits.")
    return told


def in_color(data: Dataset, model: nn.Module) -> tuple[Dataset, list[str]]:
    """Give grey images as many equal channels as the model takes, 3 or 1; returns the images and a note on that."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    given, wanted = data.test.images.shape[1], 0 if first is None else first.in_channels
    if (given, wanted) == (1, 3):
        parts = (ImageSet(part.images.repeat(1, 3, 1, 1), part.labels, part.classes) for part in data)
        return Dataset(*parts), ["The images are grey and the model takes colour: each was given three equal channels."]
    if (given, wanted) == (3, 1) and all(bool((part.images == part.images[:, :1]).all()) for part in data):
        parts = (ImageSet(part.images[:, :1].contiguous(), part.labels, part.classes) for part in data)
        return Dataset(*parts), ["The images are grey, as the model takes them: of three equal channels one was kept."]
    return data, []


def checkpoint_path(checkpoint: str | Path) -> Path:
    """The path of a checkpoint given by zoo name or by path; raises InputError for an unknown name.

    A name takes precedence over a file of that name; "./badnets" is the file (a warning says so).
    """
    path = Path(checkpoint)
    require(path.name not in ("", ".."), f"{str(checkpoint)!r} names no checkpoint: give the name of a shipped one "
                                         "(`gradprune zoo list`), or a path.")
    card, shipped = path.with_name(path.name + ".json"), data_folder() / "checkpoints" / path
    if not str(checkpoint).startswith((".", "~")) and (found := shipped.with_name(card.name)).is_file():
        if card.is_file() and not card.samefile(found):
            _log.warning("%r is the shipped model of that name; the file here is './%s'.", str(checkpoint), path)
        return shipped
    if not path.suffix and not card.is_file():
        require(not path.is_dir(), f"{path} is a folder: give a checkpoint's name without suffix, or weights.")
        if path.parent == Path():
            raise unknown("checkpoint", checkpoint, names())
        if len(path.parts) == 2 and path.parts[0].isidentifier() and (shipped_of_set := names(path.parts[0])):
            raise unknown("checkpoint", checkpoint, shipped_of_set)
    return path


def names(data: str = "") -> list[str]:
    """The names of the shipped checkpoints of the rendered signs, or of a published data set, as "cifar10/badnets"."""
    folder = data_folder() / "checkpoints"
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in (folder / data).glob("[!.]*.json"))
