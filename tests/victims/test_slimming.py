"""Slimming: the smaller model answers as the masked one does, tells what had to stay, and can be saved and loaded."""

import copy
import sys

import pytest
import torch
from conftest import edit, lived_in, refuses, same, says
from torch import nn
from torchvision.models import shufflenet_v2_x0_5

import gradprune as gp
from gradprune.models import build, predict
from gradprune.models.checkpoints import load_checkpoint, save_checkpoint
from gradprune.models.cost import macs, parameters, timed
from gradprune.models.resizing import resize, sizes
from gradprune.pruning.filters import Filter, filters, silence, silent
from gradprune.victims import slimming

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def slim():
    """`slim`, whose model must answer as the one that it was given."""
    pytest.importorskip("torch_pruning", reason="slimming needs torch-pruning")

    def slim(model, images):
        result = slimming.slim(model, images)
        assert torch.allclose(predict(result.model, images), predict(model, images), rtol=0, atol=1e-4)
        return result

    return slim


def masked(model, share):
    found = filters(model, IMAGES[:1])
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(2)).tolist()
    silence(model, found, order[:round(share * len(found))])
    return model


@pytest.mark.parametrize(("name", "settings"), [
    ("preact_resnet", {"width": 8}), ("preact_resnet", {"width": 4, "blocks": (2, 2)}), ("small_vgg", {"width": 6, "size": 16})])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_the_smaller_model_answers_as_the_masked_one(slim, name, settings, share):
    model = masked(lived_in(build(name, 4, **settings), IMAGES), share)
    before = copy.deepcopy(model.state_dict())
    result = slim(model, IMAGES)
    assert same(before, model), "the given model changed"
    gone = silent(model, filters(model, IMAGES[:1]))
    assert len(result.cut) + len(result.left) == len(gone) and not set(result.cut) & set(result.left)
    assert len(silent(result.model, filters(result.model, IMAGES[:1]))) == len(result.left)
    assert result.parameters == (parameters(model), parameters(result.model))
    if share:
        assert result.cut and result.parameters[0] > result.parameters[1] and result.macs[0] > result.macs[1]
    else:
        assert not gone and result.parameters[0] == result.parameters[1] and result.macs[0] == result.macs[1]


def test_a_plain_chain_loses_every_silent_filter(slim):
    result = slim(masked(lived_in(build("small_vgg", 4, width=6, size=16), IMAGES), 0.4), IMAGES)
    assert not result.left
    last = sizes(result.model)["features.19"][0]
    assert sizes(result.model)["classifier"] == [4, last * 4], "four places of the flattened picture for each channel"


@pytest.mark.parametrize(("layers", "channels", "shift", "cut"), [
    (("conv1",), [2], -5.0, 0),                        # the block adds to the channel still
    (("conv1", "stages.0.0.conv2"), [2], -5.0, 2),     # silence stays: BatchNorm shifts it below zero, ReLU cuts it off
    (("conv1", "stages.0.0.conv2"), [1, 2], -5.0, 4),  # two channels go with all that feeds them
    (("conv1", "stages.0.0.conv2"), [2], 5.0, 0),      # BatchNorm makes a constant of it
    (("stages.0.0.conv1",), [2], 5.0, 1)])             # inside the block: its BatchNorm is silent with it
def test_what_silence_becomes_decides_on_a_shortcut_channel(slim, layers, channels, shift, cut):
    model = lived_in(build("preact_resnet", 4, width=4, blocks=(1, 1)), IMAGES)
    found = filters(model, IMAGES[:1])
    with torch.no_grad():
        for norm in ("stages.0.0.bn1", "stages.1.0.bn1"):
            model.get_submodule(norm).bias[channels] = shift
    silence(model, found, [found.position(layer, channel) for layer in layers for channel in channels])
    result, silenced = slim(model, IMAGES), len(layers) * len(channels)
    assert (len(result.cut), len(result.left)) == (cut, silenced - cut)
    assert sizes(result.model)["conv1"] == [4 - sum(layer == "conv1" for layer, _ in result.cut), 3]
    assert says(str(result), f"{cut} of {silenced} silent filters cut out", f"{silenced - cut} cannot be cut")


