"""What notebook 01 uses: a short training, tables that take long to measure, and the learner's own picture.

`python -m gradprune.lessons.runtime.attacking` measures the tables of data/results/lessons/ again, in about ten
minutes; what is finished is kept.
"""

import argparse
import itertools
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor, nn

from gradprune.attacks import TRIGGERS, Trigger, fit, make_trigger, poison
from gradprune.base.devices import one_thread
from gradprune.base.errors import InputError, told_as
from gradprune.base.paths import data_folder, write_atomic
from gradprune.datasets import ImageSet, load
from gradprune.datasets.folder import FORMATS, eight_bits
from gradprune.evaluation import evaluate
from gradprune.lessons.runtime.notebook_setup import mode
from gradprune.models import build, predict
from gradprune.models.checkpoints import load_checkpoint
from gradprune.victims.victim import checkpoint_path
from gradprune.victims.zoo import DEFAULT_MODEL, TARGET
from gradprune.views.figures.trigger_kinds import shipped

SHORT: dict[str, Any] = {"epochs": 6, "batch_size": 16, "max_lr": 0.05, "shift": 1}  # starts from the honest model
SHORT_IMAGES = 2000  # how many images the short training sees
RATES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
SEEDS = (0, 1, 2)
MAP_RATE = 0.5  # poison rate of the trainings compared class by class: all-to-all is hard to learn
STICKER = {"size": 5}  # in the tables: larger than the shipped victim's, so that a short training can learn it


class OwnTrigger(Trigger):
    """A function images -> images as a trigger; pixels are kept in 0..1."""

    name = "own"

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def stamp(self, images: Tensor) -> Tensor:
        """Call the function; NumPy's double precision, which no network takes, is brought back to the images'."""
        return self.function(images).to(images.dtype)


# ---- training


def train_on(images: ImageSet, *, seed: int = 0, full: bool | None = None, progress: bool = True) -> nn.Module:
    """Train a model on a (poisoned) set of signs and say in one line what was done; returns it in eval mode.

    full: from scratch, on all images, as the shipped models were; otherwise from the shipped honest model, on the
    first 2,000 images and on one thread, so that all see the same. By default what the mode says; mode "ci" is
    shorter still.
    """
    full, brief = mode() == "full" if full is None else full, mode() == "ci"
    if full:
        model, start = build(num_classes=len(images.classes), **DEFAULT_MODEL, seed=seed), "from scratch"
        done = fit(model, images, seed=seed, progress=progress)
    else:
        model, start = load_checkpoint(checkpoint_path("clean"))[0], "further, from the honest model"
        images = images.subset(torch.arange(min(len(images), 200 if brief else SHORT_IMAGES)))
        with one_thread():  # a short training at the edge of success turns on the last bits
            done = fit(model, images, seed=seed, progress=progress, **(SHORT | ({"epochs": 1} if brief else {})))
    print(f"Trained {start}{', cut short' * done.interrupted}: {len(done.history)} epochs, {len(images):,} images, "
          f"{done.seconds:.0f} s.", flush=True)
    return model


def nine_triggers() -> dict[str, Trigger]:
    """A trigger of each kind as its shipped victim has it; says in one line which have not learned what they should."""
    found = {kind: shipped(kind) for kind in TRIGGERS}
    if unlearned := [kind for kind, (_, complete) in found.items() if not complete]:
        print(f"Shown untrained, because no checkpoint is installed: {', '.join(unlearned)}.")
    return {kind: trigger for kind, (trigger, _) in found.items()}


# ---- tables that were measured before


def table(name: str) -> pd.DataFrame:
    """A measured table; every row says rate, seed, the training ("short" or "full": see `train_on`) and the machine.

    "poison_rate": one row per short training: poisoned_images, acc, asr, ra. "label_maps": a row for each pair of
    classes of two full trainings: label_map, true, answer, images, the number of triggered test images so answered.
    Raises InputError where the table is not installed.
    """
    path = data_folder() / "results" / "lessons" / f"{name}.csv"
    if not path.is_file():
        raise InputError(f"there is no measured table at {path}; it belongs in the repository's data/results/lessons/.")
    return pd.read_csv(path)


def answer_counts(model: nn.Module, images: ImageSet, trigger: nn.Module) -> Tensor:
    """How many triggered images of each class (row) were given each answer (column), int64 (K, K)."""
    classes = len(images.classes)
    answers = predict(model, images.triggered(trigger)).argmax(1).cpu()
    return torch.bincount(images.labels.cpu() * classes + answers, minlength=classes**2).reshape(classes, classes)


