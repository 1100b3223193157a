"""Train one of the CNNs on labelled images and ask it about others; every finished run is kept and never done twice."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from pipeline.pipeline import best_device

from .cnns import SMALLEST_SIZE, build_network
from .folders import hash_of

SETTLING = 512  # images on which the statistics are measured
VERSION = 2  # of what is done below: another number leaves former runs in the cache unused


@dataclass(frozen=True)
class Training:
    """How a network is trained: all that decides the result beside images, labels and seed.

    Attributes
    ----------
    family, width
        As for `build_network`.
    epochs
        Times that each image is seen, at least; a small set is gone through oftener, until `updates`.
    updates
        Fewest updates: without them a small set would be judged by how little it was trained on.
    batch
        Images an update.
    rate
        Highest learning rate of the one-cycle schedule (AdamW, weight decay 0.01).
    augment
        Show each image a little changed every time, see `augmented`; of real and synthetic images alike.
    """

    family: str = "vgg19"
    width: float = 0.25
    epochs: int = 10
    updates: int = 150
    batch: int = 32
    rate: float = 0.002
    augment: bool = True

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("updates", 1), ("batch", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` is {getattr(self, name)}: numbers from {least} are allowed")


def to_pixels(images: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """Images (N, H, W, 3), uint8 or floats in [0, 1], as float32 (N, 3, H, W) in [-1, 1]."""
    scale = 127.5 if images.dtype == np.uint8 else 0.5
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / scale - 1
    return pixels.contiguous(memory_format=torch.channels_last)


def augmented(pixels: torch.Tensor) -> torch.Tensor:
    """Images as another pose and another machine might have given them; never flipped.

    Turned by up to 10 degrees, zoomed and shifted by up to 8 %, brightness and contrast changed, blurred, with noise:
    what tells a source of images apart and says nothing of their class.

    Parameters
    ----------
    pixels
        float32 (N, 3, H, W) in [-1, 1]; the result is of the same kind.
    """
    count, device = len(pixels), pixels.device

    def draw(low: float, high: float, *shape: int) -> torch.Tensor:
        return (torch.rand(count, *shape) * (high - low) + low).to(device)

    angle, zoom = draw(-0.175, 0.175), draw(0.92, 1.08)
    transform = torch.stack([zoom * angle.cos(), -zoom * angle.sin(), zoom * angle.sin(), zoom * angle.cos()], -1)
    transform = torch.cat([transform.view(count, 2, 2), draw(-0.08, 0.08, 2, 1)], -1)
    grid = functional.affine_grid(transform, list(pixels.shape), align_corners=False)
    moved = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    soft = functional.avg_pool2d(functional.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    moved = moved.lerp(soft, draw(0, 1, 1, 1, 1))
    grain = torch.randn(count, 1, *pixels.shape[2:]).to(device) * draw(0, 0.1, 1, 1, 1)
    changed = (moved * draw(0.8, 1.2, 1, 1, 1) + draw(-0.12, 0.12, 1, 1, 1) + grain).clamp(-1, 1)
    return changed.contiguous(memory_format=torch.channels_last)


def train_network(images: np.ndarray, labels: np.ndarray, classes: int, how: Training, seed: int) -> nn.Module:
    """Train a network from nothing; classes weigh equally in the loss, nothing is flipped.

    Parameters
    ----------
    images
        uint8 (N, H, W, 3), square, from 32 px.
    labels
        int (N,), from 0 to `classes` - 1, each class at least once.
    classes, how
        See `Training`.
    seed
        Of weights, order and dropout.

    Raises
    ------
    ValueError
        Images too small or too few, or a class without an image.
    """
    sizes = np.bincount(labels, minlength=classes)
    if images.shape[1] < SMALLEST_SIZE:
        raise ValueError(f"`size` is {images.shape[1]}: the networks need at least {SMALLEST_SIZE} pixels")
    if len(images) < 2 or not sizes.all():
        raise ValueError(f"`labels` has {sizes.tolist()} images by class: every class needs one, all together two")
    device = best_device()
    batch = min(how.batch, len(images))
    each = len(images) // batch  # a last, smaller batch would upset batch normalisation
    total = max(how.updates, how.epochs * each)
    targets = torch.from_numpy(labels.astype(np.int64))
    balance = torch.from_numpy((len(labels) / (classes * sizes)).astype(np.float32)).to(device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_network(how.family, classes, width=how.width)
        network = network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(network.parameters(), lr=how.rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.rate, total_steps=max(total, 2))
        done = 0
        while done < total:
            order = torch.randperm(len(images))
            for start in range(0, each * batch, batch):
                some = order[start : start + batch]
                pixels = to_pixels(images[some.numpy()], device)
                logits = network(augmented(pixels) if how.augment else pixels)
                loss = functional.cross_entropy(logits, targets[some].to(device), weight=balance)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                done += 1
                if done == total:
                    break
    return _settled(network, images, device)


@torch.no_grad()
def _settled(network: nn.Module, images: np.ndarray, device: str) -> nn.Module:
    """Measure the statistics of batch normalisation anew: running means lag behind in a training this short.

    As in Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm"; on evenly spread training images.
    """
    network.eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean over all batches
            layer.train()
    chosen = np.linspace(0, len(images) - 1, min(len(images), SETTLING)).round().astype(int)
    for some in np.array_split(chosen, -(-len(chosen) // 128)):
        network(to_pixels(images[some], device))
    return network.eval()


@torch.no_grad()
def probabilities(network: nn.Module, images: np.ndarray, batch: int = 128) -> np.ndarray:
    """Probability of each class for each image (N, H, W, 3), uint8 or floats in [0, 1]: float32 (N, classes)."""
    device = next(network.parameters()).device
    parts = [
        network(to_pixels(images[start : start + batch], device)).softmax(1).cpu().numpy()
        for start in range(0, len(images), batch)
    ]
    return np.concatenate(parts)


def _digest(*arrays: np.ndarray) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(str((array.shape, array.dtype)).encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def run(
    images: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    classes: int,
    how: Training,
    seed: int,
    cache: str | Path | None = None,
) -> np.ndarray:
    """Train on `images` and give the probabilities for `test`, or take these from `cache`; as the two above."""
    key = hash_of([VERSION, asdict(how), classes, seed, _digest(images, labels, test)])
    stored = Path(cache) / "utility" / f"{key}.npz" if cache else None
    if stored and stored.is_file():
        with np.load(stored) as arrays:
            return arrays["probabilities"]
    found = probabilities(train_network(images, labels, classes, how, seed), test)
    if stored:
        stored.parent.mkdir(parents=True, exist_ok=True)
        part = stored.with_suffix(f".{os.getpid()}.part.npz")
        np.savez(part, probabilities=found)
        part.replace(stored)
    return found


def kept_network(
    images: np.ndarray, labels: np.ndarray, classes: int, how: Training, seed: int, cache: str | Path | None = None
) -> nn.Module:
    """Give the network that `train_network` trains, or its weights from `cache` (safetensors)."""
    key = hash_of([VERSION, asdict(how), classes, seed, _digest(images, labels)])
    stored = Path(cache) / "networks" / f"{key}.safetensors" if cache else None
    if stored and stored.is_file():
        network: Any = build_network(how.family, classes, width=how.width)
        network.load_state_dict(load_file(stored))
        return network.to(best_device(), memory_format=torch.channels_last).eval()
    network = train_network(images, labels, classes, how, seed)
    if stored:
        stored.parent.mkdir(parents=True, exist_ok=True)
        part = stored.with_suffix(f".{os.getpid()}.part")
        save_file({name: value.cpu().contiguous() for name, value in network.state_dict().items()}, part)
        part.replace(stored)
    return network
