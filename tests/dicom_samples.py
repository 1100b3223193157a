"""Recipes, prompts and float pixels that the tests of the DICOM stage share."""

from typing import Any

import numpy as np

from pipeline.dicom_provenance import Recipe

PROMPTS = {
    "chest-xray": "PA chest X-ray, bacterial pneumonia, 54 year old woman",
    "ct-chest": "axial chest CT slice, lung window, with intravenous contrast, adult male 71 years",
    "ct-head": "axial non-contrast head CT slice, brain window, normal brain",
    "brain-mri": "coronal T1 brain MRI with contrast, meningioma, 54 year old woman",
    "blood-smear": "peripheral blood smear, May Grunwald-Giemsa stain, single neutrophil",
    "nuclei-fluorescence": "fluorescence microscopy, DAPI stained cell nuclei on dark background",
    "nuclei-histology": "histology, H&E, purple cell nuclei",
    "secondary-capture": "secondary capture of a chest X-ray",
}


def recipe_of(profile: str, prompt: str | None = None, seed: int = 7, **changes: Any) -> Recipe:
    """Make a recipe of a profile."""
    values = {
        "prompt": PROMPTS[profile] if prompt is None else prompt,
        "negative_prompt": "",
        "modality": profile,
        "seed": seed,
        "num_inference_steps": 20,
        "guidance_scale": 4.0,
        "scheduler": "DPMSolverMultistepScheduler",
        "height": 64,
        "width": 64,
        "model": "synthetic-dicom-base",
        "model_sha256": "ab" * 32,
        "versions": (("torch", "2.13.0"),),
    }
    return Recipe(**(values | changes))


def smooth_pixels(rows: int = 256, columns: int = 256, channels: int = 1) -> np.ndarray:
    """Make a smooth picture that uses the whole of [0, 1] and looks the same in no mirror."""
    down, across = np.mgrid[:rows, :columns] / max(rows - 1, columns - 1, 1)
    grey = np.clip((across + 0.7 * down**2) / 1.7, 0.0, 1.0)
    if channels == 1:
        return grey.astype(np.float32)
    return np.stack([grey, 1.0 - grey, down], axis=-1).astype(np.float32)


def pixels_of(profile: str, rows: int = 64, columns: int = 64) -> np.ndarray:
    """Make smooth pixels, in colour for the colour profiles."""
    return smooth_pixels(rows, columns, 3 if profile in ("blood-smear", "nuclei-histology") else 1)
