"""A model of one's own: weights from other hands, own code, a picture as the trigger; in Python and on the command line."""

import argparse
import html
import importlib
import json
import re
import shlex
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import as_json, card_of, listing, refused, refuses, run, same, squares, write_npz, write_pictures
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from toys import fit_head

import gradprune as gp
from gradprune.attacks import BadNets, Picture, make_trigger, read_trigger
from gradprune.attacks.triggers.foreign import read_array
from gradprune.cli import jobs as demo
from gradprune.cli.scan import _card_says
from gradprune.datasets import Dataset, sources
from gradprune.defenses import Scan
from gradprune.models import build, load_weights, predict
from gradprune.models.checkpoints import load_checkpoint, read_card, save_checkpoint
from gradprune.models.weights import read_file, state_dict
from gradprune.search import FAMILIES
from gradprune.victims import Own, guessing
from gradprune.victims.inspection import inspect

NET = """
from torch import nn
from gradprune.models import PreActResNet

def build(num_classes):
    return PreActResNet(num_classes, width=16, blocks=(1,))

def fixed():
    return build(4)

def raw():
    return PreActResNet(4, width=16, blocks=(1,), mean=0.0, std=1.0)

def fails():
    return 1 / 0

def number():
    return 3

def imports_late(**settings):
    from mypkg.nets import build as late
    import beside
    return late(**settings)

class Wrapped(PreActResNet):
    def __init__(self, num_classes, form):
        super().__init__(num_classes, width=16, blocks=(1,))
        self.form = form
    def forward(self, images):
        return self.form(super().forward(images))

def wrapped(form):
    return lambda num_classes: Wrapped(num_classes, form)

pair = wrapped(lambda logits: (logits, logits))
maps = wrapped(lambda logits: logits[:, :, None, None])
row = wrapped(lambda logits: logits[:, 0])
refuses = wrapped(lambda logits: {}["key"])
soft = wrapped(lambda logits: logits.softmax(1))
constant = 5
network = fixed()
"""


