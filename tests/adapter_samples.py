"""Tiny adapters (LoRA), made with peft and saved as training does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.pipeline import SyntheticDicomPipeline

from .tiny import tiny_pipeline

WEIGHTS = "pytorch_lora_weights.safetensors"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1")
ALL = (*ATTENTION, "conv1", "conv2", "conv_shortcut", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv_in")


def save_adapter(
    folder: Path,
    targets: Sequence[str] = ALL,
    *,
    seed: int = 0,
    rank: int = 4,
    alpha: float = 8,
    text_targets: Sequence[str] = (),
    dtype: torch.dtype = torch.float16,
    metadata: bool = True,
    **header: str,
) -> SyntheticDicomPipeline:
    """Save a random adapter in a folder; returns a pipeline that still has it, as after training.

    `header` goes to the safetensors metadata: modality="ct", name="my-ct".
    """
    pipe = tiny_pipeline()
    parts = {"unet": targets, "text_encoder": text_targets}
    layers: dict[str, Any] = {}
    torch.manual_seed(seed)
    for part, names in parts.items():
        if not names:
            continue
        model = getattr(pipe, part)
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(names))
        model.add_adapter(config, adapter_name="trained")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_((torch.randn(parameter.shape) * 0.3).to(dtype))
        state = get_peft_model_state_dict(model, adapter_name="trained")
        layers[f"{part}_lora_layers"] = {key: tensor.to(dtype) for key, tensor in state.items()}
        if metadata:
            plain = {key: sorted(v) if isinstance(v, set) else v for key, v in config.to_dict().items()}
            layers[f"{part}_lora_adapter_metadata"] = plain
    StableDiffusionPipeline.save_lora_weights(folder, **layers)
    if header:
        rewrite(folder / WEIGHTS, header=header)
    return pipe


def rewrite(path: Path, change: Any = None, header: dict[str, str] | None = None) -> None:
    """Change the tensors of a file by `change(tensors, config)` (config: its peft metadata), or add to its header."""
    tensors = load_file(path)
    with safe_open(path, "pt") as handle:
        found = dict(handle.metadata())
    config = json.loads(found.get("lora_adapter_metadata", "{}"))
    if change is not None:
        change(tensors, config)
    if config:
        found["lora_adapter_metadata"] = json.dumps(config)
    save_file({key: t.contiguous() for key, t in tensors.items()}, path, metadata=found | (header or {}))


# Changes for `rewrite`.


def without(part: str):
    def change(tensors, config):
        for key in [key for key in tensors if part in key]:
            del tensors[key]

    return change


def renamed(old: str, new: str):
    def change(tensors, config):
        for key in [key for key in tensors if old in key]:
            tensors[key.replace(old, new)] = tensors.pop(key)

    return change


def filled(value: float, part: str = "lora_B", dtype: torch.dtype = torch.float32):
    def change(tensors, config):
        key = next(key for key in tensors if part in key)
        tensors[key] = torch.full(tensors[key].shape, value, dtype=dtype)

    return change


def configured(**values):
    def change(tensors, config):
        config.update({f"unet.{key}": value for key, value in values.items()})

    return change


def wider(tensors, config):
    key = next(key for key in tensors if "attn2.to_k.lora_A" in key)
    tensors[key] = torch.cat([tensors[key]] * 2, 1)
