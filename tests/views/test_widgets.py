"""The panels: what they show equals a direct calculation, they say their errors, and they leave nothing behind."""

import copy
import gc
import sys
import weakref
from importlib import import_module
from unittest.mock import Mock

import ipywidgets as widgets
import matplotlib
import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from conftest import family, holds, put, refuses, same, without
from ipywidgets.widgets.widget import _instances
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from toys import parts

from gradprune.attacks import make_trigger
from gradprune.base.errors import InputError
from gradprune.datasets import ImageSet, draw_defense_images
from gradprune.evaluation import evaluate, replay
from gradprune.models import build, predict
from gradprune.pruning import paper, unlearning_loss
from gradprune.pruning.filters import filters
from gradprune.victims import Victim
from gradprune.views import BeatGradPrune, DefenceComparer, OneNeuron, PruningPlayer, ScanExplorer, TriggerStudio
from gradprune.views.figures import style
from gradprune.views.figures.drawing import ERROR_CLASS, blank, place
from gradprune.views.figures.network_picture import corners
from gradprune.views.figures.plots import heat_map
from gradprune.views.panels import beat_grad_prune
from gradprune.views.panels.filter_explorer import ALL, FilterExplorer

PANELS = [TriggerStudio, FilterExplorer, PruningPlayer, BeatGradPrune]
ALL_PANELS = [*PANELS, OneNeuron, DefenceComparer, ScanExplorer]


@pytest.fixture(autouse=True)
def _strict(monkeypatch):
    """Whatever goes wrong in a callback fails the test; and every test begins with an empty score board."""
    monkeypatch.setenv("GRADPRUNE_STRICT", "1")
    monkeypatch.setattr(beat_grad_prune, "BOARD", [])


def slider_of(panel) -> tuple[widgets.Widget, list]:
    """A control that changes what the panel shows, with some values in turn, the first of which it does not have."""
    found = {TriggerStudio: lambda: panel.strength, PruningPlayer: lambda: panel.round, BeatGradPrune: lambda: panel.rank,
             OneNeuron: lambda: panel.sign, ScanExplorer: lambda: panel.image, DefenceComparer: lambda: panel.metric}.get(type(panel), lambda: panel.chosen.rank)()
    if found is getattr(panel, "metric", None):
        return found, ["acc", "asr", "ra"]
    return found, [found.min + step * found.step for step in ((0, 1, 2) if found.value != found.min else (2, 1, 0))]


# ---- what each panel shows


def test_trigger_studio_asks_the_model_about_both_images(make, victim):
    panel = make(TriggerStudio)
    for image, strength, size in ((3, 1.0, 3), (7, 0.5, 3), (7, 0.5, 5)):
        put(panel.image, image)
        put(panel.strength, strength)
        put(panel.knobs[0], size)
        clean = victim.data.test.floats()[image:image + 1]
        stamped = make_trigger("badnets", **victim.trigger.settings | {"size": size})(clean)
        images = torch.cat([clean, clean + strength * (stamped - clean)])
        seen = panel.compute(panel.state())
        assert torch.allclose(seen.rows[0].images, images, atol=1e-6)
        assert torch.allclose(seen.rows[0].chances, predict(victim.model, images).softmax(1), atol=1e-5)
        answer = victim.data.test.classes[int(seen.rows[0].chances[1].argmax())]
        assert f"Image {image}," in panel.sentence
        assert f"({size} pixels wide, 0 from the edge, bottom right, checker, strength {strength:.0%}) for “{answer}”" in panel.sentence


def test_trigger_studio_steps_through_the_images_and_round_the_ends(make, victim):
    panel = make(TriggerStudio)
    put(panel.image, 0)
    panel.previous.click()
    assert panel.image.value == len(victim.data.test) - 1
    panel.next.click()
    assert panel.image.value == 0
    assert panel.sentence.startswith("Image 0,")


