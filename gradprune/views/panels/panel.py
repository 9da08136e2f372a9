"""What the panels share: error handling, one picture with its sentence, and controls that work by keyboard.

A panel is `state()` (the values of its controls), a pure `compute(state)`, a pure `draw(computed)`, and thin wiring.
"""

import contextlib
import gc
import html
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ipywidgets as widgets

from gradprune.base.errors import require
from gradprune.datasets import class_name
from gradprune.victims import Victim
from gradprune.views.figures.drawing import error_html, image_html, written
from gradprune.views.figures.picture import Picture
from gradprune.views.panels.controls import HALF, HANDLE_NAMES, WIDE, Button, nothing

_LOOK = """<style>  /* show the names on sliders in full, and labels beside the buttons */
.gradprune-panel .widget-readout { max-width: none; flex: none; padding-right: 8px; }
.gradprune-panel .widget-toggle-buttons { display: flex; flex-flow: row nowrap; align-items: baseline; }
</style>"""
_ALL_TO_ALL = (" This attack is all-to-all: each class goes to the next one, so statements about a single target "
               "class do not apply.")


class BasePanel(widgets.VBox):
    """Controls, one picture and its sentence; shown when it is the last expression of a cell.

    Subclasses declare a `State`, a NamedTuple whose fields have the names of their controls, and write
    `compute(state)`, which returns all that the picture needs, and `draw(computed)`, which returns the `Picture`; each
    depends on its argument alone. They make the controls and end with `self.show(...)`, which lays them out and
    observes them. `sentence` is the text shown now, `picture` the figure with it. An error in a callback is shown in
    red, and also raised if GRADPRUNE_STRICT=1 is set in the environment. `close()` leaves nothing behind.
    """

    State: Any = None

    def __init__(self) -> None:
        self.sentence, self._quiet, self._followed = "", False, set[widgets.Widget]()
        self.error, self.figure, self.summary = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.stage: widgets.Widget = self.figure  # or the widget that holds it
        super().__init__(layout=widgets.Layout(max_width=f"{2 * WIDE + 40}px"))
        self.add_class("gradprune-panel").add_class("gradprune-named").add_class(f"gradprune-{type(self).__name__}")

    @property
    def caution(self) -> str:
        """A note under every picture, after its sentence."""
        return ""

    def state(self) -> Any:
        """The values of the controls: a `State`."""
        return self.State(*(getattr(self, name).value for name in self.State._fields))

    def show(self, *rows: Sequence[widgets.Widget], below: Sequence[widgets.Widget] = ()) -> None:
        """Put the rows of controls in reading order above the picture, observe the new ones, and draw the picture."""
        self.on_change([control for row in rows for control in row
                        if control not in self._followed and not isinstance(control, Button)])
        boxes = [widgets.HBox(row, layout=widgets.Layout(flex_flow="row wrap")) for row in rows]
        self.children = (*boxes, self.error, self.stage, self.summary, *below, widgets.HTML(_LOOK + HANDLE_NAMES))
        self.refresh()

    def refresh(self) -> None:
        """Compute and draw the picture for the current values of the controls."""
        with fleeting():
            picture = self.picture
            image, self.sentence = image_html(picture), picture.summary
            del picture
        self.figure.value = image
        self.summary.value = ('<div role="status" aria-live="polite" style="line-height:1.45;min-height:2.9em">'
                              f"{html.escape(self.sentence + self.caution)}</div>")

    @property
    def picture(self) -> Picture:
        """The current picture, drawn again, to save it or to show it beside the panel."""
        return self.draw(self.compute(self.state()))

    def on_change(self, controls: Sequence[widgets.Widget], work: Callable[[], object] | None = None) -> None:
        """Refresh the panel, after `work` if given, when one of the controls changes its value."""
        def changed() -> None:
            if not self._quiet:
                with self.quietly():
                    if work:
                        work()
                self.refresh()
        self._followed |= set(controls)
        for control in controls:
            control.observe(self.guard(changed), "value")

    def button(self, text: str, work: Callable[[], object], busy: str = "", width: int = HALF) -> Button:
        """A button that does `work`, then refreshes; with a `busy` text, it shows that and is disabled meanwhile."""
        button = Button(description=text, layout=widgets.Layout(width=f"{width}px"))

        def pressed() -> None:
            if busy:
                button.disabled, button.description = True, busy
            try:
                with self.quietly():
                    work()
                self.refresh()
            finally:
                if busy:
                    button.disabled, button.description = False, text
        button.press = self.guard(pressed)
        return button

    def guard(self, work: Callable[[], object]) -> Callable[..., None]:
        """Wrap a callback: an error is shown in red in the panel, and is raised under GRADPRUNE_STRICT=1."""
        def guarded(*_: Any) -> None:
            with shown_in_red(lambda message: setattr(self.error, "value", message)):
                work()
                self.error.value = ""
        return guarded

    @contextlib.contextmanager
    def quietly(self) -> Iterator[None]:
        """A context in which the panel may set its own controls without a redraw."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    def close(self) -> None:
        """Close every control with its layout and style, and drop all callbacks and the picture."""
        for widget in dict.fromkeys(_family([*self.children, *vars(self).values(), self.layout])):
            widget.close()
            widget.unobserve_all()
            if isinstance(widget, Button):
                widget.press = nothing
        super().close()
        self.unobserve_all()
        self.children = ()


class Panel(BasePanel):
    """A panel for a victim, whose model it never changes. Raises InputError for anything but a `Victim`."""

    def __init__(self, victim: Victim) -> None:
        require(isinstance(victim, Victim), f"a panel takes a Victim (see load_victim), got {type(victim).__name__}.")
        super().__init__()
        self.victim = victim
        self.label_map = victim.label_map

    @property
    def caution(self) -> str:
        """A note for a victim without a single target class, which the panels speak of."""
        return _ALL_TO_ALL * (self.label_map == "all_to_all")

    def named(self, answer: int) -> str:
        """The name of a class."""
        return class_name(answer, self.victim.data.test.classes)

    def written(self, answer: int, limit: int = 24) -> str:
        """The name of a class for a figure."""
        return written(answer, self.victim.data.test.classes, limit)


@contextlib.contextmanager
def shown_in_red(show: Callable[[str], object]) -> Iterator[None]:
    """A context in which an error is passed to `show` as a red message, and raised only under GRADPRUNE_STRICT=1."""
    try:
        yield
    except Exception as error:
        show(error_html(error))
        if os.environ.get("GRADPRUNE_STRICT") == "1":
            raise


@contextlib.contextmanager
def fleeting() -> Iterator[None]:
    """Collect the objects made within: figures are full of reference cycles, which are cheap to collect while young."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.collect(0)
        if enabled:
            gc.enable()


def _family(things: Iterable[Any]) -> Iterator[widgets.Widget]:
    """The widgets among some things, with their children, layouts and styles."""
    for widget in things:
        if isinstance(widget, widgets.Widget):
            yield from _family([*getattr(widget, "children", ()), widget.layout, getattr(widget, "style", None)]
                               if isinstance(widget, widgets.DOMWidget) else [])
            yield widget
