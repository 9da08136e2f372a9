"""Checkpoints: weights as safetensors with a JSON card, written atomically and checked on load."""

import hashlib
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from gradprune.base.errors import plain, require, told_as
from gradprune.base.paths import read_json, write_together
from gradprune.models import build
from gradprune.models.limits import in_proportion

Card = dict[str, Any]

_TRIGGER = "trigger."  # prefix of the tensors that a trigger learned, in the same file as the model's


def save_checkpoint(path: str | Path, model: nn.Module, card: Card, trigger: nn.Module | None = None) -> Path:
    """Write `path`.safetensors and `path`.json; returns the path of the weights.

    model: if float16 represents all its floats exactly, it is stored so, in half the bytes; loading gives float32.
    card: plain JSON values; `card["model"]` holds `name` and the settings that `models.build` takes, including
        `num_classes`. The weights' sha256 is added, so that weights and card of different runs do not pass as a pair.
    trigger: its learned tensors (a state dict that is not empty) go into the same file, with "trigger." before each
        name, so that the hash covers them too.
    Raises InputError if the folder is not writable or the disk is full; an old pair then stays.
    """
    weights_path, card_path = paths(path)
    packed = pack(model, card, trigger)
    write_together({weights_path: lambda temporary: temporary.write_bytes(packed.weights),
                    card_path: lambda temporary: temporary.write_text(packed.card, encoding="utf-8")})
    return weights_path


class Packed(NamedTuple):
    """The content of a checkpoint's two files."""

    weights: bytes
    card: str


def pack(model: nn.Module, card: Card, trigger: nn.Module | None = None) -> Packed:
    """What `save_checkpoint` writes; its arguments."""
    learned = {} if trigger is None else {_TRIGGER + key: value for key, value in trigger.state_dict().items()}
    own = model.state_dict()
    floats = {name: tensor for name, tensor in own.items() if tensor.is_floating_point()}
    if all(torch.equal(tensor.half().to(tensor), tensor) for tensor in floats.values()):
        own = own | {name: tensor.half() for name, tensor in floats.items()}
    weights = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in (own | learned).items()})
    card = {**card, "sha256": hashlib.sha256(weights).hexdigest()}
    return Packed(weights, json.dumps(card, indent=2, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """What JSON does not know, such as a number of NumPy's or a tensor of one."""
    require(not isinstance(value, Tensor) or value.numel() == 1, "a card holds no tensors.")
    simple = value.item() if hasattr(value, "item") else plain(value)
    require(simple is not value, f"a card cannot hold {type(value).__name__}.")
    return simple


def read_card(path: str | Path) -> Card:
    """Read a checkpoint's card; raises InputError if it is missing or not what a card should be."""
    _, card_path = paths(path)
    require(card_path.is_file(), f"there is no checkpoint card at {card_path}.")
    card = read_json(card_path)
    complete = isinstance(card, dict) and isinstance(card.get("model"), dict) and isinstance(card.get("sha256"), str)
    require(complete and {"name", "num_classes"} <= set(card["model"]),
            f"the checkpoint card {card_path} lacks 'sha256' or 'model' with 'name' and 'num_classes'.")
    odd = [part for part in ("attack", "data", "training", "metrics", "defense")
           if not isinstance(card.get(part, {}), dict)]
    require(not odd, f"'{' and '.join(odd)}' on the checkpoint card {card_path} must be tables.")
    require("metrics" not in card or all(_share(card["metrics"].get(name)) for name in ("acc", "asr", "ra")),
            f"'metrics' on the checkpoint card {card_path} must hold acc, asr and ra, each in 0..1.")
    return card


def _share(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def load_checkpoint(path: str | Path, code: str | None = None) -> tuple[nn.Module, Card]:
    """Load a model in eval mode on the CPU, and its card; no code from the file is run.

    path: of the weights or the card, with or without the ending.
    code: the "module:function" that the caller trusts to build the model, if the card names one (see `models.build`).
    Raises InputError for a missing, truncated or tampered checkpoint, or weights that do not fit the card's model.
    """
    tensors, card = _read(path)
    settings = dict(card["model"])
    name, count = settings.pop("name"), settings.pop("num_classes")
    require(not settings.keys() & {"code", "largest"}, f"the card of {path} holds settings that no model has.")
    largest = in_proportion(paths(path)[0])
    model = build(name, count, code=name == code, largest=None if name == code else largest, **settings)
    with _fitting(path, "model", RuntimeError):
        model.load_state_dict({name: tensor for name, tensor in tensors.items() if not name.startswith(_TRIGGER)})
    model.eval()  # its return value is not used: foreign code may override train() and return None
    if name == code:  # it may flatten with `.view`; defences try channels_last themselves, see `models.working`
        return model, card
    return model.to(memory_format=torch.channels_last), card


def load_learned(path: str | Path, trigger: nn.Module) -> None:
    """Fill a trigger built from its card's settings with its learned tensors; one without any stays as it is.

    Raises InputError as `load_checkpoint` does, or where the saved tensors are not this trigger's.
    """
    tensors, _ = _read(path)
    with _fitting(path, "trigger", RuntimeError):
        trigger.load_state_dict({name.removeprefix(_TRIGGER): tensor for name, tensor in tensors.items()
                                 if name.startswith(_TRIGGER)})


def _read(path: str | Path) -> tuple[dict[str, Tensor], Card]:
    """All tensors of a checkpoint and its card, after the hash on the card has been checked."""
    weights_path, _ = paths(path)
    card = read_card(path)
    require(weights_path.is_file(), f"there are no checkpoint weights at {weights_path}.")
    weights = weights_path.read_bytes()
    require(hashlib.sha256(weights).hexdigest() == card["sha256"], f"the weights {weights_path} do not match their "
            "card: the file is truncated, tampered with or of another run.")
    with _fitting(path, "model", Exception):  # dtypes that torch lacks, and whatever else a header may claim
        return load(weights), card


def _fitting(path: str | Path, part: str, kind: type[Exception]) -> AbstractContextManager[None]:
    """Refuse tensors that are not what the card says; torch lists every tensor, one is enough here."""
    return told_as(lambda error: f"the weights {paths(path)[0]} do not fit the {part} on their card: "
                                 f"{str(error).strip().splitlines()[-1].strip()}", (kind,))


def paths(path: str | Path) -> tuple[Path, Path]:
    """The paths of weights and card; `path` may have the ending of either, or none."""
    path = Path(path)
    if path.suffix in (".safetensors", ".json"):
        path = path.with_suffix("")
    return path.with_name(path.name + ".safetensors"), path.with_name(path.name + ".json")
