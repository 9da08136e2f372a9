"""The comparer of defences: its numbers are counted by hand, and it is honest about seeds and lost cells."""


import pandas as pd
import pytest
from conftest import bench, fail, family, holds, put, refuses, row_of, says, shown
from ipywidgets.widgets.widget import _instances

from gradprune.views import DefenceComparer
from gradprune.views.figures.bench_plots import looks
from gradprune.views.figures.comparison import HIGH_IS_GOOD, SORTS, compare, defences_compared, draw_comparison

ATTACKS = "badnets", "blended", "sig", "sig_clean_label", "low_frequency", "bpp", "wanet", "input_aware", "label_consistent", "trojannn"
DEFENSES = "grad_prune", "ft", "ft_unlearn", "fine_pruning", "clp", "anp", "nad", "i_bau", "rnp", "ft_sam", "neural_cleanse"


def whole() -> pd.DataFrame:
    """clp fails on wanet, rnp on one seed of sig."""
    every = bench(ATTACKS, DEFENSES, (2, 10, 50))
    return fail(fail(every, "ValueError: no BatchNorm", attack="wanet", defense="clp"), attack="sig", defense="rnp", seed=1)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return whole()


@pytest.fixture
def panel(make, table, monkeypatch):
    monkeypatch.setenv("GRADPRUNE_STRICT", "1")
    return make(DefenceComparer, table)


# ---- the numbers


def test_mean_and_spread_by_hand():
    rows = [row_of(seed=0, acc=0.9), row_of(seed=1, acc=0.8), row_of(seed=2, acc=0.88), row_of("sig", seed=0, acc=0.5),
            row_of("sig", seed=1, acc=0.6), row_of("sig", seed=2, acc=0.7), row_of(spc=10, acc=0.1)]
    one = compare(pd.DataFrame(rows), "badnets", 2, "acc")
    assert (one.lines.loc["ft", "mean"], one.lines.loc["ft", "spread"]) == pytest.approx((0.86, 0.05))
    assert (one.attacks, one.seeds, one.cells, one.given) == (1, 3, 3, pytest.approx(0.95))
    every = compare(pd.DataFrame(rows), None, 2, "acc").lines.loc["ft"]
    assert every["values"] == pytest.approx([0.7, 0.7, 0.79])  # a seed's value is the mean over attacks
    assert (every["mean"], every["spread"]) == pytest.approx((0.73, 0.045))


@pytest.mark.parametrize(("metric", "first", "given"), [("acc", "b", 0.95), ("asr", "a", 0.99), ("ra", "b", 0.01),
                                                        ("der", "b", 0.5), ("seconds", "a", None)])
def test_the_best_is_on_top(metric, first, given):
    rows = [row_of(defense="a", acc=0.5, asr=0.0, ra=0.1, seconds=1), row_of(defense="b", acc=0.9, asr=0.1, ra=0.8, seconds=2)]
    found = compare(pd.DataFrame(rows), metric=metric)
    assert list(found.lines.index) == [first, {"a": "b", "b": "a"}[first]]
    assert found.given == given
    assert f" 1 seed: {first} " in draw_comparison(found).summary


def test_orders():
    rows = [row_of(defense=name, seed=seed, acc=acc) for name, accs in {"b": (0.5, 0.9), "a": (0.4, 0.41), "c": (0.2, 0.4)}.items()
            for seed, acc in enumerate(accs)]
    orders = {sort: "".join(compare(pd.DataFrame(rows), metric="acc", sort=sort).lines.index) for sort in SORTS}
    assert orders == {"best first": "bac", "steadiest first": "acb", "by name": "abc"}


# ---- the sentence


def contest(first: tuple, second: tuple, metric="acc") -> str:
    rows = [row_of(defense=name, seed=seed, **{metric: value}) for name, values in (("one", first), ("two", second))
            for seed, value in enumerate(values)]
    return defences_compared(pd.DataFrame(rows), metric=metric).summary


