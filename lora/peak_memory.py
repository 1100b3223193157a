"""The most memory that training took."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch


def peak_memory() -> dict[str, int]:
    """In bytes, of this process since it began: `main`, and with a GPU `gpu`."""
    found = {}
    if sys.platform != "win32":
        import resource

        found["main"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return found | ({"gpu": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {})


def highest(peaks: Iterable[dict[str, int]]) -> dict[str, int]:
    """The most of each kind."""
    found: dict[str, int] = {}
    for peak in peaks:
        found |= {kind: max(value, found.get(kind, 0)) for kind, value in peak.items()}
    return found
