"""Pictures of a volume for people: a slice of each plane with its labels over it, marked as synthetic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from . import dicom_profiles, dicom_provenance, dicom_volume, volume_segmentation

Slices = dicom_volume.Slices
VolumeRecipe = dicom_volume.VolumeRecipe

PLANES = ("axial", "coronal", "sagittal")
HEIGHT = 320  # of a view, pixels
_OPPOSITE = {"L": "R", "P": "A", "F": "H"}


def view_of(
    voxels: np.ndarray, mask: np.ndarray | None, volume: VolumeRecipe, plane: str, index: int, overlay: float = 0.4
) -> Image.Image:
    """Draw a slice as a radiologist sees it, with the letters of its sides.

    Parameters
    ----------
    voxels
        Floats of [0, 1], (X, Y, Z).
    mask
        Label map of that shape, or None.
    volume
        Shape, axes and spacing.
    plane
        One of `PLANES`.
    index
        Which slice, from 0; beyond the ends the first or the last.
    overlay
        How much the labels hide, 0 to 1.

    Returns
    -------
    PIL.Image.Image
        RGB, `HEIGHT` pixels high at most, and of the same scale in every plane.
    """
    slices = Slices(plane, volume)
    index = min(max(int(index), 0), slices.shape[0] - 1)
    grey = slices.cut(np.asarray(voxels))[index].clip(0, 1)
    rgb = np.repeat(grey[..., None] * 255, 3, -1)
    if mask is not None:
        labels = slices.cut(np.asarray(mask))[index]
        for number in range(1, int(labels.max()) + 1):
            colour = np.array(volume_segmentation.colour_of(number), float)
            rgb[labels == number] = (1 - overlay) * rgb[labels == number] + overlay * colour
    scale = HEIGHT / max(n * mm for n, mm in zip(volume.shape, volume.spacing, strict=True))
    size = [max(round(n * mm * scale), 1) for n, mm in zip(slices.shape[1:], slices.spacing[1:], strict=True)]
    picture = Image.fromarray(np.rint(rgb).astype(np.uint8)).resize((size[1], size[0]), Image.Resampling.NEAREST)
    _write_sides(picture, plane)
    return picture


def sheet_of(voxels: np.ndarray, mask: np.ndarray | None, volume: VolumeRecipe) -> Image.Image:
    """Draw the three planes through the middle of the labels: above without them, below with them."""
    middle = middle_of(mask, volume)
    views = [[view_of(voxels, m, volume, p, middle[p]) for p in PLANES] for m in (None, mask)]
    rows = [row for row in views[: 1 if mask is None else 2]]
    width = sum(view.width for view in rows[0]) + 4 * (len(PLANES) - 1)
    heights = [max(view.height for view in row) for row in rows]
    sheet = Image.new("RGB", (width, sum(heights) + 4 * (len(rows) - 1)))
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for view in row:
            sheet.paste(view, (left, top))
            left += view.width + 4
        top += height + 4
    return sheet


def middle_of(mask: np.ndarray | None, volume: VolumeRecipe) -> dict[str, int]:
    """Give the slice of each plane that goes through the middle of the labels, or of the volume where there is none."""
    found: dict[str, int] = {}
    for plane in PLANES:
        slices = Slices(plane, volume)
        filled = np.zeros(0) if mask is None else np.flatnonzero(slices.cut(np.asarray(mask)).any((1, 2)))
        found[plane] = round(float(filled.mean())) if len(filled) else slices.shape[0] // 2
    return found


def legend_of(labels: Sequence[str]) -> list[tuple[str, str]]:
    """Give name and colour (as a web page writes it) of each label."""
    return [(name, "#" + bytes(volume_segmentation.colour_of(i)).hex()) for i, name in enumerate(labels, 1)]


def _write_sides(picture: Image.Image, plane: str) -> None:
    """Write the letters of the sides and, in small volumes too, that it is synthetic."""
    right, below = dicom_profiles.PATIENT_ORIENTATION[plane]
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    for (x, y), anchor, text in (
        ((4, height / 2), "lm", _OPPOSITE[right]),
        ((width - 4, height / 2), "rm", right),
        ((width / 2, 4), "ma", {"H": "S"}.get(_OPPOSITE[below], _OPPOSITE[below])),
        ((width / 2, height - 18), "md", {"F": "I"}.get(below, below)),
        ((width / 2, height - 4), "md", dicom_provenance.MARK),
    ):
        draw.text((x, y), text, fill=(255, 255, 255), stroke_fill=(0, 0, 0), stroke_width=2, anchor=anchor)
