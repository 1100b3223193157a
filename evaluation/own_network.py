"""Our own feature network: a narrow ResNet-50 that learnt, from real train images alone, to tell pack and label.

It is the second opinion beside EfficientNet-Lite0, which learnt from photographs. It was never shown a generated or a
val image. That it may tell two packs by the scanner rather than by the body is no fault here: such a difference is one
that a distance between sets of images should see. It is trained where the cache does not hold it yet.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lora.base_data import PACKS, load_images, read_rows

from .features import FeatureNetwork, extract_features
from .images import spread
from .training import Training, kept_network

SIZE = 128
CLASS_ROWS = 60  # train images a class at most; classes with fewer than 20 are left out
MINIMUM_ROWS = 20
SCALED_BY = 256  # train images that set the scale of the features
HALF = (0.5, 0.5, 0.5)
TRAINING = Training("resnet50", width=0.25, epochs=8)


def training_rows(data: str | Path, seed: int) -> list[dict[str, str]]:
    """Train rows, each with its `answer`: pack and label.

    Raises
    ------
    ValueError
        The packs hold fewer than two classes of 20 images.
    """
    classes: dict[str, list[dict[str, str]]] = {}
    packs = [pack for pack in PACKS if (Path(data) / pack / "metadata.csv").is_file()]
    for row in read_rows(Path(data), packs, "train"):
        name = f"{row['pack']}/{row['label']}"
        classes.setdefault(name, []).append({**row, "answer": name})
    large = {name: rows for name, rows in sorted(classes.items()) if len(rows) >= MINIMUM_ROWS}
    if len(large) < 2:
        raise ValueError(
            f"`data` holds too few images for the network 'own': two classes of {MINIMUM_ROWS} train images are needed"
        )
    return [
        row
        for name, rows in large.items()
        for row in spread(rows, "answer", {name: 1}, min(len(rows), CLASS_ROWS), seed)
    ]


def own_network(
    data: str | Path, *, cache: str | Path | None = None, seed: int = 0, how: Training = TRAINING
) -> FeatureNetwork:
    """Train the network on the packs, or take it from `cache`.

    Parameters
    ----------
    data
        Folder with the packs.
    cache
        Folder that keeps the weights.
    seed
        Of the rows and the training.
    how
        A "resnet50" of any width; features are what its last layer sees.
    """
    rows = training_rows(data, seed)
    classes = sorted({row["answer"] for row in rows})
    labels = np.array([classes.index(row["answer"]) for row in rows])
    images = np.asarray(load_images(rows, SIZE, Path(cache) if cache else None))
    network: Any = kept_network(images, labels, len(classes), how, seed, cache)
    network = network.cpu().eval().requires_grad_(False)
    digest = _digest(network)
    network.fc = nn.Identity()
    # KID's cubic kernel gives all weight to a few long vectors: features are centred and scaled as real train images
    # want it, and then all made equally long.
    bare = FeatureNetwork("own", "", SIZE, network, HALF, HALF)
    some = extract_features(images[:: max(1, len(images) // SCALED_BY)], network=bare, progress=False)
    middle, deviation = torch.from_numpy(some.mean(0)), torch.from_numpy(some.std(0) + 1e-3)
    words = f"ResNet-50 of width {how.width:g}, trained on {len(rows)} train images of the packs in {len(classes)} "
    words += f"classes of pack and label, {SIZE} px, float32, sha256 {digest[:16]}"

    def forward(batch: torch.Tensor) -> torch.Tensor:
        found = (network(batch) - middle) / deviation
        return functional.normalize(found, dim=1) * found.shape[1] ** 0.5

    return FeatureNetwork("own", words, SIZE, forward, HALF, HALF)


def _digest(network: nn.Module) -> str:
    found = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        found.update(name.encode() + value.contiguous().numpy().tobytes())
    return found.hexdigest()
