"""The rules of the room `pruning` on networks of a few numbers: what is told, where the borders lie, what comes first."""

import copy
import math
import operator
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import refuses, same
from torch import fx, nn
from toys import FOUND, MODEL, Mixed, Wired, assert_trials, images_of, pairs_of, silenced

from gradprune.datasets import ImageSet
from gradprune.defenses.in_order import in_order
from gradprune.defenses.inverse_masks import gated
from gradprune.models import predict
from gradprune.models.tracing import _overwrites, trace
from gradprune.pruning import SCORES, Pairs, Validation, filter_scores, loop, pair_up, paper, unpaired
from gradprune.pruning.candidate_removals import CandidateRemovals
from gradprune.pruning.filters import Filter, FilterMask, Layer, filters, own_tensors, silence, silent
from gradprune.pruning.loop import remove_in_rounds, validate
from gradprune.pruning.verified import Objective, verified

SECOND = (1, torch.tensor([1.0, 2.0]))  # of a race: the place on the list, and what it lost on two images
PAPER, VERIFIED, IN_ORDER = (sys.modules[recipe.__module__] for recipe in (paper, verified, in_order))  # the package exports the functions


# --- filters ---


def test_the_list_of_filters_as_it_is_printed():
    assert str(FOUND) == repr(FOUND) == """11 filters in 3 convolutions
  layer   filters  each looks at  silenced with
  first         4          3x3x3  norm
  second        5          4x3x3  its own weights alone
  third         2          5x1x1  its own weights alone"""
    assert FOUND.layers == (Layer("first", "norm", 4, 0, (3, 3, 3)), Layer("second", None, 5, 4, (4, 3, 3)),
                            Layer("third", None, 2, 9, (5, 1, 1)))


def test_positions_at_the_borders_of_layers():
    assert [FOUND[position] for position in (0, 3, 4, 8, 9, 10)] == [
        ("first", 0), ("first", 3), ("second", 0), ("second", 4), ("third", 0), ("third", 1)]
    assert str(Filter("second", 4)) == "second[4]" and FOUND.position("second", 4) == 8
    for position in (-1, 11):
        with pytest.raises(IndexError, match=rf"^filter position must lie in 0\.\.10, got {position}$"):
            FOUND[position]
        with pytest.raises(IndexError, match="filter position must lie in"):
            own_tensors(MODEL, FOUND, position)
    for index in (-1, 4):
        refuses(rf"^layer 'first' has filters 0\.\.3, got {index}\.$", FOUND.position, "first", index)
    refuses(r"^no convolution is named 'fourth'; there are first, second, third\.$", FOUND.position, "fourth", 0)


def test_the_numbers_of_a_filter_and_which_filters_are_silent():
    assert [tuple(tensor.shape) for tensor in own_tensors(MODEL, FOUND, 1)] == [(3, 3, 3), (), ()]
    assert torch.equal(own_tensors(MODEL, FOUND, 5)[1], MODEL.second.bias[1])
    assert [tuple(tensor.shape) for tensor in own_tensors(MODEL, FOUND, 10)] == [(5, 1, 1)]
    model = Mixed()
    silence(model, FOUND, iter([2, 6, 10]))
    assert silent(model, FOUND) == [2, 6, 10]
    model.second.bias.data[2], model.norm.bias.data[2] = 0.1, -0.1
    assert silent(model, FOUND) == [10], "one number is enough to speak"


def test_a_mask_as_it_is_printed_and_what_it_holds():
    mask = FilterMask(FOUND, removed=iter([8, 0]), before=iter([3]))
    assert mask.removed == [("second", 4), ("first", 0)] and mask.alive.tolist() == [
        position not in (0, 3, 8) for position in range(11)]
    assert str(mask) == repr(mask) == "2 of 11 filters removed: second[4], first[0]"
    assert str(FilterMask(FOUND)) == "0 of 11 filters removed"
    assert str(FilterMask(FOUND, range(6))).endswith(": first[0], first[1], first[2], first[3], second[0], second[1]")
    assert str(FilterMask(FOUND, range(7))).endswith("first[3], second[0], second[1] ...")
    for position in (3, 8):
        refuses(r"^filter (first\[3\]|second\[4\]) has been removed already\.$", mask.remove, Mixed(), position)
    model = Mixed()
    mask.apply(model)
    assert silent(model, FOUND) == [0, 3, 8]


