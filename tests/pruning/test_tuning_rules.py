"""Fine-tuning, the views and the distilled lesson on networks of a few numbers: steps by hand, which epoch stays, what is told."""

import copy
import functools
import math
import re
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import interrupt_call, refuses, same
from torch import nn
from toys import FOUND, MODEL, Mixed, images_of, pairs_of, silenced

from gradprune.attacks import augment as augmenting
from gradprune.attacks import fit
from gradprune.attacks.training import portions
from gradprune.datasets import ImageSet
from gradprune.defenses.in_order import in_order
from gradprune.pruning import Augment, Pairs, Validation, distilled, fine_tuning, loop, paper, verified
from gradprune.pruning.distilled import Distilled, distilled_tune
from gradprune.pruning.filters import FilterMask, Filters, filters, silence
from gradprune.pruning.fine_tuning import both_losses, clean_loss, fine_tune
from gradprune.pruning.loop import validate
from gradprune.search import invert

# --- fine-tuning ---


def test_the_two_losses_by_hand():
    pairs = pairs_of(4)
    clean, triggered = (F.cross_entropy(MODEL(images), pairs.labels) for images in (pairs.clean, pairs.triggered))
    torch.testing.assert_close(both_losses(MODEL, pairs), clean + triggered)
    torch.testing.assert_close(clean_loss(MODEL, pairs), clean)


def test_batches_hold_every_pair_once():
    pairs = pairs_of(8)
    parts = pairs.batches(3, torch.Generator().manual_seed(0))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    assert [len(part.labels) for part in parts] == [3, 3, 2]
    for whole, pieces in zip(pairs, zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(pieces), whole[order])
    alone = pairs._replace(triggered=pairs.clean[:0]).batches(3, torch.Generator().manual_seed(0))
    assert [tuple(part.triggered.shape) for part in alone] == [(0, 3, 4, 4)] * 3


def test_a_rest_of_one_joins_the_batch_before_it():
    parts = pairs_of(7).batches(3, torch.Generator().manual_seed(0))
    assert [len(part.labels) for part in parts] == [3, 4]
    assert [portions(count, 3) for count in (0, 1, 2, 3, 4, 5, 6)] == [[], [1], [2], [3], [4], [3, 2], [3, 3]]
    assert portions(3, 1) == [1, 1, 1]  # asked for


@pytest.mark.parametrize("count", [9, 1])
def test_batchnorm_of_one_pixel(count):
    """A rest of one image is no batch; a single image has no spread, which one sentence says."""
    model = nn.Sequential(nn.Conv2d(3, 5, 4), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5, 3))
    mask = FilterMask(filters(model, images_of(1)))
    pairs = pairs_of(count)
    pairs = pairs._replace(triggered=pairs.clean[:0])
    tune = functools.partial(fine_tune, model, mask, pairs, pairs_of(2), loss=clean_loss, batch_size=4, max_epochs=1, progress=False)
    train = functools.partial(fit, model, ImageSet((pairs.clean * 255).to(torch.uint8), pairs.labels, ("a", "b", "c")), epochs=1,
                              batch_size=4, shift=0, progress=False)
    for learn in (tune, train):
        if count > 1:
            assert learn()
        else:
            refuses("BatchNorm cannot learn from a batch of one image", learn)


def by_hand(model, train, epochs, lr, momentum, weight_decay, batch_size, seed, statistics):
    """Stochastic gradient descent written out; the removed filters are silenced after each step."""
    generator, speed = torch.Generator().manual_seed(seed), [torch.zeros_like(tensor) for tensor in model.parameters()]
    for epoch in range(epochs):
        torch.rand(1, generator=generator)  # what `renew` draws
        for batch in torch.randperm(len(train.labels), generator=generator).split(batch_size):
            model.train()
            model.norm.train(statistics == "moving")
            logits = model(torch.cat([train.clean[batch], train.triggered[batch]]))
            loss = 2 * F.cross_entropy(logits, train.labels[batch].repeat(2))
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for tensor, gradient, moved in zip(model.parameters(), gradients, speed, strict=True):
                    moved.mul_(momentum).add_(gradient + weight_decay * tensor)
                    tensor.sub_(lr(epoch) * moved)
            silence(model, FOUND, [6])
    return model.eval()


