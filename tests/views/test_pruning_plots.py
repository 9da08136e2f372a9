"""The figures of the pruning lesson: their sentence equals the data, their texts can be read, bad input is refused."""

import pytest
from conftest import assert_readable, holds, refuses, says, texts

from gradprune.evaluation import Metrics
from gradprune.views.figures.pruning_plots import choices, regrowth, with_and_without

WAYS = {"given": Metrics(0.99, 1.0, 0.0), "pruned": Metrics(0.93, 0.64, 0.24), "fine-tuned alone": Metrics(0.97, 0.0, 0.8),
        "pruned + fine-tuned": Metrics(1.0, 0.031, 0.999)}


@pytest.mark.parametrize("guess", [None, 0.0, 0.5])
def test_choices_tells_mean_and_range(guess):
    picture = choices({"Validation\nchooses": [0.1, 0.5, 0.6], "as reported": [0.0, 0.0], "fresh": [1.0]}, guess)
    assert holds(picture.summary, "Validation chooses, 40% (10% to 60%)", "as reported, 0% (0% to 0%)")
    assert_readable(picture)
    shown = {text.get_text() for text in texts(picture)}
    assert {"mean 40%", "mean 0%", "mean 100%"} <= shown
    assert ("your guess" in shown) == (guess is not None)


@pytest.mark.parametrize("attacks", [("badnets",), ("badnets", "blended", "sig")])
def test_with_and_without_writes_every_value(attacks):
    picture = with_and_without(dict.fromkeys(attacks, WAYS))
    shown = [text.get_text() for text in texts(picture)]
    for attack in attacks:
        assert attack in shown
        assert f"{attack}: given 99.0% / 100.0%, pruned 93.0% / 64.0%" in picture.summary
    assert shown.count("3.1%") == len(attacks)
    assert_readable(picture)


@pytest.mark.parametrize("grown", [[0.0, 0.01, 0.034], [0.0, 0.0, 0.0]])
def test_regrowth_tells_both_ends(grown):
    picture = regrowth(held=[0.0, 0.0, 0.0], forgotten=grown, removed=5)
    assert says(picture.summary, "2 training steps", "5 removed filters", f"{grown[-1]:.1%}", "mask held", "0.0%")
    assert_readable(picture)


@pytest.mark.parametrize("draw", [lambda: choices({}), lambda: choices({"a": []}), lambda: with_and_without({}),
                                  lambda: with_and_without({"badnets": {}}), lambda: regrowth([0.0], [0.0], 1),
                                  lambda: regrowth([0.0, 0.1], [0.0, 0.1, 0.2], 1)])
def test_bad_input_is_refused(draw):
    refuses("", draw)
