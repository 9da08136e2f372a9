"""The networks of the field: every filter is found, falls silent, can be tried and slimmed; names stay the library's."""

import copy
import re
import sys

import numpy as np
import pytest
import torch
import torchvision
from conftest import lived_in, refuses, same
from torch import nn
from toys import Wired, assert_trials, behind, silenced

from gradprune.models import MODELS, build, evaluating, normalized, predict
from gradprune.models.checkpoints import load_checkpoint, save_checkpoint
from gradprune.pruning.candidate_removals import CandidateRemovals
from gradprune.pruning.filters import filters, silent
from gradprune.victims.slimming import slim

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
NETWORKS = {
    "preact_resnet18": {"width": 4}, "vgg16_bn": {"width": 4}, "vgg19_bn": {"width": 4}, "resnet18": {},
    "mobilenet_v3_small": {"width": 4}, "timm/mobilenetv3_small_050": {}}
# All filters, and those of layers without a BatchNorm of their own.
COUNTS = {
    "preact_resnet18": (300, 180), "vgg16_bn": (264, 0), "vgg19_bn": (344, 0), "resnet18": (4800, 0),
    "mobilenet_v3_small": (2368, 768), "timm/mobilenetv3_small_050": (5840, 2592)}


def test_whole_numbers_among_the_parameters():
    """An order of channels, kept as a parameter, takes no gradient."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).train()
    model.order = nn.Parameter(torch.arange(4), requires_grad=False)
    with evaluating(model, gradients=True):
        assert model[0].weight.requires_grad and not model.order.requires_grad and not model.training
    assert model.training and [one.requires_grad for one in model.parameters()] == [False, True, True]


def network(name):
    """One of the networks, with BatchNorms as training leaves them."""
    if name.startswith("timm/"):
        pytest.importorskip("timm", reason="timm is an optional extra")
    return lived_in(build(name, 5, **NETWORKS[name]), IMAGES)


@pytest.fixture(scope="module", params=list(NETWORKS))
def named(request):
    return request.param, network(request.param)


def test_filters_are_found_and_paired(named):
    name, model = named
    found = filters(model, IMAGES[:1])
    assert (len(found), sum(layer.count for layer in found.layers if layer.norm is None)) == COUNTS[name]
    convolutions = {key for key, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert {layer.name for layer in found.layers} == convolutions
    if name != "preact_resnet18":  # there, half the filters end in a sum
        assert all(layer.norm or re.search(r"\.fc\d$|\.se\.|conv_head", layer.name) for layer in found.layers), \
            "only squeeze-excitation and timm's last layer have no BatchNorm"


def test_silence_is_exactly_zero_and_nothing_else(named):
    _, given = named
    found, before = filters(given, IMAGES[:1]), given.state_dict()
    chosen = [layer.start + layer.count // 2 for layer in found.layers]
    model = silenced(given, found, *chosen)
    seen = behind(model, found, chosen, IMAGES)
    for position in chosen:
        assert (seen[position][:, found[position].index] == 0).all(), found[position]
        assert seen[position].shape[1] == 1 or (seen[position] != 0).any(), found[position]
    assert silent(model, found) == chosen
    for layer, position in zip(found.layers, chosen, strict=True):
        for key in (layer.name, layer.norm):
            for kind in ("weight", "bias"):
                if key and f"{key}.{kind}" in before:
                    kept = torch.arange(layer.count) != position - layer.start
                    assert torch.equal(model.state_dict()[f"{key}.{kind}"][kept], before[f"{key}.{kind}"][kept])


def test_trials_are_traced_and_right(named):
    _, model = named
    found = filters(model, IMAGES[:1])
    trials = CandidateRemovals(model, found, IMAGES[:2])
    assert trials.traced
    positions = [layer.start + layer.count // 3 for layer in found.layers[::1 + len(found.layers) // 15]]
    as_it_is, answers = assert_trials(trials, model, found, IMAGES, positions, rtol=1e-4, atol=1e-5)
    assert sum(bool((answer != as_it_is).any()) for answer in answers) > len(positions) / 2, "trials that change nothing prove nothing"


def test_slimming_keeps_the_answers(named):
    pytest.importorskip("torch_pruning", reason="slimming needs torch-pruning")
    _, model = named
    found = filters(model, IMAGES[:1])
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(2)).tolist()
    model = silenced(model, found, *order[:round(0.3 * len(found))])
    result = slim(model, IMAGES)
    assert result.cut and result.parameters[1] < result.parameters[0]
    assert torch.allclose(predict(result.model, IMAGES), predict(model, IMAGES), atol=1e-4)
    grouped = {layer.name for layer in found.layers if model.get_submodule(layer.name).groups > 1}
    assert not {filter_.layer for filter_ in result.cut} & grouped, "grouped convolutions stay whole"


class Own(nn.BatchNorm2d):
    """A library's own kind of layer, with code that a tracer would step into."""

    def forward(self, x):
        return super().forward(x) * 1.0


# Uses a convolution's weights without calling it.
ASIDE = Wired(lambda net, x: net.head(nn.functional.conv2d(net.a(x), net.b.weight, net.b.bias).relu().mean((2, 3))),
              a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 3), head=nn.Linear(4, 2))


