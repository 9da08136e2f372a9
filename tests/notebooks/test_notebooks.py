"""Every notebook: its format, its stubs and solutions."""

import ast
import base64
import io
import re

import harness
import nbformat
import pytest
from harness import FOLDER, NOTEBOOKS, own_environment, tagged, tags  # noqa: F401
from PIL import Image, ImageChops

import gradprune
from gradprune.lessons import CheckFailed
from gradprune.lessons.runtime import start
from gradprune.lessons.runtime.check import EXERCISES
from gradprune.lessons.runtime.restart_points import POINTS

PANELS = ("FilterExplorer", "TriggerStudio", "PruningPlayer", "BeatGradPrune", "DefenceComparer", "ScanExplorer", "OneNeuron", "RepairPanel")
TAGS = {"setup", "exercise", "restart", "widget"}

QUICK = "02_see_the_filters"  # the one that `make test` runs
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
each_run = pytest.mark.parametrize("path", [  # in those without an exercise there is nothing to solve: the browser tests run them
    pytest.param(path, id=path.stem, marks=() if path.stem == QUICK else pytest.mark.slow)
    for path in NOTEBOOKS if tagged(harness.read(path), "exercise")])


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def python(source):
    """A cell as plain Python: lines that are magics become `pass`."""
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.M)


def calls(notebook, name):
    """All calls of a function: the code cell's place, and the constants among the arguments."""
    found = []
    for place, cell in enumerate(code(notebook)):
        for node in ast.walk(ast.parse(python(cell.source))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                found.append((place, [arg.value for arg in node.args if isinstance(arg, ast.Constant)]))
    return found


# ---- format


@each_notebook
def test_the_file_is_clean(path):
    notebook = harness.read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    identities = [cell.get("id") for cell in notebook.cells]
    assert all(identities) and len(set(identities)) == len(identities)
    stored = [cell.id for cell in code(notebook) if cell.outputs or cell.execution_count is not None]
    assert not stored, f"stored outputs in {stored}: they spoil the predictions"
    assert "widgets" not in notebook.metadata
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"(?:/home/|/Users/|/work/|/tmp/|[A-Z]:\\\\)\w*", text)
    assert not found, f"machine paths: {found}"


@each_notebook
def test_sizes(path):
    notebook = harness.read(path)
    cells, number = code(notebook), path.stem[:2]
    least, most = {"00": (1, 12), "07": (1, 20), "08": (1, 20)}.get(number, (12, 20))  # a tour, panels, two long exercises
    assert least <= len(cells) <= most, f"{len(cells)} code cells, {least} to {most} are meant to be"
    assert harness.words(notebook) <= 1200, f"{harness.words(notebook)} words of Markdown"
    for cell in cells:
        lines = cell.source.splitlines()
        hidden = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        assert hidden or len(lines) <= 15, f"{len(lines)} lines:\n{cell.source}"
        assert all(len(line) <= 110 for line in lines), f"a line over 110 characters:\n{cell.source}"
        panel = "widget" in tags(cell) or any(f"{name}(" in cell.source for name in PANELS)
        assert not panel or len(lines) <= 3, f"a widget's cell of more than 3 lines:\n{cell.source}"
        assert set(tags(cell)) <= TAGS, f"unknown tags {tags(cell)}"


@each_notebook
def test_the_opening_says_what_is_needed(path):
    opening = harness.read(path).cells[0]
    assert opening.cell_type == "markdown"
    assert re.match(rf"# {path.stem[:2]}\b", opening.source), "the title begins with the number"
    for word in ("You will be able to", "Needs", "Time", "Previous", "Next", "Glossary"):
        assert word in opening.source, f"the opening lacks {word!r}"
    assert re.search(r"\d+ minutes", opening.source)


@each_notebook
def test_links_lead_somewhere(path):
    for cell in harness.read(path).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)\s]+)\)", cell.source):
                if re.match(r"https?://", target):
                    continue
                if target.startswith("attachment:"):
                    assert target.removeprefix("attachment:") in cell.attachments
                    continue
                file, _, anchor = target.partition("#")
                linked = FOLDER / file if file else path
                assert linked.exists(), f"{target} is not there"
                if anchor and linked.suffix == ".md":
                    marked = re.findall(r'^#+ <a id="([^"]+)"></a>\w', linked.read_text(encoding="utf-8"), re.M)
                    assert anchor in marked, f"{target}: no such heading (JupyterLab does not make the names that GitHub makes)"


@each_notebook
def test_the_setup_comes_first(path):
    notebook = harness.read(path)
    setup = tagged(notebook, "setup")
    assert setup, "no cell is tagged `setup`"
    assert notebook.cells[setup[-1]].source.rstrip().endswith(f'begin("{path.stem[:2]}")')
    assert all("setup" in tags(cell) for cell in code(notebook)[: len(setup)])


