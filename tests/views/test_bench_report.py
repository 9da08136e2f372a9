"""The figures and the page of a bench: they tell what the table holds, can be read, and survive any table."""

import base64
import re

import numpy as np
import pandas as pd
import pytest
from conftest import Page, assert_readable, bench, fail, holds, refuses, shown

from gradprune.base.errors import InputError
from gradprune.bench import gain, ranking, significance, summarise
from gradprune.views import write_bench_report
from gradprune.views.figures import bench_plots

DEFENSES = ("grad_prune", "ft_unlearn", "ft", "clp")
HOSTILE = "<script>alert(1)</script>"


TABLE = fail(bench(), attack="sig", defense="clp", spc=2, seed=1)
SHORT = bench(spcs=(10,))
LARGE = fail(bench([f"attack_of_name_{i}" for i in range(10)], [f"defence_of_name_{i}" for i in range(12)], (2, 10, 50)),
             defense="defence_of_name_7")
TABLES = {
    "usual": TABLE, "large": LARGE, "one of all": bench(["sig"], ["ft"], (2,), 1),
    "one attack": bench(["sig"]), "one seed": bench(seeds=1), "a defence failed": fail(TABLE, defense="ft"),
    "an spc failed": fail(TABLE, spc=2), "an attack failed": fail(TABLE, attack="sig"),
    "unfinished": TABLE.iloc[:-7], "no common cell": TABLE.iloc[[0, 7]],
    "hostile": bench([HOSTILE, "$\\frac{1}{0$ & co", "long " * 12], ["ft", 'a" onerror="x']),
}


def figures(table: pd.DataFrame) -> dict:
    """Every figure that the table allows, and the reasons of those that it does not."""
    drawn = {"costs": lambda: bench_plots.costs(table), "by_spc": lambda: bench_plots.by_spc(table, "asr")}
    for plot in (bench_plots.der_heatmap, bench_plots.acc_against_asr, bench_plots.mean_ranks):
        drawn[plot.__name__] = lambda plot=plot: plot(table, table["spc"].max())
    found = {}
    for name, draw in drawn.items():
        try:
            found[name] = draw()
        except InputError as error:
            found[name] = str(error)
    return found


def some(names, quick):
    """All names; those that are not quick are slow."""
    return pytest.mark.parametrize("name", [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names])


@some(TABLES, {"usual", "hostile"})
def test_figures_can_be_read(name):
    found = figures(TABLES[name])
    pictures = {key: picture for key, picture in found.items() if not isinstance(picture, str)}
    assert len(pictures) == {"one of all": 4, "no common cell": 3, "an spc failed": 4}.get(name, 5), found
    for picture in pictures.values():
        assert 200 <= picture.figure.get_figwidth() * 100 <= 900
        assert "nan" not in picture.summary
        assert_readable(picture)


def test_heat_map_is_sorted_and_writes_every_value():
    picture = bench_plots.der_heatmap(fail(TABLE, attack="badnets", defense="ft", spc=2), 2)
    written, best = shown(picture), ranking(TABLE[TABLE["spc"] == 2])
    labels = [label.get_text() for label in picture.figure.axes[0].get_yticklabels()]
    assert labels == list(best.sort_values("der", ascending=False)["defense"]) == list(DEFENSES)
    for row in summarise(TABLE).query("spc == 2 and not (attack == 'badnets' and defense == 'ft')").itertuples():
        assert f"{100 * row.der:.1f}" + "*" * row.failed in written
    assert written.count("failed") == 1
    assert "* in 1 cell some seeds failed" in picture.summary


def test_every_defence_has_a_look_of_its_own():
    looks = bench_plots.looks(LARGE)
    assert len({look["color"] for look in looks.values()}) == len({look["marker"] for look in looks.values()}) == 12
    more = bench_plots.looks(pd.DataFrame({"defense": [f"d{i}" for i in range(144)]})).values()
    assert len({tuple(look.values()) for look in more}) == 144


