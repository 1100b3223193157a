"""Train an adapter (LoRA) on a folder of one's own images, and say whether it helped.

    python -m lora.train --data FOLDER --out lora/NAME
    accelerate launch -m lora.train --data FOLDER --out lora/NAME       # several GPUs
    python -m lora.train --data FOLDER --out lora/NAME --push-to-hub ORG/NAME

Can be killed at any moment and run again with the same command: the adapter comes out the same, bit for bit. Nothing
is pushed unless `--push-to-hub` asks for it; a finished adapter is pushed as it is, without being trained again.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator, PartialState
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import get_token
from transformers.utils import logging as transformers_logging

from .adapter_base import load_base, read_init
from .adapter_push import PushError, push_adapter
from .adapter_record import finish, guess_modality
from .config import AdapterConfig, parse_config
from .data import TrainingData, read_training_data
from .encoding import choose_prompts, encode_data
from .matching import SIZES
from .objective import Objective
from .perceptual import load_perceptual
from .precision import has_bfloat16
from .run_folder import RunFolder
from .trainer import AdapterTrainer


def build_accelerator(config: AdapterConfig) -> Accelerator:
    """Accelerate on the device there is; bf16 only where it is fast, unless a precision was asked for."""
    precision = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if config.mixed_precision is None and precision == "no":
        device = str(PartialState(cpu=config.cpu).device)
        precision = "bf16" if has_bfloat16(device) else "no"
    return Accelerator(
        mixed_precision=precision, gradient_accumulation_steps=config.accumulate, cpu=config.cpu, log_with=None
    )


def read_data(config: AdapterConfig, size: int) -> TrainingData:
    """Read the images that the configuration names."""
    return read_training_data(
        config.data,
        size=size,
        validation_share=config.validation_share,
        seed=config.seed,
        image_column=config.image_column,
        caption_column=config.caption_column,
        group_column=config.group_column,
        attribution_column=config.attribution_column,
        frames_per_file=config.frames_per_file,
        contrast=config.contrast,
        most=config.most,
        default_caption=config.default_caption,
        show_names=config.show_names,
    )


def fingerprint(data: TrainingData) -> str:
    """Hash that tells whether a checkpoint was made with these images, captions and split; names nobody."""
    digest = hashlib.sha256(data.images.tobytes())
    for part in (data.groups.tobytes(), data.validation.tobytes(), repr(data.captions).encode()):
        digest.update(part)
    return digest.hexdigest()


def describe(data: TrainingData) -> str:
    """One sentence on what was read."""
    held_out = int(data.validation.sum())
    people = "people" if data.people_known else "groups or files that may be of fewer people"
    words = f"{len(data)} images of {data.people} {people}, {held_out} held out"
    return words + (f", {len(data.unreadable)} files could not be read" if data.unreadable else "")


def train_adapter(config: AdapterConfig, *, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train an adapter and write it to `config.out`; returns what `training.json` holds.

    Parameters
    ----------
    config
        The settings.
    say
        Takes a sentence now and then.

    Raises
    ------
    ValueError
        Data, model or output folder cannot be used; one sentence says why.
    """
    folder = RunFolder(config)
    folder.check()
    accelerator = build_accelerator(config)
    if not accelerator.is_main_process:
        say = _silent
    if config.batch < accelerator.num_processes:
        raise ValueError(f"`batch` is {config.batch}; allowed is at least {accelerator.num_processes}, one a process")
    if config.match_steps:
        try:
            for size in SIZES:
                load_perceptual(size=size)
        except ImportError as error:
            raise ValueError(f"`match_steps` is {config.match_steps}, but {error}") from error
    pipe = load_base(config.model)
    side = pipe.unet.config.sample_size
    side = side if isinstance(side, int) else side[0]
    Objective.of(pipe.scheduler, side, config.noise_shift)  # what cannot be trained is refused before anything is read
    init = read_init(config.init, pipe, config) if config.init else None
    data = read_data(config, side * pipe.vae_scale_factor)
    if (training := int((~data.validation).sum())) < 2:
        raise ValueError(f"`data` has {training} images to train on; allowed are at least 2")
    say(describe(data))
    base = {"name": pipe.model_name, "model_sha256": pipe.model_sha256}
    settings = {**config.public(), "data_sha256": fingerprint(data), "base": base}
    begun = {"name": init.metadata.get("name"), "adapter_sha256": init.sha256} if init else None
    settings |= {"init": begun} if begun else {}
    if accelerator.is_main_process:
        folder.open(settings)
    accelerator.wait_for_everyone()

    prompts = list(config.sample_prompts) or choose_prompts(data, config.sample_count)
    pipe.to(accelerator.device)
    progress = accelerator.is_main_process
    encoded = encode_data(pipe, data, prompts, variants=config.caption_variants, seed=config.seed, progress=progress)
    pipe.vae.to("cpu")
    pipe.text_encoder.to("cpu")
    trainer = AdapterTrainer(config, accelerator, pipe, data, encoded, folder, init)
    reason = trainer.run()
    modality = config.modality or guess_modality(data)
    record = finish(trainer, data, base, begun, prompts, modality, reason)
    say(record["verdict"]["sentence"])
    return record


def _silent(words: str) -> None:
    """Only one process speaks."""


def train_and_push(config: AdapterConfig, *, say: Callable[[str], None] = print) -> None:
    """Train an adapter, or take the finished one where it is only to be pushed; push it if that is asked for.

    Raises
    ------
    ValueError
        As `train_adapter`, or there is nobody to push as; before any work.
    PushError
        The adapter did not reach the Hub; it is whole on disk.
    """
    if config.push_to_hub and not get_token():
        raise ValueError(f"`push_to_hub` is {config.push_to_hub!r}, but no token is there; run `hf auth login` first")
    if config.push_to_hub and RunFolder(config).finished and not config.overwrite:
        say(f"{config.out} is a finished adapter and is pushed as it is; --overwrite trains it again")
    else:
        train_adapter(config, say=say)
    if config.push_to_hub and os.environ.get("RANK", "0") == "0":
        say(f"pushed to {push_adapter(config.out, config.push_to_hub, private=config.private, base=config.model)}")


def main(arguments: list[str] | None = None) -> int:
    """Train; returns the exit status."""
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
    try:
        train_and_push(parse_config(arguments, (__doc__ or "").splitlines()[0]))
    except PushError as error:
        print(f"error: {error}; the same command, without --overwrite, only pushes it", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
