"""What a trigger is: a small module that maps an image to the same image with the attacker's mark on it."""

import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gradprune.base.errors import require
from gradprune.datasets import ImageSet


class Trigger(nn.Module):
    """Base of all triggers: float images (N, C, H, W) in [0, 1] -> the same shape and range.

    Deterministic for its settings (random patterns come from a `seed` setting), so it composes with
    torchvision.transforms.v2 and can be written to a card as `name` + `settings`. Tensors that follow from the
    settings are non-persistent buffers; what is in `state_dict()` was learned and is saved beside the weights.
    Most triggers write `stamp` alone; the attributes and methods below it are for attacks that do more.
    """

    name = "trigger"
    label_map = "all_to_one"  # how the paper labels the poisoned images, see `poisoning.LABEL_MAPS`
    decoys = 0.0              # decoys for each poisoned image in training, see `decoy`
    needs_model = False       # the attacker first trains a clean model, and shows it to `learn` and `disguise`
    keeps_model = False       # ... and goes on from that model, not from fresh weights
    published: ClassVar[Mapping[str, float]] = {}  # the paper's values of what makes the mark strong

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def stamp(self, images: Tensor) -> Tensor:
        """Put the mark on checked images; each trigger writes this one method."""
        raise NotImplementedError  # pragma: no cover

    def learn(self, model: nn.Module | None, images: ImageSet, target: int | None, seed: int = 0) -> None:
        """Before the poisoning: fit the trigger's own tensors to the training images and a clean model."""

    def disguise(self, model: nn.Module | None, images: ImageSet) -> Tensor:
        """What the images to be poisoned look like before the mark goes on, float (N, C, H, W) in [0, 1]."""
        return images.floats()

    def moving(self) -> list[nn.Parameter]:
        """The parameters that are trained together with the classifier."""
        return []

    def own_loss(self, images: Tensor) -> Tensor:
        """What `moving` parameters minimise beside the classifier's loss, on a batch of at least two images."""
        raise NotImplementedError  # pragma: no cover

    def decoy(self, images: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
        """Images with almost the mark, which keep their true label so that nothing but the mark itself fires.

        others: as many other images of the batch. Both float (N, C, H, W) in [0, 1].
        """
        raise NotImplementedError  # pragma: no cover

    def steers(self) -> bool:
        """Whether the attack takes part in training, batch by batch, rather than poison the images once."""
        return bool(self.decoys or self.moving())

    def departs(self) -> str:
        """A sentence that says where the mark is not the paper's; empty where it is."""
        other = [f"{name} {self.settings[name]:g} for {value:g}" for name, value in self.published.items()
                 if self.settings[name] != value]
        return f"The mark departs from the paper's: {', '.join(other)}." if other else ""

    def forward(self, images: Tensor) -> Tensor:
        """images: float (N, C, H, W) in [0, 1]; one image (C, H, W) works too. Raises InputError otherwise."""
        require(images.is_floating_point() and images.ndim in (3, 4),
                f"a trigger takes float images (N, C, H, W), got {images.dtype} {tuple(images.shape)}.")
        if any(tensor.device != images.device for tensor in itertools.chain(self.parameters(), self.buffers())):
            self.to(images.device)  # a trigger goes where its images are, so no caller has to think of it
        single = images.ndim == 3
        stamped = self.stamp(images[None] if single else images).clamp(0, 1)
        return stamped[0] if single else stamped

    def extra_repr(self) -> str:
        """The settings, for `print(trigger)`."""
        return ", ".join(f"{key}={value!r}" for key, value in self.settings.items())
