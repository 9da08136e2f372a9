"""NAD: fine-tune while aligning the model's attention with that of a teacher, a fine-tuned copy of itself.

Source: Li et al., 2021, "Neural Attention Distillation", arXiv:2101.05930. Loss, weights and rates are the authors'
released ones. Their small network on CIFAR-10 tolerates an initial rate of 0.1, but with it a larger one of ours loses
most classes; BackdoorBench (Wu et al., 2022, arXiv:2206.12654) takes 0.01. Here the defender's images choose: 0.1, or
0.01 if a teacher fine-tuned with 0.1 has lost `alpha` of its accuracy on views that it did not learn from.
"""

import copy
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.base.errors import InputError, require
from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, override_positive
from gradprune.defenses.result import DefenseResult
from gradprune.models.inference import evaluating
from gradprune.pruning import Pairs, clean_loss, fine_tune, validate
from gradprune.pruning.fine_tuning import Loss, passes

DEFAULTS: dict[str, Any] = {
    "beta_first": 500.0,   # weight of the attention loss at the first place, with the largest maps
    "beta": 1000.0,        # and at all later places
    "teacher_steps": 80,   # of fine-tuning the teacher (released: 5 to 10 epochs of 40 steps)
    "steps": 160,          # of distillation (released: 20 epochs of 40 steps)
    "fast": 0.1,           # share of the epochs at the first rate (released: 2 of 20)
    "lr": 0.1,             # the first rate; SGD, Nesterov momentum 0.9, decay 1e-4
    "lr_later": 0.01,      # the rate after that, or from the start
    "alpha": 0.1,          # loss of clean validation accuracy with which a teacher's rate was too high
    "batch_size": 64,      # images per step
}


def _spatial_outputs(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits, and the outputs (N, C, H, W) of all modules, by name, in the order in which they finish."""
    outputs: dict[str, Tensor] = {}
    name_of = {module: name for name, module in model.named_modules()
               if name and not isinstance(module, nn.Dropout | nn.Dropout2d | nn.modules.batchnorm._BatchNorm)}

    def keep(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-1] > 1:
            outputs.pop(name_of[module], None)
            outputs[name_of[module]] = output

    with ExitStack() as hooks:
        for module in name_of:
            hooks.enter_context(module.register_forward_hook(keep))
        return model(images), outputs


def attention_places(model: nn.Module, images: Tensor) -> list[str]:
    """The places where attention is compared: the last module at each map size, in a ResNet the end of each group."""
    with evaluating(model), torch.no_grad():
        _, outputs = _spatial_outputs(model, images)
    return list({output.shape[2:]: name for name, output in outputs.items()}.values())


def attention_maps(model: nn.Module, images: Tensor, places: list[str]) -> tuple[Tensor, list[Tensor]]:
    """The logits, and a map for each place, float (N, H * W): squares summed over channels, scaled to length 1."""
    logits, outputs = _spatial_outputs(model, images)
    return logits, [F.normalize(outputs[name].pow(2).sum(1).flatten(1)) for name in places]


def attention_distances(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """The mean squared difference of the maps at each place, float (places,)."""
    return torch.stack([(one - other).pow(2).mean() for one, other in zip(student, teacher, strict=True)])


def nad(model: nn.Module, clean: ImageSet, trigger: nn.Module | None = None, *, spc: int = 10, seed: int = 0,
        progress: bool = True, **changes: Any) -> DefenseResult:
    """Fine-tune a teacher on clean images, then a copy of `model` under its attention; `trigger` is not used.

    clean: the defender's images, of which `spc` per class are drawn; the student learns from all, the teacher not from
        the validation images, whose views decide its rate.
    changes: any value of `DEFAULTS`.
    The last epoch is kept. History rows are the student's. Raises InputError for bad arguments, too few images, a
    network without maps of more than one pixel, or a loss that is not finite.
    """
    paper = override_positive("nad", DEFAULTS, changes)
    work = Work(model, clean, None, spc, seed)
    views = work.augment.add_to(work.validation, seed)

    def tune(network: nn.Module, images: Pairs, loss: Loss, steps: int, lr: float) -> list[dict[str, Any]]:
        epochs = passes(steps, len(images.labels), paper["batch_size"])
        return fine_tune(network, work.mask, images, work.validation, loss=loss, lr=lr, weight_decay=1e-4,
                         decay=lambda epoch: 1.0 if epoch < paper["fast"] * epochs else paper["lr_later"] / lr,
                         optimizer=partial(torch.optim.SGD, nesterov=True), batch_size=paper["batch_size"],
                         max_epochs=epochs, renew=work.augment, seed=seed, progress=progress)

    places = attention_places(work.model, work.train.clean[:1])
    require(bool(places), "nad compares maps of more than one pixel, and no layer of the network gives any.")
    with work.stage("teacher"):
        for lr in (paper["lr"], paper["lr_later"]):
            teacher = copy.deepcopy(work.model)
            try:
                taught = tune(teacher, work.train, clean_loss, paper["teacher_steps"], lr)
            except InputError:  # it diverged
                if lr == paper["lr_later"]:
                    raise
                continue
            cost = validate(work.model, views).acc - validate(teacher, views).acc
            if cost < paper["alpha"] or "interrupted" in taught[-1]:
                break

    def distill(student: nn.Module, batch: Pairs) -> Tensor:
        with evaluating(teacher), torch.no_grad():
            _, aim = attention_maps(teacher, batch.clean, places)
        logits, maps = attention_maps(student, batch.clean, places)
        first, *later = attention_distances(maps, aim)
        return F.cross_entropy(logits, batch.labels) + paper["beta_first"] * first + paper["beta"] * sum(later)

    if "interrupted" in taught[-1]:
        work.history = [{**taught[0], "interrupted": True}]
    else:
        with work.stage("tune"):
            work.history = tune(work.model, work.train.joined(work.validation), distill, paper["steps"], lr)
    stopped = "" if "interrupted" in work.history[-1] else f"all steps were made, from a rate of {lr} on"
    return work.result("nad", {"spc": spc, **paper, "seed": seed}, stopped=stopped)
