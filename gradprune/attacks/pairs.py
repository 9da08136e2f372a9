"""Images with and without the trigger, in pairs."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradprune.attacks.training import portions
from gradprune.datasets import ImageSet


class Pairs(NamedTuple):
    """The same images clean and triggered, float (N, C, H, W) in [0, 1], with their true labels, int64 (N,).

    `triggered` is empty if the trigger is unknown (see `unpaired`).
    """

    clean: Tensor
    triggered: Tensor
    labels: Tensor

    def joined(self, other: "Pairs") -> "Pairs":
        """These pairs followed by the others."""
        return Pairs(*(torch.cat(both) for both in zip(self, other, strict=True)))

    def batches(self, batch_size: int, generator: torch.Generator) -> list["Pairs"]:
        """All pairs once, in random order, in batches of `batch_size`; see `portions` for the last one."""
        order = torch.randperm(len(self.labels), generator=generator).to(self.labels.device)
        return [Pairs(self.clean[batch], self.triggered[batch] if len(self.triggered) else self.triggered,
                      self.labels[batch]) for batch in order.split(portions(len(order), batch_size))]


def pair_up(images: ImageSet, trigger: nn.Module, device: torch.device | str = "cpu") -> Pairs:
    """Stamp the trigger on every image; raises InputError if that changes the shape or leaves [0, 1]."""
    images = images.to(device)
    return Pairs(images.floats(), images.triggered(trigger), images.labels)


def unpaired(images: ImageSet, device: torch.device | str = "cpu") -> Pairs:
    """Clean images for methods with an unknown trigger: `triggered` is empty, (0, C, H, W)."""
    images = images.to(device)
    clean = images.floats()
    return Pairs(clean, clean[:0], images.labels)
