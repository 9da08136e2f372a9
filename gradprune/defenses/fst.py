"""FST: fine-tune with a new last layer that is kept away from the old one, so that the features must shift, too.

Source: Min et al., 2023, "Towards Stable Backdoor Purification through Feature Shift Tuning", arXiv:2310.01875.
Settings are those of the authors' release, github.com/AISafety-HKUST/Backdoor_Safety_Tuning (fine_tune/ft.py), which
augments by shifts and, on photographs, flips. It advises a smaller `alpha` if accuracy falls; the term it weights grows
with the square of the old weights' norm, which is 10 in our networks. So views of held-out images choose it here.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, logit_layer, override_positive, sgd_then
from gradprune.defenses.result import DefenseResult
from gradprune.pruning import Pairs, clean_loss, fine_tune, validate
from gradprune.pruning.fine_tuning import half_cosine, passes

DEFAULTS: dict[str, Any] = {
    "alpha": 0.2,       # weight of <W, W0>, new and old weights of the last layer (the release's README: 0.1)
    "halvings": 3,      # of alpha at most, one each time training on part of the images loses too much (released: none)
    "lost": 0.10,       # loss of clean accuracy (0..1) on views of the other images that is too much
    "lr": 0.01,         # of SGD, momentum 0.9, no weight decay; falls along half a cosine
    "steps": 200,       # released: 10 epochs over 2 % of CIFAR-10, which is 80 steps; 5 % make 200
    "batch_size": 128,  # images per step
}


def draw_anew(layer: nn.Linear, seed: int) -> None:
    """Draw new weights and bias, uniform within 1 / sqrt(inputs) of zero, in place."""
    generator, bound = torch.Generator().manual_seed(seed), 1 / math.sqrt(layer.in_features)
    for tensor in layer.parameters():
        tensor.data.copy_(bound * (2 * torch.rand(tensor.shape, generator=generator) - 1))


def fst(model: nn.Module, clean: ImageSet, trigger: nn.Module | None = None, *, spc: int = 10, seed: int = 0,
        progress: bool = True, **changes: Any) -> DefenseResult:
    """Fine-tune a copy of `model` with a new last layer on CE(f(x), y) + alpha <W, W0>; `trigger` is not used.

    clean: the defender's images, of which `spc` per class are drawn; views of the validation images choose alpha, then
        the model learns from all.
    changes: any value of `DEFAULTS`.
    After every step W is rescaled to the (Frobenius) norm of W0. The last epoch is kept. Ctrl-C leaves the given model,
    since a new layer is of no use before it has learned.
    Raises InputError for bad arguments, too few images, a model whose last layer is not linear, or a loss that is not
    finite.
    """
    paper = override_positive("fst", DEFAULTS, changes)
    work = Work(model, clean, None, spc, seed)
    views = work.augment.add_to(work.validation, seed)
    start = validate(work.model, views).acc
    work.measure("tune", epoch=0)

    def tune(network: nn.Module, images: Pairs, alpha: float) -> list[dict[str, Any]]:
        layer, _ = logit_layer(network, images.clean[:1])
        old = layer.weight.detach().clone()
        draw_anew(layer, seed)

        def away(network: nn.Module, batch: Pairs) -> Tensor:
            return clean_loss(network, batch) + alpha * (layer.weight * old).sum()

        def rescale() -> None:
            layer.weight.data.mul_(old.norm() / layer.weight.data.norm())

        epochs = passes(paper["steps"], len(images.labels), paper["batch_size"])
        return fine_tune(network, work.mask, images, work.validation, loss=away, optimizer=sgd_then(rescale),
                         lr=paper["lr"], weight_decay=0.0, decay=half_cosine(epochs), max_epochs=epochs,
                         renew=work.augment, batch_size=paper["batch_size"], seed=seed, progress=progress)

    alpha = paper["alpha"]
    with work.stage("alpha"):
        for halved in range(int(paper["halvings"])):
            trial = copy.deepcopy(work.model)
            work.interrupted = "interrupted" in tune(trial, work.train, alpha)[-1]
            if work.interrupted or start - validate(trial, views).acc < paper["lost"]:
                break
            alpha = paper["alpha"] / 2 ** (halved + 1)
    if not work.interrupted:
        with work.stage("tune"):
            tuned = copy.deepcopy(work.model)
            rows = tune(tuned, work.train.joined(work.validation), alpha)
            work.interrupted = "interrupted" in rows[-1]
            if not work.interrupted:
                work.model, work.history = tuned, work.history + rows[1:]
    return work.result("fst", {"spc": spc, **paper, "seed": seed},
                       stopped=f"all steps were made, with an alpha of {alpha}")
