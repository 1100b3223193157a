"""Pairs of a synthetic image and its nearest training image, for the eye. They show real people: not in the project."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
PAIRS, COLUMNS, SIDE = 12, 3, 192


def outside_the_project(path: str | Path, argument: str = "pairs") -> Path:
    """Give the path back; a ValueError where a real image would come to lie in the project's folder (but `build`)."""
    place = Path(path).resolve()
    if place.is_relative_to(ROOT) and not place.is_relative_to(ROOT / "build"):
        raise ValueError(
            f"`{argument}` is {str(path)!r}, inside the project; it shows real people and belongs elsewhere"
        )
    if argument == "pairs" and place.suffix.lower() != ".png":
        raise ValueError(f"`pairs` is {str(path)!r}; allowed is a .png file")
    return Path(path)


def draw_pairs(synthetic: np.ndarray, training: np.ndarray, scores: np.ndarray, path: Path) -> Path:
    """Draw the pairs with the lowest scores, nearest first: synthetic on the left, training image on the right.

    Parameters
    ----------
    synthetic, training
        uint8 (N, H, W, 3), of any two sizes; image i of one belongs to image i of the other.
    scores
        (N,), below 1 for a copy.
    path
        PNG to write; it appears whole or not at all.
    """
    chosen = np.argsort(scores)[:PAIRS]
    rows, line = -(-len(chosen) // COLUMNS), 18
    sheet = Image.new("RGB", (COLUMNS * (2 * SIDE + 8), rows * (SIDE + line)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, i in enumerate(chosen):
        left, top = number % COLUMNS * (2 * SIDE + 8), number // COLUMNS * (SIDE + line)
        words = f"{'COPY' if scores[i] < 1 else 'no copy'}, score {scores[i]:.2f}: synthetic | real, training"
        pen.text((left + 2, top + 2), words, "black", font)
        for offset, image in ((0, synthetic[i]), (SIDE, training[i])):
            sheet.paste(Image.fromarray(np.asarray(image)).resize((SIDE, SIDE)), (left + offset, top + line))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    sheet.save(part, format="PNG")
    part.replace(path)
    return path