@pytest.fixture
def here(tmp_path, monkeypatch, victim):
    """A folder with somebody's network, their images and the picture of the trigger; the tests run in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "mypkg").mkdir()
    (tmp_path / "mypkg" / "nets.py").write_text(NET)
    (tmp_path / "broken.py").write_text("import torch_that_nobody_has\n")
    (tmp_path / "script.py").write_text("raise SystemExit(2)\n")
    (tmp_path / "divides.py").write_text("1 / 0\n")
    (tmp_path / "beside.py").touch()
    write_npz(tmp_path / "data.npz", victim.data)
    torch.save(victim.model.state_dict(), "weights.pth")
    Image.fromarray((victim.trigger.patch.permute(1, 2, 0) * 255).byte().numpy()).save("patch.png")
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] in ("mypkg", "broken", "script", "divides", "beside", "onechannel")]:
        del sys.modules[name]


OWN = ("weights.pth", "--model", "mypkg.nets:build", "--data", "data.npz")
ATTACK = ("--trigger", "patch.png", "--target", 1)


# ---- weights from other hands


@pytest.mark.parametrize("nest", [
    lambda state: state, lambda state: {"net": state, "acc": 0.9, "epoch": 3}, lambda state: {"model": state},
    lambda state: {"state_dict": state, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5)},
    lambda state: {"model_state_dict": state, "history": np.arange(3)}, lambda state: {"model": {"state_dict": state}},
    lambda state: {f"module.{key}": value for key, value in state.items()},
    lambda state: {"net": {f"module._orig_mod.{key}": value for key, value in state.items()}},
    lambda state: {"state_dict": {f"model.net.{key}": value for key, value in state.items()}},
    lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
    lambda state: {"netC": state, "schedulerC": {}, "best_clean_acc": torch.tensor(0.9), "grid": torch.zeros(1, 8, 8, 2)},
    lambda state: [state, {"epoch": 3}], lambda state: {"params": state, "iter": 5}, lambda state: {"ema": state, "optimizer": {"state": {0: {}}}}])
def test_state_dicts_in_their_nests(tmp_path, victim, nest):
    torch.save(nest(victim.model.state_dict()), tmp_path / "weights.pth")
    model = load_weights(build("preact_resnet", 4, blocks=(1,), seed=9).train(), tmp_path / "weights.pth")
    images = victim.data.test.floats()[:5]
    assert not model.training and torch.allclose(predict(model, images), predict(victim.model, images), atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_network_that_is_wrapped_itself(tmp_path, victim, prefix):
    torch.save({prefix + key: value for key, value in victim.model.state_dict().items()}, tmp_path / "weights.pth")
    model = nn.DataParallel(build("preact_resnet", 4, blocks=(1,), seed=9))
    load_weights(model, tmp_path / "weights.pth")
    assert torch.equal(model.module.linear.weight, victim.model.linear.weight)


@pytest.mark.parametrize(("prefix", "others"), [("net.", {"loss.scale": torch.ones(1)}), ("module.", {"n_averaged": torch.tensor(3)}),
                                                ("model.net.", {"model.criterion.weight": torch.ones(4), "step": torch.tensor(1)})])
def test_what_stands_beside_a_prefix_is_left_out_and_told(tmp_path, victim, caplog, prefix, others):
    state = {prefix + key: value for key, value in victim.model.state_dict().items()}
    torch.save(state | others, tmp_path / "weights.pth")
    model = load_weights(build("preact_resnet", 4, blocks=(1,), seed=9), tmp_path / "weights.pth")
    assert torch.equal(model.linear.weight, victim.model.linear.weight) and all(name in caplog.text for name in others)
    twice = {prefix.replace("net", "ema").replace("module", "other") + key: value + 1 for key, value in victim.model.state_dict().items()}
    torch.save(state | twice, tmp_path / "weights.pth")
    refuses(r"missing: conv1\.weight, .* unexpected: ", load_weights, build("preact_resnet", 4, blocks=(1,)),
            tmp_path / "weights.pth")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own, of TorchScript
def test_a_program_of_torchscript_is_told(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "weights.pt")
    refuses(r"it holds a program of TorchScript; save model\.state_dict\(\) alone", read_file, tmp_path / "weights.pt")


def test_safetensors_and_half_precision(tmp_path, victim):
    save_file({key: value.half().contiguous() if value.is_floating_point() else value
               for key, value in victim.model.state_dict().items()}, tmp_path / "weights.safetensors")
    model = gp.load_weights(build("preact_resnet", 4, blocks=(1,), seed=9), tmp_path / "weights.safetensors")
    assert next(model.parameters()).dtype == torch.float32
    assert model.linear.weight[0, 0].item() == pytest.approx(victim.model.linear.weight[0, 0].item(), rel=1e-2)


def test_a_mismatch_lists_names_and_no_more_than_a_few(tmp_path, victim):
    torch.save({f"layer{i}.weight": torch.zeros(1) for i in range(30)} | {"linear.bias": torch.zeros(7)},
               tmp_path / "weights.pth")
    model = build("preact_resnet", 4, blocks=(1,))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    text = refuses("do not fit the model", load_weights, model, tmp_path / "weights.pth")
    assert "missing: conv1.weight, stages.0.0.bn1.weight" in text and "and 11 more; unexpected: layer0.weight" in text
    assert "and 25 more; other shapes: linear.bias (7,) in the file, (4,) in the model." in text
    assert same(before, model), "half loaded"


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize(("content", "words"), [
    (nn.Linear(2, 2), "it holds torch.nn.modules.linear.Linear, and loading that would run code; save model.state_dict"),
    ({"net": {}, "evil": Evil()}, "was not read: it holds "),
    (np.array([Evil()], dtype=object), "was not read: it holds"),
    ({"epoch": 3, "losses": [1.0]}, "holds no state dict, only: epoch, losses"),
    ({name: nn.Linear(2, 2).state_dict() for name in ("netC", "netG")}, r"several state dicts \(2 under netC, 2 under netG\)"),
    ({}, "holds no state dict, only: nothing"), (torch.zeros(3), "holds no state dict, only: Tensor"),
    ([1, 2], "holds no state dict, only: list")])
def test_files_that_are_no_state_dict(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "weights.pth")
    refuses(words, lambda: state_dict(read_file("weights.pth"), "weights.pth"))
    assert not Path("ran").exists(), "code from the file was run"


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:300], lambda data: data[:-40], lambda data: b"PK" + data,
                                    lambda data: b"404: Not Found"])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_files_that_are_damaged(here, damage, name):
    data = Path("weights.pth").read_bytes()
    Path(name).write_bytes(damage(data))
    refuses(r"is no (file of weights that torch.save wrote|readable .safetensors file)",
            load_weights, build("preact_resnet", 4), name)
    refuses(r"there is no file of weights at gone.pth", load_weights, build("preact_resnet", 4), "gone.pth")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize(("start", "kind"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "git lfs pull"), (b"\n<!DOCTYPE html><html>", "web page"),
    (b"<html><head>", "web page"), (b"\x89HDF\r\n\x1a\n", "Keras"), (b"\x08\x0a\x12\x07pytorch", "ONNX")])
def test_files_that_are_taken_for_weights_are_named(here, name, start, kind):
    Path(name).write_bytes(start + bytes(200))
    refuses(kind, load_weights, build("preact_resnet", 4), name)


# ---- a picture as a trigger


@pytest.fixture
def drawn(tmp_path):
    def draw(pixels, name="picture.png"):
        Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(tmp_path / name)
        return tmp_path / name
    return draw


def test_a_patch_equals_the_sticker_it_shows(victim, here):
    images = victim.data.test.floats()[:4]
    assert torch.allclose(Picture.read("patch.png")(images), victim.trigger(images), atol=1e-3)
    assert torch.allclose(Picture.read("patch.png")(images[0]), victim.trigger(images[0]), atol=1e-3)


@pytest.mark.parametrize(("position", "row", "column"), [
    ("top_left", 0, 0), ("top_right", 0, 8), ("bottom_left", 6, 0), ("bottom_right", 6, 8), ("center", 3, 4), ((1, 5), 1, 5)])
def test_places_of_a_patch(drawn, position, row, column):
    wanted = torch.zeros(1, 3, 10, 10)
    wanted[:, :, row:row + 4, column:column + 2] = 1
    assert torch.equal(Picture.read(drawn(np.full((4, 2, 3), 255)), position)(torch.zeros(1, 3, 10, 10)), wanted)


def test_transparency_and_opacity_mix(drawn):
    pixels = np.full((2, 2, 4), 255)
    pixels[..., 3] = [[255, 0], [51, 255]]
    stamped = Picture.read(drawn(pixels), "top_left", opacity=0.5)(torch.zeros(1, 1, 4, 4))
    assert torch.allclose(stamped[0, 0, :2, :2], torch.tensor([[0.5, 0.0], [0.1, 0.5]]), atol=1e-6)
    whole = Picture.read(drawn(np.full((4, 4, 3), 255)), opacity=0.2)
    assert torch.allclose(whole(torch.full((2, 3, 4, 4), 0.5)), torch.full((2, 3, 4, 4), 0.6))
    assert whole.settings == {"size": [4, 4], "position": "bottom_right", "opacity": 0.2}
    rebuilt = make_trigger("picture", **whole.settings)
    rebuilt.load_state_dict(whole.state_dict())
    assert torch.equal(rebuilt(torch.zeros(1, 3, 4, 4)), whole(torch.zeros(1, 3, 4, 4)))


@pytest.mark.parametrize(("mode", "value", "wanted"), [("L", 51, (0.2, 0.2, 0.2)), ("P", 0, None), ("RGB", (255, 0, 51), (1, 0, 0.2))])
def test_kinds_of_pictures(tmp_path, mode, value, wanted):
    Image.new(mode, (2, 2), value).save(tmp_path / "p.png")
    stamped = Picture.read(tmp_path / "p.png")(torch.full((1, 3, 4, 4), 0.5))
    if wanted:
        assert torch.allclose(stamped[0, :, 3, 3], torch.tensor(wanted).float(), atol=1e-6)
    assert (stamped[0, :, 0, 0] == 0.5).all()


@pytest.mark.parametrize(("shape", "settings", "words"), [
    ((11, 4, 3), {}, "the trigger picture has 11x4 pixels, more than the image's 10x10: make it smaller"),
    ((10, 10, 3), {}, "hides the whole image; blend it with an opacity below 1"),
    ((4, 4, 3), {"position": (8, 0)}, "does not fit a 10x10 image"), ((4, 4, 3), {"position": "left"}, "position must be one of"),
    ((4, 4, 3), {"opacity": 0}, "opacity must lie in 0..1"), ((4, 4, 3), {"opacity": 1.5}, "opacity must lie in 0..1")])
def test_pictures_that_do_not_fit(drawn, shape, settings, words):
    refuses(words, lambda: Picture.read(drawn(np.zeros(shape)), **settings)(torch.zeros(1, 3, 10, 10)))


def test_files_that_are_no_picture(tmp_path, drawn):
    for content in (b"", b"<html>", b"\x89PNG\r\n\x1a\n"):
        (tmp_path / "p.png").write_bytes(content)
        refuses("cannot be read as a picture", Picture.read, tmp_path / "p.png")
    refuses("there is no trigger picture at", Picture.read, tmp_path / "gone.png")
    refuses("transparent everywhere", Picture.read, drawn(np.zeros((2, 2, 4))))


# ---- the command line


@pytest.mark.slow
def test_defend_own_code_with_a_picture(here, victim):
    told = as_json("defend", *OWN, *ATTACK, "--spc", 5, "--out", "out/clean")
    figures = {key: round(value, 4) for key, value in victim.evaluate()._asdict().items()}
    assert told["before"] == pytest.approx(figures, abs=0.006), "the picture is the trigger that was planted"
    assert told["before"]["asr"] > 0.9 > 0.5 > told["tuned"]["asr"]
    assert (told["trigger"], told["target_name"]) == ("picture", "north east") and told["notes"] == []

    refuses(r"somebody's own code, which runs only if you name it: --model mypkg.nets:build",
            load_checkpoint, "out/clean")
    model, card = load_checkpoint("out/clean", "mypkg.nets:build")
    assert card["model"] == {"name": "mypkg.nets:build", "num_classes": 4} and set(model.state_dict()) == set(victim.model.state_dict())
    assert "runs only if you name it" in refused("evaluate", "out/clean")
    measured = as_json("evaluate", "out/clean", "--model", "mypkg.nets:build")
    assert {key: measured[key] for key in ("acc", "asr", "ra")} == told["tuned"], "the picture was kept with the weights"


def test_weights_alone_in_safetensors_and_a_picture_over_the_whole(here, victim):
    save_file({key: value.contiguous() for key, value in victim.model.state_dict().items()}, "weights.safetensors")
    pixels = (BadNets(size=3, margin=0, color="checker")(torch.zeros(1, 3, 16, 16))[0].permute(1, 2, 0) * 255).byte()
    alpha = torch.zeros(16, 16, 1, dtype=torch.uint8)
    alpha[13:, 13:] = 255
    Image.fromarray(torch.cat([pixels, alpha], dim=2).numpy()).save("whole.png")
    told = as_json("evaluate", "weights.safetensors", *OWN[1:], "--trigger", "whole.png", "--target", 1)
    assert told["asr"] == pytest.approx(victim.evaluate().asr, abs=0.006) and told["card"] is None


def test_mean_and_std_come_first(here, victim):
    told = as_json("evaluate", "weights.pth", "--model", "mypkg.nets:raw", "--data", "data.npz", *ATTACK,
                   "--mean", "0.5", "--std", "0.25,0.25,0.25")
    assert told["acc"] == pytest.approx(victim.evaluate().acc, abs=0.006)
    assert "mean must be one number or three" in refused("evaluate", *OWN, *ATTACK, "--mean", "0.5,x")
    assert "std must be above 0" in refused("evaluate", *OWN, *ATTACK, "--std", "0")


def test_a_folder_of_pictures(here, victim):
    write_pictures(here / "photos", victim.data.test.images[:80], victim.data.test.labels[:80])
    told = as_json("defend", "weights.pth", "--model", "mypkg.nets:fixed", "--data", "photos/", "--size", 16, *ATTACK,
                   "--spc", 1, "--out", "out/clean")
    assert told["before"]["acc"] > 0.9 and told["before"]["asr"] > 0.9
    again = as_json("evaluate", "out/clean", "--model", "mypkg.nets:fixed")
    assert {key: again[key] for key in ("acc", "asr", "ra")} == told["tuned"], "the size of the images stands on the card"


def suspecting(label, trigger):
    """A scan that is over at once."""
    return lambda model, images, **_: Scan([], images.classes, 2.0, label, "mask", trigger, "the verdict", images, {},
                                           [], [])


def test_scan_of_a_model_without_a_card(here, monkeypatch):
    monkeypatch.setattr("gradprune.defenses.scan", suspecting(1, nn.Identity()))
    monkeypatch.setattr("gradprune.cli.scan._table", lambda found: "")
    told = as_json("scan", *OWN)
    assert (told["suspect_name"], told["card_says"], told["verdict"]) == ("north east", "", "the verdict")


@pytest.mark.slow
def test_a_synthesised_trigger_defends_and_measures(here, victim, monkeypatch):
    monkeypatch.setattr(demo, "scan", suspecting(1, victim.trigger))
    told = as_json("defend", *OWN, "--trigger", "synthesised", "--spc", 1, "--out", "out/clean")
    assert (told["target"], told["trigger"], told["scan"]) == (1, "synthesised", "the verdict")
    assert "the real one may still work" in told["notes"][-1]
    assert told["before"]["asr"] == pytest.approx(victim.evaluate().asr, abs=1e-3)
    assert "was synthesised by a scan; give --trigger a picture" in refused("evaluate", "out/clean", "--model", OWN[2])
    shown = as_json("evaluate", "out/clean", "--model", OWN[2], *ATTACK)
    assert shown["trigger"] == "picture" and shown["acc"] == told["tuned"]["acc"]


def test_without_a_suspect_nothing_is_measured_or_written(here, monkeypatch):
    monkeypatch.setattr(demo, "scan", suspecting(None, None))
    told = as_json("defend", *OWN, "--trigger", "synthesised", "--spc", 2, "--out", "deep/clean", "--slim")
    assert told["out"] is None and told["sentence"] == "Nothing was changed or written."
    assert "tuned" not in told and told["scan"] == "the verdict" and not Path("deep/clean.json").exists()


@pytest.fixture
def brief(monkeypatch):
    """A repair of two steps."""
    for name, value in {"steps": 2, "first": 3, "changes": 2, "sturdy": 1.0}.items():
        monkeypatch.setitem(importlib.import_module("gradprune.defenses.repair").DEFAULTS, name, value)


def test_repair_of_a_model_whose_trigger_nobody_knows(here, victim, brief):
    told = as_json("repair", *OWN, "--spc", 2, "--out", "out/mended", "--export", "out/mended.pt2",
                   "--report", "out/page")
    assert (told["trigger"], told["before"]["asr"], told["after"]["ra"], told["steps"]) == (None, None, None, 2)
    assert told["before"]["acc"] == pytest.approx(victim.evaluate().acc, abs=1e-3)
    assert "No trigger is known, so no figure says what is left of a backdoor" in told["sentence"] and "consistency" in told["road"]
    assert set(told["led"]) == set(FAMILIES) and all(0 <= share <= 1 for both in told["led"].values() for share in both)
    assert max(share for share, _ in told["led"].values()) > 0.9, "the backdoor of the given model"
    card = read_card("out/mended")
    assert card["defense"]["stopped"] in told["road"] and "metrics" not in card and Path(told["export"]).is_file()
    text = run("evaluate", "out/mended", "--model", OWN[2], *ATTACK).stdout
    assert f"{told['after']['acc']:.1%}" in text, "the figures of what was saved"
    page = re.sub("data:image[^\"]*", "", Path(told["report"]).read_text("utf-8"))
    assert all(word in page for word in (*FAMILIES, "no attack success rate", "weights.pth"))
    assert f"{told['led']['patches'][0]:.0%} to" in page and "ASR" not in page and "nan" not in page
    assert "Consistency means" in page and "searched for and unlearned" not in page, "the method that was used, alone"


def test_repair_of_a_suspect_counts_the_ways_to_it(here, victim, brief, monkeypatch):
    module, classes = importlib.import_module("gradprune.defenses.repair"), victim.data.test.classes
    scanned = Scan([], classes, 2.0, victim.target, "mask", None, "The verdict.", victim.data.defense, {}, [], [])
    monkeypatch.setitem(module.DEFAULTS, "sturdy", 1e-9)
    monkeypatch.setattr(module, "unsteadiness", lambda *_: 0.3)
    monkeypatch.setattr(module, "scan", lambda *_, **__: scanned)
    monkeypatch.setattr(module, "unlearn_suspect", lambda *_: " Nothing was done.")
    told = as_json("repair", *OWN, "--spc", 2)
    assert told["suspect"] == classes[victim.target] and told["led"]["patches"][0] == told["led"]["patches"][1] > 0.5
    text = run("repair", *OWN, "--spc", 2).stdout
    assert f"leads to {classes[victim.target]}" in " ".join(text.split()) and "networks of photographs" in text
    job = importlib.import_module("gradprune.cli.repair_job")
    monkeypatch.setattr(job, "repair_and_save", lambda *_, **__: told | {"suspect": "[b]\x1b[31mx"})
    text = " ".join(run("repair", *OWN).stdout.split())
    assert "[b] [31mx" in text and "\x1b" not in text, "a name from a stranger's folder is no command"


def test_defend_repairs_where_nobody_names_a_trigger(here, brief):
    told, same = (as_json(command, *OWN, "--spc", 2) for command in ("defend", "repair"))
    assert {**told, "seconds": 0} == {**same, "seconds": 0}
    assert "--recipe, --score, --slim and --target need a trigger" in refused("defend", *OWN, "--recipe", "paper")
    assert "nothing says which trigger" in refused("defend", *OWN, "--trigger", "known")


def test_repair_measures_with_the_trigger_on_the_card_and_does_not_see_it(here, victim, brief):
    card = card_of(victim)
    save_checkpoint("carded", victim.model, card, victim.trigger)
    result = run("repair", "carded", "--spc", 2, "--out", ".", "--report", "page")
    page = re.sub("data:image[^\"]*", "", Path("page/repair.html").read_text("utf-8"))
    assert "ASR" in page and "it is used here only to" in page and "no attack success rate" not in page
    assert "ASR" in result.stdout and "The repair did not see it." in result.stdout and result.exit_code == 0
    again = gp.load_victim("carded-repaired")
    assert f"moves {again.evaluate().asr:.1%} of the images, not 100.0%" in result.stdout
    save_checkpoint("strange", victim.model, card | {"attack": {"trigger": "badnets", "target": 9}})
    assert "No trigger is known" in run("repair", "strange", "--spc", 2).stdout, "a target that is none"


def test_a_checkpoint_with_a_card_and_another_picture(here, victim):
    card = card_of(victim, metrics={"acc": 1.0, "asr": 1.0, "ra": 0.0})
    save_checkpoint("carded", victim.model, card)
    Image.new("RGB", (2, 2), (255, 255, 255)).save("other.png")
    told = as_json("evaluate", "./carded", "--trigger", "other.png")
    assert told["card"] is None and told["asr"] < 0.5 and told["target"] == 1, "the card's target stands"
    told = as_json("evaluate", "./carded", "--data", "data.npz")
    assert told["asr"] > 0.9 and told["card"] == card["metrics"], "the card's trigger stands"
    Path("data.npz").rename("moved.npz")
    assert "names these images, 'data.npz'; --data gives it others" in refused("evaluate", "./carded")
    assert "No file at data.npz. The card of carded" in refused("defend", "./carded", "--trigger", "other.png")
    assert run("evaluate", "./carded", "--data", "moved.npz").exit_code == 0
    Path("moved.npz").rename("data.npz")
    assert "names the model 'preact_resnet', not 'resnet18'" in refused("evaluate", "./carded", "--model", "resnet18")
    assert "mean, std and stem are on the card" in refused("evaluate", "./carded", "--mean", "0.5")


def test_a_folder_of_grey_pictures_serves_a_network_of_one_channel(here):
    """Folders are read as RGB; where the three channels are equal nothing is lost."""
    for name, shade in (("dark", 40), ("light", 200)):
        Path("greys", name).mkdir(parents=True)
        for i in range(5):
            Image.new("L", (9, 9), shade + i).save(f"greys/{name}/{i}.png")
    torch.save(build("preact_resnet", 2, blocks=(1,), channels=1, width=16).state_dict(), "one.pth")
    Path("onechannel.py").write_text("from gradprune.models import PreActResNet\n"
                                     "def build(num_classes): return PreActResNet(num_classes, width=16, blocks=(1,), channels=1)\n")
    opened = Own(model="onechannel:build", data="greys").open("one.pth")
    assert opened.data.test.images.shape[1:] == (1, 32, 32) and "of three equal channels one was kept" in opened.notes[0]
    Image.new("RGB", (9, 9), (200, 0, 0)).save("greys/dark/0.png")
    refuses(r"cannot take images of shape \(3, 32, 32\)", Own(model="onechannel:build", data="greys").open, "one.pth")


def test_grey_images_are_given_colour_and_it_is_said(here, victim):
    grey = Dataset(*(type(part)(part.images[:, :1], part.labels, part.classes) for part in victim.data))
    write_npz(here / "grey.npz", grey)
    told = as_json("evaluate", "weights.pth", "--model", OWN[2], "--data", "grey.npz", *ATTACK)
    assert "the model takes colour: each was given three equal channels" in told["notes"][0]


@pytest.mark.parametrize(("arguments", "words"), [
    (["weights.pth"], "does not say which network it is for: give --model"),
    (["weights.pth", "--model", "mypkg.nets:build"], "does not say which images it is for: give --data"),
    ([*OWN, "--trigger", "known"], "nothing says which trigger weights.pth reacts to: give --trigger a picture; `defend` and `scan` can look"),
    ([*OWN, "--trigger", "patch.png"], "nothing says which class the trigger leads to: give --target"),
    ([*OWN, "--trigger", "patch.png", "--target", 4], "target must be a class in 0..3, got 4"),
    ([*OWN, "--trigger", "knwon", "--target", 1], "Unknown trigger 'knwon'; did you mean known or unknown? Or give a picture file"),
    ([*OWN, "--opacity", "0.5"], "mask, position and opacity go with a picture as --trigger"),
    ([*OWN, *ATTACK, "--position", "one,3"], "position must be a corner or ROW,COLUMN"),
    (["gone.pth", *OWN[1:], *ATTACK], "there is no file of weights at gone.pth"),
    (["https://a.org/w.pth", *OWN[1:], *ATTACK], "is an address; nothing is downloaded"),
    (["weights.pth", "--model", "mypkg.nets", "--data", "data.npz"], "Or name your own code: module:function."),
    (["weights.pth", "--model", "mypkg.gone:build", "--data", "data.npz"], "no module 'mypkg.gone' in the current folder"),
    (["weights.pth", "--model", "nopkg:build", "--data", "data.npz"], "no module 'nopkg' in the current folder"),
    (["weights.pth", "--model", "broken:build", "--data", "data.npz"], "importing broken failed: No module named 'torch_that"),
    (["weights.pth", "--model", "divides:build", "--data", "data.npz"], "importing divides failed with ZeroDivisionError: division by zero."),
    (["weights.pth", "--model", "mypkg.nets:biuld", "--data", "data.npz"], "mypkg.nets has no function 'biuld'; it has PreActResNet, build"),
    (["weights.pth", "--model", "mypkg.nets:constant", "--data", "data.npz"], "has no function 'constant'"),
    (["weights.pth", "--model", "mypkg.nets:fails", "--data", "data.npz"], "failed with ZeroDivisionError: division by zero"),
    (["weights.pth", "--model", "script:build", "--data", "data.npz"], "importing script ended the program, as a script does"),
    (["weights.pth", "--model", "mypkg/nets:build", "--data", "data.npz"], "pkg.net:build is the function build in pkg/net.py"),
    (["weights.pth", "--model", "nets.py:build", "--data", "data.npz"], "pkg.net:build is the function build in pkg/net.py"),
    (["weights.pth", "--model", "mypkg.nets:network", "--data", "data.npz"], "is a network; name a function that builds it"),
    (["weights.pth", "--model", "mypkg.nets:pair", "--data", "data.npz"], "must return logits (N, classes), got tuple"),
    (["weights.pth", "--model", "mypkg.nets:maps", "--data", "data.npz"], "got a tensor of shape (100, 4, 1, 1): wrap it"),
    (["weights.pth", "--model", "mypkg.nets:row", "--data", "data.npz"], "got a tensor of shape (100,): wrap it"),
    (["weights.pth", "--model", "mypkg.nets:refuses", "--data", "data.npz"], "cannot take images of shape (3, 16, 16): KeyError: 'key'"),
    (["weights.pth", "--model", "mypkg.nets:number", "--data", "data.npz"], "must return an nn.Module, got int"),
    (["weights.pth", "--model", ":build", "--data", "data.npz"], "own code is named as module:function"),
    (["weights.pth", "--model", "resnet18", "--data", "data.npz"], "the weights in weights.pth do not fit the model; missing: bn1.weight")])
@pytest.mark.parametrize("command", ["defend", "evaluate"])
def test_what_is_refused(here, command, arguments, words):
    assert words in refused(command, *arguments, *(["--out", "deep/out"] if command == "defend" else []))


def test_a_target_with_a_scan(here):
    assert "target is what a scan finds" in refused("defend", *OWN, "--trigger", "synthesised", "--target", 1)


@pytest.mark.parametrize(("model", "classes", "words"), [
    *(("fixed", count, f"the model knows 4 classes, the data has {count}: it must have all the model's, in the same order") for count in (3, 5)),
    ("build", 5, "linear.bias (4,) in the file, (5,) in the model. The data has 5 classes.\n")])
def test_data_of_other_classes(here, model, classes, words):
    images = squares(60, 4)
    part = type(images)(images.images, torch.arange(60) % classes, tuple("abcde"[:classes]))
    write_npz(here / "other.npz", Dataset(part, part, part))
    for command in (("defend", *ATTACK), ("scan",)):
        assert words in refused(command[0], "weights.pth", "--model", f"mypkg.nets:{model}", "--data", "other.npz", *command[1:])


def test_a_function_may_import_when_called_and_take_anything(here, victim):
    assert Own(model="mypkg.nets:imports_late", data="data.npz").open("weights.pth").notes == []


def test_a_model_and_images_that_do_not_go_together_are_told(here, victim):
    parts = (type(part)(part.images, torch.tensor([1, 2, 3, 0])[part.labels], part.classes) for part in victim.data)
    write_npz(here / "other.npz", Dataset(*parts))
    notes = Own(model="mypkg.nets:build", data="other.npz").open("weights.pth").notes
    assert len(notes) == 1 and re.fullmatch(r"Of (\d+) clean images the given model gets \d right\. .* \(--mean, --std\) .*", notes[0])


def test_a_softmax_at_the_end_is_told(here):
    notes = Own(model="mypkg.nets:soft", data="data.npz").open("weights.pth").notes
    assert notes == ["The model seems to return probabilities; leave its softmax out: the losses here take logits."]


@pytest.mark.parametrize(("given", "count"), [({}, 1), ({"mean": [0.5], "std": [0.25]}, 0)])
def test_how_a_named_network_shifts_its_images_is_told(here, given, count):
    torch.save(build("resnet18", 4, seed=1).state_dict(), "resnet.pth")
    notes = Own(model="resnet18", data="data.npz", **given).open("resnet.pth").notes
    assert sum(note.startswith("resnet18 takes 0.5 from the pixels") for note in notes) == count


def test_help_says_that_own_code_is_run():
    for command in ("defend", "evaluate", "scan"):
        text = " ".join(run(command, "--help").stdout.split())
        assert "module:function in your own code, which is imported from the current folder and run" in text


# ---- in Python, as the page says


@pytest.mark.slow
def test_the_page_works_as_written(here, victim, capsys, monkeypatch):
    page = (Path(__file__).resolve().parents[2] / "docs" / "own_model.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) <= 30
    (here / "mynet.py").write_text("from mypkg.nets import build\n")
    write_pictures(here / "photos", victim.data.test.images, victim.data.test.labels)
    monkeypatch.syspath_prepend(here)
    monkeypatch.delitem(sys.modules, "mynet", raising=False)  # that of notebook 06, where its tests ran before
    exec(textwrap.dedent(code), {})
    del sys.modules["mynet"]
    assert "ASR" in capsys.readouterr().out
    assert set(torch.load("cleaned.pth", weights_only=True)) == set(victim.model.state_dict())


def test_a_network_of_a_fixed_size_gets_that_of_the_images(here, victim):
    """Its linear layer depends on it."""
    vgg = build("small_vgg", num_classes=4, size=16)
    torch.save(vgg.state_dict(), "vgg.pth")
    opened = Own(model="small_vgg", data="data.npz").open(here / "vgg.pth")
    images = victim.data.test.floats()[:3]
    assert opened.card["model"]["size"] == 16 and torch.equal(predict(opened.model, images), predict(vgg, images))


# ---- trigger pictures of the field


def patch_on_black(path, size=16):
    pixels = np.zeros((size, size, 3), np.uint8)
    pixels[-3:, -3:] = 255
    Image.fromarray(pixels).save(path)
    return path


def test_a_patch_on_black_ground_is_asked_about(tmp_path, caplog):
    path, images = patch_on_black(tmp_path / "patch.png"), torch.full((1, 3, 16, 16), 0.5)
    refuses(r"black but for 9 pixels: .* 'black' for the black pixels", Picture.read(path), images)
    Image.fromarray(np.asarray(Image.open(path)).max(2)).save(tmp_path / "mask.png")
    for mask in ("black", tmp_path / "mask.png"):
        marked = Picture.read(path, mask=mask)(images)
        assert (marked[..., -3:, -3:] == 1).all() and (marked[..., :-3, :] == 0.5).all()
    assert not caplog.records
    again = Picture.read(path, opacity=0.2)
    faint = again(images)
    assert "the black pixels are left out" in caplog.text
    assert torch.equal(again(images), faint) and len(caplog.records) == 1, "said at each batch"
    assert faint[0, 0, -1, -1] == pytest.approx(0.6) and (faint[..., :-3, :] == 0.5).all()
    whole = Picture.read(path, opacity=0.2, mask="whole")
    assert whole(images)[0, 0, 0, 0] == pytest.approx(0.4) and make_trigger("picture", **whole.settings).whole


@pytest.mark.parametrize(("draw", "words"), [
    (lambda path: Image.new("L", (4, 4), 255).save(path), "has 4x4 pixels, the trigger picture 16x16"),
    (lambda path: Image.new("L", (16, 16)).save(path), "is black wherever"), (lambda path: None, "there is no mask"),
    (lambda path: path.write_text("no picture"), "cannot be read as a picture")])
def test_masks_that_do_not_fit(tmp_path, draw, words):
    draw(tmp_path / "mask.png")
    refuses(words, Picture.read, patch_on_black(tmp_path / "patch.png"), mask=tmp_path / "mask.png")


def test_arrays_as_triggers(tmp_path):
    images = torch.full((1, 3, 8, 8), 0.5)
    residual = np.zeros((8, 8, 3), np.float64)
    residual[0, 0], residual[0, 1] = -25.5, 255.0
    np.save(tmp_path / "lf.npy", residual)
    trigger = read_trigger(str(tmp_path / "lf.npy"))
    assert trigger.name == "added" and trigger(images)[0, 0, 0, :3].tolist() == pytest.approx([0.4, 1.0, 0.5])
    again = make_trigger("added", **trigger.settings)
    again.load_state_dict(trigger.state_dict())
    assert torch.equal(again(images), trigger(images)) and again(images[:, :1]).shape == (1, 1, 8, 8)
    for array in (np.full((8, 8, 3), 255, np.uint8), np.ones((3, 8, 8), np.float32), np.full((1, 8, 8), 255.0)):
        np.save(tmp_path / "blend.npy", array)
        assert read_trigger(str(tmp_path / "blend.npy"), opacity=0.2)(images).unique().tolist() == pytest.approx([0.6])
    refuses("8x8 pixels, these have 9x9", trigger, torch.zeros(1, 3, 9, 9))


@pytest.mark.parametrize("mask", [np.eye(3, dtype=np.uint8), np.eye(3, dtype=np.uint8) * 255, np.eye(3, dtype=bool)])
def test_masks_of_zeros_and_ones(tmp_path, mask):
    """Whatever stands for 1, in a picture and in an array; the same for an array as a trigger."""
    Image.new("RGB", (3, 3), (255, 255, 255)).save(tmp_path / "white.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    np.save(tmp_path / "mask.npy", mask)
    for name in ("mask.png", "mask.npy"):
        shown = read_trigger(str(tmp_path / "white.png"), mask=str(tmp_path / name))(torch.full((1, 3, 3, 3), 0.5))
        assert torch.equal(shown[0, 0], 0.5 + 0.5 * torch.eye(3)), name
    np.save(tmp_path / "noise.npy", np.array([[-1, 1]], np.int8))
    assert read_array(tmp_path / "noise.npy")[0].abs().max() == pytest.approx(1 / 255)


@pytest.mark.parametrize(("array", "words"), [
    (np.array([Evil()], dtype=object), "no readable .npy file"), (np.zeros(5), r"must hold one image, .* got \(5,\)"),
    (np.full((4, 4), np.nan), "not finite"), (np.full((4, 4), 1.3), r"in 0\.\.1 or numbers in 0\.\.255, got 1\.3"), (np.full((4, 4), 300.0), r"in -255\.\.255"), (np.array(["a"]), "numbers")])
def test_arrays_that_are_no_trigger(tmp_path, monkeypatch, array, words):
    monkeypatch.chdir(tmp_path)
    np.save("bad.npy", array, allow_pickle=True)
    refuses(words, read_trigger, "bad.npy")
    assert not Path("ran").exists()


@pytest.mark.slow
def test_a_trigger_of_own_code_and_a_mask_on_the_command_line(here, victim):
    Path("marks.py").write_text("def mark(images):\n    images = images.clone()\n    images[:, :, -3:, -3:] = 1\n    return images\n"
                                "def nothing(images):\n    return None\n")
    common = ("--model", "mypkg.nets:build", "--data", "data.npz", "--target", 1)
    told = as_json("evaluate", "weights.pth", "--trigger", "marks:mark", *common)
    patch_on_black("patch16.png")
    same = as_json("evaluate", "weights.pth", "--trigger", "patch16.png", "--mask", "black", *common)
    assert (told["acc"], told["asr"], told["trigger"]) == (same["acc"], same["asr"], "marks:mark")
    assert "must return images, got NoneType" in refused("evaluate", "weights.pth", "--trigger", "marks:nothing", *common)
    assert "a synthesised trigger cannot be measured" in refused("evaluate", *OWN, "--trigger", "synthesised")
    assert "mask, position and opacity go with a picture" in refused("evaluate", "weights.pth", "--mask", "black", *common)
    assert run("defend", "weights.pth", "--trigger", "marks:mark", "--spc", 2, "--out", "clean", *common).exit_code == 0
    del sys.modules["marks"]


# ---- benches of such models


def test_a_bench_of_own_code(here):
    """The file and what the options say of it become a checkpoint in OUT/victims, which cells load with the same code."""
    arguments = ("bench", "--attacks", "weights.pth", "--model", "mypkg.nets:build", "--data", "data.npz", "--trigger", "patch.png",
                 "--target", 1, "--defenses", "clp", "--spc", 2, "--seeds", 1, "--out", "out/table")
    told = as_json(*arguments)
    assert (told["cells"], told["failed"]) == (1, 0), told["errors"]
    table = gp.bench.read_results("out/table")
    assert set(table.attack) == {"out/table/victims/weights"} and (table.asr_before > 0.8).all() and (table.acc > 0.5).all()
    told = as_json(*arguments, "--spc", 3, "--workers", 2)  # in other processes, the folder goes on
    assert (told["cells"], told["failed"]) == (1, 0), told["errors"]
    assert len(gp.bench.read_results("out/table")) == 2
    assert run("report", "out/table").exit_code == 0
    shown = re.search(r"gradprune bench [^<]*", Path("out/table/report.html").read_text()).group()
    assert as_json(*shlex.split(html.unescape(shown))[1:])["cells"] == 2, "the page's command goes on with the folder"
    assert "a size goes with --data" in refused("evaluate", "out/table/victims/weights", "--model", "mypkg.nets:build", "--size", 9)
    refused("bench", "--attacks", "out/table/victims/weights", "--out", "out/other")  # its card alone makes no code run
    again = run("bench", "--attacks", "out/table/victims/weights", "--model", "mypkg.nets:build", "--defenses", "clp", "--spc", 2,
                "--seeds", 1, "--out", "out/other")
    assert again.exit_code == 0 and ", 0 of them failed" in again.stdout


def test_a_bench_of_own_models_mixes_no_rows_of_other_settings(here, victim):
    Image.new("RGB", Image.open("patch.png").size, "red").save("other.png")
    arguments = ("bench", "--attacks", "weights.pth", "--model", "mypkg.nets:build", "--data", "data.npz", "--trigger", "patch.png",
                 "--target", 1, "--spc", 2, "--seeds", 1, "--out", "out/table")
    refused(*arguments, "--defenses", "nope")
    assert not Path("out").exists(), "a wrong defence leaves files behind"
    as_json(*arguments, "--defenses", "clp")
    before = listing(Path("out"))
    for changed in (("--target", 0), ("--trigger", "other.png"), ("--opacity", 0.5), ("--position", "top_left")):
        assert "saved with other weights, settings or images; nothing was changed" in refused(*arguments, "--defenses", "clp,ft", *changed)
    assert listing(Path("out")) == before
    assert as_json(*arguments, "--defenses", "clp")["cells"] == 1
    write_npz(here / "data.npz", Dataset(*(squares(len(part), seed) for seed, part in enumerate(victim.data, 5))))
    assert "settings or images; nothing was changed" in refused(*arguments, "--defenses", "clp,ft")


def test_benches_of_own_models_that_cannot_be(here):
    own = ("--model", "mypkg.nets:build", "--data", "data.npz", "--trigger", "patch.png", "--target", 1)
    assert "name the files there" in refused("bench", *own)
    assert "name the files there" in refused("bench", "--preset", "gtsrb", "--attacks", "weights.pth", *own)
    (here / "other").mkdir()
    torch.save(gp.models.build("small_vgg", 4).state_dict(), "other/weights.pth")
    assert "a file name of its own" in refused("bench", "--attacks", "weights.pth,other/weights.pth", *own)


# ---- inspecting a file


def test_inspect_finds_the_network_and_its_normalisation(here, victim):
    shifted = build("resnet18", 4, small=False, seed=1, mean=0.0, std=1 / 255)
    write_npz(here / "large.npz", Dataset(squares(60, 1, 32), squares(40, 2, 32), squares(40, 3, 32)))
    fit_head(shifted, squares(200, 2, 32))
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in shifted.state_dict().items()}, "epoch": 3}, "resnet.pth")
    found = inspect("resnet.pth", "large.npz")
    assert (found.model, found.classes, found.channels, found.layers["convolutions"]) == ("resnet18", 4, 3, 20)
    best = found.guesses[0]
    assert (best.normalisation, best.stem, best.size, best.right) == ("0..255", "stock", 32, best.images)
    assert "--model resnet18 --stem stock --data large.npz --mean 0.0 --std 0.003922" in found.command
    assert not found.notes and found.guesses[-1].right <= best.right
    assert as_json("inspect", "resnet.pth", "--data", "large.npz") == json.loads(json.dumps(found.as_dict()))


def test_inspect_tries_the_sizes_of_a_folder(here):
    """The images' size is that which the last layer takes."""
    images = squares(24, 1, 64)
    write_pictures(here / "photos", images.images, images.labels)
    (here / "photos" / "1" / "damaged.png").touch()
    torch.save(build("small_vgg", 4, size=64).state_dict(), "vgg.pth")
    found = inspect("vgg.pth", "photos")
    assert {guess.size for guess in found.guesses} == {64} and found.guesses[0].images == 24
    assert "--size 64" in found.command and ("get more" not in str(found.notes)) and "No usual" in str(found.notes)


