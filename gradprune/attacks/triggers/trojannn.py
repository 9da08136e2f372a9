"""TrojanNN (Liu et al., NDSS 2018): a patch computed to excite one neuron of a trained model, then retraining."""

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from gradprune.attacks.triggers.learning import descend
from gradprune.attacks.triggers.position import corner, put
from gradprune.attacks.triggers.trigger import Trigger
from gradprune.base.errors import require
from gradprune.datasets import ImageSet
from gradprune.models.inference import evaluating, predict

STEPS, LR = 100, 0.05  # Adam for the patch's pixels


class TrojanNN(Trigger):
    """A square patch near the bottom right corner, random at first; `learn` computes the attacker's.

    The attacker takes a clean, trained model, picks a neuron, and optimises the patch to maximise the neuron's
    activation; retraining from that model ties the neuron to the target. The neuron is an input of the last linear
    layer: the one with the largest weight to the target (the paper picks by the weights that enter an inner layer;
    behind a BatchNorm those say little). `neuron` is its index, -1 before `learn`.
    size: side of the patch in pixels.
    margin: distance from the edges in pixels.
    seed: of the random start.
    """

    name = "trojannn"
    needs_model = keeps_model = True

    def __init__(self, size: int = 6, margin: int = 1, seed: int = 0) -> None:
        super().__init__(size=size, margin=margin, seed=seed)
        require(size >= 1, f"size must be at least 1 pixel, got {size}.")
        require(margin >= 0, f"margin must not be negative, got {margin}.")
        self.size, self.margin = size, margin
        drawn = torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))
        self.patch = nn.Parameter(drawn, requires_grad=False)
        self.neuron = nn.Buffer(torch.tensor(-1))

    def stamp(self, images: Tensor) -> Tensor:
        """Overwrite the patch's square."""
        row, column = corner("bottom_right", (self.size, self.size), (images.shape[2], images.shape[3]),
                             f"a {self.size}-pixel patch", self.margin)
        return put(images, self.patch.clamp(0, 1), row, column)

    def check(self, model: nn.Module, images: Tensor) -> None:
        """Raise InputError for a model that does not end with a linear layer."""
        last_linear(model, images)

    def learn(self, model: nn.Module | None, images: ImageSet, target: int | None, seed: int = 0) -> None:
        """Pick the neuron and compute the patch; raises InputError for a model without a linear layer."""
        if model is None or target is None:
            return
        pixels = images.to(next(model.parameters()).device).floats()
        layer = last_linear(model, pixels[:1])
        self.neuron.fill_(int(layer.weight[target].argmax()))
        with evaluating(model):
            descend([self.patch], lambda x: -neurons(model, layer, self(x))[:, self.neuron].mean(), pixels, steps=STEPS,
                    lr=LR, seed=seed)
        self.patch.clamp_(0, 1)


def last_linear(model: nn.Module, images: Tensor) -> nn.Linear:
    """The linear layer that runs last, whose outputs are the classes; raises InputError if there is none.

    images: float (N, C, H, W), to run the model once.
    """
    ran: list[nn.Linear] = []
    with ExitStack() as hooks:
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                hooks.enter_context(layer.register_forward_hook(lambda layer, *_: ran.append(layer)))
        classes = predict(model, images).shape[1]
    require(bool(ran) and ran[-1].out_features == classes,
            "TrojanNN needs a model that ends with a linear layer, and this one does not.")
    return ran[-1]


def neurons(model: nn.Module, layer: nn.Linear, images: Tensor) -> Tensor:
    """The inputs of the last linear layer, float (N, neurons), differentiable in the images (N, C, H, W)."""
    seen: list[Tensor] = []
    with layer.register_forward_pre_hook(
            lambda _, inputs, named: seen.extend([*inputs, *named.values()][:1]), with_kwargs=True):
        model(images)
    return seen[0]
