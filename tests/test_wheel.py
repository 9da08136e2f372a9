"""What is published is whole: the wheel that comes out of the source archive runs by itself, models and lessons' data in it."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]


def run(*command, cwd, **environment):
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"PYTHONPATH": "", "PYTHONWARNINGS": "ignore"} | environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the unpacked source archive, not from the repository."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    [archive] = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=folder / archive.name[:-7])
    [path] = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_models_and_nothing_of_development(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {path.relative_to(ROOT / "data").as_posix() for path in (ROOT / "data/checkpoints").rglob("*.json")}
    assert shipped and {f"gradprune/_data/{name}" for name in shipped} <= set(names)
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gradprune/views/reports/templates").iterdir()}
    assert templates and templates <= set(names)
    assert {name.split("/")[0] for name in names} <= {"gradprune", names[-1].split("/")[0]}
    assert not [name for name in names if name.split("/")[-1].startswith("test_") or name.endswith((".pyc", ".ipynb"))]
    assert wheel.stat().st_size < 30e6


def test_the_demo_runs_from_the_wheel_in_an_empty_environment(wheel, tmp_path):
    """pip installs the wheel; the packages that it needs are borrowed, as torch alone is 5 GB."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    paths = sysconfig.get_paths(vars={"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")})
    site, programs = Path(paths["purelib"]), Path(paths["scripts"])
    run(sys.executable, "-m", "pip", "--python", programs / "python", "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # .pth files in there are not read
    where = run(programs / "python", "-c", "import gradprune; print(gradprune.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(site), "this is not the wheel's own gradprune"
    told = json.loads(run(programs / "gradprune", "demo", "--json", "--out", tmp_path / "out", cwd=tmp_path).splitlines()[-1])
    assert told["tuned"]["asr"] < 0.2 < 0.9 < told["before"]["asr"]
    needed = run(programs / "python", "-c", "from importlib import metadata as m; print(*m.requires('gradprune'), sep='\\n')", cwd=tmp_path)
    assert "torch>=2.6" in needed.splitlines() and [line for line in needed.splitlines() if "extra == 'notebooks'" in line]
