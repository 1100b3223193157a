"""A volume as files: slices, enhanced object, label map, NIfTI; all of them or none."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset

from . import (
    dicom_files,
    dicom_patient,
    dicom_provenance,
    dicom_seal,
    volume_dicom,
    volume_nifti,
    volume_segmentation,
)

Patient = dicom_patient.Patient
Recipe = dicom_provenance.Recipe
Study = dicom_patient.Study

ENHANCED, SEGMENTATION = "enhanced.dcm", "labels.dcm"
VOLUME_NIFTI, LABELS_NIFTI = "volume.nii.gz", "labels.nii.gz"


@dataclass(frozen=True)
class Wanted:
    """What is to be written beside the slices."""

    enhanced: bool = False
    segmentation: bool = False
    nifti: bool = False
    archive: bool = False


@dataclass(frozen=True)
class Volume:
    """Float voxels of [0, 1], their label map or None, and their recipe from `volume_dicom.recipe_of`."""

    voxels: np.ndarray
    mask: np.ndarray | None
    recipe: Recipe


def write_volumes(
    volumes: Sequence[Volume],
    out: str | os.PathLike[str],
    wanted: Wanted = Wanted(),  # noqa: B008  frozen
    *,
    patient: Patient | None = None,
    study: Study | None = None,
    key: bytes | None = None,
) -> list[Path]:
    """Write volumes, each into a folder of its own within `out`: all files, or on any failure none.

    Parameters
    ----------
    volumes
        At least one.
    out
        Folder; made where it does not exist.
    wanted
        What to write beside the slices; with `archive` all goes into one zip.
    patient, study
        Values for the header.
    key
        Sign every DICOM object with it.

    Returns
    -------
    list of pathlib.Path
        Of each volume the slices in order, then the rest; or the archive.

    Raises
    ------
    ValueError
        A segmentation is wanted without a label map, or something is not as the recipe says.
    FileExistsError
        Another file of that name is there.
    """
    if not volumes:
        raise ValueError("`volumes` is empty; at least one is needed")
    files: dict[str, Dataset | bytes] = {}
    folders = []
    for volume in volumes:
        datasets = to_datasets(volume, wanted, patient=patient, study=study)
        folders.append(folder_of(next(iter(datasets.values())), volume.recipe))
        for name, dataset in datasets.items():
            if key is not None:
                dicom_seal.sign(dataset, key)
            files[f"{folders[-1]}/{name}"] = dataset
        if wanted.nifti:
            files[f"{folders[-1]}/{VOLUME_NIFTI}"] = volume_nifti.to_nifti(volume.voxels, volume.recipe)
        if wanted.nifti and wanted.segmentation and volume.mask is not None:
            files[f"{folders[-1]}/{LABELS_NIFTI}"] = volume_nifti.to_nifti(volume.mask, volume.recipe)
    if len(set(folders)) != len(folders):
        raise ValueError("`volumes` holds one volume twice")
    names = sorted(folders)
    archive = names[0] if len(names) == 1 else f"synthetic-{dicom_provenance.digest_of(*names)[:8]}"
    return dicom_files.write_together(out, lambda at: put(files, at), f"{archive}.zip" if wanted.archive else None)


def put(files: Mapping[str, Dataset | bytes], folder: Path) -> list[Path]:
    """Write datasets and other files by their names, a folder and a name each."""
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            content.save_as(folder / name, enforce_file_format=True)
    return [folder / name for name in files]


def to_datasets(
    volume: Volume, wanted: Wanted, *, patient: Patient | None = None, study: Study | None = None
) -> dict[str, Dataset]:
    """Give the DICOM objects of a volume by the names of their files; arguments and errors as `write_volumes`."""
    voxels, mask, recipe = volume.voxels, volume.mask, volume.recipe
    if wanted.segmentation and mask is None:
        raise ValueError("`mask` is None; a segmentation needs a label map")
    series = volume_dicom.to_series(voxels, recipe, patient=patient, study=study)
    datasets = {name_of((volume_dicom.SLICES, index)): dataset for index, dataset in enumerate(series)}
    if wanted.enhanced:
        datasets[ENHANCED] = volume_dicom.to_enhanced(voxels, recipe, patient=patient, study=study)
    if wanted.segmentation and mask is not None:
        datasets[SEGMENTATION] = volume_segmentation.to_segmentation(mask, recipe, series, patient=patient, study=study)
    return datasets


def name_of(part: volume_dicom.Part) -> str:
    """Give the file name of a part of a volume."""
    kind, index = part
    return {volume_dicom.MULTI_FRAME: ENHANCED, volume_dicom.SEGMENTATION: SEGMENTATION}.get(
        kind, f"slice-{index + 1:03d}.dcm"
    )


def folder_of(dataset: Dataset, recipe: Recipe) -> str:
    """Give the name of the folder of a volume, one of whose objects is given: they share their frame of reference."""
    return dicom_files.stem_of(recipe, dataset.FrameOfReferenceUID)
