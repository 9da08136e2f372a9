"""Notebook 04: the search with a loss of one's own, measured scans, the figures, and the explorer of a scan."""

import dataclasses

import pandas as pd
import pytest
import torch
from conftest import holds, refuses, same
from matplotlib.colors import to_hex
from torch import nn

from gradprune.base.paths import data_folder
from gradprune.datasets import draw_defense_images
from gradprune.defenses import exposure
from gradprune.defenses.consistency import CONSISTENCY
from gradprune.defenses.scan import FASTER, SMALL
from gradprune.lessons import checkpoint
from gradprune.lessons.runtime import restart_points as restart
from gradprune.lessons.runtime import scanning
from gradprune.lessons.runtime.check import EXERCISES
from gradprune.models import predict
from gradprune.search import outliers
from gradprune.views import ScanExplorer
from gradprune.views.figures import scan_plots
from gradprune.views.figures.style import METRICS

SCAN = pd.read_csv(data_folder() / "results" / "scan.csv")
SHORT = {"steps": 25, "batch_size": 12, "progress": False}  # as the searches of `found`


@pytest.fixture(autouse=True)
def _strict(monkeypatch):
    monkeypatch.setenv("GRADPRUNE_STRICT", "1")
    monkeypatch.delenv("GRADPRUNE_MODE", raising=False)


@pytest.fixture
def panel(make):
    return make(ScanExplorer)


# ---- exercises


def test_the_exercise_does_what_the_package_does():
    norms = torch.tensor([80.0, 95.0, 12.0, 70.0])
    below = norms < norms.quantile(0.5)
    assert torch.allclose(EXERCISES["anomaly"].reference(norms)[below], torch.tensor(outliers(norms.tolist())[0])[below])


# ---- searches and measured scans


def test_the_cost_decides_between_size_and_success(victim):
    images = draw_defense_images(victim.data.defense, 10).train.floats()
    before = {key: tensor.clone() for key, tensor in victim.model.state_dict().items()}
    loss = EXERCISES["search_loss"].reference
    free, fair, dear = (scanning.own_search(loss, victim.model, images, 1, cost) for cost in (0, 0.1, 10))
    assert free.mask.sum() > fair.mask.sum() > dear.mask.sum()
    hits = [(predict(victim.model, trigger(images)).argmax(1) == 1).float().mean() for trigger in (free, dear)]
    assert hits[0] > 0.95 > hits[1]
    assert not free.mask.requires_grad and free.pattern.min() >= 0 and free.pattern.max() <= 1
    assert same(before, victim.model)


def test_the_mode_says_how_long_a_repair_is(monkeypatch):
    steps = {}
    for mode in ("quick", "ci", "full"):
        monkeypatch.setenv("GRADPRUNE_MODE", mode)
        steps[mode] = {**CONSISTENCY, **scanning.repair_settings()}["steps"]
    assert steps["ci"] < steps["quick"] < steps["full"] == CONSISTENCY["steps"]


def test_the_mode_says_how_long_a_search_is(monkeypatch, victim):
    assert scanning.search_settings() == {"progress": False, **FASTER}
    monkeypatch.setenv("GRADPRUNE_MODE", "ci")
    assert scanning.search_settings()["steps"] < FASTER["steps"]
    monkeypatch.setenv("GRADPRUNE_MODE", "full")
    assert scanning.search_settings() == {"progress": False, "factor": FASTER["factor"]}


def test_what_the_index_alone_would_have_named():
    columns = ["mask_class", "mask_share", "mask_index_alone_alarms", "whole_class", "whole_share", "whole_index_alone_alarms"]
    rows = ((1, 0.3, True, 2, 0.6, True), (1, 0.7, True, 0, 0.6, True), (1, 0.3, False, 2, 0.6, True),
            (1, 0.3, True, 2, 0.2, False), (1, 0.3, False, 2, 0.6, False))
    assert scanning.index_alone(pd.DataFrame(rows, columns=columns))["suspect"].fillna(-1).tolist() == [1, 0, 2, 1, -1]
    assert SCAN["suspect"].notna().sum() <= scanning.index_alone(SCAN)["suspect"].notna().sum()


