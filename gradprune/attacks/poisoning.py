"""Poisoning: stamp the trigger on a share of the training images and give them the attacker's label."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradprune.datasets import ImageSet
from gradprune.errors import require


class Poisoned(NamedTuple):
    """A poisoned training set and which of its images were touched (int64 positions, sorted)."""

    images: ImageSet
    touched: Tensor


def poison(clean: ImageSet, trigger: nn.Module, target: int, rate: float = 0.1, seed: int = 0) -> Poisoned:
    """All-to-one poisoning: `rate` of all images get the trigger and the label `target`.

    The images are drawn among those of the other classes (an image of the target class would teach nothing),
    so at most their share can be touched. rate: 0..1. The given set is not changed.
    Raises InputError for a rate or target out of range, or a trigger that changes the images' shape or
    range. Source: Gu et al., 2017.
    """
    require(0 <= rate <= 1, f"poison rate must lie in 0..1, got {rate}.")
    clean.check_target(target)
    others = torch.nonzero(clean.labels != target).flatten()
    count = min(round(rate * len(clean)), len(others))
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
    touched = others[order[:count].to(others.device)].sort().values
    images, labels = clean.images.clone(), clean.labels.clone()
    if count:
        stamped = clean.subset(touched).triggered(trigger)
        images[touched] = (stamped * 255).round().to(torch.uint8)
        labels[touched] = target
    return Poisoned(ImageSet(images, labels, clean.classes), touched)
