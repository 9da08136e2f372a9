"""The controls of the panels: each has a description, takes effect when released, and works by keyboard.

On a closed list or a radio button, JupyterLab uses the arrow keys to go to another cell, where "d d" deletes it. So
neither is used here: buttons need no arrow keys, and sliders and number fields keep theirs.

An arrow key pressed on a button still moves JupyterLab to another cell: ipywidgets 8.1.9 gives no way to fix that from
Python. Nor does it give the handles of sliders an accessible name; `HANDLE_NAMES` does.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as widgets
import numpy as np

from gradprune.views.figures.trigger_kinds import Choice, Range

WIDE, HALF = 410, 203  # pixels: two wide controls, or four halves, are as wide as the figure


def nothing() -> None:
    """What a closed button does."""


class Button(widgets.Button):
    """A button that raises its errors: ipywidgets would swallow those of an `on_click` callback."""

    press: Callable[[], None] = staticmethod(nothing)

    def click(self) -> None:
        """Press the button; a click in the browser calls this too."""
        self.press()


_LEAST, _NAMED = 270, 320  # pixels: two controls fit side by side on a page 600 wide; slider names need room


def _look(text: str, width: int = WIDE, least: int = _LEAST) -> dict[str, Any]:
    layout = widgets.Layout(flex=f"1 1 {min(width, least)}px", max_width=f"{width}px")
    return {"description": text, "layout": layout, "style": {"description_width": "74px"}}


def slider(text: str, low: float, high: float, value: float, step: float = 1, form: str = "d") -> widgets.Widget:
    """A slider that takes effect when it is released; whole numbers if the step is one."""
    kind = widgets.IntSlider if isinstance(step, int) else widgets.FloatSlider
    return kind(value, min=low, max=high, step=step, readout_format=form, continuous_update=False, **_look(text))


# For the end of an HTML widget in a box of class "gradprune-named": in the browser, it gives the handle of each slider
# there its label as accessible name; a slider without a label is named by the element of class "gradprune-label".
HANDLE_NAMES = """<style onload="
const find = tries => {
  const box = this.closest('.gradprune-named');
  if (!box) { if (tries) setTimeout(find, 250, tries - 1); return; }
  const name = () => box.querySelectorAll('[role=slider]:not([aria-labelledby])').forEach(handle => {
    const own = (handle.closest('.widget-inline-hbox') || box).querySelector('.widget-label');
    const label = own && own.textContent.trim() ? own : box.querySelector('.gradprune-label') || own;
    if (!label) return;
    label.id = label.id || 'gradprune-' + Math.random().toString(36).slice(2);
    handle.setAttribute('aria-labelledby', label.id);
  });
  name();
  new MutationObserver(name).observe(box, {childList: true, subtree: true});
};
find(20);">/* for its onload */</style>"""


def number(text: str, low: int, high: int, value: int) -> widgets.BoundedIntText:
    """A whole number to type."""
    return widgets.BoundedIntText(value, min=low, max=high, **_look(text, HALF))


def buttons(text: str, options: Sequence[Any], value: Any) -> widgets.ToggleButtons:
    """One of a few, or of many that take time to show: a button each, chosen with Space or Enter."""
    look = _look(text)
    look["style"]["button_width"] = "auto"
    return widgets.ToggleButtons(options=options, value=value, **look)


def choice(text: str, options: Sequence[Any], value: Any) -> widgets.SelectionSlider:
    """One of many, on a slider with its name beside it."""
    return widgets.SelectionSlider(options=options, value=value, continuous_update=False, **_look(text, least=_NAMED))


def switch(text: str) -> widgets.Checkbox:
    """On or off; off at first."""
    return widgets.Checkbox(False, description=text, indent=False, layout=widgets.Layout(width=f"{WIDE}px"))


def fit_slider(control: widgets.FloatSlider, knob: Range | None, settings: Mapping[str, Any]) -> None:
    """Fit a slider to a knob, at its value in `settings`, even one outside its usual range; None hides it."""
    knob = knob if knob and knob.setting in settings else None
    control.layout.display = None if knob else "none"
    if knob:
        value = settings[knob.setting]
        form = re.search(r"{:?(.*?)}", knob.words)
        with control.hold_sync(), control.hold_trait_notifications():  # one message: others are clamped
            control.min, control.max = min(knob.low, value), max(knob.high, value)
            control.step, control.value = knob.step, value
        control.description, control.readout_format = knob.text, form[1] if form and form[1] else "d"


def fit_choice(control: widgets.SelectionSlider, knob: Choice | None, settings: Mapping[str, Any]) -> None:
    """Fit a choice to a knob, at its value in `settings`, even an unusual one; None hides it."""
    knob = knob if knob and knob.setting in settings else None
    control.layout.display = None if knob else "none"
    if knob:
        value, usual = settings[knob.setting], list(knob.options)
        with control.hold_sync():
            control.options = [(knob.options[v], v) for v in usual] + [(str(value), value)] * (value not in usual)
            control.value, control.description = value, knob.text


_MAP = """
.gradprune-map { position: relative; overflow: visible; }
.gradprune-map > * { margin: 0; }
.gradprune-map .widget-toggle-buttons { position: absolute; inset: 0; width: auto; height: auto; }
.gradprune-map .widget-toggle-buttons > label, .gradprune-map button > i { display: none; }
.gradprune-map button.widget-toggle-button { position: absolute; min-width: 0; margin: 0; padding: 0; border: 0;
  background: none; box-shadow: none; font-size: 0; cursor: pointer; }
.gradprune-map button.widget-toggle-button:hover, .gradprune-map button.widget-toggle-button:active
  { outline: 2px solid #000; box-shadow: 0 0 0 4px #fff; }
@media (hover: hover) {  /* no hundreds of tab stops: without a pointer, use the slider */
  .gradprune-map:not(:hover) button { visibility: hidden; }
}"""


class FilterMap(widgets.Box):
    """A picture with places to press: `cells.index` is the one pressed, and is set back to None once handled.

    image: the widget that shows the picture. names: one for each place, shown when the pointer rests there.
    places: float (N, 4), left, top, width and height as shares of the picture.
    """

    def __init__(self, image: widgets.HTML, names: Sequence[str], places: np.ndarray) -> None:
        self.cells = widgets.ToggleButtons(options=names, value=None, tooltips=names, description="Map of the filters")
        self.cells.add_class("gradprune-cells")  # which a static page leaves out
        super().__init__()
        own = f"gradprune-map-{self.model_id}"
        self.add_class("gradprune-map").add_class(own)
        rules = (f'.{own} button[value="{number}"] {{ left: {x:.2%}; top: {y:.2%}; width: {w:.2%}; height: {h:.2%} }}'
                 for number, (x, y, w, h) in enumerate(places))
        self.children = image, self.cells, widgets.HTML(f"<style>{_MAP}{''.join(rules)}</style>")
