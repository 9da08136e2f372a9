"""Repair without the trigger: the changes, the loss that asks for the same answers, and which road a model takes."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from conftest import defend, interrupt_call, refuses
from torch import nn

import gradprune as gp
from gradprune.datasets import ImageSet, draw_defense_images
from gradprune.defenses import Scan, exposure, unsteadiness
from gradprune.defenses.consistency import CONSISTENCY, Consistent, settle, step_back
from gradprune.defenses.repair import kept_on_trial
from gradprune.models import build, evaluating, predict
from gradprune.pruning import Pairs, unpaired, validate
from gradprune.search import FAMILIES, SEARCHABLE, Alternating, Change, Inverted, Part, draw, inflow, search_changes
from gradprune.search.changes import every_wave

repairing = importlib.import_module("gradprune.defenses.repair")


@pytest.fixture(scope="module")
def images(victim):
    return unpaired(victim.data.defense.subset(range(24))).clean


# --- the changes ---


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(3, 32, 32), (1, 28, 28), (3, 64, 48), (3, 64, 8)])
def test_a_change_is_drawn_within_bounds(family, size):
    pictures = torch.rand(4, *size, generator=torch.Generator().manual_seed(1))
    for seed in range(10):
        change = draw(size, torch.Generator().manual_seed(seed), [family])
        changed = change(pictures)
        assert change.family == family and change.numbers.abs().max() <= 1
        assert changed.shape == pictures.shape and changed.min() >= 0 and changed.max() <= 1
        assert not torch.equal(changed, pictures)
        assert torch.equal(changed, draw(size, torch.Generator().manual_seed(seed), [family])(pictures))
    assert not torch.equal(changed, draw(size, torch.Generator().manual_seed(99), [family])(pictures))


@pytest.mark.parametrize("family", ["bounded", "smooth", "waves", "warp", "tinted"])
def test_no_content_is_no_change(family, images):
    change = draw(images.shape[1:], torch.Generator().manual_seed(3), [family])
    assert torch.allclose(change._replace(numbers=torch.zeros_like(change.numbers))(images), images, atol=1e-5)


def test_patches_cover_what_they_say_and_nothing_else(images):
    for seed in range(20):
        change = draw(images.shape[1:], torch.Generator().manual_seed(seed), ["patches"])
        side = change.numbers.shape[1]
        touched = (change(images) != images).any(1).any(0)
        assert 1 <= side <= images.shape[2] // 4 and side ** 2 / 2 < touched.sum() <= 4 * side ** 2


def test_bounds_hold_where_nothing_is_cut_off():
    grey = torch.full((1, 3, 32, 32), 0.5)
    for family, most in {"bounded": 0.15, "smooth": 0.25, "waves": 0.6, "blend": 0.15}.items():
        moved = [(draw((3, 32, 32), torch.Generator().manual_seed(seed), [family])(grey) - grey).abs().max()
                 for seed in range(30)]
        assert min(moved) > 0.01 and max(moved) <= most + 1e-6


@pytest.mark.parametrize("family", SEARCHABLE)
def test_a_search_leads_where_it_is_sent(victim, images, family):
    """Two parts at once, one led to the target and the other away from the usual answers."""
    model = victim.model
    wanted = predict(model, images).log_softmax(1)
    drawn = draw(images.shape[1:], torch.Generator().manual_seed(4), [family])
    parts = [Part(images, wanted, victim.target), Part(images, wanted)]
    with evaluating(model):
        toward, away = search_changes(model, parts, [drawn, drawn])
        alone = search_changes(model, parts[:1], [drawn])[0]
    led, start = (predict(model, change(images)).log_softmax(1)[:, victim.target].mean() for change in (toward, drawn))
    assert led > start and toward.numbers.abs().max() <= 1
    alike = torch.isclose(alone.numbers, toward.numbers).float().mean()
    assert alike > 0.8, "parts do not touch each other; where a gradient is all but 0, rounding decides its sign"
    assert how_much(model, images, away) > how_much(model, images, drawn)


def test_what_has_no_gradient_is_not_searched(victim, images):
    drawn = draw(images.shape[1:], torch.Generator().manual_seed(4), ["quantised"])
    assert search_changes(victim.model, [Part(images, images)], [drawn])[0] is drawn


def test_inflow_by_hand(victim, images):
    """Black images for all: what the classes gain is the answer to black less the usual one, whatever the batches."""
    model, wanted = victim.model, predict(victim.model, images).log_softmax(1)
    black, same = (Change("tinted", torch.tensor(0.0), lambda pictures, numbers, share=share: pictures * share)
                   for share in (0.0, 1.0))
    with evaluating(model):
        led = inflow(model, [Part(images, wanted), Part(images[:5], wanted[:5])] * 40, [black, same] * 40)
    gained = predict(model, images * 0).softmax(1).mean(0) - wanted.exp().mean(0)
    assert torch.allclose(led[0], gained, atol=1e-5) and torch.allclose(led[1], torch.zeros(len(gained)), atol=1e-5)
    assert torch.allclose(led, led[:2].repeat(40, 1), atol=1e-5)


def test_every_wave_is_there_once():
    waves = every_wave((3, 32, 32), torch.Generator().manual_seed(0))
    grey = torch.full((1, 3, 32, 32), 0.5)
    spectra = [torch.fft.fft2(change(grey)[0, 0] - 0.5).abs() for change in waves]
    places = [tuple(sorted((int(place) // 32, int(place) % 32) for place in spectrum.flatten().topk(2).indices))
              for spectrum in spectra]
    assert len(waves) == len(set(places)) == 8 * 17 + 8, "of up to eight periods, down and across"
    assert all(0.03 < (change(grey) - 0.5).abs().max() < 0.2 for change in waves)


# --- the loss ---


def test_the_loss_by_hand(victim, images, monkeypatch):
    """Six parts, each with a change of its own: so much darker."""
    given, batch = victim.model, Pairs(images, images[:0], torch.zeros(len(images), dtype=torch.long))
    loss = Consistent(given, CONSISTENCY | {"parts": 6, "first": 1, "first_on": 2}, torch.Generator().manual_seed(0))
    shades = [Change("tinted", torch.tensor(0.0), lambda pictures, numbers, share=share: pictures * share)
              for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    monkeypatch.setattr(loss, "find", lambda model, parts: shades)
    with evaluating(given):
        found = loss(given, batch)
        dark = images * torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]).repeat_interleave(4)[:, None, None, None]
        wanted, now = (given(pictures).log_softmax(1) for pictures in (images, dark))
    by_hand = (wanted.exp() * (wanted - now)).sum(1).mean()  # the clean term is 0: the model is its own teacher
    assert found.item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_a_step_back_is_a_share_of_the_way():
    """Of weights and running statistics; the number of batches that BatchNorm has seen stays."""
    given, mended = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    mended(5 + 3 * torch.randn(8, 3))
    by_hand = {name: 0.75 * new + 0.25 * old for (name, new), old
               in zip(mended.state_dict().items(), given.state_dict().values(), strict=True)}
    by_hand["1.num_batches_tracked"] = torch.tensor(1)
    assert not torch.equal(mended[1].running_mean, given[1].running_mean)
    step_back(mended, given, 0.25)
    assert all(torch.allclose(one, by_hand[name]) for name, one in mended.state_dict().items())
    step_back(mended, given, 1.0)
    assert all(torch.equal(one, two) for one, two in zip(mended.parameters(), given.parameters(), strict=True))
    assert torch.equal(mended[1].running_mean, given[1].running_mean)


def how_much(model, images, change):
    wanted = predict(model, images).log_softmax(1)
    return F.kl_div(predict(model, change(images)).log_softmax(1), wanted, log_target=True, reduction="batchmean").item()


@pytest.fixture
def loss(victim, images):
    """The loss with full pools of three, which holds patches and waves alone, and one part that is all the images."""
    loss = Consistent(victim.model, CONSISTENCY | {"first": 8, "pool": 3, "searched": 0.0},
                      torch.Generator().manual_seed(0), ("patches", "waves"))
    part = Part(images, predict(victim.model, images).log_softmax(1))
    with evaluating(victim.model):
        loss._fill(victim.model, part)
        yield loss, part


def furthest(model, part, change):
    return inflow(model, [part], [change]).max().item()


def test_the_pools_hold_what_leads_furthest(loss, victim):
    loss, part = loss
    generator = torch.Generator().manual_seed(0)
    patches = [draw(part.images.shape[1:], generator, ["patches"]) for _ in range(8)]
    waves = [draw(part.images.shape[1:], generator, ["waves"]) for _ in range(8)]
    waves += every_wave(part.images.shape[1:], generator)
    for family, drawn in {"patches": patches, "waves": waves}.items():
        by_hand = sorted((furthest(victim.model, part, change) for change in drawn), reverse=True)[:3]
        assert [value for value, _ in loss.pools[family]] == pytest.approx(by_hand, abs=1e-4)


def test_what_led_far_is_used_again_and_forgotten_when_it_leads_no_more(loss, victim):
    loss, part = loss
    before = {family: [change for _, change in pool] for family, pool in loss.pools.items()}
    weakest = {family: pool[-1][0] for family, pool in loss.pools.items()}
    for change in loss.find(victim.model, [part] * 2):
        assert furthest(victim.model, part, change) >= weakest[change.family] - 1e-4, "drawn or of the pool: the further"
    numb = nn.Sequential(nn.Flatten(), nn.Linear(part.images[0].numel(), 4)).eval()
    nn.init.zeros_(numb[1].weight)
    nn.init.zeros_(numb[1].bias)
    for _ in range(40):
        loss.find(numb, [part] * 2)
    for family, pool in loss.pools.items():
        assert len(pool) == 3 and max(value for value, _ in pool) < 0.3
        assert not {id(change) for _, change in pool} & {id(change) for change in before[family]}


def test_a_search_goes_on_from_the_better_one_and_takes_its_place(loss, victim):
    loss, part = loss
    loss.settings = loss.settings | {"searched": 1.0, "toward": 1.0}
    held = {id(change) for pool in loss.pools.values() for _, change in pool}
    changes = loss.find(victim.model, [part] * 4)
    assert all(id(change) not in held for change in changes), "each was searched on"
    assert {id(change) for change in changes} & {id(change) for pool in loss.pools.values() for _, change in pool}


def test_batch_norm_takes_its_statistics_from_clean_images(images):
    model, train = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3)).eval(), Pairs(images, images[:0], torch.zeros(len(images), dtype=torch.long))
    seen = []

    class Views:
        """Views that are the images, and darker ones."""

        def mixed(self, pairs, generator):
            seen.append(len(seen))
            return pairs._replace(clean=pairs.clean * (1.0 if len(seen) % 2 else 0.5))

    settle(model, train, Views(), 4, 0)
    assert len(seen) == 4 and model[0].momentum == 0.3 and not model[0].training
    assert torch.allclose(model[0].running_mean, 0.75 * images.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(model[0].running_var, images.var((0, 2, 3)) * (1 + 0.25) / 2, rtol=1e-3)


def test_ctrl_c_while_the_statistics_are_renewed_restores_them(images):
    model, train = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3)).eval(), Pairs(images, images[:0], torch.zeros(len(images), dtype=torch.long))
    model[0].running_mean.fill_(2.0)

    class Struck:
        def mixed(self, pairs, generator):
            if model[0].num_batches_tracked:
                raise KeyboardInterrupt
            return pairs

    with pytest.raises(KeyboardInterrupt):
        settle(model, train, Struck(), 4, 0)
    assert model[0].momentum == 0.3 and (model[0].running_mean == 2).all() and model[0].num_batches_tracked == 0


def test_ctrl_c_there_keeps_the_history(victim, monkeypatch):
    interrupt_call(monkeypatch, importlib.import_module("gradprune.defenses.consistency"), "settle", 1)
    result = defend("repair", victim)
    assert result.interrupted and len(result.rows("tune")) > 1


def test_the_figures_shown_are_those_of_the_returned_model(victim):
    """It steps back, and its statistics are renewed, after the last epoch."""
    result, held = defend("repair", victim, steps=3, first=2, sturdy=1.0), draw_defense_images(victim.data.defense, 2).validation
    shown = next(row for row in result.history if row.get("kept"))
    assert shown["val_clean_loss"] == pytest.approx(validate(result.model, unpaired(held, "cpu")).clean_loss, rel=1e-4)


# --- the roads ---


@pytest.mark.slow
def test_a_sturdy_model_is_repaired_with_no_class_suspected(monkeypatch):
    monkeypatch.setattr(repairing, "scan", None)  # would raise if it were called
    shipped = gp.load_victim("badnets")
    result = gp.defenses.repair(shipped.model, shipped.data.defense, spc=2, steps=60, first=10, progress=False)
    images = shipped.data.test.subset(slice(0, 600))
    given, after = (gp.evaluate(model, images, shipped.trigger, shipped.target) for model in (shipped.model, result.model))
    assert given.asr > 0.95 and after.asr < 0.1 and after.ra > 0.7 and after.acc > 0.7, "a fifth of its steps"
    assert result.stopped.endswith("of the answers, so the model learned to ignore them (consistency)") and not result.mask.positions


def test_a_family_that_is_left_out_is_not_used(victim, monkeypatch):
    used, find = set(), Consistent.find

    def watched(self, *arguments):
        changes = find(self, *arguments)
        used.update(change.family for change in changes)
        return changes

    monkeypatch.setattr(Consistent, "find", watched)
    result = defend("repair", victim, families=("waves", "warp"), steps=6, first=2)
    assert used == {"waves", "warp"} and result.settings["families"] == ("waves", "warp")


@pytest.fixture
def unsteady(victim, monkeypatch):
    """Small changes alter 30 % of the answers, and a scan, whose settings are noted, finds no suspect."""
    asked, found = [], Scan([], tuple("abcd"), 2.0, None, None, None, "The verdict.", victim.data.defense, {}, [], [])
    monkeypatch.setattr(repairing, "unsteadiness", lambda *_: 0.3)
    monkeypatch.setattr(repairing, "scan", lambda *_, **settings: asked.append(settings) or found)
    return asked


UNASKED = {"steps": 1, "first": 2, "changes": 2}
SAID = ("small random changes alter 30% of the answers, so a scan looked for a target. The verdict. Learning to ignore such "
        "changes kept 50% of the clean answers in a trial, so the model was left as it is")


def test_a_model_with_no_suspect_that_would_lose_its_answers_is_left_as_it_is(victim, monkeypatch, unsteady):
    monkeypatch.setattr(repairing, "kept_on_trial", lambda *_: 0.5)
    result = defend("repair", victim, **UNASKED, sturdy=0.2, scan_steps=7)
    assert result.stopped == SAID and result.suspect is None and [settings["steps"] for settings in unsteady] == [7]
    assert victim.evaluate(result.model) == victim.evaluate()


def test_two_classes_are_repaired_without_a_scan(data, unsteady, monkeypatch):
    two = data.defense.labels < 2
    images = ImageSet(data.defense.images[two], data.defense.labels[two], ("one", "other"))
    monkeypatch.setattr(repairing, "kept_on_trial", lambda *_: 0.5)
    result = gp.repair(build("preact_resnet", 2, width=4, blocks=(1,)), images, spc=2, progress=False, sturdy=0.2, changes=2)
    assert "a scan needs at least three classes. Learning to ignore" in result.stopped and not unsteady


@pytest.mark.parametrize(("families", "words"), [(("patchs",), "family 'patchs'; did you mean patches"), ((), "at least one family")])
def test_families_that_are_not_there(victim, families, words):
    refuses(words, defend, "repair", victim, families=families)


def test_a_model_with_no_suspect_that_keeps_its_answers_learns_to_ignore_changes(victim, monkeypatch, unsteady):
    """The trial learns from half of the images, the repair itself from all."""
    made, tune = [], repairing.consistent_tune

    def watched(given, model, mask, train, *more, steps, **settings):
        made.append((len(train.labels), steps))
        return tune(given, model, mask, train, *more, steps=steps, **settings)

    monkeypatch.setattr(repairing, "consistent_tune", watched)
    few = {"steps": 1, "trial_steps": 2, "first": 2, "changes": 2, "spc": 10}
    result = defend("repair", victim, **few, sturdy=0.2, kept=0.01)
    assert made == [(20, 2), (40, 1)] and "in a trial, so the model learned to ignore them (consistency)" in result.stopped
    monkeypatch.setattr(repairing, "scan", None)  # would raise if it were called
    result = defend("repair", victim, **few, sturdy=0.4)
    assert made[2:] == [(40, 1)] and "consistency" in result.stopped, "no scan, no trial"


def test_a_trial_that_is_interrupted_ends_the_repair(victim, monkeypatch, unsteady):
    monkeypatch.setattr(repairing, "consistent_tune", lambda *_, **__: [{"interrupted": True}])
    result = defend("repair", victim, **UNASKED, sturdy=0.2)
    assert result.interrupted and result.stopped == "interrupted" and victim.evaluate(result.model) == victim.evaluate()


def test_what_is_kept_by_hand(victim, monkeypatch):
    """The trial's model gives another answer for the brighter half of the views, which are of images that it has not seen."""
    light, seen = [], []

    def spoil(given, model, mask, train, validation, augment, *_, **__):
        seen.extend((train.clean, validation.clean))
        views = augment(validation, torch.Generator().manual_seed(0), 8).clean.mean((1, 2, 3))
        light.append(views)
        model.register_forward_hook(lambda module, inputs, answers: torch.where(
            (inputs[0].mean((1, 2, 3)) > views.median())[:, None], -answers, answers))
        return [{}]

    monkeypatch.setattr(repairing, "consistent_tune", spoil)
    share = kept_on_trial(victim.model, victim.data.defense, 10, ("waves",), repairing.DEFAULTS, 0, False)
    assert share == pytest.approx((light[0] <= light[0].median()).float().mean().item())
    assert [len(half) for half in seen] == [20, 20] and torch.cdist(*(half.flatten(1) for half in seen)).min() > 0


