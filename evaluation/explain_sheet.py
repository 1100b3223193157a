"""Explanations laid over images, real beside synthetic, on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

RED, BLUE = np.array([1.0, 0.1, 0.1]), np.array([0.1, 0.3, 1.0])


def overlay(image: np.ndarray, segments: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Colour what speaks for the class red and what speaks against it blue: float (H, W, 3) in [0, 1].

    Parameters
    ----------
    image
        uint8 (H, W, 3).
    segments, weights
        As in `Explanation`; the greatest weight is laid on with 0.6.
    """
    pixels = image / 255
    strength = weights / max(float(np.abs(weights).max()), 1e-12)
    alpha = 0.6 * np.abs(strength)[segments][..., None]
    return (1 - alpha) * pixels + alpha * np.where((strength > 0)[segments][..., None], RED, BLUE)


def draw_overlays(
    sides: dict[str, list[dict[str, Any]]], classes: Sequence[str], path: str | Path, *, shown: int = 2
) -> Path:
    """Draw a row for each of the first `shown` images of a class: real, explained, synthetic, explained.

    Parameters
    ----------
    sides
        "real" and "synthetic", each a list of `label`, `image`, `found` (an `Explanation`) and `mask` (bool or None;
        its outline is drawn in yellow).
    classes
        Names, as `predicted` counts them.
    path
        PNG to write.
    shown
        Rows a class.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.2 * shown * len(classes)), dpi=100, layout="tight")
    FigureCanvasAgg(figure)
    axes = figure.subplots(shown * len(classes), 4, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, name in enumerate(classes):
        for column, (kind, items) in enumerate(sides.items()):
            for row, one in enumerate([item for item in items if item["label"] == name][:shown]):
                plain, explained = axes[number * shown + row, 2 * column : 2 * column + 2]
                found = one["found"]
                plain.imshow(one["image"])
                plain.set_title(f"{kind}: {name}", fontsize=8)
                explained.imshow(overlay(one["image"], found.segments, found.weights))
                explained.set_title(f"taken for {classes[found.predicted]} ({found.probability:.2f})", fontsize=8)
                if one["mask"] is not None and one["mask"].any():
                    explained.contour(one["mask"], levels=[0.5], colors="yellow", linewidths=1)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    figure.savefig(part, format="png")
    part.replace(path)
    return path
