"""Every defence meets every kind of network that people have; each runs, or says in one sentence why it cannot."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from conftest import QUICK, refuses, squares
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from gradprune.base.errors import InputError
from gradprune.defenses import DEFENSES, scan
from gradprune.models import load_weights, predict
from gradprune.models.inference import check_convolutional
from gradprune.pruning import distilled

ASKS_BATCHNORM = {"anp", "rnp"}  # they mask channels of BatchNorms, and there are none


class LeNet(nn.Module):
    def __init__(self, view=False):
        super().__init__()
        self.view = view
        self.conv1, self.conv2 = nn.Conv2d(3, 3, 5, stride=2), nn.Conv2d(3, 4, 5, stride=2)
        self.fc1, self.fc2 = nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        return self.fc2(F.relu(self.fc1(x.view(-1, 16) if self.view else torch.flatten(x, 1))))


def plain(*more):
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=3), *more, nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(4, 4))


class Googlenet(nn.Module):
    """Two classifiers beside the last one, in training alone, and a named tuple of the three."""

    def __init__(self):
        super().__init__()
        from torchvision.models.googlenet import GoogLeNetOutputs, Inception
        self.form = GoogLeNetOutputs
        self.stem, self.norm = nn.Conv2d(3, 4, 3, stride=4, bias=False), nn.BatchNorm2d(4)
        self.inception = Inception(4, 2, 2, 2, 2, 2, 2)
        self.fc, self.aux1, self.aux2 = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        x = self.inception(F.relu(self.norm(self.stem(x)))).mean((2, 3))
        return self.form(self.fc(x), self.aux2(x), self.aux1(x)) if self.training else self.fc(x)


class Keeps(nn.Module):
    """Keeps its features on itself, plain and in a list, as for a plot or a loss on them."""

    def __init__(self):
        super().__init__()
        self.c, self.b, self.fc = nn.Conv2d(3, 6, 3, stride=3), nn.BatchNorm2d(6), nn.Linear(6, 4)
        self._kept = []
        self.register_buffer("last", None)

    def forward(self, x):
        self.feat = F.relu(self.b(self.c(x))).mean((2, 3))
        self._kept = [self.feat, {"again": self.feat}]
        self.last = self.feat.mean(0)
        return self.fc(self.feat)


def lightning(path):
    """What a LightningModule's checkpoint is loaded into: the network alone."""
    module = nn.ModuleDict({"net": plain(nn.BatchNorm2d(4), nn.ReLU())})
    torch.save({"state_dict": {**module.state_dict(), "criterion.weight": torch.ones(4)}, "epoch": 3,
                "pytorch-lightning_version": "2.5"}, path / "last.ckpt")
    return load_weights(plain(nn.BatchNorm2d(4), nn.ReLU()), path / "last.ckpt")


def convnext(_):
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt
    return ConvNeXt([CNBlockConfig(4, 8, 1), CNBlockConfig(8, None, 1)], num_classes=4)


def keeping(_):
    """After the user's own pass, which left its features."""
    net = Keeps()
    net(squares(2, 1, 32).floats())
    return net


NETWORKS = {  # name -> the network, whether it has BatchNorms
    "LeNet": (lambda _: LeNet(), False), "tutorial net": (lambda _: LeNet(view=True), False),
    "googlenet": (lambda _: Googlenet(), True), "lightning": (lightning, True),
    "SyncBatchNorm": (lambda _: plain(nn.SyncBatchNorm(4), nn.ReLU()), True),
    "bare BatchNorm": (lambda _: plain(nn.BatchNorm2d(4, affine=False), nn.ReLU()), False),
    "frozen BatchNorm": (lambda _: plain(FrozenBatchNorm2d(4), nn.ReLU()), False), "keeps its features": (keeping, True),
    "GroupNorm": (lambda _: plain(nn.GroupNorm(2, 4), nn.ReLU()), False), "ConvNeXt": (convnext, False),
    "last maps of one pixel": (lambda _: nn.Sequential(nn.Conv2d(3, 4, 32), nn.ReLU(), nn.Flatten(), nn.Linear(4, 4)), False)}


@pytest.fixture(scope="module")
def images():
    return squares(24, 1, 32)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_every_defence_takes_it(images, mark, tmp_path, monkeypatch, network):
    monkeypatch.setattr(distilled, "STEPS", 4)
    make, has_norms = NETWORKS[network]
    torch.manual_seed(0)
    net = make(tmp_path)
    for name, method in DEFENSES.items():
        refused = (name in ASKS_BATCHNORM and not has_norms) or (name == "nad" and network == "last maps of one pixel")
        with pytest.raises(InputError) if refused else nullcontext() as told:
            result = method(net, images, mark, spc=1, progress=False, **QUICK[name])
            assert predict(copy.deepcopy(result.model), images.floats()).shape == (24, 4), name
        assert not refused or (str(told.value).count(". ") == 0 and str(told.value).endswith(".")), told
    assert len(scan(net, images, spc=1, steps=2, progress=False).scores) == 4


class Tokens(nn.Module):
    """A stem of convolutions, torch's own encoder behind it."""

    def __init__(self, layers=1):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 8, stride=8), nn.Linear(8, 4)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), layers)

    def forward(self, x):
        return self.fc(self.encoder(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


class Pooled(nn.Module):
    """A CNN whose last maps are weighed by attention, as in CLIP's: no transformer."""

    def __init__(self):
        super().__init__()
        self.stem, self.attention_pool, self.fc = nn.Conv2d(3, 8, 3, stride=3), nn.MultiheadAttention(8, 2), nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x).relu().flatten(2).permute(2, 0, 1)
        return self.fc(self.attention_pool(x.mean(0, keepdim=True), x, x)[0][0])


@pytest.mark.parametrize("size", [None, 32])
def test_a_transformer_behind_convolutions_is_refused_for_images_of_any_size(images, mark, size):
    timm = pytest.importorskip("timm", reason="timm is an optional extra")
    net = timm.create_model("vit_tiny_r_s16_p8_224", num_classes=4, depth=1, **({"img_size": size} if size else {}))
    for name, method in {**DEFENSES, "scan": lambda net, images, _, **more: scan(net, images, **more)}.items():
        told = refuses("is a transformer, whose blocks of attention", method, net, images, mark, spc=1, progress=False,
                       **QUICK.get(name, {}))
        assert told.count(". ") == 0


def test_which_networks_are_transformers():
    refuses("is a transformer", check_convolutional, Tokens())
    for net in (Pooled(), convnext(None), LeNet(), Googlenet()):
        check_convolutional(net)


def test_attention_between_convolutions_is_no_transformer():
    timm = pytest.importorskip("timm", reason="timm is an optional extra")
    with torch.device("meta"):
        for name in ("gcresnet50t", "mobilevit_xxs", "resnet50_clip", "skresnet18", "botnet26t_256"):
            check_convolutional(timm.create_model(name))
        for name in ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"):
            refuses("is a transformer", check_convolutional, timm.create_model(name))
