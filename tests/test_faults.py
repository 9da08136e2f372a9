"""Faults at every place that writes: afterwards each file is whole or absent, and the same command completes.

TABLE has a row for each place and a column for each fault: the exit code that is expected, or in words which test looks
at it or why it makes no sense. Places and faults are made in faults.py. A restart of a notebook's kernel is "kill".
"""

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refuses, squares, write_npz, write_pictures
from PIL import Image

from gradprune.attacks import fit
from gradprune.bench import read_results
from gradprune.bench.store import _read
from gradprune.cli.jobs import attack_and_save
from gradprune.datasets import Dataset
from gradprune.models import build
from gradprune.models.checkpoints import load_checkpoint
from gradprune.models.weights import read_file
from gradprune.pruning import FilterMask, clean_loss, fine_tune, unpaired
from gradprune.pruning.filters import filters

if sys.platform == "win32":
    pytest.skip("kills with signals and limits the size of files", allow_module_level=True)

from faults import CONTENT, JOBS, KILLED, work

FAULTS = ["kill", "kill in the write", "Ctrl-C", "Ctrl-C in the write", "full disk", "read-only", "clock", "two at once",
          "half a file", "NaN", "memory"]
SAME = "the same command and the same write as in fine-tuning"
NO_NUMBERS = "there is nothing to compute"
TABLE = {job: dict(zip(FAULTS, row, strict=True)) for job, row in {
    "training": [KILLED, KILLED, "test_cli: interrupted_training_keeps_whole_epochs", 130, 2, 2, 0, 0, 0, 2, 2],
    "pruning": [KILLED, SAME, "test_cli: interrupted_defence_keeps_its_stage", SAME, SAME, SAME, SAME, SAME, SAME,
                "test_pruning_rules: scores_are_plain_numbers_and_come_from_batches_of_500; test_cli: weights_that_are_nan; test_scores: gradients_that_are_nan_rank_no", 2],
    "fine-tuning": [KILLED, KILLED, "test_cli: interrupted_defence_keeps_its_stage", 130, 2, 2, 0, 0, 0, 2, 2],
    "zoo build": [KILLED, KILLED, "test_cli: interrupted_zoo_build_names_what_is_finished", 130, 2, 2, 0, 0, 0, 2, 2],
    "download": [KILLED, KILLED, "test_download: ctrl_c_keeps_what_has_arrived", 1,
                 1, 1, 0, "test_published: two_processes_at_once_download_once",
                 "test_download: parts_that_an_earlier_run_left", NO_NUMBERS, 1],
    "conversion": [KILLED, KILLED, 1, "test_published: a_conversion_that_stops_leaves_no_half_file", 1, 1, 0,
                   "test_published: two_processes_at_once_download_once",
                   "test_published: a_damaged_npz_is_not_overwritten, as it may be the user's own", NO_NUMBERS, 1],
    "folder cache": [KILLED, KILLED, 1, 1, 0, 0, 0, 0, 0, NO_NUMBERS, 1],
    "progress file": [KILLED, KILLED, 1, 1, 0, 0, 0, 0, "test_lessons: a_damaged_file_is_set_aside_and_told", NO_NUMBERS,
                      1],
    "lesson's folder": [KILLED, KILLED, 1, 1, 1, 1, 0, 0, "test_own_model_lesson: the_folder_has_what_the_notebook_needs_and_"
                        "keeps_what_is_there, as it may be the reader's own", NO_NUMBERS, 1],
    "bench": [KILLED, KILLED, "test_bench: ctrl_c_tells_what_is_safe", 130, "test_bench: a_full_disk", 2, 0,
              "test_bench: two_runs_on_one_folder", "test_bench: a_damaged_last_row_is_found_and_redone",
              "as any exception, test_bench: a_failed_cell_is_a_row_and_is_run_again", 0],
}.items()}
CASES = [(job, fault) for job, row in TABLE.items() for fault, cell in row.items() if isinstance(cell, int)]


