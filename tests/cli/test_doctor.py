"""The doctor: it tells a healthy machine from a sick one, and every line that is not ok says what to do."""

import json
import os
import runpy
import shutil
import sys
from importlib import metadata
from types import SimpleNamespace
from unittest.mock import Mock

import psutil
import pytest
import torch
import torchvision
from conftest import holds

from gradprune import build
from gradprune.base import paths
from gradprune.cli import doctor
from gradprune.cli.doctor import Check
from gradprune.models.checkpoints import save_checkpoint
from gradprune.victims import zoo


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shipped")
    for name in zoo.SHIPPED:
        settings = {"name": "preact_resnet", "num_classes": 2, "width": 2}
        save_checkpoint(folder / name, build(**settings), {"model": settings})
    return folder


@pytest.fixture(autouse=True)
def healthy(shipped, tmp_path, monkeypatch):
    """A cache of its own, and a package whose shipped models are all there."""
    monkeypatch.setenv("GRADPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(paths, "_PACKAGE", tmp_path / "gradprune")
    return shutil.copytree(shipped, tmp_path / "data" / "checkpoints")


def sick(check, *words):
    """Assert that a check failed or warned, that it says these words, and that it gives advice."""
    assert check.ok is not True, check
    assert all(word in check.found for word in words), check.found
    assert len(check.advice.split()) >= 4, "no advice"
    return check


def test_a_healthy_machine(capsys):
    assert doctor.main([]) == 0
    printed = capsys.readouterr().out
    assert printed.count("ok  ") == len(doctor.CHECKS)
    assert "FAIL" not in printed
    assert "\x1b" not in printed
    assert printed.endswith("This machine is ready.\n")


def test_checks_are_plain_values():
    found = list(doctor.checks())
    assert [check.name for check in found] == list(doctor.CHECKS)
    assert all(check.ok in (True, False, "warn") and check.found for check in found)
    assert all(check.advice == "" for check in found if check.ok is True)


def test_a_failed_check_is_exit_code_1_and_a_warning_is_not(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CHECKS", {"memory": lambda: Check("memory", "warn", "little", "close programs")})
    assert doctor.main([]) == 0
    assert "warn  memory" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "CHECKS", {"cache": lambda: Check("cache", False, "gone", "make one")})
    assert doctor.main(["--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == {"ok": False, "checks": [{"name": "cache", "ok": False, "found": "gone",
                                                        "advice": "make one"}]}
    assert holds(err, "FAIL  cache", "-> make one", "To be fixed: cache.")


def test_colours_are_for_terminals(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CHECKS", {"cache": lambda: Check("cache", False, "gone", "make one")})
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    doctor.main([])
    assert "\x1b[31mFAIL" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    doctor.main([])
    assert "\x1b" not in capsys.readouterr().out


def test_a_check_that_breaks_down_is_a_failed_check(monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", {"GPU": Mock(side_effect=ImportError("libtorch.so:\n cannot open"))})
    check, = doctor.checks()
    sick(check, "ImportError: libtorch.so: cannot open")
    assert check.name == "GPU"
    assert check.ok is False


def test_old_python(monkeypatch):
    monkeypatch.setattr(doctor, "sys", SimpleNamespace(version_info=(3, 10, 4)))
    assert sick(doctor.python()).ok is False


def missing(*names):
    real = metadata.version

    def version(name):
        if name in names:
            raise metadata.PackageNotFoundError(name)
        return real(name)
    return version


def test_missing_and_old_packages(monkeypatch):
    monkeypatch.setattr(doctor.metadata, "version", missing("safetensors"))
    assert sick(doctor.packages(), "safetensors is missing").ok is False
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "2.3.1+cpu" if name == "torch" else "99.0")
    assert doctor.packages().found.startswith("torch is 2.3.1+cpu, needed is ")
    assert "pip install" in sick(doctor.packages()).advice


@pytest.mark.parametrize(("version", "least", "enough"), [("2.10.0", "2.4", True), ("2.3.9", "2.4", False),
                                                         ("2.4", "2.4", True), ("3.0rc1", "2.9", True),
                                                         ("2.4.0+cu121", "2.4", True)])
def test_versions_are_compared_as_numbers(version, least, enough):
    assert (doctor._numbers(version) >= doctor._numbers(least)) is enough


def test_missing_notebooks_are_a_warning_with_the_command(monkeypatch):
    monkeypatch.setattr(doctor.metadata, "version", missing("jupyterlab", "ipywidgets"))
    check = sick(doctor.notebooks(), "jupyterlab is missing", "ipywidgets is missing")
    assert check.ok == "warn"
    assert '.[notebooks]"' in check.advice


def test_torch_and_torchvision_of_different_builds(monkeypatch):
    error = RuntimeError("operator torchvision::nms does not exist")
    monkeypatch.setattr(torchvision.ops, "nms", Mock(side_effect=error))
    assert sick(doctor.torch_pair(), "do not work together", "torchvision::nms").ok is False


def test_cores_are_told(monkeypatch):
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda process: {0}, raising=False)
    assert doctor.cores().found.startswith("1 (training")


