"""Finding filters, pairing them with BatchNorm by tracing, and silencing them."""

import pytest
import torch
from conftest import lived_in, refuses, same
from torch import nn
from torchvision.models import mobilenet_v3_small, resnet18
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops import FrozenBatchNorm2d
from toys import behind

from gradprune.models import build
from gradprune.pruning import SCORES, FilterMask, filter_scores, silence
from gradprune.pruning.candidate_removals import CandidateRemovals
from gradprune.pruning.filters import filters, silent


class Branching(nn.Module):
    """Convolutions in every position a BatchNorm can or cannot be read off the order of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_of_b = nn.BatchNorm2d(4)      # stands before its convolution
        self.a = nn.Conv2d(3, 4, 3, padding=1)  # feeds two branches: no partner
        self.norm_after_a = nn.BatchNorm2d(4)   # sees a, but a is used elsewhere too
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.c = nn.Conv2d(4, 4, 1)             # its output is added: no partner
        self.norm_of_sum = nn.BatchNorm2d(4)
        self.shared = nn.Conv2d(4, 4, 1)        # called twice: no partner
        self.norm_shared = nn.BatchNorm2d(4)
        self.unused = nn.Conv2d(4, 4, 1)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        a = self.a(x)
        b = torch.relu(self.norm_of_b(self.b(torch.relu(self.norm_after_a(a)))))
        total = self.norm_of_sum(self.c(b) + a)
        total = self.norm_shared(self.shared(total)) + self.shared(total)
        if total.sum() > 1e9:  # control flow that depends on the data: symbolic tracing would fail
            total = total * 2
        return self.out(total.mean(dim=(2, 3)))


def test_pairs_come_from_the_trace_not_from_the_order():
    pairs = {layer.name: layer.norm for layer in filters(Branching()).layers}
    assert pairs == {"a": None, "b": "norm_of_b", "c": None, "shared": None, "unused": None}


def test_preact_resnet_pairs():
    pairs = {layer.name: layer.norm for layer in filters(build("preact_resnet", 5, width=4, blocks=(1, 1))).layers}
    assert pairs == {
        "conv1": None,                                     # also the first block's shortcut
        "stages.0.0.conv1": "stages.0.0.bn2", "stages.0.0.conv2": None,
        "stages.1.0.conv1": "stages.1.0.bn2", "stages.1.0.conv2": None, "stages.1.0.shortcut": None,
    }


@pytest.mark.parametrize("build_model", [resnet18, mobilenet_v3_small])
def test_torchvision_models_pair_every_convolution(build_model):
    model = build_model(num_classes=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    unpaired = [layer.name for layer in filters(model).layers if layer.norm is None and "fc" not in layer.name]
    assert unpaired == [], "in these networks each convolution (but squeeze-excitation's) has its BatchNorm"
    assert same(before, model)
    assert model.training


@pytest.mark.parametrize("name", ["preact_resnet", "small_vgg"])
def test_silenced_filters_give_exactly_zero(name):
    model = lived_in(build(name, 3, width=4), torch.rand(4, 3, 32, 32))  # statistics that would leak through a BatchNorm
    found = filters(model)
    positions = [found.layers[0].start + 1, found.layers[1].start + 2, found.layers[-1].start]
    silence(model, found, positions)
    seen = behind(model, found, positions, torch.rand(2, 3, 32, 32))
    for position in positions:
        assert (seen[position][:, found[position].index] == 0).all()
        assert (seen[position] != 0).any()


def test_silencing_touches_its_own_numbers_alone():
    """Fault 1 of the released code: it zeroed the next tensor in parameters(), whatever that was."""
    model = build("preact_resnet", 2, width=4, blocks=(1, 1))
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.5, 1.0)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    found = filters(model)
    last = found.layers[-2]  # conv2 of the last block, followed in parameters() by a shortcut
    silence(model, found, [last.start + 5, found.position("stages.0.0.conv1", 1)])  # 5 >= number of classes
    zeroed = {name: torch.nonzero(tensor.flatten(1).abs().sum(1) == 0 if tensor.ndim > 1 else tensor == 0).flatten().tolist()
              for name, tensor in model.named_parameters()}
    expected = {f"{last.name}.weight": [5], "stages.0.0.conv1.weight": [1],
                "stages.0.0.bn2.weight": [1], "stages.0.0.bn2.bias": [1]}
    assert {name: rows for name, rows in zeroed.items() if rows} == expected
    for name, tensor in model.named_parameters():
        keep = [row for row in range(len(tensor)) if row not in expected.get(name, [])]
        assert torch.equal(tensor[keep], before[name][keep])


def test_grouped_and_depthwise_convolutions():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=4),
                          nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval()
    found = filters(model)
    assert [(layer.name, layer.norm, layer.shape) for layer in found.layers] == \
        [("0", "1", (3, 1, 1)), ("3", "4", (1, 3, 3))]
    silence(model, found, [found.position("3", 7)])
    assert (model[:5](torch.rand(2, 3, 9, 9))[:, 7] == 0).all()


def test_a_held_mask_survives_anybodys_training_loop():
    """Fault 2 of the released code: without a mask, removed filters grew again in fine-tuning."""
    model = build("small_vgg", 3, width=4)
    mask = FilterMask(filters(model))
    for position in (0, 13, 40):
        mask.remove(model, position)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    handle = mask.hold(optimizer, model)
    images, labels = torch.rand(8, 3, 32, 32), torch.randint(0, 3, (8,))

    def train():
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

    model.train()
    train()
    conv, norm = model.features[0], model.features[1]
    assert (conv.weight[0] == 0).all() and norm.weight[0] == 0 and norm.bias[0] == 0
    assert (conv.weight[1] != 0).all()
    handle.remove()
    train()
    assert (conv.weight[0] != 0).any() or norm.bias[0] != 0, "let go, the filter must be able to grow: else this test proves nothing"


def test_frozen_weights_and_inference_flags_come_back():
    model = build("small_vgg", 3, width=4).requires_grad_(False)
    model.features[0].weight.requires_grad_(True)
    assert filters(model).layers[1].norm == "features.4"
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["features.0.weight"]


def shifted(norm):
    """A norm as training leaves it."""
    for kind in ("weight", "bias", "running_mean"):
        if isinstance(getattr(norm, kind, None), torch.Tensor):
            getattr(norm, kind).data.uniform_(0.5, 1)
    return norm


class OfChannelsLast(nn.Module):
    """As in ConvNeXt's blocks."""

    def __init__(self, channels):
        super().__init__()
        self.norm = shifted(nn.LayerNorm(channels))

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SilenceNorm(nn.Module):
    """Anything at all, with a constant that belongs to no channel."""

    def forward(self, x):
        return x + 0.5


