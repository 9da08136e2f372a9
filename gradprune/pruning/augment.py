"""The few images seen anew: shifted, in another light, with the trigger (if one is known) put on afterwards.

All defences whose authors augment draw their views here, so that no contestant of a table has what another lacks.
"""

import math

import torch
from torch import Tensor, nn

from gradprune.attacks.training import shift_and_flip
from gradprune.models.inference import predict
from gradprune.pruning.scores import Pairs

ENOUGH = 96   # pairs: with fewer, views are added to them
SHIFT = 2     # pixels in each direction, edges mirrored
LIGHT = 0.4   # contrast varies by this share, brightness by half of it
FLIP_LOSS = 0.1  # left-right flips are used where the model loses less accuracy on flipped images than this


class Augment:
    """Draws new views of image pairs: a random shift and light for each image, then the trigger on top.

    Flips are used only if the given model reads the flipped images about as well (photographs yes, signs no).
    trigger: float images (N, C, H, W) in [0, 1] -> the same shape and range, as it was when the pairs were made; None
    where no trigger is known, and then the pairs hold no triggered images.
    """

    def __init__(self, model: nn.Module, trigger: nn.Module | None, pairs: Pairs) -> None:
        self.trigger = trigger
        right = [(predict(model, images).argmax(1) == pairs.labels).float().mean().item()
                 for images in (pairs.clean, pairs.clean.flip(3))]
        self.flip = right[0] - right[1] < FLIP_LOSS

    def __call__(self, pairs: Pairs, generator: torch.Generator, copies: int = 1) -> Pairs:
        """`copies` new views of every image, (copies * N) pairs with their labels."""
        clean = relight(shift_and_flip(pairs.clean.repeat(copies, 1, 1, 1), SHIFT, self.flip, generator), generator)
        return self._paired(clean, pairs.labels.repeat(copies))

    def paired(self, pairs: Pairs) -> Pairs:
        """The clean images as they are, with their triggered copies."""
        return self._paired(pairs.clean, pairs.labels)

    def _paired(self, clean: Tensor, labels: Tensor) -> Pairs:
        """Clean images with their triggered copies, if a trigger is known."""
        clean = clean.contiguous()  # a model's code may ask for that
        with torch.no_grad():
            triggered = clean[:0] if self.trigger is None else self.trigger(clean).contiguous()
        return Pairs(clean, triggered, labels)

    def add_to(self, pairs: Pairs, seed: int) -> Pairs:
        """The pairs as they are and, where they are few, new views of them: at least `ENOUGH` pairs in all."""
        more = copies_for(len(pairs.labels)) - 1
        if more < 1:
            return pairs
        new = self(pairs, torch.Generator().manual_seed(seed), more)
        return Pairs(*(torch.cat(both) for both in zip(pairs, new, strict=True)))

    def mixed(self, pairs: Pairs, generator: torch.Generator) -> Pairs:
        """The pairs and at least `ENOUGH` new views; half of all are mixed with another image, trigger put on after.

        The share of the other image is uniform in 0..1, the label is the first image's: for losses that ask a model
        what it sees. Source of mixing: Zhang et al., 2018, "mixup".
        """
        views = self(pairs, generator, copies_for(len(pairs.labels)))
        clean = torch.cat([pairs.clean, views.clean])
        share, coin = (torch.rand(len(clean), 1, 1, 1, generator=generator).to(clean) for _ in range(2))
        other = clean[torch.randperm(len(clean), generator=generator).to(clean.device)]
        clean = torch.where(coin < 0.5, share * clean + (1 - share) * other, clean)
        return self._paired(clean, torch.cat([pairs.labels, views.labels]))


def copies_for(count: int) -> int:
    """How many views of each of `count` pairs make at least `ENOUGH`."""
    return math.ceil(ENOUGH / count)


def relight(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change contrast and brightness of each image at random; float (N, C, H, W) in [0, 1], and so returned."""
    draw = [(2 * torch.rand(len(images), 1, 1, 1, generator=generator) - 1).to(images) for _ in range(2)]
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - mean) * (1 + LIGHT * draw[0]) + mean + LIGHT / 2 * draw[1]).clamp(0, 1)
