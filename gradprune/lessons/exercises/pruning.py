"""The exercises of notebook 03: when to stop pruning, and how removed filters are kept silent."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from gradprune.lessons.runtime.feedback import Seen
from gradprune.lessons.runtime.grading import Complaint, Function, as_tensor, exercise
from gradprune.pruning import FilterMask
from gradprune.pruning.filters import filters, own_tensors

# ---- stopping_rule

Rows = list[dict[str, Any]]


def _histories() -> list[tuple[Rows, float]]:
    """Runs as `paper` leaves them, ended by a fall of alpha or by patience; each wrong rule keeps a different round.

    Accuracies are multiples of 1/64, so that a fall of exactly alpha is exact in floating point, too; the test
    figures are there as a temptation.
    """
    return [(_rows([56, 58, 62, 57, 55, 50, 44], [4.0, 2.6, 2.8, 1.9, 2.0, 1.2, 0.6], [9, 8, 10, 90, 20, 50, 30],
                   [99, 80, 20, 40, 1, 30, 2]), 0.125),
            (_rows([48, 50, 46, 47, 40, 32], [3.0, 2.0, 1.0, 1.3, 1.1, 0.5], [20, 19, 50, 18, 60, 90],
                   [97, 50, 40, 5, 30, 20]), 0.25),
            (_rows([40, 40, 41, 34, 38, 39, 36], [3.0, 1.4, 1.6, 0.7, 0.9, 0.8, 1.1], [12, 14, 11, 95, 16, 13, 18],
                   [98, 60, 70, 45, 30, 20, 10]), 0.125),
            (_rows([52, 50, 49, 40], [2.0, 2.4, 2.6, 1.0], [50, 40, 70, 80], [99, 70, 50, 1]), 0.125),
            (_rows([40, 44, 50, 47, 30], [3.0, 2.0, 0.8, 1.5, 0.9], [50, 40, 45, 30, 80], [99, 70, 60, 65, 1]), 0.125)]


def _rows(*columns: Sequence[float]) -> Rows:
    """A history from its accuracies (in 64ths), unlearning losses, clean losses and test ASRs (both in per cent)."""
    names, scales = ("val_acc", "val_unlearning_loss", "val_clean_loss", "test_asr"), (64, 1, 100, 100)
    return [{"round": number} | {name: value / scale for name, value, scale in zip(names, values, scales, strict=True)}
            for number, values in enumerate(zip(*columns, strict=True))]


def _short_run() -> list[tuple[Rows, float]]:
    """A history short enough to read."""
    rows = ((1.0, 3.0), (0.95, 0.5), (0.97, 0.8), (0.6, 0.1))
    return [([{"round": number, "val_acc": acc, "val_unlearning_loss": loss}
              for number, (acc, loss) in enumerate(rows)], 0.1)]


def _round(function: Function, case: Sequence[Any]) -> Seen:
    """The chosen round; what follows in the notebook cannot use a whole row."""
    chosen = function(*case)
    if isinstance(chosen, dict):
        raise Complaint("a whole row is returned. Return its `\"round\"`, the number of filters that stay removed.")
    return [as_tensor(chosen)]


def _within(rows: Rows, alpha: float) -> Rows:
    return [row for row in rows if rows[0]["val_acc"] - row["val_acc"] < alpha]


def _lowest(rows: Rows, key: str = "val_unlearning_loss") -> int:
    return int(min(rows, key=lambda row: row[key])["round"])


@exercise("03", cases=_histories, observe=_round, examples=_short_run,
          praise="the lowest validation unlearning loss among the rounds that lost less than alpha.")
def stopping_rule(history: Rows, alpha: float) -> int:
    """How many filters stay removed."""
    return _lowest(_within(history, alpha))


def _kept_by_fall(history, alpha, fall):
    accs = [row["val_acc"] for row in history]
    return _lowest([row for place, row in enumerate(history) if not place or fall(accs, place) < alpha])


def _kept_until_a_rise(history, alpha):
    within = _within(history, alpha)
    return next(before["round"] for before, after in pairwise(history)
                if after["val_unlearning_loss"] > before["val_unlearning_loss"] or after not in within)


stopping_rule.wrong_answers({
    "the fall is counted from one round to the next. Many small losses would add up unseen: compare with row 0.":
        partial(_kept_by_fall, fall=lambda accs, place: accs[place - 1] - accs[place]),
    "the fall is counted from the best accuracy so far. Count it from the given model, row 0; a lucky round in "
    "between changes nothing.": partial(_kept_by_fall, fall=lambda accs, place: max(accs[:place]) - accs[place]),
    "a fall of exactly alpha passes. “Fallen by alpha” means by alpha or more, so a round that may be kept has lost "
    "LESS than alpha: `<`, not `<=`.": partial(_kept_by_fall, fall=lambda accs, place: accs[0] - accs[place] - 1e-9),
    "you stop at the first round in which the loss rises. It goes up and down: look at all rounds.": _kept_until_a_rise,
    "you keep the last round, or the first that loses too much. Pruning goes on for a while after its best round to "
    "make sure that it was the best: go BACK to the round with the lowest validation unlearning loss.":
        lambda history, alpha: history[-1]["round"],
    "you keep the last round within alpha. Among those rounds, the one with the lowest validation unlearning loss is "
    "the best.": lambda history, alpha: _within(history, alpha)[-1]["round"],
    "alpha is ignored: the lowest loss may come from a model that has lost its accuracy. First drop the rounds that "
    "lost alpha or more.": lambda history, alpha: _lowest(history),
    "you chose by the test ASR. A result chosen by test figures does not hold on new data: the test set must decide "
    "nothing. Use the validation unlearning loss.": lambda history, alpha: _lowest(history, "test_asr"),
    "you chose by the clean loss. It says nothing about the backdoor: use the unlearning loss.":
        lambda history, alpha: _lowest(_within(history, alpha), "val_clean_loss"),
    "one too many: row 0 is the model before any pruning, so row r has r filters removed.":
        lambda history, alpha: stopping_rule.reference(history, alpha) + 1,
    "row 0 is left out. If no round helps, the given model is the best: 0 filters.":
        lambda history, alpha: _lowest(_within(history, alpha)[1:] or history[1:2]),
})


# ---- hold_mask: one training step


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(F.elu(self.norm(self.conv(images))).mean(dim=(2, 3)))


def _training() -> list[tuple[Any, ...]]:
    """A model in the middle of training (the optimizer has momentum); two of its filters have just been removed."""
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


def _plain_step(model: nn.Module, optimizer: Optimizer, mask: FilterMask, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _three_steps(function: Function, case: Sequence[Any]) -> Seen:
    """All parameters after three steps."""
    model, optimizer, mask, images, labels = case
    for _ in range(3):
        function(model, optimizer, mask, F.cross_entropy(model(images), labels))
    return [parameter.detach().double().clone() for parameter in model.parameters()]


@exercise("03", cases=_training, observe=_three_steps, stub=_plain_step, pure=False,
          praise="the step trains the other filters, and the removed ones stay silent, BatchNorm included.")
def hold_mask(model: nn.Module, optimizer: Optimizer, mask: FilterMask, loss: Tensor) -> None:
    """One training step after which all filters in the mask are silent."""
    _plain_step(model, optimizer, mask, loss)
    mask.apply(model)


def _idle(model, optimizer, mask):
    """Nothing."""


def _apply(model, _, mask):
    mask.apply(model)


def _no_gradients(model, _, mask, names):
    for name in names:
        model.get_parameter(name).grad[mask.positions] = 0


def _half_silent(model, _, mask, silent):
    for position in mask.positions:
        for tensor in own_tensors(model, mask.filters, position)[:silent]:  # weights, bias, scale, shift
            tensor.zero_()


def _step(model, optimizer, mask, loss, first=_idle, between=_idle, last=_idle, clear=True):
    """The step, with something done about the mask first, between gradient and step, or last."""
    first(model, optimizer, mask)
    if clear:
        optimizer.zero_grad()
    loss.backward()
    between(model, optimizer, mask)
    optimizer.step()
    last(model, optimizer, mask)


hold_mask.wrong_answers({
    "the gradients are masked, yet the filters grow back: momentum still carries the old gradients, and weight decay "
    "moves weights, too. Silence the filters AFTER the step.":
        [partial(_step, between=partial(_no_gradients, names=names)) for names in
         (("conv.weight", "conv.bias", "norm.weight", "norm.bias"), ("conv.weight", "norm.weight", "norm.bias"))],
    "the convolution's gradients are masked; momentum still moves it, and its BatchNorm moves freely. Silence the "
    "filters AFTER the step, BatchNorm included.":
        [partial(_step, between=partial(_no_gradients, names=names)) for names in
         (("conv.weight", "conv.bias"), ("conv.weight",), ("conv.weight", "norm.weight"))],
    "the weights are zero, but the bias and the BatchNorm behind them are not: the channel is still active. "
    "`mask.apply` silences everything that belongs to a filter.": partial(_step, last=partial(_half_silent, silent=1)),
    "weights and bias are silent, but the BatchNorm behind them is not: its shift makes the channel output the same "
    "constant for every image. Silence scale and shift, too (`mask.apply` does).":
        [partial(_step, last=partial(_half_silent, silent=silent)) for silent in (2, 3)],
    "the mask comes before the step, and the step moves the weights again. Put it last.":
        [partial(_step, between=_apply), partial(_step, first=_apply)],
    "`mask.hold` acts after every LATER step of the optimizer; this one came before, so the filters are active when "
    "it ends. `mask.apply` silences them now.":
        partial(_step, last=lambda model, optimizer, mask: mask.hold(optimizer, model)),
    "gradients pile up from step to step: call `optimizer.zero_grad()` before `loss.backward()`.":
        partial(_step, clear=False, last=_apply),
})
