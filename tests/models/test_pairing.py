"""Which norm belongs to which convolution, and which one turns its silence into a constant, on nets of four channels."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import same
from torch import nn
from toys import Wired

from gradprune.models.pairing import mixes, pair


class Steps(nn.Sequential):
    """Layers, and functions between them."""

    def __init__(self, *steps):
        super().__init__(*(step for step in steps if isinstance(step, nn.Module)))
        self.steps = steps

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


class Scale(nn.Module):
    """Each channel times a number of its own, with something done before and after."""

    def __init__(self, before=lambda x: x, after=lambda x: x, shape=(4, 1, 1)):
        super().__init__()
        self.weight, self.before, self.after, self.shape = nn.Parameter(torch.ones(4)), before, after, shape

    def forward(self, x):
        return self.after(self.before(x) * self.weight.reshape(self.shape))


# As in ConvNeXt V2: a shift under another name, which starts at zero.
SHIFT = Wired(lambda net, x: x + net.beta, beta=nn.Parameter(torch.zeros(1, 4, 1, 1)))


def conv(inputs=3):
    return nn.Conv2d(inputs, 4, 1)


def group(affine=False):
    return nn.GroupNorm(2, 4, affine=affine)


def once(x):
    """Works in the model's own pass, which records gradients, and nowhere else."""
    if not torch.is_grad_enabled():
        raise RuntimeError("not again")
    return x


def channels_last(x):
    return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize(("steps", "norms", "leaks"), [
    pytest.param((conv(), group(True)), {"0": "1"}, {}, id="its own numbers silence a channel"),
    pytest.param((conv(), Scale(after=lambda x: x + 0.5)), {}, {"0": "1"}, id="a constant that no number removes"),
    pytest.param((conv(), Scale(F.instance_norm)), {}, {}, id="zero stays zero, whatever the number"),
    pytest.param((conv(), Scale(once)), {}, {"0": "1"}, id="a norm that cannot be tried"),
    pytest.param((conv(), SHIFT), {}, {"0": "1"}, id="a shift that is zero for now"),
    pytest.param((conv(), torch.tanh, nn.MaxPool2d(2), group()), {}, {"0": "2"}, id="behind steps that keep zeros"),
    pytest.param((conv(), nn.Sequential(conv(4), group())), {}, {"1.0": "1.1"}, id="behind another convolution"),
    pytest.param((conv(), nn.Sigmoid()), {}, {}, id="no norm"),
    pytest.param((conv(), channels_last, torch.tanh, Scale(lambda x: x - x.mean((1, 2), keepdim=True), shape=(4,))), {}, {},
                 id="channels last, and each alone"),
])
def test_norms_and_leaks(steps, norms, leaks):
    """... of a frozen model, which is left as it is, like the caller's randomness."""
    model, randomness = Steps(*steps).requires_grad_(False), torch.get_rng_state()
    before = copy.deepcopy(model.state_dict())
    assert pair(model) == (norms, leaks)
    assert same(before, model.state_dict()) and torch.equal(randomness, torch.get_rng_state())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_batchnorms_are_paired_by_the_graph_however_they_are_called():
    class ByHand(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.late, self.last = conv(), nn.BatchNorm2d(4), conv(4), nn.BatchNorm2d(4)

        def forward(self, x):
            x = F.conv2d(x, self.first.weight, self.first.bias)
            x = F.batch_norm(x, self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias)
            return self.last(input=self.late(x))

    assert pair(ByHand()) == ({"first": "norm", "late": "last"}, {})


def test_a_norm_that_leaks_is_found_where_it_is_called_by_keyword():
    by_keyword = Wired(lambda net, x: net.norm(input=net.first(x)), first=conv(), norm=group())
    assert pair(by_keyword) == ({}, {"first": "norm"})


def test_which_norms_share_statistics_between_channels():
    assert [mixes(norm) for norm in (nn.BatchNorm2d(4), nn.InstanceNorm2d(4), group())] == [False, False, True]