def test_one_filter_of_a_layer_stays(slim):
    model = lived_in(build("small_vgg", 4, width=4, size=16), IMAGES)
    silence(model, filters(model, IMAGES[:1]), range(4))
    result = slim(model, IMAGES)
    assert [len(result.cut), len(result.left)] == [3, 1] and sizes(result.model)["features.0"] == [1, 3]


class Net(nn.Module):
    def __init__(self, *layers, view=None):
        super().__init__()
        self.layers, self.view, self.head = nn.Sequential(*layers), view, nn.Linear(6, 3)

    def forward(self, images):
        pooled = self.layers(images).mean((2, 3))
        return self.head(pooled.view(-1, self.view) if self.view else pooled)


@pytest.mark.parametrize("layers", [
    (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Sigmoid()),                               # silence becomes one half
    (nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6)),                                            # shares its statistics
    (nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=2)),                       # grouped
    (nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=6))])                                 # depthwise
def test_strangers_keep_what_cannot_go(slim, layers):
    model = Net(*layers).eval()
    silence(model, filters(model, IMAGES[:1]), [1])
    result = slim(model, IMAGES)
    assert [str(filter_) for filter_ in result.left] == ["layers.0[1]"] and not result.cut


class Scaled(Net):
    """A number of its own for each channel, as layer scale has."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.scale = nn.Parameter(torch.rand(1, 6, 1, 1))

    def forward(self, images):
        return self.head((self.layers(images) * self.scale).mean((2, 3)))


def headless():
    """Its filters are its answers."""
    model = Net(nn.Conv2d(3, 6, 3))
    model.head = nn.Identity()
    return model


@pytest.mark.parametrize("model", [Scaled().eval(), headless().eval(),
                                   nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()])
def test_channels_of_a_parameter_and_of_the_answer_stay(slim, model):
    model = copy.deepcopy(model)
    silence(model, filters(model, IMAGES[:1]), [1])
    result = slim(model, IMAGES)
    assert not result.cut and len(result.left) == 1 and result.parameters[0] == result.parameters[1]


def test_a_model_that_counts_on_its_channels_is_told(slim):
    model = Net(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), view=6).eval()
    silence(model, filters(model, IMAGES[:1]), [1])
    refuses(r"cannot be slimmed .*; masked it works as it is", slim, model, IMAGES)


def test_a_model_whose_channels_are_shuffled_is_told(slim):
    model = shufflenet_v2_x0_5(weights=None, num_classes=3).eval()
    silence(model, filters(model, IMAGES[:1]), [1])
    refuses(r"torch-pruning cannot follow .*ShuffleNet.*; masked it works as it is\.$", slim, model, IMAGES)


def test_without_torch_pruning(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    refuses(r"pip install 'gradprune\[slim\]'", slimming.slim, build("preact_resnet", 4, width=4), IMAGES)


@pytest.mark.slow
def test_a_shipped_model_pruned_by_the_defence(slim):
    victim = gp.load_victim("blended")
    pruned = gp.grad_prune(victim.model, victim.data.defense, victim.trigger, spc=2, recipe="paper", tune=False, progress=False).model
    images = victim.data.test.floats()[:200]
    assert torch.allclose(predict(slim(pruned, images[:8]).model, images), predict(pruned, images), rtol=0, atol=1e-4)


# ---- its pieces


def test_as_it_is_printed():
    one, two, three = (Filter("conv", index) for index in range(3))
    made = slimming.Slim(nn.Identity(), [one], [two, three], (12000, 9000), (5000000, 4000))
    assert str(made) == repr(made) and says(str(made), "1 of 3 silent filters cut out", "2 cannot be cut", "12,000 to 9,000 parameters",
                                            "5,000,000 to 4,000 multiply-adds")


def test_answers_that_would_change_are_refused(slim, monkeypatch):
    """The last guard: here a layer claims to read zeros where it reads one half."""
    monkeypatch.setattr("gradprune.victims.slimming._zeros", lambda model, _: {"head": torch.ones(6, dtype=torch.bool)})
    model = Net(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Sigmoid()).eval()
    nn.init.constant_(model.head.weight, 0.01)
    nn.init.constant_(model.head.bias, 1000.0)  # a change of 0.005, which is little beside the answers
    silence(model, filters(model, IMAGES[:1]), [1])
    refuses(r"^the model cannot be slimmed \(InputError: its answers would change\); masked it works as it is\.$", slim,
            model, IMAGES)


def test_a_frozen_model_in_training_is_slimmed_where_no_gradients_are_kept(slim):
    model = Net(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()).train()
    model.idle = nn.Conv2d(3, 2, 1)
    model.requires_grad_(False)
    silence(model, filters(model, IMAGES[:1]), [4, 1, 7])
    with torch.no_grad():
        result = slim(model, IMAGES)
    assert result.cut == [("layers.0", 1), ("layers.0", 4)], "in the order of the model"
    assert result.left == [("idle", 1)], "what nobody calls cannot be traced"
    assert result.macs == (macs(model, IMAGES[:1]), macs(result.model, IMAGES[:1])) and result.parameters[0] == parameters(model)
    assert result.model.training and not any(parameter.requires_grad for parameter in result.model.parameters())
    assert not any(module._forward_pre_hooks for module in result.model.modules())


def test_which_inputs_are_zero_everywhere():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.other, self.head, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Linear(3, 2), nn.BatchNorm2d(3)

        def forward(self, images):
            self.head((self.norm(images) + 1).permute(0, 2, 3, 1) * torch.tensor([1.0, 0, 0]))
            return (self.conv(images) + self.conv(images.flip(1)) + self.other(input=images)).mean((2, 3))

    images = torch.rand(2, 3, 4, 4)
    images[:, :2] = 0
    images[1, 1, 3, 3] = 0.1  # one pixel is enough
    model = Twice().eval()
    zeros = slimming._zeros(model, images)
    assert {name: seen.tolist() for name, seen in zeros.items()} == {
        "conv": [False, False, False], "other": [True, False, False], "head": [False, True, True]}, "whatever it is called with"
    refuses("", slimming._zeros, model, torch.rand(2, 1, 4, 4))
    assert not any(module._forward_pre_hooks for module in model.modules()), "no hook stays, whatever happens"


# ---- the card, and what a model costs


@pytest.mark.parametrize(("name", "settings"), [("preact_resnet", {"width": 4}), ("small_vgg", {"width": 4, "size": 16})])
def test_saved_and_loaded_again(slim, tmp_path, name, settings):
    made = {"name": name, "num_classes": 4, **settings}
    model = masked(lived_in(build(**made), IMAGES), 0.5)
    smaller = slim(model, IMAGES).model
    full = sizes(model)
    changed = {layer: size for layer, size in sizes(smaller).items() if size != full[layer]}
    path = save_checkpoint(tmp_path / "slim", smaller, {"model": {**made, "sizes": changed}})
    loaded, card = load_checkpoint(path)
    assert sizes(loaded) == sizes(smaller) and card["model"]["sizes"] == changed
    assert torch.equal(predict(loaded, IMAGES), predict(smaller.to(memory_format=torch.channels_last), IMAGES))
    assert path.stat().st_size < save_checkpoint(tmp_path / "full", model, {"model": made}).stat().st_size
    edit(path.with_suffix(".json"), lambda card: card["model"]["sizes"].popitem())
    refuses("do not fit the model on their card", load_checkpoint, path)


@pytest.mark.parametrize(("wanted", "words"), [
    ({"conv9": [1, 3]}, "no layer 'conv9'"), ({"conv1": [5, 3]}, "has size"), ({"conv1": [0, 3]}, "cannot become"),
    ([1], "must name layers"), ({"conv1": [2]}, "cannot become"), ({"conv1": 2}, "cannot become"), ({"conv1": [2.0, 3]}, "cannot become")])
def test_sizes_that_do_not_fit(wanted, words):
    refuses(words, resize, build("preact_resnet", 4, width=4), wanted)


def test_cost_by_hand():
    model = Net(nn.Conv2d(3, 6, 3, bias=False))
    assert parameters(model) == 3 * 6 * 9 + 6 * 3 + 3
    assert macs(model, IMAGES[:1]) == 3 * 6 * 9 * 14 * 14 + 6 * 3
    assert all(seconds > 0 for seconds in timed(model, model, IMAGES, repeats=2))
