"""A picture that is touched: a button without a face over each of its places, in plain ipywidgets."""

from collections.abc import Sequence

import ipywidgets as widgets
import numpy as np

_LOOK = """
.gradprune-map { position: relative; overflow: visible; }
.gradprune-map > * { margin: 0; }
.gradprune-map .widget-toggle-buttons { position: absolute; inset: 0; width: auto; height: auto; }
.gradprune-map .widget-toggle-buttons > label, .gradprune-map button > i { display: none; }
.gradprune-map button.widget-toggle-button { position: absolute; min-width: 0; margin: 0; padding: 0; border: 0;
  background: none; box-shadow: none; font-size: 0; cursor: pointer; }
.gradprune-map button.widget-toggle-button:hover, .gradprune-map button.widget-toggle-button:active
  { outline: 2px solid #000; box-shadow: 0 0 0 4px #fff; }
@media (hover: hover) {  /* nobody tabs through hundreds of cells: without a pointer there is the slider */
  .gradprune-map:not(:hover) button { visibility: hidden; }
}"""


class FilterMap(widgets.Box):
    """A picture whose places are pressed one at a time: `cells.index` is the place, None again once it is dealt with.

    image: the widget that shows the picture. names: one for each place, shown when the pointer rests there.
    places: float (N, 4), left, top, width and height as shares of the picture.
    """

    def __init__(self, image: widgets.HTML, names: Sequence[str], places: np.ndarray) -> None:
        self.cells = widgets.ToggleButtons(options=names, value=None, tooltips=names, description="Map of the filters")
        self.cells.add_class("gradprune-cells")  # what a page at rest leaves out
        super().__init__()
        own = f"gradprune-map-{self.model_id}"
        self.add_class("gradprune-map").add_class(own)
        rules = (f'.{own} button[value="{number}"] {{ left: {x:.2%}; top: {y:.2%}; width: {w:.2%}; height: {h:.2%} }}'
                 for number, (x, y, w, h) in enumerate(places))
        self.children = image, self.cells, widgets.HTML(f"<style>{_LOOK}{''.join(rules)}</style>")
