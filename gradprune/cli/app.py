"""The command `gradprune`: each command parses its arguments, calls one function of the package, and prints.

Tables and sentences go to stdout; with --json they go to stderr, and the last line of stdout is one JSON object.
Exit codes: 0 done, 1 a check of `doctor` failed, 2 bad input, 130 interrupted.
"""

import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from gradprune import __version__
from gradprune.base.errors import InputError, require
from gradprune.cli import bench, data, inspect, options, repair, scan, zoo
from gradprune.cli.console import Json, more, progress, replace_closed_streams, rooms, say, show, table, written


class _Commands(TyperGroup):
    """Turns bad input and Ctrl-C into one sentence on stderr; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            code, sentence = 2, "Error: " + " ".join(str(error).split())
        except KeyboardInterrupt as stop:
            code, sentence = 130, f"Interrupted: {str(stop) or 'nothing was written'}."
        except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError when memory runs out
            from gradprune.base.devices import out_of_memory  # late: it imports torch
            if not out_of_memory(error):
                raise
            code, sentence = 2, ("Error: there is not enough memory; close other programs, or take fewer or smaller "
                                 "images or a smaller model.")
        say(Console(stderr=True), sentence)
        raise typer.Exit(code)


app = typer.Typer(cls=_Commands, add_completion=False, no_args_is_help=True, rich_markup_mode=None,
                  pretty_exceptions_enable=False, epilog=rooms())
app.add_typer(zoo.app, name="zoo")
app.add_typer(data.app, name="data")

Spc = Annotated[int, typer.Option(help="Clean images per class for the defender; the paper: 2, 10, 100.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same result on the same machine.")]
Trigger = Annotated[str, typer.Argument(help="badnets (a sticker), blended (a pattern), sig (a wave), "
                                           "low_frequency, bpp, wanet, input_aware, label_consistent, trojannn.")]
Data = Annotated[str, typer.Option(help="signs, a name from `gradprune data list`, a folder of pictures with one "
                                        "folder per class, or a .npz file.")]
Model = Annotated[str, typer.Option(help="preact_resnet, preact_resnet18, small_vgg, vgg16_bn, vgg19_bn, resnet18, "
                                         "mobilenet_v3_small, or timm/NAME.")]
Width = Annotated[int | None, typer.Option(help="Filters of the first stage; by default the model's own number.")]
Rate = Annotated[float | None, typer.Option(help="Share of the training images that are poisoned, 0..1; by default "
                                                 "0.1. label_consistent: of the target class, by default 0.5.")]
Target = Annotated[int, typer.Option(help="Class to which the trigger should lead, counted from 0.")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training images; by default the recipe's own.")]
Recipe = Annotated[str | None, typer.Option(help="How filters are chosen. verified, the default: trials decide, and "
                                            "the model is pruned only if that helps; paper: the published method.")]
Score = Annotated[str | None, typer.Option(help="How filters are ranked: gradient, taylor or gate; by default the "
                                           "recipe's own score.")]
Train = Annotated[bool, typer.Option("--train", help="Train the victim from scratch first.")]
Report = Annotated[Path, typer.Option(help="Folder for report.html and its pictures.")]
Trained = Annotated[Path | None, typer.Option(help="Checkpoint to write; by default out/TRIGGER.")]
Cleaned = Annotated[Path | None, typer.Option(help="Save the cleaned model as this checkpoint.")]
Slim = Annotated[bool, typer.Option("--slim", help="Cut removed filters out of what is saved or exported.")]
Export = Annotated[Path | None, typer.Option(help="Also write the cleaned model as this .onnx or .pt2 file.")]


def main() -> None:
    """Run the command line; the entry point of `gradprune` and `python -m gradprune`.

    Characters that the terminal's encoding lacks are escaped.
    """
    replace_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    app(prog_name="gradprune")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"gradprune {__version__}")
        raise typer.Exit


@app.callback()
def _gradprune(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                                     help="Print the version and exit.")] = False) -> None:
    """Plant a backdoor in a network, find its filters by gradient, prune them, fine-tune.

    Start with `gradprune demo`, or `gradprune inspect weights.pth`. More: `gradprune COMMAND --help`.
    """


@app.command(epilog=more("gradprune demo --train --spc 2"))
def demo(train: Train = False, spc: Spc = 10, seed: Seed = 0, out: Report = Path("out/demo"),
         as_json: Json = False) -> None:
    """See a backdoor removed, with a report.

    Takes a traffic sign model that a small sticker fools, prunes the filters that carry the backdoor, and
    fine-tunes the rest. About half a minute on a laptop without a GPU, two minutes with --train. Needs no network.
    """
    from gradprune.cli.jobs import run_demo
    told = run_demo(train, spc, seed, out, progress())
    show(as_json, told, _stages(told), told["sentence"], *written(told), kept="the report shows the state reached")


@app.command(epilog=more("gradprune attack blended --rate 0.05 --target 3", "gradprune defend out/blended"))
def attack(trigger: Trigger, data: Data = "signs", size: options.Size = None, model: Model = "preact_resnet",
           width: Width = None, rate: Rate = None, target: Target = 2, seed: Seed = 0, epochs: Epochs = None,
           device: options.Device = "auto", out: Trained = None, as_json: Json = False) -> None:
    """Train a backdoored model and save it.

    Stamps the trigger on a share of the training images, gives them the attacker's label, trains, measures.
    About a minute on a laptop with the defaults. Ctrl-C keeps the model reached so far.
    """
    require(":" not in model,
            f"attack trains networks by name, not {model!r}: `gradprune.attacks.plant` trains your own.")
    from gradprune.cli.jobs import attack_and_save
    from gradprune.victims.zoo import DEFAULT_MODEL
    settings: dict[str, Any] = DEFAULT_MODEL if model == DEFAULT_MODEL["name"] else {"name": model}
    settings = settings if width is None else {**settings, "width": width}
    told = attack_and_save(out or Path("out", trigger), trigger, data=data, size=size, model=settings, rate=rate,
                           target=target, seed=seed, device=device, progress=progress(),
                           **({} if epochs is None else {"epochs": epochs}))
    show(as_json, told, table("trained model", {trigger: told["metrics"]}),
         f"{told['attack']['poisoned_images']} of {told['train_images']} training images were poisoned; "
         f"the trigger leads to {told['target_name']!r}.", f"Saved: {told['out']}",
         kept=f"the model reached in epoch {told['training']['epochs_done'] + 1} is saved")


@app.command(epilog=more("gradprune defend badnets --spc 2 --out out/clean", "gradprune evaluate out/clean",
                         options.EXAMPLE))
def defend(checkpoint: options.Checkpoint, spc: Spc = 10, recipe: Recipe = None, score: Score = None,
           seed: Seed = 0, trigger: options.Trigger = None, model: options.Model = None,
           data: options.Data = None, target: options.Target = None,
           position: options.Position = "bottom_right", opacity: options.Opacity = 1.0,
           mask: options.Mask = None, size: options.Size = None, mean: options.Mean = None,
           std: options.Std = None, stem: options.Stem = None, device: options.Device = "auto",
           out: Cleaned = None, slim: Slim = False, export: Export = None, as_json: Json = False) -> None:
    """Remove a backdoor from a checkpoint.

    By default tries the removal of filters with a large gradient of the unlearning loss, fine-tunes, and keeps
    the pruning only if held-out images show that it helps (--recipe paper always prunes). Measures the given,
    the pruned and the final model; the given checkpoint is not changed. About a minute on a laptop
    for the shipped models. Ctrl-C keeps the state reached so far. For your own model give --model and --data;
    `gradprune inspect WEIGHTS --data FOLDER` finds most of these out, and prints the command. Give --trigger and
    --target, too, if you know them: without a trigger it does the same as `gradprune repair`.
    """
    own = options.own(checkpoint, model, data, size, mean, std, trigger, target, position, opacity, stem, mask)
    trigger = trigger or ("known" if own is None or own.names_trigger(checkpoint) else "unknown")
    if trigger == "unknown":
        require((recipe, score, slim, target) == (None, None, False, None),
                "--recipe, --score, --slim and --target need a trigger; without one, leave them out.")
        return repair.repair(checkpoint, spc, seed, model, data, size, mean, std, stem, device, out, export,
                                 as_json=as_json)
    from gradprune.cli.jobs import defend_and_save
    told = defend_and_save(checkpoint, out, slim, export, spc=spc, recipe=recipe or "verified", score=score, seed=seed,
                           own=own, trigger="known" if own and own.trigger else trigger, device=device,
                           progress=progress())
    show(as_json, told, _stages(told) if "tuned" in told else "", told["scan"] or "", told["sentence"],
         *told.get("notes", []), told["slim"]["sentence"] if told["slim"] else "", *written(told),
         kept="the state reached is " + ("saved" if out else "shown above"))


@app.command(epilog=more("gradprune evaluate badnets"))
def evaluate(checkpoint: options.Checkpoint, trigger: options.Seen = "known", model: options.Model = None,
             data: options.Data = None, target: options.Target = None,
             position: options.Position = "bottom_right", opacity: options.Opacity = 1.0,
             mask: options.Mask = None, size: options.Size = None, mean: options.Mean = None,
             std: options.Std = None, stem: options.Stem = None, device: options.Device = "auto",
             as_json: Json = False) -> None:
    """Measure a checkpoint on its test images.

    Prints the figures measured now and those on its card. Seconds on a laptop.
    """
    from gradprune.victims import load_victim
    own = options.own(checkpoint, model, data, size, mean, std, trigger, target, position, opacity, stem, mask,
                      measuring=True)
    victim = own.victim(checkpoint, device) if own else load_victim(checkpoint, device=device)
    measured = {name: round(value, 4) for name, value in victim.evaluate()._asdict().items()}
    card = victim.card.get("metrics")
    told = {"checkpoint": checkpoint, **measured, "card": card, "trigger": victim.card["attack"]["trigger"],
            "target": victim.target, "target_name": victim.target_name, "test_images": len(victim.data.test),
            "departs": victim.trigger.departs(), "notes": victim.notes}
    rows = {"measured now": measured} | ({"on its card": card} if card else {})
    show(as_json, told, table(checkpoint, rows), f"{told['test_images']} test images; the trigger "
           f"{told['trigger']} leads {victim.leads_to}.", told["departs"], *victim.notes)


app.command(epilog=bench.EXAMPLES["bench"])(bench.bench)
app.command(epilog=bench.EXAMPLES["report"])(bench.report)
app.command(epilog=repair.EXAMPLE)(repair.repair)
app.command(epilog=scan.EXAMPLE)(scan.scan)
app.command(epilog=inspect.EXAMPLE)(inspect.inspect)


@app.command(epilog=more("gradprune doctor --json", figures=False))
def doctor(as_json: Json = False) -> None:
    """Check this machine, and say what to do.

    Looks at versions, cores, memory, cache folder, GPU, shipped models and notebooks, and runs a self-test:
    train a tiny network, score its filters, remove one. About ten seconds. Exit code 1 if a line says FAIL.
    """
    from gradprune.cli.doctor import report
    raise typer.Exit(report(as_json))


def _stages(told: dict[str, Any]) -> Table:
    """The table of a defence: one row per stage."""
    removed = f"pruned ({len(told['filters_removed'])} of {told['filters']} filters)"
    names = {"before": "given model",
             "pruned": "pruned, but not kept" if told["stopped"].endswith("; kept: fine-tuned") else removed,
             "tuned": "(not fine-tuned)" if told["seconds"]["tune"] is None else "fine-tuned"}
    return table(f"spc {told['spc']}, {told['recipe']}", {names[stage]: told[stage] for stage in names if told[stage]})
