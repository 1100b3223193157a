"""The command line: `python -m pipeline generate` or `volume "PROMPT" --out DIR`, `verify FILE...`, `replay FILE...`.

The first two print one written path a line. Exit status 0; 2 with one line on stderr for bad input, and nothing is left
in DIR. For the others, and for a list of prompts, see `commands` and `volume_command`.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import signal
import sys
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from . import batch_maker, volume_command
from . import commands as more_commands
from .adapter_names import parse_adapter, shipped_adapters
from .dicom_burned_in import BurnedInTextWarning
from .dicom_files import write_files
from .dicom_patient import Patient, Study
from .dicom_pixels import COMPRESSIONS
from .dicom_profiles import MODALITY_NAMES, choose_profile
from .dicom_seal import read_key


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """The options of every command."""
    parser = _Parser("python -m pipeline", description="Synthetic medical images as DICOM. Not for diagnosis.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    generate = commands.add_parser("generate", help="make images from a prompt, or from a prompt and an image")
    generate.add_argument("prompt", nargs="?", help='for example "axial T1 brain MRI with contrast, meningioma"')
    generate.add_argument("--out", required=True, metavar="DIR", type=Path, help="folder to write into")
    generate.add_argument(
        "--modality", metavar="M", help=f"one of {', '.join(MODALITY_NAMES)}; by default what the prompt names"
    )
    generate.add_argument("--adapter", metavar="A[:W]", action="append", default=[], help=_adapter_help())
    generate.add_argument("--image", metavar="FILE", type=Path, help="DICOM or picture to start from")
    generate.add_argument("--strength", metavar="S", type=float, help="how far to leave the image, above 0 to 1 (0.6)")
    generate.add_argument("--frame", metavar="N", type=int, help="frame of a multi-frame image, from 1")
    generate.add_argument("--count", metavar="N", type=int, default=1, help="number of images (1)")
    generate.add_argument("--seed", metavar="K", type=int, help="seed of the first image; the next have K+1, ...")
    generate.add_argument("--steps", metavar="N", type=int, help="denoising steps; by default the model's")
    generate.add_argument("--guidance", metavar="G", type=float, help="guidance scale; by default the model's")
    generate.add_argument("--negative-prompt", metavar="TEXT", help="what is not wanted")
    generate.add_argument("--patient", metavar="KEY=VALUE", action="append", default=[], help=_fields(Patient))
    generate.add_argument("--study", metavar="KEY=VALUE", action="append", default=[], help=_fields(Study))
    generate.add_argument(
        "--check-memorisation", action="store_true", help="hold images against the training images; copies are redrawn"
    )
    generate.add_argument(
        "--watermark", action="store_true", help="mark the pixels invisibly, so that `verify` knows them without header"
    )
    generate.add_argument("--png", action="store_true", help="write a PNG beside each DICOM file")
    generate.add_argument("--compress", metavar="NAME", help=f"lossless: {', '.join(COMPRESSIONS)}")
    generate.add_argument("--zip", action="store_true", help="write one zip archive instead of files")
    generate.add_argument("--dicomdir", action="store_true", help="write a DICOM file set with a DICOMDIR")
    generate.add_argument("--model", metavar="M", help="folder or Hub id of another model")
    generate.add_argument("--device", metavar="D", help="cpu, cuda or mps; by default the best there is")
    generate.add_argument("--sign-key", metavar="FILE", type=Path, help="sign each image with the key in this file")
    generate.add_argument(
        "--from-csv",
        metavar="FILE",
        type=Path,
        help=f"a list of prompts instead of one, with the columns {', '.join(more_commands.batch_csv.COLUMNS)}; "
        "what is there already is not made again",
    )
    generate.add_argument("--workers", metavar="N", type=int, default=1, help="processes for a list of prompts (1)")
    generate.add_argument(
        "--ray", metavar="ADDRESS", help="workers on a Ray cluster (pip install ray), or `local`; for a list of prompts"
    )
    more_commands.add_verify(commands)
    more_commands.add_replay(commands, _fields(Patient), _fields(Study))
    volume_command.add_volume(commands, _fields(Patient), _fields(Study))
    return parser


def _adapter_help() -> str:
    shipped = ", ".join(shipped_adapters()) or "none"
    return (
        f"adapter (LoRA): a shipped one ({shipped}), a folder, a .safetensors file or a Hub id; with a weight from -2 "
        "to 2 behind a colon (1); repeatable, then they are mixed"
    )


def _fields(cls: type[Any]) -> str:
    return f"value for the header, repeatable; keys: {', '.join(f.name for f in fields(cls))}"


def _made(cls: type[Any], pairs: list[str], option: str) -> Any:
    """A Patient or Study of KEY=VALUE pairs; None when there are none."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key not in {f.name for f in fields(cls)}:
            raise ValueError(f"`{option}` is {pair!r}; allowed is KEY=VALUE with {_fields(cls).split('; ')[1]}")
        values[key] = float(value) if key == "age" and re.fullmatch(r"\d{1,3}(\.\d+)?", value) else value
    return cls(**values) if values else None