def test_a_data_set_is_not_taken_for_a_folder_of_its_name(here, monkeypatch, caplog):
    monkeypatch.setattr(sources, "SOURCES", {"signs": lambda seed: Dataset(*(squares(24, seed, 32) for seed in (1, 2, 3)))})
    monkeypatch.setattr(guessing, "SOURCES", sources.SOURCES)
    (here / "signs").mkdir()
    found = inspect("weights.pth", "signs", model="mypkg.nets:build")
    assert "--size" not in found.command and found.command.startswith("gradprune repair weights.pth --model mypkg.nets:build --data signs")
    assert "the folder here is './signs'" in caplog.text


def test_inspect_does_not_depend_on_the_order_in_a_safetensors_file(here, monkeypatch):
    """Files of that kind keep none: the reader gives the tensors in another order each time."""
    tensors = build("mobilenet_v3_small", 5).state_dict()
    save_file(tensors, "mobile.safetensors")
    found = []
    for order in (sorted(tensors), sorted(tensors, reverse=True)):
        monkeypatch.setattr("gradprune.models.weights.load_safetensors", lambda _, order=order: {name: tensors[name] for name in order})
        found.append(inspect("mobile.safetensors").as_dict())
    assert found[0] == found[1] and (found[0]["channels"], found[0]["classes"], found[0]["model"]) == (3, 5, "mobilenet_v3_small")


