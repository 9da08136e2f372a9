"""What all defences share: drawing the images, copying the model, timing the stages, collecting the result.

Two rules make a comparison fair. Every method whose authors augment the images does so here, all in the same way
(`pruning.Augment`). And a method without validation learns from all the images that the others split in two.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from gradprune.base.devices import halving
from gradprune.base.errors import override, require
from gradprune.datasets import ImageSet, class_name, draw_defense_images
from gradprune.defenses.result import DefenseResult
from gradprune.models.inference import check_convolutional, check_model, device_of, evaluating, predict
from gradprune.models.working import hand_back, working_copy
from gradprune.pruning import Augment, FilterMask, Pairs, Pruned, clean_loss, fine_tune, pair_up, unpaired, validate
from gradprune.pruning.filters import filters, silent
from gradprune.pruning.fine_tuning import half_cosine, passes
from gradprune.pruning.loop import row


class Work:
    """One run of a defence: a copy of the model to change, its filters, and the defender's few images.

    Attributes: `given` is the model, `model` the copy on its device (see `models.working`), `train` and `validation`
    are `Pairs`, without triggered images if the trigger is None, and `augment` makes new views of them.
    hold_out: whether the method uses the validation images to choose anything; otherwise it trains on them, too, and
        its history figures are measured on images that it has learned from.
    searches: whether the method searches for changes of images by gradient.
    Raises InputError for too few images, images that the model cannot take, no convolution, a transformer, or a search
    in a model without gradients for images.
    """

    def __init__(self, model: nn.Module, clean: ImageSet, trigger: nn.Module | None, spc: int, seed: int, *,
                 hold_out: bool = True, searches: bool = False) -> None:
        require(torch.is_grad_enabled() and not torch.is_inference_mode_enabled(),
                "a defence takes gradients: call it outside of torch.no_grad() and torch.inference_mode().")
        check_model(model)
        check_convolutional(model)
        device = device_of(model)
        self.train, self.validation = (unpaired(part, device) if trigger is None else pair_up(part, trigger, device)
                                       for part in draw_defense_images(clean, spc, seed))
        self.classes = predict(model, self.validation.clean).shape[1]
        require(self.classes >= len(clean.classes),
                f"the model knows {self.classes} classes, but the defence images have {len(clean.classes)}.")
        if not hold_out:
            self.train = self.train.joined(self.validation)
        self.augment = Augment(model, trigger, self.train)
        self.names = tuple(class_name(label, clean.classes) for label in range(self.classes))
        self.given, self.model = model, working_copy(model, self.validation.clean[:2])
        if searches:
            check_searchable(self.model, self.validation.clean[:1])
        self.found = filters(self.model, self.validation.clean[:1])
        self.mask = FilterMask(self.found, before=silent(self.model, self.found))
        self.history: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}
        self.interrupted = False

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; Ctrl-C ends it and keeps what it has reached so far."""
        start = time.perf_counter()
        try:
            yield
        except KeyboardInterrupt:
            self.interrupted = True
        self.seconds[name] = time.perf_counter() - start

    def prune(self, recipe: Callable[..., Pruned], *given: Any, **settings: Any) -> str:
        """Prune the copy by a recipe, such as `paper` or `close_below`; returns why it stopped.

        given, settings: the recipe's other arguments. Recipes handle Ctrl-C themselves; if it comes before their first
        round or after the last, the model stays as it was.
        """
        start, state = time.perf_counter(), copy.deepcopy(self.model.state_dict())
        try:
            outcome = recipe(self.model, self.found, *given, self.validation, **settings)
        except KeyboardInterrupt:
            self.model.load_state_dict(state)
            now = validate(self.model, self.validation)
            outcome = Pruned(self.mask, [row(0, self.mask, now)], "interrupted", interrupted=True)
        self.seconds["prune"] = time.perf_counter() - start
        self.history, self.mask = outcome.history, outcome.mask
        self.interrupted |= outcome.interrupted
        return outcome.stopped

    def tune(self, *, lr: float, steps: int, seed: int, progress: bool, **more: Any) -> None:
        """Fine-tune the copy on new views of the clean images; `lr` falls to zero along half a cosine.

        The last epoch is kept.
        steps: optimiser steps, rounded up to whole epochs (batches of 128).
        more: arguments of `fine_tune`.
        """
        positive(lr=lr, steps=steps)
        epochs = passes(steps, len(self.train.labels), 128)
        with self.stage("tune"):
            self.history += fine_tune(self.model, self.mask, self.train, self.validation, loss=clean_loss, lr=lr,
                                      decay=half_cosine(epochs), max_epochs=epochs, seed=seed, progress=progress,
                                      **{"renew": self.augment, **more})

    def measure(self, stage: str, **more: Any) -> None:
        """Add a history row with the model's validation figures."""
        self.history.append({"stage": stage, **more, **validate(self.model, self.validation).figures()})

    def result(self, name: str, settings: dict[str, Any], *, pruned: nn.Module | None = None,
               stopped: str = "", suspect: int | None = None) -> DefenseResult:
        """Make the result; `settings` are all arguments that influenced it."""
        if not self.history:  # Ctrl-C came before the first figures
            self.measure("given")
        tuning = "interrupted" in self.history[-1]  # then `stopped` still says why the pruning before it ended
        stopped = "interrupted" if self.interrupted or (tuning and not stopped) else stopped
        for model in (self.model, pruned):
            if model is not None:
                hand_back(model, self.given)
        return DefenseResult(self.model, pruned, self.mask, self.history, self.seconds, stopped, settings,
                             self.interrupted or tuning, name, suspect)


