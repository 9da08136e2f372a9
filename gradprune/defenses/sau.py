"""SAU: look for adversarial examples that fool both the given and the cleaned model, and unlearn them.

Source: Wei et al., 2023, "Shared Adversarial Unlearning", arXiv:2307.10562. A change that fools both models into the
same class may be the trigger; one that fools only the cleaned model is an ordinary weakness, and unlearning it would
not affect the backdoor. Settings are those of the first author's own code in BackdoorBench (Wu et al., 2022,
arXiv:2206.12654), defense/sau.py: no augmentation, no validation, BatchNorm's statistics fixed, a constant learning
rate. Batches are smaller and steps fewer, so that a cell costs about a minute with any number of images: badnets of the
tuning models, two images per class, ended at ACC 95.8 / ASR 2.5 / RA 90.5 with 400 steps of 16 images and at 94.0 / 6.0
/ 87.5 with 400 of 36.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import trange

from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, endless, override_positive
from gradprune.defenses.result import DefenseResult
from gradprune.models.inference import evaluating

DEFAULTS: dict[str, Any] = {
    "steps": 400,         # model steps (released: 1,000, 100 rounds over 5 % of CIFAR-10)
    "lr": 1e-4,           # of the model's Adam (AMSGrad)
    "batch_size": 16,     # images per step (released: 256)
    "bound": 0.2,         # largest change of a pixel; every search starts with all pixels brightened by it
    "search_steps": 5,    # most signed gradient steps of a search
    "search_size": 0.2,   # their size
    "adversarial": 0.01,  # weight, in a search, of the loss of each model that an image does not fool yet
    "shared": 1.0,        # weight of the divergence of both outputs until they give the same wrong class
    "unlearning": 1.0,    # weight, in a model step, of the shared examples against the clean loss
}


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of each pair of rows, from logits float (N, classes); returns (N,), in nats."""
    p, q = (logits.softmax(1).clamp(min=1e-8) for logits in (p, q))
    middle = ((p + q) / 2).log()
    return (p * (p.log() - middle) + q * (q.log() - middle)).sum(1) / 2


def shared_examples(model: nn.Module, given: nn.Module, images: Tensor, labels: Tensor,
                    paper: dict[str, Any]) -> Tensor:
    """A perturbation for each image, float (N, C, H, W) within `bound`, to lead both models to one wrong class.

    An image that has got there changes no more. images + perturbation may leave [0, 1], as released.
    """
    with torch.no_grad():
        before = [network(images).argmax(1) for network in (model, given)]
    delta, todo = torch.full_like(images, paper["bound"]), torch.arange(len(images), device=images.device)
    for _ in range(paper["search_steps"]):
        shift = delta[todo].requires_grad_()
        answers = [network(images[todo] + shift) for network in (model, given)]
        said = [answer.argmax(1) for answer in answers]
        fooled = [now != was[todo] for now, was in zip(said, before, strict=True)]
        there = fooled[0] & fooled[1] & (said[0] == said[1])
        resisting = sum((F.cross_entropy(answer, labels[todo], reduction="none") * ~gone).sum() / 2
                        for answer, gone in zip(answers, fooled, strict=True))
        apart = (divergence(*answers) * ~there).sum()
        slope = torch.autograd.grad(paper["shared"] * apart - paper["adversarial"] * resisting, shift)[0]
        delta[todo] = (shift.detach() - paper["search_size"] * slope.sign()).clamp(-paper["bound"], paper["bound"])
        todo = todo[~there]
        if not len(todo):
            break
    return delta


def unlearning(logits: Tensor, targets: Tensor, chosen: Tensor) -> Tensor:
    """-log(1 - p(target)) summed over the chosen rows, divided by the number of all rows; constant below p = 0.001.

    logits: float (N, classes).
    targets: int64 (N,), the class that each row must not be given.
    chosen: bool (N,).
    """
    others = logits.softmax(1).scatter(1, targets[:, None], 0.0).sum(1)
    return -((1e-6 + others.clamp(max=0.999)).log() * chosen).sum() / len(logits)


def sau(model: nn.Module, clean: ImageSet, trigger: nn.Module | None = None, *, spc: int = 10, seed: int = 0,
        progress: bool = True, **changes: Any) -> DefenseResult:
    """Unlearn, in a copy of `model`, examples that fool both it and the given model; `trigger` is not used.

    clean: the defender's images, of which `spc` per class are drawn; the model learns from all of them.
    changes: any value of `DEFAULTS`.
    Dropout is off. The last step is kept. Raises InputError for bad arguments or too few images.
    """
    paper = override_positive("sau", DEFAULTS, changes)
    work = Work(model, clean, None, spc, seed, hold_out=False, searches=True)
    given = copy.deepcopy(work.model).requires_grad_(False)
    optimizer = torch.optim.Adam(work.model.parameters(), lr=paper["lr"], amsgrad=True)
    stream = endless(work.train, torch.Generator().manual_seed(seed), paper["batch_size"])
    turns = trange(paper["steps"], desc="sau", disable=not progress, leave=False)
    work.measure("tune", epoch=0)
    with work.stage("tune"), evaluating(given), evaluating(work.model, gradients=True):
        for _, batch in zip(turns, stream, strict=False):
            turned = batch.clean + shared_examples(work.model, given, batch.clean, batch.labels, paper)
            with torch.no_grad():
                usual, targets = given(batch.clean).argmax(1), given(turned).argmax(1)
            logits, on_turned = work.model(torch.cat([batch.clean, turned])).chunk(2)
            loss = F.cross_entropy(logits, batch.labels) + paper["unlearning"] * unlearning(
                on_turned, targets, (targets != batch.labels) & (targets != usual))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            work.mask.apply(work.model)
    work.model.zero_grad(set_to_none=True)
    work.measure("tune", epoch=1)
    return work.result("sau", {"spc": spc, **paper, "seed": seed})
