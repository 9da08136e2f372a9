"""The report of a bench: one page that says which defence did best on which attack, how surely, and at what price."""

import textwrap
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from gradprune.base.errors import require
from gradprune.base.paths import output_folder, write_atomic
from gradprune.bench import attack_kind, gain, published, ranking, significance, summarise
from gradprune.bench.summary import KEYS, checked
from gradprune.defenses import KNOWS_TRIGGER
from gradprune.views.figures import bench_plots
from gradprune.views.figures.picture import Picture, count, per_class
from gradprune.views.reports.page import DEFINITIONS, page, table, terms

_MOST = {"attack": 60, "defense": 60, "spc": 12, "seed": 1000}  # different ones
_FIGURES = ("acc", "asr", "ra")
_READING = """<p>Each defence got the same attacked models and the same few clean images of each class. A cell is one
attack, one defence, one number of images per class and one seed; the seed draws the defender’s images. All figures are
counted on test images that no defence saw. ± is half the distance from the lowest to the highest seed.</p>{terms}
<p>Means and ranks over attacks count only attacks and seeds for which every defence has a cell. Every attack weighs the
same: seeds, and models of one attack (badnets_1, badnets_2), are averaged first. The 95% intervals are Student’s, over
the attacks’ means, with one degree of freedom less than there are attacks: the next model will have another attack, and
seeds are only other images for the same one. Two defences differ significantly where the interval of their paired
difference does not hold 0. The highest of many means is partly luck. A failed cell ranks last and is left out of
means. Who knows the trigger has it easier, so those that do and those that do not are ranked apart.</p>"""
_DIFFERENCES = {
    "network": "PreActResNet-18, about 11 million weights. Here: that of each model; as shipped 78,000 weights for "
               "signs, 0.7 million for photographs.",
    "images": "CIFAR-10 or GTSRB, photographs. Here: those of each model; as shipped rendered signs, and photographs "
              "for the names cifar10/... and gtsrb/...",
    "poisoned": "10 % of the training images. Here: set for each attack.",
    "defender": "5 % of the training images: about 250 a class on CIFAR-10, 45 on average on GTSRB. Here: see the "
                "columns.",
    "trigger": "unknown to the defences. Here: known to those of which the tables say so; they have no published row.",
    "runs": "one figure a cell, other code, other settings of the defences. Here: means over seeds.",
}


def write_bench_report(folder: str | Path, table: pd.DataFrame, facts: Mapping[str, Any]) -> Path:
    """Write report.html, one file without network, its figures as PNG and summary.csv beside it; returns its path.

    table: a row a cell, as `bench.summarise` takes it; of further columns gradprune, torch, machine, threads and
    cell_seconds are told. facts: shown among the settings; "command" is the command line that made the bench.
    Each file is written whole or not at all, the page last.
    Raises InputError for a bad table (before any work), or a folder that cannot be written.
    """
    cells = checked(table).sort_values("spc", kind="stable")
    many = [f"{cells[key].nunique()} of {key}" for key, most in _MOST.items() if cells[key].nunique() > most]
    require(not many, f"the bench has more than a page can show: {', '.join(many)}; the most are {_MOST}.")
    folder = output_folder(folder)
    write_atomic(folder / "summary.csv", lambda temporary: summarise(cells).to_csv(temporary, index=False))
    figures = {}
    for name, picture in _pictures(cells).items():
        png = picture.save(folder / f"{name}.png").read_bytes()
        figures[name] = f'<div class="wide">{picture.html(png)}</div>'
    text = _page(cells, figures, facts)
    return write_atomic(folder / "report.html", lambda temporary: temporary.write_text(text, "utf-8"))


def _pictures(cells: pd.DataFrame) -> dict[str, Picture]:
    """All figures by name, those of an spc with its number; what has no data is left out."""
    pictures, good = {}, cells[~cells["failed"]]
    blocks = ranking(cells).groupby("spc")["blocks"].first()
    for spc in good["spc"].unique():
        pictures[f"der_{spc}"] = bench_plots.der_heatmap(cells, spc)
        pictures[f"acc_asr_{spc}"] = bench_plots.acc_against_asr(cells, spc)
        if blocks[spc] and cells["defense"].nunique() > 1:
            pictures[f"rank_{spc}"] = bench_plots.mean_ranks(cells, spc)
    if good["spc"].nunique() > 1:
        pictures["by_spc"] = bench_plots.by_spc(cells)
    if (good["seconds"] > 0).any():
        pictures["cost"] = bench_plots.costs(cells)
    return pictures


# ---- what it says


