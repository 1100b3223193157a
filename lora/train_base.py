"""Train the embedded base from nothing: autoencoder, text encoder, denoiser, and what `pipeline/` ships of them.

    python -m lora.train_base --data DATA --work WORK            # all stages, each going on from its checkpoint
    python -m lora.train_base --data DATA --work WORK --stages unet export --unet-steps 200000

Every stage can be killed at any moment and run again with the same command. Logs are JSON lines in WORK.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from pipeline.pipeline import SyntheticDicomPipeline

from . import base_autoencoder, base_rounds, base_text, base_unet
from .base_autoencoder import read_autoencoder
from .base_data import draw_weights, load_images, read_rows
from .base_record import draw_loss_curve, earlier_record, read_stages, seconds_of, training_record
from .checkpoint import load_checkpoint
from .image_noise import measure_image_noise

SHEET_EVERY = 1000
STAGES = ("autoencoder", "decoder", "text", "unet-128", "unet", "rounds", "export")
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
    adversarial: float = field(
        default=0.3, metadata={"help": "pull of a patch discriminator in the decoder's steps, relative to the error's"}
    )
    perceptual: float = field(
        default=0.0, metadata={"help": "likewise the pull of a perceptual loss (features of EfficientNet-Lite2)"}
    )
    decoder_share: float = field(
        default=0.5, metadata={"help": "share of those steps that is kept: 0 restores most exactly, 1 looks sharpest"}
    )
    text_steps: int = field(default=800, metadata={"help": "steps of the text encoder"})
    unet_128_steps: int = field(default=7000, metadata={"help": "steps of the denoiser on 128-pixel images"})
    unet_steps: int = field(default=4500, metadata={"help": "steps of the denoiser on 256-pixel images"})
    noise_shift: float | None = field(
        default=None,
        metadata={"help": "below the default (1 at 128 pixels, 2 at 256) more of those steps see little noise: detail"},
    )
    batch: int = field(default=24, metadata={"help": "images a step of the denoiser"})
    rounds: int = field(default=3, metadata={"help": "rounds of the denoiser against its own samples"})
    round_steps: int = field(default=300, metadata={"help": "steps of a round; half of their images are own samples"})
    round_samples: int = field(default=480, metadata={"help": "own samples that a round draws first"})
    round_learning_rate: float = field(default=3e-5, metadata={"help": "peak learning rate of a round"})
    snapshot_every: int = field(
        default=0, metadata={"help": "steps between usable copies of the base in WORK/snapshots; 0 for none"}
    )
    caption_variants: int = field(default=6, metadata={"help": "wordings of each caption kept in memory"})
    init: Path | None = field(
        default=None, metadata={"help": "folder of an earlier base to go on from, such as pipeline"}
    )
    device: str = field(default="cpu", metadata={"help": "cpu or cuda"})
    seed: int = field(default=0, metadata={"help": "seed of all random draws"})


def finished_autoencoder(config: BaseConfig) -> AutoencoderKL:
    """The autoencoder to use: the newest of those finished in `work`, else that of `init`."""
    for folder in (config.work / "vae-decoder", config.work / "vae", (config.init or config.work) / "vae"):
        if (folder / "config.json").is_file():
            return read_autoencoder(folder).to(config.device).eval()
    raise FileNotFoundError(f"no autoencoder in {config.work}: run the stage 'autoencoder' first")


def finished_unet(config: BaseConfig, stages: tuple[str, ...]) -> UNet2DConditionModel:
    """The denoiser of the first of these stages that has a checkpoint in `work`, else that of `init`."""
    unet = UNet2DConditionModel(**base_unet.CONFIG)
    if any(load_checkpoint(config.work / stage, {"ema": unet})[0] for stage in stages):
        return unet
    if config.init is None:
        raise FileNotFoundError(f"no denoiser in {config.work}: run the stage 'unet' first")
    return UNet2DConditionModel.from_pretrained(config.init, subfolder="unet")


def run_autoencoder(config: BaseConfig, rows: list[dict[str, str]], images: np.ndarray, decoder_only: bool) -> None:
    """Train the autoencoder, or its decoder alone, and write it finished: tidy latents, their scale in its config.

    One that goes on from `init` keeps the latent space it has, so that the denoiser of `init` can go on too.
    """
    stem = config.work / ("decoder" if decoder_only else "autoencoder")
    folder = config.work / ("vae-decoder" if decoder_only else "vae")
    before, _ = load_checkpoint(stem, {})
    init = None
    if decoder_only or config.init:
        source = config.work / "vae" if (config.work / "vae").is_dir() else (config.init or config.work) / "vae"
        if not source.is_dir():
            raise FileNotFoundError(f"no autoencoder in {config.work}: run the stage 'autoencoder' first")
        init = read_autoencoder(source)
    model = base_autoencoder.train_autoencoder(
        images,
        draw_weights(rows),
        config.work,
        steps=config.decoder_steps if decoder_only else config.autoencoder_steps,
        init=init,
        decoder_only=decoder_only,
        adversarial=config.adversarial if decoder_only else 0.0,
        perceptual=config.perceptual if decoder_only else 0.0,
        seed=config.seed,
        device=config.device,
    )
    if before and before == load_checkpoint(stem, {})[0] and folder.is_dir():
        return
    if decoder_only and init is not None:
        # Between the decoder of least error and the sharpest one (network interpolation, Wang et al. 2018).
        with torch.no_grad():
            for ours, before_it in zip(model.parameters(), init.to(config.device).parameters(), strict=True):
                ours.lerp_(before_it, 1 - config.decoder_share)
    if init is None:
        chosen = np.random.default_rng(config.seed).choice(len(images), min(400, len(images)), replace=False)
        latents = base_unet.encode_images(model, images[np.sort(chosen)], config.device).float()
        base_autoencoder.rotate_latents(model, latents)
        model.register_to_config(scaling_factor=round(float(1 / latents.std(dim=(0, 2, 3)).square().mean().sqrt()), 5))
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    if not decoder_only:  # a decoder trained for other latents is of no use
        shutil.rmtree(config.work / "vae-decoder", ignore_errors=True)
        (config.work / "decoder.safetensors").unlink(missing_ok=True)


def cached_latents(config: BaseConfig, vae: AutoencoderKL, images: np.ndarray, size: int) -> torch.Tensor:
    """Scaled latents of all images at `size` pixels, computed once."""
    digest = hashlib.sha256()
    for part_of in (vae.encoder, vae.quant_conv):
        for tensor in part_of.state_dict().values():
            digest.update(tensor.float().cpu().numpy().tobytes())
    for start in range(0, len(images), 256):  # as many images may be others, or in another order
        digest.update(np.ascontiguousarray(images[start : start + 256]).tobytes())
    stored = config.work / f"latents-{size}-{len(images)}-{digest.hexdigest()[:16]}.npy"
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
        default_guidance_scale=3.0,
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


def draw_sheet(config: BaseConfig, pipe: SyntheticDicomPipeline, path: Path, size: int) -> None:
    """Draw the same prompts with the same seeds, for the eye."""
    from PIL import Image

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
    Image.fromarray((np.concatenate(rows) * 255).round().astype(np.uint8)).save(path)


def save_snapshot(config: BaseConfig, pipe: SyntheticDicomPipeline, name: str) -> None:
    """Write a copy of the base that loads as it is, with the seconds that it was trained for in all."""
    folder = config.work / "snapshots" / name
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    save_half(copy.deepcopy(pipe), part)
    record = {"seconds": seconds_of(earlier_record(config.init, config.work), read_stages(config.work))}
    (part / "training.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def save_half(pipe: SyntheticDicomPipeline, folder: Path) -> None:
    """Write components as float16 safetensors; the pipeline is changed to float16 by that."""
    pipe.to(dtype=torch.float16).save_pretrained(folder, safe_serialization=True)
    # Stored in half, run in full: transformers would otherwise load this one part as it is stored.
    path = folder / "text_encoder" / "config.json"
    path.write_text(path.read_text().replace('"dtype": "float16"', '"dtype": "float32"'), encoding="utf-8")


def encoded_captions(config: BaseConfig, rows: list[dict[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of all wordings, (variants, N, 77, 128), and of the empty caption, (77, 128)."""
    encoder, tokenizer = load_text(config)
    captions = base_unet.encode_captions(
        encoder.to(config.device), tokenizer, rows, config.caption_variants, config.seed
    )
    with torch.no_grad():
        ids = base_text.tokenize(tokenizer, [""]).to(config.device)
        return captions, encoder(ids).last_hidden_state[0].cpu()


