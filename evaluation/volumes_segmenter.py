"""MONAI's 3D U-Net on volumes with label maps: training that is kept, prediction, Dice, and what its middle sees."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from safetensors.torch import load_file, save_file
from torch.nn import functional

from .volumes_sets import VolumePairs

VERSION = 1  # of what is done below: another number leaves former runs in the cache unused
SHIFT = 2  # voxels each way
BATCH = 8


@dataclass(frozen=True)
class Segmenting:
    """How a U-Net is trained: all that decides the result beside the pairs and the seed.

    Attributes
    ----------
    channels
        Of its levels, each half as fine as the one before.
    updates
        Optimizer steps, the same whatever it is trained on.
    batch
        Pairs an update; with two sets, half of each.
    rate
        Highest learning rate of the one-cycle schedule (AdamW).
    """

    channels: tuple[int, ...] = (16, 32, 64)
    updates: int = 400
    batch: int = 4
    rate: float = 0.01

    def __post_init__(self) -> None:
        for name, least in (("updates", 2), ("batch", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` is {getattr(self, name)}: numbers from {least} are allowed")


def build_segmenter(labels: int, how: Segmenting) -> Any:
    """An untrained `monai.networks.nets.UNet` from one channel to background and labels."""
    return UNet(3, 1, 1 + labels, how.channels, (2,) * (len(how.channels) - 1))


def train_segmenter(sets: list[VolumePairs], labels: int, how: Segmenting, seed: int) -> Any:
    """Train on pairs from one set, or on as many of each of two at every update; in evaluation mode, on the CPU.

    Pairs are drawn with repeats and shown shifted by up to two voxels, with another gamma and a little noise: what one
    would do with few real volumes anyway.
    """
    images = [torch.from_numpy(one.images[:, None]) for one in sets]
    masks = [torch.from_numpy(one.masks[:, None].astype(np.int64)) for one in sets]
    rng = np.random.default_rng([seed, 6])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_segmenter(labels, how).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=how.rate, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.rate, total_steps=how.updates)
        loss_of = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
        for step in range(how.updates):
            clean, truth = [], []
            for k in range(how.batch):
                source = (k + step) % len(sets)
                i = int(rng.integers(len(images[source])))
                image, mask = _shifted(images[source][i], masks[source][i], rng.integers(-SHIFT, SHIFT + 1, 3))
                noise = torch.randn(image.shape) * 0.02 * float(rng.random())
                clean.append(image ** float(np.exp(0.2 * rng.standard_normal())) + noise)
                truth.append(mask)
            loss = loss_of(_forward(network, torch.stack(clean)), torch.stack(truth))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval().requires_grad_(False)


def _shifted(image: torch.Tensor, mask: torch.Tensor, by: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Both (1, X, Y, Z) moved by whole voxels; the border repeats."""
    index = []
    for size, step in zip(image.shape[1:], by, strict=True):
        index.append((torch.arange(size) + int(step)).clamp(0, size - 1))
    grid = torch.meshgrid(*index, indexing="ij")
    x, y, z = grid
    return image[:, x, y, z], mask[:, x, y, z]


def _forward(network: Any, images: torch.Tensor) -> torch.Tensor:
    """Logits for (N, 1, X, Y, Z); sizes that do not halve evenly are padded for the network, and cut again."""
    halvings = 2 ** len(network.strides)
    size = images.shape[2:]
    spare = [-one % halvings for one in size]
    padded = functional.pad(images, (0, spare[2], 0, spare[1], 0, spare[0]), mode="replicate")
    return network((padded - 0.5) * 4)[:, :, : size[0], : size[1], : size[2]]


@torch.no_grad()
def segment(network: Any, images: np.ndarray) -> np.ndarray:
    """Label maps uint8 (N, X, Y, Z) of volumes, float32 in [0, 1]."""
    parts = [
        _forward(network, torch.from_numpy(images[i : i + BATCH, None])).argmax(1).to(torch.uint8).numpy()
        for i in range(0, len(images), BATCH)
    ]
    return np.concatenate(parts)


@torch.no_grad()
def middle_features(network: Any, images: np.ndarray) -> np.ndarray:
    """Mean and standard deviation over space of each channel at the U-Net's coarsest level: float32 (N, 2 channels)."""
    part, depth = network.model, len(network.strides)
    for _ in range(depth):
        part = part[1].submodule  # down, the level below with its skip connection, up
    seen: list[torch.Tensor] = []
    handle = part.register_forward_hook(lambda module, given, made: seen.append(made.flatten(2)))
    try:
        segment(network, images)
    finally:
        handle.remove()
    return torch.cat([torch.cat([one.mean(2), one.std(2)], 1) for one in seen]).numpy()


def dice(found: np.ndarray, truth: np.ndarray, labels: int) -> np.ndarray:
    """Dice of each label of label maps (N, X, Y, Z): float64 (N, labels); 1 where neither has it."""
    columns = []
    for label in range(1, labels + 1):
        one, other = found == label, truth == label
        total = one.sum((1, 2, 3)) + other.sum((1, 2, 3))
        shared = 2 * (one & other).sum((1, 2, 3))
        columns.append(np.where(total > 0, shared / np.maximum(total, 1), 1.0))
    return np.stack(columns, 1)


def kept_segmenter(
    sets: list[VolumePairs], labels: int, how: Segmenting, seed: int, cache: str | Path | None = None
) -> Any:
    """Give the network that `train_segmenter` trains, or its weights from `cache` (safetensors)."""
    digest = hashlib.sha256(json.dumps([VERSION, asdict(how), labels, seed, len(sets)]).encode())
    for one in sets:
        for array in (one.images, one.masks):
            digest.update(str((array.shape, array.dtype)).encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    stored = Path(cache) / "segmenters" / f"{digest.hexdigest()[:24]}.safetensors" if cache else None
    if stored and stored.is_file():
        network = build_segmenter(labels, how)
        network.load_state_dict(load_file(stored))
        return network.eval().requires_grad_(False)
    network = train_segmenter(sets, labels, how, seed)
    if stored:
        stored.parent.mkdir(parents=True, exist_ok=True)
        part = stored.with_suffix(".part")
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, part)
        part.replace(stored)
    return network
