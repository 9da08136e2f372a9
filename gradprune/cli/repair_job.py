"""The work of the command `repair`: clean a model without its trigger, save, return plain values."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradprune.base.errors import InputError
from gradprune.cli.jobs import results_in
from gradprune.datasets import ImageSet, class_name, draw_defense_images
from gradprune.defenses import exposure, repair
from gradprune.evaluation.metrics import accuracy
from gradprune.models.weights import bare_name
from gradprune.victims import Own, Victim, save_cleaned
from gradprune.victims.victim import checkpoint_path, trigger_of


def repair_and_save(checkpoint: str, path: Path | None, export: Path | None = None, report: Path | None = None, *,
                    own: Own | None = None, device: str = "cpu", **settings: Any) -> dict[str, Any]:
    """Clean a model with an unknown trigger (see `defenses.repair`); save it as `path` (or in it) and as `export`.

    report: a folder for a page, see `write_repair_report`.
    Returns, as plain JSON values, `before` and `after` (`acc`; `asr` and `ra` with the trigger on the card, or None),
    `suspect` (the name of the class that was unlearned, or None), `led` (by family of changes, the share of the
    defender's images that a new one leads there, or to one class if there is no suspect, with the given and with the
    repaired model; see `exposure`), `road` (the method and why), `seconds`, the settings, `notes`, a
    `sentence`, and the paths `out`, `export` and `report`. The new card is the given one with the new `metrics`, if
    any, and `defense`.
    """
    if path and path.is_dir():
        path = path / f"{bare_name(checkpoint)}-repaired"
    save_cleaned.check(False, export, checkpoint, path)
    with results_in(path and path.parent, export and export.parent, report):
        model, card, data, notes = (own or Own()).open(checkpoint, device)
        bare = Victim(model, None, 0, data, card)  # type: ignore[arg-type]
        victim = _with_trigger(checkpoint, bare)
        result = repair(model, data.defense, **settings)
        tensors = (one.state_dict().values() for one in (model, result.model))
        if result.interrupted and all(map(torch.equal, *tensors)):
            raise KeyboardInterrupt("the model had not changed yet, so nothing was written")
        before, after = (_figures(one, victim, data.test) for one in (model, result.model))
        images = draw_defense_images(data.defense, settings.get("spc", 10), settings.get("seed", 0)).train
        pixels = images.floats().to(next(model.parameters()).device)
        led, led_after = (exposure(one, pixels, seed=settings.get("seed", 0) + 1, toward=result.suspect)
                          for one in (model, result.model))
        card = {**card, **({"metrics": after} if victim else {}),
                "defense": {**result.settings, "stopped": result.stopped, "interrupted": result.interrupted}}
        page = None
        if report:
            from gradprune.views.reports.report import write_repair_report
            facts = {"checkpoint": checkpoint, "weights, sha256": str(card.get("sha256", ""))[:16]}
            page = write_repair_report(report, model, result, images, (led, led_after),
                                       {"before": before, "after": after}, victim, facts)
        written = save_cleaned.deliver(victim or bare, result.model, card, path, False, export)
    cost = f"Clean accuracy went from {before['acc']:.1%} to {after['acc']:.1%}"
    repaired = {row.family: round(row.share, 4) for row in led_after}
    return {"checkpoint": checkpoint, "before": before, "after": after,
            "suspect": None if result.suspect is None else class_name(result.suspect, images.classes),
            "led": {row.family: (round(row.share, 4), repaired[row.family]) for row in led}, **result.settings,
            "road": f"Why so: {result.stopped}", "interrupted": result.interrupted,
            "seconds": round(sum(result.seconds.values()), 1), "trigger": victim and card["attack"]["trigger"],
            "notes": notes, "out": written["out"], "export": written["export"],
            "report": page and page.as_posix(),
            "sentence": f"{cost}. No trigger is known, so no figure says what is left of a backdoor; "
                        "`gradprune scan` looks again." if victim is None else
                        f"{cost}, and the trigger on the card moves {after['asr']:.1%} of the images, not "
                        f"{before['asr']:.1%}. The repair did not see it."}


def _with_trigger(checkpoint: str, victim: Victim) -> Victim | None:
    """The victim with the trigger and target of its card; None if the card names none that can be built."""
    attack = victim.card.get("attack")
    if not isinstance(attack, dict) or not isinstance(attack.get("trigger"), str):
        return None
    try:
        named = replace(victim, trigger=trigger_of(checkpoint_path(checkpoint), victim.card), target=attack["target"])
        named.exam()
    except (InputError, KeyError, TypeError):
        return None
    return named


def _figures(model: nn.Module, victim: Victim | None, test: ImageSet) -> dict[str, float | None]:
    """Rounded test figures; only ACC if there is no victim to measure with."""
    if victim is None:
        return {"acc": round(accuracy(model, test.floats(), test.labels), 4), "asr": None, "ra": None}
    return {key: round(value, 4) for key, value in victim.evaluate(model)._asdict().items()}
