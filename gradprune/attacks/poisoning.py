"""Poisoning: stamp the trigger on a share of the training images and give them the attacker's label."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradprune.base.errors import InputError, plain, require, require_known
from gradprune.datasets import ImageSet

# Every class to the target, poisoned images labelled so; each class to the next one; every class to the target, but
# only images of the target class are poisoned, so that every label in the training set is right.
LABEL_MAPS = ("all_to_one", "all_to_all", "clean_label")


class Poisoned(NamedTuple):
    """A poisoned training set and which of its images were touched (int64 positions, sorted)."""

    images: ImageSet
    touched: Tensor


def attack_labels(images: ImageSet, target: int | None, label_map: str = "all_to_one") -> Tensor:
    """The label that the attacker wants for each triggered image, int64 (N,), on the labels' device.

    label_map: "all_to_one" and "clean_label" give `target` for all; "all_to_all" the next class, (label + 1) mod
        classes, and `target` is ignored and may be None.
    Raises InputError for an unknown map or a target out of range. Source: Gu et al., 2017.
    """
    require_known("label map", label_map, LABEL_MAPS)
    if label_map == "all_to_all":
        return (images.labels + 1) % len(images.classes)
    if target is None:
        raise InputError(f"the label map {label_map!r} needs a target class, got None.")
    images.check_target(target)
    return torch.full_like(images.labels, target)


def choose(clean: ImageSet, target: int | None, rate: float, seed: int = 0, label_map: str = "all_to_one") -> Tensor:
    """The images that `poison` changes, int64 positions, sorted; arguments and errors as there."""
    require(0 <= rate <= 1, f"poison rate must lie in 0..1, got {rate}.")
    wanted = attack_labels(clean, target, label_map)
    right = clean.labels == wanted
    fitting = torch.nonzero(right if label_map == "clean_label" else ~right).flatten()
    count = min(round(rate * (len(fitting) if label_map == "clean_label" else len(clean))), len(fitting))
    order = torch.randperm(len(fitting), generator=torch.Generator().manual_seed(plain(seed)))
    return fitting[order[:count].to(fitting.device)].sort().values


def poison(clean: ImageSet, trigger: nn.Module, target: int | None, rate: float = 0.1, seed: int = 0,
           label_map: str = "all_to_one") -> Poisoned:
    """Poison a training set: `rate` of all images get the trigger and the attacker's label (see `attack_labels`).

    The images are drawn from those whose label changes (all-to-one: an image of the target class would teach nothing),
    so at most these can be poisoned. With the clean-label map (Barni et al., 2019, arXiv:1902.11237) only images of the
    target class are poisoned and all labels stay.
    clean: the training set, not changed.
    rate: 0..1, a share of all images; with the clean-label map, of the target class.
    seed: which images.
    Raises InputError for a rate, target or map out of range, or a trigger that changes the images' shape or range.
    Source: Gu et al., 2017.
    """
    touched, wanted = choose(clean, target, rate, seed, label_map), attack_labels(clean, target, label_map)
    images, labels = clean.images.clone(), clean.labels.clone()
    if len(touched):
        stamped = clean.subset(touched).triggered(trigger)
        images[touched] = (stamped * 255).round().to(torch.uint8)
        labels[touched] = wanted[touched]
    return Poisoned(ImageSet(images, labels, clean.classes), touched)
