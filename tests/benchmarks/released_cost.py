"""What a pruning round of the authors' released code costs, beside one of our recipe `paper`.

    python tests/benchmarks/released_cost.py     # a minute and a half on one free core

The released code has no licence, so none of it is here: `released` goes through the same steps, told in our own words
and faults included. The gradient is taken in train mode up to the end of the first batch, so BatchNorm drifts; every
filter is looked at in a Python loop; what is zeroed beside the filter is the next tensor in parameters(); no mask is
kept; and each round copies the model and runs the whole test set twice, clean and triggered. Where our notes leave
something open, the cheaper way is taken: images lie in memory with the trigger on, batches are large, and both get the
model in the memory layout that is faster. So the ratios are, if anything, too low. Nearly all of the difference is
the test set: without it both cost about the same.

Writes data/results/released_cost.csv and .png: seconds of processor time a round, one thread, medians of three. Width
16 is the shipped badnets model, the other widths carry fresh weights; test sets larger than 2,400 repeat its images.
"""

import copy
import platform
import time
from pathlib import Path
from statistics import median

import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.ticker import FuncFormatter, NullLocator

import gradprune as gp
from gradprune.base.paths import write_atomic
from gradprune.datasets import draw_defense_images
from gradprune.pruning import Pairs, pair_up, paper
from gradprune.views.figures import style
from gradprune.views.figures.picture import Picture

OUT = Path(__file__).resolve().parents[2] / "data/results/released_cost.csv"
BATCH = 250
USUAL = {"width": 16, "spc": 10, "test_images": 2400}
SWEEPS = {"width": (8, 16, 32), "spc": (2, 10, 50), "test_images": (600, 2400, 10_000)}
NAMES = {"width": "filters of the first stage", "spc": "images per class (spc)", "test_images": "test images"}


def released(model, train, validation, test, rounds):
    """Prune `model` in place as the released code does; returns one row a round.

    train, validation, test: `Pairs`. A row: layer and index of the filter, its seconds, those spent on the test set,
    and the figures that such a round looks at.
    """
    kept, least, rows = None, float("inf"), []
    for _ in range(rounds):
        start, before = time.process_time(), copy.deepcopy(model)
        layer, index = _worst(_gradients(model, train))
        _zero(model, layer, index)
        loss, val_acc = _look(model, validation.triggered, validation.labels)[0], _look(model, *validation[::2])[1]
        if loss < least:
            kept, least = before, loss
        middle = time.process_time()
        acc, ra = (_look(model, images, test.labels)[1] for images in (test.clean, test.triggered))
        end = time.process_time()
        rows.append({"layer": layer, "index": index, "val_loss": loss, "val_acc": val_acc, "acc": acc, "ra": ra,
                     "seconds": end - start, "test_seconds": end - middle})
    assert kept is not None
    return rows


def _gradients(model, train):
    """Every parameter's gradient of the unlearning loss by its name; the first batch moves BatchNorm's statistics."""
    model.train()
    model.zero_grad()
    for images, labels in zip(train.triggered.split(BATCH), train.labels.split(BATCH), strict=True):
        (F.cross_entropy(model(images), labels) * len(labels) / len(train.labels)).backward()
        model.eval()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def _worst(gradients):
    """Layer and index of the filter with the largest mean absolute gradient, dead or alive."""
    best, choice = -1.0, None
    for name, gradient in gradients.items():
        if gradient.ndim == 4:
            for index in range(len(gradient)):
                score = gradient[index].abs().mean().item()
                if score > best:
                    best, choice = score, (name.removesuffix(".weight"), index)
    return choice


def _zero(model, layer, index):
    """Zero the filter, and the same place in whatever tensor comes next."""
    parameters = dict(model.named_parameters())
    names = list(parameters)
    after = names[names.index(f"{layer}.weight") + 1]
    with torch.no_grad():
        parameters[f"{layer}.weight"][index] = 0
        parameters[after][index] = 0


