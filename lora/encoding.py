"""Latents and caption embeddings, computed once and kept in memory, never on disk: latents are pictures of people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from .data import TrainingData

EMPTY = 0  # row of the empty caption


@dataclass(frozen=True, eq=False)
class EncodedData:
    """The training data as the denoiser sees it.

    Attributes
    ----------
    latents
        Scaled latents, float16 (N, C, h, w).
    embeddings
        One row for each distinct text, float16 (rows, tokens, width); row 0 is the empty caption.
    wordings
        Rows of the varied captions, (variants, N).
    plain
        Row of the plain caption of each image, (N,).
    prompts
        Rows of the prompts of the sample sheets.
    """

    latents: torch.Tensor
    embeddings: torch.Tensor
    wordings: np.ndarray
    plain: np.ndarray
    prompts: np.ndarray


@torch.no_grad()
def encode_images(vae: Any, images: np.ndarray, *, batch: int = 8, progress: bool = True) -> torch.Tensor:
    """Scaled latents of uint8 images (N, H, W, 3), as the pipeline encodes its input: the mode, not a draw."""
    parts = []
    vae.to(memory_format=torch.channels_last)  # convolutions on a CPU are faster so
    for start in tqdm(range(0, len(images), batch), desc="encoding images", disable=not progress, mininterval=1):
        pixels = torch.from_numpy(np.ascontiguousarray(images[start : start + batch])).permute(0, 3, 1, 2)
        encoded = vae.encode((pixels.float() / 127.5 - 1).to(vae.device, vae.dtype))
        mode = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        parts.append((mode.float() * vae.config.scaling_factor).half().cpu())
    return torch.cat(parts)


@torch.no_grad()
def encode_texts(pipe: Any, texts: Sequence[str], *, batch: int = 64, progress: bool = True) -> torch.Tensor:
    """Embeddings of texts as the pipeline embeds its prompts, float16 (N, tokens, width)."""
    parts = []
    for start in tqdm(range(0, len(texts), batch), desc="encoding captions", disable=not progress, mininterval=1):
        some = list(texts[start : start + batch])
        embedded, _ = pipe.encode_prompt(some, pipe.text_encoder.device, 1, False)
        parts.append(embedded.half().cpu())
    return torch.cat(parts)


def encode_data(
    pipe: Any, data: TrainingData, prompts: Sequence[str], *, variants: int, seed: int, progress: bool = True
) -> EncodedData:
    """Encode images, `variants` wordings of each caption, the plain captions and the sample prompts."""
    rows: dict[str, int] = {"": EMPTY}
    wordings = np.zeros((variants, len(data)), np.int64)
    for variant in range(variants):
        rng = np.random.default_rng([seed, variant, 77])
        for index in range(len(data)):
            wordings[variant, index] = rows.setdefault(data.caption(index, rng), len(rows))
    plain = np.array([rows.setdefault(data.plain(index), len(rows)) for index in range(len(data))])
    asked = np.array([rows.setdefault(prompt, len(rows)) for prompt in prompts])
    return EncodedData(
        latents=encode_images(pipe.vae, data.images, progress=progress),
        embeddings=encode_texts(pipe, list(rows), progress=progress),
        wordings=wordings,
        plain=plain,
        prompts=asked,
    )


def choose_prompts(data: TrainingData, count: int) -> list[str]:
    """Distinct plain captions, those of most people first: what many share says least about one of them."""
    people: dict[str, set[int]] = {}
    for index in range(len(data)):
        people.setdefault(data.plain(index), set()).add(int(data.groups[index]))
    return sorted(people, key=lambda text: -len(people[text]))[:count]
