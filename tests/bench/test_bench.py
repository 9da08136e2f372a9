"""The bench: every cell once, kept whatever happens, the same wherever it runs."""

import contextlib
import csv
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import psutil
import pytest
from conftest import refuses, write_npz
from filelock import FileLock

from gradprune import defenses
from gradprune.base.errors import InputError
from gradprune.bench import Cell, Grid, executors, read_results, run, runner
from gradprune.bench.cells import COLUMNS, empty_row
from gradprune.bench.store import Store
from gradprune.cli.jobs import attack_and_save
from gradprune.defenses import clp, ft_unlearn
from gradprune.evaluation import der, evaluate
from gradprune.victims import load_victim

TIMES = ["seconds", "cell_seconds"]


@pytest.fixture(scope="module")
def toys(tmp_path_factory, data):
    """Two tiny victims with their data, as checkpoint paths."""
    folder = tmp_path_factory.mktemp("toys")
    write_npz(folder / "data.npz", data)
    for name, trigger in {"sticker": "badnets", "wave": "sig"}.items():
        attack_and_save(folder / name, trigger, data=str(folder / "data.npz"), target=1, rate=0.15, epochs=2,
                        model={"name": "preact_resnet", "width": 8, "blocks": [1]}, batch_size=32, shift=1, seed=1,
                        progress=False)
    return [str(folder / "sticker"), str(folder / "wave")]