@each_notebook
def test_no_algorithm_is_written_anew(path):
    notebook = harness.read(path)
    public = set(gradprune.__all__) | {name for room in ("attacks", "pruning", "evaluation", "models", "datasets")
                                       for name in __import__(f"gradprune.{room}", fromlist=["x"]).__all__}
    for cell in code(notebook):
        if "exercise" not in tags(cell):
            written = [node.name for node in ast.walk(ast.parse(python(cell.source)))
                       if isinstance(node, ast.FunctionDef | ast.ClassDef)]
            assert not set(written) & public, f"{written} are to be imported from gradprune"


@each_notebook
def test_each_prediction_is_revealed_once_and_later(path):
    notebook, number = harness.read(path), path.stem[:2]
    asked, revealed = ({call[0]: place for place, call in calls(notebook, name)} for name in ("predict", "reveal"))
    assert asked.keys() == revealed.keys(), f"asked {list(asked)}, revealed {list(revealed)}"
    assert len(asked) == len(calls(notebook, "predict")), "a key is used twice"
    assert all(asked[key] < revealed[key] and key.startswith(f"{number}.") for key in asked)


@each_notebook
def test_restart_points_are_known(path):
    notebook, number = harness.read(path), path.stem[:2]
    for place in tagged(notebook, "restart"):
        names = re.findall(r'checkpoint\("([^"]+)"\)', notebook.cells[place].source)
        assert names, "a restart cell calls checkpoint"
        assert all(name in POINTS and name.startswith(f"{number}_") for name in names)
        before = notebook.cells[place - 1]
        headings = re.findall(r"^## .*", before.source, re.M)
        assert before.cell_type == "markdown" and headings[-1].startswith("## ↻ "), "a heading shows where to go on"
        assert notebook.cells[place].source.startswith("# ↻ Restart point: ")
    shown = [cell.source for cell in notebook.cells if cell.cell_type == "markdown" and "## ↻" in cell.source]
    assert len(shown) == len(tagged(notebook, "restart")), "a heading with ↻ and no restart cell after it"
    outside = [cell.source for cell in code(notebook) if "checkpoint(" in cell.source and "restart" not in tags(cell)
               and "load_checkpoint(" not in cell.source]
    assert not outside, f"not tagged `restart`: {outside}"


def test_the_first_picture_of_the_series_is_what_the_package_draws():
    story = next(cell for cell in harness.read(FOLDER / "00_start_here.ipynb").cells if cell.get("attachments"))
    stored = Image.open(io.BytesIO(base64.b64decode(story.attachments["stop.png"]["image/png"])))
    assert ImageChops.difference(stored.convert("RGB"), start.story()).getbbox() is None


# ---- exercises


@each_notebook
def test_exercises_have_stub_check_and_three_folds(path):
    notebook, number = harness.read(path), path.stem[:2]
    places = tagged(notebook, "exercise")
    names = []
    for place in places:
        cell = notebook.cells[place]
        line = harness.check_line(cell.source)
        assert line is not None, f"an exercise ends in `name = check.name(name)`:\n{cell.source}"
        names.append(re.match(r"\w+ = check\.(\w+)", cell.source.splitlines()[line])[1])
        assert harness.solution(notebook, place), "the cell after an exercise holds its solution"
        assert {"hint", "bigger hint", "solution"} <= set(harness.folds(notebook.cells[place + 1]))
    assert sorted(names) == sorted(name for name, exercise in EXERCISES.items() if exercise.notebook == number)
    used = [cell.id for cell in code(notebook) if re.search(r"\bcheck\.\w", cell.source) and "exercise" not in tags(cell)]
    assert not used, f"not tagged `exercise`: {used}"


@each_notebook
def test_untouched_stubs_fail_strict_mode(path, monkeypatch):
    notebook = harness.read(path)
    monkeypatch.setenv("GRADPRUNE_STRICT", "1")
    for place in tagged(notebook, "exercise"):
        names: dict = {}
        for index in tagged(notebook, "setup"):
            exec(python(notebook.cells[index].source), names)
        with pytest.raises(CheckFailed, match="untouched"):
            exec(notebook.cells[place].source, names)


# ---- runs


@each_run
def test_solutions_pass_strict_mode_from_each_restart_point(path, tmp_path, monkeypatch, record_property):
    """In the mode that learners use, all names forgotten at each restart point. Times are told, not judged."""
    monkeypatch.setenv("GRADPRUNE_STRICT", "1")
    monkeypatch.setenv("GRADPRUNE_MODE", "quick")
    outcome = harness.run(harness.with_restarts(harness.with_solutions(harness.read(path))), tmp_path)
    record_property("summary", harness.times(path.stem, outcome))
    if outcome.faults:
        pytest.fail("\n".join(outcome.faults), pytrace=False)


def test_there_are_notebooks():
    assert NOTEBOOKS, "notebooks/ holds no NN_name.ipynb"