@pytest.mark.parametrize("position", ["center", (2, 5), [2, 5]])
def test_trigger_studio_begins_with_the_attackers_own_settings(make, victim, position):
    own = make_trigger("badnets", size=4, position=position, color="red")
    panel = make(TriggerStudio, Victim(victim.model, own, 1, victim.data, {}))
    assert panel.trigger(panel.state()) is own
    put(panel.choices[0], "top_right")
    assert panel.trigger(panel.state()).settings == own.settings | {"position": "top_right"}


def test_trigger_studio_takes_a_trigger_that_nobody_knows(make, victim):
    class Dim(torch.nn.Module):
        def forward(self, images):
            return images * 0.5

    panel = make(TriggerStudio, Victim(victim.model, Dim(), 1, victim.data, {}))
    assert "with Dim (strength 100%)" in panel.sentence
    assert {control.layout.display for control in (*panel.knobs, *panel.choices)} == {"none"}
    put(panel.strength, 0.5)
    images = panel.compute(panel.state()).rows[0].images
    assert torch.allclose(images[1], images[0] * 0.75)


def test_trigger_studio_measures_asr_on_a_button_that_is_disabled_meanwhile(make, victim, monkeypatch):
    panel, seen = make(TriggerStudio), []

    def watched(*args, **settings):
        seen.append((panel.measure.disabled, panel.measure.description))
        return evaluate(*args, **settings)

    monkeypatch.setattr("gradprune.views.panels.trigger_studio.evaluate", watched)
    panel.measure.click()
    assert seen == [(True, "Measuring ...")]
    assert not panel.measure.disabled
    metrics = victim.evaluate()
    assert list(panel.measured.values()) == [metrics]
    assert f"{metrics.asr:.1%}" in panel.board.value
    put(panel.strength, 0.2)
    panel.measure.click()
    assert len(panel.measured) == 2
    assert next(iter(panel.measured.values())).asr < metrics.asr  # newest first


def test_filter_explorer_shows_responses_and_the_real_change_of_loss(make, victim):
    panel = make(FilterExplorer)
    pairs, _ = parts(victim, 10)
    found = filters(victim.model, pairs.clean[:1])
    for position in (0, 17, 40):
        layer, index = found[position]
        panel.chosen.go(position)
        put(panel.image, 2)
        detail = panel.compute(panel.state())
        outputs = []
        with victim.model.get_submodule(layer).register_forward_hook(lambda _, __, out: outputs.append(out)):
            predict(victim.model, torch.stack([pairs.clean[2], pairs.triggered[2]]))
        assert torch.allclose(detail.maps, outputs[0][:, index], atol=1e-5)
        assert torch.equal(detail.kernel, victim.model.get_submodule(layer).weight[index])
        with torch.no_grad():
            loss = unlearning_loss(without(victim, position), pairs.triggered, pairs.labels).item()
            given = unlearning_loss(victim.model, pairs.triggered, pairs.labels).item()
        assert detail.loss == pytest.approx(loss, abs=1e-5)
        assert panel.loss == pytest.approx(given, abs=1e-5)
        assert holds(panel.sentence, f"{found[position]} has rank", f"from {given:.3f} to {loss:.3f}")


def test_filter_explorer_predicts_what_the_gradient_says(make, victim):
    panel = make(FilterExplorer)
    pairs, _ = parts(victim, 10)
    weight = victim.model.stages[0][0].conv1.weight
    gradient, = torch.autograd.grad(F.cross_entropy(victim.model(pairs.triggered), pairs.labels), [weight])
    panel.chosen.go(21)
    assert f"predicted {-(weight * gradient)[5].sum():+.3g} by taylor" in panel.sentence


