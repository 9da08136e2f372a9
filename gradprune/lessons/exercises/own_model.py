"""The exercises of notebook 06: somebody's weights, somebody's pixels, and partners (see there)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradprune.lessons.exercises.partner import PARTNERS
from gradprune.lessons.runtime.feedback import Seen
from gradprune.lessons.runtime.grading import Complaint, Exercise, Function, Misconception, Untouched, as_tensor

# ---- unwrap(content) -> name -> tensor


def _unwrap(content: Mapping[str, Any]) -> dict[str, Any]:
    return _renamed(lambda name: name.removeprefix("module."))(content)


def _renamed(rename: Callable[[str], str], keep: Callable[[str], bool] = lambda name: True) -> Function:
    """A way to unwrap that opens the nest and renames what it keeps."""
    return lambda content: {rename(name): value for name, value in _opened(content).items() if keep(name)}


def _opened(content: Mapping[str, Any]) -> Mapping[str, Any]:
    return content.get("state_dict", content)


def _files() -> list[tuple[dict[str, Any]]]:
    """Contents of three files: a nest with prefixes, prefixes alone, and a state dict as it should be."""
    generator = torch.Generator().manual_seed(0)

    def tensors(names: Sequence[str]) -> dict[str, Any]:
        return {name: torch.randn(2, 3, generator=generator) for name in names}

    nested = tensors(["module.model.conv.weight", "module.model.norm.running_mean", "module.head.module.bias"])
    return [({"epoch": 3, "state_dict": nested, "lr": 0.1},),
            (tensors(["module.lower.weight", "module.conv.module.1.running_var", "module.scale"]),),
            (tensors(["conv.weight", "module_list.0.bias", "norm.running_var", "head.module.weight"]),)]


def _short_files() -> list[tuple[dict[str, Any]]]:
    """Contents of two files short enough to be read."""
    one = torch.ones(1)
    return [({"epoch": 3, "state_dict": {"module.conv.weight": one, "module.head.module.bias": one}},),
            ({"conv.weight": one, "head.module.bias": one},)]


def _names_and_values(function: Function, case: Sequence[Any]) -> Seen:
    """How many entries, and each by name: its name as numbers, then its value."""
    try:
        found = function(*case)
    except KeyError as error:
        if error.args == ("state_dict",) and "state_dict" not in case[0]:
            raise Complaint("a hidden file is a state dict already, so there is no “state_dict” in it to open. Open "
                            "the nest only where there is one.") from error
        raise
    if found is None or found is ...:
        raise Untouched
    if not isinstance(found, Mapping):
        raise Complaint("a dict is wanted, name -> tensor, as `model.state_dict()` gives and `load_state_dict` takes.")
    seen = [torch.tensor(len(found)).double()]
    for name, value in sorted((str(name), value) for name, value in found.items()):
        seen += [torch.tensor([*name.encode()]).double(),
                 value.double() if isinstance(value, Tensor) else torch.tensor([-1.0]).double()]
    return seen


def _cut_by_dot(name: str) -> str:
    return name.split(".", 1)[-1]


UNWRAP = Exercise(
    notebook="06", name="unwrap", signature="unwrap(content)",
    praise="the nest is opened where there is one, and only a leading “module.” goes.",
    reference=_unwrap, cases=_files, observe=_names_and_values, examples=_short_files,
    misconceptions=(
        Misconception("`lstrip(\"module.\")` takes away LETTERS, any of m, o, d, u, l, e and the dot, as long as it "
                      "finds them: “module.model.conv” becomes “conv”. `removeprefix` takes the word.",
                      _renamed(lambda name: name.lstrip("module."))),
        Misconception("`strip(\"module.\")` takes away LETTERS, at both ends. `removeprefix` takes the word, at the "
                      "front.", _renamed(lambda name: name.strip("module."))),
        Misconception("`replace` takes “module.” away wherever it stands. Inside a name it belongs to the network: use "
                      "`removeprefix`.", _renamed(lambda name: name.replace("module.", ""))),
        Misconception("`replace(..., 1)` takes the first “module.” away, wherever it stands: “head.module.bias”. "
                      "`removeprefix` looks at the front alone.",
                      _renamed(lambda name: name.replace("module.", "", 1))),
        Misconception("all that stands before the LAST “module.” goes. Inside a name it belongs to the network: "
                      "`removeprefix`.", _renamed(lambda name: name.split("module.")[-1])),
        Misconception("seven letters are cut off every name, also where there is no “module.” in front.",
                      _renamed(lambda name: name[7:])),
        Misconception("everything up to the first dot is cut off, whatever it is: “conv.weight” becomes “weight”.",
                      _renamed(_cut_by_dot)),
        Misconception("only what follows the last dot is left. All layers then share the names “weight” and “bias”, "
                      "and one overwrites the other.", _renamed(lambda name: name.split(".")[-1])),
        Misconception("a dot stays in front: the prefix is “module.”, with its dot.",
                      _renamed(lambda name: name.removeprefix("module"))),
        Misconception("the names still begin with “module.”, which the network does not know.",
                      lambda content: dict(_opened(content))),
        Misconception("the nest is not opened: where there is a “state_dict” inside, the weights are there.",
                      lambda content: {name.removeprefix("module."): value for name, value in content.items()}),
        Misconception("the content comes back as it was.", lambda content: content),
        Misconception("a single tensor comes back: the `return` stands inside the loop and ends it at once.",
                      lambda content: dict([next(iter(_unwrap(content).items()))])),
        Misconception("BatchNorm's running statistics are left out. They are no parameters, but without them the "
                      "network reads nothing: keep every tensor.",
                      _renamed(lambda name: name.removeprefix("module."), lambda name: "running" not in name)),
        Misconception("weights and biases alone are kept. BatchNorm's statistics and other tensors belong to the "
                      "state, too.", _renamed(lambda name: name.removeprefix("module."),
                                       lambda name: name.endswith(("weight", "bias")))),
        Misconception("only names that begin with “module.” are kept. A file from a single GPU has none such.",
                      _renamed(lambda name: name.removeprefix("module."), lambda name: name.startswith("module."))),
    ))

# ---- normalise(images, mean, std) -> images of the same shape


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values).view(3, 1, 1)


def _normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return (images - _per_channel(mean)) / _per_channel(std)


def _pixels() -> list[tuple[Any, ...]]:
    """Three images of three by three pixels: whichever axis is taken for the channels, torch says nothing."""
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(3, 3, 3, 3, generator=generator), [0.49, 0.46, 0.31], [0.23, 0.28, 0.19]),
            (torch.rand(3, 3, 3, 3, generator=generator), [0.1, 0.5, 0.8], [0.5, 0.2, 0.4])]


def _one_pixel() -> list[tuple[Any, ...]]:
    """An image of a single pixel."""
    return [(torch.tensor([0.5, 0.6, 0.7]).view(1, 3, 1, 1), [0.5, 0.4, 0.3], [0.25, 0.5, 0.2])]


def _for_a_network(function: Function, case: Sequence[Any]) -> Seen:
    """The images, if a network with float32 weights can take them."""
    images = function(*case)
    if getattr(images, "dtype", torch.float32) != torch.float32:
        raise Complaint(f"the images come back as {images.dtype} (NumPy's numbers are float64), and the network takes "
                        "torch.float32 alone: make tensors with `torch.tensor(mean)`, or end with `.float()`.")
    return [as_tensor(images)]


def _along(shape: tuple[int, ...]) -> Function:
    """Normalise along another axis than the channels'."""
    return lambda x, m, s: (x - torch.tensor(m).view(shape)) / torch.tensor(s).view(shape)


