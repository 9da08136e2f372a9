"""Where models run: the choice of a device, everything on one device, the same results, and memory that ends."""

import copy
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import QUICK, card_of, edit, refused, refuses, same, squares, write_npz
from fake_device import CPU, META, FakeDevice, Machine
from torch import nn

import gradprune as gp
from gradprune.attacks import fit, make_trigger, plant
from gradprune.attacks.augment import copies_for
from gradprune.attacks.training import RECIPE
from gradprune.attacks.triggers import low_frequency
from gradprune.base import devices
from gradprune.bench import Grid, run
from gradprune.datasets import Dataset
from gradprune.defenses import DEFENSES, prune_scanned, scan
from gradprune.defenses.common import logit_layer
from gradprune.defenses.consistency import settle
from gradprune.evaluation import evaluate, exam, measure
from gradprune.models import build, choose_device, predict
from gradprune.models.checkpoints import save_checkpoint
from gradprune.pruning import Augment, distilled, filter_scores, pair_up, unpaired
from gradprune.pruning.filters import filters
from gradprune.search import Change, Part, inflow
from gradprune.victims import load_victim
from gradprune.victims.zoo import attack

TINY = {"name": "preact_resnet", "width": 4, "blocks": [1]}
FEW = QUICK | {
    "grad_prune": {"patience": 2, "tune": False}, "grad_prune_verified": {"patience": 1}, "clp": {"u": 1.0}, "anp": {"iterations": 2},
    "rnp": {"unlearn_steps": 2, "recover_steps": 2}, "neural_cleanse": {"steps": 3, "tune_steps": 2}, "ims": {"first_rounds": 2, "rounds": 2},
    "repair": {"steps": 1, "batch_size": 512, "first": 3, "changes": 2, "sturdy": 1.0}}  # one step: after it rounding chooses


@pytest.fixture
def machine(monkeypatch):
    """A machine whose GPU is called "meta"; see `fake_device`. What torch does past its dispatcher is done another way."""
    plain = torch.tensor
    monkeypatch.setitem(devices.DEVICES, "meta", lambda: 1)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else nullcontext())
    monkeypatch.setattr(distilled, "STEPS", 1, raising=False)  # and what else takes long there
    monkeypatch.setattr(low_frequency, "STEPS", 3)
    monkeypatch.setattr(torch, "tensor", lambda data, device=CPU, **more: plain(data, **more).to(device))
    with Machine():
        yield


@pytest.fixture(scope="module")
def few():
    return Dataset(squares(96, 1), squares(24, 2), squares(40, 3))


# ---- the choice


@pytest.mark.parametrize(("there", "name", "chosen"), [
    ({}, "auto", "cpu"), ({"mps": 1}, "auto", "mps"), ({"cuda": 2, "mps": 1}, "auto", "cuda"), ({"cuda": 2}, "cpu", "cpu"),
    ({"cuda": 2}, "cuda:1", "cuda:1"), ({"mps": 1}, "mps", "mps")])
def test_the_first_kind_that_is_there(monkeypatch, there, name, chosen):
    for kind in ("cuda", "mps"):
        monkeypatch.setitem(devices.DEVICES, kind, lambda kind=kind: there.get(kind, 0))
    assert choose_device(name) == torch.device(chosen)


@pytest.mark.parametrize(("name", "sentence"), [
    ("cuda", "there is no device 'cuda' here; there is cpu."), ("mps", "there is no device 'mps' here; there is cpu."),
    ("cuda:3", "there is no device 'cuda:3' here"), ("cpu:1", "there is no device 'cpu:1' here"),
    ("gpu", "Unknown device 'gpu'; known: auto, cuda, mps, cpu"), ("cuda:x", "Unknown device 'cuda:x'"),
    ("", "Unknown device ''"), ("cuda:", "Unknown device 'cuda:'")])
def test_a_device_that_is_not_there(monkeypatch, name, sentence):
    for kind in ("cuda", "mps"):
        monkeypatch.setitem(devices.DEVICES, kind, lambda: 0)
    assert sentence in refuses("device", choose_device, name)


