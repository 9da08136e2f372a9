"""VGG (Simonyan & Zisserman, 2015, arXiv:1409.1556) with BatchNorm: VGG-16 and VGG-19, and a small one."""

from collections.abc import Sequence

from torch import Tensor, nn

from gradprune.base.errors import require
from gradprune.models.layers import Normalize

_STAGES = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # convolutions in each


class SmallVGG(nn.Module):
    """Three stages of two (3x3 convolution -> BatchNorm -> ELU), each closed by max-pooling and dropout.

    Takes float images (N, channels, size, size) in [0, 1]; returns logits (N, num_classes).
    width: filters of the first stage, doubled at each later one.
    size: side of the images in pixels, at least 8.
    mean, std: of the pixels, see `Normalize`; the defaults change nothing.
    dropout: the rate after each stage.
    The defaults are those of the public I-BAU checkpoints, whose state dict fits as it is.
    Raises InputError for fewer than two classes, a width below 1, or a size below 8.
    """

    def __init__(self, num_classes: int, width: int = 32, channels: int = 3, size: int = 32,
                 mean: float | list[float] = 0.0, std: float | list[float] = 1.0,
                 dropout: Sequence[float] = (0.3, 0.4, 0.4)) -> None:
        super().__init__()
        require(num_classes >= 2, f"num_classes must be at least 2, got {num_classes}.")
        require(width >= 1, f"width must be at least 1, got {width}.")
        require(size >= 8, f"size must be at least 8 pixels, got {size}.")
        self.normalize = Normalize(mean, std)
        layers: list[nn.Module] = []
        inputs = channels
        for stage, rate in enumerate(dropout):
            outputs = width * 2**stage
            for _ in range(2):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ELU()]
                inputs = outputs
            layers += [nn.MaxPool2d(2), nn.Dropout(rate)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs * (size // 2 ** len(dropout)) ** 2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """images: float (N, C, H, W) in [0, 1] -> logits (N, num_classes)."""
        return self.classifier(self.features(self.normalize(images)).flatten(1))


class VGG(nn.Module):
    """VGG-16 or VGG-19 with BatchNorm; the parameters have torchvision's names.

    Takes float images (N, channels, H, W) in [0, 1], H and W at least 2; returns logits (N, num_classes).
    depth: 16 or 19.
    width: filters of the first stage.
    small: one linear layer on the mean of the last map; otherwise, as for 224 pixels, three layers on a map of 7x7,
        which alone have 120 million weights.
    mean, std: of the pixels, see `Normalize`.
    Raises InputError for fewer than two classes or a width below 1.
    """

    def __init__(self, depth: int, num_classes: int, *, width: int = 64, channels: int = 3, small: bool = True,
                 mean: float | list[float] = 0.5, std: float | list[float] = 0.25) -> None:
        super().__init__()
        require(num_classes >= 2, f"num_classes must be at least 2, got {num_classes}.")
        require(width >= 1, f"width must be at least 1, got {width}.")
        self.normalize = Normalize(mean, std)
        layers: list[nn.Module] = []
        inputs = channels
        for stage, count in enumerate(_STAGES[depth]):
            outputs = width * min(2**stage, 8)
            for _ in range(count):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                inputs = outputs
            layers.append(nn.MaxPool2d(2, ceil_mode=True))  # rounded down, five halvings leave nothing of 16 pixels
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1 if small else 7)
        if small:  # pytorch-cifar has only the linear layer
            self.other_names = tuple((f"classifier.{kind}", f"classifier.0.{kind}") for kind in ("weight", "bias"))
        hidden = 64 * width
        self.classifier = nn.Sequential(nn.Linear(inputs, num_classes)) if small else nn.Sequential(
            nn.Linear(49 * inputs, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(),
            nn.Linear(hidden, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """images: float (N, C, H, W) in [0, 1] -> logits (N, num_classes)."""
        return self.classifier(self.avgpool(self.features(self.normalize(images))).flatten(1))