@pytest.fixture(scope="module")
def fresh():
    """Starts processes from one that has the package loaded and has not computed anything: they begin at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "pandas", "pydantic", "torch._dynamo", "gradprune.cli", "gradprune.cli.jobs",
                                    "gradprune.evaluation", "gradprune.lessons.runtime.progress", "faults"])
    return context


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A tiny data set, a tiny victim, and a folder with pictures."""
    path = tmp_path_factory.mktemp("faults")
    write_npz(path / "data.npz", Dataset(squares(48, 1), squares(24, 2), squares(24, 3)))
    attack_and_save(path / "victim", "badnets", data=str(path / "data.npz"), target=1, rate=0.2, epochs=2, seed=1,
                    model={"name": "preact_resnet", "width": 4, "blocks": [1]}, batch_size=16, progress=False)
    write_pictures(path / "pictures", squares(12, 4).images, ["class 0", "class 1"] * 6)
    return path


@pytest.fixture
def run(request, fresh, store):
    """Runs a job with a fault in a process of its own, or several at once; returns exit codes and what they said."""
    def run(job, fault, made, count=1):
        server = request.getfixturevalue("server")
        server.content["/toy.bin"] = CONTENT
        pipes, children = [], []
        for _ in range(count):
            pipe, end = fresh.Pipe(duplex=False)
            children.append(fresh.Process(target=work, args=(end, job, fault, store, made, server.url("/toy.bin"))))
            children[-1].start()
            end.close()
            pipes.append(pipe)
        told = []
        for pipe, child in zip(pipes, children, strict=True):
            try:
                told.append(pipe.recv())
            except EOFError:
                told.append(None)
            child.join(60)
        return [said or (child.exitcode, "") for said, child in zip(told, children, strict=True)]
    return run


def prepare(job, store, made):
    """What stands there before: an older checkpoint of that name, the published file, yesterday's answer."""
    made.mkdir()
    if job in ("training", "pruning", "fine-tuning", "zoo build"):
        for ending in (".safetensors", ".json"):
            shutil.copy(store / f"victim{ending}", made / f"model{ending}")
    elif job == "conversion":
        (made / "toy.bin").write_bytes(CONTENT)
    elif job == "progress file":
        (made / "progress.json").write_text(json.dumps({"answers": {"01.old": 1}, "exercises": {}}))
    return made


def visible(made):
    return [path for path in sorted(made.rglob("*")) if path.is_file() and not path.name.startswith(".")
            and path.suffix not in (".lock", ".part")]


def left(made):
    """What an unfinished write left."""
    return [path.name for path in made.rglob(".*") if not path.name.endswith(".lock")]


