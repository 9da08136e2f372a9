"""The relearning curve: how fast a backdoor comes back. Numbers in, a `Picture` out."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import seaborn

from gradprune.base.errors import require
from gradprune.views.figures import style
from gradprune.views.figures.bench_plots import looks
from gradprune.views.figures.picture import Picture
from gradprune.views.figures.style import plain

Rows = Sequence[Mapping[str, Any]]
_MOST = 7  # models in a figure


def relearn_curve(attacks: Mapping[str, Mapping[str, Rows]]) -> Picture:
    """ASR against the number of poisoned samples: one panel per attack, one line per model, a band over the draws.

    attacks: attack -> model's name -> rows of `evaluation.relearn` (`k`, None for the model before fine-tuning, and
    `asr` in 0..1), from one or more runs, all with the same values of k.
    Raises InputError without rows, for more than seven models, or where the runs differ in k.
    """
    runs = [rows for models in attacks.values() for rows in models.values()]
    require(len(runs) > 0 and all(len(rows) > 0 for rows in runs), "each attack needs models with rows.")
    steps = sorted({row["k"] for row in runs[0]}, key=lambda k: -1 if k is None else k)
    require(all({row["k"] for row in rows} == set(steps) for rows in runs), "all runs must have the same values of k.")
    table = pd.DataFrame([{"attack": attack, "defense": plain(name), "place": steps.index(row["k"]), "asr": row["asr"]}
                          for attack, models in attacks.items() for name, rows in models.items() for row in rows])
    marks = looks(table)
    require(len(marks) <= _MOST, f"a figure shows at most {_MOST} models, got {len(marks)}.")
    colors, markers = ({name: look[key] for name, look in marks.items()} for key in ("color", "marker"))
    with style.sheet(3.8, 1, len(attacks), sharey=True) as (figure, panels):
        for ax, (attack, own) in zip(panels, table.groupby("attack", sort=False), strict=True):
            seaborn.lineplot(own, x="place", y="asr", hue="defense", style="defense", palette=colors, markers=markers,
                             style_order=markers, errorbar=("pi", 100), ax=ax)
            for line in ax.get_lines():
                line.set_clip_on(len(line.get_xdata()) == 0)  # the legend's lines are empty
            ax.set_title(plain(attack))
            ax.set_xticks(range(len(steps)), ["before" if step is None else str(step) for step in steps])
            ax.set(ylim=(0, 1), yticks=[0, 0.5, 1], xlabel="", ylabel="ASR (lower is better for the defender)")
            style.percent(ax.yaxis)
            ax.grid(axis="y")
        lines = {name: line for ax in panels for line, name in zip(*ax.get_legend_handles_labels(), strict=True)}
        for ax in panels:
            ax.get_legend().remove()
        figure.supxlabel("poisoned samples in the fine-tuning set", fontsize=style.SMALL)
        figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=min(3, len(lines)),
                      handlelength=3)
    mean = table.groupby(["attack", "defense", "place"], sort=False)["asr"].mean().unstack()
    told = "; ".join(f"{attack}: " + ", ".join(f"{name} {row.iloc[0]:.0%} to {row.iloc[-1]:.0%}" for name, row
                                               in own.droplevel(0).sort_index(axis=1).iterrows())
                     for attack, own in mean.groupby("attack", sort=False))
    first = "before" if steps[0] is None else f"with {steps[0]}"
    return Picture(figure, f"Mean ASR {first} and after fine-tuning with {steps[-1]} poisoned samples. {told}.")
