"""Networks from torchvision and timm, adapted to small images.

Nothing is downloaded: the weights are random, or come from your own file. The parameters keep their names, so
checkpoints made elsewhere fit. The stems were designed for 224 pixels and would leave one or two of 32, so by default
(`small`) they keep the size. A network with a changed stem says so in `stem_note`: where only strides differ, weights
trained with the other stem load without an error, but the answers are nonsense.
"""

from typing import Any

from torch import nn

from gradprune.base.errors import require, told_as
from gradprune.models.layers import normalized

# Settings that make timm download or unpickle other files than the file of weights.
_FETCHING = {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
NEEDS_TIMM = "models named timm/... need timm; install it with: pip install 'gradprune[timm]'"


def resnet18(num_classes: int, *, channels: int = 3, small: bool = True, mean: float | list[float] = 0.5,
             std: float | list[float] = 0.25) -> nn.Module:
    """ResNet-18 (He et al., 2016, arXiv:1512.03385), torchvision's.

    Takes float images (N, channels, H, W) in [0, 1]; returns logits (N, num_classes).
    small: a 3x3 stem without stride or pooling.
    mean, std: of the pixels, see `Normalize`.
    """
    from torchvision.models import resnet18  # late: importing torchvision takes most of a second
    net: Any = resnet18(weights=None, num_classes=num_classes)
    _renew(net, "conv1", channels, {"kernel_size": 3, "stride": 1, "padding": 1} if small else {})
    if small:
        net.maxpool = nn.Identity()
        _note_stem(net, "resnet18")
    net.other_names = ((".shortcut.", ".downsample."), ("linear.", "fc."))  # pytorch-cifar's, which has the small stem
    return normalized(net, mean, std)


def mobilenet_v3_small(num_classes: int, *, width: int = 16, channels: int = 3, small: bool = True,
                       mean: float | list[float] = 0.5, std: float | list[float] = 0.25) -> nn.Module:
    """MobileNetV3-Small (Howard et al., 2019, arXiv:1905.02244), torchvision's.

    It has depthwise convolutions and squeeze-excitation. Images and logits as for `resnet18`.
    width: filters of the first convolution.
    small: the first two of the five strides are 1.
    mean, std: of the pixels, see `Normalize`.
    Raises InputError for a width below 1.
    """
    from torchvision.models import mobilenet_v3_small
    require(width >= 1, f"width must be at least 1, got {width}.")
    net = mobilenet_v3_small(weights=None, num_classes=num_classes, width_mult=width / 16)
    _renew(net, "features.0.0", channels, {"stride": 1} if small else {})
    if small:
        net.features[1].block[0][0].stride = (1, 1)
        _note_stem(net, "mobilenet_v3_small")
    return normalized(net, mean, std)


def timm_model(name: str, num_classes: int, *, channels: int = 3, small: bool = True, mean: float | list[float] = 0.5,
               std: float | list[float] = 0.25, **settings: Any) -> nn.Module:
    """Any network of timm by name. Images and logits as for `resnet18`.

    small: the first convolution keeps the size (unless it cuts patches), and pooling right after it is left out.
    mean, std: of the pixels, see `Normalize`.
    settings: arguments of `timm.create_model`.
    Raises InputError if timm is not installed or does not know the name, or for settings that read other files.
    """
    with told_as(lambda _: NEEDS_TIMM, (ModuleNotFoundError,)):
        import timm
    require(timm.is_model(name), f"timm cannot make {name!r}: it knows no network of that name.")
    foreign = _FETCHING & set(settings)
    require(not foreign, f"{', '.join(sorted(foreign))} would make timm read other files; leave it out.")
    net: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=channels, **settings)
    first = next((module for module in net.modules() if isinstance(module, nn.Conv2d)), None)
    pooled = isinstance(getattr(net, "maxpool", None), nn.MaxPool2d)
    if small and first is not None and first.stride != first.kernel_size and (first.stride != (1, 1) or pooled):
        first.stride = (1, 1)
        if pooled:
            net.maxpool = nn.Identity()
        _note_stem(net, f"timm/{name}")
    return normalized(net, mean, std)


def _note_stem(net: Any, name: str) -> None:
    net.stem_note = (f"{name} has a stem for small images here, which keeps their size; weights that were trained with "
                     "the network's own stem need that one: small=False, or --stem stock.")


def _renew(net: nn.Module, name: str, channels: int, changes: dict[str, Any]) -> None:
    """Replace a convolution without bias by a new one, unless it stays one of three channels without `changes`."""
    if not changes and channels == 3:
        return
    old: Any = net.get_submodule(name)
    kept = {key: getattr(old, key) for key in ("kernel_size", "stride", "padding")}
    new = nn.Conv2d(channels, old.out_channels, bias=False, **kept | changes)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    net.set_submodule(name, new)
