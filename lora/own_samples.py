"""Rounds against one's own samples: the denoiser learns to tell real images from what it draws itself.

Direct Discriminative Optimization (Zheng et al., ICML 2025): the ratio of two likelihoods, of the model as it is learnt
and of the model as it was when the round began (the reference), is a discriminator, and there is no other network. In
diffusion a likelihood is the error of denoising, so that on real images the error must fall below the reference's, and
on the reference's own samples rise above it. What plain denoising leaves blurred becomes sharper. Each round starts
from what the last one learnt, with new samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

SHARPNESS = 200.0  # of the discriminator: a mean squared error that much apart as 1 / SHARPNESS counts as one logit
FIRST_SEED = 2_000_000  # none of the sample sheets' or the verdict's
SEED_STRIDE = 100_000  # between rounds


def discriminative_loss(errors: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Loss of each pair of a real image and an own sample, (N,).

    Parameters
    ----------
    errors, reference
        Mean squared errors of denoising, (2, N): real images first, then own samples; of the model and the reference.
    """
    real, own = SHARPNESS * (errors - reference)
    return functional.softplus(real) + functional.softplus(-own)


class OwnSamples:
    """The reference's weights, its samples, and the captions that they were drawn with.

    Attributes
    ----------
    stored
        What a checkpoint keeps: weights and samples. Captions follow from seed and round.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer, config = trainer, trainer.config
        self.reference = torch.nn.ParameterList(p.detach().clone() for p in trainer.lora).requires_grad_(False)
        shape = (config.round_samples, *trainer.encoded.latents.shape[1:])
        self.latents = torch.nn.ParameterList([torch.zeros(shape)]).requires_grad_(False)
        self.stored: dict[str, torch.nn.Module] = {"reference": self.reference, "own_samples": self.latents}

    def captions(self, number: int) -> np.ndarray:
        """Rows of the embeddings that the samples of a round are drawn with, (round_samples,).

        Captions of the data in all their wordings, as the real images have them: a wording that own samples alone had
        would tell them from real images by itself, and be unlearnt.
        """
        trainer, config = self.trainer, self.trainer.config
        rng = np.random.default_rng([config.seed, number, 78])
        count = config.round_samples
        chosen = rng.choice(trainer.training, count, replace=count > len(trainer.training))
        return trainer.encoded.wordings[rng.integers(len(trainer.encoded.wordings), size=count), chosen]

    def draw(self, number: int) -> None:
        """Draw the samples of a round with the reference, as users draw: the pipeline's steps and guidance."""
        trainer = self.trainer
        first = FIRST_SEED + number * SEED_STRIDE + trainer.config.seed
        seeds = [first + i for i in range(trainer.config.round_samples)]
        with trainer.weights(self.reference):
            drawn = trainer.sampler.draw(self.captions(number).tolist(), seeds, f"own samples, round {number + 1}")
        with torch.no_grad():
            self.latents[0].copy_(drawn)
