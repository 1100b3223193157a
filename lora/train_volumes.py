"""Train the volume model from nothing: volumes and label maps jointly, steered by captions and covariates.

    python -m lora.train_volumes --data VOLUMES/msd_hippocampus --work WORK --out pipeline/volume

Can be killed at any moment and run again with the same command. The log is JSON lines in WORK; sample sheets lie
beside it. Only the training part of the split (`volume_data.part_of`) is ever read.

Rectified flow (Liu et al. 2022) with logit-normal noise levels (Esser et al. 2024). The denoiser predicts the clean
volume, weighted as if it predicted the velocity (Li and He 2025): of many channels on few features, noise is the part
that a small network should not have to carry through.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel
from tqdm.auto import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from pipeline.volume.volume_covariates import FEATURES, Distribution
from pipeline.volume.volume_pipeline import SyntheticDicomVolumePipeline

from .base_text import tokenize
from .base_unet import learning_rate_at
from .checkpoint import load_checkpoint, log_line, save_checkpoint
from .config import _option, add_options
from .precision import autocast
from .volume_data import Batches, VolumeSet, read_volumes, vary_caption
from .volume_record import draw_sheet, training_record

COMMAND = "python -m lora.train_volumes"
BLOCKS = (128, 96, 96)
SHIFT = 2.0  # of noise levels towards more noise: neighbouring voxels say much about each other
LEAST_SIGMA = 0.05  # bounds the weight of nearly clean volumes
CAPTION_DROP, COVARIATE_DROP, BOTH_DROP = 0.1, 0.1, 0.1
CAPTIONS = 8  # wordings a volume, in memory
SUBJECT = {"description": "a T1-weighted MRI of the hippocampus", "words": ["hippocamp", "brain", "mri"]}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "algorithm_type": "sde-dpmsolver++",
    "solver_order": 2,
    "prediction_type": "sample",
    "use_flow_sigmas": True,
    "flow_shift": SHIFT,
}


@dataclass(frozen=True)
class VolumeConfig:
    """Everything that decides how the model comes out; each field is a command line option."""

    data: Path = _option("pack of volumes: metadata.csv and npz files with image and mask")
    work: Path = _option("folder for the checkpoint, the log and sample sheets")
    out: Path = _option("where the trained model is written to", Path("pipeline/volume"))
    text: Path = _option("model whose text_encoder/ and tokenizer/ read the prompt; not trained", Path("pipeline"))
    blocks: tuple[int, ...] = _option("channels of the denoiser's levels", BLOCKS)
    steps: int = _option("optimizer steps", 12000)
    batch: int = _option("volumes a step", 8)
    learning_rate: float = _option("peak learning rate", 8e-4)
    decay_share: float = _option("share of the steps over which the learning rate falls at the end", 0.4)
    ema_decay: float = _option("decay of the moving average of the weights, which is what is kept", 0.999)
    warped: float = _option("share of volumes that are shown warped", 0.5)
    sheet_every: int = _option("steps between sample sheets; 0 for none", 1000)
    save_every: int = _option("steps between checkpoints", 100)
    device: str = _option("cpu or cuda", "cpu")
    seed: int = _option("seed of all random draws", 0)

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is read."""
        for name in ("steps", "batch", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; allowed is a whole number of at least 1")
        if len(self.blocks) < 2 or any(width < 16 or width % 16 for width in self.blocks):
            raise ValueError(f"`blocks` is {self.blocks!r}; allowed are two or more multiples of 16")
        for name in ("decay_share", "ema_decay", "warped"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; allowed is from 0 to 1")
        if not self.learning_rate > 0:
            raise ValueError(f"`learning_rate` is {self.learning_rate!r}; allowed is a number above 0")

    def public(self) -> dict[str, Any]:
        """The settings without paths."""
        return {k: v for k, v in dataclasses.asdict(self).items() if not isinstance(v, Path)}


def build_scheduler() -> DPMSolverMultistepScheduler:
    """The scheduler that the model is sampled with."""
    return DPMSolverMultistepScheduler(**SCHEDULER)


def build_unet(shape: tuple[int, ...], labels: int, blocks: tuple[int, ...], text_width: int) -> UNet2DConditionModel:
    """An untrained denoiser for volumes of a shape.

    The covariates go through the time embedding into every layer, where they scale and shift, the caption through
    attention at the lowest level.
    """
    plain = len(blocks) - 1
    return UNet2DConditionModel(
        sample_size=tuple(shape[1:]),
        in_channels=shape[0] * (1 + labels),
        out_channels=shape[0] * (1 + labels),
        layers_per_block=1,
        block_out_channels=blocks,
        down_block_types=("DownBlock2D",) * plain + ("SimpleCrossAttnDownBlock2D",),
        up_block_types=("SimpleCrossAttnUpBlock2D",) + ("UpBlock2D",) * plain,
        mid_block_type=None,
        cross_attention_dim=text_width,
        attention_head_dim=min(32, blocks[-1]),
        norm_num_groups=16,
        time_embedding_dim=256,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="projection",
        projection_class_embeddings_input_dim=labels * FEATURES + 1,  # the last: whether the volume is warped
    )


def corrupt(
    clean: torch.Tensor, noise: torch.Tensor, position: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise clean volumes; returns (noisy volumes, timesteps, weight of each one's squared error).

    `position` in (0, 1) is the place of each noise level in the distribution of levels.
    """
    sigma = torch.sigmoid(torch.special.ndtri(position.double().clamp(1e-6, 1 - 1e-6))).float()
    sigma = SHIFT * sigma / (1 + (SHIFT - 1) * sigma)
    return torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1)), sigma * 1000, sigma.clamp(LEAST_SIGMA).pow(-2)


@torch.no_grad()
def encode_captions(
    text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, volumes: VolumeSet, distribution: Distribution, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of `CAPTIONS` wordings a volume (CAPTIONS, N, tokens, width), and of the empty caption."""

    def encode(texts: list[str]) -> torch.Tensor:
        return text_encoder(tokenize(tokenizer, texts)).last_hidden_state

    variants = []
    for variant in range(CAPTIONS):
        rng = np.random.default_rng([seed, variant, 78])
        captions = [vary_caption(values, distribution, rng) for values in volumes.measured]
        variants.append(torch.cat([encode(captions[i : i + 64]) for i in range(0, len(captions), 64)]))
    return torch.stack(variants), encode([""])[0]


def assemble(
    config: VolumeConfig, volumes: VolumeSet, distribution: Distribution, text: tuple[Any, Any], unet: Any
) -> SyntheticDicomVolumePipeline:
    """A pipeline of the trained parts."""
    return SyntheticDicomVolumePipeline(
        text_encoder=text[0],
        tokenizer=text[1],
        unet=unet,
        scheduler=build_scheduler(),
        training_distribution=distribution.to_config(),
        geometry={"axes": volumes.axes, "spacing": list(volumes.spacing)},
        subject=SUBJECT,
        model_name="synthetic-dicom-volume",
    )


def load_text(folder: Path) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """The text encoder, in float32, and the tokenizer of a model."""
    if not (folder / "text_encoder").is_dir():
        raise FileNotFoundError(f"`text` is {str(folder)!r}, which has no text_encoder/")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    return encoder.eval().requires_grad_(False), CLIPTokenizer.from_pretrained(folder / "tokenizer")


def train(config: VolumeConfig, volumes: VolumeSet, text: tuple[Any, Any]) -> UNet2DConditionModel:
    """Train for `steps` steps, going on from the checkpoint in `work` when there is one; returns the EMA model."""
    device, labels = config.device, len(volumes.covariates)
    distribution = Distribution.of(volumes.covariates, volumes.measured)
    batches = Batches(volumes.images, volumes.masks, labels, float(np.prod(volumes.spacing)), config.warped)
    captions, empty = encode_captions(*text, volumes, distribution, config.seed)
    torch.manual_seed(config.seed)
    shape = volumes.images.shape[1:]
    model = build_unet(shape, labels, config.blocks, captions.shape[-1]).to(device, memory_format=torch.channels_last)
    ema = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    config.work.mkdir(parents=True, exist_ok=True)
    stem = config.work / "volume"
    start, seconds = load_checkpoint(stem, {"model": model, "ema": ema}, optimizer)
    model.train()
    begun = time.time() - seconds
    losses: list[tuple[float, float]] = []
    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, desc="volume", mininterval=20)
    for step in bar:
        rng = np.random.default_rng([config.seed, step])
        draw = torch.Generator().manual_seed(config.seed * 10_000_019 + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config.steps, config.learning_rate, config.decay_share)
        index = rng.choice(len(volumes.names), config.batch, replace=config.batch > len(volumes.names))
        clean, values, warped = batches.draw(index, draw)
        drop = rng.random(config.batch)
        said = captions[torch.from_numpy(rng.integers(CAPTIONS, size=config.batch)), torch.from_numpy(index)].clone()
        said[torch.from_numpy((drop < BOTH_DROP) | (rng.random(config.batch) < CAPTION_DROP))] = empty
        values[(drop < BOTH_DROP)[:, None] | (rng.random(values.shape) < COVARIATE_DROP)] = np.nan
        asked = torch.cat([torch.from_numpy(distribution.features(values)), warped[:, None]], 1)
        noise = torch.randn(clean.shape, generator=draw)
        position = (torch.arange(config.batch) + torch.rand(config.batch, generator=draw)) / config.batch
        noisy, timesteps, weight = corrupt(clean, noise, position)  # levels spread evenly over the batch
        noisy, timesteps, weight, said, asked, clean = (
            t.to(device) for t in (noisy, timesteps, weight, said, asked, clean)
        )
        with autocast(device):
            predicted = model(
                noisy.contiguous(memory_format=torch.channels_last), timesteps, said, class_labels=asked
            ).sample
        error = (predicted.float() - clean).square().unflatten(1, (1 + labels, -1)).mean((2, 3, 4))
        image_loss, label_loss = (weight[:, None] * error).mean(0).split([1, labels])
        loss = (image_loss.sum() + label_loss.sum()) / (1 + labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(config.ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
        losses.append((image_loss.mean().item(), label_loss.mean().item()))
        last = step + 1 == config.steps
        if (step + 1) % 50 == 0 or last:
            image_mean, label_mean = np.mean(losses, 0)
            losses = []
            log_line(
                config.work / "volume.log.jsonl",
                {
                    "step": step + 1,
                    "loss_image": float(image_mean),
                    "loss_labels": float(label_mean),
                    "volumes": (step + 1) * config.batch,
                    "seconds": time.time() - begun,
                },
            )
            bar.set_postfix(image=f"{image_mean:.4f}", labels=f"{label_mean:.4f}")
        if (step + 1) % config.save_every == 0 or last:
            save_checkpoint(stem, {"model": model, "ema": ema}, optimizer, step + 1, time.time() - begun)
        if config.sheet_every and ((step + 1) % config.sheet_every == 0 or last):
            pipe = assemble(config, volumes, distribution, text, copy.deepcopy(ema).eval())
            draw_sheet(pipe.to(device), config.work / f"sheet-{step + 1:06d}.png")
    return ema.eval()


def export(config: VolumeConfig, volumes: VolumeSet, text: tuple[Any, Any], unet: UNet2DConditionModel) -> None:
    """Write the model as float16 safetensors with its code and `training.json` into `out`."""
    distribution = Distribution.of(volumes.covariates, volumes.measured)
    pipe = assemble(config, volumes, distribution, text, unet)
    pipe.to("cpu", torch.float16).save_pretrained(config.out)
    # Stored in half, run in full: transformers would otherwise load this one part as it is stored.
    path = config.out / "text_encoder" / "config.json"
    path.write_text(path.read_text().replace('"dtype": "float16"', '"dtype": "float32"'), encoding="utf-8")
    record = {"command": COMMAND, **training_record(config, volumes, unet)}
    (config.out / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Train, then export."""
    parser = argparse.ArgumentParser(COMMAND, description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser, VolumeConfig)
    options = vars(parser.parse_args(arguments))
    try:
        config = VolumeConfig(**options | {"blocks": tuple(options["blocks"])})
        text = load_text(config.text)
        volumes = read_volumes(config.data, "train")
        export(config, volumes, text, train(config, volumes, text))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
