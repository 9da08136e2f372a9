"""RepairPanel: repair the victim with and without its trigger, and compare."""

from typing import Any

from gradprune.defenses import DefenseResult, grad_prune, repair
from gradprune.evaluation import Metrics
from gradprune.victims import Victim
from gradprune.views.figures.picture import Picture
from gradprune.views.figures.pruning_plots import with_and_without
from gradprune.views.panels.panel import Panel

_BUTTON = 230  # pixels: fits the longer label


class RepairPanel(Panel):
    """ACC, ASR and RA of the given model, of one repaired without the trigger, and of one pruned and tuned with it.

    victim: each button repairs a copy of its model, both with the same `spc` clean images per class; the trigger is
    used by `grad_prune`, and to measure on the test set. changes: other values than `repair.DEFAULTS`, such as fewer
    steps. Raises InputError as `repair`, `grad_prune` and `evaluate` do.
    """

    def __init__(self, victim: Victim, spc: int = 10, **changes: Any) -> None:
        super().__init__(victim)
        self.spc, self.changes = spc, {**changes, "progress": False}
        self.ways: dict[str, Metrics] = {"given": victim.evaluate()}
        self.stopped: dict[str, str] = {}
        self.unknown = self.button("Repair, trigger unknown", self._repair, "Repairing ...", _BUTTON)
        self.known = self.button("Grad-Prune, trigger known", self._prune, "Pruning ...", _BUTTON)
        self.show([self.unknown, self.known])

    def state(self) -> dict[str, Metrics]:
        """The test figures of each model so far."""
        return dict(self.ways)

    def compute(self, state: dict[str, Metrics]) -> dict[str, Metrics]:
        """Each model is measured once, when it is made."""
        return state

    def draw(self, computed: dict[str, Metrics]) -> Picture:
        """A row of bars per model."""
        bars = with_and_without({self.victim.trigger.name: computed})
        ends = [f"{way.capitalize()}: {told.rstrip('.')}." for way, told in self.stopped.items()]
        return Picture(bars.figure, " ".join([bars.summary, *ends]))

    def _repair(self) -> None:
        self._add("trigger unknown", repair(self.victim.model, self.victim.data.defense, spc=self.spc, **self.changes))

    def _prune(self) -> None:
        self._add("trigger known", grad_prune(self.victim.model, self.victim.data.defense, self.victim.trigger,
                                              spc=self.spc, progress=False))

    def _add(self, way: str, result: DefenseResult) -> None:
        self.ways[way], self.stopped[way] = self.victim.evaluate(result.model), result.stopped
