"""The command `gradprune inspect`."""

import re
from typing import TYPE_CHECKING

from rich.table import Table

from gradprune.cli import options
from gradprune.cli.console import Json, folding_table, more, plain, show

if TYPE_CHECKING:
    from gradprune.victims.inspection import Inspection

_SHOWN = 3  # ways to read images that are shown


def inspect(weights: options.Checkpoint, data: options.Data = None, size: options.Size = None,
            model: options.Model = None, as_json: Json = False) -> None:
    """Say what a file of weights contains, before anything is run.

    Counts its layers and classes, and looks for the network that it fits among the known ones. With --data it also
    finds out how the network expects its images: the size and the common mean and std with which it gets the most
    clean ones right. Ends with the command to run next. No code from the file is run. Takes seconds; with --data up
    to a minute.
    """
    from gradprune.victims.inspection import inspect as look
    found = look(weights, data, size=size, model=model)
    show(as_json, found.as_dict(), _table(found), *found.notes,
         *(("Next:", _in_lines(found.command)) if found.command else ()))


def _table(found: "Inspection") -> Table:
    layers = ", ".join(f"{count} {kind[:-1] if count == 1 else kind}" for kind, count in found.layers.items() if count)
    rows = {"file": found.file, "it holds": found.holds,
            "tensors": f"{found.tensors}, with {found.numbers:,} numbers", "layers": layers or "none that is known",
            "images": f"{found.channels} channels" if found.channels else "not told by its layers",
            "classes": str(found.classes or "not told by its layers"), "network": found.model or "none that is known"}
    for guess in found.guesses[:_SHOWN]:
        stem = f", {guess.stem} stem" if guess.stem else ""
        rows[f"{guess.normalisation}, {guess.size} pixels{stem}"] = f"{guess.right} of {guess.images} images right"
    sheet = folding_table("what", "found")
    for name, text in rows.items():
        sheet.add_row(plain(name), plain(text))
    return sheet


def _in_lines(command: str) -> str:
    """A command line that can be copied from the terminal, with a line break before each option."""
    return "    " + re.sub(r" (?=--)", " \\\n        ", command)


EXAMPLE = more("gradprune inspect weights.pth --data photos/", figures=False)
