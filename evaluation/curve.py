"""KID against hours of training, from copies of the base that `train_base --snapshot-every` left behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lora.base_data import load_images
from pipeline.batch_maker import load_pipeline

from .features import extract_features
from .fidelity import MINIMUM_COUNT, kernel_distance
from .images import MODALITIES, SIZE, count_by, generate, real_rows, spread
from .report import read_json


def curve(
    models: Sequence[str | Path],
    data: str | Path,
    *,
    modalities: Sequence[str] = MODALITIES,
    count: int = 50,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int = 4,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """KID of every modality for each of several copies of a model, in order of their hours of training.

    Parameters
    ----------
    models
        Folders, each with a `training.json` that says how many `seconds` it was trained for.
    data
        Folder with the packs.
    modalities
        User-facing names.
    count
        Images a modality and copy; the same prompts and seeds for all copies.
    seed, steps, guidance, batch, cache
        As for `generate`.

    Raises
    ------
    ValueError
        Too few images, or a folder without a record of its training.
    """
    if count < MINIMUM_COUNT:
        raise ValueError(f"`count` is {count}: KID needs at least {MINIMUM_COUNT} images")
    hours = {}
    for model in models:
        record = Path(model) / "training.json"
        if not record.is_file():
            raise ValueError(f"`models` has {Path(model).name!r}: it holds no training.json")
        hours[model] = read_json(record)["seconds"] / 3600
    kept = Path(cache) if cache else None
    real, prompts = {}, {}
    for modality in modalities:
        rows = real_rows(data, modality, "val")
        prompts[modality] = [row["text"] for row in spread(rows, "pack", count_by(rows, "pack"), count, seed)]
        real[modality] = extract_features(load_images(rows, SIZE, kept), description=f"features of real {modality}")
    points: list[dict[str, Any]] = []
    for model in sorted(hours, key=lambda one: hours[one]):
        pipe = load_pipeline(model)
        point: dict[str, Any] = {"hours": round(hours[model], 3), "model_sha256": pipe.model_sha256, "kid": {}}
        for modality in modalities:
            images, _ = generate(
                pipe,
                prompts[modality],
                seed=seed,
                modality=modality,
                steps=steps,
                guidance=guidance,
                batch=batch,
                cache=cache,
            )
            features = extract_features(images, description=f"features of {modality}")
            point["kid"][modality] = asdict(kernel_distance(features, real[modality], seed=seed))
        point["mean_kid"] = float(np.mean([found["kid"] for found in point["kid"].values()]))
        points.append(point)
    return {"what": "curve", "measure": "KID against hours of training in all", "seed": seed, "points": points}
