"""Each defence's defining property on a toy model, and the contract that all of them keep."""

import copy
import dataclasses
import importlib
import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import QUICK, defend, interrupt_call, refuses, same
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from toys import Wired

from gradprune.base.errors import InputError
from gradprune.defenses import DEFENSES, KNOWS_TRIGGER, DefenseResult, defense, grad_prune
from gradprune.defenses.channels import batch_norms, batch_statistics, close_below, scaled_channels
from gradprune.defenses.common import Work, endless, logit_layer
from gradprune.models import build, evaluating
from gradprune.pruning import Pairs, Validation, distilled, fine_tune, unpaired, validate
from gradprune.pruning.fine_tuning import passes
from gradprune.search import invert, outliers

# The modules share their names with the functions that the package exports.
anp, clp, common, fine_pruning, ft_sam, i_bau, nad, neural_cleanse, rnp = (importlib.import_module(f"gradprune.defenses.{name}") for name in (
    "anp", "clp", "common", "fine_pruning", "ft_sam", "i_bau", "nad", "neural_cleanse", "rnp"))

# --- the contract ---


def test_the_registry():
    assert set(QUICK) == set(DEFENSES) and defense("clp") is DEFENSES["clp"]
    refuses("Unknown defence 'fine_prunning'; did you mean fine_pruning", defense, "fine_prunning")


def untouchable(_):
    raise AssertionError("the trigger was used")


def all_settings(name):
    """What shapes a result: every keyword, and what stands behind **changes."""
    function = DEFENSES[name]
    parameters = inspect.signature(grad_prune if name == "grad_prune_verified" else function).parameters
    named = {key for key, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD}
    return named - {"model", "clean", "trigger", "progress"} | set(getattr(importlib.import_module(function.__module__), "DEFAULTS", {}))


@pytest.mark.parametrize("name", DEFENSES)
def test_the_contract(victim, name, monkeypatch):
    """The given model stays, the same seed gives the same, all settings are told, and who needs no trigger never uses it."""
    monkeypatch.setattr(distilled, "STEPS", 4)
    given = copy.deepcopy(victim.model).train().requires_grad_(False)
    before = {key: tensor.clone() for key, tensor in given.state_dict().items()}
    state = torch.get_rng_state()
    other = victim if name in KNOWS_TRIGGER else dataclasses.replace(victim, trigger=untouchable)
    one, two = defend(name, victim, given), defend(name, other, given)
    assert same(before, given)
    assert given.training and torch.equal(torch.get_rng_state(), state)
    assert isinstance(one, DefenseResult) and one.name == name and one.model is not given
    assert one.history and all_settings(name) <= set(one.settings)
    assert one.history == two.history and one.mask.positions == two.mask.positions
    assert same(one.model, two.model)
    assert all(parameter.grad is None for parameter in one.model.parameters())
    moved = any(not torch.equal(before[key], tensor) for key, tensor in one.model.state_dict().items())
    assert moved or not one.mask.positions
    for layer, index in one.mask.removed:
        assert (one.model.get_submodule(layer).weight[index] == 0).all()
    text = str(one)
    assert text.startswith(f"{name}(spc=") or name.startswith("grad_prune")
    assert "given model" in text and "time:" in text and f"{len(one.mask.positions)} of 48 filters removed" in text


@pytest.mark.parametrize("name", DEFENSES)
def test_bad_arguments_are_named(victim, name):
    refuses(r"spc=40 .* class 'north west' has 30", defend, name, victim, spc=40)
    parameters = set(inspect.signature(DEFENSES[name]).parameters)
    assert {"model", "clean", "trigger", "spc", "seed", "progress"} <= parameters
    assert not {word for word in parameters if "test" in word or "asr" in word or "target" in word}
    if name in KNOWS_TRIGGER:
        refuses("needs the trigger, got None", DEFENSES[name], victim.model, victim.data.defense, None, spc=2)


