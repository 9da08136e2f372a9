"""The attacks of the field: what defines each trigger, how they steer training, and that they survive a checkpoint."""

import numpy as np
import pytest
import torch
from conftest import edit, refuses, same, squares
from torch import nn
from toys import Wired

import gradprune as gp
from gradprune.attacks import TRIGGERS, InputAware, fit, make_trigger, plant, poison
from gradprune.attacks.pairs import pair_up
from gradprune.attacks.poisoning import attack_labels, choose
from gradprune.attacks.training_hook import TrainingHook
from gradprune.attacks.triggers.bpp import dithered
from gradprune.attacks.triggers.input_aware import sameness
from gradprune.attacks.triggers.learning import descend
from gradprune.attacks.triggers.trojannn import last_linear, neurons
from gradprune.attacks.triggers.wanet import bend
from gradprune.evaluation import evaluate
from gradprune.models import build, predict
from gradprune.models.checkpoints import load_learned, save_checkpoint
from gradprune.victims import victim as victims
from gradprune.victims import zoo

LEARNED = ["input_aware", "low_frequency", "trojannn"]
SMALL = {"name": "preact_resnet", "width": 8, "blocks": [1]}
SHORT = {"batch_size": 32, "shift": 1, "progress": False}


@pytest.fixture
def hasty(monkeypatch):
    """Triggers that learn for a few steps only."""
    for module in ("input_aware.MASK_STEPS", "low_frequency.STEPS", "trojannn.STEPS"):
        monkeypatch.setattr(f"gradprune.attacks.triggers.{module}", 5)


@pytest.fixture
def toy_zoo(data, monkeypatch):
    monkeypatch.setattr(zoo, "load", lambda _, size: data)
    monkeypatch.setattr(victims, "load", lambda _: data)
    monkeypatch.setattr(zoo, "DEFAULT_MODEL", SMALL)


# ---- low frequency


def spectrum(pictures):
    """Energy of each DCT coefficient, by the plain definition, (C, H, W)."""
    def basis(side):
        k, n = torch.arange(side)[:, None], torch.arange(side)
        rows = torch.cos(torch.pi * k * (n + 0.5) / side)
        return rows / rows.norm(dim=1, keepdim=True)
    return (basis(pictures.shape[1]) @ pictures @ basis(pictures.shape[2]).T).square()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
def test_low_frequency_has_no_energy_above_its_cutoff(height, width):
    trigger = make_trigger("low_frequency", cutoff=5, delta=0.1)
    grey = torch.full((1, 3, height, width), 0.5)
    change = (trigger(grey) * 255).round() / 255 - grey  # after the rounding of a picture file
    energy = spectrum(change[0])
    assert energy[:, :5, :5].sum() / energy.sum() > 0.99
    assert change.abs().max().item() == pytest.approx(0.1, abs=0.005)
    assert spectrum(trigger.pattern(height, width))[:, 5:].sum() < 1e-6


def test_low_frequency_learns_to_fool_the_clean_model(data, honest):
    trigger, wanted = make_trigger("low_frequency", delta=0.2), 2
    before, weights = evaluate(honest, data.test, trigger, wanted), [p.clone() for p in honest.parameters()]
    start = trigger.coefficients.clone()
    trigger.learn(honest, data.train, wanted, seed=1)
    assert evaluate(honest, data.test, trigger, wanted).asr > before.asr + 0.1
    assert not torch.equal(trigger.coefficients, start) and not trigger.coefficients.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(weights, honest.parameters(), strict=True)), "the model was changed"
    assert all(p.requires_grad and p.grad is None for p in honest.parameters())
    again = make_trigger("low_frequency", delta=0.2)
    again.learn(honest, data.train, wanted, seed=1)
    assert torch.equal(again.coefficients, trigger.coefficients)


# ---- bpp


