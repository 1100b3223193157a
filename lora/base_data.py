"""The images that the embedded base learns from: which packs, read once, squared, kept as one array.

A *pack* is an imagefolder (`images/` and a `metadata.csv` with `file_name`, `split`, `label`, `text`, ...); see the
README for where each comes from and its licence. Nothing is flipped: in radiology left and right carry meaning.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from pipeline.dicom_input import square

# Packs by the modality they teach. `cxr_covid` and `nuclei_dsb2018` are left out: adapters teach those.
PACKS: dict[str, str] = {
    "cxr_kermany": "chest-xray",
    "cxr_nih": "chest-xray",
    "cxr_shenzhen_tb": "chest-xray",
    "ct_lung_iqothnccd": "ct",
    "ct_chest_luad": "ct",
    "ct_head_hemorrhage": "ct",
    "mri_brain_tumor": "brain-mri",
    "blood_pbc": "blood-smear",
    "blood_malaria": "blood-smear",
    "blood_rbc_chula": "blood-smear",
    "blood_bccd": "blood-smear",
}

# How often a pack is drawn, relative to its share of images: small packs a little oftener, single cells on black rarer.
PACK_WEIGHTS: dict[str, float] = {
    "ct_chest_luad": 2.5,
    "ct_head_hemorrhage": 2.5,
    "ct_lung_iqothnccd": 1.8,
    "blood_malaria": 0.4,
}


def read_rows(data: Path, packs: Sequence[str] = tuple(PACKS), split: str | None = None) -> list[dict[str, str]]:
    """Rows of the packs' `metadata.csv`, each with `pack` and `path` added.

    Parameters
    ----------
    data
        Folder that holds one folder a pack.
    packs
        Names of the packs to read.
    split
        `"train"`, `"val"` or None for both.

    Raises
    ------
    FileNotFoundError
        A pack's `metadata.csv` is absent.
    """
    csv.field_size_limit(2**30)
    rows: list[dict[str, str]] = []
    for pack in packs:
        table = data / pack / "metadata.csv"
        if not table.is_file():
            raise FileNotFoundError(f"`data` has no pack {pack!r}: expected {table}")
        with table.open(newline="", encoding="utf-8") as handle:
            for row in csv.DictReader(handle):
                if split is None or row["split"] == split:
                    rows.append({**row, "pack": pack, "path": str(data / pack / row["file_name"])})
    return rows


def read_square(path: str | Path, size: int) -> np.ndarray:
    """One picture as uint8 (size, size, 3), squared without squashing."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    return np.round(square(pixels, size) * 255).clip(0, 255).astype(np.uint8)


def files_of(rows: Sequence[dict[str, str]]) -> list[tuple[str, str, int, int]]:
    """Pack, name, bytes and time of change of each row's picture: by these a cache knows whether it still holds."""
    status = [os.stat(row["path"]) for row in rows]
    return [(r["pack"], r["file_name"], s.st_size, s.st_mtime_ns) for r, s in zip(rows, status, strict=True)]


def load_images(rows: Sequence[dict[str, str]], size: int, cache: Path | None = None) -> np.ndarray:
    """All rows' pictures as uint8 (N, size, size, 3); with `cache` a folder, memory-mapped from there the next time."""
    key = hashlib.sha256(json.dumps([size, files_of(rows)]).encode()).hexdigest()[:16]
    stored = cache / f"images-{key}.npy" if cache else None
    if stored and stored.is_file():
        return np.load(stored, mmap_mode="r")
    images = np.stack([read_square(r["path"], size) for r in tqdm(rows, desc="reading images", mininterval=5)])
    if stored:
        stored.parent.mkdir(parents=True, exist_ok=True)
        part = stored.with_suffix(f".{os.getpid()}.part.npy")
        np.save(part, images)
        part.rename(stored)
    return images


def draw_weights(rows: Sequence[dict[str, str]]) -> np.ndarray:
    """Probability of drawing each row, float64 (N,), summing to 1."""
    weights = np.array([PACK_WEIGHTS.get(r["pack"], 1.0) for r in rows], dtype=np.float64)
    return weights / weights.sum()
