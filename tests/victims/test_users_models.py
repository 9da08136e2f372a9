"""Models as users bring them: each test stands for a kind of network that somebody really has."""

import copy
import os
import pickle
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import QUICK, lived_in, refuses, squares, write_npz, write_pictures
from PIL import Image
from torch import nn
from torchvision.transforms.functional import pil_to_tensor, to_tensor
from toys import Theirs, fit_head

import gradprune as gp
from gradprune.attacks import fit
from gradprune.datasets import Dataset, ImageSet
from gradprune.defenses import DEFENSES, scan
from gradprune.models import build, load_weights, normalized, predict
from gradprune.models.working import working_copy
from gradprune.victims import Own
from gradprune.victims.inspection import inspect


@pytest.fixture(scope="module")
def images():
    return squares(48, 1, 32)


class Flattens(nn.Module):
    """The net of PyTorch's tutorial, in short."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 4, 5), nn.Conv2d(4, 6, 5, stride=4), nn.Linear(54, 4)

    def forward(self, x):
        x = F.max_pool2d(self.conv1(x), 2).relu()
        return self.fc(F.pad(self.conv2(x), (0, 0, 0, 0)).relu().view(-1, 54))


class Aux(nn.Module):
    """Returns more in training than in use; form: what it makes of (logits, others)."""

    def __init__(self, form):
        super().__init__()
        self.c, self.fc, self.aux, self.form = nn.Conv2d(3, 6, 3, stride=3), nn.Linear(6, 4), nn.Linear(6, 4), form

    def forward(self, x):
        x = self.c(x).relu().mean((2, 3))
        return self.form(self.fc(x), self.aux(x)) if self.training else self.fc(x)


def small(*more):
    return nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), *more, nn.Conv2d(6, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(6, 4))


def cleaned(name, net, images, mark, **settings):
    return DEFENSES[name](net, images, mark, spc=2, progress=False, **settings).model


@pytest.mark.slow
def test_the_layout_that_came_is_handed_back(images, mark):
    for form in (torch.contiguous_format, torch.channels_last):
        net = small(nn.ReLU()).to(memory_format=form)
        result = gp.grad_prune(net, images, mark, spc=2, progress=False)
        for model in (result.model, result.pruned):
            assert model[0].weight.stride() == net[0].weight.stride() and model[2].weight.is_contiguous(memory_format=form)
    assert len(nn.utils.parameters_to_vector(cleaned("ft", small(), images, mark, steps=1).parameters()))


def test_a_layer_whose_gradient_breaks_torch_in_channels_last(images, mark):
    """A 1x1 convolution with strides and few channels: Python died of it."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 1, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    for name in ("ft", "grad_prune"):
        given = net.to(memory_format=torch.channels_last)
        assert cleaned(name, given, images, mark, **QUICK[name])[0].weight.is_contiguous(memory_format=torch.channels_last)
    fit(net, images, epochs=2, progress=False)


def test_training_takes_such_networks_and_hands_the_layout_back(images):
    net = Flattens()
    fit(net, images, epochs=1, progress=False)
    assert net.conv1.weight.is_contiguous()
    refuses("alone in training mode", fit, Aux(lambda *both: both), images, epochs=1, progress=False)


@pytest.mark.parametrize(("kind", "form"), [(tuple, lambda *both: both), (dict, lambda logits, others: {"logits": logits, "aux": others})])
def test_what_is_returned_beside_the_logits_in_training_is_left_out(images, mark, kind, form):
    for name in ("grad_prune", "grad_prune_verified", "ft"):
        model = cleaned(name, Aux(form), images, mark, **QUICK[name])
        assert not model._forward_hooks and type(model.train()(images.floats())) is kind


def test_features_are_not_taken_for_logits(images):
    copied = working_copy(Aux(lambda logits, others: (F.pad(others, (0, 3)), logits)), images.floats()[:2])
    assert copied.train()(images.floats()[:5]).shape == (5, 4)


@pytest.mark.parametrize("answer", [lambda x: x[:, :1], lambda x: x.to(torch.complex64), lambda x: x.to_sparse()])
def test_answers_that_are_not_one_real_number_a_class(images, mark, answer):
    net = answering(answer)
    for run in (lambda: gp.evaluate(net, images, mark, 1), lambda: gp.grad_prune(net, images, mark, spc=2, progress=False),
                lambda: scan(net, images, spc=2, progress=False)):
        refuses("one real number per class", run)


