"""Kernel inception distance (KID), unbiased (Binkowski et al. 2018), with a bootstrap interval."""

from __future__ import annotations

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
