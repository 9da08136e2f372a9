"""SAU, FST and IMS: the defining property of each."""

import copy
import importlib

import pytest
import torch
from conftest import defend
from torch import nn

from gradprune.defenses import inverse_masks
from gradprune.defenses.common import Work
from gradprune.models import evaluating, predict
from gradprune.pruning import unpaired
from gradprune.pruning.filters import filters

fst, ims, sau = (importlib.import_module(f"gradprune.defenses.{name}") for name in ("fst", "ims", "sau"))


@pytest.fixture(scope="module")
def images(victim):
    return unpaired(victim.data.defense)


@pytest.mark.parametrize("name", ["sau", "ims"])
def test_all_images_are_learned_from(victim, monkeypatch, name):
    seen, original = [], Work.__init__

    def look(self, *arguments, **settings):
        original(self, *arguments, **settings)
        seen.append(len(self.train.labels))

    monkeypatch.setattr(Work, "__init__", look)
    defend(name, victim)
    assert seen == [12], "two images of each of four classes, and one that others hold out"


# --- SAU ---


def test_shared_examples_fool_both_models_into_one_class(victim, images):
    given, model = victim.model, copy.deepcopy(victim.model)
    weight = model.linear.weight.data
    weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    with evaluating(given), evaluating(model):
        delta = sau.shared_examples(model, given, images.clean, images.labels, sau.DEFAULTS)
    assert delta.abs().max() <= sau.DEFAULTS["bound"] + 1e-6

    def shared(turned):
        one, other = (predict(network, turned).argmax(1) for network in (model, given))
        return ((one == other) & (one != images.labels)).float().mean()

    assert shared(images.clean + delta) > 0.95 > shared(images.clean + sau.DEFAULTS["bound"])


def test_an_image_rests_where_both_models_are_fooled_alike(victim, images):
    """What is left out of a search's later steps would not have moved in them: searching each image alone is the same."""
    some, labels = images.clean[:6], images.labels[:6]
    with evaluating(victim.model):
        together = sau.shared_examples(victim.model, victim.model, some, labels, sau.DEFAULTS)
        alone = [sau.shared_examples(victim.model, victim.model, some[i:i + 1], labels[i:i + 1], sau.DEFAULTS) for i in range(6)]
    assert (together == torch.cat(alone)).float().mean() > 0.99  # sums in another order


def test_the_divergence_of_two_answers():
    p = torch.tensor([[0.0, 0.0], [50.0, 0.0], [50.0, 0.0]])
    q = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    torch.testing.assert_close(sau.divergence(p, q), torch.tensor([0.0, 0.0, torch.tensor(2.0).log()]), atol=1e-5, rtol=0)


def test_unlearning_counts_the_chosen_rows_alone_and_lets_go_of_what_is_unlearned():
    logits = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 0.0], [0.0, 9.0]], requires_grad=True)
    loss = sau.unlearning(logits, torch.zeros(4, dtype=torch.long), torch.tensor([True, False, True, True]))
    assert loss.item() == pytest.approx((2 * 0.6931 + 0.001) / 4, abs=1e-3)
    slope = torch.autograd.grad(loss, logits)[0]
    assert slope[0, 0] > 0 > slope[0, 1] and not slope[1].any() and not slope[3].any(), "p(target) < 0.001 rests"


def test_sau_lowers_asr_and_leaves_the_statistics(victim):
    result = defend("sau", victim, spc=10, steps=80, lr=5e-4)
    before, after = victim.evaluate(victim.model), victim.evaluate(result.model)
    assert after.asr < before.asr - 0.3 and after.acc > 0.8
    norms = [(a, b) for a, b in zip(victim.model.modules(), result.model.modules(), strict=True) if isinstance(a, nn.BatchNorm2d)]
    assert norms and all(torch.equal(a.running_mean, b.running_mean) for a, b in norms)


# --- FST ---


def test_the_new_head_keeps_the_old_norm_and_turns_away(victim):
    def cosine(alpha):
        new = defend("fst", victim, spc=10, steps=30, alpha=alpha, lost=1.1).model.linear.weight
        old = victim.model.linear.weight
        torch.testing.assert_close(new.norm(), old.norm())
        return ((new * old).sum() / old.norm() ** 2).item()

    assert cosine(1.0) < cosine(1e-9) - 0.1 and cosine(1.0) < 0.2


def test_alpha_is_halved_while_it_costs_too_much(victim):
    assert defend("fst", victim, lost=1.1).stopped == "all steps were made, with an alpha of 0.2"
    assert defend("fst", victim, lost=1e-9, alpha=0.4).stopped == "all steps were made, with an alpha of 0.05"
    assert [row["epoch"] for row in defend("fst", victim).rows("tune")] == [0, 1, 2]


