"""Make a part of a volume again: its model is found by hash among those that the user has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pydicom import Dataset

from . import dicom_patient, dicom_provenance, volume_dicom, volume_files, volume_models, volume_segmentation

Part = volume_dicom.Part
Patient = dicom_patient.Patient
Recipe = dicom_provenance.Recipe
Study = dicom_patient.Study

MAX_THREADS = 256


class CannotReplay(ValueError):
    """The image or volume cannot be made again here; one sentence says what is missing."""


@contextmanager
def threads_of(recipe: Recipe) -> Iterator[None]:
    """Use as many threads as the recipe says, as sums come out differently with others."""
    before = torch.get_num_threads()
    wanted = dict(recipe.versions).get("threads", "")
    try:
        if wanted.isascii() and wanted.isdigit() and 1 <= int(wanted[:9]) <= MAX_THREADS:
            torch.set_num_threads(int(wanted))
        yield
    finally:
        torch.set_num_threads(before)


class VolumeMaker:
    """Volume models to look in, by hash; the last volume is kept, as its slices come one after another."""

    def __init__(self, places: Sequence[str], device: str) -> None:
        self._places, self._device = list(places), device
        self._hashes: dict[str, str] = {}  # place to hash, of those that were looked at
        self._loaded: tuple[str, Any] | None = None
        self._last: tuple[str, Any] | None = None

    def make(
        self,
        recipe: Recipe,
        part: Part,
        patient: Patient | None,
        study: Study | None,
        remake: Callable[[], volume_files.Volume] | None = None,
    ) -> tuple[Dataset, Recipe]:
        """Make a part of the volume of a recipe; gives it, and the recipe of the volume as it came out.

        `remake` makes the volume where no volume model does.

        Raises
        ------
        CannotReplay
            No model at hand has the hash that the recipe names.
        ValueError
            The model does not draw such a volume, or the volume has no such part.
        """
        again, voxels, mask = self._volume(recipe, remake)
        kind, index = part
        if index >= (volume_dicom.slices_of(again).shape[0] if kind == volume_dicom.SLICES else 1):
            raise ValueError("the volume of the recipe has no such slice")
        if kind == volume_dicom.MULTI_FRAME:
            return volume_dicom.to_enhanced(voxels, again, patient=patient, study=study), again
        series = volume_dicom.to_series(voxels, again, patient=patient, study=study)
        if kind == volume_dicom.SLICES:
            return series[index], again
        if mask is None:
            raise ValueError("the volume of the recipe has no labels")
        return volume_segmentation.to_segmentation(mask, again, series, patient=patient, study=study), again

    def _volume(self, recipe: Recipe, remake: Callable[[], volume_files.Volume] | None) -> tuple[Recipe, Any, Any]:
        assert recipe.volume is not None
        wanted = recipe.to_json()
        if remake is not None and (self._last is None or self._last[0] != wanted):
            volume = remake()
            self._last = wanted, (volume.recipe, volume.voxels, None)
        if self._last is None or self._last[0] != wanted:
            pipe = self._model(recipe)
            with threads_of(recipe):
                output = pipe(
                    recipe.prompt,
                    dict(recipe.volume.covariates),
                    seed=recipe.seed,
                    num_inference_steps=recipe.num_inference_steps,
                    guidance_scale=recipe.guidance_scale,
                    shape=recipe.volume.shape,
                    mask=bool(recipe.volume.labels),
                )
                again = volume_dicom.recipe_of(output, 0, pipe.config.subject["description"])
            mask = None if output.masks is None else output.masks[0]
            self._last = wanted, (again, output.volumes[0], mask)
        again, voxels, mask = self._last[1]
        return again, voxels, mask

    def _model(self, recipe: Recipe) -> Any:
        for place in sorted(self._places, key=lambda place: self._hashes.get(place) != recipe.model_sha256):
            if self._hashes.get(place, recipe.model_sha256) != recipe.model_sha256:
                continue
            try:
                pipe = self._load(place)
            except (OSError, RuntimeError, AssertionError, KeyError, TypeError, ValueError):
                continue  # a model of images, or none
            self._hashes[place] = pipe.model_sha256
            if pipe.model_sha256 == recipe.model_sha256:
                return pipe
        raise CannotReplay(
            f"another model: no volume model at hand has the hash {recipe.model_sha256[:16]}...; give its folder with "
            "`--model`"
        )

    def _load(self, place: str) -> Any:
        if self._loaded is None or self._loaded[0] != place:
            self._loaded = None  # so that two models never lie in memory
            self._loaded = place, volume_models.load(place, self._device)
        return self._loaded[1]
