"""A model of somebody else, made into a victim like any other from what its user says about it."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradprune.attacks import Trigger, read_trigger
from gradprune.attacks.triggers.position import Position
from gradprune.base.devices import choose_device
from gradprune.base.errors import InputError, plain, require, require_known
from gradprune.base.paths import output_folder
from gradprune.datasets import Dataset, ImageSet
from gradprune.models import MODELS, build, predict
from gradprune.models.checkpoints import Card, load_checkpoint, pack, paths, read_card, save_checkpoint
from gradprune.models.weights import WEIGHTS, bare_name, fit_weights, read_file, state_dict
from gradprune.victims.backdoorbench import NOT_READ, from_content, is_attack_result
from gradprune.victims.victim import Victim, checkpoint_path, data_card, doubts, images_of, in_color, trigger_of, try_on

STEMS = {"small": True, "stock": False}  # word -> `small` of `models.imported`
_TRIED = 100  # clean images, to check whether a model and its images fit together


class Opened(NamedTuple):
    """A model in eval mode, its card (what is known about it), its images, and notes for the user."""

    model: nn.Module
    card: Card
    data: Dataset
    notes: list[str]


@dataclass(frozen=True)
class Own:
    """What a user says about their own model; None for what a card or a file says.

    model: a name that `models.build` knows, or "module:function" in their own code, which is then run.
    data, size: as for `datasets.load`.
    trigger, position, opacity, mask: as for `attacks.read_trigger`.
    target: the class to which the trigger leads.
    mean, std: of the model's input, if the model does not normalise it.
    stem: of a named network of torchvision or timm, "small" or "stock", see `models.imported`. If None, and weights
        without a card fit both, the one that gets more of the defender's clean images right is used.
    """

    model: str | None = None
    data: str | None = None
    size: int | None = None
    trigger: str | None = None
    target: int | None = None
    position: Position = "bottom_right"
    opacity: float = 1.0
    mean: list[float] | None = None
    std: list[float] | None = None
    stem: str | None = None
    mask: str | None = None

    def open(self, weights: str | Path, device: str = "cpu") -> Opened:
        """Load the model and its images.

        weights: a checkpoint with a card, .safetensors, a file by torch.save, or BackdoorBench's attack_result.pt.
        device: where the model goes, see `models.choose_device`.
        Raises InputError if anything is missing, damaged or does not fit together.
        """
        where = choose_device(device)
        path = checkpoint_path(weights)
        opened = self._by_hand(path) if self._card_missing(path) else self._by_card(path)
        opened.model.to(where)
        images, count = opened.data.defense, opened.card["model"]["num_classes"]
        some = some_of(images)
        answers = predict(opened.model, some.floats()).cpu()
        require(answers.shape[1] == len(images.classes) == count,
                f"the model knows {answers.shape[1]} classes, the data has {len(images.classes)}: it must have all the "
                "model's, in the same order.")
        opened.notes.extend(doubts(answers, some.labels))
        return opened

    def victim(self, weights: str | Path, device: str = "cpu") -> Victim:
        """The model with its images and its trigger, which is applied to one image as a test; errors as for `open`."""
        model, card, data, notes = self.open(weights, device)
        attack = card.get("attack", {})
        target = attack.get("target") if self.target is None else plain(self.target)
        if self.trigger is None:
            require(isinstance(attack.get("trigger"), str),
                    f"nothing says which trigger {weights} reacts to: give --trigger a picture; `defend` and "
                    "`scan` can look for one.")
            trigger: Trigger = trigger_of(checkpoint_path(weights), card)
        else:
            trigger = read_trigger(self.trigger, self.position, self.opacity, self.mask)
        require(isinstance(target, int),
                "nothing says which class the trigger leads to: give --target, counted from 0.")
        data.test.check_target(target)
        try_on(trigger, data, weights)
        made = {"trigger": trigger.name, "settings": trigger.settings, "target": target}
        kept = self._still_true(card)
        return Victim(model, trigger, target, data, {**kept, "attack": {**kept.get("attack", {}), **made}}, notes=notes)

    def _still_true(self, card: Card) -> Card:
        """The card without the facts and figures of another attack than the user's."""
        attack = card.get("attack", {})
        if (self.trigger, self.target) == (None, None) or "trigger" not in attack:  # the user completes the card
            return card
        old = {"label_map"} if self.target is not None else set()
        old |= set() if self.trigger is None else attack.keys() - {"label_map"}
        kept = {name: entry for name, entry in card.items() if name != "metrics"}
        return kept | {"attack": {name: attack[name] for name in attack if name not in old}}

    def names_trigger(self, weights: str | Path) -> bool:
        """Whether the user or the card names the trigger, or the user its target."""
        if (self.trigger, self.target) != (None, None):
            return True
        path = checkpoint_path(weights)
        attack = None if self._card_missing(path) else read_card(path).get("attack")
        return isinstance(attack, dict) and isinstance(attack.get("trigger"), str)

    def save_all(self, weights: Sequence[str], folder: Path) -> list[str]:
        """Save several such models with their triggers as checkpoints in `folder`, with everything said here.

        Returns their paths, for a `Grid`; for a model in the user's own code, pass its name to the `Grid` as `code`.
        Raises InputError as `victim` does, if two files have the same name, or if a bench in the folder above has used
        a model that was saved under the same name with other weights, settings or images.
        """
        names = [bare_name(path) for path in weights]
        require(len(set(names)) == len(names), f"each model needs a file name of its own, got {', '.join(names)}.")
        victims = dict(zip((folder / name for name in names), map(self.victim, weights), strict=True))
        for one in victims.values():
            one.card["data"] = {**one.card.get("data", {}), "sha256": one.data.digest()}
        if (folder.parent / "bench.json").exists():
            for path, victim in victims.items():
                packed = pack(victim.model, victim.card, victim.trigger)
                require(not paths(path)[1].is_file() or read_card(path) == json.loads(packed.card),
                        f"{folder.parent} holds results of {path}, which was saved with other weights, settings or "
                        "images; nothing was changed. Choose another folder.")
        output_folder(folder)
        for path, victim in victims.items():
            save_checkpoint(path, victim.model, victim.card, victim.trigger)
        return [path.as_posix() for path in victims]

    def _by_card(self, path: Path) -> Opened:
        require((self.mean, self.std, self.stem) == (None, None, None),
                f"mean, std and stem are on the card of {path}; leave them out.")
        named = read_card(path)["model"]["name"]
        require(self.model in (None, named), f"the card of {path} names the model {named!r}, not {self.model!r}.")
        model, card = load_checkpoint(path, self.model)
        told = card.get("data")
        told = told if isinstance(told, dict) and isinstance(told.get("name"), str) else {}
        require(bool(self.data or told), f"the card of {path} does not say which data made the model.")
        require(self.data is not None or self.size is None,
                f"the card of {path} says which size its images have; a size goes with --data.")
        told = {"name": self.data, "size": self.size} if self.data else told
        data, notes = in_color(images_of(told, path, on_card=not self.data), model)
        return Opened(model, {**card, "data": data_card(data, told)}, data, notes)

    def _by_hand(self, path: Path) -> Opened:
        content = read_file(path)
        if self.model is None:
            return self._by_backdoorbench(content, path)
        require(self.data is not None,
                f"{path} does not say which images it is for: give --data a folder, a .npz file or a name.")
        told = {"name": str(self.data), "size": self.size}
        data = images_of(told, path)
        settings: dict[str, Any] = {"name": self.model, "num_classes": len(data.test.classes)}
        settings |= {key: value for key, value in (("mean", self.mean), ("std", self.std)) if value is not None}
        if MODELS.get(self.model) is MODELS["small_vgg"]:
            settings["size"] = data.test.images.shape[-1]
        tensors = state_dict(content, path)
        settings |= {} if ":" in self.model else guess_options(self.model, tensors)
        model, settings, told_of_stem = self._with_stem(settings, tensors, path, data)
        data, notes = in_color(data, model)
        notes.extend(told_of_stem)
        if ":" not in self.model and not {"mean", "std", "size"} & settings.keys():  # small_vgg: as they are
            notes.append(f"{self.model} takes 0.5 from the pixels, then divides them by 0.25; give --mean and --std if "
                         "these weights were trained otherwise.")
        return Opened(model, {"model": settings, "data": data_card(data, told)}, data, notes)

    def _with_stem(self, settings: dict[str, Any], weights: Mapping[str, Tensor], path: Path, data: Dataset
                   ) -> tuple[nn.Module, dict[str, Any], list[str]]:
        """The network with these weights, its settings, and a note on its stem."""
        if self.stem is not None:
            require_known("stem", self.stem, STEMS)
            require(":" not in settings["name"], "stem is for networks of torchvision and timm by name.")
            settings = {**settings, "small": STEMS[self.stem]}
        model = build(**settings, code=True)
        stock, other = None, {**settings, "small": False}
        if self.stem is None and hasattr(model, "stem_note"):
            with suppress(InputError):
                stock = fit_weights(build(**other), weights, path)
        try:
            fit_weights(model, weights, path)
        except InputError as error:
            if stock is not None:
                return stock, other, [f"The weights have the stem of {settings['name']} itself, which was kept."]
            counts = f" The data has {settings['num_classes']} classes." if "other shapes" in str(error) else ""
            raise InputError(f"{error}{counts}") from None
        if stock is None:
            return model, settings, []
        few = some_of(in_color(data, model)[0].defense)
        ours, theirs = (int((predict(net, few.floats()).argmax(1) == few.labels).sum()) for net in (model, stock))
        counts = f"of {len(few)} clean images it gets {{}} right with it, and {{}} with"
        if theirs > ours:
            return stock, other, [f"{settings['name']} keeps its own stem: {counts.format(theirs, ours)} the one for "
                                  "small images (--stem)."]
        return model, settings, [f"{settings['name']} has its stem for small images: {counts.format(ours, theirs)} the "
                                 "network's own (--stem)."]

    def _by_backdoorbench(self, content: Any, path: Path) -> Opened:
        require(is_attack_result(content), f"{path} does not say which network it is for: give --model a name, or "
                                           "module:function of your own code.")
        require(self.stem is None, f"{path} says which network it is for; leave the stem out.")
        found = from_content(content, path, mean=self.mean, std=self.std)
        told = {"name": self.data or found.data, "size": self.size}
        try:
            data = images_of(told, path)
        except InputError as error:
            if self.data:
                raise
            raise InputError(f"{path} was made with {found.data!r}; give its images with --data. {error}") from None
        shape = tuple(data.test.images.shape[2:])
        require(found.size in (None, shape), f"{path} takes images of {found.size} pixels, the data has {shape}; "
                                             "a folder's pictures get another size with --size.")
        attack = {} if found.target is None else {"target": found.target}
        attack |= {"poisoned_images": len(found.poisoned_train)} if len(found.poisoned_train) else {}
        data, notes = in_color(data, found.model)
        card = {"model": found.settings, "data": data_card(data, told), "attack": attack}
        return Opened(found.model, card, data, [NOT_READ, *notes])

    def _card_missing(self, path: Path) -> bool:
        """Whether these are weights without a card."""
        if path.suffix in WEIGHTS:
            return True
        return not paths(path)[1].is_file() and (self.model is not None or path.is_file())


def some_of(images: ImageSet) -> ImageSet:
    """At most a hundred images, spread over the set."""
    return images.subset(torch.linspace(0, len(images) - 1, min(_TRIED, len(images))).long())


def guess_options(model: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings of a named network that follow from its weights: grey images, a PreActResNet without its last norm."""
    read = [tensor.shape[1] for tensor in tensors.values() if tensor.ndim == 4]
    told: dict[str, Any] = {"channels": 1} if 1 in read and 3 not in read else {}
    bare = model.startswith("preact_resnet") and not any(name.endswith("bn.weight") for name in tensors)
    return {**told, "last_norm": False} if bare else told