@pytest.mark.parametrize("command", ["attack badnets", "defend badnets", "evaluate badnets", "scan badnets", "bench"])
def test_the_commands_say_it_in_one_sentence(monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(devices.DEVICES, "cuda", lambda: 0)
    assert refused(*command.split(), "--device", "cuda:7").startswith("Error: there is no device 'cuda:7' here")


# ---- everything follows the model


def test_the_second_device_refuses_what_a_gpu_refuses(machine):
    here, there = torch.arange(4.0), torch.arange(4.0).to(META)
    assert (there * 2 + torch.tensor(1.0)).sum().item() == 16 and there[here.long()].device == META
    for wrong in (lambda: here + there, lambda: here[there.long()], lambda: torch.cat([here, there])):
        with pytest.raises(RuntimeError, match="same device"):
            wrong()


@pytest.mark.parametrize("name", [name if name in ("grad_prune", "ft") else pytest.param(name, marks=pytest.mark.slow) for name in DEFENSES])
def test_defences_run_where_the_model_is(victim, machine, name):
    here = DEFENSES[name](victim.model, victim.data.defense, victim.trigger, spc=2, progress=False, **FEW[name])
    model = copy.deepcopy(victim.model).to(META)
    there = DEFENSES[name](model, victim.data.defense, copy.deepcopy(victim.trigger), spc=2, progress=False, **FEW[name])
    assert {parameter.device for parameter in there.model.parameters()} == {META}
    assert there.mask.positions == here.mask.positions
    images = victim.data.test.floats()[:20]
    torch.testing.assert_close(predict(there.model, images).cpu(), predict(here.model, images), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_synthesised_trigger_goes_where_the_images_are(victim, machine):
    model, images = copy.deepcopy(victim.model).to(META), victim.data.test.subset(slice(0, 20))
    found = scan(model, victim.data.defense, spc=2, steps=2, progress=False)
    assert found.images.images.device.type == "cpu"
    for kind in (gp.search.invert, gp.search.perturb):
        mark = kind(model, images.floats().to(META), 1, steps=2, progress=False).trigger
        assert all(0 <= share <= 1 for share in measure(model, exam(images, mark, 1)))
        found = found._replace(trigger=mark)
        assert prune_scanned(model, victim.data.defense, found, spc=2, recipe="paper", patience=1, tune=False, progress=False).mask


@pytest.mark.parametrize("trigger", ["badnets", "low_frequency", "bpp"])
def test_attacks_train_there(few, machine, tmp_path, trigger):
    write_npz(tmp_path / "data.npz", few)
    settings = {"data": str(tmp_path / "data.npz"), "model": TINY, "target": 1, "epochs": 1, "shift": 1, "progress": False}
    here, there = (attack(trigger, device=device, **settings) for device in ("cpu", "meta"))
    assert next(there.model.parameters()).device == META
    assert isinstance(next(there.model.parameters()).data, FakeDevice)
    assert there.card["metrics"] == pytest.approx(here.card["metrics"], abs=0.03)
    assert there.card["made_with"]["device"] == "meta" and "device" not in here.card["made_with"]
    save_checkpoint(tmp_path / "model", there.model, there.card, there.trigger)
    again = load_victim(tmp_path / "model")
    assert next(again.model.parameters()).device.type == "cpu"
    assert again.evaluate() == pytest.approx(there.evaluate(), abs=0.03)


def test_a_bench_keeps_to_one_device(few, machine, tmp_path):
    write_npz(tmp_path / "data.npz", few)
    victim = attack("badnets", data=str(tmp_path / "data.npz"), model=TINY, target=1, epochs=1, shift=1, progress=False)
    save_checkpoint(tmp_path / "model", victim.model, victim.card, victim.trigger)
    grid = Grid([str(tmp_path / "model")], ["clp"], [2], 1)
    assert list(run(grid, tmp_path / "out", device="meta", progress=False).error) == [""]
    assert json.loads((tmp_path / "out/bench.json").read_text())["device"] == "meta"
    refuses("device meta there, cpu here", run, grid, tmp_path / "out", progress=False)
    refuses("on meta the cells run one after the other", run, grid, tmp_path / "other", device="meta", workers=2,
            progress=False)
    assert not (tmp_path / "other").exists()


def test_a_folder_from_before_the_choice_is_the_cpus(victim, data, tmp_path):
    write_npz(tmp_path / "data.npz", data)
    save_checkpoint(tmp_path / "model", victim.model, card_of(victim, tmp_path / "data.npz"))
    grid, facts = Grid([str(tmp_path / "model")], ["clp"], [2], 1), tmp_path / "out/bench.json"
    run(grid, tmp_path / "out", progress=False)
    assert json.loads(facts.read_text())["device"] == "cpu"
    edit(facts, lambda told: told.pop("device"))
    assert len(run(grid, tmp_path / "out", progress=False)) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU on this machine to compare with its CPU")
def test_a_gpu_says_what_the_cpu_says(victim):
    train, test = (pair_up(part, victim.trigger) for part in (victim.data.defense, victim.data.test))
    gpu, found = copy.deepcopy(victim.model).to("cuda"), filters(victim.model, train.clean[:1])
    with torch.backends.cudnn.flags(allow_tf32=False):  # shorter numbers, which are a GPU's default
        for images in (test.clean, test.triggered):
            torch.testing.assert_close(predict(gpu, images).softmax(1).cpu(), predict(victim.model, images).softmax(1),
                                       rtol=0, atol=1e-3)
        there, here = (filter_scores(model, found, train.triggered.to(device), train.labels.to(device))
                       for model, device in ((gpu, "cuda"), (victim.model, "cpu")))
        torch.testing.assert_close(there[0], here[0], rtol=1e-3, atol=1e-3)
        assert there[1] == pytest.approx(here[1], abs=1e-3)
        assert evaluate(gpu, victim.data.test, victim.trigger, 1) == pytest.approx(
            evaluate(victim.model, victim.data.test, victim.trigger, 1), abs=1e-3)
        pruned = gp.grad_prune(gpu, victim.data.defense, victim.trigger, spc=2, recipe="paper", tune=False, progress=False)
        assert pruned.mask.positions == gp.grad_prune(victim.model, victim.data.defense, victim.trigger, spc=2, recipe="paper",
                                                      tune=False, progress=False).mask.positions


def numbers_of(calls):
    """What `seeded` uses of torch.cuda or torch.mps, with one number as the random state."""
    state = [7]
    return SimpleNamespace(device=lambda where: calls.append(str(where)) or nullcontext(), state=state,
                           get_rng_state=lambda: state[0], manual_seed=lambda seed: state.__setitem__(0, seed),
                           set_rng_state=lambda value: state.__setitem__(0, value))


@pytest.mark.parametrize(("device", "drawn"), [("cpu", (7, 7)), ("cuda:1", (3, 7)), ("mps", (7, 3))])
def test_random_numbers_are_seeded_on_one_device_and_go_on_afterwards(monkeypatch, device, drawn):
    calls, before = [], torch.get_rng_state()
    cuda, mps = numbers_of(calls), numbers_of(calls)
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(torch, "mps", mps)
    with devices.seeded(3, torch.device(device)):
        assert (cuda.state[0], mps.state[0]) == drawn and torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(3).get_state())
    assert (cuda.state[0], mps.state[0]) == (7, 7) and torch.equal(torch.get_rng_state(), before)
    assert calls == ["cuda:1"] * (device == "cuda:1")


def test_what_runs_on_the_cpu_leaves_the_numbers_of_a_gpu_alone(monkeypatch, victim):
    seeds = []
    for library, name in ((torch.cuda, "manual_seed_all"), (torch.mps, "manual_seed"), (torch.xpu, "manual_seed_all")):
        monkeypatch.setattr(library, name, seeds.append)
    build(**TINY, num_classes=4)
    make_trigger("input_aware")
    gp.grad_prune(victim.model, victim.data.defense, victim.trigger, spc=1, patience=1, recipe="paper", progress=False)
    assert not seeds


# ---- when the memory ends

GPU_FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU_FULL = RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried to "
                        "allocate 4096 bytes. Error code 12 (Cannot allocate memory)")