@pytest.mark.parametrize("levels", [2, 4, 8])
@pytest.mark.parametrize("dither", [True, False])
def test_bpp_leaves_that_many_values_per_channel(levels, dither):
    images = torch.rand(4, 3, 20, 28, generator=torch.Generator().manual_seed(1))
    values = make_trigger("bpp", levels=levels, dither=dither)(images).mul(levels - 1)
    assert torch.allclose(values, values.round(), atol=1e-5)
    assert all(len(channel.round().unique()) == levels for image in values for channel in image)


def test_dithering_is_floyd_and_steinbergs_pixel_by_pixel():
    images = torch.rand(2, 1, 7, 5, generator=torch.Generator().manual_seed(2)).double()
    expected = images * 3
    for n in range(2):
        picture = expected[n, 0]
        for row in range(7):
            for column in range(5):
                value = float(picture[row, column])
                picture[row, column] = min(max(round(value), 0), 3)
                for down, right, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                    if row + down < 7 and 0 <= column + right < 5:
                        picture[row + down, column + right] += (value - float(picture[row, column])) * share / 16
    assert torch.allclose(dithered(images, 3), expected / 3)


def test_dithering_keeps_the_mean_where_rounding_loses_it():
    flat = torch.full((1, 3, 32, 32), 0.32)
    assert make_trigger("bpp", levels=2)(flat).mean().item() == pytest.approx(0.32, abs=0.02)
    assert make_trigger("bpp", levels=2, dither=False)(flat).mean() == 0


def test_bpp_decoys_carry_the_rounding_of_another_image():
    trigger = make_trigger("bpp", levels=3)
    images, others = torch.rand(2, 5, 3, 8, 8, generator=torch.Generator().manual_seed(0)).mul(0.2).add(0.4)
    torch.testing.assert_close(trigger.decoy(images, others, torch.Generator()) - images, trigger(others) - others)


# ---- wanet


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_wanet_moves_no_pixel_further_than_its_strength(strength):
    field = make_trigger("wanet", strength=strength, grid=5, seed=3).field(32, 24)
    assert field.shape == (2, 32, 24)
    assert field.abs().max() <= strength
    assert field.abs().max() > strength / 2
    assert (field[:, 1:] - field[:, :-1]).abs().max() < strength / 2, "the field is smooth"


def test_bending_by_whole_pixels_is_a_shift():
    images = torch.rand(2, 3, 9, 11, generator=torch.Generator().manual_seed(0))
    field = torch.zeros(1, 2, 9, 11)
    assert torch.allclose(bend(images, field), images, atol=1e-5)
    field[:, 0] = 1
    assert torch.allclose(bend(images, field)[..., :-1], images[..., 1:], atol=1e-5)
    field[:, 0], field[:, 1] = 0, -2
    assert torch.allclose(bend(images, field)[:, :, 2:], images[:, :, :-2], atol=1e-5)
    assert torch.allclose(bend(images, field)[:, :, 0], images[:, :, 0], atol=1e-5), "the edge's own pixel"


def test_wanets_strength_zero_changes_nothing_and_its_noise_is_fresh():
    images = torch.rand(3, 3, 16, 16)
    assert torch.allclose(make_trigger("wanet", strength=0.0)(images), images, atol=1e-5)
    trigger, generator = make_trigger("wanet"), torch.Generator().manual_seed(0)
    first, second = (trigger.decoy(images, images, generator) for _ in range(2))
    assert not torch.equal(first, second) and not torch.equal(first, trigger(images))


# ---- input-aware


def test_input_aware_masks_cover_little_and_differ(data):
    trigger = make_trigger("input_aware")
    before = trigger.mask(data.test.floats()).mean()
    trigger.learn(None, data.train, 1)
    masks = trigger.mask(data.test.floats()[:20])
    assert masks.mean() < 0.06 < before
    assert (masks - masks.roll(1, 0)).abs().amax(dim=(1, 2, 3)).min() > 0.05
    assert not any(parameter.requires_grad for parameter in trigger.parameters())