@pytest.mark.parametrize("statistics", ["moving", "fixed"])
def test_steps_equal_steps_by_hand(statistics):
    """Order, loss, optimizer, decay, mask and statistics."""
    model, train = silenced(MODEL, FOUND, 6), pairs_of(6)
    wanted = by_hand(copy.deepcopy(model), train, 3, lambda epoch: 0.02 * 0.5**epoch, 0.8, 0.1, 4, 5, statistics)
    history = fine_tune(model, FilterMask(FOUND, [6]), train, train._replace(triggered=train.clean[:0]), lr=0.02, momentum=0.8,
                        weight_decay=0.1, decay=lambda epoch: 0.5**epoch, batch_size=4, max_epochs=3, seed=5,
                        statistics=statistics, progress=False,
                        renew=lambda train, generator: (torch.rand(1, generator=generator), train)[1])
    for name, tensor in wanted.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor)
    now = validate(model, train)
    assert history[3] == {"stage": "tune", "epoch": 3, "val_acc": now.acc, "val_clean_loss": pytest.approx(now.clean_loss),
                          "val_loss": pytest.approx(now.clean_loss), "kept": True}
    assert [row["epoch"] for row in history] == [0, 1, 2, 3] and "kept" not in history[0]


@pytest.mark.filterwarnings("ignore:Detected call of")  # no batch, no step
def test_without_a_word_fine_tuning_takes_the_papers_settings():
    one, two, pairs = Mixed(), Mixed(), pairs_of(3)
    alone = pairs._replace(triggered=pairs.clean[:0])
    fine_tune(one, FilterMask(FOUND), pairs, alone, max_epochs=2, progress=False)
    fine_tune(two, FilterMask(FOUND), pairs, alone, max_epochs=2, progress=False, lr=1e-3, momentum=0.9, weight_decay=5e-4, seed=0,
              decay=lambda epoch: 1, statistics="moving", keep="best", batch_size=128, optimizer=torch.optim.SGD)
    assert same(one, two)
    fine_tune(two, FilterMask(FOUND), pairs, alone, max_epochs=1, progress=False, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        asked = []
        patch.setattr(Pairs, "batches", lambda pairs, size, generator: asked.append((size, generator.initial_seed())) or [])
        rows = iter([(1.0, 0, 1.0)] + [(1.0, 0, 2.0)] * 200)
        patch.setattr(fine_tuning, "validate", lambda *_: Validation(*next(rows)))
        assert len(fine_tune(one, FilterMask(FOUND), pairs, pairs, progress=False)) == 11, "patience is ten epochs"
        assert len(fine_tune(one, FilterMask(FOUND), pairs, alone, progress=False)) == 101, "or a hundred in all"
        assert set(asked) == {(128, 0)}, "batches of 128, and seed 0"


@pytest.mark.parametrize(("losses", "keep", "kept", "rows"), [
    ([5, 4, 4, 3, 6, 6], "best", 3, 6), ([5, 4, 4, 3, 4, 6, 6], "last", 4, 7), ([5, 3, 4, 6], "best", 1, 4), ([5, 5, 5], "best", 0, 3), ([5, 5, 5], "last", 0, 3)])
def test_which_epoch_is_kept_and_when_it_stops(losses, keep, kept, rows, monkeypatch):
    figures = iter([(1.0, 1.0, loss - 1.0) for loss in [*losses, 9, 9]])
    monkeypatch.setattr(fine_tuning, "validate", lambda *_: Validation(*next(figures)))
    states, original = [], fine_tuning._epoch
    monkeypatch.setattr(fine_tuning, "_epoch", lambda model, *rest: (original(model, *rest), states.append(copy.deepcopy(model.state_dict()))))
    model, pairs = Mixed(), pairs_of(1)  # one triggered image is enough to watch
    states.append(copy.deepcopy(model.state_dict()))
    history = fine_tune(model, FilterMask(FOUND), pairs, pairs, patience=2, keep=keep, progress=False)
    assert len(history) == rows and [row["epoch"] for row in history if row.get("kept")] == [kept]
    assert history[1]["val_loss"] == losses[1] and history[1]["val_unlearning_loss"] == losses[1] - 1
    assert all(torch.equal(tensor, states[kept][name]) for name, tensor in model.state_dict().items())


def test_fine_tuning_stops_at_ctrl_c_and_says_so(monkeypatch):
    interrupt_call(monkeypatch, fine_tuning, "_epoch", 3)
    pairs = pairs_of(3)
    history = fine_tune(Mixed(), FilterMask(FOUND), pairs, pairs, progress=False)
    assert [row["epoch"] for row in history] == [0, 1, 2, 2] and history[3]["interrupted"] is True
    assert not any("interrupted" in row for row in history[:3])


def test_ctrl_c_before_the_first_epoch_leaves_the_model_as_it_was():
    model, pairs, verdicts = Mixed(), pairs_of(3), iter([KeyboardInterrupt, 2.0])

    def watch(one):
        verdict = next(verdicts)
        if verdict is KeyboardInterrupt or one is not model:
            raise KeyboardInterrupt
        return verdict

    history = fine_tune(model, FilterMask(FOUND), pairs, pairs, watch=watch, progress=False)
    assert history == [{"stage": "tune", "epoch": 0, **validate(model, pairs).figures(), "val_loss": 2.0, "kept": True, "interrupted": True}]
    assert same(model, Mixed())


def test_a_frozen_model_learns_all_the_same_and_is_frozen_again():
    free, frozen, pairs = Mixed(), Mixed().requires_grad_(False), pairs_of(3)
    for model in (free, frozen):
        fine_tune(model, FilterMask(FOUND), pairs, pairs._replace(triggered=pairs.clean[:0]), max_epochs=1, progress=False)
    assert same(frozen, free)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_each_epoch_has_pairs_of_its_own_and_the_callers_randomness_is_left():
    given, asked = pairs_of(4), []

    def renew(train, generator):
        asked.append((train, torch.rand(1, generator=generator).item()))
        return train

    model, ends = nn.Sequential(nn.Dropout(), Mixed()).train(), []
    state = torch.get_rng_state()
    for _ in range(2):
        tuned = copy.deepcopy(model)
        fine_tune(tuned, FilterMask(Filters([])), given, given._replace(triggered=given.clean[:0]), renew=renew, max_epochs=2,
                  seed=4, progress=False)
        ends.append(tuned.state_dict())
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items()), "same seed, same dropout"
    assert all(pairs is given for pairs, _ in asked) and len({number for _, number in asked}) == 2


