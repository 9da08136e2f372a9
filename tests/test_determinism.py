"""Same seed, same machine, same number of threads: the same bytes, whatever else differs between two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradprune.bench import read_results

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """Everything done in two fresh processes with other hash seeds and other states of the global random numbers."""
    folders = []
    for noise in (1, 2):
        folders.append(tmp_path_factory.mktemp("work"))
        script = Path(__file__).with_name("work_for_bytes.py")
        done = subprocess.run([sys.executable, str(script), str(folders[-1]), str(noise)], capture_output=True, text=True,
                              env={**os.environ, "PYTHONHASHSEED": str(noise)})
        assert done.returncode == 0, done.stderr[-2000:]
    return folders


def test_checkpoints_cards_and_pages_are_the_same_to_the_byte(twice):
    one, two = ({path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*")
                 if path.is_file() and path.name not in ("cells.csv", "told.json") and "cache" not in path.parts}
                for folder in twice)
    assert {"badnets.safetensors", "badnets.json", "low_frequency.safetensors", "cleaned.json", "verified.json",
            "bench/bench.json", "scan/scan.html"} <= set(one)
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


def test_signs_pictures_and_every_defence_are_the_same(twice):
    one, two = (json.loads((folder / "told.json").read_text()) for folder in twice)
    assert [name for name in one if one[name] != two[name]] == []


def test_a_bench_has_the_same_rows_but_for_the_seconds(twice):
    one, two = (read_results(folder / "bench").drop(columns=["seconds", "cell_seconds"]) for folder in twice)
    assert len(one) == 2 and (one.error == "").all()
    assert one.to_csv() == two.to_csv()
