"""Checkpoints are whole, checked and rebuilt from their card; the shipped zoo is what its cards say."""

import os
import socket
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import SHARED, refuses, same
from safetensors.torch import load_file

from gradprune.cli.bench import departures
from gradprune.datasets.published import PUBLISHED
from gradprune.models import build
from gradprune.models.checkpoints import load_checkpoint, read_card, save_checkpoint
from gradprune.victims import victim as victims
from gradprune.victims import zoo

MODEL = {"name": "small_vgg", "num_classes": 3, "width": 4}


@pytest.fixture
def saved(tmp_path):
    model = build(**MODEL, seed=4)
    save_checkpoint(tmp_path / "model", model, {"model": MODEL, "note": "ü"})
    return tmp_path / "model", model


def test_round_trip_is_the_identity(saved):
    path, model = saved
    for given in (path, f"{path}.safetensors", f"{path}.json"):
        loaded, card = load_checkpoint(given)
        assert card["model"] == MODEL and card["note"] == "ü"
        assert same(model, loaded)
        assert not loaded.training
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.json", "model.safetensors"]


def test_same_model_same_bytes(saved, tmp_path):
    path, model = saved
    again = save_checkpoint(tmp_path / "again" / "model", model, {"model": MODEL, "note": "ü"})
    assert again.read_bytes() == path.with_suffix(".safetensors").read_bytes()
    assert again.with_suffix(".json").read_bytes() == path.with_suffix(".json").read_bytes()


def test_tied_weights_are_saved(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3), torch.nn.Conv2d(3, 3, 3, bias=False))
    model[1].weight = model[0].weight
    model.add_module("again", model[0])
    save_checkpoint(tmp_path / "tied", model, {"model": MODEL})
    assert same(load_file(tmp_path / "tied.safetensors"), model.state_dict())


def test_an_interrupted_write_leaves_the_old_file(saved, monkeypatch):
    path, model = saved
    old = path.with_suffix(".safetensors").read_bytes()
    monkeypatch.setattr("os.replace", Mock(side_effect=KeyboardInterrupt))
    model.classifier.weight.data += 1
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, model, {"model": MODEL})
    assert path.with_suffix(".safetensors").read_bytes() == old
    assert len(list(path.parent.iterdir())) == 2, "a temporary file was left behind"


def test_a_disk_that_fills_before_the_card_is_written_keeps_the_old_pair(saved, monkeypatch):
    path, model = saved
    old = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.classifier.weight.data += 1
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", Mock(side_effect=OSError(28, "No space left on device")))
        refuses(r"Cannot write .*model\.json: No space left on device\.", save_checkpoint, path, model,
                {"model": MODEL})
    loaded, _ = load_checkpoint(path)
    assert same(old, loaded)
    assert len(list(path.parent.iterdir())) == 2


def test_what_a_killed_write_left_is_swept_and_is_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(victims, "data_folder", lambda: tmp_path)
    folder, host = tmp_path / "checkpoints", socket.gethostname()
    folder.mkdir()
    names = [f".model-{host}-{process}-x.json" for process in (99999999, os.getpid())]  # the second is at work
    for name in [*names, ".model-elsewhere-99999999-x.json"]:
        (folder / name).write_text("{")
    assert victims.names() == []
    save_checkpoint(folder / "model", build(**MODEL), {"model": MODEL})
    assert victims.names() == ["model"]
    assert sorted(path.name for path in folder.glob(".*")) == sorted([names[1], ".model-elsewhere-99999999-x.json"])


@pytest.mark.parametrize(("damage", "words"), [
    (lambda path: path.with_suffix(".json").unlink(), "there is no checkpoint card at"),
    (lambda path: path.with_suffix(".safetensors").unlink(), "there are no checkpoint weights at"),
    (lambda path: path.with_suffix(".json").write_text("{"), "cannot be read"),
    (lambda path: path.with_suffix(".json").write_bytes(b"\xff\xfe"), "cannot be read"),
    (lambda path: path.with_suffix(".json").write_text("[1]"), "lacks 'sha256'"),
    (lambda path: path.with_suffix(".safetensors").write_bytes(path.with_suffix(".safetensors").read_bytes()[:-9]),
     "truncated, tampered with"),
    (lambda path: path.with_suffix(".safetensors").write_bytes(b"x" + path.with_suffix(".safetensors").read_bytes()[1:]),
     "truncated, tampered with"),
    (lambda path: path.with_suffix(".json").write_text(path.with_suffix(".json").read_text().replace('"width": 4', '"width": 5')),
     "do not fit the model on their card"),
])
def test_damage_is_told_in_one_sentence(saved, damage, words):
    path, _ = saved
    damage(path)
    refuses(words, load_checkpoint, path)


def test_a_card_that_may_not_be_read(saved, monkeypatch):
    """A chmod would not stop root."""
    real = Path.open

    def locked(path, *mode):
        if path.suffix == ".json":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *mode)
    monkeypatch.setattr(Path, "open", locked)
    refuses(r"model\.json cannot be read: Permission denied\.$", load_checkpoint, saved[0])


# --- the shipped zoo ---


def test_shipped_checkpoints_are_small_and_complete():
    assert set(zoo.SHIPPED) <= set(victims.names())
    assert set(zoo.SHIPPED) <= set(zoo.cards()) <= set(zoo.SHIPPED | zoo.REPLICATES | zoo.PHOTOGRAPHS)
    for name in zoo.cards():
        path = victims.checkpoint_path(name)
        assert path.with_name(path.name + ".safetensors").stat().st_size <= 2_000_000