def test_a_lead_within_the_spreads_is_none():
    close, clear = contest((0.90, 0.94, 0.92), (0.89, 0.93, 0.91)), contest((0.90, 0.92, 0.91), (0.80, 0.82, 0.81))
    assert "one 92.0% ± 2.0, then two 91.0% ± 2.0; the lead of 1.0 points is not larger than both spreads together (4.0" in close
    assert close.endswith("so these seeds do not settle it.")
    assert "one 91.0% ± 1.0, then two 81.0% ± 1.0; the lead of 10.0 points is larger than both spreads together (2.0" in clear
    assert "decide" not in clear
    assert "Lowest mean seconds" in contest((1.0, 2.0, 1.5), (5.0, 6.0, 5.5), "seconds")
    assert "the lead of 4 s is larger than both spreads together (1 s)" in contest((1.0, 2.0, 1.5), (5.0, 6.0, 5.5), "seconds")


def test_fewer_than_three_seeds_decide_nothing():
    assert contest((0.9,), (0.1,)).endswith("one seed has no spread and settles nothing.")
    assert contest((0.9, 0.91), (0.1, 0.11)).endswith("two seeds are too few to settle anything.")


def test_a_low_asr_is_told_with_its_ra():
    told = defences_compared(pd.DataFrame([row_of(asr=0.0, ra=0.2), row_of(defense="nad", asr=0.1)]), metric="asr").summary
    assert "ft 0.0% (its RA 20.0%), then nad 10.0%;" in told


def test_lost_cells_keep_a_defence_out_of_the_contest():
    rows = [row_of(attack, name, seed=seed, acc=acc) for attack in ("badnets", "sig") for seed in (0, 1)
            for name, acc in (("ft", 0.8), ("nad", 0.7), ("clp", 0.95), ("anp", 0.9))]
    table = pd.DataFrame(rows)
    table.loc[(table["defense"] == "clp") & (table["attack"] == "sig"), "error"] = "broke"  # fails on the hard one
    table = table[(table["defense"] != "anp") | (table["seed"] == 0)]  # a seed was never run
    found = compare(table, metric="acc")
    assert found.lines["lost"].to_dict() == {"clp": 2, "anp": 2, "ft": 0, "nad": 0}
    picture = draw_comparison(found)
    assert "2 seeds: ft 80.0% ± 0.0, then nad" in picture.summary
    assert picture.summary.endswith("left out for missing cells: 2 defences, of which clp has a better mean (95.0%) over the "
                                    "cells that it has.")
    alike = table.assign(acc=0.8)
    assert draw_comparison(compare(alike, metric="acc")).summary.endswith("left out for missing cells: 2 defences.")
    texts = [text.get_text() for text in picture.figure.axes[0].texts]
    assert holds(texts, "95.0% ± 0.0 (only 2 of 4 cells)", "90.0% (only 2 of 4 cells)")


def test_defences_without_any_figure_keep_their_row():
    table = pd.DataFrame([row_of(), row_of(defense="clp", error="broke"), row_of("sig", "anp"), row_of("sig", "clp")])
    picture = defences_compared(table, "badnets")
    assert [label.get_text() for label in picture.figure.axes[0].get_yticklabels()] == ["ft", "clp", "anp"]
    assert {"failed", "not run"} <= {text.get_text() for text in picture.figure.axes[0].texts}
    assert says(picture.summary, "Highest", "DER", "badnets", "2 images", "1 seed", "ft 92.0%", "missing cells: 2 defences")
    none = pd.DataFrame([row_of(error="broke"), row_of("sig")])
    assert says(defences_compared(none, "badnets").summary, "DER", "badnets", "2 images", "no defence has all 1 cell")


@pytest.mark.parametrize("metric", HIGH_IS_GOOD)
def test_where_every_cell_failed_or_lacks_the_figure_the_rows_say_so(metric):
    failed = fail(bench(("badnets", "sig"), ("ft", "nad"), (2, 10), 1), attack="badnets")
    picture = defences_compared(failed, "badnets", metric=metric)
    assert shown(picture).count("failed") == 2 and "no defence has all 1 cell" in picture.summary
    lacking = bench(("badnets",), ("ft", "nad"), (2,), 1).assign(seconds=float("nan"), acc_before=float("nan"))
    assert defences_compared(lacking, metric=metric).png()


