"""The report of a scan: one page with the suspected class, the synthesised trigger, and what a scan cannot see."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from gradprune.base.errors import InputError
from gradprune.base.paths import output_folder
from gradprune.defenses import Scan
from gradprune.defenses.scan import LOUD, OUTLIER, SMALL
from gradprune.search import Inverted, Perturbed
from gradprune.views.figures import style
from gradprune.views.figures.drawing import show_image
from gradprune.views.figures.example_images import amplified, first_of_each
from gradprune.views.figures.picture import Picture, count
from gradprune.views.figures.scan_plots import norms
from gradprune.views.reports.page import setting_rows, write_page


def write_scan_report(folder: str | Path, scanned: Scan, facts: Mapping[str, object], card_says: str = "") -> Path:
    """Write scan.html, one file that needs no network; returns its path.

    scanned: what `scan` returned. facts: shown among the settings. card_says: what the model's card says about an
    attack, shown with the verdict. Raises InputError for a folder that cannot be written.
    """
    order = sorted(range(len(scanned.classes)), key=lambda label: -scanned.scores[label])
    standings = [[scanned.classes[label], f"{scanned.scores[label]:.1f}",
                  *(f"{found[label]:.1f}" for found in scanned.voices.values()), f"{scanned.reached[label]:.0%}"]
                 for label in order]
    rows = [[scanned.classes[row.label], row.kind, f"{row.norm:.2f}" if row.converged else "did not converge",
             f"{row.success:.1%}", "–" if row.share is None else f"{row.share:.0%}",
             "–" if row.anomaly is None else f"{row.anomaly:.2f}"] for row in scanned.rows]
    settings = {**facts, "alarm": f"score above {scanned.threshold:g}", "images": count(len(scanned.images), "image")}
    heading = "No class is suspected" if scanned.suspect is None else f"Suspected: {scanned.classes[scanned.suspect]}"
    if not any(row.converged for row in scanned.rows):
        heading = "No verdict"
    return write_page(
        output_folder(folder) / "scan.html", "scan.html", title=f"Scan: {facts.get('checkpoint', 'a model')}",
        heading=heading, scanned=scanned, card_says=card_says, standings=standings, rows=rows,
        settings=setting_rows(settings), small=SMALL, outlier=OUTLIER, loud=LOUD,
        norms=norms(scanned.rows, scanned.classes),
        synthesised=None if scanned.trigger is None else synthesised(scanned, scanned.trigger))


def synthesised(scanned: Scan, trigger: nn.Module, columns: int = 5) -> Picture:
    """The synthesised trigger by itself, then images of other classes without and with it.

    Raises InputError where the scan suspects no class.
    """
    row = scanned.suspect_row
    if row is None:
        raise InputError("the scan suspects no class, so there is no trigger to show.")
    images = scanned.images.subset(scanned.images.labels != row.label)
    others = first_of_each(images, 1).floats()[:columns]
    marked, parts, n = trigger.cpu()(others), _parts(trigger), len(others)
    with style.sheet(4.4, 3, len(others), width=1.5 + 1.3 * len(others)) as (figure, panels):
        for ax in panels:
            ax.set_axis_off()
        for ax, (name, pixels) in zip(panels, parts.items(), strict=False):
            show_image(ax, pixels)
            ax.set_title(name, fontsize=style.SMALL)
        for axes, name, pictures in ((panels[n:2 * n], "clean", others), (panels[2 * n:], "triggered", marked)):
            style.write(axes[0], name, (0, 0.5), (-12, 0), ha="right", va="center", fontweight="bold")
            for ax, pixels in zip(axes, pictures, strict=True):
                show_image(ax, pixels)
    return Picture(figure, f"The trigger synthesised for “{scanned.classes[row.label]}” sends {row.success:.1%} of the "
                           "defender's images of other classes there.")


def _parts(trigger: nn.Module) -> dict[str, Tensor]:
    """What a synthesised trigger consists of, as images."""
    if isinstance(trigger, Inverted):
        mask, pattern = trigger.mask.cpu(), trigger.pattern.cpu()
        return {"mask": mask, "pattern": pattern, "mask × pattern": mask * pattern}
    assert isinstance(trigger, Perturbed)  # the only other kind
    shown, gain = amplified(torch.zeros_like(trigger.pattern.cpu()), trigger.pattern.cpu())
    return {f"pattern × {gain}\n(grey: none)": shown}
