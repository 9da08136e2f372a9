"""The result tables of README and docs, from the committed rows.

    python tests/benchmarks/readme_tables.py            # prints those of data/results/signs
    python tests/benchmarks/readme_tables.py --write    # writes all tables into the pages that hold them

A page says which table it holds: `<!-- table NAME FOLDER -->` before it and `<!-- end of table -->` after it, with a name in
`TABLES` and a folder of data/results, a file there, or folders joined by "+". A test compares every table with its rows.
"""

import contextlib
import io
import re
import sys
from pathlib import Path

import pandas as pd

from gradprune.bench import gain, ranking, read_results, significance, summarise
from gradprune.bench.summary import checked, even_means, t_quantile
from gradprune.cli.bench import departures
from gradprune.defenses import KNOWS_TRIGGER

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "data/results"
PAGES = ("README.md", "docs/results.md", "docs/decisions/unknown_trigger.md", "data/results/ablation/README.md")
FIGURES = ("acc", "asr", "ra")


PAIRS = (("grad_prune", "ft_unlearn"), ("grad_prune_verified", "ft_distilled"), ("grad_prune_verified", "ft_unlearn"),
         ("grad_prune_verified", "grad_prune"), ("ft_distilled", "ft_unlearn"), ("ft_distilled", "grad_prune"))


def slashed(row, before=""):
    """ACC / ASR / RA of a row, in per cent; `before` stands before the names of its columns."""
    return " / ".join(f"{100 * row[before + key]:.1f}" for key in FIGURES)


def overview(table):
    """Two tables, of the defences that know the trigger and of those that do not: see `group`."""
    for title, known in (("Defences that know the trigger", True), ("Defences that do not know the trigger", False)):
        rows = table[table["defense"].isin(KNOWS_TRIGGER) == known]
        if len(rows):
            attacks = rows.groupby("spc")["attack"].nunique()
            count = " and ".join(dict.fromkeys(map(str, attacks)))
            print(f"{title} ({count} attacks; bold: the highest DER of the table):\n")
            group(rows)
            print()


def group(table):
    """One row a defence: ACC / ASR / RA and DER at each spc, by mean DER over all of them."""
    means = even_means(checked(table), ["spc", "defense"], [*FIGURES, "der"])
    draws = table.groupby(["spc", "defense"])["seed"].nunique()
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
            few = f" ({draws[spc, name]})" * int(draws[spc, name] < draws.max())
            cells += [slashed(mean), f"{bold}{mean['der']:.3f}{bold}{few}"]
        print(f"| {name} | {' | '.join(cells)} |")


def headline(table):
    """What each step brings at the smallest size, over the sign models that all of these have met; not folded."""
    names = {"ft_unlearn": "fine-tuned as in the paper, nothing pruned", "grad_prune": "pruned and fine-tuned, the paper's recipe",
             "ft_distilled": "our fine-tuning, nothing pruned", "grad_prune_verified": "our recipe: prunes where held-out images suggest a gain"}
    table = checked(table[(table["spc"] == table["spc"].min()) & table["defense"].isin(names)])
    table = table[table.groupby("seed")["defense"].transform("nunique") == len(names)]  # the draws that all have met
    means = even_means(table, ["defense"], [*FIGURES, "acc_before", "asr_before", "ra_before"])
    print("| ten attacked sign models, two images of each class to learn from | ACC | ASR | RA |\n|---|---|---|---|")
    rows = {"as given": [means.iloc[0][f"{key}_before"] for key in FIGURES]}
    rows |= {words: [means.loc[name, key] for key in FIGURES] for name, words in names.items()}
    for words, figures in rows.items():
        print(f"| {words} | " + " | ".join(f"{100 * figure:.1f} %" for figure in figures) + " |")


def pairs(table):
    """Paired differences of DER with their intervals, one line a pair and size; a star where Holm's test holds."""
    print("| pair | spc | difference of DER, points (95 % interval) | attacks, models, blocks | |\n|---|---|---|---|---|")
    rows = [(both, pair) for both in PAIRS for _, pair in gain(table, *both).iterrows()]
    clear = {(spc, both) for spc in table["spc"].unique() for both in holm({both: pair for both, pair in rows if pair["spc"] == spc})}
    for (one, other), pair in rows:
        words = significance(pair).split(" (")[0] + " \\*" * ((pair["spc"], (one, other)) in clear)
        print(f"| {one} minus {other} | {pair['spc']:.0f} | {100 * pair['gain']:+.2f} ({100 * pair['gain_low']:+.2f} to "
              f"{100 * pair['gain_high']:+.2f}) | {pair['attacks']:.0f}, {pair['models']:.0f}, {pair['blocks']:.0f} | {words} |")



