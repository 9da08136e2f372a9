"""Triggers, poisoning and training."""

import math

import numpy as np
import pytest
import torch
from conftest import interrupt_call, refuses, squares, write_npz
from torch import nn
from torchvision.transforms import v2

import gradprune as gp
from gradprune.attacks import TRIGGERS, BadNets, Blended, fit, make_trigger, plant, poison
from gradprune.attacks import training as training_module
from gradprune.attacks.poisoning import attack_labels
from gradprune.attacks.training import one_cycle, shift_and_flip
from gradprune.evaluation import evaluate
from gradprune.models import build
from gradprune.models.checkpoints import save_checkpoint
from gradprune.models.working import layout


@pytest.mark.parametrize("name", sorted(TRIGGERS))
def test_trigger_is_deterministic_and_rebuilt_from_its_settings(name):
    images = torch.rand(2, 3, 16, 16)
    trigger = make_trigger(name)
    assert torch.equal(trigger(images), trigger(images)) and not torch.equal(trigger(images), images)
    assert torch.equal(trigger(images), make_trigger(name, **trigger.settings)(images))


def test_triggers_compose_with_torchvision_transforms():
    assert v2.Compose([v2.Resize(16), make_trigger("badnets")])(torch.rand(2, 3, 32, 32)).shape == (2, 3, 16, 16)


def test_badnets_changes_exactly_its_square():
    images = torch.full((1, 3, 10, 12), 0.5)
    changed = (BadNets(size=3, position="bottom_right", margin=1, color="white")(images) != 0.5).any(dim=1)[0]
    expected = torch.zeros(10, 12, dtype=torch.bool)
    expected[6:9, 8:11] = True
    assert torch.equal(changed, expected)


def test_badnets_checker_alternates_and_colours_are_as_named():
    checker = BadNets(size=2, position=(0, 0), color="checker")(torch.full((3, 4, 4), 0.5))[0, :2, :2]
    assert checker.tolist() == [[1, 0], [0, 1]]
    assert BadNets(size=1, position=(2, 3), color=(0.2, 0.4, 0.6))(torch.zeros(3, 5, 5))[:, 2, 3].tolist() == \
        pytest.approx([0.2, 0.4, 0.6])


def test_blended_mixes_by_alpha():
    trigger = Blended(alpha=0.25, seed=3)
    torch.testing.assert_close(trigger(torch.full((1, 3, 16, 16), 0.4))[0], 0.75 * 0.4 + 0.25 * trigger.pattern(16, 16))
    assert not torch.equal(Blended(seed=1).pattern(8, 8), Blended(seed=2).pattern(8, 8))


def test_sig_is_the_sinusoid_of_the_paper():
    out = make_trigger("sig", delta=0.1, frequency=5)(torch.full((1, 3, 8, 40), 0.5))
    for column in (0, 2, 7, 39):
        assert out[0, 1, 3, column].item() == pytest.approx(0.5 + 0.1 * math.sin(2 * math.pi * 5 * column / 40), abs=1e-5)


