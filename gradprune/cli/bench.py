"""The commands `gradprune bench` and `gradprune report`."""

import contextlib
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from gradprune.base.errors import InputError, require, told_as
from gradprune.cli import options
from gradprune.cli.console import Json, more, progress, show

Attacks = Annotated[str | None, typer.Option(help="Shipped models (`gradprune zoo list`) or checkpoint paths, "
                                             "separated by commas; all, the default: every attacked model of the "
                                             "signs.")]
_DEFENSES = ("grad_prune", "grad_prune_verified", "ft", "ft_unlearn", "ft_distilled", "fine_pruning", "clp", "anp",
             "nad", "i_bau", "rnp", "ft_sam", "neural_cleanse", "sau", "fst", "ims", "repair")  # torch stays out
Defenses = Annotated[str | None, typer.Option(help="Defences, separated by commas; the default is all: "
                                              f"{', '.join(_DEFENSES)}.")]
Spcs = Annotated[str | None, typer.Option(help="Clean images per class for the defender, separated by commas; by "
                                          "default 2,10.")]
Seeds = Annotated[int | None, typer.Option(help="Number of draws of the defender's images; the default 3 means seeds "
                                          "0, 1, 2.")]
Preset = Annotated[str | None, typer.Option(help="A complete bench by name: paper first trains PreActResNet-18 with "
                                            "four attacks on CIFAR-10 (for a GPU); cifar10 and gtsrb use shipped "
                                            "models. It has its own defaults, which other options override.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the rows; give it again to resume. By default out/bench, or "
                                          "out/PRESET.")]
Workers = Annotated[int, typer.Option(help="Processes on this machine, one thread each.")]
Scheduler = Annotated[str | None, typer.Option(help="Address of a running dask scheduler, such as tcp://HOST:8786.")]
Folder = Annotated[Path, typer.Argument(help="A folder made by `gradprune bench`.")]
ReportOut = Annotated[Path | None, typer.Option(help="Folder for the report; by default FOLDER itself.")]


def bench(attacks: Attacks = None, defenses: Defenses = None, spc: Spcs = None, seeds: Seeds = None,
          preset: Preset = None, out: Out = None, model: options.Model = None, data: options.Data = None,
          target: options.Target = None, trigger: options.Seen = "known",
          position: options.Position = "bottom_right", opacity: options.Opacity = 1.0,
          mask: options.Mask = None, size: options.Size = None, mean: options.Mean = None,
          std: options.Std = None, stem: options.Stem = None, device: options.Device = "auto",
          workers: Workers = 1, scheduler: Scheduler = None, as_json: Json = False) -> None:
    """Compare defences on attacked models, fairly.

    Every defence meets every attack with the same few clean images, several times; none sees the test images. Each
    run is written to OUT/cells.csv at once as one row, so nothing finished is lost: the same command resumes where it
    stopped, and repeats the runs that failed. A run takes seconds to minutes, the default bench about a day of one
    core; `gradprune report OUT` begins with the main results. For your own models give --model, --data, --trigger
    and --target, which apply to all --attacks; the models are first saved with these in OUT/victims.
    """
    from gradprune.attacks.triggers.foreign import names_code
    from gradprune.bench import Grid, run
    from gradprune.bench.presets import prepare
    from gradprune.bench.runner import place
    where = str(place(device, workers, scheduler))  # before a preset trains
    out = out or Path("out", preset or "bench")
    given: dict[str, Any] = {name: read(text) for name, read, text in
                             (("attacks", _names, attacks), ("defenses", _names, defenses), ("spc", _numbers, spc))
                             if text is not None} | ({} if seeds is None else {"seeds": seeds})
    first = attacks.split(",")[0].strip() if attacks else ""
    own = options.own(first, model, data, size, mean, std, trigger, target, position, opacity, stem, mask,
                      measuring=True)
    if own:
        require(preset is None and isinstance(given.get("attacks"), list),
                "model, data, trigger and so on describe --attacks: name the files there, and no preset.")
        require(own.trigger is None or not names_code(own.trigger),
                "a bench takes a picture or an array as trigger, not your own code.")
        Grid(**given)  # a wrong word is found before anything is written
        given["attacks"] = own.save_all(given["attacks"], out / "victims")
        given["code"] = own.model if own.model and ":" in own.model else None
    grid = prepare(preset, out, device=where, progress=progress(), **given) if preset else Grid(**given)
    table = run(grid, out, workers=workers, scheduler=scheduler, device=where, progress=progress())
    failed = table[table.error != ""]
    means, errors = _means(table), sorted(set(failed.error))
    told = {"out": out.as_posix(), "cells": len(table), "failed": len(failed), "errors": errors, "der": means}
    lines = [f"{name:<16} DER {mean:.3f}" for name, mean in means.items()]
    show(as_json, told, f"{len(table)} cells in {out.as_posix()}, {len(failed)} of them failed.",
        "Mean defence effectiveness (0.5 is no net gain, 1 is perfect):" if lines else "", *lines,
        *(f"failed: {error}" for error in errors), f"Next: gradprune report {out.as_posix()}")


