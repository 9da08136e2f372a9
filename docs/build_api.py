"""The reference of all functions and classes, made from their docstrings: `make docs`, or this file with a folder."""

import sys
import warnings
from pathlib import Path

import pdoc

import gradprune
from gradprune.paths import output_folder


def build(folder: Path) -> None:
    """Write index.html and a page a module; a module that cannot be imported, or a lost name, is an error."""
    for name in gradprune.__all__:  # loaded when first used, so they are not there yet
        setattr(gradprune, name, getattr(gradprune, name))
    pdoc.render.configure(docformat="markdown", show_source=False, footer_text=f"gradprune {gradprune.__version__}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # pdoc's own
        pdoc.pdoc("gradprune", output_directory=output_folder(folder))
    print(f"Written: {folder / 'index.html'}")


if __name__ == "__main__":
    build(Path(sys.argv[1] if len(sys.argv) > 1 else "out/docs"))
