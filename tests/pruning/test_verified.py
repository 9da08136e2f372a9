"""Recipe `verified`: trials against a naive loop, its rules, and the fine-tuning that goes with it."""

import copy
import sys
from unittest import mock

import pytest
import torch
from conftest import interrupt_call, same
from toys import Grouped, Shared, Untraceable, assert_trials, network, parts

from gradprune.defenses import grad_prune
from gradprune.pruning import Augment, Distilled, FilterMask, best_repair, distilled
from gradprune.pruning.candidate_removals import CandidateRemovals
from gradprune.pruning.filters import filters

MODULE = sys.modules["gradprune.pruning.verified"]  # the package exports the function of the same name


@pytest.mark.parametrize(("kind", "traced"), [("preact_resnet", True), ("small_vgg", True), (Shared, True),
                                              (Grouped, True), (Untraceable, False)])
def test_trials_equal_a_naive_loop(kind, traced, monkeypatch):
    monkeypatch.setattr("gradprune.pruning.candidate_removals.CHUNK", 3)
    model, x = network(kind).train(), torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found, before = filters(model, x[:1]), {k: v.clone() for k, v in model.state_dict().items()}
    trials = CandidateRemovals(model, found, x[:2])
    assert trials.traced == traced
    positions = range(0, len(found), 1 + len(found) // 20)
    assert_trials(trials, copy.deepcopy(model).eval(), found, x, positions, rtol=1e-5, atol=1e-5)
    assert model.training and same(before, model)


def test_interruption_keeps_the_best_round(victim, monkeypatch):
    interrupt_call(monkeypatch, MODULE, "fastest_candidate", 2)
    result = grad_prune(victim.model, victim.data.defense, victim.trigger, spc=2, recipe="verified", progress=False)
    assert result.interrupted and len(result.mask.positions) == 1
    layer, index = result.mask.removed[0]
    assert (result.model.get_submodule(layer).weight[index] == 0).all()


def test_the_whole_defence(victim, monkeypatch):
    monkeypatch.setattr(distilled, "epochs_for", lambda pairs: 3)
    results = [grad_prune(victim.model, victim.data.defense, victim.trigger, spc=5, recipe="verified", progress=False)
               for _ in range(2)]
    result, again = results
    assert result.settings["score"] == "gate"
    assert result.history == again.history
    assert same(result.model, again.model)
    before, after = victim.evaluate(), victim.evaluate(result.model)
    assert before.asr >= 0.95 and after.asr <= 0.2 and after.acc >= before.acc - 0.03
    for layer, index in result.mask.removed:
        assert (result.model.get_submodule(layer).weight[index] == 0).all()
    repairs = {row["repair"]: row["val_loss"] for row in result.rows("choose")}
    assert set(repairs) == {"pruned", "pruned and fine-tuned", "fine-tuned"}
    kept = next(row["repair"] for row in result.rows("choose") if row["kept"])
    assert kept == min(repairs, key=repairs.get) and result.stopped.endswith(f"; kept: {kept}")
    assert ("fine-tuned" in str(result)) == (kept != "pruned")


# --- views and fine-tuning ---


def test_held_out_views_judge_by_both_terms(victim):
    train, validation = parts(victim)
    augment = Augment(victim.model, victim.trigger, train)
    watch = distilled.judge(victim.model, validation, augment, 4)
    views = augment(validation, torch.Generator().manual_seed(4), 8)
    other = copy.deepcopy(victim.model)
    other.linear.bias.data[0] += 1
    for model in (victim.model, other):
        with torch.no_grad():
            assert watch(model) == pytest.approx(Distilled(victim.model, 1)(model, views).item(), rel=1e-4)


def repair(victim, verdicts, positions=(3,), interrupt=False):
    """`best_repair` where the held-out images say what they are told to, by repair."""
    train, validation = parts(victim)
    found = filters(victim.model, train.clean[:1])
    pruned, mask = copy.deepcopy(victim.model), FilterMask(found, before=(5,))
    for position in positions:
        mask.remove(pruned, position)
    seen, augment, untouched = {}, Augment(victim.model, victim.trigger, train), copy.deepcopy([victim.model, pruned])

    def tune(given, model, held, *rest, **settings):
        assert given is victim.model and held.filters is found and held.before == (5,)
        assert rest == (train, validation, augment, verdict) and settings == {"seed": 7, "progress": False}
        name = "pruned and fine-tuned" if held.positions else "fine-tuned"
        assert same(model.state_dict(), (pruned if held.positions else victim.model).state_dict())
        model.linear.bias.data += 1 + len(seen)
        seen[name] = model
        return [{"stage": "tune", "epoch": epoch} for epoch in (0, 1)] + [{"stage": "tune", "interrupted": True}] * interrupt

    def verdict(model):
        return verdicts[next((name for name, one in seen.items() if one is model), "pruned")]

    with mock.patch.object(MODULE, "distilled_tune", tune), mock.patch.object(MODULE, "judge", return_value=verdict) as judge:
        model, held, history = best_repair(victim.model, pruned, mask, train, validation, augment, seed=7, progress=False)
    judge.assert_called_once_with(victim.model, validation, augment, 7)
    assert all(same(one, other) for one, other in zip(untouched, (victim.model, pruned), strict=True))
    assert model.linear.bias is not pruned.linear.bias, "a copy"
    return model, held, history, seen, pruned


def test_held_out_images_choose_whether_pruning_pays(victim):
    for best in ("pruned", "fine-tuned", "pruned and fine-tuned"):
        verdicts = {name: 0.5 if name == best else 1.0 for name in ("pruned", "fine-tuned", "pruned and fine-tuned")}
        model, held, history, seen, pruned = repair(victim, verdicts)
        assert same(model.state_dict(), (pruned if best == "pruned" else seen[best]).state_dict())
        assert held.positions == ([] if best == "fine-tuned" else [3]), "its mask goes with the model"
        chosen = [row for row in history if row["stage"] == "choose"]
        assert chosen == [{"stage": "choose", "repair": name, "val_loss": verdicts[name], "kept": name == best}
                          for name in ("pruned", "fine-tuned", "pruned and fine-tuned")]
        assert len(history) == 3 + 2 * (best != "pruned"), "the history of the tuning that is kept, and three verdicts"


def test_nothing_pruned_is_not_tuned_twice(victim):
    _, _, history, seen, _ = repair(victim, {"pruned": 2.0, "fine-tuned": 1.0}, positions=())
    assert set(seen) == {"fine-tuned"}
    assert [row["repair"] for row in history if row["stage"] == "choose"] == ["pruned", "fine-tuned"]


def test_ctrl_c_in_a_repair_chooses_among_what_is_there(victim):
    model, _, history, seen, _ = repair(victim, {"pruned": 2.0, "fine-tuned": 1.0}, interrupt=True)
    assert model is seen["fine-tuned"] and len(seen) == 1
    assert history[-1] == {"stage": "choose", "repair": "fine-tuned", "val_loss": 1.0, "kept": True, "interrupted": True}
