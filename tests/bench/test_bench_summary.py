"""The summary of a bench: means, ranks, intervals and published rows, compared with what is counted by hand."""

import numpy as np
import pandas as pd
import pytest
from benchmarks.readme_tables import holm, overview
from conftest import refuses, row_of

from gradprune.attacks import TRIGGERS
from gradprune.bench import attack_kind, gain, published, ranking, significance, summarise
from gradprune.bench.summary import checked, even_means, t_quantile
from gradprune.cli.bench import _means
from gradprune.defenses import DEFENSES, KNOWS_TRIGGER
from gradprune.evaluation import Metrics, der
from gradprune.views.figures.bench_plots import by_spc
from gradprune.views.figures.comparison import compare


def test_summarise_takes_means_and_half_ranges_over_seeds():
    rows = [row_of(seed=0, acc=0.9, asr=0.1, seconds=1.0), row_of(seed=1, acc=0.8, asr=0.2, seconds=9.0),
            row_of(seed=2, acc=0.88, asr=0.3, seconds=3.0), row_of(seed=3, error="out of memory"), row_of(spc=10, seed=0)]
    first, second = (row for _, row in summarise(pd.DataFrame(rows)).iterrows())
    assert (first.acc, first.acc_half_range, first.acc_drop) == pytest.approx((0.86, 0.05, 0.09))
    assert (first.asr, first.asr_half_range) == pytest.approx((0.2, 0.1))
    assert (first.seconds, first.cells, first.failed) == (3.0, 4, 1)
    assert (second.spc, second.cells, second.failed, second.der_half_range) == (10, 1, 0, 0)


def test_a_group_that_failed_is_counted_and_has_no_figures():
    table = pd.DataFrame([row_of(), row_of(defense="clp", error="no BatchNorm"), row_of(defense="anp", asr=np.nan, error=None)])
    found = summarise(table).set_index("defense")
    assert found["failed"].to_dict() == {"ft": 0, "clp": 1, "anp": 1}
    assert found.loc[["clp", "anp"], ["acc", "asr", "ra", "der", "seconds"]].isna().all(axis=None)


def test_ranks_by_hand_with_ties_and_a_failure():
    rows = [row_of(attack, name, asr=asr) for attack, asrs in (("badnets", (0.1, 0.2, 0.2)), ("sig", (0.5, 0.4, 0.3)))
            for name, asr in zip(("ft", "anp", "nad"), asrs, strict=True)]
    rows += [row_of("wanet", "ft"), row_of("wanet", "anp", error="broke"), row_of("wanet", "nad", asr=0.2)]
    found = ranking(pd.DataFrame(rows))
    assert list(found["defense"]) == ["ft", "nad", "anp"]  # 5/3, 5.5/3 and 7.5/3
    assert list(found["rank"]) == pytest.approx([(1 + 3 + 1) / 3, (2.5 + 1 + 2) / 3, (2.5 + 2 + 3) / 3])
    assert list(found["failed"]) == [0, 0, 1]
    assert found["der"].iloc[2] == pytest.approx(np.mean([row_of(asr=0.2)["der"], row_of(asr=0.4)["der"]]))
    by_asr = ranking(pd.DataFrame(rows), "asr")
    assert list(by_asr["rank"]) == pytest.approx(list(found["rank"]))  # one ACC: the order of DER is that of ASR


def test_only_whole_blocks_are_compared():
    rows = [row_of(name, defense, asr=asr) for name, asr in (("badnets", 0.1), ("sig", 0.9)) for defense in ("ft", "anp")]
    whole, part = ranking(pd.DataFrame(rows)), ranking(pd.DataFrame(rows[:3]))
    assert set(whole["blocks"]) == {2}
    assert set(part["blocks"]) == {1}
    assert part["der"].nunique() == 1  # ft's hard cell, which anp did not run, counts for neither
    apart = ranking(pd.DataFrame([rows[0], rows[3]]))
    assert set(apart["blocks"]) == {0}
    assert apart[["rank", "der", "rank_low"]].isna().all(axis=None)