def test_restart_points(victim, found, monkeypatch):
    restart._victim.cache_clear(), restart.victim_and_synthesised.cache_clear()
    monkeypatch.setattr(restart, "load_victim", lambda _: victim)
    monkeypatch.setattr(restart, "search_settings", lambda: SHORT)
    _, images = checkpoint("04_start")
    assert len(images) == 9 * 4
    _, again = checkpoint("04_prune")
    assert torch.equal(again.mask, found[victim.target].trigger.mask), "the one that the notebook finds itself"
    again.mask.zero_()
    assert checkpoint("04_prune")[1].mask.any()
    scans, defended = checkpoint("04_table")
    assert {"attacked", "target", "suspect"} <= set(scans)
    states = defended[defended["model"] == "badnets"]["state"].tolist()
    assert "known, fine-tuned" in states and states[-1] == "repaired, trigger never seen"
    restart._victim.cache_clear(), restart.victim_and_synthesised.cache_clear()


# ---- figures


def test_the_smallest_norm_is_named_with_its_alarm():
    norms, names = [100.0, 20.0, 90.0, 110.0, 105.0, 60.0], [*"abcdef"]
    index, _ = outliers(norms)
    told = scan_plots.class_norms(norms, index, names, guess=0.5).summary
    assert told.startswith("“b” needs the smallest mask: 20, 21% of the median (95), anomaly index")
    assert told.endswith("next is “f” at 63%; an alarm for “b”.")
    calm = scan_plots.class_norms([100, 99, 98, 60], outliers([100, 99, 98, 60])[0], [*"abcd"])
    assert calm.summary.endswith("no alarm."), "the index is high, but 60 is more than half of the median"


def test_the_line_of_the_alarm_needs_both_conditions():
    norms = [100.0, 99.0, 98.0, 60.0, 101.0]
    assert outliers(norms)[1] == [3]
    assert scan_plots.alarm_line(norms) == pytest.approx(SMALL * 99)
    assert scan_plots.alarm_line([100.0, 80.0, 130.0, 60.0, 105.0]) == pytest.approx(100 - 2 * 1.4826 * 20)
    assert scan_plots.alarm_line([1.0, 2.0]) is scan_plots.alarm_line([1.0, 5.0, 9.0, 14.0]) is None


def test_triggers_side_by_side_are_counted(victim, found):
    images = draw_defense_images(victim.data.defense, 10).train
    others = images.subset(images.labels != 1)
    moved = (predict(victim.model, others.triggered(victim.trigger)).argmax(1) == 1).float().mean()
    picture = scan_plots.triggers_compared(victim.model, images, {"true": victim.trigger, "none": nn.Identity()}, 1)
    assert f"true: {moved:.0%} of 27 images of other classes go to “north east”" in picture.summary
    assert "none: 0% of 27 images" in picture.summary and "changed by 0 of 255" in picture.summary
    assert picture.png().startswith(b"\x89PNG")


def test_the_map_of_alarms_counts_models_not_marks():
    scans = [("a", True, 0.2, 5, 0.3, 4), ("b", True, 0.6, 2.3, 0.9, 1), ("c", True, 0.9, 1, 0.9, 1),
             ("d", False, 0.8, 2.5, 0.7, 3), ("e", False, 0.9, 1, 0.9, 1)]
    table = pd.DataFrame(scans, columns=["model", "attacked", "mask_share", "mask_index", "whole_share", "whole_index"])
    picture = scan_plots.alarm_map(table)
    assert picture.summary == ("With an index above 2 alone, 1 of 2 clean and 2 of 3 attacked models are accused; with a norm below 50% of "
                               "the median as well, 0 of 2 clean and 1 of 3 attacked models are accused.")
    assert "clean" in str(scan_plots.alarm_map(SCAN))


