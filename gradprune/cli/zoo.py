"""The commands `gradprune zoo`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gradprune.base.paths import data_folder
from gradprune.cli.console import Json, more, progress, show, table

app = typer.Typer(no_args_is_help=True, help="List or rebuild the shipped models.")

Folder = Annotated[Path | None, typer.Option(help="Folder to write to; by default the shipped one.")]
Names = Annotated[list[str] | None, typer.Argument(help="Names of the models; by default all of the signs.")]


@app.command("list", epilog=more("gradprune zoo list --json"))
def zoo_list(as_json: Json = False) -> None:
    """Print the cards of the shipped models.

    Says how each was attacked, and its figures; with --json prints the whole cards. A few seconds.
    """
    from gradprune.victims.zoo import cards
    found = cards()
    rows = {f"{key} ({card['attack']['rate']:.0%} {_of_what(card)})": card["metrics"] for key, card in found.items()}
    departs = [f"{key}: {card['attack']['departs']}" for key, card in found.items() if "departs" in card["attack"]]
    show(as_json, {"checkpoints": found}, table("shipped model", rows) if rows else
           "There are no shipped models here; `gradprune zoo build` trains them.", *departs)


@app.command("build", epilog=more("gradprune zoo build badnets sig --out out/zoo"))
def zoo_build(names: Names = None, out: Folder = None, as_json: Json = False) -> None:
    """Train the shipped models again, from seed.

    Takes about a minute each on a laptop; a model of photographs, such as cifar10/bpp, takes up to an hour and needs
    its data set. Ctrl-C keeps the finished ones.
    """
    from gradprune.cli.jobs import results_in
    from gradprune.victims.zoo import build_zoo
    folder, built = out or data_folder() / "checkpoints", {}
    with results_in(folder):
        try:
            for name, victim in build_zoo(names, folder, progress()):
                built[name] = victim.card["metrics"]
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"finished and saved: {', '.join(built) or 'none'}") from None
    show(as_json, {"built": built, "out": folder.as_posix()}, table("trained model", built),
           f"Saved in: {folder.as_posix()}")


def _of_what(card: dict[str, Any]) -> str:
    return "of the target class" if card["attack"].get("label_map") == "clean_label" else "poisoned"
