"""What a training of volumes leaves behind for people: sample sheets, and the record that becomes `training.json`."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from pipeline.volume.volume_pipeline import SyntheticDicomVolumePipeline

from .volume_data import VolumeSet


def draw_sheet(pipe: SyntheticDicomVolumePipeline, path: Path, count: int = 6) -> None:
    """Draw the same volumes each time, for the eye: three orthogonal slices a row, without and with the labels."""
    pipe.set_progress_bar_config(disable=True)
    out = pipe("T1 MRI of the hippocampus", seed=1, num_volumes_per_prompt=count)
    assert out.masks is not None
    rows = [three_views(volume, mask) for volume, mask in zip(np.asarray(out.volumes), out.masks, strict=True)]
    sheet = Image.fromarray(np.concatenate(rows))
    sheet.resize((sheet.width * 3, sheet.height * 3), Image.Resampling.NEAREST).save(path)


def three_views(volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Sagittal, coronal and axial slice through the middle of the labels, side by side, then the same with outlines.

    Takes (X, Y, Z) in [0, 1] and its label map; gives uint8 RGB, up is superior (axial: anterior).
    """
    where = np.argwhere(mask) if mask.any() else np.array(mask.shape)[None] / 2
    middle = [int(round(float(v))) for v in where.mean(0)]
    height = max(mask.shape)
    plain, outlined = [], []
    for axis in range(3):
        grey = np.take(volume, middle[axis], axis).T[::-1]
        label = np.take(mask, middle[axis], axis).T[::-1]
        rgb = np.repeat((grey * 255).round().astype(np.uint8)[..., None], 3, -1)
        inner = label.copy()
        for shift, along in ((1, 0), (-1, 0), (1, 1), (-1, 1)):
            inner = np.where(np.roll(label, shift, along) == label, inner, 0)
        drawn = rgb.copy()
        for value, colour in ((1, (255, 80, 60)), (2, (60, 200, 255))):
            drawn[(label == value) & (inner == 0)] = colour
        padding = ((0, height - len(rgb)), (0, 2), (0, 0))
        plain.append(np.pad(rgb, padding))
        outlined.append(np.pad(drawn, padding))
    return np.concatenate([*plain, *outlined], 1)


def training_record(config: Any, volumes: VolumeSet, unet: UNet2DConditionModel) -> dict[str, Any]:
    """Data, counts, licences, steps, seconds, losses, hardware: what `training.json` says."""
    log = [json.loads(line) for line in (config.work / "volume.log.jsonl").read_text().splitlines()]
    return {
        "config": config.public(),
        "hardware": {
            "device": config.device,
            "gpu": torch.cuda.get_device_name() if config.device.startswith("cuda") else None,
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "packs": [
            {
                "pack": config.data.resolve().name,
                "modality": "MR",
                "volumes": len(volumes.names),
                "part": "train",
                "licence": list(volumes.licences),
                "sources": list(volumes.sources),
            }
        ],
        # Hashes alone: a file's name may be a patient's, and this record is published.
        "names": [hashlib.sha256(name.encode()).hexdigest()[:16] for name in volumes.names],
        "split": "by volume, from the SHA-256 of the file name: 80 % train, 10 % val, 10 % test; only train was read",
        "intensities": "each volume's 0.5th and 99.5th percentile to -1 and 1, cut beyond",
        "parameters": {"unet": sum(tensor.numel() for tensor in unet.parameters())},
        "steps": log[-1]["step"],
        "volumes_seen": log[-1]["volumes"],
        "seconds": round(log[-1]["seconds"]),
        "losses": [
            {k: record[k] for k in ("step", "loss_image", "loss_labels")} for record in log[:: len(log) // 40 + 1]
        ],
        "final_loss": {
            key: round(float(np.mean([record[key] for record in log[-10:]])), 5)
            for key in ("loss_image", "loss_labels")
        },
    }