def leads(table):
    """`repair` minus every other defence that does not know the trigger: `gain` at each size, a star where Holm's test holds."""
    others = sorted(set(table["defense"]) - set(KNOWS_TRIGGER) - {"repair"})
    sizes = sorted(set(table.loc[table["defense"] == "repair", "spc"]))
    told, mean = {}, {}
    for spc in sizes:
        found = {name: rows.iloc[0] for name in others if len(rows := gain(table[table["spc"] == spc], "repair", name))}
        mean[spc] = {name: pair["gain"] for name, pair in found.items()}
        clear = holm(found)
        told[spc] = {name: f"{100 * pair['gain']:+.1f} ({100 * pair['gain_low']:+.1f} to {100 * pair['gain_high']:+.1f})"
                           + " \\*" * (name in clear) for name, pair in found.items()}
    print(f"| `repair` minus | {' | '.join(f'spc {spc}' for spc in sizes)} |\n|---{'|---' * len(sizes)}|")
    for name in pd.DataFrame(mean).mean(axis=1).sort_values().index:
        print(f"| {name} | {' | '.join(told[spc].get(name, 'not run') for spc in sizes)} |")


def holm(found):
    """The names whose difference is significant at 5 % over all of `found` (rows of `gain`): Holm (1979), step by step."""
    def strength(pair):  # an interval may be cut off at -1 or 1, on one side
        reach = max(pair["gain"] - pair["gain_low"], pair["gain_high"] - pair["gain"])
        return abs(pair["gain"]) / reach * t_quantile(int(pair["attacks"]) - 1) if pair["gain"] and reach > 0 else 0.0

    order = sorted(found, key=lambda name: -strength(found[name]))
    for place, name in enumerate(order):
        if strength(found[name]) <= t_quantile(int(found[name]["attacks"]) - 1, 1 - 0.05 / (len(order) - place)):
            return set(order[:place])
    return set(order)


def peers(table):
    """Third-party models: ACC / ASR / RA of each stage, mean over the draws."""
    stages = {"pruned": "`verified`, pruned", "verified": "`verified`", "ft_distilled": "`ft_distilled`", "ft_unlearn": "`ft_unlearn`"}
    means = table.groupby(["model", "spc", "stage"])[list(FIGURES)].mean()
    table = table[table["stage"] != "repair"]  # which does not know the trigger: told in the text
    draws = table.groupby(["model", "spc"])["seed"].nunique()
    print(f"| model, images per class (draws) | given | {' | '.join(stages.values())} |\n|---|---{'|---' * len(stages)}|")
    for (model, spc), count in draws.items():
        figures = [slashed(means.loc[(model, spc, stage)]) for stage in ("before", *stages)]
        print(f"| {model}, {spc} ({count}) | {' | '.join(figures)} |")


def paper_network(table):
    """The paper's own network: ACC / ASR / RA after each stage, and seconds with the machine's load (busy threads)."""
    print("| attack, spc | defence | given | pruned | final | filters removed | seconds (load) |\n|---|---|---|---|---|---|---|")
    for (attack, spc, defense), rows in table.groupby(["attack", "spc", "defense"], sort=False):
        stages = rows.set_index("stage")
        told = [slashed(stages.loc[stage]) if stage in stages.index else ""
                for stage in ("given", "pruned", "final")]
        last = stages.loc["final"]
        print(f"| {attack}, {spc} | {defense} | {' | '.join(told)} | {last['filters_removed']:.0f} | "
              f"{last['seconds']:.0f} ({last['load']:.0f}) |")


def relearned(table):
    """ASR after fine-tuning on five poisoned samples, mean over the draws and range; one column per complete model."""
    table = table[table["k"] == 5]
    names = [name for name, rows in table.groupby("model", sort=False) if len(rows) == len(table[["attack", "draw"]].drop_duplicates())]
    print(f"| attack | {' | '.join(names)} |\n|{'---|' * (1 + len(names))}")
    asr = 100 * table.pivot(index=["attack", "draw"], columns="model", values="asr")
    for attack, draws in asr.groupby("attack"):
        told = [f"{draws[name].mean():.1f} ({draws[name].min():.1f} to {draws[name].max():.1f})" for name in names]
        print(f"| {attack} | {' | '.join(told)} |")


def ways(table):
    """Tuning models: what `repair` could know of each, and ACC / ASR / RA after each of its two ways."""
    told = {way: [slashed(row, f"{way} ") for _, row in table.iterrows()]
            for way in ("given", "consistency", "unlearned")}
    print("| tuning model | altered answers | kept on trial | suspect | given | consistency | suspect unlearned |\n|---|---|---|---|---|---|---|")
    for place, row in enumerate(table.itertuples()):
        unlearned = "" if row.suspect == "none" else told["unlearned"][place]
        print(f"| {row.victim.removesuffix('_11')} | {row.altered:.0%} | {row.kept:.0%} | {row.suspect} | {told['given'][place]} | "
              f"{told['consistency'][place]} | {unlearned} |")


