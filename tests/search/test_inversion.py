"""The search for a trigger by a script: which step is kept, when the weight rises and falls, what a step does."""

import pytest
import torch
import torch.nn.functional as F
from conftest import refuses, same
from torch import nn

from gradprune.search import Inverted, Perturbed, invert, outliers, perturb
from gradprune.search.inversion import search

IMAGES = torch.arange(4.0).reshape(4, 1, 1, 1) / 4
SETTINGS = {"steps": 1, "batch_size": 4, "lr": 0.1, "betas": (0.5, 0.9), "cost": 1.0, "goal": 0.75, "patience": 2, "factor": 4.0}


def scripted(hits, norms, **changes):
    """Run `search`: in step i `hits[i]` of 4 images go to the class (1), and the trigger has the norm `norms[i]`."""
    steps = iter(range(len(hits)))
    model = nn.Module()
    model.forward = lambda images: F.one_hot((torch.arange(len(images)) < hits[int(images[0])]).long(), 3).float()

    def form(free):
        if free[0].requires_grad:  # a step; otherwise a copy for the result
            form.step = next(steps)
        return Stamp(form.step), norms[form.step] + free[0].sum() * 0

    class Stamp(nn.Module):
        def __init__(self, step):
            super().__init__()
            self.step = step

        def forward(self, images):
            return images * 0 + self.step + 0 * start[0]

    start = [torch.zeros(1)]
    settings = SETTINGS | {"steps": len(hits)} | changes
    return search(model, IMAGES, 1, start, form, settings, torch.Generator().manual_seed(0), False)


@pytest.mark.parametrize(("hits", "norms", "kept"), [
    ([0, 3, 4, 3, 2], [5, 3, 4, 3, 1], 3),   # the smallest that reached the goal (3 of 4), of two alike the later
    ([3, 4, 4], [2, 3, 4], 0),
    ([0, 2, 1], [5, 1, 3], 2),               # none did: the last
    ([2, 4, 0], [1, 9, 0], 1),               # one that did is better than any that did not
])
def test_the_smallest_mark_that_reached_the_goal_is_kept(hits, norms, kept):
    found = scripted(hits, norms)
    assert found.trigger.step == kept and found.norm == norms[kept]
    assert found.success == hits[kept] / 4 and found.converged == (max(hits) >= 3)
    assert [row["norm"] for row in found.history] == norms and [row["step"] for row in found.history] == [*range(len(hits))]
    assert [row["success"] for row in found.history] == [hit / 4 for hit in hits]


def test_the_weight_rises_after_steps_above_the_goal_and_falls_after_steps_below():
    """Two in a row count; the weight falls by the factor to the power of 1.5, here 8."""
    found = scripted([3, 3, 3, 0, 3, 0, 0, 0, 3, 0, 0, 0, 0, 0], [1] * 14)
    assert [row["cost"] for row in found.history] == [1, 1, 4, 4, 4, 4, 4, .5, .5, .5, .5, 1 / 16, 1 / 16, 1 / 128]
    found = scripted([3] * 6, [1] * 6, patience=3, factor=10.0, cost=0.5)
    assert [row["cost"] for row in found.history] == [.5, .5, .5, 5, 5, 5]


class Linear(nn.Module):
    """Answers that are linear in the pixels, of 3 x 2 x 2 images."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 4)
        self.layer.weight.data = torch.linspace(-3, 3, 48).reshape(4, 12).sin()
        self.layer.bias.data = torch.tensor([0.1, 0.0, -0.2, 0.3])
        self.seen = []

    def forward(self, images):
        self.seen.append(images.detach())
        return self.layer(images.flatten(1))


def by_hand(model, images, start, form, settings, batches):
    """Adam, written out, on cross-entropy to class 2 plus weight times norm; every step above (below) moves the weight."""
    free, cost, rows = start, settings["cost"], []
    first, second = ([torch.zeros_like(tensor) for tensor in free] for _ in range(2))
    for step, batch in enumerate(batches, 1):
        free = [tensor.detach().requires_grad_() for tensor in free]
        stamped, norm = form(free, images[batch])
        logits = model(stamped)
        loss = -logits.log_softmax(1)[:, 2].mean()
        rows.append((loss.item(), norm.item()))
        reached = (logits.argmax(1) == 2).float().mean() >= settings["goal"]
        cost = cost * settings["factor"] if reached else cost / settings["factor"] ** 1.5
        gradients = torch.autograd.grad(loss + cost * norm, free)
        for i, (tensor, gradient) in enumerate(zip(free, gradients, strict=True)):
            one, two = settings["betas"]
            first[i] = one * first[i] + (1 - one) * gradient
            second[i] = two * second[i] + (1 - two) * gradient**2
            move = first[i] / (1 - one**step) / ((second[i] / (1 - two**step)).sqrt() + 1e-8)
            free[i] = tensor.detach() - settings["lr"] * move
    return rows


@pytest.mark.parametrize(("kind", "more"), [(invert, {}), (perturb, {"bound": 0.3})])
def test_steps_equal_steps_by_hand(kind, more):
    """Start, minibatches, loss, norm, weight and Adam; the model sees no image twice in a step."""
    images = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    settings = {"steps": 6, "batch_size": 4, "lr": 0.2, "betas": (0.4, 0.8), "cost": 0.05, "goal": 0.5, "patience": 1, "factor": 1.5}
    model = Linear()
    found = kind(model, images, 2, seed=3, progress=False, **settings, **more)
    generator = torch.Generator().manual_seed(3)
    if kind is invert:  # tanh keeps mask and pattern in 0..1
        start = [torch.randn(1, 2, 2, generator=generator), torch.randn(3, 2, 2, generator=generator)]

        def form(free, batch):
            mask, pattern = ((tensor.tanh() + 1) / 2 for tensor in free)
            return batch * (1 - mask) + pattern * mask, mask.sum()
    else:
        start = [torch.randn(3, 2, 2, generator=generator) / 10]

        def form(free, batch):
            pattern = 0.3 * free[0].tanh()
            return (batch + pattern).clamp(0, 1), pattern.square().sum().sqrt()

    batches = [torch.randperm(6, generator=generator)[:4] for _ in range(6)]
    wanted = by_hand(Linear(), images, start, form, settings, batches)
    assert [len(batch) for batch in model.seen] == [4] * 6
    for row, (loss, norm) in zip(found.history, wanted, strict=True):
        assert (row["loss"], row["norm"]) == (pytest.approx(loss, rel=1e-4), pytest.approx(norm, rel=1e-4))
    assert kind(Linear(), images, 2, progress=False, **settings).history == \
        kind(Linear(), images, 2, seed=0, progress=False, **settings).history


def test_fewer_images_than_a_batch_are_all_taken():
    model = Linear()
    assert len(invert(model, torch.rand(3, 3, 2, 2), 1, steps=2, progress=False).history) == 2
    assert [len(batch) for batch in model.seen] == [3, 3]


def test_what_the_search_leaves_alone():
    """Modes come back, and no gradient lands in the model; images that are not square are fine."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for kind, shapes in ((invert, {"mask": (1, 4, 6), "pattern": (3, 4, 6)}), (perturb, {"pattern": (3, 4, 6)})):
        tensors = kind(model, torch.rand(4, 3, 4, 6), 0, steps=2, progress=False).trigger.state_dict()
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes, "kept with the trigger"
        assert not any(tensor.requires_grad for tensor in tensors.values())
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert same(before, model)