@pytest.mark.parametrize(("model", "words"), [
    (nn.Linear(3, 2), r"^the model has no Conv2d layer, so there is no filter to prune\.$"),
    (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))),
     r"^the weights of '0' are computed \(parametrized\); remove the parametrization first\.$"),
    (nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(7, 2)),
     r"^the model could not be run on an image of shape \(2, 32, 32\) \(RuntimeError: .*3600.*\); pass one image batch as `example`\.$"),
])
def test_models_without_filters_are_told(model, words):
    refuses(words, filters, model)


# --- the trace ---


class Picky(nn.Module):
    """Takes one image size alone, and wraps what it answers."""

    def __init__(self, size, wrap):
        super().__init__()
        self.conv, self.norm, self.size, self.wrap = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), size, wrap
        self.late = nn.Conv2d(2, 2, 1)

    def forward(self, images):
        if images.shape[2:] != (self.size, self.size):
            raise ValueError(f"{images.shape[2]} pixels")
        return self.wrap(self.late(self.norm(self.conv(images))))


@pytest.mark.parametrize("wrap", [lambda out: out, lambda out: {"note": "a text", "logits": [out]}, lambda out: (None, out), lambda out: SimpleNamespace(logits=out)])
@pytest.mark.parametrize("size", [32, 64, 224])
def test_three_sizes_are_tried_and_answers_unwrapped(size, wrap):
    model = Picky(size, wrap).double()
    with torch.no_grad():
        assert [(layer.name, layer.norm) for layer in filters(model).layers] == [("conv", "norm"), ("late", None)]


def test_an_example_is_the_only_try():
    refuses(r"of shape \(1, 32, 32\) \(ValueError: 32 pixels\)", filters, Picky(48, lambda out: out))
    refuses(r"of shape \(1, 64, 64\) \(ValueError: 64 pixels\)", filters, Picky(48, lambda out: out),
            torch.rand(1, 1, 64, 64))
    assert filters(Picky(48, lambda out: out), torch.rand(1, 1, 48, 48)).layers[0].norm == "norm"


def test_a_batchnorm_of_two_convolutions_is_nobodys_and_one_without_a_scale_its_convolutions():
    two_into_one = Wired(lambda net, images: net.bare(net.c(net.norm(net.a(images)) + net.norm(net.b(images)))), a=nn.Conv2d(3, 4, 1),
                         b=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4), c=nn.Conv2d(4, 4, 1), bare=nn.BatchNorm2d(4, affine=False))
    layers = filters(two_into_one).layers
    assert [(layer.norm, layer.leak) for layer in layers] == [(None, "norm"), (None, "norm"), ("bare", None)]