@pytest.mark.parametrize("name", ["scan", "repair", "i_bau", "ims", "neural_cleanse", "sau", "ft"])
def test_a_model_that_gives_images_no_gradient(images, name):
    """What searches changes of images says so; what only changes weights works."""
    net = nn.Sequential(Answer(torch.detach), *small())
    run = scan if name == "scan" else lambda net, images, **more: DEFENSES[name](net, images, None, **more)
    if name == "ft":
        run(net, images, spc=2, steps=1, progress=False)
        return
    refuses(r"no gradient with respect to the image .* still work: ft", run, net, images, spc=2, progress=False)


class Answer(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.forward = answer


def answering(answer):
    return small().append(Answer(answer))


def with_forward_of_its_own():
    net = small()
    inner = net.forward
    net.forward = lambda x: inner(x)
    return net


def with_a_part_that_is_not_its_own():
    net = small()
    inner = net[0]
    net[0].forward = lambda x: F.conv2d(x, inner.weight, inner.bias, 2)
    return net


def under_inference_mode():
    with torch.inference_mode():
        return small()


@pytest.mark.parametrize(("make", "words"), [
    (lambda: Aux(lambda logits, others: logits[1:]), "cannot be trained on images .* one row of logits per image, got 1 rows for 2"),
    (lambda: answering(lambda x: x.mean(0, keepdim=True)), "one row of logits per image, got 1 rows for"),
    (lambda: answering(torch.detach), "no gradient"),
    (with_forward_of_its_own, "with the weights of the model itself"),
    (with_a_part_that_is_not_its_own, "with the weights of the model itself"), (under_inference_mode, "inference_mode"),
])
def test_models_that_cannot_work_are_told_before_the_work(images, mark, make, words):
    net = make()
    for run in (gp.grad_prune, DEFENSES["ft"], DEFENSES["rnp"], lambda model, data, _, **more: scan(model, data, **more)):
        refuses(words, run, net, images, mark, spc=2, progress=False)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_defences_say_that_they_take_gradients(images, mark, mode):
    net = small(nn.BatchNorm2d(6))
    with mode():
        assert str(gp.filters(net)).count("  1\n") == 1  # looking is possible
        for name in DEFENSES:
            refuses("takes gradients", cleaned, name, net, images, mark)


def test_normalized_would_be_passed_over_by_a_forward_on_the_instance():
    refuses("forward", normalized, with_forward_of_its_own(), 0.5, 0.25)


@pytest.mark.parametrize("name", ["timm/resnet10t", "mobilenet_v3_small", "resnet18"])
def test_the_stem_of_foreign_weights_is_found_and_told(tmp_path, monkeypatch, caplog, name):
    if name.startswith("timm/"):
        pytest.importorskip("timm", reason="timm is an optional extra")
    monkeypatch.chdir(tmp_path)
    data = Dataset(squares(60, 1, 32), squares(40, 2, 32), squares(40, 3, 32))
    write_npz(tmp_path / "data.npz", data)
    stock = fit_head(build(name, 4, small=False, seed=3).eval(), squares(200, 2, 32))
    torch.save(stock.state_dict(), "stock.pth")
    wanted = predict(stock, data.test.floats())
    opened = Own(name, "data.npz").open("stock.pth")
    assert torch.allclose(predict(opened.model, data.test.floats()), wanted, atol=1e-4)
    assert opened.card["model"]["small"] is False and "its own stem" in str(opened.notes) + "its own stem" * (name == "resnet18")
    assert torch.allclose(predict(Own(name, "data.npz", stem="stock").open("stock.pth").model, data.test.floats()), wanted, atol=1e-4)
    if name == "resnet18":
        refuses("small=False, or --stem stock", load_weights, build(name, 4), "stock.pth")
        return
    load_weights(build(name, 4, small=False), "stock.pth")
    assert not caplog.records
    load_weights(build(name, 4), "stock.pth")
    assert "small=False" in caplog.text
    assert "stem" not in str(Own(name, "data.npz", stem="small").open("stock.pth").notes)


def test_stems_that_nobody_knows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "data.npz", Dataset(squares(8, 1), squares(8, 2), squares(8, 3)))
    torch.save(build("resnet18", 4).state_dict(), "weights.pth")
    for name, stem, words in (("resnet18", "stok", "did you mean stock"), ("my:net", "stock", "by name")):
        refuses(words, Own(name, "data.npz", stem=stem).open, "weights.pth")


