"""BeatGradPrune: silence filters by touching them, see the effect at once, then compare with the algorithm."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from gradprune.attacks.poisoning import attack_labels
from gradprune.base.errors import require
from gradprune.datasets import ImageSet, draw_defense_images
from gradprune.evaluation import Metrics, der
from gradprune.models.inference import copy_of
from gradprune.pruning import FilterMask, filter_scores, pair_up, silence
from gradprune.pruning.filters import filters
from gradprune.victims import Victim
from gradprune.views.figures import style
from gradprune.views.figures.drawing import blank, place, table_html
from gradprune.views.figures.network_picture import corners, draw_network, readers, shares, signal, signal_colors
from gradprune.views.figures.picture import Picture, changes, count
from gradprune.views.panels.controls import FilterMap, buttons, slider
from gradprune.views.panels.panel import Panel

_OVER = "this game is finished; press Reset for another."
_BUTTON = 165  # pixels: three fit side by side on a page 600 wide
_HEIGHT = 4.9  # inches
_MAP = 0.1, 0.38, 7.6, 2.4  # inches from the left and the top, width and height: the map in the figure
_COLUMNS = ["game", "attack", "filters", "test set unseen", "DER: you", "DER: Grad-Prune", "winner"]
_HIDDEN = "hidden until you finish:\nfigures that helped to choose\nno longer measure anything"
BOARD: list[list[str]] = []  # the score board, kept as long as the notebook's kernel runs


class Game(NamedTuple):
    """The values of the controls: filters removed, in order; the filter framed; colours by score or by signal; the
    test figures once finished."""  # noqa: D209

    removed: tuple[int, ...]
    position: int
    score: bool
    test: dict[str, Metrics] | None


class Played(NamedTuple):
    """The game, the metrics on the player's images after each move (the given model first), and a value per filter."""

    game: Game
    rows: list[Metrics]
    values: np.ndarray


