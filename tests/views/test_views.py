"""The figures and the report: what they say equals the data, what they show can be read."""

import base64
import copy
import dataclasses
import io
import re
from collections import OrderedDict
from itertools import combinations
from unittest.mock import Mock

import matplotlib
import numpy as np
import pytest
import torch
from conftest import Page, assert_readable, defend, holds, refuses, same, says, shown, texts
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import to_rgb
from PIL import Image

from gradprune import views
from gradprune.attacks import make_trigger
from gradprune.datasets import ImageSet
from gradprune.defenses import DefenseResult, exposure, grad_prune
from gradprune.defenses.repair import IGNORED
from gradprune.defenses.unlearning import UNLEARNED
from gradprune.evaluation import Metrics, der
from gradprune.models import build, predict
from gradprune.pruning import FilterMask, filter_scores, pair_up
from gradprune.pruning.filters import filters
from gradprune.victims import Victim
from gradprune.views import Picture, before_after, examples, loss_curves, pruning_trajectory, score_heatmap
from gradprune.views.figures import lesson_plots, style
from gradprune.views.figures.drawing import written
from gradprune.views.figures.picture import change, count
from gradprune.views.panels.filter_explorer import FilterChoice
from gradprune.views.reports import report as report_module
from gradprune.views.reports.report import write_repair_report, write_report

HOSTILE = ("<script>alert(1)</script>", 'a" onerror="x', "$\\frac{1}{0$ & co", "line\nbreak \x07" + "long " * 30)
STAGES = {"before": Metrics(0.995, 0.98, 0.012), "pruned": Metrics(0.971, 0.104, 0.8), "tuned": Metrics(0.98, 0.02, 0.96)}


@pytest.fixture(scope="module")
def result(victim: Victim) -> DefenseResult:
    return grad_prune(victim.model, victim.data.defense, victim.trigger, spc=9, recipe="paper", progress=False)


@pytest.fixture(scope="module")
def hostile(victim: Victim) -> Victim:
    """The same victim over classes whose names attack the page and the figures."""
    data = type(victim.data)(*(ImageSet(part.images, part.labels, HOSTILE) for part in victim.data))
    return Victim(victim.model, victim.trigger, victim.target, data, {})


def history(rounds: int) -> tuple[list[dict], list[dict]]:
    """A made-up pruning run with its replay."""
    rows, replayed = [], []
    for number in range(rounds + 1):
        done = number / max(1, rounds)
        name = {"round": number, "layer": "stages.1.0.shortcut" if number else None, "index": number if number else None}
        rows.append({"stage": "prune", **name, "score": 1.0, "val_acc": 1 - 0.1 * done, "val_clean_loss": 0.1 + done,
                     "val_unlearning_loss": 5 - 4.5 * done})
        replayed.append({**name, "acc": 0.99 - 0.05 * done, "asr": 1 - 0.97 * done, "ra": 0.95 * done})
    return rows, replayed


def tuning(epochs: int, best: int) -> list[dict]:
    return [{"stage": "tune", "epoch": epoch, "val_acc": 0.9, "val_clean_loss": 0.1, "val_loss": 0.3 + abs(epoch - best) / 9,
             "val_unlearning_loss": 0.2 + abs(epoch - best) / 9, "kept": epoch == best} for epoch in range(epochs + 1)]


# ---- pictures


def test_a_picture_shows_its_png_and_its_sentence():
    picture = before_after({"<i>before</i>": Metrics(0.9, 1.0, 0.0), 'after "all"': Metrics(0.9, 0.5, 0.4)})
    assert says(picture.summary, "<i>before</i>", "after \"all\"", "ACC", "90.0%", "ASR fell", "100.0%", "50.0%", "RA rose", "0.0%", "40.0%")
    assert repr(picture) == str(picture) == picture.summary
    page = picture._repr_html_()
    assert "<i>" not in page
    alt, caption = re.search('alt="([^"]*)"', page)[1], re.search("<figcaption>(.*)</figcaption>", page)[1]
    assert alt == caption
    assert "&lt;i&gt;before" in alt
    image = Image.open(io.BytesIO(base64.b64decode(re.search("base64,([^\"]*)", page)[1])))
    image.load()
    assert image.format == "PNG"
    assert image.width == 1.5 * int(re.search(r'width="(\d+)"', page)[1])


