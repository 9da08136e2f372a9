"""The work of the commands `demo`, `attack` and `defend`: run, save, return plain values."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gradprune.base.errors import require_known
from gradprune.base.paths import output_folder
from gradprune.defenses import DefenseResult, Scan, grad_prune, prune_scanned, scan
from gradprune.evaluation import Metrics, der, verdict
from gradprune.models.checkpoints import save_checkpoint
from gradprune.models.weights import bare_name
from gradprune.victims import Own, Victim, load_victim, save_cleaned
from gradprune.victims.victim import SYNTHESISED
from gradprune.victims.zoo import attack

STAGES = ("before", "pruned", "tuned")
_ONLY_FOUND = ("ASR and RA are those of the synthesised trigger, with which the model was repaired: the real one may "
               "still work.")
TRIGGERS = ("known", SYNTHESISED)  # for `defend_and_save`


def run_demo(train: bool = False, spc: int = 10, seed: int = 0, out: str | Path = "out/demo",
             progress: bool = True) -> dict[str, Any]:
    """Defend the badnets victim and write `out`/report.html with its pictures; returns the summary.

    train: train the victim from scratch instead of loading the shipped one.
    spc: clean images per class for the defence.
    seed: of the training (with `train`) and of the defence's draw.
    Returns what `summary` does, with `checkpoint` (None with `train`) and `report`, the path of the report.
    Raises InputError for a folder that is not writable (before any work) or an spc larger than a class has;
    KeyboardInterrupt if the training was cut short.
    """
    with results_in(out):
        from gradprune.views.reports.report import write_report  # late: plots take a second to import

        victim = attack("badnets", seed=seed, progress=progress) if train else load_victim("badnets")
        if train and victim.card["training"]["interrupted"]:
            raise KeyboardInterrupt("training was cut short, so nothing was written")
        result, stages = defend_and_measure(victim, spc=spc, recipe="paper", seed=seed, progress=progress)
        if len(stages) < len(STAGES):
            raise KeyboardInterrupt("the measuring was cut short, so nothing was written")
        report = write_report(Path(out), victim, result, stages)
    told = summary(victim, result, stages, train_seconds=victim.seconds)
    return {**told, "checkpoint": None if train else "badnets", "report": report.as_posix()}


def attack_and_save(path: Path, trigger: str, **settings: Any) -> dict[str, Any]:
    """Train a victim (see `zoo.attack`) and save it as the checkpoint `path`, or in that folder.

    Returns its card with `out` (the path of the weights), `interrupted`, `train_images` and `target_name`.
    If training is cut short, the model reached is saved; in the first epoch KeyboardInterrupt is raised.
    """
    path = path / trigger if path.is_dir() else path
    save_cleaned.check_ending(path)
    with results_in(path.parent):
        victim = attack(trigger, **settings)
        training = victim.card["training"]
        if not training["epochs_done"]:
            raise KeyboardInterrupt("no epoch was finished, so nothing was written")
        weights = save_checkpoint(path, victim.model, victim.card, victim.trigger)
    return {**victim.card, "seconds": round(victim.seconds or 0.0, 2), "interrupted": training["interrupted"],
            "train_images": len(victim.data.train), "target_name": victim.target_name, "out": weights.as_posix()}


def defend_and_save(checkpoint: str, path: Path | None, slim: bool = False, export: Path | None = None, *,
                    trigger: str = "known", own: Own | None = None, device: str = "cpu",
                    **settings: Any) -> dict[str, Any]:
    """Defend a checkpoint with these settings of `grad_prune`; save the cleaned model as `path`, or in that folder.

    slim: cut the silent filters out of the model that is saved and exported.
    export: also write it as this .onnx or .pt2 file.
    trigger: "known" is the attack's own; "synthesised" is that of a scan with the same images. If the scan suspects no
        class, the model stays as it is.
    own: what the user says about a model without a card, or instead of the card; a synthesised trigger is then also
        used to measure, and without a suspect nothing is measured or written.
    device: where everything runs, see `models.choose_device`.
    Returns what `summary` does, with `checkpoint`, `scan` (the verdict or None), `out` and `export` (paths or None),
    and `slim` (see `save_cleaned.slimmed`, or None). The new card is the given one with new `metrics`,
    `removed_filters` and `defense` (settings and stages), and for a slim model the sizes of its layers.
    Raises InputError for another word as `trigger`.
    """
    require_known("kind of trigger", trigger, TRIGGERS)
    if path and path.is_dir():
        path = path / f"{bare_name(checkpoint)}-cleaned"
    save_cleaned.check(slim, export, checkpoint, path)
    with results_in(path and path.parent, export and export.parent):
        victim, scanned = _attacked(checkpoint, trigger, own, device, settings)
        if victim is None:
            return {"checkpoint": checkpoint, "scan": scanned.verdict if scanned else None, "out": None, "export": None,
                    "slim": None, "sentence": "Nothing was changed or written."}
        result, stages = defend_and_measure(victim, scanned, **settings)
        told = summary(victim, result, stages) | {"scan": scanned.verdict if scanned else None}
        defense = (*result.settings, "stopped", "interrupted", *stages, *(["scan"] if scanned else []))
        card = {**victim.card, "metrics": told["tuned"], "removed_filters": told["filters_removed"],
                "defense": {key: told[key] for key in defense}}
        if told["tuned"] is None:
            del card["metrics"]
        try:
            written = save_cleaned.deliver(victim, result.model, card, path, slim, export)
        except KeyboardInterrupt:
            if path is None:
                raise
            told["interrupted"] = True
            written = save_cleaned.deliver(victim, result.model, card, path, False, None)
    return {**told, "checkpoint": checkpoint, **written}


def _attacked(checkpoint: str, trigger: str, own: Own | None, device: str, settings: dict[str, Any]
              ) -> tuple[Victim | None, Scan | None]:
    """The victim, and the scan if one was asked for; no victim if only a scan could give the trigger and found none."""
    if trigger != SYNTHESISED:
        return own.victim(checkpoint, device) if own else load_victim(checkpoint, device=device), None
    searched = {key: settings[key] for key in ("spc", "seed", "progress") if key in settings}
    if own is None:
        victim = load_victim(checkpoint, device=device)
        return victim, scan(victim.model, victim.data.defense, **searched)
    model, card, data, notes = own.open(checkpoint, device)
    scanned = scan(model, data.defense, **searched)
    if scanned.suspect is None or scanned.trigger is None:
        return None, scanned
    card = {**card, "attack": {"trigger": SYNTHESISED, "target": scanned.suspect}}
    mark: Any = scanned.trigger  # used like a `Trigger`, but without settings
    return Victim(model, mark, scanned.suspect, data, card, notes=[*notes, _ONLY_FOUND]), scanned


def defend_and_measure(victim: Victim, scanned: Scan | None = None, **settings: Any
                       ) -> tuple[DefenseResult, dict[str, Metrics]]:
    """Run `grad_prune` with these settings; returns its result and the test figures before, pruned and tuned.

    scanned: a scan, whose trigger then replaces the attack's own (see `prune_scanned`).
    The figures are measured after the defence: they explain it and decide nothing. Without fine-tuning, "tuned" repeats
    "pruned". Ctrl-C while measuring leaves out the missing figures; the result is kept, as interrupted.
    Raises what `grad_prune` raises.
    """
    if scanned:
        result = prune_scanned(victim.model, victim.data.defense, scanned, **settings)
    else:
        result = grad_prune(victim.model, victim.data.defense, victim.trigger, **settings)
    models = (victim.model, result.pruned, result.model)
    stages: dict[str, Metrics] = {}
    try:
        for stage, model in zip(STAGES, models, strict=True):
            stages[stage] = victim.evaluate(model)
    except KeyboardInterrupt:
        result.interrupted = True
    return result, stages


def summary(victim: Victim, result: DefenseResult, stages: dict[str, Metrics],
            train_seconds: float | None = None) -> dict[str, Any]:
    """A defence as plain JSON values.

    They are, per stage, `acc`, `asr`, `ra` (0..1), or None if measuring was cut short; `filters_removed` as [layer,
    index] in the order of removal, and the number of all `filters`; `seconds` of train, prune, tune, None for what was
    not done; the settings; a `sentence`.
    """
    seconds = {"train": train_seconds, "prune": result.seconds.get("prune"), "tune": result.seconds.get("tune")}
    all_to_all = victim.label_map == "all_to_all"
    return {
        **dict.fromkeys(STAGES),
        **{stage: {name: round(value, 4) for name, value in figures._asdict().items()}
           for stage, figures in stages.items()},
        "der": round(der(stages["before"], stages["tuned"]), 4) if "tuned" in stages else None,
        "filters_removed": [[removed.layer, removed.index] for removed in result.mask.removed],
        "filters": len(result.mask.filters),
        "seconds": {stage: None if value is None else round(value, 3) for stage, value in seconds.items()},
        **result.settings,
        "stopped": result.stopped,
        "interrupted": result.interrupted,
        "trigger": victim.card["attack"]["trigger"],
        "target": victim.target,
        "target_name": victim.target_name,
        "notes": victim.notes,
        "sentence": sentence(stages, result, None if all_to_all else victim.target_name,
                             victim.card["attack"]["trigger"] == SYNTHESISED),
    }


def sentence(stages: dict[str, Metrics], result: DefenseResult, target_name: str | None, found: bool = False) -> str:
    """The outcome in one sentence from the test figures, good or bad.

    target_name: None for all-to-all. found: whether the trigger was synthesised, so that nothing is said of a backdoor.
    """
    if "tuned" not in stages:
        return f"The measuring was cut short; {len(result.mask.positions)} filters were removed."
    before, after = (Metrics(*(round(value, 4) for value in stages[name])) for name in ("before", "tuned"))  # as shown
    outcome = verdict(before, after)
    outcome = outcome.replace("The backdoor", "The synthesised trigger") if found else outcome
    removed = len(result.mask.positions)
    done = f"{removed} filter{'' if removed == 1 else 's'} removed"
    done += " and the rest fine-tuned" if result.rows("tune") else ""
    moved = "the images to the next class" if target_name is None else f"the other classes' images to {target_name!r}"
    return (f"{outcome}: the trigger sent {before.asr:.1%} of {moved}; with {done} it sends "
            f"{after.asr:.1%}, {after.ra:.1%} of the triggered images get their true class, and clean accuracy went "
            f"from {before.acc:.1%} to {after.acc:.1%}.")


@contextmanager
def results_in(*folders: str | Path | None) -> Iterator[None]:
    """Create folders and check that they are writable, before any work; if the work fails, remove empty new ones.

    Raises InputError for a folder that is not writable; None stands for no folder.
    """
    wanted = [Path(folder) for folder in folders if folder is not None]
    made = [place for folder in wanted for place in (folder, *folder.parents) if not os.path.exists(place)]
    try:
        for folder in wanted:
            output_folder(folder)
        yield
    except BaseException:
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise
