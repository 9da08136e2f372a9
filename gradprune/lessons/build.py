"""Run the notebooks and write them as pages: `make notebooks`, or `python -m gradprune.lessons.build`.

The pages need no kernel: a panel appears as the picture and the sentence that it showed when the notebook ran.
"""

import argparse
import html
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

from gradprune.base.paths import output_folder, write_atomic

_VIEW, _STATE = "application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json"
# JupyterLab's look, without a script that serves panels alone, and without folded cells that show nothing.
_PAGE = """{% extends "lab/index.html.j2" %}
{% block html_head_js_requirejs %}{% endblock %}
{% block any_cell %}{% if cell.outputs or not cell.metadata.get("jupyter", {}).get("source_hidden") %}{{ super() }}
{%- endif %}{% endblock %}"""
_PATIENCE = 600  # seconds a cell may take before it counts as hung


def main(arguments: list[str] | None = None) -> int:
    """Build all pages, or those of the notebooks named; returns the exit code, 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m gradprune.lessons.build", description="Run the notebooks and "
                                     "write them as HTML pages. GRADPRUNE_MODE chooses the mode, quick by default.")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of notebooks/")
    parser.add_argument("--out", type=Path, default=Path("out/notebooks"))
    options = parser.parse_args(arguments)
    paths = options.notebooks or sorted(Path("notebooks").glob("[0-9][0-9]_*.ipynb"))
    if missing := [str(path) for path in paths if not path.is_file()] or ["notebooks/"] * (not paths):
        print(f"There is no notebook at {', '.join(missing)}; run this in the repository's folder.", file=sys.stderr)
        return 1
    output_folder(options.out)
    failed = [path.name for path in paths if not _build(path, options.out)]
    _write_texts(paths, options.out)
    print(f"FAILED: {', '.join(failed)}" if failed else f"All notebooks ran: open {options.out / 'index.html'}")
    return bool(failed)


def _build(path: Path, out: Path) -> bool:
    """Run one notebook and write its page; on any fault say what and where, and leave no old page behind."""
    page, start = out / f"{path.stem}.html", time.perf_counter()
    page.unlink(missing_ok=True)
    notebook, faults = execute(path)
    seconds = cell_seconds(notebook)
    print(f"{path.stem}: {time.perf_counter() - start:.1f} s with the kernel's start; code cells, in seconds: "
          f"{' '.join(f'{value:.1f}' for value in seconds)} "
          f"(slowest: number {seconds.index(max(seconds)) + 1 if seconds else 0})", flush=True)
    for fault in faults:
        print(f"{path.stem}: {fault}", file=sys.stderr, flush=True)
    if not faults:
        names = {file.stem: file.suffix for file in path.parent.iterdir() if file.suffix in (".ipynb", ".md")}
        _write_page(out, path.stem, notebook, names)
    return not faults


def execute(path: Path) -> tuple[NotebookNode, list[str]]:
    """Run a notebook from its own folder; returns it with its outputs, and what went wrong, nothing if all is well.

    The run neither reads nor changes the learner's progress.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        own = {"GRADPRUNE_MODE": os.environ.get("GRADPRUNE_MODE") or "quick",
               "GRADPRUNE_PROGRESS": str(Path(folder) / "progress.json")}
        client = NotebookClient(notebook, timeout=_PATIENCE, startup_timeout=_PATIENCE,
                                resources={"metadata": {"path": str(path.parent)}},
                                extra_arguments=["--IPKernelApp.log_level=ERROR"])  # not a word on local ports
        try:
            client.execute(env={**os.environ, **own})
        except CellExecutionError as error:
            return notebook, [str(error)]
        except Exception as error:  # a kernel that dies or hangs
            return notebook, [f"the run stopped early: {type(error).__name__}: {error}"]
    return notebook, list(_faults(notebook))


def cell_seconds(notebook: NotebookNode) -> list[float]:
    """How long each code cell took, in order, as far as the run came."""
    begin, end = "iopub.execute_input", "shell.execute_reply"
    stamps = [cell.metadata.get("execution", {}) for cell in notebook.cells if cell.cell_type == "code"]
    return [(datetime.fromisoformat(stamp[end]) - datetime.fromisoformat(stamp[begin])).total_seconds()
            for stamp in stamps if begin in stamp and end in stamp]


