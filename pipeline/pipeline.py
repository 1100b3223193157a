"""Text or an image to a synthetic medical image as a valid DICOM object: the project's one diffusers pipeline.

`SyntheticDicomPipeline` keeps Stable Diffusion's components and loaders (LoRA, `from_single_file`, schedulers), so it
loads the embedded base as well as any Stable Diffusion 1.x/2.x checkpoint. What is its own: one seed per image, a
float decode that keeps more grey levels than 8 bits hold, and the DICOM stage behind it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import pydicom
import torch
import transformers
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from transformers import CLIPTextModel, CLIPTokenizer

# diffusers copies custom code file by file: every sibling stands here, also those that only a sibling needs. It finds
# them by searching for `from .name import`, in the siblings too, and asks the Hub anew on every path that leads to one:
# nearly a hundred times a load. It does not see `from . import name`, so that is how siblings import each other.
from .adapter_files import read_adapter  # noqa: F401
from .adapter_names import find_adapter  # noqa: F401
from .adapter_use import AdapterMixin, uses_adapter_of_modality
from .dicom_burned_in import BurnedInTextWarning, find_text, in_words
from .dicom_decode import decode_dicom  # noqa: F401
from .dicom_files import write_files  # noqa: F401
from .dicom_input import InputImage, read_image, square
from .dicom_limits import MAX_PIXELS  # noqa: F401
from .dicom_modules import add_slice  # noqa: F401
from .dicom_output import number_in_order, to_dataset
from .dicom_patient import Patient, Study, made
from .dicom_pixels import to_picture
from .dicom_profiles import DicomProfile, choose_profile, modality_of
from .dicom_prompt import parse_prompt  # noqa: F401
from .dicom_provenance import Recipe
from .dicom_seal import sign  # noqa: F401
from .dicom_volume import VolumeRecipe  # noqa: F401
from .dicom_windows import HounsfieldWindow  # noqa: F401
from .pipeline_checks import check_inputs, check_size, seeds_of
from .pipeline_memorisation import MemorisationMixin
from .pipeline_noise import add_image_noise
from .pipeline_saving import SavingMixin
from .pipeline_watermark import NAME as WATERMARK
from .pipeline_watermark import embed


@dataclass
class SyntheticDicomPipelineOutput(BaseOutput):
    """What a call returns.

    Attributes
    ----------
    images
        `output_type` "dicom" and "pil": list of 8-bit PIL images; "np": float32 (N, H, W, 3) in [0, 1]; "pt": float32
        (N, 3, H, W) in [0, 1]; "latent": latents (N, C, h, w) as the autoencoder's decoder takes them, still scaled.
    dicoms
        One `pydicom.Dataset` an image, ready for `save_as`, for "dicom"; else None. Empty when a callback broke the
        call off: what is half denoised does not become a DICOM.
    recipes
        One `Recipe` an image: all that is needed to make it again.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
    dicoms: list[pydicom.Dataset] | None
    recipes: list[Recipe]

    @property
    def seeds(self) -> list[int]:
        """Seed of each image."""
        return [recipe.seed for recipe in self.recipes]