class ImageFirst(nn.Module):
    """Adds a branch to the image itself, which has no history of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last, self.seen = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1), []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        return self.last(images + self.norm(self.conv(images)))


def test_one_image_is_enough_and_what_has_no_history_hides_nothing():
    model = ImageFirst()
    assert [layer.norm for layer in filters(model).layers] == ["norm", None]
    assert model.seen == [(1, 3, 32, 32)]


# --- gates ---


def test_gates_scale_what_each_filter_gives():
    factors = torch.linspace(0.1, 1.1, 11).requires_grad_()
    parameters = gated(MODEL, FOUND, factors)
    assert set(parameters) == {"first.weight", "second.weight", "second.bias", "third.weight"}
    for name, tensor in parameters.items():
        layer, own = name.split(".")[0], MODEL.get_parameter(name)
        for index in range(len(own)):
            torch.testing.assert_close(tensor[index], own[index] * factors[FOUND.position(layer, index)])
    sum(tensor.sum() for tensor in parameters.values()).backward()
    assert factors.grad is not None and all(parameter.grad is None for parameter in MODEL.parameters())


# --- pairs, loss and scores ---


def test_pairs_by_hand():
    images = ImageSet(torch.tensor([0, 51, 255]).to(torch.uint8).reshape(3, 1, 1, 1).expand(3, 3, 1, 1), torch.arange(3), ("a", "b", "c"))
    for pairs in (pair_up(images, lambda given: 1 - given), unpaired(images)):
        torch.testing.assert_close(pairs.clean[:, 0, 0, 0], torch.tensor([0, 0.2, 1]))
        assert torch.equal(pairs.labels, torch.arange(3))
    torch.testing.assert_close(pair_up(images, lambda given: 1 - given).triggered[:, 0, 0, 0], torch.tensor([1, 0.8, 0]))
    assert unpaired(images).triggered.shape == (0, 3, 1, 1)


def test_scores_are_plain_numbers_and_come_from_batches_of_500():
    seen = []
    model = Mixed()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    pairs = pairs_of(501)
    with torch.no_grad():
        scores, loss = filter_scores(model, FOUND, pairs.triggered, pairs.labels)
    assert seen == [500, 1] and scores.shape == (11,) and not scores.requires_grad
    assert loss == pytest.approx(F.cross_entropy(predict(model, pairs.triggered), pairs.labels).item(), rel=1e-5)
    model.linear.bias.data[0] = torch.inf
    refuses(r"^the unlearning loss is (nan|inf): the model or the images hold values that are not finite\.$",
            filter_scores, model, FOUND, pairs.triggered[:3], pairs.labels[:3])


def test_a_convolution_that_nobody_calls_scores_zero():
    model = Mixed()
    model.idle = nn.Conv2d(3, 2, 1)
    pairs = pairs_of(3)
    for score in ("gradient", "taylor", "gate"):
        scores, _ = filter_scores(model, filters(model, images_of(1)), pairs.triggered, pairs.labels, score)
        assert scores[11:].tolist() == [0, 0] and (scores[:11] != 0).any()


# --- what a validation tells ---


def test_validation_by_hand():
    pairs = pairs_of(5)
    order = MODEL(pairs.clean).amax(1).argsort()  # the surest image last: an answer belongs to its own image
    pairs = Pairs(*(part[order] for part in pairs))
    clean, triggered = MODEL(pairs.clean), MODEL(pairs.triggered)
    pairs = pairs._replace(labels=(clean.argmax(1) + torch.tensor([0, 0, 1, 0, 0])) % 3)
    now = validate(MODEL, pairs)
    assert now.acc == pytest.approx(0.8)
    assert now == pytest.approx(((clean.argmax(1) == pairs.labels).float().mean().item(), F.cross_entropy(clean, pairs.labels).item(),
                                 F.cross_entropy(triggered, pairs.labels).item()))
    alone = validate(MODEL, pairs._replace(triggered=pairs.clean[:0]))
    assert alone[:2] == pytest.approx(now[:2]) and math.isnan(alone.unlearning_loss)
    assert now.figures() == {"val_acc": now.acc, "val_clean_loss": now.clean_loss, "val_unlearning_loss": now.unlearning_loss}
    assert alone.figures() == {"val_acc": alone.acc, "val_clean_loss": alone.clean_loss}


def test_validation_goes_in_batches_and_halves_them_once():
    """300 pairs are 600 images: more than a batch, and where the memory ends, half of it is tried."""
    class Counts(Mixed):
        seen, room = [], 1000

        def forward(self, images):
            self.seen.append(len(images))
            if len(images) > self.room:
                raise MemoryError("out of memory")
            return super().forward(images)

    model, pairs = Counts(), pairs_of(300)
    now = validate(model, pairs)
    assert max(model.seen) == 250 and sum(model.seen) == 600
    model.room = 130
    assert validate(model, pairs) == pytest.approx(now)
    assert validate(model, pairs, torch.zeros(600, 3)).clean_loss == pytest.approx(math.log(3)), "answers that are there already"


def test_verified_predicts_the_validation_images_once_a_round(monkeypatch):
    module, seen, pairs = sys.modules["gradprune.pruning.verified"], [], (pairs_of(6), pairs_of(3))
    predicted = module.predict
    monkeypatch.setattr(module, "predict", lambda model, images: seen.append(len(images)) or predicted(model, images))
    monkeypatch.setattr(loop, "answers", lambda *_: pytest.fail("the validation images were predicted again"))
    model = copy.deepcopy(MODEL)
    result = verified(model, filters(model, images_of(1)), *pairs, patience=2, progress=False)
    assert seen == [6, 3, 12] + [6] * len(result.history), "the given model's answers; both parts; each round"


# --- rounds by a script ---


@pytest.fixture
def figures(monkeypatch):
    """Validation figures as they are given, for `paper`, `in_order` and `verified`; scores that favour the last filters."""

    def give(rows):
        rows = iter(rows)
        for module in (PAPER, VERIFIED, IN_ORDER):
            monkeypatch.setattr(module, "validate", lambda *_: Validation(*next(rows)))
        for module in (PAPER, VERIFIED):
            monkeypatch.setattr(module, "filter_scores", lambda *_: (torch.arange(11.0), 2.5))

    return give


def test_rounds_are_told_in_full(figures):
    figures([(1.0, 0.5, 9.0), (0.95, 0.25, 8.0), (0.95, 0.25, 8.0)])
    result = paper(Mixed(), FOUND, blank(), blank(), patience=1, progress=False)
    assert result.history == [
        {"stage": "prune", "round": 0, "layer": None, "index": None, "val_acc": 1.0, "val_clean_loss": 0.5, "val_unlearning_loss": 9.0},
        {"stage": "prune", "round": 1, "layer": "third", "index": 1, "score": 10.0, "train_loss": 2.5,
         "val_acc": 0.95, "val_clean_loss": 0.25, "val_unlearning_loss": 8.0, "kept": True},
        {"stage": "prune", "round": 2, "layer": "third", "index": 0, "score": 9.0, "train_loss": 2.5,
         "val_acc": 0.95, "val_clean_loss": 0.25, "val_unlearning_loss": 8.0}]
    assert result.mask.positions == [10] and not result.interrupted
    assert result.stopped == "1 rounds without a lower validation loss"


def blank():
    return Pairs(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.zeros(1, dtype=torch.long))


def test_without_a_word_alpha_is_a_tenth_and_patience_ten(figures):
    figures([(1.0, 0, 1.0)] + [(1.0, 0, 2.0)] * 9 + [(0.905, 0, 2.0)] * 2)
    result = paper(Mixed(), FOUND, blank(), blank(), progress=False)
    assert result.stopped == "10 rounds without a lower validation loss" and len(result.history) == 11
    figures([(1.0, 0, 1.0), (0.9, 0, 0.5)])
    result = paper(Mixed(), FOUND, blank(), blank(), progress=False)
    assert result.stopped == "validation accuracy fell by 10 points (alpha is 10)" and not result.mask.positions


def test_removed_filters_are_never_picked_again(figures):
    """Fault 2 of the released code: without a mask it re-picked dead filters (34 of 40 rounds)."""
    model = Mixed()
    figures([(1.0, 0, 9.0)] + [(0.001, 0, 2.0 - i / 9) for i in range(10)])
    result = paper(model, FOUND, blank(), blank(), alpha=1, progress=False)
    assert result.mask.positions == list(range(10, 0, -1)), "the scores always favour filter 10"
    assert result.stopped == "one filter was left" and silent(model, FOUND) == list(range(1, 11))


def test_stops_after_patience_and_returns_to_the_best_round(figures):
    model = Mixed()
    figures([(1.0, 0, loss) for loss in (9, 8, 5, 6, 6, 6)])
    result = paper(model, FOUND, blank(), blank(), patience=3, progress=False)
    assert result.stopped == "3 rounds without a lower validation loss"
    assert result.mask.positions == [10, 9], "two rounds led to the lowest loss"
    assert len(result.history) == 6, "the rounds that were taken back stay in the history"
    assert same(model, silenced(MODEL, FOUND, 10, 9)), "a filter taken back has its weights again"


def test_the_score_asked_for_is_the_one_that_decides():
    pairs, order = pairs_of(6), {}
    for score in SCORES:
        rows = paper(Mixed(), FOUND, pairs, pairs, score=score, alpha=1, patience=3, progress=False).history
        order[score] = [FOUND.position(row["layer"], row["index"]) for row in rows[1:]]
        scores, _ = filter_scores(MODEL, FOUND, pairs.triggered, pairs.labels, score)
        assert order[score][0] == int(scores.argmax()) and rows[1]["score"] == pytest.approx(float(scores.max()))
    assert len({tuple(picked) for picked in order.values()}) == len(SCORES)


def test_what_was_silent_before_is_not_picked(figures):
    figures([(1.0, 0, 9.0 - i) for i in range(12)])
    result = paper(silenced(MODEL, FOUND, 10, 8), FOUND, blank(), blank(), progress=False)
    assert result.mask.before == (8, 10) and result.mask.positions == [9, 7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize(("recipes", "settings", "words"), [
    ((paper, verified), {"alpha": 0}, r"^alpha must lie in 0\.\.1, got 0\.$"),
    ((paper, verified), {"alpha": 1.5}, r"^alpha must lie in 0\.\.1, got 1\.5\.$"),
    ((paper, verified), {"patience": 0}, r"^patience must be at least 1 round, got 0\.$"),
    ((verified,), {"k": 0}, r"^k must be at least 1 filter, got 0\.$"), ((verified,), {"weight": -0.1}, r"^weight must not be negative, got -0\.1\.$")])
def test_recipes_refuse_what_makes_no_sense(recipes, settings, words):
    for recipe in recipes:
        refuses(words, recipe, Mixed(), FOUND, blank(), blank(), **settings)


def test_filters_in_a_given_order(figures):
    model = silenced(MODEL, FOUND, 4)
    figures([(1.0, 0.5, math.nan), (0.97, 0.25, math.nan), (0.95, 0.25, math.nan), (0.9, 0.75, math.nan)])
    result = in_order(model, FOUND, [7, 4, 2, 5, 1], torch.arange(11) / 2, blank(), alpha=0.1, progress=False)
    assert result.stopped == "validation accuracy fell by 10 points (alpha is 10)" and not result.interrupted
    assert result.history == [
        {"stage": "prune", "round": 0, "layer": None, "index": None, "val_acc": 1.0, "val_clean_loss": 0.5},
        {"stage": "prune", "round": 1, "layer": "second", "index": 3, "score": 3.5, "val_acc": 0.97, "val_clean_loss": 0.25},
        {"stage": "prune", "round": 2, "layer": "first", "index": 2, "score": 1.0, "val_acc": 0.95, "val_clean_loss": 0.25, "kept": True},
        {"stage": "prune", "round": 3, "layer": "second", "index": 1, "score": 2.5, "val_acc": 0.9, "val_clean_loss": 0.75}]
    assert result.mask.positions == [7, 2] and result.mask.before == (4,)
    assert same(model, silenced(MODEL, FOUND, 7, 4, 2))


def test_filters_in_order_without_a_limit(figures):
    figures([(1.0, 0, 0)] + [(0.0, 0, 0)] * 3)
    result = in_order(Mixed(), FOUND, [1, 2, 3], torch.zeros(11), blank(), alpha=None, progress=False)
    assert result.stopped == "all filters that the method picked were removed" and result.mask.positions == [1, 2, 3]
    figures([(1.0, 0, 0), (0.01, 0, 0)])
    assert in_order(Mixed(), FOUND, [1], torch.zeros(11), blank(), alpha=1, progress=False).mask.positions == [1]
    for alpha in (0, 1.1):
        refuses(rf"^alpha must lie in 0\.\.1, got {alpha}\.$", in_order, Mixed(), FOUND, [1], torch.zeros(11), blank(),
                alpha=alpha)


def interrupted_at(count):
    """Validations until Ctrl-C."""
    yield from [(1.0, 0, 9.0 - i) for i in range(count)]
    raise KeyboardInterrupt


def test_interruption_says_so(figures):
    for run in (lambda model: paper(model, FOUND, blank(), blank(), progress=False),
                lambda model: in_order(model, FOUND, range(5), torch.zeros(11), blank(), alpha=None, progress=False)):
        figures(interrupted_at(3))
        result = run(Mixed())
        assert (result.stopped, result.interrupted) == ("interrupted", True) and len(result.mask.positions) == 2


def test_going_back_restores_what_was_removed_after_the_best_round():
    model, mask = Mixed(), FilterMask(FOUND, before=[1])
    mask.apply(model)
    given = copy.deepcopy(model.state_dict())
    queue, values = iter([(3, {}), (7, {}), (9, {}), "enough"]), iter([5.0, 1.0, 2.0, 3.0])
    result = remove_in_rounds(model, mask, lambda alive: next(queue), lambda: (Validation(1, 0, 0), next(values), {}),
                              rounds=3, alpha=None, progress=False)
    assert [row.get("kept") for row in result.history] == [None, True, None, None] and result.stopped == "enough"
    assert result.mask.positions == [3] and result.mask.before == (1,) and result.mask.filters is FOUND
    assert silent(model, FOUND) == [1, 3]
    assert torch.equal(model.second.weight, given["second.weight"]) and torch.equal(model.second.bias, given["second.bias"])


# --- recipe `verified` by a script, and whole against rounds by hand ---


@pytest.fixture
def chosen(figures, monkeypatch):
    """`verified` with validation objectives as given; the race always takes the second on the list. Notes what it was asked."""

    def run(values, model=None, found=FOUND, pairs=None, won=SECOND, **settings):
        asked, values = [], iter(values)

        def second(trials, goal, shortlist, terms, mistakes):
            assert trials.traced, "whole runs would take longer"
            asked.append({"goal": goal, "shortlist": shortlist, "terms": terms, "mistakes": mistakes})
            return won

        def noted(model, found, triggered, labels, score):
            asked.append(score)
            return torch.arange(float(len(found))), 2.5

        figures([(1.0, 0.5, 9.0)] * 30)
        monkeypatch.setattr(VERIFIED, "filter_scores", noted)
        monkeypatch.setattr(VERIFIED, "fastest_candidate", second)
        monkeypatch.setattr(Objective, "__call__", lambda *_: torch.tensor(next(values)))
        pairs = pairs or pairs_of(4)
        return verified(model or Mixed(), found, pairs, pairs_of(2), progress=False, **settings), asked

    return run


def test_rounds_of_verified_are_told_in_full(chosen):
    result, asked = chosen([5.0, 4.0, 4.0, 6.0], patience=2, k=3)
    told = {"stage": "prune", "val_acc": 1.0, "val_clean_loss": 0.5, "val_unlearning_loss": 9.0}
    more = {"train_loss": 2.5, "rank": 1, "objective": 0.75}
    assert result.history == [
        {"round": 0, "layer": None, "index": None, "val_objective": 5.0, **told},
        {"round": 1, "layer": "third", "index": 0, "score": 9.0, "val_objective": 4.0, "kept": True, **more, **told},
        {"round": 2, "layer": "second", "index": 4, "score": 8.0, "val_objective": 4.0, **more, **told},
        {"round": 3, "layer": "second", "index": 3, "score": 7.0, "val_objective": 6.0, **more, **told}]
    assert result.stopped == "2 rounds without a lower validation objective" and not result.interrupted
    assert result.mask.positions == [9] and asked[0] == asked[2] == "gate"
    assert [one["shortlist"] for one in asked[1::2]] == [[10, 9, 8], [10, 8, 7], [10, 7, 6]]
    assert torch.equal(asked[3]["terms"], torch.tensor([1.0, 2.0])), "what the winner lost on each image guides the next race"


def test_what_a_race_is_told_before_the_first_round(chosen):
    """So many mistakes are too many: those of the given model and alpha of the pairs; the list leaves one filter standing."""
    pairs = pairs_of(10)
    wrong = int((predict(MODEL, pairs.clean).argmax(1) != pairs.labels).sum())
    result, asked = chosen([5.0], pairs=pairs, won=None)
    assert 0 < wrong < 10 and wrong + 0.99 < asked[1]["mistakes"] < wrong + 1
    assert result.stopped == "every trial would cost 10% of clean accuracy on the training pairs" and not result.mask.positions
    assert asked[1]["shortlist"] == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1] and asked[1]["goal"].weights.tolist() == [3.0] * 10 + [1.0] * 10
    torch.testing.assert_close(asked[1]["terms"], asked[1]["goal"].terms(predict(MODEL, asked[1]["goal"].images)))
    _, asked = chosen([5.0], pairs=pairs, won=None, alpha=0.25, weight=0, k=1)
    assert wrong + 2.49 < asked[1]["mistakes"] < wrong + 2.5 and asked[1]["shortlist"] == [10] and asked[1]["goal"].weights.max() == 1


def test_without_a_word_sixteen_filters_are_tried_and_ten_rounds_waited(chosen):
    model = nn.Sequential(nn.Conv2d(3, 20, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 3)).eval()
    result, asked = chosen([5.0] * 30, model, filters(model, images_of(1)))
    assert len(asked[1]["shortlist"]) == 16 and len(result.history) == 11 and not result.mask.positions
    assert result.stopped == "10 rounds without a lower validation objective"
    result, _ = chosen([1.0 / (i + 1) for i in range(30)], model, filters(model, images_of(1)), alpha=1, patience=1, won=(0, torch.ones(2)))
    assert result.stopped == "one filter was left" and result.mask.positions == [*range(19, 0, -1)]


def test_verified_is_interrupted(chosen):
    result, _ = chosen(loss for _, _, loss in interrupted_at(3))
    assert (result.stopped, result.interrupted) == ("interrupted", True) and len(result.mask.positions) == 2


def test_verified_equals_rounds_by_hand_down_to_the_last_filter():
    train, validation, given = pairs_of(6), pairs_of(3, seed=4), silenced(MODEL, FOUND, 5)
    model = copy.deepcopy(given)
    result = verified(model, FOUND, train, validation, alpha=1, patience=100, k=4, weight=2, progress=False)
    goal, check, fallen, now, checked = Objective(given, train, 2), Objective(given, validation, 2), [5], copy.deepcopy(given), []
    checked.append(check(predict(now, check.images)).item())
    while len(fallen) < 10:
        scores, _ = filter_scores(now, FOUND, train.triggered, train.labels, "gate")
        scores[fallen] = -torch.inf
        tried = []
        for position in scores.topk(min(4, 10 - len(fallen))).indices.tolist():
            trial = silenced(now, FOUND, position)
            tried.append((round(goal(predict(trial, goal.images)).item(), 5), position))
        lowest, winner = min(tried, key=lambda one: one[0])  # of two alike the first on the list
        silence(now, FOUND, [winner])
        fallen.append(winner)
        checked.append(check(predict(now, check.images)).item())
        told = result.history[len(checked) - 1]
        assert (told["layer"], told["index"]) == FOUND[fallen[-1]] and told["objective"] == pytest.approx(lowest, rel=1e-4)
    assert result.stopped == "one filter was left" and len(result.history) == 10 and result.mask.before == (5,)
    assert [row["val_objective"] for row in result.history] == pytest.approx(checked, rel=1e-4)
    best = checked.index(min(checked))
    assert result.mask.positions == fallen[1:best + 1]
    assert same(model, silenced(MODEL, FOUND, *fallen[:best + 1]))


# --- the objective ---


def test_the_objective_by_hand():
    pairs, weight = pairs_of(3)._replace(labels=torch.tensor([1, 0, 0])), 2.0  # class 2 stands in no label
    goal = Objective(MODEL, pairs, weight)
    logits = predict(Mixed(seed=5), goal.images)
    given, now, triggered = (logits.softmax(1) for logits in (predict(MODEL, pairs.clean), *logits.split(3)))
    kept, asked = (given * (given / now).log()).sum(1), -triggered[range(3), pairs.labels].log()
    torch.testing.assert_close(goal.terms(logits), torch.cat([weight * kept, asked]))
    torch.testing.assert_close(goal(logits), (asked.sum() + weight * kept.sum()) / 3)
    wrong = (now.argmax(1) != pairs.labels).tolist()
    assert goal.wrong(logits).tolist() == [*wrong, False, False, False] and goal.pairs == 3
    torch.testing.assert_close(goal(torch.stack([logits, -logits])), torch.stack([goal(logits), goal(-logits)]))
    chosen = torch.tensor([4, 0])
    part = goal.of(chosen)
    torch.testing.assert_close(part.terms(logits[chosen]), goal.terms(logits)[chosen])
    assert part.wrong(logits[chosen]).tolist() == [False, wrong[0]] and part.pairs == 3 and torch.equal(part.images, goal.images[chosen])
    assert torch.equal(goal.images, torch.cat([pairs.clean, pairs.triggered])), "the whole stays as it is"


# --- trials ---


@pytest.mark.parametrize(("change", "writes"), [
    (lambda x: x.add_(1), True), (lambda x: F.relu_(x), True), (lambda x: F.relu(x, inplace=True), True), (nn.ReLU(inplace=True), True),
    (lambda x: x.add(1), False), (F.relu, False), (lambda x: F.relu(x, inplace=False), False), (nn.ReLU(), False), (lambda x: x + 1, False)])
def test_what_overwrites_its_input_is_known(change, writes):
    """A trial computes again from activations that are kept, so nothing may write into them."""
    model = Wired(lambda net, images: net.own(net.conv(images)).mean((2, 3)), conv=nn.Conv2d(3, 2, 1), own=change).eval()
    found = filters(model)
    graph = trace(model, {"conv"})
    assert [_overwrites(graph, node) for node in graph.graph.nodes][2] == writes
    trials = CandidateRemovals(model, found, images_of(2))
    assert trials.traced
    assert_trials(trials, model, found, images_of(3), [0, 1])


@pytest.mark.parametrize(("target", "writes"), [(operator.iadd, True), (operator.isub, True), (operator.imul, True), (operator.add, False)])
def test_steps_in_place_of_a_graph_that_was_not_traced(target, writes):
    graph = fx.Graph()
    assert _overwrites(fx.GraphModule(nn.Module(), graph), graph.call_function(target, (graph.placeholder("x"), 1))) == writes


class Reader(Mixed):
    """Reads a parameter of its own and calls with names."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0, 3.0, -1.0]))
        self.inner = nn.Module()
        self.inner.shift = nn.Parameter(torch.tensor(0.5))

    def forward(self, images):
        return torch.mul(input=super().forward(images) + self.inner.shift, other=self.scale)


