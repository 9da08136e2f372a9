"""Fixtures: JupyterLab with a copy of the notebooks, and a browser; all tests of a file share both."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import OWN, REACT, READY, ROOT, RUN, own_notebook, run_all, sync_api
from servers import ARGUMENTS, CHROMIUM, jupyter_lab


@pytest.fixture(scope="module")
def books(tmp_path_factory) -> Path:
    """A copy of the notebooks: what JupyterLab saves there hurts nobody."""
    folder = tmp_path_factory.mktemp("books")
    shutil.copytree(ROOT / "notebooks", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
    own_notebook(folder / OWN)
    return folder


@pytest.fixture(scope="module")
def lab(books, tmp_path_factory) -> Iterator[str]:
    with jupyter_lab(books, tmp_path_factory.mktemp("lab")) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.BrowserContext"]:
    """All pages share a cache: JupyterLab is loaded once."""
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS).new_context(viewport={"width": 1360, "height": 1000})
        context.set_default_timeout(REACT)
        yield context


@pytest.fixture(scope="module")
def opened(lab, browser, request) -> Iterator["sync_api.Page"]:
    """A notebook open in JupyterLab, all its cells run in one go; tests of the same notebook share page and kernel."""
    page = browser.new_page()
    page.goto(lab.format(request.param), timeout=RUN)
    page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.sessionContext", timeout=RUN)
    page.evaluate(READY)
    run_all(page)
    yield page
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    page.close()
