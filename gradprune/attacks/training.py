"""Training in memory: one-cycle SGD over two tensors, no DataLoader, no workers."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from gradprune.base.devices import halving, has_bfloat16, seeded
from gradprune.base.errors import override, plain, require
from gradprune.datasets import ImageSet
from gradprune.datasets.image_set import check_images
from gradprune.models.inference import batch_normalised, predict
from gradprune.models.working import lay_out, layout, prefers_channels_last

RECIPE: dict[str, Any] = {
    "epochs": 8,              # passes over the training set
    "batch_size": 64,         # images per step
    "max_lr": 0.1,            # peak of the one-cycle schedule (Smith & Topin, 2017, arXiv:1708.07120)
    "warm_up": 0.25,          # share of the steps before the peak
    "momentum": 0.9,          # Nesterov
    "weight_decay": 5e-4,     # on all parameters
    "shift": 2,               # random shift, pixels in each direction; edges are mirrored
    "flip": False,            # random left-right flips: right for photographs, wrong for signs
    "label_smoothing": 0.0,   # share of the target probability spread over all classes
    "bfloat16": False,        # half-length numbers on a CPU too, if it has them: twice as fast
}

# What an attack does to a batch: (images float (n, C, H, W) after augmentation, labels int64 (n,), their positions in
# the training set int64 (n,), the run's random generator) -> (images, labels). The images may have an autograd graph.
Hook = Callable[[Tensor, Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


@dataclass
class TrainingResult:
    """The trained model, and how training went.

    history: one row per epoch (epoch, loss, acc).
    seconds: wall time.
    interrupted: whether it was stopped by Ctrl-C.
    batch_size: images per step, half of the value asked for if memory ran out.
    """

    model: nn.Module
    history: list[dict[str, float]]
    seconds: float
    interrupted: bool
    batch_size: int = RECIPE["batch_size"]


def shift_and_flip(images: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift each image by up to `shift` pixels (edges mirrored) and, if `flip`, flip half of them.

    images: float (N, C, H, W), any device; returns the same shape.
    generator: on the CPU, the source of all random numbers.
    """
    n, _, height, width = images.shape
    device = images.device
    padded = F.pad(images, [shift] * 4, mode="reflect")
    offset = torch.randint(0, 2 * shift + 1, (2, n, 1), generator=generator).to(device)
    rows = torch.arange(height, device=device) + offset[0]
    columns = torch.arange(width, device=device) + offset[1]
    if flip:
        flipped = (torch.rand(n, 1, generator=generator) < 0.5).to(device)
        columns = torch.where(flipped, columns.flip(1), columns)
    return padded.permute(0, 2, 3, 1)[torch.arange(n, device=device)[:, None, None], rows[:, :, None],
                                      columns[:, None, :]].permute(0, 3, 1, 2)


def portions(images: int, batch_size: int) -> list[int]:
    """The size of each batch when `images` are split into batches; a single one left over joins the last batch.

    BatchNorm cannot learn from a single image if its maps have one pixel, and learns little from it otherwise.
    """
    sizes = [min(batch_size, images - start) for start in range(0, images, batch_size)]
    if batch_size > 1 and len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [batch_size + 1]
    return sizes


def one_cycle(step: int, steps: int, warm_up: float) -> float:
    """Share (0..1) of the peak learning rate at a step: a linear rise, then a linear fall to zero."""
    return min((step + 1) / max(1.0, warm_up * steps), (steps - step) / max(1.0, (1 - warm_up) * steps), 1.0)


def fit(model: nn.Module, images: ImageSet, *, seed: int = 0, progress: bool = True, hook: Hook | None = None,
        **changes: Any) -> TrainingResult:
    """Train `model` in place on its own device and leave it in eval mode.

    images: the training set, clean or poisoned.
    seed: of all random numbers.
    hook: may change every batch (see `Hook`); attacks that take part in training use it.
    changes: any value of `RECIPE`.
    Ctrl-C stops after the current step and keeps the weights reached. If memory runs out, training starts again with
    half the batch, once.
    Raises InputError for settings that are unknown or out of range, an empty set, a class that the model does not know,
    a model with nothing to train, a single image that BatchNorm cannot learn from, a loss that is no longer finite, or
    too little memory.
    """
    recipe, seed = override("training", RECIPE, changes), plain(seed)
    require(not torch.is_inference_mode_enabled(),
            "training takes gradients: call it outside of torch.inference_mode().")
    check_images("images", images)
    require(len(images) > 0, "the training set is empty.")
    require(recipe["epochs"] >= 1 and recipe["batch_size"] >= 1, "epochs and batch_size must be at least 1.")
    _check_ranges(recipe, images)
    require(any(tensor.requires_grad for tensor in model.parameters()),
            "every parameter of the model is frozen (requires_grad is False), so there is nothing to train.")
    some = images.subset(torch.arange(1)).to(next(model.parameters()).device).floats()
    known, highest = predict(model, some).shape[1], int(images.labels.max())
    require(highest < known, f"the model knows {known} classes, 0 to {known - 1}, but the labels go up to {highest}.")
    came, given = layout(model), copy.deepcopy(model.state_dict())

    def train(batch_size: int) -> TrainingResult:
        model.load_state_dict(given)
        return _train(model, images, seed, progress, hook, recipe | {"batch_size": batch_size})

    try:
        require(prefers_channels_last(model, some), "the model must return logits (N, classes) alone in training mode.")
        return halving(train, recipe["batch_size"])
    finally:
        lay_out(model, came)
        model.eval()


