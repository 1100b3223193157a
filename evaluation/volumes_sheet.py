"""A sheet of generated volumes for the eye: three views of each, without and with its label map; no real one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lora.volume_record import three_views

from .ranked_sheet import COMMENT
from .volumes_sets import VolumePairs

SHOWN, COLUMNS, SCALE, LINE = 12, 2, 3, 16


def write_volume_sheet(
    path: str | Path, made: VolumePairs, obtained: np.ndarray, labels: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Write the first volumes, unchosen: sagittal, coronal and axial slice through the labels, then with outlines.

    Parameters
    ----------
    path
        JPEG to write; it appears whole or not at all.
    made
        With what was requested.
    obtained
        float64 (N, labels), the mm3 in the label maps.
    labels
        Names.
    seed
        Of the first.

    Returns
    -------
    dict
        `file`, its name; `volumes`, for each from left to right and down its seed and the mm3 asked for and got.
    """
    path = Path(path)
    assert made.requested is not None
    count = min(SHOWN, len(made))
    tiles = []
    facts = []
    for i in range(count):
        view = Image.fromarray(three_views(made.images[i], made.masks[i]))
        tile = Image.new("RGB", (view.width * SCALE, view.height * SCALE + LINE))
        tile.paste(view.resize((view.width * SCALE, view.height * SCALE), Image.Resampling.NEAREST), (0, LINE))
        pairs = zip(labels, made.requested[i], obtained[i], strict=True)
        words = ", ".join(f"{name} {asked:.0f} asked, {got:.0f} got" for name, asked, got in pairs)
        ImageDraw.Draw(tile).text((2, 2), f"SYNTHETIC {seed + i}: {words} mm3", "white", ImageFont.load_default(11))
        tiles.append(tile)
        facts.append({"seed": seed + i, "requested": made.requested[i].tolist(), "obtained": obtained[i].tolist()})
    width, height = tiles[0].size
    rows = -(-count // COLUMNS)
    sheet = Image.new("RGB", (min(COLUMNS, count) * (width + 6), rows * (height + 6)))
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % COLUMNS * (width + 6), i // COLUMNS * (height + 6)))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    sheet.save(part, format="JPEG", quality=88, optimize=True, comment=COMMENT)
    part.replace(path)
    return {"file": path.name, "volumes": facts}
