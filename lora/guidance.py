"""Guidance distillation: at the guidance that users draw with, an adapter draws what another guidance would have drawn.

Classifier-free guidance (Ho and Salimans 2022) makes images follow their captions and look alike: at the default of
the embedded base half of its malaria cells lose their violet. Less of it is nearer to real images as a set, but those
who use an adapter, and other adapters beside it, do not set a guidance for it. Meng et al. (2023, "On distillation of
guided diffusion models") teach a denoiser what a guided one predicts. Here what is taught is guided too: with the
default, it is to predict what the start predicts with `distil_guidance`, and without caption what the start predicts.
"""

from __future__ import annotations

from typing import Any

import torch


class GuidanceDistillation:
    """The weights that a run starts from, by whose predictions it is taught.

    Called as `denoising_losses` is; the target, which is that of denoising, is not looked at.

    Parameters
    ----------
    trainer
        Its adapter's weights are copied as they are now.
    guidance
        At which the start is to be drawn.
    """

    def __init__(self, trainer: Any, guidance: float) -> None:
        self.trainer, self.guidance = trainer, guidance
        self.start = [parameter.detach().clone() for parameter in trainer.lora]

    def __call__(
        self, denoiser: Any, noisy: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        """Squared error of each image, (N,): of the guided prediction, and of that without caption."""
        empty = self.trainer.encoded.embeddings[:1].float().to(text.device).expand_as(text)
        given = torch.cat([noisy] * 2), torch.cat([timesteps] * 2), torch.cat([empty, text])
        with torch.no_grad(), self.trainer.weights(self.start):
            without, named = denoiser(*given, return_dict=False)[0].float().chunk(2)
        wanted = without + self.guidance * (named - without)
        free, named = denoiser(*given, return_dict=False)[0].float().chunk(2)
        guided = free + self.trainer.sampler.guidance * (named - free)
        return ((guided - wanted).square() + (free - without).square()).mean((1, 2, 3))