def test_a_picture_is_saved_whole_or_not_at_all(tmp_path):
    picture = before_after(STAGES)
    path = picture.save(tmp_path / "new" / "figure.png")
    assert path.read_bytes() == picture.png()
    assert [entry.name for entry in path.parent.iterdir()] == ["figure.png"]
    (tmp_path / "file").write_text("in the way")
    refuses("Cannot write", picture.save, tmp_path / "file" / "figure.png")


def test_words():
    assert change("ASR", 0.98, 0.02) == "ASR fell from 98.0% to 2.0%"
    assert change("loss", 0.5, 0.25, ".2f") == "loss fell from 0.50 to 0.25"
    assert change("ACC", 0.9501, 0.9502) == "ACC stayed at 95.0%"
    assert (count(1, "filter"), count(0, "filter")) == ("1 filter", "0 filters")


def test_labels_are_spread_without_crossing_or_leaving():
    for places in ([0.5, 0.5, 0.5], [1, 0.99, 0], [0, 0, 0], [1, 1, 1], [0.2], [0.1, 0.9, 0.12], [0.3, 0.3]):
        moved = style.spread(places, 0, 1, gap=0.1)
        order = np.argsort(places, kind="stable")
        gaps = np.diff(np.array(moved)[order])
        assert (gaps >= 0.1 - 1e-9).all()
        assert min(moved) >= 0
        assert max(moved) <= 1
    assert style.spread([0.5, 0.5], 0, 1, gap=0.1) == pytest.approx([0.45, 0.55])
    assert style.spread([0.9, 0.1], 0, 1, gap=0.1) == pytest.approx([0.9, 0.1])


def test_colours_can_be_read_and_told_apart_by_the_colour_blind():
    def linear(color):
        values = np.array(to_rgb(color))
        return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)

    marks = [*style.METRICS.values(), style.CLEAN, style.TRIGGERED]
    for color in [*(mark.color for mark in marks), style.INK, style.FAINT, style.WRONG.color]:
        assert 1.05 / (linear(color) @ [0.2126, 0.7152, 0.0722] + 0.05) >= 4.5  # WCAG AA on the paper
    deutan = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])  # Machado et al., 2009
    protan = np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]])
    for first, second in combinations(style.METRICS.values(), 2):
        for eye in (np.eye(3), deutan, protan):
            assert np.linalg.norm(eye @ linear(first.color) - eye @ linear(second.color)) > 0.08
    assert len({mark.marker for mark in style.METRICS.values()}) == len({mark.line for mark in style.METRICS.values()}) == 3


# ---- examples


def test_examples_count_what_the_model_says(victim, result):
    images, target = victim.data.test.subset(torch.arange(5)), victim.target
    picture = examples({"given": victim.model, "after": result.model}, images, victim.trigger, target)
    others = images.labels != target
    for name, model in (("Given", victim.model), ("After", result.model)):
        clean = predict(model, images.floats()).argmax(1)
        triggered = predict(model, victim.trigger(images.floats())).argmax(1)
        assert (f"{name}: {int((clean == images.labels).sum())} of 5 clean images right; with the trigger "
                f"{int((triggered == target)[others].sum())} of {int(others.sum())} go to “{images.classes[target]}” and "
                f"{int((triggered == images.labels)[others].sum())} are still right.") in picture.summary
    assert len(picture.figure.axes) == 15
    # the third row is the difference around grey, as much amplified as it says
    gain = int(re.search(r"difference × (\d+)", " ".join(shown(picture)))[1])
    drawn = np.asarray(picture.figure.axes[10].images[0].get_array())
    difference = (victim.trigger(images.floats()) - images.floats())[0].permute(1, 2, 0).numpy()
    assert np.allclose(drawn, np.clip(0.5 + 0.5 * gain * difference, 0, 1), atol=1e-6)


