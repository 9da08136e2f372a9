"""Networks of a few numbers, and image pairs for them."""

import torch
import torch.nn.functional as F
from torch import nn

from gradprune.datasets import draw_defense_images
from gradprune.models import build
from gradprune.pruning import Pairs, pair_up
from gradprune.pruning.filters import filters


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
