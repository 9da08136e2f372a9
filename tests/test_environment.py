"""environment.yml and pyproject.toml say the same; the package imports quickly and from the bottom up."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from conftest import run

ROOT = Path(__file__).resolve().parents[1]
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "playwright": "playwright-python"}
PIP_ONLY = ["torch-pruning>=1.6"]  # from PyPI, in the conda environment too


def requirement(text):
    name, bound = re.fullmatch(r"([A-Za-z0-9_.-]+)(.*)", text).groups()
    return name.lower(), bound


def test_environment_yml_agrees_with_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {CONDA_NAMES.get(name, name): bound for name, bound in
              map(requirement, project["dependencies"] + extras["notebooks"] + extras["dev"]) if name + bound not in PIP_ONLY}
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    given = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    listed = dict(map(requirement, given))
    assert listed.pop("python") == project["requires-python"]
    listed.pop("pip")
    assert listed == wanted
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    assert environment["dependencies"][-1] == {"pip": [*PIP_ONLY, "-e ."]}
    optional = {*PIP_ONLY, *extras["slim"], *extras["timm"], *extras["export"]}
    assert optional <= set(extras["dev"]), "their tests must run"
    assert not [entry for entry in given if "==" in entry or re.search(r"[^><=]=[^=]", entry)], "ranges, not pins"


def test_every_dependency_is_reviewed_and_what_all_users_install_is_used():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    review = (ROOT / "docs/decisions/dependencies.md").read_text()
    base, *more = ([requirement(line)[0] for line in lines] for lines in
                   (project["dependencies"], *project["optional-dependencies"].values()))
    assert [name for names in (base, *more) for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", review)] == []
    code = "\n".join(path.read_text() for path in (ROOT / "gradprune").rglob("*.py"))
    imported = set(re.findall(r"^\s*(?:import|from) (\w+)", code, re.MULTILINE))
    assert {"PIL" if name == "pillow" else name for name in base} - imported == set()


def test_import_pulls_in_no_plotting():
    """Importing matplotlib, pandas or torchvision would cost more than the 0.3 s that are allowed."""
    code = "import gradprune, sys; print([m for m in ('matplotlib', 'pandas', 'torchvision', 'seaborn', 'IPython', " \
           "'ipywidgets', 'typer', 'torch_pruning', 'onnx', 'onnxruntime') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_front_door_lists_its_rooms_and_opens_them():
    import gradprune
    assert {"pruning", "evaluation", "grad_prune", "load_victim", "__version__"} <= set(dir(gradprune))
    assert gradprune.__getattr__("pruning") is sys.modules["gradprune.pruning"]


def test_help_shows_the_map_that_the_readme_shows():
    import gradprune
    house = re.search(r"    gradprune/\n((?:      .*\n)+)", (ROOT / "README.md").read_text())[1].splitlines()
    printed = run("--help").output
    assert {line.split("/")[0].strip() for line in house} == {
        path.parent.name for path in (ROOT / "gradprune").glob("*/__init__.py")}
    assert [line for line in house if line.strip() not in gradprune.__doc__ or line.strip() not in printed] == []


def test_readme_and_ci_name_the_test_commands():
    for command in ("make test ", "make test-all "):
        assert command in (ROOT / "README.md").read_text()
    assert "\nmake test-all\n" in (ROOT / ".ci/run").read_text()
