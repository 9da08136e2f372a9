"""Fine-tuning: masks held, and with a trigger at hand never worse than where it began."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from gradprune.attacks.training import portions
from gradprune.base.errors import InputError, require, unknown
from gradprune.models.inference import batch_normalised, evaluating
from gradprune.pruning.filters import FilterMask
from gradprune.pruning.recipes import validate
from gradprune.pruning.unlearning import Pairs

Loss = Callable[[nn.Module, Pairs], Tensor]
STATISTICS = ("moving", "fixed")
KEEP = ("best", "last")


def both_losses(model: nn.Module, batch: Pairs) -> Tensor:
    """CE(f(x), y) + CE(f(trigger(x)), y), in one forward pass."""
    logits = model(torch.cat([batch.clean, batch.triggered]))
    return 2 * F.cross_entropy(logits, batch.labels.repeat(2))  # the two means have equally many images


def clean_loss(model: nn.Module, batch: Pairs) -> Tensor:
    """CE(f(x), y) on the clean images."""
    return F.cross_entropy(model(batch.clean), batch.labels)


def half_cosine(epochs: int) -> Callable[[int], float]:
    """A `decay` that falls from 1 in the first of so many epochs to 0 after the last, along half a cosine."""
    return lambda epoch: 0.5 + 0.5 * math.cos(math.pi * epoch / epochs)


def passes(steps: int, images: int, batch_size: int) -> int:
    """How many epochs over so many images make at least `steps` optimiser steps."""
    return math.ceil(steps / len(portions(images, batch_size)))


def fine_tune(model: nn.Module, mask: FilterMask, train: Pairs, validation: Pairs, *, loss: Loss = both_losses,
              optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD, lr: float = 1e-3,
              momentum: float = 0.9, weight_decay: float = 5e-4, decay: Callable[[int], float] = lambda epoch: 1.0,
              batch_size: int = 128, patience: int = 10, max_epochs: int = 100, seed: int = 0,
              renew: Callable[[Pairs, torch.Generator], Pairs] = lambda train, generator: train,
              statistics: str = "moving", dropout: bool = True, keep: str = "best",
              watch: Callable[[nn.Module], float] | None = None, progress: bool = True) -> list[dict[str, Any]]:
    """Minimise CE(f(x), y) + CE(f(trigger(x)), y) in place; returns one history row an epoch (row 0: as given).

    Early stopping watches the validation loss of BOTH terms, and the epoch with the lowest one is kept (its row says
    `kept`), the start included, so the result is never worse than the pruned model by that criterion. Where
    `validation` holds no triggered images (see `unpaired`), no loss tells when a backdoor is gone: all `max_epochs` are
    run, the last kept.
    loss: another one, from (model, batch); optimizer: another class; decay: epoch (from 0) -> share of lr.
    renew: makes each epoch's training pairs from the given ones (see `Augment`). statistics: "moving", where BatchNorm
    learns its statistics anew from all images of a batch together, or "fixed", where it keeps those it has.
    dropout: whether the model's dropout is on. keep: "best", or "last", the last of the epochs with a lower validation
    loss than the start. watch: what a model's validation loss is, if not that of both terms; lower is better.
    Removed filters stay silent. Validation takes place in eval mode. Same seed, same result. Ctrl-C keeps the best (or
    last) epoch so far.
    Raises InputError when the loss stops being finite, or for a single image that BatchNorm cannot learn from.
    Source: Dunnett et al., 2024.
    """
    require(lr > 0 and patience >= 1 and max_epochs >= 1 and batch_size >= 1,
            "lr, patience, max_epochs and batch_size must be positive.")
    if statistics not in STATISTICS:
        raise unknown("statistics", statistics, STATISTICS)
    if keep not in KEEP:
        raise unknown("keep", keep, KEEP)
    generator = torch.Generator().manual_seed(seed)
    watched = watch is not None or len(validation.triggered) > 0
    try:
        history = [_row(model, 0, validation, watch)]
    except KeyboardInterrupt:
        return [{**_row(model, 0, validation, watch), "kept": True, "interrupted": True}]
    best, best_state = history[0], copy.deepcopy(model.state_dict())
    bar = tqdm(total=max_epochs, desc="fine-tuning", unit="epoch", disable=not progress, leave=False)
    with torch.random.fork_rng(devices=[]), evaluating(model, gradients=True), bar, batch_normalised():
        torch.manual_seed(seed)  # dropout draws from the global state
        steps = optimizer(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(steps, decay)
        mask.hold(steps, model)
        try:
            for epoch in range(1, max_epochs + 1):
                _epoch(model, steps, renew(train, generator), batch_size, generator, loss,
                       statistics, dropout)
                schedule.step()
                row = _row(model, epoch, validation, watch)
                require(math.isfinite(row["val_loss"]), f"fine-tuning diverged: the validation loss became "
                                                        f"{row['val_loss']}; try a smaller lr.")
                history.append(row)
                bar.update()
                bar.set_postfix(loss=f"{row['val_loss']:.3f}", acc=f"{row['val_acc']:.2f}", refresh=False)
                if not watched or row["val_loss"] < (best if keep == "best" else history[0])["val_loss"]:
                    best, best_state = row, copy.deepcopy(model.state_dict())
                if epoch - best["epoch"] >= patience:
                    break
        except KeyboardInterrupt:
            history.append({**history[-1], "interrupted": True})
        bar.total = bar.n  # stopped early, not broken off: a notebook leaves a bar that is not full, in red
    model.load_state_dict(best_state)
    best["kept"] = True
    return history


def _epoch(model: nn.Module, optimizer: torch.optim.Optimizer, train: Pairs, batch_size: int,
           generator: torch.Generator, loss: Loss, statistics: str, dropout: bool) -> None:
    """One pass over the training images, and their triggered copies where there are any."""
    model.train()
    still = ([nn.modules.batchnorm._BatchNorm] * (statistics == "fixed")
             + [nn.modules.dropout._DropoutNd] * (not dropout))
    for module in model.modules():
        if isinstance(module, tuple(still)):
            module.eval()
    for batch in batches(train, batch_size, generator):
        def again(batch: Pairs = batch) -> Tensor:  # an optimizer may ask twice, as sharpness-aware ones do
            optimizer.zero_grad(set_to_none=True)
            value = loss(model, batch)
            if not math.isfinite(value.item()):
                raise InputError(f"fine-tuning diverged: the loss became {value.item()}; try a smaller lr.")
            value.backward()
            return value

        optimizer.step(again)  # type: ignore[arg-type]  # torch's stubs ask for a float
    model.eval()


def batches(pairs: Pairs, batch_size: int, generator: torch.Generator) -> list[Pairs]:
    """All images once, in random order, in batches of `batch_size`, the last one smaller; see `portions`."""
    count = len(pairs.labels)
    order = torch.randperm(count, generator=generator).to(pairs.labels.device)
    triggered = pairs.triggered if len(pairs.triggered) else None
    return [Pairs(pairs.clean[batch], pairs.clean[:0] if triggered is None else triggered[batch], pairs.labels[batch])
            for batch in order.split(portions(count, batch_size))]


def _row(model: nn.Module, epoch: int, validation: Pairs, watch: Callable[[nn.Module], float] | None
         ) -> dict[str, Any]:
    """One history row: validation accuracy, the losses there are, and what decides: their sum, or what is watched."""
    now = validate(model, validation)
    total = now.clean_loss + now.unlearning_loss if len(validation.triggered) else now.clean_loss
    total = total if watch is None else watch(model)
    return {"stage": "tune", "epoch": epoch, **now.figures(), "val_loss": total}
