"""A project as publishing reads it, at tiny size: the tiny model, one stand-in adapter, real cards and app."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from hub_cards.build import Project

from .adapter_samples import ATTENTION, save_adapter
from .tiny import tiny_pipeline

ROOT = Path(__file__).parents[1]
ADAPTER = "nuclei"

# What `lora.adapter_record.training_record` and `finish` write.
RECORD: dict[str, Any] = {
    "command": "python -m lora.train",
    "name": ADAPTER,
    "modality": "nuclei",
    "config": {"rank": 4},
    "base": {"name": "synthetic-dicom", "model_sha256": "0" * 64},
    "data": {
        "kind": "folder",
        "images": 4321,
        "people": 765,
        "people_known": False,
        "training_images": 4000,
        "training_people": 700,
        "validation_images": 321,
        "validation_people": 65,
        "unreadable": 0,
        "licences": ["CC0"],
        "attributions": ["somebody"],
    },
    "steps": 1234,
    "kept_step": 1200,
    "images_seen": 9876,
    "copies": {"samples": 8, "kept": 0, "bare_base": 0, "last": 0},
    "samples": {"prompts": ["fluorescence microscopy of cell nuclei"], "seeds": [0], "num_inference_steps": 3},
    "hardware": {"device": "cpu", "gpu": None, "cores": 2},
    "seconds": 1800,
    "bytes": 123456,
    "verdict": {"conclusion": "helped", "sentence": "The adapter helped: KID went from 0.911 to 0.322."},
}


def _kid(value: float) -> dict[str, Any]:
    return {"kid": value, "low": value - 0.0123, "high": value + 0.0234, "count": 180, "count_real": 100}


def _share(value: float) -> dict[str, Any]:
    return {"count": 180, "recognised": {"share": value, "low": value - 0.05, "high": value + 0.05}}


# What `evaluation.adapters.compare_adapters` writes.
RESULTS: dict[str, Any] = {
    "what": "adapters",
    "adapters": {
        ADAPTER: {
            "kid": {
                "without": _kid(0.8765),
                "with": _kid(0.2345),
                "floor": _kid(0.0456),
                "fall": 0.7325,
                "target": 0.6,
                "met": True,
            },
            "networks": {"own": {"network": "own (ResNet-50)", "kid": {"fall": 0.6789}}},
            "judge": {"without": _share(0.0111), "with": _share(0.9222), "real_val": _share(0.9833)},
        }
    },
}


def make_project(root: Path) -> Project:
    """Copy what publishing and its examples read to a folder, with the tiny model and a stand-in adapter."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyi")
    for folder in ("hub_cards", "evaluation"):
        shutil.copytree(ROOT / folder, root / folder, ignore=ignore)
    for path in (*ROOT.glob("app*.py"), *(ROOT / name for name in ("requirements.txt", "LICENSE", "README.md"))):
        shutil.copyfile(path, root / path.name)
    tiny_pipeline().save_pretrained(root / "pipeline")
    for path in (*(ROOT / "pipeline").glob("*.py"), ROOT / "pipeline" / "training.json"):
        shutil.copyfile(path, root / "pipeline" / path.name)
    (root / "lora").mkdir()
    for path in (ROOT / "lora").glob("*.py"):
        shutil.copyfile(path, root / "lora" / path.name)
    adapter = root / "lora" / ADAPTER
    save_adapter(adapter, ATTENTION, seed=5, modality="nuclei", name=ADAPTER)
    (adapter / "samples").mkdir()
    for name in ("before", "after", "0001"):
        Image.new("RGB", (64, 64), "gray").save(adapter / "samples" / f"{name}.jpg")
    for path, value in ((adapter / "training.json", RECORD), (root / "evaluation/results/adapters.json", RESULTS)):
        path.write_text(json.dumps(value), encoding="utf-8")
    # What must not be published.
    for stray in ("pipeline/.DS_Store", "pipeline/unet/config.json.bak", "pipeline/__pycache__/x.py", "app.py.part"):
        (root / stray).parent.mkdir(exist_ok=True)
        (root / stray).write_text("stray")
    return Project(root, (ADAPTER,))


def make_images(folder: Path, count: int = 12) -> Path:
    """An imagefolder of small pictures with captions."""
    folder.mkdir(parents=True)
    with (folder / "metadata.csv").open("w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["file_name", "text", "licence"])
        for i in range(count):
            Image.effect_noise((72, 64), 20 + i).save(folder / f"{i}.png")
            table.writerow([f"{i}.png", "chest X-ray, PA view", "CC0"])
    return folder
