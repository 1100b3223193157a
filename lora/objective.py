"""What a denoiser is taught: noise at a level goes in, and what its scheduler's `prediction_type` names comes out.

The same for training, which draws noise levels at random, and for validation, which takes them evenly: a level is
given by its position in the distribution of levels, a number in (0, 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler

PREDICTION_TYPES = ("flow_prediction", "epsilon", "v_prediction", "sample")


@dataclass(frozen=True, eq=False)
class Objective:
    """How images are noised and what is to be predicted.

    Attributes
    ----------
    prediction_type
        "flow_prediction" is rectified flow (Liu et al. 2022) with logit-normal noise levels (Esser et al. 2024), the
        others are the variance-preserving diffusion of Stable Diffusion.
    noise_schedule
        The checkpoint's own, for the latter.
    shift
        For the former: larger images need more noise before their layout is lost. Below 1 the levels crowd at little
        noise, where detail is learnt.
    """

    prediction_type: str
    noise_schedule: DDPMScheduler
    shift: float = 1.0

    @classmethod
    def of(cls, scheduler: Any, latent_side: int, shift: float | None = None) -> Objective:
        """The objective that a pipeline's scheduler asks for; `shift` is by default that of the latents' size.

        Raises
        ------
        ValueError
            Its `prediction_type` is one that we cannot train, or is not rectified flow and has no `shift`.
        """
        kind = scheduler.config.get("prediction_type", "epsilon")
        if kind not in PREDICTION_TYPES:
            raise ValueError(
                f"`model` has a scheduler with `prediction_type` {kind!r}; allowed are "
                f"{', '.join(map(repr, PREDICTION_TYPES))}"
            )
        if shift is not None and kind != "flow_prediction":
            raise ValueError(
                f"`noise_shift` is {shift!r}, but `model` has a scheduler with `prediction_type` {kind!r}; allowed is "
                "a shift for rectified flow alone"
            )
        known = {"flow_prediction": "epsilon"}.get(kind, kind)  # the schedule of noise is not used for a flow
        return cls(
            kind,
            DDPMScheduler.from_config(scheduler.config, prediction_type=known),
            latent_side / 16 if shift is None else shift,
        )

    def corrupt(
        self, clean: torch.Tensor, noise: torch.Tensor, position: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Noise clean latents; returns (noisy latents, timesteps for the denoiser, target of its prediction).

        Parameters
        ----------
        clean, noise
            (N, C, h, w), of one device.
        position
            Place of each noise level in the distribution of levels, (N,), in (0, 1), on the CPU.
        """
        levels = self.noise_schedule.config.num_train_timesteps
        if self.prediction_type == "flow_prediction":
            sigma = torch.sigmoid(torch.special.ndtri(position.double().clamp(1e-6, 1 - 1e-6))).to(clean)
            sigma = self.shift * sigma / (1 + (self.shift - 1) * sigma)
            return torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1)), sigma * levels, noise - clean
        timesteps = (position * levels).long().clamp(0, levels - 1).to(clean.device)
        noisy = self.noise_schedule.add_noise(clean, noise, timesteps)
        if self.prediction_type == "epsilon":
            return noisy, timesteps, noise
        if self.prediction_type == "sample":
            return noisy, timesteps, clean
        return noisy, timesteps, self.noise_schedule.get_velocity(clean, noise, timesteps)


def denoising_losses(
    denoiser: Any, noisy: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of what a denoiser predicts of each image, (N,)."""
    predicted = denoiser(noisy, timesteps, text, return_dict=False)[0]
    losses: torch.Tensor = (predicted.float() - target).square().mean((1, 2, 3))
    return losses


def learning_rate_at(step: int, steps: int, peak: float) -> float:
    """Warm up over the first twentieth of the steps (at most 100), hold, fall over the last quarter to a hundredth."""
    warmup = max(1, min(100, steps // 20))
    return peak * min(1.0, (step + 1) / warmup, max(0.01, (steps - step) / (steps * 0.25)))