def test_synthesised_triggers_by_hand():
    images = torch.tensor([0.2, 0.8]).reshape(2, 1, 1, 1).expand(2, 1, 1, 2)
    mask, pattern = torch.tensor([[[0.0, 0.25]]]), torch.tensor([[[1.0, 0.6]]])
    torch.testing.assert_close(Inverted(mask, pattern)(images).flatten(), torch.tensor([0.2, 0.3, 0.8, 0.75]))
    moved = Perturbed(torch.tensor([[[0.3, -0.3]]]))(images)
    torch.testing.assert_close(moved.flatten(), torch.tensor([0.5, 0.0, 1.0, 0.5]))


@pytest.mark.parametrize(("kind", "settings", "words"), [
    (invert, {"steps": 0}, r"^steps and batch_size must be at least 1\.$"),
    (invert, {"batch_size": 0}, r"^steps and batch_size must be at least 1\.$"),
    (invert, {"bound": 0.1}, "^Unknown search setting bound; known: steps"),
    (perturb, {"step": 1}, "^Unknown search setting step; known: steps"),
    (perturb, {"bound": 0}, r"^bound must lie in 0\.\.1, above 0, got 0\.$"),
    (perturb, {"bound": 1.01}, r"^bound must lie in 0\.\.1, above 0, got 1\.01\.$")])
def test_bad_settings(kind, settings, words):
    refuses(words, kind, Linear(), IMAGES, 0, **settings)


def test_borders_of_the_settings():
    for kind, more in ((invert, {}), (perturb, {"bound": 1})):
        assert len(kind(Linear(), torch.rand(1, 3, 2, 2), 0, progress=False, steps=1, batch_size=1, **more).history) == 1
    refuses(r"^the search for a trigger needs at least one image\.$", perturb, Linear(), torch.rand(0, 3, 2, 2), 0)
    for kind, target in ((invert, 4), (perturb, -1)):
        refuses(rf"^the model has classes 0\.\.3, got target {target}\.$", kind, Linear(), torch.rand(2, 3, 2, 2), target)


def test_the_index_does_not_depend_on_the_unit_of_the_norms():
    norms = [10.0, 11.0, 12.0, 1.0, 9.0]
    index, found = outliers([norm / 1000 for norm in norms])
    assert index == pytest.approx(outliers(norms)[0]) and found == [3]


def test_outliers_at_the_border():
    """Median 10, median absolute deviation 1; the index of the fourth is 4 / 1.4826."""
    norms = [10.0, 11.0, 12.0, 6.0, 9.0]
    border = outliers(norms)[0][3]
    assert border == pytest.approx(4 / 1.4826)
    assert outliers(norms, border)[1] == [] and outliers(norms, border - 1e-9)[1] == [3]
    assert outliers([10.0, 11.0, 12.0, 2.0, 9.0, 1.0, 11.0, 10.0, 9.0])[1] == [5, 3], "the smallest first"
    assert outliers([10.0, 10.0, 10.0, 10.0, 1.0]) == ([0.0] * 5, []), "no spread, no measure of how far off one is"
    assert outliers([10.0, 10.9, 9.0, 11.0, 10.5, 9.5, 7.3])[1] == [6] and outliers([10.0, 10.9, 9.0, 11.0, 10.5, 9.5, 7.4])[1] == []


@pytest.mark.parametrize("way", [invert, perturb])
def test_a_search_works_inside_no_grad(way):
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with torch.no_grad():
        assert len(way(net, torch.rand(4, 3, 2, 2), 1, steps=2, progress=False).history) == 2