def test_the_head_is_drawn_anew_within_its_bound():
    layer = nn.Linear(400, 50)
    fst.draw_anew(layer, 0)
    assert 0.045 < layer.weight.abs().max() <= 0.05 and layer.bias.abs().max() <= 0.05
    assert abs(layer.weight.mean().item()) < 0.001
    first = layer.weight.clone()
    fst.draw_anew(layer, 0)
    assert torch.equal(layer.weight, first)


# --- IMS ---


def test_the_inverse_gate_is_complementary():
    mask, nothing = torch.linspace(0, 1, 11), torch.zeros(11)
    torch.testing.assert_close(inverse_masks.gates(mask, nothing, 20) + inverse_masks.gates(1 - mask, nothing, 20), torch.ones(11))
    assert inverse_masks.gates(mask, nothing, 20)[[0, -1]].tolist() == pytest.approx([4.54e-5, 1], abs=1e-4)
    assert inverse_masks.gates(mask, nothing + 1, 20).tolist() == [1.0] * 11, "what is kept is open in both"


def test_agreement_and_disagreement_by_hand():
    sure, other = torch.tensor([[30.0, 0.0]]), torch.tensor([[0.0, 30.0]])
    even = torch.zeros(1, 2)
    assert inverse_masks.agree(sure, sure).item() == pytest.approx(0, abs=1e-5) == inverse_masks.disagree(sure, other).item()
    assert inverse_masks.agree(sure, even).item() == pytest.approx(0.6931, abs=1e-3) == inverse_masks.disagree(sure, even).item()
    assert inverse_masks.agree(sure, other) > 15 and inverse_masks.disagree(sure, sure) > 15


def test_the_changes_are_followed_by_the_inverse_and_turn_the_given_model(victim, images):
    with evaluating(victim.model), torch.no_grad():
        answers = victim.model(images.clean)
    with evaluating(victim.model):
        turned = inverse_masks.changed(victim.model, victim.model, images.clean, answers, ims.DEFAULTS | {"search_steps": 20, "search_lr": 0.01})
    assert 0.05 < (turned - images.clean).abs().max() < 0.25, "twenty steps of Adam, each of about its rate"

    def missed(seen):
        now = predict(victim.model, seen)
        return inverse_masks.agree(now, now) + inverse_masks.disagree(now, answers)

    assert missed(turned) < 0.8 * missed(images.clean)


def test_ims_changes_nothing_but_the_scale_of_filters(victim):
    result = defend("ims", victim, first_rounds=80, rounds=5, kept=0.1, lr=0.1)
    given, after = victim.model.state_dict(), result.model.state_dict()
    convolutions = {f"{layer.name}.weight" for layer in result.mask.filters.layers}
    assert all(torch.equal(given[key], after[key]) for key in given if key not in convolutions)
    factors = torch.cat([((after[key] * given[key]).sum((1, 2, 3)) / given[key].pow(2).sum((1, 2, 3)))
                         for key in given if key in convolutions])
    assert 0 <= factors.min() < 0.9 and factors.max() <= 1 + 1e-6
    for key in convolutions:
        ratio = (after[key] * given[key]).sum((1, 2, 3), keepdim=True) / given[key].pow(2).sum((1, 2, 3), keepdim=True)
        torch.testing.assert_close(after[key], ratio * given[key])
    closed = int((factors < 0.5).sum())
    assert result.stopped == f"{closed} of 48 gates are below one half" and result.history[-1]["channels"] == closed
    assert not result.mask.positions and result.pruned is result.model, "a BatchNorm's shift stays, so no filter is silent"


def test_the_inverse_forgets_the_clean_task_while_the_mask_keeps_it(victim, images):
    """After the first part; with 48 filters the released weight of `kept`, a mean over them, would hold all gates open."""
    with evaluating(victim.model):
        masks = inverse_masks.Masks(victim.model, filters(victim.model, images.clean[:1]), ims.DEFAULTS)
        list(masks.learn(images.clean, 40, torch.Generator().manual_seed(0), first=True, weight=0.3))
        with torch.no_grad():
            right = [float((masks.through(inverse)(images.clean).argmax(1) == images.labels).float().mean())
                     for inverse in (False, True)]
    assert right[0] > 0.9 and right[1] < 0.5


def test_a_part_ends_when_it_no_longer_improves(victim, images):
    masks = inverse_masks.Masks(victim.model, filters(victim.model, images.clean[:1]), ims.DEFAULTS | {"patience": 3})
    losses = iter([1.0, 0.5, 0.495, 0.49, 0.47, 0.47, 0.47, 0.47, 0.47])
    masks.loss = lambda batch, first: next(losses) + 0 * (masks.mask + masks.kept).sum()
    rounds = list(masks.learn(images.clean, 20, torch.Generator().manual_seed(0), first=False, weight=0.0))
    assert len(rounds) == 9, "0.47 is an improvement on 0.5, 0.495 and 0.49 are not, and four in a row end it"