@pytest.mark.parametrize(("name", "settings", "words"), [
    ("anp", {"epsilon": 1}, "Unknown anp setting epsilon; known: eps"),
    ("anp", {"eps": 0}, "eps must be above 0, got 0"),
    ("anp", {"alpha": 2}, "alpha must lie in"),
    ("anp", {"threshold": 2}, "threshold must lie in"),
    ("rnp", {"alpha": 2}, "alpha must lie in"),
    ("clp", {"u": -1}, "u must be above 0, got -1"),
    ("ft", {"lr": 0}, "lr must be above 0, got 0"),
    ("fine_pruning", {"steps": 0}, "steps must be above 0, got 0"),
    ("fine_pruning", {"alpha": 10}, "alpha must lie in"),
    ("fine_pruning", {"once": 2}, "once must lie in"),
    ("ft", {"lr": "0.1"}, "lr must be above 0, got '0.1'"),
    ("sau", {"steps": 2.5}, "steps must be a whole number, got 2.5"),
    ("sau", {"steps": float("inf")}, "steps must be a whole number, got inf"),
    ("ft_sam", {"rho": 0}, "rho must be above 0"),
    ("neural_cleanse", {"step": 3}, "Unknown search setting step"),
    ("sau", {"rounds": 3}, "Unknown sau setting rounds; known: steps"),
    ("sau", {"bound": 0}, "bound must be above 0, got 0"),
    ("fst", {"alpha": -1}, "alpha must be above 0, got -1"),
    ("ims", {"lr": 0}, "lr must be above 0, got 0"),
    ("repair", {"lr": 0}, "lr must be above 0"),
    ("repair", {"turns": 1}, "Unknown repair setting turns"),
])
def test_bad_settings(victim, name, settings, words, monkeypatch):
    monkeypatch.setattr(Work, "prune", lambda *_, **__: pytest.fail("it pruned first"))
    refuses(words, defend, name, victim, **settings)


@pytest.mark.parametrize(("name", "function"), [
    ("anp", "defenses.anp.mask_gradient"), ("i_bau", "defenses.i_bau.hypergradient"), ("rnp", "defenses.rnp.scaled_channels"),
    ("nad", "defenses.nad.attention_maps"), ("nad", "defenses.nad.clean_loss"), ("neural_cleanse", "defenses.neural_cleanse.invert"),
    ("sau", "defenses.sau.shared_examples"), ("fst", "defenses.fst.clean_loss"), ("ims", "defenses.inverse_masks.changed"),
    ("ims", "defenses.inverse_masks.agree")])
def test_interruption_keeps_a_model(victim, monkeypatch, name, function):
    module, function = function.rsplit(".", 1)
    calls = interrupt_call(monkeypatch, importlib.import_module(f"gradprune.{module}"), function, 2)
    result = defend(name, victim)
    assert result.interrupted and result.stopped == "interrupted" and len(calls) == 2
    victim.evaluate(result.model)


def test_ctrl_c_while_the_new_layer_of_fst_learns_leaves_the_given_model(victim, monkeypatch):
    calls = interrupt_call(monkeypatch, importlib.import_module("gradprune.defenses.fst"), "clean_loss", 4)
    result = defend("fst", victim, halvings=1, steps=3)
    assert result.interrupted and len(calls) == 4 and victim.evaluate(result.model) == victim.evaluate()


def test_ctrl_c_in_a_round_of_i_bau_is_measured(victim, monkeypatch):
    interrupt_call(monkeypatch, i_bau, "hypergradient", 3)
    result = defend("i_bau", victim, outer_steps=4, outer_lr=0.05)
    now = validate(result.model, Work(victim.model, victim.data.defense, None, 2, 0, hold_out=False).validation)
    assert result.interrupted and result.history[-1]["val_clean_loss"] == pytest.approx(now.clean_loss) != result.history[0]["val_clean_loss"]


class Twice(nn.Module):
    """One block, registered under two names and run twice."""

    def __init__(self, second: bool):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        if second:
            self.same = self.block
        self.eval()

    def forward(self, images):
        return self.linear(self.block(self.block(self.stem(images).relu())).mean((2, 3)))


@pytest.mark.parametrize("name", ["anp", "rnp", "ims"])
def test_a_second_name_of_a_block_changes_nothing(victim, name):
    once, twice = (defend(name, victim, model=Twice(second)) for second in (False, True))
    assert once.stopped == twice.stopped and same(once.model.block.state_dict(), twice.model.block.state_dict())
    refuses(r"through DataParallel: give it the network inside, model\.module", defend, name, victim, model=nn.DataParallel(Twice(False)))


class Excited(nn.Module):
    """Its linear layer is an excitation, and not the last one."""

    def __init__(self):
        super().__init__()
        self.conv, self.squeeze, self.last = nn.Conv2d(3, 6, 3), nn.Linear(6, 6), nn.Conv2d(6, 4, 1)

    def forward(self, images):
        maps = self.conv(images)
        return self.last(maps * self.squeeze(maps.mean((2, 3)))[:, :, None, None]).mean((2, 3))


