"""The unlearning loss, the scores against a naive loop, and the recipe `paper`."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import lived_in, refuses, same
from torch import nn
from toys import parts

from gradprune.models import build
from gradprune.pruning import filter_scores, pair_up, paper, validate
from gradprune.pruning.filters import filters


def test_images_stay_as_they_are_where_a_model_normalises_in_place():
    class InPlace(nn.Sequential):
        def forward(self, images):
            return super().forward(images.sub_(0.5).div_(0.25))

    model = InPlace(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.Flatten(), nn.Linear(12, 3)).eval()
    images, labels = torch.rand(4, 3, 5, 5), torch.tensor([0, 1, 2, 0])
    before = images.clone()
    found = filters(model, images)
    one, other = (filter_scores(model, found, images, labels)[1] for _ in range(2))
    assert one == other and torch.equal(images, before)


def naive_scores(model, found, x, y, score):
    """One filter at a time, straight from the definitions."""
    model = copy.deepcopy(model).eval()
    F.cross_entropy(model(x), y).backward()
    values = []
    for layer in found.layers:
        conv = model.get_submodule(layer.name)
        for j in range(layer.count):
            w, g = conv.weight[j], conv.weight.grad[j]
            if score == "gradient":
                values.append(sum(abs(v) for v in g.flatten().tolist()) / g.numel())
            elif score == "taylor":
                values.append((w.double() * g.double()).sum().item())
            elif layer.norm:
                bn = model.get_submodule(layer.norm)
                values.append((bn.weight[j] * bn.weight.grad[j] + bn.bias[j] * bn.bias.grad[j]).item())
            else:
                bias = conv.bias[j] * conv.bias.grad[j] if conv.bias is not None else 0
                values.append(((w.double() * g.double()).sum() + bias).item())
    return torch.tensor(values, dtype=torch.double)


@pytest.mark.parametrize("score", ["gradient", "taylor", "gate"])
@pytest.mark.parametrize("name", ["preact_resnet", "small_vgg"])
def test_scores_equal_a_naive_loop(name, score):
    torch.manual_seed(0)
    model = build(name, 4, width=4).double()
    model.normalize.double()
    x, y = torch.rand(12, 3, 32, 32, dtype=torch.double), torch.arange(12) % 4
    lived_in(model, x)
    found = filters(model, x[:1])
    scores, loss = filter_scores(model, found, x, y, score)
    torch.testing.assert_close(scores.double(), naive_scores(model, found, x, y, score), rtol=1e-6, atol=1e-12)
    assert loss == pytest.approx(F.cross_entropy(model.eval()(x), y).item())


def test_taylor_predicts_what_a_small_step_does(victim):
    """The first-order claim itself: shrinking a filter a little changes the loss by -score * shrinkage."""
    model = copy.deepcopy(victim.model).double()
    model.normalize.double()
    found = filters(model, torch.rand(1, 3, 16, 16).double())
    pairs = pair_up(victim.data.defense, victim.trigger)
    x = pairs.triggered.double()
    scores, loss = filter_scores(model, found, x, pairs.labels, "taylor")
    for position in (0, 9, len(found) - 1):
        changed = copy.deepcopy(model)
        changed.get_submodule(found[position].layer).weight.data[found[position].index] *= 1 - 1e-5
        fall = loss - F.cross_entropy(changed(x), pairs.labels).item()
        assert fall / 1e-5 == pytest.approx(scores[position].item(), rel=1e-2, abs=1e-6)


def test_scoring_leaves_the_model_bit_identical(victim):
    """Fault 3 of the released code: train() inside a round moved BatchNorm towards triggered data."""
    model = copy.deepcopy(victim.model).train().requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pairs = pair_up(victim.data.defense, victim.trigger)
    filter_scores(model, filters(model), pairs.triggered, pairs.labels)
    validate(model, pairs)
    assert same(before, model)
    assert model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


class Steep(nn.Module):
    """Answers with numbers, and has no gradient there."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        answers = self.conv(images).mean((2, 3))
        return answers + (0 * answers).sqrt()


def test_gradients_that_are_nan_rank_no():
    """... filters: of NaN, the largest is the first, and `paper` would remove one layer's filters in order."""
    model = Steep()
    refuses(r"^the gradient of the unlearning loss is not finite, so it ranks no filter\.$", filter_scores, model,
            filters(model), torch.rand(8, 3, 6, 6), torch.arange(8) % 4)


def test_a_score_that_does_not_exist():
    refuses(r"^Unknown score 'gradeint'; did you mean gradient\?$", filter_scores, Steep(), filters(Steep()),
            torch.rand(1, 3, 6, 6), torch.zeros(1).long(), "gradeint")


@pytest.mark.parametrize(("trigger", "words"), [
    (lambda x: x[:, :, 1:], "the trigger changed the images' shape"),
    (lambda x: x + 0.5, "the trigger left the pixel range"),
    (lambda x: x * torch.nan, "the trigger left the pixel range"),
])
def test_bad_triggers(data, trigger, words):
    refuses(words, pair_up, data.test, trigger)


# --- recipe `paper` ---


def test_rounds_cost_no_test_images_and_no_copies(victim, monkeypatch):
    """Fault 7 of the released code: the whole test set, twice, and a deep copy of the model every round."""
    train, validation = parts(victim, 5)
    model, seen = copy.deepcopy(victim.model), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    found = filters(model, train.clean[:1])
    monkeypatch.setattr(copy, "deepcopy", lambda *_: pytest.fail("a round copied the model"))
    seen.clear()
    result = paper(model, found, train, validation, progress=False)
    rounds = len(result.history) - 1
    assert sum(seen) == rounds * len(train.labels) + (rounds + 1) * 2 * len(validation.labels)