def test_dropout_leaves_the_order_of_the_images_alone():
    orders = []
    for first in (nn.Identity(), nn.Dropout()):
        def noted(model, batch, order=(order := [])):
            order.extend(batch.clean.sum((1, 2, 3)).tolist())
            return clean_loss(model, batch)

        fine_tune(nn.Sequential(first, Mixed()), FilterMask(Filters([])), pairs_of(6), pairs_of(1), loss=noted, batch_size=2,
                  max_epochs=3, patience=3, progress=False)
        orders.append(order)
    assert orders[0] == orders[1] and len(orders[0]) == 18


@pytest.mark.parametrize(("settings", "words"), [
    *(({name: 0}, r"^lr, patience, max_epochs and batch_size must be positive\.$") for name in ("lr", "patience", "max_epochs", "batch_size")),
    ({"statistics": "fixd"}, r"^Unknown statistics 'fixd'; did you mean fixed"), ({"keep": "lst"}, r"^Unknown keep 'lst'; did you mean last"),
    ({"speed": 1}, r"^Unknown fine-tuning setting speed; known: optimizer, ")])
def test_fine_tuning_refuses_what_makes_no_sense(settings, words):
    pairs = pairs_of(2)
    refuses(words, fine_tune, Mixed(), FilterMask(FOUND), pairs, pairs, **settings)
    assert len(fine_tune(Mixed(), FilterMask(FOUND), pairs, pairs, patience=1, max_epochs=1, batch_size=1, progress=False)) == 2