@pytest.fixture(scope="module")
def small(toys):
    return Grid(toys, ["clp", "ft_unlearn"], [2], 1)


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """The folder of `small`, run in one process."""
    folder = tmp_path_factory.mktemp("finished") / "bench"
    run(small, folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def serial(finished):
    return read_results(finished)


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of the finished folder, to be spoiled."""
    return shutil.copytree(finished, tmp_path / "bench")


def same(table, other):
    return table.drop(columns=TIMES).equals(other.drop(columns=TIMES))


def command(toys, out, *more):
    return [sys.executable, "-m", "gradprune", "bench", "--attacks", ",".join(toys), "--defenses", "clp,grad_prune",
            "--spc", "2", "--seeds", "3", "--out", str(out), *more]


def rows_in(out):
    table = out / "cells.csv"
    return table.read_bytes().count(b"\n") - 1 if table.exists() else 0


def wait_for(condition, process=None, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and (process is None or process.poll() is None), "it never came"
        time.sleep(0.01)


# --- what a row says ---


def test_a_row_is_what_the_defence_and_the_metrics_say(toys, serial):
    assert list(serial.columns) == list(COLUMNS)
    assert [tuple(row) for row in serial[["attack", "defense", "spc", "seed"]].itertuples(index=False)] == \
        [Cell(attack, method, 2, 0) for attack in toys for method in ("clp", "ft_unlearn")]
    assert (serial.error == "").all() and (serial.threads == 1).all() and (serial.cell_seconds >= serial.seconds).all()
    for attack in toys:
        victim = load_victim(attack)
        before = evaluate(victim.model, victim.data.test, victim.trigger, victim.target)
        for method in (clp, ft_unlearn):
            result = method(victim.model, victim.data.defense, victim.trigger, spc=2, seed=0, progress=False)
            after = evaluate(result.model, victim.data.test, victim.trigger, victim.target)
            row = serial[(serial.attack == attack) & (serial.defense == method.__name__)].iloc[0]
            assert (row.acc_before, row.asr_before, row.ra_before) == pytest.approx(before, abs=1e-6)
            assert (row.acc, row.asr, row.ra) == pytest.approx(after, abs=1e-6)
            assert row.der == pytest.approx(der(before, after), abs=1e-6)
            assert row.filters_removed == len(result.mask.positions) and row.filters == len(result.mask.filters)


def test_the_pruned_state_is_measured_where_there_is_one(toys):
    table = run(Grid(toys[:1], ["grad_prune", "clp"], [2], 1), progress=False).set_index("defense")
    assert table.loc["grad_prune", ["pruned_acc", "pruned_asr", "pruned_ra"]].notna().all()
    assert table.loc["clp", ["pruned_acc", "pruned_asr", "pruned_ra"]].isna().all()


def test_a_failed_cell_is_a_row_and_is_run_again(toys, tmp_path, monkeypatch):
    def broken(*_, seed, **__):
        raise ValueError("two\nlines, and a comma")
    monkeypatch.setitem(defenses.DEFENSES, "clp", broken)
    table = run(Grid(toys[:1], ["clp", "ft_unlearn"], [2], 1), tmp_path, progress=False).set_index("defense")
    assert table.loc["clp", "error"] == "ValueError: two lines, and a comma"
    assert table.loc["clp", ["acc", "asr", "ra", "der", "seconds"]].isna().all()
    assert table.loc["ft_unlearn", "error"] == "" and table.loc["ft_unlearn", "acc"] > 0
    monkeypatch.undo()
    again = run(Grid(toys[:1], ["clp", "ft_unlearn"], [2], 1), tmp_path, progress=False).set_index("defense")
    assert again.loc["clp", "error"] == "" and again.loc["clp", "acc"] > 0
    assert again.loc["ft_unlearn", "seconds"] == table.loc["ft_unlearn", "seconds"], "a good row was made again"
    assert len(read_results(tmp_path)) == 2


# --- nothing is lost ---


@pytest.mark.slow
def test_two_runs_on_one_folder(toys, tmp_path):
    """The first run is paused, so that it works in the folder while the second begins, and then killed."""
    first = subprocess.Popen(command(toys, tmp_path, "--workers", "2"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_for(lambda: rows_in(tmp_path) >= 2, first)
    workers = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGSTOP)
    grid = Grid(toys, ["clp", "grad_prune"], [2], 3)
    refuses("another run is working in", run, grid, tmp_path, progress=False)
    first.kill()
    first.wait()
    assert not psutil.wait_procs(workers, timeout=30)[1], "the workers outlive the run"
    kept = read_results(tmp_path)
    assert 2 <= len(kept) < 12
    table = run(grid, tmp_path, progress=False)
    assert len(table) == 12 and (table.error == "").all()
    assert len(kept.merge(table, on=list(COLUMNS))) == len(kept), "rows were made again"  # seconds included
    with open(tmp_path / "cells.csv", newline="") as file:
        assert len(list(csv.reader(file))) == 13


@pytest.mark.parametrize("damage", ["torn", "flipped", "no newline", "garbage"])
def test_a_damaged_last_row_is_found_and_redone(small, serial, folder, damage, capsys):
    table = folder / "cells.csv"
    whole = table.read_bytes()
    table.write_bytes({"torn": whole[:-40], "flipped": whole[:-80] + b"9" + whole[-79:], "no newline": whole[:-1],
                       "garbage": whole + b"\xff\xfe\x00,,,\n"}[damage])
    assert len(read_results(folder)) == (4 if damage in ("no newline", "garbage") else 3)
    again = run(small, folder, progress=False)
    assert same(again, serial)
    assert again[:3].equals(serial[:3]), "whole rows were made again"
    assert ("damaged" in capsys.readouterr().out) == (damage != "no newline")
    assert len(table.read_bytes().splitlines()) == 5, "the damaged line is still there"


def test_lines_that_git_or_an_editor_ended_the_windows_way_are_read(small, serial, folder):
    table = folder / "cells.csv"
    table.write_bytes(table.read_bytes().replace(b"\n", b"\r\n"))
    assert same(read_results(folder), serial)
    assert run(small, folder, progress=False).equals(serial), "rows were made again"


def test_a_grid_takes_numpys_numbers_paths_and_single_values(toys):
    grid = Grid([Path(toys[0])], np.array(["clp"]), spc=np.int64(2), seeds=np.arange(2))
    assert grid == Grid(toys[:1], ["clp"], [2], 2)
    assert (run(grid, progress=False).error == "").all()
    refuses("the grid is empty", Grid, [])


def test_a_large_seed_is_kept(toys, tmp_path):
    assert len(run(Grid(toys[:1], ["clp"], [2], [2**62]), tmp_path, progress=False)) == len(read_results(tmp_path)) == 1


@pytest.mark.parametrize("begun", [b"", b"attack,def"])
def test_the_first_row_after_a_torn_beginning_is_no_header(tmp_path, begun):
    with Store(tmp_path, {}):
        (tmp_path / "cells.csv").write_bytes(begun)
    with Store(tmp_path, {}) as store:
        store.add(empty_row(Cell("a", "clp", 2, 0)))
    assert len(read_results(tmp_path)) == 1


def test_rows_of_other_cells_stay(toys, tmp_path):
    run(Grid(toys[:1], ["clp"], [2], 2), tmp_path, progress=False)
    table = run(Grid(toys[:1], ["clp"], [3], 1), tmp_path, progress=False)
    assert len(table) == 1 and len(read_results(tmp_path)) == 3


def test_a_disk_that_knows_no_locks(tmp_path, monkeypatch):
    error = NotImplementedError("FileSystem does not appear to support flock")
    monkeypatch.setattr(FileLock, "_acquire", mock.Mock(side_effect=error))
    with pytest.raises(InputError, match=r"\.lock cannot be locked: FileSystem does not appear to support flock\."), \
            Store(tmp_path, {}):
        pass


def test_a_full_disk(small, serial, finished, tmp_path):
    """The file may grow to a size in the middle of the third row, then every write fails, as on a full disk."""
    lines = (finished / "cells.csv").read_bytes().splitlines(keepends=True)
    limit = sum(map(len, lines[:3])) + 50
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        refuses(r"Cannot write to .*cells.csv: .*\. 2 of 4 cells are done and safe", run, small, tmp_path / "full",
                progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "full" / "cells.csv").read_bytes().endswith(b"\n") and len(read_results(tmp_path / "full")) == 2
    assert same(run(small, tmp_path / "full", progress=False), serial)


def test_ctrl_c_tells_what_is_safe(toys, tmp_path):
    process = subprocess.Popen(command(toys, tmp_path, "--workers", "2"), stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # nohup ignores it
    wait_for(lambda: rows_in(tmp_path) >= 2, process)
    process.send_signal(signal.SIGINT)
    assert "cells are done and safe in" in process.communicate()[1]
    assert process.returncode == 130 and len(read_results(tmp_path)) >= 2


# --- the same wherever it runs ---


@pytest.fixture
def after_the_first_row(monkeypatch):
    """Calls a function in the middle of a run, between the rows that an executor of this name gives."""
    def strike(name, function):
        executor = getattr(executors, name)

        def struck(*arguments):
            for number, row in enumerate(executor(*arguments)):
                yield row
                if not number:
                    function()
        monkeypatch.setattr(runner, name, struck)
    return strike


def test_workers_of_which_one_dies_give_the_rows_of_a_serial_run(small, serial, after_the_first_row):
    def kill():
        workers = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
        assert len(workers) == 2
        workers[0].kill()
        with contextlib.suppress(ChildProcessError):  # the pool has collected it; if this did, the pool would wait for ever
            os.waitid(os.P_PID, workers[0].pid, os.WEXITED | os.WNOWAIT)
    after_the_first_row("processes", kill)
    assert same(run(small, workers=2, progress=False), serial)


@pytest.fixture
def from_script(tmp_path, monkeypatch):
    """Makes workers begin as those of a script with this text do."""
    def from_script(text):
        main = ModuleType("__main__")
        main.__file__ = str(tmp_path / "script.py")
        (tmp_path / "script.py").write_text(text)
        monkeypatch.setitem(sys.modules, "__main__", main)
    return from_script


@pytest.mark.slow
def test_a_cell_that_kills_its_worker_becomes_a_failed_row(toys, from_script, monkeypatch):
    monkeypatch.setitem(defenses.DEFENSES, "deadly", None)
    from_script("import os\nfrom gradprune import defenses\ndefenses.DEFENSES['deadly'] = lambda *_, **__: os._exit(1)\n")
    table = run(Grid(toys[:1], ["clp", "deadly"], [2], 1), workers=2, progress=False)
    assert table.error.tolist() == ["", "its worker process died twice (out of memory?)"]


@pytest.mark.slow
def test_a_script_without_a_guard_is_told(toys, from_script):
    grid = Grid(toys[:1], ["clp"], [2], 2)
    from_script(f"from gradprune.bench import Grid, run\nrun({grid!r}, workers=2)")
    refuses(r"under `if __name__ == '__main__':`\.", run, grid, workers=2, progress=False)


@pytest.mark.slow
def test_a_cluster_with_a_dying_worker(small, serial, after_the_first_row):
    """Two worker processes, one of them killed in the middle: the same rows as a serial run."""
    distributed = pytest.importorskip("distributed", reason="dask is in the extra `cluster`")
    with mock.patch.dict(os.environ), distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True,
                                                               dashboard_address=None, scheduler_port=0) as local:
        # Its workers' settings land in this process's environment: glibc's trim threshold made every later child 2.4 x as slow.
        after_the_first_row("cluster", lambda: os.kill(next(iter(local.workers.values())).pid, signal.SIGKILL))
        assert same(run(small, scheduler=local.scheduler_address, progress=False), serial)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nobody listens", "silence", "no address"])
def test_an_unreachable_scheduler(small, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(executors, "SCHEDULER_SECONDS", 1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if kind == "silence":
            listener.listen()
        address = "what://is this" if kind == "no address" else f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        refuses("no dask scheduler answers at", run, small, tmp_path / "out", scheduler=address, progress=False)
    assert not (tmp_path / "out").exists()


# --- refused before any work ---


@pytest.mark.parametrize(("settings", "words"), [
    ({"defenses": ["clpp"]}, "Unknown defence 'clpp'; did you mean clp"),
    ({"attacks": ["badnet"]}, "Unknown checkpoint 'badnet'; did you mean badnets"),
    ({"defenses": []}, "the grid is empty: defenses names nothing"),
    ({"attacks": []}, "the grid is empty: attacks names nothing"),
    ({"spc": []}, "the grid is empty: spc names nothing"),
    ({"seeds": 0}, "seeds must be at least 1, got 0"),
    ({"seeds": [-1]}, "seeds must not be negative, got -1"),
    ({"spc": [0]}, "spc .* must be at least 1, got 0"),
    ({"spc": "2"}, "spc must be whole numbers, got '2'"),
    ({"seeds": 3.0}, "seeds must be whole numbers, got 3.0"),
    ({"spc": [2, 500]}, "spc=500 needs 500 images of each class"),
])
def test_bad_grids(toys, tmp_path, settings, words, monkeypatch):
    monkeypatch.setattr(runner, "serial", lambda _: pytest.fail("work began"))
    refuses(words, lambda: run(Grid(**{"attacks": toys, "defenses": ["clp"], "spc": [2], "seeds": 1, **settings}), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_dask_is_an_extra(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed.comm.core", None)
    refuses(r"--scheduler needs dask: pip install 'gradprune\[cluster\]'", run, small, scheduler="tcp://127.0.0.1:1")


def test_bad_ways_to_run(small, tmp_path):
    refuses("workers must be at least 1, got 0", run, small, workers=0)
    refuses("either workers or a scheduler", run, small, workers=2, scheduler="tcp://127.0.0.1:1")


@pytest.mark.parametrize(("change", "words"), [
    ({"gradprune": "0.0.9"}, "gradprune 0.0.9 there, "), ({"torch": "1.0"}, "torch 1.0 there, "),
    ({"format": 99}, "format 99 there, 1 here"), ("other weights", "the weights of"), ("{", "cannot be read"),
    (None, "holds no bench"), ("[1]", "does not say what made"),
])
def test_a_folder_that_another_version_made(small, toys, folder, change, words):
    facts = folder / "bench.json"
    told = json.loads(facts.read_text())
    facts.unlink()
    if change is not None:
        change = {"checkpoints": {toys[0]: "0" * 64}} if change == "other weights" else change
        facts.write_text(change if isinstance(change, str) else json.dumps(told | change))
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}
    refuses(words, run, small, folder, progress=False)
    assert before == {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}


def test_a_folder_without_a_bench(tmp_path):
    refuses("holds no bench", read_results, tmp_path)


# --- the pairing of attacks and defences, for real ---


@pytest.mark.slow
def test_a_small_real_grid(tmp_path, record_property):
    """A shipped model, two defences."""
    table = run(Grid(["blended"], ["grad_prune", "ft_unlearn"], [2], 1), tmp_path, progress=False)
    assert (table.error == "").all() and len(table) == 2
    assert (table.asr_before > 0.9).all() and (table.asr < 0.2).all() and (table.acc > 0.9).all()
    for row in table.itertuples():
        record_property("summary", f"{row.attack}, {row.defense}, spc 2: ACC {row.acc:.1%} ASR {row.asr:.1%} RA {row.ra:.1%}")
