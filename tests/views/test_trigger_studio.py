"""The trigger studio and notebook 01's figure over all kinds of triggers: tables, numbers, pictures, what was learned."""

import inspect
import math

import pytest
import torch
from conftest import card_of, edit, put, refuses, shown

from gradprune.attacks import TRIGGERS, make_trigger
from gradprune.attacks.triggers import input_aware, low_frequency, trojannn
from gradprune.evaluation import Metrics, evaluate
from gradprune.lessons.runtime import attacking
from gradprune.models import build
from gradprune.models.checkpoints import save_checkpoint
from gradprune.victims import Victim
from gradprune.views import FilterExplorer, TriggerStudio, before_after
from gradprune.views.figures import trigger_kinds
from gradprune.views.figures.attack_plots import attack_family
from gradprune.views.figures.example_images import amplified, difference, typical_changes
from gradprune.views.figures.trigger_kinds import KINDS, learns, shipped
from gradprune.views.panels import trigger_studio

LEARNING = ("low_frequency", "input_aware", "trojannn")
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """Strict callbacks, and a folder of shipped models that is empty."""
    monkeypatch.setenv("GRADPRUNE_STRICT", "1")
    (tmp_path / "checkpoints").mkdir()
    for module in (trigger_kinds, trigger_studio):
        monkeypatch.setattr(module, "data_folder", lambda: tmp_path)
    return tmp_path / "checkpoints"


@pytest.fixture
def studio(make):
    return make(TriggerStudio)


@pytest.fixture
def learned(victim, folder, monkeypatch):
    """A checkpoint of each learning kind, whose trigger learned for a few steps."""
    for module, steps in ((low_frequency, "STEPS"), (input_aware, "MASK_STEPS"), (trojannn, "STEPS")):
        monkeypatch.setattr(module, steps, 3)
    found = {}
    for kind in LEARNING:
        found[kind] = make_trigger(kind, seed=3)
        found[kind].learn(victim.model, victim.data.train, 1)
        card = card_of(victim, attack={"trigger": kind, "settings": found[kind].settings, "target": 1})
        save_checkpoint(folder / kind, victim.model, card, found[kind])
    return found


# ---- the table


def test_the_table_knows_every_kind():
    assert list(KINDS) == list(TRIGGERS)
    assert all(kind.idea and kind.family for kind in KINDS.values())
    assert {name for name, kind in KINDS.items() if kind.decoy} == {name for name in KINDS if make_trigger(name).decoys}


@each_kind
def test_knobs_are_arguments_of_the_constructor(kind):
    arguments = inspect.signature(TRIGGERS[kind].__init__).parameters
    usual = make_trigger(kind).settings
    for knob in KINDS[kind].ranges:
        default = arguments[knob.setting].default
        assert knob.low <= default <= knob.high
        assert isinstance(knob.step, int) == (isinstance(default, int)), "whole numbers where the argument is one"
        low, high = (knob.words.format(type(default)(value)) for value in (knob.low, knob.high))
        assert low != high, "the words hold the value"
        for value in (knob.low, knob.high):
            assert make_trigger(kind, **{knob.setting: type(default)(value)}).settings != usual or value == default
        other = make_trigger(kind, **{knob.setting: type(default)(knob.high)}).state_dict()
        before = make_trigger(kind).state_dict()
        same = all(before[key].shape == other[key].shape and torch.equal(before[key], other[key]) for key in before)
        assert knob.anew == (not same), f"{knob.setting}: whether what was learned still fits"
    for choice in KINDS[kind].choices:
        assert arguments[choice.setting].default in choice.options
        for value in choice.options:
            make_trigger(kind, **{choice.setting: value})


# ---- the panel


@each_kind
def test_every_kind_is_shown_with_its_knobs_and_true_numbers(studio, victim, kind):
    put(studio.kind, kind)
    put(studio.image, 5)
    visible = [control for control in (*studio.knobs, *studio.choices) if control.layout.display != "none"]
    assert [control.description for control in visible] == [k.text for k in (*KINDS[kind].ranges, *KINDS[kind].choices)]
    clean = victim.data.test.floats()[5]
    marked = studio.trigger(studio.state())(clean)
    changed = ((marked - clean).abs() >= 0.5 / 255).any(0)
    level = (marked - clean).abs()[:, changed].mean() * 255
    assert f" {int(changed.sum()):,} of 256 pixels change, by {level:.0f} of 255 levels on average" in studio.sentence
    assert KINDS[kind].idea in studio.sentence
    assert f"shown × {amplified(clean, marked)[1]})" in studio.sentence
    assert torch.equal(studio.compute(studio.state()).rows[0].images[1], marked)
    assert f"difference × {amplified(clean, marked)[1]}" in shown(studio.picture)
    assert ("The untrained trigger is shown" in studio.sentence) == (kind in LEARNING)