def test_divergence_is_told_where_it_is_seen(monkeypatch):
    pairs = pairs_of(2)
    refuses(r"^fine-tuning diverged: the loss became nan; try a smaller lr\.$", fine_tune, Mixed(), FilterMask(FOUND),
            pairs, pairs, progress=False, loss=lambda model, batch: both_losses(model, batch) * torch.nan)
    figures = iter([(1.0, 1.0, 1.0), (1.0, math.inf, 1.0)])
    monkeypatch.setattr(fine_tuning, "validate", lambda *_: Validation(*next(figures)))
    refuses(r"^fine-tuning diverged: the validation loss became inf; try a smaller lr\.$", fine_tune, Mixed(),
            FilterMask(FOUND), pairs, pairs, progress=False)


# --- views and the distilled lesson ---


def test_light_by_hand():
    images = images_of(3)
    generator = torch.Generator().manual_seed(2)
    contrast, brightness = (2 * torch.rand(3, 1, 1, 1, generator=generator) - 1 for _ in range(2))
    wanted = torch.stack([(image.mean() + (image - image.mean()) * (1 + 0.4 * c) + 0.2 * b).clamp(0, 1)
                          for image, c, b in zip(images, contrast, brightness, strict=True)])
    again = torch.Generator().manual_seed(2)
    torch.testing.assert_close(augmenting.relight(images, again), wanted)
    assert torch.equal(again.get_state(), generator.get_state()), "two numbers an image, no more"


@pytest.mark.parametrize(("count", "copies"), [(1, 96), (95, 2), (96, 1), (97, 1), (48, 2), (200, 1)])
def test_how_many_views(count, copies):
    assert augmenting.copies_for(count) == copies


@pytest.mark.parametrize(("pairs", "epochs"), [(2, 40), (16, 40), (40, 32), (96, 27), (1000, 3)])
def test_how_many_epochs(pairs, epochs):
    """2 pairs and 96 views are 98: four batches of at most 32, so 40 epochs make 160 steps."""
    assert distilled.epochs_for(pairs) == epochs


class Bright(nn.Module):
    """Class 0 where the left half is brighter, 1 where the right one is; of the first `sure` images alone."""

    def __init__(self, sure=None):
        super().__init__()
        self.anchor, self.sure = nn.Parameter(torch.zeros(())), sure

    def forward(self, images):
        left, right = images[..., :2].mean((1, 2, 3)), images[..., 2:].mean((1, 2, 3))
        if self.sure is not None:
            right = torch.where(torch.arange(len(images)) < self.sure, right, 0 * right)
        return torch.stack([left, right], 1) + self.anchor


def test_flips_are_used_where_they_cost_little():
    clean = images_of(20)
    clean[..., :2] /= 2
    clean[10:] = clean[10:].flip(3)
    labels = torch.cat([torch.ones(10), torch.zeros(10)]).long()
    assert not Augment(Bright(), nn.Identity(), Pairs(clean, clean, labels)).flip, "left and right are the classes"
    same = (clean + clean.flip(3)) / 2
    same[..., 3:] += 0.1
    assert Augment(Bright(sure=0), nn.Identity(), Pairs(same, same, torch.zeros(20, dtype=torch.long))).flip


def negative(images):
    return 1 - images


def test_views_by_hand_and_what_is_added():
    pairs, augment = pairs_of(40), Augment(MODEL, negative, pairs_of(40))
    for augment.flip in (True, False):
        one = augment(pairs, torch.Generator().manual_seed(3))
        generator = torch.Generator().manual_seed(3)
        moved = augmenting.shift_and_flip(pairs.clean, 2, augment.flip, generator)
        torch.testing.assert_close(one.clean, augmenting.relight(moved, generator))
        torch.testing.assert_close(one.triggered, 1 - one.clean)
    more = augment.add_to(pairs, 7)
    views = augment(pairs, torch.Generator().manual_seed(7), 2)
    assert all(torch.equal(tensor, torch.cat([mine, new])) for tensor, mine, new in zip(more, pairs, views, strict=True))
    assert Augment(MODEL, None, pairs).paired(pairs.clean, pairs.labels).triggered.shape == (0, 3, 4, 4), "no trigger is known"
    many = pairs_of(96)
    assert augment.add_to(many, 7) is many and len(augment.add_to(pairs_of(95), 7).labels) == 190


def writes_in_place(images):
    images[:, :, -2:, -2:] = 1
    return images