@pytest.mark.parametrize(("model", "traced"), [
    (nn.Sequential(nn.Conv2d(3, 4, 3), Own(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), Own(4), nn.AdaptiveAvgPool2d(1),
                   nn.Flatten(), nn.Linear(4, 2)), True),
    (ASIDE, False)])
def test_trials_of_layers_that_a_tracer_would_miss(model, traced):
    """Steps that are not in the trace were never silenced, and three checked filters could miss it."""
    found = filters(model.eval(), IMAGES[:1])
    trials = CandidateRemovals(model, found, IMAGES[:2])
    assert trials.traced == traced
    assert_trials(trials, model, found, IMAGES, range(len(found)), rtol=1e-5, atol=1e-5)


# ---- whose networks these are


def shapes(model):
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", ["vgg16_bn", "vgg19_bn", "resnet18", "mobilenet_v3_small"])
def test_names_and_shapes_are_torchvisions(name):
    with torch.device("meta"):
        theirs, ours = getattr(torchvision.models, name)(num_classes=10), build(name, 10, small=False)
    assert shapes(ours) == shapes(theirs)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_answers_are_torchvisions(name):
    theirs = getattr(torchvision.models, name)(num_classes=3).eval()
    ours = build(name, 3, small=False, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4]).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 64, 64)
    shifted = torchvision.transforms.Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])(images)
    assert torch.allclose(predict(ours, images), theirs(shifted).detach(), atol=1e-5)


def test_preactresnet18_is_the_standard_one():
    """He et al. (2016): 17 convolutions of 3x3 in the main path, 3 projections, and the linear layer."""
    with torch.device("meta"):
        model = build("preact_resnet18", 10)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert [module.kernel_size[0] for module in convolutions].count(3) == 17
    assert [module.kernel_size[0] for module in convolutions].count(1) == 3
    widths = [module.out_channels for module in convolutions if module.kernel_size[0] == 3]
    assert widths == [64] * 5 + [128] * 4 + [256] * 4 + [512] * 4
    strides = [module.stride[0] for module in convolutions if module.kernel_size[0] == 3]
    assert [place for place, stride in enumerate(strides) if stride == 2] == [5, 9, 13]
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_172_170


@pytest.mark.parametrize("size", [8, 28, 33])
@pytest.mark.parametrize("name", ["preact_resnet18", "vgg16_bn", "mobilenet_v3_small"])
def test_small_images_of_any_size_and_grey_ones(name, size):
    assert predict(build(name, 4, width=4, channels=1).eval(), torch.rand(2, 1, size, size)).shape == (2, 4)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "timm/resnet18"])
def test_stems_keep_the_size(name):
    if name.startswith("timm/"):
        pytest.importorskip("timm", reason="timm is an optional extra")
    model = build(name, 4)
    sizes = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, __, out: sizes.append(out.shape[-1]))
    predict(model, IMAGES[:1])
    assert sizes[0] == sizes[1] == 16
    assert predict(build(name, 4, small=False, channels=1), torch.rand(2, 1, 64, 64)).shape == (2, 4)


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"small_vgg", "resnet18"}))
def test_same_seed_same_weights_and_a_checkpoint_brings_them_back(name, tmp_path):
    made = {"name": name, "num_classes": 3, "width": 4, "mean": [0.4, 0.5, 0.6], "std": 0.2}
    first, second, other = build(**made, seed=1), build(**made, seed=1), build(**made, seed=2)
    assert same(first, second)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    save_checkpoint(tmp_path / "model", first, {"model": made})
    loaded, _ = load_checkpoint(tmp_path / "model")
    assert torch.allclose(predict(loaded, IMAGES), predict(first, IMAGES), atol=1e-5)


def test_settings_that_a_network_does_not_have():
    refuses("'resnet18' cannot be built with", build, "resnet18", 4, width=8)
    refuses("width must be at least 1", build, "vgg16_bn", 4, width=0)
    refuses("did you mean resnet18", build, "resnet8", 4)


def test_timm_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    refuses(r"pip install 'gradprune\[timm\]'", build, "timm/resnet18", 4)


def test_names_that_timm_does_not_know():
    pytest.importorskip("timm", reason="timm is an optional extra")
    refuses("timm cannot make 'resnet8'", build, "timm/resnet8", 4)


@pytest.mark.parametrize("name", ["preact_resnet", "resnet18"])
def test_numbers_of_numpy_leave_the_images_as_narrow_as_they_are(name):
    model = build(name, 2, mean=np.float64(0.4), std=np.full(3, 0.2)).eval()
    assert model(IMAGES).dtype == torch.float32
    assert torch.equal(model(IMAGES), build(name, 2, mean=0.4, std=[0.2] * 3).eval()(IMAGES))


def test_normalized_keeps_names_and_places():
    """A sequence would run a layer that is added to it last."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 2)).eval()
    names, wanted = list(net.state_dict()), net((IMAGES - 0.5) / 0.2)
    assert normalized(normalized(net, 9.0, 9.0), [0.5] * 3, 0.2) is net
    assert torch.allclose(net(IMAGES), wanted, atol=1e-5) and list(net.state_dict()) == names
    assert torch.allclose(copy.deepcopy(net)(IMAGES), wanted, atol=1e-5)
    assert CandidateRemovals(net, filters(net, IMAGES[:1]), IMAGES[:2]).traced
    assert net.double()(IMAGES.double()).dtype == torch.float64, "buffers go where the model goes"

