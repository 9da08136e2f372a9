"""The report of a repair: which changes led the given model astray, which still do, and what the page cannot tell."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradprune import __version__
from gradprune.datasets import ImageSet
from gradprune.defenses import DefenseResult
from gradprune.defenses.exposure import Reach
from gradprune.evaluation import Victim
from gradprune.paths import output_folder, write_atomic
from gradprune.views.example_images import examples
from gradprune.views.page import DEFINITIONS, page, table, terms
from gradprune.views.picture import Picture
from gradprune.views.scan_plots import reach
from gradprune.views.style import METRICS

_LED = """<p>New changes of each family, which the repair has not seen, are found on one half of the defender’s images
and tried on the other half. The figure shows how many images the furthest of them leads to one single class. Healthy
models are led astray as well: a small share after the repair is a good sign, a large one is no proof of a
backdoor.</p>"""
_CONSISTENCY = """Consistency means that the model learns to say of an image with any small change on it, drawn or
searched, what the given model says of the clean image."""
_SUSPECT = """Where nearly every change moves a model, that would cost too much accuracy. Triggers that lead to a
suspected class are searched instead, and unlearned together, until the class is no easier to reach than the others."""
_BLIND = """<ul>
<li>No figure on this page proves that a backdoor is gone. A trigger unlike all families of changes can survive.</li>
<li>A repair cannot tell a backdoor from a natural weakness: it also costs a healthy model some accuracy.</li>
<li>A low share means that few images go to <em>one</em> class. Images with a trigger can still get other wrong
answers.</li></ul>"""
_ATTACKER = """<p>The model’s card names the attacker’s trigger. The repair did not see it; it serves here alone, to
measure.</p>"""


def write_repair_report(folder: str | Path, given: nn.Module, result: DefenseResult, images: ImageSet,
                        led: tuple[Sequence[Reach], Sequence[Reach]], stages: Mapping[str, Mapping[str, float | None]],
                        victim: Victim | None = None, facts: Mapping[str, object] | None = None) -> Path:
    """Write repair.html, one file that needs no network; returns its path.

    given, result: the model before, and what `repair` returned. images: the defender's. led: rows of
    `defenses.exposure` before and after. stages: "before" and "after" with `acc`, `asr` and `ra`, the last two None
    where no trigger is known. victim: the given model with the attacker's trigger, where a card names it.
    Raises InputError for a folder that cannot be written.
    """
    folder = output_folder(folder)
    known = [key for key in METRICS if stages["before"][key] is not None]
    moved = reach(images, *led)
    sections = {
        "What the model says": _ATTACKER + _wide(examples({"before": given, "after": result.model}, victim.data.test,
                                                          victim.trigger, victim.target,
                                                          label_map=victim.label_map)) if victim else "",
        "Before and after": _figures(stages, known),
        "What moves the model": _LED + _wide(moved) + _shares(images.classes, *led),
        "How it was repaired": _road(result),
        "What this page cannot tell": _BLIND,
        "Settings": table([[key, str(value)] for key, value in _facts(result, facts or {}).items() if str(value)]),
    }
    title = f"Repair: {(facts or {}).get('checkpoint', 'a model')}"
    text = page(title, _story(result, stages, victim), sections, _tiles(stages, known), "Repaired without the trigger")
    return write_atomic(folder / "repair.html", lambda temporary: temporary.write_text(text, "utf-8"))


def _wide(picture: Picture) -> str:
    return f'<div class="wide">{picture.html()}</div>'


def _story(result: DefenseResult, stages: Mapping[str, Mapping[str, float | None]], victim: Victim | None) -> str:
    """The run in one paragraph (HTML)."""
    before, after = stages["before"], stages["after"]
    told = (f"Nobody told the defence which trigger to look for. It got {result.settings.get('spc', 'a few')} clean "
            f"images of each class. Clean accuracy went from {before['acc']:.1%} to <b>{after['acc']:.1%}</b>.")
    if victim:
        told += (f" The attacker’s trigger, which leads to <b>{escape(victim.target_name)}</b>, worked on "
                 f"{before['asr']:.1%} of the images, and now works on <b>{after['asr']:.1%}</b>.")
    else:
        told += " No trigger is known, so no attack success rate can be given."
    return told + " The run was interrupted: this is the state that it had reached." * result.interrupted


def _tiles(stages: Mapping[str, Mapping[str, float | None]], known: Sequence[str]) -> str:
    """A tile for each figure that could be measured (HTML)."""
    tiles = [f'<div class="tile {key}"><dt>{METRICS[key].name}</dt><dd class="figures">{stages["before"][key]:.1%} → '
             f'<b>{stages["after"][key]:.1%}</b></dd><dd>{METRICS[key].meaning}</dd></div>' for key in known]
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _figures(stages: Mapping[str, Mapping[str, float | None]], known: Sequence[str]) -> str:
    """The table of test figures, with what they mean (HTML)."""
    names = [METRICS[key].name for key in known]
    rows = [[name, *(f"{stages[stage][key]:.1%}" for key in known)]
            for name, stage in (("given model", "before"), ("repaired", "after"))]
    caption = "Measured on test images; the repair saw none of them."
    return table(rows, ["model", *names], caption) + terms({name: DEFINITIONS[name] for name in names})


def _shares(classes: Sequence[str], given: Sequence[Reach], repaired: Sequence[Reach]) -> str:
    """The figure's numbers as a table (HTML)."""
    after = {row.family: row for row in repaired}
    rows = [[row.family, f"{row.share:.0%} to {classes[row.label]}",
             f"{after[row.family].share:.0%} to {classes[after[row.family].label]}"] for row in given]
    return table(rows, ["family of changes", "given model", "repaired"], "Share of the images of other classes.")


def _road(result: DefenseResult) -> str:
    """Which way was taken and why, and which changes were searched (HTML)."""
    families, told = ", ".join(result.settings.get("families", ())), result.stopped.rstrip(".")
    way = (f"{_CONSISTENCY} Families of changes: {escape(families)}." if told.endswith("consistency") else _SUSPECT)
    return f"<p>{escape(told[:1].upper() + told[1:])}.</p><p>{way}</p>"


def _facts(result: DefenseResult, facts: Mapping[str, object]) -> dict[str, Any]:
    """All that shaped the run, and what it was made with."""
    return {**facts, **{key: value for key, value in result.settings.items() if key != "families"},
            **{f"seconds, {stage}": f"{seconds:.1f}" for stage, seconds in result.seconds.items()},
            "gradprune": __version__, "torch": torch.__version__.split("+")[0]}