def _faults(notebook: NotebookNode) -> Iterator[str]:
    """What a run passes over in silence: errors shown in red inside panels, and images without a description."""
    shown = [(f"code cell {cell.execution_count}", str(output.get("data", {}).get("text/html", "")))
             for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    models = panels(notebook)
    shown += [("a panel", str(model["state"].get("value", ""))) for model in models.values()
              if model["model_name"] == "HTMLModel"]
    for model in models.values():
        for output in model["state"].get("outputs", ()):
            if output.get("output_type") == "error":
                yield f"a panel shows an error: {output.get('ename')}: {output.get('evalue')}"
    for place, text in shown:
        if "gradprune-error" in text:
            yield f"{place} shows an error: {html.unescape(re.sub('<[^>]+>', ' ', text))}"
        if any(not re.search(r'\balt="[^"]+"', image) for image in re.findall(r"<img\b[^>]*>", text)):
            yield f"{place} shows an image without a description (alt)"


# ---- pages


def to_html(notebook: NotebookNode, name: str, names: dict[str, str]) -> str:
    """The page of an executed notebook. names: stem -> suffix of the files that links may lead to."""
    models = panels(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _relink(cell.source, names)
            continue
        for output in cell.outputs:
            if view := output.get("data", {}).get(_VIEW):
                output.data = {"text/html": _still(models, view["model_id"])}
        cell.outputs = [output for output in cell.outputs if output.get("data", {}).get("text/html") != ""]
    notebook.metadata.pop("widgets", None)
    notebook.metadata["title"] = _title("\n".join(cell.source for cell in notebook.cells), name)
    return str(HTMLExporter(raw_template=_PAGE).from_notebook_node(notebook)[0])


def _title(text: str, name: str) -> str:
    """The first heading of a text, or the name where it has none."""
    heading = re.search(r"^# (.+)$", text, re.M)
    return heading[1] if heading else name.replace("_", " ")


def panels(notebook: NotebookNode) -> dict[str, Any]:
    """All panels' parts by id: `model_name` and `state`."""
    return dict(notebook.metadata.get("widgets", {}).get(_STATE, {}).get("state", {}))


def _still(models: dict[str, Any], identity: str) -> str:
    """A panel as it stood when the run ended: texts and pictures as they are, controls by their value."""
    model = models.get(identity)
    if model is None:
        return ""
    kind, state = model["model_name"], model["state"]
    layout = models.get(str(state.get("layout")).removeprefix("IPY_MODEL_"), {"state": {}})
    if layout["state"].get("display") == "none":
        return ""
    if "children" in state:
        parts = [_still(models, child.removeprefix("IPY_MODEL_")) for child in state["children"]]
        return "".join(part for part in parts if part) if "progress-bar" not in parts else ""
    if kind in ("FloatProgressModel", "IntProgressModel"):
        return "progress-bar"  # what a finished bar leaves behind is not worth showing
    if kind in ("HTMLModel", "LabelModel"):
        return f"<div>{state.get('value', '')}</div>" if state.get("value") else ""
    if "gradprune-cells" in state.get("_dom_classes", ()):
        return ""  # places of a picture that answer to a press: they have no face
    options = state.get("_options_labels")
    value = options[state["index"]] if options and state.get("index") is not None else state.get("value", "")
    if kind == "ToggleButtonsModel" and options:
        value = " / ".join(options)
    value = "☐☑"[value] if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else value
    text = " ".join(str(part) for part in (state.get("description"), value) if part not in (None, ""))
    look = "display:inline-block;border:1px solid #c0c5ca;border-radius:4px;padding:0 .5em;margin:.15em;color:#667078"
    return f'<span style="{look}">{html.escape(text)}</span>' if text else ""


def _relink(text: str, names: dict[str, str]) -> str:
    """Let links to other notebooks and texts lead to their pages."""
    def link(found: re.Match[str]) -> str:
        return f"]({found[1]}.html{found[3] or ''})" if names.get(found[1]) == found[2] else found[0]

    return re.sub(r"\]\(([\w-]+)(\.ipynb|\.md)(#[\w-]+)?\)", link, text)


def _write_texts(paths: list[Path], out: Path) -> None:
    """Pages for the texts beside the notebooks, and a list of all pages."""
    texts = sorted({text for path in paths for text in path.parent.glob("*.md")})
    names = {file.stem: file.suffix for file in (*paths, *texts)}
    for text in texts:
        _write_page(out, text.stem, new_notebook(cells=[new_markdown_cell(text.read_text("utf-8"))]), names)
    titles = {page: re.search(r"<title>([^<]+)", page.read_text("utf-8")) for page in sorted(out.glob("*.html"))}
    links = "\n".join(f"- [{found[1] if found else page.stem.replace('_', ' ')}]({page.name})"
                      for page, found in titles.items() if page.stem != "index")
    _write_page(out, "index", new_notebook(cells=[new_markdown_cell(f"# The notebooks, as they ran\n\n{links}")]), {})


def _write_page(out: Path, name: str, notebook: NotebookNode, names: dict[str, str]) -> None:
    page = to_html(notebook, name, names)
    write_atomic(out / f"{name}.html", lambda temporary: temporary.write_text(page, "utf-8"))


if __name__ == "__main__":
    raise SystemExit(main())
