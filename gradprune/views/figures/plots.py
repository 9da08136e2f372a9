"""The figures: plain data in, a `Picture` out; nothing here trains, prunes or keeps state."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from gradprune.base.errors import require
from gradprune.evaluation import Metrics
from gradprune.pruning.filters import Filters
from gradprune.views.figures import style
from gradprune.views.figures.drawing import bands_of, draw_cells, with_room
from gradprune.views.figures.picture import Picture, Row, about_rounds, about_scores, change, changes, count
from gradprune.views.figures.style import METRICS, plain

_LISTED = 8  # highest scores in the list
_COLUMNS = 64  # heat-map cells per line; wider layers continue on the next line, so that cells stay large enough


def score_heatmap(found: Filters, scores: Tensor, removed: Iterable[int] = (), score: str = "gradient") -> Picture:
    """All filter scores, one band per layer; beside them the highest in the ranking over all layers.

    scores: float (number of filters,), higher = removed first. removed: flat positions, marked by crosses.
    score: its name. Raises InputError unless there is one finite score per filter.
    """
    values = torch.as_tensor(scores).detach().cpu().double().numpy()
    require(values.shape == (len(found),), f"scores must have shape ({len(found)},), got {values.shape}.")
    require(bool(np.isfinite(values).all()), "scores must be finite.")
    removed, ranking = list(removed), np.argsort(-values, kind="stable").tolist()
    columns = min(_COLUMNS, max(layer.count for layer in found.layers))
    corners, bands = bands_of(found, columns, 0.4)
    colors, note = style.score_colors(values)
    height = min(9.5, max(2.7, 0.17 * bands[-1][1]))  # inches
    with style.sheet(height + 1.3, 1, 2, width_ratios=[2.9, 1]) as (figure, (ax, side)):
        for band in bands:
            ax.axhspan(*band, color=style.EMPTY, linewidth=0)
        draw_cells(ax, corners, values, colors, removed)
        wrapped = any(layer.count > columns for layer in found.layers)
        ax.set(xlim=(-0.3, columns + 0.3), ylim=(bands[-1][1] + 0.3, -0.3), title="Scores by layer")
        ax.set_xlabel("filter index in the layer" + f" (a new line every {columns})" * wrapped)
        ax.set_xticks(np.arange(0, columns, 8) + 0.5, [str(index) for index in range(0, columns, 8)])
        _name_layers(ax, found, [sum(band) / 2 for band in bands])
        figure.colorbar(colors, ax=ax, location="bottom", aspect=45, pad=0.02,
                        label=f"{score} score, higher = removed first{note}")
        _list_highest(side, found, values, ranking[:_LISTED], colors.to_rgba(values), removed, height / 0.33)
    return Picture(figure, about_scores(found, values, ranking, removed, score))


def _list_highest(ax: Axes, found: Filters, values: np.ndarray, best: Sequence[int], colors: np.ndarray,
                  removed: Sequence[int], room: float) -> None:
    """The highest scores of all layers as a list of bars; `room` is how many bars would fit."""
    for row, position in enumerate(best):
        value, across = values[position], ax.get_yaxis_transform()
        ax.barh(row, value, height=0.3, color=colors[position])
        style.label(ax, f"{value:.2g}", (max(0, value), row), (4, 0), va="center", color=style.FAINT)
        ax.text(0.01, row - 0.25, f"{row + 1}. {plain(found[position], 28, tail=True)}", transform=across, va="bottom",
                fontsize=style.SMALL)
        if position in removed:
            ax.scatter([-0.05], [row - 0.47], transform=across, clip_on=False, s=34, **style.REMOVED)
    low, high = min(0, values[best].min()), max(0, values[best].max())
    ax.set(xlim=(low, high + 0.25 * (high - low or 1)), ylim=(max(room, len(best)) - 0.5, -0.9))
    ax.set_title(f"Highest {len(best)} of {len(values)}")
    ax.set_axis_off()


def heat_map(ax: Axes, found: Filters, scores: Tensor, selected: int, removed: Iterable[int] = (),
             top: Sequence[int] | Tensor = ()) -> str:
    """Draw a row per layer (wide ones take several), frame, crosses, rings, colour bar; returns a note on its scale."""
    values = scores.double().numpy()
    columns = min(max(layer.count for layer in found.layers), max(64, math.isqrt(3 * len(found))))
    places, bands = bands_of(found, columns)
    column, line = places.T.astype(int)
    sheet = np.full((line.max() + 1, columns), np.nan)
    sheet[line, column] = values
    colors, note = style.score_colors(values)
    shades = colors.cmap.with_extremes(bad=style.EMPTY)(colors.norm(np.ma.masked_invalid(sheet)), bytes=True)
    ax.imshow(shades, aspect="auto")  # colours are computed per cell here, not per pixel
    line_height = 72 * ax.bbox.height / style.DPI / len(sheet)  # points: in a deep network less than a gap of 3
    ax.hlines([upper - 0.5 for upper, _ in bands[1:]], -0.5, columns - 0.5, color=style.PAPER,
              linewidth=min(3, 0.3 * line_height))
    style.score_bar(ax, colors)
    ax.set_xlabel("filter index in the layer")
    style.bare(ax)
    ax.scatter(column[list(top)], line[list(top)], s=15, facecolors=style.PAPER, edgecolors=style.INK, linewidths=0.8)
    ax.scatter(column[list(removed)], line[list(removed)], s=34, **style.REMOVED)
    ax.add_patch(Rectangle(tuple(places[selected] - 0.6), 1.2, 1.2, **style.SELECTED))
    ax.set(xlim=(-0.7, columns - 0.3), ylim=(len(sheet) - 0.4, -0.6))
    _name_layers(ax, found, [(sum(band) - 1) / 2 for band in bands])
    return note


def _name_layers(ax: Axes, found: Filters, middles: Sequence[float]) -> None:
    """The layers' names beside their bands; in a deep network those that have room."""
    named = with_room(ax, middles)
    ax.set_yticks([middles[number] for number in named],
                  [plain(found.layers[number].name, tail=True) for number in named])


