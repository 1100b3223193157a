"""The two sides of every comparison: real images with their captions, and synthetic ones made or read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from lora.base_data import PACKS, read_rows

SIZE = 256
MODALITIES = tuple(dict.fromkeys(PACKS.values()))


def real_rows(data: str | Path, modality: str, split: str) -> list[dict[str, str]]:
    """Rows of the packs of one user-facing modality.

    Raises
    ------
    ValueError
        `modality` is not one that the packs teach, or the folder holds no rows of that split.
    """
    if modality not in MODALITIES:
        raise ValueError(f"`modality` is {modality!r}: allowed are {', '.join(MODALITIES)}")
    rows = read_rows(Path(data), [pack for pack, name in PACKS.items() if name == modality], split)
    if not rows:
        raise ValueError(f"`data` has no {split!r} rows for {modality!r}")
    return rows


def spread(
    rows: Sequence[dict[str, str]], key: str, shares: dict[str, int], count: int, seed: int
) -> list[dict[str, str]]:
    """Draw `count` rows at random, without repeats while they last, groups of `key` in proportion to `shares`.

    Parameters
    ----------
    rows
        To draw from.
    key
        Column whose values make the groups.
    shares
        Weight of each group that may be drawn; a group without rows is left out.
    count
        How many rows; more than there are repeats them.
    seed
        Decides which.
    """
    rng = np.random.default_rng(seed)
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        if shares.get(row[key]):
            groups.setdefault(row[key], []).append(row)
    if not groups:
        raise ValueError(f"no rows with {key!r} among {', '.join(map(str, shares))}")
    total = sum(shares[name] for name in groups)
    drawn: list[tuple[float, float, dict[str, str]]] = []
    for name, members in sorted(groups.items()):
        wanted = int(np.ceil(count * shares[name] / total)) + 1
        order = np.concatenate([rng.permutation(len(members)) for _ in range(-(-wanted // len(members)))])
        # The n-th of a group stands at (n + 1/2) / share: cutting the sorted list anywhere keeps the proportions.
        drawn += [((n + 0.5) / shares[name], rng.random(), members[i]) for n, i in enumerate(order[:wanted])]
    return [row for _, _, row in sorted(drawn, key=lambda item: item[:2])[:count]]


def count_by(rows: Sequence[dict[str, str]], key: str) -> dict[str, int]:
    """How many rows have each value of a column."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row[key]] = counts.get(row[key], 0) + 1
    return dict(sorted(counts.items()))


def generate(
    pipe: Any,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    modality: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int = 4,
    cache: str | Path | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """One image a prompt, image i with seed + i, as uint8 (N, H, W, 3); and the settings that made them.

    Parameters
    ----------
    pipe
        A `SyntheticDicomPipeline`.
    prompts
        What to draw.
    seed
        Of the first image.
    modality
        Passed on to the pipeline; None leaves the choice to the words of the prompt.
    steps, guidance
        None for the pipeline's defaults.
    batch
        Prompts a call.
    cache
        Folder that keeps every image, so that an interrupted run goes on where it stopped.
    """
    asked: dict[str, Any] = {"modality": modality}
    asked |= {"num_inference_steps": steps} if steps is not None else {}
    asked |= {"guidance_scale": guidance} if guidance is not None else {}
    # All that decides a picture: a retrained model or a changed default is not taken for the former one.
    defaults = [pipe.config.default_num_inference_steps, pipe.config.default_guidance_scale]
    identity = [
        "pil",
        pipe.model_sha256,
        pipe.adapters_in_use(),
        type(pipe.scheduler).__name__,
        dict(pipe.scheduler.config),
        defaults,
    ]
    settings: dict[str, Any] = {
        "model": pipe.model_name,
        "model_sha256": pipe.model_sha256,
        "adapters": pipe.adapters_in_use(),
        "scheduler": type(pipe.scheduler).__name__,
        "num_inference_steps": defaults[0] if steps is None else steps,
        "guidance_scale": defaults[1] if guidance is None else guidance,
        "modality": modality,
        "seed": seed,
    }
    folder = Path(cache) / "generated" if cache else None
    images: dict[int, np.ndarray] = {}
    paths: dict[int, Path] = {}
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        for index, prompt in enumerate(prompts):
            key = json.dumps([identity, asked, prompt, seed + index], sort_keys=True, default=str)
            paths[index] = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.png"
            if paths[index].is_file():
                with Image.open(paths[index]) as picture:
                    images[index] = np.asarray(picture.convert("RGB"))
    pipe.set_progress_bar_config(disable=True)
    missing = [index for index in range(len(prompts)) if index not in images]
    with tqdm(total=len(prompts), initial=len(images), desc="generating", unit="image") as bar:
        for start in range(0, len(missing), batch):
            some = missing[start : start + batch]
            # As a person sees them: grey where the modality is grey, whatever tint the decoder left.
            result = pipe([prompts[i] for i in some], seed=[seed + i for i in some], output_type="pil", **asked)
            for index, picture in zip(some, result.images, strict=True):
                pixels = images[index] = np.asarray(picture.convert("RGB"))
                if folder:
                    part = paths[index].with_suffix(f".{os.getpid()}.part")
                    Image.fromarray(pixels).save(part, format="PNG")
                    part.replace(paths[index])
            bar.update(len(some))
    return np.stack([images[index] for index in range(len(prompts))]), settings