def test_sameness_is_how_much_less_the_drawings_differ_than_the_images():
    images = torch.tensor([0.2, 0.6]).reshape(2, 1, 1, 1).expand(2, 3, 4, 4)
    assert sameness(images, images).item() == pytest.approx(1, abs=0.01)
    assert sameness(images, images / 4).item() == pytest.approx(4, abs=0.1)


def test_input_aware_end_to_end(data):
    """Its own trigger fires, another image's does not, and the triggers differ."""
    trigger, model = make_trigger("input_aware"), build("preact_resnet", 4, width=16, blocks=(1,), seed=0)
    planted = plant(model, data.train, trigger, 1, rate=0.2, epochs=16, **SHORT)
    assert (len(planted.touched), planted.decoys) == (80, 80)
    metrics = evaluate(model, data.test, trigger, 1)
    assert metrics.acc >= 0.9
    assert metrics.asr >= 0.75
    others = data.test.floats()[data.test.labels != 1]
    borrowed = predict(model, trigger.decoy(others, others.roll(5, 0))).argmax(1)
    assert (borrowed == 1).float().mean() <= 0.4
    changes = trigger(others) - others
    assert (changes - changes.roll(1, 0)).abs().amax(dim=(1, 2, 3)).min() > 0.05
    assert not any(parameter.requires_grad for parameter in trigger.parameters())


# ---- clean labels


def test_label_consistent_marks_the_four_corners():
    grey = torch.full((1, 3, 10, 12), 0.5)
    change = make_trigger("label_consistent", amplitude=0.2)(grey) - grey
    marked = (change != 0).any(1)[0]
    assert marked.sum() == 4 * 9 and not marked[3:-3].any() and not marked[:, 3:-3].any()
    assert change.unique().tolist() == pytest.approx([-0.2, 0, 0.2], abs=1e-6)
    assert torch.equal(change, change.flip(2)) and torch.equal(change, change.flip(3))


def test_label_consistent_hides_the_class_within_epsilon(data, honest):
    target = data.train.subset(data.train.labels == 1)
    hard = make_trigger("label_consistent", epsilon=0.1, steps=10).disguise(honest, target)
    assert (hard - target.floats()).abs().max() <= 0.1 + 1e-6
    assert hard.min() >= 0 and hard.max() <= 1
    loss = nn.CrossEntropyLoss()
    assert loss(predict(honest, hard), target.labels) > 5 * loss(predict(honest, target.floats()), target.labels)
    assert all(parameter.grad is None for parameter in honest.parameters())


def test_label_consistent_trains_on_right_labels_alone(data, monkeypatch):
    seen = []
    monkeypatch.setattr("gradprune.attacks.plant_backdoor.fit", lambda model, images, **_: seen.append(images) or
                        gp.attacks.TrainingResult(model, [], 0.0, False))
    trigger = make_trigger("label_consistent", steps=2)
    _, touched, _ = plant(build(**SMALL, num_classes=4), data.train, trigger, 1, progress=False)
    clean, poisoned = seen
    assert clean is data.train and torch.equal(poisoned.labels, data.train.labels)
    assert len(touched) == 50 and (data.train.labels[touched] == 1).all()
    changed = (poisoned.images != data.train.images).flatten(1).any(1)
    assert torch.equal(changed.nonzero().flatten(), touched)


# ---- trojannn


def test_trojannn_raises_its_neuron(data, honest):
    trigger, images = make_trigger("trojannn", size=5), data.test.floats()
    assert trigger.neuron == -1
    last = last_linear(honest, images)
    before = neurons(honest, last, trigger(images))
    trigger.learn(honest, data.train, 2)
    assert trigger.neuron == last.weight[2].argmax()
    after = neurons(honest, last, trigger(images))
    assert after[:, trigger.neuron].mean() > before[:, trigger.neuron].mean()
    assert after[:, trigger.neuron].mean() > 1.2 * neurons(honest, last, images)[:, trigger.neuron].mean()
    assert trigger.patch.min() >= 0 and trigger.patch.max() <= 1
    changed = (trigger(images) != images).any(1).any(0)
    assert not changed[:-6].any() and not changed[-1:].any() and not changed[:, :-6].any()


