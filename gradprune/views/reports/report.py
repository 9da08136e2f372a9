"""The reports of a defence and of a repair without the trigger: one page each, for readers new to backdoors."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from gradprune.attacks.training import RECIPE
from gradprune.base.errors import require
from gradprune.base.paths import output_folder
from gradprune.datasets import ImageSet, class_name, draw_defense_images
from gradprune.defenses import KNOWS_TRIGGER, DefenseResult
from gradprune.defenses.exposure import Reach
from gradprune.defenses.repair import IGNORED
from gradprune.defenses.unlearning import UNLEARNED
from gradprune.evaluation import Metrics, der, replay, verdict
from gradprune.pruning import filter_scores, pair_up
from gradprune.victims import Victim
from gradprune.views.figures.example_images import examples, first_of_each
from gradprune.views.figures.network_picture import network_drawn
from gradprune.views.figures.picture import Picture
from gradprune.views.figures.plots import before_after, loss_curves, pruning_trajectory, score_heatmap
from gradprune.views.figures.scan_plots import reach
from gradprune.views.figures.style import METRICS
from gradprune.views.reports.page import DEFINITIONS, save_pictures, setting_rows, write_page

_REPLAYED = 6000  # images in all rounds of the replay together: about 3 seconds on one core
_LISTED = 60      # removed filters that are listed one by one


def write_report(folder: Path, victim: Victim, result: DefenseResult, stages: dict[str, Metrics]) -> Path:
    """Write report.html, one file that needs no network, and its figures as PNG beside it; returns its path.

    victim: the attacked model. result: what the defence, any of them, returned for it. stages: test figures by name, in
    order, the first before the defence and the last after it ({"before": ..., "pruned": ..., "tuned": ...}).
    Each file is written whole or not at all, the page last.
    Raises InputError for fewer than two stages, or a folder that cannot be written (before any work).
    """
    require(len(stages) >= 2, f"stages must hold figures before and after the defence, got {len(stages)}.")
    folder = output_folder(folder)
    tuned = "fine-tuned" if result.rows("tune") else "" if "pruned" in stages else "after"  # "": it repeats "pruned"
    stages = {tuned if name == "tuned" else name: metrics for name, metrics in stages.items()
              if name != "tuned" or tuned}
    rounds = result.rows("prune")
    each = _REPLAYED // (2 * max(1, len(rounds)) * len(victim.data.test.classes))
    sample = first_of_each(victim.data.test, max(5, min(50, each)))
    before, *_, after = stages.values()
    results = [[name, *(f"{value:.1%}" for value in (*metrics, der(before, metrics)))]
               for name, metrics in stages.items()]
    results[0][-1] = ""  # a rating of the model against itself says nothing
    outcome, choices = verdict(before, after), result.rows("choose")
    return write_page(
        folder / "report.html", "defence.html", title=f"{outcome}: {victim.trigger.name}", heading=outcome,
        victim=victim, result=result, before=before, after=after, results=results, sample=sample,
        ours=_ours(result), told=result.name in KNOWS_TRIGGER, rounds=rounds, closed=_closed(rounds),
        filters=len(result.mask.filters), removed=_removed(result), listed=_LISTED, tuned=bool(result.rows("tune")),
        chosen=next((row["repair"] for row in choices if row["kept"]), None),
        repairs=", ".join(f"{row['repair']} {row['val_loss']:.2f}" for row in choices),
        settings=setting_rows(_settings(victim, result)), again=_reproduce(victim, result),
        figures=save_pictures(folder, _pictures(victim, result, stages, sample)))


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
    shares = [[row.family, *(f"{one.share:.0%} to {class_name(one.label, images.classes)}"
                             for one in (row, repaired[row.family]))] for row in led[0]]
    settings = {**(facts or {}), **{key: value for key, value in result.settings.items() if key != "families"},
                **{f"seconds, {stage}": f"{seconds:.1f}" for stage, seconds in result.seconds.items()}}
    return write_page(
        output_folder(folder) / "repair.html", "repair.html", title=f"Repair: {settings.get('checkpoint', 'a model')}",
        heading="Repaired without the trigger", before=before, after=after, known=known, result=result, victim=victim,
        figures=figures, definitions={METRICS[key].name: DEFINITIONS[METRICS[key].name] for key in known},
        shares=shares, reach=reach(images, *led), way=result.stopped.rstrip("."), ignored=IGNORED,
        unlearned=UNLEARNED, settings=setting_rows(settings),
        suspect=None if result.suspect is None else class_name(result.suspect, images.classes),
        examples=examples({"before": given, "after": result.model}, victim.data.test, victim.trigger, victim.target,
                          label_map=victim.label_map) if victim else None)


def _pictures(victim: Victim, result: DefenseResult, stages: Mapping[str, Metrics],
              sample: ImageSet) -> dict[str, Picture]:
    """All figures by name; the scores are computed again, on the defence images given by the settings."""
    found, kept, settings = result.mask.filters, result.mask.positions, result.settings
    score = settings.get("score", "gradient")
    images = draw_defense_images(victim.data.defense, settings.get("spc", 10), settings.get("seed", 0))
    pairs = pair_up(images.train, victim.trigger, next(victim.model.parameters()).device)
    scores, _ = filter_scores(victim.model, found, pairs.triggered, pairs.labels, score)
    models = {"before": victim.model, "after": result.model}
    pictures = {
        "examples": examples(models, victim.data.test, victim.trigger, victim.target, label_map=victim.label_map),
        "before_after": before_after(stages),
        "scores": score_heatmap(found, scores, kept, score=score),
        "network": network_drawn(models, found, pairs, {"after": kept}),
    }
    if (rounds := result.rows("prune")) and not _closed(rounds):
        replayed = replay(victim.model, result.history, sample, victim.trigger, victim.target, victim.label_map)
        pictures["trajectory"] = pruning_trajectory(result.history, replayed, len(kept))
    return pictures | ({"fine_tuning": loss_curves(result.history)} if result.rows("tune") else {})


def _ours(result: DefenseResult) -> bool:
    """Whether the defence was `grad_prune`, by either recipe."""
    return result.name.startswith("grad_prune")


def _closed(rounds: Sequence[Mapping[str, object]]) -> bool:
    """Whether the rounds closed channels or features, not filters: no replay follows those."""
    return any(row["layer"] is None for row in rounds[1:])


def _removed(result: DefenseResult) -> list[list[str]]:
    """The removed filters in the order of their removal."""
    rows = {(row["layer"], row["index"]): row for row in result.rows("prune")}
    forms = {"score": ".3g", "val_unlearning_loss": ".3f", "val_acc": ".1%"}
    removed = [(filter_, rows.get(filter_, {})) for filter_ in result.mask.removed]
    return [[str(place), str(filter_), *(format(row[key], form) if key in row else "" for key, form in forms.items())]
            for place, (filter_, row) in enumerate(removed, 1)]


def _settings(victim: Victim, result: DefenseResult) -> dict[str, object]:
    """The settings of the attack and of the run, and the seconds of each stage."""
    attack, digest = victim.card.get("attack", {}), str(victim.card.get("sha256", ""))
    return {"trigger": f"{victim.trigger.name}({victim.trigger.extra_repr()})", "target": victim.target_name,
            "test images": len(victim.data.test), "departs": attack.get("departs", ""),
            "poison rate": "" if attack.get("rate") is None else f"{attack['rate']:.1%}", **result.settings,
            **{f"seconds, {stage}": f"{seconds:.2f}" for stage, seconds in result.seconds.items()},
            "weights, sha256": digest[:16]}


def _reproduce(victim: Victim, result: DefenseResult) -> str:
    """Python that repeats the run. Readers will run it, and a card may be a stranger's: no name in it is the card's."""
    card, start = victim.card, 'gp.load_victim("...")  # the checkpoint that this page is about'
    if {"attack", "data", "model", "training"} <= set(card):
        attack, images = card["attack"], ("num_classes", "channels")
        model = {key: value for key, value in card["model"].items() if key not in images}
        made = {"data": Path(card["data"]["name"]).name,
                **({"size": victim.data.test.images.shape[-1]} if card["data"].get("size") else {}),
                "target": victim.target, "rate": attack.get("rate"),
                "trigger_settings": attack.get("settings", {}), "model": model,
                **{key: attack[key] for key in ("label_map",) if key in attack},
                **{key: card["training"][key] for key in (*RECIPE, "seed") if key in card["training"]}}
        start = f"gp.attack({attack['trigger']!r}, {_arguments(made)})"
    settings = result.settings if result.rows("tune") or not _ours(result) else {**result.settings, "tune": False}
    defense = f"victim.model, victim.data.defense, victim.trigger, {_arguments(settings)}"
    name = "grad_prune" if _ours(result) else f"defenses.{result.name}"
    return (f"import gradprune as gp\n\nvictim = {start}\nresult = gp.{name}({defense})\n"
            "print(victim.evaluate(), victim.evaluate(result.model))\n")


def _arguments(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in values.items())