def test_answers_are_marked_by_colour_and_symbol(victim):
    """The truth is what the model says, what it does not say, or the target."""
    images, target = victim.data.test.subset(torch.tensor([0, 0, 0])), victim.target
    answer = int(predict(victim.model, victim.trigger(images.floats()[:1])).argmax())
    assert answer == target
    truths = torch.tensor([0, 2, target])
    picture = examples(victim.model, ImageSet(images.images, truths, images.classes), victim.trigger, target)
    for column, verdict in enumerate((style.ATTACKED, style.ATTACKED, style.RIGHT)):
        name, chance = [text for text in picture.figure.axes[3 + column].texts if text.get_ha() == "center"]
        assert name.get_text() == f"{verdict.symbol} {images.classes[target]}"
        assert re.fullmatch(r"\d+%", chance.get_text())
        assert name.get_color() == chance.get_color() == verdict.color
    clean_name = next(text for text in picture.figure.axes[1].texts if text.get_ha() == "center")
    assert clean_name.get_text().startswith(style.WRONG.symbol)


def test_examples_under_an_attack_that_sends_each_class_to_the_next(victim):
    """The given model answers the target; that is what the attacker wanted of the class before alone."""
    images, target = victim.data.test.subset(torch.tensor([0, 0, 0])), victim.target
    shown = ImageSet(images.images, torch.tensor([(target - 1) % 4, (target + 1) % 4, target]), images.classes)
    picture = examples(victim.model, shown, victim.trigger, target, label_map="all_to_all")
    for column, verdict in enumerate((style.ATTACKED, style.WRONG, style.RIGHT)):
        assert any(text.get_text().startswith(verdict.symbol) for text in picture.figure.axes[3 + column].texts)
    assert "1 of 3 go to the next class and 1 are still right" in picture.summary


@pytest.mark.filterwarnings("error:Glyph")
def test_class_names_that_the_font_lacks_are_numbers_in_pictures(victim):
    images = victim.data.test.subset(torch.arange(4))
    foreign = ImageSet(images.images, images.labels, ("żółw", "猫", "кот", "狗 dog"))
    picture = examples(victim.model, foreign, victim.trigger, 1)
    assert picture.png() and "猫" in picture.summary
    names = {text.get_text()[2:] for ax in picture.figure.axes for text in ax.texts if text.get_text()[:1] in
             (style.RIGHT.symbol, style.WRONG.symbol, style.ATTACKED.symbol)}
    assert names <= {"żółw", "class 1", "кот", "class 3"} and names & {"class 1", "class 3"}
    assert (written(1, foreign.classes), written(0, foreign.classes), written(9, foreign.classes)) == ("class 1", "żółw", "class 9")


def test_other_names_that_the_font_lacks_are_spelled_out():
    assert style.plain("猫 net", 40) == r"\u732b net" and style.drawable(style.plain("狗" * 30)) and style.plain("żółw $x") == r"żółw \$x"


def deep() -> torch.nn.Module:
    """A hundred convolutions, and what tells their long names apart is at the end."""
    names = [f"layer{number}" for number in range(100)]
    layers = OrderedDict((name, torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1))) for name in names)
    return torch.nn.Sequential(OrderedDict(features_of_a_deep_network=torch.nn.Sequential(layers)))


def test_long_names_of_layers_keep_their_end_and_those_without_room_are_left_out():
    assert style.plain("features.block1.layer12.conv2", 14, tail=True) == "…layer12.conv2"
    assert style.plain("layer12.conv2", 13, tail=True) == "layer12.conv2"
    found = filters(deep(), torch.zeros(1, 3, 8, 8))
    scores = torch.rand(len(found), generator=torch.Generator().manual_seed(0))
    rows, _ = history(2)
    shortened = [row | {"layer": row["layer"] and "features.block1." + row["layer"]} for row in rows]
    assert holds(shown(pruning_trajectory(shortened)), "1: …ck1.stages.1.0.shortcut[1]")
    for picture in (score_heatmap(found, scores), lesson_plots.score_maps(found, {"one": scores, "two": scores})):
        assert_readable(picture)
        names = [label.get_text() for label in picture.figure.axes[0].get_yticklabels()]
        assert 5 < len(set(names)) == len(names) < 100 and all(name.endswith(".0") for name in names)
    options = [name for name, _ in FilterChoice(found, scores).layer.options]
    assert len(set(options)) == 101


