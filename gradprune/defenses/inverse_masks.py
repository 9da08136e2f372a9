"""A soft mask of the filters and its inverse, learned together: the inverse keeps the backdoor, the mask resists it.

Source: Dunnett et al., 2025, "Backdoor Mitigation via Invertible Pruning Masks", arXiv:2509.15497; the losses are those
of the authors' release. `defenses.ims` has the settings.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gradprune.pruning.filters import Filters


def gates(mask: Tensor, kept: Tensor, steepness: float) -> Tensor:
    """One factor per filter, float (filters,) in [0, 1]: sig(steepness (mask - 1/2)), pulled towards 1 by `kept`.

    mask, kept: float (filters,) in [0, 1]. The inverse mask is 1 - mask; a filter with kept = 1 is open in both.
    """
    share = torch.sigmoid(steepness * (mask - 0.5))
    return share + kept * (1 - share)


def agree(p: Tensor, q: Tensor) -> Tensor:
    """Mean of -log sum_c p_c q_c over the rows of two outputs; logits float (N, classes)."""
    return -((p.softmax(1) * q.softmax(1)).sum(1) + 1e-8).log().mean()


def disagree(p: Tensor, q: Tensor) -> Tensor:
    """Mean of -log (1 - sum_c p_c q_c) over the rows of two outputs; logits float (N, classes)."""
    return -(1 - (p.softmax(1) * q.softmax(1)).sum(1) + 1e-8).log().mean()


def changed(given: nn.Module, inverse: Callable[[Tensor], Tensor], images: Tensor, answers: Tensor,
            paper: dict[str, Any]) -> Tensor:
    """The images, each changed so that `given` no longer answers as in `answers` and `inverse` follows it."""
    delta = torch.zeros_like(images, requires_grad=True)
    optimizer = torch.optim.AdamW([delta], lr=paper["search_lr"])
    for _ in range(paper["search_steps"]):
        now = given(images + delta)
        loss = agree(inverse(images + delta), now) + disagree(now, answers)
        delta.grad = torch.autograd.grad(loss, delta)[0]
        optimizer.step()
    return images + delta.detach()


class Masks:
    """The two learned numbers of each filter, and the model with these gates or with their inverse.

    paper: settings as in `defenses.ims.DEFAULTS`.
    """

    def __init__(self, model: nn.Module, found: Filters, paper: dict[str, Any]) -> None:
        self.model, self.found, self.paper = model, found, paper
        device = next(model.parameters()).device
        self.mask, self.kept = (torch.ones(len(found), device=device, requires_grad=True) for _ in range(2))

    def factors(self, inverse: bool = False) -> Tensor:
        """The current gates, float (filters,)."""
        return gates(1 - self.mask if inverse else self.mask, self.kept, self.paper["steepness"])

    def through(self, inverse: bool = False) -> Callable[[Tensor], Tensor]:
        """The model with these gates: images -> logits."""
        parameters = gated(self.model, self.found, self.factors(inverse))
        return lambda images: functional_call(self.model, parameters, (images,), tie_weights=False)

    def loss(self, images: Tensor, first: bool) -> Tensor:
        """The loss of one round on a batch; `first`: in the first part, without a search for changes."""
        masked, inverse = self.through(), self.through(inverse=True)
        with torch.no_grad():
            clean, behind = self.model(images), self.through(inverse=True)
        if first:
            return agree(masked(images), clean) + disagree(inverse(images), clean)
        turned = changed(self.model, behind, images, clean, self.paper)
        with torch.no_grad():
            told = self.model(turned)
        both = torch.cat([images, turned])
        resists = sum(agree(part, clean) for part in masked(both).chunk(2))
        on_clean, on_turned = inverse(both).chunk(2)
        return resists + disagree(on_clean, clean) + disagree(on_turned, clean) + agree(on_turned, told)

    def learn(self, images: Tensor, rounds: int, generator: torch.Generator, *, first: bool,
              weight: float) -> Iterator[float]:
        """One part of at most `rounds` rounds, each on newly drawn images; yields their losses. weight: of 1 - kept."""
        optimizer = torch.optim.AdamW([self.kept, self.mask], lr=self.paper["lr"])
        best, waited = float("inf"), 0
        for _ in range(rounds):
            batch = torch.randperm(len(images), generator=generator)[:self.paper["batch_size"]].to(images.device)
            loss = self.loss(images[batch], first) + weight * (1 - self.kept).mean()
            self.kept.grad, self.mask.grad = torch.autograd.grad(loss, [self.kept, self.mask])
            optimizer.step()
            self.kept.data.clamp_(0, 1)
            self.mask.data.clamp_(0, 1)
            yield loss.item()
            better = loss.item() < self.paper["improvement"] * best
            best, waited = (loss.item(), 0) if better else (best, waited + 1)
            if waited > self.paper["patience"]:
                break


def gated(model: nn.Module, found: Filters, factors: Tensor) -> dict[str, Tensor]:
    """Parameters for `torch.func.functional_call` that scale the output of each filter, before any BatchNorm.

    factors: float (number of filters,); they multiply the filters' weights and biases only.
    Call it with tie_weights=False: every place that shares a weight is listed.
    """
    parameters = {}
    for layer in found.layers:
        part = factors[layer.start:layer.start + layer.count]
        for name in dict.fromkeys(name for name, _ in layer.pairs):
            for kind in ("weight", "bias"):
                tensor = getattr(model.get_submodule(name), kind)
                if tensor is not None:
                    parameters[f"{name}.{kind}"] = tensor.detach() * part.reshape(-1, *[1] * (tensor.ndim - 1))
    return parameters
