"""Seconds an image: our pipeline, the bare diffusers loop over the same components, and the DICOM stage on its own.

All ways take turns within one run, so that other load on the machine falls on each alike; medians are compared.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from pipeline.batch_maker import load_pipeline
from pipeline.dicom_files import write_files
from pipeline.dicom_output import to_dataset
from pipeline.dicom_profiles import PROFILES

PROMPT = "axial contrast-enhanced T1-weighted brain MRI slice, meningioma"


@torch.no_grad()
def bare_loop(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float, height: int, width: int
) -> np.ndarray:
    """Draw images as any diffusers user would over the same components; float32 (N, H, W, 3) in [0, 1].

    Text encoding, classifier-free guidance, scheduler and decoding are those of `StableDiffusionPipeline`; each image
    has its own generator, as in our pipeline. No checks, no callbacks, no DICOM.
    """
    device, dtype = pipe.unet.device, pipe.unet.dtype
    guided = guidance > 1
    texts = [*([""] * len(prompts) if guided else []), *prompts]
    tokens = pipe.tokenizer(
        texts, padding="max_length", max_length=pipe.tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    states = pipe.text_encoder(tokens.input_ids.to(device))[0]
    shape = (1, pipe.unet.config.in_channels, height // pipe.vae_scale_factor, width // pipe.vae_scale_factor)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    noise = [torch.randn(shape, generator=generator, dtype=dtype) for generator in generators]
    extra = pipe.prepare_extra_step_kwargs(generators, eta=0.0)
    pipe.scheduler.set_timesteps(steps, device=device)
    latents = torch.cat(noise).to(device) * pipe.scheduler.init_noise_sigma
    for timestep in pipe.scheduler.timesteps:
        inputs = pipe.scheduler.scale_model_input(torch.cat([latents, latents]) if guided else latents, timestep)
        output = pipe.unet(inputs, timestep, encoder_hidden_states=states, return_dict=False)[0]
        if guided:
            without, with_text = output.chunk(2)
            output = without + guidance * (with_text - without)
        latents = pipe.scheduler.step(output, timestep, latents, **extra, return_dict=False)[0]
    decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
    return (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()


def take_turns(ways: dict[str, Callable[[], Any]], repeats: int, advance: Callable[[], Any]) -> dict[str, list[float]]:
    """Seconds of each way, `repeats` times, one after the other, the first of each round changing."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begun = time.perf_counter()
            ways[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - begun)
            advance()
    return seconds


def time_dicom(pixels: np.ndarray, recipe: Any, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds of making and of writing one DICOM, by profile."""
    result = {}
    for name, profile in PROFILES.items():
        making, writing = [], []
        for turn in range(repeats):
            some = dataclasses.replace(recipe, modality=name, prompt=name, seed=turn)
            with tempfile.TemporaryDirectory() as folder:
                begun = time.perf_counter()
                dataset = to_dataset(pixels, profile, some)
                made = time.perf_counter()
                write_files([dataset], Path(folder))
                writing.append(time.perf_counter() - made)
            making.append(made - begun)
        result[name] = {"to_dataset": median(making), "write": median(writing)}
    return result


def speed(
    *,
    model: str | Path = "pipeline",
    pipe: Any = None,
    steps: Sequence[int] | None = None,
    batches: Sequence[int] = (1, 4),
    repeats: int = 3,
    prompt: str = PROMPT,
    seed: int = 0,
) -> dict[str, Any]:
    """Time our pipeline against the bare loop, by steps and batch.

    Parameters
    ----------
    model, pipe
        Folder or Hub id of the pipeline, or the pipeline itself.
    steps
        Numbers of denoising steps; None for the default and half of it.
    batches
        Numbers of images a call.
    repeats
        Turns of each way; the median counts.
    prompt
        What to draw.
    seed
        Of the first image.
    """
    for name, numbers in (("steps", steps or [1]), ("batches", batches), ("repeats", [repeats])):
        if not numbers or min(numbers) < 1:
            raise ValueError(f"`{name}` is {list(numbers)}: numbers from 1 are allowed")
    begun = time.perf_counter()
    pipe = pipe if pipe is not None else load_pipeline(model)
    loaded = time.perf_counter() - begun
    pipe.set_progress_bar_config(disable=True)
    first = pipe(prompt, seed=seed, output_type="np")  # also warms up
    recipe, pixels = first.recipes[0], np.asarray(first.images)[0]
    height, width = pixels.shape[:2]
    default = recipe.num_inference_steps
    steps = list(steps or dict.fromkeys([default, max(1, default // 2)]))
    rows = []
    with tqdm(total=len(steps) * len(batches) * repeats * 3, desc="timing", unit="call") as bar:
        for count in steps:
            for batch in batches:
                prompts, seeds = [prompt] * batch, [seed + i for i in range(batch)]
                asked: dict[str, Any] = {"num_inference_steps": count, "seed": seeds}
                ways: dict[str, Callable[[], Any]] = {
                    "bare_loop": partial(bare_loop, pipe, prompts, seeds, count, recipe.guidance_scale, height, width),
                    "pipeline": partial(pipe, prompts, output_type="np", **asked),
                    "pipeline_to_dicom": partial(pipe, prompts, **asked),
                }
                turns = take_turns(ways, repeats, bar.update)
                medians = {name: median(values) for name, values in turns.items()}
                rows.append(
                    {
                        "steps": count,
                        "batch": batch,
                        "seconds_an_image": {name: value / batch for name, value in medians.items()},
                        "pipeline_to_bare": medians["pipeline"] / medians["bare_loop"],
                        "pipeline_to_dicom_to_bare": medians["pipeline_to_dicom"] / medians["bare_loop"],
                        "seconds_a_call": turns,
                    }
                )
    return {
        "what": "speed",
        "seed": seed,
        "prompt": prompt,
        "counts": {"repeats": repeats},
        "size": [height, width],
        "device": str(pipe.unet.device),
        "dtype": str(pipe.unet.dtype),
        "settings": {
            "model": recipe.model,
            "model_sha256": recipe.model_sha256,
            "default_steps": default,
            "guidance_scale": recipe.guidance_scale,
            "scheduler": recipe.scheduler,
        },
        "seconds_to_load": loaded,
        "generation": rows,
        "dicom_seconds_an_image": time_dicom(pixels, recipe, max(repeats, 5)),
    }
