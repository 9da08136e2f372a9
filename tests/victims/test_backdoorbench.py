"""BackdoorBench's attack_result.pt: a file of that layout is read without its code, mapped onto our networks, defended."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
import torchvision
from conftest import as_json, lived_in, refused, refuses, run, write_npz
from PIL import Image
from torch import nn
from toys import Theirs

from gradprune.models import build, predict
from gradprune.victims import read_attack_result

CIFAR = ([0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.261])


def record(images, poisoned, target, folder, pictures=None):
    """What their data set class writes of itself: NumPy arrays, and dict keys that are NumPy numbers."""
    indicator = np.zeros(images)
    indicator[poisoned] = 1
    rows = {np.int64(place): {"path": f"{folder}/2/{place}.png", "other_info": [target, np.int64(2)]} for place in poisoned}
    if pictures is not None:
        rows = {np.int64(place): (pictures, target, 2) for place in poisoned}
    return {"bd_data_container": {"save_folder_path": folder, "data_dict": rows, "save_file_format": ".png"},
            "getitem_all": True, "getitem_all_switch": False, "original_index_array": np.arange(images),
            "poison_indicator": indicator, "save_folder_path": folder}


def layout(state, **changes):
    return {"model_name": "preactresnet18", "num_classes": 4, "model": state, "data_path": "../data/cifar10",
            "img_size": [16, 16, 3], "clean_data": "cifar10", "bd_train": record(50, [3, 7, 11], 1, "record/bd_train_dataset"),
            "bd_test": record(20, [0, 5], 1, "record/bd_test_dataset")} | changes


def saved(path, content):
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def theirs():
    return lived_in(Theirs(True, width=4), torch.rand(8, 3, 16, 16))


@pytest.fixture
def result(tmp_path, theirs):
    return saved(tmp_path / "attack_result.pt", layout(theirs.state_dict()))


def test_the_file_is_read_and_answers_alike(result, theirs):
    found = read_attack_result(result)
    images = torch.rand(3, 3, 16, 16)
    assert torch.allclose(predict(found.model, images), theirs(torchvision.transforms.Normalize(*CIFAR)(images)).detach(), atol=1e-4)
    assert not found.model.training and found.target == 1 and found.data == "cifar10" and found.size == (16, 16)
    assert found.poisoned_train.tolist() == [3, 7, 11] and found.poisoned_test.tolist() == [0, 5]
    rebuilt = build(**found.settings)
    rebuilt.load_state_dict(found.model.state_dict())
    assert torch.allclose(predict(rebuilt, images), predict(found.model, images), atol=1e-5)


@pytest.mark.parametrize("changes", [
    {"model": "module"}, {"bd_train": None}, {"img_size": None}, {"clean_data": "gtsrb"}, {"num_classes": np.int64(4)}])
def test_variants(tmp_path, theirs, changes):
    if changes.get("model"):
        changes = {"model": OrderedDict((f"module.{key}", value) for key, value in theirs.state_dict().items())}
    found = read_attack_result(saved(tmp_path / "attack_result.pt", layout(theirs.state_dict(), **changes)))
    images = torch.rand(2, 3, 16, 16)
    shifted = images if found.data == "gtsrb" else torchvision.transforms.Normalize(*CIFAR)(images)
    assert torch.allclose(predict(found.model, images), theirs(shifted).detach(), atol=1e-4)
    assert len(found.poisoned_train) == (0 if "bd_train" in changes else 3) and found.target == 1


def test_the_layout_of_2022_and_of_a_defence(tmp_path, theirs):
    old = {"bd_train": {"x": torch.zeros(2, 3, 16, 16), "y": torch.tensor([1, 1]), "original_index": np.array([4, 9])},
           "bd_test": {"x": torch.zeros(3, 3, 16, 16), "y": torch.tensor([1, 1, 1])}}
    found = read_attack_result(saved(tmp_path / "old.pt", layout(theirs.state_dict(), **old)))
    assert found.poisoned_train.tolist() == [4, 9] and found.target == 1 and found.poisoned_test.tolist() == []
    bare = {"model_name": "preactresnet18", "num_classes": 4, "model": theirs.state_dict()}
    path = saved(tmp_path / "defense_result.pt", bare)
    found = read_attack_result(path, mean=[0.5] * 3, std=[0.5] * 3)
    assert found.target is None and len(found.poisoned_train) == 0
    refuses("does not say how the model's images were normalised", read_attack_result, path)


def test_several_targets_are_no_target(tmp_path, theirs):
    tests = record(20, [0, 5], 1, "record")
    tests["bd_data_container"]["data_dict"][np.int64(5)]["other_info"][0] = 3
    found = read_attack_result(saved(tmp_path / "a.pt", layout(theirs.state_dict(), bd_test=tests)))
    assert found.target is None


def test_pictures_inside_are_skipped(tmp_path, theirs):
    inside = record(20, [0, 5], 1, None, pictures=Image.new("RGB", (16, 16)))
    found = read_attack_result(saved(tmp_path / "a.pt", layout(theirs.state_dict(), bd_test=inside)))
    assert found.target == 1 and found.poisoned_test.tolist() == [0, 5]


class Evil:
    def __reduce__(self):
        return exec, ("open('ran', 'w')",)


@pytest.mark.parametrize(("changes", "words"), [
    ({"data_path": Evil()}, "it holds (builtins.)?exec, and loading that would run code"),
    ({"bd_test": nn.Identity()}, "it holds torch.nn.modules.linear.Identity"),
    ({"model_name": "vit_b_16"}, "Unknown BackdoorBench model 'vit_b_16'.*Or give your own code of it with --model"),
    ({"clean_data": "cifar1000"}, "does not say how the model's images were normalised .data set 'cifar1000'"),
    ({"clean_data": 3}, "must be a number and a name, got 4 and 3"), ({"num_classes": "four"}, "must be a number and a name"),
    ({"num_classes": 5}, r"other shapes: linear.weight \(4, 32\) in the file, \(5, 32\) in the model"),
    ({"model": {"conv1.weight": torch.zeros(4, 3, 3, 3)}}, "missing: stages.0.0.bn1.weight"), ({"model": {}}, "holds no state dict"),
    ({"bd_test": {"bd_data_container": {"data_dict": {0: {}}}}}, "the record of poisoned images in .* is not laid out"),
    ({"bd_train": [1, 2]}, "the record of poisoned images in .* is not laid out"), ({"img_size": ["a", 2]}, "is not laid out")])
def test_what_is_refused(tmp_path, monkeypatch, theirs, changes, words):
    monkeypatch.chdir(tmp_path)
    saved("attack_result.pt", layout(theirs.state_dict(), **changes))
    refuses(words, read_attack_result, "attack_result.pt")
    assert not (tmp_path / "ran").exists()


def test_other_files_are_told_apart(tmp_path, theirs):
    path = saved(tmp_path / "a.pt", {"net": theirs.state_dict()})
    refuses(r"is no attack_result.pt: it lacks model_name", read_attack_result, path)


@pytest.mark.parametrize("name", ["vgg19_bn", "resnet18"])
def test_their_other_networks_are_torchvisions(tmp_path, monkeypatch, name):
    """Theirs are torchvision's own, for 224 pixels, fed with 32; here as shapes alone: one has 140 million weights."""
    with torch.device("meta"):
        state = getattr(torchvision.models, name)(num_classes=10).state_dict()
        monkeypatch.setattr("gradprune.victims.backdoorbench.read_file", lambda path: layout(
            state, model_name=name, num_classes=10, bd_train=None, bd_test=None))
        monkeypatch.setattr("torch.random.fork_rng", lambda devices: torch.no_grad())
        found = read_attack_result("attack_result.pt")
    assert set(found.model.state_dict()) == set(state) and found.settings["small"] is False


