"""How like real volumes are generated ones: similarity within a set, distance between sets, sizes asked for and got."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from monai.metrics import MultiScaleSSIMMetric

from .features import extract_features
from .kid import MINIMUM_COUNT, kernel_distance
from .set_measures import Measure, frechet_distance, mean_of_pairs

WEIGHTS = (0.0448, 0.2856, 0.3001)  # of the three finest scales of Wang et al. 2003, brought to a sum of 1
KERNEL, SCALES = 7, 3  # voxels: the largest that three scales leave room for in 32 voxels
PAIRS = 300
BLUR = 0.7  # voxels: a known loss, to read distances by
DRAWS = 1000


# Diversity


def scales_for(shape: Sequence[int]) -> tuple[int, int]:
    """Give the scales and the kernel's side that volumes of a shape have room for: 3 and 7 from 32 voxels on.

    Raises
    ------
    ValueError
        A side is below 3 voxels.
    """
    for scales in range(SCALES, 0, -1):
        room = min(shape) // 2 ** (scales - 1)  # voxels at the coarsest scale
        kernel = min(KERNEL, room - 1 + room % 2)
        if kernel >= 3:
            return scales, kernel
    raise ValueError(f"`images` have the shape {tuple(shape)}: sides from 3 voxels are allowed")


def volume_similarity(images: np.ndarray, *, pairs: int = PAIRS, seed: int = 0) -> Measure:
    """Mean 3D MS-SSIM (MONAI) between volumes of a set: high where they are alike.

    Parameters
    ----------
    images
        Float32 (N, X, Y, Z) in [0, 1], at least two.
    pairs
        So many, drawn at random, or all there are.
    seed
        Of the pairs, and of the volumes drawn again for the interval.
    """
    if len(images) < 2:
        raise ValueError(f"`images` holds {len(images)} volumes: pairs need at least 2")
    scales, kernel = scales_for(images.shape[1:])
    weights = [one / sum(WEIGHTS[:scales]) for one in WEIGHTS[:scales]]
    metric = MultiScaleSSIMMetric(spatial_dims=3, kernel_size=kernel, weights=weights, reduction="none")
    tensor = torch.from_numpy(images[:, None])

    def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.ravel(metric(tensor[first], tensor[second]))

    return mean_of_pairs(similarity, len(images), pairs=pairs, seed=seed)


def difference(one: Measure, other: Measure) -> dict[str, float]:
    """Give the absolute difference of two independent measures with its 95 % interval."""
    half = float(np.hypot(one.high - one.low, other.high - other.low)) / 2
    value = abs(one.value - other.value)
    return {"value": value, "low": max(0.0, value - half), "high": value + half}


# Distance


def slice_features(images: np.ndarray, description: str = "features", progress: bool = True) -> np.ndarray:
    """Give EfficientNet-Lite0 features of the three slices through the middle, side by side: float32 (N, 3840)."""
    columns = []
    for axis in (1, 2, 3):
        middle = np.ascontiguousarray(np.take(images, images.shape[axis] // 2, axis))
        columns.append(extract_features(middle, description=f"{description}, axis {axis} of 3", progress=progress))
    return np.concatenate(columns, 1)


def blurred(images: np.ndarray, sigma: float = BLUR) -> np.ndarray:
    """Give volumes (N, X, Y, Z) blurred by a Gaussian of so many voxels."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(images, (0, sigma, sigma, sigma), mode="nearest")


def standardised(features: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Give features (N, D) with the mean and spread that those of real volumes (M, D) have brought to 0 and 1."""
    return (features - real.mean(0)) / np.maximum(real.std(0), 1e-6)


def distances_from(sets: dict[str, np.ndarray], unseen: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Kernel distance (unbiased) and Frechet distance (of equal counts only) of sets of features from unseen real ones.

    Parameters
    ----------
    sets
        By name, (N, D) each; of every one as many are compared as the smallest has.
    unseen
        (M, D).
    seed
        Of what is drawn.

    Returns
    -------
    dict
        By name `kid` and `fd`, each with `value`, `low` and `high`, and `count`; None where fewer than 20 are there.
    """
    count = min(len(one) for one in sets.values())
    if min(count, len(unseen)) < MINIMUM_COUNT:
        return {"too_few": f"{count} volumes against {len(unseen)}: {MINIMUM_COUNT} are needed"}
    found: dict[str, Any] = {}
    for name, features in sets.items():
        order = np.random.default_rng([seed, 9]).permutation(len(features))[:count]
        kernel = kernel_distance(features[order], unseen, seed=seed)
        frechet = frechet_distance(features[order], unseen, seed=seed)
        found[name] = {
            "kid": {"value": kernel.kid, "low": kernel.low, "high": kernel.high},
            "fd": asdict(frechet),
            "count": count,
        }
    return found


# Sizes


def agreement(requested: np.ndarray, obtained: np.ndarray, labels: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """How the volumes of structures follow what was asked for, by structure.

    Parameters
    ----------
    requested, obtained
        (N, labels), in mm3.
    labels
        Names.
    seed
        Of the volumes drawn again.

    Returns
    -------
    dict
        By label: Pearson's `correlation` with its 95 % interval, None where one of both does not vary; the `slope` of
        the line through both; mean and mean absolute error in mm3 (`bias`, `absolute_error`), and the spread of what
        was requested.
    """
    found: dict[str, Any] = {}
    for k, name in enumerate(labels):
        asked, got = requested[:, k], obtained[:, k]
        rows = np.random.default_rng([seed, k]).integers(0, len(asked), (DRAWS, len(asked)))
        value = correlation(asked, got)
        drawn = [one for row in rows if (one := correlation(asked[row], got[row])) is not None]
        low, high = np.quantile(drawn, (0.025, 0.975)) if drawn else (None, None)
        spread = float(asked.std())
        found[name] = {
            "correlation": {"value": value, "low": low, "high": high},
            "slope": None if value is None else value * float(got.std()) / spread,
            "bias": float((got - asked).mean()),
            "absolute_error": float(np.abs(got - asked).mean()),
            "requested_spread": spread,
            "count": len(asked),
        }
    return found


def correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Pearson's correlation, or None where there is none."""
    if len(one) < 3 or one.std() < 1e-9 or other.std() < 1e-9:
        return None
    return float(np.corrcoef(one, other)[0, 1])
