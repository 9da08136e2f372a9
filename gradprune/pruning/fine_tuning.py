"""Fine-tuning after pruning: both losses, masks held, and never worse than where it began."""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from gradprune.errors import InputError, require
from gradprune.models.inference import evaluating
from gradprune.pruning.filters import FilterMask
from gradprune.pruning.recipes import validate
from gradprune.pruning.unlearning import Pairs


def fine_tune(model: nn.Module, mask: FilterMask, train: Pairs, validation: Pairs, *, lr: float = 1e-3,
              momentum: float = 0.9, weight_decay: float = 5e-4, batch_size: int = 128, patience: int = 10,
              max_epochs: int = 100, seed: int = 0, progress: bool = True) -> list[dict[str, Any]]:
    """Minimise CE(f(x), y) + CE(f(trigger(x)), y) in place; returns one history row an epoch (row 0: as given).

    Early stopping watches the validation loss of BOTH terms, and the epoch with the lowest one is kept, the start
    included, so the result is never worse than the pruned model by that criterion. Removed filters stay silent.
    BatchNorm learns its statistics anew, from clean and triggered images together; validation takes place in eval
    mode. Same seed, same result. Ctrl-C keeps the best epoch so far.
    Raises InputError when the loss stops being finite. Source: Dunnett et al., 2024.
    """
    require(lr > 0 and patience >= 1 and max_epochs >= 1 and batch_size >= 1,
            "lr, patience, max_epochs and batch_size must be positive.")
    generator = torch.Generator().manual_seed(seed)
    history = [_row(model, 0, validation)]
    best, best_state = history[0], copy.deepcopy(model.state_dict())
    bar = tqdm(total=max_epochs, desc="fine-tuning", unit="epoch", disable=not progress, leave=False)
    with torch.random.fork_rng(devices=[]), evaluating(model, gradients=True), bar:
        torch.manual_seed(seed)  # dropout draws from the global state
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
        mask.hold(optimizer, model)
        try:
            for epoch in range(1, max_epochs + 1):
                _epoch(model, optimizer, train, batch_size, generator)
                row = _row(model, epoch, validation)
                history.append(row)
                bar.update()
                bar.set_postfix(loss=f"{row['val_loss']:.3f}", acc=f"{row['val_acc']:.2f}", refresh=False)
                if row["val_loss"] < best["val_loss"]:
                    best, best_state = row, copy.deepcopy(model.state_dict())
                if epoch - best["epoch"] >= patience:
                    break
        except KeyboardInterrupt:
            history.append({**history[-1], "interrupted": True})
    model.load_state_dict(best_state)
    return history


def _epoch(model: nn.Module, optimizer: torch.optim.Optimizer, train: Pairs, batch_size: int,
           generator: torch.Generator) -> None:
    """One pass over the clean images and their triggered copies."""
    model.train()
    order = torch.randperm(len(train.labels), generator=generator).to(train.labels.device)
    for batch in order.split(batch_size):
        labels = train.labels[batch]
        logits = model(torch.cat([train.clean[batch], train.triggered[batch]]))
        loss = 2 * F.cross_entropy(logits, labels.repeat(2))  # the two means have equally many images
        if not math.isfinite(loss.item()):
            raise InputError(f"fine-tuning diverged: the loss became {loss.item()}; try a smaller lr.")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    model.eval()


def _row(model: nn.Module, epoch: int, validation: Pairs) -> dict[str, Any]:
    """One history row: validation accuracy, both losses and their sum."""
    now = validate(model, validation)
    return {"stage": "tune", "epoch": epoch, "val_acc": now.acc, "val_clean_loss": now.clean_loss,
            "val_unlearning_loss": now.unlearning_loss, "val_loss": now.clean_loss + now.unlearning_loss}