def test_the_controls_of_the_filter_keep_in_step(make):
    panel = make(FilterExplorer)
    chosen, scores = panel.chosen, panel.scores["gradient"]
    assert panel.state().position == int(scores.argmax())

    def check(in_layer):
        layer = panel.found.layer_of(chosen.position)
        part = scores[layer.start:layer.start + layer.count] if in_layer else scores
        assert chosen.layer.value == (layer.start if in_layer else ALL)
        assert chosen.rank.max == len(part)
        assert int((part > scores[chosen.position]).sum()) == chosen.rank.value - 1
        assert str(panel.found[chosen.position]) in panel.sentence

    assert chosen.position == int(scores.argmax())
    check(False)
    put(chosen.rank, 30)
    check(False)
    put(chosen.layer, 16)
    assert chosen.rank.value == 1
    check(True)
    put(chosen.rank, 9)
    check(True)
    before = chosen.position
    scores = panel.scores["gate"]
    put(panel.score, "gate")
    assert chosen.position == before
    check(True)
    put(chosen.layer, ALL)
    assert chosen.position == int(scores.argmax())
    check(False)


def test_one_change_is_drawn_once(make, monkeypatch):
    panel, drawn = make(FilterExplorer), []
    real = panel.draw
    monkeypatch.setattr(panel, "draw", lambda computed: drawn.append(1) or real(computed))
    for control, value in ((panel.chosen.layer, 16), (panel.chosen.rank, 4), (panel.score, "taylor"), (panel.image, 1)):
        drawn.clear()
        put(control, value)
        assert drawn == [1], control.description


def test_the_heat_map_holds_models_with_many_filters():
    found = filters(build("preact_resnet", 4, width=64, blocks=(2, 2, 2, 2)), torch.zeros(1, 3, 32, 32))
    with blank(5) as figure:
        ax = place(figure, 1, 1, 6, 3)
    heat_map(ax, found, torch.rand(len(found)), 4000, removed=[1, 2], top=[5, 6])
    shades = ax.images[0].get_array()
    filled = (shades[..., :3] != (np.array(to_rgb(style.EMPTY)) * 255).astype(int)).any(2)
    assert filled.sum() == len(found)
    assert shades.shape[0] < 60


def test_pruning_player_replays_the_run_on_the_first_images_of_each_class(make, victim, result):
    panel = make(PruningPlayer, each=10)
    test = victim.data.test
    sample = test.subset(torch.cat([(test.labels == label).nonzero()[:10, 0] for label in range(4)]))
    rows = replay(victim.model, result.history, sample, victim.trigger, victim.target)
    assert [tuple(row.values()) for row in panel.current.rows] == [tuple(row.values()) for row in rows]
    assert panel.round.value == len(result.mask.positions)
    found, positions = filters(victim.model, test.floats()[:1]), []
    for row in rows:
        put(panel.round, row["round"])
        if row["layer"]:
            positions.append(found.position(row["layer"], row["index"]))
        chances = predict(without(victim, *positions), panel.pixels).softmax(1)
        frame = panel.compute(panel.state())
        assert torch.equal(frame.answers, chances.argmax(1))
        assert torch.allclose(frame.sure, chances.amax(1), atol=1e-5)
        assert f"ACC {row['acc']:.1%}, ASR {row['asr']:.1%}, RA {row['ra']:.1%} on 40 test images" in panel.sentence
        assert f"{int((chances.argmax(1) == panel.shown.labels).sum())} right" in panel.sentence
    assert victim.target not in panel.shown.labels


def test_pruning_player_steps_through_the_rounds(make):
    panel = make(PruningPlayer)
    put(panel.round, panel.round.max)
    panel.next.click()
    assert panel.round.value == 0
    assert "the given model" in panel.sentence
    panel.next.click()
    assert panel.sentence.startswith("Round 1 of")


def test_pruning_player_without_a_result_prunes_on_its_button(make):
    panel = make(PruningPlayer, result=None)
    assert panel.round.disabled
    assert panel.sentence.startswith("Nothing pruned yet, the given model: ACC")
    panel.run.click()
    assert not panel.round.disabled
    assert panel.round.value == panel.current.kept > 0
    assert f"Round {panel.round.value} of {len(panel.current.rows) - 1}" in panel.sentence


