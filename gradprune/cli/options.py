"""Options of `defend`, `evaluate`, `scan` and others for the user's own model."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradprune.base.errors import InputError, require, told_as, unknown

if TYPE_CHECKING:
    from gradprune.victims import Own

Checkpoint = Annotated[str, typer.Argument(help="A name from `gradprune zoo list`, a path, or your own weights: "
                                                ".safetensors, .pth, BackdoorBench's attack_result.pt.")]
Model = Annotated[str | None, typer.Option("--model", help="The network of these weights: a name (resnet18, vgg16_bn "
                                           "...; a wrong one lists them), timm/NAME, or module:function in your own "
                                           "code, which is imported from the current folder and run.")]
Data = Annotated[str | None, typer.Option("--data", help="Your images, instead of the card's: a folder with one folder "
                                          "per class, a .npz file, or a name.")]
Size = Annotated[int | None, typer.Option("--size", help="Side in pixels to which a folder's pictures are resized; by "
                                          "default 32.")]
Trigger = Annotated[str | None, typer.Option("--trigger", help="known: the one on the card; unknown: work without any, "
                                             "as `gradprune repair` does; synthesised: from a scan of the model; a "
                                             "picture file: a patch, transparent or not, or one as large as the image; "
                                             "an .npy file; or module:function in your own code.")]
Seen = Annotated[str, typer.Option("--trigger", help="known: the one on the card; or a picture file.")]
Mask = Annotated[str | None, typer.Option("--mask", help="Where the picture is applied: a picture of its size, white "
                                          "there and black elsewhere; black: not where the picture is black; whole: "
                                          "everywhere.")]
Target = Annotated[int | None, typer.Option("--target", help="Class to which the trigger leads, counted from 0.")]
Position = Annotated[str, typer.Option("--position", help="Of the picture: bottom_right, another corner, center, or "
                                       "ROW,COLUMN of its top-left pixel.")]
Opacity = Annotated[float, typer.Option("--opacity", help="Share of the picture in the mix, 0..1; blended: often 0.2.")]
Mean = Annotated[str | None, typer.Option("--mean", help="Subtracted from the pixels (0..1) first, for a model that "
                                          "does not do so itself: one number, or one per channel: 0.49,0.48,0.45.")]
Std = Annotated[str | None, typer.Option("--std", help="The pixels are then divided by this.")]
Stem = Annotated[str | None, typer.Option("--stem", help="Of resnet18, mobilenet_v3_small and timm/NAME: small, which "
                                          "keeps the size of small images, or stock, the network's own; by default the "
                                          "better one on clean images.")]
Device = Annotated[str, typer.Option("--device", help="Where the model runs: cpu, cuda, cuda:1 or mps; auto takes a "
                                     "GPU if there is one.")]

EXAMPLE = "gradprune defend weights.pth --model mynet:build --data photos/ \\\n    --trigger patch.png --target 3"
KINDS = ("known", "unknown", "synthesised")  # of triggers, besides a picture


def own(checkpoint: str, model: str | None, data: str | None, size: int | None, mean: str | None, std: str | None,
        trigger: str | None = None, target: int | None = None, position: str = "bottom_right", opacity: float = 1.0,
        stem: str | None = None, mask: str | None = None, measuring: bool = False) -> "Own | None":
    """What the options say about the model; None if the checkpoint's card says everything.

    measuring: whether the command only measures a trigger, and so needs one.
    """
    picture = None if trigger in (None, *KINDS) else trigger
    require(picture is not None or (mask, position, opacity) == (None, "bottom_right", 1.0),
            "mask, position and opacity go with a picture as --trigger.")
    if picture and not Path(picture).suffix and not Path(picture).is_file() and ":" not in picture:
        raise InputError(f"{unknown('trigger', picture, KINDS)} Or give a picture file.")
    if measuring and trigger in KINDS[1:]:
        raise InputError(f"a {trigger} trigger cannot be measured: give --trigger a picture, or leave it out.")
    if trigger == "synthesised" and target is not None:
        raise InputError("target is what a scan finds; leave it out with a synthesised trigger.")
    from gradprune.models.weights import WEIGHTS
    from gradprune.victims.own import Own
    given = (model, data, size, mean, std, stem, picture, target is not None)
    if Path(checkpoint).suffix not in WEIGHTS and not any(given):
        return None
    return Own(model, data, size, picture, target, _place(position), opacity, _numbers("mean", mean),
               _numbers("std", std), stem, mask)


def _place(position: str) -> str | tuple[int, int]:
    """A position as one word, or as row and column."""
    row, comma, column = position.partition(",")
    if comma:
        with told_as(lambda _: f"position must be a corner or ROW,COLUMN, got {position!r}.", (ValueError,)):
            return int(row), int(column)
    return "_".join(position.replace("-", " ").replace("_", " ").lower().split()).replace("centre", "center")


def _numbers(name: str, text: str | None) -> list[float] | None:
    """One number, or one per channel."""
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    good = len(numbers) in (1, 3) and all(math.isfinite(number) for number in numbers)
    require(good, f"{name} must be one number or three, such as 0.49,0.48,0.45, got {text!r}.")
    require(name != "std" or min(numbers) > 0, f"std must be above 0, got {text!r}.")
    return numbers
