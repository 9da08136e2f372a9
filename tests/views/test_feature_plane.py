"""The plane of features: the shares are the model's own answers, the trigger pushes to the right, and bad input is refused."""

import copy

import torch
from conftest import refuses

from gradprune.models import predict
from gradprune.pruning import silence
from gradprune.pruning.filters import filters
from gradprune.views.figures.feature_plane import _plane, feature_plane


def test_the_shares_are_the_answers_and_every_image_is_drawn(victim):
    test, home = victim.data.test, 0
    found = filters(victim.model, test.floats()[:1])
    dead = copy.deepcopy(victim.model)
    silence(dead, found, range(found.layers[0].count))
    picture = feature_plane({"given": victim.model, "dead": dead}, test, victim.trigger, victim.target, home)
    signs = test.subset(test.labels == home).triggered(victim.trigger)
    shares = [[f"{(predict(model, signs).argmax(1) == label).float().mean():.0%}" for label in (victim.target, home)]
              for model in (victim.model, dead)]
    assert f"given, {' and '.join(shares[0])}; dead, {' and '.join(shares[1])}." in picture.summary
    drawn = [sum(len(dots.get_offsets()) for dots in ax.collections) for ax in picture.figure.axes]
    others = int((test.labels != victim.target).sum())
    named = int(((test.labels == home) | (test.labels == victim.target)).sum())
    assert drawn == [len(test) + others + named] * 2
    assert picture.png()


def test_the_first_direction_is_where_the_trigger_pushes():
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(40, 6, generator=generator)
    for push in (9.0, -9.0):
        moved = clean + push * torch.eye(6)[2]
        middle, plane = _plane(clean, moved)
        left, right = (((part - middle) @ plane)[:, 0] for part in (clean, moved))
        assert right.min() > left.max()
        assert torch.allclose(plane.T @ plane, torch.eye(2), atol=1e-5)


def test_bad_input_is_refused(victim):
    for models, home, message in (({}, 0, "no model"), ({"given": victim.model}, victim.target, "two classes with images")):
        refuses(message, feature_plane, models, victim.data.test, victim.trigger, victim.target, home)
