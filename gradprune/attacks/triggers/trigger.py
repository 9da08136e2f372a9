"""The base of all triggers: a small module that maps an image to the same image with the attacker's mark on it."""

import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gradprune.base.errors import require
from gradprune.datasets import ImageSet


class Trigger(nn.Module):
    """Base of all triggers: float images (N, C, H, W) in [0, 1] -> the same shape and range.

    The settings determine a trigger (random patterns come from a `seed` setting), so it composes with
    torchvision.transforms.v2 and can be written to a card as `name` and `settings`. Tensors that follow from the
    settings are non-persistent buffers; those in `state_dict()` were learned and are saved with the weights.
    Most triggers define only `stamp`; the other attributes and methods are for attacks that do more.
    """

    name = "trigger"
    label_map = "all_to_one"  # how the paper labels the poisoned images, see `poisoning.LABEL_MAPS`
    decoys = 0.0              # decoys for each poisoned image in training, see `decoy`
    needs_model = False       # the attacker first trains a clean model for `learn` and `disguise`
    keeps_model = False       # ... and continues from that model, not from fresh weights
    published: ClassVar[Mapping[str, float]] = {}  # the paper's values of settings that decide the mark's strength

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings, decoys = settings, settings.get("decoys", 0)
        require(decoys >= 0, f"decoys must not be negative, got {decoys}.")

    def stamp(self, images: Tensor) -> Tensor:
        """Put the mark on checked images; every trigger defines this method."""
        raise NotImplementedError  # pragma: no cover

    def check(self, model: nn.Module, images: Tensor) -> None:
        """Before any work: raise InputError for a model that the attack cannot use; images: some (N, C, H, W)."""

    def learn(self, model: nn.Module | None, images: ImageSet, target: int | None, seed: int = 0) -> None:
        """Before the poisoning: fit the trigger's own tensors to the training images and a clean model."""

    def disguise(self, model: nn.Module | None, images: ImageSet) -> Tensor:
        """The images to be poisoned as they are before the mark is applied, float (N, C, H, W) in [0, 1]."""
        return images.floats()

    def moving(self) -> list[nn.Parameter]:
        """The parameters that are trained together with the classifier."""
        return []

    def own_loss(self, images: Tensor) -> Tensor:
        """The loss that `moving` parameters minimise besides the classifier's, on a batch of at least two images."""
        raise NotImplementedError  # pragma: no cover

    def decoy(self, images: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
        """Images with almost the mark, which keep their true label so that only the mark itself triggers the backdoor.

        images: float (N, C, H, W) in [0, 1].
        others: as many other images of the batch, of the same shape.
        """
        raise NotImplementedError  # pragma: no cover

    def hooks_training(self) -> bool:
        """Whether the attack takes part in training, batch by batch, rather than poisoning the images once."""
        return bool(self.decoys or self.moving())

    def departs(self) -> str:
        """A sentence on the settings that differ from the paper's; empty if none does."""
        other = [f"{name} {self.settings[name]:g} for {value:g}" for name, value in self.published.items()
                 if self.settings[name] != value]
        return f"The mark departs from the paper's: {', '.join(other)}." if other else ""

    def forward(self, images: Tensor) -> Tensor:
        """images: float (N, C, H, W) in [0, 1]; one image (C, H, W) works too. Raises InputError otherwise."""
        require(images.is_floating_point() and images.ndim in (3, 4),
                f"a trigger takes float images (N, C, H, W), got {images.dtype} {tuple(images.shape)}.")
        if any(tensor.device != images.device for tensor in itertools.chain(self.parameters(), self.buffers())):
            self.to(images.device)  # here, so that no caller has to move it
        single = images.ndim == 3
        stamped = self.stamp(images[None] if single else images).clamp(0, 1)
        return stamped[0] if single else stamped

    def extra_repr(self) -> str:
        """The settings, for `print(trigger)`."""
        return ", ".join(f"{key}={value!r}" for key, value in self.settings.items())