@pytest.mark.parametrize("name", ["fine_pruning", "fst"])
@pytest.mark.parametrize("model", [
    Excited(), *(nn.Sequential(first, nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
                 for first in (nn.Identity(), nn.Linear(16, 16)))])
def test_a_linear_last_layer_is_needed(victim, name, model):
    refuses("a linear last layer is needed here, but the model ends in Conv2d", defend, name, victim, model.eval())


class Foreign(Excited):
    """Attention among pixels, whole numbers among the parameters, and a norm with a further one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.last, self.order = nn.BatchNorm2d(6), nn.Linear(6, 4), nn.Parameter(torch.arange(3), requires_grad=False)
        self.norm.slope = nn.Parameter(torch.ones(1))
        self.conv.weight.data[0] *= 10  # its channel stands out
        self.eval()

    def forward(self, images):
        pixels = self.norm(self.conv(images[:, self.order])).flatten(2).mT[:, None] * self.norm.slope
        return self.last(F.scaled_dot_product_attention(pixels, pixels, pixels).mean((1, 2)))


@pytest.mark.parametrize("name", ["i_bau", "ft_sam", "clp"])
def test_foreign_parameters_and_attention_are_taken(victim, name):
    result = defend(name, victim, model=Foreign())
    assert not same(result.model, Foreign()) and torch.equal(result.model.order, torch.arange(3))
    assert name != "clp" or result.model.norm.slope == 1


def test_the_last_layer_is_found_however_it_is_called(victim):
    """By keyword, beside a learned number of the network's own and a parametrized convolution."""
    model = Wired(lambda net, images: net.head(input=net.gate * net.conv(images).relu().mean((2, 3))),
                  gate=nn.Parameter(torch.ones(1)), conv=weight_norm(nn.Conv2d(3, 6, 3)), head=nn.Linear(6, 4)).eval()
    images = unpaired(victim.data.defense).clean
    layer, inputs = logit_layer(model, images)
    assert layer is model.head and torch.equal(layer(inputs), model(images))
    model.head = weight_norm(model.head)
    refuses("the model ends in ParametrizedLinear", logit_layer, model, images)
    refuses("the model ends in ParametrizedConv2d", logit_layer, nn.Sequential(model.conv, nn.AdaptiveAvgPool2d(1), nn.Flatten()), images)


def test_a_suspect_beyond_the_classes_of_the_images_has_a_name(victim, monkeypatch):
    """A model may know more classes than the defender's images."""
    wider = copy.deepcopy(victim.model)
    wider.linear = nn.Linear(wider.linear.in_features, 6)
    monkeypatch.setattr(neural_cleanse, "outliers", lambda *_: ([0.0] * 5 + [3.0], [5]))
    assert "suspected target 'class 5'" in defend("neural_cleanse", victim, model=wider).stopped


# --- shared pieces ---


@pytest.mark.parametrize("name", ["ft", "nad", "rnp", "ft_unlearn", "ft_sam", "fine_pruning"])
def test_a_rest_of_one_image_is_no_batch(data, victim, monkeypatch, name):
    """129 images in batches of 128, or 65 in batches of 64: BatchNorm cannot learn from the last one alone."""
    draw = common.draw_defense_images
    monkeypatch.setattr(common, "draw_defense_images", lambda clean, spc, seed: draw(clean, 1, seed)._replace(
        train=data.train.subset(torch.arange({"nad": 65, "rnp": 65}.get(name, 129)))))
    one_pixel = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 16), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 4))
    assert defend(name, victim, one_pixel).history, "BatchNorm sees maps of a single pixel, as VGG's last ones do at 32 pixels"


def test_steps_are_counted_in_whole_passes():
    assert [passes(10, count, 128) for count in (1, 128, 129, 130, 256, 257)] == [10, 10, 10, 5, 5, 5] and passes(7, 540, 128) == 2


# --- one method each ---


