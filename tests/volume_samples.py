"""Made-up volumes that the tests of their files share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.dicom_provenance import Recipe
from pipeline.dicom_volume import VolumeRecipe
from pipeline.volume_dicom import slices_of
from pipeline.volume_files import Volume, Wanted

from .dicom_samples import recipe_of

HIPPOCAMPUS = "a T1-weighted MRI of the hippocampus"


def volume_recipe(prompt: str = "hippocampus", modality: str = "brain-mri", seed: int = 7, **changes: Any) -> Recipe:
    """A recipe of an odd-sized volume of odd voxels."""
    values: dict[str, Any] = {
        "subject": HIPPOCAMPUS,
        "shape": (6, 9, 5),
        "axes": "RAS",
        "spacing": (1.0, 1.5, 2.0),
        "labels": ("anterior", "posterior"),
        "covariates": (("anterior_mm3", 40.0), ("posterior_mm3", 60.0)),
        "obtained": (("anterior_mm3", 39.0), ("posterior_mm3", 63.0)),
    }
    volume = VolumeRecipe(**(values | changes))
    recipe = recipe_of(modality, prompt, seed, volume=volume)
    _, rows, columns = slices_of(recipe).shape
    return replace(recipe, height=rows, width=columns)


def made_up(recipe: Recipe) -> Volume:
    """Voxels that differ from one another, and labels that look the same in no mirror."""
    shape = recipe.volume.shape
    x, y, z = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    count = int(np.prod(shape))
    voxels = ((x + shape[0] * (y + shape[1] * z)) / max(count - 1, 1)).astype(np.float32)
    mask = np.zeros(shape, np.uint8)
    mask[: shape[0] // 2 + 1, shape[1] // 2 :, : shape[2] // 2 + 1] = 1
    mask[: shape[0] // 3 + 1, : shape[1] // 2, : shape[2] // 2 + 1] = 2
    return Volume(voxels, mask, recipe)


ALL = Wanted(enhanced=True, segmentation=True, nifti=True)
CT = {"modality": "ct-chest", "subject": "a chest CT with contrast"}
KINDS = {
    "axial": volume_recipe(),
    "coronal": volume_recipe("coronal hippocampus"),
    "sagittal": volume_recipe("sagittal hippocampus, 54 year old woman"),
    "other axes": volume_recipe(axes="PIL"),
    "one slice": volume_recipe(shape=(6, 9, 1)),
    "one voxel": volume_recipe(shape=(1, 1, 1)),
    "FLAIR": volume_recipe(subject="a FLAIR MRI of the brain"),
    "no sequence": volume_recipe(subject="an MRI of the brain"),
    "warned": volume_recipe(warnings=("anterior_mm3 of 9000 mm3 is outside the range of the training volumes",)),
    "CT": volume_recipe("sagittal CT, bone window", **CT),
}


def slices_in(files):
    return [path for name, path in files.items() if name.startswith("slice")]
