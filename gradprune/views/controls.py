"""The controls of the panels: each has a description, speaks when it is let go, and works by keyboard."""

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as widgets

WIDE, HALF = 410, 203  # pixels: two wide controls, or four halves, are as wide as the figure


def nothing() -> None:
    """What a closed button does."""


class Button(widgets.Button):
    """A button that lets errors out: ipywidgets would swallow those of an `on_click` callback."""

    press: Callable[[], None] = staticmethod(nothing)

    def click(self) -> None:
        """Do what the button does; the browser's click ends here too."""
        self.press()


def _look(text: str, width: int = WIDE) -> dict[str, Any]:
    return {"description": text, "layout": widgets.Layout(width=f"{width}px"), "style": {"description_width": "110px"}}


def slider(text: str, low: float, high: float, value: float, step: float = 1, form: str = "d") -> widgets.Widget:
    """A slider that speaks when it is let go; whole numbers unless the step is not."""
    kind = widgets.IntSlider if isinstance(step, int) else widgets.FloatSlider
    return kind(value, min=low, max=high, step=step, readout_format=form, continuous_update=False, **_look(text))


def number(text: str, low: int, high: int, value: int, width: int = HALF) -> widgets.BoundedIntText:
    """A whole number to type."""
    return widgets.BoundedIntText(value, min=low, max=high, **_look(text, width))


def choice(text: str, options: Sequence[Any], value: Any) -> widgets.Dropdown:
    """One of several; by keyboard, Space opens the list (JupyterLab takes the arrows of a closed one for its own)."""
    return widgets.Dropdown(options=options, value=value, tooltip="Space opens the list", **_look(text))
