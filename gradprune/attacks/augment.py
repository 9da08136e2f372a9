"""New views of the few images: shifted, in another light, with the trigger (if known) applied afterwards.

All defences whose authors augment use these views, so that none has an advantage in a comparison.
"""

import math

import torch
from torch import Tensor, nn

from gradprune.attacks.pairs import Pairs
from gradprune.attacks.training import shift_and_flip
from gradprune.models.inference import predict

ENOUGH = 96   # pairs; with fewer, views are added
SHIFT = 2     # pixels in each direction, edges mirrored
LIGHT = 0.4   # contrast varies by this share, brightness by half of it
FLIP_LOSS = 0.1  # left-right flips are used if the model loses less accuracy than this on flipped images


class Augment:
    """Draws new views of image pairs: a random shift and light for each image, then the trigger on top.

    model: flips are used only if it classifies flipped images about as well (photographs yes, signs no).
    trigger: float images (N, C, H, W) in [0, 1] -> the same shape and range, as when the pairs were made; None if the
        trigger is unknown, and then the pairs have no triggered images.
    pairs: the given images.
    """

    def __init__(self, model: nn.Module, trigger: nn.Module | None, pairs: Pairs) -> None:
        self.trigger = trigger
        right = [(predict(model, images).argmax(1) == pairs.labels).float().mean().item()
                 for images in (pairs.clean, pairs.clean.flip(3))]
        self.flip = right[0] - right[1] < FLIP_LOSS

    def __call__(self, pairs: Pairs, generator: torch.Generator, copies: int = 1) -> Pairs:
        """`copies` new views of every image, (copies * N) pairs with their labels."""
        clean = relight(shift_and_flip(pairs.clean.repeat(copies, 1, 1, 1), SHIFT, self.flip, generator), generator)
        return self.paired(clean, pairs.labels.repeat(copies))

    def paired(self, clean: Tensor, labels: Tensor) -> Pairs:
        """Clean images with their triggered copies, if a trigger is known; it may write on the images it is given."""
        clean = clean.contiguous()  # a model's code may require it
        with torch.no_grad():
            triggered = clean[:0] if self.trigger is None else self.trigger(clean.clone()).contiguous()
        return Pairs(clean, triggered, labels)

    def add_to(self, pairs: Pairs, seed: int) -> Pairs:
        """The pairs and, if they are few, new views of them: at least `ENOUGH` pairs in all."""
        more = copies_for(len(pairs.labels)) - 1
        if more < 1:
            return pairs
        return pairs.joined(self(pairs, torch.Generator().manual_seed(seed), more))

    def mixed(self, pairs: Pairs, generator: torch.Generator) -> Pairs:
        """The pairs and at least `ENOUGH` new views; half of all are mixed with another image before the trigger.

        The share of the first image is uniform in 0..1 and the label is the first image's, so this is for losses that
        take their target from a model. Source of mixing: Zhang et al., 2018, "mixup".
        """
        views = self(pairs, generator, copies_for(len(pairs.labels)))
        clean = torch.cat([pairs.clean, views.clean])
        share, coin = (torch.rand(len(clean), 1, 1, 1, generator=generator).to(clean) for _ in range(2))
        other = clean[torch.randperm(len(clean), generator=generator).to(clean.device)]
        clean = torch.where(coin < 0.5, share * clean + (1 - share) * other, clean)
        return self.paired(clean, torch.cat([pairs.labels, views.labels]))


def copies_for(count: int) -> int:
    """How many views of each of `count` pairs make at least `ENOUGH`."""
    return math.ceil(ENOUGH / count)


def relight(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change contrast and brightness of each image at random; takes and returns float (N, C, H, W) in [0, 1]."""
    draw = [(2 * torch.rand(len(images), 1, 1, 1, generator=generator) - 1).to(images) for _ in range(2)]
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - mean) * (1 + LIGHT * draw[0]) + mean + LIGHT / 2 * draw[1]).clamp(0, 1)