class Limited(nn.Module):
    """A network that has no room for more than `most` images at once, from its `after`-th call on."""

    def __init__(self, most, error=GPU_FULL, after=0):
        super().__init__()
        self.net, self.most, self.error, self.calls = build(**TINY, num_classes=4), most, error, after

    def forward(self, images):
        self.calls -= 1
        if len(images) > self.most and self.calls < 0:
            raise self.error
        return self.net(images)


@pytest.mark.parametrize("error", [GPU_FULL, CPU_FULL, MemoryError()])
def test_training_begins_anew_with_half_the_batch(data, capsys, error):
    limited, easy = Limited(16, error, after=2), Limited(16)
    images, settings = data.train.subset(slice(0, 100)), {"epochs": 1, "shift": 1, "progress": False}
    result = fit(limited, images, batch_size=32, **settings)
    assert capsys.readouterr().err == "Out of memory with batches of 32 images; going on with 16.\n"
    assert result.batch_size == 16
    assert result.history == fit(easy, images, batch_size=16, **settings).history
    assert not capsys.readouterr().err and same(limited, easy)


def test_a_trigger_that_learns_begins_anew_too(data, monkeypatch):
    """What it learned before the memory ran out is gone: the result is that of the smaller batch from the start."""
    monkeypatch.setattr("gradprune.attacks.triggers.input_aware.MASK_STEPS", 5)
    triggers = [make_trigger("input_aware", width=2) for _ in range(2)]
    models = Limited(16, after=2), Limited(16)
    for model, trigger, size in zip(models, triggers, (32, 16), strict=True):
        plant(model, data.train.subset(slice(0, 100)), trigger, 1, batch_size=size, epochs=1, shift=1, progress=False)
    assert same(*models) and same(*triggers)


