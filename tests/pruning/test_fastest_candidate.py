"""Recipe `verified` against rounds by hand: what its race leaves out changes nothing."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import same
from toys import Grouped, Shared, Untraceable, network, parts, silenced

from gradprune.pruning import Pairs, candidate_removals, filter_scores
from gradprune.pruning import verified as recipe
from gradprune.pruning.candidate_removals import CandidateRemovals, fastest_candidate
from gradprune.pruning.filters import filters, silence, silent
from gradprune.pruning.verified import Objective


def test_ctrl_c_in_a_whole_forward_pass_restores_the_filter(victim):
    """Networks that cannot be traced are run whole for every candidate."""
    model, images = Untraceable(), torch.rand(4, 3, 8, 8)
    found = filters(model, images)
    trials, before, calls = CandidateRemovals(model, found, images), copy.deepcopy(model.state_dict()), []

    def strike(*_):
        calls.append(len(calls))
        if len(calls) == 3:
            raise KeyboardInterrupt

    with model.register_forward_pre_hook(strike), pytest.raises(KeyboardInterrupt):
        trials.logits(images, range(len(found)))
    assert not trials.traced and same(model.state_dict(), before)


def by_hand(model, found, train, alpha, rounds, k=8, weight=3):
    """The recipe without any of its shortcuts: every trial is a copy of the model, run on every image."""
    given, fallen, rows = copy.deepcopy(model).eval(), silent(model, found), []
    model = copy.deepcopy(given)
    with torch.no_grad():
        wanted = given(train.clean).log_softmax(1)
    right = (wanted.argmax(1) == train.labels).float().mean()
    for _ in range(rounds):
        scores, _ = filter_scores(model, found, train.triggered, train.labels, "gate")
        scores[fallen] = -torch.inf
        tried = {}
        for position in scores.topk(min(k, len(found) - len(fallen) - 1)).indices.tolist():
            trial = silenced(model, found, position)
            with torch.no_grad():
                clean, loss = trial(train.clean), F.cross_entropy(trial(train.triggered), train.labels)
            kept = F.kl_div(clean.log_softmax(1), wanted, log_target=True, reduction="batchmean")
            if right - (clean.argmax(1) == train.labels).float().mean() < alpha - 1e-6:
                tried[position] = (loss + weight * kept).item()
        if not tried:
            break
        best = min(tried, key=tried.__getitem__)
        silence(model, found, [best])
        fallen.append(best)
        rows.append((*found[best], pytest.approx(tried[best], rel=1e-4)))
    return rows


@pytest.mark.parametrize("alpha", [1.0, 0.2])
@pytest.mark.parametrize("kind", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("preact_resnet", "small_vgg")), Grouped, Shared, Untraceable])
def test_rounds_equal_rounds_by_hand(kind, alpha, monkeypatch):
    """Filters in blocks, on a residual sum, in groups and depthwise; some trials too dear, one filter silent before."""
    monkeypatch.setattr(candidate_removals, "PIECE", 5)
    model, generator = network(kind).eval(), torch.Generator().manual_seed(2)
    clean, triggered = torch.rand(2, 12, 3, 32, 32, generator=generator)
    with torch.no_grad():
        labels = model(clean).argmax(1)  # so that removals cost accuracy
    labels[0] = (labels[0] + 1) % 4
    train = Pairs(clean, triggered, labels)
    found = filters(model, clean[:1])
    silence(model, found, [2])
    wanted = by_hand(model, found, train, alpha, 3)
    result = recipe(model, found, train, Pairs(clean[:6], triggered[:6], labels[:6]), alpha=alpha, k=8, patience=3,
                    progress=False)
    assert [(row["layer"], row["index"], row["objective"]) for row in result.history[1:4]] == wanted


@pytest.mark.slow
def test_a_race_has_the_winner_of_all_trials_on_all_images(victim, monkeypatch):
    """Whatever the guess says, and also where some or all trials cost too much, or two are alike."""
    monkeypatch.setattr(candidate_removals, "PIECE", 7)
    train, _ = parts(victim, 5)
    model, count = copy.deepcopy(victim.model), 2 * len(train.labels)
    found = filters(model, train.clean[:1])
    silence(model, found, [7, 5])
    trials, goal, positions = CandidateRemovals(model, found, train.clean[:2]), Objective(victim.model, train, 3), [*range(8, 24), 7, 5]
    now, logits = trials.logits(goal.images, positions)
    wrong = goal.wrong(logits).sum(1)
    assert len(wrong.unique()) > 2 and wrong.max() < count / 2
    ran, original = [], CandidateRemovals.logits
    monkeypatch.setattr(CandidateRemovals, "logits", lambda self, images, chosen: (
        ran.append(len(images) * len(chosen)), original(self, images, chosen))[1])
    for mistakes in (math.inf, *(wrong.unique() + 0.5).tolist(), 0):
        values = goal(logits).masked_fill(wrong >= mistakes, torch.inf)
        for guess in (goal.terms(now), -goal.terms(now), torch.zeros(count), torch.rand(count) * 9):
            won = fastest_candidate(trials, goal, positions, guess, mistakes)
            assert (won is None) == bool(values.isinf().all())
            if won is not None:
                assert won[0] == int(values.argmin())
                torch.testing.assert_close(won[1].float(), goal.terms(logits)[won[0]], rtol=1e-4, atol=1e-5)
    ran.clear()
    lowest = int(goal(logits).argmin())
    assert fastest_candidate(trials, goal, positions, goal.terms(logits)[lowest], math.inf)[0] == lowest
    assert sum(ran) < 0.85 * logits[..., 0].numel(), "trials that are beaten are not run on"
    alike = [5, 7]
    assert fastest_candidate(trials, goal, alike, goal.terms(now), math.inf)[0] == 0, "of two alike the first on the list"


# --- the race alone, each trial's terms chosen by hand ---


class Written:
    """Stands for the trials and for the objective: `terms[trial][image]`, and which images a trial gets wrong."""

    def __init__(self, terms, wrong=()):
        self.table, self.mistaken, self.ran, self.images = torch.tensor(terms), wrong, [], None

    def of(self, chosen):
        self.images = chosen
        return self

    def logits(self, images, positions):
        self.ran.append((images.tolist(), positions))
        self.now = (torch.tensor(positions) - 10)[:, None], images
        return None, None

    def terms(self, _):
        return self.table[self.now]

    def wrong(self, _):
        return torch.tensor([[(int(trial), int(image)) in self.mistaken for image in self.now[1]] for trial in self.now[0]])


def run(written, expected, mistakes=math.inf):
    return fastest_candidate(written, written, [10 + trial for trial in range(len(written.table))], torch.tensor(expected), mistakes)


def test_the_dearest_images_come_first_and_who_is_beaten_rests(monkeypatch):
    monkeypatch.setattr(candidate_removals, "PIECE", 2)
    written = Written([[1.0, 4, 0, 2, 1],    # 6 after the images 1 and 3, 8 in all
                       [5.0, 1, 2, 1, 0],    # 2 after them, 9 in all
                       [0.0, 9, 0, 3, 0]])   # 12 after them: beaten
    choice, terms = run(written, [1.0, 5, 0, 3, -2])
    assert choice == 0 and terms.tolist() == [1, 4, 0, 2, 1]
    assert written.ran == [([1, 3], [10, 11, 12]), ([0, 2], [11]), ([0, 2], [10]), ([4], [10])], \
        "what is still to come is guessed as 1 after the first piece and 0 after the second"


def test_a_trial_behind_goes_on_while_the_leader_may_still_lose_more(monkeypatch):
    """Each at its own piece: trial 1 is behind by less than what is to come, so both run on together."""
    monkeypatch.setattr(candidate_removals, "PIECE", 1)
    written = Written([[1.0, 1, 1], [2.0, 1, 0], [4.0, 0, 0]])
    assert run(written, [1.0, 1, 0])[0] == 0
    assert written.ran == [([0], [10, 11, 12]), ([1], [10, 11]), ([2], [10])]


def test_alike_images_keep_their_order_and_alike_trials_theirs(monkeypatch):
    monkeypatch.setattr(candidate_removals, "PIECE", 20)
    written = Written([[1.0] * 50] * 2)
    assert run(written, [0.5] * 50)[0] == 0
    assert [images for images, _ in written.ran] == [[*range(20)], [*range(20, 40)], [*range(40, 50)]]


@pytest.mark.parametrize(("mistakes", "winner"), [(2, 1), (2.5, 0), (1, 2), (0, None)])
def test_mistakes_are_counted_over_all_pieces(mistakes, winner, monkeypatch):
    monkeypatch.setattr(candidate_removals, "PIECE", 1)
    written = Written([[1.0, 1, 1], [2.0, 2, 2], [3.0, 3, 3]], {(0, 0), (0, 2), (1, 1)})
    won = run(written, [3.0, 2, 1], mistakes)
    assert (won and won[0]) == winner


def test_a_trial_that_answers_nan_does_not_count():
    assert run(Written([[math.nan, 0.0], [1.0, 1]]), [1.0, 1])[0] == 1
    assert run(Written([[math.nan, 0.0]]), [1.0, 1]) is None
