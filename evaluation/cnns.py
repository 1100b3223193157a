"""The CNN families of the literature, from nothing, at a width and for a size of image that the machine can bear."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

FAMILIES = ("vgg19", "densenet121", "resnet50")
VGG19 = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # channels and convolutions of each stage
SMALLEST_SIZE = 32  # all three halve the image five times


def build_network(family: str, classes: int, *, width: float = 1.0) -> nn.Module:
    """Build a network with random weights that takes (N, 3, H, W) in [-1, 1] and gives logits (N, classes).

    VGG-19 (Simonyan and Zisserman 2015) has batch normalisation and averages its last maps, so that it trains without
    pretraining and takes images of any size from 32 px; DenseNet-121 (Huang 2017) and ResNet-50 (He 2016) are MONAI's.

    Parameters
    ----------
    family
        One of `FAMILIES`.
    classes
        From 2.
    width
        Factor of all channels: 1 is the network of the paper.

    Raises
    ------
    ValueError
        Another family, fewer classes, or a width outside (0, 4].
    """
    if family not in FAMILIES:
        raise ValueError(f"`family` is {family!r}: allowed are {', '.join(FAMILIES)}")
    if classes < 2:
        raise ValueError(f"`classes` is {classes}: at least 2 are needed")
    if not 0 < width <= 4:
        raise ValueError(f"`width` is {width}: allowed are numbers above 0 up to 4")
    from monai.networks.nets.densenet import DenseNet
    from monai.networks.nets.resnet import ResNet, ResNetBottleneck

    def wide(channels: int) -> int:
        return max(8, round(channels * width / 8) * 8)

    if family == "vgg19":
        return _vgg19(classes, wide)
    if family == "densenet121":
        growth = max(4, round(32 * width))
        blocks = (6, 12, 24, 16)
        return DenseNet(2, 3, classes, init_features=2 * growth, growth_rate=growth, block_config=blocks)
    planes = [wide(channels) for channels in (64, 128, 256, 512)]
    blocks_of_50 = [3, 4, 6, 3]
    return ResNet(
        ResNetBottleneck,
        blocks_of_50,
        planes,
        spatial_dims=2,
        n_input_channels=3,
        conv1_t_stride=2,
        num_classes=classes,
    )


def _vgg19(classes: int, wide: Callable[[int], int]) -> nn.Module:
    layers: list[nn.Module] = []
    before = 3
    for channels, convolutions in VGG19:
        for _ in range(convolutions):
            layers += [nn.Conv2d(before, wide(channels), 3, padding=1, bias=False), nn.BatchNorm2d(wide(channels))]
            layers.append(nn.ReLU(inplace=True))
            before = wide(channels)
        layers.append(nn.MaxPool2d(2))
    head: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for _ in range(2):
        head += [nn.Linear(before, before), nn.ReLU(inplace=True), nn.Dropout(0.5)]
    network = nn.Sequential(*layers, *head, nn.Linear(before, classes))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return network
