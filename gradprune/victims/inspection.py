"""Inspect a file of weights: layers, classes, the network that it fits, how it expects images, and what to run next.

Nothing in the file is run.
"""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from gradprune.base.errors import InputError
from gradprune.models.checkpoints import paths, read_card
from gradprune.models.inference import check_convolutional
from gradprune.models.weights import read_file, state_dict
from gradprune.victims.backdoorbench import is_attack_result
from gradprune.victims.guessing import USUAL, Guess, guesses, is_folder, likely_networks, refusal
from gradprune.victims.victim import SYNTHESISED, checkpoint_path

_DOUBTFUL = 0.5  # below this share of right answers a guess is doubtful


@dataclass
class Inspection:
    """What is known about a file.

    holds: the kind of file.
    tensors, numbers: how many it contains.
    layers: how many of each kind.
    channels, classes: of the images and the output; None if no layer shows it.
    model: the network that the tensors fit, "" if none does.
    guesses: ways to read images, the best first.
    notes: sentences for the user.
    command: what to run next, "" for a network that no defence supports.
    """

    file: str
    holds: str
    tensors: int
    numbers: int
    layers: dict[str, int]
    channels: int | None
    classes: int | None
    model: str = ""
    guesses: list[Guess] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    command: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The inspection as plain JSON values."""
        named = [guess._asdict() | dict(zip(("mean", "std"), USUAL[guess.normalisation], strict=True))
                 for guess in self.guesses]
        return asdict(self) | {"guesses": named}


def inspect(weights: str | Path, data: str | None = None, *, size: int | None = None, model: str | None = None
            ) -> Inspection:
    """Look into a file of weights, or a checkpoint.

    weights: a path, or the name of a shipped checkpoint.
    data, size, model: as for `Own`; without a model the known networks are tried, and without data normalisation and
        size are not guessed.
    No code from the file is run. Raises InputError for a file or images that cannot be read.
    """
    own = Path(weights) if Path(weights).suffix != ".json" else paths(weights)[0]
    path = next(path for path in (own, paths(checkpoint_path(weights))[0]) if path.is_file() or path.suffix)
    content = read_file(path)
    tensors = {name: tensor for name, tensor in state_dict(content, path).items() if not name.startswith("trigger.")}
    inspection = Inspection(path.as_posix(), "a state dict", len(tensors), sum(map(Tensor.numel, tensors.values())),
                            _layers(tensors), *_ends(tensors))
    options: list[str] | None = []
    known = False  # whether the trigger is known
    if path.suffix == ".safetensors" and paths(path)[1].is_file():
        card = read_card(path)
        inspection.channels, inspection.classes = card["model"].get("channels", 3), card["model"]["num_classes"]
        inspection.holds, inspection.model = "a checkpoint of gradprune with its card", str(card["model"]["name"])
        known = card.get("attack", {}).get("trigger", SYNTHESISED) != SYNTHESISED
    elif is_attack_result(content):
        inspection.holds = f"BackdoorBench's attack_result.pt of a {content['model_name']}"
        options = ["--data", data] if data else []
    else:
        options = _found(inspection, tensors, path, data, size, model)
    if ":" in inspection.model and options == []:
        options = ["--model", inspection.model]  # somebody's own code runs only if it is named
    if options is not None and inspection.layers["convolutions"]:
        out = "out/clean" if path.with_suffix("") != Path("out/clean") else "out/cleaner"
        inspection.command = shlex.join(["gradprune", "defend" if known else "repair", str(weights), *options,
                                         "--out", out])
    return inspection


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    weights = [tensor.ndim for name, tensor in tensors.items() if name.endswith("weight")]
    return {"convolutions": weights.count(4), "linear layers": weights.count(2),
            "BatchNorms": sum(name.endswith("running_mean") for name in tensors)}


def _ends(tensors: Mapping[str, Tensor]) -> tuple[int | None, int | None]:
    """The channels of the images and the number of classes, from the first convolution and the last layer.

    A .safetensors file keeps no order, so a convolution that reads three channels and a linear layer go before others.
    """
    first = [tensor.shape[1] for tensor in tensors.values() if tensor.ndim == 4]
    last = ([len(tensor) for tensor in tensors.values() if tensor.ndim == 2]
            or [len(tensor) for tensor in tensors.values() if tuple(tensor.shape[2:]) == (1, 1)])
    return 3 if 3 in first else first[0] if first else None, last[-1] if last else None


def _found(inspection: Inspection, tensors: Mapping[str, Tensor], path: Path, data: str | None, size: int | None,
           model: str | None) -> list[str] | None:
    """Look for the network and how it reads images; returns the options of the next command, or None for no command."""
    inspection.model, nets, why = likely_networks(tensors, inspection.classes or 0, path, model)
    if not nets:
        inspection.notes.append(f"{why} Name the network, or your own code of it, with --model.")
        return ["--model", "MODULE:FUNCTION", "--data", data or "FOLDER"]
    try:
        check_convolutional(next(iter(nets.values())))
    except InputError as error:
        inspection.notes.append(f"{str(error)[:1].upper()}{str(error)[1:]}")
        return None
    options = ["--model", inspection.model]
    inspection.guesses = guesses(nets, data, size) if data else []
    best = inspection.guesses[0] if inspection.guesses else None
    stem = best.stem if best else next(iter(nets)) if len(nets) == 1 else ""
    options += (["--stem", stem] if stem else []) + ["--data", data or "FOLDER"]
    if best and data:
        mean, std = (",".join(str(round(number, 6)) for number in numbers) for numbers in USUAL[best.normalisation])
        options += ["--mean", mean, "--std", std]
        options += ["--size", str(best.size)] if is_folder(data) else []
        if best.right < _DOUBTFUL * best.images:
            inspection.notes.append(
                f"No usual normalisation and size gets more than {best.right} of {best.images} images right: look "
                "at the order of the classes, and ask the model's maker.")
    elif data:
        inspection.notes.append(f"The model does not take the images of {data}: {refusal(nets, data, size)}")
    else:
        inspection.notes.append("With --data, a folder of clean pictures, normalisation and size are guessed, too.")
    return options
