"""A page of panels for one victim, which is chosen from a list; notebook 07 uses it."""

import html
from collections.abc import Callable, Sequence

import ipywidgets as widgets

from gradprune.base.errors import require_known
from gradprune.victims import Victim, load_victim
from gradprune.victims.victim import names
from gradprune.views.figures.drawing import image_html
from gradprune.views.figures.example_images import examples
from gradprune.views.panels.controls import buttons
from gradprune.views.panels.panel import Panel, shown_in_red


class Playground(widgets.VBox):
    """The choice of a victim, with some of its images; `add(SomePanel)` adds a panel that follows the choice.

    name: the victim chosen first. For a panel that cannot be made, or a victim that cannot be loaded, an error in red
    takes its place (and is raised if GRADPRUNE_STRICT=1); everything else keeps working.

        playground = Playground()
        playground.add(FilterExplorer)
    """

    def __init__(self, name: str = "badnets") -> None:
        self.places = list[_Place]()  # first: a refused page is closed, too
        require_known("victim", name, names())
        self.choose = buttons("Victim", names(), name)
        self.choose.layout = widgets.Layout(width="auto")  # in a column, the flex basis would set the height
        self.victim: Victim | None = None
        self.told = widgets.HTML()
        super().__init__([self.choose, self.told])
        self.choose.observe(lambda _: self._follow(), "value")
        self._follow()

    def add(self, make: Callable[[Victim], Panel]) -> widgets.VBox:
        """A box with the panel that `make` builds for the victim; it is rebuilt when another victim is chosen."""
        place = _Place(make)
        self.places.append(place)
        if self.victim is not None:
            place.show(self.victim)
        return place

    def close(self) -> None:
        """Close all panels too."""
        for widget in (*self.places, *self.children):
            widget.close()
            widget.unobserve_all()
        super().close()

    def _follow(self) -> None:
        """Load the chosen victim and show it everywhere."""
        self.choose.disabled = True
        self.told.value = f"<p>Loading “{html.escape(self.choose.value)}” ...</p>"
        try:
            with shown_in_red(lambda message: setattr(self.told, "value", message)):
                self.victim = load_victim(self.choose.value)
                self.told.value = _about(self.victim)
                for place in self.places:
                    place.show(self.victim)
        finally:
            self.choose.disabled = False


class _Place(widgets.VBox):
    """A box for one panel, which is closed and rebuilt for each victim."""

    children: Sequence[widgets.Widget]

    def __init__(self, make: Callable[[Victim], Panel]) -> None:
        self.make = make
        super().__init__()

    def clear(self) -> None:
        for old in self.children:
            old.close()
        self.children = ()

    def close(self) -> None:
        self.clear()
        super().close()

    def show(self, victim: Victim) -> None:
        self.clear()
        with shown_in_red(lambda message: setattr(self, "children", (widgets.HTML(message),))):
            self.children = (self.make(victim),)


def _about(victim: Victim) -> str:
    """The attack on the victim, its test figures, and some of its images."""
    attack, metrics = victim.card["attack"], victim.card["metrics"]
    images = victim.data.test
    picture = examples(victim.model, images, victim.trigger, victim.target, label_map=victim.label_map)
    if attack.get("rate") == 0:
        done = f"This model was not attacked; the trigger “{html.escape(victim.trigger.name)}” should not affect it."
    else:
        done = (f"Of its training images, {attack['poisoned_images']} of {len(victim.data.train)} carried the trigger "
                f"“{html.escape(victim.trigger.name)}” and the label “{html.escape(victim.target_name)}”.")
    figures = ", ".join(f"{key.upper()} {value:.1%}" for key, value in metrics.items())
    return (f"<p>{done} On test images: {figures}.</p><details><summary>Some of its images</summary>"
            f"{image_html(picture)}<p>{html.escape(picture.summary)}</p></details>")