def _check_ranges(recipe: dict[str, Any], images: ImageSet) -> None:
    """Raise InputError for a setting of `RECIPE` that is out of range for these images."""
    shorter = min(images.images.shape[2:])
    for name in ("epochs", "batch_size", "shift"):
        require(isinstance(recipe[name], Integral), f"{name} must be a whole number, got {recipe[name]!r}.")
    for name, right, limits in (("max_lr", recipe["max_lr"] > 0, "above 0"),
                                ("momentum", 0 <= recipe["momentum"] < 1, "in 0..1, without 1"),
                                ("weight_decay", recipe["weight_decay"] >= 0, "0 or above"),
                                ("warm_up", 0 <= recipe["warm_up"] <= 1, "in 0..1"),
                                ("label_smoothing", 0 <= recipe["label_smoothing"] <= 1, "in 0..1"),
                                ("shift", 0 <= recipe["shift"] < shorter, f"in 0..{shorter - 1} for these images")):
        require(right, f"{name} must be {limits}, got {recipe[name]}.")


def _train(model: nn.Module, images: ImageSet, seed: int, progress: bool, hook: Hook | None,
           recipe: dict[str, Any]) -> TrainingResult:
    """`fit` after its arguments have been checked."""
    images = images.to(next(model.parameters()).device)
    form = torch.contiguous_format if all(layout(model).values()) else torch.channels_last
    steps = len(portions(len(images), recipe["batch_size"])) * recipe["epochs"]
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe["max_lr"], momentum=recipe["momentum"],
                                weight_decay=recipe["weight_decay"], nesterov=recipe["momentum"] > 0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle(step, steps, recipe["warm_up"]))
    generator = torch.Generator().manual_seed(seed)
    history: list[dict[str, float]] = []
    interrupted, start = False, time.perf_counter()
    bar = tqdm(total=steps, desc="training", unit="step", disable=not progress, leave=False)
    with seeded(seed, images.images.device), bar, batch_normalised(), torch.enable_grad():  # for dropout
        try:
            for epoch in range(1, recipe["epochs"] + 1):
                row = _epoch(model, images, optimizer, schedule, generator, recipe, bar, hook, form)
                history.append({"epoch": epoch, **row})
        except KeyboardInterrupt:
            interrupted = True
    numbers = [tensor for tensor in model.state_dict().values() if isinstance(tensor, Tensor)]
    require(all(bool(tensor.isfinite().all()) for tensor in numbers), "training diverged: the last "
            f"step made weights that are not finite; try a smaller max_lr than {recipe['max_lr']}.")
    return TrainingResult(model, history, time.perf_counter() - start, interrupted, recipe["batch_size"])


def _epoch(model: nn.Module, images: ImageSet, optimizer: torch.optim.Optimizer, schedule: Any,
           generator: torch.Generator, recipe: dict[str, Any], bar: Any, hook: Hook | None,
           form: torch.memory_format) -> dict[str, float]:
    """One pass over the images; returns its mean loss and accuracy (in training mode, on augmented images)."""
    model.train()
    device = images.images.device
    short = has_bfloat16(device) and (recipe["bfloat16"] or device.type == "cuda")
    order = torch.randperm(len(images), generator=generator).to(device)
    loss_sum, correct, seen = 0.0, 0, 0
    for batch in order.split(portions(len(order), recipe["batch_size"])):
        labels = images.labels[batch]
        x = shift_and_flip(images.images[batch].float() / 255, recipe["shift"], recipe["flip"], generator)
        if hook:
            x, labels = hook(x, labels, batch, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=short):
            logits = model(x.contiguous(memory_format=form))
            loss = F.cross_entropy(logits, labels, label_smoothing=recipe["label_smoothing"])
        value = loss.item()
        require(math.isfinite(value), f"training diverged: the loss became {value}; try a smaller max_lr than "
                                      f"{recipe['max_lr']}.")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        loss_sum += value * len(batch)
        correct += int((logits.argmax(1) == labels).sum())
        seen += len(batch)
        bar.update()
        bar.set_postfix(loss=f"{loss_sum / seen:.3f}", acc=f"{correct / seen:.3f}", refresh=False)
    return {"loss": loss_sum / seen, "acc": correct / seen}
