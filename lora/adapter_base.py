"""The base that is adapted, and the adapter on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, set_peft_model_state_dict

from pipeline.adapter_files import Adapter, check_adapter, read_adapter

from .config import TARGETS, AdapterConfig

ADAPTER = "default"  # name inside the denoiser; what users call it stands in the file
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_base(model: str) -> Any:
    """The pipeline to adapt, in full precision.

    Raises
    ------
    ValueError
        It is no Stable Diffusion 1.x/2.x.
    """
    from pipeline import pipeline as ours

    if model == "pipeline" and not Path(model).is_dir():
        model = str(Path(ours.__file__).parent)
    try:
        pipe = ours.SyntheticDicomPipeline.from_pretrained(model, safety_checker=None)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        name = Path(model).name if Path(model).exists() else model
        raise ValueError(f"`model` is {name!r}, which cannot be loaded: {' '.join(str(error).split())}") from error
    unet, channels = pipe.unet, pipe.vae.config.latent_channels
    if (
        not isinstance(unet, UNet2DConditionModel)
        or not unet.config.in_channels == unet.config.out_channels == channels
    ):
        raise ValueError(
            f"`model` has a denoiser of {unet.config.in_channels} to {unet.config.out_channels} channels and an "
            f"autoencoder of {channels}; allowed is a text-to-image Stable Diffusion 1.x/2.x, where all are equal"
        )
    return pipe


def read_init(source: str, pipe: Any, config: AdapterConfig) -> Adapter:
    """Read the adapter to go on from.

    Raises
    ------
    ValueError
        It cannot be read, or has other layers, a lower rank or another scale than the run.
    """
    try:
        adapter = read_adapter(source)
        check_adapter(adapter, pipe.unet, pipe.text_encoder)
    except ValueError as error:
        raise ValueError(f"`init`: {error}") from error
    endings = TARGETS[config.target]
    layers = {
        f"unet.{name}"
        for name, module in pipe.unet.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
        and any(name == ending or name.endswith(f".{ending}") for ending in endings)
    }
    rank = min(len(tensor) for key, tensor in adapter.state_dict.items() if ".lora_A." in key)
    scalings = {layer: config.scale / config.rank for layer in layers}
    if adapter.scalings != scalings or rank < config.rank:
        raise ValueError(
            f"`init` is {adapter.name!r}, which has other layers, a lower rank or another scale than this run; allowed "
            f"is one of `rank` {config.rank} or more, alpha {config.scale / config.rank:g} times its rank and `target` "
            f"{config.target!r}, or give its own"
        )
    return adapter


def load_init(unet: Any, adapter: Adapter, rank: int) -> None:
    """Put the weights of `read_init` into the adapter that `add_lora` added, cut down to its rank."""
    state = {key: tensor.float() for key, tensor in adapter.part("unet").items()}
    for key in [key for key in state if ".lora_A." in key and len(state[key]) > rank]:
        other = key.replace(".lora_A.", ".lora_B.")
        state[key], state[other] = cut_rank(state[key], state[other], rank)
    set_peft_model_state_dict(unet, state, adapter_name=ADAPTER)


def cut_rank(first: torch.Tensor, second: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The A (r, inputs, ...) and B (outputs, r, ...) of lower rank whose product is nearest to theirs.

    By singular values (Eckart and Young 1936); A and B get equal parts of them.
    """
    left, values, right = torch.linalg.svd(second.flatten(1) @ first.flatten(1), full_matrices=False)
    root = values[:rank].sqrt()
    return (
        (root[:, None] * right[:rank]).reshape(rank, *first.shape[1:]),
        (left[:, :rank] * root).reshape(len(second), rank, *second.shape[2:]),
    )


def add_lora(unet: Any, config: AdapterConfig, dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """Freeze the denoiser in `dtype` and add a trainable adapter in float32; returns the adapter's parameters."""
    # channels_last: convolutions on a CPU are faster so.
    unet.requires_grad_(False).to(dtype=dtype, memory_format=torch.channels_last)
    torch.manual_seed(config.seed)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.scale,  # type: ignore[arg-type]
        target_modules=list(TARGETS[config.target]),
        init_lora_weights="gaussian",
    )
    unet.add_adapter(lora, adapter_name=ADAPTER)
    cast_training_params(unet)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]