class SyntheticDicomPipeline(SavingMixin, MemorisationMixin, AdapterMixin, StableDiffusionPipeline):
    """Text-to-image and image-to-image generation of synthetic medical images, as DICOM.

    Parameters
    ----------
    vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder
        Stable Diffusion's components. The safety checker of a wrapped checkpoint is kept but never run: it was made
        for photographs of people and blackens medical images.
    model_name
        Name of the model in recipes; by default the name it was loaded by.
    default_num_inference_steps, default_guidance_scale
        Taken where a call names none.
    image_noise
        Noise that the autoencoder smooths away, drawn anew after decoding: fits of `lora.image_noise` by the name of
        the DICOM profile; other images get none.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        image_encoder: Any = None,
        requires_safety_checker: bool = False,
        model_name: str | None = None,
        default_num_inference_steps: int = 50,
        default_guidance_scale: float = 7.5,
        image_noise: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder, False
        )
        self.register_to_config(
            requires_safety_checker=False,
            model_name=model_name,
            default_num_inference_steps=default_num_inference_steps,
            default_guidance_scale=default_guidance_scale,
            image_noise=image_noise,
        )
        if text_encoder is not None and unet is not None and text_encoder.dtype != unet.dtype:
            text_encoder.to(unet.dtype)  # transformers loads it as it is stored, diffusers the rest in full precision
        self._model_hash: tuple[tuple[Any, ...], str] | None = None
        self._start_adapters()

    # ---- what the model is ----------------------------------------------------------------------------------------

    @property
    def model_name(self) -> str:
        """Name of the model as recipes give it; never a path of this machine."""
        name = self.config.model_name or str(self.config.get("_name_or_path", "") or "")
        return Path(name).name if os.path.isabs(name) or Path(name).exists() else name or "unnamed"

    @property
    def model_sha256(self) -> str:
        """Hash over weights, precision and scheduler settings: all of the model that decides pixels, but adapters."""
        tensors = sorted(
            (
                (f"{part}.{name.replace('.base_layer', '')}", tensor)
                for part in ("text_encoder", "unet", "vae")
                for name, tensor in getattr(self, part).state_dict().items()
                if "lora_" not in name
            ),
            key=lambda pair: pair[0],
        )
        settings = json.dumps(
            [
                {k: v for k, v in self.scheduler.config.items() if k[0] != "_"},
                str(self.unet.dtype),
                self.vae.config.scaling_factor,
                *([self.config.image_noise] if self.config.image_noise else []),
            ],
            sort_keys=True,
            default=str,
        )
        fused = [layer.merged_adapters for _, layer in self._layers() if layer.merged]
        state = (settings, str(fused), *((name, tensor.data_ptr(), tensor._version) for name, tensor in tensors))
        if self._model_hash is None or self._model_hash[0] != state:
            digest = hashlib.sha256(settings.encode())
            for name, tensor in tensors:
                digest.update(name.encode())
                digest.update(_bytes_of(tensor))
            self._model_hash = state, digest.hexdigest()
        return self._model_hash[1]

    # ---- the call -----------------------------------------------------------------------------------------------

    @uses_adapter_of_modality
    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: str | Sequence[str],
        image: Any = None,
        strength: float = 0.6,
        *,
        modality: str | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        frame: int | None = None,
        patient: Patient | dict[str, Any] | None = None,
        study: Study | dict[str, Any] | None = None,
        check_memorisation: bool = False,
        watermark: bool = False,
        output_type: str = "dicom",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> SyntheticDicomPipelineOutput | tuple[Any, ...]:
        """Generate images and, by default, their DICOM objects.

        Parameters
        ----------
        prompt
            One prompt or several, in a radiologist's words.
        image
            Turns the call into image-to-image: a DICOM file (path, bytes, Dataset), a picture, an array or a tensor;
            see `read_image`. Image-to-image is no anonymisation: the source stays recognisable.
        strength
            Share of the denoising that an input image goes through, in (0, 1]; 1 forgets it.
        modality
            Which DICOM object is written and which anatomy is meant; by default that of the adapter in use or the one
            that the prompt names. Where the adapters in use are for others, the one that is loaded for it is used
            alone, in this call.
        seed
            Image i of the call has `seed` + i, prompts outermost; or one seed per image; drawn at random if absent.
            The same recipe gives the same image and the same UIDs, however many images a call makes.
        generator
            Draws the seeds when no `seed` is given: one `torch.Generator`, or one an image.
        negative_prompt
            What is not wanted: one text, or one per prompt.
        num_images_per_prompt
            Images per prompt.
        num_inference_steps, guidance_scale
            By default the model's own.
        height, width
            In pixels, multiples of the autoencoder's factor; by default the model's own size.
        frame
            Which frame of a multi-frame input, counted from 1.
        patient, study
            Header values to write; what is not given is made up, recognisably, from the request.
        check_memorisation
            Hold each image against the index of the training images that model and adapters come with, and draw a copy
            anew, up to three times, with `seed` + 1,000,003, ...; recipe and header say so. The recipe has the seed
            that made the image. A callback is then called for the redrawn images too.
        watermark
            Add an invisible pattern to the pixels by which `verify` knows the image when its header is gone; the
            recipe says so. See `pipeline_watermark`.
        output_type
            "dicom" (default), "pil", "np", "pt" or "latent".
        return_dict
            False gives the tuple (images, dicoms, recipes).
        callback_on_step_end, callback_on_step_end_tensor_inputs
            As in diffusers; tensors on offer: "latents", "prompt_embeds", "denoised" (the present guess of the result).

        Raises
        ------
        ValueError
            An argument is out of range or contradicts another; raised before any work is done.
        """
        prompts: list[Any] = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
        negatives = check_inputs(
            prompts,
            negative_prompt,
            image,
            strength,
            num_images_per_prompt,
            output_type,
            num_inference_steps,
            guidance_scale,
            callback_on_step_end_tensor_inputs,
        )
        height, width = check_size(self.unet, self.vae_scale_factor, height, width, image is not None)
        header = {"patient": made(Patient, patient, "patient"), "study": made(Study, study, "study")}
        seeds = seeds_of(seed, generator, len(prompts) * num_images_per_prompt)
        steps = self.config.default_num_inference_steps if num_inference_steps is None else num_inference_steps
        guidance = self.config.default_guidance_scale if guidance_scale is None else guidance_scale
        adapter = self.modality_in_use()
        wants_pictures = output_type in ("dicom", "pil")
        profiles = [self._profile(p, modality, adapter, required=wants_pictures) for p in prompts]
        if frame is not None and image is None:
            raise ValueError(f"`frame` is {frame!r}, but no `image` is given")
        if watermark and output_type == "latent":
            raise ValueError("`watermark` is True, but `output_type` is 'latent', which has no pixels to mark")
        source = read_image(image, frame=frame) if image is not None else None
        if source is not None:
            boxes = [region.box for region in find_text(source.pixels)]
            if warning := in_words(boxes, source.burned_in_annotation):
                warnings.warn(warning, BurnedInTextWarning, stacklevel=2)
        indexes = self.memorisation_indexes() if check_memorisation else []
        recipes = [
            self._recipe(
                prompts[n],
                negatives[n],
                profiles[n],
                each,
                steps,
                guidance,
                (height, width),
                strength,
                source,
                watermark,
            )
            for i, each in enumerate(seeds)
            for n in [i // num_images_per_prompt]
        ]
        if output_type == "dicom":
            # Header and prompt may contradict each other: find out on an empty picture, before minutes of denoising.
            for i in range(0, len(recipes), num_images_per_prompt):
                blank = np.zeros((height, width), np.float32)
                to_dataset(blank, profiles[i // num_images_per_prompt], recipes[i], **header)

        def denoise(texts: list[str], unwanted: list[str], count: int, some: list[int]) -> torch.Tensor:
            callback = callback_on_step_end, callback_on_step_end_tensor_inputs
            numbers = steps, float(guidance), height, width
            return self._denoise(texts, unwanted, count, some, *numbers, source, strength, *callback)

        latents = denoise(prompts, negatives, num_images_per_prompt, seeds)
        if indexes and not self.interrupt:

            def draw(places: list[int], others: list[int]) -> torch.Tensor:
                texts, unwanted = zip(*((recipes[i].prompt, recipes[i].negative_prompt) for i in places), strict=True)
                return denoise(list(texts), list(unwanted), 1, others)

            latents, recipes = self._redraw_copies(indexes, latents, recipes, draw)
        images: Any = latents
        each = [profiles[i // num_images_per_prompt] for i in range(len(recipes))]
        dicoms = None
        if output_type != "latent":
            images = self.decode_latents_to_float(latents)
            if self.config.image_noise:
                fits = [self.config.image_noise.get(profile.name) for profile in each]
                images = add_image_noise(images, fits, [recipe.seed for recipe in recipes])
            if watermark:
                marked = [torch.from_numpy(embed(image.permute(1, 2, 0).numpy())).permute(2, 0, 1) for image in images]
                images = torch.stack(marked)
        if output_type in ("np", "dicom", "pil"):
            images = images.permute(0, 2, 3, 1).numpy()
        if wants_pictures:
            arrays = list(images)
            images = [to_picture(pixels, profile) for pixels, profile in zip(arrays, each, strict=True)]
            if output_type == "dicom":
                dicoms = []
                if not self.interrupt:  # else the recipe would promise a finished image
                    dicoms = [
                        to_dataset(pixels, profile, recipe, **header)
                        for pixels, profile, recipe in zip(arrays, each, recipes, strict=True)
                    ]
                number_in_order(dicoms)
        self.maybe_free_model_hooks()
        if not return_dict:
            return images, dicoms, recipes
        return SyntheticDicomPipelineOutput(images=images, dicoms=dicoms, recipes=recipes)

    @torch.no_grad()
    def decode_latents_to_float(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode scaled latents to float32 (N, 3, H, W) in [0, 1] on the CPU, one image at a time (flat memory)."""
        decoded = [
            self.vae.decode(row / self.vae.config.scaling_factor, return_dict=False)[0].float().cpu()
            for row in latents.to(self.vae.dtype).split(1)
        ]
        return (torch.cat(decoded) / 2 + 0.5).clamp(0, 1)

    def plan(
        self,
        prompt: str,
        *,
        seed: int,
        modality: str | None = None,
        negative_prompt: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        watermark: bool = False,
    ) -> Recipe:
        """Give the recipe that a call with these arguments would have, without drawing: its UIDs follow from it."""
        steps, guidance = num_inference_steps, guidance_scale
        check_inputs([prompt], negative_prompt, None, 1.0, 1, "dicom", steps, guidance, ())
        (seed,) = seeds_of(seed, None, 1)
        name = self.adapter_for(prompt, modality)
        with self.only_adapter(name) if name is not None else nullcontext():
            profile = self._profile(prompt, modality, self.modality_in_use(), required=True)
            steps = self.config.default_num_inference_steps if steps is None else steps
            guidance = self.config.default_guidance_scale if guidance is None else guidance
            size = check_size(self.unet, self.vae_scale_factor, None, None, False)
            numbers = seed, steps, guidance, size, 1.0
            return self._recipe(prompt, negative_prompt or "", profile, *numbers, None, watermark)

    # ---- the steps of a call ------------------------------------------------------------------------------------

    def _recipe(
        self,
        prompt: str,
        negative: str,
        profile: DicomProfile,
        seed: int,
        steps: int,
        guidance: float,
        size: tuple[int, int],
        strength: float,
        source: InputImage | None,
        watermark: bool,
    ) -> Recipe:
        return Recipe(
            prompt=prompt,
            negative_prompt=negative,
            modality=profile.name,
            seed=seed,
            num_inference_steps=steps,
            guidance_scale=float(guidance),
            scheduler=type(self.scheduler).__name__,
            height=size[0],
            width=size[1],
            model=self.model_name,
            model_sha256=self.model_sha256,
            adapters=self.adapters_in_use(),
            strength=float(strength) if source else None,
            input_sha256=source.sha256 if source else None,
            versions=_versions(self._execution_device),
            watermark=WATERMARK if watermark else None,
        )

    def _denoise(
        self,
        prompts: list[str],
        negatives: list[str],
        count: int,
        seeds: list[int],
        steps: int,
        guidance: float,
        height: int,
        width: int,
        source: InputImage | None,
        strength: float,
        callback: Any,
        callback_inputs: Sequence[str],
    ) -> torch.Tensor:
        device = self._execution_device
        self._guidance_scale, self._interrupt, self._cross_attention_kwargs = guidance, False, None
        self._clip_skip = None
        guided = guidance > 1 and self.unet.config.time_cond_proj_dim is None
        # One prompt, and on the CPU one image, after the other: an image's last digits do not depend on its company.
        pairs = [self.encode_prompt([p], device, count, guided, [n]) for p, n in zip(prompts, negatives, strict=True)]
        positive = torch.cat([pair[0] for pair in pairs])
        unwanted = torch.cat([pair[1] for pair in pairs]) if guided else positive
        size = 1 if device.type == "cpu" else len(seeds)
        rows = zip(unwanted.split(size), positive.split(size), strict=True)
        embeddings = [torch.cat(row) if guided else row[1] for row in rows]
        self.scheduler.set_timesteps(steps, device=device)
        timesteps = self.scheduler.timesteps
        # Every image has a generator of its own, on the CPU: the same noise in any batch and on any device.
        generators = [torch.Generator("cpu").manual_seed(s) for s in seeds]
        shape = (
            len(seeds),
            self.unet.config.in_channels,
            height // self.vae_scale_factor,
            width // self.vae_scale_factor,
        )
        noise = randn_tensor(shape, generator=generators, device=device, dtype=positive.dtype)
        if source is None:
            latents = noise * self.scheduler.init_noise_sigma
        else:
            first = max(steps - max(int(steps * strength), 1), 0) * self.scheduler.order
            timesteps = timesteps[first:]
            if hasattr(self.scheduler, "set_begin_index"):
                self.scheduler.set_begin_index(first)
            clean = self._encode_image(source, height, positive.dtype).expand(shape)
            latents = self.scheduler.add_noise(clean, noise, timesteps[:1].repeat(len(seeds)))
        extra = self.prepare_extra_step_kwargs(generators, eta=0.0)
        with self.progress_bar(total=len(timesteps)) as progress:
            for i, t in enumerate(timesteps):
                scaled = self.scheduler.scale_model_input(latents, t)
                guesses = []
                for some, text in zip(scaled.split(size), embeddings, strict=True):
                    doubled = torch.cat([some] * 2) if guided else some
                    guess = self.unet(doubled, t, encoder_hidden_states=text, return_dict=False)[0]
                    if guided:
                        unconditional, conditional = guess.chunk(2)
                        guess = unconditional + guidance * (conditional - unconditional)
                    guesses.append(guess)
                predicted = torch.cat(guesses)
                latents = self.scheduler.step(predicted, t, latents, **extra, return_dict=False)[0]
                progress.update()
                if callback is not None:
                    outputs = getattr(self.scheduler, "model_outputs", None) or [None]
                    denoised = outputs[-1] if outputs[-1] is not None else latents
                    offered = {"latents": latents, "prompt_embeds": positive, "denoised": denoised}
                    latents = callback(self, i, t, {k: offered[k] for k in callback_inputs}).pop("latents", latents)
                if self.interrupt:
                    break
        return latents

    def _encode_image(self, source: InputImage, size: int, dtype: torch.dtype) -> torch.Tensor:
        """Scaled latent (1, C, h, w) of an input image, squared without squashing."""
        pixels = square(source.pixels, size)
        rgb = np.repeat(pixels[..., None], 3, axis=-1) if pixels.ndim == 2 else pixels
        tensor = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None] * 2 - 1
        encoded = self.vae.encode(tensor.to(self._execution_device, self.vae.dtype))
        mode = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return (mode * self.vae.config.scaling_factor).to(dtype)

    @staticmethod
    def _profile(prompt: str, modality: str | None, adapter: str | None, required: bool) -> DicomProfile:
        """Profile of one prompt; where no DICOM or picture is wanted, a prompt without modality is fine."""
        try:
            return choose_profile(prompt, modality, adapter)
        except ValueError:
            if required or modality is not None:
                raise
            return choose_profile(prompt, "secondary-capture")


def best_device() -> str:
    """Name the fastest device that torch finds here."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def _bytes_of(tensor: torch.Tensor) -> bytes:
    """Values as float32 bytes, so that a model hashes alike in half and in full precision when it came from half."""
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()


def _versions(device: torch.device) -> tuple[tuple[str, str], ...]:
    return (
        ("python", platform.python_version()),
        ("torch", torch.__version__),
        ("diffusers", diffusers.__version__),
        ("transformers", transformers.__version__),
        ("pydicom", pydicom.__version__),
        ("device", device.type),
        *([("threads", str(torch.get_num_threads()))] if device.type == "cpu" else []),  # they decide last digits
    )


__all__ = ["Patient", "Recipe", "Study", "SyntheticDicomPipeline", "SyntheticDicomPipelineOutput", "modality_of"]
