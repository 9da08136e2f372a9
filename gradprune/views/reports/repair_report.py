"""The report of a repair: which changes led the given model astray, which still do, and what the page cannot tell."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from gradprune.base.paths import output_folder
from gradprune.datasets import ImageSet
from gradprune.defenses import DefenseResult
from gradprune.defenses.exposure import Reach
from gradprune.victims import Victim
from gradprune.views.figures.example_images import examples
from gradprune.views.figures.scan_plots import reach
from gradprune.views.figures.style import METRICS
from gradprune.views.reports.page import DEFINITIONS, told, write_page


def write_repair_report(folder: str | Path, given: nn.Module, result: DefenseResult, images: ImageSet,
                        led: tuple[Sequence[Reach], Sequence[Reach]], stages: Mapping[str, Mapping[str, float | None]],
                        victim: Victim | None = None, facts: Mapping[str, object] | None = None) -> Path:
    """Write repair.html, one file that needs no network; returns its path.

    given, result: the model before, and what `repair` returned. images: the defender's. led: rows of
    `defenses.exposure` before and after. stages: "before" and "after" with `acc`, `asr` and `ra`, the last two None
    where no trigger is known. victim: the given model with the attacker's trigger, where a card names it.
    Raises InputError for a folder that cannot be written.
    """
    before, after = stages["before"], stages["after"]
    known = [key for key in METRICS if before[key] is not None]
    figures = [[name, *(f"{stage[key]:.1%}" for key in known)]
               for name, stage in (("given model", before), ("repaired", after))]
    repaired = {row.family: row for row in led[1]}
    shares = [[row.family, *(f"{one.share:.0%} to {images.classes[one.label]}" for one in (row, repaired[row.family]))]
              for row in led[0]]
    settings = {**(facts or {}), **{key: value for key, value in result.settings.items() if key != "families"},
                **{f"seconds, {stage}": f"{seconds:.1f}" for stage, seconds in result.seconds.items()}}
    return write_page(
        output_folder(folder) / "repair.html", "repair.html", title=f"Repair: {settings.get('checkpoint', 'a model')}",
        heading="Repaired without the trigger", before=before, after=after, known=known, result=result, victim=victim,
        figures=figures, definitions={METRICS[key].name: DEFINITIONS[METRICS[key].name] for key in known},
        shares=shares, reach=reach(images, *led), way=result.stopped.rstrip("."), settings=told(settings),
        examples=examples({"before": given, "after": result.model}, victim.data.test, victim.trigger, victim.target,
                          label_map=victim.label_map) if victim else None)
