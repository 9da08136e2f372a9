"""Unknown trigger: whole-image search, the scan, its alarm, its page, its command, and the defence with what it found."""

import importlib
import json
import re
from unittest.mock import Mock

import pytest
import torch
from conftest import card_of, refuses, run, same, write_npz
from torch import nn

from gradprune.cli import scan as cli_scan
from gradprune.cli.jobs import defend_and_save
from gradprune.datasets import ImageSet
from gradprune.defenses import prune_scanned, scan
from gradprune.defenses.scan import ALARM, FASTER, KINDS, SMALL
from gradprune.models import build, predict
from gradprune.models.checkpoints import load_checkpoint, read_card, save_checkpoint
from gradprune.search import Inversion, Perturbed, perturb
from gradprune.views.figures.scan_plots import norms
from gradprune.views.reports.scan_report import synthesised, write_scan_report

TOY = {"steps": 120, "progress": False}  # among four classes the index is rough before the masks are small


@pytest.fixture(autouse=True)
def more_steps(monkeypatch):
    monkeypatch.setitem(FASTER, "steps", TOY["steps"])


@pytest.fixture(scope="module")
def found(victim):
    return scan(victim.model, victim.data.defense, spc=10, **TOY)


@pytest.fixture(scope="module")
def nothing(honest, data):
    return scan(honest, data.defense, spc=10, **TOY)


@pytest.fixture(scope="module")
def unconverged(victim):
    return scan(victim.model, victim.data.defense, spc=2, steps=1, goal=1.1, progress=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory, data, victim, honest):
    """The attacked and the honest toy model as checkpoints, victim and honest."""
    folder = tmp_path_factory.mktemp("scan")
    write_npz(folder / "data.npz", data)
    card = card_of(victim, folder / "data.npz")
    card["attack"]["rate"] = 0.15
    save_checkpoint(folder / "victim", victim.model, card, victim.trigger)
    del card["attack"]
    save_checkpoint(folder / "honest", honest, card)
    return folder


# ---- the search over the whole image


def test_a_pattern_stays_within_its_bound_and_images_within_range(victim, data):
    images = data.defense.floats()[:40]
    before = {key: tensor.clone() for key, tensor in victim.model.state_dict().items()}
    one, two = (perturb(victim.model, images, 1, seed=3, bound=0.2, steps=60, progress=False) for _ in range(2))
    assert one.trigger.pattern.abs().max() <= 0.2 and not one.trigger.pattern.requires_grad
    assert one.norm == pytest.approx(one.trigger.pattern.norm().item()) and one.converged
    assert torch.equal(one.trigger.pattern, two.trigger.pattern), "same seed, same pattern"
    moved = one.trigger(images)
    assert moved.min() >= 0 and moved.max() <= 1 and (moved - images).abs().max() <= 0.2 + 1e-6
    assert (predict(victim.model, moved).argmax(1) == 1).float().mean() > 0.8
    assert same(before, victim.model)


# ---- the scan


def test_the_suspected_class_is_the_target(victim, found):
    assert found.suspect == victim.target == 1 and "Suspected: 'north east'" in found.verdict
    row = found.suspect_row
    assert row.alarm and row.share < SMALL and row.anomaly > 2
    assert found.scores[1] == max(found.scores) and found.threshold == ALARM and len(found.voices) == 8
    assert found.scores == pytest.approx([sum(told) / 8 for told in zip(*found.voices.values(), strict=True)])
    images, labels = found.images.floats(), found.images.labels
    moved = (predict(victim.model, found.trigger(images)).argmax(1) == 1)[labels != 1].float().mean()
    assert moved == pytest.approx(row.success, abs=1e-6) and len(images) == 40
    assert [(row.kind, row.label) for row in found.rows] == [(kind, label) for kind in KINDS for label in range(4)]


def test_an_honest_model_raises_no_alarm(nothing):
    assert nothing.suspect is nothing.kind is nothing.trigger is nothing.suspect_row is None
    assert nothing.verdict.startswith("No class is suspected")


@pytest.mark.parametrize(("reached", "suspect"), [
    ([0.1, 0.31, 0.2, 0.1], 1), ([0.1, 0.29, 0.2, 0.1], None), ([0.1, 0.1, 0.31, 0.1], None), ([0.0] * 4, None)])
def test_driven_filters_alone_accuse_the_class_with_the_highest_score(victim, monkeypatch, reached, suspect):
    """From 1.5 times the next class on. The searches find class 1 a little easier, and raise no alarm."""
    scanning = importlib.import_module("gradprune.defenses.scan")
    for kind in KINDS:
        monkeypatch.setitem(KINDS, kind, lambda model, images, label, **_: Inversion(victim.trigger, 4.0 + (label != 1), 1.0, [], True))
    for name, told in (("driven", reached), ("led", [0.0, 1.0, 0.1, -0.1]), ("margins", [0.0] * 4)):
        monkeypatch.setattr(scanning, name, lambda *_, told=told: told)
    again = scan(victim.model, victim.data.defense, spc=10, threshold=100.0, progress=False)
    assert again.scores[1] == max(again.scores) and again.suspect == suspect


def test_an_honest_card_judges_the_verdict(found, nothing):
    card = {"attack": {"target": 1, "rate": 0}}
    assert cli_scan._card_says(card, nothing).endswith("no image was poisoned: no alarm is right.")
    assert cli_scan._card_says(card, found).endswith("this is a false alarm.")