def _lead(cells: pd.DataFrame) -> str:
    """The outcome in plain words (HTML): what was run, then a paragraph for each spc."""
    kinds, models = cells["attack"].map(attack_kind).nunique(), cells["attack"].nunique()
    ran = f"{count(cells['defense'].nunique(), 'defence')}, {count(kinds, 'attack')}"
    ran += f" ({count(models, 'attacked model')})" * (models > kinds) + f", {count(cells['seed'].nunique(), 'seed')}"
    told = [f"{ran}: {count(len(cells), 'cell')}, {cells['failed'].sum() or 'none'} failed."]
    for spc, rows in ranking(cells).groupby("spc"):
        met, every = int(rows["models"].iloc[0]), cells.loc[cells["spc"] == spc, "attack"].nunique()
        part = f" (over the {met} of {every} attacked models that every defence met)" * (0 < met < every)
        told.append(f"With <b>{per_class(spc)}</b>{part} {_outcome(cells, rows)}{_pruning_adds(cells, spc)}")
    return "</p><p>".join(told)


def _outcome(cells: pd.DataFrame, ranks: pd.DataFrame) -> str:
    """Who has the highest mean DER at one spc, among those that know the trigger and among those that do not (HTML)."""
    known = ranks["defense"].isin(KNOWS_TRIGGER)
    if ranks["der"].isna().all():
        return "no attack and seed has figures of every defence, so there is no common mean."
    if known.all() or not known.any():
        return _first(cells, ranks)
    return (f"among the defences that know the trigger {_first(cells, ranks[known])} Among those that do not "
            f"{_first(cells, ranks[~known])}")


def _first(cells: pd.DataFrame, ranks: pd.DataFrame) -> str:
    """The highest mean DER of some defences, whether it differs from the second's, and where grad_prune stands."""
    order = ranks.dropna(subset=["der"]).sort_values("der", ascending=False).reset_index(drop=True)
    told = [] if len(order) else ["no defence has a figure."]
    for place, row in order.iterrows():
        if place == 0 or row["defense"].startswith("grad_prune"):
            stands = "has the highest mean DER" if place == 0 else f"stands at place {place + 1} of {len(ranks)}"
            sure = f" (95% interval {row['der_low']:.1%} to {row['der_high']:.1%})" if row["der_low"] >= 0 else ""
            lost = f"; {row['failed']} of its {count(row['blocks'], 'cell')} failed" if row["failed"] else ""
            told.append(f"<b>{escape(row['defense'])}</b> {stands}: {row['der']:.1%}{sure}{lost}.")
        if place == 1:
            pairs = gain(cells, order["defense"][0], row["defense"]).query("spc == @row.spc")
            second = escape(row["defense"])
            told[1:1] = [f"It and {second}, the second, {significance(pair)}." for _, pair in pairs.iterrows()]
    return " ".join(told)


def _pruning_adds(cells: pd.DataFrame, spc: int) -> str:
    """The paired differences of both recipes and their controls at one spc, in words; empty where they did not meet."""
    told = []
    for recipe, control in (("grad_prune", "ft_unlearn"), ("grad_prune_verified", "ft_distilled")):
        for _, pair in gain(cells, recipe, control).query("spc == @spc").iterrows():
            size = f"{100 * abs(pair['gain']):.1f}"
            lies = "less than 0.1 points from" if size == "0.0" else (
                f"{size} points {'above' if pair['gain'] > 0 else 'below'}")
            told.append(f"the DER of {recipe} is {lies} that of {control}, the same fine-tuning without pruning; the "
                        f"two {significance(pair)}.")
    return f" What pruning adds: {' And '.join(told)}" if told else ""


# ---- tables


def _results(cells: pd.DataFrame) -> str:
    """ACC, ASR and RA after each defence (row) under each attack (column) at one spc, and as given."""
    attacks, names = list(dict.fromkeys(cells["attack"])), "\n".join(key.upper() for key in _FIGURES)
    errors = cells[cells["failed"]].groupby(["defense", "attack"])["error"].first()
    before = cells.groupby("attack")[[f"{key}_before" for key in _FIGURES]].mean()
    given = ["\n".join(_percent(value) for value in before.loc[attack]) for attack in attacks]
    rows = [["as given", "", names, *given]]
    if not cells["failed"].all():
        found = summarise(cells).set_index(["defense", "attack"])
        for name in dict.fromkeys(cells["defense"]):
            own = [_cell(found.loc[name, attack], errors.get((name, attack), ""))
                   if (name, attack) in found.index else "–" for attack in attacks]
            rows.append([name, "yes" if name in KNOWS_TRIGGER else "no", names, *own])
    told = "<p>Per cent on test images after the defence: mean over seeds ± half the range.</p>"
    return told + table(rows, ["defence", "knows the trigger", "", *attacks], kind="cells")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}" if share == share else "–"


