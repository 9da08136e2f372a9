"""PruningPlayer: step through a pruning run, round by round."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from gradprune.attacks.poisoning import attack_labels
from gradprune.base.errors import require
from gradprune.defenses import DefenseResult, grad_prune
from gradprune.evaluation import replay
from gradprune.models import predict
from gradprune.pruning import RECIPES, silence
from gradprune.pruning.filters import filters
from gradprune.victims import Victim
from gradprune.views.figures import style
from gradprune.views.figures.drawing import blank, judge, place, show_image, write_answer
from gradprune.views.figures.example_images import first_of_each
from gradprune.views.figures.picture import Picture, count
from gradprune.views.figures.style import METRICS, plain
from gradprune.views.panels.controls import buttons, slider
from gradprune.views.panels.panel import Panel

_SHOWN = 6  # example images at most: the first test image of each class but the target
_SAME = "spc", "seed", "alpha", "patience"  # settings that a second run takes from the first
_GIVEN = {"stage": "prune", "round": 0, "layer": None, "index": None}  # a run before its first round


class Run(NamedTuple):
    """A replayed run: rows, the round kept, why each filter was removed, probabilities (rounds, images, classes)."""

    rows: Sequence[dict[str, Any]]
    kept: int
    reasons: Sequence[str]
    chances: Tensor


class Moment(NamedTuple):
    """The values of the controls: the recipe and the round."""

    recipe: str
    round: int


class Frame(NamedTuple):
    """One round: the whole run, the round shown, its answers and their probabilities (images,)."""

    run: Run
    round: int
    answers: Tensor
    sure: Tensor


class PruningPlayer(Panel):
    """ACC, ASR and RA over the rounds of a pruning run, the filter removed, and the answers to some triggered images.

    victim: the model the run began with. result: what `grad_prune` returned for it, or None. A button runs a recipe
    that has not been run yet, without fine-tuning, on the same images as `result`; each run can then be chosen. each:
    test images per class on which a run is replayed, once. The test figures explain the runs and never steer them.
    Raises InputError for a history without pruning rows or of another model.
    """

    State = Moment

    def __init__(self, victim: Victim, result: DefenseResult | None = None, each: int = 20) -> None:
        super().__init__(victim)
        self.sample = first_of_each(victim.data.test.to("cpu"), each)
        others = self.sample.subset(attack_labels(self.sample, victim.target, self.label_map) != self.sample.labels)
        shown = first_of_each(others, 1)
        self.shown = shown.subset(torch.arange(len(shown))[:_SHOWN])
        self.wanted = attack_labels(self.shown, victim.target, self.label_map)
        self.pixels = self.shown.triggered(victim.trigger)
        settings: dict[str, Any] = result.settings if result else {"recipe": "paper"}
        own = settings.get("recipe", "")  # other pruning defences have no recipe
        known = list(RECIPES) if own in RECIPES else [own]
        self.recipe = buttons("Recipe", known, own)
        self.settings = {key: settings[key] for key in _SAME if key in settings}
        first = self.replay_run(result)
        self.unpruned = Run(first.rows[:1], 0, first.reasons[:1], first.chances[:1])
        self.runs = {own: first} if result else {}
        self.round = slider("Round", 0, 1, 0)
        self.next = self.button("Next round", self._next, width=146)
        self.run = self.button("Run Grad-Prune", self._run, "Pruning ...", 146)
        self._go()
        self.on_change([self.recipe], self._go)
        self.show([self.round, self.next], *[[self.recipe, self.run]] * (own in RECIPES))

    def replay_run(self, result: DefenseResult | None) -> Run:
        """Replay a run on the sample, for `runs`; None stands for the model before any run."""
        history: list[dict[str, Any]] = result.rows("prune") if result else [_GIVEN]
        require(len(history) > 0, "the result's history has no pruning rounds.")
        require(not any("channels" in row for row in history),
                f"{result.name if result else ''} removes something other than filters: there are no rounds to play.")
        rows = replay(self.victim.model, history, self.sample, self.victim.trigger, self.victim.target, self.label_map)
        model = copy.deepcopy(self.victim.model)
        found, chances = filters(model, self.pixels[:1]), []
        for row in rows:
            if row["layer"] is not None:
                silence(model, found, [found.position(row["layer"], row["index"])])
            chances.append(predict(model, self.pixels).softmax(1).cpu())
        reasons = [f"place {row['rank'] + 1} on the gradient's shortlist" if "rank" in row else
                   f"score {row['score']:.3g}" if "score" in row else "" for row in history]
        kept = next((place for place, row in enumerate(history) if row.get("kept")), 0)
        return Run(rows, kept, reasons, torch.stack(chances))

    @property
    def current(self) -> Run:
        """The chosen recipe's run, or the model before any run."""
        return self.runs.get(self.recipe.value, self.unpruned)

    def _go(self) -> None:
        """Fit the controls to the chosen recipe's run; the slider goes to the round that was kept."""
        run = self.current
        self.round.max = max(1, len(run.rows) - 1)
        self.round.disabled = self.next.disabled = len(run.rows) == 1
        self.round.value = run.kept

    def _next(self) -> None:
        """Go to the next round; after the last, back to the given model."""
        self.round.value = (self.round.value + 1) % len(self.current.rows)

    def compute(self, state: Moment) -> Frame:
        """Look the round up: everything has been measured once."""
        run = self.runs.get(state.recipe, self.unpruned)
        sure, answers = run.chances[state.round].max(1)
        return Frame(run, state.round, answers, sure)

    def draw(self, computed: Frame) -> Picture:
        """Curves with the round marked; the triggered images with the answers of that round."""
        run, wanted = computed.run, self.wanted.tolist()
        row, why = run.rows[computed.round], run.reasons[computed.round]
        rounds, truths = [r["round"] for r in run.rows], self.shown.labels.tolist()
        with blank(3.95) as figure:
            ax = place(figure, 0.65, 0.72, 3.55, 2.65)
            curves = {mark.name: ([r[key] for r in run.rows], mark) for key, mark in METRICS.items()}
            style.draw_lines(ax, rounds, curves, shares=True)
            if run.kept < rounds[-1]:
                ax.axvspan(run.kept, rounds[-1], color=style.EMPTY, linewidth=0, zorder=0)
                style.write(ax, "tried, then undone", (1, 0.5), (-6, 6), ha="right", color=style.FAINT)
            ax.axvline(computed.round, color=style.INK, linewidth=1.5)
            ax.set_xlabel("round")
            ax.xaxis.set_major_locator(MaxNLocator(10, integer=True))
            if rounds[-1] == 0:
                ax.set(xlim=(-0.2, 9), xticks=[0])
                style.write(ax, "the rounds will appear here", (0.55, 0.5), (0, 0), ha="center", color=style.FAINT)
            removed = f"{plain(row['layer'], tail=True)}[{row['index']}] removed" if row["layer"] else "the given model"
            when = f"Round {computed.round} of {rounds[-1]}" if rounds[-1] else "Nothing pruned yet"
            style.write(ax, f"{when}: {removed}", (0, 1), (-30, 24), fontsize=style.LARGE, fontweight="bold")
            style.write(ax, why, (0, 1), (-30, 12), color=style.FAINT)
            answers = zip(computed.answers.tolist(), truths, wanted, computed.sure.tolist(), strict=True)
            for i, (answer, truth, aim, sure) in enumerate(answers):
                tile = place(figure, 4.95 + 1.15 * (i % 3), 0.52 + 1.7 * (i // 3), 1.1, 1.1)
                show_image(tile, self.pixels[i])
                write_answer(tile, judge(answer, truth, aim), self.written(answer, 14), sure, below=13)
            style.write(ax, "Triggered test images", (0, 1), (4.3 * 72, 24), fontsize=style.LARGE, fontweight="bold")
        hits = int((computed.answers == self.wanted).sum())
        goal = "the next class" if self.label_map == "all_to_all" else f"“{self.victim.target_name}”"
        right = int((computed.answers == self.shown.labels).sum())
        figures = ", ".join(f"{mark.name} {row[key]:.1%}" for key, mark in METRICS.items())
        return Picture(figure, f"{when}, {removed}{f' ({why})' * bool(why)}: {figures} on "
                               f"{count(len(self.sample), 'test image')}; of {count(len(truths), 'triggered example')} "
                               f"{right} right, {hits} taken for {goal}.")

    def _run(self) -> None:
        """Run the chosen recipe, unless it has been run."""
        victim, recipe = self.victim, self.recipe.value
        if recipe not in self.runs:
            result = grad_prune(victim.model, victim.data.defense, victim.trigger, recipe=recipe, tune=False,
                                progress=False, **self.settings)
            self.runs[recipe] = self.replay_run(result)
        self._go()