def test_holm_asks_more_of_each_of_several_comparisons():
    def pair(t):  # ten attacks: t is 2.262 at the end of a 95 % interval, and 2.685 of a 97.5 % one
        return {"gain": t, "gain_low": t - 2.262, "gain_high": t + 2.262, "attacks": 10}

    assert holm({"one": pair(2.4), "other": pair(3.0)}) == {"one", "other"}
    assert holm({"one": pair(2.4), "other": pair(2.5)}) == set()  # either would be significant on its own
    assert holm({"one": pair(2.2), "other": pair(-3.0)}) == {"other"}
    assert holm({"one": pair(2.4)}) == {"one"}


def test_the_interval_is_students_over_attacks():
    """Seeds that repeat one another add nothing, and models of one attack count once."""
    asrs = {"badnets": 0.0, "blended": 0.3, "sig": 0.9, "wanet": 0.5}
    one = pd.DataFrame([row_of(attack, asr=asr) for attack, asr in asrs.items()])
    found = ranking(one).iloc[0]
    reach = 3.18244631 * one["der"].std() / 2  # t with 3 degrees of freedom, from a printed table
    assert [found.der_low, found.der_high] == pytest.approx([one["der"].mean() - reach, min(1, one["der"].mean() + reach)])
    many = pd.concat([one.assign(seed=seed) for seed in range(8)])
    models = pd.concat([one, one.assign(attack="seeds/" + one["attack"] + "_1"), one.assign(attack="seeds/" + one["attack"] + "_2")])
    for table, sizes in ((many, (4, 4, 32)), (models, (4, 12, 12))):
        same = ranking(table).iloc[0]
        assert list(same[["der", "der_low", "der_high"]]) == pytest.approx(list(found[["der", "der_low", "der_high"]]))
        assert (same.attacks, same.models, same.blocks) == sizes
    uneven = pd.concat([one, one.iloc[:1].assign(seed=1), one.iloc[:1].assign(attack="badnets_7", seed=4)])
    assert ranking(uneven)["der"].iloc[0] == pytest.approx(one["der"].mean())  # attacks weigh the same


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.70620474), (2, 4.30265273), (3, 3.18244631), (9, 2.26215716), (30, 2.04227246)])
def test_the_quantile_is_that_of_printed_tables(freedom, t):
    assert t_quantile(freedom) == pytest.approx(t, abs=1e-8)


def test_failed_cells_leave_the_weight_of_their_attack():
    """A has one seed left, at 1, B three at 0: the mean is 0.5, not 0.25."""
    rows = [row_of("badnets", seed=seed, error="broke" * (seed > 0)) | ({"der": 1.0} if seed == 0 else {}) for seed in range(3)]
    rows += [row_of("sig", seed=seed) | {"der": 0.0} for seed in range(3)]
    table = pd.DataFrame(rows)
    assert ranking(table)["der"].iloc[0] == 0.5
    both = pd.concat([table, table.assign(defense="other", der=0.0, error="", acc=0.9, asr=0.1, ra=0.8)])
    assert gain(both, "ft", "other")["gain"].iloc[0] == 0.5
    assert even_means(checked(table), ["defense"], ["der"]).loc["ft", "der"] == 0.5
    assert _means(table) == {"ft": 0.5}
    assert compare(table)[3]["mean"].iloc[0] == 0.5
    lines = by_spc(pd.concat([table, table.assign(spc=10)])).figure.axes[0].lines
    assert list(lines[0].get_ydata()) == [0.5, 0.5]


def test_kinds_of_attacks():
    names = {"badnets": "badnets", "seeds/badnets_1": "badnets", "cifar10/low_frequency": "low_frequency",
             "out\\sig_clean_label_12": "sig_clean_label", "_1": "_1"}
    assert {name: attack_kind(name) for name in names} == names


