"""Recipe `verified`: trials against a naive loop, its rules, and the fine-tuning that goes with it."""

import copy
import math
import sys
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradprune.datasets import draw_defense_images
from gradprune.defenses import grad_prune
from gradprune.errors import InputError
from gradprune.models import build
from gradprune.pruning import (
    Augment,
    Distilled,
    FilterMask,
    distilled,
    filter_scores,
    pair_up,
)
from gradprune.pruning import augment as augmenting
from gradprune.pruning import verified as recipe
from gradprune.pruning.filters import filters, silence
from gradprune.pruning.race import race
from gradprune.pruning.trials import Trials


def parts(victim, spc=2):
    return tuple(pair_up(part, victim.trigger) for part in draw_defense_images(victim.data.defense, spc))


class Shared(nn.Module):
    """What foreign models do: operations in place, one convolution used twice, a residual sum."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.again, self.act = nn.Conv2d(6, 6, 3, padding=1), nn.ELU(inplace=True)
        self.linear = nn.Linear(6, 4)

    def forward(self, x):
        out = self.act(self.norm(self.first(x)))
        skip = self.first(x)
        out = self.again(self.again(out))
        skip += out
        return self.linear(F.relu_(skip).mean(dim=(2, 3)))


class Grouped(nn.Module):
    """Convolutions in groups, one of them depthwise, with and without a BatchNorm of their own."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.depth, self.norm2 = nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6)
        self.pairs, self.linear = nn.Conv2d(6, 8, 3, stride=2, groups=2), nn.Linear(8, 4)

    def forward(self, x):
        out = self.norm2(self.depth(F.relu(self.norm(self.first(x))))).relu()
        return self.linear(F.relu(self.pairs(out)).mean(dim=(2, 3)))


class Untraceable(Shared):
    def forward(self, x):
        return super().forward(x if x.mean() > -1 else -x)


