"""The exercises of notebook 03: when to stop pruning, and how removed filters are kept silent."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from gradprune.lessons.judging import Complaint, Exercise, Function, Misconception, Seen, as_tensor
from gradprune.pruning import FilterMask
from gradprune.pruning.filters import filters, own_tensors

Rows = list[dict[str, float]]

# ---- stopping_rule(history, alpha) -> number of filters to keep removed


def _stopping_rule(history: Rows, alpha: float) -> int:
    return _best(_within(history, alpha), "val_unlearning_loss")


def _within(rows: Rows, alpha: float) -> Rows:
    return [row for row in rows if rows[0]["val_acc"] - row["val_acc"] < alpha]


def _best(rows: Rows, key: str) -> int:
    return min(rows, key=lambda row: row[key])["round"]  # type: ignore[return-value]


def _histories() -> list[tuple[Rows, float]]:
    """Runs in which each wrong rule keeps another round; test figures lie there as a temptation."""
    names = "val_acc", "val_unlearning_loss", "val_clean_loss", "test_asr"
    runs = ((0.10, [0.95, 0.95, 0.93, 0.94, 0.92, 0.84, 0.83], [4.0, 2.6, 2.8, 1.9, 2.0, 0.6, 1.2],
             [0.09, 0.08, 0.10, 0.90, 0.20, 0.30, 0.50], [0.99, 0.80, 0.20, 0.40, 0.30, 0.02, 0.05]),
            (0.05, [0.90, 0.84, 0.88, 0.86, 0.89, 0.60], [3.0, 2.0, 1.0, 1.3, 1.1, 0.5],
             [0.20, 0.19, 0.50, 0.18, 0.60, 0.90], [0.97, 0.50, 0.40, 0.05, 0.30, 0.20]),
            (0.10, [0.80, 0.69, 0.50, 0.40], [2.0, 2.4, 2.6, 1.0],
             [0.50, 0.40, 0.70, 0.80], [0.99, 0.70, 0.50, 0.01]))
    return [([{"round": number, **dict(zip(names, values, strict=True))}
              for number, values in enumerate(zip(*columns, strict=True))], alpha) for alpha, *columns in runs]


def _round(function: Function, case: Sequence[Any]) -> Seen:
    """The chosen round; what follows in the notebook cannot use a whole row."""
    chosen = function(*case)
    if isinstance(chosen, dict):
        raise Complaint("a whole row is returned. How many filters stay removed is its `\"round\"`.")
    return [as_tensor(chosen)]


def _both_losses(rows: Rows, alpha: float) -> int:
    both = [row | {"sum": row["val_clean_loss"] + row["val_unlearning_loss"]} for row in rows]
    return _best(_within(both, alpha), "sum")


def _first_rise(rows: Rows, alpha: float) -> int:
    return next(before["round"]  # type: ignore[return-value]
                for before, after in pairwise(rows)
                if after["val_unlearning_loss"] > before["val_unlearning_loss"] or after not in _within(rows, alpha))


def _first_beyond(rows: Rows, alpha: float) -> int:
    beyond = [row for row in rows if row not in _within(rows, alpha)]
    return [*beyond, rows[-1]][0]["round"]  # type: ignore[return-value]


STOPPING_RULE = Exercise(
    notebook="03", name="stopping_rule", signature="stopping_rule(history, alpha)",
    praise="the lowest validation unlearning loss among the rounds that lost less than alpha.",
    reference=_stopping_rule, cases=_histories, observe=_round,
    misconceptions=(
        Misconception("you keep the last round. Pruning goes on for a while after its best moment to be "
                      "sure that it was the best: go back to the round with the lowest validation "
                      "unlearning loss.", lambda h, a: h[-1]["round"]),
        Misconception("you keep the last round within alpha. Among those rounds, the one with the lowest "
                      "validation unlearning loss is the best.", lambda h, a: _within(h, a)[-1]["round"]),
        Misconception("this is the first round that loses too much: pruning stops there, but goes BACK to the best of "
                      "the rounds before, the one with the lowest validation unlearning loss.", _first_beyond),
        Misconception("this is the round before the first one that loses too much. Go back to the best round, the one "
                      "with the lowest validation unlearning loss.", lambda h, a: max(0, _first_beyond(h, a) - 1)),
        Misconception("alpha is ignored: the lowest loss may come from a model that has lost its accuracy. "
                      "First drop the rounds that lost alpha or more.",
                      lambda h, a: _best(h, "val_unlearning_loss")),
        Misconception("alpha is taken as a floor for the accuracy itself. It limits the FALL: compare with "
                      "row 0.",
                      lambda h, a: _best([row for row in h if row["val_acc"] > 1 - a] or h[:1], "val_unlearning_loss")),
        Misconception("you chose by the test ASR. Whoever picks by test figures reports a result that "
                      "nobody can get on new data: the test set must decide nothing.",
                      lambda h, a: _best(h, "test_asr")),
        Misconception("you chose by the test ASR, if within alpha. The test set must decide nothing: use "
                      "the validation unlearning loss.", lambda h, a: _best(_within(h, a), "test_asr")),
        Misconception("you chose the highest accuracy. That hardly prunes anything; the backdoor costs no "
                      "accuracy.", lambda h, a: max(h, key=lambda row: row["val_acc"])["round"]),
        Misconception("you chose by the clean loss. It does not see the backdoor: use the unlearning loss.",
                      lambda h, a: _best(_within(h, a), "val_clean_loss")),
        Misconception("you chose by the sum of both losses. A good idea, and close to how fine-tuning is "
                      "stopped; the paper's rule watches accuracy through alpha and the unlearning loss "
                      "alone.", _both_losses),
        Misconception("you stop at the first round in which the loss rises. It goes up and down: look at "
                      "all rounds.", _first_rise),
        Misconception("one too many: row 0 is the model before any pruning, so row r has r filters removed.",
                      lambda h, a: _stopping_rule(h, a) + 1),
        Misconception("one too few: row 0 is the model before any pruning, so row r has r filters removed.",
                      lambda h, a: _stopping_rule(h, a) - 1),
        Misconception("row 0 is left out. If no round helps, the given model is the best: 0 filters.",
                      lambda h, a: _best(_within(h, a)[1:] or h[1:2], "val_unlearning_loss")),
        Misconception("this is the loss itself. Return how many filters stay removed: the row's `round`.",
                      lambda h, a: min(row["val_unlearning_loss"] for row in _within(h, a))),
    ))

# ---- hold_mask(model, optimizer, mask, loss): one training step


def _hold_mask(model: nn.Module, optimizer: Optimizer, mask: FilterMask, loss: Tensor) -> None:
    _plain_step(model, optimizer, mask, loss)
    mask.apply(model)


def _plain_step(model: nn.Module, optimizer: Optimizer, mask: FilterMask, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(F.elu(self.norm(self.conv(images))).mean(dim=(2, 3)))


def _training() -> list[tuple[Any, ...]]:
    """A model in the midst of training (the optimizer has momentum); two of its filters have just been removed."""
    generator = torch.Generator().manual_seed(3)
    model = _Net().eval()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    images, labels = torch.rand(6, 2, 6, 6, generator=generator), torch.arange(6) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    mask = FilterMask(filters(model, images[:1]))
    for _ in range(3):
        _plain_step(model, optimizer, mask, F.cross_entropy(model(images), labels))
    for position in (1, 3):
        mask.remove(model, position)
    return [(model, optimizer, mask, images, labels)]


def _three_steps(function: Function, case: Sequence[Any]) -> Seen:
    """All numbers of the removed filters after three steps (conv, then BatchNorm), then all parameters."""
    model, optimizer, mask, images, labels = case
    for _ in range(3):
        function(model, optimizer, mask, F.cross_entropy(model(images), labels))
    own = [own_tensors(model, mask.filters, position) for position in mask.positions]
    conv = torch.cat([tensor.flatten() for tensors in own for tensor in tensors[:2]])
    norm = torch.cat([tensor.flatten() for tensors in own for tensor in tensors[2:]])
    return [conv.double().clone(), norm.double().clone(),
            *(parameter.detach().double().clone() for parameter in model.parameters())]


def _gradient_masked(*layers: str) -> Function:
    """A step that zeroes the removed filters' gradients in these layers, and nothing else."""

    def step(model: nn.Module, optimizer: Optimizer, mask: FilterMask, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        for layer in layers:
            for parameter in model.get_submodule(layer).parameters():
                parameter.grad[mask.positions] = 0  # type: ignore[index]
        optimizer.step()

    return step


def _partly_silent(count: int) -> Function:
    """A step that silences the first tensors of each removed filter: weights, bias, BatchNorm scale, shift."""

    def step(model: nn.Module, optimizer: Optimizer, mask: FilterMask, loss: Tensor) -> None:
        _plain_step(model, optimizer, mask, loss)
        for position in mask.positions:
            for tensor in own_tensors(model, mask.filters, position)[:count]:
                tensor.zero_()

    return step


def _applied_before(model: nn.Module, optimizer: Optimizer, mask: FilterMask, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    mask.apply(model)
    optimizer.step()


def _held_too_late(model: nn.Module, optimizer: Optimizer, mask: FilterMask, loss: Tensor) -> None:
    _plain_step(model, optimizer, mask, loss)
    mask.hold(optimizer, model)


def _no_zero_grad(model: nn.Module, optimizer: Optimizer, mask: FilterMask, loss: Tensor) -> None:
    loss.backward()
    optimizer.step()
    mask.apply(model)


HOLD_MASK = Exercise(
    notebook="03", name="hold_mask", signature="hold_mask(model, optimizer, mask, loss)",
    praise="the step trains what lives, and the removed filters stay silent, BatchNorm included.",
    reference=_hold_mask, cases=_training, observe=_three_steps, stub=_plain_step, pure=False,
    misconceptions=(
        Misconception("the gradients are masked, yet the filters grow back: momentum still carries the old "
                      "gradients, and weight decay moves weights, too. Silence the filters AFTER the step.",
                      _gradient_masked("conv", "norm")),
        Misconception("the convolution's gradients are masked; momentum moves it all the same, and its "
                      "BatchNorm moves freely. Silence the filters AFTER the step, BatchNorm included.",
                      _gradient_masked("conv")),
        Misconception("weights and bias are silent, but the BatchNorm behind them is not: its shift makes "
                      "the channel say the same constant to every image. Silence scale and shift, too "
                      "(`mask.apply` does).", _partly_silent(2)),
        Misconception("the weights are zero, but the bias and the BatchNorm behind them are not: the "
                      "channel still speaks. `mask.apply` silences all that belongs to a filter.",
                      _partly_silent(1)),
        Misconception("the mask comes before the step, and the step moves the weights again. Put it last.",
                      _applied_before),
        Misconception("`mask.hold` acts after every LATER step of the optimizer; this one was made before, so the "
                      "filters are awake when it ends. `mask.apply` silences them now.", _held_too_late),
        Misconception("nothing is trained: the optimizer never takes a step.",
                      lambda model, optimizer, mask, loss: mask.apply(model)),
        Misconception("gradients pile up from step to step: call `optimizer.zero_grad()` before "
                      "`loss.backward()`.", _no_zero_grad),
    ))

PRUNING_EXERCISES = (STOPPING_RULE, HOLD_MASK)
