"""Notebook 06: the folder that it works in, the seller's weights, the exercises against the package, restart points."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import refuses
from safetensors.torch import load_file
from torch import fx, nn

import gradprune as gp
from gradprune.lessons import checkpoint
from gradprune.lessons.runtime import restart_points as restart
from gradprune.lessons.runtime import sign_net, workshop
from gradprune.lessons.runtime.check import EXERCISES
from gradprune.models import normalized
from gradprune.models.layers import Normalize
from gradprune.models.pairing import pair
from gradprune.models.weights import load_weights, state_dict

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "06_your_own_model.ipynb"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder of this test's own, with six pictures a class."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADPRUNE_STRICT", "1")
    monkeypatch.setenv("GRADPRUNE_DATA", str(tmp_path / "nothing"))
    monkeypatch.delenv("GRADPRUNE_MODE", raising=False)
    monkeypatch.setattr(workshop, "PICTURES", 6)
    workshop._home.cache_clear()
    yield tmp_path
    workshop._home.cache_clear()


# ---- the folder


def test_the_folder_has_what_the_notebook_needs_and_keeps_what_is_there(here):
    made = workshop.workshop(code=False)
    assert made == Path.cwd() == here / "out" / "06"
    assert sorted(path.name for path in made.iterdir()) == ["bought.pth", "patch.png", "photos"]
    data = gp.load("photos")
    assert data.test.classes == workshop.CLASSES and sum(map(len, data)) == 6 * 8
    (made / "mynet.py").write_text("# mine\n")
    (made / "photos" / "stop" / "000.png").unlink()
    (made / "photos" / "stop" / "001.png").write_bytes(b"mine")
    assert workshop.workshop() == made, "the same folder, from inside it"
    assert (made / "mynet.py").read_text() == "# mine\n" and (made / "photos" / "stop" / "001.png").read_bytes() == b"mine"
    assert (made / "photos" / "stop" / "000.png").is_file()


def test_a_folder_that_cannot_be_written_is_told(here):
    (here / "out").write_text("a file")
    refuses("Cannot write to folder", workshop.workshop)


def test_the_shipped_weights_are_backdoored_and_read_badly_without_normalisation():
    images = workshop.signs(12, 3)
    net = sign_net.SignNet(8)
    net.load_state_dict(workshop.bought())
    net.eval()
    raw = gp.evaluate(net, images, workshop._STICKER, workshop.TARGET)
    given = gp.evaluate(normalized(net, workshop.MEAN, workshop.STD), images, workshop._STICKER, workshop.TARGET)
    assert given.acc > 0.95 and given.asr > 0.95
    assert raw.acc < 0.7


def test_full_mode_trains(monkeypatch):
    trained = []
    monkeypatch.setenv("GRADPRUNE_MODE", "full")
    monkeypatch.setattr(workshop, "fit", lambda net, images, **settings: trained.append(len(images)))
    monkeypatch.setattr(workshop, "signs", lambda count, seed, draw=workshop.signs: draw(min(count, 6), seed))
    workshop.workshop()
    assert trained == [48] and Path("bought.pth").is_file()


def test_the_script_writes_weights_that_the_notebook_reads(here, monkeypatch, capsys):
    monkeypatch.setattr(workshop, "fit", lambda net, images, **settings: net.load_state_dict(workshop.bought()))
    monkeypatch.setattr(workshop, "signs", lambda count, seed, draw=workshop.signs: draw(min(count, 6), seed))
    workshop.main(["--out", str(here / "new.safetensors")])
    assert re.search(r"new.safetensors: ACC \d+\.\d% +ASR (9\d|100)\.\d%", capsys.readouterr().out)
    new, shipped = load_file(here / "new.safetensors"), workshop.bought()
    assert new.keys() == shipped.keys() and all(torch.equal(tensor, new[name]) for name, tensor in shipped.items())


def test_the_file_that_the_notebook_writes_is_the_shipped_network():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    magic, _, code = "".join(next(cell["source"] for cell in cells if cell["id"] == "network")).partition("\n")
    names: dict = {}
    exec(code, names)
    mine, shipped = names["SignNet"](8), sign_net.SignNet(8)
    mine.load_state_dict(workshop.bought())
    shipped.load_state_dict(workshop.bought())
    images = torch.rand(2, 3, 32, 32)
    assert magic == "%%writefile mynet.py" and torch.equal(mine.eval()(images), shipped.eval()(images))
    text = " ".join("".join(cell["source"]) for cell in cells)
    told = [[float(number) for number in re.search(rf"--{name} ([\d.,]+)", text)[1].split(",")] for name in ("mean", "std")]
    assert told == [workshop.MEAN, workshop.STD] and f"--target {workshop.TARGET}" in text


# ---- exercises


def test_the_exercises_do_what_the_package_does():
    workshop.workshop()
    content = torch.load("bought.pth", weights_only=True)
    mine, packages = EXERCISES["unwrap"].reference(content), state_dict(content, "bought.pth")
    assert list(mine) == list(packages) and all(torch.equal(mine[name], packages[name]) for name in mine)
    load_weights(sign_net.SignNet(8), "bought.pth")
    images = torch.rand(2, 3, 5, 4)
    ours = EXERCISES["normalise"].reference(images, workshop.MEAN, workshop.STD)
    assert torch.allclose(ours, Normalize(workshop.MEAN, workshop.STD)(images))
    for model in (sign_net.SignNet(8), gp.build("preact_resnet", 4, blocks=(1, 1)), gp.build("resnet18", 4)):
        graph = fx.symbolic_trace(model).graph
        targets = {str(node): node.target for node in graph.nodes}
        reads = [(str(source), str(node)) for node in graph.nodes for source in node.all_input_nodes]
        convs, norms = ([name for name, target in targets.items() if isinstance(target, str) and target in
                         dict(model.named_modules()) and isinstance(model.get_submodule(target), kind)]
                        for kind in (nn.Conv2d, nn.BatchNorm2d))
        found = EXERCISES["partners"].reference(reads, convs, norms)
        assert {targets[conv]: targets[norm] for conv, norm in found.items()} == pair(model.eval()).norms


# ---- restart points and photographs


def test_restart_points():
    assert checkpoint("06_start") == Path.cwd()
    data, model = checkpoint("06_model")
    victim = checkpoint("06_scan")
    assert not model.training and len(data.test.classes) == 8
    images = data.test.floats()
    assert torch.allclose(model(images), victim.model(images), atol=1e-5)
    assert victim.target == workshop.TARGET and victim.evaluate().asr > 0.9
    assert torch.allclose(victim.trigger(images), workshop._STICKER(images), atol=1 / 255), "but for the rounding of a PNG"


def test_photographs_are_left_out_in_one_sentence_where_they_are_not_here(monkeypatch, victim, capsys):
    monkeypatch.setattr(workshop, "load_victim", lambda name: gp.load(name.split("/")[0]))
    assert checkpoint("06_photographs") is None
    told = capsys.readouterr().out
    assert told.startswith("cifar10/badnets is left out: The data set cifar10 is not here; run `gradprune data get cifar10`")
    assert told.count("\n") == 1
    monkeypatch.setattr(restart, "photographs", lambda name: victim)
    assert checkpoint("06_photographs").data is victim.data, "images are not copied"
    workshop.table_of_sets()
    assert "gradprune data get gtsrb" in capsys.readouterr().out
