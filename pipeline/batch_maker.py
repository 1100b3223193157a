"""One row of a list of prompts after the other, into whole files: what a worker of a batch does."""

from __future__ import annotations

import errno
import gc
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.filereader import read_file_meta_info
from pydicom.uid import ExplicitVRLittleEndian

from . import (
    adapter_names,
    batch_csv,
    dicom_files,
    dicom_output,
    dicom_patient,
    dicom_pixels,
    dicom_provenance,
    verification,
)

Row = batch_csv.Row
Entry = batch_csv.Entry

STAGING = ".batch"  # under the output folder: what is not whole yet


class OutputError(Exception):
    """Nothing more can be written; what is there is whole."""


@dataclass(frozen=True)
class Settings:
    """What all rows share."""

    out: Path
    model: str
    device: str | None = None
    compression: str | None = None
    png: bool = False
    key: bytes | None = None
    patient: dicom_patient.Patient | None = None
    study: dicom_patient.Study | None = None
    check_memorisation: bool = False
    watermark: bool = False


class Maker:
    """A pipeline that makes one row after the other."""

    def __init__(self, settings: Settings) -> None:
        import torch

        torch.set_num_threads(1)
        self.settings = settings
        try:
            self._pipe = load_pipeline(settings.model, settings.device)
        except OSError as error:
            raise ValueError(f"`--model` cannot be loaded: {error}") from error
        self._pipe.set_progress_bar_config(disable=True)
        self._adapter: str | None = None
        self._staging = settings.out / STAGING / f"{platform.node()}-{os.getpid()}"  # there may be several machines

    def make(self, row: Row, known: Sequence[str] = ()) -> Iterator[tuple[Entry, bool]]:
        """Give an entry for each image of a row, and whether it was made just now; `known` files may be such images.

        Raises
        ------
        OutputError
            It cannot be written; whatever else goes wrong is told in the entry.
        """
        for place, seed in enumerate(range(row.seed, row.seed + row.count)):
            try:
                self._take_adapter(row.adapter)
                yield self._image(row, seed, row.first_instance + place, known)
            except OutputError:
                raise
            except Exception as error:  # one row that fails, in whatever way, must not stop the others
                words = " ".join(str(error).split()) or type(error).__name__
                yield Entry(row.number, "failed", "", "", seed, words[:500]), True
            gc.collect()

    def _image(self, row: Row, seed: int, instance: int, known: Sequence[str]) -> tuple[Entry, bool]:
        settings = self.settings
        request: dict[str, Any] = {
            "modality": row.modality,
            "negative_prompt": row.negative_prompt,
            "num_inference_steps": row.steps,
            "guidance_scale": row.guidance,
            "watermark": settings.watermark,
        }
        recipe = self._pipe.plan(row.prompt, seed=seed, **request)
        uid = dicom_output.uids_of(recipe, settings.patient, settings.study)[2]
        name = f"{dicom_files.stem_of(recipe, uid)}.dcm"
        for candidate in dict.fromkeys((name, *known)):
            if found := self._there(candidate, recipe):
                return Entry(row.number, "made", candidate, found, seed), False
        output = self._pipe(
            row.prompt,
            seed=seed,
            patient=settings.patient,
            study=settings.study,
            check_memorisation=settings.check_memorisation,
            **request,
        )
        dataset = output.dicoms[0]
        dataset.InstanceNumber = instance
        shared = dicom_patient.names_someone(
            settings.patient or dicom_patient.Patient(), settings.study or dicom_patient.Study()
        )
        dataset.SeriesNumber = row.series if shared else 1
        pictures = [np.asarray(output.images[0], np.float32) / 255] if settings.png else None
        with writing():
            paths = dicom_files.write_files(
                [dataset], self._staging, compression=settings.compression, png_pixels=pictures, key=settings.key
            )
            for path in reversed(paths):  # the DICOM file last: where it is, all is
                self._put(path, output.recipes[0])
        return Entry(row.number, "made", paths[0].name, str(dataset.SOPInstanceUID), seed), True

    def _there(self, name: str, recipe: dicom_provenance.Recipe) -> str | None:
        """The SOP Instance UID of a file that is there, whole, and what these settings make of this recipe."""
        settings = self.settings
        path = settings.out / name
        if Path(name).name != name or not path.is_file():
            return None
        try:
            found = verification.verify(path, key=settings.key)
            if not found.ok or found.recipe is None or not _is_of(found.recipe, recipe):
                return None
            if found.sop_instance_uid != dicom_output.uids_of(found.recipe, settings.patient, settings.study)[2]:
                return None  # of another patient
            syntax = read_file_meta_info(path).TransferSyntaxUID
            if syntax != dicom_pixels.COMPRESSIONS.get(settings.compression or "", ExplicitVRLittleEndian):
                return None
            if settings.check_memorisation and found.recipe.copy_check is None:
                return None
            if settings.png and not verification.verify(path.with_suffix(".png"), key=settings.key).ok:
                return None
            return found.sop_instance_uid
        except ValueError:
            return None

    def _put(self, path: Path, recipe: dicom_provenance.Recipe) -> None:
        """Move a whole file to its place. What is there already is another image, this one made otherwise, or damaged.

        A damaged one is kept beside, as NAME.damaged.
        """
        target = self.settings.out / path.name
        if target.exists():
            try:
                found = verification.verify(target)
                whole = found.ok and found.recipe is not None
            except ValueError:
                whole = False
            if whole and (found.recipe is None or not _is_of(found.recipe, recipe)):
                path.unlink()
                raise FileExistsError(f"`--out` already holds another {path.name}")
            if not whole:
                os.replace(target, target.with_name(f"{target.name}.damaged"))
        os.replace(path, target)

    def _take_adapter(self, text: str | None) -> None:
        """Have the adapter of a row loaded and no other, so that none is picked that the row does not name."""
        if text == self._adapter:
            return
        self._pipe.unload_lora_weights()
        self._adapter = None
        if text is not None:
            source, weight = adapter_names.parse_adapter(text)
            self._pipe.set_adapters([self._pipe.load_lora_weights(source)], [weight])
            self._adapter = text