def test_clp_closes_exactly_what_stands_out_in_the_order_of_the_network(victim):
    """Bounds by hand: spectral norm of (inputs, k * k) of the convolution listed before, times |scale| / sqrt(variance + eps)."""
    model = copy.deepcopy(victim.model)
    with torch.no_grad():
        model.stages[0][0].conv1.weight[7] *= 30
        model.bn.weight[3] *= -30  # fed by an addition; conv2 is listed before it
    before = {"stages.0.0.bn1": "conv1", "stages.0.0.bn2": "stages.0.0.conv1", "bn": "stages.0.0.conv2"}
    closed = set()
    for name, feeding in before.items():
        norm, conv, bounds = model.get_submodule(name), model.get_submodule(feeding), []
        for j in range(16):
            bound = torch.linalg.svdvals(conv.weight[j].detach().reshape(conv.in_channels, -1))[0].item()
            bounds.append(bound * abs(norm.weight[j].item()) / math.sqrt(norm.running_var[j].item() + norm.eps))
        std = math.sqrt(sum((bound - sum(bounds) / 16) ** 2 for bound in bounds) / 15)
        closed |= {(name, j) for j, bound in enumerate(bounds) if bound > sum(bounds) / 16 + 2 * std}
    assert {("stages.0.0.bn2", 7), ("bn", 3)} <= closed
    result = defend("clp", victim, model, u=2.0)
    for name in before:
        given, left = model.get_submodule(name), result.model.get_submodule(name)
        for j in range(16):
            kept = 0.0 if (name, j) in closed else 1.0
            assert (left.weight[j], left.bias[j]) == (kept * given.weight[j], kept * given.bias[j])
    given, left = model.state_dict(), result.model.state_dict()
    others = [key for key in given if not any(key in (f"{name}.weight", f"{name}.bias") for name in before)]
    assert all(torch.equal(given[key], left[key]) for key in others), "the filters stay: a skip path goes on"
    assert result.history[-1]["channels"] == len(closed) and result.stopped.startswith(f"{len(closed)} of 48 BatchNorm")
    line = next(line for line in str(result).splitlines() if line.startswith("    pruned"))
    assert not result.mask.positions and line.split()[1] == f"{result.history[-1]['val_acc']:.1%}"


def test_clp_passes_over_a_batch_norm_that_no_convolution_can_feed():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False),
                          nn.Conv2d(4, 6, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(6, 6), nn.BatchNorm1d(6))
    assert list(clp.lipschitz_bounds(model)) == ["2"]


BRIGHT = Pairs(torch.linspace(0, 1, 8).reshape(8, 1, 1, 1).expand(8, 3, 4, 4), torch.zeros(0, 3, 4, 4),
               torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]))


