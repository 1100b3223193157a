"""Mixed precision where the device has it: bfloat16 without hardware for it is forty times slower than float32."""

from __future__ import annotations

import torch


def has_bfloat16(device: str) -> bool:
    """Whether the device multiplies in bfloat16 natively (a GPU that says so, a CPU with AMX or AVX-512 BF16)."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported()
    asked = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in asked)


def autocast(device: str) -> torch.autocast:
    """Autocast to bfloat16 where that is fast, else a context that changes nothing."""
    return torch.autocast(device.split(":")[0], torch.bfloat16, enabled=has_bfloat16(device))