class Affine(nn.Module):
    """A scale and shift of each channel, with statistics or without; its class does not say that it is a norm."""

    def __init__(self, channels, statistics=False):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.ones(channels))
        if statistics:
            self.register_buffer("mean", torch.full((channels,), 0.5))

    def forward(self, x):
        x = x - self.mean[:, None, None] if hasattr(self, "mean") else x
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class Responding(nn.Module):
    """As ConvNeXt V2's layer and filter response normalisation: the input is used more than once, numbers (1, C, 1, 1)."""

    def __init__(self, channels):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(1, channels, 1, 1)), nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x):
        return self.gamma * x * (x.square().mean((2, 3), keepdim=True) + 1e-6).rsqrt() + self.beta + x


class OverChannels(nn.LayerNorm):
    """A layer norm under another name, for maps."""

    def forward(self, x):
        return nn.functional.layer_norm(x.movedim(1, -1), self.normalized_shape, self.weight, self.bias).movedim(-1, 1)


NORMS = {
    "affine": Affine, "affine with statistics": lambda n: Affine(n, True), "responding": Responding,
    "over channels": lambda n: shifted(OverChannels(n)), "slopes": nn.PReLU,
    "in a sequence": lambda n: nn.Sequential(shifted(nn.GroupNorm(2, n)), nn.ReLU()),
    "plain": lambda n: shifted(nn.BatchNorm2d(n)), "sync": lambda n: shifted(nn.SyncBatchNorm(n)), "frozen": lambda n: shifted(FrozenBatchNorm2d(n)),
    "free": lambda n: shifted(nn.BatchNorm2d(n, affine=False)),
    "no statistics": lambda n: shifted(nn.BatchNorm2d(n, track_running_stats=False)),
    "instance": lambda n: shifted(nn.InstanceNorm2d(n, affine=True)), "bare instance": nn.InstanceNorm2d,
    "tracking instance": lambda n: shifted(nn.InstanceNorm2d(n, track_running_stats=True)),
    "group": lambda n: shifted(nn.GroupNorm(2, n)), "layer": lambda n: shifted(LayerNorm2d(n)),
    "bare group": lambda n: nn.GroupNorm(2, n, affine=False), "local": lambda n: nn.LocalResponseNorm(2),
    "channels last": OfChannelsLast, "of all": lambda n: shifted(nn.LayerNorm([n, 5, 5])), "strange": lambda n: SilenceNorm(),
}
LEAKING = {"responding", "bare group", "channels last", "of all", "strange"}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", NORMS)
def test_a_silent_filter_is_zero_behind_every_norm_or_told_not_to_be(kind, bias):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=bias), NORMS[kind](8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(),
                        nn.Linear(100, 3)).eval()
    images, labels = torch.rand(4, 3, 7, 7), torch.arange(4) % 3
    found = filters(net, images[:1])
    mask = FilterMask(found)
    positions = [2, 7]
    for position in positions:
        mask.remove(net, position)
    through = net[1](net[0](images))
    assert found.layers[0].leak is None or kind in LEAKING
    if kind in LEAKING:
        assert f"constant behind {found.layers[0].leak}" in str(found)
        return
    assert (through[:, positions] == 0).all() and (through[:, [0, 1, 3]] != 0).any()
    assert silent(net, found) == positions
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    mask.hold(optimizer, net)
    for _ in range(3):
        nn.functional.cross_entropy(net.train()(images), labels).backward()
        optimizer.step()
    assert (net.eval()[1](net[0](images))[:, positions] == 0).all(), "exactly zero from then on"
    trials = CandidateRemovals(net, found, images)
    assert trials.traced
    assert torch.allclose(trials.logits(images, [0, 3, 9])[1], trials._whole(images, [0, 3, 9])[1], atol=1e-5)
    for score in SCORES:
        assert filter_scores(net, found, images, labels, score)[0].isfinite().all()


