"""Train the embedded base from nothing: autoencoder, text encoder, denoiser, and what `pipeline/` ships of them.

    python -m lora.train_base --data DATA --work WORK            # all stages, each going on from its checkpoint
    python -m lora.train_base --data DATA --work WORK --stages unet export --unet-steps 200000

Every stage can be killed at any moment and run again with the same command. Logs are JSON lines in WORK.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from pipeline.pipeline import SyntheticDicomPipeline

from . import base_autoencoder, base_text, base_unet
from .base_data import draw_weights, load_images, read_rows
from .base_record import draw_loss_curve, training_record
from .checkpoint import load_checkpoint

STAGES = ("autoencoder", "decoder", "text", "unet-128", "unet", "export")
SHEET_PROMPTS = (
    "chest X-ray, PA view, normal lungs, 54 year old woman",
    "chest X-ray, AP view, child, bacterial pneumonia",
    "chest X-ray, PA view, pulmonary tuberculosis",
    "axial chest CT, wide lung window, malignant lung tumour",
    "axial chest CT, soft-tissue window, with contrast",
    "axial head CT, brain window, intracranial haemorrhage",
    "axial T1 brain MRI with contrast, meningioma",
    "coronal T1 brain MRI with contrast, pituitary tumour",
    "blood smear, single eosinophil",
    "blood smear, single lymphocyte",
    "thin blood smear, single red blood cell, malaria parasite",
    "blood smear field, red blood cells with target cells",
)


@dataclass(frozen=True)
class BaseConfig:
    """Everything that decides how the base comes out; each field is a command line option."""

    data: Path = field(metadata={"help": "folder of packs, each with images/ and metadata.csv"})
    work: Path = field(metadata={"help": "folder for checkpoints, caches and logs"})
    out: Path = field(default=Path("pipeline"), metadata={"help": "where the trained base is exported to"})
    autoencoder_steps: int = field(default=7600, metadata={"help": "steps of the autoencoder"})
    decoder_steps: int = field(
        default=3000, metadata={"help": "further steps of the autoencoder's decoder alone; latents stay as they are"}
    )
    text_steps: int = field(default=800, metadata={"help": "steps of the text encoder"})
    unet_128_steps: int = field(default=7000, metadata={"help": "steps of the denoiser on 128-pixel images"})
    unet_steps: int = field(default=4500, metadata={"help": "steps of the denoiser on 256-pixel images"})
    batch: int = field(default=24, metadata={"help": "images a step of the denoiser"})
    caption_variants: int = field(default=6, metadata={"help": "wordings of each caption kept in memory"})
    init: Path | None = field(
        default=None, metadata={"help": "folder of an earlier base to go on from, such as pipeline"}
    )
    device: str = field(default="cpu", metadata={"help": "cpu or cuda"})
    seed: int = field(default=0, metadata={"help": "seed of all random draws"})


def load_autoencoder(work: Path) -> AutoencoderKL:
    """The trained autoencoder (its EMA) from its checkpoint, with the decoder of the later stage where there is one."""
    model = base_autoencoder.build_autoencoder()
    if not (
        load_checkpoint(work / "decoder", {"ema": model})[0] or load_checkpoint(work / "autoencoder", {"ema": model})[0]
    ):
        raise FileNotFoundError(f"no autoencoder in {work}: run the stage 'autoencoder' first")
    return model.eval()


def finished_autoencoder(config: BaseConfig, images: np.ndarray) -> AutoencoderKL:
    """The autoencoder with tidy latents and their scale in its configuration; that of `init` where none was trained."""
    if config.init is not None and not (config.work / "autoencoder.safetensors").is_file():
        return AutoencoderKL.from_pretrained(config.init, subfolder="vae").to(config.device).eval()
    model = load_autoencoder(config.work).to(config.device)
    chosen = np.random.default_rng(config.seed).choice(len(images), min(400, len(images)), replace=False)
    base_autoencoder.rotate_latents(
        model, base_unet.encode_images(model, images[np.sort(chosen)], config.device).float()
    )
    spread = base_unet.encode_images(model, images[np.sort(chosen)], config.device).float().std()
    model.register_to_config(scaling_factor=round(float(1 / spread), 5))
    return model


def cached_latents(config: BaseConfig, vae: AutoencoderKL, images: np.ndarray, size: int) -> torch.Tensor:
    """Scaled latents of all images at `size` pixels, computed once."""
    step, _ = load_checkpoint(config.work / "autoencoder", {})
    stored = config.work / f"latents-{size}-{len(images)}-{step}.npy"
    if not stored.is_file():
        if size != images.shape[1]:
            factor = images.shape[1] // size
            cut = (images[i : i + 256] for i in range(0, len(images), 256))
            images = np.concatenate(
                [c.reshape(len(c), size, factor, size, factor, 3).mean((2, 4)).round().astype(np.uint8) for c in cut]
            )
        latents = base_unet.encode_images(vae, images, config.device).float() * vae.config.scaling_factor
        part = stored.with_suffix(".part.npy")
        np.save(part, latents.half().numpy())
        part.rename(stored)
    return torch.from_numpy(np.load(stored))


def assemble(config: BaseConfig, vae: AutoencoderKL, unet: UNet2DConditionModel) -> SyntheticDicomPipeline:
    """A pipeline of the trained parts."""
    encoder, tokenizer = load_text(config)
    return SyntheticDicomPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=base_unet.build_scheduler(),
        model_name="synthetic-dicom",
        default_num_inference_steps=25,
        default_guidance_scale=2.0,
    )


def load_text(config: BaseConfig) -> tuple[Any, CLIPTokenizer]:
    """The trained text encoder and its tokenizer; those of `init` where none were trained."""
    work = config.work
    if config.init is not None and not (work / "text_encoder.safetensors").is_file():
        encoder = CLIPTextModel.from_pretrained(config.init / "text_encoder", dtype=torch.float32)
        return encoder.eval(), CLIPTokenizer.from_pretrained(config.init / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer", model_max_length=base_text.MAX_LENGTH)
    encoder = base_text.build_text_encoder(tokenizer)
    step, _ = load_checkpoint(work / "text_encoder", {"encoder": encoder})
    if not step:
        raise FileNotFoundError(f"no text encoder in {work}: run the stage 'text' first")
    return encoder.eval(), tokenizer


def sheet_writer(config: BaseConfig, vae: AutoencoderKL, name: str, size: int) -> Any:
    """A callback that draws the same prompts with the same seeds, for the eye."""

    def write(unet: UNet2DConditionModel, step: int) -> None:
        from PIL import Image

        pipe = assemble(config, vae, unet).to(config.device)
        pipe.set_progress_bar_config(disable=True)
        pictures = pipe(
            list(SHEET_PROMPTS),
            seed=1,
            num_images_per_prompt=2,
            num_inference_steps=20,
            height=size,
            width=size,
            output_type="np",
        ).images
        rows = [np.concatenate(list(pictures[i : i + 8]), axis=1) for i in range(0, len(pictures), 8)]
        sheet = (np.concatenate(rows) * 255).round().astype(np.uint8)
        Image.fromarray(sheet).save(config.work / f"sheet-{name}-{step:07d}.png")
        unet.to(memory_format=torch.channels_last)

    return write


def run_unet(
    config: BaseConfig, rows: list[dict[str, str]], images: np.ndarray, vae: AutoencoderKL, stage: str
) -> None:
    """Train the denoiser at one size; the 256-pixel stage starts from the 128-pixel one, or from `init`."""
    size = 128 if stage == "unet-128" else 256
    latents = cached_latents(config, vae, images, size)
    encoder, tokenizer = load_text(config)
    captions = base_unet.encode_captions(
        encoder.to(config.device), tokenizer, rows, config.caption_variants, config.seed
    )
    with torch.no_grad():
        ids = base_text.tokenize(tokenizer, [""]).to(config.device)
        empty = encoder(ids).last_hidden_state[0].cpu()
    init = None
    if stage == "unet" and (config.work / "unet-128.safetensors").is_file():
        init = UNet2DConditionModel(**base_unet.CONFIG)
        load_checkpoint(config.work / "unet-128", {"ema": init})
    elif config.init is not None:
        init = UNet2DConditionModel.from_pretrained(config.init, subfolder="unet")
    base_unet.train_unet(
        latents,
        captions,
        empty,
        draw_weights(rows),
        config.work,
        name=stage,
        init=init,
        batch=config.batch,
        seed=config.seed,
        device=config.device,
        steps=config.unet_128_steps if stage == "unet-128" else config.unet_steps,
        decay_share=0.1 if stage == "unet-128" else 0.5,
        on_sheet=sheet_writer(config, vae, stage, size),
    )


def export(config: BaseConfig, rows: list[dict[str, str]], images: np.ndarray, vae: AutoencoderKL) -> None:
    """Write components as float16 safetensors, `training.json` and the loss curve into `out`."""
    unet = UNet2DConditionModel(**base_unet.CONFIG)
    stage = "unet" if (config.work / "unet.safetensors").is_file() else "unet-128"
    if not load_checkpoint(config.work / stage, {"ema": unet})[0]:
        raise FileNotFoundError(f"no denoiser in {config.work}: run the stage 'unet' first")
    pipe = assemble(config, vae.cpu(), unet)
    settings = {k: v for k, v in dataclasses.asdict(config).items() if not isinstance(v, Path) and v is not None}
    record: dict[str, Any] = {"command": "python -m lora.train_base", "config": settings}
    record |= training_record(config.data, config.work, rows, images, pipe)
    record["hardware"]["device"] = config.device
    pipe.to(dtype=torch.float16).save_pretrained(config.out, safe_serialization=True)
    # Stored in half, run in full: transformers would otherwise load this one part as it is stored.
    path = config.out / "text_encoder" / "config.json"
    path.write_text(path.read_text().replace('"dtype": "float16"', '"dtype": "float32"'), encoding="utf-8")
    (config.out / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw_loss_curve(config.work, config.out / "training_loss.png")


def run_stage(stage: str, config: BaseConfig, rows: list[dict[str, str]], images: np.ndarray) -> None:
    """Run one stage, going on from its checkpoint."""
    common: dict[str, Any] = {"seed": config.seed, "device": config.device}
    if stage == "autoencoder":
        base_autoencoder.train_autoencoder(
            images, draw_weights(rows), config.work, steps=config.autoencoder_steps, **common
        )
    elif stage == "decoder":
        start = base_autoencoder.build_autoencoder()
        if not load_checkpoint(config.work / "autoencoder", {"ema": start})[0]:
            raise FileNotFoundError(f"no autoencoder in {config.work}: run the stage 'autoencoder' first")
        base_autoencoder.train_autoencoder(
            images, draw_weights(rows), config.work, steps=config.decoder_steps, decoder_of=start, **common
        )
    elif stage == "text":
        accuracy = base_text.train_text_encoder(rows, config.work, steps=config.text_steps, seed=config.seed)[2]
        (config.work / "text_accuracy.json").write_text(json.dumps(accuracy, indent=1), encoding="utf-8")
    elif stage == "export":
        export(config, rows, images, finished_autoencoder(config, images))
    else:
        run_unet(config, rows, images, finished_autoencoder(config, images), stage)


def main(arguments: list[str] | None = None) -> int:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(
        "python -m lora.train_base", description=__doc__.splitlines()[0] if __doc__ else None
    )
    for item in dataclasses.fields(BaseConfig):
        kind = Path if "Path" in str(item.type) else {"int": int}.get(str(item.type), str)
        required = item.default is dataclasses.MISSING
        default: dict[str, Any] = {} if required else {"default": item.default}
        parser.add_argument(
            f"--{item.name.replace('_', '-')}",
            type=kind,
            required=required,
            help=item.metadata["help"],
            **default,
        )
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=list(STAGES), help="stages to run, in this order"
    )
    options = vars(parser.parse_args(arguments))
    stages = options.pop("stages")
    config = BaseConfig(**options)
    try:
        rows = read_rows(config.data, split="train")
        images = load_images(rows, 256, config.work)
        for stage in (s for s in STAGES if s in stages):
            run_stage(stage, config, rows, images)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