def test_examples_pick_the_first_of_each_class_and_the_target_last(victim):
    picture = examples(victim.model, victim.data.test, victim.trigger, target=1, columns=4)
    firsts = [int((victim.data.test.labels == label).nonzero()[0]) for label in (0, 2, 3, 1)]
    for ax, position in zip(picture.figure.axes, firsts, strict=False):
        assert np.allclose(ax.images[0].get_array(), victim.data.test.floats()[position].permute(1, 2, 0))


def test_examples_leave_the_model_alone_and_refuse_bad_input(victim):
    model = build("preact_resnet", 4, width=4, blocks=(1,)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    examples(model, victim.data.test, victim.trigger, 1)
    assert model.training
    assert same(before, model)
    refuses("target", examples, model, victim.data.test, victim.trigger, 4)
    refuses("no image", examples, model, victim.data.test.subset(torch.arange(0)), victim.trigger, 1)


# ---- scores


def cells(picture: Picture) -> PolyCollection:
    return next(item for item in picture.figure.axes[0].collections if isinstance(item, PolyCollection))


def crosses(picture: Picture) -> np.ndarray:
    return next(np.asarray(item.get_offsets()) for item in picture.figure.axes[0].collections
                if isinstance(item, PathCollection) and item.get_label() == "removed")


def test_heat_map_shows_every_score_and_marks_the_right_cells(victim):
    found = filters(victim.model)
    pairs = pair_up(victim.data.defense, victim.trigger)
    scores, _ = filter_scores(victim.model, found, pairs.triggered, pairs.labels)
    first = int(scores.argmax())
    removed = [first, found.position("stages.0.0.conv2", 3)]
    picture = score_heatmap(found, scores, removed)
    assert np.allclose(cells(picture).get_array(), scores)
    layers = [layer.name for layer in found.layers]
    ax = picture.figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == layers
    for position, (x, y) in zip(removed, crosses(picture), strict=True):
        assert x == found[position].index + 0.5
        assert np.argmin(abs(ax.get_yticks() - y)) == layers.index(found[position].layer)
        assert cells(picture).get_paths()[position].contains_point((x, y))
    assert says(picture.summary, str(found[first]), "highest gradient score", f"{len(found)} filters")
    assert f"{float(scores[first]):.3g}, " in picture.summary
    assert says(picture.summary, "2 removed filters", "cross", str(found[first]), "stages.0.0.conv2[3]")
    best = scores.argsort(descending=True, stable=True)[:8].tolist()
    assert [text for text in shown(picture) if re.match(r"\d\. ", text)] == [
        f"{place}. {found[position]}" for place, position in enumerate(best, 1)]


def test_heat_map_colours_fit_the_scores():
    found = filters(build("preact_resnet", 4, width=4, blocks=(1,)))
    scores = torch.linspace(0.5, 1, len(found))
    plain = cells(score_heatmap(found, scores))
    assert (plain.norm.vmin, plain.norm.vmax) == (0, 1)
    assert plain.norm(0.5) == pytest.approx(0.5)  # linear where nothing stands out
    signed = cells(score_heatmap(found, scores - 0.8, score="taylor"))
    assert signed.norm.vmin == -signed.norm.vmax
    assert signed.norm(0.0) == pytest.approx(0.5)
    assert np.linalg.norm(np.array(signed.cmap(0.5)[:3]) - 1) < 0.2  # nearly white at 0
    lone = torch.full((len(found),), 1e-3)
    lone[3] = 1.0
    picture = score_heatmap(found, lone)
    assert cells(picture).norm(1e-3) >= 0.1  # one huge score does not flatten the others
    assert any("root colour scale" in text for text in shown(picture))
    assert "1,000 times the median" in picture.summary
    score_heatmap(found, torch.zeros(len(found))).png()  # no division by zero
    score_heatmap(found, -scores).png()


def test_heat_map_wraps_wide_layers():
    found = filters(torch.nn.Sequential(torch.nn.Conv2d(3, 150, 3), torch.nn.Conv2d(150, 10, 1)))
    picture = score_heatmap(found, torch.rand(160), removed=[149, 150])
    assert crosses(picture).tolist() == [[149 - 128 + 0.5, 2.5], [0.5, 3.9]]
    assert any("a new line every 64" in text for text in shown(picture))


@pytest.mark.parametrize("scores", [torch.zeros(3), torch.full((12,), torch.nan), torch.full((12,), torch.inf)])
def test_heat_map_refuses_bad_scores(scores):
    refuses("scores must", score_heatmap, filters(torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3))), scores)


