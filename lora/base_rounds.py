"""Rounds of the base against its own samples, as adapters have them (`own_samples`), but all of the denoiser learns.

What plain training leaves blurred or waxy becomes sharper in minutes.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from tqdm.auto import tqdm

from pipeline.pipeline import SyntheticDicomPipeline

from .base_unet import CAPTION_DROP
from .checkpoint import load_checkpoint, log_line, save_checkpoint
from .objective import Objective, learning_rate_at
from .own_samples import discriminative_loss
from .precision import autocast, has_bfloat16
from .samples import Sampler

NAME = "rounds"  # of the checkpoint and the log
FIRST_SEED, SEED_STRIDE = 3_000_000, 100_000  # of own samples; between rounds


def train_rounds(
    pipe: SyntheticDicomPipeline,
    latents: torch.Tensor,
    captions: torch.Tensor,
    empty: torch.Tensor,
    weights: np.ndarray,
    work: Path,
    *,
    rounds: int,
    steps: int,
    samples: int,
    batch: int = 12,
    learning_rate: float = 3e-5,
    seed: int = 0,
    device: str = "cpu",
    save_every: int = 50,
) -> UNet2DConditionModel:
    """Train for `rounds` rounds of `steps` steps, going on from `work/rounds.safetensors` when there.

    Parameters
    ----------
    pipe
        Whose denoiser learns, in place; own samples are drawn with its scheduler, steps and guidance.
    latents, captions, empty, weights
        As `train_unet` takes them.
    samples
        Own samples that a round draws first, captions by `weights` in all their wordings.
    batch
        Real images of a step; as many own samples come beside them.
    learning_rate
        Peak of a round.

    Returns
    -------
    UNet2DConditionModel
        The average of the last round's weights, over its last quarter.

    Raises
    ------
    ValueError
        The checkpoint was made with another number of samples.
    """
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="bf16" if has_bfloat16(device) else "no")
    model = pipe.unet.to(device, memory_format=torch.channels_last).requires_grad_(True)
    ema, reference = (copy.deepcopy(model).requires_grad_(False) for _ in range(2))
    own = torch.nn.ParameterList([torch.zeros(samples, *latents.shape[1:])]).requires_grad_(False)
    stored = {"model": model, "ema": ema, "reference": reference, "own_samples": own}
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    try:
        start, seconds = load_checkpoint(work / NAME, stored, optimizer)
    except RuntimeError as error:
        raise ValueError(
            f"`round_samples` is {samples}, but {work / NAME}.safetensors was made with another number; remove that "
            "file to begin the rounds anew"
        ) from error
    objective = Objective.of(pipe.scheduler, latents.shape[-1])
    begun, running = time.time() - seconds, []
    planned = rounds * steps
    bar = tqdm(range(start, planned), initial=start, total=planned, desc=NAME, mininterval=20)
    for step in bar:
        number, at = divmod(step, steps)
        drawn = np.random.default_rng([seed, number, 78])
        source = torch.from_numpy(drawn.choice(len(latents), samples, p=weights))
        own_text = captions[torch.from_numpy(drawn.integers(len(captions), size=samples)), source].float()
        if at == 0:
            for network in (model, reference):
                network.load_state_dict(ema.state_dict())
            optimizer.state.clear()
            sampler = Sampler(pipe, accelerator, torch.cat([empty.float()[None], own_text]), batch=4)
            first = FIRST_SEED + number * SEED_STRIDE + seed
            seeds = [first + i for i in range(samples)]
            model.eval()
            with torch.no_grad():
                own[0].copy_(sampler.draw(range(1, samples + 1), seeds, f"own samples, round {number + 1}"))
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(at, steps, learning_rate)
        rng, draw = np.random.default_rng([seed, step]), torch.Generator().manual_seed(seed * 10_000_019 + step)
        index = torch.from_numpy(rng.choice(len(latents), batch, p=weights))
        other = torch.from_numpy(rng.integers(samples, size=batch))
        clean = torch.cat([latents[index].float(), own[0][other]])
        text = captions[torch.from_numpy(rng.integers(len(captions), size=batch)), index].float()
        text = torch.cat([text, own_text[other]])
        text[torch.rand(2 * batch, generator=draw) < CAPTION_DROP] = empty.float()
        noise = torch.randn(clean.shape, generator=draw)
        position = torch.rand(batch, generator=draw).repeat(2)  # a pair has one noise level
        noisy, timesteps, target = (t.to(device) for t in objective.corrupt(clean, noise, position))
        noisy, text = noisy.contiguous(memory_format=torch.channels_last), text.to(device)
        with autocast(device):
            with torch.no_grad():
                before = reference(noisy, timesteps, text).sample
            predicted = model(noisy, timesteps, text).sample
        now, then = ((p.float() - target).square().mean((1, 2, 3)).view(2, -1) for p in (predicted, before))
        loss = discriminative_loss(now, then).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(1 - 4 / max(steps, 4), (at + 1) / (at + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
        running.append(loss.detach())
        if (step + 1) % 50 == 0 or step + 1 == planned:
            record = {"step": step + 1, "round": number + 1, "loss": torch.stack(running).mean().item()}
            running = []
            log_line(
                work / f"{NAME}.log.jsonl", {**record, "images": (step + 1) * batch, "seconds": time.time() - begun}
            )
            bar.set_postfix(loss=f"{record['loss']:.4f}", round=f"{number + 1}/{rounds}")
        if (step + 1) % save_every == 0 or step + 1 == planned:
            save_checkpoint(work / NAME, stored, optimizer, step + 1, time.time() - begun)
    return ema.eval()