def run_unet(
    config: BaseConfig, rows: list[dict[str, str]], images: np.ndarray, vae: AutoencoderKL, stage: str
) -> None:
    """Train the denoiser at one size; the 256-pixel stage starts from the 128-pixel one, or from `init`."""
    size = 128 if stage == "unet-128" else 256
    latents = cached_latents(config, vae, images, size)
    captions, empty = encoded_captions(config, rows)
    before, _ = load_checkpoint(config.work / stage, {})
    init = None
    if stage == "unet" and (config.work / "unet-128.safetensors").is_file():
        init = UNet2DConditionModel(**base_unet.CONFIG)
        load_checkpoint(config.work / "unet-128", {"ema": init})
    elif config.init is not None:
        init = UNet2DConditionModel.from_pretrained(config.init, subfolder="unet")

    def on_step(unet: UNet2DConditionModel, step: int, last: bool) -> None:
        snapshot = size == 256 and config.snapshot_every and step % config.snapshot_every == 0
        if not (last or snapshot or step % SHEET_EVERY == 0):
            return
        pipe = assemble(config, vae, unet).to(config.device)
        if last or step % SHEET_EVERY == 0:
            draw_sheet(config, pipe, config.work / f"sheet-{stage}-{step:07d}.png", size)
        if snapshot:
            save_snapshot(config, pipe, f"{stage}-{step:07d}")

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
        noise_shift=config.noise_shift,
        on_step=on_step,
    )
    if before != load_checkpoint(config.work / stage, {})[0]:  # rounds of an earlier denoiser are of no use
        for name in (f"{base_rounds.NAME}.safetensors", f"{base_rounds.NAME}.log.jsonl"):
            (config.work / name).unlink(missing_ok=True)