def test_pruning_player_refuses_a_result_without_rounds(victim, result):
    empty = copy.copy(result)
    empty.history = []
    refuses("no pruning rounds", PruningPlayer, victim, empty)


def touch(panel, position: int) -> None:
    """Press a cell the way the browser does."""
    panel.map.cells.set_state({"index": position})
    assert panel.map.cells.index is None  # ready for the same cell


def test_beat_grad_prune_shows_figures_of_ones_own_images_until_it_is_finished(make, victim):
    panel = make(BeatGradPrune)
    train, held = draw_defense_images(victim.data.defense, 10)
    own = ImageSet(torch.cat([train.images, held.images]), torch.cat([train.labels, held.labels]), train.classes)
    figures = [evaluate(model, own, victim.trigger, victim.target) for model in
               (victim.model, without(victim, 3), without(victim, 3, 20))]
    touch(panel, 3)
    touch(panel, 20)
    for row, truth in zip(panel.compute(panel.state()).rows, figures, strict=True):
        assert row == pytest.approx(truth, abs=1e-9)
    assert f"2 filters silenced, last {panel.found[20]}" in panel.sentence and "test:" not in panel.sentence
    assert f"framed: {panel.found[20]} (silent)" in panel.sentence
    touch(panel, 3)
    assert panel.state().removed == (20,)
    put(panel.rank, 1 + panel.order.index(20))
    panel.toggle.click()
    assert panel.sentence.startswith("Nothing silenced yet")
    panel.toggle.click()
    panel.reset.click()
    assert panel.state().removed == ()


def test_the_keys_reach_every_cell_and_colours_follow_the_choice(make, victim):
    panel = make(BeatGradPrune)
    assert sorted(panel.order) == list(range(len(panel.found)))
    put(panel.rank, 5)
    position = panel.order[4]
    panel.toggle.click()
    assert panel.state().removed == (position,) and panel.rank.value == 5
    values = panel.compute(panel.state()).values
    assert values[position] == 0 and values.max() <= 1
    put(panel.color, True)
    assert np.array_equal(panel.compute(panel.state()).values, panel.scores.numpy())


def test_a_press_meets_the_cell_that_is_drawn_there(make):
    """The middle of each button, as a share of the figure, lies in the cell of that filter, and in no other."""
    panel = make(BeatGradPrune)
    drawn = panel.picture.figure
    ax = drawn.axes[0]
    middles = panel._places() @ np.array([[1, 0], [0, 1], [0.5, 0], [0, 0.5]])
    middles[:, 1] = 1 - middles[:, 1]
    inside = ax.transData.inverted().transform(drawn.transFigure.transform(middles))
    assert np.allclose(inside, corners(panel.found) + 0.5, atol=1e-6)
    cells = panel.map.cells
    assert list(cells.options) == [str(name) for name in panel.found] and len(set(cells.options)) == len(panel.found)
    rules = panel.map.children[-1].value
    assert all(f'button[value="{number}"]' in rules for number in range(len(panel.found)))


def test_beat_grad_prune_compares_at_equal_filter_count_on_the_test_set(make, victim):
    panel = make(BeatGradPrune)
    for position in (3, 20):
        touch(panel, position)
    panel.finish.click()
    model = copy.deepcopy(victim.model)
    found = filters(model, victim.data.test.floats()[:1])
    run = paper(model, found, *parts(victim, 10), alpha=1.0, progress=False)
    picks = [found.position(row["layer"], row["index"]) for row in run.history[1:3]]
    assert panel.test == {"given": victim.evaluate(), "you": victim.evaluate(without(victim, 3, 20)),
                          "Grad-Prune": victim.evaluate(without(victim, *picks))}
    assert f"you {panel.test['you']}" in panel.sentence
    assert [row[1:4] for row in beat_grad_prune.BOARD] == [["badnets", "2", "yes"]]
    refuses("finished", panel.toggle.click)
    refuses("finished", panel.finish.click)
    panel.reset.click()
    assert "test:" not in panel.sentence
    for position in picks:
        touch(panel, position)
    panel.finish.click()
    assert beat_grad_prune.BOARD[0][-1] == "a draw"
    assert beat_grad_prune.BOARD[0][3] == "no"  # the test figures have been seen
    assert make(BeatGradPrune).board.value == panel.board.value  # the board outlives a panel