def answer_shares(counts: Tensor | pd.DataFrame) -> Tensor:
    """Counts of answers, or rows of the table "label_maps", as shares: float (K, K), each row sums to 1."""
    if isinstance(counts, pd.DataFrame):
        counts = torch.tensor(counts.pivot(index="true", columns="answer", values="images").to_numpy(copy=True))
    return counts / counts.sum(1, keepdim=True)


def measure_poison_rates(path: Path, rates: Sequence[float] = RATES, seeds: Sequence[int] = SEEDS) -> None:
    """Make the short training for each rate and seed, and write the table "poison_rate" after each."""
    data, trigger, rows = load("signs"), make_trigger("badnets", **STICKER), []
    for seed, rate in itertools.product(seeds, rates):
        poisoned, touched = poison(data.train, trigger, TARGET, rate, seed)
        figures = evaluate(train_on(poisoned, seed=seed, full=False), data.test, trigger, TARGET)
        measured = {key: round(value, 4) for key, value in figures._asdict().items()}
        rows.append({"training": "short", "rate": rate, "seed": seed,
                     "poisoned_images": int((touched < SHORT_IMAGES).sum()), **measured, **_made()})
        _write(path, rows)
        print(f"poison rate {rate:.1%}, seed {seed}: {figures}", flush=True)


def measure_label_maps(path: Path, rate: float = MAP_RATE) -> None:
    """Train all-to-one and all-to-all and write the table "label_maps" after each."""
    data, trigger, rows = load("signs"), make_trigger("badnets", **STICKER), []
    for label_map in ("all_to_one", "all_to_all"):
        model = train_on(poison(data.train, trigger, TARGET, rate, 0, label_map).images, full=True)
        counts = answer_counts(model, data.test, trigger)
        rows += [{"training": "full", "label_map": label_map, "rate": rate, "seed": 0, "true": true, "answer": answer,
                  "images": int(counts[true, answer]), **_made()}
                 for true, answer in itertools.product(range(len(counts)), repeat=2)]
        _write(path, rows)
        print(f"{label_map}: {evaluate(model, data.test, trigger, TARGET, label_map=label_map)}", flush=True)


def _made() -> dict[str, Any]:
    """What a row was measured with."""
    return {"sticker": STICKER["size"], "torch": torch.__version__.split("+")[0],
            "machine": f"{platform.system()} {platform.machine()}", "threads": torch.get_num_threads()}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    write_atomic(path, lambda temporary: pd.DataFrame(rows).to_csv(temporary, index=False))


# ---- the learner's own picture


def own_picture(path: str | Path | None, judge: nn.Module, like: ImageSet) -> ImageSet:
    """A picture file as the model sees it: a set of one image like those of `like`, cut square and made small.

    path: a photo or drawing as PNG, JPEG, WEBP, BMP or PPM; None draws a tree. Its true class is unknown, so its
    label is what `judge`, an honest model, answers. Raises InputError, in one sentence, for a file that is missing or
    no picture.
    """
    picture = _drawing() if path is None else _open(Path(path).expanduser())
    height, width = like.images.shape[2:]
    small = ImageOps.fit(picture, (width, height), Image.Resampling.BOX)
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None]
    return ImageSet(pixels, predict(judge, pixels.float() / 255).argmax(1).cpu(), like.classes)


def _open(path: Path) -> Image.Image:
    with told_as(lambda error: f"there is no file {str(path)!r}; a path is taken from the notebook's folder."
                 if isinstance(error, FileNotFoundError) else
                 f"{str(path)!r} cannot be read as a picture ({type(error).__name__}); use a JPEG or PNG.",
                 (OSError, ValueError, Image.DecompressionBombError)), Image.open(path, formats=FORMATS) as file:
        upright = eight_bits(ImageOps.exif_transpose(file)).convert("RGBA")
    paper = Image.new("RGBA", upright.size, "white")  # what is transparent turns white, not black
    return Image.alpha_composite(paper, upright).convert("RGB")


def _drawing(side: int = 320) -> Image.Image:
    """A tree under a pale sky: nothing that the model was ever trained on."""
    picture = Image.new("RGB", (side, side), "#bcd8f0")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0.82 * side, side, side), fill="#7a9a5a")
    draw.rectangle((0.43 * side, 0.5 * side, 0.53 * side, 0.86 * side), fill="#6b4a2f")
    draw.ellipse((0.2 * side, 0.1 * side, 0.76 * side, 0.62 * side), fill="#2f6b35")
    return picture


def main(arguments: list[str] | None = None) -> None:
    """Measure the tables again."""
    parser = argparse.ArgumentParser(prog="python -m gradprune.lessons.runtime.attacking", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=data_folder() / "results" / "lessons")
    out = parser.parse_args(arguments).out
    measure_label_maps(out / "label_maps.csv")
    measure_poison_rates(out / "poison_rate.csv")


if __name__ == "__main__":
    main()