def test_each_seed_is_a_point_in_the_colour_of_its_defence(table):
    found = compare(table, "sig", 10, "ra")
    ax = draw_comparison(found).figure.axes[0]
    points = [collection for collection in ax.collections if len(collection.get_offsets())]
    assert [len(part.get_offsets()) for part in points] == [len(values) for values in found.lines["values"]]
    for row, (part, (name, line)) in enumerate(zip(points, found.lines.iterrows(), strict=True)):
        assert part.get_offsets().tolist() == [[pytest.approx(value), row] for value in line["values"]]
        assert found.looks[name] == looks(table)[name]


@pytest.mark.parametrize(("settings", "message"), [
    ({"attack": "badnet"}, "Unknown attack 'badnet'; did you mean badnets"), ({"metric": "acb"}, "Unknown metric 'acb'"),
    ({"sort": "worst first"}, "Unknown order"), ({"spc": 3}, "no cell of any attack at spc 3")])
def test_bad_questions_are_told(table, settings, message):
    refuses(message, defences_compared, table, **settings)


# ---- the panel


def test_the_panel_shows_what_the_figure_shows(panel, table):
    assert panel.sentence == defences_compared(table).summary
    assert [control.description for control in family(panel) if getattr(control, "description", "")] == ["Attack", "Images", "Metric", "Order"]
    for control, value in ((panel.attack, "wanet"), (panel.spc, 50), (panel.metric, "seconds"), (panel.sort, "by name"),
                           (panel.metric, "asr"), (panel.attack, "")):
        image = panel.figure.value
        put(control, value)
        state = panel.state()
        expected = defences_compared(table, state.attack or None, state.spc, state.metric, state.sort)
        assert panel.sentence == expected.summary == panel.picture.summary
        assert panel.sentence.split("; the lead")[0] in panel.summary.value.replace("&#x27;", "'")
        assert panel.figure.value != image
    heights = {compare(table, attack).lines.shape[0] for attack in (None, *ATTACKS)}
    assert heights == {len(DEFENSES)}  # the page below never moves
    pd.testing.assert_frame_equal(table, whole())


@pytest.mark.parametrize("rows", [bench(("badnets",), ("ft", "nad"), (2,), 1), fail(bench(("badnets", "wanet"), ("clp", "ft"), (2,), 2), attack="wanet", defense="clp"),
                                  pd.DataFrame([row_of(seed=7)])], ids=["one seed", "a failure", "one cell"])
def test_small_tables(make, rows, monkeypatch):
    monkeypatch.setenv("GRADPRUNE_STRICT", "1")
    panel = make(DefenceComparer, rows)
    for control in (panel.attack, panel.spc, panel.metric, panel.sort):
        for _, value in control.options:
            put(control, value)
            assert panel.sentence


@pytest.mark.parametrize(("given", "message"), [("badnets", "takes a table of cells .*got str"), (pd.DataFrame(), "lacks the columns"),
                                                (pd.DataFrame([row_of(error="broke")]), "all 1 cells have failed")])
def test_what_is_no_table_is_told(given, message):
    alive = set(_instances)
    refuses(message, DefenceComparer, given)
    assert set(_instances) == alive


def test_models_of_one_attack_count_once_in_the_line_of_the_given_model():
    """A defence that changes nothing ends where the models began."""
    rows = [row_of(attack, asr=asr, asr_before=asr) for attack, asr in (("badnets", 0.9), ("seeds/badnets_1", 0.9), ("sig", 0.3))]
    found = compare(pd.DataFrame(rows), metric="asr")
    assert found.given == pytest.approx(found.lines.loc["ft", "mean"]) == pytest.approx(0.6) and found.attacks == 2