def test_beat_grad_prune_wants_a_move_before_the_end(make):
    panel = make(BeatGradPrune)
    refuses("at least one filter", panel.finish.click)
    assert "at least one filter" in panel.error.value
    assert not panel.finish.disabled


# ---- what all panels keep to


@pytest.mark.parametrize("kind", ALL_PANELS)
def test_a_slider_changes_figure_and_sentence_and_the_same_state_neither(make, kind):
    panel = make(kind)
    slider, values = slider_of(panel)
    state, figure, summary = panel.state(), panel.figure.value, panel.summary.value
    panel.refresh()
    assert (panel.state(), panel.figure.value) == (state, figure)
    put(slider, values[0])
    assert panel.figure.value != figure and 'alt="' in panel.figure.value
    assert panel.summary.value != summary and 'role="status"' in panel.summary.value
    assert panel.sentence.split(";")[0][:20] in panel.summary.value
    assert panel.picture.summary == panel.sentence
    assert panel.picture.png()


@pytest.mark.parametrize("kind", ALL_PANELS)
def test_an_error_turns_red_and_is_raised_under_strict_alone(make, monkeypatch, kind):
    panel = make(kind)
    slider, values = slider_of(panel)
    put(slider, values[0])

    def broken(state):
        raise ZeroDivisionError("<b>no</b> such thing")

    with monkeypatch.context() as patch:
        patch.setattr(panel, "compute", broken)
        with pytest.raises(ZeroDivisionError):
            put(slider, values[1])
        patch.setenv("GRADPRUNE_STRICT", "0")
        put(slider, values[2])
        assert holds(panel.error.value, f'class="{ERROR_CLASS}"', "ZeroDivisionError: &lt;b&gt;no&lt;/b&gt; such thing",
                     "Traceback (most recent call last)", "in broken")

    with monkeypatch.context() as patch:
        patch.setattr(panel, "compute", Mock(side_effect=InputError("one must not do that.")))
        patch.setenv("GRADPRUNE_STRICT", "0")
        put(slider, values[0])
        assert "one must not do that." in panel.error.value and "Traceback" not in panel.error.value
    put(slider, values[1])
    assert panel.error.value == ""


@pytest.mark.parametrize("kind", ALL_PANELS)
def test_every_control_is_described_and_speaks_when_let_go(make, kind):
    panel = make(kind)
    controls = [widget for widget in family(panel) if hasattr(widget, "value") and not isinstance(widget, widgets.HTML)]
    assert controls
    for control in controls + [widget for widget in family(panel) if isinstance(widget, widgets.Button)]:
        assert getattr(control, "description", "") or isinstance(control, widgets.Label), control
        assert not getattr(control, "continuous_update", False) and control.tabbable is not False, control
    order = list(family(panel))
    assert order.index(controls[0]) < order.index(panel.figure) < order.index(panel.summary)


@pytest.mark.parametrize("kind", PANELS)
def test_the_victims_model_stays_as_it_is(make, victim, kind):
    before = copy.deepcopy(victim.model.state_dict())
    panel = make(kind)
    slider, values = slider_of(panel)
    put(slider, values[0])
    if kind is BeatGradPrune:
        panel.toggle.click()
        panel.finish.click()
    assert same(before, victim.model)
    assert not any(module.training or module._forward_hooks for module in victim.model.modules())
    assert all(parameter.requires_grad for parameter in victim.model.parameters())