# ---- histories


def drawn(ax, color):
    return next(line for line in ax.lines if line.get_color() == color)


def test_trajectory_draws_the_history():
    rows, replayed = history(5)
    picture = pruning_trajectory([*rows, *tuning(3, 2)], replayed, kept=3)
    loss, accuracy, test = picture.figure.axes
    assert drawn(loss, style.TRIGGERED.color).get_ydata().tolist() == [row["val_unlearning_loss"] for row in rows]
    assert drawn(loss, style.CLEAN.color).get_ydata().tolist() == [row["val_clean_loss"] for row in rows]
    assert drawn(accuracy, style.METRICS["acc"].color).get_ydata().tolist() == [row["val_acc"] for row in rows]
    for key, mark in style.METRICS.items():
        line = drawn(test, mark.color)
        assert line.get_ydata().tolist() == [row[key] for row in replayed]
        assert (line.get_marker(), mark.name in shown(picture)) == (mark.marker, True)
    assert all([3, 3] in [list(line.get_xdata()) for line in ax.lines] for ax in (loss, accuracy, test))
    assert "kept: 3 filters removed; later rounds were undone" in shown(picture)
    labels = test.get_xticklabels()
    assert [label.get_text() for label in labels] == ["given", *(f"{n}: stages.1.0.shortcut[{n}]" for n in range(1, 6))]
    assert [label.get_color() for label in labels] == [style.INK] * 4 + [style.FAINT] * 2
    assert says(picture.summary, "3 filters removed", "5 rounds", "unlearning loss fell", "5.000", "2.300", "accuracy", "100.0%", "94.0%",
                "test images", "ACC fell", "99.0%", "96.0%", "ASR fell", "100.0%", "41.8%", "RA rose", "0.0%", "57.0%")


def test_trajectory_without_replay_or_without_success():
    rows, _ = history(2)
    picture = pruning_trajectory(rows)
    assert len(picture.figure.axes) == 2
    assert not any(text.startswith("kept") for text in shown(picture))
    assert says(picture.summary, "2 filters removed", "unlearning loss fell", "5.000", "0.500")
    nothing = pruning_trajectory(rows, kept=0)
    assert nothing.summary == "Nothing was pruned: 2 rounds tried and undone."
    assert "kept: the given model; later rounds were undone" in shown(nothing)
    assert pruning_trajectory(rows, kept=np.int64(2)).summary == pruning_trajectory(rows, kept=2).summary
    assert pruning_trajectory(rows[:1], kept=0).summary == "Nothing was pruned."
    refuses("no pruning rows", pruning_trajectory, tuning(3, 1))
    unknown = pruning_trajectory([{key: value for key, value in row.items() if key != "val_unlearning_loss"} for row in rows])
    assert says(unknown.summary, "accuracy fell") and "unlearning" not in unknown.summary


def test_loss_curves_mark_the_kept_epoch():
    rows, _ = history(2)
    picture = loss_curves([*rows, *tuning(9, 4)])
    assert all([4, 4] in [list(line.get_xdata()) for line in ax.lines] for ax in picture.figure.axes)
    assert "kept: epoch 4" in shown(picture)
    assert says(picture.summary, "epoch 4 of 9", "kept", "validation loss", "0.744", "0.300", "accuracy", "90.0%")
    trained = loss_curves([{"epoch": epoch, "loss": 2 / epoch, "acc": 1 - 0.5 / epoch} for epoch in range(1, 5)])
    assert says(trained.summary, "epoch 4 of 4", "training loss fell", "2.000", "0.500", "accuracy rose", "50.0%", "87.5%")
    refuses("no epochs", loss_curves, rows)


def test_before_after_writes_every_value():
    picture = before_after(STAGES)
    for ax, key in zip(picture.figure.axes, style.METRICS, strict=True):
        assert [text.get_text() for text in ax.texts] == [f"{getattr(metrics, key):.1%}" for metrics in STAGES.values()]
        assert [bar.get_width() for bar in ax.patches] == [getattr(metrics, key) for metrics in STAGES.values()]
    assert "ASR fell from 98.0% to 2.0%" in picture.summary
    refuses("no stages", before_after, {})


