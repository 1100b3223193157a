"""From the probabilities of several runs to accuracies with intervals, and what one training set gains on another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .judge import score

DRAWS = 2000
PASS_SHARE = 0.85  # of TRTR that TSTR should reach


def interval_of_mean(values: Sequence[float]) -> tuple[float | None, float | None]:
    """95 % interval of the mean of independent values by Student's t; none for a single one."""
    if len(values) < 2:
        return None, None
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def area_under_curve(answers: np.ndarray, probabilities: np.ndarray) -> float:
    """AUROC, for more than two classes the mean of each class against the rest; every class must be in `answers`."""
    from sklearn.metrics import roc_auc_score

    present = range(probabilities.shape[1])
    return float(np.mean([roc_auc_score(answers == one, probabilities[:, one]) for one in present]))


def summarise(runs: np.ndarray, answers: np.ndarray, groups: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Accuracy, AUROC and confusion of several runs on one test set.

    Parameters
    ----------
    runs
        Probabilities (runs, N, classes).
    answers, groups
        Class and person of each test image, (N,).
    classes
        Their names.

    Returns
    -------
    dict
        `balanced_accuracy` and `auroc`, each with the values of the runs (`values`), their `mean` and its 95 % interval
        over runs (`low`, `high`); for the accuracy also `people_low` and `people_high`, the 95 % interval if other
        people had been tested (bootstrap of groups, the runs averaged), which is the wider one where people are few;
        and `confusion`, the mean over runs, rows what is shown.
    """
    scores = [score(answers, run.argmax(1), classes) for run in runs]
    balanced = [float(one["balanced_accuracy"]) for one in scores]
    areas = [area_under_curve(answers, run) for run in runs]
    people = redrawn(runs, answers, weights_of(groups))
    low, high = np.nanquantile(people, (0.025, 0.975))
    return {
        "balanced_accuracy": {**_with_interval(balanced), "people_low": float(low), "people_high": float(high)},
        "auroc": _with_interval(areas),
        "confusion": np.mean([one["confusion"] for one in scores], axis=0),
    }


def _with_interval(values: list[float]) -> dict[str, Any]:
    low, high = interval_of_mean(values)
    return {"mean": float(np.mean(values)), "low": low, "high": high, "values": values}


def weights_of(groups: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each image counts (draws, N) where groups are drawn again, with repeats."""
    _, place = np.unique(groups, return_inverse=True)
    count = int(place.max()) + 1
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws)[:, place]


def redrawn(runs: np.ndarray, answers: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Class-balanced accuracy, averaged over the runs, under each row of weights; a class not drawn is left out."""
    right = (runs.argmax(2) == answers).mean(0)
    recalls = []
    for one in range(runs.shape[2]):
        members = weights[:, answers == one]
        total = members.sum(1)
        recalls.append(np.where(total > 0, members @ right[answers == one] / np.maximum(total, 1), np.nan))
    return np.nanmean(recalls, axis=0)


def differences(runs: dict[str, np.ndarray], answers: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """What the regimes say of one another, on the same test people.

    Parameters
    ----------
    runs
        Probabilities (runs, N, classes) by regime.
    answers, groups
        Class and person of each test image, (N,).

    Returns
    -------
    dict
        Where the regimes are there: `synthetic_share_of_real` (TSTR / TRTR), `both_minus_real` and
        `both_minus_duplicated`, each a `value` with its 95 % interval (bootstrap of test groups, paired); and the
        verdicts `synthetic_is_enough` (a share of at least 0.85) and `both_is_not_worse` (not below real alone by more
        than chance: the interval's upper end is not below 0).
    """
    weights = weights_of(groups)
    plain = np.ones((1, len(answers)), int)
    drawn = {name: (redrawn(one, answers, plain)[0], redrawn(one, answers, weights)) for name, one in runs.items()}
    found: dict[str, Any] = {}

    def put(name: str, value: float, values: np.ndarray) -> None:
        low, high = np.nanquantile(values, (0.025, 0.975))
        found[name] = {"value": float(value), "low": float(low), "high": float(high)}

    if {"synthetic", "real"} <= set(drawn) and drawn["real"][0] > 0:
        (part, parts), (whole, wholes) = drawn["synthetic"], drawn["real"]
        put("synthetic_share_of_real", part / whole, parts / np.where(wholes > 0, wholes, np.nan))
        found["synthetic_is_enough"] = bool(part / whole >= PASS_SHARE)
    for other in ("real", "duplicated"):
        if {"both", other} <= set(drawn):
            put(f"both_minus_{other}", drawn["both"][0] - drawn[other][0], drawn["both"][1] - drawn[other][1])
    if "both_minus_real" in found:
        found["both_is_not_worse"] = bool(found["both_minus_real"]["high"] >= 0)
        found["both_is_at_least_real"] = bool(found["both_minus_real"]["value"] >= 0)
    return found
