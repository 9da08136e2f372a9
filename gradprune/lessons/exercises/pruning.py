"""The exercises of notebook 03: when to stop pruning (see there), and how removed filters are kept silent."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from gradprune.lessons.exercises.stopping import STOPPING_RULE
from gradprune.lessons.runtime.feedback import Seen
from gradprune.lessons.runtime.grading import Exercise, Function, Misconception
from gradprune.pruning import FilterMask
from gradprune.pruning.filters import filters, own_tensors

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


def _gradient_masked(*names: str) -> Function:
    """A step that zeroes the removed filters' gradients in these parameters, and nothing else."""

    def step(model: nn.Module, optimizer: Optimizer, mask: FilterMask, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        for name in names:
            model.get_parameter(name).grad[mask.positions] = 0  # type: ignore[index]
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


def _applied_first(model: nn.Module, optimizer: Optimizer, mask: FilterMask, loss: Tensor) -> None:
    mask.apply(model)
    _plain_step(model, optimizer, mask, loss)


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
                      _gradient_masked("conv.weight", "conv.bias", "norm.weight", "norm.bias"),
                      (_gradient_masked("conv.weight", "norm.weight", "norm.bias"),)),
        Misconception("the convolution's gradients are masked; momentum moves it all the same, and its "
                      "BatchNorm moves freely. Silence the filters AFTER the step, BatchNorm included.",
                      _gradient_masked("conv.weight", "conv.bias"),
                      (_gradient_masked("conv.weight"), _gradient_masked("conv.weight", "norm.weight"))),
        Misconception("weights and bias are silent, but the BatchNorm behind them is not: its shift makes "
                      "the channel say the same constant to every image. Silence scale and shift, too "
                      "(`mask.apply` does).", _partly_silent(2), (_partly_silent(3),)),
        Misconception("the weights are zero, but the bias and the BatchNorm behind them are not: the "
                      "channel still speaks. `mask.apply` silences all that belongs to a filter.",
                      _partly_silent(1)),
        Misconception("the mask comes before the step, and the step moves the weights again. Put it last.",
                      _applied_before, (_applied_first,)),
        Misconception("`mask.hold` acts after every LATER step of the optimizer; this one was made before, so the "
                      "filters are awake when it ends. `mask.apply` silences them now.", _held_too_late),
        Misconception("nothing is trained: the optimizer never takes a step.",
                      lambda model, optimizer, mask, loss: mask.apply(model)),
        Misconception("gradients pile up from step to step: call `optimizer.zero_grad()` before "
                      "`loss.backward()`.", _no_zero_grad),
    ))

PRUNING_EXERCISES = (STOPPING_RULE, HOLD_MASK)
