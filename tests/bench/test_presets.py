"""Whole benches by name: victims trained and kept, rows, going on, the report; at a tiny size."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import as_json, holds, listing, refused, refuses, write_npz

from gradprune.attacks import TRIGGERS
from gradprune.attacks.training import RECIPE
from gradprune.attacks.triggers import low_frequency
from gradprune.base import devices
from gradprune.bench import presets, run
from gradprune.bench.presets import ATTACKS, PRESETS, prepare
from gradprune.defenses import DEFENSES
from gradprune.models import build
from gradprune.models.checkpoints import read_card
from gradprune.victims import load_victim

TINY = {"model": {"name": "preact_resnet", "width": 4, "blocks": [1]}, "epochs": 1, "batch_size": 100, "shift": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, data):
    """What makes the training of preset `paper` a matter of a second."""
    path = tmp_path_factory.mktemp("images") / "data.npz"
    write_npz(path, data)
    return {"data": str(path), **TINY}


def run_quickly(out, tiny):
    """The preset with two images per class and the two quicker of its defences; its grid and the table."""
    grid = prepare("paper", out, progress=False, spc=[2], **tiny)
    return grid, run(replace(grid, defenses=("grad_prune", "ft_unlearn")), out, progress=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny):
    """The folder, grid and table of the preset, run once for its four attacks."""
    out = tmp_path_factory.mktemp("paper")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(low_frequency, "STEPS", 5)
        return out, *run_quickly(out, tiny)


def test_the_data_is_sound():
    for name, preset in PRESETS.items():
        assert set(preset) <= {"attacks", "defenses", "spc", "seeds", "train"}
        assert preset["defenses"] == "all" or set(preset["defenses"]) <= set(DEFENSES)
        assert set(ATTACKS) <= set(TRIGGERS)
        if "train" in preset:
            assert set(preset["train"]) - {"data", "model", "target"} <= set(RECIPE)
        else:
            assert preset["attacks"] == tuple(f"{name}/{attack}" for attack in ATTACKS)
    paper = PRESETS["paper"]
    assert paper["spc"] == (2, 10, 100) and paper["attacks"] == ATTACKS
    with torch.device("meta"):
        network = build(**paper["train"]["model"], num_classes=10)
    assert 11.1e6 < sum(parameter.numel() for parameter in network.parameters()) < 11.3e6


@pytest.mark.slow
def test_victims_and_rows(done, tiny):
    out, grid, table = done
    assert sorted(path.name for path in (out / "victims").glob("*.json")) == sorted(f"{name}.json" for name in ATTACKS)
    assert list(table.error.unique()) == [""] and len(table) == 4 * 2 and set(table.seed) == {0}
    assert set(grid.defenses) == {"grad_prune", "grad_prune_verified", "ft_distilled", "ft_unlearn"}
    assert set(table.attack) == {(out / "victims" / name).as_posix() for name in ATTACKS}
    card = read_card(out / "victims/bpp")
    wanted = {"epochs": 1, "batch_size": 100, "flip": True, "label_smoothing": 0.1}
    assert {key: card["training"][key] for key in wanted} == wanted
    assert card["training"]["seconds"] > 0 and card["attack"]["target"] == 0
    assert json.loads((out / "bench.json").read_text())["device"] == "cpu"
    assert load_victim(out / "victims/badnets").evaluate()._asdict() == pytest.approx(
        read_card(out / "victims/badnets")["metrics"], abs=1e-4)


@pytest.mark.slow
def test_nothing_is_done_twice(done, tiny, monkeypatch):
    out, _, table = done
    before = listing(out / "victims")
    monkeypatch.setattr(presets, "attack", None)  # who trains again fails
    assert run_quickly(out, tiny)[1].equals(table) and listing(out / "victims") == before


@pytest.mark.slow
def test_a_lost_victim_alone_is_trained_again(done, tiny, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(presets, "_train", lambda trigger, path, **_: trained.append((trigger, path)))
    (tmp_path / "victims").mkdir()
    for path in (done[0] / "victims").glob("b*"):
        (tmp_path / "victims" / path.name).write_bytes(path.read_bytes())
    grid = prepare("paper", tmp_path, attacks=["badnets", "low_frequency"], spc=[3], seeds=2, defenses=["clp"], **tiny)
    assert trained == [("low_frequency", tmp_path / "victims/low_frequency")]
    assert (len(grid.attacks), grid.spc, grid.seeds, grid.defenses) == (2, (3,), (0, 1), ("clp",))


@pytest.mark.slow
def test_the_command_and_its_report(done, tiny, monkeypatch):
    out, *_ = done
    small = PRESETS["paper"] | {"train": PRESETS["paper"]["train"] | tiny}
    monkeypatch.setitem(PRESETS, "paper", small)
    monkeypatch.setattr(presets, "attack", None)
    command = ["bench", "--preset", "paper", "--spc", "2", "--attacks", "badnets,bpp", "--defenses", "ft_unlearn,grad_prune",
               "--device", "cpu", "--out", str(out)]
    told = as_json(*command)
    assert (told["cells"], told["failed"], set(told["der"])) == (4, 0, {"ft_unlearn", "grad_prune"})
    text = (out / as_json("report", out)["report"]).read_text("utf-8")
    assert holds(text, '<th scope="col">low_frequency</th>', '<th scope="row">device</th><td>cpu</td>')


@pytest.mark.parametrize(("name", "options", "sentence"), [
    ("papers", {}, "Unknown preset 'papers'; did you mean paper?"),
    ("paper", {"attacks": ["badnet"]}, "Unknown trigger 'badnet'; did you mean badnets?"),
    ("paper", {"defenses": ["ftt"]}, "Unknown defence 'ftt'"),
    ("paper", {"spc": [500]}, "spc=500 needs"),
    ("cifar10", {"epochs": 3}, "the preset 'cifar10' trains nothing, so it takes no epochs.")])
def test_bad_arguments_come_before_any_work(tmp_path, tiny, name, options, sentence):
    settings = options if name == "cifar10" else tiny | options
    assert sentence in refuses("", prepare, name, tmp_path / "out", **settings) and not (tmp_path / "out").exists()


def test_workers_on_a_gpu_are_refused_before_any_training(tmp_path, monkeypatch):
    monkeypatch.setitem(devices.DEVICES, "cuda", lambda: 1)
    monkeypatch.setattr(presets, "attack", None)
    monkeypatch.chdir(tmp_path)
    told = refused("bench", "--preset", "paper", "--device", "cuda", "--workers", "2", "--out", "out")
    assert "on cuda the cells run one after the other" in told


def test_options_beside_a_preset_without_training(tmp_path):
    grid = prepare("gtsrb", tmp_path, spc=[8], defenses=["clp"])
    assert grid.attacks == tuple(f"gtsrb/{attack}" for attack in ATTACKS)
    assert (grid.spc, grid.defenses, grid.seeds) == ((8,), ("clp",), (0, 1, 2))


def test_an_interrupted_training_leaves_no_victim(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(presets, "attack", lambda *_, **__: type("Cut", (), {"card": {"training": {"interrupted": True}}}))
    with pytest.raises(KeyboardInterrupt, match="the training of 'badnets' was cut short"):
        prepare("paper", tmp_path, progress=False, spc=[2], **tiny)
    assert not (tmp_path / "victims").exists()