class TwoChannels(nn.Module):
    """Channel 0 of the BatchNorm sees the brightness that tells the classes apart, channel 1 is not listened to."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.linear = nn.Linear(2, 2)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[-1.0, 0], [1.0, 0]]))
            self.linear.bias.zero_()
            self.norm.bias.copy_(torch.tensor([0.1, 0.2]))

    def forward(self, images):
        return self.linear(self.norm(images[:, :2] - 0.5).mean((2, 3)))


def channel_loss(model, weight, bias=None):
    parameters = {"norm.weight": model.norm.weight.detach() * weight}
    if bias is not None:
        parameters["norm.bias"] = model.norm.bias.detach() * bias
    return F.cross_entropy(torch.func.functional_call(model, parameters, (BRIGHT.clean,)), BRIGHT.labels)


def test_anp_moves_the_mask_only_where_the_loss_asks():
    model, ones = TwoChannels().eval(), torch.ones(2)

    def gradient(eps, balance, seed=0):
        return anp.mask_gradient(model, ones, BRIGHT, eps, balance, torch.Generator().manual_seed(seed))

    assert gradient(0.4, 0.2)[0] != 0 and gradient(0.4, 0.2)[1] == 0, "nobody listens to channel 1"
    m = ones.clone().requires_grad_()
    clean = torch.autograd.grad(channel_loss(model, m), m)[0]
    torch.testing.assert_close(gradient(1e-9, 0.2), clean), "no noise: the clean gradient"
    torch.testing.assert_close(gradient(0.4, 1.0), clean), "the mask leaves the shift as it is"
    torch.testing.assert_close(gradient(0.4, 0.2), 0.2 * clean + 0.8 * gradient(0.4, 1e-9))


def test_anp_shakes_scale_and_shift_towards_a_higher_loss(monkeypatch):
    model, seen, original = TwoChannels().eval(), [], anp.scaled_channels
    monkeypatch.setattr(anp, "scaled_channels", lambda model, *gates: (seen.append([gate.detach() for gate in gates if gate is not None]), original(model, *gates))[1])
    anp.mask_gradient(model, torch.ones(2), BRIGHT, 0.4, 0.2, torch.Generator().manual_seed(0))
    random, clean, worst = seen
    assert len(clean) == 1 and torch.equal(clean[0], torch.ones(2))
    assert channel_loss(model, *worst) > channel_loss(model, *random)
    assert all((gate - 1).abs().max() <= 0.4 for gate in random)
    assert all((gate - start)[0].abs() == pytest.approx(0.4) for gate, start in zip(worst, random, strict=True)), "one signed step"


def test_channels_close_up_to_the_highest_threshold_that_accuracy_allows(victim):
    work = Work(victim.model, victim.data.defense, None, 10, 0)
    norms = batch_norms(work.model)
    mask = torch.linspace(0, 1, sum(norms.values()))
    closed = close_below(work.model, work.found, mask, work.validation, alpha=0.3, top=0.9)
    rows = closed.history
    assert not closed.mask.positions and [row["channels"] for row in rows[1:]] == [int((mask <= 0.05 * step + 1e-6).sum()) for step in range(19)]
    held = [row for row in rows[1:] if rows[0]["val_acc"] - row["val_acc"] < 0.3 - 1e-6]
    assert 0 < len(held) < 19 and [row for row in rows if row.get("kept")] == held[-1:]
    assert validate(work.model, work.validation).acc == held[-1]["val_acc"]
    given, now = victim.model.state_dict(), work.model.state_dict()
    scales = torch.cat([now[f"{name}.weight"] for name in norms])
    assert (scales[mask <= held[-1]["threshold"]] == 0).all() and (scales[mask > held[-1]["threshold"]] != 0).all()
    assert all(torch.equal(given[key], now[key]) for key in given if key not in {f"{name}.weight" for name in norms}), "shifts stay"


def test_no_channel_closes_where_each_threshold_costs_too_much(victim):
    work = Work(victim.model, victim.data.defense, None, 10, 0)
    closed = close_below(work.model, work.found, torch.zeros(sum(batch_norms(work.model).values())), work.validation, alpha=0.1, top=0.9)
    assert "no BatchNorm channel was closed" in closed.stopped and closed.history[0]["kept"]
    assert same(work.model, victim.model)


def test_a_network_without_batch_norm_has_no_channels_to_mask():
    refuses("channels of BatchNorm layers, and the network has none", batch_norms, nn.Conv2d(3, 2, 1))


def test_nad_compares_attention_at_the_end_of_each_image_size(victim):
    images = torch.rand(3, 3, 16, 16)
    assert nad.attention_places(victim.model, images[:1]) == ["stages"], "one image size, its last module"
    deep = build("preact_resnet", 4, width=2)
    places = nad.attention_places(deep, images[:1])
    logits, maps = nad.attention_maps(deep.eval(), images, places)
    torch.testing.assert_close(logits, deep(images))
    assert [tuple(one.shape) for one in maps] == [(3, 256), (3, 64), (3, 16)]
    for one in maps:
        torch.testing.assert_close(one.norm(dim=1), torch.ones(3))
    assert nad.attention_distances(maps, maps).tolist() == [0, 0, 0]


def test_nad_draws_the_students_attention_to_the_teachers(victim, monkeypatch):
    teacher, original, seen = build("preact_resnet", 4, width=16, blocks=(1,), seed=5), nad.fine_tune, []
    images = unpaired(victim.data.defense).clean

    def teach(network, *arguments, **settings):
        if not seen:  # the first to be tuned is the teacher: put another in its place, of quite other attention
            seen.append(network.load_state_dict(teacher.state_dict()))
            settings["lr"] = 1e-9
        return original(network, *arguments, **settings)

    def distance(**settings):
        seen.clear()
        student = defend("nad", victim, spc=10, lr=0.01, teacher_steps=1, steps=30, alpha=1.1, **settings).model
        with evaluating(student), evaluating(teacher), torch.no_grad():
            maps = [nad.attention_maps(network, images, ["stages"])[1] for network in (student, teacher)]
        return float(nad.attention_distances(*maps).sum())

    monkeypatch.setattr(nad, "fine_tune", teach)
    assert distance(beta_first=2000.0) < distance(beta_first=1e-9) / 2


def test_nad_takes_the_slower_rate_where_a_teacher_loses_too_much(victim):
    quick = {"spc": 10, "teacher_steps": 3, "steps": 3}
    assert defend("nad", victim, **quick, alpha=1.1).stopped == "all steps were made, from a rate of 0.1 on"
    assert defend("nad", victim, **quick, lr=50.0, alpha=0.1).stopped == "all steps were made, from a rate of 0.01 on"


def test_nad_takes_the_slower_rate_where_the_teacher_diverges(victim, monkeypatch):
    def diverging(*arguments, lr, **settings):
        if lr > 0.01:
            raise InputError("fine-tuning diverged")
        return fine_tune(*arguments, lr=lr, **settings)

    monkeypatch.setattr(nad, "fine_tune", diverging)
    assert defend("nad", victim, spc=10, teacher_steps=3, steps=3, alpha=1.1).stopped.endswith("from a rate of 0.01 on")
    refuses("diverged", defend, "nad", victim, lr_later=0.02)


def test_ft_sam_steps_rho_along_the_adaptive_gradient():
    weights = [torch.tensor([1.0, -2.0]).requires_grad_(), torch.tensor([0.5]).requires_grad_()]
    weights[0].grad, weights[1].grad = torch.tensor([3.0, 1.0]), torch.tensor([-4.0])
    shift = torch.cat(ft_sam.SharpnessAware(weights, rho=2.0, model=nn.Identity(), lr=0.1).perturbation())
    size, slope = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 1.0, -4.0])
    torch.testing.assert_close(shift, 2 * size**2 * slope / (size * slope).norm())
    assert (shift / size).norm().item() == pytest.approx(2.0)


def one_step(sam, loss):
    def closure():
        sam.zero_grad()
        now = loss()
        now.backward()
        return now

    return sam.step(closure)


def test_ft_sam_takes_the_gradient_at_the_worst_point():
    weight = torch.tensor([1.0]).requires_grad_()
    sam = ft_sam.SharpnessAware([weight], rho=0.5, model=nn.Identity(), lr=0.1)
    assert one_step(sam, lambda: weight.pow(2).sum()).item() == 1.0
    assert weight.item() == pytest.approx(1.0 - 0.1 * 2 * 1.5), "the slope at 1.5, the step from 1.0"


def test_ft_sam_moves_the_statistics_once_a_step():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[1].bias.data.fill_(1.0)  # all scales and shifts matter, so the weights really move
    before, images = model[0](BRIGHT.clean).mean((0, 2, 3)).detach(), BRIGHT.clean
    sam = ft_sam.SharpnessAware(model.parameters(), rho=2.0, model=model, lr=0.1)
    one_step(sam, lambda: F.cross_entropy(model(images), BRIGHT.labels))
    torch.testing.assert_close(model[1].running_mean, 0.1 * before), "from zero, one tenth towards the batch's mean"
    assert model[1].momentum == 0.1


def test_ctrl_c_in_the_second_pass_of_ft_sam_leaves_batch_norm_learning():
    model, calls = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, momentum=None), nn.AdaptiveAvgPool2d(1), nn.Flatten()), []
    sam = ft_sam.SharpnessAware(model.parameters(), rho=2.0, model=model, lr=0.1)

    def closure():
        calls.append(model(BRIGHT.clean))
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls[0].sum().backward()

    with pytest.raises(KeyboardInterrupt):
        sam.step(closure)
    assert model[1].track_running_stats and model[1].num_batches_tracked == 1


def test_rnp_unlearns_then_recovers(victim):
    work = Work(victim.model, victim.data.defense, None, 10, 0)
    stream = endless(work.train, torch.Generator().manual_seed(0), 64)

    def now(mask=None):
        with batch_statistics(work.model), torch.no_grad():
            mask = torch.ones(sum(batch_norms(work.model).values())) if mask is None else mask
            logits = torch.func.functional_call(work.model, scaled_channels(work.model, mask), (work.train.clean,))
        return (logits.argmax(1) == work.train.labels).float().mean(), F.cross_entropy(logits, work.train.labels)

    before = now()
    steps = rnp.unlearn(work.model, stream, 0.01, 84, 40, 0.5)
    after = now()
    assert 0 < steps < 84 and after[0] <= 0.6 and after[0] < before[0] and after[1] > 2 * before[1]
    weights = [parameter.clone() for parameter in work.model.parameters()]
    mask = rnp.recover(work.model, stream, 0.2, 0.2, 40, progress=False)
    assert mask.min() >= 0 and mask.max() <= 1 and (mask < 1).any()
    assert all(torch.equal(*pair) for pair in zip(weights, work.model.parameters(), strict=True))
    assert now(mask)[1] < after[1]


def test_rnp_unlearns_with_two_classes_too(victim, monkeypatch):
    goals, images = [], victim.data.defense.subset(victim.data.defense.labels < 2)
    monkeypatch.setattr(rnp, "unlearn", lambda *arguments: goals.append(arguments[-1]))
    DEFENSES["rnp"](build("preact_resnet", 2, width=4, blocks=(1,)), dataclasses.replace(images, classes=images.classes[:2]),
                    spc=2, recover_steps=1, progress=False)
    defend("rnp", victim, recover_steps=1)
    assert goals == [0.75, 0.5], "halfway between chance and always right, or twice chance"


def test_the_ascents_rate_falls_to_a_tenth():
    def moved(decay_steps):
        model = TwoChannels()
        before = model.linear.weight.detach().clone()
        rnp.unlearn(model, endless(BRIGHT, torch.Generator().manual_seed(0), 8), 1e-4, 2, decay_steps, 0.0)
        return (model.linear.weight - before).norm()

    assert moved(1) < 0.5 * moved(40)  # of rates 1, 1 and of 1, 0.1, with momentum: 2.9 against 1.19


def test_the_hypergradient_equals_a_finite_difference():
    """Inner: 0.5 d'Ad - d'Bw, so d* = A^-1 B w in closed form; outer: a quadratic of both."""
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(3, 3, generator=generator, dtype=torch.double) for _ in range(3))
    a = a @ a.T / 3 + torch.eye(3, dtype=torch.double)
    w = torch.randn(3, generator=generator, dtype=torch.double).requires_grad_()

    def inner(delta, w):
        return 0.5 * delta @ a @ delta - delta @ b @ w

    def outer(delta, w):
        return (c @ delta - w).pow(2).sum() + w.pow(2).sum()

    def best(w):
        return torch.linalg.solve(a, b @ w)

    delta = best(w).detach().requires_grad_()
    found = i_bau.hypergradient(outer(delta, w), inner(delta, w), delta, [w], 400, 0.1)[0]
    for i in range(3):
        step = torch.zeros(3, dtype=torch.double)
        step[i] = 1e-5
        with torch.no_grad():
            slope = (outer(best(w + step), w + step) - outer(best(w - step), w - step)) / 2e-5
        assert found[i].item() == pytest.approx(slope.item(), rel=1e-5)
    direct = torch.autograd.grad(outer(delta, w), w)[0]
    assert not torch.allclose(direct, found), "the plain gradient would have passed"


def test_the_worst_perturbation_stays_within_its_radius():
    assert i_bau.project(torch.tensor([3.0, 4.0]), 2.0).tolist() == pytest.approx([1.2, 1.6])
    assert i_bau.project(torch.tensor([0.3, 0.4]), 2.0).tolist() == pytest.approx([0.3, 0.4])


def test_the_worst_perturbation_turns_the_models_answers(victim):
    images = unpaired(victim.data.defense)
    stream = endless(images, torch.Generator().manual_seed(0), 64)
    with evaluating(victim.model):
        delta = i_bau.worst(victim.model, stream, images.clean[:1], {**i_bau.DEFAULTS, "inner_steps": 10})
        same = (victim.model(images.clean + delta).argmax(1) == victim.model(images.clean).argmax(1)).float().mean()
    assert delta.norm() <= 10.001 and same < 0.5


@pytest.mark.parametrize(("count", "wearers"), [(24, 1), (100, 1), (250, 2)])
def test_one_image_in_a_hundred_wears_the_perturbation(count, wearers):
    batch = Pairs(torch.rand(count, 3, 4, 4), torch.zeros(0, 3, 4, 4), torch.zeros(count, dtype=torch.long))
    seen = i_bau.add_perturbation(batch, torch.ones(1, 3, 4, 4), 0.01, torch.Generator().manual_seed(0)) - batch.clean
    assert sorted(seen.mean((1, 2, 3)).round().tolist()) == [0.0] * (count - wearers) + [1.0] * wearers


def test_fine_pruning_closes_the_most_dormant_features_of_the_last_layer_first(victim):
    work = Work(victim.model, victim.data.defense, None, 2, 0)
    layer, inputs = logit_layer(work.model, work.train.clean)
    means = inputs.mean(0)
    assert layer is work.model.linear
    seen = []
    hook = layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].mean(0)))
    with hook, evaluating(work.model), torch.no_grad():
        work.model(work.train.clean)
    torch.testing.assert_close(means, seen[0])
    result = defend("fine_pruning", victim, alpha=0.5)
    closed = next(row["channels"] for row in result.rows("prune") if row.get("kept"))
    assert 0 < closed < len(means) and not result.mask.positions
    assert result.stopped == f"{closed} of {len(means)} features of the last layer were closed"
    order = means.argsort(stable=True)
    for model in (result.pruned, result.model):
        silent = (model.linear.weight == 0).all(0)
        assert silent[order[:closed]].all() and not silent[order[closed:]].any(), "closed features stay so in fine-tuning"
    assert result.rows("tune") and result.pruned is not result.model


def test_fine_pruning_ends_before_the_accuracy_on_views_falls_by_alpha(victim, monkeypatch):
    work = Work(victim.model, victim.data.defense, None, 2, 0)
    layer, given = work.model.linear, work.model.linear.weight.detach().clone()
    figures = iter([1.0, 0.95, 0.91, 0.90, 0.99])
    monkeypatch.setattr(fine_pruning, "validate", lambda *_: Validation(next(figures), 0.5, float("nan")))
    order = torch.randperm(layer.in_features)
    outcome = fine_pruning.close_features(work.model, work.found, layer, order, work.validation, alpha=0.1, once=2 / len(order))
    assert outcome.stopped == "4 of 16 features of the last layer were closed", "0.91 is kept, 0.90 is not; two at a time"
    wanted = given.clone()
    wanted[:, order[:4]] = 0
    assert torch.equal(layer.weight, wanted)
    assert [row["channels"] for row in outcome.history] == [0, 2, 4, 6] and outcome.history[2]["kept"] is True


def test_ctrl_c_in_fine_pruning_keeps_what_was_measured_last(victim, monkeypatch):
    """It comes before four features are measured, so two stay closed."""
    work = Work(victim.model, victim.data.defense, None, 2, 0)
    layer, order = work.model.linear, torch.randperm(work.model.linear.in_features)
    interrupt_call(monkeypatch, fine_pruning, "validate", 3)
    outcome = fine_pruning.close_features(work.model, work.found, layer, order, work.validation, alpha=1.0, once=2 / len(order))
    assert outcome.interrupted and [row["channels"] for row in outcome.history] == [0, 2]
    assert (layer.weight[:, order[:2]] == 0).all() and (layer.weight[:, order[2:]] != 0).any(0).all()


# --- synthesised triggers ---


def test_the_outlier_by_median_absolute_deviation():
    index, found = outliers([10.0, 11.0, 12.0, 1.0, 9.0])  # median 10, deviations 0 1 2 9 1, their median 1
    assert index == pytest.approx([0, 1 / 1.4826, 2 / 1.4826, 9 / 1.4826, 1 / 1.4826]) and found == [3]
    assert outliers([10.0, 11.0, 30.0, 9.0])[1] == [], "a large mask is no shortcut"
    assert outliers([5.0, 5.0, 5.0]) == ([0, 0, 0], [])


@pytest.fixture(scope="module")
def searches(victim):
    images = unpaired(victim.data.defense.subset(torch.arange(40))).clean
    return images, [invert(victim.model, images, target, steps=100, batch_size=16, progress=False) for target in range(4)]


def test_inversion_shrinks_a_mask_that_stays_in_range(victim, searches):
    images, (_, found, *_) = searches
    for tensor in (found.trigger.mask, found.trigger.pattern):
        assert tensor.min() >= 0 and tensor.max() <= 1 and not tensor.requires_grad
    assert found.norm < 0.2 * found.history[0]["norm"] and found.norm == pytest.approx(found.trigger.mask.sum().item())
    assert found.success >= 0.99
    stamped = found.trigger(images)
    assert stamped.shape == images.shape and stamped.min() >= 0 and stamped.max() <= 1


def test_the_planted_triggers_class_is_the_outlier(searches):
    norms = [found.norm for found in searches[1]]
    assert norms.index(min(norms)) == 1 == outliers(norms)[1][0]


def test_a_fifth_of_the_images_wears_each_synthesised_trigger():
    images = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(0)) / 2
    pairs = Pairs(images, images[:0], torch.arange(10))
    some = neural_cleanse.add_triggers(pairs, [lambda x: x + 0.5, lambda x: 1 - x], torch.Generator().manual_seed(1))
    assert len(some.clean) == 12 and sorted(some.labels[:10].tolist()) == list(range(10))
    assert torch.equal(some.labels[8:10], some.labels[10:])
    for marked, change in ((slice(0, 8), lambda x: x), (slice(8, 10), lambda x: x + 0.5), (slice(10, 12), lambda x: 1 - x)):
        assert torch.equal(some.clean[marked], change(images[some.labels[marked]])), "under their true labels"
    assert len(neural_cleanse.add_triggers(Pairs(images[:1], images[:0], torch.zeros(1)), [nn.Identity()], torch.Generator()).clean) == 1


def test_neural_cleanse_lowers_asr_without_the_trigger(victim):
    result = defend("neural_cleanse", victim, spc=10, steps=100, tune_steps=60, threshold=2.0)
    assert "suspected target 'north east'" in result.stopped and len(result.rows("invert")) == 4
    assert victim.evaluate(result.model).asr < 0.6 < victim.evaluate().asr


def test_no_outlier_no_change(victim):
    result = defend("neural_cleanse", victim, threshold=1e6)
    assert "no class" in result.stopped and not result.rows("tune") and "given model" in str(result)
    assert same(result.model, victim.model)


def test_batches_never_end_and_hold_every_image_once_a_pass():
    pairs = Pairs(torch.arange(5.0).reshape(5, 1, 1, 1), torch.zeros(0, 1, 1, 1), torch.arange(5))
    stream = endless(pairs, torch.Generator().manual_seed(0), batch_size=3)
    for _ in range(3):
        assert sorted(torch.cat([next(stream).labels, next(stream).labels]).tolist()) == [0, 1, 2, 3, 4]
