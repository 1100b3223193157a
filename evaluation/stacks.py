"""Whether slices that the model of images made one after the other make a volume.

Image-to-image on a real volume: are neighbours as alike as in the source, when all slices start from one noise, and
when each starts from its own? And from a prompt alone: does a position that the prompt asks for come out?
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from pipeline.dicom_profiles import PROFILES
from pipeline.dicom_prompt import parse_prompt
from pipeline.pipeline import SyntheticDicomPipeline
from pipeline.volume_image import image_to_image, to_grey
from pipeline.volume_input import AXES, InputVolume, read_volume

from .features import extract_features

POSITIONS = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)  # of a brain's height, from the skull base
WORDS = "{prompt}, slice at {percent:.0f} percent of the height of the head"


def stacks(
    *,
    images: Sequence[str | Path],
    prompts: Sequence[str],
    strengths: Sequence[float] = (0.3, 0.5, 0.7),
    slices: int = 24,
    positions: str | Path | None = None,
    position_prompt: str = "axial T1 brain MRI",
    count: int = 4,
    model: str | Path = "pipeline",
    seed: int = 0,
    sheet: Path | None = None,
) -> dict[str, Any]:
    """Measure how far neighbouring slices agree, and whether a prompt can ask for a position.

    Parameters
    ----------
    images, prompts
        Volumes as `pipeline.volume_input.read_volume` takes them, or `.npz` of a pack (`image`, and its row in
        `metadata.csv`); for each a prompt.
    strengths
        Of image-to-image.
    slices
        How many, from the middle of each volume.
    positions
        A pack of brain volumes of several people, from which the position of a slice is learnt; None leaves it out.
    position_prompt, count
        What is asked for at each of six positions, with how many seeds.
    model, seed
        The pipeline; first seed.
    sheet
        A JPEG to write: source and result, in three planes.

    Returns
    -------
    dict
        `volumes`: for each, `agreement` (mean SSIM of neighbouring slices) of source, `shared` and `own` noise by
        strength; `positions`: correlation of asked and found position, real and generated.

    Raises
    ------
    ValueError
        Images and prompts differ in number, or something cannot be read.
    """
    if len(images) != len(prompts) or not images:
        raise ValueError(f"`images` and `prompts` are {len(images)} and {len(prompts)}; give one prompt for each image")
    if slices < 3:
        raise ValueError(f"`slices` is {slices}; allowed is a whole number from 3")
    if sheet is not None:
        sheet.parent.mkdir(parents=True, exist_ok=True)  # before the hours, not after them
    pipe = SyntheticDicomPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    found, rows = [], []
    for path, prompt in zip(images, prompts, strict=True):
        source = _middle(_read(Path(path)), slices)
        entry, pictures = _measure(pipe, source, prompt, strengths, seed)
        found.append({"prompt": prompt, "slices": len(source.values), **entry})
        rows += pictures
    if sheet is not None:
        part = sheet.with_name(f".{sheet.name}.part")
        Image.fromarray(np.vstack(rows)).save(part, "JPEG", quality=85)
        part.replace(sheet)
    result: dict[str, Any] = {"what": "stacks", "seed": seed, "model": pipe.model_name, "volumes": found}
    result["model_sha256"] = pipe.model_sha256
    if positions is not None:
        result["positions"] = _positions(pipe, Path(positions), position_prompt, count, seed)
    return result


def agreement(stack: np.ndarray) -> float:
    """Give the mean SSIM of neighbouring slices of a stack (slices, rows, columns) in [0, 1]."""
    from skimage.metrics import structural_similarity

    pairs = zip(stack[:-1], stack[1:], strict=True)
    return float(np.mean([structural_similarity(one, other, data_range=1.0) for one, other in pairs]))


def _measure(
    pipe: Any, source: InputVolume, prompt: str, strengths: Sequence[float], seed: int
) -> tuple[dict[str, Any], list[np.ndarray]]:
    profile = PROFILES[pipe.plan(prompt, seed=seed).modality]
    grey = to_grey(source, profile, parse_prompt(prompt))
    entry: dict[str, Any] = {"agreement": {"shared": {}, "own": {}}}
    pictures = []
    for strength in strengths:
        shared = image_to_image(pipe, prompt, source, strength, seed=seed, progress=True)
        own = [  # slice by slice, each with a seed of its own
            image_to_image(pipe, prompt, _slice(source, index), strength, seed=seed + 1 + index).voxels
            for index in tqdm(range(len(grey)), desc="own noise", unit="slice")
        ]
        if "source" not in entry["agreement"]:  # at the size of the results, which decides SSIM
            size = shared.voxels.shape[:0:-1]
            same = [np.asarray(Image.fromarray(each).resize(size, Image.Resampling.LANCZOS)) for each in grey]
            entry["agreement"]["source"] = agreement(np.clip(np.stack(same), 0, 1))
            pictures.append(_row(np.clip(np.stack(same), 0, 1)))
        entry["agreement"]["shared"][str(strength)] = agreement(shared.voxels)
        entry["agreement"]["own"][str(strength)] = agreement(np.concatenate(own))
        pictures += [_row(shared.voxels), _row(np.concatenate(own))]
    return entry, pictures


def _slice(source: InputVolume, index: int) -> InputVolume:
    digest = hashlib.sha256(source.values[index].tobytes()).hexdigest()
    return dataclasses.replace(source, values=source.values[index : index + 1], sha256=digest)


def _row(stack: np.ndarray) -> np.ndarray:
    """Three slices, and a cut across them each way, as a strip of pictures."""
    high, wide = stack.shape[1:]
    cuts = [stack[int(len(stack) * part)] for part in (0.25, 0.5, 0.75)] + [stack[:, :, wide // 2], stack[:, high // 2]]
    shown = [Image.fromarray((np.clip(cut, 0, 1) * 255).astype(np.uint8)).resize((192, 192)) for cut in cuts]
    return np.hstack([np.asarray(each) for each in shown])


def _read(path: Path) -> InputVolume:
    if path.suffix != ".npz":
        return read_volume(path)
    try:
        with (path.parent / "metadata.csv").open(encoding="utf-8", newline="") as file:
            row = next(row for row in csv.DictReader(file) if row["file_name"] == path.name)
        with np.load(path, allow_pickle=False) as arrays:
            values = arrays["image"].astype(np.float32)
        first, second, third = (float(part) for part in row["spacing_mm"].split("x"))
    except (OSError, KeyError, ValueError, StopIteration) as error:
        raise ValueError("an .npz of `images` is no volume of a pack with a row in its metadata.csv") from error
    if not row["axes"].startswith("z(inf->sup),y(ant->post),x(R->L)") or values.ndim != 3:
        raise ValueError(f"an .npz of `images` has other axes than {AXES['axial']}")
    digest = hashlib.sha256(values.tobytes()).hexdigest()
    return InputVolume(values, "axial", (first, second, third), row["modality"], digest)


def _middle(source: InputVolume, count: int) -> InputVolume:
    first = max(0, (len(source.values) - count) // 2)
    return dataclasses.replace(source, values=source.values[first : first + count])


def _positions(pipe: Any, pack: Path, prompt: str, count: int, seed: int) -> dict[str, Any]:
    """Learn where slices of people lie, each from the others, and look where those lie that a prompt places."""
    from sklearn.linear_model import RidgeCV

    with (pack / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    people = sorted({row["subject"] for row in rows})
    if len(people) < 2:
        raise ValueError("`positions` is a pack of one person; at least 2 are needed")
    slices, places, owners = [], [], []
    for row in rows:
        source = _read(pack / row["file_name"])
        grey = to_grey(source, PROFILES["brain-mri"], parse_prompt(prompt))
        inside = np.flatnonzero(grey.mean(axis=(1, 2)) > 0.02)
        for index in inside[::2]:
            slices.append((grey[index] * 255).astype(np.uint8))
            places.append((index - inside[0]) / max(1, inside[-1] - inside[0]))
            owners.append(row["subject"])
    features, truth, who = extract_features(slices, progress=False), np.array(places), np.array(owners)
    told = np.empty(len(truth))
    for person in people:
        other = who != person
        told[~other] = RidgeCV(np.logspace(0, 6, 7)).fit(features[other], truth[other]).predict(features[~other])
    judge = RidgeCV(np.logspace(0, 6, 7)).fit(features, truth)
    asked, made = [], []
    for place in tqdm(POSITIONS, desc="positions", unit="place"):
        text = WORDS.format(prompt=prompt, percent=100 * place)
        output = pipe([text], seed=seed, num_images_per_prompt=count, output_type="np")
        made += [(image.mean(-1) * 255).astype(np.uint8) for image in output.images]
        asked += [place] * count
    shown = judge.predict(extract_features(made, progress=False))
    return {
        "prompt": WORDS.format(prompt=prompt, percent=50).replace("50 percent", "N percent"),
        "real_correlation": float(np.corrcoef(told, truth)[0, 1]),
        "real_slices": len(truth),
        "people": len(people),
        "generated_correlation": float(np.corrcoef(shown, asked)[0, 1]),
        "generated_images": len(asked),
    }
