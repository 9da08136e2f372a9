"""Pre-activation ResNet (He et al., 2016, arXiv:1603.05027) for small images, with width and depth as arguments."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.base.errors import require
from gradprune.models.layers import Normalize

# Names of the same parameters in public code (pytorch-cifar, BackdoorBench) and here.
_OTHER_NAMES = (*((f"layer{stage + 1}.", f"stages.{stage}.") for stage in range(4)), (".shortcut.0.", ".shortcut."))


class PreActBlock(nn.Module):
    """Twice BatchNorm, ReLU and a 3x3 convolution; the result is added to the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        out = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(out)
        out = self.conv1(out)
        return self.conv2(F.relu(self.bn2(out))) + skip


class PreActResNet(nn.Module):
    """Pre-activation ResNet; width 64 with blocks (2, 2, 2, 2) is PreActResNet-18 (see `preact_resnet18`).

    Takes float images (N, channels, H, W) in [0, 1], H and W at least 8; returns logits (N, num_classes).
    width: filters of the first stage, doubled at each later one.
    blocks: blocks per stage.
    mean, std: of the pixels, see `Normalize`.
    last_norm: BatchNorm and ReLU after the last block, as in the paper; much public code, including BackdoorBench,
        has neither.
    Raises InputError for fewer than two classes, a width below 1, or a stage without blocks.
    """

    other_names = _OTHER_NAMES  # for `models.weights.fit_weights`

    def __init__(self, num_classes: int, width: int = 16, blocks: Sequence[int] = (1, 1, 1), channels: int = 3,
                 mean: float | list[float] = 0.5, std: float | list[float] = 0.25, last_norm: bool = True) -> None:
        super().__init__()
        require(num_classes >= 2, f"num_classes must be at least 2, got {num_classes}.")
        require(width >= 1, f"width must be at least 1, got {width}.")
        require(len(blocks) >= 1 and min(blocks) >= 1, f"blocks must be positive counts, got {tuple(blocks)}.")
        self.normalize = Normalize(mean, std)
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        stages, inputs = [], width
        for stage, count in enumerate(blocks):
            outputs, stride = width * 2**stage, 1 if stage == 0 else 2
            layers = [PreActBlock(inputs, outputs, stride)]
            layers += [PreActBlock(outputs, outputs, 1) for _ in range(count - 1)]
            stages.append(nn.Sequential(*layers))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(inputs) if last_norm else None
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """images: float (N, C, H, W) in [0, 1] -> logits (N, num_classes)."""
        out = self.stages(self.conv1(self.normalize(images)))
        if self.bn is not None:
            out = F.relu(self.bn(out))
        return self.linear(out.mean(dim=(2, 3)))


def preact_resnet18(num_classes: int, width: int = 64, **settings: Any) -> PreActResNet:
    """PreActResNet-18 with 11.2 million weights; settings as for `PreActResNet`."""
    return PreActResNet(num_classes, width, (2, 2, 2, 2), **settings)
