"""Text and numbers to a synthetic volume with its label map: the project's one diffusers pipeline for volumes.

The denoiser is a stock two-dimensional one whose channels are the slices of the first axis, of the image and of each
label: the training volumes are aligned crops, so every layer sees the whole volume, at a tenth of the cost of 3D
convolutions. Image and label map are denoised jointly, so they fit each other.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from transformers import CLIPTextModel, CLIPTokenizer

# diffusers copies custom code file by file: every sibling stands here. Local ones share a folder with those of other
# pipelines, hence names that no other pipeline has.
from .volume_call import MAX_SEED, SyntheticDicomVolumePipelineOutput, check_call, check_shape
from .volume_covariates import Distribution, check, read_prompt

AT_ONCE = 8  # volumes denoised together: bounds memory, not results


class SyntheticDicomVolumePipeline(DiffusionPipeline):
    """Generation of a synthetic volume and its label map from text and covariates.

    Parameters
    ----------
    text_encoder, tokenizer
        For the prompt.
    unet
        Its channels are slices: those of the image, then those of each label.
    scheduler
        Any stock one.
    training_distribution
        Covariates of the training volumes, see `Distribution.to_config`.
    geometry
        "axes" and "spacing" of the volumes, see the output.
    subject
        "description" of what the model draws, and "words", one of which a prompt should have.
    model_name
        Name in recipes; by default the name it was loaded by.
    default_num_inference_steps, default_guidance_scale
        Taken where a call names none.
    """

    model_cpu_offload_seq = "text_encoder->unet"

    def __init__(
        self,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: Any,
        training_distribution: dict[str, Any] | None = None,
        geometry: dict[str, Any] | None = None,
        subject: dict[str, Any] | None = None,
        model_name: str | None = None,
        default_num_inference_steps: int = 25,
        default_guidance_scale: float = 1.5,
    ) -> None:
        super().__init__()
        # diffusers takes an argument without a default for a component, so these have one, which does not do.
        for name, value in (
            ("training_distribution", training_distribution),
            ("geometry", geometry),
            ("subject", subject),
        ):
            if not isinstance(value, dict):
                raise ValueError(f"`{name}` is {value!r}; allowed is a dictionary as `model_index.json` has it")
        self.register_modules(text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        self.register_to_config(
            training_distribution=training_distribution,
            geometry=geometry,
            subject=subject,
            model_name=model_name,
            default_num_inference_steps=default_num_inference_steps,
            default_guidance_scale=default_guidance_scale,
        )
        if text_encoder is not None and unet is not None and text_encoder.dtype != unet.dtype:
            text_encoder.to(unet.dtype)  # transformers loads it as it is stored, diffusers the rest in full precision
        self._interrupt = False

    # ---- what the model is ----------------------------------------------------------------------------------------

    @property
    def distribution(self) -> Distribution:
        """Covariates of the training volumes: names, means, ranges."""
        return Distribution.from_config(self.config.training_distribution)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of a volume along X, Y and Z."""
        rows, columns = self.unet.config.sample_size
        return self.unet.config.in_channels // (1 + len(self.distribution.names)), rows, columns

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel."""
        return float(np.prod(self.config.geometry["spacing"]))

    @property
    def model_name(self) -> str:
        """Name of the model as recipes give it; never a path of this machine."""
        name = self.config.model_name or str(self.config.get("_name_or_path", "") or "")
        return Path(name).name if os.path.isabs(name) or Path(name).exists() else name or "unnamed"

    @property
    def model_sha256(self) -> str:
        """Hash over weights, precision and settings: all of the model that decides voxels."""
        settings = [
            {k: v for k, v in self.scheduler.config.items() if k[0] != "_"},
            str(self.unet.dtype),
            self.config.training_distribution,
        ]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        for part in ("text_encoder", "unet"):
            for name, tensor in sorted(getattr(self, part).state_dict().items()):
                digest.update(f"{part}.{name}".encode())
                digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def interrupt(self) -> bool:
        """Whether a callback broke the call off."""
        return self._interrupt

    # ---- the call -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        covariates: Mapping[str, Any] | None = None,
        *,
        seed: int | None = None,
        num_volumes_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        shape: Sequence[int] | None = None,
        mask: bool = True,
        output_type: str = "np",
        callback_on_step_end: Callable[[Any, int, int, dict[str, Any]], dict[str, Any]] | None = None,
    ) -> SyntheticDicomVolumePipelineOutput:
        """Generate volumes and their label maps.

        Parameters
        ----------
        prompt
            One prompt or several. Sizes ("small", "atrophic", "large") and numbers ("anterior 1500 mm3") are read.
        covariates
            What the label map is to have, in mm3: a number, or one for each volume, by name ("anterior_mm3",
            "posterior_mm3"). Goes before the prompt; what neither gives is drawn from the training distribution with
            the volume's seed.
        seed
            Volume i of the call has `seed` + i, prompts outermost; drawn at random if absent. The same seed, prompt
            and covariates give the same volume, however many a call makes.
        num_volumes_per_prompt
            Volumes per prompt.
        num_inference_steps, guidance_scale
            By default the model's own.
        shape
            Voxels along each axis; less than the model's own cuts out the middle, and covariates refer to the whole.
        mask
            Whether to give the label map too; the volume is the same with and without.
        output_type
            "np" (default), "pt" or "latent".
        callback_on_step_end
            As in diffusers, with "latents" on offer; called for each group of up to eight volumes.

        Raises
        ------
        ValueError
            An argument is out of range; raised before any work is done.
        """
        prompts: list[Any] = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
        check_call(prompts, seed, num_volumes_per_prompt, num_inference_steps, guidance_scale, mask, output_type)
        size = check_shape(shape, self.shape)
        count = len(prompts) * num_volumes_per_prompt
        first = int.from_bytes(os.urandom(4), "big") if seed is None else int(seed)
        if first + count - 1 > MAX_SEED:
            raise ValueError(f"`seed` is {seed!r}; allowed is a whole number from 0 to {MAX_SEED - count + 1}")
        seeds = [first + i for i in range(count)]
        texts = [text for text in prompts for _ in range(num_volumes_per_prompt)]
        steps = self.config.default_num_inference_steps if num_inference_steps is None else int(num_inference_steps)
        guidance = float(self.config.default_guidance_scale if guidance_scale is None else guidance_scale)
        asked, warnings = self._covariates(texts, covariates, seeds)
        if size != self.shape:
            cut = f"cut to {size} voxels out of {self.shape}: covariates refer to the whole"
            warnings = [[*said, cut] for said in warnings]

        self._interrupt = False
        groups = []
        for start in range(0, count, AT_ONCE):
            part = slice(start, start + AT_ONCE)
            groups.append(self._denoise(texts[part], asked[part], seeds[part], steps, guidance, callback_on_step_end))
            if self._interrupt:
                break
        latents = torch.cat(groups)
        made = len(latents)
        image, masks = self.decode(latents)
        middle = tuple(
            slice((old - new) // 2, (old - new) // 2 + new) for old, new in zip(self.shape, size, strict=True)
        )
        image, masks = image[:, *middle].contiguous(), np.ascontiguousarray(masks[:, *middle])
        recipes = self._recipes(texts, asked, seeds, steps, guidance, size)
        obtained = [self.measure(row) for row in masks] if mask else None
        self.maybe_free_model_hooks()
        geometry = {
            **self.config.geometry,
            "shape": list(size),
            "labels": [name.removesuffix("_mm3") for name in self.distribution.names],
        }
        return SyntheticDicomVolumePipelineOutput(
            volumes=latents.float().cpu()
            if output_type == "latent"
            else image
            if output_type == "pt"
            else image.numpy(),
            masks=masks if mask else None,
            covariates=asked[:made],
            obtained=obtained,
            recipes=recipes[:made],
            warnings=warnings[:made],
            geometry=geometry,
        )

    def decode(self, latents: torch.Tensor) -> tuple[torch.Tensor, np.ndarray]:
        """Split what the denoiser gave into float32 (N, X, Y, Z) in [0, 1] and uint8 label maps, on the CPU.

        Each label has a channel a slice, 1 inside and -1 outside; a voxel has the label that is strongest there, or
        none if all labels together are weaker than the background.
        """
        x = self.shape[0]
        parts = latents.float().cpu().split(x, dim=1)
        share = torch.stack([(part / 2 + 0.5).clamp(0, 1) for part in parts[1:]], 1)
        background = 1 - share.sum(1, keepdim=True)
        masks = torch.cat([background, share], 1).argmax(1).to(torch.uint8).numpy()
        return (parts[0] / 2 + 0.5).clamp(0, 1), masks

    def measure(self, mask: np.ndarray) -> dict[str, float]:
        """Covariates that a label map (X, Y, Z) has, in mm3."""
        names = self.distribution.names
        return {name: float((mask == i).sum() * self.voxel_mm3) for i, name in enumerate(names, start=1)}

    # ---- the steps of a call ------------------------------------------------------------------------------------

    def _covariates(
        self, texts: list[str], covariates: Any, seeds: list[int]
    ) -> tuple[list[dict[str, float]], list[list[str]]]:
        """What each volume is to have, and what is to be said about it."""
        distribution = self.distribution
        most = float(np.prod(self.shape)) * self.voxel_mm3
        asked, warnings = [], []
        words = self.config.subject["words"]
        for text, given, seed in zip(
            texts, check(covariates, distribution.names, len(seeds), most), seeds, strict=True
        ):
            said: list[str] = []
            if not any(word in text.lower() for word in words):
                said.append(
                    f"the prompt names none of {', '.join(words)}; {self.config.subject['description']} is made"
                )
            numbers, bands = read_prompt(text, distribution.names)
            check(numbers, distribution.names, 1, most)
            for name in numbers.keys() & given.keys():
                if numbers[name] != given[name]:
                    said.append(
                        f"{name} is {given[name]:g} mm3 as `covariates` says, not {numbers[name]:g} as the prompt says"
                    )
            values = distribution.draw(seed, {**numbers, **given}, bands)
            if sum(values.values()) > most:
                raise ValueError(f"`covariates` are {values}; allowed is at most {most:g} mm3 together")
            asked.append(values)
            warnings.append([*said, *distribution.warn_of(values)])
        return asked, warnings

    def encode_prompt(self, texts: list[str]) -> torch.Tensor:
        """Embeddings (N, tokens, width) of prompts."""
        ids = self.tokenizer(
            texts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return self.text_encoder(ids.to(self._execution_device)).last_hidden_state.to(self.unet.dtype)

    def _denoise(
        self,
        texts: list[str],
        asked: list[dict[str, float]],
        seeds: list[int],
        steps: int,
        guidance: float,
        callback: Any,
    ) -> torch.Tensor:
        device, dtype = self._execution_device, self.unet.dtype
        values = np.array([list(row.values()) for row in asked])
        features = self.distribution.features(values)
        # Behind the covariates the denoiser is told how a training volume was augmented: here, not at all.
        spare = self.unet.config.projection_class_embeddings_input_dim - features.shape[1]
        labels = torch.from_numpy(np.pad(features, ((0, 0), (0, spare)))).to(device, dtype)
        embeddings = self.encode_prompt(texts)
        guided = guidance != 1
        if guided:  # unknown covariates are zeros
            labels = torch.cat([torch.zeros_like(labels), labels])
            embeddings = torch.cat([self.encode_prompt([""]).expand_as(embeddings), embeddings])
        self.scheduler.set_timesteps(steps, device=device)
        # Every volume has a generator of its own, on the CPU: the same noise in any batch and on any device.
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        shape = (len(seeds), self.unet.config.in_channels, *self.shape[1:])
        latents = randn_tensor(shape, generator=generators, device=device, dtype=dtype)
        latents = latents * self.scheduler.init_noise_sigma
        takes = inspect.signature(self.scheduler.step).parameters
        extra: dict[str, Any] = {"generator": generators} if "generator" in takes else {}
        with self.progress_bar(total=steps) as progress:
            for i, t in enumerate(self.scheduler.timesteps):
                doubled = self.scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, t)
                predicted = self.unet(doubled, t, embeddings, class_labels=labels, return_dict=False)[0]
                if guided:
                    unconditional, conditional = predicted.chunk(2)
                    predicted = unconditional + guidance * (conditional - unconditional)
                latents = self.scheduler.step(predicted, t, latents, **extra, return_dict=False)[0]
                progress.update()
                if callback is not None:
                    latents = callback(self, i, t, {"latents": latents}).pop("latents", latents)
                if self._interrupt:
                    break
        return latents

    def _recipes(
        self,
        texts: list[str],
        asked: list[dict[str, float]],
        seeds: list[int],
        steps: int,
        guidance: float,
        size: tuple[int, ...],
    ) -> list[dict[str, Any]]:
        sha256 = self.model_sha256
        return [
            {
                "prompt": text,
                "covariates": values,
                "seed": seed,
                "num_inference_steps": steps,
                "guidance_scale": guidance,
                "scheduler": type(self.scheduler).__name__,
                "shape": list(size),
                "model": self.model_name,
                "model_sha256": sha256,
                "versions": {
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "diffusers": diffusers.__version__,
                    "transformers": transformers.__version__,
                    "device": self._execution_device.type,
                    "threads": str(torch.get_num_threads()),
                },
            }
            for text, values, seed in zip(texts, asked, seeds, strict=True)
        ]

    # ---- saving -------------------------------------------------------------------------------------------------

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike[str]) -> dict[str, Any]:
        """Read a `model_index.json`; its `[module, name]` needs no code to be fetched when the class is at hand."""
        index = super()._dict_from_json_file(json_file)
        if isinstance(index.get("_class_name"), list):
            index["_class_name"] = index["_class_name"][-1]
        return index

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save as diffusers does, and make the folder load elsewhere: index and code files go with it.

        Raises
        ------
        ValueError
            Something else than safetensors is asked for, or a push; `hub_cards.publish` pushes.
        """
        if not kwargs.pop("safe_serialization", True):
            raise ValueError("`safe_serialization` is False; allowed is True, as other files can run code when loaded")
        if kwargs.pop("push_to_hub", False):
            raise ValueError("`push_to_hub` is True; allowed is False: save, then push the folder")
        super().save_pretrained(save_directory, **kwargs)
        folder, here = Path(save_directory), Path(__file__).parent
        for name in ("volume_pipeline.py", "volume_call.py", "volume_covariates.py", "__init__.py"):
            source = here / name  # in diffusers' cache of code there is no package
            if source.is_file() and source.stat().st_size and source.resolve().parent != folder.resolve():
                _write_whole(folder / name, source.read_bytes())
        path = folder / "model_index.json"
        index = json.loads(path.read_text(encoding="utf-8"))
        index["_class_name"] = ["volume_pipeline", "SyntheticDicomVolumePipeline"]
        index.pop("_name_or_path", None)
        _write_whole(path, (json.dumps(index, indent=2) + "\n").encode())


def _write_whole(path: Path, data: bytes) -> None:
    """Write under a temporary name, then rename."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(data)
    part.replace(path)


__all__ = ["SyntheticDicomVolumePipeline", "SyntheticDicomVolumePipelineOutput"]
