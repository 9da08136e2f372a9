"""The exercises of notebook 06: someone else's weights, someone else's pixels, and which layer reads which."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradprune.lessons.runtime.feedback import Seen, kind
from gradprune.lessons.runtime.grading import Complaint, Function, as_tensor, exercise

# ---- unwrap


def _files() -> list[tuple[dict[str, Any]]]:
    """Contents of three files: a nest with prefixes, prefixes alone, and a state dict as it should be."""
    generator = torch.Generator().manual_seed(0)

    def tensors(*names: str) -> dict[str, Any]:
        return {name: torch.randn(2, 3, generator=generator) for name in names}

    nested = tensors("module.model.conv.weight", "module.model.norm.running_mean", "module.head.module.bias")
    return [({"epoch": 3, "state_dict": nested, "lr": 0.1},),
            (tensors("module.lower.weight", "module.conv.module.1.running_var", "module.scale"),),
            (tensors("conv.weight", "module_list.0.bias", "norm.running_var", "head.module.weight"),)]


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
                            "the inner dict only where there is one.") from error
        raise
    if not isinstance(found, Mapping):
        raise Complaint("a dict is wanted, name -> tensor, as `model.state_dict()` returns and `load_state_dict` "
                        "takes.")
    seen = [torch.tensor(len(found)).double()]
    for name, value in sorted((str(name), value) for name, value in found.items()):
        seen += [torch.tensor([*name.encode()]).double(),
                 value.double() if isinstance(value, Tensor) else torch.tensor([-1.0]).double()]
    return seen


@exercise("06", cases=_files, observe=_names_and_values, examples=_short_files,
          praise="the inner dict is opened where there is one, and only a leading “module.” is removed.")
def unwrap(content: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict in a file: name -> tensor."""
    return {name.removeprefix("module."): value for name, value in content.get("state_dict", content).items()}


def _renamed(rename: Function) -> Function:
    return lambda content: {rename(name): value for name, value in content.get("state_dict", content).items()}


unwrap.wrong_answers({
    "the names still begin with “module.”, which the network does not know: remove it.": _renamed(str),
    "a dot is left in front: the prefix is “module.”, with its dot.":
        _renamed(lambda name: name.removeprefix("module")),
    "everything up to the first dot is cut off, whatever it is: “conv.weight” becomes “weight”. Remove only "
    "“module.”, with `removeprefix`.": _renamed(lambda name: name.split(".", 1)[-1]),
    "seven characters are cut off every name, even where there is no “module.” in front: use `removeprefix`.":
        _renamed(lambda name: name[7:]),
    "`replace` removes “module.” wherever it is. Inside a name it belongs to the network: use `removeprefix`.":
        _renamed(lambda name: name.replace("module.", "")),
    "`lstrip(\"module.\")` removes LETTERS, any of m, o, d, u, l, e and the dot, as long as it finds them: "
    "“module.model.conv” becomes “conv”. `removeprefix` removes the whole word.":
        _renamed(lambda name: name.lstrip("module.")),
    "the inner dict is not opened: where there is a “state_dict” inside, the weights are in it.":
        lambda content: {name.removeprefix("module."): value for name, value in content.items()},
    "a single tensor comes back: the `return` is inside the loop and ends it at once. Move it below the loop.":
        lambda content: dict([*unwrap.reference(content).items()][:1]),
    "only names that begin with “module.” are kept. A file from a single GPU has no such names: keep the others as "
    "they are.": lambda content: {name[7:]: value for name, value in content.get("state_dict", content).items()
                                  if name.startswith("module.")},
})


# ---- normalise


def _pixels() -> list[tuple[Any, ...]]:
    """Three images of three by three pixels: whichever axis is taken for the channels, torch says nothing."""
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(3, 3, 3, 3, generator=generator), [0.49, 0.46, 0.31], [0.23, 0.28, 0.19]),
            (torch.rand(3, 3, 3, 3, generator=generator), [0.1, 0.5, 0.8], [0.5, 0.2, 0.4])]


