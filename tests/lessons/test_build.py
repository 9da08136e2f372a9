"""`make notebooks`: pages that need no kernel, and loud failure for whatever a run passes over."""

import nbformat
import pytest
from conftest import holds
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from gradprune.lessons import build

VIEW, STATE = "application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json"


def notebook(*cells, models=None):
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    if models:
        metadata["widgets"] = {STATE: {"state": models}}
    return new_notebook(cells=list(cells), metadata=metadata)


def cell(**data):
    return new_code_cell("1", outputs=[new_output("display_data", data)], execution_count=1)


def model(kind, **state):
    return {"model_name": f"{kind}Model", "state": state}


PANEL = {
    "box": model("VBox", children=["IPY_MODEL_round", "IPY_MODEL_play", "IPY_MODEL_picture", "IPY_MODEL_none", "IPY_MODEL_switch",
                                  "IPY_MODEL_knob", "IPY_MODEL_spare", "IPY_MODEL_gone"]),
    "round": model("IntSlider", description="Round", value=3),
    "play": model("Play", description="Play", value=3),
    "picture": model("HTML", value='<img alt="ASR fell" src="data:,"> ASR fell.'),
    "none": model("HTML", value=""),
    "switch": model("Checkbox", description="Show a decoy", value=True),
    "knob": model("FloatSlider", description="Size", value=5.0, layout="IPY_MODEL_plain"),
    "plain": model("Layout", width="410px"),
    "spare": model("FloatSlider", description="Spare knob", value=1.0, layout="IPY_MODEL_hidden"),
    "hidden": model("Layout", display="none"),
    "bar": model("HBox", children=["IPY_MODEL_progress", "IPY_MODEL_picture"]),
    "progress": model("FloatProgress", value=1.0),
    "radio": model("ToggleButtons", description="", index=None, _options_labels=["it <stays>", "it goes"]),
}


def test_a_page_shows_panels_at_rest_and_links_to_pages():
    views = [cell(**{VIEW: {"model_id": name}, "text/plain": "VBox()"}) for name in ("box", "bar", "radio")]
    text = "# 03 · Title <&\n[a](02_a.ipynb) [g](GLOSSARY.md#asr) [lost](99_x.ipynb) [web](https://x.org/a.md)"
    folded = new_code_cell("only_for_the_machine()", metadata={"jupyter": {"source_hidden": True}})
    page = build.to_html(notebook(new_markdown_cell(text), folded, *views, models=PANEL), "03", {"02_a": ".ipynb", "GLOSSARY": ".md"})
    assert holds(page, 'href="02_a.html"', 'href="GLOSSARY.html#asr"', 'href="99_x.ipynb"', 'href="https://x.org/a.md"')
    assert page.count('alt="ASR fell"') == 1, "the panel's picture, and nothing of a finished progress bar"
    assert "Round 3" in page and "Show a decoy ☑" in page and "Size 5<" in page
    assert "Spare knob" not in page
    assert "it &lt;stays&gt; / it goes" in page
    assert "VBox()" not in page
    assert "only_for_the_machine" not in page
    assert "require.min.js" not in page


@pytest.mark.parametrize(("cells", "models", "told"), [
    ([cell(**{"text/html": '<img src="x.png">'})], {}, "without a description"),
    ([cell(**{"text/html": '<img alt="" src="x.png">'})], {}, "without a description"),
    ([cell(**{"text/html": '<div class="gradprune-error">No &lt;luck&gt;</div>'})], {}, "No <luck>"),
    ([], {"a": model("HTML", value='<div class="gradprune-error">red</div>')}, "a panel shows an error"),
    ([], {"a": model("Output", outputs=[{"output_type": "error", "ename": "KeyError", "evalue": "x"}])}, "KeyError: x"),
    ([cell(**{"text/html": '<img alt="fine" src="x.png">'})], PANEL, ""),
])
def test_faults_that_a_run_passes_over(cells, models, told):
    faults = list(build._faults(notebook(*cells, models=models)))
    assert (told in faults[0]) if told else not faults


@pytest.mark.slow
def test_main_runs_writes_and_fails_loudly(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRADPRUNE_MODE", raising=False)
    assert build.main([]) == 1
    folder, out = tmp_path / "notebooks", tmp_path / "out"
    folder.mkdir()
    asked = "import os; print(os.environ['GRADPRUNE_MODE'], 'progress' in os.environ['GRADPRUNE_PROGRESS'])"
    nbformat.write(notebook(new_markdown_cell("# 00 · Good"), new_code_cell(asked)), folder / "00_good.ipynb")
    nbformat.write(notebook(new_code_cell("1 / 0"), new_code_cell("2")), folder / "01_bad.ipynb")
    nbformat.write(notebook(new_code_cell("import os; os._exit(3)")), folder / "02_dead.ipynb")
    (folder / "GLOSSARY.md").write_text("# Glossary\n\n## ASR\n", "utf-8")
    out.mkdir()
    for name in ("01_bad", "03_bare"):
        (out / f"{name}.html").write_text("an old page")
    before = (folder / "00_good.ipynb").read_bytes()
    assert build.main(["--out", str(out)]) == 1
    told = capsys.readouterr()
    assert "FAILED: 01_bad.ipynb, 02_dead.ipynb" in told.out
    assert "02_dead: the run stopped early: DeadKernelError" in told.err
    assert "00_good" in told.out
    assert "ZeroDivisionError" in told.err
    assert "quick True" in (out / "00_good.html").read_text("utf-8")
    assert {path.name for path in out.iterdir()} == {"00_good.html", "03_bare.html", "GLOSSARY.html", "index.html"}
    index = (out / "index.html").read_text("utf-8")
    assert all(f">{title}</a>" in index for title in ("00 · Good", "03 bare", "Glossary"))
    assert (folder / "00_good.ipynb").read_bytes() == before
