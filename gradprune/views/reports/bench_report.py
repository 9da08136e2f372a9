"""The report of a bench: one page that says which defence did best on which attack, how certainly, and at what cost."""

import textwrap
from collections.abc import Mapping
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
from gradprune.views.reports.page import save_pictures, write_page

_MOST = {"attack": 60, "defense": 60, "spc": 12, "seed": 1000}  # different values on one page
_FIGURES = ("acc", "asr", "ra")


def write_bench_report(folder: str | Path, table: pd.DataFrame, facts: Mapping[str, Any]) -> Path:
    """Write report.html, one file without network, its figures as PNG and summary.csv beside it; returns its path.

    table: one row per cell, as `bench.summarise` takes it; the further columns gradprune, torch, machine, threads and
    cell_seconds are shown. facts: shown among the settings; "command" is the command line that made the bench.
    Each file is written whole or not at all, the page last.
    Raises InputError for a bad table (before any work), or a folder that cannot be written.
    """
    cells = checked(table).sort_values("spc", kind="stable")
    many = [f"{cells[key].nunique()} values of {key}" for key, most in _MOST.items() if cells[key].nunique() > most]
    require(not many, f"the bench has more than a page can show: {', '.join(many)}; the limits are {_MOST}.")
    folder = output_folder(folder)
    write_atomic(folder / "summary.csv", lambda temporary: summarise(cells).to_csv(temporary, index=False))
    figures = save_pictures(folder, _pictures(cells))
    models, defences, seeds = (cells[key].nunique() for key in ("attack", "defense", "seed"))
    sizes = [_size(cells, ranks, figures) for _, ranks in ranking(cells).groupby("spc")]
    title = f"A bench: {count(defences, 'defence')} against {count(models, 'attack')}"
    return write_page(folder / "report.html", "bench.html", title=title, defences=defences, models=models, seeds=seeds,
                      kinds=cells["attack"].map(attack_kind).nunique(), cells=len(cells),
                      failed=cells["failed"].sum(), sizes=sizes, figures=figures, published=_published(cells),
                      settings=_settings(cells, facts), lost=_lost(cells), command=str(facts.get("command") or ""))


def _pictures(cells: pd.DataFrame) -> dict[str, Picture]:
    """All figures by name, those of one spc with its number; figures without data are left out."""
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


def _size(cells: pd.DataFrame, ranks: pd.DataFrame, figures: Mapping[str, Any]) -> dict[str, Any]:
    """What the page says about one spc. contests: of the defences that know the trigger, and of those that do not."""
    spc, known = ranks["spc"].iloc[0], ranks["defense"].isin(KNOWS_TRIGGER)
    own, all_alike = cells[cells["spc"] == spc], known.all() or not known.any()
    attacks = list(dict.fromkeys(own["attack"]))
    return {"name": per_class(spc), "met": int(ranks["models"].iloc[0]), "every": len(attacks), "attacks": attacks,
            "common": ranks["der"].notna().any(), "all_alike": all_alike, "adds": _pruning_adds(cells, spc),
            "contests": [_contest(cells, part) for part in ([ranks] if all_alike else [ranks[known], ranks[~known]])],
            "figures": [figures[f"{name}_{spc}"] for name in ("der", "acc_asr", "rank") if f"{name}_{spc}" in figures],
            "results": _results(own, attacks)}


def _contest(cells: pd.DataFrame, ranks: pd.DataFrame) -> list[dict[str, Any]]:
    """The row of the highest mean DER, with its paired comparison with the second, and the rows of grad_prune."""
    order = ranks.dropna(subset=["der"]).sort_values("der", ascending=False).reset_index(drop=True)
    told = [{**row, "place": place + 1, "of": len(ranks), "second": ""} for place, row in order.iterrows()
            if place == 0 or row["defense"].startswith("grad_prune")]
    if len(order) > 1:
        for pair in _pairs(cells, ranks["spc"].iloc[0], *order["defense"][:2]):
            told[0] |= {"second": order["defense"][1], "differ": significance(pair)}
    return told


