"""The commands `gradprune data list`, `get` and `check`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from gradprune.base.errors import listed
from gradprune.cli.console import Json, folding_table, more, progress, show

if TYPE_CHECKING:
    from gradprune.datasets import Dataset

app = typer.Typer(no_args_is_help=True, help="Fetch, list and check data sets.")
Folder = Annotated[Path | None, typer.Option("--data-dir", help="Folder of the published sets; by default "
                                                                "GRADPRUNE_DATA or data/downloads/.")]
Names = Annotated[list[str], typer.Argument(help="Names from `gradprune data list`.")]
Sources = Annotated[list[str] | None, typer.Argument(help="Names, folders of pictures or .npz files; by default all "
                                                          "published sets that are here.")]


@app.command("list", epilog=more("gradprune data list --json", "gradprune data get cifar10", figures=False))
def list_sets(data_dir: Folder = None, as_json: Json = False) -> None:
    """Print the published data sets.

    Says what each contains, the size of its download, and whether it is here and complete. Takes seconds and needs no
    network.
    """
    from gradprune.base.paths import downloads_folder
    from gradprune.datasets.published import PUBLISHED, state
    told = {name: {"state": state(name, data_dir), "about": published.about,
                   "megabytes": round(sum(remote.size for remote in published.choices[0]) / 1e6),
                   "files": [remote.urls[0] for remote in published.choices[0]]}
            for name, published in PUBLISHED.items()}
    sheet = folding_table("data set", "here?", "download", "what it is")
    for name, row in told.items():
        sheet.add_row(name, str(row["state"]), f"{row['megabytes']} MB", Text(str(row["about"])))
    folder = (data_dir or downloads_folder()).as_posix()
    show(as_json, {"folder": folder, "sets": told}, sheet, f"Folder: {folder}",
         *(f"A file of {name} is damaged; `gradprune data check {name}` says which one and what to do."
           for name, row in told.items() if row["state"] == "damaged"),
         "The set `signs` is drawn by this program and needs no file.")


@app.command(epilog=more("gradprune data get cifar10 gtsrb", "gradprune attack badnets --data cifar10", figures=False))
def get(names: Names, data_dir: Folder = None, as_json: Json = False) -> None:
    """Download published data sets and convert them.

    Checksums are verified; existing files are not downloaded again, and an interrupted download resumes where it
    stopped. If a server cannot be reached, the message says which file to put where. Takes a minute or two on a fast
    connection.
    """
    from gradprune.datasets import get as get_set
    written = {}
    try:
        for name in names:
            written[name] = get_set(name, data_dir, progress=progress()).as_posix()
    except KeyboardInterrupt:
        raise KeyboardInterrupt("what has arrived is kept, and the same command goes on") from None
    show(as_json, {"sets": written}, *(f"{name} is ready: {path}" for name, path in written.items()),
         f"Other commands find it with GRADPRUNE_DATA={data_dir}" if data_dir else "")


@app.command(epilog=more("gradprune data check cifar10", "gradprune data check my/pictures", figures=False))
def check(sources: Sources = None, data_dir: Folder = None, as_json: Json = False) -> None:
    """Read data sets and say what is in them.

    Prints the sizes of the three parts, the image size, the classes, and the pictures of a folder that cannot be read.
    Needs no network; takes seconds, unless a set is still to be converted.
    """
    from gradprune.datasets.published import PUBLISHED, state
    found = {source: _facts(source, data_dir) for source in
             sources or [name for name in PUBLISHED if state(name, data_dir) != "absent"]}
    lines = [line for source, facts in found.items() for line in _lines(source, facts)]
    show(as_json, {"sets": found}, *(lines or ["No published set is here; `gradprune data list` names them."]))


def _facts(source: str, data_dir: Path | None) -> dict[str, Any]:
    """What is in a data set, and what was left out of a folder."""
    from gradprune.datasets import load, read_folder
    from gradprune.datasets.published import PUBLISHED, load_published
    if source in PUBLISHED:
        return _sizes(load_published(source, folder=data_dir))
    if source != "signs" and Path(source).expanduser().is_dir():
        read = read_folder(source)
        return {**_sizes(read.data), "skipped": list(read.skipped), "grey": read.grey, "turned": read.turned}
    return _sizes(load(source))


def _sizes(data: "Dataset") -> dict[str, Any]:
    return {**{part: len(images) for part, images in data._asdict().items()},
            "shape": list(data.train.images.shape[1:]), "classes": list(data.train.classes)}


def _lines(source: str, facts: dict[str, Any]) -> list[str]:
    classes, skipped = facts["classes"], facts.get("skipped", [])
    return [f"{source}: {facts['train']} images to train, {facts['defense']} for the defender, {facts['test']} to test;"
            f" {'x'.join(map(str, facts['shape']))}; {len(classes)} classes: {listed(classes)}.",
            *(f"  cannot be read: {name}" for name in skipped)]
