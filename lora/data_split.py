"""Who is one person, and who is held out: people are never divided between training and validation."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np


def number_people(keys: Iterable[Iterable[str]]) -> np.ndarray:
    """Number people from 0 in order of first appearance; images that share a key are of one person."""
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        while parents.setdefault(key, key) != key:
            parents[key] = key = parents[parents[key]]
        return key

    firsts = []
    for first, *others in keys:
        firsts.append(first)
        for other in others:
            parents[root(other)] = root(first)
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(root(first), len(numbers)) for first in firsts], np.int64)


def _members(groups: np.ndarray) -> list[np.ndarray]:
    """Give the indices of each person's images."""
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.cumsum(np.bincount(groups))[:-1])


def draw_people(groups: np.ndarray, most: int, rng: np.random.Generator) -> list[int]:
    """Draw whole people until `most` images are reached; of the last one some, evenly spread."""
    members = _members(groups)
    drawn: list[int] = []
    for person in rng.permutation(len(members)):
        room, mine = most - len(drawn), members[person]
        drawn += mine[np.linspace(0, len(mine) - 1, min(room, len(mine))).round().astype(int)].tolist()
        if len(drawn) == most:
            break
    return sorted(drawn)


def split_people(groups: np.ndarray, given: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Hold out people: those that are given (1 held out, 0 not, -1 free), and of the free ones a share of the images.

    People are taken in random order, each where that brings the share nearer, so that someone with very many images
    does not become the whole validation set.
    """
    held = given == 1
    members = _members(groups)
    mixed = [m for m in members if {0, 1} <= set(given[m].tolist())]
    if mixed:
        warnings.warn(
            f"the given split has {len(mixed)} person(s) on both sides; people should be on one", stacklevel=3
        )
    free = []
    for mine in members:
        if (given[mine] == -1).all():
            free.append(mine)
        else:  # a person of whom some images have a split follows it with the others
            held[mine[given[mine] == -1]] = (given[mine] == 1).any()
    if held.all() and not free:
        raise ValueError("The given split holds out every image; there must be some with `split` train.")
    if share == 0 or not free:
        return held
    if len(members) == 1:
        warnings.warn(
            "all images are of one person, so none is held out; if they are not, name people in a `group_id` column",
            stacklevel=3,
        )
        return held
    order = [free[i] for i in rng.permutation(len(free))]
    target, taken = share * sum(map(len, free)), 0
    chosen: list[np.ndarray] = []
    spare = 0 if (given == 0).any() else 1  # someone must be left to learn from
    for mine in order:
        if len(chosen) < len(free) - spare and abs(taken + len(mine) - target) < abs(taken - target):
            chosen.append(mine)
            taken += len(mine)
    if not chosen and not held.any():
        chosen.append(min(order, key=len))
    for mine in chosen:
        held[mine] = True
    return held
