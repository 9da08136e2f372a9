"""More models as users bring them; each test stands for a kind that once gave a traceback or a wrong figure."""

from dataclasses import dataclass

import pytest
import torch
from conftest import squares
from torch import Tensor, nn

import gradprune as gp
from gradprune.base.errors import InputError
from gradprune.defenses import DEFENSES
from gradprune.models import load_weights, predict
from gradprune.models.working import handed_back, working_copy


@pytest.fixture(scope="module")
def images():
    return squares(24, 1, 32)


def small(*more):
    return nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), *more, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


class Wrapped(nn.Module):
    def __init__(self, net, answer=lambda x: x):
        super().__init__()
        self.net, self.answer = net, answer

    def forward(self, x):
        return self.answer(self.net(x))


class InPlace(Wrapped):
    """Normalises the images that it is given, in place."""

    def forward(self, x):
        return self.net(x.sub_(0.5).div_(0.25))


class Casts(Wrapped):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x)


class TrainsWithoutAWord(Wrapped):
    def train(self, mode=True):
        super().train(mode)


@dataclass
class Output:
    logits: Tensor


def test_images_stay_as_they_are_where_a_model_normalises_them_in_place(images, mark):
    torch.manual_seed(0)
    net = InPlace(small(nn.BatchNorm2d(6), nn.ReLU())).eval()
    given = images.floats()
    wanted = net(given.clone())
    assert torch.equal(predict(net, given), wanted) and torch.equal(predict(net, given), wanted)
    few = given[:2].clone()
    copied = working_copy(net, few)
    assert torch.equal(copied.eval()(few), copied(few)) and torch.equal(few, given[:2])
    assert not handed_back(copied, net)._forward_pre_hooks
    result = DEFENSES["clp"](net, images, mark, spc=1, progress=False)
    assert not result.model._forward_pre_hooks


@pytest.mark.parametrize(("make", "words"), [
    (lambda: nn.Sequential(nn.LazyConv2d(6, 3), nn.Flatten(), nn.LazyLinear(4)), "lazy layers that have seen no image"),
    (lambda: small().to("meta"), "on the device 'meta'"), (lambda: small().double(), r"torch.float64: give model.float\(\)"),
    (lambda: small().half(), r"torch.float16: give model.float\(\)"),
    (lambda: Wrapped(small(), Output), "must return logits .* got Output"),
])
def test_models_that_cannot_answer_get_one_sentence(images, mark, make, words):
    for run in (gp.evaluate, lambda net, data, trigger, _: DEFENSES["clp"](net, data, trigger, spc=1, progress=False)):
        with pytest.raises(InputError, match=words):
            run(make(), images, mark, 1)


def test_a_squeeze_that_takes_the_batch_away_is_named(images, mark):
    net = Wrapped(small(), lambda x: x.squeeze(0))
    assert predict(net, images.floats()).shape == (24, 4)
    with pytest.raises(InputError, match=r"squeeze\(\)"):
        predict(net, images.floats(), batch_size=23)


def test_the_weights_of_lazy_layers_are_read(tmp_path, images):
    made = [nn.Sequential(nn.LazyConv2d(6, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(4)) for _ in range(2)]
    made[0](images.floats())
    torch.save(made[0].state_dict(), tmp_path / "w.pth")
    assert torch.equal(predict(load_weights(made[1], tmp_path / "w.pth"), images.floats()), predict(made[0], images.floats()))


def test_a_train_that_returns_nothing(tmp_path, images, mark):
    net = TrainsWithoutAWord(small(nn.BatchNorm2d(6)))
    torch.save(net.state_dict(), tmp_path / "w.pth")
    assert load_weights(net, tmp_path / "w.pth") is net and not net.training
    assert isinstance(working_copy(net, images.floats()[:2]), TrainsWithoutAWord)
    copied = working_copy(net, images.floats()[:2])
    assert handed_back(copied, net) is copied


def silent_behind(layers):
    return [(layer.norm, layer.leak) for layer in layers]


@pytest.mark.parametrize("between", [
    nn.ReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Upsample(scale_factor=2), nn.GELU(), nn.ZeroPad2d(1), nn.Hardswish(),
    nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (15, 15)))])
def test_a_norm_behind_steps_that_keep_zeros_is_told(between):
    flat = isinstance(between, nn.Sequential) and isinstance(between[-1], nn.Flatten)
    norm = (nn.BatchNorm1d if flat else nn.BatchNorm2d)(6)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), between, norm, nn.Flatten(), nn.LazyLinear(4))
    net(torch.rand(2, 3, 32, 32))
    assert silent_behind(gp.filters(net).layers) == [(None, "2")]
    assert "not silent behind 2, which makes a constant of it" in str(gp.filters(net))


def test_norms_behind_a_convolution_that_feeds_more_than_one_are_told():
    class Feeds(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.more = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1)
            self.norm, self.joined, self.out = nn.BatchNorm2d(6), nn.BatchNorm2d(8), nn.Linear(14, 4)

        def forward(self, x):
            x = self.stem(x)
            joined = self.joined(torch.cat([x, self.more(x)], 1))
            return self.out(torch.cat([self.norm(x), joined], 1).mean((2, 3)))

    stem, more = gp.filters(Feeds()).layers
    assert stem.leak in ("norm", "joined") and (more.norm, more.leak) == (None, "joined")


def test_no_norm_is_told_where_none_makes_a_constant():
    nets = [small(nn.ReLU(), nn.InstanceNorm2d(6)), small(nn.ReLU(), nn.ConvTranspose2d(6, 6, 3), nn.BatchNorm2d(6)),
            small(nn.ReLU(), nn.PReLU(6)), small(nn.Dropout(), nn.Identity())]
    assert [silent_behind(gp.filters(net).layers) for net in nets] == [[(None, None)]] * 4
    assert silent_behind(gp.filters(Casts(small(nn.BatchNorm2d(6), nn.ReLU()))).layers) == [("net.1", None)]
