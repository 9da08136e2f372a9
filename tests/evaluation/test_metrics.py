"""ACC, ASR, RA and DER against toy sets counted by hand."""

import pytest
import torch
from conftest import defend, refuses
from torch import nn
from toys import ReadsTheCorner

from gradprune.datasets import ImageSet
from gradprune.defenses import grad_prune
from gradprune.evaluation import Metrics, der, evaluate, replay
from gradprune.evaluation.metrics import BATCH, exam, measure, verdict
from gradprune.models import predict


def add_one(images):
    """A trigger that raises every pixel by one class."""
    return images + 1 / 255


def stamp(answers):
    """A trigger that makes the model give these answers."""
    def trigger(images):
        images = images.clone()
        images[:, 0, 0, 0] = torch.tensor(answers) / 255
        return images
    return trigger


def toy(answers, labels):
    images = torch.zeros(len(answers), 3, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor(answers, dtype=torch.uint8)
    return ImageSet(images, torch.tensor(labels), ("a", "b", "c"))


def test_counts_by_hand():
    # clean answers:  0 1 0 1 1 ; labels 0 1 1 1 2  -> 3 of 5 right
    # triggered:      1 2 1 2 2 ; target 2, so image 5 (label 2) does not count
    # of the first four: answers 1 2 1 2 -> 2 go to the target; labels 0 1 1 1 -> 1 right
    test = toy([0, 1, 0, 1, 1], [0, 1, 1, 1, 2])
    assert evaluate(ReadsTheCorner(3), test, add_one, target=2) == Metrics(acc=3 / 5, asr=2 / 4, ra=1 / 4)


def test_the_target_class_never_counts_in_asr():
    alone = toy([1, 1], [2, 2])
    refuses("every test image is of the target class", evaluate, ReadsTheCorner(3), alone, add_one, target=2)
    assert evaluate(ReadsTheCorner(3), toy([1, 1, 0], [2, 2, 0]), add_one, target=2).asr == 0


def test_all_to_all_counts_every_image_against_its_next_class():
    # clean answers: 0 1 2 0 1 ; labels 0 1 2 1 1     -> 4 of 5 right
    # triggered:     1 2 0 1 0 ; wanted 1 2 0 2 2     -> 3 of 5 are what the attacker wants, 1 is right
    test = toy([0, 1, 2, 0, 1], [0, 1, 2, 1, 1])
    counted = evaluate(ReadsTheCorner(3), test, stamp([1, 2, 0, 1, 0]), target=None, label_map="all_to_all")
    assert counted == Metrics(acc=4 / 5, asr=3 / 5, ra=1 / 5)
    refuses("Unknown label map", evaluate, ReadsTheCorner(3), test, add_one, target=1, label_map="one_to_one")


def test_batch_size_does_not_matter(victim):
    whole = evaluate(victim.model, victim.data.test, victim.trigger, victim.target)
    assert evaluate(victim.model, victim.data.test, victim.trigger, victim.target, batch_size=7) == whole


def test_no_more_images_at_once_than_the_batch_size_says():
    """An evaluation on a small graphics card rests on it; without a word the size is `BATCH`."""
    model, seen = ReadsTheCorner(3), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    test = toy([0, 1, 0, 1, 1], [0, 1, 1, 1, 2])
    evaluate(model, test, add_one, 2, batch_size=3)
    assert seen == [3, 2, 3, 1], "clean, then triggered without the target class"
    seen.clear()
    test = toy([0] * 65, [0] * 65)
    questions = exam(test, add_one, 2)
    measure(model, questions, 33)
    measure(model, questions)
    evaluate(model, test, add_one, 2)
    assert BATCH == 64 and seen == [33, 32] * 2 + [64, 1] * 4


@pytest.mark.parametrize(("before", "after", "expected"), [
    (0.0999, 0.0, "There was no backdoor to remove"),
    (0.1, 0.05, "The backdoor no longer works"),
    (1.0, 0.05, "The backdoor no longer works"),
    (1.0, 0.0501, "The backdoor is weaker but still there"),
    (0.8, 0.4, "The backdoor is weaker but still there"),
    (0.8, 0.401, "The defence failed"),
    (0.8, 1.0, "The defence failed"),
])
def test_the_verdict_at_its_borders(before, after, expected):
    assert verdict(Metrics(0.9, before, 0.1), Metrics(0.9, after, 0.9)) == expected


@pytest.mark.parametrize(("before", "after", "expected"), [
    (Metrics(0.9, 1.0, 0.0), Metrics(0.9, 0.0, 0.9), 1.0),
    (Metrics(0.9, 1.0, 0.0), Metrics(0.8, 0.0, 0.8), 0.95),   # an ACC drop lowers it (one toolbox adds it)
    (Metrics(0.9, 0.5, 0.0), Metrics(0.95, 0.5, 0.0), 0.5),   # a gain in ACC is not counted
    (Metrics(0.9, 0.5, 0.0), Metrics(0.4, 0.9, 0.0), 0.25),   # a rise of ASR is not counted
])
def test_der_is_the_formula(before, after, expected):
    assert der(before, after) == pytest.approx(expected)


def test_prediction_restores_each_modules_mode():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(8, 2))
    model.train()
    model[1].eval()  # as after freezing BatchNorm by hand
    statistics = model[1].running_mean.clone()
    predict(model, torch.rand(4, 3, 2, 2))
    assert [module.training for module in model] == [True, False, True, True, True]
    assert torch.equal(model[1].running_mean, statistics)


def test_bad_input():
    test = toy([0], [0])
    refuses(r"^test must be an ImageSet, got list: ", evaluate, ReadsTheCorner(3), [], add_one, target=0)
    refuses("target must be a class", evaluate, ReadsTheCorner(3), test, add_one, target=3)
    refuses(r"^the test set is empty\.$", evaluate, ReadsTheCorner(3), test.subset(torch.tensor([], dtype=torch.long)),
            add_one, target=0)
    refuses(r"cannot take images of shape \(1, 2, 2\)", predict, nn.Conv2d(3, 1, 1), torch.rand(1, 1, 2, 2))


def test_replay_ends_where_the_pruned_model_is(victim):
    result = grad_prune(victim.model, victim.data.defense, victim.trigger, spc=5, recipe="paper", tune=False, progress=False)
    rows = replay(victim.model, result.history, victim.data.test, victim.trigger, victim.target)
    kept = rows[len(result.mask.positions)]
    assert (kept["acc"], kept["asr"], kept["ra"]) == tuple(victim.evaluate(result.pruned))
    assert [row["round"] for row in rows] == list(range(len(result.rows("prune"))))
    assert Metrics(*(rows[0][key] for key in ("acc", "asr", "ra"))) == victim.evaluate()


def test_closed_channels_cannot_be_replayed(victim):
    result = defend("clp", victim)
    refuses("closed channels or features, not filters", replay, victim.model, result.history, victim.data.test, victim.trigger, victim.target)


def test_replay_of_an_all_to_all_attack_counts_the_next_class(victim):
    test, given = victim.data.test, {"stage": "prune", "round": 0, "layer": None, "index": None}
    row, = replay(victim.model, [given], test, victim.trigger, None, "all_to_all")
    wanted = evaluate(victim.model, test, victim.trigger, None, label_map="all_to_all")
    assert {key: row[key] for key in ("acc", "asr", "ra")} == wanted._asdict()
    assert wanted.asr != evaluate(victim.model, test, victim.trigger, victim.target).asr
