"""What `repair` of the command line does: work without any trigger, save, return plain values."""

from pathlib import Path
from typing import Any

from torch import nn

from gradprune import delivery
from gradprune.datasets import ImageSet
from gradprune.defenses import repair
from gradprune.demo import results_in
from gradprune.errors import InputError
from gradprune.evaluation import Own, Victim
from gradprune.evaluation.victim import checkpoint_path, trigger_of
from gradprune.models import predict
from gradprune.models.checkpoints import save_checkpoint
from gradprune.models.export import export as write_export


def repair_and_save(checkpoint: str, path: Path | None, export: Path | None = None, *, own: Own | None = None,
                    device: str = "cpu", **settings: Any) -> dict[str, Any]:
    """Clean a model whose trigger nobody knows (see `defenses.repair`); save it as `path` (or in it) and as `export`.

    Returns, in plain JSON values, `before` and `after` (`acc`; `asr` and `ra` with the trigger on the card, None where
    there is none), `road`, `seconds`, the settings, `notes`, a `sentence`, `out` and `export`. The new card is the
    given one with the new `metrics`, if there are any, and `defense`.
    """
    if path and path.is_dir():
        path = path / f"{Path(checkpoint).stem}-repaired"
    delivery.check(False, export)
    with results_in(path.parent if path else None), results_in(export.parent if export else None):
        model, card, data, notes = (own or Own()).open(checkpoint, device)
        victim = _with_trigger(checkpoint, Victim(model, None, 0, data, card))  # type: ignore[arg-type]
        result = repair(model, data.defense, **settings)
        before, after = ({"acc": _accuracy(one, data.test), "asr": None, "ra": None} if victim is None else
                         {key: round(value, 4) for key, value in victim.evaluate(one)._asdict().items()}
                         for one in (model, result.model))
        card = {**card, **({"metrics": after} if victim else {}),
                "defense": {**result.settings, "stopped": result.stopped, "interrupted": result.interrupted}}
        result.model.cpu()
        if export:
            write_export(result.model, export, data.defense.floats()[:16])
        weights = save_checkpoint(path, result.model, card, victim.trigger if victim else None) if path else None
    cost = f"Clean accuracy went from {before['acc']:.1%} to {after['acc']:.1%}"
    return {"checkpoint": checkpoint, "before": before, "after": after, **result.settings,
            "road": f"Why so: {result.stopped}", "interrupted": result.interrupted,
            "seconds": round(sum(result.seconds.values()), 1), "trigger": victim and card["attack"]["trigger"],
            "notes": notes, "out": weights and weights.as_posix(), "export": export and export.as_posix(),
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
        victim.trigger, victim.target = trigger_of(checkpoint_path(checkpoint), victim.card), attack["target"]
        victim.exam()
    except (InputError, KeyError, TypeError):
        return None
    return victim


def _accuracy(model: nn.Module, images: ImageSet) -> float:
    """The share of images that the model classifies correctly."""
    return round((predict(model, images.floats()).argmax(1).cpu() == images.labels).double().mean().item(), 4)
