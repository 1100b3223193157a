"""Is a synthetic set worth training on? CNNs trained on real, on synthetic and on both, tested on unseen real people.

The design of Nafi et al. (2024, "Diffusion-Based Approaches in Medical Image Generation and Analysis") with what it
lacks: several seeds, intervals, and *real images duplicated to the same count*, so that a gain of "both" is not merely
one of more updates. Everything is trained from nothing; nobody of the test set is in a training set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .card import utility_card
from .cnns import FAMILIES, build_network
from .judge import fit_linear, score
from .training import Training, run
from .utility_results import differences, summarise
from .utility_sets import REGIMES, Task, pairs, resized, training_set

LINEAR_SIDE = 24  # pixels: what needs no convolution


def linear_score(task: Task) -> float:
    """Class-balanced accuracy of a linear model on 24x24 pixels: a network that does not beat it has learnt nothing."""

    def small(images: np.ndarray) -> np.ndarray:
        return resized(images, LINEAR_SIDE).reshape(len(images), -1).astype(np.float32) / 255

    weight, bias = fit_linear(small(task.train[0]), task.train[1], len(task.classes))
    predicted = (small(task.test[0]) @ weight + bias).argmax(1)
    return float(score(task.test[1], predicted, task.classes)["balanced_accuracy"])


def compare_training(
    task: Task,
    *,
    how: Training,
    regimes: Sequence[str] = REGIMES[:4],
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    curve: Sequence[int] = (),
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """Train one family in every regime with every seed, and set the results beside one another.

    Parameters
    ----------
    task
        See `make_task`.
    how
        Family, width and length of training.
    regimes
        Some of `REGIMES`.
    seeds
        Of weights, order and draws; from 2 of them there is an interval.
    curve
        Counts of synthetic images for which "synthetic" is also trained.
    cache
        Folder that keeps every finished run, so that an interrupted comparison goes on.

    Returns
    -------
    dict
        `regimes` and `curve` with what `summarise` gives, and what `differences` gives.
    """
    found: dict[tuple[str, int], np.ndarray] = {}
    most = len(task.synthetic[0])
    for regime in regimes:
        counts = [*curve, most] if regime == "synthetic" else [most]
        for count in sorted(set(counts)):
            runs = []
            for seed in seeds:
                images, labels = training_set(task, regime, count, seed)
                runs.append(run(images, labels, task.test[0], len(task.classes), how, seed, cache))
            found[regime, count] = np.stack(runs)
    truth = (task.test[1], task.test_groups, task.classes)
    whole = {regime: summarise(found[regime, most], *truth) for regime in regimes}
    points = [
        {"regime": regime, "synthetic_count": count, **summarise(found[regime, count], *truth)}
        for regime, count in found
        if curve and regime == "synthetic"
    ]
    compared = differences({regime: found[regime, most] for regime in regimes}, task.test[1], task.test_groups)
    return {"training": asdict(how), "regimes": whole, **compared, "curve": points}


def utility(
    *,
    count: int = 160,
    size: int = 64,
    families: Sequence[str] = ("vgg19",),
    width: float = 0.25,
    epochs: int = 10,
    updates: int = 150,
    augment: bool = True,
    regimes: Sequence[str] = REGIMES[:4],
    curve: Sequence[int] | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    cache: str | Path | None = None,
    **sets: Any,
) -> dict[str, Any]:
    """Train and test as the module says, for each domain of the packs or for a folder of one's own.

    Parameters
    ----------
    count
        Most synthetic images of a domain.
    size
        Side of the images in pixels, from 32.
    families, width, epochs, updates, augment
        As for `Training`.
    regimes, curve, seeds
        As for `compare_training`; `curve` None stands for a quarter and half of `count`.
    cache
        Folder that keeps images, generated ones and finished runs.
    sets
        What is compared, and by which model, as for `pairs`.

    Raises
    ------
    ValueError
        An argument is not one of those allowed, or a folder is not as it must be.
    """
    wrong = [one for one in families if one not in FAMILIES]
    if wrong or not families:
        raise ValueError(f"`families` has {', '.join(wrong) or 'nothing'}: allowed are {', '.join(FAMILIES)}")
    if not seeds:
        raise ValueError("`seeds` has 0: at least 1 is needed, and 2 for an interval")
    for regime in regimes:
        if regime not in REGIMES:
            raise ValueError(f"`regimes` has {regime!r}: allowed are {', '.join(REGIMES)}")
    trainings = [Training(family, width, epochs, updates, augment=augment) for family in families]
    for family in families:
        build_network(family, 2, width=width)  # a wrong width is said before an hour of drawing
    results: dict[str, Any] = {}
    for pair in pairs(count=count, size=size, cache=cache, **sets):
        task, made = pair.task, len(pair.synthetic)
        points = [max(len(task.classes), made // 4), made // 2] if curve is None else list(curve)
        results[pair.name] = {
            "classes": list(task.classes),
            "counts": {
                "real_train": len(task.train[0]),
                "synthetic": made,
                "test": len(task.test[0]),
                "test_groups": len(np.unique(task.test_groups)),
                "dropped_from_training": pair.dropped,
            },
            "chance": 1 / len(task.classes),
            "linear_24px_balanced_accuracy": linear_score(task),
            "settings": pair.settings,
            "families": {
                one.family: compare_training(task, how=one, regimes=regimes, seeds=seeds, curve=points, cache=cache)
                for one in trainings
            },
        }
    return {
        "what": "utility",
        "size": size,
        "seeds": list(seeds),
        "trained_on": list(regimes),
        "domains": results,
        "card": utility_card(results),
    }
