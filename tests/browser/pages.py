"""What the browser tests do with an open notebook: run it, find its panels, press and move what a learner would.

Screenshots go to out/browser/: a test cannot say whether they look good.
"""

import re
from pathlib import Path

import nbformat
import pytest
from servers import CHROMIUM

try:
    from playwright import sync_api
except ImportError:
    sync_api = None

needs_browser = pytest.mark.skipif(not (CHROMIUM and sync_api), reason="chromium (Debian: apt-get install chromium) or "
                                                                       "playwright is not installed: no browser test runs")
ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "out" / "browser"
PANELS = ("TriggerStudio", "FilterExplorer", "PruningPlayer", "BeatGradPrune", "DefenceComparer", "ScanExplorer", "OneNeuron", "RepairPanel")
OWN = "panels.ipynb"  # all panels on one page, written by this file
TABLE = """import itertools
import pandas as pd
from gradprune.views import DefenceComparer
table = pd.DataFrame([{"attack": attack, "defense": name, "spc": 2, "seed": seed, "acc_before": 0.99, "asr_before": 0.98,
                       "ra_before": 0.02, "acc": 0.9 + 0.02 * seed, "asr": 0.3 * rank, "ra": 0.9 - 0.3 * rank,
                       "der": 0.9 - 0.1 * rank - 0.03 * seed * (attack == "sig"), "seconds": 2.0, "error": ""}
                      for attack, (rank, name), seed in itertools.product(("badnets", "sig"), enumerate(("ft", "clp")), (0, 1))])
DefenceComparer(table)"""
SEARCHES = """from gradprune.search import invert
from gradprune.views import ScanExplorer
clean = victim.data.defense.floats()[:24]
found = [invert(victim.model, clean, label, steps=3, batch_size=8, progress=False) for label in range(12)]
ScanExplorer(victim, found)"""
RUN, REACT = 300_000, 20_000  # milliseconds: a whole notebook, and one reaction, on a busy machine
READY = """async () => { const c = window.jupyterapp.shell.currentWidget.sessionContext; await c.ready;
                         await c.session.kernel.info; }"""
ERRORS = """() => [
    ...(window.jupyterapp?.shell.currentWidget.content.widgets ?? []).flatMap(cell => cell.model.outputs?.toJSON() ?? [])
        .filter(output => output.output_type == 'error').map(output => output.evalue),
    ...[...document.querySelectorAll('[data-mime-type="application/vnd.jupyter.error"], .gradprune-error, '
        + '.jp-RenderedText[data-mime-type*="stderr"] .ansi-red-intense-fg')].map(element => element.innerText)]"""
DONE = """() => { const book = window.jupyterapp.shell.currentWidget;
    const code = book.content.widgets.filter(cell => cell.model.type == 'code' && cell.model.sharedModel.source.trim());
    const outputs = code.flatMap(cell => cell.model.outputs.toJSON());
    return outputs.some(output => output.output_type == 'error')
        || code.every(cell => cell.model.executionCount) && book.sessionContext.session.kernel.status == 'idle'; }"""
BLANK = """panel => new Promise(resolve => { let blank = 0, frames = 0; const end = performance.now() + 2500;
    const look = () => { const image = panel.querySelector('img');
        frames += 1; if (!image || !image.complete || !image.naturalWidth || image.height < 50) blank += 1;
        performance.now() < end ? requestAnimationFrame(look) : resolve([blank, frames]); }; look(); })"""