def test_little_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=int(1.2e9)))
    assert sick(doctor.memory(), "1.2 GB free").ok == "warn"
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=int(64e9)))
    monkeypatch.setattr(doctor, "_container_limit", lambda: 1.5e9)
    sick(doctor.memory(), "1.5 GB free")


def test_the_limit_of_a_container(tmp_path):
    assert doctor._container_limit(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("2000\n")
    (tmp_path / "memory.current").write_text("500\n")
    assert doctor._container_limit(tmp_path) == 1500
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor._container_limit(tmp_path) == float("inf")


def test_cache_that_cannot_be_written_or_has_no_room(monkeypatch, tmp_path):
    assert str(tmp_path / "cache") in doctor.cache().found
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=int(1e8)))
    assert sick(doctor.cache(), "0.1 GB free").ok is False
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRADPRUNE_CACHE", str(tmp_path / "file" / "cache"))
    assert "GRADPRUNE_CACHE" in sick(doctor.cache(), "Cannot write to folder").advice


def test_a_gpu_is_for_information(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tiny 1")
    assert doctor.gpu() == Check("GPU", True, "Tiny 1; the commands use it, unless told --device cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert doctor.gpu().found == "Apple GPU; the commands use it, unless told --device cpu"


def test_shipped_models_missing_or_damaged(healthy):
    weights = healthy / "blended.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (healthy / "sig.json").unlink()
    check = sick(doctor.checkpoints(), "blended: the weights", "sig is missing")
    assert check.ok is False
    assert "badnets" not in check.found
    assert "gradprune zoo build" in check.advice


def test_kernel_missing_or_of_another_environment(monkeypatch):
    pytest.importorskip("ipykernel")
    from jupyter_client.kernelspec import KernelSpecManager

    for program, own in ((sys.executable, True), ("python", True), (os.path.join(os.sep, "opt", "py", "python"), False)):
        monkeypatch.setattr(KernelSpecManager, "get_kernel_spec",
                            lambda self, name, program=program: SimpleNamespace(argv=[program, "-m", "ipykernel"]))
        assert (doctor.kernel().ok is True) is own
    sick(doctor.kernel(), "runs another Python")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert sick(doctor.kernel(), "ipykernel is not installed").ok == "warn"


def test_the_self_test_notices_a_filter_that_is_not_silent(monkeypatch):
    assert doctor.self_test().ok is True
    monkeypatch.setattr("gradprune.pruning.filters.silence", lambda *arguments: None)
    assert sick(doctor.self_test(), "but not silent").ok is False


def test_the_self_test_notices_a_network_that_does_not_learn(monkeypatch):
    monkeypatch.setattr("gradprune.cli.self_test.fit", lambda model, *arguments, **settings: model.eval())
    assert sick(doctor.self_test()).ok is False


def test_it_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["doctor", "--json"])
    with pytest.raises(SystemExit) as end, pytest.warns(RuntimeWarning, match="found in sys.modules"):
        runpy.run_module("gradprune.cli.doctor", run_name="__main__")
    assert end.value.code == (0 if json.loads(capsys.readouterr().out)["ok"] else 1)