@each_kind
def test_each_knob_changes_the_picture_and_no_pixel_leaves_its_range(studio, kind):
    put(studio.kind, kind)
    before = studio.sentence
    for knob, control in zip(KINDS[kind].ranges, studio.knobs, strict=False):
        for value in (knob.low, min(knob.high, 6) if isinstance(knob.step, int) else knob.high):
            usual = control.value
            put(control, value)
            seen = studio.compute(studio.state())
            assert dict(seen.setting.knobs)[knob.setting] == value
            assert seen.setting.knobs and seen.rows[0].images.min() >= 0 and seen.rows[0].images.max() <= 1
            assert studio.sentence != before or value == usual
            put(control, usual)
    for knob, control in zip(KINDS[kind].choices, studio.choices, strict=False):
        for value in knob.options:
            put(control, value)
            assert knob.options[value] in studio.sentence
    put(studio.strength, 2.0)
    images = studio.compute(studio.state()).rows[0].images
    assert images.min() >= 0 and images.max() <= 1


def test_a_shipped_trigger_is_shown_as_it_learned(studio, victim, learned):
    for kind, trigger in learned.items():
        put(studio.kind, kind)
        assert "untrained" not in studio.sentence
        clean = victim.data.test.floats()[:2]
        assert torch.equal(studio.trigger(studio.state())(clean), trigger(clean))
        assert not torch.equal(make_trigger(kind, **trigger.settings)(clean), trigger(clean)), "it did learn"
    put(studio.kind, "trojannn")
    put(studio.knobs[1], 4)  # another place, the same patch
    moved = studio.trigger(studio.state())
    assert torch.equal(moved.patch, learned["trojannn"].patch) and moved.margin == 4
    assert "untrained" not in studio.sentence
    put(studio.knobs[0], 3)  # another size: there is no such patch
    assert "The untrained trigger is shown: with these settings it would have to be trained again." in studio.sentence


def test_the_victims_own_trigger_comes_before_the_shipped_one(make, victim, learned):
    own = make_trigger("low_frequency", delta=0.3, seed=5)
    panel = make(TriggerStudio, Victim(victim.model, own, 1, victim.data, {}))
    assert panel.trigger(panel.state()) is own
    assert "untrained" not in panel.sentence
    put(panel.knobs[0], 0.2)
    assert torch.equal(panel.trigger(panel.state()).coefficients, own.coefficients)


def test_a_trigger_that_writes_in_place_is_scaled_by_its_change():
    own = attacking.OwnTrigger(lambda images: images.fill_(1))
    assert (trigger_studio.Scaled(own, 0.5)(torch.full((1, 3, 4, 4), 0.2)) == 0.6).all()


def test_a_knobs_new_range_and_value_reach_the_browser_in_one_message(studio, monkeypatch):
    """Apart, the browser would clamp the value to a range that comes first, and send that back."""
    sent = []

    def send_state(control, key=None):
        sent.extend([control] if {"min", "max", "value"} & ({key} if isinstance(key, str) else set(key or ())) else [])

    monkeypatch.setattr(type(studio.knobs[0]), "send_state", send_state)
    put(studio.kind, "wanet")
    assert [sum(control is knob for control in sent) for knob in studio.knobs] == [1, 1, 1]


def test_settings_beyond_the_usual_range_stay_as_the_attacker_chose_them(make, victim):
    own = make_trigger("badnets", size=14, margin=0, color=(0.2, 0.4, 0.6))
    panel = make(TriggerStudio, Victim(victim.model, own, 1, victim.data, {}))
    assert panel.trigger(panel.state()) is own
    assert "14 pixels wide" in panel.sentence and "(0.2, 0.4, 0.6)" in panel.sentence


@pytest.mark.parametrize("kind", ["bpp", "wanet", "input_aware"])
def test_a_decoy_is_shown_below(studio, victim, kind):
    put(studio.kind, kind)
    height = studio.picture.figure.get_figheight()
    put(studio.below, True)
    first, below = studio.compute(studio.state()).rows
    pair = victim.data.test.floats()[studio.image.value:studio.image.value + 2]
    expected = studio.trigger(studio.state()).decoy(pair[:1], pair[1:], torch.Generator().manual_seed(0))
    assert torch.allclose(below.images[1], expected[0])
    assert not torch.allclose(below.images[1], first.images[1]), "a decoy is not the trigger"
    label = victim.data.test.classes[below.truth]
    assert KINDS[kind].decoy in studio.sentence and f"its label stays “{label}”" in studio.sentence
    assert studio.picture.figure.get_figheight() > height
    shown(studio.picture)


def test_a_decoy_is_offered_only_where_there_is_one(studio):
    put(studio.kind, "wanet")
    put(studio.below, True)
    put(studio.kind, "sig")
    assert studio.below.disabled and len(studio.compute(studio.state()).rows) == 1