def _cell(row: pd.Series, error: str) -> str:
    """One cell in lines: the figures, or why there are none."""
    if row["failed"] == row["cells"]:
        return textwrap.fill(textwrap.shorten(f"failed: {error}", 90, placeholder=" …"), 20)
    several = row["cells"] - row["failed"] > 1
    lines = [f"{100 * row[key]:.1f}" + (f" ± {100 * row[f'{key}_half_range']:.1f}" if several else "")
             for key in _FIGURES]
    return "\n".join(lines + [f"{row['failed']:.0f} of {row['cells']:.0f} failed"] * bool(row["failed"]))


def _published(cells: pd.DataFrame) -> str:
    """Published figures beside ours, for the attacks and defences that both have (HTML)."""
    theirs, ours = published(), cells[~cells["failed"]]
    both = ours[["attack", "defense"]].drop_duplicates().merge(theirs[["attack", "defense"]].drop_duplicates())
    if both.empty:
        return ""
    columns = {f"published,\n{data}": _by_pair(rows) for data, rows in theirs.groupby("dataset")}
    columns |= {f"here,\n{per_class(spc)}": _by_pair(rows) for spc, rows in ours.groupby("spc")}
    keys = [(attack, name) for attack, rows in both.groupby("attack", sort=False) for name in ("", *rows["defense"])]
    lines = [[f"{attack}, {name or 'as given'}", *(texts.get((attack, name), "–") for texts in columns.values())]
             for attack, name in keys]
    return ("<p><b>Not comparable one to one.</b> The published rows come from the leaderboard of BackdoorBench (Wu et "
            "al., 2022, arXiv:2206.12654; date of retrieval not recorded). What differs:</p>" + terms(_DIFFERENCES)
            + "<p>ACC / ASR / RA in per cent, as given and after the defence.</p>"
            + table(lines, ["attack, defence", *columns], kind="cells"))


def _by_pair(rows: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Mean ACC / ASR / RA by (attack, defence); the defence "" is the model as given."""
    given = rows.assign(defense="", **{key: rows[f"{key}_before"] for key in _FIGURES})
    means = pd.concat([given, rows]).groupby(["attack", "defense"])[list(_FIGURES)].mean()
    return {key: " / ".join(map(_percent, line)) for key, line in zip(means.index, means.to_numpy(), strict=True)}


def _settings(cells: pd.DataFrame, facts: Mapping[str, Any]) -> str:
    """All that shaped the bench, and the failures (HTML)."""
    told = {"attacks": "attack", "defences": "defense", "images per class": "spc", "seeds": "seed",
            "gradprune": "gradprune", "torch": "torch", "machine": "machine", "threads": "threads"}
    rows = [[name, ", ".join(map(str, dict.fromkeys(cells[key].dropna())))] for name, key in told.items()
            if key in cells]
    rows.append(["cells", f"{len(cells)}, {cells['failed'].sum()} failed"])
    if "cell_seconds" in cells:
        rows.append(["seconds, all cells", f"{cells['cell_seconds'].sum():.0f}"])
    rows += [[str(key), str(value)] for key, value in facts.items() if key != "command"]
    text, lost = table([row for row in rows if row[1]]), cells[cells["failed"]]
    if len(lost):
        groups = lost.groupby([*KEYS, "error"], sort=False)["seed"]
        rows = [[attack, name, str(spc), ", ".join(map(str, seeds)), error]
                for (attack, name, spc, error), seeds in groups]
        text += "<h3>Failed cells</h3>" + table(rows, ["attack", "defence", "images per class", "seeds", "error"])
    return text


# ---- how it looks


def _page(cells: pd.DataFrame, figures: Mapping[str, str], facts: Mapping[str, Any]) -> str:
    sections = {"How to read this page": _READING.format(terms=terms(DEFINITIONS))}
    for spc, rows in cells.groupby("spc"):
        own = [figures.get(f"{name}_{spc}", "") for name in ("der", "acc_asr", "rank")]
        sections[per_class(spc)] = "".join(own) + _results(rows)
    sections |= {"More images": figures.get("by_spc", ""), "Cost": figures.get("cost", ""),
                 "Published figures beside ours": _published(cells), "Settings": _settings(cells, facts)}
    if facts.get("command"):
        sections["Do it again"] = f"<pre><code>{escape(str(facts['command']))}</code></pre>"
    kinds = (count(cells[key].nunique(), noun) for key, noun in (("defense", "defence"), ("attack", "attack")))
    return page(f"A bench: {' against '.join(kinds)}", _lead(cells), sections)