def test_searches_that_do_not_converge_give_no_trigger(unconverged):
    assert unconverged.trigger is None and unconverged.suspect is None
    assert "No verdict" in unconverged.verdict and "8 of 8 searches did not converge" in unconverged.verdict
    assert all(row.anomaly is row.share is None and not row.alarm for row in unconverged.rows)


def test_bad_scans(victim, data):
    refuses("threshold must be above 0", scan, victim.model, data.defense, threshold=0)
    two = ImageSet(data.defense.images[:40], data.defense.labels[:40] % 2, ("a", "b"))
    refuses("at least 3 classes, the model has 2", scan, build("preact_resnet", 2, width=8, blocks=(1,)), two, spc=2)


# ---- the defence


def test_the_defence_with_the_synthesised_trigger(victim, found):
    result = prune_scanned(victim.model, victim.data.defense, found, spc=10, recipe="paper", progress=False)
    assert victim.evaluate(result.model).asr < 0.2 < 0.9 < victim.evaluate().asr
    assert victim.evaluate(result.model).acc > victim.evaluate().acc - 0.05


def test_no_suspect_no_change(honest, data, nothing):
    result = prune_scanned(honest, data.defense, nothing, spc=10, progress=False)
    assert result.stopped == nothing.verdict and not result.mask.positions and "given model" in str(result)
    assert same(result.model, honest)


@pytest.mark.slow
def test_defend_with_a_synthesised_trigger(store, tmp_path):
    told = defend_and_save(str(store / "victim"), tmp_path / "cleaned", trigger="synthesised", recipe="paper", progress=False)
    assert told["scan"].startswith("Suspected: 'north east'") and told["tuned"]["asr"] < 0.2
    assert read_card(tmp_path / "cleaned")["defense"]["scan"] == told["scan"]
    refuses("Unknown kind of trigger 'synthesized'; did you mean synthesised", defend_and_save, str(store / "victim"),
            None, trigger="synthesized")


def test_defend_says_that_nobody_is_suspected(store, monkeypatch, nothing):
    monkeypatch.setattr("gradprune.cli.jobs.scan", lambda *_, **__: nothing)
    result = run("defend", store / "victim", "--trigger", "synthesised", "--json")
    told = json.loads(result.stdout)
    assert told["scan"].startswith("No class is suspected") and told["tuned"] == told["before"]
    assert not told["filters_removed"] and told["scan"] in result.stderr


# ---- page and command


def test_the_page_is_one_file_and_escapes_names(found, tmp_path):
    evil = "<script>alert(1)</script>"
    named = found._replace(classes=("<b>a</b>", evil, "$x$", "d"), verdict=f"Suspected: {evil}")
    text = write_scan_report(tmp_path, named, {"checkpoint": evil}, evil).read_text("utf-8")
    assert "<script" not in text and "<b>a" not in text and "&lt;script&gt;" in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    for words in ("Suspected", "What it cannot see", "Norms of the classes", "The synthesised trigger", "Verdict"):
        assert words in text
    assert [path.name for path in tmp_path.iterdir()] == ["scan.html"]


def test_pages_without_a_suspect(nothing, unconverged, tmp_path):
    text = write_scan_report(tmp_path, nothing, {}).read_text("utf-8")
    assert "No class is suspected" in text and "<h2>The synthesised trigger" not in text
    text = write_scan_report(tmp_path, unconverged, {}).read_text("utf-8")
    assert "No verdict" in text and "did not converge" in text
    refuses("no trigger to show", synthesised, nothing, nn.Identity())


def test_pictures_tell_their_finding(found):
    whole = found._replace(kind="whole image")
    assert "“north east”" in synthesised(found, found.trigger).summary
    assert "“north east”" in synthesised(whole, Perturbed(torch.full((3, 16, 16), 0.1))).summary
    assert "“north east” has the smallest norm" in norms(found.rows, found.classes).summary


def test_the_command(store, tmp_path):
    result = run("scan", store / "victim", "--out", tmp_path / "page", "--json")
    told = json.loads(result.stdout)
    assert told["suspect"] == 1 and told["suspect_name"] == "north east" and len(told["rows"]) == 8
    assert told["card_says"].endswith("with target 'north east': the suspicion is right.")
    assert (tmp_path / "page" / "scan.html").as_posix() == told["report"]
    assert "north east" in result.stderr and "index" in result.stderr and told["verdict"] in result.stderr


def test_the_command_never_asks_the_card_for_the_attack(store, nothing, monkeypatch):
    monkeypatch.setattr("gradprune.defenses.scan", lambda *_, **__: nothing)
    result = run("scan", store / "honest", "--spc", 5)
    assert result.exit_code == 0 and "No class is suspected" in result.stdout and "card says" not in result.stdout


def test_a_card_without_data(store, tmp_path):
    model, card = load_checkpoint(store / "honest")
    save_checkpoint(tmp_path / "bare", model, {"model": card["model"]})
    result = run("scan", tmp_path / "bare")
    assert result.exit_code == 2 and "does not say which data made the model" in result.stderr


def test_the_real_trigger_is_never_loaded(store, found, monkeypatch):
    """A scan gets the model and images alone."""
    made = AssertionError("the trigger was made")
    monkeypatch.setattr("gradprune.victims.victim.make_trigger", Mock(side_effect=made))
    monkeypatch.setattr("gradprune.defenses.scan", lambda model, images, **_: found)
    assert run("scan", store / "victim", "--spc", 2, "--json").exit_code == 0
