"""Checkpoints: weights as safetensors, a JSON card beside them, written whole and checked on load."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from gradprune.errors import InputError, require
from gradprune.models import build
from gradprune.paths import write_atomic

Card = dict[str, Any]


def save_checkpoint(path: str | Path, model: nn.Module, card: Card) -> Path:
    """Write `path`.safetensors and `path`.json; returns the path of the weights.

    card: plain JSON values; `card["model"]` holds `name` and the settings that `models.build` takes, `num_classes`
    among them. The card gets the weights' sha256, so weights and card of different runs never pass for a pair.
    Raises InputError where the folder cannot be written.
    """
    weights_path, card_path = _paths(path)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    weights = save(state)
    card = {**card, "sha256": hashlib.sha256(weights).hexdigest()}
    text = json.dumps(card, indent=2) + "\n"
    write_atomic(weights_path, lambda temporary: temporary.write_bytes(weights))
    write_atomic(card_path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return weights_path


def read_card(path: str | Path) -> Card:
    """Read a checkpoint's card; raises InputError if it is missing or not what a card should be."""
    _, card_path = _paths(path)
    require(card_path.is_file(), f"there is no checkpoint card at {card_path}.")
    try:
        card = json.loads(card_path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"the checkpoint card {card_path} cannot be read: {error}.") from None
    complete = isinstance(card, dict) and isinstance(card.get("model"), dict) and isinstance(card.get("sha256"), str)
    require(complete and {"name", "num_classes"} <= set(card["model"]),
            f"the checkpoint card {card_path} lacks 'sha256' or 'model' with 'name' and 'num_classes'.")
    return card


def load_checkpoint(path: str | Path) -> tuple[nn.Module, Card]:
    """Load a model in eval mode on the CPU, and its card; no code from the file is run.

    Raises InputError for a missing, truncated or tampered checkpoint, or weights that do not fit the card's model.
    """
    weights_path, _ = _paths(path)
    card = read_card(path)
    require(weights_path.is_file(), f"there are no checkpoint weights at {weights_path}.")
    weights = weights_path.read_bytes()
    require(hashlib.sha256(weights).hexdigest() == card["sha256"],
            f"the weights {weights_path} do not match their card: the file is truncated, tampered with or of another "
            "run.")
    settings = dict(card["model"])
    model = build(settings.pop("name"), settings.pop("num_classes"), **settings)
    try:
        model.load_state_dict(load(weights))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()  # torch lists every tensor; one tells enough
        raise InputError(f"the weights {weights_path} do not fit the model on their card: {reason}") from None
    return model.eval().to(memory_format=torch.channels_last), card


def _paths(path: str | Path) -> tuple[Path, Path]:
    """The weights' and the card's path; `path` may name either, or neither ending."""
    path = Path(path)
    if path.suffix in (".safetensors", ".json"):
        path = path.with_suffix("")
    return path.with_name(path.name + ".safetensors"), path.with_name(path.name + ".json")
