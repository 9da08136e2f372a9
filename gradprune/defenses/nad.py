"""NAD: fine-tune while the model's attention is drawn to that of a teacher, a fine-tuned copy of itself.

Source: Li et al., 2021, "Neural Attention Distillation", arXiv:2101.05930. The learning rate is the authors' released
one, 0.1 for a tenth of the epochs and 0.01 for the rest; steps are counted here, not epochs, as an epoch of few images
has one or two (theirs: 40). On CIFAR-10 that rate costs most classes (docs/results.md). `beta` is that of BackdoorBench
(Wu et al., 2022, arXiv:2206.12654) for a PreActResNet.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, adopted, passes
from gradprune.defenses.result import DefenseResult
from gradprune.models.inference import evaluating
from gradprune.pruning import Pairs, clean_loss, fine_tune

DEFAULTS: dict[str, Any] = {
    "beta": 1000.0,       # weight of the attention loss
    "teacher_steps": 40,  # of fine-tuning the teacher (released: 5 to 10 epochs of 40)
    "steps": 40,          # of distillation (released: 20 epochs of 40)
    "lr": 0.1,            # of both for a tenth of the epochs, at least one, then a tenth; SGD, momentum 0.9, decay 1e-4
    "batch_size": 64,     # images per step
}


def _spatial_outputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The outputs (N, C, H, W) of all modules, by name, in the order in which they are finished."""
    outputs: dict[str, Tensor] = {}

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def keep(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-1] > 1:
                outputs.pop(name, None)
                outputs[name] = output
        return module.register_forward_hook(keep)

    hooks = [watch(name, module) for name, module in model.named_modules()
             if name and not isinstance(module, nn.Dropout | nn.Dropout2d | nn.BatchNorm2d)]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def attention_places(model: nn.Module, images: Tensor) -> list[str]:
    """Where attention is compared: the last module at each image size, the ends of a ResNet's groups."""
    with evaluating(model), torch.no_grad():
        outputs = _spatial_outputs(model, images)
    return list({output.shape[2:]: name for name, output in outputs.items()}.values())


def attention_maps(model: nn.Module, images: Tensor, places: list[str]) -> list[Tensor]:
    """One map a place, float (N, H * W): squared activations summed over channels, scaled to length 1 per image."""
    outputs = _spatial_outputs(model, images)
    return [F.normalize(outputs[name].pow(2).sum(1).flatten(1)) for name in places]


def attention_distance(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """The mean squared difference of the maps, summed over the places."""
    return torch.stack([(one - other).pow(2).mean() for one, other in zip(student, teacher, strict=True)]).sum()


def nad(model: nn.Module, clean: ImageSet, trigger: nn.Module | None = None, *, spc: int = 10, seed: int = 0,
        progress: bool = True, **changes: Any) -> DefenseResult:
    """Fine-tune a teacher on clean images, then a copy of `model` under its attention; `trigger` is not used.

    clean: the defender's images, of which `spc` per class are drawn. changes: any value of `DEFAULTS`. The last epoch
    is kept. History rows are the student's. Raises InputError for bad arguments, too few images, or a loss that is not
    finite.
    """
    paper = adopted("nad", DEFAULTS, changes)
    work = Work(model, clean, None, spc, seed)
    common: dict[str, Any] = {"lr": paper["lr"], "weight_decay": 1e-4, "batch_size": paper["batch_size"], "seed": seed,
                              "progress": progress}

    def schedule(steps: int) -> dict[str, Any]:
        epochs = passes(steps, len(work.train.labels), paper["batch_size"])
        return {"max_epochs": epochs, "decay": lambda epoch: 1.0 if epoch < epochs / 10 else 0.1}

    teacher = copy.deepcopy(work.model)
    places = attention_places(teacher, work.train.clean[:1])
    with work.stage("teacher"):
        taught = fine_tune(teacher, work.mask, work.train, work.validation, loss=clean_loss,
                           **schedule(paper["teacher_steps"]), **common)

    def distill(student: nn.Module, batch: Pairs) -> Tensor:
        with evaluating(teacher), torch.no_grad():
            aim = attention_maps(teacher, batch.clean, places)
        maps = attention_maps(student, batch.clean, places)
        return clean_loss(student, batch) + paper["beta"] * attention_distance(maps, aim)

    if "interrupted" in taught[-1]:
        work.history = [{**taught[0], "interrupted": True}]
    else:
        with work.stage("tune"):
            work.history = fine_tune(work.model, work.mask, work.train, work.validation, loss=distill,
                                     **schedule(paper["steps"]), **common)
    return work.result("nad", {"spc": spc, **paper, "seed": seed})
