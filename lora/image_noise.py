"""Measures the noise that an autoencoder loses of real images, by modality, for `pipeline.pipeline_noise` to draw anew.

    python -m lora.image_noise --data PACKS [--model pipeline]

Strength and spectrum are fitted to the difference between real training images and what the autoencoder restores.
Part of that difference is lost detail, which noise cannot bring back: how much of it is drawn as noise is chosen by the
KID between images that the model draws for captions of the training set, with such noise, and real training images.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from pipeline.dicom_profiles import PROFILES, choose_profile
from pipeline.pipeline import SyntheticDicomPipeline
from pipeline.pipeline_noise import BINS, add_image_noise, frequency_bins, smooth, surroundings

from .base_autoencoder import reconstruct
from .base_data import load_images, read_rows
from .encoding import encode_texts
from .precision import has_bfloat16
from .samples import Sampler, decode

FIRST_SEED = 4_000_000  # of images drawn to choose by
STRENGTHS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
IMAGES = 120  # a modality: half to fit on, half to give captions
COMPARED = 400  # real images that the drawn ones are compared with
LEAST = 40
EVERY = 4  # pixels are much alike their neighbours: the fit takes one in so many each way


def fit_noise(real: np.ndarray, restored: np.ndarray) -> dict[str, Any]:
    """Strength of noise by its surroundings, and its spectrum.

    Parameters
    ----------
    real, restored
        Images and what the autoencoder makes of them, (N, H, W, 3) on the 0..255 scale.

    Returns
    -------
    dict
        A fit as `noise_like` takes it, of `strength` 1.
    """
    one, other = (torch.from_numpy(np.asarray(some, np.float32).mean(-1) / 255) for some in (real, restored))
    lost, maps = one - other, surroundings(other)
    level = 0.5 * torch.log(smooth(lost**2).clamp(min=0) + 1e-7)
    thin = slice(EVERY // 2, None, EVERY)
    seen, wanted = maps[:, thin, thin].reshape(-1, maps.shape[-1]), level[:, thin, thin].reshape(-1)
    # In double precision: brightness and edges go together, and their squares all the more.
    weights = torch.linalg.lstsq(seen.double(), wanted.double()[:, None], driver="gelsd").solution[:, 0]
    lowest, highest = np.quantile(wanted.exp().numpy(), (0.001, 0.999))
    told = (maps @ weights.float()).exp().clamp(float(lowest), float(highest))
    power = torch.fft.fft2(lost / told).abs().square().mean(0)
    bins = frequency_bins(*power.shape)
    spectrum = torch.zeros(BINS).index_add_(0, bins.ravel(), power.ravel()) / torch.bincount(
        bins.ravel(), minlength=BINS
    )
    spectrum[0] = 0  # the mean of an image is no noise
    spectrum /= spectrum[bins].mean()
    return {
        "strength": 1.0,
        "level": [round(float(weight), 4) for weight in weights],
        "lowest": round(float(lowest), 6),
        "highest": round(float(highest), 6),
        "spectrum": [round(float(power), 4) for power in spectrum],
    }


def choose_strength(
    fit: Mapping[str, Any], drawn: np.ndarray, real: np.ndarray, *, colour: bool
) -> tuple[float, dict[str, float]]:
    """Give the strength whose noisy drawn images come nearest to real ones in KID, and the KID of all.

    Parameters
    ----------
    fit
        From `fit_noise`.
    drawn
        Images without noise, (N, H, W, 3) on the 0..255 scale.
    real
        Real images, uint8 (M, H, W, 3).
    colour
        Whether the modality has colour; grey ones are compared as a user sees them.
    """
    from evaluation.features import extract_features
    from evaluation.kid import kernel_distance

    def seen(images: np.ndarray) -> np.ndarray:
        images = images if colour else images.mean(-1, keepdims=True).repeat(3, -1)
        return extract_features(images.round().clip(0, 255).astype(np.uint8), progress=False)

    wanted = seen(real.astype(np.float32))
    pixels = torch.from_numpy(drawn.astype(np.float32) / 255).permute(0, 3, 1, 2)
    found = {}
    for strength in STRENGTHS:
        noisy = add_image_noise(pixels, [{**fit, "strength": strength}] * len(pixels), range(len(pixels)))
        found[str(strength)] = round(kernel_distance(seen(noisy.permute(0, 2, 3, 1).numpy() * 255), wanted).kid, 4)
    return float(min(found, key=lambda strength: found[strength])), found


def draw_images(pipe: Any, captions: Sequence[str]) -> np.ndarray:
    """Draw as users do, but for the noise: an image a caption, uint8 (N, H, W, 3)."""
    accelerator = Accelerator(
        cpu=pipe.device.type == "cpu", mixed_precision="bf16" if has_bfloat16(pipe.device.type) else "no"
    )
    distinct = ["", *sorted(set(captions))]
    sampler = Sampler(pipe, accelerator, encode_texts(pipe, distinct, progress=False), batch=4)
    seeds = range(FIRST_SEED, FIRST_SEED + len(captions))
    return decode(pipe.vae, sampler.draw([distinct.index(c) for c in captions], seeds), accelerator.device)


def measure_image_noise(
    pipe: Any, rows: Sequence[Mapping[str, str]], images: np.ndarray, seed: int = 0
) -> dict[str, Any]:
    """Fit the noise of each modality among training images; those with fewer than 40 images get none.

    Parameters
    ----------
    pipe
        The model.
    rows, images
        Of the training set: captions (`text`), and uint8 (N, H, W, 3).
    seed
        Of the draw.

    Returns
    -------
    dict
        `image_noise`, fits by the name of the DICOM profile; `kid`, by profile and strength.
    """
    names = np.array([choose_profile(row["text"]).name for row in rows])
    fits: dict[str, Any] = {}
    measured: dict[str, Any] = {}
    for name in sorted(set(names.tolist())):
        known = np.random.default_rng(seed).permutation(np.flatnonzero(names == name))
        if len(known) < LEAST:
            continue
        captions, fitted = [rows[i]["text"] for i in np.sort(known[:IMAGES:2])], images[np.sort(known[1:IMAGES:2])]
        fit, real = fit_noise(fitted, reconstruct(pipe.vae, fitted)), images[np.sort(known[:COMPARED])]
        colour = PROFILES[name].photometric_interpretation == "RGB"
        strength, measured[name] = choose_strength(fit, draw_images(pipe, captions), real, colour=colour)
        if strength:
            fits[name] = {**fit, "strength": strength}
    return {"image_noise": fits, "kid": measured}


def main(arguments: list[str] | None = None) -> int:
    """Measure the noise and write it into the model's configuration; returns the exit status."""
    parser = argparse.ArgumentParser("python -m lora.image_noise", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the packs")
    parser.add_argument("--model", type=Path, default=Path("pipeline"), help="folder of the base (default: pipeline)")
    parser.add_argument("--cache", type=Path, help="folder that keeps the squared images of the packs")
    options = parser.parse_args(arguments)
    index = options.model / "model_index.json"
    try:
        if not index.is_file():
            raise ValueError(f"`model` is {str(options.model)!r}; allowed is the folder of a model")
        rows = read_rows(options.data, split="train")
        pipe = SyntheticDicomPipeline.from_pretrained(options.model)
        found = measure_image_noise(pipe, rows, load_images(rows, 256, options.cache))
        config = json.loads(index.read_text(encoding="utf-8")) | {"image_noise": found["image_noise"] or None}
        part = index.with_suffix(".part")
        part.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        part.replace(index)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(json.dumps(found["kid"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