# ---- all figures


def gallery() -> dict:
    """Every figure in ordinary and in extreme cases."""
    small, big = build("preact_resnet", 4, width=8, blocks=(1, 1)), build("preact_resnet", 4, width=40, blocks=(2, 2, 2))
    found, many = filters(small), filters(big)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 255, (8, 3, 16, 16), generator=generator, dtype=torch.uint8)
    named = ImageSet(images, torch.arange(8) % 4, HOSTILE)
    sticker, wave = make_trigger("badnets"), make_trigger("sig")

    def run(rounds, kept, test=True):
        rows, replayed = history(rounds)
        return lambda: pruning_trajectory(rows, replayed if test else None, kept)

    return {
        "examples": lambda: examples({"before": small, "after": small}, named, sticker, 1),
        "examples, one": lambda: examples(small, named.subset(torch.tensor([3])), wave, 1),
        "examples, three long names": lambda: examples({"$x<b>" + "m" * 30: small, "b": small, "c": small}, named, wave, 2, 3),
        "scores": lambda: score_heatmap(found, torch.rand(len(found), generator=generator) ** 6, [3]),
        "scores, signed": lambda: score_heatmap(found, torch.randn(len(found), generator=generator), [0, 1], score="taylor"),
        "scores, many": lambda: score_heatmap(many, torch.rand(len(many), generator=generator)),
        "scores, tiny": lambda: score_heatmap(filters(torch.nn.Conv2d(3, 2, 3), torch.zeros(1, 3, 8, 8)), torch.tensor([1e-6, 2e-6])),
        "trajectory": run(4, 2), "trajectory, 14": run(14, 13), "trajectory, 70": run(70, 5, False), "trajectory, 0": run(0, 0),
        "fine-tuning": lambda: loss_curves(tuning(40, 39)),
        "fine-tuning, one epoch": lambda: loss_curves(tuning(1, 0)),
        "before and after": lambda: before_after(STAGES),
        "before and after, many": lambda: before_after({f"{HOSTILE[3]} {i}": Metrics(1, 1, i / 9) for i in range(9)}),
    }


GALLERY = gallery()


@pytest.mark.parametrize("name", GALLERY)
def test_figures_can_be_read(name):
    picture = GALLERY[name]()
    pixels = np.asarray(Image.open(io.BytesIO(picture.png())).convert("RGB"))
    assert pixels.std() > 5, "blank"
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all(), "the ground is not white"
    assert 200 <= picture.figure.get_figwidth() * 100 <= 900
    assert texts(picture)
    assert_readable(picture)  # lines of text may touch
    assert picture.summary.strip()
    assert "nan" not in picture.summary


def test_figures_stay_as_they_are_in_any_style_and_pyplot_knows_none():
    import matplotlib.pyplot as plt

    plain = before_after(STAGES).png()
    with plt.style.context("dark_background"), matplotlib.rc_context({"font.size": 25, "savefig.bbox": "tight"}):
        assert before_after(STAGES).png() == plain
    assert plt.get_fignums() == []


# ---- the report


@pytest.fixture(scope="module")
def report(hostile, result, tmp_path_factory):
    stages = {"before": hostile.evaluate(), "pruned": hostile.evaluate(result.pruned), "tuned": hostile.evaluate(result.model)}
    path = write_report(tmp_path_factory.mktemp("out") / "report", hostile, result, stages)
    return path, stages, path.read_text(encoding="utf-8")


def test_report_is_one_safe_page(report):
    path, _, text = report
    page = Page(text)
    assert not re.search("https?://", text)
    page.assert_safe()
    assert "url(" not in text
    assert page.all("html") == [{"lang": "en"}]
    assert holds(text, "width=device-width", "prefers-color-scheme: dark", "@media print")
    assert len(page.all("h1")) == 1
    assert {name for name, _ in page.tags if re.fullmatch(r"h\d", name)} == {"h1", "h2"}
    assert str(path.parent) not in text
    for name in HOSTILE[:3]:
        assert name not in text


