"""The base's denoiser: a small `UNet2DConditionModel` on 32x32x8 latents, trained from nothing by rectified flow.

Rectified flow (Liu et al. 2022) with logit-normal timesteps (Esser et al. 2024) learns soonest at this size, and the
stock `DPMSolverMultistepScheduler` samples it with `prediction_type="flow_prediction"`, which stock Stable Diffusion
pipelines accept. Latents and caption embeddings are computed once and kept in memory. Progressive size pays: the first
part of the steps sees images of 128 pixels (a quarter of the cost), the rest 256.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from tqdm.auto import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from .base_autoencoder import encode_moments, to_tensor
from .base_text import HIDDEN, tokenize
from .captions import vary_caption
from .checkpoint import load_checkpoint, log_line, save_checkpoint
from .objective import Objective
from .precision import autocast

CONFIG = {
    "sample_size": 32,
    "in_channels": 8,
    "out_channels": 8,
    "layers_per_block": 1,
    "block_out_channels": (64, 128, 192),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "cross_attention_dim": HIDDEN,
    "attention_head_dim": 4,  # diffusers' name for the number of heads
    "norm_num_groups": 16,
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "algorithm_type": "sde-dpmsolver++",  # fresh noise at each step mends errors of a small denoiser
    "solver_order": 2,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 1.0,
}
CAPTION_DROP = 0.1  # for classifier-free guidance


def build_scheduler() -> DPMSolverMultistepScheduler:
    """The scheduler that the base is sampled with."""
    return DPMSolverMultistepScheduler(**SCHEDULER)


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: np.ndarray, device: str = "cpu", batch: int = 16) -> torch.Tensor:
    """Latent means of uint8 images, float16 (N, 8, h, w), not yet scaled."""
    parts = []
    for start in tqdm(range(0, len(images), batch), desc="latents", mininterval=10):
        with autocast(device):
            parts.append(encode_moments(vae, to_tensor(images[start : start + batch], device)).half().cpu())
    return torch.cat(parts)


@torch.no_grad()
def encode_captions(
    text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, rows: list[dict[str, str]], variants: int, seed: int
) -> torch.Tensor:
    """Embeddings of `variants` wordings a row, float16 (variants, N, 77, 128)."""
    out = torch.empty(variants, len(rows), tokenizer.model_max_length, HIDDEN, dtype=torch.float16)
    for variant in tqdm(range(variants), desc="captions"):
        rng = np.random.default_rng([seed, variant, 77])
        captions = [vary_caption(row, rng).text for row in rows]
        for start in range(0, len(rows), 256):
            ids = tokenize(tokenizer, captions[start : start + 256]).to(text_encoder.device)
            out[variant, start : start + 256] = text_encoder(ids).last_hidden_state.half().cpu()
    return out


def learning_rate_at(step: int, steps: int, peak: float, decay_share: float, warmup: int = 300) -> float:
    """Trapezoid: warm up, hold, and fall linearly to a hundredth over the last share of the steps."""
    left = (steps - step) / (steps * decay_share) if decay_share else 1.0
    return peak * min(1.0, (step + 1) / warmup, max(0.01, left))


def train_unet(
    latents: torch.Tensor,
    captions: torch.Tensor,
    empty: torch.Tensor,
    weights: np.ndarray,
    work: Path,
    *,
    steps: int,
    batch: int = 24,
    learning_rate: float = 8e-4,
    ema_decay: float = 0.9993,
    decay_share: float = 0.35,
    noise_shift: float | None = None,
    name: str = "unet",
    seed: int = 0,
    device: str = "cpu",
    save_every: int = 250,
    on_step: Callable[[UNet2DConditionModel, int, bool], None] | None = None,
    init: UNet2DConditionModel | None = None,
) -> UNet2DConditionModel:
    """Train for `steps` steps, going on from `work/<name>.safetensors` when there; returns the EMA model.

    Parameters
    ----------
    latents
        Scaled latents, float16 (N, 8, h, w).
    captions
        Embeddings, float16 (variants, N, 77, 128).
    empty
        Embedding of the empty caption, (77, 128).
    weights
        Probability of drawing each image, (N,).
    decay_share
        Share of the steps over which the learning rate falls at the end.
    noise_shift
        As `Objective.shift`; by default that of the latents' size.
    name
        Name of the checkpoint and of the log.
    on_step
        Called after every step with the EMA model, the step and whether it is the last.
    init
        Weights to start from when there is no checkpoint (a base trained earlier).
    """
    torch.manual_seed(seed)
    model = (copy.deepcopy(init).requires_grad_(True) if init else UNet2DConditionModel(**CONFIG)).to(
        device, memory_format=torch.channels_last
    )
    ema = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    start, seconds = load_checkpoint(work / name, {"model": model, "ema": ema}, optimizer)
    model.train()
    objective = Objective.of(build_scheduler(), latents.shape[-1], noise_shift)
    begun, running = time.time() - seconds, []
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=name, mininterval=20)
    for step in bar:
        rng, draw = np.random.default_rng([seed, step]), torch.Generator().manual_seed(seed * 10_000_019 + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps, learning_rate, decay_share)
        index = torch.from_numpy(rng.choice(len(latents), batch, p=weights))
        clean = latents[index].float()
        text = captions[torch.from_numpy(rng.integers(len(captions), size=batch)), index].float()
        text[torch.rand(batch, generator=draw) < CAPTION_DROP] = empty.float()
        noise = torch.randn(clean.shape, generator=draw)
        noisy, timesteps, target = objective.corrupt(clean, noise, torch.rand(batch, generator=draw))
        noisy, timesteps, target, text = (t.to(device) for t in (noisy, timesteps, target, text))
        with autocast(device):
            predicted = model(noisy.contiguous(memory_format=torch.channels_last), timesteps, text).sample
        loss = (predicted.float() - target).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
        running.append(loss.detach())
        if (step + 1) % 50 == 0 or step + 1 == steps:
            mean_loss = torch.stack(running).mean().item()
            running = []
            log_line(
                work / f"{name}.log.jsonl",
                {"step": step + 1, "loss": mean_loss, "images": (step + 1) * batch, "seconds": time.time() - begun},
            )
            bar.set_postfix(loss=f"{mean_loss:.4f}")
        if (step + 1) % save_every == 0 or step + 1 == steps:
            save_checkpoint(work / name, {"model": model, "ema": ema}, optimizer, step + 1, time.time() - begun)
        if on_step:
            on_step(ema, step + 1, step + 1 == steps)
    return ema.eval()