def assert_whole(made):
    for path in visible(made):
        if path.suffix == ".safetensors":
            load_checkpoint(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
            assert path.stem in ("bench", "progress") or path.with_suffix(".safetensors").exists()
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                assert all(arrays[name].nbytes for name in ("x_train", "x_all") if name in arrays.files)
        elif path.suffix == ".csv":
            assert _read(path)[1] == 0
        elif path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix == ".pth":
            read_file(path)
        elif path.suffix == ".py":
            compile(path.read_text(), path, "exec")
        else:
            assert path.read_bytes() == CONTENT


def contents(made):
    """Every file's bytes; of a bench the rows without their seconds."""
    found = {path.relative_to(made).as_posix(): path.read_bytes() for path in visible(made)}
    if "cells.csv" in found:
        found["cells.csv"] = read_results(made).drop(columns=["seconds", "cell_seconds"]).to_csv()
    return found


@pytest.fixture(scope="module")
def wanted():
    """The files of each job that nothing disturbed."""
    return {}


@pytest.fixture
def completes(run, store, wanted, tmp_path):
    """Lets the same command run once more, or several at once; afterwards all is as if nothing had disturbed it."""
    def finished(job, made, count=1):
        codes = run(job, "none", made, count)
        assert all(code == 0 for code, _ in codes), codes
        assert_whole(made)
        assert left(made) == []
        return contents(made)

    def completes(job, made, count=1):
        command = JOBS[job][0]
        if command not in wanted:
            wanted[command] = finished(job, prepare(job, store, tmp_path / "undisturbed"))
        assert finished(job, made, count) == wanted[command]
    return completes


@pytest.mark.slow
@pytest.mark.parametrize(("job", "fault"), CASES)
def test_files_are_whole_and_the_same_command_completes(run, store, completes, tmp_path, job, fault):
    made = prepare(job, store, tmp_path / "made")
    if fault == "two at once":
        completes(job, made, count=2)
        return
    if fault == "half a file":
        completes(job, made)
        for path in visible(made):
            path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    else:
        [(code, said)] = run(job, fault, made)
        made.chmod(0o755)
        assert code == TABLE[job][fault], said
        told = said.removeprefix("Out of memory with batches of 64 images; going on with 32.\n")  # the one try that is made
        assert code != 2 or (told.startswith("Error: ") and told.count("\n") == 1), said
        assert_whole(made)
        assert code == KILLED or left(made) == []
    completes(job, made)


@pytest.mark.parametrize("job", ["training", "zoo build"])
def test_weights_and_card_of_different_runs_are_no_pair(run, store, completes, tmp_path, job):
    """Killed when the new weights have their name and the new card does not: the one moment that no rename covers."""
    made = prepare(job, store, tmp_path / "made")
    assert run(job, "kill between two names", made) == [(KILLED, "")]
    refuses("do not match their card", load_checkpoint, made / "model")
    completes(job, made)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte, in memory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    told = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True, check=False) \
        if shutil.which("mount") else None
    if told is None or told.returncode:
        pytest.skip("a small disk cannot be mounted here (not root): a limit on the size of files stands for it")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 1])
@pytest.mark.parametrize("job", [job for job in JOBS if job != "pruning"])
def test_a_disk_that_is_really_full(run, store, completes, small_disk, job, room):
    """room: blocks that are free; with one, some of what belongs together still fits."""
    made, filler = prepare(job, store, small_disk / "made"), small_disk / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(filler, filler.stat().st_size - 4096 * room)
    [(code, said)] = run(job, "none", made)
    assert code == (2 if job == "bench" else TABLE[job]["full disk"]), said
    assert "No space left" in said or code == 0
    assert_whole(made)
    assert left(made) == []
    filler.unlink()
    completes(job, made)


def test_gradients_that_are_nan_in_the_very_last_step_are_told(monkeypatch):
    """No later loss tells of them, and where no trigger is watched the last state is the one that is kept."""
    real = torch.optim.SGD.step

    def spoiled(optimizer, closure=None):
        def spoil():
            value = closure() if closure else None
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.grad.fill_(float("nan"))
            return value
        return real(optimizer, spoil)

    monkeypatch.setattr(torch.optim.SGD, "step", spoiled)
    images, model = squares(16, 1), build("preact_resnet", 4, width=4, blocks=(1,))
    pairs = unpaired(images)
    refuses("fine-tuning diverged: the validation loss became nan", fine_tune, model, FilterMask(filters(model)), pairs,
            pairs, loss=clean_loss, max_epochs=1, progress=False)
    refuses("training diverged: the last step made weights that are not finite", fit,
            build("preact_resnet", 4, width=4, blocks=(1,)), images, epochs=1, progress=False)


def test_the_table_names_tests_that_exist():
    assert set(TABLE) == set(JOBS)
    for text in (cell for row in TABLE.values() for cell in row.values() if isinstance(cell, str)):
        for file, names in re.findall(r"(test_\w+): (\w+)", text):
            assert f"def test_{names}(" in next(Path(__file__).parent.rglob(f"{file}.py")).read_text(encoding="utf-8"), text
