"""BeatGradPrune: remove filters by hand, judged like the algorithm by validation images alone, then compare."""

import copy
from typing import Any, NamedTuple

import ipywidgets as widgets

from gradprune.datasets import draw_defense_images
from gradprune.errors import require
from gradprune.evaluation import Metrics, Victim, der
from gradprune.pruning import FilterMask, Validation, filter_scores, pair_up, silence, validate
from gradprune.pruning.filters import filters
from gradprune.views import style
from gradprune.views.controls import WIDE
from gradprune.views.filter_choice import FilterChoice, heat_map
from gradprune.views.game_parts import draw_progress, draw_test
from gradprune.views.panel import Panel
from gradprune.views.panel_parts import blank, place, table_html
from gradprune.views.picture import Picture, change, count

_OVER = "this game is finished; press Reset for another."
_COLUMNS = ["game", "attack", "filters", "test set unseen", "DER: you", "DER: Grad-Prune", "winner"]
BOARD: list[list[str]] = []  # the score board: it lives as long as the notebook's kernel


class Game(NamedTuple):
    """What the controls say: filters removed, in order; the filter chosen; the test figures once finished."""

    removed: tuple[int, ...]
    position: int
    test: dict[str, Metrics] | None


class Played(NamedTuple):
    """The game, and the validation figures after each removal (the given model first)."""

    game: Game
    rows: list[Validation]


class BeatGradPrune(Panel):
    """Silence filters by hand and look at validation figures; "finish" shows the test figures beside the algorithm's.

    victim: a copy of its model is pruned. spc: defence images per class, as in `grad_prune`; the scores and
    the algorithm look at the training part, the player and nobody else at the validation part. The algorithm removes as
    many filters, by its gradient score. `BOARD` keeps all results of this kernel.
    Raises InputError as `draw_defense_images` and `filters` do.
    """

    def __init__(self, victim: Victim, spc: int = 10) -> None:
        super().__init__(victim)
        self.model = copy.deepcopy(victim.model)
        parts = draw_defense_images(victim.data.defense, spc)
        device = next(self.model.parameters()).device
        self.train, self.validation = (pair_up(part, victim.trigger, device) for part in parts)
        self.found = filters(self.model, self.validation.clean[:1])
        self.scores, _ = filter_scores(self.model, self.found, self.train.triggered, self.train.labels)
        self.mask = FilterMask(self.found)
        self._known: dict[tuple[int, ...], Validation] = {}
        self._rival, self._picks = copy.deepcopy(victim.model), FilterMask(self.found)
        self._tested: dict[tuple[int, ...], Metrics] = {}
        self.test: dict[str, Metrics] | None = None
        self.chosen = FilterChoice(self.found, self.scores)
        self.remove = self.button("Remove filter", self._remove)
        self.undo = self.button("Undo", self._undo)
        self.reset = self.button("Reset", self._reset)
        self.finish = self.button("Finish: show the test figures", self._finish, "Testing ...", WIDE)
        self.board = widgets.HTML(_board())
        self.chosen.wire(self)
        self.show([self.chosen.layer, self.chosen.rank, self.remove],
                  [self.undo, self.reset, self.finish], below=[self.board])

    def state(self) -> Game:
        """The game as plain values."""
        return Game(tuple(self.mask.positions), self.chosen.position, self.test)

    def compute(self, state: Game) -> Played:
        """The validation figures of every step; each is measured once."""
        return Played(state, [self._validated(state.removed[:n]) for n in range(len(state.removed) + 1)])

    def _validated(self, removed: tuple[int, ...]) -> Validation:
        if removed not in self._known:
            self._known[removed] = validate(self._without(removed), self.validation)
        return self._known[removed]

    def _without(self, removed: tuple[int, ...]) -> Any:
        self.model.load_state_dict(self.victim.model.state_dict())
        silence(self.model, self.found, removed)
        return self.model

    def draw(self, computed: Played) -> Picture:
        """The map of filters above; below losses and accuracy by removal, and the test figures once finished."""
        (removed, position, test), rows = computed
        with style.in_style():
            figure = blank(5.35)
            ax = place(figure, 1.55, 0.42, 6.15, 2.25)
            note = heat_map(ax, self.found, self.scores, position, removed)
            ax.set_title(f"Gradient scores of the given model{note}")
            draw_progress(figure, rows)
            draw_test(place(figure, 5.75, 3.55, 2.5, 1.25), test)
        return Picture(figure, self._words(computed))

    def _words(self, computed: Played) -> str:
        (removed, position, test), (given, *_, now) = computed.game, [*computed.rows, computed.rows[-1]]
        text = f"{count(len(removed), 'filter')} removed"
        if not removed:
            text = (f"Nothing removed yet: validation accuracy {given.acc:.1%}, "
                    f"unlearning loss {given.unlearning_loss:.3f}")
        else:
            text += f", last {self.found[removed[-1]]}: validation {change('accuracy', given.acc, now.acc)}, " + change(
                "unlearning loss", given.unlearning_loss, now.unlearning_loss, ".3f")
        if test:
            return f"{text}; test: {'; '.join(f'{name} {metrics}' for name, metrics in test.items())}."
        state = "removed already" if position in removed else f"score {self.scores[position]:.3g}"
        return f"{text}; chosen now: {self.found[position]} ({state})."

    # ---- wiring

    def _remove(self) -> None:
        """Remove the chosen filter, then point at the highest score that is left."""
        require(self.test is None, _OVER)
        self.mask.remove(self.model, self.chosen.position)
        self.chosen.go(int(self.scores.masked_fill(~self.mask.alive, -float("inf")).argmax()))

    def _undo(self) -> None:
        require(self.test is None, _OVER)
        self.mask = FilterMask(self.found, self.mask.positions[:-1])

    def _reset(self) -> None:
        self.mask, self.test = FilterMask(self.found), None

    def _finish(self) -> None:
        """Measure both on the test set, and write the result on the board."""
        require(self.test is None, _OVER)
        removed = tuple(self.mask.positions)
        require(len(removed) > 0, "remove at least one filter first.")
        mine, its = self._tested_without(removed), self._tested_without(tuple(self._rivals(len(removed))))
        given = self._tested_without(())
        self.test = {"given": given, "you": mine, "Grad-Prune": its}
        gain = der(given, mine) - der(given, its)
        winner = "a draw" if abs(gain) < 5e-4 else "you" if gain > 0 else "Grad-Prune"
        name = str(getattr(self.victim.trigger, "name", "own"))
        blind = "no" if any(row[1] == name for row in BOARD) else "yes"
        BOARD.insert(0, [str(len(BOARD) + 1), name, str(len(removed)), blind, f"{der(given, mine):.1%}",
                         f"{der(given, its):.1%}", winner])
        self.board.value = _board()

    def _tested_without(self, removed: tuple[int, ...]) -> Metrics:
        if removed not in self._tested:
            self._tested[removed] = self.victim.evaluate(self._without(removed))
        return self._tested[removed]

    def _rivals(self, number: int) -> list[int]:
        """The algorithm's first picks: the highest gradient score among the living, scored again after each."""
        while len(self._picks.positions) < number:
            scores, _ = filter_scores(self._rival, self.found, self.train.triggered, self.train.labels)
            self._picks.remove(self._rival, int(scores.masked_fill(~self._picks.alive, -float("inf")).argmax()))
        return self._picks.positions[:number]


def _board() -> str:
    return table_html(_COLUMNS, BOARD) if BOARD else ""