def _look(model, images, labels):
    """Mean cross-entropy and accuracy."""
    with torch.no_grad():
        logits = torch.cat([model(batch) for batch in images.split(BATCH)])
    return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()


def compared(victim, width, spc, test_images, repeats=3):
    """Seconds of a round, ours and the released code's, from alternating runs on copies of one model."""
    train, validation = (pair_up(part, victim.trigger) for part in draw_defense_images(victim.data.defense, spc))
    whole = pair_up(victim.data.test, victim.trigger)
    order = torch.arange(test_images) % len(whole.labels)
    test = Pairs(*(tensor[order] for tensor in whole))
    model = victim.model if width == USUAL["width"] else gp.build(
        **{**victim.card["model"], "width": width}).eval().to(memory_format=torch.channels_last)
    found = gp.filters(model, train.clean[:1])
    ours, theirs, tests = [], [], []
    for _ in range(repeats):
        start = time.process_time()
        rounds = paper(copy.deepcopy(model), found, train, validation, alpha=1.0, patience=3, progress=False).history
        ours.append((time.process_time() - start) / (len(rounds) - 1))  # a look at the given model is in it, too
        rows = released(copy.deepcopy(model), train, validation, test, 1)
        theirs.append(rows[0]["seconds"])
        tests.append(rows[0]["test_seconds"])
    return {"filters": len(found), "ours": median(ours), "released": median(theirs), "released_test": median(tests)}


def measured():
    """One row for each setting: the usual one, and each of its three numbers varied alone."""
    victim, rows, done = gp.load_victim("badnets"), [], {}
    for varied, values in SWEEPS.items():
        for value in values:
            setting = {**USUAL, varied: value}
            key = tuple(setting.values())
            if key not in done:
                done[key] = compared(victim, **setting)
            cost = done[key]
            rows.append({"varied": varied, **setting, "filters": cost["filters"],
                         "weights": "badnets" if setting["width"] == USUAL["width"] else "untrained",
                         **{f"{name}_seconds": round(cost[name], 5) for name in ("ours", "released", "released_test")},
                         "ratio": round(cost["released"] / cost["ours"], 2),
                         "machine": platform.machine(), "torch": torch.__version__.split("+")[0], "threads": 1})
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def figure_of(table):
    """The ratio against each of the three numbers."""
    with style.sheet(3.2, 1, len(SWEEPS), sharey=True) as (figure, panels):
        for ax, varied in zip(panels, SWEEPS, strict=True):
            rows = table[table.varied == varied]
            ax.plot(rows[varied], rows.ratio, color=style.METRICS["acc"].color, marker="o", clip_on=False)
            side = "right" if rows.ratio.is_monotonic_increasing else "left"  # away from the line
            for x, ratio in zip(rows[varied], rows.ratio, strict=True):
                ax.annotate(f"{ratio:.0f}x", (x, ratio), (-4 if side == "right" else 4, 5), ha=side,
                            textcoords="offset points", fontsize=style.SMALL, fontweight="bold", annotation_clip=False)
            ax.set(xscale="log", yscale="log", xticks=rows[varied], xlabel=NAMES[varied], ylim=(2, 100),
                   yticks=[3, 10, 30, 100])
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_minor_locator(NullLocator())
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            ax.margins(x=0.25)
            ax.grid(axis="y")
        panels[0].set_ylabel("cost of a round: released / ours")
    told = "; ".join(f"{NAMES[varied]}: " + ", ".join(
        f"{row[varied]} {row.ratio:.0f}x" for _, row in table[table.varied == varied].iterrows()) for varied in SWEEPS)
    return Picture(figure, f"Cost of a pruning round of the released code over one of recipe paper, by {told}.")


def main():
    torch.set_num_threads(1)
    start = time.perf_counter()
    table = measured()
    write_atomic(OUT, lambda temporary: table.to_csv(temporary, index=False))
    picture = figure_of(table)
    picture.save(OUT.with_suffix(".png"))
    print(picture)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