@pytest.mark.parametrize("kind", ALL_PANELS)
def test_closing_leaves_nothing(given, kind):
    gc.collect()
    before = set(_instances)
    panel = kind(*given(kind))
    slider, values = slider_of(panel)
    put(slider, values[0])
    models = [value for value in vars(panel).values() if isinstance(value, torch.nn.Module)]
    assert set(_instances) > before
    button = next((w for w in family(panel) if isinstance(w, widgets.Button)), None)
    panel.close()
    assert set(_instances) == before
    assert not slider._trait_notifiers.get("value")
    if button:
        button.click()
    assert not any(module._forward_hooks or module._backward_hooks for model in models for module in model.modules())
    panel.close()  # twice does no harm
    gone = weakref.ref(panel)
    del panel, models, slider, button
    gc.collect()
    assert gone() is None


@pytest.mark.slow
def test_two_hundred_updates_leave_no_memory_behind(make):
    panels = [make(kind) for kind in PANELS]
    process = psutil.Process()

    def update(rounds):
        for turn in range(rounds):
            put(panels[0].strength, 0.1 * (turn % 9))
            put(panels[1].chosen.rank, 1 + turn % 16)
            put(panels[2].round, turn % len(panels[2].current.rows))
            put(panels[3].rank, 1 + turn % 16)

    update(5)
    gc.collect()
    before, alive = process.memory_info().rss, len(_instances)
    older = [thing for thing in gc.get_objects() if type(thing) is Figure]  # of other tests in this process
    update(50)
    assert gc.isenabled()
    assert (process.memory_info().rss - before) / 2**20 < 20
    assert len(_instances) == alive
    figures = [thing for thing in gc.get_objects() if type(thing) is Figure and thing.axes and thing not in older]
    assert not figures
    assert "matplotlib.pyplot" not in sys.modules or not matplotlib.pyplot.get_fignums()


def test_grey_images_are_shown_too(make):
    generator = torch.Generator().manual_seed(0)
    images = ImageSet(torch.randint(0, 255, (60, 1, 16, 16), generator=generator, dtype=torch.uint8), torch.arange(60) % 3,
                      ("a", "b", "c"))
    victim = Victim(build("preact_resnet", 3, width=4, blocks=(1,), channels=1).eval(), make_trigger("sig"), 0,
                    type("Data", (), {"train": images, "defense": images, "test": images})(), {})
    for kind in PANELS:
        assert make(kind, victim, **({"result": None} if kind is PruningPlayer else {})).sentence


def test_a_model_may_know_more_classes_than_the_images(make, victim):
    images = [ImageSet(part.images, part.labels.clamp(max=2), part.classes[:3]) for part in victim.data]
    smaller = Victim(victim.model, victim.trigger, 1, type(victim.data)(*images), {})
    panel = make(TriggerStudio, smaller)
    put(panel.image, 3)  # its class has no name here
    assert "clean, it is taken for “class 3”" in panel.sentence
    assert make(PruningPlayer, smaller, result=None).sentence


@pytest.mark.parametrize("kind", PANELS)
def test_a_panel_takes_victims_only(kind):
    refuses("a panel takes a Victim", kind, "badnets")


def test_without_ipywidgets_the_figures_work_and_the_panels_say_what_is_missing(monkeypatch):
    from gradprune import views

    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    for name in ("trigger_studio", "panel"):
        monkeypatch.delitem(sys.modules, f"gradprune.views.panels.{name}")
    with pytest.raises(InputError, match=r"TriggerStudio needs ipywidgets.*gradprune\[notebooks\]"):
        views.TriggerStudio  # noqa: B018
    monkeypatch.delitem(sys.modules, "gradprune.views.figures.comparison")
    assert import_module("gradprune.views.figures.comparison").defences_compared
    with pytest.raises(AttributeError, match="Nothing"):
        views.Nothing  # noqa: B018