def test_a_trigger_that_writes_in_place_leaves_the_clean_views_clean():
    augment = Augment(MODEL, writes_in_place, pairs_of(3))
    for views in (augment(pairs_of(3), torch.Generator().manual_seed(3)), augment.mixed(pairs_of(3), torch.Generator().manual_seed(6))):
        assert (views.triggered[:, :, -2:, -2:] == 1).all() and not (views.clean[:, :, -2:, -2:] == 1).all((1, 2, 3)).any()


def test_mixes_by_hand():
    """Half of the pairs and views get another image laid over them; the trigger comes after, the label is the first's."""
    pairs = pairs_of(3)
    augment = Augment(MODEL, negative, pairs)
    mixed = augment.mixed(pairs, torch.Generator().manual_seed(6))
    generator = torch.Generator().manual_seed(6)
    views = augment(pairs, generator, 32)
    clean = torch.cat([pairs.clean, views.clean])
    share, coin = torch.rand(99, 1, 1, 1, generator=generator), torch.rand(99, 1, 1, 1, generator=generator)
    other = clean[torch.randperm(99, generator=generator)]
    wanted = torch.stack([s * a + (1 - s) * b if c < 0.5 else a for s, c, a, b in zip(share, coin, clean, other, strict=True)])
    torch.testing.assert_close(mixed.clean, wanted)
    torch.testing.assert_close(mixed.triggered, 1 - wanted)
    assert torch.equal(mixed.labels, torch.cat([pairs.labels, views.labels]))


def test_the_distilled_loss_weighs_the_clean_answers_three_times():
    batch, other = pairs_of(3), Mixed(seed=2)
    given, clean, triggered = (model(images).softmax(1) for model, images in
                               ((MODEL, batch.clean), (other, batch.clean), (other, batch.triggered)))
    apart = [(given * (given / answer).log()).sum(1).mean() for answer in (triggered, clean)]
    torch.testing.assert_close(Distilled(MODEL)(other, batch), apart[0] + 3 * apart[1])
    torch.testing.assert_close(Distilled(MODEL, 0.5)(other, batch), apart[0] + 0.5 * apart[1])


def test_the_distilled_fine_tuning_is_as_stated(monkeypatch):
    """160 steps of 32 pairs, a rate that falls from 0.001 to 0 along a cosine, dropout off, the best epoch by what is watched."""
    asked, given, pairs = [], Mixed(seed=3), pairs_of(2)
    monkeypatch.setattr(distilled, "fine_tune", lambda *arguments, **settings: asked.append((arguments, settings)) or ["rows"])
    augment, mask, validation, model = Augment(given, nn.Identity(), pairs), FilterMask(FOUND), pairs_of(1), Mixed()
    watch = object()
    assert distilled_tune(given, model, mask, pairs, validation, augment, watch, progress=False) == ["rows"]
    arguments, settings = asked[0]
    assert all(one is other for one, other in zip(arguments, (model, mask, pairs, validation), strict=True))
    assert isinstance(settings["loss"], Distilled) and settings["loss"].given is given and settings["loss"].weight == 3
    assert [settings["decay"](epoch) for epoch in (0, 20, 40)] == pytest.approx([1, 0.5, 0])
    assert settings["renew"] == augment.mixed and (settings["lr"], settings["batch_size"], settings["dropout"]) == (1e-3, 32, False)
    assert settings["max_epochs"] == settings["patience"] == 40 and settings["seed"] == 0 and settings["progress"] is False
    assert settings["watch"] is watch and settings.keys().isdisjoint({"keep", "statistics"}), "the best epoch, statistics moving"
    distilled_tune(given, model, mask, pairs, validation, augment, watch, seed=9)
    assert asked[-1][1]["seed"] == 9 and asked[-1][1]["progress"] is True


def test_what_is_watched_decides_which_epoch_is_kept():
    verdicts, pairs, model = iter([3.0, 1.0, 2.0]), pairs_of(2), Mixed()
    history = fine_tune(model, FilterMask(FOUND), pairs, pairs._replace(triggered=pairs.clean[:0]), max_epochs=2, patience=5,
                        watch=lambda one: next(verdicts) if one is model else None, progress=False)
    assert [row["val_loss"] for row in history] == [3.0, 1.0, 2.0] and [row["epoch"] for row in history if row.get("kept")] == [1]


