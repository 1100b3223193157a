"""What the base was trained on, how long, and how well its autoencoder does: `training.json` and the loss curve."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.pipeline import SyntheticDicomPipeline

from .base_autoencoder import pca_bar, psnr, reconstruct
from .base_data import PACKS, load_images, read_rows
from .run_folder import write_text

LOGS = ("autoencoder", "decoder", "text_encoder", "unet-128", "unet", "rounds")


def read_stages(work: Path) -> dict[str, dict[str, Any]]:
    """Steps, seconds, final loss and images seen of each stage that ran in `work`."""
    stages = {}
    for name in LOGS:
        if log := read_log(work, name):
            last = log[-1]
            stages[name] = {
                "steps": last["step"],
                "seconds": round(last["seconds"]),
                "final_loss": round(float(np.mean([record["loss"] for record in log[-10:]])), 5),
            }
            if "images" in last:
                stages[name]["images_seen"] = last["images"]
    return stages


def earlier_record(init: Path | None, work: Path) -> list[dict[str, Any]]:
    """Stages of each earlier training that the base `init` came from, oldest first; empty for one from nothing.

    Kept in `work` when first asked for: an export into `init` itself writes there what `work` has trained since.
    """
    path, kept = (init or Path()) / "training.json", work / "earlier.json"
    if init is None or not path.is_file():
        return []
    if not kept.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))
        write_text(kept, json.dumps([*record.get("earlier", []), record["stages"]]))
    found: list[dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def seconds_of(earlier: list[dict[str, Any]], stages: dict[str, Any]) -> int:
    """Seconds of training in all."""
    return sum(stage["seconds"] for run in [*earlier, stages] for stage in run.values())


def training_record(
    data: Path,
    work: Path,
    rows: list[dict[str, str]],
    images: np.ndarray,
    pipe: SyntheticDicomPipeline,
    earlier: list[dict[str, Any]],
) -> dict[str, Any]:
    """Packs, counts, licences, steps, images seen, hardware, seconds, final losses, PSNR on unseen images."""
    stages = read_stages(work)
    accuracy = work / "text_accuracy.json"
    return {
        "hardware": {
            "device": str(pipe.device),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "packs": [
            _pack(name, [row for row in rows if row["pack"] == name]) for name in Counter(r["pack"] for r in rows)
        ],
        "parameters": {
            name: sum(tensor.numel() for tensor in getattr(pipe, name).parameters())
            for name in ("vae", "unet", "text_encoder")
        },
        "stages": stages,
        "earlier": earlier,
        "seconds": seconds_of(earlier, stages),
        "images_seen": sum(stage.get("images_seen", 0) for run in [*earlier, stages] for stage in run.values()),
        "text_encoder_accuracy": json.loads(accuracy.read_text()) if accuracy.is_file() else None,
        "autoencoder_psnr_val": autoencoder_table(data, work, images, pipe),
    }


def _pack(name: str, rows: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "pack": name,
        "modality": PACKS[name],
        "images": len(rows),
        "groups": len({row["group_id"] for row in rows}),
        "licence": sorted({row["licence"] for row in rows}),
        "sources": sorted({row["source"] for row in rows}),
    }


def autoencoder_table(
    data: Path, work: Path, images: np.ndarray, pipe: SyntheticDicomPipeline, most: int = 60
) -> dict[str, dict[str, float]]:
    """Mean PSNR in dB on val images, by pack and by modality, beside that of linear PCA at the same latent size."""
    rows = read_rows(data, split="val")
    val = load_images(rows, 256, work)
    rng = np.random.default_rng(0)
    packs = np.array([row["pack"] for row in rows])
    chosen = np.sort(np.concatenate([rng.permutation(np.flatnonzero(packs == pack))[:most] for pack in PACKS]))
    fitted = images[np.sort(rng.choice(len(images), min(2000, len(images)), replace=False))]
    restored, bar = psnr(val[chosen], reconstruct(pipe.vae, val[chosen])), pca_bar(fitted, val[chosen])
    names = packs[chosen]
    modalities = np.array([PACKS[pack] for pack in names])
    groups = [(pack, names == pack) for pack in PACKS] + [(m, modalities == m) for m in dict.fromkeys(PACKS.values())]
    return {
        name: {"autoencoder_db": round(float(restored[mask].mean()), 2), "pca_db": round(float(bar[mask].mean()), 2)}
        for name, mask in groups
    }


def read_log(work: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a stage's log, empty when it has not run."""
    path = work / f"{name}.log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def draw_loss_curve(work: Path, path: Path) -> None:
    """Loss of the denoiser against images seen, both stages; where neither was trained there is nothing to draw."""
    if not any(read_log(work, name) for name in ("unet-128", "unet")):
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    seen = 0
    for name in ("unet-128", "unet"):
        if log := read_log(work, name):
            axes.plot([seen + r["images"] for r in log], [r["loss"] for r in log], label=name, linewidth=0.8)
            seen += log[-1]["images"]
    axes.set(xlabel="images seen", ylabel="flow matching loss")
    axes.legend()
    figure.savefig(path, dpi=90, metadata={"Software": None})
    pyplot.close(figure)
