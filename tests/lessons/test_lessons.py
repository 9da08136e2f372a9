"""The lessons' tools: checks that diagnose, predictions that are kept, restart points, and progress that survives."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout

from gradprune.base.errors import InputError
from gradprune.bench import Cell
from gradprune.bench.cells import empty_row
from gradprune.bench.store import Store
from gradprune.lessons import CheckFailed, begin, check, checkpoint, mode, predict, reveal, whose
from gradprune.lessons.runtime import (
    attacking,
    predictions,
    progress,
)
from gradprune.lessons.runtime import (
    feedback as telling,
)
from gradprune.lessons.runtime import (
    notebook_setup as session,
)
from gradprune.lessons.runtime import (
    restart_points as restart,
)
from gradprune.lessons.runtime.check import EXERCISES
from gradprune.lessons.runtime.feedback import close
from gradprune.pruning import SCORES, Pairs, filter_scores, pair_up, silence, validate
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
    told = capsys.readouterr().out
    assert "✘ Not yet right" in told
    assert message in told


def hang_up(*_):
    raise SystemExit


def unspeakable(*_):
    class Mute(Exception):
        def __str__(self):
            raise ValueError

    raise Mute


def recurse(*_):
    return recurse()


HOSTILE = {"a number": 3, "a string": "score", "a class": torch.nn.Linear, "no arguments": lambda: 1, "raises": lambda *_: 1 / 0,
           "exits": hang_up, "cannot be printed": unspeakable, "recurses": recurse, "a string back": lambda *_: "0.5",
           "a list of strings": lambda *_: ["a"], "nan": lambda *_: float("nan"), "infinite": lambda *_: torch.tensor(torch.inf),
           "empty": lambda *_: torch.zeros(0), "a huge shape": lambda *_: torch.zeros(1, 1).expand(9, 9), "itself": lambda *a: a,
           "a set": lambda *_: {1}, "not implemented": lambda *_: (_ for _ in ()).throw(NotImplementedError())}


@each_exercise
@pytest.mark.parametrize("attempt", HOSTILE.values(), ids=HOSTILE)
def test_whatever_an_attempt_does_the_notebook_goes_on(exercise, attempt, capsys):
    back = getattr(check, exercise.name)(attempt)
    assert back is exercise.reference
    assert exercise.judge(back).state == "correct"
    assert "✘" in capsys.readouterr().out


def test_an_exception_is_told_with_its_line(capsys):
    check.score(lambda weight, gradient: gradient.mean(dim=9))
    told = capsys.readouterr().out
    assert "IndexError" in told
    assert "(line " in told


def test_a_fault_that_nobody_foresaw_is_told_with_both_values(capsys):
    check.score(lambda weight, gradient: 3.7 * EXERCISES["score"].reference(weight, gradient))
    told = capsys.readouterr().out
    assert "With `weight = tensor([[[[1., 2.]]], [[[3., 4.]]]]), gradient = " in told
    assert "the result should be `tensor([2.0000, 0.5000])`, yours is `tensor([7.4000, 1.8500])`" in told
    check.score(lambda weight, gradient: gradient.abs().mean(dim=(1, 2, 3)) + (weight.shape[1] == 4))  # right on the example
    right = EXERCISES["score"].reference(*EXERCISES["score"].cases()[0])
    assert f"should be {right[0]:.4g} at place 0, yours is {1 + right[0]:.4g}." in capsys.readouterr().out
    check.score(lambda weight, gradient: gradient.abs().mean(dim=(1, 2, 3), keepdim=True))
    assert "leave out `keepdim=True`" in capsys.readouterr().out


def test_the_line_of_an_exception_is_the_learners_and_no_librarys():
    def by_number(scans):
        return scans[0]

    line = by_number.__code__.co_firstlineno + 1
    assert EXERCISES["alarm_rates"].judge(by_number).message == f"your function raises KeyError: 0 (line {line} of its cell)."


def test_values_that_look_alike_are_told_with_more_digits():
    exercise = dataclasses.replace(EXERCISES["der"], cases=lambda: [(-2.3509,)], reference=lambda number: number, mistakes={})
    assert "should be -2.3509, yours is -2.3512." in exercise.judge(lambda number: -2.3512).message
    assert "should be -2.351, yours is -4." in exercise.judge(lambda number: -4.0).message


def test_whoever_forgets_to_return_has_made_an_attempt():
    def forgets(norms):
        norms = EXERCISES["anomaly"].reference(norms)

    def sometimes(history, alpha):
        for row in history:
            if row["round"] > 5:
                return row["round"]

    def only_passes(norms):
        """A stub, as handed out."""
        pass

    for name, attempt in (("anomaly", forgets), ("stopping_rule", sometimes)):
        verdict = EXERCISES[name].judge(attempt)
        assert verdict.state == "wrong" and "gives nothing back (None)" in verdict.message
    assert EXERCISES["anomaly"].judge(only_passes).state == "untouched"


def test_a_whole_row_is_no_round():
    rule = EXERCISES["stopping_rule"]
    verdict = rule.judge(lambda history, alpha: history[rule.reference(history, alpha)])
    assert verdict.state == "wrong" and "a whole row is returned" in verdict.message


def test_a_file_without_a_nest_is_told_apart_from_other_missing_keys():
    unwrap = EXERCISES["unwrap"]
    assert "no “state_dict” in it to open" in unwrap.judge(lambda content: content["state_dict"]).message
    assert "raises KeyError: 'weights'" in unwrap.judge(lambda content: content["weights"]).message


def test_double_precision_does_not_break_what_follows():
    def by_numpy(images, mean, std):
        return torch.from_numpy((images.numpy() - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1)))

    normalise, images = EXERCISES["normalise"], torch.full((1, 3, 4, 4), 0.5)
    verdict = normalise.judge(by_numpy)
    assert verdict.state == "wrong" and "come back as torch.float64" in verdict.message
    assert normalise.judge(lambda *case: by_numpy(*case).float()).state == "correct"
    own = attacking.OwnTrigger(lambda images: images.double() / 2)
    assert torch.equal(own(images), images / 2)


def test_a_misconception_that_fails_on_the_inputs_explains_nothing():
    exercise = EXERCISES["score"]
    broken = dataclasses.replace(exercise, mistakes={"divided by nothing": [lambda *_: 1 / 0]})
    verdict = broken.judge(lambda weight, gradient: gradient.abs().sum(dim=(1, 2, 3)) + 1)
    assert verdict.state == "wrong" and verdict.message.startswith("your function does something else than it should")


@each_exercise
def test_small_examples_can_be_read_and_suit_the_exercise(exercise):
    for case in exercise.examples():
        assert len(exercise.observe(exercise.reference, case)) > 0
        told = telling.an_example({"x": case[0]}, exercise.reference(*case), 0)
        assert "..." not in told and len(told) < 400, told


def test_tables_are_shown_as_one_would_type_them():
    told = EXERCISES["mean_rank"].judge(lambda scores: scores.rank(axis=1).mean() * 7).message
    assert "With `scores = DataFrame({'a': [0.9, 0.6], 'b': [0.8, nan], 'c': [0.8, 0.7]})`" in told
    assert "the result should be `Series({'a': 1.5, 'b': 2.75, 'c': 1.75})`" in told
    told = EXERCISES["unwrap"].judge(lambda content: dict.fromkeys(content.get("state_dict", content), 0)).message
    assert "shape" not in told and "'module.head.module.bias': tensor([1.])" in told


def test_plain_python_without_ipython_prints(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "IPython.core.getipython", None)
    session.show("<b>bold</b>", "bold")
    assert capsys.readouterr().out == "bold\n"


def test_ctrl_c_in_an_attempt_stops_the_cell():
    def stopped(*_):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        check.score(stopped)


def test_changed_inputs_are_told(capsys):
    def in_place(weight, gradient):
        return gradient.abs_().mean(dim=(1, 2, 3))

    check.score(in_place)
    assert "in place" in capsys.readouterr().out


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


@pytest.mark.parametrize("right", [
    lambda w, g: g.abs().mean((1, 2, 3)), lambda w, g: g.abs().flatten(1).mean(1),
    lambda w, g: torch.stack([f.abs().mean() for f in g]), lambda w, g: [f.abs().mean() for f in g],
    lambda w, g: np.abs(g.numpy()).mean(axis=(1, 2, 3)), lambda w, g: [float(f.abs().mean()) for f in g]])
def test_other_right_ways_are_right(right):
    assert check.score(right) is right


def test_other_right_ways_of_the_other_exercises():
    def by_hand(model, images, trigger, target):
        hits = total = 0
        for image, label in zip(trigger(images.floats()), images.labels.tolist(), strict=True):
            if label != target:
                total += 1
                hits += int(model(image[None]).argmax()) == target
        return hits / total

    def negative_log(model, images, labels, trigger, target):
        return -model(trigger(images)).log_softmax(1)[range(len(labels)), labels].mean()

    def hooked(model, optimizer, mask, loss):
        mask.hold(optimizer, model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    class Stripe(torch.nn.Module):
        def forward(self, images):
            mark = torch.zeros_like(images)
            mark[..., 15:17, :] = 0.5
            return (images + mark).clamp(0, 1)

    stripe = Stripe()
    assert check.asr(by_hand) is by_hand
    assert check.unlearning_loss(negative_log) is negative_log
    assert check.hold_mask(hooked) is hooked
    assert check.trigger(stripe) is stripe
    assert check.stopping_rule(lambda history, alpha: EXERCISES["stopping_rule"].reference(history, alpha))


def test_the_loop_of_the_lesson_is_a_right_stopping_rule():
    def loop(history, alpha):
        best, kept = history[0]["val_unlearning_loss"], 0
        for row in history:
            if history[0]["val_acc"] - row["val_acc"] >= alpha:
                break
            if row["val_unlearning_loss"] < best:
                best, kept = row["val_unlearning_loss"], row["round"]
        return kept

    assert check.stopping_rule(loop) is loop


def test_a_shift_by_a_pixel_is_a_right_trigger_and_a_faint_mark_is_told(capsys):
    def shifted(images):
        return torch.roll(images, 1, dims=3)

    def one_pixel(images):
        images = images.clone()
        images[:, :, -2, -2] = 1.0
        return images

    def brighter(images):
        return (images + 0.1).clamp(0, 1)

    assert check.trigger(shifted) is shifted
    assert "may not learn" not in capsys.readouterr().out
    for faint in (one_pixel, brighter):
        assert check.trigger(faint) is faint
        assert "✔ Correct" in (told := capsys.readouterr().out) and "may not learn" in told


def test_failures_may_share_the_last_places_or_all_be_last():
    def very_last(scores):
        return scores.rank(axis=1, ascending=False).fillna(scores.shape[1]).mean()

    assert check.mean_rank(very_last) is very_last


def test_a_gradient_that_is_taken_inside_is_told():
    def inside(*case):
        loss = EXERCISES[name].reference(*case)
        loss.backward()
        return loss

    for name in ("unlearning_loss", "search_loss"):
        verdict = EXERCISES[name].judge(inside)
        assert verdict.state == "wrong" and "`.backward()` is called inside" in verdict.message


def test_a_scatter_without_absolute_values_is_told():
    def signed(norms):
        middle = norms.quantile(0.5)
        return (middle - norms) / (1.4826 * (norms - middle).quantile(0.5))

    def by_median(norms):
        return (norms.median() - norms) / (1.4826 * (norms - norms.median()).median())

    for attempt in (signed, by_median):
        assert "half above it and half below" in EXERCISES["anomaly"].judge(attempt).message


def another_way(name):
    """Right answers of other kinds than the reference, as students write them."""
    def mark(images):
        rows = []
        for image in images:
            image = image.clone()
            image[:, :4, :4] = 1 - image[:, :4, :4]
            rows.append(image)
        return torch.stack(rows)

    def asr(model, images, trigger, target):
        with torch.inference_mode():
            found = model(trigger(images.floats())).softmax(1).max(1).indices
        counted = images.labels != target
        return ((found == target) & counted).sum().item() / counted.sum().item()

    def slope(loss, weights, place, step):
        move = torch.zeros_like(weights)
        move[place] = step
        return (loss(weights + move) - loss(weights - move)) / step / 2

    def rule(history, alpha):
        within = [row for row in history if row["val_acc"] > history[0]["val_acc"] - alpha]
        return sorted(within, key=lambda row: row["val_unlearning_loss"])[0]["round"]

    def held(model, optimizer, mask, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        silence(model, mask.filters, mask.positions)

    def search(model, images, mask, pattern, target, cost):
        mixed = torch.lerp(images, pattern.expand_as(images), mask.expand_as(images))
        return -model(mixed).log_softmax(1)[:, target].mean() + cost * mask.abs().sum()

    def index(norms):
        norms = norms.numpy()
        middle = np.median(norms)
        return (middle - norms) / (1.4826 * np.median(np.abs(norms - middle)))

    def rates(scans):
        rows = list(scans.itertuples())
        found = [row.suspect == row.target for row in rows if row.attacked]
        accused = [not np.isnan(row.suspect) for row in rows if not row.attacked]
        return [sum(found) / len(found), sum(accused) / len(accused)]

    def unwrapped(content):
        inner = content
        while "state_dict" in inner:
            inner = inner["state_dict"]
        return {name[7:] if name.startswith("module.") else name: value for name, value in inner.items()}

    def normal(images, mean, std):
        return ((images.permute(0, 2, 3, 1) - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)

    def partners(reads, convs, norms):
        readers, sources = {}, {}
        for source, reader in reads:
            readers.setdefault(source, set()).add(reader)
            sources.setdefault(reader, set()).add(source)
        pairs = {conv: next(iter(readers.get(conv, {""}))) for conv in convs if len(readers.get(conv, ())) == 1}
        return {conv: norm for conv, norm in pairs.items() if norm in norms and len(sources[norm]) == 1}

    def pruned(model, found, train, validation, alpha, patience):
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

    return {"trigger": mark, "asr": asr, "slope": slope, "stopping_rule": rule, "hold_mask": held, "search_loss": search,
            "anomaly": index, "alarm_rates": rates, "unwrap": unwrapped, "normalise": normal, "partners": partners,
            "prune": pruned, "score": lambda w, g: torch.einsum("fihw->f", g.abs()) / g[0].numel(),
            "unlearning_loss": lambda m, x, y, t, k: F.nll_loss(F.log_softmax(m(t(x)), dim=1), y),
            "der": lambda b, a: (np.clip(b.asr - a.asr, 0, 1) - np.clip(b.acc - a.acc, 0, 1) + 1) / 2,
            "mean_rank": lambda s: (-s).rank(axis=1, na_option="bottom").mean(axis=0)}[name]


@pytest.mark.parametrize("name", sorted(set(EXERCISES) - {"find_trigger"}))
def test_each_exercise_has_another_right_way(name):
    assert EXERCISES[name].judge(another_way(name)).state == "correct"


def test_what_has_the_wrong_size_is_told_in_words():
    def unreduced(model, images, trigger, target):
        others = images.subset(images.labels != target)
        return model(others.triggered(trigger)).argmax(1) == target

    def first_three(model, found, train, validation, alpha, patience):
        return filter_scores(model, found, train.triggered, train.labels)[0].topk(3).indices.tolist()

    assert "should be one number, yours holds 54: is a mean or a sum missing?" in EXERCISES["asr"].judge(unreduced).message
    assert "should have no entry, yours has 3 entries" in EXERCISES["prune"].judge(first_three).message


def test_later_cells_say_whose_work_they_show(capsys):
    def own(weight, gradient):
        return gradient.abs().mean((1, 2, 3))

    assert whose(check.score(own)) == "Your"
    assert whose(check.score(lambda weight, gradient: weight)) == whose(check.score(None)) == "The reference"


def test_other_right_ways_to_compare():
    def clipped(before, after):
        price = max(before.acc, after.acc) - after.acc
        return 0.5 + 0.5 * (before.asr - min(before.asr, after.asr) - price)

    def by_hand(scores):
        ranks = {name: [] for name in scores}
        for row in scores.fillna(-1).to_dict("records"):
            for name, own in row.items():
                ranks[name].append(1 + sum(x > own for x in row.values()) + (sum(x == own for x in row.values()) - 1) / 2)
        return {name: sum(places) / len(places) for name, places in ranks.items()}

    def sorted_table(scores):
        return scores.fillna(0).rank(axis=1, ascending=False).mean().sort_values()

    assert check.der(clipped) is clipped
    for right in (by_hand, sorted_table, lambda scores: sorted_table(scores)[scores.columns].to_numpy()):
        assert check.mean_rank(right) is right


def test_a_changed_table_is_told(capsys):
    def in_place(scores):
        scores.fillna(0, inplace=True)
        return scores.rank(axis=1, ascending=False).mean()

    check.mean_rank(in_place)
    assert "changes its input" in capsys.readouterr().out


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


def shown(monkeypatch):
    panels = []
    monkeypatch.setattr("IPython.display.display", panels.append)
    return panels


def test_a_slider_keeps_its_answer_and_shows_it_again(own_progress, monkeypatch, capsys):
    panels = shown(monkeypatch)
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


def test_buttons_start_without_an_answer(monkeypatch, capsys):
    panels = shown(monkeypatch)
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


def test_an_earlier_answer_out_of_range_is_passed_over(monkeypatch):
    panels = shown(monkeypatch)
    progress.remember("answers", "02.wide", 90.0)
    predict("02.wide", "now from 0 to 1?")
    assert "No guess yet" in panels[0].children[2].value
    progress.remember("answers", "02.option", "gone")
    predict("02.option", "which?", options=["a", "b"])
    assert panels[1].children[1].value is None


def test_bad_questions_are_told():
    with pytest.raises(InputError, match="low must be below high"):
        predict("k", "?", 1, 1)
    with pytest.raises(InputError, match="options"):
        predict("k", "?", options=["only"])


def test_an_error_while_keeping_an_answer_is_shown_in_red_and_raised_in_strict_mode(monkeypatch):
    panels = shown(monkeypatch)
    monkeypatch.setattr(predictions.progress, "remember", lambda *_: 1 / 0)
    predict("02.broken", "?")
    _, slider, line = panels[0].children
    slider.set_state({"value": 0.2})
    assert "ZeroDivisionError" in line.value
    assert "gradprune-error" in line.value
    monkeypatch.setenv("GRADPRUNE_STRICT", "1")
    with pytest.raises(ZeroDivisionError):
        slider.value = 0.4


# ---- progress


@pytest.mark.parametrize("content", ["", "{", "[]", '{"answers": []}', '{"answers": {"a": [1]}}', "[" * 100_000, "\x00\xff",
                                     " " * 600_000])
def test_a_damaged_file_is_set_aside_and_told(own_progress, content, capsys):
    own_progress.write_text(content, encoding="utf-8")
    progress.remember("answers", "02.a", 1)
    assert "was damaged; it was renamed to progress.json.damaged" in capsys.readouterr().out
    assert own_progress.with_name("progress.json.damaged").read_text(encoding="utf-8") == content
    assert progress.recall("answers", "02.a") == 1
    own_progress.write_text("again {")
    assert progress.recall("answers", "02.a") == 1, "this kernel still knows"
    assert own_progress.with_name("progress.json.damaged2").read_text() == "again {"


def test_bytes_that_are_no_text_are_damage_too(own_progress):
    own_progress.write_bytes(b"\xff\xfe\x00\x81")
    assert progress.recall("answers", "x") is None
    assert own_progress.with_name("progress.json.damaged").exists()


def test_two_notebooks_at_once_lose_nothing(own_progress):
    writers = [threading.Thread(target=lambda n=n: [progress.remember("answers", f"0{n}.{i}", i) for i in range(12)])
               for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
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

    def fails(*_, **__):
        raise OSError(5, "Input/output error")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", fails)
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
    with pytest.raises(InputError, match=r"^GRADPRUNE_MODE must be one of quick, full, ci, got 'fast'\.$"):
        mode()


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


def test_captions_name_the_mode():
    code = ("from IPython.core.interactiveshell import InteractiveShell; shell = InteractiveShell.instance()\n"
            "from gradprune.lessons import begin; begin('02')\n"
            "from matplotlib.figure import Figure; from gradprune.views import Picture\n"
            "print(shell.display_formatter.format(Picture(Figure(), 'It fell.'))[0]['text/html'][-240:])")
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 'Made in mode "quick"' in told
    assert "It fell." in told


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
        filter_picture.filter_view(victim.model, found, 0, pairs_without_place(pairs))]
    for position, words in ((0, "its colours"), (len(found) - 1, f"one tile per input ({found.layers[-1].shape[0]})")):
        picture = filter_picture.filter_view(victim.model, found, position, pairs)
        assert any(words in text.get_text() for ax in picture.figure.axes for text in ax.texts), words
    told = [str(picture) for picture in pictures]
    assert "Pure guessing among 4 classes gives 1.39" in told[0]
    assert "goes from 8.00 to 1.00; the straight line says -0.20 and holds until about 100% of it is gone" in told[1]
    assert "taylor 1.00" in told[2]
    assert f"by taylor: {names[best]}" in told[3]
    assert "images the largest change lies on the sticker" in told[4]
    assert "covers the whole image" in told[5]
    assert all(picture.png().startswith(b"\x89PNG") for picture in pictures)


def pairs_without_place(pairs: Pairs) -> Pairs:
    return pairs._replace(triggered=(pairs.clean + 0.1).clamp(0, 1))


def test_figures_refuse_what_cannot_be_drawn(victim: Victim):
    found = filters(victim.model)
    pairs = pair_up(victim.data.defense.subset(torch.arange(2)), victim.trigger)
    for draw in (lambda: lesson_plots.losses_compared({}, 4), lambda: lesson_plots.turned_down([0], [1.0], 1, "f"),
                 lambda: lesson_plots.predicted_against_real({"taylor": torch.ones(2)}, torch.ones(3), ["a"] * 3),
                 lambda: lesson_plots.score_maps(found, {"taylor": torch.ones(2)}),
                 lambda: filter_picture.filter_view(victim.model, found, len(found), pairs)):
        with pytest.raises(InputError):
            draw()


# ---- restart points


def test_work_that_was_cut_short_is_not_kept_for_later(victim: Victim, monkeypatch):
    restart._victim.cache_clear(), restart._pruned.cache_clear()
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
    with pytest.raises(KeyboardInterrupt, match="run it again"):
        checkpoint("03_start")
    trained.card["training"]["interrupted"] = False
    assert checkpoint("03_start").card == trained.card
    restart._victim.cache_clear(), restart._pruned.cache_clear()


def test_restart_points_hand_out_copies_over_shared_images(victim: Victim, monkeypatch):
    restart._victim.cache_clear(), restart._pairs.cache_clear(), restart._pruned.cache_clear()
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
    restart._victim.cache_clear(), restart._pairs.cache_clear(), restart._pruned.cache_clear()


def test_full_mode_trains(victim: Victim, monkeypatch):
    restart._victim.cache_clear()
    monkeypatch.setenv("GRADPRUNE_MODE", "full")
    trained = dataclasses.replace(victim, card={"training": {"interrupted": False}})
    monkeypatch.setattr(restart, "attack", lambda **_: trained)
    monkeypatch.setattr(restart, "load_victim", lambda _: 1 / 0)
    assert checkpoint("02_start").target == victim.target
    restart._victim.cache_clear()


def test_the_measured_bench_is_read_from_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(restart, "data_folder", lambda: tmp_path)
    with pytest.raises(InputError, match=r"signs holds no bench"):
        checkpoint("05_table")
    cell = Cell("badnets", "ft", 2, 0)
    with Store(tmp_path / "results" / "signs", {}) as store:
        store.add(empty_row(cell) | {"der": 0.9})
    for name in ("05_table", "05_rank", "05_more"):
        table = checkpoint(name)
        assert (table["der"].tolist(), table["error"].tolist()) == ([0.9], [""])
        table["der"] = 0  # the next one is whole again


def test_unknown_restart_point_offers_the_nearest():
    with pytest.raises(InputError, match="did you mean 02_scores"):
        checkpoint("02_score")
    assert all(make.__doc__ for make in restart.POINTS.values())


def test_equal_scores_share_their_rank_in_the_order():
    """By hand: ranks 1.5, 1.5, 3, 4 against 1, 2, 3, 4; the order in which equal ones are listed must not matter."""
    one, other = np.array([0.0, 0.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0, 4.0])
    assert lesson_plots._rank_correlation(one, other) == pytest.approx(np.sqrt(0.9))
    assert lesson_plots._rank_correlation(one, other[[1, 0, 2, 3]]) == pytest.approx(np.sqrt(0.9))
    assert lesson_plots._rank_correlation(np.zeros(4), other) == 0
    assert lesson_plots._rank_correlation(other, -other) == pytest.approx(-1)