def network(kind):
    model = build(kind, 4, width=4) if isinstance(kind, str) else kind()
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias.data):
                tensor.uniform_(-0.5, 0.5, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
    return model


@pytest.mark.parametrize(("kind", "traced"), [("preact_resnet", True), ("small_vgg", True), (Shared, True),
                                              (Grouped, True), (Untraceable, False)])
def test_trials_equal_a_naive_loop(kind, traced, monkeypatch):
    monkeypatch.setattr("gradprune.pruning.trials.CHUNK", 3)
    model, x = network(kind).train(), torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found, before = filters(model, x[:1]), {k: v.clone() for k, v in model.state_dict().items()}
    trials = Trials(model, found, x[:2])
    assert trials.traced == traced
    positions = range(0, len(found), 1 + len(found) // 20)
    as_it_is, answers = trials.logits(x, positions)
    assert model.training and all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    plain = copy.deepcopy(model).eval()
    torch.testing.assert_close(as_it_is, plain(x).detach(), rtol=1e-5, atol=1e-5)
    for position, answer in zip(positions, answers, strict=True):
        naive = copy.deepcopy(plain)
        silence(naive, found, [position])
        torch.testing.assert_close(answer, naive(x).detach(), rtol=1e-5, atol=1e-5)


def test_the_best_of_the_shortlist_goes_and_nothing_else_changes(victim):
    """One round by hand: every filter of the shortlist removed from a copy, the lowest objective wins."""
    train, validation = parts(victim)
    model = copy.deepcopy(victim.model).train()
    found = filters(model, train.clean[:1])
    result = recipe(model, found, train, validation, k=8, progress=False)
    scores, _ = filter_scores(victim.model, found, train.triggered, train.labels, "gate")
    wanted, values = victim.model(train.clean).log_softmax(1).detach(), {}
    for position in scores.topk(8).indices.tolist():
        tried = copy.deepcopy(victim.model)
        silence(tried, found, [position])
        kept = F.kl_div(tried(train.clean).log_softmax(1), wanted, log_target=True, reduction="batchmean")
        values[position] = (F.cross_entropy(tried(train.triggered), train.labels) + 3 * kept).item()
    best = min(values, key=values.__getitem__)
    assert result.mask.positions[0] == best and best in result.mask.positions
    assert result.history[1]["objective"] == pytest.approx(values[best], rel=1e-4)
    expected = copy.deepcopy(victim.model)
    silence(expected, found, result.mask.positions)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in expected.state_dict().items()), \
        "the mask names all that changed; BatchNorm statistics stay"
    assert model.training


def test_rounds_only_add_and_the_best_one_stays(victim):
    train, validation = parts(victim)
    dead = [3, 20]
    models = [copy.deepcopy(victim.model) for _ in range(2)]
    found = filters(models[0], train.clean[:1])
    silence(models[0], found, dead)
    silence(models[1], found, dead)
    first, second = (recipe(model, found, train, validation, k=len(found), progress=False) for model in models)
    fallen = [found.position(row["layer"], row["index"]) for row in first.history[1:]]
    assert len(set(fallen)) == len(fallen) and first.mask.positions == fallen[:len(first.mask.positions)]
    assert not set(fallen) & set(dead) and first.mask.before == tuple(dead), "dead filters are not tried"
    checked = [row["val_objective"] for row in first.history]
    assert checked.index(min(checked)) == len(first.mask.positions) > 0
    assert first.history == second.history, "same input, same result"


def test_a_removal_that_costs_alpha_does_not_count(victim):
    train, validation = parts(victim, 5)
    model = copy.deepcopy(victim.model)
    found = filters(model, train.clean[:1])
    right = (model(train.clean).argmax(1) == train.labels).float().mean()
    result = recipe(model, found, train, validation, alpha=1e-3, weight=0, patience=30, k=4, progress=False)
    assert "every trial would cost" in result.stopped
    for row in result.history[1:]:
        silence(model, found, [found.position(row["layer"], row["index"])])
        assert (model(train.clean).argmax(1) == train.labels).float().mean() >= right


def test_interruption_keeps_the_best_round(victim, monkeypatch):
    calls = []

    def stop_at_the_second(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return race(*arguments)

    monkeypatch.setattr(sys.modules[recipe.__module__], "race", stop_at_the_second)
    result = grad_prune(victim.model, victim.data.defense, victim.trigger, spc=2, recipe="verified", progress=False)
    assert result.interrupted and len(result.mask.positions) == 1
    layer, index = result.mask.removed[0]
    assert (result.model.get_submodule(layer).weight[index] == 0).all()


@pytest.mark.parametrize(("settings", "words"), [({"k": 0}, "k must be at least 1"), ({"weight": -1}, "weight must not"),
                                                 ({"alpha": 0}, "alpha must lie"), ({"patience": 0}, "patience must be")])
def test_bad_settings(victim, settings, words):
    train, validation = parts(victim)
    model = copy.deepcopy(victim.model)
    with pytest.raises(InputError, match=words):
        recipe(model, filters(model, train.clean[:1]), train, validation, progress=False, **settings)


def test_the_whole_defence(victim, monkeypatch):
    monkeypatch.setattr(distilled, "epochs_for", lambda pairs: 3)
    results = [grad_prune(victim.model, victim.data.defense, victim.trigger, spc=5, recipe="verified", progress=False)
               for _ in range(2)]
    result, again = results
    assert result.settings["score"] == "gate"
    assert result.history == again.history
    assert all(torch.equal(a, b) for a, b in zip(result.model.parameters(), again.model.parameters(), strict=True))
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


def test_views_keep_range_and_labels_and_carry_the_trigger(victim):
    train, _ = parts(victim)
    augment = Augment(victim.model, victim.trigger, train)
    assert not augment.flip, "a class is where its square stands, so a flipped image is of another class"
    new = augment(train, torch.Generator().manual_seed(0), copies=3)
    assert len(new.clean) == len(new.triggered) == len(new.labels) == 3 * len(train.labels)
    assert new.clean.min() >= 0 and new.clean.max() <= 1
    assert torch.equal(new.triggered, victim.trigger(new.clean)), "the trigger is put on last, in its own place"
    assert torch.equal(new.labels[:len(train.labels)], train.labels)
    assert not torch.equal(new.clean[:len(train.labels)], train.clean)


def test_mixes_blend_half_of_the_images_and_carry_the_trigger(victim):
    train, _ = parts(victim)
    augment = Augment(victim.model, victim.trigger, train)
    views = augment(train, torch.Generator().manual_seed(0), math.ceil(augmenting.ENOUGH / len(train.labels)))
    mixed = augment.mixed(train, torch.Generator().manual_seed(0))
    unmixed = torch.cat([train.clean, views.clean])
    assert torch.equal(mixed.labels, torch.cat([train.labels, views.labels]))
    assert torch.equal(mixed.triggered, victim.trigger(mixed.clean))
    assert mixed.clean.min() >= 0 and mixed.clean.max() <= 1
    same = (mixed.clean == unmixed).flatten(1).all(1)
    assert 0.3 < same.float().mean() < 0.7
    low, high = unmixed.amin(0), unmixed.amax(0)
    assert ((mixed.clean >= low - 1e-6) & (mixed.clean <= high + 1e-6)).all(), "a mix lies between images"


def test_distilled_loss_by_hand(victim):
    train, _ = parts(victim)
    other = copy.deepcopy(victim.model)
    with torch.no_grad():
        other.linear.bias[0] += 1
        p, q, r = (model(images).softmax(1) for model, images in
                   ((victim.model, train.clean), (other, train.clean), (other, train.triggered)))
        wanted = (p * (p / r).log()).sum(1).mean() + 2 * (p * (p / q).log()).sum(1).mean()
    assert Distilled(victim.model, 2)(other, train).item() == pytest.approx(wanted.item(), rel=1e-3)


def test_held_out_views_judge_by_both_terms(victim):
    train, validation = parts(victim)
    augment = Augment(victim.model, victim.trigger, train)
    watch = distilled.judge(victim.model, validation, augment, 4)
    views = augment(validation, torch.Generator().manual_seed(4), 8)
    other = copy.deepcopy(victim.model)
    with torch.no_grad():
        other.linear.bias[0] += 1
    for model in (victim.model, other):
        with torch.no_grad():
            assert watch(model) == pytest.approx(Distilled(victim.model, 1)(model, views).item(), rel=1e-4)


def repair(victim, verdicts, positions=(3,), interrupt=False):
    """`best_repair` where the held-out images say what they are told to, by repair."""
    train, validation = parts(victim)
    found = filters(victim.model, train.clean[:1])
    pruned, mask = copy.deepcopy(victim.model), FilterMask(found)
    for position in positions:
        mask.remove(pruned, position)
    seen = {}

    def tune(given, model, held, *_, **__):
        name = "pruned and fine-tuned" if held.positions else "fine-tuned"
        assert same(model.state_dict(), (pruned if held.positions else victim.model).state_dict())
        with torch.no_grad():
            model.linear.bias += 1 + len(seen)
        seen[name] = model
        return [{"stage": "tune", "epoch": 0, "val_loss": 9.0}] + [{"stage": "tune", "interrupted": True}] * interrupt

    def verdict(model):
        return verdicts[next((name for name, one in seen.items() if one is model), "pruned")]

    with mock.patch.object(distilled, "distilled_tune", tune), mock.patch.object(distilled, "judge", return_value=verdict):
        model, held, history = distilled.best_repair(victim.model, pruned, mask, train, validation,
                                                     Augment(victim.model, victim.trigger, train), progress=False)
    return model, held, history, seen, pruned


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_held_out_images_choose_whether_pruning_pays(victim):
    for best in ("pruned", "fine-tuned", "pruned and fine-tuned"):
        verdicts = {name: 0.5 if name == best else 1.0 for name in ("pruned", "fine-tuned", "pruned and fine-tuned")}
        model, held, history, seen, pruned = repair(victim, verdicts)
        assert same(model.state_dict(), (pruned if best == "pruned" else seen[best]).state_dict())
        assert held.positions == ([] if best == "fine-tuned" else [3]), "its mask goes with the model"
        chosen = [row for row in history if row["stage"] == "choose"]
        assert {row["repair"]: row["val_loss"] for row in chosen} == verdicts
        assert [row["repair"] for row in chosen if row["kept"]] == [best]
        assert len(history) == 3 + (best != "pruned"), "the history of the tuning that is kept, and three verdicts"
        assert model is not pruned


def test_nothing_pruned_is_not_tuned_twice(victim):
    _, _, _, seen, _ = repair(victim, {"pruned": 2.0, "fine-tuned": 1.0}, positions=())
    assert set(seen) == {"fine-tuned"}


def test_ctrl_c_in_a_repair_chooses_among_what_is_there(victim):
    model, _, history, seen, _ = repair(victim, {"pruned": 2.0, "fine-tuned": 1.0}, interrupt=True)
    assert model is seen["fine-tuned"] and "interrupted" in history[-1] and len(seen) == 1