def report(folder: Folder, out: ReportOut = None, as_json: Json = False) -> None:
    """Turn a bench into one page with tables and figures.

    Writes report.html (one file, no network), its figures as PNG and summary.csv. Half a minute at most.
    """
    from gradprune.bench.store import read_facts, read_results
    from gradprune.views.reports.bench_report import write_bench_report
    table, facts = read_results(folder), read_facts(folder)
    usual = set(table.seed) == set(range(table.seed.nunique()))  # as --seeds takes them
    command = {"command": _command(table, folder, facts["checkpoints"])} if usual else {}
    told = command | {"device": facts.get("device", "cpu")} | {
        f"weights of {name}, sha256": str(digest)[:16] for name, digest in facts["checkpoints"].items()} | {
        f"mark of {name}": told for name, told in departures(facts["checkpoints"]).items()}
    page = write_bench_report(out or folder, table.assign(attack=_short(table.attack)), told)
    show(as_json, {"report": page.as_posix()}, f"Report: {page.as_posix()}")


def _command(table: Any, folder: Path, checkpoints: Iterable[str]) -> str:
    """The command line that makes these cells; own code that the checkpoints' cards name is named there, too."""
    parts = {name: ",".join(map(str, dict.fromkeys(table[column]))) for name, column in
             (("attacks", "attack"), ("defenses", "defense"), ("spc", "spc"))}
    code = sorted({name for card in _cards(checkpoints).values() if ":" in (name := str(card["model"]["name"]))})
    options = parts | {"model": code[0]} if len(code) == 1 else parts
    options |= {"seeds": str(table.seed.nunique()), "out": folder.as_posix()}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return shlex.join(["gradprune", "bench", *words])


def departures(checkpoints: Iterable[str]) -> dict[str, str]:
    """How marks differ from their paper's, by checkpoint; checkpoints that are no longer there are left out."""
    told = {name: str(card.get("attack", {}).get("departs", "")) for name, card in _cards(checkpoints).items()}
    return {name: text for name, text in told.items() if text}


def _cards(checkpoints: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The cards of the checkpoints that are still there."""
    from gradprune.models.checkpoints import read_card
    from gradprune.victims.victim import checkpoint_path
    found = {}
    for name in checkpoints:
        with contextlib.suppress(InputError):
            found[name] = read_card(checkpoint_path(name))
    return found


def _names(text: str) -> list[str] | str:
    return "all" if text.strip() == "all" else [part.strip() for part in text.split(",") if part.strip()]


def _short(attacks: Any) -> Any:
    """The names of attacks without folders, if they are still distinct."""
    last = attacks.map(lambda name: Path(name).name)
    return last if last.nunique() == attacks.nunique() else attacks


def _numbers(text: str) -> list[int]:
    with told_as(lambda _: f"spc must be whole numbers separated by commas, got {text!r}.", (ValueError,)):
        return [int(part) for part in text.split(",") if part.strip()]


def _means(table: Any) -> dict[str, float]:
    """Mean DER by defence, the best first; failed cells are left out, all attacks and spc have the same weight."""
    from gradprune.bench.summary import even_means
    means = even_means(table, ["defense", "spc"], ["der"]).der.groupby("defense").mean().dropna()
    means = means.sort_values(ascending=False)
    return {str(name): round(float(mean), 4) for name, mean in means.items()}


EXAMPLES = {"bench": more("gradprune bench --defenses ft,grad_prune --spc 2 --seeds 2",
                          "gradprune bench --preset paper --device cuda",
                          "gradprune bench --attacks weights.pth --model mynet:build --data photos/ \\\n"
                          "      --trigger patch.png --target 3", "gradprune report out/bench"),
            "report": more("gradprune report out/bench")}
