"""More models as users bring them; each test stands for a kind that once gave a traceback or a wrong figure."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refuses, squares
from PIL import Image
from torch import Tensor, nn

import gradprune as gp
from gradprune.attacks import fit, make_trigger, read_trigger
from gradprune.attacks.plant_backdoor import plant
from gradprune.cli.console import show, table
from gradprune.datasets import ImageSet
from gradprune.defenses import DEFENSES
from gradprune.evaluation.replay import replay
from gradprune.models import load_weights, predict
from gradprune.models.checkpoints import load_checkpoint, save_checkpoint
from gradprune.models.export import export
from gradprune.models.working import hand_back, working_copy
from gradprune.victims.inspection import inspect
from gradprune.victims.slimming import slim


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


class Keeps(Wrapped):
    """Keeps its features, with their graph, on itself."""

    def forward(self, x):
        self.kept = self.net[0](x)
        return self.net(x)


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
    assert not hand_back(copied, net)._forward_pre_hooks
    assert not DEFENSES["clp"](net, images, mark, spc=1, progress=False).model._forward_pre_hooks


@pytest.mark.parametrize("work", [
    lambda net, some: pytest.importorskip("torch_pruning", reason="slimming needs torch-pruning") and slim(net, some),
    lambda net, some: export(net, "model.pt2", some),
    lambda net, some: replay(net, [], squares(24, 1, 32), nn.Identity(), 0),
    lambda net, some: fit(net, squares(24, 1, 32), epochs=1, progress=False),
    lambda net, some: plant(net, squares(24, 1, 32), make_trigger("label_consistent"), 0, epochs=1, progress=False)])
def test_features_that_a_model_keeps_with_their_graph_prevent_no_copy(images, work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = Keeps(small()).eval()
    net(images.floats())
    assert net.kept.grad_fn is not None
    work(net, images.floats()[:2])


@pytest.mark.parametrize(("make", "words"), [
    (lambda: nn.Sequential(nn.LazyConv2d(6, 3), nn.Flatten(), nn.LazyLinear(4)), "lazy layers that have seen no image"),
    (lambda: small().to("meta"), "on the device 'meta'"), (lambda: small().double(), r"torch.float64: give model.float\(\)"),
    (lambda: small().half(), r"torch.float16: give model.float\(\)"),
    (lambda: Wrapped(small(), Output), "must return logits .* got Output"),
])
def test_models_that_cannot_answer_get_one_sentence(images, mark, make, words):
    for run in (gp.evaluate, lambda net, data, trigger, _: DEFENSES["clp"](net, data, trigger, spc=1, progress=False)):
        refuses(words, run, make(), images, mark, 1)


def test_images_that_are_wider_than_the_weights_are_told(images):
    refuses(r"images of torch.float64, since it has weights of torch.float32: give images.float\(\)", predict, small(), images.floats().double())


def test_a_squeeze_that_takes_the_batch_away_is_named(images, mark):
    net = Wrapped(small(), lambda x: x.squeeze(0))
    assert predict(net, images.floats()).shape == (24, 4)
    refuses(r"squeeze\(\)", predict, net, images.floats(), batch_size=23)


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
    assert hand_back(copied, net) is copied


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
    assert "constant behind 2" in str(gp.filters(net))


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


class Views(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 5, stride=4), nn.Linear(4 * 49, 4)

    def forward(self, x):
        return self.fc(self.conv(x.view(len(x), -1).view(-1, 3, 32, 32)).view(-1, 4 * 49))


def test_images_that_lie_channels_last_suit_a_model_that_flattens_with_view(images, mark):
    rows = images.images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # as from an array (N, H, W, C)
    turned = ImageSet(rows, images.labels, images.classes)
    net = Views().eval()
    assert torch.equal(predict(net, images.floats()), predict(net, turned.floats()))
    assert predict(net, turned.images.float() / 255).shape == (24, 4)
    assert gp.evaluate(net, turned, mark, 1) == gp.evaluate(net, images, mark, 1)


def folder(place, count=5, endings=(".png",), classes=("a", "b", "c", "d")):
    for label, name in enumerate(classes):
        (place / name).mkdir(parents=True)
        for number in range(count):
            for ending in endings:
                Image.new("RGB", (9, 9), (60 * label, 9 * number, 90)).save(place / name / f"{number}{ending}")
    return place


def test_inspect_takes_such_a_model_and_says_why_it_takes_no_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "viewing.py").write_text("from test_users_inputs import Views as Net\n")
    torch.save(Views().state_dict(), "w.pth")
    folder(tmp_path / "photos")
    found = inspect("w.pth", "photos", model="viewing:Net")
    assert {guess.size for guess in found.guesses} == {32} and "--size 32" in found.command
    assert "invalid for input of size" in " ".join(inspect("w.pth", "photos", model="viewing:Net", size=24).notes)
    folder(tmp_path / "fewer", classes=("a", "b"))
    assert any("it knows 4 classes, and they are of 2" in note for note in inspect("w.pth", "fewer", model="viewing:Net").notes)


@pytest.mark.parametrize(("change", "words"), [
    (lambda place: folder(place, endings=(".gif", ".tif")), r"kinds that are not read \(\.gif, \.tif\): save them as \.png"),
    (lambda place: [folder(place / name) for name in ("fold1", "fold2")], r"only folders \(a, b, c, d\): is each of them a class"),
])
def test_a_class_without_pictures_says_what_it_holds(tmp_path, change, words):
    change(tmp_path / "photos")
    refuses(words, gp.load, str(tmp_path / "photos"))


def printed(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    show(False, {}, table("shipped model", {"badnets (10% poisoned)": {"acc": 0.994, "asr": 0.9985, "ra": 0.001}}))
    return capsys.readouterr().out


def test_no_figure_is_cut_off_in_a_narrow_window(monkeypatch, capsys):
    assert "|" in (wide := printed(60, monkeypatch, capsys)) or "\u2502" in wide
    for width in (1, 20, 33):
        words = " ".join(printed(width, monkeypatch, capsys).split())
        assert all(figure in words.replace(" ", "") for figure in ("99.4%", "99.9%", "0.1%")) and "\u2026" not in words


@pytest.mark.parametrize("redirect", ["> /dev/full", ">&- 2>&-", "| head -c 1 > /dev/null"])
def test_a_stdout_that_is_full_or_closed_gets_no_traceback(redirect):
    if "full" in redirect and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    run = subprocess.run(f"{sys.executable} -m gradprune zoo list {redirect}", shell=True, capture_output=True, text=True, check=False)
    assert run.returncode == (2 if "full" in redirect else 0), run.stderr
    assert "Traceback" not in run.stderr and ("cannot be printed" in run.stderr) == ("full" in redirect)


def test_fractions_that_rounding_left_above_one_are_no_pixels_of_255(tmp_path):
    np.save(tmp_path / "patch.npy", np.full((4, 4), 1.0000002))
    assert read_trigger(str(tmp_path / "patch.npy"))(torch.zeros(1, 3, 8, 8))[0, :, -1, -1].tolist() == [1, 1, 1]


def test_masks_by_their_transparency_and_below_zero(tmp_path):
    where = np.zeros((8, 8), np.uint8)
    where[-2:, -2:] = 255
    Image.fromarray(np.dstack([np.full((8, 8, 3), 255, np.uint8), where])).save(tmp_path / "clear.png")
    np.save(tmp_path / "signs.npy", np.where(where > 0, 1.0, -1.0))
    Image.new("RGB", (8, 8), "white").save(tmp_path / "white.png")
    shown = read_trigger(str(tmp_path / "white.png"), mask=str(tmp_path / "clear.png"))(torch.zeros(1, 3, 8, 8))
    assert torch.equal(shown[0, 0], torch.from_numpy(where / 255).float())
    refuses("below zero", read_trigger, str(tmp_path / "white.png"), mask=str(tmp_path / "signs.npy"))


def test_a_checkpoint_of_a_model_that_flattens_with_view_works_again(tmp_path, monkeypatch, images):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flattening.py").write_text("from test_users_inputs import Views as Net\n")
    net = Views().eval()
    save_checkpoint("clean", net, {"model": {"name": "flattening:Net", "num_classes": 4}})
    assert torch.equal(predict(load_checkpoint("clean", "flattening:Net")[0], images.floats()), predict(net, images.floats()))
