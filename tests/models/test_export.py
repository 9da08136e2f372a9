"""Export: the files answer as the model does, for any number of images, or nothing is written."""

import socket
from pathlib import Path

import pytest
import torch
from conftest import refuses
from torch import nn

from gradprune.models import build, predict
from gradprune.models import export as export_module
from gradprune.models.export import check_export, export

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def needs(kind):
    for package in export_module.NEEDS[kind]:
        pytest.importorskip(package, reason=f"export to {kind} needs {package}")


@pytest.mark.parametrize("kind", [".onnx", ".pt2"])
@pytest.mark.parametrize("name", ["preact_resnet", "small_vgg"])
def test_the_file_answers_as_the_model_does(tmp_path, kind, name, capfd):
    needs(kind)
    model = build(name, 4, width=4, **({"size": 16} if name == "small_vgg" else {}), seed=3)
    model.to(memory_format=torch.channels_last).train()
    path = export(model, tmp_path / f"model{kind}", IMAGES)
    assert model.training, "the given model changed"
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "one file, nothing beside it"
    assert capfd.readouterr() == ("", "")
    more = torch.rand(5, 3, 16, 16)
    ask = export_module._ask_onnx if kind == ".onnx" else export_module._ask_pt2
    assert torch.allclose(ask(path, more), predict(model, more), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [".onnx", ".pt2"])
def test_the_file_is_the_same_each_time_and_tells_nothing_of_this_machine(tmp_path, kind):
    needs(kind)
    model = build("preact_resnet", 4, width=4)
    one, two = (export(model, tmp_path / name / f"model{kind}", IMAGES).read_bytes() for name in ("one", "two"))
    assert one == two
    for word in (f"-{socket.gethostname()}-", str(tmp_path), str(Path(export_module.__file__).parent)):
        assert word.encode() not in one, "it goes to others"


class Ending(nn.Module):
    """Does something more to the answers of a network."""

    def __init__(self, end):
        super().__init__()
        self.model, self.end = build("preact_resnet", 4, width=4), end

    def forward(self, images):
        return self.end(self.model(images))


def turned(answers):
    """An operator that ONNX does not know."""
    return torch.linalg.eigvals(answers.reshape(-1, 2, 2)).real


def branches(answers):
    """One thing or another, as the answers fall; no single trace shows both."""
    return answers if answers.sum() > 0 else -answers


@pytest.mark.parametrize(("end", "kind", "words"), [
    (turned, ".onnx", "no such form of the operator aten.linalg_eig"),
    (branches, ".pt2", "cannot be exported as .pt2: "), (branches, ".onnx", "cannot be exported as .onnx: ")])
def test_what_cannot_be_exported_leaves_the_old_file(tmp_path, capfd, end, kind, words):
    needs(kind)
    old = tmp_path / f"model{kind}"
    old.write_text("old")
    refuses(words, export, Ending(end), old, IMAGES)
    assert old.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == [old.name]
    assert capfd.readouterr() == ("", "")


def test_a_file_that_answers_otherwise_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "_ask_pt2", lambda path, images: torch.zeros(len(images), 4))
    refuses("differ from the model's by", export, build("preact_resnet", 4, width=4), tmp_path / "model.pt2", IMAGES)
    assert not list(tmp_path.iterdir())


def test_bad_input(tmp_path, monkeypatch):
    refuses(r"exported as .onnx or .pt2, and 'model.pth' is neither", check_export, "model.pth")
    refuses("two images at least, got 1", export, build("preact_resnet", 4, width=4), tmp_path / "model.pt2",
            IMAGES[:1])
    monkeypatch.setattr(export_module.importlib.util, "find_spec", lambda name: None)
    refuses(r"needs onnx, onnxruntime, onnxscript; install with: pip install 'gradprune\[export\]'", check_export,
            "model.onnx")
    check_export("model.pt2")


def test_a_file_that_the_runtime_cannot_run_is_told_in_a_sentence(tmp_path):
    needs(".onnx")
    net = build("preact_resnet", 4, width=2, blocks=(1,)).double()
    refuses("cannot be exported as .onnx: ", export, net, tmp_path / "model.onnx", IMAGES.double())
    assert not list(tmp_path.iterdir())