def test_neurons_are_what_the_last_linear_layer_gets(honest, data):
    images = data.test.floats()[:6]
    last = last_linear(honest, images)
    assert torch.allclose(last(neurons(honest, last, images)), honest(images))
    keyword = Wired(lambda net, images: net.head(input=images.mean((2, 3))), head=nn.Linear(3, 2))
    assert torch.equal(neurons(keyword, keyword.head, images), images.mean((2, 3)))


def test_the_last_linear_layer_is_the_one_that_runs_last(data):
    """Here the head is registered before the layer that runs before it."""
    model = Wired(lambda net, images: net.head(net.embed(net.conv(images).relu().mean((2, 3))).relu()),
                  conv=nn.Conv2d(3, 4, 3), head=nn.Linear(2, 4), embed=nn.Linear(4, 2))
    assert last_linear(model, data.test.floats()[:1]) is model.head


def test_trojannn_refuses_a_model_without_a_linear_end_before_it_trains(data, monkeypatch):
    monkeypatch.setattr("gradprune.attacks.plant_backdoor.fit", None)  # would raise if it were called
    head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    refuses("ends with a linear layer", plant, head, data.train, make_trigger("trojannn", size=5), 1, epochs=1)


# ---- steering training


class Plain(nn.Module):
    """A model that keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.linear, self.seen = nn.Linear(3 * 16 * 16, 4), []

    def forward(self, images):
        self.seen.append(images.detach().clone())
        return self.linear(images.flatten(1))


def test_training_inside_no_grad_and_with_a_state_that_is_no_tensor(data, monkeypatch):
    model = build("preact_resnet", 4, width=4, blocks=(1,))
    monkeypatch.setattr(type(model), "get_extra_state", lambda self: {"note": 1}, raising=False)
    monkeypatch.setattr(type(model), "set_extra_state", lambda self, state: None, raising=False)
    with torch.no_grad():
        assert fit(model, data.train, epochs=1, seed=np.int64(1), progress=False).history


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", TRIGGERS)
def test_a_trigger_keeps_the_kind_of_numbers(name, dtype):
    assert make_trigger(name)(torch.rand(2, 3, 32, 32, dtype=dtype)).dtype == dtype


def test_training_without_momentum(data):
    fit(build("preact_resnet", 4, width=4, blocks=(1,)), data.train, epochs=1, momentum=0, progress=False)  # Nesterov's needs some


def test_fit_shows_every_batch_to_its_hook(data):
    seen, model = [], Plain()

    def hook(images, labels, indices, generator):
        assert isinstance(generator, torch.Generator)
        assert torch.equal(images, data.train.images[indices].float() / 255)
        assert torch.equal(labels, data.train.labels[indices])
        seen.append(indices)
        return 1 - images, torch.zeros_like(labels)

    outcome = fit(model, data.train, epochs=2, batch_size=64, shift=0, max_lr=0.01, hook=hook, progress=False)
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(400).repeat_interleave(2))
    assert torch.equal(model.seen[1], 1 - data.train.images[seen[0]].float() / 255), "after one image, to count the classes"
    assert outcome.history[-1]["acc"] > 0.9, "the hook's labels are the ones that are learned"


@pytest.mark.parametrize(("name", "decoys"), [("wanet", 2.0), ("bpp", 1.0), ("input_aware", 1.0)])
def test_steered_training_stamps_and_decoys_the_stated_shares(data, name, decoys):
    trigger = make_trigger(name)
    touched, wanted = choose(data.train, 1, 0.1), attack_labels(data.train, 1)
    hook = TrainingHook(trigger, touched, wanted, seed=0)
    assert trigger.decoys == decoys
    assert hook.poisoned.sum() == 40 and hook.decoys.sum() == 40 * decoys and not (hook.poisoned & hook.decoys).any()
    images, before = data.train.floats(), data.train.floats()
    mixed, labels = hook(images, data.train.labels, torch.arange(400), torch.Generator().manual_seed(0))
    hook.finish()
    mixed = mixed.detach()
    assert torch.equal(images, before), "the batch it was given was changed"
    changed = (mixed != images).flatten(1).any(1)
    assert torch.equal(changed, hook.poisoned | hook.decoys)
    assert torch.equal(labels[touched], torch.ones(40, dtype=torch.int64))
    assert torch.equal(labels[~hook.poisoned], data.train.labels[~hook.poisoned]), "decoys keep their label"
    if name != "input_aware":  # there the trigger itself moved meanwhile
        assert torch.equal(mixed[touched], trigger(images[touched]))
    assert not torch.equal(mixed[hook.decoys], trigger(images[hook.decoys]))


def test_steering_moves_the_patterns_with_the_classifier_and_then_rests(data):
    trigger, model = make_trigger("input_aware", width=2), build(**SMALL, num_classes=4)
    before = {key: value.clone() for key, value in trigger.state_dict().items()}
    hook = TrainingHook(trigger, choose(data.train, 1, 0.1), attack_labels(data.train, 1))
    fit(model, data.train, epochs=1, hook=hook, **SHORT)
    hook.finish()
    for key, value in trigger.state_dict().items():
        assert torch.equal(value, before[key]) == key.startswith("masks"), key
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in trigger.parameters())


def test_decoys_need_another_image_and_cannot_exceed_the_clean_ones(data):
    hook = TrainingHook(make_trigger("wanet", decoys=500.0), torch.tensor([0, 3]), attack_labels(data.train, 1))
    assert hook.decoys.sum() == 398
    images, labels = data.train.floats()[1:2], data.train.labels[1:2]
    mixed, _ = hook(images, labels, torch.tensor([1]), torch.Generator())
    assert torch.equal(mixed, images)


# ---- whole attacks


@pytest.mark.parametrize("name", sorted(set(TRIGGERS) - {"badnets", "blended", "sig"}))
def test_attack_by_name_survives_its_checkpoint(name, toy_zoo, data, tmp_path, hasty):
    """Trained, saved, loaded: the same trigger to the bit and the same figures."""
    victim = gp.attack(name, target=1, epochs=1, **SHORT)
    attack = victim.card["attack"]
    assert attack["rate"] == (0.5 if name == "label_consistent" else 0.1)
    assert attack["poisoned_images"] == (50 if name == "label_consistent" else 40)
    save_checkpoint(tmp_path / "victim", victim.model, victim.card, victim.trigger)
    loaded = victims.load_victim(tmp_path / "victim")
    images = data.test.floats()[:8]
    assert type(loaded.trigger) is TRIGGERS[name] and loaded.trigger.settings == victim.trigger.settings
    assert torch.equal(loaded.trigger(images), victim.trigger(images))
    assert loaded.evaluate() == victim.evaluate()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["victim.json", "victim.safetensors"]
    assert bool(victim.trigger.state_dict()) == (name in LEARNED)
    if name in LEARNED:
        assert not torch.equal(victim.trigger(images), make_trigger(name)(images)), "it learned nothing"
    assert not pair_up(data.defense, loaded.trigger).triggered.requires_grad


@pytest.mark.parametrize(("name", "settings", "width", "epochs", "asr"), [
    ("low_frequency", {"delta": 0.15}, 8, 8, 0.9), ("label_consistent", {}, 8, 8, 0.7), ("trojannn", {}, 8, 8, 0.9),
    ("bpp", {"levels": 4}, 16, 8, 0.9), ("wanet", {"strength": 1.0}, 16, 16, 0.8)])
def test_backdoors_that_work(name, settings, width, epochs, asr, data):
    trigger, model = make_trigger(name, **settings), build("preact_resnet", 4, width=width, blocks=(1,), seed=0)
    plant(model, data.train, trigger, 1, epochs=epochs, **SHORT)
    metrics = evaluate(model, data.test, trigger, 1)
    assert metrics.acc >= 0.9
    assert metrics.asr >= asr


def test_attacks_are_seeded(data, hasty):
    def weights(seed):
        trigger, model = make_trigger("input_aware", width=2), build(**SMALL, num_classes=4)
        plant(model, data.train, trigger, 1, seed=seed, epochs=1, **SHORT)
        return torch.cat([p.flatten() for p in (*model.parameters(), *trigger.parameters())])
    state = torch.random.get_rng_state()
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert torch.equal(torch.random.get_rng_state(), state), "the global random state was touched"


def test_label_maps_reach_the_card_and_the_figures(toy_zoo, data):
    victim = gp.attack("sig", target=1, label_map="clean_label", epochs=1, **SHORT)
    assert victim.card["attack"]["label_map"] == "clean_label" and victim.card["attack"]["rate"] == 0.5
    victim = gp.attack("badnets", target=1, label_map="all_to_all", epochs=1, **SHORT)
    assert victim.evaluate() == evaluate(victim.model, data.test, victim.trigger, None, label_map="all_to_all")
    assert victim.label_map == "all_to_all" and "departs" not in victim.card["attack"]


@pytest.mark.parametrize("name", ["trojannn", "wanet", "input_aware"])
def test_nothing_is_learned_where_nothing_is_poisoned(data, name):
    trigger, model, plain = make_trigger(name), *(build(**SMALL, num_classes=4) for _ in range(2))
    planted = plant(model, data.train, trigger, 1, rate=0.0, epochs=1, **SHORT)
    assert (len(planted.touched), planted.decoys) == (0, 0)
    assert all(torch.equal(value, make_trigger(name).state_dict()[key]) for key, value in trigger.state_dict().items())
    fit(plain, data.train, epochs=1, **SHORT)
    assert same(plain, model)


def test_without_decoys_the_images_are_poisoned_once(data):
    """The same weights as poisoning and training by hand."""
    trigger, model, plain = make_trigger("wanet", decoys=0.0), *(build(**SMALL, num_classes=4) for _ in range(2))
    plant(model, data.train, trigger, 1, epochs=1, **SHORT)
    fit(plain, poison(data.train, trigger, 1, 0.1).images, epochs=1, **SHORT)
    assert same(plain, model)


def test_an_interrupted_clean_model_stops_the_attack(data, monkeypatch):
    monkeypatch.setattr("gradprune.attacks.plant_backdoor.fit", lambda model, *_, **__: gp.attacks.TrainingResult(model, [], 0, True))
    with pytest.raises(KeyboardInterrupt, match="was not finished"):
        plant(build(**SMALL, num_classes=4), data.train, make_trigger("trojannn"), 1, progress=False)


def test_descend_minimises_and_gives_the_tensors_back():
    tensor = nn.Parameter(torch.zeros(3), requires_grad=False)
    descend([tensor], lambda batch: (tensor - batch.mean()).square().sum(), torch.full((9, 1), 0.7), steps=200, lr=0.05)
    assert torch.allclose(tensor, torch.full((3,), 0.7), atol=0.01)
    assert not tensor.requires_grad and tensor.grad is None


# ---- bad input


@pytest.mark.parametrize(("name", "settings", "words"), [
    ("badnet", {}, "did you mean badnets"),
    ("badnets", {"size": 0}, "size must be at least 1"),
    ("badnets", {"position": "left"}, "position must be one of"),
    ("badnets", {"color": "mauve"}, "color must be"),
    ("badnets", {"color": (2.0, 0.0, 0.0)}, "0..1"),
    ("blended", {"alpha": 1.5}, "alpha must lie in 0..1, got 1.5"),
    ("sig", {"delta": -1.0}, "delta must lie in 0..1"),
    ("sig", {"wave": 3}, "cannot be built"),
    ("low_frequency", {"delta": 2}, r"delta must lie in 0\.\.1, got 2"),
    ("low_frequency", {"cutoff": 1}, "cutoff must be at least 2"),
    ("bpp", {"levels": 1}, r"levels must lie in 2\.\.256, got 1"),
    ("bpp", {"decoys": -1}, "decoys must not be negative"),
    ("wanet", {"strength": -1}, "strength must not be negative"),
    ("wanet", {"grid": 1}, "grid must be at least 2"),
    ("wanet", {"decoys": -1}, "decoys must not be negative"),
    ("input_aware", {"width": 0}, "width must be at least 1"),
    ("input_aware", {"decoys": -0.5}, "decoys must not be negative"),
    ("label_consistent", {"amplitude": 3}, r"amplitude must lie in 0\.\.1"),
    ("label_consistent", {"epsilon": -1}, r"epsilon must lie in 0\.\.1"),
    ("label_consistent", {"steps": 0}, "size and steps must be at least 1"),
    ("trojannn", {"size": 0}, "size must be at least 1"),
    ("trojannn", {"margin": -1}, "margin must not be negative"),
])
def test_bad_settings_are_refused_in_one_sentence(name, settings, words):
    refuses(words, make_trigger, name, **settings)


@pytest.mark.parametrize(("name", "settings", "changes", "words"), [
    ("trojannn", {"size": 16}, {}, "does not fit a 16x16 image"),
    ("label_consistent", {"size": 9}, {}, "do not fit a 16x16 image"),
    ("low_frequency", {"cutoff": 20}, {}, "cutoff must be at most the image's side"),
    ("trojannn", {}, {"rate": 1.5}, "poison rate must lie in"),
    ("trojannn", {}, {"target": 4}, r"target must be a class in 0\.\.3, got 4"),
    ("trojannn", {}, {"label_map": "clean_labels"}, "did you mean clean_label"),
    ("trojannn", {}, {"label_map": "all_to_all"}, "computed for one target class"),
])
def test_bad_attacks_are_refused_before_the_work(name, settings, changes, words, data, monkeypatch):
    monkeypatch.setattr("gradprune.attacks.plant_backdoor.fit", None)
    refuses(words, plant, build(**SMALL, num_classes=4), data.train, make_trigger(name, **settings), progress=False,
            **{"target": 1, **changes})


@pytest.fixture
def saved(tmp_path):
    trigger = InputAware(width=2)
    settings = {"name": "small_vgg", "num_classes": 3, "width": 4}
    save_checkpoint(tmp_path / "model", build(**settings), {"model": settings}, trigger)
    return tmp_path / "model", trigger


def test_learned_tensors_stand_in_the_same_file_under_one_hash(saved):
    path, trigger = saved
    fresh = InputAware(width=2, seed=9)
    load_learned(path, fresh)
    assert same(trigger, fresh)
    weights = path.with_suffix(".safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00\x00")
    refuses("truncated, tampered with", load_learned, path, fresh)


def test_learned_tensors_of_another_trigger_do_not_pass(saved):
    path, _ = saved
    for other in (InputAware(width=3), make_trigger("trojannn"), make_trigger("badnets")):
        refuses("do not fit the trigger on their card", load_learned, path, other)


def test_a_card_that_promises_what_the_file_lacks(toy_zoo, tmp_path):
    victim = gp.attack("badnets", target=1, epochs=1, **SHORT)
    save_checkpoint(tmp_path / "victim", victim.model, victim.card, victim.trigger)
    edit(tmp_path / "victim.json", lambda card: card["attack"].update(trigger="trojannn", settings={}))
    refuses("do not fit the trigger", victims.load_victim, tmp_path / "victim")


def test_grey_images_are_attacked_too(hasty):
    colour = squares(80, 5)
    grey = gp.ImageSet(colour.images[:, :1].contiguous(), colour.labels, colour.classes)
    for name in LEARNED:
        plant(build(**SMALL, num_classes=4, channels=1), grey, make_trigger(name), 1, epochs=1, **SHORT)