def driven(table):
    """Tuning models: how far driven filters reach the target (of a clean model: the first class), over the next class."""
    pushes = (5, 10, 20)
    print(f"| model | {' | '.join(f'push {push}' for push in pushes)} |\n|---|---|---|---|")
    for row in table.sort_values("attacked", ascending=False, kind="stable").to_dict("records"):
        told = [f"{row[f'multiple {push}']:.2f} ({row[f'rank {push}']:.0f})" for push in pushes]
        print(f"| {row['victim']} | {' | '.join(told)} |")


def strengths(table):
    """Tuning models: ACC / ASR / RA as given and after one round of unlearning, by strength of the triggers and steps."""
    runs = {(0, 0): "given", **{(strength, steps): f"{'as found' if strength == 1 else f'1 to {strength}'}, {steps} steps"
                                for steps in (112, 224) for strength in (1, 2.5)}}
    print(f"| tuning model | {' | '.join(runs.values())} |\n|{'---|' * (1 + len(runs))}")
    for name, rows in table[table["back"] == 0].groupby("victim", sort=False):
        told = {(row["strength"], row["steps"]): slashed(row) for row in rows.to_dict("records")}
        print(f"| {name} | {' | '.join(told.get(run, '') for run in runs)} |")


def backs(table):
    """Tuning models: ACC / ASR / RA after one round of unlearning, by the share of the way back to the given weights."""
    settings = ["strength", "steps"] if "strength" in table else ["barred", "restored"]
    shares = sorted(set(table["back"]))
    print(f"| tuning model | given | {' | '.join(f'back {share:g}' for share in shares)} |\n|{'---|' * (2 + len(shares))}")
    for name, rows in table.groupby("victim", sort=False):
        stepped = rows[rows.groupby(settings)["back"].transform("nunique") > 1].sort_values("back")
        told = [slashed(row) for row in [*rows[rows[settings[0]] == 0].to_dict("records"), *stepped.to_dict("records")]]
        print(f"| {name} | {' | '.join(told)} |")


def weights(table):
    """Tuning models: ACC / ASR / RA after one round of unlearning, by the weights of KL_suspect and KL_others."""
    columns = [rows.set_index(["barred", "restored"]) for _, rows in table[table["back"] == 0].groupby("victim", sort=False)]
    print(f"| weights | {' | '.join(table['victim'].unique())} |\n|{'---|' * (1 + len(columns))}")
    for barred, restored in columns[0].index:
        title = f"{barred:g} and {restored:g}" if barred else "given"
        print(f"| {title} | {' | '.join(slashed(column.loc[barred, restored]) for column in columns)} |")


def ablated(table):
    """Tuning models: mean ACC / ASR / RA of each choice, and how its DER differs from that of the recipe as it is."""
    table = table.assign(der=50 * (table["acc"] - table["asr"]))  # up to a constant of the victim
    runs = {name: rows.set_index(["victim", "seed"]) for name, rows in table.groupby("choice", sort=False)}
    print(f"| choice | ACC / ASR / RA | DER minus `base` | positive | filters | seconds |\n|{'---|' * 6}")
    for name, rows in runs.items():
        apart = rows["der"] - runs["base"]["der"]
        told = f"{apart.mean():+.2f} ± {apart.std():.2f} | {(apart > 0).sum()} of {len(apart)}" if name != "base" else " | "
        print(f"| {name} | {slashed(rows[list(FIGURES)].mean())} | {told} | {rows['filters'].mean():.1f} | {rows['cpu_seconds'].mean():.0f} |")


def lengths(table):
    """Tuning models: ACC / ASR / RA after `repair` by consistency, by the number of optimiser steps."""
    table = table[table["search_steps"].isin((0, 6)) & (table["spc"] == 10)]
    by_steps(table[table.groupby("victim")["steps"].transform("nunique") > 2], "steps", "optimiser steps")


def searches(table):
    """Tuning models: ACC / ASR / RA after `repair` by consistency, by the steps of each search."""
    by_steps(table[table["steps"].isin((0, 300))], "search_steps", "a search")


