"""The noise of a modality, added to decoded images: an autoencoder smooths it away, and a denoiser never learns it.

What film grain synthesis does in video coding (Norkin and Birkbeck 2018, "Film grain synthesis for AV1 video codec"):
noise cannot be stored in few numbers, but its strength and its spectrum can. `lora.image_noise` measures both on what
the autoencoder loses of real images; here noise of that kind is drawn anew, from the image's own seed. In CT it is the
quantum noise of the scanner, without which tissue looks like wax.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

WINDOW = 4.0  # pixels: standard deviation of the Gaussian by which a neighbourhood is averaged
DARK = 0.3 / 255  # keeps the logarithm of a gradient finite
BINS = 17  # of the spectrum, by spatial frequency from 0 to beyond 0.5 a pixel
SEED_OFFSET = 7_368_787  # another stream of noise than the one that the latents came from


def smooth(maps: torch.Tensor) -> torch.Tensor:
    """Gaussian average of maps (N, H, W), mirrored at the borders."""
    reach = min(int(3 * WINDOW), min(maps.shape[-2:]) - 1)
    places = torch.arange(-reach, reach + 1, dtype=maps.dtype)
    weights = torch.exp(-(places**2) / (2 * WINDOW**2))
    weights = (weights / weights.sum()).view(1, 1, 1, -1)
    padded = functional.pad(maps[:, None], (reach,) * 4, mode="reflect")
    return functional.conv2d(functional.conv2d(padded, weights), weights.transpose(2, 3))[:, 0]


def surroundings(grey: torch.Tensor) -> torch.Tensor:
    """What the strength of noise is told from, (N, H, W, 6): powers of local brightness and local edges.

    Parameters
    ----------
    grey
        Images (N, H, W) in [0, 1].
    """
    down, right = torch.gradient(grey, dim=(1, 2))
    bright, edges = smooth(grey), torch.log(smooth(down**2 + right**2).clamp(min=0).sqrt() + DARK)
    return torch.stack([torch.ones_like(bright), bright, bright**2, edges, edges**2, bright * edges], -1)


def frequency_bins(height: int, width: int) -> torch.Tensor:
    """Which of the `BINS` each entry of a 2D Fourier transform belongs to, (H, W)."""
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    return (radius * 2 * (BINS - 1)).long().clamp(max=BINS - 1)


def noise_like(fit: Mapping[str, Any], grey: torch.Tensor, seed: int) -> torch.Tensor:
    """Noise for one image (H, W) in [0, 1], as a fit of `lora.image_noise` describes it.

    Parameters
    ----------
    fit
        `strength`, a factor; `level`, six weights of `surroundings` for the logarithm of the noise's standard
        deviation; `lowest` and `highest`, its bounds; `spectrum`, `BINS` powers by frequency, 1 on average.
    grey
        The image without its noise.
    seed
        The image's.
    """
    level = surroundings(grey[None])[0] @ torch.tensor(fit["level"], dtype=grey.dtype)
    level = level.exp().clamp(fit["lowest"], fit["highest"])
    white = torch.randn(grey.shape, generator=torch.Generator().manual_seed((seed + SEED_OFFSET) % 2**63))
    gain = torch.tensor(fit["spectrum"], dtype=grey.dtype).clamp(min=0).sqrt()[frequency_bins(*grey.shape)]
    gain = gain / gain.square().mean().sqrt()
    return fit["strength"] * level * torch.fft.ifft2(torch.fft.fft2(white) * gain).real


def add_image_noise(
    images: torch.Tensor, fits: Sequence[Mapping[str, Any] | None], seeds: Sequence[int]
) -> torch.Tensor:
    """Add to each image the noise of its modality; None leaves an image as it is.

    Parameters
    ----------
    images
        float32 (N, 3, H, W) in [0, 1], on the CPU; all channels of an image get the same noise.
    fits, seeds
        One of each for every image; see `noise_like`.
    """
    noisy = [
        image if fit is None else (image + noise_like(fit, image.mean(0), seed)).clamp(0, 1)
        for image, fit, seed in zip(images, fits, seeds, strict=True)
    ]
    return torch.stack(noisy) if noisy else images
