"""Kernel inception distance (KID) of synthetic against unseen real images, with its controls beside it.

Read it with its scale: the floor is what real training images get against the same unseen images, and the blurs say
what a known loss of sharpness costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from lora.base_data import load_images

from .features import NETWORK_SIZE, extract_features
from .images import SIZE, count_by, generate, load_pipeline, read_folder, real_rows, spread

MINIMUM_COUNT = 20
BLURS = (1.0, 2.0)
DRAWS = 1000


@dataclass(frozen=True)
class Distance:
    """A KID with its 95 % bootstrap interval and the sizes of the two sets."""

    kid: float
    low: float
    high: float
    count: int
    count_real: int


def polynomial_kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(x.y / d + 1)^3 for each pair, float64: the kernel that KID is defined with."""
    return (first.astype(np.float64) @ second.astype(np.float64).T / first.shape[1] + 1) ** 3


def kernel_distance(features: np.ndarray, real: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> Distance:
    """Unbiased KID between two sets of features, from all pairs, with a bootstrap interval.

    The value may be slightly below zero. For the interval both sets are redrawn with repeats; pairs of an image with
    its own copy are left out of the means, or every redrawn value would be too high.

    Parameters
    ----------
    features, real
        (N, D) and (M, D).
    draws
        Bootstrap draws.
    seed
        Of these.

    Raises
    ------
    ValueError
        A set has fewer than 20 images.
    """
    for name, some in (("features", features), ("real", real)):
        if len(some) < MINIMUM_COUNT:
            raise ValueError(f"`{name}` holds {len(some)} images: KID needs at least {MINIMUM_COUNT}")
    within, within_real = polynomial_kernel(features, features), polynomial_kernel(real, real)
    np.fill_diagonal(within, 0)
    np.fill_diagonal(within_real, 0)
    across = polynomial_kernel(features, real)

    def value(weights: np.ndarray, weights_real: np.ndarray) -> np.ndarray:
        own = _weighted_mean(within, weights) + _weighted_mean(within_real, weights_real)
        pairs = np.einsum("bi,bi->b", weights @ across, weights_real)
        return own - 2 * pairs / (weights.sum(1) * weights_real.sum(1))

    n, m = len(features), len(real)
    rng = np.random.default_rng(seed)
    kid = float(value(np.ones((1, n)), np.ones((1, m)))[0])
    drawn = value(
        rng.multinomial(n, np.full(n, 1 / n), draws).astype(np.float64),
        rng.multinomial(m, np.full(m, 1 / m), draws).astype(np.float64),
    )
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Distance(kid, float(low), float(high), n, m)


def _weighted_mean(kernel: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over pairs of different images under each row of weights; the kernel's diagonal is zero."""
    total = weights.sum(1) ** 2 - (weights**2).sum(1)
    return np.einsum("bi,bi->b", weights @ kernel, weights) / total


def blur(images: np.ndarray, sigma: float) -> np.ndarray:
    """Each uint8 image (N, H, W, 3) under a Gaussian blur of `sigma` pixels."""
    return np.stack([np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma))) for image in images])


def compare(synthetic: np.ndarray, val: np.ndarray, train: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """KID of synthetic images against `val`, and of the controls: `train` as it is and blurred.

    Parameters
    ----------
    synthetic, val, train
        uint8 or float images, (N, H, W, 3), of any size; `train` should hold as many as `synthetic`.
    seed
        Of the bootstrap.
    """
    real = extract_features(val, description="features of val images")

    def against_real(images: np.ndarray, words: str) -> dict[str, Any]:
        return asdict(kernel_distance(extract_features(images, description=f"features of {words}"), real, seed=seed))

    result = {"synthetic": against_real(synthetic, "synthetic images"), "floor": against_real(train, "train images")}
    for sigma in BLURS:
        result[f"blur_sigma_{sigma:g}"] = against_real(blur(train, sigma), f"train images, blur {sigma:g}")
    return result


def fidelity(
    modality: str,
    count: int,
    data: str | Path,
    *,
    model: str | Path = "pipeline",
    pipe: Any = None,
    synthetic: str | Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int = 4,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """KID of one modality against its val split.

    Parameters
    ----------
    modality
        User-facing name.
    count
        Images to generate, from the plain captions of val rows drawn at random with the packs in proportion; with
        `synthetic`, at most so many of the folder's images, drawn at random.
    data
        Folder with the packs.
    model, pipe
        Folder or Hub id of the pipeline, or the pipeline itself.
    synthetic
        Folder of DICOM or picture files to measure instead of generating.
    seed
        Of the draws, the bootstrap and the first image.
    steps, guidance, batch, cache
        As for `generate`.
    """
    if count < MINIMUM_COUNT:
        raise ValueError(f"`count` is {count}: KID needs at least {MINIMUM_COUNT} images")
    val_rows, train_rows = real_rows(data, modality, "val"), real_rows(data, modality, "train")
    if len(val_rows) < MINIMUM_COUNT:
        raise ValueError(f"`data` holds {len(val_rows)} val images of {modality!r}: KID needs at least {MINIMUM_COUNT}")
    shares = count_by(val_rows, "pack")
    prompts: list[str] = []
    if synthetic is not None:
        images = read_folder(synthetic)
        if len(images) < MINIMUM_COUNT:
            raise ValueError(f"`synthetic` holds {len(images)} images: KID needs at least {MINIMUM_COUNT}")
        images = images[np.sort(np.random.default_rng(seed).permutation(len(images))[:count])]
        settings: dict[str, Any] = {"source": "folder"}
        packs: Sequence[str] = []
    else:
        drawn = spread(val_rows, "pack", shares, count, seed)
        prompts, packs = [row["text"] for row in drawn], [row["pack"] for row in drawn]
        pipe = pipe if pipe is not None else load_pipeline(model)
        images, settings = generate(
            pipe, prompts, seed=seed, modality=modality, steps=steps, guidance=guidance, batch=batch, cache=cache
        )
        settings |= {"source": "generated", "prompts_by_pack": {p: packs.count(p) for p in sorted(set(packs))}}
    sample = spread(train_rows, "pack", shares, min(len(images), len(train_rows)), seed)
    kept = Path(cache) if cache else None
    distances = compare(images, load_images(val_rows, SIZE, kept), load_images(sample, SIZE, kept), seed=seed)
    return {
        "what": "fidelity",
        "measure": "KID, unbiased, cubic polynomial kernel; 95 % bootstrap interval",
        "network": f"EfficientNet-Lite0 (ImageNet), {NETWORK_SIZE} px, float32",
        "modality": modality,
        "seed": seed,
        "counts": {"synthetic": len(images), "val": len(val_rows), "train_sample": len(sample), "bootstrap": DRAWS},
        "val_by_pack": shares,
        "settings": settings,
        **distances,
    }
