"""Read a notebook, swap solutions in, go in at restart points, run it in a kernel of its own, and find all that is wrong."""

import copy
import os
import re
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from gradprune.lessons import build

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
_FOLD = re.compile(r"<details>\s*<summary>(.*?)</summary>(.*?)</details>", re.S)
_FENCE = re.compile(r"```python\n(.*?)```", re.S)


class Run(NamedTuple):
    """An executed notebook, the seconds of each code cell, and every fault that was found."""

    notebook: NotebookNode
    seconds: list[float]
    faults: list[str]


@pytest.fixture(autouse=True)
def own_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADPRUNE_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.delenv("GRADPRUNE_STRICT", raising=False)
    if "OMP_NUM_THREADS" not in os.environ:  # two threads that wait for a busy core made a cell 20 x as slow
        monkeypatch.setenv("OMP_NUM_THREADS", "1")


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def tagged(notebook: NotebookNode, tag: str) -> list[int]:
    return [place for place, cell in enumerate(notebook.cells) if cell.cell_type == "code" and tag in tags(cell)]


def folds(cell: NotebookNode) -> dict[str, str]:
    """The `<details>` of a Markdown cell: lower-case title -> content."""
    return {title.strip().lower(): body for title, body in _FOLD.findall(cell.source)}


def solution(notebook: NotebookNode, exercise: int) -> str | None:
    """The solution's code in the Markdown cell right after an exercise."""
    after = notebook.cells[exercise + 1] if exercise + 1 < len(notebook.cells) else None
    if after is None or after.cell_type != "markdown":
        return None
    code = _FENCE.findall(folds(after).get("solution", ""))
    return code[0].strip() if code else None


def check_line(source: str) -> int | None:
    """The line from which an exercise cell is kept when its solution is swapped in."""
    return next((place for place, line in enumerate(source.splitlines())
                 if re.match(r"(\w+) = check\.(\w+)\(", line)), None)


def with_solutions(notebook: NotebookNode) -> NotebookNode:
    """Each stub replaced by the solution that its `<details>` shows."""
    notebook = copy.deepcopy(notebook)
    for place in tagged(notebook, "exercise"):
        cell, right = notebook.cells[place], solution(notebook, place)
        assert right is not None, f"exercise cell {place} has no solution right after it"
        kept = cell.source.splitlines()[check_line(cell.source):]
        cell.source = "\n".join([right, "", *kept])
    return notebook


def with_restarts(notebook: NotebookNode) -> NotebookNode:
    """The notebook in pieces that begin at the top and at each restart cell; before each all names are forgotten.

    So every cell runs once, with no more names than a learner has who goes in at the restart point before it. That it
    also runs in one go, with nothing attempted, is what the browser tests show.
    """
    places = tagged(notebook, "restart")
    cells = list(notebook.cells[:(places or [None])[0]])
    for place, end in zip(places, [*places, None][1:], strict=True):
        setup = [notebook.cells[index] for index in tagged(notebook, "setup") if index < place]
        cells += [new_code_cell("%reset -f"), *setup, *notebook.cells[place:end]]
    longer = copy.deepcopy(notebook)
    longer.cells = [copy.deepcopy(cell) for cell in cells]
    for number, cell in enumerate(longer.cells):
        cell["id"] = f"cell-{number}"
    return longer


def run(notebook: NotebookNode, folder: Path) -> Run:
    """Execute in a fresh kernel, in a folder that is not the repository; the environment says mode and strictness."""
    path = folder / "notebook.ipynb"
    nbformat.write(notebook, path)
    executed, faults = build.execute(path)
    found = [*faults, *swallowed(executed)]
    return Run(executed, build.cell_seconds(executed), [re.sub(r"\x1b\[[\d;]*m", "", fault) for fault in found])


def swallowed(notebook: NotebookNode) -> list[str]:
    """Tracebacks that a run passes over: on stderr, in HTML and in widgets."""
    shown = [(f"cell {place}", str(output)) for place, cell in enumerate(notebook.cells) for output in cell.get("outputs", [])]
    shown += [("a widget", str(model["state"])) for model in build.panels(notebook).values()]
    return [f"{place} shows an error: {text[-500:]}" for place, text in shown if "Traceback (most recent call last)" in text]


def words(notebook: NotebookNode) -> int:
    """Words of prose: Markdown without code blocks, tags and link targets."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    text = re.sub(r"```.*?```|<[^>]+>|\]\([^)]*\)|\$\$.*?\$\$", " ", text, flags=re.S)
    return len(re.findall(r"[^\W_][\w'’-]*", text))


def times(name: str, run: Run) -> str:
    """One line on how long each code cell took."""
    cells = " ".join(f"{seconds:.1f}" for seconds in run.seconds)
    return f"{name}: {sum(run.seconds):.1f} s in {len(run.seconds)} cells (budget 90 s, 20 s a cell): {cells}"
