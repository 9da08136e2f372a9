"""The playground: panels follow the chosen victim, and whatever fails says so in its place alone."""

import pytest
from conftest import holds, refuses

from gradprune.base.errors import InputError
from gradprune.victims import Victim
from gradprune.views.figures.drawing import ERROR_CLASS
from gradprune.views.panels import playground as module
from gradprune.views.panels.panel import Panel
from gradprune.views.panels.playground import Playground

CARD = {"attack": {"trigger": "badnets", "rate": 0.1, "poisoned_images": 60}, "metrics": {"acc": 0.99, "asr": 0.98}}


class Small(Panel):
    """A panel that keeps what it was made of."""

    made: list = []  # noqa: RUF012

    def __init__(self, victim: Victim) -> None:
        super().__init__(victim)
        Small.made.append(self)


def broken(victim: Victim) -> Panel:
    raise InputError("this panel cannot be made.")


@pytest.fixture
def page(victim, monkeypatch):
    victims = {name: Victim(victim.model, victim.trigger, victim.target, victim.data,
                            {**CARD, "attack": {**CARD["attack"], "rate": 0.0 if name == "clean" else 0.1}})
               for name in ("badnets", "clean")}
    monkeypatch.setattr(module, "names", lambda: ["badnets", "clean", "lost"])
    monkeypatch.setattr(module, "load_victim", lambda name: victims[name])
    monkeypatch.setattr(Small, "made", [])
    page = Playground()
    page.victims = victims
    yield page
    page.close()


def test_panels_follow_the_choice(page):
    place = page.add(Small)
    assert page.victim is page.victims["badnets"]
    assert holds(page.told.value, "60 of 400", "98.0%")
    page.choose.set_state({"index": 1})
    first, second = Small.made
    assert first.comm is None, "closed"
    assert place.children == (second,) and second.comm is not None
    assert second.victim is page.victims["clean"]
    assert "This model was not attacked" in page.told.value
    assert not page.choose.disabled
    page.close()
    assert second.comm is None


def test_a_broken_panel_stops_no_other(page):
    wrong, right = page.add(broken), page.add(Small)
    assert holds(wrong.children[0].value, ERROR_CLASS, "this panel cannot be made")
    page.choose.value = "clean"
    assert right.children[0].victim is page.victims["clean"]


def test_a_lost_victim_is_told_in_red_and_the_last_one_stays(page):
    place = page.add(Small)
    page.choose.value = "lost"
    assert ERROR_CLASS in page.told.value
    assert not page.choose.disabled
    assert place.children[0].victim is page.victims["badnets"]
    page.choose.value = "clean"
    assert ERROR_CLASS not in page.told.value


def test_without_any_victim_the_page_still_stands(page, monkeypatch):
    monkeypatch.setattr(module, "load_victim", lambda name: 1 / 0)
    empty = Playground()
    assert "ZeroDivisionError" in empty.told.value
    assert empty.add(Small).children == ()
    empty.close()


def test_strict_mode_lets_errors_out(page, monkeypatch):
    monkeypatch.setenv("GRADPRUNE_STRICT", "1")
    refuses("cannot be made", page.add, broken)
    with pytest.raises(KeyError):
        page.choose.value = "lost"


def test_an_unknown_victim_is_refused():
    refuses("Unknown victim 'nope'", Playground, "nope")
