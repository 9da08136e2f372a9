"""The network of notebook 06, as in its seller's file: nothing of gradprune in it, and a shortcut to trip over."""

from torch import Tensor, nn


class SignNet(nn.Module):
    """Three convolutions with BatchNorms; the last BatchNorm reads a sum. Images (N, 3, H, W), normalised; logits."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 48, 3, stride=2, padding=1)
        self.conv3, self.last = nn.Conv2d(48, 48, 3, padding=1), nn.Linear(48, num_classes)
        self.norm1, self.norm2, self.norm3 = nn.BatchNorm2d(24), nn.BatchNorm2d(48), nn.BatchNorm2d(48)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        x = nn.functional.max_pool2d(self.norm1(self.conv1(x)).relu(), 2)
        x = self.norm2(self.conv2(x)).relu()
        x = self.norm3(x + self.conv3(x)).relu()
        return self.last(x.mean(dim=(2, 3)))
