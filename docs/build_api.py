"""The reference of all public names, made from their docstrings: `make docs`, or this file with a folder."""

import re
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pdoc

from gradprune import __version__
from gradprune.base.paths import output_folder

ROOMS = ("base", "datasets", "models", "attacks", "pruning", "search", "defenses", "evaluation", "victims", "bench",
         "views", "cli", "lessons")
INHERITED = re.compile(r"<p>(Alias for field number|Create new instance of|Initialize internal Module state)[^<]*</p>")


def build(folder: Path) -> None:
    """Write index.html, a page of the package and one a room; a public name that leads nowhere is an error."""
    pages = ["gradprune", *(f"gradprune.{room}" for room in ROOMS)]
    for module in map(import_module, pages):
        for name in module.__all__:  # some are loaded when first used, and so are not there yet
            setattr(module, name, getattr(module, name))
    pdoc.render.configure(docformat="markdown", show_source=False, footer_text=f"gradprune {__version__}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # pdoc's own
        pdoc.pdoc(*pages, output_directory=output_folder(folder))
    for page in folder.rglob("*.html"):  # what named tuples and torch's modules say of themselves tells nobody anything
        page.write_text(INHERITED.sub("", page.read_text("utf-8")), "utf-8")
    print(f"Written: {folder / 'index.html'}")


if __name__ == "__main__":
    build(Path(sys.argv[1] if len(sys.argv) > 1 else "out/docs"))
