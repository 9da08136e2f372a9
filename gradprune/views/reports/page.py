"""The HTML pages: templates with autoescape (`templates/`), filled in and written whole, without network access."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gradprune.base.paths import write_atomic
from gradprune.victims.victim import versions
from gradprune.views.figures.picture import Picture, count
from gradprune.views.figures.style import METRICS

DEFINITIONS = {
    "ACC": "Clean accuracy: the share of all test images, without the trigger, that are classified correctly. "
           "Higher is better.",
    "ASR": "Attack success rate: with the trigger on the test images of all other classes, the share classified "
           "as the attacker’s target. Lower is better.",
    "RA": "Robust accuracy: of the same triggered images, the share still classified correctly. Higher "
          "is better. A model that answers wrongly, but not with the target, has a low ASR and a low RA.",
    "DER": "Defence effectiveness rating: the fall in ASR, less the loss in ACC, on a scale from 0% to 100% "
           "where 50% means no net gain.",
}

TEMPLATES = Environment(loader=PackageLoader("gradprune.views.reports"), autoescape=True, undefined=StrictUndefined,
                        trim_blocks=True, lstrip_blocks=True)
TEMPLATES.globals.update(METRICS=METRICS, DEFINITIONS=DEFINITIONS)
TEMPLATES.filters.update(count_of=count, percent=lambda share, digits=1: f"{share:.{digits}%}")


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Fill in a template and write the page; texts among the values are plain text, not HTML. Returns the path."""
    text = TEMPLATES.get_template(template).render(values)
    return write_atomic(path, lambda temporary: temporary.write_text(text, "utf-8"))


def save_pictures(folder: Path, pictures: Mapping[str, Picture]) -> dict[str, Markup]:
    """Save pictures by name as PNG; returns the HTML of each, which embeds the same bytes."""
    return {name: Markup(picture.html(picture.save(folder / f"{name}.png").read_bytes()))
            for name, picture in pictures.items()}


def setting_rows(settings: Mapping[str, object]) -> list[list[str]]:
    """The rows of a table of settings: those with a value, and the versions that made the page."""
    return [[key, str(value)] for key, value in {**settings, **versions()}.items() if str(value)]