# ---- the command line


def test_defend_and_evaluate(tmp_path, monkeypatch, result, data):
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "data.npz", data)
    Image.new("RGB", (3, 3), (255, 255, 255)).save("patch.png")
    told = as_json("defend", result, "--data", "data.npz", "--trigger", "patch.png", "--spc", 1, "--recipe", "paper",
                   "--out", "out/c")
    assert told["target"] == 1, "from the record"
    assert "the poisoned test pictures beside it (bd_test_dataset) are not" in told["notes"][0]
    again = as_json("evaluate", "out/c")
    assert {key: again[key] for key in ("acc", "asr", "ra")} == told["tuned"], "the cleaned checkpoint needs no option"
    given = as_json("evaluate", result, "--data", "data.npz", "--trigger", "patch.png", "--target", 3)
    assert given["target"] == 3
    for arguments, words in ((["--data", "data.npz", "--trigger", "known"], "nothing says which trigger"),
                             (["--trigger", "patch.png"], "was made with 'cifar10'; give its images with --data"),
                             (["--data", "elsewhere/"], "Error: No folder or file at elsewhere.")):
        assert words in refused("defend", result, *arguments)


def test_images_of_another_size(tmp_path, theirs, data):
    path = saved(tmp_path / "attack_result.pt", layout(theirs.state_dict(), img_size=(32, 32, 3)))
    write_npz(tmp_path / "data.npz", data)
    told = run("scan", path, "--data", tmp_path / "data.npz")
    assert told.exit_code == 2 and "takes images of (32, 32) pixels, the data has (16, 16); a folder's pictures get another size with --size" in told.stderr