class Pictures(torch.utils.data.Dataset):
    """As torchvision's: pictures and labels, a transform, and the names of the classes."""

    classes = ("a", "b")

    def __init__(self, transform=lambda picture: picture, size=9, count=6):
        self.transform, self.size, self.count = transform, size, count

    def __len__(self):
        return self.count

    def __getitem__(self, place):
        pixels = np.full((self.size + (place == 5) * (self.size == 7), self.size, 3), 20 * place, np.uint8)
        return self.transform(Image.fromarray(pixels)), place % 2


def test_images_from_what_people_have():
    plain = ImageSet.from_dataset(Pictures())
    assert plain.images.shape == (6, 3, 9, 9) and plain.classes == ("a", "b") and plain.labels.tolist() == [0, 1] * 3
    subset = torch.utils.data.Subset(Pictures(pil_to_tensor), [0, 1, 2, 3, 4, 5])
    for other in (Pictures(to_tensor), Pictures(np.asarray), subset, torch.utils.data.DataLoader(Pictures(), 2)):
        same = ImageSet.from_dataset(other)
        assert torch.equal(same.images, plain.images) and same.classes == plain.classes
    pairs = torch.utils.data.TensorDataset(plain.floats(), plain.labels[:, None])
    assert torch.equal(ImageSet.from_dataset(Pictures()[place] for place in range(6)).images, plain.images)
    assert ImageSet.from_dataset(pairs).classes == ("0", "1") and ImageSet.from_dataset(pairs, ["x", "y"]).classes == ("x", "y")
    assert ImageSet.from_dataset(Pictures(lambda picture: picture.convert("L"))).images.shape == (6, 1, 9, 9)


def test_a_loader_gives_the_images_that_its_sampler_yields():
    """So the held-out part of a set that was split by samplers stays held out."""
    plain, state = ImageSet.from_dataset(Pictures()), torch.get_rng_state()
    for settings in ({"sampler": torch.utils.data.SubsetRandomSampler([4, 1])}, {"batch_sampler": [[4], [1, 4]]}):
        part = ImageSet.from_dataset(torch.utils.data.DataLoader(Pictures(), **settings))
        assert torch.equal(part.images, plain.images[[1, 4]]) and part.labels.tolist() == [1, 0] and part.classes == ("a", "b")
    shuffled = torch.utils.data.DataLoader(Pictures(), 4, shuffle=True, drop_last=True)
    assert torch.equal(ImageSet.from_dataset(shuffled).images, plain.images) and torch.equal(torch.get_rng_state(), state)


def test_a_model_that_cannot_be_copied(images):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    net.lock = threading.Lock()
    refuses(r"cannot be copied \(TypeError: .*lock", working_copy, net, images.floats()[:2])


@pytest.mark.parametrize(("dataset", "words"), [
    (Pictures(lambda picture: to_tensor(picture) - 0.5), "leave Normalize out"), (Pictures(size=7), "a transform that resizes"),
    (Pictures(count=0), "is empty"), (Pictures(lambda picture: "text"), "must be a picture or a tensor, got str"), (3, "got int"),
    ([1, 2], r"must be \(image, label\)"), ([(torch.zeros(3, 4, 4), 0.5)], "one whole number from 0 on, got 0.5"),
    ([(torch.zeros(3, 4, 4), [[1], [2, 3]])], r"one whole number from 0 on, got \[\[1\], \[2, 3\]\]"),
])
def test_datasets_that_cannot_be_taken(dataset, words):
    refuses(words, ImageSet.from_dataset, dataset)