def test_tied_convolutions_are_one_filter_with_all_their_norms():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False), shifted(nn.BatchNorm2d(8)), nn.ReLU(),
                        nn.Conv2d(8, 8, 3), shifted(nn.BatchNorm2d(8)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    net[5].weight = net[2].weight
    net.eval()
    found = filters(net)
    assert len(found) == 16 and found.layers[1].pairs == (("2", "3"), ("5", "6")) and "5, which has the same weights" in str(found)
    assert found.position("5", 3) == found.position("2", 3) == 11
    mask, images = FilterMask(found), torch.rand(4, 3, 32, 32)
    trials = CandidateRemovals(net, found, images)
    assert torch.allclose(trials.logits(images, [11])[1], trials._whole(images, [11])[1], atol=1e-5)
    labels = torch.arange(4)
    nn.functional.cross_entropy(net(images), labels).backward()
    wanted = sum((kind * kind.grad)[3] for norm in (net[3], net[6]) for kind in (norm.weight, norm.bias))
    torch.testing.assert_close(filter_scores(net, found, images, labels, "gate")[0][11], wanted.detach())
    mask.remove(net, 11)
    assert (net[:4](images)[:, 3] == 0).all() and (net[:7](images)[:, 3] == 0).all()


def test_a_norm_behind_a_convolution_that_is_used_twice_is_told():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv, self.norm, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), shifted(nn.BatchNorm2d(4)), nn.Linear(4, 2)

        def forward(self, x):
            x = self.norm(self.conv(self.stem(x)).relu())
            return self.out(self.norm(self.conv(x)).mean((2, 3)))
    layers = {layer.name: layer for layer in filters(Twice()).layers}
    assert (layers["conv"].norm, layers["conv"].leak) == (None, "norm")


def test_answers_that_come_from_no_convolution_of_the_model():
    with torch.no_grad():
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3600, 2))
    class Detaches(nn.Sequential):
        def forward(self, x):
            return self[2](self[1](self[0](x)).detach())
    refuses(r"^the model's answers come from none of its own convolutions: .* runs under no_grad, or was set on",
            filters, Detaches(*net))