def test_cards_say_where_a_mark_is_not_its_papers():
    """What the committed card says is what `attack` writes, and the marks that were made stronger all say so."""
    told = {}
    for name, card in zoo.cards().items():
        mark = victims.make_trigger(card["attack"]["trigger"], **card["attack"]["settings"])
        assert card["attack"].get("departs", "") == mark.departs(), name
        told |= {name: card["attack"]["departs"]} if "departs" in card["attack"] else {}
    assert told.keys() == {"wanet", "bpp", "label_consistent", "cifar10/bpp", "gtsrb/bpp"}
    assert told["wanet"] == "The mark departs from the paper's: strength 4 for 0.5, decoys 0.5 for 2."
    assert all(victims.make_trigger(name).departs() == "" for name in ("wanet", "bpp", "label_consistent", "badnets"))
    assert departures(["bpp", "badnets", "no such file"]) == {"bpp": told["bpp"]}


@pytest.mark.parametrize("name", sorted(set(zoo.cards()) & set(zoo.PHOTOGRAPHS)))
def test_models_of_photographs_are_backdoored_and_load(name):
    """Their data is not shipped: the weights are loaded, the figures read from the card."""
    model, card = load_checkpoint(victims.checkpoint_path(name))
    assert sum(parameter.numel() for parameter in model.parameters()) > 690_000
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert card["data"]["name"] == name.split("/")[0] and tuple(card["data"]["classes"]) == PUBLISHED[
        card["data"]["name"]].classes
    assert card["metrics"]["acc"] >= 0.88 and card["metrics"]["asr"] >= 0.90


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the copy of GTSRB lies beside the repository only in development")
def test_a_card_of_photographs_says_what_the_model_does(monkeypatch, tmp_path):
    arrays = np.load(SHARED / "data/gtsrb_100_30.npz", allow_pickle=False)
    np.savez(tmp_path / "gtsrb.npz", **{name: arrays[name] for name in ("x_train", "y_train", "x_test", "y_test")},
             classes=np.array(PUBLISHED["gtsrb"].classes))
    monkeypatch.setenv("GRADPRUNE_DATA", str(tmp_path))
    victim = victims.load_victim("gtsrb/badnets")
    assert victim.evaluate()._asdict() == pytest.approx(victim.card["metrics"], abs=0.005)


def test_half_the_length_is_stored_and_measured(tmp_path, monkeypatch, data):
    """The card's figures are those of the rounded weights, which come back as they were stored."""
    monkeypatch.setattr(zoo, "load", lambda _, size: data)
    monkeypatch.setattr(victims, "load", lambda _: data)
    settings = {"trigger": "badnets", "target": 1, "epochs": 2}
    monkeypatch.setattr(zoo, "PHOTOGRAPHS", {"squares/one": {**settings, "half": True}, "squares/two": settings})
    (short, victim), (whole, _) = zoo.build_zoo(["squares/one", "squares/two"], tmp_path, progress=False)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in (short, whole)]
    assert sizes[0] < 0.6 * sizes[1]
    loaded = victims.load_victim(tmp_path / short)
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, victim.model.state_dict()[name]) and tensor.dtype != torch.float16, name
    assert loaded.evaluate()._asdict() == pytest.approx(loaded.card["metrics"], abs=1e-4)


@pytest.mark.parametrize("name", [name if name in ("badnets", "clean") else pytest.param(name, marks=pytest.mark.slow)
                                  for name in sorted(zoo.SHIPPED | zoo.REPLICATES)])
def test_cards_say_what_the_model_does(name):
    """Measured again on the whole test set; platforms differ by a few images."""
    victim = victims.load_victim(name)
    measured = victim.evaluate()
    assert measured._asdict() == pytest.approx(victim.card["metrics"], abs=0.005)
    assert measured.acc >= read_card(victims.checkpoint_path("clean"))["metrics"]["acc"] - 0.02
    if name == "clean":
        assert measured.asr <= 0.02
    else:
        assert measured.asr >= (0.70 if victim.card["attack"].get("label_map") == "clean_label" else 0.90)


@pytest.mark.parametrize(("name", "words"), [
    *((name, f"Unknown checkpoint '{name}'; did you mean {name}s") for name in ("badnet", "gtsrb/badnet")),
    (str(Path(__file__).parent), "is a folder: give a checkpoint's name"),
    *((f"nowhere/model{ending}", "there is no checkpoint card at") for ending in ("", ".safetensors"))])
def test_names_that_nobody_knows(name, words):
    refuses(words, victims.load_victim, name)


def test_build_saves_each_victim_with_its_card(tmp_path, monkeypatch, data):
    monkeypatch.setattr(zoo, "load", lambda _, size: data)
    monkeypatch.setattr(victims, "load", lambda _: data)
    monkeypatch.setattr(zoo, "SHIPPED", {"one": {"trigger": "badnets", "target": 1, "epochs": 2}})
    [(name, victim)] = zoo.build_zoo(out=tmp_path, progress=False)
    card = read_card(tmp_path / name)
    assert card["attack"]["trigger"] == "badnets" and card["metrics"].keys() == {"acc", "asr", "ra"}
    assert victims.load_victim(tmp_path / name).evaluate() == victim.evaluate()