def test_messages_name_what_is_there(tmp_path, images, mark):
    loader = torch.utils.data.DataLoader(Pictures(), 2)
    refuses(r"got DataLoader: give ImageSet\.from_dataset\(clean\)", gp.grad_prune, small(), loader, mark)
    refuses(r"got Dataset: give test\.defense or test\.test", gp.evaluate, small(), Dataset(images, images, images),
            mark, 0)
    refuses(r"must be an nn\.Module, got function", gp.evaluate, lambda x: x, images, mark, 0)
    refuses(r"got ndarray: give torch\.from_numpy\(images\)", ImageSet, images.images.numpy(), images.labels.numpy(),
            images.classes)
    np.savez(tmp_path / "m.npz", train_images=np.zeros(2), train_labels=np.zeros(2))
    refuses("no array x_train, only train_images, train_labels", gp.load, tmp_path / "m.npz")
    np.savez(tmp_path / "f.npz", x_train=np.array([0, 255.0]), y_train=[0], x_test=[0], y_test=[0])
    refuses(r"got float64 0\.\.255; cast to uint8", gp.load, tmp_path / "f.npz")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchscript_is_named(images, mark):
    program = torch.jit.trace(small(), images.floats()[:1])
    for run in (lambda: gp.filters(program), lambda: gp.grad_prune(program, images, mark)):
        refuses("TorchScript program", run)
    assert 0 <= gp.evaluate(program, images, mark, 0).acc <= 1


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "timm/resnet10t"])
def test_normalised_networks_and_results_can_be_pickled(images, mark, name):
    if name.startswith("timm/"):
        pytest.importorskip("timm", reason="timm is an optional extra")
    net = build(name, 4).eval()
    again = pickle.loads(pickle.dumps(net))
    assert type(again) is type(net) is type(copy.deepcopy(net))
    assert torch.equal(predict(again, images.floats()[:4]), predict(net, images.floats()[:4]))
    own = normalized(small(), 0.5, 0.25)
    result = pickle.loads(pickle.dumps(DEFENSES["ft"](own, images, mark, spc=2, progress=False, steps=1)))
    assert predict(result.model, images.floats()[:4]).shape == (4, 4)


def test_class_names_that_the_terminals_encoding_lacks(tmp_path):
    write_pictures(tmp_path, squares(10, 1).images, ["kot", "żółw"] * 5)
    run = subprocess.run([sys.executable, "-m", "gradprune", "data", "check", str(tmp_path)], capture_output=True,
                         env={**os.environ, "PYTHONIOENCODING": "cp1252"}, check=True)
    assert rb"kot, \u017c" in run.stdout


class Strangers(list):
    """A dataset as Hugging Face has them: items are dicts, the names of the classes stand in `features`."""

    def __init__(self, items):
        super().__init__(items)
        self.features = {"label": SimpleNamespace(names=["cat", "dog"])}


def test_datasets_of_other_forms():
    red, grey = Image.new("RGB", (9, 8), (200, 0, 0)), Image.new("L", (9, 8), 77)
    taken = ImageSet.from_dataset(Strangers([{"image": red, "label": 1}, {"image": grey, "label": np.int64(0)}]))
    assert taken.classes == ("cat", "dog") and taken.labels.tolist() == [1, 0] and taken.images.shape == (2, 3, 8, 9)
    assert taken.images[1].unique().tolist() == [77] and taken.images[0, :, 0, 0].tolist() == [200, 0, 0]
    floats = ImageSet.from_dataset([(Image.fromarray(np.full((9, 9), share, "f")), place) for place, share in enumerate((0.2, 1.0))])
    assert floats.images[:, 0, 0, 0].tolist() == [51, 255]
    refuses(r"item 1 of the dataset cannot be read \(KeyError", ImageSet.from_dataset,
            type("Gaps", (dict,), {})({0: (red, 0), 2: (red, 1)}))
    refuses("from 0 on, got -1", ImageSet.from_dataset, [(red, -1)])
    refuses("labels go up to 1000000000: number the classes from 0 on", ImageSet.from_dataset, [(red, 10 ** 9)])


# ---- the same networks under the names of public code


class TheirVGG(nn.Module):
    def __init__(self):
        super().__init__()
        layers, inputs = [], 3
        for outputs in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()] if outputs else [nn.MaxPool2d(2)]
            inputs = outputs or inputs
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(512, 4)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


