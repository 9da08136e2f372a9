"""Ctrl-C at any moment after pruning began: the best state so far is kept and written."""

import json
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from conftest import card_of
from torch import nn

from gradprune.cli import jobs as demo
from gradprune.defenses import DEFENSES
from gradprune.defenses.common import Work
from gradprune.models.checkpoints import load_checkpoint
from gradprune.pruning import distilled


class Moments:
    """Counts the forward passes of linear layers and interrupts one of them, once; marks where pruning begins."""

    def __init__(self, monkeypatch):
        self.count, self.at, self.began = 0, None, None
        forward, prune = nn.Linear.forward, Work.prune

        def counted(layer, x):
            self.count += 1
            if self.count == self.at:
                raise KeyboardInterrupt
            return forward(layer, x)

        def begins(work, *args, **settings):
            self.began = self.count
            return prune(work, *args, **settings)

        monkeypatch.setattr(nn.Linear, "forward", counted)
        monkeypatch.setattr(Work, "prune", begins)

    def run(self, at, call):
        self.count, self.at = 0, at
        return call()


@pytest.fixture
def given(tmp_path, monkeypatch, victim):
    monkeypatch.chdir(tmp_path)
    named = replace(victim, card=card_of(victim))
    monkeypatch.setattr(demo, "load_victim", lambda *_, **__: named)
    return named


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["paper", "verified"])
def test_a_defence_that_is_interrupted_anywhere_writes_what_it_has(given, tmp_path, monkeypatch, recipe):
    monkeypatch.setattr(distilled, "STEPS", 20)
    moments = Moments(monkeypatch)

    def defend(name):
        return demo.defend_and_save("badnets", tmp_path / name, spc=2, recipe=recipe, progress=False)

    whole = moments.run(None, lambda: defend("whole"))
    began, end = moments.began, moments.count
    assert not whole["interrupted"] and 0 < began < end
    places = {began + 1, began + 3, (began + end) // 2, end - 12, end - 3, end - 1, end}
    for at in places if recipe == "paper" else {began + 2, end - 12}:
        told = moments.run(at, lambda at=at: defend(f"at{at}"))
        assert told["interrupted"], (at, began, end)
        model, card = load_checkpoint(tmp_path / f"at{at}")
        assert card["removed_filters"] == told["filters_removed"] and ("metrics" in card) == (told["tuned"] is not None)
        json.dumps(told)
        for layer, index in told["filters_removed"]:
            assert not model.get_submodule(layer).weight[index].any()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), [("ft", {"steps": 10}), ("ft_unlearn", {"epochs": 5}), ("clp", {}), ("anp", {"iterations": 20})])
def test_a_baseline_that_is_interrupted_gives_a_result(given, monkeypatch, name, settings):
    moments = Moments(monkeypatch)

    def defend():
        return DEFENSES[name](given.model, given.data.defense, given.trigger, spc=2, progress=False, **settings)

    moments.run(None, defend)
    end = moments.count
    begins = moments.began or end // 2  # where nothing is pruned, somewhere in the fine-tuning
    for at in {end, max(end - 1, begins + 1), begins + 1}:
        result = moments.run(at, defend)
        assert result.interrupted and str(result) and torch.isfinite(result.model.linear.weight).all()


@pytest.mark.slow
def test_an_export_that_is_interrupted_leaves_the_checkpoint(given, tmp_path, monkeypatch):
    monkeypatch.setattr("gradprune.victims.save_cleaned.export", Mock(side_effect=KeyboardInterrupt))
    told = demo.defend_and_save("badnets", tmp_path / "clean", export=tmp_path / "clean.pt2", spc=2, recipe="paper", progress=False)
    assert told["interrupted"] and told["export"] is None and load_checkpoint(tmp_path / "clean")
