"""Numbers that steer a volume: how they are asked for, drawn where they are not, and shown to the denoiser.

A covariate is the volume of a labelled structure in mm3. What a model was trained on (mean, spread, range and
correlation of its covariates) is kept in the pipeline's config as plain JSON; here it is a `Distribution`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

FREQUENCIES = (0.125, 0.25, 0.5, 1.0, 2.0)  # periods of 8 to half a standard deviation: coarse and fine alike
FEATURES = 2 + 2 * len(FREQUENCIES)
FURTHEST = 4.0  # standard deviations; beyond that the denoiser is shown this much
_DRAWS = 1000
_DRAW_TAG = 0x564F4C  # keeps these draws apart from others with the same seed
_NUMBER = re.compile(
    r"(?<![\w.,-])(\d+(?:\.\d+)?)\s*(mm3|mm³|mm\^3|cubic millimet(?:er|re)s?|ml|cm3|cm³|cc)(?![\w^])", re.I
)
_SEPARATORS = re.compile(r"[,;]|\.(?!\d)|\b(?:and|but|with|while)\b", re.I)
_DENIED = re.compile(r"\b(?:no|not|nor|without|non)\b.*", re.I | re.S)  # "no atrophy" is no small hippocampus
_SIZES = {
    "small": r"small|smaller|tiny|reduced|atroph\w*|shrunken|low[- ]volume",
    "large": r"large|larger|big|enlarged|high[- ]volume|prominent",
    "medium": r"average|medium|normal[- ]sized?|mid[- ]sized?",
}
_BANDS = {"small": (-math.inf, -0.6), "medium": (-0.5, 0.5), "large": (0.6, math.inf)}  # standard deviations


@dataclass(frozen=True)
class Distribution:
    """Covariates of the training volumes.

    Attributes
    ----------
    names
        Such as ("anterior_mm3", "posterior_mm3"), in the order of the labels 1, 2, ...
    mean, standard_deviation, minimum, maximum
        In mm3, one a name.
    correlation
        Matrix, one row a name.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    standard_deviation: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    correlation: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, names: Sequence[str], values: np.ndarray) -> Distribution:
        """Describe values (N, names), in mm3, by statistics rounded to 0.1."""

        def rounded(row: np.ndarray) -> tuple[float, ...]:
            return tuple(round(float(v), 1) for v in row)

        correlation = np.atleast_2d(np.corrcoef(values, rowvar=False))
        return cls(
            tuple(names),
            rounded(values.mean(0)),
            rounded(values.std(0)),
            rounded(values.min(0)),
            rounded(values.max(0)),
            tuple(tuple(round(float(v), 3) for v in row) for row in correlation),
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Distribution:
        """Read what `to_config` gave."""
        parts = config["covariates"]
        columns = {key: tuple(float(part[key]) for part in parts.values()) for key in _STATISTICS}
        rows = tuple(tuple(float(value) for value in row) for row in config["correlation"])
        return cls(names=tuple(parts), correlation=rows, **columns)

    def to_config(self) -> dict[str, Any]:
        """Give it as a dictionary for JSON."""
        columns = zip(self.mean, self.standard_deviation, self.minimum, self.maximum, strict=True)
        parts = {name: dict(zip(_STATISTICS, row, strict=True)) for name, row in zip(self.names, columns, strict=True)}
        return {"covariates": parts, "correlation": [list(row) for row in self.correlation]}

    def standardise(self, values: np.ndarray) -> np.ndarray:
        """Give values (N, names) in mm3 as standard deviations from the mean."""
        return (np.asarray(values, np.float64) - self.mean) / np.maximum(self.standard_deviation, 1e-6)

    def features(self, values: np.ndarray) -> np.ndarray:
        """Give what the denoiser sees of values in mm3 (N, names), NaN for unknown: float32 (N, names * FEATURES).

        For each covariate: whether it is known, its standardised value, and sines and cosines of that at several
        frequencies (Tancik et al. 2020), so that small differences are as visible as large ones. Unknown is all zero.
        """
        z = self.standardise(values)
        known = np.isfinite(z)
        z = np.clip(np.where(known, z, 0), -FURTHEST, FURTHEST)
        angles = 2 * np.pi * z[..., None] * np.asarray(FREQUENCIES)
        parts = [np.ones_like(z)[..., None], z[..., None], np.sin(angles), np.cos(angles)]
        return (np.concatenate(parts, -1) * known[..., None]).reshape(len(z), -1).astype(np.float32)

    def draw(self, seed: int, given: Mapping[str, float], bands: Mapping[str, str]) -> dict[str, float]:
        """Fill in what is not given from the training distribution, in whole mm3; the same seed gives the same.

        The draw is a normal one within the training range, conditional on what is given; `bands` ("small", "medium",
        "large", by name) narrows it.
        """
        mean, scale = np.array(self.mean), np.array(self.standard_deviation)
        fixed = [i for i, name in enumerate(self.names) if name in given]
        free = [i for i, name in enumerate(self.names) if name not in given]
        values = np.array([float(given.get(name, 0)) for name in self.names])
        if free:
            covariance = np.array(self.correlation)
            shift = np.zeros(len(free))
            inner = covariance[np.ix_(free, free)]
            if fixed:
                weights = covariance[np.ix_(free, fixed)] @ np.linalg.inv(covariance[np.ix_(fixed, fixed)])
                z = np.clip((values - mean)[fixed] / np.maximum(scale[fixed], 1e-6), -FURTHEST, FURTHEST)
                shift, inner = weights @ z, inner - weights @ covariance[np.ix_(fixed, free)]
            limits = [_BANDS.get(bands.get(self.names[i], ""), (-math.inf, math.inf)) for i in free]
            lows = np.maximum([low for low, _ in limits], (np.array(self.minimum) - mean)[free] / scale[free])
            highs = np.minimum([high for _, high in limits], (np.array(self.maximum) - mean)[free] / scale[free])
            root = np.linalg.cholesky(inner + 1e-9 * np.eye(len(free)))
            rng = np.random.default_rng([_DRAW_TAG, seed])
            for _ in range(_DRAWS):
                z = shift + root @ rng.standard_normal(len(free))
                if ((z >= lows) & (z <= highs)).all():
                    break
            values[free] = np.rint(mean[free] + scale[free] * np.clip(z, lows, highs))
        return {name: float(value) for name, value in zip(self.names, values, strict=True)}

    def warn_of(self, values: Mapping[str, float]) -> list[str]:
        """Say which values lie outside the training range, one sentence each."""
        return [
            f"{name} of {values[name]:g} mm3 is outside the range of the training volumes, {low:g} to {high:g} mm3: "
            "the volume may not follow it"
            for name, low, high in zip(self.names, self.minimum, self.maximum, strict=True)
            if not low <= values[name] <= high
        ]


_STATISTICS = ("mean", "standard_deviation", "minimum", "maximum")


def structure(name: str) -> str:
    """Give the structure that a covariate measures: "anterior_mm3" is that of "anterior"."""
    return name.removesuffix("_mm3").replace("_", " ")


def read_prompt(prompt: str, names: Sequence[str]) -> tuple[dict[str, float], dict[str, str]]:
    """Read covariates that a prompt states: numbers ("anterior 1500 mm3", "1.5 ml") and sizes ("small posterior").

    A size word stands for the structures that its clause names, or for all if it names none ("atrophic hippocampus").
    A number counts only where its clause names one structure.

    Returns
    -------
    numbers : dict of str to float
        In mm3, by covariate.
    bands : dict of str to str
        "small", "medium" or "large", by covariate.
    """
    numbers: dict[str, float] = {}
    bands: dict[str, str] = {}
    for clause in _clauses(prompt, names):
        named = _named(clause, names)
        found = _NUMBER.search(clause)
        if found and len(named) == 1:
            factor = 1.0 if found[2].lower().startswith(("mm", "cubic")) else 1000.0
            numbers[named[0]] = float(found[1]) * factor
        said = _DENIED.sub("", clause)
        sizes = [size for size, words in _SIZES.items() if re.search(rf"\b(?:{words})\b", said, re.I)]
        if len(sizes) == 1:
            bands |= dict.fromkeys(named or [name for name in names if name not in bands], sizes[0])
    return numbers, bands


def _named(clause: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if re.search(rf"\b{re.escape(structure(name))}", clause, re.I)]


def _clauses(prompt: str, names: Sequence[str]) -> list[str]:
    """Cut a prompt into clauses; one that lists structures with a number behind each is cut before each structure."""
    parts: list[str] = []
    for clause in _SEPARATORS.split(re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", prompt)):  # 1,500 is one number
        numbers = [found.start() for found in _NUMBER.finditer(clause)]
        places = [
            found.start() for name in names if (found := re.search(rf"\b{re.escape(structure(name))}", clause, re.I))
        ]
        if len(numbers) > 1 and len(places) > 1 and min(places) < numbers[0]:
            cuts = [0, *sorted(places), len(clause)]
            parts += [clause[start:end] for start, end in pairwise(cuts)]
        else:
            parts.append(clause)
    return parts


def check(covariates: Any, names: Sequence[str], count: int, most: float) -> list[dict[str, float]]:
    """Give the covariates that a call asks for, one dictionary a volume.

    Parameters
    ----------
    covariates
        None, or a dictionary from name to a number, to a sequence of `count` numbers, or to None for "draw it".
    names
        Those that the model knows.
    count
        Volumes of the call.
    most
        All that fits, in mm3.

    Raises
    ------
    ValueError
        It is no such dictionary, or a name or number is not allowed.
    """
    if covariates is None:
        return [{} for _ in range(count)]
    if not isinstance(covariates, Mapping):
        raise ValueError(
            f"`covariates` is {covariates!r}; allowed is a dictionary with numbers for {', '.join(names)}, in mm3"
        )
    rows: list[dict[str, float]] = [{} for _ in range(count)]
    for name, value in covariates.items():
        if name not in names:
            raise ValueError(f"`covariates` has {name!r}; allowed are {', '.join(names)}")
        if value is None:
            continue
        if isinstance(value, np.ndarray) and value.ndim == 0:
            value = value.item()
        several = isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, str)
        values = list(value) if several else [value] * count
        if len(values) != count:
            raise ValueError(f"`covariates` has {len(values)} values of {name}; allowed is one, or {count}")
        for row, number in zip(rows, values, strict=True):
            whole = isinstance(number, (int, float, np.integer, np.floating)) and not isinstance(number, bool)
            if not whole or not 0 < number <= most:
                raise ValueError(
                    f"`covariates` has {name} {number!r}; allowed are numbers above 0 and at most {most:g} (mm3)"
                )
            row[name] = float(number)
    return rows
