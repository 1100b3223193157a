"""The best, the median and the worst of a set of generated images, as one JPEG; a real image is never in it.

Ranked by how far an image is, as the feature network sees it, from the five real images of unseen people that are
nearest to it. It is a network's opinion and no doctor's: an image may lie near real ones and still be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .set_measures import NEIGHBOURS, distances

RANKS = ("best", "median", "worst")  # the rows
SHOWN, TILE = 8, 128  # images a row, and their side in pixels
COMMENT = b"SYNTHETIC images, not for diagnosis"


def distance_to_real(features: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Mean distance of each of (N, D) to its five nearest of (M, D), float64 (N,)."""
    return np.sort(distances(features, real), axis=1)[:, :NEIGHBOURS].mean(1)


def ranked(found: np.ndarray, shown: int = SHOWN) -> dict[str, list[int]]:
    """Places of the `shown` smallest, middle and largest values, in rising order; fewer of each where there are few."""
    order = [int(place) for place in np.argsort(found, kind="stable")]
    each = min(shown, len(order) // len(RANKS))
    middle = (len(order) - each) // 2
    parts = (order[:each], order[middle : middle + each], order[len(order) - each :])
    return dict(zip(RANKS, parts, strict=True))


def write_ranked_sheet(
    path: str | Path, images: np.ndarray, found: np.ndarray, facts: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Write the sheet, a row a rank and without words; returns what is on it, for the JSON.

    Parameters
    ----------
    path
        JPEG to write; it appears whole or not at all.
    images
        Generated ones, uint8 (N, H, W, 3), at least 3.
    found
        `distance_to_real` of each.
    facts
        What is known of each, such as prompt and seed.

    Returns
    -------
    dict
        `file`, its name; `tile`, the side of a tile in pixels; `rows`, by rank a dict of facts and distance for each
        tile from left to right.
    """
    path = Path(path)
    chosen = ranked(found)
    columns = len(chosen[RANKS[0]])
    sheet = Image.new("RGB", (columns * TILE, len(RANKS) * TILE))
    for row, places in enumerate(chosen.values()):
        for column, place in enumerate(places):
            tile = Image.fromarray(images[place]).resize((TILE, TILE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (column * TILE, row * TILE))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    sheet.save(part, format="JPEG", quality=85, optimize=True, comment=COMMENT)
    part.replace(path)
    rows = {
        rank: [{**facts[place], "distance": round(float(found[place]), 3)} for place in places]
        for rank, places in chosen.items()
    }
    by = f"mean distance to the {NEIGHBOURS} nearest unseen real images, first network"
    return {"file": path.name, "tile": TILE, "ranked_by": by, "rows": rows}