def test_report_embeds_the_pictures_that_lie_beside_it(report):
    path, _, text = report
    page = Page(text)
    beside = {file.read_bytes() for file in path.parent.glob("*.png")}
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "before_after.png", "examples.png", "fine_tuning.png", "network.png", "report.html", "scores.png", "trajectory.png"]
    assert {base64.b64decode(image["src"].split(",")[1]) for image in page.all("img")} == beside
    assert all(len(image["alt"]) > 40 for image in page.all("img"))


def test_report_tells_the_figures(report, hostile, result):
    _, stages, text = report
    words = Page(text).words
    before, after = stages["before"], stages["tuned"]
    assert before.asr > 0.9
    for name, metrics in (("before", before), ("pruned", stages["pruned"]), ("fine-tuned", after)):
        assert " ".join([name, *(f"{value:.1%}" for value in metrics)]) in words
    assert holds(words, f"{der(before, after):.1%}", f"Now the trigger works on {after.asr:.1%}")
    assert f"{len(result.mask.positions)} of {len(result.mask.filters)} filters" in words or "found no filter" in words
    assert all(str(removed) in words for removed in result.mask.removed)
    assert holds(words, "Clean accuracy", "Attack success rate", "Robust accuracy", result.stopped)
    settings = ", ".join(f"{key}={value!r}" for key, value in result.settings.items())
    assert holds(words, settings, HOSTILE[hostile.target])


@pytest.mark.parametrize(("after", "verdict"), [
    (Metrics(0.98, 0.02, 0.96), "The backdoor no longer works"), (Metrics(0.98, 0.3, 0.6), "weaker but still there"),
    (Metrics(0.98, 0.9, 0.1), "The defence failed")])
def test_report_is_honest(victim, result, tmp_path, after, verdict):
    """Also: without fine-tuning, and where nothing was removed."""
    found = result.mask.filters
    bare = DefenseResult(victim.model, victim.model, FilterMask(found), result.rows("prune"), {"prune": 0.1}, "made up",
                         {"recipe": "paper", "score": "gradient", "spc": 2, "seed": 0}, interrupted=True)
    text = write_report(tmp_path, victim, bare, {"before": Metrics(0.99, 0.98, 0.01), "pruned": after, "tuned": after}).read_text()
    words = Page(text).words
    assert holds(words, verdict, "found no filter to remove. Now", "interrupted", "tune=False")
    assert "fine-tuned" not in words
    assert not (tmp_path / "fine_tuning.png").exists()


def test_a_report_of_closed_channels_has_no_replay(victim, tmp_path):
    two = {"before": STAGES["before"], "tuned": STAGES["before"]}  # a result without fine-tuning has its figures, too
    assert "after" in Page(write_report(tmp_path, victim, defend("clp", victim), two).read_text()).words
    words = Page(write_report(tmp_path, victim, defend("clp", victim), STAGES).read_text()).words
    assert "channels" in words and "round by round" not in words


@pytest.mark.parametrize(("name", "did"), [
    ("ft", "class. It fine-tuned the model. Now"), ("i_bau", "class. It fine-tuned the model. Now"),
    ("fine_pruning", "class. It looked for channels to close and fine-tuned the model. Now"), ("clp", "class. It looked for channels to close. Now"),
    ("ft_unlearn", "class and the trigger. It fine-tuned the model. Now")])
def test_the_report_of_another_defence_tells_what_that_one_did(victim, tmp_path, name, did):
    words = Page(write_report(tmp_path, victim, defend(name, victim), STAGES).read_text()).words
    assert holds(words, f"The defence {name} was given 2 clean images per {did}", f"gp.defenses.{name}(")
    assert not any(untrue in words for untrue in ("Grad-Prune was given", "Removed filters stay removed", "every trial was undone"))
    assert ("clean + unlearning" in words) == (name == "ft_unlearn")