@pytest.mark.parametrize(("name", "make", "prefix"), [
    ("preact_resnet18", lambda: Theirs(True), "module."), ("resnet18", lambda: Theirs(False), "net."),
    pytest.param("vgg16_bn", TheirVGG, "", marks=pytest.mark.slow)])
def test_the_same_network_under_the_names_of_public_code(tmp_path, images, name, make, prefix):
    torch.manual_seed(0)
    theirs = lived_in(make(), images.floats()[:16])
    torch.save({"net": {prefix + key: tensor for key, tensor in theirs.state_dict().items()}, "acc": 95.0, "epoch": 3}, tmp_path / "ckpt.pth")
    assert inspect(tmp_path / "ckpt.pth").model == name
    write_npz(tmp_path / "data.npz", Dataset(images, images, images))
    opened = Own(name, str(tmp_path / "data.npz"), mean=[0.0], std=[1.0]).open(tmp_path / "ckpt.pth")
    assert torch.allclose(predict(opened.model, images.floats()), predict(theirs, images.floats()), atol=1e-4)
    more = {"last_norm": False} if name == "preact_resnet18" else {}
    ours = load_weights(build(name, 4, mean=0.0, std=1.0, **more), tmp_path / "ckpt.pth")
    assert torch.equal(predict(ours, images.floats()), predict(opened.model, images.floats()))


OWN = small(nn.BatchNorm2d(6)).state_dict()


@pytest.mark.parametrize(("content", "words"), [
    ({name: tensor.numpy() for name, tensor in OWN.items()}, ""),
    ((OWN, 3), ""),
    ({**OWN, "total_ops": torch.zeros(1), "1.total_params": torch.ones(1)}, "was left out: total_ops (0), 1.total_params (1)"),
    ({**OWN, "normalize.mean": torch.full((3,), 0.5), "normalize.std": torch.ones(3)}, "normalize.mean (0.5, 0.5, 0.5)"),
    ({f"module.{part}.{name}": tensor for part in ("model", "attacker.model") for name, tensor in OWN.items()}, "attacker.model.0.weight"),
    ({"model": OWN, "model_ema": dict(OWN)}, "under model_ema, which were not taken"),
])
def test_what_stands_beside_the_weights_is_told(tmp_path, caplog, content, words):
    torch.save(content, tmp_path / "c.pth")
    loaded = load_weights(small(nn.BatchNorm2d(6)), tmp_path / "c.pth")
    assert all(torch.equal(tensor, OWN[name]) for name, tensor in loaded.state_dict().items())
    assert words in caplog.text and bool(words) == bool(caplog.text)


@pytest.mark.parametrize(("change", "words"), [
    ({"0.weight": OWN["0.weight"].to(torch.int8)}, "no floats, as of quantised weights: 0.weight int8"),
    ({"0.weight": OWN["0.weight"].to(torch.complex64)}, "0.weight complex64"),
    ({"0.weight_orig": OWN["0.weight"], "0.weight_mask": OWN["0.weight"], "0.weight": None}, "prune.remove"),
    ({"0.weight_g": OWN["0.bias"], "0.weight_v": OWN["0.weight"], "0.weight": None}, "remove_weight_norm"),
    ({"0.parametrizations.weight.original": OWN["0.weight"], "0.weight": None}, "remove_parametrizations"),
])
def test_weights_that_are_none_are_told(tmp_path, change, words):
    torch.save({**OWN, **change}, tmp_path / "c.pth")
    refuses(words, load_weights, small(nn.BatchNorm2d(6)), tmp_path / "c.pth")


def test_another_network_under_such_names_is_told_in_one_sentence(tmp_path):
    torch.save(Theirs(True).state_dict(), tmp_path / "pre.pth")
    torch.save(Theirs(False).state_dict(), tmp_path / "post.pth")
    refuses(r"missing: bn\.weight.*has no BatchNorm after the last block: last_norm=False", load_weights,
            build("preact_resnet18", 4), tmp_path / "pre.pth")
    refuses("do not fit the model; ", load_weights, build("resnet18", 4), tmp_path / "pre.pth")
    refuses(r"do not fit the model; .*bn1", load_weights, build("preact_resnet18", 4, last_norm=False),
            tmp_path / "post.pth")