def test_scatter_shows_means_and_the_given_models():
    ax = bench_plots.acc_against_asr(TABLE, 2).figure.axes[0]
    *points, given, _ = [np.asarray(group.get_offsets()) for group in ax.collections]
    means = summarise(TABLE).query("spc == 2 and defense == 'grad_prune'")
    assert points[0] == pytest.approx(np.c_[means["asr"], 1 - means["acc"]])
    assert given == pytest.approx(np.array([[0.98, 0.01 + number / 500] for number in range(3)]))


def test_figures_refuse_what_they_cannot_show():
    refuses("no cell at spc 7; known: 2, 10", bench_plots.der_heatmap, TABLE, 7)
    refuses("at least two values of spc, got 2", bench_plots.by_spc, bench(spcs=(2,)))
    refuses("metric must be", bench_plots.by_spc, TABLE, "seconds")
    refuses("no common ranking", bench_plots.mean_ranks, TABLES["no common cell"], 2)


# ---- the page


def page(folder, table, **facts) -> Page:
    text = write_bench_report(folder, table, facts).read_text("utf-8")
    assert not re.search(r"[.,;:)]<b>", text), "a space is missing between two sentences"
    return Page(text)


@some(sorted(set(TABLES) - {"large", "one attack", "one seed"}), {"hostile", "no common cell"})
def test_a_page_for_every_table(name, tmp_path):
    found = page(tmp_path / "out", TABLES[name])
    embedded = {base64.b64decode(attrs["src"].split(",")[1]) for tag, attrs in found.tags if tag == "img"}
    assert embedded == {file.read_bytes() for file in (tmp_path / "out").glob("*.png")}
    found.assert_safe()
    assert "nan" not in found.words.lower().split()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "summary.csv"),
                                  summarise(TABLES[name].sort_values("spc", kind="stable")), check_dtype=False)


def test_the_page_tells_the_outcome(tmp_path):
    words = page(tmp_path, TABLE, command="gradprune bench --spc 2,10", data="signs").words
    assert "4 defences, 3 attacks, 3 seeds: 72 cells, 1 failed." in words
    for spc in (2, 10):
        first = ranking(TABLE).query("spc == @spc").iloc[0]
        assert first["defense"] == "grad_prune"
        second = gain(TABLE, "grad_prune", "ft_unlearn").query("spc == @spc").iloc[0]
        assert (f"With {spc} images per class among the defences that know the trigger grad_prune has the highest mean DER: "
                f"{first['der']:.1%} (95% interval {first['der_low']:.1%} to {first['der_high']:.1%}). It and ft_unlearn, the "
                f"second, {significance(second)}. Among those that do not ft has the highest mean DER: ") in words
        pair = gain(TABLE, "grad_prune", "ft_unlearn").set_index("spc").loc[spc]
        assert f"the DER of grad_prune is {100 * pair['gain']:.1f} points above that of ft_unlearn" in words
    assert "defence knows the trigger badnets blended sig as given" in words
    assert "grad_prune yes ACC ASR RA" in words and "clp no ACC ASR RA" in words
    row = summarise(TABLE).iloc[0]
    assert holds(words, f"{100 * row.acc:.1f} ± {100 * row.acc_half_range:.1f}", "1 of 3 failed",
                 "sig clp 2 1 ran out of memory")
    for text in ("gradprune bench --spc 2,10", "data signs", "torch 2.9.0", "machine x86_64, 2 cores", "Clean accuracy"):
        assert text in words