def _is_of(found: dicom_provenance.Recipe, wanted: dicom_provenance.Recipe) -> bool:
    """Whether an image is that of a recipe; of one that was redrawn, the seed that was asked for counts."""
    if found.copy_check is not None:
        found = replace(found, seed=found.copy_check.first_seed)
    if wanted.copy_check is not None:
        wanted = replace(wanted, seed=wanted.copy_check.first_seed)
    return found.digest() == wanted.digest()


@contextmanager
def writing(state: Callable[[], str] | None = None) -> Iterator[None]:
    """Turn what the file system says into one sentence, with the `state` of things behind it."""
    try:
        yield
    except FileExistsError:
        raise
    except OutputError as error:
        raise OutputError(f"{error}{state() if state else ''}") from error
    except OSError as error:
        why = f"cannot be written to ({error.strerror or type(error).__name__})"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = "is on a disk that is full"
        raise OutputError(f"`--out` {why}{state() if state else ''}") from error


def load_pipeline(
    model: str | os.PathLike[str], device: str | None = None, adapters: Sequence[tuple[str, float]] = ()
) -> Any:
    """Load the pipeline of images onto a device, by default the best there is, with adapters at their weights.

    Raises
    ------
    ValueError
        The device cannot be used, or an adapter is none.
    """
    from . import pipeline as pipeline_module

    pipe = pipeline_module.SyntheticDicomPipeline.from_pretrained(model)
    try:
        pipe.to(device or pipeline_module.best_device())
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`--device` is {device!r}, which cannot be used here") from error
    names = [pipe.load_lora_weights(source) for source, _ in adapters]
    if names:
        pipe.set_adapters(names, [weight for _, weight in adapters])
    return pipe


def quieten() -> None:
    """Silence the bars of the libraries; imports torch, which takes seconds."""
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    disable_progress_bars()