def test_report_says_how_a_trained_victim_is_made_again(victim, result, tmp_path):
    card = {"model": {"name": "preact_resnet", "width": 8, "blocks": [1, 1], "num_classes": 4, "channels": 3},
            "data": {"name": "/home/somebody/secret/own.npz"}, "attack": {"trigger": "badnets", "settings": {"size": 3}, "rate": 0.15,
                                                                        "label_map": "clean_label"},
            "training": {"epochs": 8, "seed": 5, "epochs_done": 8, "interrupted": False, "seconds": 3.1,
                         "x=1); __import__('os').system('echo a stranger') #": 0}, "sha256": "abc123"}
    known = Victim(victim.model, victim.trigger, victim.target, victim.data, card)
    words = Page(write_report(tmp_path, known, result, STAGES).read_text()).words
    assert ("gp.attack('badnets', data='own.npz', target=1, rate=0.15, trigger_settings={'size': 3}, "
            "model={'name': 'preact_resnet', 'width': 8, 'blocks': [1, 1]}, label_map='clean_label', epochs=8, seed=5)") in words
    assert "somebody" not in words and "stranger" not in words
    known = dataclasses.replace(known, card=card | {"data": {"name": "pictures", "size": "a stranger's"}})
    words = Page(write_report(tmp_path, known, result, STAGES).read_text()).words
    assert f"data='pictures', size={victim.data.test.images.shape[-1]}, target=1" in words and "stranger" not in words


@pytest.mark.parametrize(("stopped", "suspect", "way", "not_way"), [
    (f"small changes alter 3%, {IGNORED}", None, "Consistency means", "unlearned together"),
    (f"Suspected: 'stop'. {UNLEARNED}: 1; then it ended.", None, "unlearned together", "Consistency means"),
    ("interrupted", None, "Interrupted.", "unlearned together"),
    ("no suspect, so it was left as it is", None, "left as it is.", "Consistency means"),
    (f"{UNLEARNED}: 1", 2, "All searches lead to south west , the suspected class", "16 sign models")])
def test_the_page_of_a_repair_tells_the_method_that_was_used(victim, result, tmp_path, stopped, suspect, way, not_way):
    """... and of a suspect that its figures are of the ways there, which is no figure of the sign models."""
    done = dataclasses.replace(result, stopped=stopped, interrupted=stopped == "interrupted", suspect=suspect,
                               settings={} if suspect else {"spc": 9, "families": ("waves",)})
    rows = exposure(victim.model, victim.data.defense.floats()[:8], families=("waves",), drawn=2, toward=suspect)
    stages = {"before": {"acc": 0.99, "asr": None, "ra": None}, "after": {"acc": 0.9, "asr": None, "ra": None}}
    words = Page(write_repair_report(tmp_path, victim.model, done, victim.data.defense, (rows, rows), stages).read_text()).words
    assert way in words and not_way not in words and ("On 16 sign models" in words) == (suspect is None)
    assert ("The run was interrupted" in words) == done.interrupted


def test_report_refuses_what_it_cannot_do(victim, result, tmp_path):
    refuses("stages", write_report, tmp_path / "a", victim, result, {"before": Metrics(1, 1, 0)})
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("in the way")
    refuses("Cannot write", write_report, tmp_path / "file", victim, result, STAGES)


def test_report_counts_the_filters_that_it_does_not_list(victim, result, tmp_path, monkeypatch):
    mask, model = FilterMask(result.mask.filters), copy.deepcopy(victim.model)
    for position in (4, 5, 6):
        mask.remove(model, position)
    monkeypatch.setattr(report_module, "_LISTED", 2)
    names = "examples", "before_after", "scores", "network", "trajectory", "fine_tuning"
    monkeypatch.setattr(report_module, "_pictures", lambda *_: dict.fromkeys(names, before_after(STAGES)))
    text = write_report(tmp_path, victim, dataclasses.replace(result, mask=mask), STAGES).read_text()
    assert "<p>And 1 filter more.</p>" in text
    assert [f"<td>{filter_}</td>" in text for filter_ in mask.removed] == [True, True, False]


def test_a_room_that_misses_something_else_does_not_blame_ipywidgets(monkeypatch):
    absent = ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
    monkeypatch.setattr(views, "import_module", Mock(side_effect=absent))
    with pytest.raises(ModuleNotFoundError, match="matplotlib"):
        views.ScanExplorer  # noqa: B018
    monkeypatch.setattr(views, "import_module", lambda name: __import__("ipywidgets_that_nobody_has"))
    with pytest.raises(ModuleNotFoundError, match="nobody_has"):
        views.ScanExplorer  # noqa: B018