def _standardised(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return (x - x.mean(dim=axes, keepdim=True)) / x.std(dim=axes, keepdim=True)


NORMALISE = Exercise(
    notebook="06", name="normalise", signature="normalise(images, mean, std)",
    praise="each channel is shifted by its own mean, then scaled by its own spread.",
    reference=_normalise, cases=_pixels, observe=_for_a_network, examples=_one_pixel,
    misconceptions=(
        Misconception("three numbers alone are laid along the LAST axis, the columns. These hidden images are three "
                      "pixels wide, so nobody complains. Make them (3, 1, 1).", _along((3,))),
        Misconception("the numbers lie along the rows: (3, 1) is one axis too few. Make them (3, 1, 1).",
                      _along((3, 1))),
        Misconception("the numbers lie along the images, one for each picture. The channels are axis 1: (3, 1, 1).",
                      _along((3, 1, 1, 1))),
        Misconception("the mean is added. Shifting to zero takes it away.",
                      lambda x, m, s: (x + _per_channel(m)) / _per_channel(s)),
        Misconception("std is multiplied. To bring the spread to 1, divide by it.",
                      lambda x, m, s: (x - _per_channel(m)) * _per_channel(s)),
        Misconception("divided first, shifted then: the mean is one of pixels in 0..1; take it away before dividing.",
                      lambda x, m, s: x / _per_channel(s) - _per_channel(m)),
        Misconception("the brackets are missing: Python divides before it subtracts.",
                      lambda x, m, s: x - _per_channel(m) / _per_channel(s)),
        Misconception("std is squared. That is the variance.",
                      lambda x, m, s: (x - _per_channel(m)) / _per_channel(s).square()),
        Misconception("the mean is taken away, but nothing is divided.", lambda x, m, s: x - _per_channel(m)),
        Misconception("divided, but the mean is not taken away first.", lambda x, m, s: x / _per_channel(s)),
        Misconception("the images are divided by 255 first. Here they are in 0..1 already.",
                      lambda x, m, s: _normalise(x / 255, m, s)),
        Misconception("the images are multiplied by 255 first. mean and std are meant for pixels in 0..1.",
                      lambda x, m, s: _normalise(x * 255, m, s)),
        Misconception("the channels are turned around, as OpenCV keeps them (blue first). These are red, green, blue.",
                      lambda x, m, s: _normalise(x.flip(1), m, s)),
        Misconception("the images' OWN mean and spread are used. The network was trained with fixed numbers, the same "
                      "for every batch.", lambda x, m, s: _standardised(x, (0, 2, 3))),
        Misconception("each image's own mean and spread are used. The network was trained with fixed numbers.",
                      lambda x, m, s: _standardised(x, (2, 3))),
        Misconception("one number for all channels. Each has its own.",
                      lambda x, m, s: (x - sum(m) / 3) / (sum(s) / 3)),
        Misconception("the result is cut to 0..1. Half of the values belong below zero: leave them.",
                      lambda x, m, s: _normalise(x, m, s).clamp(0, 1)),
        Misconception("this is the way back, from normalised images to pixels.",
                      lambda x, m, s: x * _per_channel(s) + _per_channel(m)),
        Misconception("mean and std are exchanged.", lambda x, m, s: _normalise(x, s, m)),
        Misconception("the channels have come to the front, before the images: `torch.stack(..., dim=1)` leaves them "
                      "in their place.", lambda x, m, s: _normalise(x, m, s).transpose(0, 1)),
    ))

OWN_MODEL_EXERCISES = (UNWRAP, NORMALISE, PARTNERS)