@pytest.mark.parametrize("dropout", [True, False])
def test_dropout_is_on_unless_it_is_told_off(dropout):
    states = []

    class Watched(nn.Dropout):
        def forward(self, images):
            states.append(self.training)
            return super().forward(images)

    pairs = pairs_of(3)
    fine_tune(nn.Sequential(Watched(), Mixed()), FilterMask(Filters([])), pairs, pairs._replace(triggered=pairs.clean[:0]),
              loss=clean_loss, max_epochs=1, dropout=dropout, progress=False)
    assert states == [False, dropout, False], "validation, one batch, validation"


def test_told_off_no_code_drops_anything_out_and_norms_learn_on():
    class Dropping(Mixed):
        def forward(self, images):
            assert not self.training
            return super().forward(F.dropout(images, 0.9, self.training))

    model, pairs = Dropping(), pairs_of(3)
    fine_tune(model, FilterMask(FOUND), pairs, pairs._replace(triggered=pairs.clean[:0]), loss=clean_loss, max_epochs=1,
              dropout=False, progress=False)
    assert not torch.equal(model.norm.running_mean, Mixed().norm.running_mean)


# --- progress ---


UNIT, ACC = r"(\dfilter/s|s/filter)", r"acc=[01]\.\d\d"


@pytest.mark.parametrize(("module", "run", "words"), [
    (loop, lambda **more: paper(Mixed(), FOUND, pairs_of(3), pairs_of(3), patience=4, alpha=1, **more),
     rf"^pruning: .*\| 3/10 \[.*{UNIT}, {ACC}, loss=\d\.\d\d\d\]"),
    (loop, lambda **more: in_order(Mixed(), FOUND, [1, 2], torch.zeros(11), pairs_of(3), alpha=None, **more),
     rf"^pruning: .*\| 2/2 \[.*{UNIT}, {ACC}\]"),
    (loop, lambda **more: verified(Mixed(), FOUND, pairs_of(3), pairs_of(3), patience=4, alpha=1, **more),
     rf"^pruning: .*\| 3/10 \[.*{UNIT}, {ACC}, objective=\d\.\d\d\d\]"),
    (fine_tuning, lambda **more: fine_tune(Mixed(), FilterMask(FOUND), pairs_of(3), pairs_of(3), max_epochs=3, patience=3, **more),
     rf"^fine-tuning: .*\| 2/3 \[.*(\depoch/s|s/epoch), {ACC}, loss=\d\.\d\d\d\]"),
    (sys.modules[invert.__module__], lambda **more: invert(MODEL, images_of(3), 1, steps=2, **more), r"^trigger of class 1: .*\| 2/2 \[")])
def test_the_bar_tells_what_is_done_and_goes(module, run, words, monkeypatch, capsys):
    monkeypatch.setattr(module, "tqdm", functools.partial(module.tqdm, mininterval=0, miniters=1, ncols=140))
    run(progress=False)
    assert capsys.readouterr().err == ""
    run()
    shown = capsys.readouterr().err.split("\r")
    assert any(re.match(words, line) for line in shown), shown
    assert not shown[-2].strip(), "the line is empty at the end"


@pytest.mark.parametrize(("module", "run", "planned"), [
    (loop, lambda: paper(Mixed(), FOUND, pairs_of(3), pairs_of(3), patience=4, alpha=1), 10),
    (loop, lambda: in_order(Mixed(), FOUND, [1, 2, 3, 4], torch.zeros(11), pairs_of(3), alpha=1e-9), 4),
    (loop, lambda: verified(Mixed(), FOUND, pairs_of(3), pairs_of(3), patience=4, alpha=1), 10),
    (fine_tuning, lambda: fine_tune(Mixed(), FilterMask(FOUND), pairs_of(3), pairs_of(3), lr=1e-9, max_epochs=30, patience=1), 30)])
def test_work_that_stops_early_leaves_no_bar_half_full(module, run, planned, monkeypatch, capsys):
    """A notebook takes a bar that closes before its end for a failure: it stays, and turns red."""
    closed = []

    class Bar(module.tqdm):
        def close(self):
            closed.append((self.n, self.total))
            super().close()

    monkeypatch.setattr(module, "tqdm", Bar)
    run()
    done, total = closed[0]
    assert total == done < planned
