"""A volume and its label map as NIfTI, at the very place where the DICOM files have them."""

from __future__ import annotations

import gzip
import io

import numpy as np

from . import dicom_output, dicom_provenance, dicom_volume, volume_dicom

Recipe = dicom_provenance.Recipe


def to_nifti(array: np.ndarray, recipe: Recipe) -> bytes:
    """Give the bytes of a .nii.gz file: the same array gives the same bytes.

    Parameters
    ----------
    array
        Floats of [0, 1] (written as the values that the DICOM files show: HU for CT, else stored values) or the whole
        numbers of a label map; shape as `recipe.volume` has it.
    recipe
        From `volume_dicom.recipe_of`.

    Raises
    ------
    ValueError
        The array has another shape.
    """
    import nibabel  # takes a second, and only this needs it

    volume = recipe.volume
    if volume is None or np.asarray(array).shape != volume.shape:
        raise ValueError(f"`array` has shape {np.asarray(array).shape}, but the recipe says {volume and volume.shape}")
    values = np.asarray(array)
    image = nibabel.Nifti1Image(
        values.astype(np.uint8) if values.dtype.kind in "iu" else shown_values(values, recipe),
        dicom_volume.affine_of(volume),
    )
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = dicom_provenance.NOT_FOR_DIAGNOSIS.encode()
    image.set_qform(image.affine, code=1)  # 1: the coordinates of a scanner
    image.set_sform(image.affine, code=1)
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, filename="") as handle:
        handle.write(image.to_bytes())
    return packed.getvalue()


def shown_values(voxels: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Give what the DICOM files show of float voxels: Hounsfield units (float32) for CT, else stored values (int16)."""
    profile, facts = volume_dicom.profile_of(recipe), dicom_output.facts_of(recipe)
    stored = np.stack([dicom_output.quantise(each, profile, facts) for each in voxels])
    window = profile.window(facts.window)
    if window is None:
        return stored.astype(np.int16)  # 12 bits
    return (stored * window.rescale_slope + window.rescale_intercept).astype(np.float32)