class Named(Mixed):
    """Calls modules and methods with names."""

    def forward(self, images):
        out = self.second(input=self.norm(input=self.first(input=images)).relu()).relu()
        return self.linear(input=self.third(input=out).mean(dim=(2, 3), keepdim=False))


@pytest.mark.parametrize("kind", [Mixed, Reader, Named])
def test_trials_by_hand_traced_and_whole(kind):
    model, images = kind(), images_of(70)
    before, trials = copy.deepcopy(model.state_dict()), CandidateRemovals(model, FOUND, images[:2])
    plain, seen = copy.deepcopy(model), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    for chunks in ([], [64, 6] * 12):  # traced: activations are used again; whole: no more images at once than the chunk holds
        assert trials.traced == (not chunks)
        _, answers = assert_trials(trials, plain, FOUND, images, range(11))
        assert sorted(seen) == sorted(chunks) and answers.shape == (11, 70, 3)
        now, none = trials.logits(images, [])
        assert none.shape == (0, 70, 3) and now.shape == (70, 3)
        assert same(before, model)
        trials.graph, trials.traced = None, False


class Twice(nn.Module):
    """6 filters: those of `again` come twice in a row, those of `idle` reach nothing."""

    def __init__(self):
        super().__init__()
        self.again, self.idle, self.linear = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1), nn.Linear(3, 3)

    def forward(self, images):
        images = self.again(self.again(images).relu()).relu()
        self.idle(images)
        return self.linear(images.mean((2, 3)))


