"""The command `gradprune repair`."""

from pathlib import Path
from typing import Annotated

import typer

from gradprune.cli import options
from gradprune.cli.console import Json, folding_table, more, plain, progress, show, table, written
from gradprune.cli.scan import Seed

Spc = Annotated[int, typer.Option(help="Clean images per class to learn from.")]
Out = Annotated[Path | None, typer.Option(help="Save the repaired model as this checkpoint.")]
Export = Annotated[Path | None, typer.Option(help="Also write the repaired model as this .onnx or .pt2 file.")]
Report = Annotated[Path | None, typer.Option(help="Folder for repair.html; by default no page is written.")]
EXAMPLE = more("gradprune repair badnets --out out/repaired --report out/page",
               "gradprune repair weights.pth --model resnet18 --data photos/ \\\n    --out out/repaired")


def repair(checkpoint: options.Checkpoint, spc: Spc = 10, seed: Seed = 0, model: options.Model = None,
           data: options.Data = None, size: options.Size = None, mean: options.Mean = None,
           std: options.Std = None, stem: options.Stem = None, device: options.Device = "auto",
           out: Out = None, export: Export = None, report: Report = None, as_json: Json = False) -> None:
    """Clean a model whose trigger is unknown.

    If small changes of an image hardly affect the model, it learns to ignore all of them; otherwise a scan looks
    for a suspected class, and triggers that lead there are unlearned. Only clean images are used. The trigger on
    a checkpoint's card, if there is one, is used only to measure afterwards. One to five minutes on a laptop.
    """
    from gradprune.cli.repair_job import repair_and_save
    own = options.own(checkpoint, model, data, size, mean, std, stem=stem)
    told = repair_and_save(checkpoint, out, export, report, own=own, device=device, spc=spc, seed=seed,
                           progress=progress())
    rows = {"given model": told["before"], "repaired": told["after"]}
    led = folding_table(plain(f"images that a new change leads to {told['suspect'] or 'one class'}"), *rows)
    for family, shares in told["led"].items():
        led.add_row(family, *(f"{share:.0%}" for share in shares))
    before, after = [sum(shares) / len(shares) for shares in zip(*told["led"].values(), strict=True)]
    usual = ("On four attacked networks of photographs it was 49 to 76% before the repair and 11 to 21% after."
             if told["suspect"] else "On 16 sign models, attacked and clean, it was 33 to 67% before the repair and "
             "18 to 35% after: it shows that a repair took hold, not whether there was a backdoor.")
    show(as_json, told, table(f"spc {spc}", rows) if told["trigger"] else "", told["sentence"], told["road"],
         led, f"Mean share: {before:.0%} before, {after:.0%} after. {usual}",
         *told["notes"], *written(told), kept="the state reached is " + ("saved" if out else "shown above"))
