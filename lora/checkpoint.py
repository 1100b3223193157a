"""Checkpoints that survive a kill at any moment: safetensors, written under a temporary name, then renamed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def save_checkpoint(
    stem: Path, models: Mapping[str, torch.nn.Module], optimizer: torch.optim.Optimizer, step: int, seconds: float
) -> None:
    """Write `stem`.safetensors with the models' weights, the optimizer's moments, the step and the seconds spent."""
    tensors: dict[str, torch.Tensor] = {}
    for name, model in models.items():
        tensors |= {f"{name}/{key}": value.contiguous() for key, value in model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": torch.as_tensor(v).contiguous() for key, v in moments.items()}
    stem.parent.mkdir(parents=True, exist_ok=True)
    part = stem.with_name(stem.name + ".part")
    save_file(tensors, part, metadata={"step": str(step), "seconds": str(seconds)})
    part.rename(stem.with_name(stem.name + ".safetensors"))


def load_checkpoint(
    stem: Path, models: Mapping[str, torch.nn.Module], optimizer: torch.optim.Optimizer | None = None
) -> tuple[int, float]:
    """Load what `save_checkpoint` wrote; returns (step, seconds spent), or (0, 0.0) when there is none."""
    path = stem.with_name(stem.name + ".safetensors")
    if not path.is_file():
        return 0, 0.0
    states: dict[str, dict[str, torch.Tensor]] = {name: {} for name in models}
    moments: dict[int, dict[str, torch.Tensor]] = {}
    with safe_open(path, "pt") as handle:
        metadata = handle.metadata()
        for key in handle.keys():  # noqa: SIM118 (safe_open is no dictionary)
            owner, _, rest = key.partition("/")
            if owner == "optimizer":
                index, _, name = rest.partition("/")
                moments.setdefault(int(index), {})[name] = handle.get_tensor(key)
            elif owner in states:
                states[owner][rest] = handle.get_tensor(key)
    for name, model in models.items():
        model.load_state_dict(states[name])
    if optimizer is not None:
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        # Fused kernels read memory in order: the moments need the memory layout (channels last) of their parameter.
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if value.shape == parameter.shape:
                    state[key] = torch.empty_like(parameter).copy_(value)
    return int(metadata["step"]), float(metadata["seconds"])


def log_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object as a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in record.items()}) + "\n")