def test_triggers_take_turns(images):
    wrapped = Alternating([nn.Identity(), Inverted(torch.ones(1, *images.shape[2:]), torch.ones(images.shape[1:]))])
    worn = wrapped(images)
    assert torch.equal(worn[::2], images[::2]) and (worn[1::2] == 1).all() and not (images == 1).all()


def test_unsteadiness_counts_answers_that_change(images):
    class Corner(nn.Module):
        """Its answer turns with the mean of the image, by a hair or not at all."""

        def __init__(self, scale):
            super().__init__()
            self.scale = scale

        def forward(self, x):
            return torch.stack([self.scale * (x - images[:1]).mean((1, 2, 3)), torch.full((len(x),), 1e-4)], 1)

    assert unsteadiness(Corner(0.0), images) == 0
    assert 0.2 < unsteadiness(Corner(1.0), images[:1].repeat(4, 1, 1, 1)) <= 1


# --- how far changes lead ---


def test_exposure_by_hand(victim, images):
    """What a row says is so: the change leads that share of the second half of the images, those elsewhere, there."""
    rows = exposure(victim.model, images, families=("patches", "waves"), drawn=8)
    assert {row.family for row in rows} == {"patches", "waves"} and rows[0].share >= rows[1].share
    others = images[1::2]
    usual = predict(victim.model, others).argmax(1)
    for row in rows:
        away = others[usual != row.label]
        said = predict(victim.model, row.change(away)).argmax(1)
        assert row.share == pytest.approx((said == row.label).float().mean().item())
    assert rows[0].label == victim.target, "a backdoor is what leads furthest"


def test_exposure_toward_a_class_counts_ways_there_alone(victim, images):
    """By hand, and: a class that no backdoor leads to is harder to reach than the target."""
    other = (victim.target + 1) % 4
    shares = {}
    for label in (victim.target, other):
        rows = exposure(victim.model, images, families=("patches", "waves"), drawn=8, toward=label)
        assert {row.family for row in rows} == {"patches", "waves"} and {row.label for row in rows} == {label}
        away = images[1::2][predict(victim.model, images[1::2]).argmax(1) != label]
        for row in rows:
            said = predict(victim.model, row.change(away)).argmax(1)
            assert row.share == pytest.approx((said == label).float().mean().item())
        shares[label] = rows[0].share
    assert shares[victim.target] > shares[other]
    refuses("0 to 3, got 4", exposure, victim.model, images, toward=4)


def test_exposure_repeats_and_takes_two_images_at_least(victim, images):
    once, twice = (exposure(victim.model, images, families=("warp",), drawn=4, seed=3)[0] for _ in range(2))
    assert (once.label, once.share) == (twice.label, twice.share)
    refuses("two images or more", exposure, victim.model, images[:1])