def _pruning_adds(cells: pd.DataFrame, spc: int) -> list[dict[str, Any]]:
    """The paired differences of both recipes and their controls at one spc, where both were run on the same cells."""
    return [{"recipe": recipe, "control": control, "gain": pair["gain"], "points": f"{100 * abs(pair['gain']):.1f}",
             "differ": significance(pair)}
            for recipe, control in (("grad_prune", "ft_unlearn"), ("grad_prune_verified", "ft_distilled"))
            for pair in _pairs(cells, spc, recipe, control)]


def _pairs(cells: pd.DataFrame, spc: int, first: str, second: str) -> list[pd.Series]:
    """The paired difference of two defences at one spc, if both were run on the same cells there."""
    return [pair for _, pair in gain(cells, first, second).iterrows() if pair["spc"] == spc]


def _results(cells: pd.DataFrame, attacks: list[str]) -> list[list[str]]:
    """ACC, ASR and RA after each defence (row) under each attack (column) at one spc, and as given."""
    names = "\n".join(key.upper() for key in _FIGURES)
    errors = cells[cells["failed"]].groupby(["defense", "attack"])["error"].first()
    before = cells.groupby("attack")[[f"{key}_before" for key in _FIGURES]].mean()
    rows = [["as given", "", names, *("\n".join(map(_percent, before.loc[attack])) for attack in attacks)]]
    if not cells["failed"].all():
        found = summarise(cells).set_index(["defense", "attack"])
        rows += [[name, "yes" if name in KNOWS_TRIGGER else "no", names,
                  *(_cell(found.loc[name, attack], errors.get((name, attack), "")) if (name, attack) in found.index
                    else "–" for attack in attacks)] for name in dict.fromkeys(cells["defense"])]
    return rows


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


def _published(cells: pd.DataFrame) -> list[list[str]]:
    """Published figures beside ours, for the attacks and defences that both have: a table, its header first."""
    theirs, ours = published(), cells[~cells["failed"]]
    both = ours[["attack", "defense"]].drop_duplicates().merge(theirs[["attack", "defense"]].drop_duplicates())
    columns = {f"published,\n{data}": _by_pair(rows) for data, rows in theirs.groupby("dataset")}
    columns |= {f"here,\n{per_class(spc)}": _by_pair(rows) for spc, rows in ours.groupby("spc")}
    keys = [(attack, name) for attack, rows in both.groupby("attack", sort=False) for name in ("", *rows["defense"])]
    lines = [[f"{attack}, {name or 'as given'}", *(texts.get((attack, name), "–") for texts in columns.values())]
             for attack, name in keys]
    return [["attack, defence", *columns], *lines] if lines else []


def _by_pair(rows: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Mean ACC / ASR / RA by (attack, defence); the defence "" is the model as given."""
    given = rows.assign(defense="", **{key: rows[f"{key}_before"] for key in _FIGURES})
    means = pd.concat([given, rows]).groupby(["attack", "defense"])[list(_FIGURES)].mean()
    return {key: " / ".join(map(_percent, line)) for key, line in zip(means.index, means.to_numpy(), strict=True)}


def _settings(cells: pd.DataFrame, facts: Mapping[str, Any]) -> list[list[str]]:
    """The settings of the bench."""
    told = {"attacks": "attack", "defences": "defense", "images per class": "spc", "seeds": "seed",
            "gradprune": "gradprune", "torch": "torch", "machine": "machine", "threads": "threads"}
    values = {key: cells[key].dropna().unique() for key in told.values() if key in cells}
    rows = [[name, ", ".join(map(str, sorted(values[key]) if key == "seed" else values[key]))]
            for name, key in told.items() if key in values]
    seconds = f"{cells['cell_seconds'].sum():.0f}" if "cell_seconds" in cells else ""
    rows += [["cells", f"{len(cells)}, {cells['failed'].sum()} failed"], ["seconds, all cells", seconds]]
    rows += [[str(key), str(value)] for key, value in facts.items() if key != "command"]
    return [row for row in rows if row[1]]


def _lost(cells: pd.DataFrame) -> list[list[str]]:
    """The cells that failed, one row per error."""
    lost = cells[cells["failed"]]
    groups = lost.groupby([*KEYS, "error"], sort=False)["seed"] if len(lost) else ()
    return [[attack, name, str(spc), ", ".join(map(str, seeds)), error] for (attack, name, spc, error), seeds in groups]
