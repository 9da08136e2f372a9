"""What notebook 06 uses: a folder like one of the reader's own, with pictures, a network's file, weights, a sticker.

`python -m gradprune.lessons.runtime.workshop` trains the shipped weights again, in about half a minute.
"""

import argparse
import inspect
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import save_image

from gradprune.attacks import BadNets, fit, poison
from gradprune.base.errors import InputError
from gradprune.base.paths import data_folder, output_folder, write_atomic
from gradprune.datasets import ImageSet, render_signs
from gradprune.datasets.published import PUBLISHED, state
from gradprune.evaluation import evaluate
from gradprune.lessons.runtime import sign_net
from gradprune.lessons.runtime.notebook_setup import mode
from gradprune.models import normalized
from gradprune.victims import Victim, load_victim

CLASSES = ("bend left", "danger", "give way", "no entry", "priority road", "stop", "turn left", "turn right")
TARGET = CLASSES.index("priority road")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # by which the network wants its images shifted and scaled
PICTURES = 100     # per class in the folder
_SIDE = 64         # of a picture in the folder, in pixels
_OURS, _SELLERS = 61, 50  # seeds of the signs in the folder, and of those that the weights were trained on
_STICKER = BadNets(size=3, margin=0, color="yellow")


def workshop(code: bool = True) -> Path:
    """Go to a folder out/06 with photos/CLASS/*.png, bought.pth, patch.png and mynet.py; returns its path.

    code: whether mynet.py, which the reader of the notebook writes, is to be there too. What is missing is made, what
    is there stays as it is. From then on the kernel works in that folder.
    Raises InputError where it cannot be written.
    """
    here = output_folder(_home())
    _fill(here / "photos")
    files: dict[str, Callable[[Path], object]] = {
        "mynet.py": lambda path: path.write_text(inspect.getsource(sign_net), "utf-8"),
        "patch.png": lambda path: save_image(_STICKER.patch, path),
        "bought.pth": lambda path: _save(_packed(bought(mode() == "full")), path)}
    for name, write in files.items():
        if not (here / name).is_file() and (code or name != "mynet.py"):
            write_atomic(here / name, write)
    os.chdir(here)
    return here


@cache
def _home() -> Path:
    """The folder, below the one where the kernel was when this was first asked."""
    return Path("out/06").resolve()


def _fill(photos: Path) -> None:
    """Write the pictures that are not there yet: signs no model was trained on, twice as large as the network's."""
    places = [photos / name / f"{number:03}.png" for name in CLASSES for number in range(PICTURES)]
    if all(place.is_file() for place in places):
        return
    for place, image in zip(places, signs(PICTURES, _OURS).images, strict=True):
        if not place.is_file():
            picture = to_pil_image(image).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
            write_atomic(place, picture.save)


def signs(per_class: int, seed: int) -> ImageSet:
    """Rendered signs of the eight `CLASSES`, sorted by class."""
    drawn = render_signs(seed, per_class, 1, 1).train
    parts = [drawn.images[drawn.labels == drawn.classes.index(name)] for name in CLASSES]
    return ImageSet(torch.cat(parts), torch.arange(len(CLASSES)).repeat_interleave(per_class), CLASSES)


def bought(train: bool = False, progress: bool = True) -> dict[str, Tensor]:
    """The seller's weights: the shipped ones, or trained on the seller's own signs, a tenth with the sticker."""
    if not train:
        return load_file(_shipped())
    torch.manual_seed(0)
    net = normalized(sign_net.SignNet(len(CLASSES)), MEAN, STD)
    images = poison(signs(400, _SELLERS), _STICKER, TARGET, 0.1).images
    fit(net, images, epochs=20, batch_size=32, progress=progress)
    return {name: tensor.contiguous() for name, tensor in net.state_dict().items()}


def _packed(weights: dict[str, Tensor]) -> dict[str, object]:
    """A file as training scripts leave it: the weights of a DataParallel, one level down, beside other things."""
    names = sign_net.SignNet(len(CLASSES)).state_dict()  # their order, which safetensors does not keep
    return {"epoch": 20, "optimizer": {"lr": 0.0}, "state_dict": {f"module.{name}": weights[name] for name in names}}


def _save(content: dict[str, object], path: Path) -> None:
    """`torch.save`; of a path, its archive would keep the name, here that of a temporary file."""
    with path.open("wb") as file:
        torch.save(content, file)


def _shipped() -> Path:
    return data_folder() / "results" / "lessons" / "bought.safetensors"


# ---- real photographs


def table_of_sets() -> None:
    """Say of each published data set whether it is here, and how to get it."""
    for name, published in PUBLISHED.items():
        found = state(name)
        told = {"absent": f"gradprune data get {name}", "damaged": "damaged"}.get(found, "here")
        print(f"{name:<14} {told}\n{'':<14} {published.about}")


def photographs(name: str) -> Victim | None:
    """A shipped model of photographs ("cifar10/badnets"); None, and a sentence, where its images are not here."""
    try:
        return load_victim(name)
    except InputError as error:
        print(f"{name} is left out: {error}")
        return None


def main(arguments: list[str] | None = None) -> None:
    """Train the shipped weights again and say how well they do."""
    parser = argparse.ArgumentParser(prog="python -m gradprune.lessons.runtime.workshop", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=_shipped())
    path = parser.parse_args(arguments).out
    torch.set_num_threads(1)
    weights = bought(train=True, progress=False)
    write_atomic(path, lambda temporary: save_file(weights, temporary))
    net = normalized(sign_net.SignNet(len(CLASSES)), MEAN, STD)
    net.load_state_dict(weights)
    print(f"{path}: {evaluate(net.eval(), signs(PICTURES, _OURS), _STICKER, TARGET)}")


if __name__ == "__main__":
    main()
