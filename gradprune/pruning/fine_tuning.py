"""Fine-tuning that keeps removed filters silent; with a known trigger, the best epoch is kept."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from gradprune.attacks.pairs import Pairs
from gradprune.attacks.training import portions
from gradprune.base.devices import seeded
from gradprune.base.errors import InputError, override, require, require_known
from gradprune.models.inference import batch_normalised, device_of, evaluating
from gradprune.pruning.filters import FilterMask
from gradprune.pruning.loop import validate

Loss = Callable[[nn.Module, Pairs], Tensor]


def both_losses(model: nn.Module, batch: Pairs) -> Tensor:
    """CE(f(x), y) + CE(f(trigger(x)), y), in one forward pass."""
    logits = model(torch.cat([batch.clean, batch.triggered]))
    return 2 * F.cross_entropy(logits, batch.labels.repeat(2))  # the two means have equally many images


def clean_loss(model: nn.Module, batch: Pairs) -> Tensor:
    """CE(f(x), y) on the clean images."""
    return F.cross_entropy(model(batch.clean), batch.labels)


def half_cosine(epochs: int) -> Callable[[int], float]:
    """A `decay` that falls from 1 in the first epoch to 0 after the last, along half a cosine."""
    return lambda epoch: 0.5 + 0.5 * math.cos(math.pi * epoch / epochs)


def passes(steps: int, images: int, batch_size: int) -> int:
    """The number of epochs over `images` images that make at least `steps` optimiser steps."""
    return math.ceil(steps / len(portions(images, batch_size)))


TUNING: dict[str, Any] = {
    "optimizer": torch.optim.SGD,    # a class with arguments lr, momentum and weight_decay
    "lr": 1e-3,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "decay": lambda epoch: 1.0,      # epoch (from 0) -> share of lr; see `half_cosine`
    "batch_size": 128,
    "patience": 10,                  # epochs without a lower validation loss
    "max_epochs": 100,
    "statistics": "moving",          # of BatchNorm: updated from all images of a batch together, or "fixed"
    "dropout": True,                 # False: all but norms is in eval mode, since any module may drop something out
    "keep": "best",                  # or "last": the last epoch with a lower validation loss than the start
}


def fine_tune(model: nn.Module, mask: FilterMask, train: Pairs, validation: Pairs, *, loss: Loss = both_losses,
              renew: Callable[[Pairs, torch.Generator], Pairs] = lambda train, generator: train,
              watch: Callable[[nn.Module], float] | None = None, seed: int = 0, progress: bool = True,
              **changes: Any) -> list[dict[str, Any]]:
    """Minimise CE(f(x), y) + CE(f(trigger(x)), y) in place; returns one history row per epoch (row 0: as given).

    mask: its removed filters stay silent.
    train, validation: image pairs on the model's device.
    loss: another loss of (model, batch).
    renew: makes each epoch's training pairs from the given ones (see `Augment`).
    watch: another validation loss of a model; lower is better.
    seed: of all random numbers; the same seed gives the same result.
    changes: any value of `TUNING`.

    Early stopping uses the validation loss of BOTH terms, in eval mode. The epoch with the lowest one, or the start, is
    kept (its row says `kept`), so by that criterion the result is never worse than the pruned model. If `validation`
    has no triggered images (see `unpaired`), no loss shows when a backdoor is gone: all `max_epochs` are run and the
    last is kept. Ctrl-C keeps the best (or last) epoch so far.
    Raises InputError if the loss stops being finite, or for a single image that BatchNorm cannot learn from.
    Source: Dunnett et al., 2024.

        history = fine_tune(model, FilterMask(filters(model)), train, validation, lr=1e-2)
    """
    paper = override("fine-tuning", TUNING, changes)
    require(paper["lr"] > 0 and all(paper[name] >= 1 for name in ("patience", "max_epochs", "batch_size")),
            "lr, patience, max_epochs and batch_size must be positive.")
    for name, known in (("statistics", ("moving", "fixed")), ("keep", ("best", "last"))):
        require_known(name, paper[name], known)
    generator = torch.Generator().manual_seed(seed)
    watched = watch is not None or len(validation.triggered) > 0
    try:
        history = [_row(model, 0, validation, watch)]
    except KeyboardInterrupt:
        return [{**_row(model, 0, validation, watch), "kept": True, "interrupted": True}]
    best, best_state = history[0], copy.deepcopy(model.state_dict())
    bar = tqdm(total=paper["max_epochs"], desc="fine-tuning", unit="epoch", disable=not progress, leave=False)
    dropout = seeded(seed, device_of(model))  # which draws from the global state
    with dropout, evaluating(model, gradients=True), bar, batch_normalised():
        steps = paper["optimizer"](model.parameters(),
                                   **{name: paper[name] for name in ("lr", "momentum", "weight_decay")})
        schedule = torch.optim.lr_scheduler.LambdaLR(steps, paper["decay"])
        mask.hold(steps, model)
        try:
            for epoch in range(1, paper["max_epochs"] + 1):
                _epoch(model, steps, renew(train, generator), generator, loss, paper)
                schedule.step()
                row = _row(model, epoch, validation, watch)
                require(math.isfinite(row["val_loss"]), f"fine-tuning diverged: the validation loss became "
                                                        f"{row['val_loss']}; try a smaller lr.")
                history.append(row)
                bar.update()
                bar.set_postfix(loss=f"{row['val_loss']:.3f}", acc=f"{row['val_acc']:.2f}", refresh=False)
                if not watched or row["val_loss"] < (best if paper["keep"] == "best" else history[0])["val_loss"]:
                    best, best_state = row, copy.deepcopy(model.state_dict())
                if epoch - best["epoch"] >= paper["patience"]:
                    break
        except KeyboardInterrupt:
            history.append({**history[-1], "interrupted": True})
        bar.total = bar.n  # a notebook would show an incomplete bar in red, as a failure
    model.load_state_dict(best_state)
    best["kept"] = True
    return history


def _epoch(model: nn.Module, optimizer: torch.optim.Optimizer, train: Pairs, generator: torch.Generator, loss: Loss,
           paper: dict[str, Any]) -> None:
    """One pass over the training images and their triggered copies, if any."""
    model.train()
    for module in model.modules():
        fixed = paper["statistics"] == "fixed" and isinstance(module, nn.modules.batchnorm._BatchNorm)
        norm = hasattr(module, "running_mean")
        if fixed or not (norm or paper["dropout"]):
            module.training = False
    for batch in train.batches(paper["batch_size"], generator):
        def again(batch: Pairs = batch) -> Tensor:  # some optimizers call it twice, such as sharpness-aware ones
            optimizer.zero_grad(set_to_none=True)
            value = loss(model, batch)
            if not math.isfinite(value.item()):
                raise InputError(f"fine-tuning diverged: the loss became {value.item()}; try a smaller lr.")
            value.backward()
            return value

        optimizer.step(again)  # type: ignore[arg-type]  # torch's stubs want a float
    model.eval()


def _row(model: nn.Module, epoch: int, validation: Pairs, watch: Callable[[nn.Module], float] | None
         ) -> dict[str, Any]:
    """One history row: validation accuracy, losses, and the deciding `val_loss`: their sum, or `watch`."""
    now = validate(model, validation)
    total = now.clean_loss + now.unlearning_loss if len(validation.triggered) else now.clean_loss
    total = total if watch is None else watch(model)
    return {"stage": "tune", "epoch": epoch, **now.figures(), "val_loss": total}