def run_rounds(config: BaseConfig, rows: list[dict[str, str]], images: np.ndarray, vae: AutoencoderKL) -> None:
    """Train the denoiser of the stage `unet`, or that of `init`, against its own samples."""
    unet = finished_unet(config, ("unet",))
    latents = cached_latents(config, vae, images, 256)
    captions, empty = encoded_captions(config, rows)
    pipe = assemble(config, vae, unet).to(config.device)
    pipe.unet = base_rounds.train_rounds(
        pipe,
        latents,
        captions,
        empty,
        draw_weights(rows),
        config.work,
        rounds=config.rounds,
        steps=config.round_steps,
        samples=config.round_samples,
        batch=max(1, config.batch // 2),
        learning_rate=config.round_learning_rate,
        seed=config.seed,
        device=config.device,
    )
    draw_sheet(config, pipe, config.work / f"sheet-{base_rounds.NAME}.png", 256)


def export(config: BaseConfig, rows: list[dict[str, str]], images: np.ndarray, vae: AutoencoderKL) -> None:
    """Write components as float16 safetensors, `training.json` and the loss curve into `out`."""
    unet = finished_unet(config, (base_rounds.NAME, "unet", "unet-128"))
    pipe = assemble(config, vae.cpu(), unet)
    noise = measure_image_noise(pipe, rows, images)
    pipe.register_to_config(image_noise=noise["image_noise"] or None)
    settings = {k: v for k, v in dataclasses.asdict(config).items() if not isinstance(v, Path) and v is not None}
    record: dict[str, Any] = {"command": "python -m lora.train_base", "config": settings}
    record |= training_record(config.data, config.work, rows, images, pipe, earlier_record(config.init, config.work))
    record |= {"image_noise_kid": noise["kid"]}
    record["hardware"]["device"] = config.device
    save_half(pipe, config.out)
    (config.out / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw_loss_curve(config.work, config.out / "training_loss.png")


def run_stage(stage: str, config: BaseConfig, rows: list[dict[str, str]], images: np.ndarray) -> None:
    """Run one stage, going on from its checkpoint."""
    if stage in ("autoencoder", "decoder"):
        run_autoencoder(config, rows, images, decoder_only=stage == "decoder")
    elif stage == "text":
        accuracy = base_text.train_text_encoder(rows, config.work, steps=config.text_steps, seed=config.seed)[2]
        (config.work / "text_accuracy.json").write_text(json.dumps(accuracy, indent=1), encoding="utf-8")
    elif stage == "rounds":
        run_rounds(config, rows, images, finished_autoencoder(config))
    elif stage == "export":
        export(config, rows, images, finished_autoencoder(config))
    else:
        run_unet(config, rows, images, finished_autoencoder(config), stage)


def main(arguments: list[str] | None = None) -> int:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(
        "python -m lora.train_base", description=__doc__.splitlines()[0] if __doc__ else None
    )
    for item in dataclasses.fields(BaseConfig):
        kind = Path if "Path" in str(item.type) else {"int": int, "float": float}.get(str(item.type).split(" ")[0], str)
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