def pruning_trajectory(history: Iterable[Row], replay_rows: Sequence[Row] | None = None,
                       kept: int | None = None) -> Picture:
    """Validation losses and accuracy after each pruning round, and the test figures if a replay is given.

    history: `DefenseResult.history` (rows of other stages are ignored). replay_rows: what
    `evaluation.replay` returns for it. kept: the round whose state was returned.
    Raises InputError without pruning rows.
    """
    rows = [row for row in history if row.get("stage", "prune") == "prune"]
    require(len(rows) > 0, "the history has no pruning rows.")
    kept = None if kept is None else int(kept)  # a number of NumPy's repeats no text
    rounds, last = [row["round"] for row in rows], rows[-1]["round"]
    names = ["given"] + [f"{row['round']}: {plain(row['layer'], tail=True)}[{row['index']}]" for row in rows[1:]]
    longest, every = max(map(len, names)), -(-len(rounds) // 48)
    upright = len(names) * longest > 105
    heights = [1.5, 1.0, 1.5] if replay_rows else [1.5, 1.0]
    high = 1.35 * sum(heights) + 1.2 + upright * 0.075 * longest  # inches
    losses = {name: ([row[f"val_{name}_loss"] for row in rows], look) for name, look in
              (("unlearning", style.TRIGGERED), ("clean", style.CLEAN)) if f"val_{name}_loss" in rows[0]}
    with style.sheet(high, len(heights), sharex=True, height_ratios=heights) as (figure, panels):
        style.draw_lines(panels[0], rounds, losses)
        panels[0].set_title("Validation losses: the basis of the defender's decisions", pad=20)
        style.draw_lines(panels[1], rounds, {"": ([row["val_acc"] for row in rows], METRICS["acc"])}, True)
        panels[1].set_title("Validation accuracy on clean images")
        if replay_rows:
            tested = {mark.name: ([row[key] for row in replay_rows], mark) for key, mark in METRICS.items()}
            style.draw_lines(panels[2], [row["round"] for row in replay_rows], tested, True)
            panels[2].set_title("Test images: measured afterwards, not used for decisions")
        panels[-1].set_xticks(rounds[::every], names[::every], rotation=270 if upright else 0)
        panels[-1].set_xlabel("round, and the filter removed in it")
        if kept is not None:
            state = f"{count(kept, 'filter')} removed" if kept else "the given model"
            style.mark_kept(panels, kept, f"kept: {state}" + "; later rounds were undone" * (kept < last))
            for ax in panels:
                ax.axvspan(kept, last, color=style.EMPTY, linewidth=0, zorder=0)
            for position, label in zip(rounds[::every], panels[-1].get_xticklabels(), strict=True):
                label.set_color(style.FAINT if position > kept else style.INK)
    return Picture(figure, about_rounds(rows, replay_rows, kept))


def loss_curves(history: Iterable[Row]) -> Picture:
    """Loss and accuracy per epoch: of fine-tuning, with the kept epoch (else the last) marked, or of training.

    history: `DefenseResult.history`, whose "tune" rows are drawn, or `TrainingResult.history`.
    Raises InputError without such rows.
    """
    rows = [row for row in history if row.get("stage", "tune") == "tune"]
    require(len(rows) > 0, "the history has no epochs.")
    if tuned := "val_clean_loss" in rows[0]:
        lines = {"unlearning": ("val_unlearning_loss", style.TRIGGERED), "clean": ("val_clean_loss", style.CLEAN)}
        lines = {name: line for name, line in lines.items() if line[0] in rows[0]}  # without the trigger clean alone
        loss = "val_loss" if "val_loss" in rows[0] else "val_clean_loss"
        accuracy, where, mark = "val_acc", "Validation", METRICS["acc"]
    else:
        lines = {"": ("loss", style.TRAINING)}
        loss, accuracy, where, mark = "loss", "acc", "Training", style.TRAINING
    epochs, end = [row["epoch"] for row in rows], next((row for row in reversed(rows) if row.get("kept")), rows[-1])
    with style.sheet(2.9, 1, 2) as (figure, panels):
        drawn = {name: ([row[key] for row in rows], line) for name, (key, line) in lines.items()}
        style.draw_lines(panels[0], epochs, drawn)
        style.draw_lines(panels[1], epochs, {"": ([row[accuracy] for row in rows], mark)}, True)
        for ax, name in zip(panels, ("loss", "accuracy"), strict=True):
            ax.set_title(f"{where} {name}", pad=20)
            ax.set_xlabel("epoch")
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if tuned:
            style.mark_kept(panels, end["epoch"], f"kept: epoch {end['epoch']}")
    what = f"the validation loss ({' + '.join(reversed(lines))})" if tuned else "the training loss"
    return Picture(figure, f"At epoch {end['epoch']} of {epochs[-1]}" + ", the one kept" * tuned + ": "
                   + change(what, rows[0][loss], end[loss], ".3f") + ", "
                   + change("accuracy", rows[0][accuracy], end[accuracy]) + ".")


def before_after(stages: Mapping[str, Metrics]) -> Picture:
    """ACC, ASR and RA of each stage side by side, every value written out.

    stages: results by name, in order ({"before": ..., "pruned": ..., "fine-tuned": ...}); shares in 0..1.
    Raises InputError without stages.
    """
    require(len(stages) > 0, "there are no stages to show.")
    with style.sheet(0.44 * len(stages) + 0.9, 1, 3, sharey=True) as (figure, panels):
        for ax, (key, mark) in zip(panels, METRICS.items(), strict=True):
            values = [getattr(metrics, key) for metrics in stages.values()]
            style.draw_values(ax, range(len(values)), values, mark)
            ax.set(xlim=(0, 1), xticks=[])
            ax.set_title(f"{mark.name}: {'lower' if key == 'asr' else 'higher'} is better", fontsize=style.NORMAL)
            ax.set_xlabel(textwrap.fill(mark.meaning, 23), loc="left")
            style.name_rows(ax, [style.plain_lines(name) for name in stages], fontsize=style.NORMAL)
            ax.spines["bottom"].set_visible(False)
    names, figures = list(stages), [metrics._asdict() for metrics in stages.values()]
    return Picture(figure, f"From “{names[0]}” to “{names[-1]}”: {changes(figures[0], figures[-1])}.")
