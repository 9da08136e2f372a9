"""Every panel, in JupyterLab and as a web page, with a real browser, by keyboard and mouse."""

import pytest
from pages import (
    BLANK,
    ERRORS,
    OWN,
    RUN,
    answers_to_the_keyboard,
    changed,
    needs_browser,
    panels,
    sentence,
    shot,
    sync_api,
    touch,
)
from servers import voila

pytest_plugins = ("lab_fixtures",)  # no conftest here: other tests import the one above by that name
pytestmark = needs_browser
QUICK, SLOW = "07_playground.ipynb", pytest.mark.slow  # the one that `make test` opens has four panels


@pytest.mark.parametrize("opened", [QUICK, pytest.param(OWN, marks=SLOW)], indirect=True)
def test_the_panels_answer_to_the_keyboard(opened, books, request):
    answers_to_the_keyboard(opened, books / request.node.callspec.params["opened"])


@SLOW
@pytest.mark.parametrize("opened", [OWN], indirect=True)
def test_panels_do_not_flicker_and_their_buttons_come_back(opened):
    opened.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    opened.wait_for_selector('body[data-jp-theme-light="false"]', state="attached")
    for kind, panel in panels(opened).items():
        if kind == "DefenceComparer":  # its only slider has two attacks
            shot(panel, "dark", kind)
            continue
        handle = panel.locator(".noUi-target:not([disabled]) .noUi-handle").first
        handle.focus()
        looking = opened.evaluate_handle(f"panel => ({{seen: ({BLANK})(panel)}})", panel.element_handle())
        for _ in range(4):
            opened.keyboard.press("ArrowRight")
            opened.wait_for_timeout(300)
        blank, frames = looking.evaluate("looking => looking.seen")
        assert frames > 10, kind
        assert blank == 0, f"{kind}: no picture in {blank} of {frames} frames"
        shot(panel, "dark", kind)
    for kind, text in (("TriggerStudio", "Measure ASR"), ("BeatGradPrune", "Silence / bring back"), ("BeatGradPrune", "Finish")):
        panel = panels(opened)[kind]
        button, before = panel.get_by_role("button", name=text), sentence(panel)
        button.focus()
        opened.keyboard.press("Enter")
        if text == "Silence / bring back":
            changed(panel, before)
            continue
        panel.locator("table").wait_for(timeout=RUN)
        sync_api.expect(button).to_be_enabled(timeout=RUN)
        opened.keyboard.press("Shift+Tab")  # it was disabled while it ran: the keyboard has not lost its place
        assert text in opened.evaluate("document.activeElement.innerText")
    assert "Grad-Prune" in panel.locator("table").inner_text()
    for kind in ("TriggerStudio", "BeatGradPrune"):
        shot(panels(opened)[kind], "dark", kind, "done")
    shot(opened, "dark")
    opened.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})")
    assert opened.evaluate(ERRORS) == []


@SLOW
@pytest.mark.parametrize("opened", [OWN], indirect=True)
def test_a_broken_callback_is_seen(opened):
    """The guard in a real page: the very errors that JupyterLab would hide."""
    opened.evaluate("""() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute({code:
        'from gradprune.views.panels.trigger_studio import TriggerStudio; TriggerStudio.compute = lambda *_: 1 / 0'}).done""")
    panel = panels(opened)["TriggerStudio"]
    panel.get_by_role("button", name="Next image").click()
    panel.locator(".gradprune-error").wait_for()
    panel.locator(".gradprune-error summary").click()
    shot(panel, "error")
    assert any("ZeroDivisionError" in error for error in opened.evaluate(ERRORS))


@SLOW
def test_voila_serves_the_playground(books, browser, tmp_path):
    page = browser.new_page()
    with voila(books / QUICK, tmp_path / "voila") as address:
        page.goto(address, timeout=RUN)
        page.wait_for_selector(".gradprune-panel img", timeout=RUN)
        page.wait_for_selector(".gradprune-BeatGradPrune img", timeout=RUN)
        panel = panels(page)["BeatGradPrune"]
        touch(page, panel)
        shot(page, "voila")
        for kind, shown in panels(page).items():
            shot(shown, "voila", kind)
        assert page.locator(".gradprune-error").all_inner_texts() == []
