"""The command line: what each command prints, its JSON, its help, and every kind of bad input."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import as_json, edit, holds, interrupt_call, listing, parsed, refused, refuses, run, write_npz

import gradprune as gp
from gradprune.attacks import training as training_module
from gradprune.base import paths
from gradprune.cli import bench, jobs
from gradprune.cli import console as screen
from gradprune.datasets import draw_defense_images
from gradprune.defenses import DEFENSES
from gradprune.evaluation import Metrics
from gradprune.models import export as export_module
from gradprune.models import predict
from gradprune.models.checkpoints import load_checkpoint, read_card, save_checkpoint
from gradprune.pruning import fine_tuning, silence
from gradprune.victims import zoo
from gradprune.victims.inspection import inspect
from gradprune.victims.save_cleaned import slimmed

PAPER = sys.modules["gradprune.pruning.paper"]  # the package exports the function of the same name

COMMANDS = ["demo", "attack", "defend", "evaluate", "zoo list", "zoo build", "bench", "report", "scan", "doctor",
            "data list", "data get", "data check", "inspect", "repair"]


@pytest.fixture(scope="session")
def store(tmp_path_factory, data):
    """A folder with a tiny data set, data.npz, and a victim trained on it, victim.safetensors and .json."""
    folder = tmp_path_factory.mktemp("store")
    write_npz(folder / "data.npz", data)
    jobs.attack_and_save(folder / "victim", "badnets", data=str(folder / "data.npz"), target=1, rate=0.15, epochs=8,
                    model={"name": "preact_resnet", "width": 12, "blocks": [1, 1]}, batch_size=32, shift=1, seed=1,
                    trigger_settings={"margin": 0, "color": "checker"}, progress=False)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test runs in an empty folder, with a cache of its own beside it."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("GRADPRUNE_CACHE", str(tmp_path / "cache"))
    return work


def copied(store, place):
    """Put a copy of the victim in another place, or in the current folder."""
    for suffix in (".safetensors", ".json"):
        shutil.copy(store / f"victim{suffix}", f"{place}{suffix}")


@pytest.fixture
def shipped(tmp_path, monkeypatch, store):
    """A package whose shipped data is one model, badnets: the tiny victim."""
    folder = tmp_path / "data" / "checkpoints"
    folder.mkdir(parents=True)
    copied(store, folder / "badnets")
    monkeypatch.setattr(paths, "_PACKAGE", tmp_path / "gradprune")
    return folder


# ---- what the commands do


def test_version_and_bare_call():
    assert run("--version").stdout == f"gradprune {gp.__version__}\n"
    assert "demo" in run().output


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command):
    text = run(*command.split(), "--help").stdout
    assert holds(text, "Example:\n", f"\n    gradprune {command}", "--json")
    assert any(word in text for word in ("minute", "second", "Second")), "how long it takes"
    if command not in ("doctor", "inspect") and not command.startswith("data"):
        assert all(word in text for word in ("ACC", "ASR", "RA", "high is good", "low is good"))
    assert max(map(len, text.splitlines())) <= 80


def test_defend_prints_a_table_and_a_sentence(store):
    result = run("defend", store / "victim", "--spc", 5, "--recipe", "paper")
    assert result.exit_code == 0
    assert holds(result.stdout, "given model", "pruned (", "fine-tuned", "ACC ↑", "ASR ↓", "RA ↑")
    assert "clean accuracy went from" in result.stdout.splitlines()[-1]
    assert "\x1b" not in result.output, "colours where nobody is looking"


def test_defend_json_and_the_cleaned_checkpoint(store, here):
    before = listing(store)
    told = as_json("defend", store / "victim", "--spc", 5, "--recipe", "paper", "--seed", 3, "--out", "new/cleaned")
    assert listing(store) == before, "the given checkpoint changed"
    for stage in ("before", "pruned", "tuned"):
        assert set(told[stage]) == {"acc", "asr", "ra"}
    assert told["before"]["asr"] > 0.9 > told["tuned"]["asr"]
    seconds = told["seconds"]
    assert seconds.keys() == {"train", "prune", "tune"} and seconds["train"] is None and seconds["prune"] > 0 and seconds["tune"] > 0
    assert (told["seed"], told["spc"], told["recipe"], told["score"]) == (3, 5, "paper", "gradient")
    assert (told["checkpoint"], told["out"]) == (str(store / "victim"), "new/cleaned.safetensors")
    assert told["stopped"] and not told["interrupted"]

    model, card = load_checkpoint(here / "new" / "cleaned")
    assert told["filters_removed"]
    for layer, index in told["filters_removed"]:
        assert not model.get_submodule(layer).weight[index].any(), "a removed filter is alive in the file"
    given = read_card(store / "victim")
    assert (card["attack"], card["training"]) == (given["attack"], given["training"])
    assert all(card["defense"][key] == told[key] for key in ("spc", "before", "pruned", "tuned"))
    assert (card["removed_filters"], card["metrics"]) == (told["filters_removed"], told["tuned"])

    measured = as_json("evaluate", "new/cleaned")
    assert {key: measured[key] for key in ("acc", "asr", "ra")} == told["tuned"] == measured["card"]


@pytest.mark.parametrize("kind", [pytest.param(".pt2", marks=pytest.mark.slow), ".onnx"])
def test_defend_slims_and_exports(store, here, kind):
    pytest.importorskip("torch_pruning", reason="--slim needs torch-pruning")
    for package in export_module.NEEDS[kind]:
        pytest.importorskip(package, reason=f"--export needs {package}")
    told = as_json("defend", store / "victim", "--spc", 5, "--recipe", "paper", "--seed", 3, "--slim",
                   "--out", "new/slim", "--export", f"other/model{kind}")
    slim = told["slim"]
    assert sorted(slim["cut"] + slim["left"]) == sorted(told["filters_removed"])
    assert slim["parameters"][0] >= slim["parameters"][1] and slim["macs"][0] >= slim["macs"][1]
    assert len(slim["seconds"]) == 2 and f"{len(slim['cut'])} of " in slim["sentence"]
    assert told["export"] == f"other/model{kind}"
    assert [file.name for file in (here / "other").iterdir()] == [f"model{kind}"]
    model, card = load_checkpoint(here / "new" / "slim")
    assert sum(parameter.numel() for parameter in model.parameters()) == slim["parameters"][1]
    assert card["slim"]["left"] == slim["left"]
    measured = as_json("evaluate", "new/slim")
    assert {key: measured[key] for key in ("acc", "asr", "ra")} == told["tuned"]
    ask = {".onnx": export_module._ask_onnx, ".pt2": export_module._ask_pt2}[kind]
    images = torch.rand(3, 3, 16, 16)
    assert torch.allclose(ask(here / "other" / f"model{kind}", images), predict(model, images), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_slim_model_can_be_defended_and_slimmed_again(store, here):
    """The sizes on its card are kept, and changed where the second run cuts."""
    pytest.importorskip("torch_pruning", reason="--slim needs torch-pruning")
    model, card = load_checkpoint(store / "victim")
    silence(model, gp.filters(model), [gp.filters(model).position("stages.0.0.conv1", index) for index in (0, 5)])
    small, card, _ = slimmed(model, card, torch.rand(2, 3, 16, 16))
    assert card["model"]["sizes"]["stages.0.0.conv1"] == [10, 12]
    save_checkpoint("first", small, card)
    told = as_json("defend", here / "first", "--spc", 3, "--recipe", "paper", "--slim", "--out", "second")
    again, card = load_checkpoint(here / "second")
    assert card["model"]["sizes"]["stages.0.0.conv1"][0] <= 10 and card["slim"]["cut"] == told["slim"]["cut"]
    assert sum(parameter.numel() for parameter in again.parameters()) == told["slim"]["parameters"][1]


def test_attack_saves_a_checkpoint_that_evaluate_reads(store):
    arguments = ("attack", "blended", "--data", store / "data.npz", "--width", 4, "--target", 3, "--rate", 0.2,
                 "--epochs", 1, "--seed", 5)
    told = as_json(*arguments)
    assert told["out"] == "out/blended.safetensors"
    assert told["attack"] | {"settings": None} == {"trigger": "blended", "settings": None, "target": 3, "rate": 0.2,
                                                   "poisoned_images": 80}
    assert (told["model"]["width"], told["training"]["seed"], told["target_name"]) == (4, 5, "south east")
    assert as_json("evaluate", "out/blended")["card"] == told["metrics"]
    # an existing folder stands for a file in it
    assert holds(run(*arguments, "--out", "out").stdout, "80 of 400 training images", "Saved: out/blended.safetensors")


def test_attack_fits_a_vgg_to_the_images(store):
    told = as_json("attack", "sig", "--data", store / "data.npz", "--model", "small_vgg", "--width", 4, "--epochs", 1)
    assert told["model"]["name"] == "small_vgg"
    assert load_checkpoint("out/sig")


def test_demo_defends_the_shipped_model(shipped, monkeypatch):
    told = as_json("demo", "--spc", 5, "--out", "elsewhere")
    assert told["report"] == "elsewhere/report.html" and list(Path("elsewhere").glob("*.png"))
    assert Path(told["report"]).read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html")
    assert (told["checkpoint"], told["seconds"]["train"], told["spc"]) == ("badnets", None, 5)
    monkeypatch.setattr("gradprune.views.reports.report.write_report", lambda folder, *_: folder / "report.html")
    result = run("demo", "--spc", 5)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "Report: out/demo/report.html"
    assert told["sentence"] in " ".join(result.stdout.split())


def test_demo_can_train_first(store, monkeypatch):
    seeds, trained = [], replace(gp.load_victim(store / "victim"), seconds=1.5)
    monkeypatch.setattr("gradprune.views.reports.report.write_report", lambda folder, *_: folder / "report.html")
    monkeypatch.setattr(jobs, "attack", lambda trigger, seed, progress: seeds.append(seed) or trained)
    told = as_json("demo", "--train", "--spc", 2, "--seed", 7)
    assert (seeds, told["checkpoint"], told["seconds"]["train"]) == ([7], None, 1.5)


def test_zoo_list(shipped):
    told = as_json("zoo", "list")
    assert set(told["checkpoints"]) == {"badnets"}
    assert told["checkpoints"]["badnets"]["attack"]["target"] == 1
    assert "badnets (15% poisoned)" in run("zoo", "list").stdout
    for path in shipped.iterdir():
        path.unlink()
    assert "gradprune zoo build" in run("zoo", "list").stdout


def tiny_attack(store):
    return lambda *, progress, **settings: gp.load_victim(store / "victim")


def test_zoo_build(store, monkeypatch):
    monkeypatch.setattr(zoo, "attack", tiny_attack(store))
    told = as_json("zoo", "build", "clean", "sig", "--out", "built")
    assert set(told["built"]) == {"clean", "sig"}
    assert told["out"] == "built"
    assert sorted(path.name for path in Path("built").iterdir()) == [
        "clean.json", "clean.safetensors", "sig.json", "sig.safetensors"]


def test_the_given_checkpoint_is_no_output(store):
    for command in ("defend", "repair"):
        assert "out names the given checkpoint" in refused(command, store / "victim", "--out", store / "victim")
    assert "out is a name without .pth" in refused("defend", store / "victim", "--out", "cleaned.pth")
    assert "out is a name without .pth" in refused("attack", "badnets", "--out", "mine.pth")
    assert "trains networks by name" in refused("attack", "badnets", "--model", "mynet:build")
    assert shlex.split(inspect(store / "victim").command)[-1] == "out/clean"


def test_pruning_that_was_not_kept_is_called_so(store, monkeypatch):
    summary = jobs.summary
    monkeypatch.setattr(jobs, "summary", lambda *given, **more: {**summary(*given, **more), "stopped": "no gain; kept: fine-tuned"})
    assert "pruned, but not kept" in run("defend", store / "victim", "--spc", 2, "--recipe", "paper").stdout


def test_a_synthesised_trigger_says_nothing_of_the_backdoor(victim, result):
    stages = {"before": Metrics(0.99, 0.9, 0.1), "tuned": Metrics(0.98, 0.00454, 0.9)}
    told = jobs.sentence(stages, result, "stop", found=True)
    assert told.startswith("The synthesised trigger no longer works") and "sends 0.4%" in told, "0.0045 in the table, too"
    assert jobs.sentence(stages, result, "stop").startswith("The backdoor no longer works")


def test_a_repair_that_changed_nothing_is_not_saved(store, here, monkeypatch):
    interrupt_call(monkeypatch, importlib.import_module("gradprune.defenses.repair"), "consistent_tune", 1)
    done = run("repair", store / "victim", "--spc", 2, "--out", "mended")
    assert done.exit_code == 130 and "had not changed yet" in done.stderr and listing(here) == {}


@pytest.mark.parametrize(("settings", "words"), [({"spc": 2.5}, "whole number, got 2.5"), ({"seed": 1.5}, "whole number below 2^63, as an int, got 1.5"),
                                                 ({"seed": 10 ** 20}, "below 2^63")])
def test_numbers_of_another_kind(victim, settings, words):
    refuses(re.escape(words), draw_defense_images, victim.data.defense, **{"spc": 2, **settings})


def test_doctor_is_a_command():
    result = run("doctor", "--json")
    told = parsed(result)
    assert result.exit_code == (0 if told["ok"] else 1)
    assert {"name", "ok", "found", "advice"} == set(told["checks"][0])


def test_json_has_no_nan(store, capsys):
    copied(store, "odd")
    edit(Path("odd.json"), lambda card: card.update(metrics={"acc": float("nan"), "asr": 1, "ra": 0}))
    done = run("evaluate", "odd", "--json")
    assert done.exit_code == 2 and "Traceback" not in done.output, "a share that is no number is no card's"
    screen.show(True, {"acc": float("nan"), "deeper": [float("inf"), 1]}, "")
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"acc": None, "deeper": [None, 1]}


# ---- interruption: 130, and what is finished is kept


def test_interrupted_training_keeps_whole_epochs(store, monkeypatch):
    interrupt_call(monkeypatch, training_module, "_epoch", 2)
    result = run("attack", "badnets", "--data", store / "data.npz", "--target", 1)
    assert (result.exit_code, result.stderr) == (130, "Interrupted: the model reached in epoch 2 is saved.\n")
    assert read_card("out/badnets")["training"]["interrupted"] is True


def test_training_interrupted_at_once_leaves_nothing(store, here, monkeypatch):
    interrupt_call(monkeypatch, training_module, "_epoch", 1)
    result = run("attack", "badnets", "--data", store / "data.npz", "--target", 1)
    assert result.exit_code == 130
    assert "no epoch was finished" in result.stderr
    assert listing(here) == {}


@pytest.mark.parametrize(("module", "name", "call", "tuned"), [(PAPER, "filter_scores", 2, False),
                                                              (fine_tuning, "_epoch", 3, True)])
def test_interrupted_defence_keeps_its_stage(store, monkeypatch, module, name, call, tuned):
    interrupt_call(monkeypatch, module, name, call)
    result = run("defend", store / "victim", "--spc", 3, "--recipe", "paper", "--out", "cleaned", "--json")
    assert result.exit_code == 130
    assert "Interrupted: the state reached is saved." in result.stderr
    told = parsed(result)
    assert told["interrupted"] is True
    assert (told["seconds"]["tune"] is not None) is tuned
    assert read_card("cleaned")["defense"]["interrupted"] is True


def test_interrupted_zoo_build_names_what_is_finished(store, monkeypatch):
    monkeypatch.setattr(zoo, "attack", tiny_attack(store))
    interrupt_call(monkeypatch, zoo, "attack", 2)
    result = run("zoo", "build", "clean", "sig", "--out", "built")
    assert (result.exit_code, result.stderr) == (130, "Interrupted: finished and saved: clean.\n")
    assert sorted(path.name for path in Path("built").iterdir()) == ["clean.json", "clean.safetensors"]


def test_unexpected_errors_stay_tracebacks(store, monkeypatch):
    monkeypatch.setattr(PAPER, "validate", Mock(side_effect=ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        run("defend", store / "victim", "--spc", 3, "--recipe", "paper")


# ---- bad input: one sentence, exit code 2, nothing written


@pytest.mark.parametrize(("arguments", "words"), [
    (["badnet"], "Unknown trigger 'badnet'; did you mean badnets?"),
    (["zzz"], "Unknown trigger 'zzz'; known: "),
    (["badnets", "--model", "small_vg"], "Unknown model 'small_vg'; did you mean small_vgg?"),
    (["badnets", "--data", "sign"], "Unknown data set 'sign'; did you mean signs?"),
    (["badnets", "--data", "gone.npz"], "No file at gone.npz"),
    (["badnets", "--target", "4"], "target must be a class in 0..3, got 4"),
    (["badnets", "--rate", "1.5"], "poison rate must lie in 0..1, got 1.5"),
    (["badnets", "--rate", "nan"], "poison rate must lie in 0..1, got nan"),
    (["badnets", "--width", "0"], "width must be at least 1"),
    (["badnets", "--epochs", "0"], "epochs"),
    (["badnets", "--size", "24"], "size is for folders of pictures"),
])
def test_attack_refuses(store, arguments, words):
    data = [] if "--data" in arguments else ["--data", store / "data.npz"]
    assert words in refused("attack", *arguments, *data, "--out", "deep/er/model", "--json")


def test_sizes_that_a_model_or_trigger_cannot_take():
    labels = np.arange(8) % 4
    for size, model, words in (((12, 20), "small_vgg", "the model cannot take images of shape (3, 12, 20)"),
                               ((3, 3), "preact_resnet", "sticker")):
        pictures = np.random.default_rng(0).integers(0, 256, (8, 3, *size)).astype(np.uint8)
        np.savez("odd.npz", x_train=pictures, y_train=labels, x_test=pictures, y_test=labels)
        assert words in refused("attack", "badnets", "--data", "odd.npz", "--target", 1, "--model", model)


@pytest.mark.parametrize(("arguments", "words"), [
    (["--recipe", "papr"], "Unknown recipe 'papr'; did you mean paper?"),
    (["--score", "gradent"], "Unknown score 'gradent'; did you mean gradient"),
    (["--spc", "31"], "class 'north west' has 30"),
    (["--spc", "0"], "spc (images per class) must be at least 1, got 0"),
    (["--export", "model.pth"], "a model is exported as .onnx or .pt2, and 'model.pth' is neither"),
])
def test_defend_refuses(store, arguments, words):
    assert words in refused("defend", store / "victim", *arguments, "--out", "deep/er/model", "--json")


def test_a_cleaned_model_goes_into_a_folder_that_is_there(store, here):
    (here / "models").mkdir()
    told = as_json("defend", store / "victim", "--spc", 2, "--recipe", "paper", "--out", "models")
    assert told["out"] == "models/victim-cleaned.safetensors" and Path(told["out"]).is_file()


def test_a_demo_whose_training_was_cut_short_writes_nothing(here, store, monkeypatch):
    victim = gp.load_victim(store / "victim")
    victim.card.setdefault("training", {})["interrupted"] = True
    monkeypatch.setattr(jobs, "attack", lambda *_, **__: victim)
    before, result = listing(here), run("demo", "--train")
    assert (result.exit_code, result.stderr) == (130, "Interrupted: training was cut short, so nothing was written.\n")
    assert listing(here) == before


def test_the_help_of_bench_lists_all_defences():
    assert tuple(DEFENSES) == bench._DEFENSES


def test_a_bench_takes_whole_numbers():
    told = refused("bench", "--attacks", "badnets", "--defenses", "ft", "--spc", "2,ten", "--out", "out/b")
    assert "spc must be whole numbers separated by commas, got '2,ten'" in told


def test_missing_extras_are_told_before_any_work(store, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "gradprune[slim]" in refused("defend", store / "victim", "--slim", "--out", "deep/er/model")
    assert "gradprune[export]" in refused("defend", store / "victim", "--export", "deep/er/model.onnx")


@pytest.mark.slow
def test_what_cannot_be_exported_leaves_nothing_behind(store, monkeypatch):
    monkeypatch.setattr(export_module, "_write_pt2", Mock(
        side_effect=RuntimeError("No ONNX function found for <OpOverload(op='aten.odd', overload='default')>.")))
    told = refused("defend", store / "victim", "--spc", 2, "--recipe", "paper", "--out", "deep/model", "--export", "deep/er/model.pt2")
    assert "cannot be exported as .pt2: there is no such form of the operator aten.odd" in told


@pytest.mark.parametrize(("change", "words"), [
    (lambda card: card["model"].update(name="resnet"), "Unknown model 'resnet'; did you mean resnet18?"),
    (lambda card: card["model"].update(num_classes="four"), "cannot be built"),
    (lambda card: card["attack"].update(target=99), "target must be a class in 0..3, got 99"),
    (lambda card: card["attack"].update(target="three"), "does not say which attack"),
    (lambda card: card["data"].update(name="gone.npz"), "No file at gone.npz"),
])
@pytest.mark.parametrize("command", ["evaluate", "defend"])
def test_damaged_checkpoints(store, command, change, words):
    copied(store, "bad")
    edit(Path("bad.json"), change)
    out = ["--out", "deep/cleaned"] if command == "defend" else []
    assert words in refused(command, "./bad.safetensors", *out)


def test_unknown_checkpoint_names_are_plain_text(shipped):
    assert "did you mean badnets?" in refused("evaluate", "badnet")
    assert "Unknown checkpoint '[red]x'" in refused("evaluate", "[red]x"), "names are no markup"
    assert "Unknown checkpoint 'sigg'; did you mean sig?" in refused("zoo", "build", "sigg", "--out", "a/b")


def test_a_dot_and_a_slash_name_the_file_where_a_shipped_model_has_its_name(shipped, store, here, caplog):
    edit(shipped / "badnets.json", lambda card: card["attack"].update(target=0))
    copied(store, here / "badnets")
    shown, own = (as_json("evaluate", name)["target"] for name in ("badnets", "./badnets"))
    assert (shown, own) == (0, 1), "the shipped model took the file's place"
    assert "the file here is './badnets'" in caplog.text
    before = listing(shipped)
    assert "names the given checkpoint" in refused("defend", "badnets", "--spc", 2, "--out", shipped / "badnets")
    assert listing(shipped) == before
    assert as_json("defend", "badnets", "--spc", 2, "--recipe", "paper", "--out", "badnets")["out"] == "badnets.safetensors"


@pytest.mark.parametrize("command", ["evaluate", "defend", "scan", "repair", "bench --attacks"])
@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_checkpoint_without_a_name(command, name):
    if (command, name) != ("bench --attacks", ""):
        assert "names no checkpoint" in refused(*command.split(), name)


def test_results_of_names_with_a_dot_do_not_overwrite_each_other(store, here):
    Path("cleaned").mkdir()
    for name in ("net.v1", "net.v2"):
        copied(store, here / name)
        as_json("defend", name, "--spc", 2, "--recipe", "paper", "--out", "cleaned")
    assert {path.name for path in Path("cleaned").glob("*.json")} == {"net.v1-cleaned.json", "net.v2-cleaned.json"}


def test_weights_that_are_nan(store, here):
    model, card = load_checkpoint(store / "victim")
    model.linear.weight.data[0, 0] = float("nan")
    save_checkpoint(here / "broken", model, card)
    for command in ("defend", "evaluate"):
        assert "not finite" in refused(command, "./broken")


@pytest.mark.parametrize("command", ["demo", "attack", "defend", "zoo build"])
def test_unwritable_folder_is_found_before_the_work(shipped, here, monkeypatch, command):
    for module, name in ((jobs, "attack"), (jobs, "load_victim"), (zoo, "attack")):
        monkeypatch.setattr(module, name, Mock(side_effect=AssertionError("work began before the folder was checked")))
    (here / "file").write_text("a regular file, so nothing can lie below it, even for root")
    inputs = {"attack": ["badnets"], "defend": ["badnets"]}.get(command, [])
    assert "Cannot write to folder 'file" in refused(*command.split(), *inputs, "--out", "file/sub/model")


def test_results_in_takes_back_what_is_empty(here):
    (here / "old").mkdir()
    with pytest.raises(RuntimeError), jobs.results_in("old/new", None, "old/new/newer", "old/other"):
        raise RuntimeError
    assert [path.name for path in here.rglob("*")] == ["old"]

    with pytest.raises(RuntimeError), jobs.results_in("kept/new"):
        Path("kept/file").write_text("finished")
        raise RuntimeError
    assert sorted(path.name for path in here.rglob("*")) == ["file", "kept", "old"]


# ---- bad input to the functions


@pytest.mark.parametrize(("trigger", "words"), [(lambda images: images[:, :, 1:], "changed the images' shape"),
                                                (lambda images: images * 300, "left the pixel range")])
def test_triggers_that_break_the_contract(victim, trigger, words):
    calls = [lambda: gp.grad_prune(victim.model, victim.data.defense, trigger, spc=3, progress=False),
             lambda: gp.poison(victim.data.train, trigger, target=0),
             lambda: gp.evaluate(victim.model, victim.data.test, trigger, target=0)]
    for call in calls:
        refuses(words, call)


def test_losses_that_are_nan(victim):
    model = gp.build("preact_resnet", 4, width=4)
    model.linear.bias.data.fill_(float("nan"))
    refuses("not finite", gp.grad_prune, model, victim.data.defense, victim.trigger, spc=3, progress=False)
    refuses("the model answers NaN", gp.fit, model, victim.data.train, epochs=1, progress=False)
    refuses("the unlearning loss is nan", gp.filter_scores, model, gp.filters(model), victim.data.test.floats(),
            victim.data.test.labels)


# ---- the sentence


@pytest.mark.parametrize(("before", "after", "verdict"), [
    (Metrics(1, 1, 0), Metrics(0.99, 0.01, 0.98), "The backdoor no longer works: "),
    (Metrics(1, 0.01, 0.9), Metrics(0.99, 0.0, 0.9), "There was no backdoor to remove: "),
])
def test_the_sentence_is_honest(before, after, verdict):
    result = SimpleNamespace(mask=SimpleNamespace(positions=[4]), rows=lambda stage: [])
    told = jobs.sentence({"before": before, "pruned": after, "tuned": after}, result, "stop")
    assert told.startswith(verdict)
    assert told.endswith(".")
    assert holds(told, f"{after.asr:.1%}", f"from {before.acc:.1%} to {after.acc:.1%}", "1 filter removed it",
                 "other classes' images to 'stop'; with")
    assert "images to the next class; with" in jobs.sentence({"before": before, "tuned": after}, result, None)


# ---- as a real program


def program(*arguments, **environment):
    return subprocess.run([sys.executable, "-m", "gradprune", *arguments], capture_output=True, text=True, timeout=120,
                          env={**os.environ, **environment})


def test_the_program_refuses_without_a_traceback():
    done = program("evaluate", "gone/nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: there is no checkpoint card at gone/nothing.json.\n"


@pytest.mark.slow
def test_the_program_prints_where_only_ascii_goes(store):
    """A figure a line, as the window is narrow too."""
    done = program("evaluate", str(store / "victim.safetensors"), PYTHONIOENCODING="ascii", PYTHONUTF8="0", COLUMNS="60")
    assert done.returncode == 0, done.stderr
    assert all(words in done.stdout for words in ("ASR (-)", "measured now", "on its card", "north east"))
