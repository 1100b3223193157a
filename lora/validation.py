"""The loss on held-out images, made comparable: the same noise and the same levels each time, an image apart."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from .data import TrainingData
from .encoding import EncodedData
from .objective import Objective, denoising_losses

LEVELS = 8  # noise levels an image, one of each eighth of their distribution
IMAGES = 64  # at most so many images: validation must not take longer than what lies between


class ValidationLoss:
    """Loss of the denoiser on held-out images with their plain captions: of each image by `losses`, as in training.

    Attributes
    ----------
    images
        Which of the data's images are measured.
    exact
        Leave mixed precision out.
    """

    def __init__(
        self,
        objective: Objective,
        accelerator: Accelerator,
        data: TrainingData,
        encoded: EncodedData,
        *,
        batch: int,
        seed: int,
        losses: Callable[..., torch.Tensor] = denoising_losses,
    ) -> None:
        self.losses = losses
        self.objective, self.accelerator, self.encoded, self.batch = objective, accelerator, encoded, batch
        self.exact = False
        held_out = np.flatnonzero(data.validation)
        self.images = np.sort(np.random.default_rng([seed, 1]).permutation(held_out)[:IMAGES])
        draw = torch.Generator().manual_seed(seed)
        count = len(self.images)
        self.noise = torch.randn((count * LEVELS, *encoded.latents.shape[1:]), generator=draw)
        offset = torch.rand(count, generator=draw)
        self.position = ((torch.arange(LEVELS) + offset[:, None]) / LEVELS).flatten()

    @torch.no_grad()
    def measure(self, unet: Any) -> np.ndarray:
        """Loss of each image, mean over the levels, (N,)."""
        accelerator, device = self.accelerator, self.accelerator.device
        losses = torch.zeros(len(self.noise), device=device)
        own = torch.arange(len(losses))[accelerator.process_index :: accelerator.num_processes]
        unet.eval()
        for some in own.split(self.batch) if len(own) else ():
            index = torch.from_numpy(self.images)[some // LEVELS]
            clean = self.encoded.latents[index].float().to(device)
            text = self.encoded.embeddings[torch.from_numpy(self.encoded.plain)[index]].float().to(device)
            noisy, timesteps, target = self.objective.corrupt(clean, self.noise[some].to(device), self.position[some])
            with nullcontext() if self.exact else accelerator.autocast():
                losses[some.to(device)] = self.losses(unet, noisy, timesteps, text, target)
        losses = accelerator.reduce(losses, "sum")
        return losses.view(-1, LEVELS).mean(1).cpu().double().numpy()
