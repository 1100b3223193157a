"""Matching: what the adapter draws is to look, as a set, as the training images do to a network that has learnt to see.

The squared maximum mean discrepancy (Gretton et al. 2012) falls between features of drawn and of training images, as in
generative moment matching networks (Li et al. 2015), with the cubic kernel that KID is defined with (Binkowski et al.
2018); images whose captions many share are matched among themselves too, so that what a caption names is kept. Features
are those of EfficientNet-Lite1 and -Lite2 (`perceptual`), not of the networks that judge in `evaluation`, the default
of which is their relative. They see the whole at two sizes and its corners: of one view alone they taught whims that
the judge did not share. Small pictures of 16 pixels count as a third network: without them, chest X-rays gained
sharp edges by too much contrast. Images are drawn as users draw them, with as many steps: taught at 12 steps, chest
X-rays came nearer to real ones at 12 steps and not at 25. The gradient goes through decoder and scheduler to what the
denoiser predicts at a few of the steps, and not through its inputs (DRTune, Wu et al. 2024).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from tqdm.auto import tqdm

from evaluation.features import FEATURES
from pipeline.pipeline_noise import add_image_noise

from .perceptual import load_perceptual, normalised

GRADIENT_STEPS = 3  # the last one, and others at random
QUEUE = 48  # drawn images that a new one is compared with, beside those of its own batch
REAL = 1200  # training images that they are compared with, at most
WHOLE = (224, 288)  # sides in pixels at which the networks see an image whole
CORNER, CORNER_SIZE = 0.6, 160  # a corner's share of the image's sides, and its side in pixels as they see it
SMALL = 16  # side of the small pictures
SMALL_SCALE = 0.7  # of their features: that of one whose pixels differ as those of training images do, were it 1
SMALL_WEIGHT = 1 / 3  # of them in the kernel
SIZES = (1, 2)  # of the networks: EfficientNet-Lite1 and -Lite2
SMOOTH: dict[str, Any] = {"mode": "bilinear", "antialias": True, "align_corners": False}
SHARED = 20  # training images that must have a caption for it to be matched on its own
FIRST, LATER = 79, 80  # streams of random numbers: of the images drawn before the first step, of those of the steps


class FeatureMatching:
    """Features of the training images, and of the latest images drawn.

    Attributes
    ----------
    stored
        What a checkpoint keeps: features of the latest images, and the number of the caption of each.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer, device = trainer, trainer.accelerator.device
        self.networks = [load_perceptual(str(device), size) for size in SIZES]
        self.vae = trainer.pipe.vae.requires_grad_(False)
        training = trainer.training
        rng = np.random.default_rng([trainer.config.seed, FIRST])
        compared = np.sort(rng.permutation(len(training))[:REAL])
        numbers, captions = np.unique(trainer.encoded.plain[training], return_inverse=True)
        self.caption = dict(zip(training.tolist(), captions.tolist(), strict=True))  # number of each image's caption
        self.sorted = training[np.argsort(captions, kind="stable")]
        shared = np.bincount(captions[compared], minlength=len(numbers)) >= SHARED
        self.shared = torch.from_numpy(shared).to(device)
        self.real_caption = torch.from_numpy(captions[compared]).to(device)
        self.middle: torch.Tensor | float = 0.0
        self.spread = 1.0  # these two of the small pictures
        self.real = self._features_of(training[compared])
        small = self.real[:, -1]
        self.middle = small.mean(0)
        spread = (small - self.middle).square().sum(1).mean().sqrt() / FEATURES**0.5 / SMALL_SCALE
        self.spread = float(spread.clamp(min=1e-6))  # where all training images are the same
        self.real[:, -1] = (small - self.middle) / self.spread
        width = (QUEUE, *self.real.shape[1:])
        self.queue = torch.nn.ParameterList([torch.zeros(width), torch.zeros(QUEUE)]).requires_grad_(False).to(device)
        self.stored: dict[str, torch.nn.Module] = {"matching": self.queue}

    # ---- features -----------------------------------------------------------------------------------------------

    def _features(self, images: torch.Tensor, chosen: np.ndarray) -> torch.Tensor:
        """Features (N, views, 1280) of images (N, 3, H, W) in [0, 1]; grey where their modality is.

        Of each view of `views` by each network, and small pictures as the last.
        """
        grey = torch.tensor([self.trainer.profile(i).photometric_interpretation != "RGB" for i in chosen.tolist()])
        images = torch.where(grey.view(-1, 1, 1, 1).to(images.device), images.mean(1, keepdim=True), images)
        seen = [(network, view) for view in views(images) for network in self.networks]
        # Computed twice, so that the memory is that of one view.
        found = [checkpoint(_seen_by, network, view, use_reentrant=False) for network, view in seen]
        small = functional.interpolate(images, (SMALL, SMALL), **SMOOTH).flatten(1)
        small = (functional.pad(small, (0, FEATURES - small.shape[1])) - self.middle) / self.spread
        return torch.stack([*found, small], 1)

    @torch.no_grad()
    def _features_of(self, chosen: np.ndarray) -> torch.Tensor:
        """Features of training images."""
        parts, device = [], self.trainer.accelerator.device
        hidden = not self.trainer.accelerator.is_main_process
        for start in tqdm(range(0, len(chosen), 16), desc="looking at training images", disable=hidden, mininterval=1):
            some = chosen[start : start + 16]
            pixels = torch.from_numpy(self.trainer.data.images[some]).permute(0, 3, 1, 2).to(device)
            parts.append(self._features(pixels.float() / 255, some))
        return torch.cat(parts)

    # ---- drawing ------------------------------------------------------------------------------------------------

    def _draw(self, rows: np.ndarray, seeds: list[int], rng: np.random.Generator) -> torch.Tensor:
        """As `Sampler.draw`, with a gradient through some of the steps, which `rng` chooses."""
        trainer = self.trainer
        pipe, sampler, device = trainer.pipe, trainer.sampler, trainer.accelerator.device
        scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        scheduler.set_timesteps(sampler.steps, device=device)
        last = len(scheduler.timesteps) - 1
        taught = {last, *rng.choice(last, min(GRADIENT_STEPS - 1, last), replace=False).tolist()}
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.cat([torch.randn((1, *sampler.shape), generator=generator) for generator in generators])
        latents = noise.to(device) * scheduler.init_noise_sigma
        text = sampler.embeddings[torch.from_numpy(rows)].float().to(device)
        guided = sampler.guidance > 1
        if guided:
            text = torch.cat([sampler.embeddings[:1].float().to(device).expand_as(text), text])
        extra = pipe.prepare_extra_step_kwargs(generators, eta=0.0)
        for number, time in enumerate(scheduler.timesteps):
            given = scheduler.scale_model_input(latents.detach(), time)
            given = torch.cat([given] * 2) if guided else given
            with torch.set_grad_enabled(number in taught), trainer.accelerator.autocast():
                given = given.contiguous(memory_format=torch.channels_last)
                predicted = pipe.unet(given, time, text, return_dict=False)[0].float()
                if guided:
                    without, named = predicted.chunk(2)
                    predicted = without + sampler.guidance * (named - without)
            latents = scheduler.step(predicted, time, latents, **extra, return_dict=False)[0]
        return latents

    def _made(self, chosen: np.ndarray, rng: np.random.Generator, *, gradient: bool) -> torch.Tensor:
        """Features of images drawn for the captions of training images, this process's share of them."""
        trainer = self.trainer
        rank, world = trainer.accelerator.process_index, trainer.accelerator.num_processes
        wordings = trainer.encoded.wordings
        rows = wordings[rng.integers(len(wordings), size=len(chosen)), chosen]
        seeds = rng.integers(2**40, size=len(chosen)).tolist()
        drawn = None if gradient else trainer.sampler.draw(rows.tolist(), seeds)[rank::world]
        rows, seeds, own = rows[rank::world], seeds[rank::world], chosen[rank::world]
        with torch.set_grad_enabled(gradient):
            latents = self._draw(rows, seeds, rng) if drawn is None else drawn.to(trainer.accelerator.device)
            self.vae.to(latents.device, memory_format=torch.channels_last)
            decoded = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype), return_dict=False)
            images = (decoded[0].float() / 2 + 0.5).clamp(0, 1)
            noise = [trainer.noise_of(i) for i in own.tolist()]
            noisy = add_image_noise(images.detach().cpu(), noise, seeds).to(images.device)
            images = images + (noisy - images.detach())
            return self._features(images, own)

    def _gathered(self, features: torch.Tensor, count: int) -> torch.Tensor:
        """Features of a batch of `count`, from all processes, without gradient."""
        accelerator = self.trainer.accelerator
        whole = torch.zeros(count, *features.shape[1:], device=accelerator.device)
        whole[accelerator.process_index :: accelerator.num_processes] = features.detach()
        return accelerator.reduce(whole, "sum")

    def _captions(self, chosen: np.ndarray) -> torch.Tensor:
        return torch.tensor([self.caption[i] for i in chosen.tolist()], device=self.real.device)

    def _remember(self, features: torch.Tensor, captions: torch.Tensor) -> None:
        with torch.no_grad():
            for kept, new in zip(self.queue, (features, captions), strict=True):
                kept.copy_(torch.cat([kept, new.to(kept)])[-QUEUE:])

    # ---- the run ------------------------------------------------------------------------------------------------

    def _choose(self, rng: np.random.Generator) -> np.ndarray:
        """One training image at random of each of `batch` equal parts of the set, sorted by caption.

        So a few images are made up nearly as the set is; else what is by chance too many would be taught to be fewer.
        """
        batch = self.trainer.config.batch
        places = (np.arange(batch) + rng.random(batch)) / batch * len(self.sorted)
        return rng.permutation(self.sorted[places.astype(int)])

    def _first(self, description: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of `QUEUE` images drawn with the weights as they are, the same captions and noise each time.

        And the numbers of their captions.
        """
        features, captions = [], []
        batches = -(-QUEUE // self.trainer.config.batch)
        hidden = not self.trainer.accelerator.is_main_process
        for number in tqdm(range(batches), desc=description, disable=hidden, mininterval=1):
            rng = np.random.default_rng([self.trainer.config.seed, FIRST, number])
            chosen = self._choose(rng)
            features.append(self._gathered(self._made(chosen, rng, gradient=False), len(chosen)))
            captions.append(self._captions(chosen))
        return torch.cat(features)[-QUEUE:], torch.cat(captions)[-QUEUE:]

    def begin(self) -> None:
        """Draw the first images to compare with."""
        self._remember(*self._first("drawing images to match"))

    def losses(self, micro: int) -> torch.Tensor:
        """The loss of each image of this process's share of a batch, (N,); its mean's gradient is that of the MMD."""
        trainer = self.trainer
        rng = np.random.default_rng([trainer.config.seed, LATER, trainer.step, micro])
        chosen = self._choose(rng)
        features = self._made(chosen, rng, gradient=True)
        captions = self._captions(chosen)
        batch = self._gathered(features, len(chosen))
        made = torch.cat([self.queue[0].detach(), batch])
        made_caption = torch.cat([self.queue[1].detach().to(captions), captions])
        place = torch.arange(len(chosen), device=batch.device)[
            trainer.accelerator.process_index :: trainer.accelerator.num_processes
        ]
        found = witness(
            features, captions[place], made, made_caption, self.real, self.real_caption, self.shared, QUEUE + place
        )
        self._remember(batch, captions)
        return 2 * found

    def distance(self) -> float:
        """Squared MMD between images drawn with the weights as they are, the same each time, and training images."""
        made, _ = self._first("measuring")
        pairs = [kernel(some, some) for some in (made, self.real)]
        own = [(pair.sum() - pair.diagonal().sum()) / (len(pair) * max(len(pair) - 1, 1)) for pair in pairs]
        return float(own[0] + own[1] - 2 * kernel(made, self.real).mean())


def views(images: torch.Tensor) -> list[torch.Tensor]:
    """What the networks see of images (N, 3, H, W) in [0, 1]: the whole at two sizes, and the four corners."""
    seen = [(images, size) for size in WHOLE]
    height, width = (round(CORNER * side) for side in images.shape[2:])
    for rows in (slice(None, height), slice(-height, None)):
        seen += [(images[:, :, rows, columns], CORNER_SIZE) for columns in (slice(None, width), slice(-width, None))]
    return [normalised(functional.interpolate(part, (size, size), **SMOOTH)) for part, size in seen]


def _seen_by(network: Any, view: torch.Tensor) -> torch.Tensor:
    features: torch.Tensor = network.extract_features(view)
    return features.float().mean((2, 3))


def kernel(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(x.y / d + 1)^3 of each pair of features (N, views, d) and (M, views, d), (N, M).

    The mean over views; the last, the small pictures, counts a third.
    """
    products = torch.einsum("nkd,mkd->knm", one, other)
    cubes = (products / one.shape[-1] + 1) ** 3
    return (1 - SMALL_WEIGHT) * cubes[:-1].mean(0) + SMALL_WEIGHT * cubes[-1]


def witness(
    features: torch.Tensor,
    captions: torch.Tensor,
    made: torch.Tensor,
    made_captions: torch.Tensor,
    real: torch.Tensor,
    real_captions: torch.Tensor,
    shared: torch.Tensor,
    place: torch.Tensor,
) -> torch.Tensor:
    """How much more a feature is like drawn images than like real ones, (N,): the witness function of the MMD.

    Parameters
    ----------
    features, captions
        Of the images that are taught, (N, views, D), and numbers of their captions, (N,).
    made, made_captions
        Of drawn images, (M, views, D) and (M,), without gradient.
    real, real_captions
        Of training images.
    shared
        Whether a caption is matched on its own too, bool, by its number. That counts half.
    place
        Where in `made` each image itself stands: it is not compared with itself.
    """
    like_made, like_real = kernel(features, made), kernel(features, real)
    others = torch.ones_like(like_made)
    others[torch.arange(len(features), device=place.device), place] = 0
    found = (like_made * others).sum(1) / others.sum(1) - like_real.mean(1)
    same, same_real = (captions[:, None] == some[None] for some in (made_captions, real_captions))
    same = same * others
    among = (like_made * same).sum(1) / same.sum(1).clamp(min=1) - (like_real * same_real).sum(1) / same_real.sum(
        1
    ).clamp(min=1)
    return found + 0.5 * among * (shared[captions] & (same.sum(1) > 0))