def test_driven_bars_mark_the_class_that_is_reached_half_as_far_again():
    told = scan_plots.driven_bars({"loud": [0.1, 0.31, 0.2], "quiet": [0.1, 0.29, 0.2], "dead": [0.0] * 3}, [*"abc"]).summary
    assert "loud: “b”, 1.5 times as much as “c”, enough for an alarm; quiet: “b”, 1.4 times as much as “c”; dead: " in told
    assert told.count("alarm") == 1
    for bad in ({}, {"one": [0.1, 0.2]}):
        refuses("a model or more", scan_plots.driven_bars, bad, [*"abc"])


def test_figures_refuse_what_cannot_be_drawn(victim):
    images = victim.data.defense
    for draw in (lambda: scan_plots.norms([], [*"abc"]), lambda: scan_plots.class_norms([1, 2], [1, 2], [*"ab"]),
                 lambda: scan_plots.class_norms([1, 2, 3], [1, 2], [*"abc"]), lambda: scan_plots.alarm_map(SCAN[:0]),
                 lambda: scan_plots.triggers_compared(victim.model, images, {}, 1),
                 lambda: scan_plots.triggers_compared(victim.model, images, {"t": victim.trigger}, 9),
                 lambda: scan_plots.triggers_compared(victim.model, images.subset(images.labels == 1), {"t": victim.trigger}, 1),
                 lambda: ScanExplorer(victim, []), lambda: ScanExplorer(None, [])):
        refuses("", draw)


# ---- the panel


def test_the_panel_begins_with_the_nearest_class(panel, found):
    least = min(range(4), key=lambda label: found[label].norm)
    assert panel.state() == (least, 0)
    assert holds(panel.sentence, "place 1 of 4", f"norm {found[least].norm:.1f}")


def test_the_panel_says_what_the_model_says(panel, victim, found):
    images = draw_defense_images(victim.data.defense, 10).train
    for label, image in ((0, 3), (2, 20), (3, 35)):
        panel.label.set_state({"index": label})
        panel.image.set_state({"value": image})
        marked = found[label].trigger(images.floats())
        answers = predict(victim.model, marked).argmax(1)
        moved = (answers == label)[images.labels != label].float().mean()
        assert torch.equal(panel.compute(panel.state()).images, torch.stack([images.floats()[image], marked[image]]))
        assert f"its trigger moves {moved:.0%} of the images" in panel.sentence
        assert f"with the trigger for “{images.classes[answers[image]]}”." in panel.sentence
        index = outliers([one.norm for one in found])[0][label]
        assert f"anomaly index {index:.1f} " in panel.sentence


def test_the_panel_tells_a_search_that_failed(make, victim, found):
    panel = make(ScanExplorer, victim, inversions=[one._replace(converged=False) for one in found])
    assert panel.sentence.endswith("The search did not reach its goal, so the norm means little.")


def test_the_panel_marks_the_class_of_an_alarm(make, victim, found):
    panel = make(ScanExplorer, victim, inversions=[one._replace(norm=norm) for one, norm in zip(found, (40.0, 5.0, 41.0, 42.0), strict=True)])
    bars = panel.draw(panel.compute(panel.state())).figure.axes[-1].patches[:4]
    assert [to_hex(bar.get_facecolor()).upper() == METRICS["asr"].color.upper() for bar in bars] == [False, True, False, False]


def test_the_panel_never_asks_for_the_attackers_trigger(make, victim, found):
    assert "its trigger moves" in make(ScanExplorer, dataclasses.replace(victim, trigger=None, target=None), inversions=found).sentence


def test_how_far_changes_lead_before_and_after_a_repair(victim):
    images = victim.data.defense.subset(torch.arange(40))
    given = exposure(victim.model, images.floats(), families=("patches", "waves"), drawn=6)
    told = scan_plots.reach(images, given, [row._replace(share=0.25) for row in given]).summary
    most = given[0]
    assert most.share == max(row.share for row in given)
    assert told == (f"The family {most.family} moves the most images: {most.share:.0%} to "
                    f"“{images.classes[most.label]}”; after the repair, {most.family} moves the most: 25%.")
    assert ";" not in scan_plots.reach(images, given).summary
    refuses("no change to show", scan_plots.reach, images, [])