def test_a_sticker_that_does_not_fit_is_refused():
    refuses("does not fit", BadNets(size=9), torch.rand(1, 3, 8, 8))
    refuses("float images", BadNets(), torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_poisoning_is_seeded_and_leaves_the_clean_set_alone(data):
    before = data.train.images.clone()
    first, second, other = (poison(data.train, BadNets(), 0, 0.1, seed).touched for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(data.train.images, before)


def test_poison_rate_bounds(data):
    assert len(poison(data.train, BadNets(), 0, 0.0).touched) == 0
    assert len(poison(data.train, BadNets(), 0, 1.0).touched) == 300  # all but the target class
    for rate in (-0.1, 1.1):
        refuses(r"poison rate must lie in 0\.\.1", poison, data.train, BadNets(), 0, rate)
    refuses(r"target must be a class in 0\.\.3, got 4", poison, data.train, BadNets(), 4)


def test_the_attackers_labels():
    images = squares(6, 0)  # labels 0 1 2 3 0 1
    assert attack_labels(images, 2).tolist() == [2, 2, 2, 2, 2, 2]
    assert attack_labels(images, None, "all_to_all").tolist() == [1, 2, 3, 0, 1, 2]
    assert attack_labels(images, 2, "clean_label").tolist() == [2] * 6, "at test time all go to the target"
    refuses(r"Unknown label map 'all_to_al'; did you mean all_to_all", attack_labels, images, 2, "all_to_al")
    for label_map in ("all_to_one", "clean_label"):
        refuses(f"'{label_map}' needs a target class, got None", attack_labels, images, None, label_map)


def test_training_plants_the_backdoor(victim):
    metrics = evaluate(victim.model, victim.data.test, victim.trigger, victim.target)
    assert metrics.acc >= 0.97
    assert metrics.asr >= 0.95
    assert not victim.model.training


def test_same_seed_same_weights(data):
    def weights(seed):
        model = build("small_vgg", 4, width=4, size=16, seed=seed)
        fit(model, data.train, epochs=1, seed=seed, shift=1, progress=False)
        return torch.cat([p.flatten() for p in model.parameters()])

    state = torch.random.get_rng_state()
    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))
    assert torch.equal(torch.random.get_rng_state(), state), "training touched the global random state"


def test_interruption_keeps_the_weights_reached(data, monkeypatch):
    model = build("preact_resnet", 4, width=4, blocks=(1,), seed=0)
    start = [p.clone() for p in model.parameters()]
    interrupt_call(monkeypatch, training_module, "shift_and_flip", 3)
    outcome = fit(model, data.train, epochs=5, progress=False)
    assert outcome.interrupted and outcome.history == [] and not model.training
    assert any(not torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True))


def test_training_in_bfloat16_is_training_all_the_same(data, monkeypatch):
    monkeypatch.setattr(training_module, "has_bfloat16", lambda device: True)
    losses = []
    for bfloat16 in (True, False):
        model = build("preact_resnet", 4, width=4, blocks=(1, 1), seed=0)
        outcome = fit(model, data.train, epochs=5, progress=False, bfloat16=bfloat16)
        losses.append([row["loss"] for row in outcome.history])
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert losses[0] == pytest.approx(losses[1], abs=0.05) and losses[0] != losses[1]
    assert losses[0][-1] < losses[0][0] - 0.2