def test_inspect_says_that_no_defence_takes_a_transformer(here):
    (here / "toknet.py").write_text(textwrap.dedent("""
        from torch import nn

        def build(num_classes):
            block = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
            return nn.Sequential(nn.Conv2d(3, 8, 32), nn.Flatten(2), nn.Unflatten(1, (1, 8)), nn.Flatten(2), block, nn.Flatten(),
                                 nn.Linear(8, num_classes))
        """))
    torch.save(build("toknet:build", 4, code=True).state_dict(), "tokens.pth")
    told = run("inspect", "tokens.pth", "--model", "toknet:build").stdout
    assert "The network is a transformer" in " ".join(told.split()) and "Next:" not in told
    assert inspect("tokens.pth", model="toknet:build").command == ""


def test_inspect_says_what_it_does_not_know(here, monkeypatch):
    monkeypatch.setattr(guessing, "_TIMM", ())
    found = inspect("weights.pth")
    assert found.model == "" and found.classes == 4 and "--model MODULE:FUNCTION --data FOLDER" in found.command.replace("'", "")
    assert "no network that is known" in found.notes[0]
    assert inspect("weights.pth", model="mypkg.nets:build").model == "mypkg.nets:build"
    assert "do not fit the model" in inspect("weights.pth", model="vgg16_bn").notes[0]
    other = inspect("weights.pth", "data.npz", model="mypkg.nets:raw")
    assert other.guesses[0].right > 0.9 * other.guesses[0].images
    assert other.guesses[0].normalisation not in ("as they are", "-1..1", "0..255")  # 0.5 and 0.25, or nearly
    torch.save(build("mobilenet_v3_small", 9).state_dict(), "nine.pth")
    assert "knows 9 classes" in inspect("nine.pth", "data.npz").notes[0]
    torch.save(build("mobilenet_v3_small", 4, channels=1).state_dict(), "grey.pth")
    assert (inspect("grey.pth").model, inspect("grey.pth").channels) == ("mobilenet_v3_small", 1)
    torch.save({"conv.weight": torch.zeros(4, 3, 3, 3)}, "headless.pth")
    assert "tells two or more classes" in inspect("headless.pth").notes[0]
    torch.save({"conv.weight": torch.zeros(4, 3, 3, 3), "fc.weight": torch.zeros(1).expand(10**9, 1)}, "huge.pth")
    assert inspect("huge.pth").classes == 10**9 and inspect("huge.pth").model == ""
    refuses("no file of weights", inspect, "nowhere.pth")


