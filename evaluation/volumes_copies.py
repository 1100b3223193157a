"""Does a generated volume repeat one of the training? Nearest neighbours, beside those that real volumes have.

The distance of two volumes is that of their blurred voxels after both are brought to mean 0 and length 1, at the best
of 27 shifts by up to a voxel: brightness, contrast and noise hide no copy. 0 is equal, 1.41 unrelated.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from .judge import wilson_interval
from .volumes_measures import blurred

BLUR = 1.0  # voxels
NEXT = 20  # neighbours that the nearest one is measured by
SHARE = 0.01  # of real volumes that may count as copies
DISGUISED = 40


def copy_distances(images: np.ndarray, training: np.ndarray, description: str = "neighbours") -> np.ndarray:
    """Distance of each of (N, X, Y, Z) to each of (M, X, Y, Z): float32 (N, M); sides from 3 voxels."""
    inner = slice(1, -1)
    fixed = _directions(blurred(images, BLUR)[:, inner, inner, inner])
    soft = blurred(training, BLUR)
    best = np.full((len(images), len(training)), -1.0, np.float32)
    for shift in tqdm(list(product((0, 1, 2), repeat=3)), desc=description, unit="shift", mininterval=1):
        window = tuple(slice(s, s + size - 2) for s, size in zip(shift, training.shape[1:], strict=True))
        best = np.maximum(best, fixed @ _directions(soft[:, *window]).T)
    return np.sqrt(np.maximum(0, 2 - 2 * best))


def _directions(images: np.ndarray) -> np.ndarray:
    rows = images.reshape(len(images), -1).astype(np.float32)
    rows = rows - rows.mean(1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def nearest(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the nearest distance of each row, and its share of the mean of the next 20: (N,) and (N,).

    The share finds a copy also among volumes that are all near to everything, as smooth ones are.
    """
    order = np.sort(table, axis=1)
    others = order[:, 1 : NEXT + 1]
    means = others.mean(1) if others.shape[1] else np.ones(len(order))
    return order[:, 0], order[:, 0] / np.maximum(means, 1e-6)


def disguise(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Give real volumes as a model that copies might: moved by a voxel, with another gamma, and noise of 5 %."""
    rng = np.random.default_rng([seed, 10])
    moved = np.stack([np.roll(one, tuple(rng.integers(-1, 2, 3)), (0, 1, 2)) for one in images])
    gamma = np.exp(0.2 * rng.standard_normal((len(images), 1, 1, 1)))
    return np.clip(moved**gamma + 0.05 * rng.standard_normal(images.shape), 0, 1).astype(np.float32)


def find_copies(synthetic: np.ndarray, training: np.ndarray, unseen: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Compare the nearest training volume of generated ones with that of real ones.

    Parameters
    ----------
    synthetic, training, unseen
        Float32 (N, X, Y, Z) in [0, 1] each; of the training at least 3.
    seed
        Of the disguised copies.

    Returns
    -------
    dict
        For `synthetic`, `unseen` (real, not trained on), `training` (each against the others) and `disguised` (training
        volumes, altered: what must be found) minimum, 1 % quantile and median of the nearest `distance` and of its
        `share` of the next 20. `closest_real` is the least distance of two real volumes, `closer` how many generated
        ones are nearer than that; `threshold` the 1 % quantile of the shares of real volumes, `copies` how many
        generated ones lie below, with its Wilson interval, `false_alarms` how many unseen real ones.
    """
    if len(training) < 3:
        raise ValueError(f"`training` holds {len(training)} volumes: neighbours need at least 3")
    among = copy_distances(training, training, "training volumes")
    np.fill_diagonal(among, np.inf)
    own = np.sort(among, axis=1)[:, :-1]  # the last is the volume itself
    some = np.random.default_rng([seed, 11]).permutation(len(training))[:DISGUISED]
    tables = {
        "synthetic": copy_distances(synthetic, training, "synthetic volumes"),
        "unseen": copy_distances(unseen, training, "unseen volumes"),
        "training": own,
        "disguised": copy_distances(disguise(training[some], seed), training, "disguised copies"),
    }
    found = {name: nearest(table) for name, table in tables.items()}
    real = [np.concatenate([found[name][k] for name in ("unseen", "training")]) for k in (0, 1)]
    closest, threshold = float(real[0].min()), float(np.quantile(real[1], SHARE))
    copies = int((found["synthetic"][1] < threshold).sum())
    low, high = wilson_interval(copies, len(synthetic))
    return {
        "distance": "correlation of voxels blurred by 1 voxel, best of 27 shifts, as a Euclidean distance",
        "sets": {
            name: {"count": len(pair[0]), "distance": _spread(pair[0]), "share": _spread(pair[1])}
            for name, pair in found.items()
        },
        "closest_real": closest,
        "closer": int((found["synthetic"][0] < closest).sum()),
        "disguised_closer": float((found["disguised"][0] < closest).mean()),
        "threshold": threshold,
        "copies": copies,
        "copies_share": copies / len(synthetic),
        "copies_low": max(0.0, low),
        "copies_high": high,
        "false_alarms": int((found["unseen"][1] < threshold).sum()),
        "disguised_found": float((found["disguised"][1] < threshold).mean()),
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    low, middle = np.quantile(values, (SHARE, 0.5))
    return {"minimum": float(values.min()), "one_percent": float(low), "median": float(middle)}
