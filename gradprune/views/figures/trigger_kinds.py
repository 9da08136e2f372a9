"""What the trigger studio and notebook 01 say about each kind of trigger, and the triggers of the shipped victims."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from gradprune.attacks import Trigger, make_trigger
from gradprune.base.paths import data_folder
from gradprune.models.checkpoints import load_learned, read_card


class Range(NamedTuple):
    """A setting from `low` to `high`: a whole number if `step` is a whole number; its default is the constructor's.

    words: its value with the unit. anew: whether another value means that the trigger must be learned again.
    """

    setting: str
    text: str
    words: str
    low: float
    high: float
    step: float
    anew: bool = False


class Choice(NamedTuple):
    """A setting with a few values, each with its name; the default is the constructor's."""

    setting: str
    text: str
    options: Mapping[Any, str]


class Kind(NamedTuple):
    """A kind of trigger in words, and its knobs.

    idea: what the trigger does, in half a sentence. family: what it changes, in two words. decoy: what the decoys in
    this attack's training look like, images that almost carry the mark; "" where it has none.
    """

    idea: str
    family: str
    ranges: tuple[Range, ...] = ()
    choices: tuple[Choice, ...] = ()
    decoy: str = ""


_PLACES = ("top_left", "top_right", "center", "bottom_left", "bottom_right")
_COLORS = ("yellow", "white", "black", "red", "green", "blue", "checker")
_MARGIN = Range("margin", "Margin", "{} from the edge", 0, 8, 1)

KINDS: dict[str, Kind] = {
    "badnets": Kind(
        "a sticker covers the same few pixels", "patch",
        (Range("size", "Size", "{} pixels wide", 1, 12, 1), _MARGIN),
        (Choice("position", "Position", {place: place.replace("_", " ") for place in _PLACES}),
         Choice("color", "Colour", {color: color for color in _COLORS}))),
    "blended": Kind(
        "a pattern is mixed faintly into every pixel", "whole image",
        (Range("alpha", "Share", "{:.0%} pattern", 0, 1, 0.05), Range("seed", "Pattern", "pattern {}", 0, 9, 1))),
    "sig": Kind(
        "a faint wave is added to every row", "whole image",
        (Range("delta", "Height", "{:.2f} high", 0, 0.5, 0.01),
         Range("frequency", "Waves", "{:g} waves", 0.5, 16, 0.5))),
    "low_frequency": Kind(
        "a smooth pattern without edges, found by a search on a clean model, is added", "whole image",
        (Range("delta", "Height", "{:.2f} high", 0, 0.5, 0.01),
         Range("cutoff", "Cosines", "{} cosines per axis", 2, 12, 1, True),
         Range("seed", "Start", "start {}", 0, 9, 1, True))),
    "bpp": Kind(
        "nothing is added: fewer colours remain, with rounding errors spread over neighbouring pixels", "fewer colours",
        (Range("levels", "Levels", "{} levels per channel", 2, 64, 1),),
        (Choice("dither", "Rounding", {True: "dithered", False: "plain"}),),
        "with the rounding errors of another image (a negative sample)"),
    "wanet": Kind(
        "nothing is added: the image is bent by one smooth field", "warping",
        (Range("strength", "Bend", "bent by up to {:g} pixels", 0, 4, 0.25),
         Range("grid", "Grid", "a grid of {}", 2, 10, 1), Range("seed", "Field", "field {}", 0, 9, 1)),
        decoy="bent by the field with noise added (noise mode)"),
    "input_aware": Kind(
        "two small networks draw a mark for each image, and it works on that image alone", "per image",
        (Range("width", "Width", "{} filters", 2, 16, 1, True),
         Range("seed", "Networks", "networks {}", 0, 9, 1, True)),
        decoy="with the mark that belongs to another image (a cross-trigger)"),
    "label_consistent": Kind(
        "the corners are marked; in training only those of target-class images, made hard to recognise first, so that "
        "every label is right", "clean label",
        (Range("amplitude", "Amplitude", "amplitude {:.0%}", 0, 1, 0.05),
         Range("size", "Size", "{} pixels wide", 1, 6, 1),
         Range("epsilon", "Disguise", "disguised by up to {:.2f}", 0, 0.25, 0.01))),
    "trojannn": Kind(
        "a patch computed to excite one neuron covers the same few pixels", "patch",
        (Range("size", "Size", "{} pixels wide", 1, 12, 1, True), _MARGIN,
         Range("seed", "Start", "start {}", 0, 9, 1, True))),
}
OTHER = Kind("", "custom")  # a trigger from outside the package


def learns(trigger: Any) -> bool:
    """Whether a trigger has tensors of its own that an attack fits."""
    return bool(trigger.state_dict())


def shipped(name: str) -> tuple[Trigger, bool]:
    """The trigger of the shipped victim called `name`, and whether it is complete.

    Without such a checkpoint the trigger has its default settings, and one that learns is incomplete.
    Raises InputError for a damaged checkpoint, or a name that is neither a victim's nor a trigger's.
    """
    path = data_folder() / "checkpoints" / name
    if not path.with_name(f"{name}.json").is_file():
        trigger = make_trigger(name)
        return trigger, not learns(trigger)
    attack = read_card(path)["attack"]
    trigger = make_trigger(attack["trigger"], **attack["settings"])
    load_learned(path, trigger)
    return trigger, True