def by_steps(table, column, title):
    """A row for each model and size, and means over the models for every number of steps in `column` that all have had."""
    counts = sorted(set(table[column]) - {0})
    print(f"| images, model | given | {' | '.join(f'{title}: {count:.0f}' for count in counts)} |\n|{'---|' * (2 + len(counts))}")
    for spc, some in table.groupby("spc"):
        for name, rows in some.groupby("victim", sort=False):
            told = {row[column]: slashed(row) for row in rows.to_dict("records")}
            print(f"| {spc}, {name} | {' | '.join(told.get(count, '') for count in (0, *counts))} |")
        runs = {count: rows for count, rows in some.groupby(column) if len(rows) == some["victim"].nunique()}
        told = {count: f"{slashed(rows[list(FIGURES)].mean())}, {rows['cpu_seconds'].mean():.0f} s" for count, rows in runs.items()}
        print(f"| {spc}, mean | | {' | '.join(told.get(count, '') for count in counts)} |")


def by_defense(table):
    """Means over attacks and seeds, every attack weighing the same; rank in its group and DER with their 95 % interval."""
    print("| spc | trigger | defence | ACC | ASR | RA | DER (95 % interval) | mean rank (interval) | seconds |\n|---|---|---|---|---|---|---|---|---|")
    means = even_means(checked(table), ["spc", "defense"], list(FIGURES))
    means["seconds"] = summarise(table).groupby(["spc", "defense"])["seconds"].median()
    for spc in sorted(set(table["spc"])):
        for known in ("known", "unknown"):
            rows = table[(table["spc"] == spc) & (table["defense"].isin(KNOWS_TRIGGER) == (known == "known"))]
            for row in ranking(rows).sort_values("der", ascending=False).itertuples() if len(rows) else ():
                mean = means.loc[spc, row.defense]
                figures = " | ".join(f"{100 * mean[name]:.1f}" for name in FIGURES)
                print(f"| {spc} | {known} | {row.defense} | {figures} | {row.der:.3f} ({row.der_low:.3f}..{row.der_high:.3f}) | "
                      f"{row.rank:.1f} ({row.rank_low:.1f}..{row.rank_high:.1f}) | {mean.seconds:.0f} |")


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
    spread = len(part) > 1 and "before" not in form  # one draw has none
    return " / ".join(f"{value.mean():.1f}" + f" ± {(value.max() - value.min()) / 2:.1f}" * spread for value in values)


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
            cells = [slashed(means.loc[name, model]) + f" ({draws[name, model]})" * int(draws[name, model] < most)
                     if (name, model) in means.index else "not run" for model in models]
            print(f"| {name} | {' | '.join(cells)} | {ders.loc[name].mean(skipna=False):.3f} |".replace("nan", ""))


def whole(table):
    """The attacks that every defence of a group has met, for each size; an unfinished bench has others too.

    The groups are the two of `overview`.
    """
    groups = [table["spc"], table["defense"].isin(KNOWS_TRIGGER)]
    met = table.groupby([*groups, "attack"])["defense"].transform("nunique")
    full = table.groupby(groups)["defense"].transform("nunique")
    for attack, spc in table[met < full][["attack", "spc"]].drop_duplicates().itertuples(index=False):
        print(f"left out, not finished: {attack}, spc {spc}", file=sys.stderr)
    return table[met == full]


TABLES = {one.__name__: one for one in (headline, overview, by_defense, by_attack, by_model, pairs, leads, peers, paper_network,
                                     relearned, ways, driven, strengths, backs, weights, ablated, lengths, searches)}
UNFOLDED = ("by_model",)  # tables that show what was not run


def made(name, source):
    """The text of a table, from a CSV file in data/results or a bench's folder there, or several joined by "+"."""
    file = source.endswith(".csv")
    table = (pd.read_csv(RESULTS / source) if file else
             pd.concat([read_results(RESULTS / folder) for folder in source.split("+")], ignore_index=True))
    with contextlib.redirect_stdout(io.StringIO()) as text:
        TABLES[name](table if file or name in UNFOLDED else whole(table))
    return text.getvalue().strip()


def renewed(text):
    """A page's text with each of its tables made anew."""
    return re.sub(r"(<!-- table (\S+) (\S+) -->\n).*?(<!-- end of table -->)",
                  lambda found: f"{found[1]}{made(found[2], found[3])}\n{found[4]}", text, flags=re.S)


def main():
    if "--write" in sys.argv:
        for page in PAGES:
            path = ROOT / page
            path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
        return
    if "--by-model" in sys.argv:
        sys.argv.remove("--by-model")
        return by_model(read_results(sys.argv[1]))
    table = whole(read_results(sys.argv[1] if len(sys.argv) > 1 else RESULTS / "signs"))
    for one in (overview, by_defense, by_attack, pairs):
        one(table)
        print()
    for name, told in departures(dict.fromkeys(table["attack"])).items():
        print(f"{name}: {told}")
    print(f"{len(table)} cells, {(table.error != '').sum()} failed, {table.cell_seconds.sum() / 3600:.2f} thread-hours")


if __name__ == "__main__":
    main()
