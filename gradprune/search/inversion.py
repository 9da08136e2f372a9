"""Trigger unknown: search with the model itself for the smallest mark that sends every image to one class.

Source: Wang et al., 2019, "Neural Cleanse", IEEE S&P. A backdoor is a shortcut: its class can be reached with a far
smaller mark than the others need, and the search finds that mark.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from gradprune.base.errors import override, require
from gradprune.models.inference import evaluating

SEARCH: dict[str, Any] = {
    "steps": 200,        # minibatches per class (the paper: 1000)
    "batch_size": 32,    # images per step
    "lr": 0.1,           # of Adam
    "betas": (0.5, 0.9),  # of Adam
    "cost": 1e-3,        # first weight of the mask's L1 norm
    "goal": 0.99,        # share of the images that the mark must send to the class
    "patience": 5,       # consecutive steps above (below) the goal before the weight rises (falls)
    "factor": 2.0,       # the weight rises by this, and falls by this to the power of 1.5
}


class Inverted(nn.Module):
    """A synthesised trigger: (1 - mask) * image + mask * pattern.

    Takes and returns float (N, C, H, W) in [0, 1].
    mask: float (1, H, W) in [0, 1].
    pattern: float (C, H, W) in [0, 1].
    """

    mask: Tensor
    pattern: Tensor

    def __init__(self, mask: Tensor, pattern: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("pattern", pattern)

    def forward(self, images: Tensor) -> Tensor:
        """Apply the pattern to the images where the mask is."""
        mask, pattern = self.mask.to(images.device), self.pattern.to(images.device)
        return (1 - mask) * images + mask * pattern


class Alternating(nn.Module):
    """Several triggers at once: image i gets trigger i modulo their number. (N, C, H, W) -> the same."""

    def __init__(self, triggers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.triggers = nn.ModuleList(triggers)

    def forward(self, images: Tensor) -> Tensor:
        """Each image with its trigger."""
        worn = images.clone()
        for place, trigger in enumerate(self.triggers):
            worn[place::len(self.triggers)] = trigger(images[place::len(self.triggers)])
        return worn


class Inversion(NamedTuple):
    """The result of the search for one class.

    trigger: the module that applies it.
    norm: its size, by which classes are compared.
    success: the share (0..1) of its batch that it sends to the class.
    history: one row per step.
    converged: whether any step reached the goal; if not, trigger and norm are those of the last step and mean little.
    """

    trigger: nn.Module
    norm: float
    success: float
    history: list[dict[str, float]]
    converged: bool


def invert(model: nn.Module, images: Tensor, target: int, *, seed: int = 0, progress: bool = True,
           **changes: Any) -> Inversion:
    """Search for the smallest mask and pattern that send `images` to class `target`; the model is not changed.

    images: float (N, C, H, W) in [0, 1], clean, on the model's device.
    changes: any value of `SEARCH`.
    The mask with the lowest L1 norm among the steps that reached the goal is kept; if none did, the last one is.
    Raises InputError for unknown settings, no images, or a target that is no class of the model.
    """
    def form(free: list[Tensor]) -> tuple[nn.Module, Tensor]:
        mask, pattern = (0.5 * (tensor.tanh() + 1) for tensor in free)  # tanh keeps both in [0, 1]
        return Inverted(mask, pattern), mask.sum()

    generator = torch.Generator().manual_seed(seed)
    start = [torch.randn(size, *images.shape[2:], generator=generator) for size in (1, images.shape[1])]
    return search(model, images, target, start, form, override("search", SEARCH, changes), generator, progress)


@torch.enable_grad()
def search(model: nn.Module, images: Tensor, target: int, start: list[Tensor],
           form: Callable[[list[Tensor]], tuple[nn.Module, Tensor]], settings: dict[str, Any],
           generator: torch.Generator, progress: bool) -> Inversion:
    """The loop of all searches: minimise cross-entropy to `target` plus a weight times the trigger's norm.

    start: the initial values of the free tensors.
    form: turns the free tensors into a trigger and its norm.
    settings: those of `SEARCH`.
    The weight rises while the goal is reached and falls while it is not.
    """
    require(len(images) > 0, "the search for a trigger needs at least one image.")
    require(settings["steps"] >= 1 and settings["batch_size"] >= 1, "steps and batch_size must be at least 1.")
    free = [tensor.to(images.device).requires_grad_() for tensor in start]
    optimizer = torch.optim.Adam(free, settings["lr"], settings["betas"])
    labels = torch.full((min(settings["batch_size"], len(images)),), target, device=images.device)
    cost, above, below = settings["cost"], 0, 0
    history: list[dict[str, float]] = []
    best = None
    bar = tqdm(range(settings["steps"]), desc=f"trigger of class {target}", disable=not progress, leave=False)
    with evaluating(model):
        for step in bar:
            trigger, norm = form(free)
            chosen = torch.randperm(len(images), generator=generator)[: len(labels)].to(images.device)
            logits = model(trigger(images[chosen]))
            last = logits.shape[1] - 1
            require(0 <= target <= last, f"the model has classes 0..{last}, got target {target}.")
            loss = F.cross_entropy(logits, labels)
            success = (logits.argmax(1) == target).float().mean().item()
            history.append({"step": step, "loss": loss.item(), "norm": norm.item(), "success": success, "cost": cost})
            reached = success >= settings["goal"]
            if best is None or (reached, -norm.item()) >= (best.converged, -best.norm) or not (reached
                                                                                                or best.converged):
                best = Inversion(form([tensor.detach().clone() for tensor in free])[0], norm.item(), success, history,
                                 reached)
            above, below = (above + 1, 0) if reached else (0, below + 1)
            if above == settings["patience"]:
                cost, above = cost * settings["factor"], 0
            elif below == settings["patience"]:
                cost, below = cost / settings["factor"] ** 1.5, 0
            for tensor, gradient in zip(free, torch.autograd.grad(loss + cost * norm, free), strict=True):
                tensor.grad = gradient
            optimizer.step()
    assert best is not None  # at least one step was made
    return best


def outliers(norms: Sequence[float], threshold: float = 2.0) -> tuple[list[float], list[int]]:
    """The classes with a suspiciously small mark, by the median absolute deviation (MAD).

    norms: one norm per class.
    threshold: of the anomaly index (the paper's 2 corresponds to 95 % confidence).
    Returns the anomaly index of each class, |norm - median| / (1.4826 * MAD), which for normal data is a number of
    standard deviations, and the classes whose norm is below the median with an index above `threshold`, smallest norm
    first.
    """
    values = torch.tensor(norms, dtype=torch.double)
    distance = (values - values.quantile(0.5)).abs()
    spread = 1.4826 * distance.quantile(0.5)
    index = (distance / spread if spread > 0 else torch.zeros_like(distance)).tolist()
    found = [i for i, value in enumerate(norms) if value < values.quantile(0.5) and index[i] > threshold]
    return index, sorted(found, key=lambda i: norms[i])
