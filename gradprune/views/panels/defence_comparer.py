"""DefenceComparer: choose an attack, a number of images and a metric, and see all defences of a bench, seed by seed."""

from typing import NamedTuple

import pandas as pd

from gradprune.base.errors import require
from gradprune.bench.summary import checked
from gradprune.views.figures.comparison import SORTS, Comparison, compare, draw_comparison
from gradprune.views.figures.picture import Picture
from gradprune.views.panels.controls import buttons, choice
from gradprune.views.panels.panel import BasePanel

_METRICS = {"DER": "der", "ACC": "acc", "ASR": "asr", "RA": "ra", "seconds": "seconds"}


class Choice(NamedTuple):
    """The values of the controls; attack "" means the mean over all attacks."""

    attack: str
    spc: int
    metric: str
    sort: str


class DefenceComparer(BasePanel):
    """All defences of a bench by one metric: every seed a point, the mean, the given model, and one sentence.

    table: one row per cell, as `bench.run` and `bench.read_results` return it.
    Raises InputError for anything but such a table, and where every cell has failed.
    """

    State = Choice

    def __init__(self, table: pd.DataFrame) -> None:
        require(isinstance(table, pd.DataFrame),
                f"a comparer takes a table of cells (see bench.run), got {type(table).__name__}.")
        table = checked(table)
        super().__init__()
        self.table = table
        attacks, sizes = list(dict.fromkeys(table["attack"])), sorted({int(spc) for spc in table["spc"]})
        every = [("all attacks, mean", "")] if len(attacks) > 1 else []
        self.attack = choice("Attack", [*every, *((name, name) for name in attacks)], "" if every else attacks[0])
        self.spc = buttons("Images", [(str(spc), spc) for spc in sizes], sizes[0])
        self.metric = buttons("Metric", list(_METRICS.items()), "der")
        self.sort = buttons("Order", [(order, order) for order in SORTS], SORTS[0])
        self.show([self.attack, self.spc], [self.metric, self.sort])

    def compute(self, state: Choice) -> Comparison:
        """The mean and spread of each defence."""
        return compare(self.table, state.attack or None, state.spc, state.metric, state.sort)

    def draw(self, computed: Comparison) -> Picture:
        """A row for each defence."""
        return draw_comparison(computed)
