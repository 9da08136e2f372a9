"""What `repair` of the command line does: work without any trigger, save, return plain values."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from gradprune.base.errors import InputError
from gradprune.cli.jobs import results_in
from gradprune.datasets import ImageSet, draw_defense_images
from gradprune.defenses import exposure, repair
from gradprune.defenses.exposure import Reach
from gradprune.evaluation.metrics import accuracy
from gradprune.victims import Own, Victim, save_cleaned
from gradprune.victims.victim import checkpoint_path, trigger_of


def repair_and_save(checkpoint: str, path: Path | None, export: Path | None = None, report: Path | None = None, *,
                    own: Own | None = None, device: str = "cpu", **settings: Any) -> dict[str, Any]:
    """Clean a model whose trigger nobody knows (see `defenses.repair`); save it as `path` (or in it) and as `export`.

    Returns, in plain JSON values, `before` and `after` (`acc`; `asr` and `ra` with the trigger on the card, None where
    there is none), `led` (by family of changes, the share of the defender's images that a new one leads to one class:
    with the given model, and with the repaired one; see `exposure`), `road`, `seconds`, the settings, `notes`, a
    `sentence`, `out`, `export`, and `report` (a page in that folder, see `write_repair_report`). The new card is the
    given one with the new `metrics`, if there are any, and `defense`.
    """
    if path and path.is_dir():
        path = path / f"{Path(checkpoint).stem}-repaired"
    save_cleaned.check(False, export)
    with (results_in(path.parent if path else None), results_in(export.parent if export else None), results_in(report)):
        model, card, data, notes = (own or Own()).open(checkpoint, device)
        bare = Victim(model, None, 0, data, card)  # type: ignore[arg-type]
        victim = _with_trigger(checkpoint, bare)
        result = repair(model, data.defense, **settings)
        before, after = (_figures(one, victim, data.test) for one in (model, result.model))
        images = draw_defense_images(data.defense, settings.get("spc", 10), settings.get("seed", 0)).train
        led = _led(model, result.model, images, settings.get("seed", 0) + 1)
        card = {**card, **({"metrics": after} if victim else {}),
                "defense": {**result.settings, "stopped": result.stopped, "interrupted": result.interrupted}}
        page = None
        if report:
            from gradprune.views.reports.report import write_repair_report
            facts = {"checkpoint": checkpoint, "weights, sha256": str(card.get("sha256", ""))[:16]}
            page = write_repair_report(report, model, result, images, led, {"before": before, "after": after}, victim,
                                       facts)
        written = save_cleaned.deliver(victim or bare, result.model, card, path, False, export)
    cost = f"Clean accuracy went from {before['acc']:.1%} to {after['acc']:.1%}"
    return {"checkpoint": checkpoint, "before": before, "after": after, "led": _by_family(*led), **result.settings,
            "road": f"Why so: {result.stopped}", "interrupted": result.interrupted,
            "seconds": round(sum(result.seconds.values()), 1), "trigger": victim and card["attack"]["trigger"],
            "notes": notes, "out": written["out"], "export": written["export"],
            "report": page and page.as_posix(),
            "sentence": f"{cost}. No trigger is known, so no figure says what is left of a backdoor; "
                        "`gradprune scan` looks again." if victim is None else
                        f"{cost}, and the trigger on the card moves {after['asr']:.1%} of the images, not "
                        f"{before['asr']:.1%}. The repair did not see it."}


def _with_trigger(checkpoint: str, victim: Victim) -> Victim | None:
    """The victim with the trigger and target of its card; None where the card names none that can be made."""
    attack = victim.card.get("attack")
    if not isinstance(attack, dict) or not isinstance(attack.get("trigger"), str):
        return None
    try:
        named = replace(victim, trigger=trigger_of(checkpoint_path(checkpoint), victim.card), target=attack["target"])
        named.exam()
    except (InputError, KeyError, TypeError):
        return None
    return named


def _led(given: nn.Module, repaired: nn.Module, images: ImageSet, seed: int) -> tuple[list[Reach], list[Reach]]:
    """How far changes that the repair did not see lead both models."""
    pixels = images.floats().to(next(given.parameters()).device)
    return exposure(given, pixels, seed=seed), exposure(repaired, pixels, seed=seed)


def _by_family(given: list[Reach], repaired: list[Reach]) -> dict[str, tuple[float, float]]:
    """The shares alone, by family: with the given model, and with the repaired one."""
    after = {row.family: round(row.share, 4) for row in repaired}
    return {row.family: (round(row.share, 4), after[row.family]) for row in given}


def _figures(model: nn.Module, victim: Victim | None, test: ImageSet) -> dict[str, float | None]:
    """Rounded test figures; ACC alone where there is no victim to measure with."""
    if victim is None:
        return {"acc": round(accuracy(model, test.floats(), test.labels), 4), "asr": None, "ra": None}
    return {key: round(value, 4) for key, value in victim.evaluate(model)._asdict().items()}
