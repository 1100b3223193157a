"""What an adapter's folder holds: weights with their metadata, `training.json`, samples before and after, a card."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.adapter_files import read_adapter
from pipeline.dicom_profiles import FAMILIES, DicomProfile, choose_profile, modality_of, serves
from pipeline.pipeline_memorisation import INDEX_NAME

from .adapter_base import ADAPTER
from .adapter_card import render_card
from .config import TARGETS
from .data import TrainingData
from .memorisation import index_of_data
from .peak_memory import highest, peak_memory
from .run_folder import WEIGHTS, write_text
from .trainer import AdapterTrainer
from .verdict import judge

MODALITY_SHARE = 0.8  # of the images, for a modality to be the adapter's


def guess_modality(data: TrainingData) -> str | None:
    """The modality that most captions name, by the rules that choose a prompt's DICOM profile; None where mixed."""
    profiles: Counter[DicomProfile] = Counter()
    for index in range(len(data)):
        try:
            profiles[choose_profile(data.plain(index))] += 1
        except ValueError:  # names none
            continue
    for name in [*(modality_of(profile) for profile, _ in profiles.most_common()), *FAMILIES]:
        if sum(n for profile, n in profiles.items() if serves(name, profile)) >= MODALITY_SHARE * len(data):
            return name
    return None


def save_adapter(trainer: AdapterTrainer, folder: Path, metadata: dict[str, str]) -> Path:
    """Write the adapter in place as diffusers does, float16, and add `metadata` to the file's header.

    Every key is in peft's form: diffusers converts a file by its first key alone, and what `convert_state_dict_to_
    diffusers` makes of convolutions and attention together is loaded in part, without an error.
    """
    state = get_peft_model_state_dict(trainer.pipe.unet, adapter_name=ADAPTER)
    # Only what is not peft's default: other versions of peft refuse fields that they do not know.
    settings = {
        "r": trainer.config.rank,
        "lora_alpha": trainer.config.scale,
        "target_modules": sorted(TARGETS[trainer.config.target]),
    }
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers={key: value.detach().half().cpu().contiguous() for key, value in state.items()},
        unet_lora_adapter_metadata=settings,
    )
    path = folder / WEIGHTS
    with safe_open(path, "pt") as handle:
        header = dict(handle.metadata())
    save_file(load_file(path), path, metadata=header | metadata)
    path.chmod(0o644)  # safetensors writes for the owner alone
    return path


def finish(
    trainer: AdapterTrainer,
    data: TrainingData,
    base: dict[str, str],
    init: dict[str, Any] | None,
    prompts: list[str],
    modality: str | None,
    reason: str,
) -> dict[str, Any]:
    """Put the best weights in place as they are shipped, judge them, write all files; returns the record."""
    accelerator, folder = trainer.accelerator, trainer.folder
    begun = time.monotonic()
    trainer.put_in_place()  # what is judged and shown is what is shipped
    with trainer.bare_base():
        before = trainer.sampler.draw(*trainer.sheet_requests())
    after = trainer.sampler.draw(*trainer.sheet_requests())
    verdict = judge(trainer, data)
    record = training_record(trainer, data, base, init, prompts, modality, reason) | {"verdict": verdict}
    if accelerator.is_main_process:
        trainer.write_sheet(before, "before")
        trainer.write_sheet(after, "after")
        part = folder.checkpoint / "finished"
        shutil.rmtree(part, ignore_errors=True)
        metadata = {"name": trainer.config.name, "base_model_sha256": base["model_sha256"]}
        path = save_adapter(trainer, part, metadata | ({"modality": modality} if modality else {}))
        # Read again: what recipes name is the hash of what is in the file, and it must be whole.
        record |= {"bytes": path.stat().st_size, "adapter_sha256": read_adapter(path).sha256}
        index = index_of_data(data)
        index.save(part / INDEX_NAME)
        record["memorisation"] = {"sha256": index.sha256, "threshold": index.threshold, **index.calibration}
        record["seconds"] += round(time.monotonic() - begun)
        write_text(part / "training.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        write_text(part / "README.md", render_card(record))
        folder.publish(part)
    accelerator.wait_for_everyone()
    return record


def training_record(
    trainer: AdapterTrainer,
    data: TrainingData,
    base: dict[str, str],
    init: dict[str, Any] | None,
    prompts: list[str],
    modality: str | None,
    reason: str,
) -> dict[str, Any]:
    """All that `training.json` says but the verdict: data, settings, losses, hardware; no path and no identifier."""
    config, best = trainer.config, trainer.history.best()
    assert best is not None  # a run without ends with an error
    rows, seeds = trainer.sheet_requests()
    order = {int(row): prompt for row, prompt in zip(trainer.encoded.prompts, prompts, strict=True)}
    images = config.batch * config.accumulate
    training = [record["loss"] for record in trainer.folder.read_log() if "loss" in record]
    validation = [r["validation_loss"] for r in trainer.history.records if r["validation_loss"] is not None]
    held_out = data.validation
    return {
        "command": "python -m lora.train",
        "name": config.name,
        "modality": modality,
        "config": config.public(),
        "base": base | {"prediction_type": trainer.objective.prediction_type},
        "init": init,
        "data": {
            "kind": data.kind,
            "images": len(data),
            "people": data.people,
            "people_known": data.people_known,
            "training_images": int((~held_out).sum()),
            "training_people": len(np.unique(data.groups[~held_out])),
            "validation_images": int(held_out.sum()),
            "validation_people": len(np.unique(data.groups[held_out])),
            "unreadable": len(data.unreadable),
            "modalities": data.modalities,
            "licences": list(data.licences),
            "attributions": list(data.attributions),
        },
        "seed": config.seed,
        "steps": trainer.step,
        "kept_step": best["step"],
        "images_seen": trainer.step * images,
        "images_seen_kept": best["step"] * images,
        "stop_reason": reason,
        "losses": {"training": _ends(training), "validation": _ends(validation)},
        "copies": {
            "samples": best["samples"],
            "kept": best["copies"],
            "bare_base": trainer.history.records[0]["copies"],
            "last": trainer.history.records[-1]["copies"],
        },
        "samples": {
            "prompts": [order[row] for row in rows],
            "seeds": seeds,
            "num_inference_steps": trainer.sampler.steps,
            "guidance_scale": trainer.sampler.guidance,
        },
        "parameters": sum(parameter.numel() for parameter in trainer.lora),
        "hardware": _hardware(trainer),
        "seconds": round(trainer.seconds),
        # Not this process's alone: one that only finishes a run takes less than one that trained.
        "peak_memory": highest([*(r.get("peak_memory", {}) for r in trainer.history.records), peak_memory()]),
    }


def _ends(losses: list[float]) -> dict[str, float] | None:
    if not losses:
        return None
    return {"first": losses[0], "best": min(losses), "last": losses[-1]}


def _hardware(trainer: AdapterTrainer) -> dict[str, Any]:
    return {
        "device": trainer.accelerator.device.type,
        "gpu": torch.cuda.get_device_name() if trainer.accelerator.device.type == "cuda" else None,
        "processes": trainer.accelerator.num_processes,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "precision": trainer.accelerator.mixed_precision,
        "torch": torch.__version__,
    }
