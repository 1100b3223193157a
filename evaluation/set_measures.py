"""Distances and overlaps between two sets of features, and the diversity of a set of images, each with an interval.

All depend on how many images there are, the Frechet distance above all: compare values of equal counts only, and read
each beside the floor that real images get. `fidelity.py` sees to both.

Intervals are the value plus and minus 1.96 bootstrap standard errors. Quantiles of redrawn values would lie beside the
value: a set redrawn with repeats has fewer different images, and these measures are biased by that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import MultiScaleSSIMMetric
from torch.nn import functional

REDRAWS = 100
NEIGHBOURS = 5
SSIM_SIZE = 192  # the smallest that five scales allow is 161
SSIM_PAIRS = 100


@dataclass(frozen=True)
class Measure:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def _with_interval(value: float, redrawn: np.ndarray, least: float, most: float) -> Measure:
    half = 1.96 * float(np.std(redrawn, ddof=1))
    return Measure(value, max(least, value - half), min(most, value + half))


def _redraw(count: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, count, (draws, count))


# Frechet distance


def frechet_distance(features: np.ndarray, real: np.ndarray, *, draws: int = REDRAWS, seed: int = 0) -> Measure:
    """Frechet distance between Gaussians fitted to two sets of features (Heusel et al. 2017), FID's formula.

    Strongly biased upwards for small sets: two samples of the same images do not get 0. Of use only beside the floor
    of the same counts.

    Parameters
    ----------
    features, real
        (N, D) and (M, D).
    draws
        Bootstrap draws.
    seed
        Of these.
    """
    rng = np.random.default_rng(seed)
    first, second = features.astype(np.float64), real.astype(np.float64)
    pairs = zip(_redraw(len(first), draws, rng), _redraw(len(second), draws, rng), strict=True)
    redrawn = np.array([_frechet(first[i], second[j]) for i, j in pairs])
    return _with_interval(_frechet(first, second), redrawn, 0, np.inf)


def _frechet(first: np.ndarray, second: np.ndarray) -> float:
    mean, other_mean = first.mean(0), second.mean(0)
    roots: list[np.ndarray] = []
    for features, centre in ((first, mean), (second, other_mean)):
        root = (features - centre) / np.sqrt(len(features) - 1)
        roots.append(np.asarray(np.linalg.qr(root, mode="r")) if len(root) > root.shape[1] else root)
    # With covariances A'A and B'B, the trace of the root of their product is the sum of the singular values of AB':
    # no root of a D x D matrix, which for few images is singular and slow.
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    own = (roots[0] ** 2).sum() + (roots[1] ** 2).sum()
    return float(max(0.0, ((mean - other_mean) ** 2).sum() + own - 2 * shared))


# Precision, recall, density, coverage


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Euclidean distance of each row of (N, D) to each of (M, D), float64 (N, M)."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1)[None] - 2 * first @ second.T
    # Equal rows get exactly 0 only up to rounding, which the root would blow up.
    squares[squares < 1e-9 * max(1.0, float(squares.max(initial=0)))] = 0
    return np.sqrt(squares)


def overlap(
    features: np.ndarray, real: np.ndarray, *, neighbours: int = NEIGHBOURS, draws: int = REDRAWS, seed: int = 0
) -> dict[str, Measure]:
    """Precision, recall, density and coverage by nearest neighbours.

    `precision`: share of the images within the reach of a real one; `recall`: share of the real ones within the reach
    of an image (Kynkaanniemi et al. 2019). `density`: how many real ones reach an image, 1 for equal distributions and
    more in dense places; `coverage`: share of the real ones with an image in reach (Naeem et al. 2020). The reach of
    an image is the distance to the `neighbours`-th nearest of its own set.

    Parameters
    ----------
    features, real
        (N, D) and (M, D).
    neighbours
        At least 1, fewer than either set has members.
    draws
        Bootstrap draws.
    seed
        Of these.

    Raises
    ------
    ValueError
        A set is too small for so many neighbours.
    """
    if not 1 <= neighbours < min(len(features), len(real)):
        raise ValueError(
            f"`neighbours` is {neighbours}: allowed are 1 to {min(len(features), len(real)) - 1}, one fewer than images"
        )
    tables = distances(real, real), distances(features, features), distances(real, features)
    m, n = len(real), len(features)
    found = _overlap(*tables, np.ones(m), np.ones(n), neighbours)
    rng = np.random.default_rng(seed)
    redrawn = []
    for i, j in zip(_redraw(m, draws, rng), _redraw(n, draws, rng), strict=True):
        some, times = np.unique(i, return_counts=True)
        others, other_times = np.unique(j, return_counts=True)
        if min(len(some), len(others)) <= neighbours:
            continue
        parts = tables[0][np.ix_(some, some)], tables[1][np.ix_(others, others)], tables[2][np.ix_(some, others)]
        redrawn.append(_overlap(*parts, times, other_times, neighbours))
    columns = np.array(redrawn)
    most = {"density": np.inf}
    return {
        name: _with_interval(found[i], columns[:, i], 0, most.get(name, 1.0))
        for i, name in enumerate(("precision", "recall", "density", "coverage"))
    }


def _overlap(
    among_real: np.ndarray,
    among_images: np.ndarray,
    across: np.ndarray,
    weights_real: np.ndarray,
    weights: np.ndarray,
    neighbours: int,
) -> tuple[float, float, float, float]:
    """Take tables of distances between different images, (M, M), (N, N), (M, N), and how often each counts."""
    reach_real = np.partition(among_real, neighbours, axis=1)[:, neighbours]  # the nearest is the image itself
    reach = np.partition(among_images, neighbours, axis=1)[:, neighbours]
    reached = across <= reach_real[:, None]
    return (
        float(np.average(reached.any(0), weights=weights)),
        float(np.average((across <= reach[None]).any(1), weights=weights_real)),
        float(np.average(weights_real @ reached, weights=weights) / (neighbours * weights_real.mean())),
        float(np.average(reached.any(1), weights=weights_real)),
    )


# Diversity


def pair_similarity(
    images: np.ndarray, *, pairs: int = SSIM_PAIRS, draws: int = REDRAWS, seed: int = 0, batch: int = 16
) -> Measure:
    """Mean multi-scale structural similarity (Wang et al. 2003) between images of a set: high where they are alike.

    As a measure of diversity after Odena et al. 2017. Grey values at 192 pixels, by MONAI.

    Parameters
    ----------
    images
        uint8 (N, H, W, 3), at least two.
    pairs
        So many different pairs, drawn at random, or all there are.
    draws
        Bootstrap draws, of images and not of pairs.
    seed
        Of the pairs and the draws.
    batch
        Pairs a step.

    Raises
    ------
    ValueError
        Fewer than two images.
    """
    if len(images) < 2:
        raise ValueError(f"`images` holds {len(images)} images: pairs need at least 2")
    measure = MultiScaleSSIMMetric(spatial_dims=2, data_range=1.0, reduction="none")

    def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.ravel(measure(_grey(images[first]), _grey(images[second])))

    return mean_of_pairs(similarity, len(images), pairs=pairs, draws=draws, seed=seed, batch=batch)


def mean_of_pairs(
    similarity: Callable[[np.ndarray, np.ndarray], np.ndarray],
    count: int,
    *,
    pairs: int = SSIM_PAIRS,
    draws: int = REDRAWS,
    seed: int = 0,
    batch: int = 16,
) -> Measure:
    """Mean similarity of pairs from a set of `count`; the interval is of members drawn again, not of pairs.

    Parameters
    ----------
    similarity
        Takes the places of the first and the second of some pairs, (B,) each, and gives their values (B,).
    count
        Members of the set, at least two.
    pairs, draws, seed, batch
        As for `pair_similarity`.
    """
    rng = np.random.default_rng(seed)
    first, second = np.triu_indices(count, 1)
    chosen = np.sort(rng.permutation(len(first))[:pairs])
    first, second = first[chosen], second[chosen]
    steps = range(0, len(first), batch)
    values = np.concatenate([similarity(first[k : k + batch], second[k : k + batch]) for k in steps])
    times = np.stack([np.bincount(drawn, minlength=count) for drawn in _redraw(count, draws, rng)])
    weights = (times[:, first] * times[:, second]).astype(float)
    weights = weights[weights.sum(1) > 0]  # with very few members none of the pairs may have been drawn
    redrawn = weights @ values / weights.sum(1)
    return _with_interval(float(values.mean()), redrawn, -1, 1) if len(redrawn) > 1 else _point(float(values.mean()))


def _point(value: float) -> Measure:
    return Measure(value, -1.0, 1.0)


def _grey(images: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().mean(1, keepdim=True) / 255
    if tuple(tensor.shape[2:]) != (SSIM_SIZE, SSIM_SIZE):
        tensor = functional.interpolate(tensor, (SSIM_SIZE, SSIM_SIZE), mode="bilinear", antialias=True)
    return tensor


def set_measures(features: np.ndarray, real: np.ndarray, *, seed: int = 0) -> dict[str, Measure]:
    """Frechet distance, precision, recall, density and coverage of (N, D) against (M, D), by name."""
    return {"fd": frechet_distance(features, real, seed=seed), **overlap(features, real, seed=seed)}
