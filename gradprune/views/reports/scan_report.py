"""The audit of a scan: one page with the suspected class, the synthesised trigger, and what a scan cannot see."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

import torch
from torch import Tensor, nn

from gradprune import __version__
from gradprune.base.errors import require
from gradprune.base.paths import output_folder, write_atomic
from gradprune.defenses import Scan
from gradprune.defenses.scan import OUTLIER, SMALL
from gradprune.search import Inverted, Perturbed
from gradprune.views.figures import style
from gradprune.views.figures.drawing import show_image
from gradprune.views.figures.image_change import amplified
from gradprune.views.figures.picture import Picture, count
from gradprune.views.figures.scan_plots import norms
from gradprune.views.reports.page import page, table

_METHOD = """<p>Every class of every model can be reached somehow. A backdoor is a shortcut: its class is easy to reach
in many ways at once. Eight searches ask how easy each class is. Two synthesise a trigger from the defender’s few clean
images: the smallest mask with a pattern (Wang et al., 2019, “Neural Cleanse”), measured by the mask’s sum, and the
smallest pattern added to the whole image (after Moosavi-Dezfooli et al., 2017, arXiv:1610.08401), measured by its
Euclidean length. Five search noise, smooth fields, waves, bends and patches of a drawn strength, and measure how sure
of the class the model becomes on images that were not searched on. One needs no image: the largest lead of the class
over all others (Wang et al., 2024, “MM-BD”, arXiv:2205.06900). Each gives a class its distance from the median of the
classes, in robust standard deviations; the score of a class is the mean of the eight, and above {threshold:g} it is an
alarm.</p><p>The anomaly index says the same of one search alone. By itself it accuses the class with the highest score
where it is above {outlier:g} and the norm below {small:.0%} of the median.</p>"""
_BLIND = """<ul>
<li>A class that is suspected need not have been attacked: some classes are easy to reach by nature.</li>
<li>No alarm is no proof. A trigger that is no small mask and no faint pattern (a warp, one that differs from image to
image), or one that needs more than the search allows, can go unseen.</li>
<li>A model with several target classes, or one where every class leads to the next, has no single outlier.</li>
<li>The synthesised trigger opens the same door, but seldom looks like the attacker’s own.</li>
<li>Few images and few classes make the index rough; another seed moves it.</li></ul>"""


def write_scan_report(folder: str | Path, scanned: Scan, facts: Mapping[str, object], card_says: str = "") -> Path:
    """Write scan.html, one file that needs no network; returns its path.

    scanned: what `scan` returned. facts: shown among the settings. card_says: what the model's card says of an attack,
    told beside the verdict. Raises InputError for a folder that cannot be written.
    """
    folder = output_folder(folder)
    text = _page(scanned, facts, card_says)
    return write_atomic(folder / "scan.html", lambda temporary: temporary.write_text(text, "utf-8"))


def synthesised(scanned: Scan, trigger: nn.Module, columns: int = 5) -> Picture:
    """The synthesised trigger by itself, then images of other classes without and with it.

    Raises InputError where the scan suspects no class.
    """
    require(scanned.suspect_row is not None, "the scan suspects no class, so there is no trigger to show.")
    others = torch.stack([scanned.images.floats()[scanned.images.labels == label][0]
                          for label in range(len(scanned.classes))
                          if label != scanned.suspect and bool((scanned.images.labels == label).any())][:columns])
    marked, parts = trigger.cpu()(others), _parts(trigger)
    with style.in_style():
        figure = style.new_figure(1.5 + 1.3 * len(others), 4.4)
        grid = figure.subplots(3, len(others), squeeze=False)
        for ax in grid.flat:
            ax.set_axis_off()
        for ax, (name, pixels) in zip(grid[0], parts.items(), strict=False):
            show_image(ax, pixels)
            ax.set_title(name, fontsize=style.SMALL)
        for axes, name, pictures in ((grid[1], "clean", others), (grid[2], "with it", marked)):
            style.write(axes[0], name, (0, 0.5), (-12, 0), ha="right", va="center", fontweight="bold")
            for ax, pixels in zip(axes, pictures, strict=True):
                show_image(ax, pixels)
    row = scanned.suspect_row
    assert row is not None  # required above
    return Picture(figure, f"The trigger synthesised for “{scanned.classes[row.label]}”; with it {row.success:.1%} of "
                           "the defender's images of other classes go there.")


def _parts(trigger: nn.Module) -> dict[str, Tensor]:
    """What a synthesised trigger consists of, as images."""
    if isinstance(trigger, Inverted):
        mask, pattern = trigger.mask.cpu(), trigger.pattern.cpu()
        return {"mask": mask, "pattern": pattern, "mask × pattern": mask * pattern}
    assert isinstance(trigger, Perturbed)  # the only other kind
    shown, gain = amplified(torch.zeros_like(trigger.pattern.cpu()), trigger.pattern.cpu())
    return {f"pattern × {gain}\n(grey: none)": shown}


def _standings(scanned: Scan) -> str:
    """The score of each class and what it is the mean of, the highest first (HTML)."""
    order = sorted(range(len(scanned.classes)), key=lambda label: -scanned.scores[label])
    rows = [[scanned.classes[label], f"{scanned.scores[label]:.1f}",
             *(f"{told[label]:.1f}" for told in scanned.voices.values())] for label in order]
    return table(rows, ["class", "score", *scanned.voices],
                 "Robust standard deviations above the median of the classes.")


def _page(scanned: Scan, facts: Mapping[str, object], card_says: str) -> str:
    """The whole page (HTML)."""
    trigger = ""
    if scanned.trigger is not None:
        trigger = f'<div class="wide">{synthesised(scanned, scanned.trigger).html()}</div>'
    rows = [[scanned.classes[row.label], row.kind, f"{row.norm:.2f}" if row.converged else "did not converge",
             f"{row.success:.1%}", "–" if row.share is None else f"{row.share:.0%}",
             "–" if row.anomaly is None else f"{row.anomaly:.2f}"] for row in scanned.rows]
    settings = {**facts, "alarm": f"score above {scanned.threshold:g}",
                "images": count(len(scanned.images), "image"), "gradprune": __version__,
                "torch": torch.__version__.split("+")[0]}
    sections = {
        "Verdict": f"<p>{escape(scanned.verdict)}</p>" + (f"<p>{escape(card_says)}</p>" if card_says else ""),
        "The synthesised trigger": trigger,
        "How easily each class is reached": _standings(scanned),
        "Norms of the classes": f'<div class="wide">{norms(scanned.rows, scanned.classes).html()}</div>',
        "All figures": table(rows, ["class", "search", "norm", "other images moved", "share of median", "index"],
                             "An index is given for norms below the median; others have 0."),
        "How it was found": _METHOD.format(threshold=scanned.threshold, small=SMALL, outlier=OUTLIER),
        "What it cannot see": _BLIND,
        "Settings": table([[key, str(value)] for key, value in settings.items() if str(value)]),
    }
    heading = "No class is suspected" if scanned.suspect is None else f"Suspected: {scanned.classes[scanned.suspect]}"
    if all(not row.converged for row in scanned.rows):
        heading = "No verdict"
    lead = (f"{len(scanned.voices)} searches for each of {len(scanned.classes)} classes, with {len(scanned.images)} "
            "clean images.")
    return page(f"Scan: {facts.get('checkpoint', 'a model')}", lead, sections, heading=heading)