def test_trials_of_filters_that_come_twice_or_reach_nothing():
    model, images = Twice().eval(), images_of(5)
    found = filters(model, images[:1])
    trials = CandidateRemovals(model, found, images)
    now, answers = assert_trials(trials, model, found, images, range(6))
    assert trials.traced and len(found) == 6
    assert all(torch.equal(answers[position], now) for position in (3, 4, 5))


class OwnKind(nn.Conv2d):
    """As libraries have: a convolution whose code a tracer would step into."""

    def forward(self, images):
        return super().forward(images * 1.0)


def test_a_librarys_own_convolution_is_one_step():
    model = Mixed()
    model.second = OwnKind(4, 5, 3, padding=1)
    assert CandidateRemovals(model, FOUND, images_of(2)).traced


def test_a_trace_that_answers_otherwise_is_not_used():
    class Moody(Mixed):
        def forward(self, images):
            return super().forward(images) * (2 if isinstance(images, torch.Tensor) else 1)

    class ByHand(Mixed):
        def forward(self, images):
            images = F.conv2d(images, self.first.weight, padding=1)
            return self.linear(self.third(self.second(self.norm(images).relu()).relu()).mean((2, 3)))

    class Aside(Mixed):
        def forward(self, images):
            images = self.second(self.norm(self.first(images)).relu()).relu()
            return self.linear(F.conv2d(images, self.third.weight).mean((2, 3)))

    for kind in (Moody, Aside):
        trials = CandidateRemovals(kind(), FOUND, images_of(2))
        assert not trials.traced
        now, _ = trials.logits(images_of(3), [0])
        torch.testing.assert_close(now, predict(kind(), images_of(3)))
    assert CandidateRemovals(ByHand(), FOUND, images_of(2)).traced, "the BatchNorm is called, and silencing it is enough"
