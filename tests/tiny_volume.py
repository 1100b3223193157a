"""Real classes at tiny size for volumes: a pipeline with random weights, and a pack of made-up ones."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch

from lora.train_volumes import SUBJECT, build_scheduler, build_unet
from pipeline.volume.volume_covariates import Distribution
from pipeline.volume.volume_pipeline import SyntheticDicomVolumePipeline

from .tiny import tiny_pipeline

SHAPE = (6, 8, 4)
NAMES = ("anterior_mm3", "posterior_mm3")
VALUES = np.array([[20.0, 30], [24, 28], [30, 44], [36, 36], [28, 40]])


def tiny_volume_pipeline(seed: int = 0) -> SyntheticDicomVolumePipeline:
    """A pipeline of real components with random weights; volumes are 6x8x4."""
    image = tiny_pipeline()
    torch.manual_seed(seed)
    unet = build_unet(SHAPE, len(NAMES), (16, 16), image.text_encoder.config.hidden_size)
    pipe = SyntheticDicomVolumePipeline(
        text_encoder=image.text_encoder,
        tokenizer=image.tokenizer,
        unet=unet.eval(),
        scheduler=build_scheduler(),
        training_distribution=Distribution.of(NAMES, VALUES).to_config(),
        geometry={"axes": "RAS", "spacing": [1.0, 1.0, 1.0]},
        subject=SUBJECT,
        model_name="tiny-volume",
        default_num_inference_steps=3,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write_pack(folder: Path, count: int = 12, shape: tuple[int, ...] = SHAPE) -> Path:
    """A pack of volumes, each with a bright block of two labels."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (folder / "metadata.csv").open("w", newline="") as handle:
        columns = ["file_name", "shape", "axes", "spacing_mm", "vol_anterior_mm3", "vol_posterior_mm3"]
        table = csv.DictWriter(handle, [*columns, "source", "licence"])
        table.writeheader()
        for i in range(count):
            mask = np.zeros(shape, np.uint8)
            front = int(rng.integers(4, 6))
            mask[1:5, front:7, 1:3], mask[1:5, 1:front, 1:3] = 1, 2
            image = (mask > 0) * 120 + rng.integers(0, 60, shape)
            np.savez(folder / f"v{i:02d}.npz", image=image.astype(np.uint8), mask=mask)
            table.writerow(
                {
                    "file_name": f"v{i:02d}.npz",
                    "shape": "x".join(map(str, shape)),
                    "axes": "RAS (i=R,j=A,k=S)",
                    "spacing_mm": "1.0x1.0x1.0",
                    "vol_anterior_mm3": int((mask == 1).sum()),
                    "vol_posterior_mm3": int((mask == 2).sum()),
                    "source": "made up",
                    "licence": "CC0",
                }
            )
    return folder