def test_inspect_knows_checkpoints_and_runs_no_code(here, victim):
    save_checkpoint("mine", victim.model, card_of(victim, model={"name": "mypkg.nets:fails", "num_classes": 4}))
    found = inspect("mine")
    assert found.model == "mypkg.nets:fails" and "its card" in found.holds
    assert found.command == "gradprune defend mine --model mypkg.nets:fails --out out/clean"
    save_checkpoint("found", victim.model, card_of(victim, attack={"trigger": "synthesised", "target": 1}))
    assert inspect("found").command.startswith("gradprune repair found"), "its trigger is not the attacker's"
    assert "mypkg" not in sys.modules
    torch.save({"model_name": "preactresnet18", "num_classes": 4, "model": victim.model.state_dict()}, "attack_result.pt")
    assert "BackdoorBench" in inspect("attack_result.pt").holds
    text = run("inspect", "mine").stdout
    assert "a checkpoint of gradprune" in text and "gradprune defend mine \\\n" in text


def test_grey_models_by_name_take_grey_images(here):
    grey = [gp.datasets.ImageSet(part.images[:, :1].contiguous(), part.labels, part.classes) for part in
            (squares(60, 1, 32), squares(40, 2, 32), squares(40, 3, 32))]
    write_npz(here / "grey.npz", Dataset(*grey))
    torch.save(build("mobilenet_v3_small", 4, channels=1).state_dict(), "grey.pth")
    assert Own("mobilenet_v3_small", "grey.npz").open("grey.pth").card["model"]["channels"] == 1


