"""What the panels share: one guard, one picture with its sentence, and controls made for the keyboard.

A panel is `state()` (what its controls say), a pure `compute(state)`, a pure `draw(computed)`, and thin wiring.
"""

import contextlib
import html
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure

from gradprune.errors import require
from gradprune.views.panel_parts import error_html, image_html
from gradprune.views.picture import Picture
from gradprune.zoo import Victim

_CONTROL = 410  # pixels: two controls side by side are as wide as the figure

NOTHING = Picture(Figure(), "")  # the picture of a panel that shows none


class Panel(widgets.VBox):
    """Controls, one picture and its sentence; displays itself when a cell ends with it.

    victim: whose model is looked at; it is never changed. Subclasses write `state`, `compute` and `draw`, make their
    controls and end with `self.show(...)`. `picture` is the `Picture` shown now. An error in a callback is shown in
    red, and raised as well where the environment says GRADPRUNE_STRICT=1. `close()` leaves nothing behind.
    Raises InputError for anything but a `Victim`.
    """

    def __init__(self, victim: Victim) -> None:
        require(isinstance(victim, Victim), f"a panel takes a Victim (see load_victim), got {type(victim).__name__}.")
        self.victim, self.picture, self._quiet = victim, NOTHING, False
        self.error, self.figure, self.summary = widgets.HTML(), widgets.HTML(), widgets.HTML()
        super().__init__(layout=widgets.Layout(max_width=f"{2 * _CONTROL + 40}px"))

    # ---- each panel writes these

    def state(self) -> Any:
        """What the controls say, as plain values."""
        raise NotImplementedError  # pragma: no cover

    def compute(self, state: Any) -> Any:
        """All that the picture needs; depends on the state alone."""
        raise NotImplementedError  # pragma: no cover

    def draw(self, computed: Any) -> Picture:
        """The figure and its sentence; depends on what was computed alone."""
        raise NotImplementedError  # pragma: no cover

    # ---- wiring

    def show(self, *rows: Sequence[widgets.Widget], below: Sequence[widgets.Widget] = ()) -> None:
        """Put the rows of controls in reading order above the picture, then draw it."""
        boxes = [widgets.HBox(row, layout=widgets.Layout(flex_flow="row wrap")) for row in rows]
        self.children = (*boxes, self.error, self.figure, self.summary, *below)
        self.refresh()

    def refresh(self) -> None:
        """Compute and draw what the controls say."""
        self.picture = self.draw(self.compute(self.state()))
        text = html.escape(self.picture.summary)
        self.figure.value = image_html(self.picture)
        self.summary.value = f'<div role="status" aria-live="polite" style="line-height:1.45">{text}</div>'

    def on_change(self, controls: Sequence[widgets.Widget], work: Callable[[], object] | None = None) -> None:
        """Refresh the panel, after `work` if given, when one of the controls changes its value."""
        def changed() -> None:
            if not self._quiet:
                with self.quietly():
                    if work:
                        work()
                self.refresh()
        for control in controls:
            control.observe(self.guard(changed), "value")

    def button(self, text: str, work: Callable[[], object], busy: str = "", width: int = 130) -> widgets.Button:
        """A button that does `work`, then refreshes; with a `busy` text it is disabled meanwhile and shows that."""
        button = widgets.Button(description=text, layout=widgets.Layout(width=f"{width}px"))

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
        button.on_click(self.guard(pressed))
        return button

    def guard(self, work: Callable[[], object]) -> Callable[..., None]:
        """The one way into every callback: an error turns red in the panel, and is raised under GRADPRUNE_STRICT=1."""
        def guarded(*_: Any) -> None:
            try:
                work()
                self.error.value = ""
            except Exception as error:
                self.error.value = error_html(error)
                if os.environ.get("GRADPRUNE_STRICT") == "1":
                    raise
        return guarded

    @contextlib.contextmanager
    def quietly(self) -> Iterator[None]:
        """Controls may be set by the panel itself in here: nothing is redrawn."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    def close(self) -> None:
        """Close every control with its layout and style, forget all callbacks, the picture too."""
        for widget in [*_family(self), self]:
            widgets.VBox.close(widget) if widget is self else widget.close()
            widget.unobserve_all()
            if isinstance(widget, widgets.Button):
                widget._click_handlers.callbacks.clear()
        self.picture = NOTHING


def _family(widget: widgets.Widget) -> Iterator[widgets.Widget]:
    """All widgets below one, and the layouts and styles of all."""
    for child in getattr(widget, "children", ()):
        yield from _family(child)
        yield child
    for part in ("layout", "style"):
        if isinstance(getattr(widget, part, None), widgets.Widget):
            yield getattr(widget, part)


# ---- controls


def _look(text: str, width: int = _CONTROL) -> dict[str, Any]:
    return {"description": text, "layout": widgets.Layout(width=f"{width}px"), "style": {"description_width": "110px"}}


def slider(text: str, low: float, high: float, value: float, step: float = 1, form: str = "d") -> widgets.Widget:
    """A slider that speaks when it is let go; whole numbers unless the step is not."""
    kind = widgets.IntSlider if isinstance(step, int) else widgets.FloatSlider
    return kind(value, min=low, max=high, step=step, readout_format=form, continuous_update=False, **_look(text))


def number(text: str, low: int, high: int, value: int) -> widgets.BoundedIntText:
    """A whole number to type."""
    return widgets.BoundedIntText(value, min=low, max=high, **_look(text))


def choice(text: str, options: Sequence[Any], value: Any) -> widgets.Dropdown:
    """One of several, by mouse or by arrow keys."""
    return widgets.Dropdown(options=options, value=value, **_look(text))
