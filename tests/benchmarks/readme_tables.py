"""The result tables of README and docs, from committed benches: python tests/benchmarks/readme_tables.py [FOLDER [--by-model]]."""

import sys
from pathlib import Path

from gradprune.evaluation import gain, ranking, read_results, summarise

FOLDER = Path(__file__).resolve().parents[2] / "data/results/signs"
FIGURES = ("acc", "asr", "ra")


def overview(table):
    """One row a defence: ACC / ASR / RA and DER at each spc, by mean DER over all of them."""
    means = table.groupby(["spc", "defense", "attack"])[[*FIGURES, "der"]].mean().groupby(["spc", "defense"]).mean()
    sizes = sorted(set(table["spc"]))
    best = {spc: means.loc[spc, "der"].max() for spc in sizes}
    print("| defence | " + " | ".join(f"spc {spc}: ACC / ASR / RA | DER" for spc in sizes) + " |\n|---" + "|---|---" * len(sizes) + "|")
    for name in means["der"].groupby("defense").mean().sort_values(ascending=False).index:
        cells = []
        for spc in sizes:
            if (spc, name) not in means.index:
                cells += ["not run", ""]
                continue
            mean = means.loc[spc, name]
            bold = "**" if mean["der"] == best[spc] else ""
            cells += [" / ".join(f"{100 * mean[key]:.1f}" for key in FIGURES), f"{bold}{mean['der']:.3f}{bold}"]
        print(f"| {name} | {' | '.join(cells)} |")


def by_defense(table):
    """Means over attacks and seeds, every attack weighing the same; rank and DER with their 95 % interval."""
    print("| spc | defence | ACC | ASR | RA | DER (95 % interval) | mean rank (interval) | seconds |\n|---|---|---|---|---|---|---|---|")
    means = summarise(table).groupby(["spc", "defense"])[[*FIGURES, "seconds"]].agg(
        {**dict.fromkeys(FIGURES, "mean"), "seconds": "median"})
    for row in ranking(table).sort_values(["spc", "der"], ascending=[True, False]).itertuples():
        mean = means.loc[row.spc, row.defense]
        figures = " | ".join(f"{100 * mean[name]:.1f}" for name in FIGURES)
        print(f"| {row.spc} | {row.defense} | {figures} | {row.der:.3f} ({row.der_low:.3f}..{row.der_high:.3f}) | "
              f"{row.rank:.1f} ({row.rank_low:.1f}..{row.rank_high:.1f}) | {mean.seconds:.1f} |")


def by_attack(table):
    """ACC / ASR / RA of each attack: given, both recipes with their parts and controls; mean and half range over seeds."""
    print("| attack, spc | given | `paper`, pruned | `paper` | `ft_unlearn` | `verified`, pruned | `verified` | `ft_distilled` | filters |\n"
          "|---|---|---|---|---|---|---|---|---|")
    for (attack, spc), group in table.groupby(["attack", "spc"], sort=False):
        paper, verified, unlearned, distilled = (group[group.defense == name] for name in (
            "grad_prune", "grad_prune_verified", "ft_unlearn", "ft_distilled"))
        cells = [cell(part, form) for part, form in (
            (paper, "{}_before"), (paper, "pruned_{}"), (paper, "{}"), (unlearned, "{}"),
            (verified, "pruned_{}"), (verified, "{}"), (distilled, "{}"))]
        removed = [f"{part.filters_removed.min():.0f}..{part.filters_removed.max():.0f}" for part in (paper, verified)
                   if len(part)]
        print(f"| {attack}, spc {spc} | {' | '.join(cells)} | {'; '.join(removed)} |")


def cell(part, form):
    if not len(part):
        return "not run"
    values = [100 * part[form.format(name)] for name in FIGURES]
    return " / ".join(f"{value.mean():.1f}" + (f" ± {(value.max() - value.min()) / 2:.1f}" if "before" not in form else "")
                      for value in values)


def by_model(table):
    """A table for each spc: mean ACC / ASR / RA of every defence on every model, and the mean DER where it met all.

    Where fewer seeds were run than elsewhere, their number stands behind the figures.
    """
    most = table["seed"].nunique()
    for spc, rows in table.groupby("spc"):
        models = list(dict.fromkeys(table["attack"]))
        means = rows.groupby(["defense", "attack"])[[*FIGURES, "der"]].mean()
        draws = rows.groupby(["defense", "attack"])["seed"].nunique()
        ders = means["der"].unstack().reindex(columns=models)
        print(f"\n| spc {spc} | {' | '.join(models)} | mean DER |\n|---{'|---' * len(models)}|---|")
        for name in ders.mean(axis=1, skipna=False).sort_values(ascending=False).index:
            cells = [" / ".join(f"{100 * means.loc[name, model][key]:.1f}" for key in FIGURES)
                     + f" ({draws[name, model]})" * int(draws[name, model] < most)
                     if (name, model) in means.index else "not run" for model in models]
            print(f"| {name} | {' | '.join(cells)} | {ders.loc[name].mean(skipna=False):.3f} |".replace("nan", ""))


def whole(table):
    """The attacks of each spc that every defence has met with every seed; an unfinished bench has others too."""
    size = table.groupby(["attack", "spc"]).transform("size")
    full = size.groupby(table["spc"]).transform("max")
    for attack, spc in table[size < full][["attack", "spc"]].drop_duplicates().itertuples(index=False):
        print(f"left out, not finished: {attack}, spc {spc}", file=sys.stderr)
    return table[size == full]


def main():
    if "--by-model" in sys.argv:
        sys.argv.remove("--by-model")
        return by_model(read_results(sys.argv[1]))
    table = whole(read_results(sys.argv[1] if len(sys.argv) > 1 else FOLDER))
    overview(table)
    print()
    by_defense(table)
    print()
    by_attack(table)
    print()
    for one, other in (("grad_prune", "ft_unlearn"), ("grad_prune_verified", "ft_distilled"), ("grad_prune_verified", "ft_unlearn"),
                       ("ft_distilled", "ft_unlearn"), ("grad_prune_verified", "grad_prune")):
        print(one, "against", other)
        print(gain(table, one, other).round(4).to_string(index=False))
    print(f"{len(table)} cells, {(table.error != '').sum()} failed, {table.cell_seconds.sum() / 3600:.2f} thread-hours")


if __name__ == "__main__":
    main()
