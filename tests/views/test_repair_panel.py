"""RepairPanel: each button cleans a copy of the victim's model, and the picture gains its figures."""

import copy

import pytest
from conftest import holds, refuses, same

from gradprune.defenses import grad_prune, repair
from gradprune.views import RepairPanel
from gradprune.views.figures.drawing import ERROR_CLASS

BRIEF = {"steps": 2, "first": 1}


def test_nothing_is_cleaned_before_a_button_is_pressed(make, victim):
    panel = make(RepairPanel, spc=9, **BRIEF)
    before = victim.evaluate()
    assert panel.state() == {"given": before}
    assert f"given {before.acc:.1%} / {before.asr:.1%}" in panel.sentence


@pytest.mark.slow
def test_each_button_shows_what_its_defence_gives(make, victim):
    panel, given = make(RepairPanel, spc=9, **BRIEF), copy.deepcopy(victim.model)
    panel.unknown.click()
    panel.known.click()
    without = repair(victim.model, victim.data.defense, spc=9, progress=False, **BRIEF)
    known = grad_prune(victim.model, victim.data.defense, victim.trigger, spc=9, progress=False)
    wanted = {"trigger unknown": victim.evaluate(without.model), "trigger known": victim.evaluate(known.model)}
    assert panel.state() == {"given": victim.evaluate(), **wanted}
    assert holds(panel.sentence, without.stopped, known.stopped)
    assert same(victim.model, given)


def test_a_repair_that_is_refused_is_said_in_red(make, monkeypatch):
    monkeypatch.setenv("GRADPRUNE_STRICT", "0")
    panel = make(RepairPanel, spc=9, steps=0)
    panel.unknown.click()
    assert ERROR_CLASS in panel.error.value
    assert list(panel.state()) == ["given"]
    assert not panel.unknown.disabled


def test_bad_settings_are_refused_when_asked_to_raise(make, monkeypatch):
    monkeypatch.setenv("GRADPRUNE_STRICT", "1")
    refuses("step", make(RepairPanel, spc=9, step=3).unknown.click)
