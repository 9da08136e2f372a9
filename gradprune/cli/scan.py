"""The command `gradprune scan`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from gradprune.cli import options
from gradprune.cli.console import Json, figures_table, more, plain, progress, show, written

if TYPE_CHECKING:
    from gradprune.defenses import Scan

Spc = Annotated[int, typer.Option(help="Clean images per class that may be used.")]
Seed = Annotated[int, typer.Option(help="Seed of the draw of the images and of the searches.")]
Out = Annotated[Path | None, typer.Option(help="Folder for scan.html; by default nothing is written.")]


def scan(checkpoint: options.Checkpoint, spc: Spc = 10, seed: Seed = 0, model: options.Model = None,
         data: options.Data = None, size: options.Size = None, mean: options.Mean = None,
         std: options.Std = None, stem: options.Stem = None, device: options.Device = "auto",
         out: Out = None, as_json: Json = False) -> None:
    """Look for a backdoor without knowing its trigger.

    Eight searches measure how easily every class is reached: by the smallest mark, by the smallest pattern over
    the whole image, by noise, waves, warping and patches, and without any image. The filters are asked, too: each
    one's output is pushed far up. The class that stands out is suspected. Only clean images are used; what the
    checkpoint's card says about an attack is only printed next to the verdict. One to two minutes on a laptop.
    """
    from gradprune.cli.jobs import results_in
    from gradprune.defenses import scan
    from gradprune.victims import Own
    own = options.own(checkpoint, model, data, size, mean, std, stem=stem) or Own()
    with results_in(out):
        network, card, images, notes = own.open(checkpoint, device)
        scanned = scan(network, images.defense, spc=spc, seed=seed, progress=progress())
        told: dict[str, Any] = {"checkpoint": checkpoint, "spc": spc, "seed": seed, "threshold": scanned.threshold,
                "suspect": scanned.suspect,
                "suspect_name": None if scanned.suspect is None else scanned.classes[scanned.suspect],
                "kind": scanned.kind, "scores": [round(score, 3) for score in scanned.scores],
                "voices": {name: [round(one, 3) for one in told] for name, told in scanned.voices.items()},
                "driven": [round(one, 4) for one in scanned.reached],
                "verdict": scanned.verdict, "card_says": _card_says(card, scanned),
                "rows": [row._asdict() | {"class": scanned.classes[row.label]} for row in scanned.rows], "report": None,
                "notes": notes}
        if out:
            from gradprune.views.reports.scan_report import write_scan_report
            facts = {"checkpoint": checkpoint, "images per class": spc, "seed": seed,
                     "weights, sha256": str(card.get("sha256", ""))[:16]}
            told["report"] = write_scan_report(out, scanned, facts, told["card_says"]).as_posix()
    show(as_json, told, _table(scanned), scanned.verdict, told["card_says"], *notes, *written(told))


def _card_says(card: dict[str, Any], scanned: "Scan") -> str:
    """Whether the card agrees with the verdict; empty if it does not say."""
    attack = card.get("attack")
    attack = attack if isinstance(attack, dict) else {}
    target, rate = attack.get("target"), attack.get("rate")
    if not isinstance(target, int) or not isinstance(rate, int | float) or not 0 <= target < len(scanned.classes):
        return ""
    if rate == 0:
        return "The card says that no image was poisoned: " + ("no alarm is right." if scanned.suspect is None else
                                                               "this is a false alarm.")
    if attack.get("label_map") == "all_to_all":
        return "The card says that the trigger leads each class to the next; a scan looks for a single target."
    outcome = ("the scan missed it" if scanned.suspect is None else
               "the suspicion is right" if scanned.suspect == target else "the suspicion is wrong")
    cleaned = " It also says that the model was cleaned." if "defense" in card else ""
    return f"The card says that the model was attacked, with target {scanned.classes[target]!r}: {outcome}.{cleaned}"


def _table(scanned: "Scan") -> Table:
    """One row per class: its score, and for mask and whole image the norm, share of images moved and anomaly index."""
    kinds = dict.fromkeys(row.kind for row in scanned.rows)
    sheet = figures_table("class", "score", *(f"{kind}: {figure}".replace(" ", "\n") for kind in kinds
                                              for figure in ("norm", "moves", "index")))  # narrow, for the names' sake
    for label, name in enumerate(scanned.classes):
        cells = [text for row in scanned.rows if row.label == label for text in _figures(row)]
        sheet.add_row(plain(name), f"{scanned.scores[label]:.1f}", *cells)
    return sheet


def _figures(row: Any) -> tuple[str, str, str]:
    """Norm (none: nothing leads there), success and index of a row as strings."""
    index = "-" if row.anomaly is None else f"{row.anomaly:.1f}"
    return (f"{row.norm:.1f}" if row.converged else "none"), f"{row.success:.0%}", index


EXAMPLE = more("gradprune scan badnets --out out/scan", "gradprune repair badnets --out out/repaired")