def own_notebook(path: Path) -> None:
    cells = ["import gradprune as gp\nfrom gradprune.views import BeatGradPrune, FilterExplorer, PruningPlayer, TriggerStudio\n"
             "victim = gp.load_victim('badnets')\n"
             "result = gp.grad_prune(victim.model, victim.data.defense, victim.trigger, recipe='paper', tune=False, progress=False)",
             *(f"{panel}(victim{', result' * (panel == 'PruningPlayer')})" for panel in PANELS[:4]), TABLE, SEARCHES]
    book = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    book.cells = [nbformat.v4.new_markdown_cell("# Panels\n\n<details><summary>Solution</summary>\n\nLook.\n\n</details>"),
                  *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(book, path)


def run_all(page) -> None:
    """Run > Run All Cells, and wait until the last cell is done; no cell and no panel may show an error."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
    page.wait_for_function(DONE, timeout=RUN, polling=250)  # by default it would look, and keep a core busy, at each frame
    assert page.evaluate(ERRORS) == []


def shot(thing, *names: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    thing.screenshot(path=SHOTS / f"{'-'.join(names)}.png")


def sentence(panel) -> str:
    return panel.locator('[role="status"]').first.inner_text()


def changed(panel, before: str) -> str:
    """Wait until the panel's sentence is another one."""
    sync_api.expect(panel.locator('[role="status"]').first).not_to_have_text(before, timeout=REACT)
    return sentence(panel)


def panels(page) -> dict:
    """The first panel of each kind on the page."""
    found = {name: page.locator(f".gradprune-{name}").first for name in PANELS}
    return {name: panel for name, panel in found.items() if panel.count()}


def move_slider(page, panel) -> None:
    """Move a slider that changes the sentence by an arrow key, to the side where there is room."""
    rank = slider(panel, "Rank").or_(slider(panel, "Strength"))  # another layer may have the same best filter
    handle = (rank if rank.count() else panel).locator(".noUi-target:not([disabled]) .noUi-handle").first
    low = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemin")
    before = sentence(panel)
    handle.focus()
    page.keyboard.press("ArrowRight" if low else "ArrowLeft")
    after = changed(panel, before)
    page.keyboard.press("ArrowLeft" if low else "ArrowRight")
    assert changed(panel, after) == before


def slider(panel, label: str):
    """The slider with that label: its handle takes the arrow keys, and what is chosen is written beside it."""
    return panel.locator(".widget-hslider", has=panel.page.get_by_text(label, exact=True))


def step(page, panel, label: str, key: str = "ArrowRight") -> str:
    """One step of a slider by an arrow key, which stays in the slider; what is chosen then."""
    handle = slider(panel, label).locator(".noUi-handle")
    handle.focus()
    page.keyboard.press(key)
    sync_api.expect(handle).to_be_focused()
    return slider(panel, label).locator(".widget-readout").inner_text()


def choose_filter(page, panel) -> None:
    """Another layer by keyboard: its best filter, its picture and its sentence come up."""
    before, image = sentence(panel), panel.locator("img").get_attribute("src")
    layer = step(page, panel, "Layer") and step(page, panel, "Layer")
    after = changed(panel, before)
    sync_api.expect(panel.locator("img")).not_to_have_attribute("src", image, timeout=REACT)
    name = after.split(" has rank")[0]
    assert name != before.split(" has rank")[0]
    sync_api.expect(panel.locator('[role="status"]').first).to_contain_text(layer.split(" ")[0] + "[", timeout=REACT)


def press(page, panel, label: str) -> str:
    """Press one of the buttons that choose, by keyboard; the picture keeps its place and size. The new sentence."""
    before, box = sentence(panel), panel.locator("img").bounding_box()
    button = panel.get_by_role("button", name=label, exact=True)
    button.focus()
    page.keyboard.press("Space")
    after = changed(panel, before)
    sync_api.expect(button).to_be_focused()
    assert panel.locator("img").bounding_box() == box
    return after


def touch(page, panel) -> None:
    """Press a cell of the map with the mouse, twice; without a pointer there, no cell is in the keyboard's way."""
    cells = panel.locator(".gradprune-map button")
    page.mouse.move(0, 0)
    assert cells.count() > 300 and not any(cell.is_visible() for cell in cells.all()[::40])
    panel.locator(".gradprune-map").hover()
    cell, before = panel.get_by_role("button", name=re.compile(r"\[13\]$")).first, sentence(panel)
    cell.click()
    assert f"1 filter silenced, last {cell.get_attribute('title')}" in (silenced := changed(panel, before))
    cell.click()
    assert "Nothing silenced yet" in changed(panel, silenced)


def run_the_other_recipe(page, panel) -> None:
    """Choose recipe `verified` and run it by its button, both by keyboard."""
    assert "Nothing pruned yet" in press(page, panel, "verified")
    panel.get_by_role("button", name=re.compile("Run Grad-Prune")).focus()
    page.keyboard.press("Enter")
    sync_api.expect(panel.locator('[role="status"]').first).to_contain_text("on the gradient's shortlist", timeout=RUN)


def choose_class(page, panel) -> None:
    """Another class by keyboard: its trigger and its norm come up, and the picture keeps its place and size."""
    before, box = sentence(panel), panel.locator("img").bounding_box()
    first = slider(panel, "Class").locator(".noUi-handle").get_attribute("aria-valuenow") == "0.0"
    chosen = step(page, panel, "Class", "ArrowRight" if first else "ArrowLeft")
    name = changed(panel, before).split("“")[1].split("”")[0]
    assert chosen.replace("\xa0", " ").endswith(f": {name}")
    assert panel.locator("img").bounding_box() == box


def answers_to_the_keyboard(opened, path) -> None:
    """All that a notebook that has run must do: names, pictures in words, every panel by keyboard, no error anywhere."""
    name = path.name
    code = [line for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"
            for line in cell.source.splitlines() if not re.match(r"\s*(from|import|#)", line)]
    for handle in filter(lambda one: one.is_visible(), opened.locator('[role="slider"]').all()):
        sync_api.expect(handle).to_have_accessible_name(re.compile(r"\w"))
    assert opened.locator('.jp-OutputArea img:not([alt]), .jp-OutputArea img[alt=""]').count() == 0
    found = panels(opened)
    assert list(found) == [kind for kind in PANELS if any(re.search(rf"\b{kind}\b", line) for line in code)]
    for kind, panel in found.items():
        panel.scroll_into_view_if_needed()
        if panel.locator(".noUi-target:not([disabled])").count():
            move_slider(opened, panel)
        if kind == "FilterExplorer":
            choose_filter(opened, panel)
            shot(panel, Path(name).stem, kind)
            assert "on the shortlist" in press(opened, panel, "the shortlist, tried")
            shot(panel, Path(name).stem, kind, "trials")
            continue
        if kind == "PruningPlayer" and name == OWN:
            run_the_other_recipe(opened, panel)
        if kind == "DefenceComparer":
            before = sentence(panel)
            assert ", badnets, " in (step(opened, panel, "Attack") and changed(panel, before))
        if kind == "ScanExplorer":
            choose_class(opened, panel)
        if kind == "BeatGradPrune":
            touch(opened, panel)
        shot(panel, Path(name).stem, kind)
    for fold in opened.locator("details", has_text=re.compile("solution", re.IGNORECASE)).all()[:1]:
        assert fold.get_attribute("open") is None
        fold.locator("summary").first.click()
        assert fold.get_attribute("open") is not None
    shot(opened, Path(name).stem)
    assert opened.evaluate(ERRORS) == []
