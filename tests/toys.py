"""Networks of a few numbers, and image pairs for them."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from gradprune.datasets import draw_defense_images
from gradprune.models import build, predict
from gradprune.pruning import Pairs, pair_up
from gradprune.pruning.filters import filters, silence


class Wired(nn.Module):
    """A network of these parts; `forward` is a function of the network, to reach them by name, and the images."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.wiring = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, images):
        return self.wiring(self, images)


class Mixed(nn.Module):
    """11 filters: with a BatchNorm of their own, with a bias, with neither."""

    def __init__(self, seed=0):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.second, self.third = nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(5, 2, 1, bias=False)
        self.linear = nn.Linear(2, 3)
        generator = torch.Generator().manual_seed(seed)
        for tensor in self.parameters():
            tensor.data.uniform_(-1, 1, generator=generator)
        self.norm.running_mean.uniform_(-0.5, 0.5, generator=generator)
        self.eval()

    def forward(self, images):
        return self.linear(self.third(self.second(self.norm(self.first(images)).relu()).relu()).mean((2, 3)))


def images_of(count, seed=1, size=4):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def pairs_of(count, seed=1):
    clean = images_of(count, seed)
    return Pairs(clean, clean.flip(3), torch.arange(count) % 3)


def parts(victim, spc=2):
    return tuple(pair_up(part, victim.trigger) for part in draw_defense_images(victim.data.defense, spc))


def silenced(model, found, *positions):
    """A copy of the model without these filters."""
    model = copy.deepcopy(model)
    silence(model, found, positions)
    return model


def behind(model, found, positions, images):
    """What the network holds behind each filter and its norm: {position: (N, C, H, W)}."""
    seen = {}
    for position in positions:
        layer = found.layer_of(position)
        model.get_submodule(layer.norm or layer.name).register_forward_hook(
            lambda _, __, out, key=position: seen.update({key: out.clone()}))
    predict(model, images)
    return seen


def assert_trials(trials, model, found, images, positions, **tolerance):
    """Each trial answers as a copy of the model without that filter; returns the answers with and without."""
    now, answers = trials.logits(images, iter(positions))
    torch.testing.assert_close(now, predict(model, images), **tolerance)
    for position, answer in zip(positions, answers, strict=True):
        torch.testing.assert_close(answer, predict(silenced(model, found, position), images), **tolerance)
    return now, answers


class ReadsTheCorner(nn.Module):
    """Answers the class that the first pixel names (value * 255 = class); `order` gives the classes other numbers."""

    def __init__(self, classes, order=None):
        super().__init__()
        self.anchor, self.one_hot = nn.Parameter(torch.zeros(())), torch.eye(classes)
        if order is not None:
            self.one_hot = self.one_hot[order]

    def forward(self, images):
        return self.one_hot[(images[:, 0, 0, 0] * 255).round().long()] + self.anchor


class Shared(nn.Module):
    """What foreign models do: operations in place, one convolution used twice, a residual sum."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.again, self.act = nn.Conv2d(6, 6, 3, padding=1), nn.ELU(inplace=True)
        self.linear = nn.Linear(6, 4)

    def forward(self, x):
        out = self.act(self.norm(self.first(x)))
        skip = self.first(x)
        out = self.again(self.again(out))
        skip += out
        return self.linear(F.relu_(skip).mean(dim=(2, 3)))


class TheirBlock(nn.Module):
    """A block under the names of public code, written from He et al. (2016); pre: norms stand before the convolutions."""

    def __init__(self, inputs, outputs, stride, pre):
        super().__init__()
        self.pre = pre
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs if pre else outputs), nn.BatchNorm2d(outputs)
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                                          *([] if pre else [nn.BatchNorm2d(outputs)]))

    def forward(self, x):
        if self.pre:
            first = F.relu(self.bn1(x))
            skip = self.shortcut(first) if hasattr(self, "shortcut") else x
            return self.conv2(F.relu(self.bn2(self.conv1(first)))) + skip
        skip = self.shortcut(x) if hasattr(self, "shortcut") else x
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + skip)


class Theirs(nn.Module):
    """ResNet-18 as in pytorch-cifar and BackdoorBench: layer1 to layer4, a list for the shortcut; pre: no BatchNorm at the end."""

    def __init__(self, pre, width=64):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.Identity() if pre else nn.BatchNorm2d(width)
        for stage, (inputs, outputs) in enumerate(((1, 1), (1, 2), (2, 4), (4, 8))):
            inputs, outputs = inputs * width, outputs * width
            self.add_module(f"layer{stage + 1}", nn.Sequential(TheirBlock(inputs, outputs, 1 + (stage > 0), pre),
                                                               TheirBlock(outputs, outputs, 1, pre)))
        self.linear = nn.Linear(8 * width, 4)

    def forward(self, x):
        x = self.bn1(self.conv1(x))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x if stage is not self.layer1 or isinstance(self.bn1, nn.Identity) else F.relu(x))
        return self.linear(x.mean((2, 3)))


def fit_head(net, images):
    """Fit the last linear layer to an image set, by least squares."""
    head, features = [module for module in net.modules() if isinstance(module, nn.Linear)][-1], {}
    with head.register_forward_hook(lambda _, inputs, __: features.update(x=inputs[0])):
        predict(net, images.floats())
    x = torch.cat([features["x"], torch.ones(len(images), 1)], 1)
    fitted = torch.linalg.lstsq(x.double(), F.one_hot(images.labels, 4).double(), driver="gelsd").solution.float()
    head.weight.data, head.bias.data = fitted[:-1].T.contiguous(), fitted[-1]
    return net


class Grouped(nn.Module):
    """Convolutions in groups, one of them depthwise, with and without a BatchNorm of their own."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.depth, self.norm2 = nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6)
        self.pairs, self.linear = nn.Conv2d(6, 8, 3, stride=2, groups=2), nn.Linear(8, 4)

    def forward(self, x):
        out = self.norm2(self.depth(F.relu(self.norm(self.first(x))))).relu()
        return self.linear(F.relu(self.pairs(out)).mean(dim=(2, 3)))


class Untraceable(Shared):
    def forward(self, x):
        return super().forward(x if x.mean() > -1 else -x)


def network(kind):
    """The same weights every time: with others, two removals may be equally good up to rounding."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(kind, 4, width=4) if isinstance(kind, str) else kind()
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias.data):
                tensor.uniform_(-0.5, 0.5, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
    return model


MODEL = Mixed()
FOUND = filters(MODEL, images_of(1))
