"""The result tables of README and docs, from committed benches: python tests/benchmarks/readme_tables.py [FOLDER [--by-model]]."""

import sys
from pathlib import Path

from gradprune.cli_bench import departures
from gradprune.defenses import KNOWS_TRIGGER
from gradprune.evaluation import gain, ranking, read_results, significance, summarise
from gradprune.evaluation.summary import checked, even_means

FOLDER = Path(__file__).resolve().parents[2] / "data/results/signs"
FIGURES = ("acc", "asr", "ra")


PAIRS = (("grad_prune", "ft_unlearn"), ("grad_prune_verified", "ft_distilled"), ("grad_prune_verified", "ft_unlearn"),
         ("grad_prune_verified", "grad_prune"), ("ft_distilled", "ft_unlearn"))


def overview(table):
    """Two tables, of the defences that know the trigger and of those that do not: see `group`."""
    for title, known in (("Defences that know the trigger", True), ("Defences that do not know the trigger", False)):
        rows = table[table["defense"].isin(KNOWS_TRIGGER) == known]
        if len(rows):
            print(f"{title} (bold: the highest DER of the table):\n")
            group(rows)
            print()


def group(table):
    """One row a defence: ACC / ASR / RA and DER at each spc, by mean DER over all of them."""
    means = even_means(checked(table), ["spc", "defense"], [*FIGURES, "der"])
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
    print("| spc | defence | knows the trigger | ACC | ASR | RA | DER (95 % interval) | mean rank (interval) | seconds |\n|---|---|---|---|---|---|---|---|---|")
    means = even_means(checked(table), ["spc", "defense"], list(FIGURES))
    means["seconds"] = summarise(table).groupby(["spc", "defense"])["seconds"].median()
    for row in ranking(table).sort_values(["spc", "der"], ascending=[True, False]).itertuples():
        mean = means.loc[row.spc, row.defense]
        figures = " | ".join(f"{100 * mean[name]:.1f}" for name in FIGURES)
        knows = "yes" if row.defense in KNOWS_TRIGGER else "no"
        print(f"| {row.spc} | {row.defense} | {knows} | {figures} | {row.der:.3f} ({row.der_low:.3f}..{row.der_high:.3f}) | "
              f"{row.rank:.1f} ({row.rank_low:.1f}..{row.rank_high:.1f}) | {mean.seconds:.1f} |")


def by_attack(table):
    """ACC / ASR / RA of each attack: given, after both recipes, and fine-tuned alone; mean and half range over seeds."""
    print("| attack, spc | given | `paper`, pruned | `paper` | `ft_unlearn` | `verified`, pruned | `verified` | `ft_distilled` | filters |\n"
          "|---|---|---|---|---|---|---|---|---|")
    for (attack, spc), group in table.groupby(["attack", "spc"], sort=False):
        paper, verified, alone, distilled = (group[group.defense == name] for name in
                                             ("grad_prune", "grad_prune_verified", "ft_unlearn", "ft_distilled"))
        cells = [cell(part, form) for part, form in ((paper, "{}_before"), (paper, "pruned_{}"), (paper, "{}"),
                                                     (alone, "{}"), (verified, "pruned_{}"), (verified, "{}"), (distilled, "{}"))]
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
    """A table for each spc and group: mean ACC / ASR / RA of every defence on every model, and the mean DER where it met all.

    Where fewer seeds were run than elsewhere, their number stands behind the figures.
    """
    most = table["seed"].nunique()
    for (spc, known), rows in table.groupby(["spc", table["defense"].isin(KNOWS_TRIGGER)]):
        models = list(dict.fromkeys(table["attack"]))
        means = rows.groupby(["defense", "attack"])[[*FIGURES, "der"]].mean()
        draws = rows.groupby(["defense", "attack"])["seed"].nunique()
        ders = means["der"].unstack().reindex(columns=models)
        print(f"\n| spc {spc}, trigger {'known' if known else 'unknown'} | {' | '.join(models)} | mean DER |\n|---{'|---' * len(models)}|---|")
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
    by_defense(table)
    print()
    by_attack(table)
    print()
    for name, told in departures(dict.fromkeys(table["attack"])).items():
        print(f"{name}: {told}")
    for one, other in PAIRS:
        for _, pair in gain(table, one, other).iterrows():
            print(f"spc {pair['spc']:.0f}: the DER of {one} less that of {other} is {100 * pair['gain']:+.2f} points "
                  f"({pair['attacks']:.0f} attacks, {pair['models']:.0f} models, {pair['blocks']:.0f} blocks); they {significance(pair)}")
    print(f"{len(table)} cells, {(table.error != '').sum()} failed, {table.cell_seconds.sum() / 3600:.2f} thread-hours")


if __name__ == "__main__":
    main()
