"""What a call of `SyntheticDicomPipeline` allows: each argument named, with its value and what is allowed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel

OUTPUT_TYPES = ("dicom", "pil", "np", "pt", "latent")
MAX_SEED = 2**63 - 1


def check_inputs(
    prompts: list[str],
    negative: Any,
    image: Any,
    strength: float,
    count: int,
    output_type: str,
    steps: int | None,
    guidance: float | None,
    callback_inputs: Sequence[str],
) -> list[str]:
    """Refuse what cannot work, before any work; returns one negative prompt per prompt."""
    if not prompts:
        raise ValueError("`prompt` is an empty list; give at least one prompt")
    for text in prompts:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"`prompt` must be text, and not empty; got {text!r}")
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"`output_type` is {output_type!r}; allowed are {', '.join(map(repr, OUTPUT_TYPES))}")
    if image is not None and not (_is_number(strength) and 0 < strength <= 1):
        raise ValueError(f"`strength` is {strength!r}; allowed is above 0 and at most 1")
    if not _is_whole(count) or count < 1:
        raise ValueError(f"`num_images_per_prompt` is {count!r}; allowed is a whole number of at least 1")
    if steps is not None and (not _is_whole(steps) or not 1 <= steps <= 1000):
        raise ValueError(f"`num_inference_steps` is {steps!r}; allowed is a whole number from 1 to 1000")
    if guidance is not None and not (_is_number(guidance) and 0 <= guidance <= 100):
        raise ValueError(f"`guidance_scale` is {guidance!r}; allowed is a number from 0 to 100")
    if unknown := set(callback_inputs) - {"latents", "prompt_embeds", "denoised"}:
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` has {sorted(unknown)}; "
            "allowed are 'latents', 'prompt_embeds', 'denoised'"
        )
    negatives = [negative or ""] * len(prompts) if negative is None or isinstance(negative, str) else list(negative)
    if len(negatives) != len(prompts) or not all(isinstance(text, str) for text in negatives):
        raise ValueError(f"`negative_prompt` must be one text, or {len(prompts)} like `prompt`; got {negative!r}")
    return negatives


def check_size(
    unet: UNet2DConditionModel, scale_factor: int, height: int | None, width: int | None, needs_square: bool
) -> tuple[int, int]:
    """Give height and width in pixels, the model's own where none are given; a ValueError names what is not allowed."""
    sample = unet.config.sample_size
    rows, columns = (sample, sample) if isinstance(sample, int) else sample
    given = {"height": height, "width": width}
    size = {"height": rows * scale_factor, "width": columns * scale_factor}
    # The denoiser halves the latents at each of its levels, so they must divide.
    factor = scale_factor * 2 ** (len(unet.config.block_out_channels) - 1)
    for name, value in given.items():
        if value is None:
            continue
        if not _is_whole(value) or value < factor or value % factor or value > 2048:
            raise ValueError(f"`{name}` is {value!r}; allowed is a multiple of {factor} up to 2048")
        size[name] = value
    if needs_square and size["height"] != size["width"]:
        raise ValueError(
            f"`height` and `width` are {size['height']} and {size['width']}; with `image` both must be equal"
        )
    return size["height"], size["width"]


def seeds_of(seed: Any, generator: Any, count: int) -> list[int]:
    """Give one seed an image: those given, counted up from one, or drawn; a ValueError for any other."""
    if seed is not None and generator is not None:
        raise ValueError("`seed` and `generator` are both given; give one of them")
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        seeds = list(seed)
        if len(seeds) != count:
            raise ValueError(
                f"`seed` has {len(seeds)} values; allowed is one number, or one for each of {count} images"
            )
    elif seed is not None:
        seeds = [seed + i for i in range(count)] if _is_whole(seed) else [seed]
    elif isinstance(generator, Sequence):
        if len(generator) != count:
            raise ValueError(
                f"`generator` has {len(generator)} entries; allowed is one, or one for each of {count} images"
            )
        seeds = [_draw_seed(g) for g in generator]
    else:
        seeds = [_draw_seed(generator) for _ in range(count)] if generator else []
        if not seeds:
            first = int.from_bytes(os.urandom(4), "big")
            seeds = [first + i for i in range(count)]
    for value in seeds:
        if not _is_whole(value) or not 0 <= value <= MAX_SEED:
            raise ValueError(f"`seed` is {value!r}; allowed is a whole number from 0 to {MAX_SEED}")
    return [int(value) for value in seeds]


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool) and np.isfinite(value)
    )


def _draw_seed(generator: torch.Generator) -> int:
    if not isinstance(generator, torch.Generator):
        raise ValueError(f"`generator` must be a torch.Generator, not {type(generator).__name__}")
    return int(torch.randint(0, 2**32, (1,), generator=generator, device=generator.device).item())
