"""The command `volume`: a prompt and numbers to a DICOM series, with its label map and as NIfTI if that is wanted."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from . import batch_maker, volume_models

MAX_COUNT = 1000


def add_volume(commands: Any, patient: str, study: str) -> None:
    """Add the options of `volume`."""
    volume = commands.add_parser("volume", help="make a volume: a DICOM series, its label map, NIfTI")
    volume.add_argument("prompt", help='for example "T1 MRI of the hippocampus, small anterior part"')
    volume.add_argument("--out", required=True, metavar="DIR", type=Path, help="folder to write into")
    volume.add_argument(
        "--covariate",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="what the volume is to have, such as anterior_mm3=1500 (cubic millimetres); repeatable; by default what "
        "the prompt says, else drawn",
    )
    volume.add_argument(
        "--image",
        metavar="PATH",
        type=Path,
        help="make it out of a real volume of CT or MR, slice by slice, with the model of images: folder of a DICOM "
        "series, multi-frame DICOM object or NIfTI",
    )
    volume.add_argument("--strength", metavar="S", type=float, help="how far to leave that, above 0 to 1 (0.4)")
    volume.add_argument("--modality", metavar="M", help="with --image: ct, brain-mri; by default what the prompt names")
    volume.add_argument("--adapter", metavar="A[:W]", action="append", default=[], help="with --image; repeatable")
    volume.add_argument("--negative-prompt", metavar="TEXT", help="with --image: what is not wanted")
    volume.add_argument("--count", metavar="N", type=int, default=1, help="number of volumes (1)")
    volume.add_argument("--seed", metavar="K", type=int, help="seed of the first volume; the next have K+1, ...")
    volume.add_argument("--steps", metavar="N", type=int, help="denoising steps; by default the model's")
    volume.add_argument("--guidance", metavar="G", type=float, help="guidance scale; by default the model's")
    volume.add_argument(
        "--shape", metavar=("X", "Y", "Z"), nargs=3, type=int, help="cut this many voxels out of the middle"
    )
    volume.add_argument("--enhanced", action="store_true", help="write one enhanced multi-frame object too")
    volume.add_argument("--seg", action="store_true", help="write the label map too, as DICOM Segmentation")
    volume.add_argument("--nifti", action="store_true", help="write NIfTI too; with --seg also of the label map")
    volume.add_argument("--zip", action="store_true", help="write one zip archive instead of files")
    volume.add_argument("--patient", metavar="KEY=VALUE", action="append", default=[], help=patient)
    volume.add_argument("--study", metavar="KEY=VALUE", action="append", default=[], help=study)
    volume.add_argument("--model", metavar="M", help="folder or Hub id of another volume model")
    volume.add_argument("--device", metavar="D", help="cpu, cuda or mps; by default the best there is")
    volume.add_argument("--sign-key", metavar="FILE", type=Path, help="sign each object with the key in this file")


def run_volume(options: argparse.Namespace, patient: Any, study: Any, key: bytes | None) -> int:
    """Carry out `volume`: prints one written path a line, and warnings of the request on stderr.

    Raises
    ------
    ValueError
        Something is not allowed, or there is no model.
    """
    covariates = covariates_of(options.covariate)
    _check_image_options(options)
    if not 1 <= options.count <= MAX_COUNT:
        raise ValueError(f"`--count` is {options.count}; allowed is a whole number from 1 to {MAX_COUNT}")
    place = options.model or volume_models.FOLDER
    if options.image is None and (options.model is None or Path(place).is_dir()) and not volume_models.is_model(place):
        if options.model is None:
            raise ValueError("no volume model is here; give the folder or Hub id of one with `--model`")
        raise ValueError(f"`--model` is {options.model!r}, which holds no volume model")
    needed = [(options.seg, "--seg", "highdicom"), (options.nifti, "--nifti", "nibabel")]
    needed += [(options.image is not None, "--image", package) for package in ("highdicom", "nibabel")]
    for wanted, option, package in needed:
        if wanted and importlib.util.find_spec(package) is None:
            raise ValueError(f"`{option}` needs the Python package {package}, which is not installed")
    # torch takes seconds to import: only after the options have been found good
    batch_maker.quieten()
    from . import volume_files

    first = int.from_bytes(os.urandom(4), "big") if options.seed is None else options.seed
    seeds = range(first, first + options.count)
    volumes = _from_model(options, covariates, seeds) if options.image is None else _from_image(options, seeds)
    wanted = volume_files.Wanted(options.enhanced, options.seg, options.nifti, options.zip)
    for path in volume_files.write_volumes(volumes, options.out, wanted, patient=patient, study=study, key=key):
        print(path)
    return 0


def _check_image_options(options: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if options.image is None:
        for name in ("strength", "modality", "adapter", "negative_prompt"):
            if getattr(options, name) not in (None, []):
                raise ValueError(f"`--{name.replace('_', '-')}` needs `--image`")
        return
    for name in ("covariate", "shape", "seg"):
        if getattr(options, name) not in (None, [], False):
            raise ValueError(f"`--image` and `--{name}` are both given; what is made of an image has no label map")
    if not options.image.exists():
        raise ValueError("`--image` is neither a folder nor a file")


def _from_model(options: argparse.Namespace, covariates: dict[str, float], seeds: range) -> list[Any]:
    from . import pipeline, volume_dicom, volume_files

    pipe = volume_models.load(options.model or volume_models.FOLDER, options.device or pipeline.best_device())
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty())
    volumes = []
    for seed in seeds:  # one at a time: a batch rounds otherwise, and is not replayed
        output = pipe(
            options.prompt,
            covariates,
            seed=seed,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            shape=options.shape,
        )
        recipe = volume_dicom.recipe_of(output, 0, pipe.config.subject["description"])
        volumes.append(volume_files.Volume(output.volumes[0], output.masks[0], recipe))
        for warning in output.warnings[0]:
            print(f"warning: seed {seed}: {warning}", file=sys.stderr)
    return volumes


def _from_image(options: argparse.Namespace, seeds: range) -> list[Any]:
    from . import adapter_names, dicom_prompt, volume_image, volume_input

    adapters = [adapter_names.parse_adapter(text) for text in options.adapter]
    source = volume_input.read_volume(options.image, dicom_prompt.parse_prompt(options.prompt).plane or "axial")
    passed_over = f"{source.passed_over} file(s) of `--image` are no DICOM images and were passed over"
    for warning in (*source.warnings, *([passed_over] if source.passed_over else [])):
        print(f"warning: {warning}", file=sys.stderr)
    pipe = batch_maker.load_pipeline(options.model or Path(__file__).parent, options.device, adapters)
    return [
        volume_image.image_to_image(
            pipe,
            options.prompt,
            source,
            volume_image.STRENGTH if options.strength is None else options.strength,
            seed=seed,
            modality=options.modality,
            negative_prompt=options.negative_prompt,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            one_object=options.enhanced,
            progress=sys.stderr.isatty(),
        )
        for seed in seeds
    ]


def covariates_of(pairs: list[str]) -> dict[str, float]:
    """Read NAME=VALUE pairs; a ValueError for any other, or a name that is given twice."""
    values: dict[str, float] = {}
    for pair in pairs:
        name, _, number = pair.partition("=")
        try:
            value = float(number)
        except ValueError:
            raise ValueError(f"`--covariate` is {pair!r}; allowed is NAME=NUMBER, such as anterior_mm3=1500") from None
        if name in values:
            raise ValueError(f"`--covariate` has {name!r} twice")
        values[name] = value
    return values