def test_a_clean_label_image_is_disguised_from_an_honest_model(make, studio, victim, folder):
    put(studio.kind, "label_consistent")
    put(studio.below, True)
    below = studio.compute(studio.state()).rows[1]
    assert below.truth == victim.target, "only images of the target class are poisoned"
    assert 0 < (below.images[1] - below.images[0]).abs().max() <= 16 / 255 + 1e-6
    assert "hard to recognise for this model" in studio.sentence
    honest = build("preact_resnet", 4, width=4, blocks=(1,))
    card = {"model": {"name": "preact_resnet", "num_classes": 4, "width": 4, "blocks": [1]},
            "data": {"classes": list(victim.data.test.classes)}}
    save_checkpoint(folder / "clean", honest, card)
    other = make(TriggerStudio)
    put(other.kind, "label_consistent")
    put(other.below, True)
    assert "hard to recognise for an honest model" in other.sentence
    assert torch.equal(other.honest[0].state_dict()["conv1.weight"], honest.conv1.weight)


def test_all_to_all_victims_are_told_apart(make, victim):
    card = {"attack": {"label_map": "all_to_all"}}
    panel = make(TriggerStudio, Victim(victim.model, victim.trigger, 2, victim.data, card))
    assert "the attacker's class is always the next one" in panel.summary.value.replace("&#x27;", "'")
    row = panel.compute(panel.state()).rows[0]
    assert row.wanted == (row.truth + 1) % 4
    panel.measure.click()
    metrics = evaluate(victim.model, victim.data.test, victim.trigger, None, label_map="all_to_all")
    assert list(panel.measured.values()) == [metrics]
    for made in (card, {}):
        other = make(FilterExplorer, Victim(victim.model, victim.trigger, 2, victim.data, made))
        assert ("This attack is all-to-all" in other.summary.value) == bool(made)


# ---- the numbers


def test_differences_by_hand():
    clean = torch.zeros(3, 4, 4)
    marked = clean.clone()
    marked[0, 0, 0], marked[:, 1, 1] = 51 / 255, 102 / 255
    found = difference(clean, marked)
    assert (found.pixels, found.of) == (2, 16)
    assert found.mean == pytest.approx((51 + 3 * 102) / 6)
    assert found.typical == pytest.approx(math.sqrt((51**2 + 3 * 102**2) / 48), rel=1e-5)
    assert difference(clean, clean)[:] == (0, 16, 0.0, 0.0)
    picture, gain = amplified(clean, marked)
    assert gain == 2 and picture[0, 0, 0] == pytest.approx(0.5 + 0.2) and picture[0, 3, 3] == 0.5
    assert amplified(clean, clean + 1)[1] == 1 and amplified(clean, clean)[1] == 8


# ---- notebook 01's figure


def test_the_family_figure_says_what_is_true(data, capsys):
    triggers = attacking.nine_triggers()
    assert list(triggers) == list(TRIGGERS)
    assert capsys.readouterr().out == ("Shown untrained, because no checkpoint is installed: low_frequency, "
                                       "input_aware, trojannn.\n")
    images = data.test.subset(torch.arange(40))
    sizes = typical_changes(images, triggers)
    for name, trigger in triggers.items():
        change = (images.triggered(trigger) - images.floats()).double() * 255
        assert sizes[name] == pytest.approx(change.square().mean().sqrt().item(), rel=1e-4)
    picture = attack_family(images, triggers, shown=3)
    least, most = min(sizes, key=sizes.get), max(sizes, key=sizes.get)
    assert picture.summary.startswith(f"{least} changes images least (by {sizes[least]:.1f} of 255 levels, root mean square "
                                      f"over 40 images), {most} most ({sizes[most]:.1f}); the families: ")
    assert "patch (badnets, trojannn)" in picture.summary and "clean label (label_consistent)" in picture.summary
    texts = shown(picture)
    assert {f"{size:.1f}" for size in sizes.values()} <= set(texts)
    assert {name.replace("_", "\n") for name in triggers} <= set(texts)
    assert len([ax for ax in picture.figure.axes if ax.images]) == 1 + 2 * len(triggers)


def test_the_family_figure_takes_any_triggers_and_says_what_is_missing(data):
    own = attacking.OwnTrigger(lambda images: images * 0.5)
    picture = attack_family(data.test.subset(torch.arange(3)), {"own": own})
    assert "custom (own)" in picture.summary
    shown(picture)
    refuses("no image 3 among 3", attack_family, data.test.subset(torch.arange(3)), {"own": own}, shown=3)
    refuses("no trigger", attack_family, data.test, {})


def test_learned_triggers_stand_in_the_figure(learned, capsys):
    triggers = attacking.nine_triggers()
    assert capsys.readouterr().out == ""
    assert torch.equal(triggers["trojannn"].patch, learned["trojannn"].patch)


def test_a_damaged_checkpoint_is_refused(learned, folder):
    assert all(learns(trigger) for trigger in learned.values()) and not learns(make_trigger("wanet"))
    edit(folder / "trojannn.json", lambda card: card["attack"]["settings"].update(size=3))
    refuses("do not fit the trigger", shipped, "trojannn")


def test_long_stage_names_are_told_in_full_on_two_lines():
    name = "pruned by gradients, then fine-tuned"
    texts = shown(before_after({"given": Metrics(1, 1, 0), name: Metrics(1, 0, 1)}))
    assert name in [text.replace("\n", " ") for text in texts]
    assert any(text.endswith("…") for text in shown(before_after({"word " * 30: Metrics(1, 1, 0)})))
