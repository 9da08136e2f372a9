"""The lessons' tools: checks that diagnose, predictions that are kept, restart points, and progress that survives."""

import dataclasses
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import holds, refuses
from filelock import FileLock, Timeout
from torchvision.transforms import functional

from gradprune.bench import Cell
from gradprune.bench.cells import empty_row
from gradprune.bench.store import Store
from gradprune.lessons import CheckFailed, begin, check, checkpoint, mode, predict, reveal, whose
from gradprune.lessons.runtime import attacking, predictions, progress
from gradprune.lessons.runtime import feedback as telling
from gradprune.lessons.runtime import notebook_setup as session
from gradprune.lessons.runtime import restart_points as restart
from gradprune.lessons.runtime.check import EXERCISES
from gradprune.lessons.runtime.feedback import close
from gradprune.pruning import SCORES, FilterMask, filter_scores, pair_up, silence, validate
from gradprune.pruning.filters import filters
from gradprune.victims import Victim
from gradprune.views.figures import filter_picture, lesson_plots


@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADPRUNE_PROGRESS", str(tmp_path / "progress.json"))
    for name in ("GRADPRUNE_STRICT", "GRADPRUNE_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(progress, "_memory", {"answers": {}, "exercises": {}})
    monkeypatch.setattr(progress, "_said", set())
    return tmp_path / "progress.json"


# ---- exercises

ALL = list(EXERCISES.values())
each_exercise = pytest.mark.parametrize("exercise", ALL, ids=[exercise.name for exercise in ALL])
BANK = [(exercise, message, wrong) for exercise in ALL for message, functions in exercise.mistakes.items() for wrong in functions]


@each_exercise
def test_the_reference_is_correct_and_nothing_is_untouched(exercise):
    assert exercise.judge(exercise.reference).state == "correct"
    assert exercise.judge(None).state == exercise.judge(...).state == "untouched"
    assert exercise.judge(exercise.stub or (lambda *_: None)).state == "untouched"
    assert len(exercise.mistakes) >= 6


@pytest.mark.parametrize(("exercise", "message", "wrong"), BANK, ids=[f"{e.name}: {m[:40]}" for e, m, _ in BANK])
def test_each_wrong_answer_gets_its_own_message(exercise, message, wrong, capsys):
    assert exercise.judge(wrong) == ("wrong", message)
    assert getattr(check, exercise.name)(wrong) is exercise.reference
    assert holds(capsys.readouterr().out, "✘ Not yet right", message)


def unspeakable(*_):
    class Mute(Exception):
        def __str__(self):
            raise ValueError

    raise Mute


def recurse(*_):
    return recurse()


HOSTILE = {"a number": 3, "a string": "score", "a class": torch.nn.Linear, "no arguments": lambda: 1,
           "raises": lambda *_: 1 / 0, "exits": lambda *_: sys.exit(), "cannot be printed": unspeakable,
           "recurses": recurse, "a string back": lambda *_: "0.5", "a list of strings": lambda *_: ["a"],
           "nan": lambda *_: float("nan"), "infinite": lambda *_: torch.tensor(torch.inf),
           "empty": lambda *_: torch.zeros(0), "a huge shape": lambda *_: torch.zeros(1, 1).expand(9, 9),
           "itself": lambda *a: a, "a set": lambda *_: {1},
           "not implemented": lambda *_: (_ for _ in ()).throw(NotImplementedError())}


@each_exercise
@pytest.mark.parametrize("attempt", HOSTILE.values(), ids=HOSTILE)
def test_whatever_an_attempt_does_the_notebook_goes_on(exercise, attempt, capsys):
    back = getattr(check, exercise.name)(attempt)
    assert back is exercise.reference
    assert exercise.judge(back).state == "correct"
    assert "✘" in capsys.readouterr().out


# ---- faults that are told without comparing, and those that nobody foresaw

TOLD = []


def told(name, *words):
    """Register an attempt at an exercise with words of what is said of it."""
    return lambda attempt: TOLD.append(pytest.param(name, attempt, words, id=f"{name}: {words[0][:40]}")) or attempt


def reference(name):
    return EXERCISES[name].reference


told("score", "IndexError", "(line ")(lambda w, g: g.mean(dim=9))
told("score", "With `weight = tensor([[[[1., 2.]]], [[[3., 4.]]]]), gradient = ",
     "the result should be `tensor([2.0000, 0.5000])`, yours is `tensor([7.4000, 1.8500])`")(lambda w, g: 3.7 * reference("score")(w, g))
told("score", "leave out `keepdim=True`")(lambda w, g: g.abs().mean(dim=(1, 2, 3), keepdim=True))
told("score", "changes its input in place")(lambda w, g: g.abs_().mean(dim=(1, 2, 3)))
told("stopping_rule", "a whole row is returned")(lambda rows, alpha: rows[reference("stopping_rule")(rows, alpha)])
told("stopping_rule", "returns nothing (None)")(lambda rows, alpha: next((row["round"] for row in rows if row["round"] > 5), None))
told("anomaly", "Each class needs its own")(lambda norms: norms.min())
told("anomaly", "half above it and half below")(
    lambda norms: (norms.quantile(0.5) - norms) / (1.4826 * (norms - norms.quantile(0.5)).quantile(0.5)))
told("anomaly", "half above it and half below")(lambda norms: (norms.median() - norms) / (1.4826 * (norms - norms.median()).median()))
told("mean_rank", "With `scores = DataFrame({'a': [0.9, 0.6], 'b': [0.8, nan], 'c': [0.8, 0.7]})`",
     "the result should be `Series({'a': 1.5, 'b': 2.75, 'c': 1.75})`")(lambda scores: scores.rank(axis=1).mean() * 7)
told("unwrap", "'module.head.module.bias': tensor([1.])")(lambda content: dict.fromkeys(content.get("state_dict", content), 0))
told("unwrap", "no “state_dict” in it to open")(lambda content: content["state_dict"])
told("unwrap", "raises KeyError: 'weights'")(lambda content: content["weights"])
told("unwrap", "a dict is wanted")(lambda content: list(content))
told("unwrap", "changes its input")(lambda content: content.pop("state_dict", content))
told("partners", "a dict is wanted")(lambda reads, convs, norms: [*zip(convs, norms, strict=True)])
told("prune", "should have no entry, yours has 3 entries")(
    lambda model, found, train, *_: filter_scores(model, found, train.triggered, train.labels)[0].topk(3).indices.tolist())


# what the cells that follow in the notebook could not use
told("alarm_rates", "Return two numbers")(
    lambda scans: dict(zip(("found", "accused"), reference("alarm_rates")(scans), strict=True)))
told("prune", "list of positions")(lambda model, found, *rest: FilterMask(found, reference("prune")(model, found, *rest)))
told("prune", "list of positions")(lambda model, found, *rest: [found[place] for place in reference("prune")(model, found, *rest)])
told("prune", "list of positions")(lambda model, found, *rest: [float(place) for place in reference("prune")(model, found, *rest)])
told("find_trigger", "torch.float64 comes back")(lambda *case: [part.double() for part in reference("find_trigger")(*case)])


@told("anomaly", "returns nothing (None)")
def forgets_to_return(norms):
    norms = reference("anomaly")(norms)


@told("mean_rank", "changes its input")
def fills_in_place(scores):
    scores.fillna(0, inplace=True)
    return scores.rank(axis=1, ascending=False).mean()


@told("alarm_rates", "changes its input")
def writes_into_the_table(scans):
    scans["suspect"] = scans["suspect"].fillna(-1)
    return 0.5, 0.5


@told("find_trigger", "all labels in the cross-entropy must be `target`")
def to_class_zero(model, images, target, steps):
    return reference("find_trigger")(model, images, 0, steps)


@told("slope", "`up = weights` makes no copy")
def two_names_for_one_tensor(loss, weights, place, step):
    up = weights
    up[place] += step
    above = loss(up)
    down = weights
    down[place] -= step
    return (above - loss(down)) / (2 * step)


@told("hold_mask", "your lines change nothing", "A call needs its brackets")
def forgets_the_brackets(model, optimizer, mask, loss):
    """After the step the filters are silent."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    mask.apply  # noqa: B018


@told("asr", "should be one number, yours holds 54: is a mean or a sum missing?")
def unreduced(model, images, trigger, target):
    others = images.subset(images.labels != target)
    return model(others.triggered(trigger)).argmax(1) == target


told("normalise", "returns a ndarray", "return a tensor")(lambda *case: np.float32(reference("normalise")(*case)))
told("normalise", "returns a list", "return a tensor")(lambda *case: reference("normalise")(*case).tolist())


@told("normalise", "come back as torch.float64")
def by_numpy(images, mean, std):
    return torch.from_numpy((images.numpy() - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1)))


for one in ("unlearning_loss", "search_loss"):
    told(one, "`.backward()` is called inside")(
        lambda *case, name=one: (loss := reference(name)(*case)).backward() or loss)


@pytest.mark.parametrize(("name", "attempt", "words"), TOLD)
def test_what_is_told_of_other_faults(name, attempt, words):
    verdict = EXERCISES[name].judge(attempt)
    assert verdict.state == "wrong" and all(part in verdict.message for part in words), verdict.message


def test_right_on_the_example_and_wrong_on_a_hidden_input_is_told_by_its_place():
    right = reference("score")(*EXERCISES["score"].cases()[0])
    verdict = EXERCISES["score"].judge(lambda weight, gradient: gradient.abs().mean(dim=(1, 2, 3)) + (weight.shape[1] == 4))
    assert f"should be {right[0]:.4g} at place 0, yours is {1 + right[0]:.4g}." in verdict.message


def test_the_line_of_an_exception_is_the_learners_and_no_librarys():
    def by_number(scans):
        return scans[0]

    line = by_number.__code__.co_firstlineno + 1
    assert EXERCISES["alarm_rates"].judge(by_number).message == f"your function raises KeyError: 0 (line {line} of its cell)."


def test_values_that_look_alike_are_told_with_more_digits():
    exercise = dataclasses.replace(EXERCISES["der"], cases=lambda: [(-2.3509,)], reference=lambda number: number, mistakes={})
    assert "should be -2.3509, yours is -2.3512." in exercise.judge(lambda number: -2.3512).message
    assert "should be -2.351, yours is -4." in exercise.judge(lambda number: -4.0).message


def test_a_stub_of_a_docstring_is_no_attempt():
    def only_passes(norms):
        """A stub, as handed out."""
        pass

    assert EXERCISES["anomaly"].judge(only_passes).state == "untouched"


def test_an_own_trigger_keeps_the_images_precision():
    images = torch.full((1, 3, 4, 4), 0.5)
    assert torch.equal(attacking.OwnTrigger(lambda images: images.double() / 2)(images), images / 2)


def test_a_wrong_function_that_fails_on_the_inputs_explains_nothing():
    broken = dataclasses.replace(EXERCISES["score"], mistakes={"divided by nothing": [lambda *_: 1 / 0]})
    verdict = broken.judge(lambda weight, gradient: gradient.abs().sum(dim=(1, 2, 3)) + 1)
    assert verdict.state == "wrong" and verdict.message.startswith("your function does not do what it should")


@each_exercise
def test_small_examples_can_be_read_and_suit_the_exercise(exercise):
    for case in exercise.examples():
        assert len(exercise.observe(exercise.reference, case)) > 0
        told = telling.an_example({"x": case[0]}, exercise.reference(*case), 0)
        assert "..." not in told and len(told) < 400, told


def test_plain_python_without_ipython_prints(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "IPython.core.getipython", None)
    session.show("<b>bold</b>", "bold")
    assert capsys.readouterr().out == "bold\n"


def test_ctrl_c_in_an_attempt_stops_the_cell():
    with pytest.raises(KeyboardInterrupt):
        check.score(Mock(side_effect=KeyboardInterrupt))


def test_an_attempt_leaves_torch_as_it_was(capsys):
    def careless(weight, gradient):
        print("debugging")
        torch.manual_seed(7)
        torch.set_grad_enabled(False)
        return gradient.abs().mean(dim=(1, 2, 3))

    torch.manual_seed(1)
    first = torch.rand(1)
    torch.manual_seed(1)
    assert check.score(careless) is careless
    assert torch.equal(torch.rand(1), first)
    assert torch.is_grad_enabled()
    assert "debugging" not in capsys.readouterr().out


# ---- right answers of other kinds than the reference, as students write them

RIGHT = [pytest.param(name, attempt, id=name) for name, attempt in (
    ("score", lambda w, g: g.abs().flatten(1).mean(1)), ("score", lambda w, g: np.abs(g.numpy()).mean(axis=(1, 2, 3))),
    ("score", lambda w, g: [f.abs().mean() for f in g]), ("score", lambda w, g: [float(f.abs().mean()) for f in g]),
    ("unlearning_loss", lambda m, x, y, t, k: F.nll_loss(F.log_softmax(m(t(x)), dim=1), y)),
    ("der", lambda b, a: (np.clip(b.asr - a.asr, 0, 1) - np.clip(b.acc - a.acc, 0, 1) + 1) / 2),
    ("mean_rank", lambda s: (-s).rank(axis=1, na_option="bottom").mean(axis=0)),
    ("mean_rank", lambda s: s.rank(axis=1, ascending=False).fillna(s.shape[1]).mean()),
    ("mean_rank", lambda s: s.fillna(0).rank(axis=1, ascending=False).mean().sort_values()),
    ("mean_rank", lambda s: s.fillna(0).rank(axis=1, ascending=False).mean().to_numpy()),
    ("normalise", lambda x, mean, std: ((x.permute(0, 2, 3, 1) - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)),
    ("normalise", functional.normalize), ("normalise", lambda *case: by_numpy(*case).float()),
    ("search_loss", lambda m, x, k, p, t, c: c * k.norm(p=1) - m(torch.lerp(x, p.expand_as(x), k.expand_as(x))).log_softmax(1)[:, t].mean()),
    ("trigger", lambda x: torch.roll(x, 1, dims=3)),
    ("prune", lambda *case: torch.tensor(reference("prune")(*case), dtype=torch.long)))]


def right(name):
    return lambda attempt: RIGHT.append(pytest.param(name, attempt, id=f"{name}: {attempt.__name__}")) or attempt


@right("trigger")
def inverted_corners(images):
    rows = []
    for image in images:
        image = image.clone()
        image[:, :4, :4] = 1 - image[:, :4, :4]
        rows.append(image)
    return torch.stack(rows)


class Stripe(torch.nn.Module):
    def forward(self, images):
        mark = torch.zeros_like(images)
        mark[..., 15:17, :] = 0.5
        return (images + mark).clamp(0, 1)


RIGHT.append(pytest.param("trigger", Stripe(), id="trigger: a module"))


def painted(place, value):
    """A trigger that gives these pixels a value."""
    def paint(images):
        images = images.clone()
        images[(..., *place)] = value
        return images
    return paint


RIGHT += [pytest.param("trigger", painted(place, value), id=f"trigger: {name}") for place, value, name in (
    (np.s_[12:14, 15:17], 1.0, "white on white"), ((29, 27), 0.0, "black on black"))]


@right("asr")
def by_hand(model, images, trigger, target):
    hits = total = 0
    for image, label in zip(trigger(images.floats()), images.labels.tolist(), strict=True):
        if label != target:
            total += 1
            hits += int(model(image[None]).argmax()) == target
    return hits / total


@right("asr")
def in_inference_mode(model, images, trigger, target):
    with torch.inference_mode():
        found = model(trigger(images.floats())).softmax(1).max(1).indices
    counted = images.labels != target
    return ((found == target) & counted).sum().item() / counted.sum().item()


@right("slope")
def along_a_vector(loss, weights, place, step):
    move = torch.zeros_like(weights)
    move[place] = step
    return (loss(weights + move) - loss(weights - move)) / step / 2


@right("stopping_rule")
def the_loop_of_the_lesson(history, alpha):
    best, kept = history[0]["val_unlearning_loss"], 0
    for row in history:
        if history[0]["val_acc"] - row["val_acc"] >= alpha:
            break
        if row["val_unlearning_loss"] < best:
            best, kept = row["val_unlearning_loss"], row["round"]
    return kept


@right("hold_mask")
def hooked(model, optimizer, mask, loss):
    mask.hold(optimizer, model)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@right("anomaly")
def with_numpy(norms):
    norms = norms.numpy()
    return (np.median(norms) - norms) / (1.4826 * np.median(np.abs(norms - np.median(norms))))


@right("anomaly")
def none_above_the_median(norms):
    values = norms.numpy()
    distance = np.median(values) - values
    return [max(0.0, float(one / (1.4826 * np.median(np.abs(distance))))) for one in distance]


@right("alarm_rates")
def row_by_row(scans):
    found = [row.suspect == row.target for row in scans.itertuples() if row.attacked]
    accused = [not np.isnan(row.suspect) for row in scans.itertuples() if not row.attacked]
    return [sum(found) / len(found), sum(accused) / len(accused)]


@right("mean_rank")
def counted_by_hand(scores):
    ranks = {name: [] for name in scores}
    for row in scores.fillna(-1).to_dict("records"):
        for name, own in row.items():
            ranks[name].append(1 + sum(x > own for x in row.values()) + (sum(x == own for x in row.values()) - 1) / 2)
    return {name: sum(places) / len(places) for name, places in ranks.items()}


@right("unwrap")
def nest_in_nest(content):
    while "state_dict" in content:
        content = content["state_dict"]
    return {name[7:] if name.startswith("module.") else name: value for name, value in content.items()}


@right("partners")
def none_for_those_without(reads, convs, norms):
    found = dict.fromkeys(convs)
    for conv in convs:
        readers = {reader for source, reader in reads if source == conv}
        if len(readers) == 1 and readers <= set(norms) and sum(reader in readers for _, reader in reads) == 1:
            found[conv] = readers.pop()
    return found


@right("prune")
def from_the_lists_of_losses(model, found, train, validation, alpha, patience):
    first = validate(model, validation)
    losses, gone = [first.unlearning_loss], []
    for _ in range(len(found) - 1):
        scores, _ = filter_scores(model, found, train.triggered, train.labels)
        gone.append(next(place for place in scores.argsort(descending=True).tolist() if place not in gone))
        silence(model, found, gone[-1:])
        now = validate(model, validation)
        if first.acc - now.acc >= alpha:
            break
        losses.append(now.unlearning_loss)
        if len(losses) - 1 - int(np.argmin(losses)) >= patience:
            break
    return gone[:int(np.argmin(losses))]


@pytest.mark.parametrize(("name", "attempt"), RIGHT)
def test_other_right_ways_are_right(name, attempt):
    assert getattr(check, name)(attempt) is attempt


def test_each_exercise_has_another_right_way():
    assert {one.values[0] for one in RIGHT} == set(EXERCISES) - {"find_trigger"}


def test_a_faint_mark_is_right_and_told(capsys):
    check.trigger(inverted_corners)
    assert "may not learn" not in capsys.readouterr().out
    for faint in (painted((-2, -2), 1.0), lambda images: (images + 0.1).clamp(0, 1)):
        assert check.trigger(faint) is faint
        assert "✔ Correct" in (said := capsys.readouterr().out) and "may not learn" in said


def test_later_cells_say_whose_work_they_show(capsys):
    def own(weight, gradient):
        return gradient.abs().mean((1, 2, 3))

    assert whose(check.score(own)) == "Your"
    assert whose(check.score(lambda weight, gradient: weight)) == whose(check.score(None)) == "The reference"


def test_strict_mode_raises_unless_correct(monkeypatch):
    monkeypatch.setenv("GRADPRUNE_STRICT", "1")
    for attempt in (None, lambda w, g: g.abs().sum(dim=(1, 2, 3)), 7):
        with pytest.raises(CheckFailed, match="score"):
            check.score(attempt)
    assert check.score(EXERCISES["score"].reference) is EXERCISES["score"].reference


def test_unknown_exercise_offers_the_nearest():
    with pytest.raises(AttributeError, match="did you mean score"):
        check.scores  # noqa: B018
    assert set(dir(check)) == set(EXERCISES)
    assert "score (notebook 02)" in repr(check)


def test_close_looks_at_shape_and_finiteness():
    one = torch.ones(2)
    assert close([one], [one + 1e-9])
    assert not close([one], [one[:, None]])
    assert not close([one * torch.nan], [one * torch.nan])
    assert not close([one], [one, one])


# ---- predictions


@pytest.fixture
def panels(monkeypatch):
    """What is displayed."""
    panels = []
    monkeypatch.setattr("IPython.display.display", panels.append)
    return panels


def test_a_slider_keeps_its_answer_and_shows_it_again(own_progress, panels, capsys):
    predict("02.asr", "How high is the <ASR>?", form=".0%")
    question, slider, line = panels[0].children
    assert "&lt;ASR&gt;" in question.value
    assert "No guess yet" in line.value
    slider.set_state({"value": 0.3})  # as the browser does
    assert "30%" in line.value
    assert json.loads(own_progress.read_text())["answers"] == {"02.asr": 0.3}
    predict("02.asr", "again?", form=".0%")
    assert panels[1].children[1].value == 0.3
    assert "30%" in panels[1].children[2].value
    assert reveal("02.asr", torch.tensor(0.98), form=".0%") == 0.3
    assert "Higher than you thought: you guessed 30%, the answer is 98%" in capsys.readouterr().out
    assert reveal("02.asr", 0.32) == 0.3
    assert "Close" in capsys.readouterr().out


def test_buttons_start_without_an_answer(panels, capsys):
    predict("02.many", "How many?", options=["one", "a few"])
    buttons = panels[0].children[1]
    assert buttons.value is None
    buttons.set_state({"index": 1})
    assert reveal("02.many", "one") == "a few"
    assert "Not what you expected: you guessed “a few”, the answer is “one”" in capsys.readouterr().out
    assert reveal("02.many", "a few") == "a few"
    assert "Right" in capsys.readouterr().out


def test_reveal_works_when_skipped_or_when_the_question_has_changed(capsys):
    assert reveal("02.skipped", 0.5) is None
    assert "made no guess" in capsys.readouterr().out
    progress.remember("answers", "02.changed", "a few")
    assert reveal("02.changed", 0.5) is None
    progress.remember("answers", "02.numbers", 3)
    assert reveal("02.numbers", "one") is None
    assert reveal("02.numbers", 4, form="d") == 3


def test_an_earlier_answer_out_of_range_is_passed_over(panels):
    progress.remember("answers", "02.wide", 90.0)
    predict("02.wide", "now from 0 to 1?")
    assert "No guess yet" in panels[0].children[2].value
    progress.remember("answers", "02.option", "gone")
    predict("02.option", "which?", options=["a", "b"])
    assert panels[1].children[1].value is None


def test_bad_questions_are_told():
    refuses("low must be below high", predict, "k", "?", 1, 1)
    refuses("options", predict, "k", "?", options=["only"])


def test_an_error_while_keeping_an_answer_is_shown_in_red_and_raised_in_strict_mode(monkeypatch, panels):
    monkeypatch.setattr(predictions.progress, "remember", lambda *_: 1 / 0)
    predict("02.broken", "?")
    _, slider, line = panels[0].children
    slider.set_state({"value": 0.2})
    assert holds(line.value, "ZeroDivisionError", "gradprune-error")
    monkeypatch.setenv("GRADPRUNE_STRICT", "1")
    with pytest.raises(ZeroDivisionError):
        slider.value = 0.4


# ---- progress


@pytest.mark.parametrize("content", ["", "{", "[]", '{"answers": []}', '{"answers": {"a": [1]}}', "[" * 100_000, "\x00\xff",
                                     " " * 600_000, b"\xff\xfe\x00\x81"])
def test_a_damaged_file_is_set_aside_and_told(own_progress, content, capsys):
    content = content if isinstance(content, bytes) else content.encode()
    own_progress.write_bytes(content)
    progress.remember("answers", "02.a", 1)
    assert "was damaged; it was renamed to progress.json.damaged" in capsys.readouterr().out
    assert own_progress.with_name("progress.json.damaged").read_bytes() == content
    assert progress.recall("answers", "02.a") == 1
    own_progress.write_text("again {")
    assert progress.recall("answers", "02.a") == 1, "this kernel still knows"
    assert own_progress.with_name("progress.json.damaged2").read_text() == "again {"


def test_two_notebooks_at_once_lose_nothing(own_progress):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: [progress.remember("answers", f"0{n}.{i}", i) for i in range(12)], range(4)))
    assert len(json.loads(own_progress.read_text())["answers"]) == 48


def test_the_file_stays_small(own_progress):
    for i in range(510):
        progress._memory["answers"][str(i)] = i
    own_progress.write_text(json.dumps({"answers": {f"old{i}": i for i in range(500)}, "exercises": {}}))
    progress.remember("answers", "long", "x" * 10_000)
    kept = json.loads(own_progress.read_text())["answers"]
    assert len(kept) == 500
    assert "old0" not in kept
    assert kept["long"] == "x" * 200


@pytest.mark.parametrize("clock", [0, 4e9])
def test_a_forgotten_lock_file_locks_nobody_out_whatever_its_time(own_progress, monkeypatch, clock):
    own_progress.with_name("progress.json.lock").touch()
    os.utime(own_progress.with_name("progress.json.lock"), (clock, clock))
    monkeypatch.setattr(progress, "_LOCK_PATIENCE", 0)
    progress.remember("answers", "k", 1)
    assert json.loads(own_progress.read_text())["answers"] == {"k": 1}


def test_a_lock_that_another_kernel_holds_is_not_taken_away(own_progress, monkeypatch):
    """Not even where the clock jumps a day ahead meanwhile; after some patience the answer is kept all the same."""
    monkeypatch.setattr(progress, "_LOCK_PATIENCE", 0.05)
    held = FileLock(own_progress.with_name("progress.json.lock"), timeout=0)
    with held:
        os.utime(held.lock_file, (0, 0))
        progress.remember("answers", "k", 1)
        with pytest.raises(Timeout):
            FileLock(held.lock_file, timeout=0).acquire()
    assert json.loads(own_progress.read_text())["answers"] == {"k": 1}


def test_a_file_that_cannot_be_read_is_not_overwritten(own_progress, monkeypatch, capsys):
    progress.remember("answers", "old", 1)
    whole = own_progress.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", Mock(side_effect=OSError(5, "Input/output error")))
        progress.remember("answers", "new", 2)
        assert progress.recall("answers", "new") == 2, "this kernel knows it"
    assert own_progress.read_bytes() == whole
    assert "Progress cannot be kept in" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_costs_nothing_but_a_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GRADPRUNE_PROGRESS", str(tmp_path / "file" / "progress.json"))
    progress.remember("answers", "k", 1)
    progress.remember("answers", "l", 2)
    assert capsys.readouterr().out.count("Progress cannot be kept") == 1
    assert progress.recall("answers", "k") == 1


def test_once_solved_stays_solved(own_progress):
    check.score(EXERCISES["score"].reference)
    check.score(None)
    assert json.loads(own_progress.read_text())["exercises"] == {"02.score": "correct"}


def test_the_learners_own_folder_is_the_default(monkeypatch):
    monkeypatch.delenv("GRADPRUNE_PROGRESS")
    assert progress.path().name == "progress.json"
    assert "gradprune" in str(progress.path())


# ---- mode, begin


def test_mode(monkeypatch):
    assert mode() == "quick"
    monkeypatch.setenv("GRADPRUNE_MODE", "ci")
    assert mode() == "ci"
    monkeypatch.setenv("GRADPRUNE_MODE", "fast")
    refuses(r"^GRADPRUNE_MODE must be one of quick, full, ci, got 'fast'\.$", mode)


def test_begin_says_mode_and_progress_in_a_line_each(capsys):
    state = torch.get_rng_state()
    begin("02")
    assert len(capsys.readouterr().out.splitlines()) == 2
    progress.remember("answers", "02.a", 0.5)
    progress.remember("exercises", "02.score", "correct")
    progress.remember("exercises", "03.hold_mask", "correct")
    begin("02")
    assert "Welcome back: 1 exercise solved and 1 prediction made here so far." in capsys.readouterr().out
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_captions_name_the_mode():
    code = ("from IPython.core.interactiveshell import InteractiveShell; shell = InteractiveShell.instance()\n"
            "from gradprune.lessons import begin; begin('02')\n"
            "from matplotlib.figure import Figure; from gradprune.views import Picture\n"
            "print(shell.display_formatter.format(Picture(Figure(), 'It fell.'))[0]['text/html'][-240:])")
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert holds(told, 'Made in mode "quick"', "It fell.")


# ---- figures


def test_figures_state_what_they_show(victim: Victim):
    found = filters(victim.model)
    pairs = pair_up(victim.data.defense.subset(torch.arange(12)), victim.trigger)
    scores = {name: filter_scores(victim.model, found, pairs.triggered, pairs.labels, name)[0] for name in SCORES}
    names = [str(found[position]) for position in range(len(found))]
    best = int(scores["taylor"].argmax())
    pictures = [
        lesson_plots.losses_compared({"clean, true": 0.02, "triggered, true": 8.6}, 4, guess=3.0),
        lesson_plots.turned_down([0, 0.5, 1], [8.0, 3.9, 1.0], -8.2, names[best], guess=2.0),
        lesson_plots.predicted_against_real(scores, scores["taylor"] / 2, names),
        lesson_plots.score_maps(found, scores), filter_picture.filter_view(victim.model, found, best, pairs),
        filter_picture.filter_view(victim.model, found, 0, pairs._replace(triggered=(pairs.clean + 0.1).clamp(0, 1)))]
    for position, words in ((0, "its colours"), (len(found) - 1, f"one tile per input ({found.layers[-1].shape[0]})")):
        picture = filter_picture.filter_view(victim.model, found, position, pairs)
        assert any(words in text.get_text() for ax in picture.figure.axes for text in ax.texts), words
    told = [str(picture) for picture in pictures]
    assert "Pure guessing among 4 classes gives 1.39" in told[0]
    assert "goes from 8.00 to 1.00; the straight line predicts -0.20 and holds until about 100% of it is gone" in told[1]
    assert "taylor 1.00" in told[2]
    assert f"by taylor: {names[best]}" in told[3]
    assert "images the largest change is on the sticker" in told[4]
    assert "covers the whole image" in told[5]
    assert all(picture.png().startswith(b"\x89PNG") for picture in pictures)


def test_figures_refuse_what_cannot_be_drawn(victim: Victim):
    found = filters(victim.model)
    pairs = pair_up(victim.data.defense.subset(torch.arange(2)), victim.trigger)
    for draw in (lambda: lesson_plots.losses_compared({}, 4), lambda: lesson_plots.turned_down([0], [1.0], 1, "f"),
                 lambda: lesson_plots.predicted_against_real({"taylor": torch.ones(2)}, torch.ones(3), ["a"] * 3),
                 lambda: lesson_plots.score_maps(found, {"taylor": torch.ones(2)}),
                 lambda: filter_picture.filter_view(victim.model, found, len(found), pairs)):
        refuses("", draw)


# ---- restart points


def test_work_that_was_cut_short_is_not_kept_for_later(victim: Victim, monkeypatch):
    restart._victim.cache_clear(), restart.victim_and_result.cache_clear()
    cut = [True]
    trained = dataclasses.replace(victim, card={"training": {"interrupted": True}})
    pruned = restart.grad_prune(victim.model, victim.data.defense, victim.trigger, spc=1, recipe="paper", patience=1, tune=False, progress=False)
    monkeypatch.setattr(restart, "load_victim", lambda name: victim)
    monkeypatch.setattr(restart, "attack", lambda **_: trained)
    monkeypatch.setattr(restart, "grad_prune", lambda *_, **__: dataclasses.replace(pruned, interrupted=cut.pop()))
    with pytest.raises(KeyboardInterrupt, match="run it again"):
        checkpoint("03_tune")
    cut.append(False)
    assert checkpoint("03_tune")[1].mask.positions == pruned.mask.positions
    monkeypatch.setenv("GRADPRUNE_MODE", "full")
    monkeypatch.setattr(restart, "load_victim", lambda _: 1 / 0)  # this mode trains
    with pytest.raises(KeyboardInterrupt, match="run it again"):
        checkpoint("03_start")
    trained.card["training"]["interrupted"] = False
    assert checkpoint("03_start").card == trained.card
    restart._victim.cache_clear(), restart.victim_and_result.cache_clear()


def test_restart_points_hand_out_copies_over_shared_images(victim: Victim, monkeypatch):
    restart._victim.cache_clear(), restart.victim_and_pairs.cache_clear(), restart.victim_and_result.cache_clear()
    monkeypatch.setattr(restart, "load_victim", lambda name: victim)
    monkeypatch.setattr(restart, "SPC", 3)
    first, pairs = checkpoint("02_scores")
    again, same = checkpoint("02_scores")
    assert first.model is not victim.model
    assert first.model is not again.model
    assert first.data is again.data
    first.model.conv1.weight.data.zero_()
    pairs.triggered.zero_()
    assert again.model.conv1.weight.any()
    assert same.triggered.any()
    tuned, result = checkpoint("03_tune")
    assert torch.equal(tuned.model.conv1.weight, victim.model.conv1.weight)
    assert not result.rows("tune")
    assert result.mask.positions
    restart._victim.cache_clear(), restart.victim_and_pairs.cache_clear(), restart.victim_and_result.cache_clear()


def test_the_measured_bench_is_read_from_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(restart, "data_folder", lambda: tmp_path)
    refuses(r"signs holds no bench", checkpoint, "05_table")
    with Store(tmp_path / "results" / "signs", {}) as store:
        store.add(empty_row(Cell("badnets", "ft", 2, 0)) | {"der": 0.9})
    for name in ("05_table", "05_rank", "05_more"):
        table = checkpoint(name)
        assert (table["der"].tolist(), table["error"].tolist()) == ([0.9], [""])
        table["der"] = 0  # the next one is whole again


def test_unknown_restart_point_offers_the_nearest():
    refuses("did you mean 02_scores", checkpoint, "02_score")
    assert all(make.__doc__ for make in restart.POINTS.values())


def test_equal_scores_share_their_rank_in_the_order():
    """By hand: ranks 1.5, 1.5, 3, 4 against 1, 2, 3, 4 give 0.95 however the equal ones are listed; all equal: 0."""
    real = torch.tensor([1.0, 2.0, 3.0, 4.0])
    scores = {"one": torch.tensor([0.0, 0.0, 1.0, 2.0]), "none": torch.zeros(4), "other": -real}
    for order in ([0, 1, 2, 3], [1, 0, 2, 3]):
        told = lesson_plots.predicted_against_real(scores | {"other": -real[order]}, real[order], list("abcd")).summary
        assert ": one 0.95, none 0.00, other -1.00. " in told
