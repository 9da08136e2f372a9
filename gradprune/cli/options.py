"""Options of `defend`, `evaluate` and `scan` for a model of one's own."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradprune.base.errors import InputError, require, unknown

if TYPE_CHECKING:
    from gradprune.victims import Own

Checkpoint = Annotated[str, typer.Argument(help="A name of `gradprune zoo list`, a path, or weights of your own: "
                                                ".safetensors, .pth, BackdoorBench's attack_result.pt.")]
Model = Annotated[str | None, typer.Option("--model", help="Whose weights these are: a name (resnet18, vgg16_bn ...; a "
                                           "wrong one lists them), timm/NAME, or module:function of your own code, "
                                           "which is imported from the current folder and run.")]
Data = Annotated[str | None, typer.Option("--data", help="Your images: a folder with one folder a class, a .npz file, "
                                          "or a name; if not the card's.")]
Size = Annotated[int | None, typer.Option("--size", help="Side in pixels that a folder's pictures are resized to; 32 "
                                          "if not given.")]
Trigger = Annotated[str | None, typer.Option("--trigger", help="known: the one on the card; unknown: work without any, "
                                             "as `gradprune repair` does; synthesised: from a scan of the model; a "
                                             "picture file: a patch, transparent or not, or one as large as the image; "
                                             "an .npy file; or module:function of your own code.")]
Seen = Annotated[str, typer.Option("--trigger", help="known: the one on the card; or a picture file.")]
Mask = Annotated[str | None, typer.Option("--mask", help="Where the picture is put on: a picture of its size, white "
                                          "there and black elsewhere; black: not where it is black; whole: everywhere."
                                          )]
Target = Annotated[int | None, typer.Option("--target", help="Class that the trigger leads to, counted from 0.")]
Position = Annotated[str, typer.Option("--position", help="Of the picture: bottom_right, another corner, center, or "
                                       "ROW,COLUMN of its top-left pixel.")]
Opacity = Annotated[float, typer.Option("--opacity", help="Share of the picture in the mix, 0..1; blended: often 0.2.")]
Mean = Annotated[str | None, typer.Option("--mean", help="What is taken from the pixels (0..1) first, for a model that "
                                          "does not do so itself: one number, or one a channel: 0.49,0.48,0.45.")]
Std = Annotated[str | None, typer.Option("--std", help="What the pixels are divided by then.")]
Stem = Annotated[str | None, typer.Option("--stem", help="Of resnet18, mobilenet_v3_small and timm/NAME: small, which "
                                          "keeps the size of small images, or stock, the network's own; the better one "
                                          "on clean images if not given.")]
Device = Annotated[str, typer.Option("--device", help="Where the model runs: cpu, cuda, cuda:1 or mps; auto takes a "
                                     "GPU where there is one.")]

EXAMPLE = "gradprune defend weights.pth --model mynet:build --data photos/ \\\n    --trigger patch.png --target 3"
KINDS = ("known", "unknown", "synthesised")  # of triggers, beside a picture


def own(checkpoint: str, model: str | None, data: str | None, size: int | None, mean: str | None, std: str | None,
        trigger: str | None = None, target: int | None = None, position: str = "bottom_right", opacity: float = 1.0,
        stem: str | None = None, mask: str | None = None) -> "Own | None":
    """What the options say of the model; None where the checkpoint's card says it all."""
    picture = None if trigger in (None, *KINDS) else trigger
    require(mask is None or picture is not None, "mask goes with a picture as --trigger.")
    if picture and not Path(picture).suffix and not Path(picture).is_file() and ":" not in picture:
        raise InputError(f"{unknown('trigger', picture, KINDS)} Or give a picture file.")
    if trigger == "synthesised" and target is not None:
        raise InputError("target is what a scan finds; leave it out with a synthesised trigger.")
    from gradprune.victims.own import WEIGHTS, Own
    given = (model, data, size, mean, std, stem, picture, target is not None)
    if Path(checkpoint).suffix not in WEIGHTS and not any(given):
        return None
    return Own(model, data, size, picture, target, _place(position), opacity, _numbers("mean", mean),
               _numbers("std", std), stem, mask)


def _place(position: str) -> str | tuple[int, int]:
    """A place in one word, or row and column."""
    row, comma, column = position.partition(",")
    if comma:
        try:
            return int(row), int(column)
        except ValueError:
            raise InputError(f"position must be a corner or ROW,COLUMN, got {position!r}.") from None
    return "_".join(position.replace("-", " ").replace("_", " ").lower().split()).replace("centre", "center")


def _numbers(name: str, text: str | None) -> list[float] | None:
    """One number, or one a channel."""
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
