"""How often text that is burned into real images is found, and how often something else is taken for it.

The score from which a region counts as text is chosen on one half of the images and measured on the other.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

from lora.base_data import read_rows
from pipeline.dicom_burned_in import THRESHOLD, find_text
from pipeline.dicom_input import read_image

FALSE_ALARMS = 0.02  # allowed where the threshold is chosen: one costs a click, and a name that is missed much more
THRESHOLDS = tuple(round(1 + 0.25 * step, 2) for step in range(29))
SIZES = (9, 10, 11, 12, 14, 16, 18, 20, 24)  # of type, in pixels
TEXTS = (
    *("DOE^JANE 1961-04-12", "Patient ID: 4711-0815", "SMITH JOHN M 054Y", "12/03/2019 14:22:07", "ACC 88231"),
    *("St. Mary Hospital", "MUELLER, HANS", "ID 123456"),
)
COLOURS = ((255, 255, 255), (255, 255, 255), (230, 230, 230), (0, 0, 0), (255, 255, 0))
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif")  # which matplotlib brings along
READABLE = 90 / 255  # what type differs from its ground by, at least


@dataclass(frozen=True)
class _Case:
    """One image: the best score of it as it is, and with text of that size drawn into it."""

    pack: str
    size: int
    clean: float
    written: float


def burned_in(data: str | Path, packs: Sequence[str] | None = None, count: int = 100, seed: int = 0) -> dict[str, Any]:
    """Measure hit rate and false alarms of `find_text`.

    Parameters
    ----------
    data
        Folder with the packs.
    packs
        Which; all by default.
    count
        Images a pack, at most; each is looked at as it is and with text drawn into it.
    seed
        Of the draws.

    Returns
    -------
    dict
        `chosen_threshold` (on the first half), then of the other half: `hit_rate`, `false_alarm_rate`, and both by pack
        and by size of type, at that threshold; `shipped_threshold` is the one that the project uses.

    Raises
    ------
    ValueError
        A pack is not there, or `count` is below 2.
    """
    root = Path(data)
    names = sorted(packs or (path.parent.name for path in root.glob("*/metadata.csv")))
    if count < 2:
        raise ValueError(f"`count` is {count}: numbers from 2 are allowed")
    if missing := [name for name in names if not (root / name / "metadata.csv").is_file()]:
        raise ValueError(f"`packs` names {missing[0]!r}, which `data` does not hold")
    if not names:
        raise ValueError("`data` holds no packs")
    rng = random.Random(seed)
    cases: list[_Case] = []
    for name in names:
        rows = read_rows(root, [name])
        for row in tqdm(rng.sample(rows, min(count, len(rows))), desc=name, mininterval=2, leave=False):
            cases.append(_case(name, read_image(row["path"]).pixels, rng))
    rng.shuffle(cases)
    half = len(cases) // 2
    chosen = choose_threshold(cases[:half])
    return {
        "packs": names,
        "count": count,
        "seed": seed,
        "chosen_threshold": chosen,
        "shipped_threshold": THRESHOLD,
        "first_half": rates(cases[:half], chosen),
        **rates(cases[half:], chosen),
        "by_pack": {name: rates([case for case in cases[half:] if case.pack == name], chosen) for name in names},
        "by_size": {str(size): rates([case for case in cases[half:] if case.size == size], chosen) for size in SIZES},
    }


def choose_threshold(cases: Sequence[_Case]) -> float:
    """The lowest threshold at which no more than two clean images in a hundred are taken for ones with text."""
    clean = np.array([case.clean for case in cases])
    return next((t for t in THRESHOLDS if (clean >= t).mean() <= FALSE_ALARMS), THRESHOLDS[-1])


def rates(cases: Sequence[_Case], threshold: float) -> dict[str, Any]:
    """Share of the images with text in which it is found, and of the clean ones in which something is."""
    if not cases:
        return {"images": 0, "hit_rate": None, "false_alarm_rate": None}
    return {
        "images": len(cases),
        "hit_rate": round(float(np.mean([case.written >= threshold for case in cases])), 4),
        "false_alarm_rate": round(float(np.mean([case.clean >= threshold for case in cases])), 4),
    }


def _case(pack: str, pixels: np.ndarray, rng: random.Random) -> _Case:
    picture = Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).convert("RGB")
    written, size = write_text(picture, rng)
    return _Case(pack, size, _best(picture), _best(written))


def _best(picture: Image.Image) -> float:
    return max((region.score for region in find_text(np.asarray(picture, np.float32) / 255, 0.0)), default=0.0)


def write_text(picture: Image.Image, rng: random.Random) -> tuple[Image.Image, int]:
    """Draw one line of text at a random place, in a colour that can be read there; gives its size too."""
    picture = picture.convert("RGB")
    drawing = ImageDraw.Draw(picture)
    size, text = rng.choice(SIZES), rng.choice(TEXTS)
    font = _font(size, rng)
    width = drawing.textlength(text, font=font)
    left = rng.uniform(2, max(3, picture.width - width - 2))
    top = rng.choice((2, picture.height - size - 6, rng.uniform(2, picture.height - size - 6)))
    colour = rng.choice(COLOURS)
    ground = (
        np.asarray(picture.convert("L"), np.float32)[int(top) : int(top) + size, int(left) : int(left + width)] / 255
    )
    if abs(np.dot(colour, (0.299, 0.587, 0.114)) / 255 - ground.mean()) < READABLE:
        colour = (255, 255, 255) if ground.mean() < 0.5 else (0, 0, 0)
    drawing.text((left, top), text, fill=colour, font=font)
    return picture, size


def _font(size: int, rng: random.Random) -> Any:
    name = rng.choice((None, *FONTS))
    if name is None:
        return ImageFont.load_default(size)
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf"), size)