def test_a_trigger_or_target_given_by_hand_replaces_what_the_card_says(here, victim):
    """The label map, facts and figures of the old attack."""
    card = card_of(victim, metrics={"acc": 0.9, "asr": 0.9, "ra": 0.1})
    card["attack"] |= {"label_map": "all_to_all", "departs": "strength 9", "rate": 0.1}
    save_checkpoint("shifted", victim.model, card, victim.trigger)
    assert "leads each class to the next." in run("evaluate", "shifted").stdout
    for given, target in ((("--target", 2), 2), (("--trigger", "patch.png", "--target", 1), 1)):
        told = as_json("evaluate", "shifted", *given)
        wanted = gp.evaluate(victim.model, victim.data.test, victim.trigger, target)
        assert (told["asr"], told["ra"]) == (round(wanted.asr, 4), round(wanted.ra, 4)) and told["card"] is None
    other = Own(trigger="patch.png", target=np.int64(1)).victim("shifted")
    assert other.card["attack"].keys() == {"trigger", "settings", "target"}
    assert Own(trigger="patch.png").victim("shifted").label_map == "all_to_all"
    save_checkpoint("unnamed", victim.model, card | {"attack": {"target": 1, "poisoned_images": 5}})
    assert Own(trigger="patch.png").victim("unnamed").card["attack"]["poisoned_images"] == 5, "the user only completes this card"
    assert "a single target" in _card_says(card, SimpleNamespace(classes=victim.data.test.classes, suspect=None))


def test_a_trigger_in_code_or_that_is_added_takes_no_options_of_pictures(here):
    Path("marks.py").write_text("from torch import nn\nclass Noisy(nn.Dropout):\n    pass\n")
    assert not read_trigger("marks:Noisy").function.training
    np.save("minus.npy", np.full((16, 16), -0.1))
    for settings in ({"position": (0, 0)}, {"opacity": 0.5}, {"mask": "whole"}):
        refuses("are for pictures", read_trigger, "marks:Noisy", **settings)
    for settings in ({"position": (0, 0)}, {"opacity": 0.0}):
        refuses("takes no mask and no position", read_trigger, "minus.npy", **settings)
    assert "takes a picture or an array" in refused("bench", "--attacks", "weights.pth", "--model", "mypkg.nets:build", "--data",
                                                    "data.npz", "--trigger", "marks:Noisy", "--target", 1)
    assert not Path("out").exists()