class BeatGradPrune(Panel):
    """All filters of the network as cells: touch one to silence it, touch it again to bring it back.

    ACC, ASR and RA on the player's own images change at once; "Finish" shows the test figures beside the algorithm's.
    victim: a copy of its model is pruned. spc: defence images per class, as in `grad_prune`; the player sees the
    metrics on all of them, the algorithm uses the training part. It removes the same number of filters, by gradient
    score. `BOARD` keeps all results of this kernel.
    Raises InputError as `draw_defense_images`, `filters` and `evaluate` do.
    """

    def __init__(self, victim: Victim, spc: int = 10) -> None:
        super().__init__(victim)
        self.model = copy_of(victim.model)
        train, held = draw_defense_images(victim.data.defense, spc)
        self.train = pair_up(train, victim.trigger, next(self.model.parameters()).device)
        own = ImageSet(torch.cat([train.images, held.images]), torch.cat([train.labels, held.labels]), train.classes)
        self.wanted = attack_labels(own, victim.target, victim.label_map)
        self.own = pair_up(own, victim.trigger, next(self.model.parameters()).device)
        self.found = filters(self.model, self.train.clean[:1])
        self.scores, _ = filter_scores(self.model, self.found, self.train.triggered, self.train.labels)
        self.reads = readers(self.model, self.found)
        self.order = self.scores.argsort(descending=True, stable=True).tolist()
        self.mask = FilterMask(self.found)
        self._measured = cache(self._measure)
        self._rival, self._picks = copy_of(victim.model), FilterMask(self.found)
        self._tested = cache(lambda removed: victim.evaluate(self._without(removed)))
        self.test: dict[str, Metrics] | None = None
        self.rank = slider("Rank", 1, len(self.found), 1)
        self.color = buttons("Colour", [("signal", False), ("score", True)], False)
        self.toggle = self.button("Silence / bring back", lambda: self._toggle(self.state().position), width=_BUTTON)
        self.reset = self.button("Reset", self._reset, width=_BUTTON)
        self.finish = self.button("Finish: test figures", self._finish, "Testing ...", _BUTTON)
        self.board = widgets.HTML(_board())
        cells = [str(self.found[place]) for place in range(len(self.found))]
        self.stage = self.map = FilterMap(self.figure, cells, self._places())
        self.on_change([self.map.cells], self._touched)
        self.show([self.rank, self.color], [self.toggle, self.reset, self.finish], below=[self.board])

    def state(self) -> Game:
        """The game as plain values."""
        return Game(tuple(self.mask.positions), self.order[self.rank.value - 1], self.color.value, self.test)

    def compute(self, state: Game) -> Played:
        """The metrics after every move, each measured once, and the values that colour the cells."""
        known = [self._measured(state.removed[:n]) for n in range(len(state.removed) + 1)]
        values = self.scores.numpy() if state.score else shares(self.found, known[-1][1], known[0][1])
        return Played(state, [metrics for metrics, _ in known], values)

    def _measure(self, removed: tuple[int, ...]) -> tuple[Metrics, Tensor]:
        moved, *outputs = signal(self._without(removed), self.found, self.own)
        clean, triggered = (output.argmax(1) for output in outputs)
        labels, counted = self.own.labels.cpu(), self.wanted != self.own.labels.cpu()
        right, hits, kept = clean == labels, (triggered == self.wanted)[counted], (triggered == labels)[counted]
        return Metrics(*(part.double().mean().item() for part in (right, hits, kept))), moved

    def _without(self, removed: tuple[int, ...]) -> Any:
        self.model.load_state_dict(self.victim.model.state_dict())
        silence(self.model, self.found, removed)
        return self.model

    def draw(self, computed: Played) -> Picture:
        """The network above; below it the metrics now and move by move, and the test figures once finished."""
        game, rows, values = computed
        colors, note = style.score_colors(values) if game.score else (signal_colors(), "")
        with blank(_HEIGHT) as figure:
            ax = place(figure, *_MAP)
            draw_network(ax, self.found, values, colors, self.reads, game.removed)
            ax.add_patch(Rectangle(tuple(corners(self.found)[game.position]), 1, 1, **style.SELECTED))
            style.score_bar(ax, colors)
            ax.set_title(f"Gradient score{note}" if game.score else "How much the trigger changes each filter, 0 to 1")
            _draw_now(figure, rows, len(self.own.labels))
            _draw_progress(figure, rows)
            _draw_test(place(figure, 5.75, 3.6, 2.5, 1.25), game.test)
        return Picture(figure, self._words(computed))

    def _words(self, computed: Played) -> str:
        (removed, position, _, test), rows, values = computed
        if removed:
            text = f"{count(len(removed), 'filter')} silenced, last {self.found[removed[-1]]}: "
            text += changes(rows[0]._asdict(), rows[-1]._asdict())
        else:
            text = f"Nothing silenced yet: {rows[0]}"
        text += f", on your {len(self.own.labels)} images"
        if test:
            return f"{text}; test: {'; '.join(f'{name} {metrics}' for name, metrics in test.items())}."
        signal_now = "" if computed.game.score else f", signal {values[position]:.0%}"
        told = "silent" if position in removed else f"score {self.scores[position]:.3g}{signal_now}"
        return f"{text}; framed: {self.found[position]} ({told})."

    # ---- wiring

    def _places(self) -> np.ndarray:
        """Each cell's left, top, width and height as shares of the figure."""
        with blank(_HEIGHT) as figure:
            ax = place(figure, *_MAP)
            draw_network(ax, self.found, np.zeros(len(self.found)), signal_colors(), [])
        upper = corners(self.found)
        ends = [figure.transFigure.inverted().transform(ax.transData.transform(edge)) for edge in (upper, upper + 1)]
        (left, top), (right, low) = (end.T for end in ends)
        return np.stack([left, 1 - top, right - left, top - low], 1)

    def _touched(self) -> None:
        """Frame the cell that was pressed, and toggle its filter."""
        position = self.map.cells.index
        self.map.cells.index = None  # the same one may be pressed again
        if position is not None:
            self.rank.value = self.order.index(position) + 1
            self._toggle(position)

    def _toggle(self, position: int) -> None:
        require(self.test is None, _OVER)
        removed = self.mask.positions
        left = [other for other in removed if other != position]
        self.mask = FilterMask(self.found, left if position in removed else [*removed, position])

    def _reset(self) -> None:
        self.mask, self.test = FilterMask(self.found), None

    def _finish(self) -> None:
        """Measure both on the test set, and add the result to the score board."""
        require(self.test is None, _OVER)
        removed = tuple(self.mask.positions)
        require(len(removed) > 0, "remove at least one filter first.")
        mine, its, given = map(self._tested, (removed, tuple(self._rivals(len(removed))), ()))
        self.test = {"given": given, "you": mine, "Grad-Prune": its}
        gain = der(given, mine) - der(given, its)
        winner = "a draw" if abs(gain) < 5e-4 else "you" if gain > 0 else "Grad-Prune"
        name = str(getattr(self.victim.trigger, "name", "own"))
        blind = "no" if any(row[1] == name for row in BOARD) else "yes"
        BOARD.insert(0, [str(len(BOARD) + 1), name, str(len(removed)), blind, f"{der(given, mine):.1%}",
                         f"{der(given, its):.1%}", winner])
        self.board.value = _board()

    def _rivals(self, number: int) -> list[int]:
        """The algorithm's first picks: the highest gradient score among the filters left, scored again after each."""
        while len(self._picks.positions) < number:
            scores, _ = filter_scores(self._rival, self.found, self.train.triggered, self.train.labels)
            self._picks.remove(self._rival, int(scores.masked_fill(~self._picks.alive, -float("inf")).argmax()))
        return self._picks.positions[:number]


