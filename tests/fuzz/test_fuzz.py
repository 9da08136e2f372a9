"""200 spoiled files of every format, and bombs: a right result or one sentence, quickly, in little memory, nothing else.

`make fuzz` takes 2,000 of each; tests/fuzz/run.py says how a case is run again.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
SEED = 0
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="the limits on memory and time are Linux's")]


@pytest.fixture(scope="module")
def told() -> dict[str, dict]:
    done = subprocess.run([sys.executable, HERE / "run.py", "--count", "200", "--seed", str(SEED)], capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines and lines[-1]["format"] == "bombs", done.stderr[-3000:]
    return {line["format"]: line for line in lines}


def names() -> list[str]:
    from formats import FORMATS
    return [*FORMATS, "bombs"]


@pytest.mark.parametrize("name", names())
def test_spoiled_files_are_read_or_refused(told, name, record_property):
    line = told[name]
    record_property("summary", f"fuzz {name}: {line['files']} files, {line['right']} right, {line['refused']} refused, slowest "
                               f"{line['slowest']} s of CPU, {line['memory_mb']} MB at most")
    assert not line["failures"], f"seed {SEED}; run again: python tests/fuzz/run.py {name} --only CASE\n" + "\n".join(
        f"case {failure['case']}, kept in {failure['kept']}: {failure['why']}" for failure in line["failures"])
    assert line["right"] + line["refused"] == line["files"]
    if name != "bombs":
        assert line["right"] >= 1, "the valid file itself is read"
        assert line["refused"] >= 10 or name == "progress", "the mutations reach what is checked"