def _for_a_network(function: Function, case: Sequence[Any]) -> Seen:
    """The images, if a network with float32 weights can take them."""
    images = function(*case)
    if not isinstance(images, Tensor):
        raise Complaint(f"your function returns {kind(images)}, and the network takes a tensor: return a tensor, made "
                        "with `torch.tensor(mean)` and `torch.tensor(std)`.")
    if images.dtype != torch.float32:
        raise Complaint(f"the images come back as {images.dtype} (NumPy's numbers are float64), and the network takes "
                        "torch.float32 alone: make tensors with `torch.tensor(mean)`, or end with `.float()`.")
    return [as_tensor(images)]


@exercise("06", cases=_pixels, observe=_for_a_network,
          examples=lambda: [(torch.tensor([0.5, 0.6, 0.7]).view(1, 3, 1, 1), [0.5, 0.4, 0.3], [0.25, 0.5, 0.2])],
          praise="each channel is shifted by its own mean, then divided by its own std.")
def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Shift and scale each channel by its own numbers."""
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def _scaled(scale: Function, shape: tuple[int, ...] = (3, 1, 1)) -> Function:
    return lambda images, mean, std: scale(images, torch.tensor(mean).view(shape), torch.tensor(std).view(shape))


def _by_its_own(images, mean, std, axes):
    return (images - images.mean(dim=axes, keepdim=True)) / images.std(dim=axes, keepdim=True)


normalise.wrong_answers({
    "the result is cut to 0..1. About half of the values belong below zero: leave them.":
        _scaled(lambda images, mean, std: ((images - mean) / std).clamp(0, 1)),
    "the images are divided by 255 first. Here they are in 0..1 already: leave that out.":
        _scaled(lambda images, mean, std: (images / 255 - mean) / std),
    "the brackets are missing: Python divides before it subtracts. Write `(images - mean) / std`.":
        _scaled(lambda images, mean, std: images - mean / std),
    "you divide first and shift then. The mean is that of pixels in 0..1: subtract it before dividing.":
        _scaled(lambda images, mean, std: images / std - mean),
    "you multiply by std. To bring the standard deviation to 1, divide by it.":
        _scaled(lambda images, mean, std: (images - mean) * std),
    "the numbers are matched with the rows: (3, 1) is one axis too few. Give them the shape (3, 1, 1).":
        _scaled(lambda images, mean, std: (images - mean) / std, shape=(3, 1)),
    "the three numbers are matched with the LAST axis, the columns. These hidden images are three pixels wide, so "
    "torch raises no error. Give the numbers the shape (3, 1, 1).":
        _scaled(lambda images, mean, std: (images - mean) / std, shape=(3,)),
    "each image's own mean and std are used. The network was trained with fixed numbers: use `mean` and `std`.":
        partial(_by_its_own, axes=(2, 3)),
    "the images' OWN mean and std are used. The network was trained with fixed numbers, the same for every batch: use "
    "`mean` and `std`.": partial(_by_its_own, axes=(0, 2, 3)),
})


# ---- partners: which BatchNorm belongs to which convolution

Reads = Sequence[tuple[str, str]]


def _graphs() -> list[tuple[Any, ...]]:
    """A residual block that keeps a sum, and a network in which outputs are shared, joined and read twice."""
    block = [("image", "conv1"), ("conv1", "norm1"), ("norm1", "relu"), ("relu", "conv2"), ("conv2", "norm2"),
             ("norm2", "relu_1"), ("relu_1", "conv3"), ("conv3", "add"), ("relu", "add"), ("add", "norm3"),
             ("norm3", "output")]
    other = [("image", "norm_a"), ("norm_a", "conv_e"), ("conv_e", "norm_d"), ("norm_d", "conv_b"),
             ("conv_b", "norm_b"), ("conv_b", "cat"), ("norm_b", "conv_c"), ("conv_c", "norm_s"),
             ("norm_d", "conv_d"), ("conv_d", "norm_s"), ("norm_s", "cat"), ("cat", "conv_f"), ("conv_f", "relu"),
             ("relu", "norm_c"), ("norm_c", "conv_g"), ("norm_c", "join"), ("conv_g", "norm_g"), ("norm_g", "join"),
             ("norm_g", "output"), ("join", "output"), ("image", "conv_h"), ("conv_h", "norm_h"), ("relu", "norm_h"),
             ("norm_h", "output")]
    return [(block, ["conv1", "conv2", "conv3"], ["norm1", "norm2", "norm3"]),
            (other, ["conv_b", "conv_c", "conv_d", "conv_e", "conv_f", "conv_g", "conv_h"],
             ["norm_a", "norm_b", "norm_c", "norm_d", "norm_g", "norm_h", "norm_s"])]


def _small_graph() -> list[tuple[Any, ...]]:
    """A chain whose second BatchNorm reads a sum."""
    reads = [("image", "c1"), ("c1", "n1"), ("n1", "c2"), ("c2", "add"), ("n1", "add"), ("add", "n2"), ("n2", "output")]
    return [(reads, ["c1", "c2"], ["n1", "n2"])]


def _pairs_found(function: Function, case: Sequence[Any]) -> Seen:
    """A table of ones and zeros, a row and a column for each name; None as a partner counts as no partner."""
    found = function(*case)
    if not isinstance(found, Mapping):
        raise Complaint("a dict is wanted, convolution -> BatchNorm, without those that have no partner.")
    names = [*case[1], *case[2]]
    return [torch.tensor([[float(found.get(row, "") == column) for column in names] for row in names]).double()]


def _reached(reads: Reads, conv: str, norms: Sequence[str]) -> str | None:
    """The first BatchNorm after a convolution, through whatever lies between."""
    waiting = [conv]
    for name in waiting:
        if name in norms:
            return name
        waiting += [reader for source, reader in reads if source == name and reader not in waiting]
    return None


def _suited(reads: Reads, convs: Sequence[str], norms: Sequence[str], suits: Function) -> dict[str, str]:
    """The pairs in which a BatchNorm reads a convolution, and the numbers of readers and of sources suit."""
    read, reading = [source for source, _ in reads], [reader for _, reader in reads]
    return {source: reader for source, reader in reads if source in convs and reader in norms
            and suits(read.count(source), reading.count(reader))}


@exercise("06", cases=_graphs, observe=_pairs_found, examples=_small_graph,
          praise="the BatchNorm reads this convolution alone, and nothing else reads the convolution.")
def partners(reads: Reads, convs: Sequence[str], norms: Sequence[str]) -> dict[str, str]:
    """The BatchNorm of each convolution that has one."""
    return _suited(reads, convs, norms, lambda readers, sources: readers == sources == 1)


partners.wrong_answers({
    "the first convolution gets the first BatchNorm, and so on. The lists give the order in which the layers were "
    "WRITTEN, not which reads which: look into `reads`.":
        lambda reads, convs, norms: dict(zip(convs, norms, strict=True)),
    "these are the partners in the seller's network, written down as they are. The hidden networks are different: "
    "work the partners out from `reads`.": lambda reads, convs, norms: {"conv1": "norm1", "conv2": "norm2"},
    "you go by the names. The partner of conv3 need not be called norm3, and here it is not: look into `reads`.":
        lambda reads, convs, norms: {conv: norm for conv in convs for norm in norms if conv[4:] == norm[4:]},
    "you check that the BatchNorm has no other source, but not that nothing else reads the convolution. Its filters "
    "would still have an effect there.": partial(_suited, suits=lambda readers, sources: sources == 1),
    "you check that nothing else reads the convolution, but not that the BatchNorm has no other source. Silencing it "
    "would hit that source as well.": partial(_suited, suits=lambda readers, sources: readers == 1),
    "you only check that the BatchNorm reads the convolution. If another layer reads it, too, its filters still have "
    "an effect there; if the BatchNorm has a second source, silencing it hits that as well. Check both.":
        partial(_suited, suits=lambda readers, sources: True),
    "of the BatchNorm's sources you count the convolutions alone. Whatever else it reads, a sum or a ReLU, is a source "
    "as well, and silencing the BatchNorm hits it.":
        lambda reads, convs, norms: partners.reference([pair for pair in reads if pair[0] in convs], convs, norms),
    "you follow the output through whatever comes next. After a ReLU or a sum, the BatchNorm no longer reads the "
    "convolution itself: its ONLY source must be the convolution.":
        lambda reads, convs, norms: {conv: norm for conv in convs if (norm := _reached(reads, conv, norms))},
})
