"""Samples during training: drawn with the stock sampler, laid on sheets, and compared with the training images."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional
from tqdm.auto import tqdm

from pipeline.pipeline_noise import add_image_noise

COLUMNS = 4


class Sampler:
    """Draws latents with the denoiser as it is at the moment; autoencoder and text encoder are not needed for it.

    The same prompt and seed give what `SyntheticDicomPipeline` gives: one generator an image, on the CPU.

    Parameters
    ----------
    pipe
        The pipeline whose denoiser is trained; its default steps and guidance are used.
    accelerator
        Each process draws its share.
    embeddings
        Rows (N, tokens, width) that prompts are given as; row 0 is the empty prompt.
    batch
        Images at once.
    exact
        Leave mixed precision out.
    """

    def __init__(
        self, pipe: Any, accelerator: Accelerator, embeddings: torch.Tensor, batch: int = 8, *, exact: bool = False
    ) -> None:
        self.accelerator, self.embeddings, self.batch = accelerator, embeddings, batch
        self.autocast = nullcontext if exact else accelerator.autocast
        self.steps = pipe.config.default_num_inference_steps
        self.guidance = pipe.config.default_guidance_scale
        side = pipe.unet.config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        self.shape = (pipe.unet.config.in_channels, height, width)
        self.denoiser = StableDiffusionPipeline(
            vae=None,
            text_encoder=None,
            tokenizer=None,
            unet=pipe.unet,
            scheduler=type(pipe.scheduler).from_config(pipe.scheduler.config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        self.denoiser.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def draw(self, rows: Sequence[int], seeds: Sequence[int], description: str | None = None) -> torch.Tensor:
        """Scaled latents, float32 (N, C, h, w), of prompts given by their rows; with a description, a progress bar."""
        accelerator, device = self.accelerator, self.accelerator.device
        self.denoiser.unet.eval()  # what is drawn in the other mode, which training leaves, differs in the last bits
        latents = torch.zeros(len(rows), *self.shape, device=device)
        own = list(range(len(rows)))[accelerator.process_index :: accelerator.num_processes]
        hidden = description is None or not accelerator.is_main_process
        for start in tqdm(range(0, len(own), self.batch), desc=description, disable=hidden, mininterval=1):
            some = own[start : start + self.batch]
            generators = [torch.Generator().manual_seed(seeds[i]) for i in some]
            noise = [torch.randn((1, *self.shape), generator=generator) for generator in generators]
            text = self.embeddings[[rows[i] for i in some]].float().to(device)
            with self.autocast():
                latents[some] = self.denoiser(
                    prompt_embeds=text,
                    negative_prompt_embeds=self.embeddings[:1].float().to(device).expand_as(text),
                    latents=torch.cat(noise).to(device),
                    generator=generators,
                    num_inference_steps=self.steps,
                    guidance_scale=self.guidance,
                    output_type="latent",
                ).images.float()
        return accelerator.reduce(latents, "sum").cpu()


@torch.no_grad()
def decode(
    vae: Any,
    latents: torch.Tensor,
    device: torch.device,
    noise: Sequence[dict[str, Any] | None] | None = None,
    seeds: Sequence[int] = (),
) -> np.ndarray:
    """Latents as uint8 images (N, H, W, 3), one at a time (flat memory); the autoencoder visits the device for it.

    With `noise`, the fits of each image's modality (None where it has none), as the pipeline draws it with `seeds`.
    """
    vae.to(device)
    images: list[np.ndarray] = []
    for row in latents.split(1):
        image = vae.decode((row / vae.config.scaling_factor).to(device, vae.dtype), return_dict=False)[0]
        image = (image.float().cpu() / 2 + 0.5).clamp(0, 1)
        if noise is not None:
            image = add_image_noise(image, noise[len(images) :][:1], seeds[len(images) :][:1])
        images.append(image[0].permute(1, 2, 0).numpy())
    vae.to("cpu")
    return np.round(np.stack(images) * 255).astype(np.uint8)


def write_sheet(images: np.ndarray, path: Path) -> None:
    """Images side by side, each with the word SYNTHETIC drawn in, as JPEG."""
    count, height, width, _ = images.shape
    columns = min(COLUMNS, count)
    sheet = Image.new("RGB", (columns * width, -(-count // columns) * height))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(max(8, height // 20))
    for i, image in enumerate(images):
        left, top = i % columns * width, i // columns * height
        sheet.paste(Image.fromarray(image), (left, top))
        place = (left + width // 50, top + height - height // 100)
        draw.text(place, "SYNTHETIC", "white", font, anchor="ld", stroke_width=1, stroke_fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    sheet.save(part, format="JPEG", quality=75, optimize=True, progressive=True)
    part.replace(path)


class CopyCheck:
    """Tells samples that copy a training image: by their distance to the nearest one, in latents at half resolution.

    A sample is a copy when it is nearer to a training image than real images of other people ever come (the 1 %
    quantile of the validation images' distances). Without validation images the bar is half the median distance of
    training images to the nearest one of another person.
    """

    def __init__(self, latents: torch.Tensor, groups: np.ndarray, validation: np.ndarray) -> None:
        pooled = _pooled(latents)
        self.training = pooled[torch.from_numpy(~validation)]
        people = torch.from_numpy(groups[~validation])
        if validation.any():
            distances = self._nearest(pooled[torch.from_numpy(validation)])
            self.threshold = float(torch.quantile(distances, 0.01))
        else:
            # Where all is one person's, every other image counts.
            people = people if len(people.unique()) > 1 else torch.arange(len(people))
            distances = self._nearest(self.training, people, people)
            self.threshold = float(distances.median()) / 2 if len(self.training) > 1 else 0.0

    def _nearest(
        self, some: torch.Tensor, people: torch.Tensor | None = None, training_people: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Distance of each row to the nearest training image, of another person where these are given."""
        found = []
        for start in range(0, len(some), 256):
            distances = torch.cdist(some[start : start + 256], self.training)
            if people is not None and training_people is not None:
                distances[people[start : start + 256, None] == training_people[None]] = torch.inf
            found.append(distances.min(1).values)
        return torch.cat(found)

    def count(self, samples: torch.Tensor) -> int:
        """Number of samples (scaled latents) that are copies."""
        return int((self._nearest(_pooled(samples)) < self.threshold).sum())


def _pooled(latents: torch.Tensor) -> torch.Tensor:
    return functional.avg_pool2d(latents.float(), 2).flatten(1)