def test_a_cpu_without_bfloat16_trains_in_float32(data, monkeypatch):
    """Emulated bfloat16 took 12 times as long."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    losses = [fit(build("preact_resnet", 4, width=4, blocks=(1,), seed=0), data.train, epochs=1, progress=False,
                  bfloat16=bfloat16).history for bfloat16 in (True, False)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("target", [1.5, np.float64(1), "1", None, True])
def test_a_target_that_is_no_whole_number(data, target):
    if target is not True:  # which Python counts as 1
        refuses("target must be a whole number|needs a target", poison, data.train, make_trigger("badnets"), target)
    assert (poison(data.train, make_trigger("badnets"), np.int64(1)).images.labels == 1).sum() > (data.train.labels == 1).sum()


@pytest.mark.parametrize(("settings", "words"), [
    ({"position": (1, 2, 3)}, "position must"), ({"position": 5}, "position must"), ({"position": (1.5, 2)}, "position must"),
    ({"color": (1, 2, 0)}, "color must")])
def test_stickers_that_cannot_be(settings, words):
    refuses(words, BadNets, **settings)


def test_colours_in_whole_numbers_and_arrays_suit_grey_images_too():
    for colour in ((1, 1, 0), np.array([1, 1, 0]), np.array([1.0, 1, 0])):
        assert BadNets(color=colour)(torch.zeros(1, 1, 12, 12)).max() == pytest.approx(2 / 3)


def frozen(model):
    return model.requires_grad_(False)


@pytest.mark.parametrize(("classes", "change", "settings", "words"), [
    (2, nn.Module.train, {}, "knows 2 classes, 0 to 1, but the labels go up to 3"), (4, frozen, {}, "parameter of the model is frozen"),
    (4, nn.Module.train, {"max_lr": -1}, "max_lr must be above 0, got -1"), (4, nn.Module.train, {"shift": 16}, "shift must be in 0..15"),
    (4, nn.Module.train, {"label_smoothing": 2}, "label_smoothing must be in 0..1"), (4, nn.Module.train, {"warm_up": 2.0}, "warm_up must be"),
    (4, nn.Module.train, {"momentum": -1}, "momentum must be in 0..1"), (4, nn.Module.train, {"epochs": 2.0}, "epochs must be a whole"),
    (4, nn.Module.train, {"weight_decay": -1}, "weight_decay must be 0 or above"),
    (4, nn.Module.train, {"max_lr": 1e30}, "training diverged")])
def test_what_cannot_be_trained_gets_one_sentence_and_is_left_in_eval_mode(data, classes, change, settings, words):
    model = build("preact_resnet", classes, width=4, blocks=(1,))
    came = layout(model)
    refuses(words, fit, change(model), data.train, progress=False, **{"epochs": 1, **settings})
    assert not model.training or words != "training diverged"
    assert layout(model) == came, "its weights lie as they did"


def test_unknown_training_settings_are_refused(data):
    refuses("Unknown training setting learning_rate", fit, build("preact_resnet", 4, width=4), data.train,
            learning_rate=1)


def test_shift_moves_whole_images_and_flip_mirrors_them():
    images = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(50, 1, 1, 1)
    shifted = shift_and_flip(images, 2, False, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images[:1], [2] * 4, mode="reflect")[0, 0]
    places = [(r, c) for r in range(5) for c in range(5)]
    seen = {next((r, c) for r, c in places if torch.equal(image[0], padded[r:r + 8, c:c + 8])) for image in shifted}
    assert len(seen) > 10
    flipped = shift_and_flip(images, 0, True, torch.Generator().manual_seed(0))
    mirrored = sum(torch.equal(image, images[0].flip(2)) for image in flipped)
    assert mirrored + sum(torch.equal(image, images[0]) for image in flipped) == 50 and 10 < mirrored < 40


def test_one_cycle_climbs_to_the_peak_and_falls_to_zero():
    shares = [one_cycle(step, 100, 0.25) for step in range(101)]
    assert shares[24] == pytest.approx(1.0) and shares[100] == 0
    assert all(a < b for a, b in zip(shares[:24], shares[1:25], strict=True))
    assert all(a >= b for a, b in zip(shares[25:100], shares[26:101], strict=True))
    assert one_cycle(0, 1, 0.25) == 1.0


def test_training_that_is_refused_leaves_the_model_as_it_was(data):
    net = build("preact_resnet", 4, width=4, blocks=(1,)).to(memory_format=torch.contiguous_format)
    came = layout(net)
    with torch.inference_mode():
        refuses("outside of torch.inference_mode", fit, net, data.train, epochs=1, progress=False)
    assert not any(tensor.is_inference() for tensor in net.parameters())
    net.forward = lambda images, usual=net.forward: (usual(images),) if net.training else usual(images)
    refuses("logits .* alone in training mode", fit, net, data.train, epochs=1, progress=False)
    assert layout(net) == came


@pytest.mark.parametrize("trigger", ["label_consistent", "trojannn", "input_aware"])
def test_attacks_that_take_gradients_work_inside_no_grad(data, trigger):
    settings = {"size": 5} if trigger == "trojannn" else {"steps": 1} if trigger == "label_consistent" else {}
    with torch.no_grad():
        planted = plant(build("preact_resnet", 4, width=4, blocks=(1,)), data.train, make_trigger(trigger, **settings), 1, epochs=1,
                        progress=False)
    assert len(planted.touched)


def test_an_all_to_all_attack_needs_no_target_and_can_be_loaded(tmp_path, data):
    write_npz(tmp_path / "four.npz", data)
    small = {"name": "preact_resnet", "width": np.int64(4), "blocks": [1]}
    for target in (9, None):
        made = gp.attack("badnets", data=tmp_path / "four.npz", model=small, label_map="all_to_all", target=target, epochs=1,
                         trigger_settings={"position": (np.int64(1), 2)}, progress=False)
        save_checkpoint(tmp_path / "model", made.model, made.card, made.trigger)
        assert gp.load_victim(tmp_path / "model").label_map == "all_to_all"
