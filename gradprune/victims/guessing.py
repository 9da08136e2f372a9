"""Which network a file of weights fits, by shapes, and how that network expects its images, by accuracy."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.base.errors import InputError
from gradprune.datasets import Dataset, ImageSet, load
from gradprune.datasets.folder import peek
from gradprune.datasets.sources import SOURCES
from gradprune.models import MODELS, build, predict
from gradprune.models.limits import in_proportion
from gradprune.models.weights import fit_weights
from gradprune.victims.backdoorbench import NORMALIZED
from gradprune.victims.own import STEMS, guess_options, some_of
from gradprune.victims.victim import in_color

Numbers = list[float]
# Common normalisations of pixels in 0..1 in training scripts: name -> mean and std.
USUAL: dict[str, tuple[Numbers, Numbers]] = {
    "as they are": ([0.0], [1.0]), "-1..1": ([0.5], [0.5]), "-2..2": ([0.5], [0.25]), "0..255": ([0.0], [1 / 255]),
    "mnist": ([0.1307], [0.3081]), "fashion_mnist": ([0.286], [0.353]),
    **{name: NORMALIZED[name] for name in ("imagenet", "cifar10", "cifar100", "tiny")},
    "gtsrb": ([0.3403, 0.3121, 0.3214], [0.2724, 0.2608, 0.2669])}
SIZES = (32, 64, 96, 128, 224)  # tried for a folder, whose pictures can be resized
_LARGE = 64  # pixels; above this a stem for small images is too slow to try
_FEW = 100   # images
# timm networks that are tried; torchvision's ResNets and DenseNets have the same names and shapes.
_TIMM = ("resnet10t", "resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2", "resnext50_32x4d",
         "seresnet50", "densenet121", "efficientnet_b0", "efficientnet_b1", "mobilenetv2_100", "mobilenetv3_small_100",
         "mobilenetv3_large_100", "convnext_atto", "convnext_tiny", "regnety_004", "regnetx_002", "vgg11_bn",
         "vgg16_bn", "vgg19_bn", "mnasnet_100", "ghostnet_100", "repvgg_a0", "dla34", "resnetv2_50",
         "vit_tiny_patch16_224", "vit_small_patch16_224", "swin_tiny_patch4_window7_224")

Nets = dict[str, nn.Module]  # by stem, a name in `STEMS`; "" if there is only one


class Guess(NamedTuple):
    """How many clean images a network gets right, and its mean loss, if they are read in this way.

    size: side in pixels.
    stem: a name in `STEMS`, "" if there is only one.
    normalisation: a name in `USUAL`.
    """

    right: int
    images: int
    loss: float
    size: int
    stem: str
    normalisation: str


def likely_networks(tensors: Mapping[str, Tensor], classes: int, path: Path, model: str | None = None
                    ) -> tuple[str, Nets, str]:
    """The first network that these tensors fit: its name, the network with these tensors by stem, or why there is none.

    path: the file of the tensors.
    model: the only network to try, which may be the user's own code (it then runs); otherwise the shapes of all known
        ones are compared before any is built.
    """
    if classes < 2:
        return "", {}, "No layer of the file tells two or more classes."
    there = Counter(tuple(tensor.shape) for tensor in tensors.values())
    why = "The tensors have the shapes of no network that is known here by name."
    for name in [model] if model else [*MODELS, *(f"timm/{network}" for network in _TIMM)]:
        nets: Nets = {}
        for stem, settings in _forms(name, tensors, classes):
            try:
                if model or _shapes(settings) <= there:
                    net = build(**settings, code=model is not None, largest=None if model else in_proportion(path))
                    nets[stem] = fit_weights(net, tensors, path)
                    if stem == "small" and not hasattr(net, "stem_note"):
                        break  # this network has only one stem
            except InputError as error:
                why = f"Tried as {name}: {error}" if model or "do not fit" in str(error) else why
        if nets:
            return name, {"": nets["small"]} if list(nets) == ["small"] else nets, ""
    return "", {}, why


def _shapes(settings: dict[str, Any]) -> Counter[tuple[int, ...]]:
    """The shapes of a network's tensors, found without allocating them."""
    with torch.device("meta"):
        outline = build(**settings).state_dict()
    return Counter(tuple(tensor.shape) for name, tensor in outline.items() if "num_batches_tracked" not in name)


def _forms(name: str, tensors: Mapping[str, Tensor], classes: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The settings to build a network with, by stem, without normalisation."""
    settings: dict[str, Any] = {"name": name, "num_classes": classes}
    if ":" in name:
        yield "", settings
        return
    settings |= {"mean": 0.0, "std": 1.0, **guess_options(name, tensors)}
    if name == "small_vgg":
        inputs = [tensor.shape[1] for tensor in tensors.values() if tensor.ndim == 2]
        settings["size"] = 8 * round((inputs[-1] / 128) ** 0.5) if inputs else 32
    if name in ("preact_resnet", "preact_resnet18", "small_vgg"):
        yield "", settings
    else:
        yield from ((stem, {**settings, "small": small}) for stem, small in STEMS.items())


def guesses(nets: Nets, data: str, size: int | None = None) -> list[Guess]:
    """Ways to read the images of `data`, the one with the most right answers first; empty if no size is accepted.

    Size and stem are chosen on half of the images with one normalisation, since a wrong one rarely ruins all answers.
    data, size: as for `datasets.load`; without a size several are tried for a folder.
    Raises InputError for images that cannot be read.
    """
    tried = {guess: images for images in _images(data, size) for stem, net in nets.items()
             if stem != "small" or images.images.shape[-1] <= _LARGE
             for guess in _asked(net, images.subset(torch.arange(0, len(images), 2)), stem, ["-2..2"])}
    if not tried:
        return []
    best = min(tried, key=_badness)
    return sorted(_asked(nets[best.stem], tried[best], best.stem, list(USUAL)), key=_badness)


def refusal(nets: Nets, data: str, size: int | None = None) -> str:
    """Why there are no `guesses`, in words."""
    images, net = next(iter(_images(data, size))), next(iter(nets.values()))
    try:
        known = predict(net, in_color(Dataset(images, images, images), net)[0].test.floats()[:2]).shape[1]
    except InputError as error:
        return str(error)
    return f"it knows {known} classes, and they are of {len(images.classes)}."


def _badness(guess: Guess) -> tuple[int, float]:
    return -guess.right, guess.loss


def is_folder(data: str) -> bool:
    """Whether `datasets.load` would read a folder of pictures, for which the size can be chosen."""
    return data not in SOURCES and Path(data).expanduser().is_dir()


def _images(data: str, size: int | None) -> Iterator[ImageSet]:
    """Some images of `data`, in each possible size."""
    if not is_folder(data):
        yield some_of(load(data, size=size).defense)
        return
    for side in SIZES if size is None else [size]:
        yield peek(data, side, _FEW)


def _asked(net: nn.Module, images: ImageSet, stem: str, names: list[str]) -> Iterator[Guess]:
    """The network's results with each of these normalisations; nothing if it cannot take such images."""
    images = in_color(Dataset(images, images, images), net)[0].test
    for mean, std, name in ((*USUAL[name], name) for name in names):
        if len(mean) in (1, images.images.shape[1]):
            pixels = (images.floats() - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
            with suppress(InputError):
                answers = torch.cat([predict(net, pixels[:1]), predict(net, pixels[1:])])  # a single one fails faster
                if answers.shape[1] == len(images.classes):
                    yield Guess(int((answers.argmax(1) == images.labels).sum()), len(images),
                                F.cross_entropy(answers, images.labels).item(), images.images.shape[-1], stem, name)