def check_searchable(model: nn.Module, images: Tensor) -> None:
    """Raise InputError for a model whose logits have no gradient with respect to images (N, C, H, W)."""
    pixels = images.clone().requires_grad_()
    with evaluating(model):
        answers = model(pixels).sum()
        slope, = torch.autograd.grad(answers, pixels, allow_unused=True) if answers.requires_grad else (None,)
    require(slope is not None,
            "the model's answers have no gradient with respect to the image (its forward() detaches the image, or "
            "works without gradients), so no change of the image can be searched. Methods that learn from clean images "
            "still work: ft, ft_sam, nad, fst, anp, clp, fine_pruning.")


def logit_layer(model: nn.Module, images: Tensor) -> tuple[nn.Linear, Tensor]:
    """The linear layer that returns the logits of `model`, and its inputs, float (N, features).

    images: float (N, C, H, W) in [0, 1]. Raises InputError if the last layer with weights is not such a layer.
    """
    seen = list[tuple[nn.Module, Tensor, Tensor]]()

    def look(layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
        given = [*inputs, *named.values()]
        if given:  # what computes a parametrized weight takes none
            seen.append((layer, given[0], output))

    def last(size: int) -> list[tuple[Tensor, nn.Module, Tensor, Tensor]]:
        ends = list[tuple[Tensor, nn.Module, Tensor, Tensor]]()
        for part in images.split(size):
            seen[:] = [(model, part, part)]
            ends.append((model(part.clone()), *seen[-1]))
        return ends

    with ExitStack() as hooks, evaluating(model), torch.no_grad():
        for module in model.modules():
            if _is_layer(module):
                hooks.enter_context(module.register_forward_hook(look, with_kwargs=True))
        ends = halving(last, len(images))
    logits, layer, _, output = ends[0]
    require(isinstance(layer, nn.Linear) and isinstance(layer.weight, nn.Parameter) and output.shape == logits.shape,
            f"a linear last layer is needed here, but the model ends in {type(layer).__name__}.")
    assert isinstance(layer, nn.Linear)
    return layer, torch.cat([inputs for _, _, inputs, _ in ends])


def _is_layer(module: nn.Module) -> bool:
    """Whether a module has weights and is no container: no module in it has any, unless it is itself a known layer."""
    inside = any(True for child in module.children() for _ in child.parameters())
    known = isinstance(module, nn.Linear) or is_parametrized(module)
    return known or (not inside and any(True for _ in module.parameters()))


def endless(pairs: Pairs, generator: torch.Generator, batch_size: int = 128, *,
            renew: Callable[[Pairs, torch.Generator], Pairs] = lambda pairs, generator: pairs) -> Iterator[Pairs]:
    """An endless stream of batches: pass after pass over the images, each in a new random order.

    renew: makes each pass's images from the given ones, as in `fine_tune`.
    """
    while True:
        yield from renew(pairs, generator).batches(batch_size, generator)


def sgd_then(after: Callable[[], None]) -> Callable[..., torch.optim.SGD]:
    """An `optimizer` for `fine_tune`: SGD, with a call of `after` following each step."""
    def make(*given: Any, **settings: Any) -> torch.optim.SGD:
        optimizer = torch.optim.SGD(*given, **settings)
        optimizer.register_step_post_hook(lambda *_: after())
        return optimizer

    return make


def known(trigger: nn.Module) -> nn.Module:
    """The trigger; raises InputError for None, such as that of a scan that suspects no class."""
    require(trigger is not None, "this method needs the trigger, got None; without one, use `repair`.")
    return trigger


def override_positive(name: str, defaults: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A method's settings with the caller's changes; raises InputError for unknown names or values not above zero."""
    paper = override(name, defaults, changes)
    positive(**changes)
    for key in changes:
        if isinstance(defaults[key], int):
            require(paper[key] % 1 == 0, f"{key} must be a whole number, got {paper[key]}.")
            paper[key] = int(paper[key])
    return paper


def positive(**values: float) -> None:
    """Raise InputError for the first value that is not above zero."""
    for name, value in values.items():
        require(isinstance(value, Real) and value > 0, f"{name} must be above 0, got {value!r}.")
