"""What the learner sees of recipe `verified`: trials equal removals by hand, recipes side by side, figures that can be read."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_readable, put, refuses, same, texts, without
from toys import parts

from gradprune.defenses import fine_pruning, grad_prune
from gradprune.evaluation import replay
from gradprune.models import predict
from gradprune.pruning import filter_scores, unlearning_loss
from gradprune.pruning.filters import filters
from gradprune.views import FilterExplorer, PruningPlayer
from gradprune.views.figures.pruning_plots import trajectories
from gradprune.views.figures.shortlist import Tried, describe_tried, predicted_and_real, try_shortlist
from gradprune.views.panels import pruning_player


@pytest.fixture(autouse=True)
def _strict(monkeypatch):
    monkeypatch.setenv("GRADPRUNE_STRICT", "1")


@pytest.fixture(scope="module")
def second(victim):
    """A run of `verified` as the player would make it after `result`."""
    return grad_prune(victim.model, victim.data.defense, victim.trigger, spc=9, recipe="verified", tune=False, progress=False)


NAMES = [f"stages.{position}" for position in range(21)]  # names of filters, without a model


def tried(real=(-3.0, -1.0, 8.0), predicted=(-4.0, -3.0, -2.0)) -> Tried:
    return Tried(list(range(5, 5 + len(real))), list(predicted), list(real))


# ---- the shortlist


def test_trials_and_predictions_equal_removals_and_gradients_by_hand(victim):
    pairs, _ = parts(victim, 3)
    found, before = filters(victim.model, pairs.clean[:1]), copy.deepcopy(victim.model.state_dict())
    scores, loss = filter_scores(victim.model, found, pairs.triggered, pairs.labels, "gate")
    seen = try_shortlist(victim.model, found, pairs, scores, k=5)
    assert seen.positions == scores.argsort(descending=True)[:5].tolist()
    assert seen.predicted == pytest.approx((-scores[seen.positions]).tolist())
    with torch.no_grad():
        wanted = victim.model(pairs.clean).log_softmax(1)
        for position, real in zip(seen.positions, seen.real, strict=True):
            model = without(victim, position)
            kept = F.kl_div(model(pairs.clean).log_softmax(1), wanted, log_target=True, reduction="batchmean")
            assert real == pytest.approx(float(unlearning_loss(model, pairs.triggered, pairs.labels) + 3 * kept) - loss, abs=1e-4)
    assert same(before, victim.model)
    assert len(try_shortlist(victim.model, found, pairs, scores, k=1000).positions) == len(found)


def test_the_sentence_names_the_best_trial_and_the_harmful_ones():
    text = describe_tried(tried(), NAMES)
    assert "stages.5 has the best trial, place 1 in the gradient's order (objective -3, predicted -4)" in text
    assert "1 of the trials makes it worse: stages.7 (+8, predicted -2)" in text
    text = describe_tried(tried(real=(-1.0, -3.0, -0.5)), NAMES)
    assert "stages.6 has the best trial, place 2" in text
    assert text.endswith("none of the trials makes it worse.")


@pytest.mark.parametrize("shown", [tried(), tried((-1.0, -2.0), (-4.0, -3.0)), tried((5.0,), (1.0,)),
                                   tried([-i / 9 for i in range(16)], [-5.0] * 16),
                                   tried([30.0] + [-1.0] * 14 + [4.0], [-3.0] * 16)])
def test_predicted_and_real_can_be_read(shown):
    picture = predicted_and_real(shown, NAMES)
    assert picture.summary == describe_tried(shown, NAMES)
    assert_readable(picture)
    words = " ".join(text.get_text() for text in texts(picture))
    assert f"best trial\n{min(shown.real):+.3g}" in words
    cut = [value for value in shown.real if value > -0.6 * min(*shown.predicted, *shown.real, -1e-9)]
    assert all(f"{value:+.3g}" in words for value in cut), "what the axis cuts is written out"


# ---- the explorer


def test_the_explorer_shows_the_trials_and_where_the_chosen_filter_stands(make, victim, monkeypatch):
    calls = []
    monkeypatch.setattr("gradprune.views.panels.filter_explorer.try_shortlist",
                        lambda *args: calls.append(1) or try_shortlist(*args))
    panel = make(FilterExplorer)
    before = panel.figure.value
    assert panel.compute(panel.state()).tried is None and not calls, "nobody pays for trials before they are asked for"
    put(panel.below, True)
    seen = panel.compute(panel.state()).tried
    assert seen == try_shortlist(victim.model, panel.found, panel.pairs, panel.scores["gate"])
    assert panel.figure.value != before
    assert describe_tried(seen, panel.found) in panel.sentence
    for place in (0, 3):
        panel.chosen.go(seen.positions[place])
        panel.refresh()
        assert f"framed, has place {place + 1}: predicted {seen.predicted[place]:+.3g}, found {seen.real[place]:+.3g}." in panel.sentence
    panel.chosen.go(next(position for position in range(len(panel.found)) if position not in seen.positions))
    panel.refresh()
    assert panel.sentence.endswith("framed, is not on the shortlist.")
    assert len(calls) == 1, "they are kept"
    assert "has rank" in panel.draw(panel.compute(panel.state()._replace(trials=False))).summary


# ---- the player


def test_the_player_shows_the_recipe_that_is_chosen(make, victim, second):
    panel = make(PruningPlayer, result=second)
    assert panel.recipe.value == "verified"
    rows = replay(victim.model, second.history, panel.sample, victim.trigger, victim.target)
    assert panel.current.rows == rows
    for number in range(1, len(rows)):
        put(panel.round, number)
        assert f"(place {second.history[number]['rank'] + 1} on the gradient's shortlist): ACC {rows[number]['acc']:.1%}" in panel.sentence


def test_the_player_counts_the_next_class_where_an_attack_is_all_to_all(make, victim, second):
    moved = dataclasses.replace(victim, card={"attack": {"label_map": "all_to_all"}})
    panel = make(PruningPlayer, moved, result=second)
    assert panel.current.rows == replay(victim.model, second.history, panel.sample, victim.trigger, None, "all_to_all")
    put(panel.round, 0)
    hits = int((predict(victim.model, panel.pixels).argmax(1) == (panel.shown.labels + 1) % 4).sum())
    assert f"{hits} taken for the next class." in panel.sentence
    assert set(panel.shown.labels.tolist()) == {0, 1, 2, 3}, "no class is left out: all go elsewhere"


def test_the_player_runs_the_other_recipe_on_the_same_images_once(make, victim, result, second, monkeypatch):
    asked = []
    monkeypatch.setattr(pruning_player, "grad_prune", lambda *_, **settings: asked.append(settings) or second)
    panel = make(PruningPlayer)
    kept = panel.round.value
    assert (panel.recipe.value, kept) == ("paper", len(result.mask.positions))
    put(panel.recipe, "verified")
    assert panel.sentence.startswith("Nothing pruned yet, the given model: ACC")
    assert panel.round.disabled and not asked
    panel.run.click()
    panel.run.click()
    same = {key: result.settings[key] for key in ("spc", "seed", "alpha", "patience")}
    assert asked == [{"recipe": "verified", "tune": False, "progress": False, **same}]
    assert not panel.round.disabled
    assert panel.round.value == len(second.mask.positions)
    assert f"Round {panel.round.value} of {len(second.rows('prune')) - 1}, " in panel.sentence
    put(panel.recipe, "paper")
    assert panel.round.value == kept
    assert f"Round {kept} of {len(result.rows('prune')) - 1}, " in panel.sentence and "(score " in panel.sentence
    put(panel.recipe, "verified")
    assert panel.round.value == len(second.mask.positions), "a run that was made is there to choose"


def test_the_player_offers_no_recipe_for_another_defence(make, victim):
    other = dataclasses.replace(grad_prune(victim.model, victim.data.defense, victim.trigger, spc=3, recipe="paper", tune=False, progress=False), name="mine", settings={})
    panel = make(PruningPlayer, result=other)
    assert panel.sentence.startswith("Round ")
    assert panel.recipe not in [child for box in panel.children for child in getattr(box, "children", ())]


def test_the_player_has_no_filters_to_show_where_channels_were_closed(victim):
    other = fine_pruning(victim.model, victim.data.defense, victim.trigger, spc=3, steps=1, progress=False)
    refuses("fine_pruning removes something other than filters", PruningPlayer, victim, other)


# ---- both recipes in one figure


def rows(*figures):
    return [{"round": number, "acc": acc, "asr": asr, "ra": ra} for number, (acc, asr, ra) in enumerate(figures)]


RUNS = {"paper": rows((0.99, 0.98, 0.02), (0.9, 0.6, 0.2)), "verified": rows((0.99, 0.98, 0.02), (0.97, 0.1, 0.8), (0.5, 0.0, 0.9))}


@pytest.mark.parametrize("guess", [None, 0.0, 0.4, 1.0])
def test_trajectories_tell_the_kept_states(guess):
    picture = trajectories(RUNS, {"paper": 1, "verified": 1}, guess)
    assert "paper, 1 filter: ACC fell from 99.0% to 90.0%, ASR fell from 98.0% to 60.0%" in picture.summary
    assert "verified, 1 filter: ACC fell from 99.0% to 97.0%" in picture.summary
    assert_readable(picture)
    shown = [text.get_text() for text in texts(picture)]
    assert ("your guess" in shown) == (guess is not None)
    legend = [text.get_text() for text in picture.figure.legends[0].get_texts()]
    assert legend == ["paper", "verified", "kept; later rounds were undone"]
    first, second = (line for line in picture.figure.axes[1].lines if line.get_alpha() is None and len(line.get_xdata()) == 2
                     and line.get_marker() != "None")
    assert first.get_linestyle() != second.get_linestyle(), "no figure depends on colour alone"


@pytest.mark.parametrize(("runs", "kept"), [({}, {}), (RUNS, {"paper": 1}), (RUNS, {"paper": 2, "verified": 1}), ({"a": []}, {"a": 0})])
def test_trajectories_refuse_runs_without_their_round(runs, kept):
    refuses("the round that was kept", trajectories, runs, kept)
