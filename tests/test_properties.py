"""Properties that hold for every input; `HYPOTHESIS_PROFILE=nightly` tries many more (profiles in conftest.py)."""

import copy
import math
import string

import pytest
import torch
from conftest import QUICK, lived_in, same
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from toys import ReadsTheCorner

from gradprune.attacks import TRIGGERS, make_trigger, poison
from gradprune.attacks.poisoning import LABEL_MAPS, attack_labels
from gradprune.bench.cells import COLUMNS
from gradprune.bench.store import SHARES, _line, _parse
from gradprune.datasets import ImageSet, draw_defense_images
from gradprune.defenses import DEFENSES
from gradprune.defenses.in_order import in_order
from gradprune.evaluation import evaluate
from gradprune.models import build, predict
from gradprune.models.checkpoints import load_checkpoint, load_learned, save_checkpoint
from gradprune.models.working import lay_out, layout
from gradprune.pruning import RECIPES, SCORES, FilterMask, filter_scores, fine_tune, pair_up, silence
from gradprune.pruning.filters import filters, own_tensors
from gradprune.pruning.loop import Validation
from gradprune.search import invert, outliers, perturb
from gradprune.victims.save_cleaned import slimmed

SEEDS = st.integers(0, 2**16)
FILTERS = st.integers(0, 11)  # of `network`
few = settings(max_examples=settings().max_examples // 4)  # for what takes long


def noise(seed, count, channels=3, height=16, width=16, classes=4):
    """Images of noise, of every class in turn, with pure black and pure white among the pixels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(-60, 316, (count, channels, height, width), generator=generator).clamp(0, 255)
    return ImageSet(images.to(torch.uint8), torch.arange(count) % classes, tuple(string.ascii_lowercase[:classes]))


def network(seed, blocks=(1,)):
    """A small network as training leaves them."""
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return lived_in(build("preact_resnet", 4, width=4, blocks=blocks, seed=seed), images)


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


# ---- metrics


def second(images):
    """A trigger that puts the second pixel into the place of the first."""
    return torch.cat([images[..., 1:], images[..., :1]], dim=-1)


@st.composite
def answered(draw):
    """A test set, and what the model says with and without the trigger: (classes, labels, clean, triggered)."""
    classes = draw(st.integers(2, 5))
    rows = st.lists(st.tuples(*[st.integers(0, classes - 1)] * 3), min_size=1, max_size=30)
    return classes, *map(torch.tensor, zip(*draw(rows), strict=True))


def measured(classes, labels, clean, triggered, target, label_map="all_to_one", order=None):
    order = torch.arange(classes) if order is None else order
    images = torch.stack([clean, triggered], -1)[:, None, None].to(torch.uint8)
    names = tuple(string.ascii_lowercase[:classes])
    return evaluate(ReadsTheCorner(classes, order), ImageSet(images, order[labels], names), second,
                    None if target is None else int(order[target]), label_map=label_map)


@given(answered(), st.integers(0, 4), st.sampled_from(LABEL_MAPS))
def test_every_image_counts_once(given_, target, label_map):
    """ACC and the errors make 1; of the images that count no one is both a success of the attack and robust."""
    classes, labels, clean, triggered = given_
    wanted = (labels + 1) % classes if label_map == "all_to_all" else torch.full_like(labels, target % classes)
    counted = labels != wanted
    assume(bool(counted.any()))
    figures = measured(*given_, target % classes, label_map)
    assert figures.acc + int((clean != labels).sum()) / len(labels) == pytest.approx(1)
    success, robust = (triggered == wanted) & counted, (triggered == labels) & counted
    assert not (success & robust).any()
    assert figures.asr == pytest.approx(int(success.sum()) / int(counted.sum()))
    assert figures.ra == pytest.approx(int(robust.sum()) / int(counted.sum()))
    assert figures.asr + figures.ra <= 1 + 1e-12


@given(answered(), st.integers(0, 4), st.randoms())
def test_other_numbers_for_the_classes_or_another_order_change_no_figure(given_, target, random):
    classes, labels, *answers = given_
    assume(bool((labels != target % classes).any()))
    order = list(range(classes))
    random.shuffle(order)
    shuffled = list(range(len(labels)))
    random.shuffle(shuffled)
    figures = measured(*given_, target % classes)
    assert measured(*given_, target % classes, order=torch.tensor(order)) == pytest.approx(figures)
    assert measured(classes, labels[shuffled], *(part[shuffled] for part in answers), target % classes) == \
        pytest.approx(figures)


@given(st.lists(st.floats(0.1, 100), min_size=3, max_size=12, unique=True), st.randoms())
def test_outliers_go_with_their_class(norms, random):
    order = list(range(len(norms)))
    random.shuffle(order)
    index, found = outliers(norms)
    moved, again = outliers([norms[i] for i in order])
    assert moved == pytest.approx([index[i] for i in order])
    assert [order[i] for i in again] == found


@few
@given(SEEDS, st.permutations(range(4)))
def test_norms_of_a_scan_go_with_their_class(seed, order):
    """The network's last layer, and with it the classes, in another order: the searches find the same."""
    model = network(seed)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved.linear.weight.copy_(model.linear.weight[list(order)])
        moved.linear.bias.copy_(model.linear.bias[list(order)])
    images = noise(seed, 6).floats()
    for search in (invert, perturb):
        for place, label in enumerate(order):
            one, two = (search(given_, images, target, seed=seed, steps=3, batch_size=6, progress=False)
                        for given_, target in ((model, label), (moved, place)))
            assert two.norm == pytest.approx(one.norm, rel=1e-3) and two.success == pytest.approx(one.success)


@given(SEEDS, st.integers(1, 12), st.permutations(range(4)))
def test_the_draw_takes_the_same_ranks_whatever_the_classes_are_called(seed, spc, order):
    """With as many images in each class: the k-th class gives the images at the same places among its own."""
    pool = noise(seed, 60)
    moved = ImageSet(pool.images, torch.tensor(order)[pool.labels], pool.classes)
    for part, other in zip(draw_defense_images(pool, spc, seed), draw_defense_images(moved, spc, seed), strict=True):
        assert torch.equal(part.labels, other.labels)
        for label in range(4):
            kept = [pool.images[pool.labels == was] for was in (label, order.index(label))]
            ranks = [[next(i for i, own in enumerate(mine) if torch.equal(own, image)) for image in images.images[images.labels == label]]
                     for mine, images in zip(kept, (part, other), strict=True)]
            assert ranks[0] == ranks[1]


# ---- triggers and poisoning


@pytest.mark.parametrize("name", sorted(TRIGGERS))
@given(st.integers(8, 64), st.integers(8, 64), st.sampled_from([1, 3]), SEEDS)
@example(8, 8, 1, 0)
def test_triggers_keep_range_shape_type_and_each_image_to_itself(name, height, width, channels, seed):
    images = noise(seed, 2, channels, height, width).floats()
    before, trigger = images.clone(), make_trigger(name)
    stamped = trigger(images)
    assert stamped.shape == images.shape and stamped.dtype == images.dtype
    assert stamped.isfinite().all() and stamped.min() >= 0 and stamped.max() <= 1
    assert torch.equal(images, before)
    torch.testing.assert_close(trigger(images[1]), stamped[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(TRIGGERS))
@given(st.sampled_from(LABEL_MAPS), st.floats(0, 1), st.integers(0, 3), st.sampled_from([1, 3]), SEEDS)
def test_poisoning_touches_the_stated_images_alone(name, label_map, rate, target, channels, seed):
    clean = noise(seed, 24, channels)
    images, labels = clean.images.clone(), clean.labels.clone()
    trigger = make_trigger(name)
    poisoned, touched = poison(clean, trigger, target, rate, seed, label_map)
    assert torch.equal(clean.images, images) and torch.equal(clean.labels, labels)
    rest = torch.ones(24, dtype=torch.bool)
    rest[touched] = False
    assert len(touched) == int((~rest).sum()) and touched.tolist() == sorted(touched.tolist())
    assert torch.equal(poisoned.images[rest], images[rest]) and torch.equal(poisoned.labels[rest], labels[rest])
    wanted = attack_labels(clean, target, label_map)
    assert torch.equal(poisoned.labels[touched], wanted[touched])
    assert ((wanted == labels)[touched] == (label_map == "clean_label")).all()
    fitting = int((wanted == labels).sum() if label_map == "clean_label" else (wanted != labels).sum())
    assert len(touched) == min(round(rate * (fitting if label_map == "clean_label" else 24)), fitting)
    if len(touched):
        assert torch.equal(poisoned.images[touched].float(), (trigger(clean.floats()[touched]) * 255).round())


# ---- masks and defences


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFENSES)
@few
@given(SEEDS, st.booleans(), st.booleans())
def test_a_defence_leaves_its_model_bit_for_bit_and_its_filters_dead(name, seed, training, frozen):
    """... and a filter that was silent before, or that it removed, changes nothing any more."""
    given_ = network(seed)
    silence(given_, filters(given_), [1, 7])
    given_.train(training).requires_grad_(not frozen)
    before = state(given_)
    result = DEFENSES[name](given_, noise(seed, 40), make_trigger("badnets"), spc=1, seed=seed, progress=False, **QUICK[name])
    assert same(state(given_), before)
    assert given_.training == training and all(p.requires_grad != frozen and p.grad is None for p in given_.parameters())
    found, gone = filters(result.model), [*result.mask.positions, 1, 7]
    assert len(set(gone)) == len(gone), "a filter that was silent was removed once more"
    assert not any(tensor.any() for position in gone for tensor in own_tensors(result.model, found, position))
    after = state(result.model)
    silence(result.model, found, gone)
    assert same(state(result.model), after)
    fallen = [(row["layer"], row["index"]) for row in result.rows("prune")[1:] if "channels" not in row]
    assert fallen[:len(result.mask.positions)] == [tuple(one) for one in result.mask.removed]
    assert len(set(fallen)) == len(fallen), "the mask did not only grow"


@given(SEEDS, st.sampled_from(sorted(RECIPES)), st.sampled_from(sorted(SCORES)), st.sets(FILTERS, max_size=6))
def test_masks_grow_by_one_filter_a_round(seed, recipe, score, before):
    model, images = network(seed), pair_up(noise(seed, 8), make_trigger("badnets"))
    found = filters(model)
    silence(model, found, before)
    alive, real = [], FilterMask.remove

    def watched(mask, *arguments):
        alive.append(set(mask.alive.nonzero().flatten().tolist()))
        real(mask, *arguments)
        alive.append(set(mask.alive.nonzero().flatten().tolist()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FilterMask, "remove", watched)
        more = {"k": 3} if recipe == "verified" else {}
        result = RECIPES[recipe](model, found, images, images, score=score, patience=2, progress=False, **more)
    assert all(after < earlier and len(earlier - after) == 1 for earlier, after in zip(alive[::2], alive[1::2], strict=True))
    assert alive[1::2][:-1] == alive[2::2]
    assert not before & set(result.mask.positions)


@given(SEEDS, st.sets(FILTERS, min_size=1, max_size=10))
def test_dead_filters_stay_dead_through_fine_tuning(seed, dead):
    model, images = network(seed), pair_up(noise(seed, 8), make_trigger("badnets"))
    found = filters(model)
    mask = FilterMask(found, dead)
    mask.apply(model)
    fine_tune(model, mask, images, images, lr=0.05, max_epochs=2, seed=seed, progress=False)
    assert not any(tensor.any() for position in dead for tensor in own_tensors(model, found, position))
    answers = predict(model, images.clean)
    silence(model, found, dead)
    assert torch.equal(predict(model, images.clean), answers)


@given(SEEDS, st.integers(0, 8))
def test_ctrl_c_while_filters_go_in_order_leaves_no_filter_between(seed, call):
    """Wherever it strikes, a filter is removed, listed and measured, or as it was."""
    model, images = network(seed), pair_up(noise(seed, 8), make_trigger("badnets"))
    found, before = filters(model), network(seed)
    calls = []

    def measured(*_):
        calls.append(1)
        if len(calls) == call + 2:  # the first is that of the given model
            raise KeyboardInterrupt
        return Validation(1.0, 0.0, 0.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradprune.defenses.in_order.validate", measured)
        result = in_order(model, found, range(6), torch.zeros(len(found)), images, alpha=None, progress=False)
    assert result.interrupted == (call < 6)
    assert result.mask.positions == list(range(min(call, 6))) and len(result.history) == 1 + min(call, 6)
    result.mask.apply(before)
    assert same(state(model), state(before))


@given(SEEDS, st.sampled_from(sorted(SCORES)), st.integers(1, 9))
def test_scores_do_not_depend_on_the_batch_split(seed, score, batch_size):
    model, images = network(seed), noise(seed, 9)
    found = filters(model)
    whole, loss = filter_scores(model, found, images.floats(), images.labels, score)
    split, other = filter_scores(model, found, images.floats(), images.labels, score, batch_size=batch_size)
    torch.testing.assert_close(split, whole, rtol=1e-3, atol=1e-5)
    assert other == pytest.approx(loss, rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card here: scores on the CPU alone")
@given(SEEDS, st.sampled_from(sorted(SCORES)))
def test_scores_do_not_depend_on_the_device(seed, score):
    model, images = network(seed), noise(seed, 9)
    here, loss = filter_scores(model, filters(model), images.floats(), images.labels, score)
    there, other = filter_scores(model.cuda(), filters(model), images.floats().cuda(), images.labels.cuda(), score)
    torch.testing.assert_close(there, here, rtol=1e-2, atol=1e-4)
    assert other == pytest.approx(loss, rel=1e-3)


# ---- saved and loaded again

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=20)
NUMBER = st.floats(allow_nan=False)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | NUMBER | st.text(),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8)


@given(SEEDS, st.sampled_from(sorted(TRIGGERS)), st.dictionaries(st.text().map("own {}".format), JSON, max_size=4),
       st.sampled_from([0, 1, 2]))
@example(0, "badnets", {}, 1)
@example(0, "badnets", {}, 2)
def test_a_checkpoint_comes_back_bit_for_bit(tmp_path_factory, seed, name, more, rounded):
    """rounded: which tensors are such as float16 holds: none, every second one (then all stay as they are), or all."""
    made = {"name": "preact_resnet", "num_classes": 4, "width": 4, "blocks": [1]}
    model, trigger = network(seed), make_trigger(name)
    with torch.no_grad():
        for i, tensor in enumerate(model.state_dict().values()):
            if tensor.is_floating_point() and rounded and (rounded == 2 or i % 2):
                tensor.copy_(tensor.half())
        for tensor in trigger.state_dict().values():
            learned = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(seed))
            tensor.add_(learned if tensor.is_floating_point() else (9 * learned).to(tensor.dtype))
    path = save_checkpoint(tmp_path_factory.mktemp("saved") / "model", model, {**more, "model": made}, trigger)
    loaded, card = load_checkpoint(path)
    again = make_trigger(name)
    load_learned(path, again)
    assert same(state(loaded), state(model)) and same(state(again), state(trigger))
    assert {**more, "model": made, "sha256": card["sha256"]} == card


@few
@given(SEEDS, st.sets(FILTERS, min_size=1, max_size=8))
def test_a_slim_checkpoint_answers_as_before(tmp_path_factory, seed, dead):
    pytest.importorskip("torch_pruning", reason="slimming needs torch-pruning")
    model, images = network(seed), noise(seed, 4).floats()
    silence(model, filters(model), dead)
    card = {"model": {"name": "preact_resnet", "num_classes": 4, "width": 4, "blocks": [1]}}
    small, card, _ = slimmed(model, card, images)
    loaded, read = load_checkpoint(save_checkpoint(tmp_path_factory.mktemp("slim") / "model", small, card))
    assert same(state(loaded), state(small)) and read == {**card, "sha256": read["sha256"]}
    lay_out(loaded, layout(small))  # the order of the sums depends on how weights lie in memory
    assert torch.equal(predict(loaded, images), predict(small, images))
    torch.testing.assert_close(predict(loaded, images), predict(model, images), rtol=1e-4, atol=1e-4)


@given(st.fixed_dictionaries({name: {str: TEXT, int: st.integers(0, 10**9), float: st.none() | st.floats(0, 1 if name in SHARES else 1e12)}[kind]
                              for name, kind in COLUMNS.items()}))
def test_a_row_of_a_bench_comes_back(row):
    told = {name: " ".join(value.split()) if name in ("error", "stopped") else value for name, value in row.items()}
    line = _line(row)
    assert "\n" not in line and _parse(line) == told
    assert _parse(line[:-1]) is None and _parse("1" + line) is None, "a torn or changed row passes for a whole one"


def test_a_row_keeps_spaces_in_a_path():
    """... or the same command would not find the row again."""
    row = {name: "" if kind is str else 0 for name, kind in COLUMNS.items()} | {"attack": "my  models/a b"}
    assert _parse(_line(row))["attack"] == "my  models/a b"


def test_numbers_that_are_none_stay_empty():
    row = {name: "" if kind is str else None for name, kind in COLUMNS.items()} | {"spc": 2, "seed": 0, "threads": 1}
    assert _parse(_line(row)) == row and not math.isnan(row["spc"])
