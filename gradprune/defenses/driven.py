"""Driven filters: to which class does each filter lead when its output is pushed far up?

A backdoor's filters are quiet on clean images, and loud ones lead to the target. So pushing up the filters one by one
reaches the target more often than other classes, whatever the trigger looks like. No trigger is searched for. Source of
the idea: Liu et al., 2019, "ABS: Scanning neural networks for back-doors by artificial brain stimulation", CCS; there
the neurons that stand out are then searched for a trigger.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gradprune.models.inference import evaluating, predict
from gradprune.pruning.filters import Filters, silent

PUSH = 10.0    # added to all of a filter's output, in units of the layer's spread: see `driven`
FEW = 16       # images
MANY = 1024    # filters at most, evenly chosen
AT_ONCE = 8    # filters that share a forward pass


def driven(model: nn.Module, found: Filters, images: Tensor) -> list[float]:
    """How far driven filters lead to each class: the mean, over the filters, of how much more likely it becomes.

    found: the model's filters; silent ones are left out, and of more than `MANY`, evenly chosen ones are driven.
    images: float (N, C, H, W) in [0, 1], clean; `FEW` of them, evenly chosen, are used.
    A filter's output is raised by `PUSH` times the mean, over the layer's filters, of the standard deviation of their
    outputs on the images. A filter that makes a class less likely counts as 0 for that class.
    """
    images = images[::-(-len(images) // FEW)]
    usual = predict(model, images).softmax(1).mean(0)
    raised = [usual]  # in a model without a living filter nothing rises
    alive = sorted({*range(len(found))} - {*silent(model, found)})
    chosen = alive[::-(-len(alive) // MANY) or 1]
    for layer in found.layers:
        kept = [place - layer.start for place in chosen if layer.start <= place < layer.start + layer.count]
        module = model.get_submodule(layer.name)
        for start in range(0, len(kept), AT_ONCE):
            raised += _answers(model, module, kept[start:start + AT_ONCE], images)
    return (torch.stack(raised) - usual).clamp_min(0).sum(0).div(max(1, len(chosen))).cpu().tolist()


def multiple(reached: Sequence[float], label: int) -> float:
    """How many times as far as to any other class driven filters lead to `label`; reached: what `driven` returned."""
    return reached[label] / max(1e-6, *(one for other, one in enumerate(reached) if other != label))


def _answers(model: nn.Module, module: nn.Module, channels: list[int], images: Tensor) -> list[Tensor]:
    """For each channel, the mean of the class probabilities over the images while its output is raised."""
    place = torch.arange(len(channels) * len(images), device=images.device)
    channel = torch.tensor(channels, device=images.device).repeat_interleave(len(images))

    def raised(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if output.dim() != 4 or len(output) != len(place):
            return output  # the model does not use it image by image
        push = PUSH * output.std((0, 2, 3), unbiased=False).mean()
        output = output.clone()
        output[place, channel] += push
        return output

    with module.register_forward_hook(raised), evaluating(model), torch.no_grad():
        answers = model(images.repeat(len(channels), 1, 1, 1))
    return list(answers.softmax(1).view(len(channels), len(images), -1).mean(1))
