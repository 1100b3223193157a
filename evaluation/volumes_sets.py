"""Sets of volumes with label maps to compare: real ones from a pack, and generated ones, kept in a cache."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from lora.volume_data import read_volumes

BATCH = 8  # volumes a call
PROMPT = "3D T1-weighted MRI crop of the hippocampus"


@dataclass(frozen=True, eq=False)
class VolumePairs:
    """Volumes and their label maps.

    Attributes
    ----------
    images
        Float32 (N, X, Y, Z) in [0, 1].
    masks
        uint8 (N, X, Y, Z): 0 background, label i is structure i.
    requested
        float64 (N, labels), the mm3 that were asked for; None for real volumes.
    """

    images: np.ndarray
    masks: np.ndarray
    requested: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class RealVolumes:
    """What a model of a pack was trained on and what it never saw, with the pack's `labels` and mm3 of a `voxel`."""

    train: VolumePairs
    unseen: VolumePairs
    labels: tuple[str, ...]
    voxel: float


def read_real(folder: str | Path) -> RealVolumes:
    """Read a pack: its part "train", and as unseen its parts "val" and "test", which training does not touch.

    Raises
    ------
    FileNotFoundError
        There is no `metadata.csv`.
    ValueError
        A part is empty, or the volumes differ in shape or geometry.
    """
    train, *held = (read_volumes(Path(folder), part) for part in ("train", "val", "test"))
    if any(one.images.shape[1:] != train.images.shape[1:] or one.spacing != train.spacing for one in held):
        raise ValueError(f"`data` is {str(folder)!r}, whose parts differ in shape or spacing; allowed is one")
    unseen = (np.concatenate([getattr(one, key) for one in held]) for key in ("images", "masks"))
    return RealVolumes(
        VolumePairs(_in_unit_range(train.images), train.masks),
        VolumePairs(_in_unit_range(next(unseen)), next(unseen)),
        tuple(name.removesuffix("_mm3") for name in train.covariates),
        float(np.prod(train.spacing)),
    )


def _in_unit_range(images: np.ndarray) -> np.ndarray:
    return (images / 2 + 0.5).astype(np.float32)


def measured(masks: np.ndarray, labels: int, voxel: float) -> np.ndarray:
    """Volumes of the structures in label maps (N, X, Y, Z), in mm3: float64 (N, labels)."""
    return np.stack([(masks == i + 1).sum((1, 2, 3)) * voxel for i in range(labels)], 1)


def load_volume_pipeline(model: str | Path) -> Any:
    """Load the pipeline from a folder or a Hub id, on the best device there is."""
    from pipeline.pipeline import best_device
    from pipeline.volume import SyntheticDicomVolumePipeline

    if Path(model).is_dir() and not (Path(model) / "model_index.json").is_file():
        raise ValueError(f"`model` is {str(model)!r}, which has no model_index.json: it holds no trained model")
    return SyntheticDicomVolumePipeline.from_pretrained(str(model)).to(best_device())


def generate_volumes(
    pipe: Any,
    count: int,
    *,
    seed: int = 0,
    prompt: str = PROMPT,
    steps: int | None = None,
    guidance: float | None = None,
    cache: str | Path | None = None,
) -> tuple[VolumePairs, dict[str, Any]]:
    """Make volumes, volume i with seed + i and sizes that this seed draws from the training volumes' distribution.

    Parameters
    ----------
    pipe
        A `SyntheticDicomVolumePipeline`.
    count
        Volumes, at least 1.
    seed
        Of the first.
    prompt
        For all of them.
    steps, guidance
        None for the pipeline's defaults.
    cache
        Folder that keeps every volume, so that an interrupted run goes on where it stopped.

    Returns
    -------
    pairs : VolumePairs
        With what was requested.
    settings : dict
        What made them.
    """
    if count < 1:
        raise ValueError(f"`count` is {count}: numbers from 1 are allowed")
    settings: dict[str, Any] = {
        "model": pipe.model_name,
        "model_sha256": pipe.model_sha256,
        "scheduler": type(pipe.scheduler).__name__,
        "num_inference_steps": pipe.config.default_num_inference_steps if steps is None else steps,
        "guidance_scale": pipe.config.default_guidance_scale if guidance is None else guidance,
        "prompt": prompt,
    }
    folder = Path(cache) / "volumes" if cache else None
    pipe.set_progress_bar_config(disable=True)
    found: dict[int, tuple[np.ndarray, ...]] = {}
    paths: dict[int, Path] = {}
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            key = json.dumps([1, settings, dict(pipe.scheduler.config), seed + index], sort_keys=True, default=str)
            paths[index] = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
            if paths[index].is_file():
                with np.load(paths[index], allow_pickle=False) as arrays:
                    found[index] = (arrays["image"], arrays["mask"], arrays["requested"])
    missing = [index for index in range(count) if index not in found]
    with tqdm(total=count, initial=len(found), desc="generating", unit="volume") as bar:
        for run in _in_a_row(missing):
            out = pipe(
                prompt,
                seed=seed + run[0],
                num_volumes_per_prompt=len(run),
                num_inference_steps=steps,
                guidance_scale=guidance,
            )
            for i, image, mask, asked in zip(run, out.volumes, out.masks, out.covariates, strict=True):
                found[i] = (image, mask, np.array(list(asked.values()), np.float64))
                if folder:
                    part = paths[i].with_suffix(".part.npz")
                    np.savez(part, image=image, mask=mask, requested=found[i][2])
                    part.replace(paths[i])
            bar.update(len(run))
    columns = [np.stack([found[i][k] for i in range(count)]) for k in range(3)]
    return VolumePairs(columns[0].astype(np.float32), columns[1], columns[2]), settings


def _in_a_row(places: list[int]) -> list[list[int]]:
    """Runs of at most `BATCH` numbers that follow one another, as the seeds of a call do."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][-1] + 1 and len(runs[-1]) < BATCH:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs
