"""Input-aware dynamic attack (Nguyen & Tran, 2020, arXiv:2010.08138): every image gets its own trigger."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.attacks.triggers.learning import descend
from gradprune.attacks.triggers.position import in_channels
from gradprune.attacks.triggers.trigger import Trigger
from gradprune.base.devices import seeded
from gradprune.base.errors import require
from gradprune.datasets import ImageSet

DENSITY = 0.032                   # share of an image that the mask may cover for free (the paper's)
SPARSITY, DIVERSITY = 100.0, 1.0  # weights of the two loss terms (the paper's)
MASK_STEPS, MASK_LR = 150, 0.01   # Adam for the mask network, before the poisoning


class InputAware(Trigger):
    """(1 - mask(x)) * x + mask(x) * pattern(x): two small networks draw mask and pattern from the image itself.

    `learn` trains the mask network to cover little and to differ between images, and then fixes it; the pattern network
    is trained together with the classifier, so that its patterns work and differ between images.
    width: filters of the networks' first layer.
    decoys: the paper's cross-trigger mode: for each poisoned image, this many others get the trigger of a THIRD image
        and keep their label (1 in the paper).
    seed: of the networks' initial weights.
    """

    name = "input_aware"

    def __init__(self, width: int = 8, decoys: float = 1.0, seed: int = 0) -> None:
        super().__init__(width=width, decoys=decoys, seed=seed)
        require(width >= 1, f"width must be at least 1, got {width}.")
        self.decoys = decoys
        with seeded(seed, torch.get_default_device()):
            self.masks, self.patterns = _drawer(1, width), _drawer(3, width)
        self.requires_grad_(False)  # a constant, except to the attack itself

    def mask(self, images: Tensor) -> Tensor:
        """The mask of each image's trigger, (N, 1, H, W) in [0, 1], mostly near 0 or 1."""
        return torch.sigmoid(10 * torch.tanh(_draw(self.masks, images)))

    def pattern(self, images: Tensor) -> Tensor:
        """The pattern of each image's trigger, (N, C, H, W) in [0, 1]."""
        return in_channels(torch.sigmoid(_draw(self.patterns, images)), images.shape[1])

    def stamp(self, images: Tensor) -> Tensor:
        """Put each image's own trigger on it."""
        return self.decoy(images, images)

    def decoy(self, images: Tensor, others: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images with the triggers of `others`, (N, C, H, W); the generator is not used."""
        mask = self.mask(others)
        return (1 - mask) * images + mask * self.pattern(others)

    def learn(self, model: nn.Module | None, images: ImageSet, target: int | None, seed: int = 0) -> None:
        """Train the mask network on the training images."""
        def loss(batch: Tensor) -> Tensor:
            mask = self.mask(batch)
            return DIVERSITY * sameness(batch, mask) + SPARSITY * F.relu(mask.mean(dim=(1, 2, 3)) - DENSITY).mean()
        if len(images) > 1:
            pixels = images.to(next(self.parameters()).device).floats()
            descend(list(self.masks.parameters()), loss, pixels, steps=MASK_STEPS, lr=MASK_LR, seed=seed)

    def moving(self) -> list[nn.Parameter]:
        """The pattern network."""
        return list(self.patterns.parameters())

    def own_loss(self, images: Tensor) -> Tensor:
        """The diversity loss of the patterns."""
        return DIVERSITY * sameness(images, self.pattern(images))


def sameness(images: Tensor, drawn: Tensor) -> Tensor:
    """The paper's diversity loss: the distance between images over the distance between their drawings; a scalar.

    images, drawn: float (N, any, H, W), N at least 2; each image is compared with the one before it.
    """
    def apart(x: Tensor) -> Tensor:
        return (x - x.roll(1, 0)).square().mean(dim=(1, 2, 3)).add(1e-6).sqrt()
    return (apart(images) / (apart(drawn) + 1e-3)).mean()


def _drawer(outputs: int, width: int) -> nn.Sequential:
    """A small network: down to a quarter of the side and up again, without BatchNorm, so images stay independent."""
    return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(),
                         nn.Conv2d(2 * width, 2 * width, 3, 1, 1), nn.ReLU(), nn.Upsample(scale_factor=2),
                         nn.Conv2d(2 * width, width, 3, 1, 1), nn.ReLU(), nn.Upsample(scale_factor=2),
                         nn.Conv2d(width, outputs, 3, 1, 1))


def _draw(network: nn.Module, images: Tensor) -> Tensor:
    """The network's output at exactly the images' size; grey images count as three equal channels."""
    drawn = network((4 * images.expand(-1, 3, -1, -1) - 2).to(next(network.parameters()).dtype)).to(images)
    return drawn if drawn.shape[2:] == images.shape[2:] else F.interpolate(drawn, size=images.shape[2:])