def test_half_is_tried_once(data):
    refuses("not enough memory for batches of 32 images, nor for 16", fit, Limited(8), data.train, batch_size=32,
            epochs=1, shift=1, progress=False)


def test_other_errors_pass_and_are_not_called_memory_with_half_the_batch(data):
    illegal = RuntimeError("CUDA error: an illegal memory access was encountered")

    def work(size):
        raise GPU_FULL if size == 32 else illegal

    for attempt in (lambda: devices.halving(work, 32), lambda: predict(Limited(0, illegal), data.test.floats()),
                lambda: fit(Limited(0, illegal), data.train, epochs=1, shift=1, progress=False)):
        with pytest.raises(RuntimeError, match=r"^CUDA error: an illegal memory"):
            attempt()


def test_the_card_says_what_was_done(data, tmp_path, monkeypatch):
    write_npz(tmp_path / "data.npz", data)
    monkeypatch.setattr("gradprune.victims.zoo.build", lambda **_: Limited(16))
    monkeypatch.setattr("gradprune.victims.zoo.evaluate", lambda *_, **__: gp.Metrics(0, 0, 0))
    card = attack("badnets", data=str(tmp_path / "data.npz"), target=1, batch_size=32, epochs=1, shift=1,
                  progress=False).card
    assert card["training"]["batch_size"] == 16 != RECIPE["batch_size"]


def test_predictions_and_scores_with_half_the_batch(data, victim, capsys):
    limited, images = Limited(16), data.test.subset(slice(0, 40))
    torch.testing.assert_close(predict(limited, images.floats(), 32), predict(limited, images.floats(), 8))
    assert "batches of 32 images; going on with 16." in capsys.readouterr().err
    pairs, found = pair_up(images, make_trigger("badnets")), filters(limited, images.floats()[:1])
    scores, loss = filter_scores(limited, found, pairs.triggered, pairs.labels, batch_size=32)
    assert "going on with 16." in capsys.readouterr().err
    again, again_loss = filter_scores(limited, found, pairs.triggered, pairs.labels, batch_size=16)
    torch.testing.assert_close(scores, again)
    assert loss == pytest.approx(again_loss)
    refuses("not enough memory", predict, Limited(8), images.floats(), 32)


def test_the_parts_of_a_repair_that_take_many_images_halve_them_too(data):
    """The changes tried before the first step, BatchNorm's statistics, and the inputs of the last layer."""
    images, roomy = data.test.subset(slice(0, 40)).floats(), Limited(10**6)
    part, changes = Part(images[:8], predict(roomy, images[:8]).log_softmax(1)), [Change("patches", torch.zeros(1), lambda images, _: 1 - images)] * 64
    torch.testing.assert_close(inflow(Limited(256), [part] * 64, changes), inflow(roomy, [part] * 64, changes))
    torch.testing.assert_close(*(logit_layer(model, images)[1] for model in (Limited(20), roomy)))
    train = unpaired(data.test.subset(slice(0, 40)), "cpu")
    few = 40 * (1 + copies_for(40))
    settled = [Limited(most) for most in (few // 2, few)]
    for model in settled:
        settle(model, train, Augment(roomy, None, train), 2, 0)
    means = [next(norm.running_mean for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)) for model in settled]
    torch.testing.assert_close(*means, rtol=0, atol=1e-4)


# ---- memory in the workers of a cluster


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_freed_memory_is_kept_in_a_worker_of_dask():
    """Pages faulted in by a hundred convolutions, with dask's setting: without the remedy every tensor costs its pages."""
    script = """
import os, resource, torch
from gradprune.base.devices import keep_freed_memory
if child := os.fork():
    os.waitpid(child, 0)
    keep_freed_memory()
torch.set_num_threads(1)
layer, images = torch.nn.Conv2d(16, 16, 3, padding=1), torch.rand(64, 16, 16, 16)
with torch.no_grad():
    layer(images)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        layer(images)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, flush=True)
"""
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536"}
    dask, kept = map(int, subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True,
                                         check=True).stdout.split())
    assert kept < dask / 10, (kept, dask)