def test_the_difference_in_words():
    told = [significance(pd.Series({"gain_low": low, "gain_high": high})) for low, high in
            ((-0.0045, 0.033), (0.001, 0.02), (-0.02, -0.01), (np.nan, np.nan))]
    assert told == ["do not differ significantly (95% interval -0.4 to +3.3 points)",
                    "differ significantly (95% interval +0.1 to +2.0 points)",
                    "differ significantly (95% interval -2.0 to -1.0 points)",
                    "met one attack alone, so nothing tells whether they differ significantly"]


def test_the_tables_of_the_readme_stand_apart_by_what_is_known(capsys):
    rows = [row_of(attack, name) for attack in ("badnets", "sig") for name in ("ft", "anp", "grad_prune", "ft_distilled")]
    overview(pd.DataFrame(rows))
    known, unknown = capsys.readouterr().out.split("Defences that do not know the trigger")
    assert known.startswith("Defences that know the trigger")
    assert "| grad_prune |" in known and "| ft_distilled |" in known and "| ft |" not in known
    assert "| ft |" in unknown and "| anp |" in unknown and "grad_prune" not in unknown


def test_one_attack_has_no_interval():
    found = ranking(pd.DataFrame([row_of(seed=seed, asr=seed / 9) for seed in range(3)])).iloc[0]
    assert (found["rank"], found.attacks, found.blocks) == (1, 1, 3)
    assert np.isnan([found.rank_low, found.der_low, found.der_high]).all()


def test_gain_is_paired():
    rows = [row_of(attack, defense, seed=seed, acc=acc, asr=0.2 * number)
            for number, attack in enumerate(("badnets", "blended", "sig")) for seed in (0, 1)
            for defense, acc in (("ft", 0.7), ("grad_prune", 0.8))]
    found = gain(pd.DataFrame(rows), "grad_prune", "ft").iloc[0]
    assert (found.gain, found.gain_low, found.gain_high) == pytest.approx((0.05, 0.05, 0.05))
    rows[0] = row_of("badnets", "ft", error="broke")
    assert gain(pd.DataFrame(rows), "grad_prune", "ft")["blocks"].tolist() == [5]
    assert gain(pd.DataFrame(rows), "grad_prune", "nobody").empty


def test_bad_tables_are_told_apart():
    table = pd.DataFrame([row_of(), row_of(seed=1)])
    refuses("lacks the columns spc, der", summarise, table.drop(columns=["spc", "der"]))
    refuses("empty", ranking, table[:0])
    refuses("all 1 cells have failed; the first says: boom", summarise, pd.DataFrame([row_of(error="boom")]))
    refuses("twice: attack=badnets, defense=ft, spc=2, seed=0", summarise, pd.concat([table, table[:1]]))
    refuses("Unknown metric 'derr'", ranking, table, "derr")


def test_published_rows_carry_our_names_and_their_setting(tmp_path, monkeypatch):
    rows = published()
    assert set(rows["attack"]) <= set(TRIGGERS)
    assert set(rows["defense"]) <= set(DEFENSES)
    assert not set(rows["defense"]) & KNOWS_TRIGGER, "the report says that published rows know no trigger"
    assert not rows.isna().any(axis=None)
    assert rows.select_dtypes("number").stack().between(0, 1).all()  # no placeholder such as -1
    assert not rows.duplicated(["dataset", "attack", "defense"]).any()
    assert rows["setting"].str.contains("PreActResNet-18, 10 % poisoned").all()
    for row in rows.itertuples():
        assert row.der == pytest.approx(der(Metrics(row.acc_before, row.asr_before, 0), Metrics(row.acc, row.asr, 0)))
    monkeypatch.setattr("gradprune.bench.reference.data_folder", lambda: tmp_path)
    refuses(r"no table of published figures at .*backdoorbench\.csv", published)