def test_the_page_is_honest_where_grad_prune_is_not_first(tmp_path):
    """Also: an interval that holds 0, and one attack, which has no interval."""
    swapped = SHORT.assign(defense=SHORT["defense"].map(dict(zip(DEFENSES, DEFENSES[::-1], strict=True))))
    words = page(tmp_path / "swapped", swapped).words
    assert "among the defences that know the trigger ft_unlearn has the highest mean DER" in words
    assert "grad_prune is in place 2 of 2" in words and "Among those that do not clp has the highest" in words
    assert "points below that of ft_unlearn" in words
    equal = SHORT.assign(der=SHORT["der"].where(SHORT["defense"] != "ft_unlearn", SHORT["der"].shift(3)))
    assert "without pruning; the two do not differ significantly (95% interval +0.0 to +0.0 points)" in page(tmp_path / "equal", equal).words
    one = page(tmp_path / "one", SHORT[:12]).words
    assert "the two met one attack alone, so nothing tells whether they differ significantly." in one
    alone = page(tmp_path / "alone", SHORT[SHORT["defense"].isin(["ft", "clp"])]).words
    assert "With 10 images per class ft has the highest mean DER" in alone
    renamed = SHORT["defense"].replace({"grad_prune": "grad_prune_verified", "ft_unlearn": "ft_distilled"})
    both = page(tmp_path / "both", pd.concat([SHORT, SHORT.assign(defense=renamed).query("defense not in @DEFENSES")])).words
    assert re.search("DER of grad_prune is .* that of ft_unlearn, .* And the DER of grad_prune_verified is .* that of ft_distilled, the same", both)


def test_a_bench_that_is_not_whole_is_judged_where_all_were_met(tmp_path):
    """The last attack beats everyone, and clp has not met it: it must not win for that."""
    last = SHORT["attack"].iloc[-1]
    rates = SHORT["defense"].map({"clp": 0.3, "grad_prune": 0.0}).fillna(0.6)
    cells = SHORT.assign(acc=0.99, asr=rates.mask(SHORT["attack"] == last, 0.95))
    words = page(tmp_path, cells[(cells["defense"] != "clp") | (cells["attack"] != last)]).words
    assert "With 10 images per class (over the 2 of 3 attacked models on which every defence was run) " in words
    assert "Mean DER at 10 images per class over 2 attacks: " in words
    assert "grad_prune is nearest to the ideal corner on average over 2 attacks: ACC 99.0% and ASR 0.0%" in words
    assert "every defence was run" not in page(tmp_path / "whole", cells).words


def test_failures_say_why(tmp_path):
    words = page(tmp_path, fail(SHORT, error=f"KeyError: {HOSTILE}", attack="sig", defense="ft")).words
    assert f"failed:KeyError:{HOSTILE}" in words.replace(" ", "")  # the cell is broken into short lines
    assert f"sig ft 10 0, 1, 2 KeyError: {HOSTILE}" in words
    assert "no attack and seed has results for every defence" in page(tmp_path, TABLES["no common cell"]).words
    apart = SHORT[(SHORT["defense"] == "clp") == (SHORT["attack"] == "sig")]
    assert "no attack has results for every defence, so none is nearest" in bench_plots.acc_against_asr(apart, 10).summary


def test_published_rows_stand_apart(tmp_path):
    words = page(tmp_path / "both", SHORT).words
    assert holds(words, "Not directly comparable.", "badnets, ft 90.0 / 1.5 / 89.4 98.7 / 5.1 / 94.0")
    assert not re.search("badnets, (grad_prune|ft_unlearn)", words)
    assert "Published figures" not in page(tmp_path / "none", bench(["own"], ["ft"], (2,), 1)).words


def test_bad_tables_and_folders_are_refused_before_any_work(tmp_path):
    refuses("lacks the columns der", write_bench_report, tmp_path / "a", TABLE.drop(columns="der"), {})
    refuses("all 72 cells have failed", write_bench_report, tmp_path / "a", fail(TABLE, gradprune="0.1.0"), {})
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("in the way")
    refuses("Cannot write", write_bench_report, tmp_path / "file", TABLE, {})


def test_models_of_other_training_seeds_are_one_attack(tmp_path):
    words = page(tmp_path, bench(("badnets", "seeds/badnets_1", "sig"), spcs=(2,))).words
    assert "4 defences, 2 attacks (3 attacked models), 3 seeds: 36 cells, none failed." in words
    assert "Mean DER at 2 images per class over 2 attacks: " in words