def generate(options: argparse.Namespace) -> list[Path]:
    """Carry out `generate` with one prompt; returns the written paths."""
    if options.prompt is None:
        raise ValueError("`prompt` is missing; give one, or a list of prompts with `--from-csv`")
    if options.workers != 1:
        raise ValueError("`--workers` needs `--from-csv`")
    if options.ray is not None:
        raise ValueError("`--ray` needs `--from-csv`")
    if options.count > volume_command.MAX_COUNT:  # they are held in memory until all can be written
        allowed = f"at most {volume_command.MAX_COUNT}, and more by a list of prompts with `--from-csv`"
        raise ValueError(f"`--count` is {options.count}; allowed is {allowed}")
    if options.image is None and (options.strength is not None or options.frame is not None):
        raise ValueError("`--strength` and `--frame` need `--image`")
    if options.image is not None and not options.image.is_file():
        raise ValueError("`--image` is no file")
    patient, study, key = _checked(options)
    adapters = [parse_adapter(text) for text in options.adapter]
    if options.modality is not None or not adapters:  # else the adapter may say what the prompt does not
        choose_profile(options.prompt, options.modality)
    # torch takes seconds to import: only after the options have been found good
    more_commands.quieten()
    pipe = batch_maker.load_pipeline(options.model or Path(__file__).parent, options.device, adapters)
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty())
    output = pipe(
        options.prompt,
        options.image,
        0.6 if options.strength is None else options.strength,
        modality=options.modality,
        seed=options.seed,
        negative_prompt=options.negative_prompt,
        num_images_per_prompt=options.count,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
        frame=options.frame,
        patient=patient,
        study=study,
        check_memorisation=options.check_memorisation,
        watermark=options.watermark,
    )
    pictures = [np.asarray(image, np.float32) / 255 for image in output.images] if options.png else None
    return write_files(
        output.dicoms,
        options.out,
        compression=options.compress,
        zip_archive=options.zip,
        dicomdir=options.dicomdir,
        png_pixels=pictures,
        key=key,
    )


def _checked(options: argparse.Namespace) -> tuple[Patient | None, Study | None, bytes | None]:
    """Check what one prompt and a list of them share; gives patient, study and key."""
    if getattr(options, "compress", None) is not None and options.compress not in COMPRESSIONS:
        raise ValueError(f"`--compress` is {options.compress!r}; allowed are {', '.join(COMPRESSIONS)}")
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"`--out` is {str(options.out)!r}, which is no folder")
    if options.model is not None and not Path(options.model).is_dir() and options.model.count("/") != 1:
        raise ValueError(f"`--model` is {options.model!r}; allowed is a folder or a Hub id such as org/name")
    key = None if options.sign_key is None else read_key(options.sign_key)
    return _made(Patient, options.patient, "--patient"), _made(Study, options.study, "--study"), key


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    options = build_parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a path that is no text is printed as it is
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", BurnedInTextWarning)
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)  # the one that is left
    try:
        if options.command == "verify":
            return more_commands.run_verify(options)
        if options.command == "replay":
            patient, study = _made(Patient, options.patient, "--patient"), _made(Study, options.study, "--study")
            return more_commands.run_replay(options, patient, study)
        if options.command == "volume":
            return volume_command.run_volume(options, *_checked(options))
        if options.from_csv is not None:
            return more_commands.run_batch(options, *_checked(options))
        for path in generate(options):
            print(path)
    except (ValueError, OSError) as error:
        print("error: " + more_commands.shown(" ".join(str(error).split())), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: stopped; what is there is whole", file=sys.stderr)
        return 130
    return 0


def _end(number: int, _: object) -> NoReturn:
    """Leave as after an error, so that nothing half-written and no worker stays."""
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())
