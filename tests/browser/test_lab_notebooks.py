"""The notebooks as a learner meets them: in JupyterLab, with a real browser, by keyboard."""

import pytest
from pages import REACT, ROOT, answers_to_the_keyboard, needs_browser, sync_api

pytest_plugins = ("lab_fixtures",)  # no conftest here: other tests import the one above by that name
pytestmark = [needs_browser, pytest.mark.slow]
NOTEBOOKS = [path.name for path in sorted((ROOT / "notebooks").glob("0[0-6]_*.ipynb"))]  # 08 has no panel, and its parts share no name


@pytest.mark.parametrize("opened", NOTEBOOKS, indirect=True)
def test_a_notebook_runs_and_answers_to_the_keyboard(opened, books, request):
    answers_to_the_keyboard(opened, books / request.node.callspec.params["opened"])


@pytest.mark.parametrize("opened", ["02_see_the_filters.ipynb"], indirect=True)
def test_a_link_to_the_glossary_leads_to_its_entry(opened):
    opened.locator('.jp-Notebook a[href*="GLOSSARY.md"][href$="#taylor-score"]').first.click()
    entry = opened.locator(".jp-MarkdownViewer h2", has_text="Taylor score")
    entry.wait_for()
    sync_api.expect(entry).to_be_in_viewport(timeout=REACT)
    opened.evaluate("() => window.jupyterapp.shell.currentWidget.close()")  # the notebook is the current one again
    opened.wait_for_function("() => window.jupyterapp.shell.currentWidget?.sessionContext")
