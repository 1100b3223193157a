"""Are synthetic volumes worth training on? 3D U-Nets trained on real, synthetic and both; Dice on unseen real volumes.

All trainings have the same number of updates, so that real volumes alone are gone through again and again: they are
their own control of duplicated real ones. With both, every update sees as many real as synthetic pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from .utility_results import DRAWS, PASS_SHARE, interval_of_mean
from .volumes_segmenter import Segmenting, dice, kept_segmenter, segment
from .volumes_sets import VolumePairs

CONTROL = (
    "every training has the same number of updates, so `real` is real volumes duplicated as often as those take; "
    "`both` shows half real, half synthetic pairs in each update"
)


def subset(pairs: VolumePairs, count: int, seed: int) -> VolumePairs:
    """Draw `count` pairs at random; of one seed, the smaller sets are parts of the larger ones."""
    chosen = np.sort(np.random.default_rng([seed, 8]).permutation(len(pairs))[:count])
    return VolumePairs(pairs.images[chosen], pairs.masks[chosen])


def real_counts(wanted: Sequence[int], most: int) -> list[int]:
    """Counts of real volumes to train with, rising, and all of them at the end.

    Raises
    ------
    ValueError
        A count is below 1 or above all.
    """
    for count in wanted:
        if not 1 <= count <= most:
            raise ValueError(f"`real_counts` has {count}: numbers from 1 to {most} are allowed")
    return sorted({*wanted, most})


def compare_segmenters(
    real: VolumePairs,
    synthetic: VolumePairs,
    unseen: VolumePairs,
    labels: Sequence[str],
    *,
    counts: Sequence[int] = (8, 16, 32),
    seeds: Sequence[int] = (0, 1, 2),
    how: Segmenting | None = None,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """Train in every arm with every seed, and set the Dice on unseen volumes beside one another.

    Parameters
    ----------
    real, synthetic
        To train on.
    unseen
        To test on.
    labels
        Names of the structures.
    counts
        Of real volumes; all of them are always an arm too.
    seeds
        Of the weights, and of which real volumes are the few; from 2 of them there is an interval over them.
    how
        Length and so on of a training.
    cache
        Folder that keeps every trained network, so that an interrupted comparison goes on.

    Returns
    -------
    dict
        `arms`: for each what it was trained on (`regime`, `real`, `synthetic`) and what `summarise_dice` gives;
        `gains`: by count of real volumes, Dice of both minus that of real alone; `synthetic_share_of_real`.
    """
    how = how or Segmenting()
    counts = real_counts(counts, len(real))
    arms = [("synthetic", 0), *((regime, count) for count in counts for regime in ("real", "both"))]
    scores: dict[tuple[str, int], np.ndarray] = {}
    with tqdm(total=len(arms) * len(seeds), desc="segmenters", unit="training") as bar:
        for regime, count in arms:
            runs = []
            for seed in seeds:
                few = [subset(real, count, seed)] if count else []
                sets = [*few, synthetic] if regime != "real" else few
                network = kept_segmenter(sets, len(labels), how, seed, cache)
                runs.append(dice(segment(network, unseen.images), unseen.masks, len(labels)))
                bar.update()
            scores[regime, count] = np.stack(runs)  # (seeds, N, labels)
    most = counts[-1]
    return {
        "control": CONTROL,
        "seeds": list(seeds),
        "test_volumes": len(unseen),
        "arms": [
            {
                "regime": regime,
                "real": count,
                "synthetic": len(synthetic) if regime != "real" else 0,
                **summarise_dice(runs, labels),
            }
            for (regime, count), runs in scores.items()
        ],
        "gains": {str(count): gain(scores["both", count], scores["real", count]) for count in counts},
        "synthetic_share_of_real": share(scores["synthetic", 0], scores["real", most]),
    }


def summarise_dice(runs: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Mean Dice of runs (seeds, N, labels).

    Returns
    -------
    dict
        `dice`: the mean, its 95 % interval over seeds by Student's t (`low`, `high`), the seeds' `values`, and the
        interval if other volumes had been tested (`volumes_low`, `volumes_high`); `by_label`: means.
    """
    values = [float(one.mean()) for one in runs]
    low, high = interval_of_mean(values)
    people = redrawn_means(runs)
    ends = np.quantile(people, (0.025, 0.975))
    return {
        "dice": {
            "mean": float(np.mean(values)),
            "low": low,
            "high": high,
            "values": values,
            "volumes_low": float(ends[0]),
            "volumes_high": float(ends[1]),
        },
        "by_label": {name: float(runs[..., k].mean()) for k, name in enumerate(labels)},
    }


def redrawn_means(runs: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Mean Dice if other volumes had been tested: (draws,), the runs (seeds, N, labels) averaged; paired by seed."""
    each = runs.mean((0, 2))
    weights = np.random.default_rng(seed).multinomial(len(each), np.full(len(each), 1 / len(each)), draws)
    return weights @ each / len(each)


def gain(both: np.ndarray, real: np.ndarray) -> dict[str, Any]:
    """Dice of one arm minus that of another, with its 95 % interval over redrawn test volumes, and that over seeds.

    `intervals_overlap` says whether the two arms' own intervals over seeds do; None with a single seed.
    """
    ends = np.quantile(redrawn_means(both) - redrawn_means(real), (0.025, 0.975))
    pairs = [float(one.mean() - other.mean()) for one, other in zip(both, real, strict=True)]
    low, high = interval_of_mean(pairs)
    one, other = (interval_of_mean([float(run.mean()) for run in runs]) for runs in (both, real))
    apart = None
    if one[0] is not None and other[0] is not None and one[1] is not None and other[1] is not None:
        apart = {"low": one[0] - other[1], "high": one[1] - other[0]}
    return {
        "value": float(np.mean(pairs)),
        "low": float(ends[0]),
        "high": float(ends[1]),
        "seeds_low": low,
        "seeds_high": high,
        "between_intervals": apart,
        "intervals_overlap": None if apart is None else bool(apart["low"] <= 0 <= apart["high"]),
    }


def share(part: np.ndarray, whole: np.ndarray) -> dict[str, Any]:
    """Dice of one arm as a share of another's, with its 95 % interval over redrawn test volumes."""
    ends = np.quantile(redrawn_means(part) / np.maximum(redrawn_means(whole), 1e-12), (0.025, 0.975))
    value = float(part.mean() / max(float(whole.mean()), 1e-12))
    return {"value": value, "low": float(ends[0]), "high": float(ends[1]), "enough": value >= PASS_SHARE}
