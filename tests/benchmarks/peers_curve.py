"""Where the fine-tuning of `verified` costs a third-party model its accuracy: data/results/peers_curve.csv and .png.

    python tests/benchmarks/peers_curve.py       # two runs, about five minutes on one core

Two runs of peers_table.py that lose more than they should, epoch by epoch: what validation says (all that the defence
sees) and what the test images say (which it never sees).
"""

import importlib
from unittest import mock

import pandas as pd
import torch
from matplotlib.ticker import MaxNLocator, PercentFormatter
from peers_table import OUT, peer

import gradprune as gp
from gradprune.base.paths import write_atomic
from gradprune.views.figures import style

RUNS = (("badnets", 2, 2), ("trojan_wm", 10, 2))  # model, images per class, draw
EVERY = 4  # epochs between two looks at the test images
tuning = importlib.import_module("gradprune.pruning.fine_tuning")


def run(name, spc, seed):
    """One row an epoch; `acc`, `asr` and `ra` are of the test images."""
    victim, rows, plain_row = peer(name), [], tuning._row

    def noted(model, epoch, validation):
        row = plain_row(model, epoch, validation)
        test = victim.evaluate(model)._asdict() if epoch % EVERY == 0 else {}
        rows.append({"model": name, "spc": spc, "seed": seed, "epoch": epoch, "val_loss": row["val_loss"],
                     "val_acc": row["val_acc"], **test})
        return row

    with mock.patch.object(tuning, "_row", noted):
        result = gp.grad_prune(victim.model, victim.data.defense, victim.trigger, recipe="verified", spc=spc, seed=seed,
                               progress=False)
    kept = next(row["epoch"] for row in result.history if row["stage"] == "tune" and row.get("kept"))
    return [{**row, "kept": row["epoch"] == kept} for row in rows[-1 - max(row["epoch"] for row in rows):]]


def draw(table):
    with style.sheet(4.6, 2, len(RUNS), sharex="col") as (figure, axes):
        panels = axes[:len(RUNS)], axes[len(RUNS):]
        for column, (name, spc, seed) in enumerate(RUNS):
            rows = table[(table.model == name) & (table.spc == spc)]
            seen = rows.dropna(subset=["acc"])
            for key, mark in style.METRICS.items():
                panels[0][column].plot(seen.epoch, seen[key], color=mark.color, marker=mark.marker, linestyle=mark.line,
                                       label=f"{mark.name}, test images")
            panels[1][column].plot(rows.epoch, rows.val_loss, color=style.INK, label="validation loss, both terms")
            kept = rows[rows.kept].epoch.iloc[0]
            for panel in (panels[0][column], panels[1][column]):
                panel.axvline(kept, color=style.FAINT, linestyle=":", linewidth=1)
                panel.grid(axis="y")
                panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panels[0][column].set(title=f"{name}, {spc} images per class, draw {seed}", ylim=(0, 1))
            panels[0][column].yaxis.set_major_formatter(PercentFormatter(1, 0))
            panels[1][column].set(xlabel=f"epoch (kept: {kept})", ylim=(0, None))
        panels[0][0].legend(fontsize=style.SMALL, loc="center")
        panels[1][0].legend(fontsize=style.SMALL)
        write_atomic(OUT.with_name("peers_curve.png"), lambda path: figure.savefig(path, dpi=120))


if __name__ == "__main__":
    torch.set_num_threads(1)
    table = pd.DataFrame([row for each in RUNS for row in run(*each)])
    write_atomic(OUT.with_name("peers_curve.csv"), lambda path: table.round(4).to_csv(path, index=False))
    draw(table)
