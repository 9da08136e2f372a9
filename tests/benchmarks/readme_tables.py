"""The README's result tables, from the committed bench: python tests/benchmarks/readme_tables.py [FOLDER]."""

import sys
from pathlib import Path

from gradprune.evaluation import gain, ranking, read_results, summarise

FOLDER = Path(__file__).resolve().parents[2] / "data/results/signs"
FIGURES = ("acc", "asr", "ra")


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


def by_attack(table, methods=("grad_prune", "ft_unlearn")):
    """ACC / ASR / RA of each attack: as given, pruned, fine-tuned, and fine-tuned alone; mean and half range over seeds."""
    print("| attack, spc | given | pruned | pruned + fine-tuned | fine-tuned alone | filters |\n|---|---|---|---|---|---|")
    for (attack, spc), group in table.groupby(["attack", "spc"], sort=False):
        one, other = (group[group.defense == name] for name in methods)
        cells = [cell(part, form) for part, form in
                 ((one, "{}_before"), (one, "pruned_{}"), (one, "{}"), (other, "{}"))]
        removed = one.filters_removed
        print(f"| {attack}, spc {spc} | {' | '.join(cells)} | {removed.min():.0f}..{removed.max():.0f} |")


def cell(part, form):
    values = [100 * part[form.format(name)] for name in FIGURES]
    return " / ".join(f"{value.mean():.1f}" + (f" ± {(value.max() - value.min()) / 2:.1f}" if "before" not in form else "")
                      for value in values)


def whole(table):
    """The attacks of each spc that every defence has met with every seed; an unfinished bench has others too."""
    size = table.groupby(["attack", "spc"]).transform("size")
    for attack, spc in table[size < size.max()][["attack", "spc"]].drop_duplicates().itertuples(index=False):
        print(f"left out, not finished: {attack}, spc {spc}", file=sys.stderr)
    return table[size == size.max()]


def main():
    table = whole(read_results(sys.argv[1] if len(sys.argv) > 1 else FOLDER))
    by_defense(table)
    print()
    by_attack(table)
    print()
    print(gain(table, "grad_prune", "ft_unlearn").round(4).to_string(index=False))
    print(f"{len(table)} cells, {(table.error != '').sum()} failed, {table.cell_seconds.sum() / 3600:.2f} thread-hours")


if __name__ == "__main__":
    main()