def _board() -> str:
    return table_html(_COLUMNS, BOARD) if BOARD else ""


def _draw_now(figure: Figure, rows: Sequence[Metrics], images: int) -> None:
    """ACC, ASR and RA on the player's images, large, with those of the given model below."""
    ax = place(figure, 0.15, 3.6, 2.6, 1.25)
    ax.set_axis_off()
    ax.set_title(f"Your {images} images, now", fontsize=style.NORMAL)
    for column, (key, mark) in enumerate(style.METRICS.items()):
        given, now = (f"{getattr(metrics, key):.0%}" for metrics in (rows[0], rows[-1]))
        style.write(ax, mark.name, (column / 3, 1), (0, -14), color=mark.color, fontweight="bold")
        style.write(ax, now, (column / 3, 1), (0, -40), color=mark.color, fontweight="bold", fontsize=16)
        style.write(ax, f"given {given}", (column / 3, 1), (0, -58), color=style.FAINT)


def _draw_progress(figure: Figure, rows: Sequence[Metrics]) -> None:
    """ACC, ASR and RA on the player's images, move by move."""
    ax = place(figure, 3.3, 3.6, 1.75, 0.85)
    style.draw_lines(ax, range(len(rows)), {mark.name: ([getattr(row, key) for row in rows], mark)
                                            for key, mark in style.METRICS.items()}, shares=True)
    ax.set_title("Move by move", fontsize=style.NORMAL)
    ax.set_xlabel("filters silenced")
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.set_xlim(-0.1, max(1, len(rows) - 1))


def _draw_test(ax: Axes, test: Mapping[str, Metrics] | None) -> None:
    """A table of the test results by player, or why there is none yet."""
    ax.set_axis_off()
    ax.set_title("Test figures", fontsize=style.NORMAL)
    if test is None:
        style.write(ax, _HIDDEN, (0, 1), (0, -6), va="top", color=style.FAINT)
        return
    for row, name in enumerate(test):
        style.write(ax, name, (0, 1), (0, -30 - 18 * row))
    for right, (key, mark) in zip((0.5, 0.75, 1.0), style.METRICS.items(), strict=True):
        style.write(ax, mark.name, (right, 1), (0, -12), ha="right", color=mark.color, fontweight="bold")
        for row, metrics in enumerate(test.values()):
            text = f"{getattr(metrics, key):.1%}"
            style.write(ax, text, (right, 1), (0, -30 - 18 * row), ha="right", color=mark.color)
