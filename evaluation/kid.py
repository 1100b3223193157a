"""Kernel inception distance (KID), unbiased (Binkowski et al. 2018), with a bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MINIMUM_COUNT = 20
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


def kernel_distance(
    features: np.ndarray,
    real: np.ndarray,
    *,
    groups: Sequence[str] | None = None,
    real_groups: Sequence[str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Distance:
    """Unbiased KID between two sets of features, from all pairs, with a bootstrap interval.

    The value may be slightly below zero. For the interval both sets are redrawn with repeats; pairs of an image with
    its own copy are left out of the means, or every redrawn value would be too high.

    Parameters
    ----------
    features, real
        (N, D) and (M, D).
    groups, real_groups
        The stratum of each image, where so many were taken of each by design: the value is unbiased for samples so
        taken, and the bootstrap keeps to the numbers, as it must (Efron & Tibshirani 1993, chapter 8).
    draws
        Bootstrap draws.
    seed
        Of these.

    Raises
    ------
    ValueError
        A set has fewer than 20 images, another number of groups than of images, or a group of one.
    """
    for name, some in (("features", features), ("real", real)):
        if len(some) < MINIMUM_COUNT:
            raise ValueError(f"`{name}` holds {len(some)} images: KID needs at least {MINIMUM_COUNT}")
    members, members_real = _members("groups", groups, len(features)), _members("real_groups", real_groups, len(real))
    within, within_real = polynomial_kernel(features, features), polynomial_kernel(real, real)
    np.fill_diagonal(within, 0)
    np.fill_diagonal(within_real, 0)
    across = polynomial_kernel(features, real)

    def value(weights: np.ndarray, weights_real: np.ndarray) -> np.ndarray:
        own = _weighted_mean(within, weights, members) + _weighted_mean(within_real, weights_real, members_real)
        pairs = np.einsum("bi,bi->b", weights @ across, weights_real)
        return own - 2 * pairs / (weights.sum(1) * weights_real.sum(1))

    n, m = len(features), len(real)
    rng = np.random.default_rng(seed)
    kid = float(value(np.ones((1, n)), np.ones((1, m)))[0])
    drawn = value(_redrawn(rng, members, draws), _redrawn(rng, members_real, draws))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Distance(kid, float(low), float(high), n, m)


def _members(name: str, groups: Sequence[str] | None, count: int) -> list[np.ndarray]:
    """Where the images of each group stand."""
    if groups is None:
        return [np.arange(count)]
    if len(groups) != count:
        raise ValueError(f"`{name}` holds {len(groups)} names for {count} images: each needs one")
    found = {group: np.flatnonzero(np.asarray(groups) == group) for group in sorted(set(groups))}
    if lone := [group for group, members in found.items() if len(members) < 2]:
        raise ValueError(
            f"`{name}` has one image of {', '.join(lone)}: each group needs two, for a pair; take more images"
        )
    return list(found.values())


def _redrawn(rng: np.random.Generator, groups: list[np.ndarray], draws: int) -> np.ndarray:
    """How often each image is in each redrawn set, (draws, N): of each group as many as there are."""
    weights = np.zeros((draws, sum(map(len, groups))))
    for members in groups:
        weights[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), draws)
    return weights


def _weighted_mean(kernel: np.ndarray, weights: np.ndarray, groups: list[np.ndarray]) -> np.ndarray:
    """Mean over pairs of different images under each row of weights, (B,); the kernel's diagonal is zero.

    Each two groups, or a group and itself, count as often as their shares of the set say: as a plain mean over pairs
    would not, since an image makes no pair with itself, which takes from pairs within a group.
    """
    found = np.zeros(len(weights))
    for first in groups:
        for second in groups:
            block, one, other = kernel[np.ix_(first, second)], weights[:, first], weights[:, second]
            pairs, whole = one.sum(1) * other.sum(1), block.size
            if first is second:
                pairs, whole = pairs - (one**2).sum(1), whole - len(first)
            # A redrawn group of copies of one image has no pair: it gets the mean that was found without redrawing.
            mean = np.full(len(weights), block.sum() / whole)
            np.divide(np.einsum("bi,bi->b", one @ block, other), pairs, out=mean, where=pairs > 0)
            found += mean * len(first) * len(second) / len(kernel) ** 2
    return found
