"""Read a real volume to slices: a folder with a DICOM series, one multi-frame DICOM object, or a NIfTI file.

Of the input only voxels, plane, spacing and modality go on: no UID, no position, no text. highdicom tells where slices
lie and whether they are evenly spaced; pixels are decoded under the limits that images have.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset

from . import dicom_decode, dicom_input, dicom_limits, dicom_volume

ImageInputError = dicom_limits.ImageInputError

MAX_FILES = 4096
OBLIQUE = 1.0  # degrees from which on it is said
TOLERANCE = 0.02  # of the distance between slices: headers round
AXES = {"axial": "SPL", "coronal": "PIL", "sagittal": "RIP"}
"""Directions of slices, rows and columns by plane, as `dicom_volume.Slices` cuts them."""
_BIPED = str.maketrans("SI", "HF")  # head and feet, as highdicom calls them
_GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "SeriesInstanceUID")
_GZIP, _NIFTI = b"\x1f\x8b", (b"n+1\x00", b"ni1\x00")


@dataclass(frozen=True, eq=False)
class InputVolume:
    """All that survives of an input volume.

    Attributes
    ----------
    values : numpy.ndarray
        float32 (slices, rows, columns): Hounsfield units of CT, what rescaling gives of anything else.
    plane : {"axial", "coronal", "sagittal"}
        In which the slices lie, or most nearly; they, their rows and columns run as `AXES` says.
    spacing : tuple of float
        mm between slices, rows and columns.
    modality : str or None
        The DICOM Modality; NIfTI has none.
    sha256 : str
        Of the values and their shape.
    warnings : tuple of str
        What was not as it should be.
    passed_over : int
        Files of the folder that are no DICOM images.
    burned_in_annotation : bool
        The header of a slice says that text is burned into it.
    """

    values: np.ndarray
    plane: str
    spacing: tuple[float, float, float]
    modality: str | None
    sha256: str
    warnings: tuple[str, ...] = ()
    passed_over: int = 0
    burned_in_annotation: bool = False


def read_volume(source: str | os.PathLike[str], plane: str = "axial") -> InputVolume:
    """Read a volume from a folder or a file.

    Parameters
    ----------
    source
        Folder that holds one DICOM series (searched through; what is no DICOM image is passed over and told), a
        multi-frame DICOM object with positions, or a `.nii` or `.nii.gz` file.
    plane
        In which NIfTI is cut into slices. DICOM slices stay as they are.

    Raises
    ------
    ImageInputError
        With one sentence that says why; it never repeats text or names of the input.
    """
    import highdicom  # noqa: F401  these take a second, and are to be silenced with the rest
    import nibabel  # noqa: F401

    with dicom_limits.quiet():
        found: InputVolume = dicom_limits.attempt(
            lambda: _read(Path(source), plane), "`image`: this cannot be read as a volume."
        )
    return found


def _read(path: Path, plane: str) -> InputVolume:
    if path.is_dir():
        return _from_folder(path)
    data = dicom_input.read_file(path)
    if dicom_limits.looks_like_dicom(data):
        dataset = dicom_limits.parse_dicom(data, [*dicom_limits.WANTED, *_GEOMETRY])
        frames = dicom_limits.integer(dataset, "NumberOfFrames", 1)
        if not 2 <= frames <= dicom_volume.MAX_SIDE:
            raise ImageInputError(
                f"`image` is a DICOM object of {max(frames, 0)} frame(s); a volume has 2 to {dicom_volume.MAX_SIDE}. "
                "Give the folder of a series, or use `generate` for one image."
            )
        return _from_slices([(dataset, index) for index in range(frames)])
    if data[:2] == _GZIP or data[344:348] in _NIFTI:
        return _from_nifti(path, plane)
    raise ImageInputError("`image` is neither a folder with a DICOM series, a multi-frame DICOM object nor NIfTI.")


def _from_folder(folder: Path) -> InputVolume:
    paths = list(islice((path for path in _walk(folder) if path.is_file()), MAX_FILES + 1))
    if len(paths) > MAX_FILES:
        raise ImageInputError(f"`image` is a folder with more than the {MAX_FILES} files allowed.")
    slices, others, series = [], 0, set()
    for path in paths:
        data = dicom_input.read_file(path)
        if not dicom_limits.looks_like_dicom(data):
            others += 1
            continue
        dataset = dicom_limits.parse_dicom(data, [*dicom_limits.WANTED, *_GEOMETRY])
        if not any(keyword in dataset for keyword in dicom_limits.PIXEL_KEYWORDS):
            others += 1
            continue
        if dicom_limits.integer(dataset, "NumberOfFrames", 1) != 1:
            raise ImageInputError("`image` is a folder that holds a multi-frame object; give that file itself.")
        series.add(dicom_limits.text(dataset, "SeriesInstanceUID"))
        if len(series) > 1:
            raise ImageInputError("`image` is a folder that holds more than one DICOM series; give a folder with one.")
        slices.append((dataset, 0))
        if len(slices) > dicom_volume.MAX_SIDE:
            raise ImageInputError(f"`image` is a series of more than the {dicom_volume.MAX_SIDE} slices allowed.")
    if not slices:
        raise ImageInputError("`image` is a folder that holds no DICOM image.")
    return replace(_from_slices(slices), passed_over=others)


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):  # does not follow links to folders
        folders.sort()
        yield from (Path(root, name) for name in sorted(files))


def _from_slices(slices: Sequence[tuple[Dataset, int]]) -> InputVolume:
    """Put slices, each a frame of a dataset, in order."""
    positions, orientations, spacings, values = [], [], [], []
    voxels = 0
    for dataset, index in slices:
        positions.append(_numbers(dataset, index, "PlanePositionSequence", "ImagePositionPatient", 3))
        orientations.append(_numbers(dataset, index, "PlaneOrientationSequence", "ImageOrientationPatient", 6))
        spacings.append(_numbers(dataset, index, "PixelMeasuresSequence", "PixelSpacing", 2))
        values.append(dicom_decode.decode_values(dataset, index))
        voxels += values[-1].size
        if voxels > dicom_volume.MAX_VOXELS:
            raise ImageInputError(f"`image` has more than the {dicom_volume.MAX_VOXELS} voxels allowed.")
    same = all(np.allclose(rows, rows[0], atol=1e-3) for rows in (orientations, spacings))
    if not same or len({each.shape for each in values}) > 1:
        raise ImageInputError("`image` has slices of different orientation, spacing or size.")
    if len(values) < 2:
        raise ImageInputError("`image` is one slice; a volume has at least 2. Use `generate` for one image.")
    from highdicom import Volume
    from highdicom.spatial import get_volume_positions

    across, down = np.array(orientations[0][:3]), np.array(orientations[0][3:])
    unit = abs(np.linalg.norm(across) - 1) < 1e-2 and abs(np.linalg.norm(down) - 1) < 1e-2
    if not unit or abs(across @ down) > 1e-2 or min(spacings[0]) <= 0:
        raise ImageInputError("`image` has an orientation or spacing that no scanner has.")
    distance, order = dicom_limits.attempt(
        lambda: get_volume_positions(positions, orientations[0], rtol=TOLERANCE), "`image` has positions of no volume."
    )
    if distance is None or order is None:
        raise ImageInputError(
            "`image` has slices that are not evenly spaced one above the other: one is missing or doubled, or the "
            "gantry was tilted."
        )
    sorted_slices = sorted(range(len(values)), key=order.__getitem__)
    volume = dicom_limits.attempt(
        lambda: Volume.from_attributes(
            array=np.stack([values[i] for i in sorted_slices]),
            image_position=positions[sorted_slices[0]],
            image_orientation=orientations[0],
            pixel_spacing=spacings[0],
            spacing_between_slices=distance,
            coordinate_system="PATIENT",
        ),
        "`image` has an orientation or spacing that no scanner has.",
    )
    along = int(np.argmax(np.abs(np.cross(across, down))))
    modality = dicom_limits.text(slices[0][0], "Modality")
    known = modality if modality in dicom_decode.MODALITIES else None
    says = any(dicom_limits.text(dataset, "BurnedInAnnotation") == "YES" for dataset, _ in slices)
    return replace(_turned(volume, ("sagittal", "coronal", "axial")[along], known), burned_in_annotation=says)


def _from_nifti(path: Path, plane: str) -> InputVolume:
    import nibabel
    from highdicom import Volume

    def load() -> tuple[tuple[int, ...], Any, np.ndarray]:
        image = nibabel.Nifti1Image.from_filename(path)
        if np.dtype(image.get_data_dtype()).kind not in "iuf":
            raise ValueError
        return tuple(image.shape), image.dataobj, np.asarray(image.affine, float)

    damaged = "`image` looks like NIfTI, but is damaged or of a kind that cannot be read."
    shape, data, affine = dicom_limits.attempt(load, damaged)
    shape3 = shape[:3]
    if len(shape3) < 3 or any(side != 1 for side in shape[3:]) or not all(2 <= n <= 4096 for n in shape3):
        raise ImageInputError("`image` is NIfTI of another shape than one volume of at least 2 voxels along each axis.")
    if int(np.prod(shape3, dtype=np.int64)) > dicom_volume.MAX_VOXELS:
        raise ImageInputError(f"`image` has more than the {dicom_volume.MAX_VOXELS} voxels allowed.")
    values = dicom_limits.attempt(lambda: np.asarray(data, np.float32).reshape(shape3), damaged)
    volume = dicom_limits.attempt(
        lambda: Volume(values, np.diag([-1.0, -1, 1, 1]) @ affine, "PATIENT"),  # right and front to left and back
        "`image` is NIfTI whose axes are skewed or of no length.",
    )
    return _turned(volume, plane, None)


def _turned(volume: Any, plane: str, modality: str | None) -> InputVolume:
    """Turn a volume's axes to those of a plane, without resampling."""
    values = volume.array
    if not np.isfinite(values).all():
        raise ImageInputError("`image` has voxels that are no finite numbers.")
    turned = dicom_limits.attempt(
        lambda: volume.to_patient_orientation(AXES[plane].translate(_BIPED)), "`image` has axes of no volume."
    )
    spacing = tuple(round(float(side), 6) for side in turned.spacing)
    if not all(1e-3 <= side <= 1e3 for side in spacing) or max(turned.spatial_shape) > 4096:
        raise ImageInputError("`image` has a spacing beyond 0.001 to 1000 mm, or more than 4096 voxels along an axis.")
    if turned.spatial_shape[0] > dicom_volume.MAX_SIDE:
        raise ImageInputError(f"`image` has more than the {dicom_volume.MAX_SIDE} slices allowed.")
    directions = turned.affine[:3, :3] / np.linalg.norm(turned.affine[:3, :3], axis=0)
    angle = float(np.degrees(np.arccos(np.clip(np.abs(directions).max(axis=0), 0, 1))).max())
    oblique = f"the source is oblique by {angle:.0f} degrees; what was made of it is written as straight {plane}"
    told = (oblique,) if angle > OBLIQUE else ()
    array = np.ascontiguousarray(turned.array, "<f4")
    digest = hashlib.sha256(repr(array.shape).encode())
    for each in array:
        digest.update(each.tobytes())
    return InputVolume(array, plane, (spacing[0], spacing[1], spacing[2]), modality, digest.hexdigest(), told)


def _numbers(dataset: Dataset, index: int, group: str, keyword: str, count: int) -> list[float]:
    item = dicom_limits.functional_group(dataset, index, group)
    found = [dicom_limits.number(item, keyword, part) for part in range(count)]
    if any(value is None or abs(value) > 1e6 for value in found):
        raise ImageInputError(f"`image` has a slice without {keyword}, which tells where it lies.")
    return [float(value) for value in found if value is not None]
