"""Whether the mark is found in what is left of an image and in nothing else, and what it costs.

Attacks: 8 bits as PNG, JPEG 90, rescaling by 0.75, and other windows; each alone and together. CT goes through the
Hounsfield units that our DICOM files store, and through windows as a viewer has them; other images through steeper
and flatter linear windows that keep most of their pixels, and through inversion.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from lora.base_data import load_images
from pipeline.batch_maker import load_pipeline
from pipeline.dicom_pixels import quantise, to_picture
from pipeline.dicom_profiles import DicomProfile, choose_profile
from pipeline.dicom_prompt import parse_prompt
from pipeline.pipeline_watermark import FALSE_ALARMS, THRESHOLD, embed, score

from .features import extract_features
from .images import MODALITIES, SIZE, real_rows
from .kid import MINIMUM_COUNT, kernel_distance

# Center and width in HU. A window in which nearly all of an image is black or white shows no image: head CT is not
# shown in a lung window, nor a lung in a brain window.
CT_WINDOWS = {
    "ct-chest": {"lung": (-600, 1500), "soft-tissue": (40, 400), "mediastinum": (50, 350), "wide": (0, 2000)},
    "ct-head": {"brain": (40, 80), "subdural": (75, 215), "stroke": (35, 40), "soft-tissue": (40, 400)},
}
# Black and white of the new window, in grey of the old one.
WINDOWS = {"steeper": (0.1, 0.7), "brighter": (0.0, 0.7), "darker": (0.2, 1.2), "flatter": (-0.3, 1.3)}
KEYS = 20  # of other signs, to see what chance does
MEASURES = (
    "Missed: marked images whose score is at most the threshold. False alarms: unmarked ones above it. Limits: upper "
    "ends of 95 % intervals (Clopper-Pearson; with none in N about 3/N). PSNR of 8-bit pictures, marked against not"
)


def watermark(
    data: str | Path,
    *,
    model: str | Path = "pipeline",
    pipe: Any = None,
    count: int = 500,
    generated: int = 60,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int = 4,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """Measure errors of both kinds for every attack, and the cost in PSNR and KID.

    Parameters
    ----------
    data
        Folder with the packs.
    model, pipe
        Folder or Hub id of the pipeline, or the pipeline itself.
    count
        Real val images, as many of each modality as of any other; each is also marked.
    generated
        Images of the model, likewise; 0 leaves them and KID out.
    seed
        Of the draws, and of the first image.
    steps, guidance, batch, cache
        As for `generate`; of the cache, only that of the real images is used.

    Raises
    ------
    ValueError
        `count` is below 20, or `generated` is from 1 to 19.
    """
    if count < MINIMUM_COUNT:
        raise ValueError(f"`count` is {count}: allowed are numbers from {MINIMUM_COUNT}")
    if generated and generated < MINIMUM_COUNT:
        raise ValueError(f"`generated` is {generated}: allowed are 0 and numbers from {MINIMUM_COUNT}")
    rng = np.random.default_rng(seed)
    folder = Path(cache) if cache else None
    real: list[tuple[str, DicomProfile, np.ndarray]] = []
    prompts: list[dict[str, str]] = []
    for number, name in enumerate(MODALITIES):
        rows = real_rows(data, name, "val")
        share = [total // len(MODALITIES) + (number < total % len(MODALITIES)) for total in (count, generated)]
        chosen = [rows[i] for i in rng.permutation(len(rows))[: max(share)]]
        images = load_images(chosen[: share[0]], SIZE, folder)
        for row, image in zip(chosen, images, strict=False):
            profile = choose_profile(row["text"], name)
            pixels = image.astype(np.float32) / 255
            coloured = profile.photometric_interpretation == "RGB"
            real.append((row["text"], profile, pixels if coloured else pixels.mean(axis=2)))
        prompts += chosen[: share[1]]
    made: list[tuple[str, DicomProfile, np.ndarray]] = []
    if generated:
        pipe = pipe if pipe is not None else load_pipeline(model)
        made = list(_made(pipe, [row["text"] for row in prompts], seed, steps, guidance, batch))
    result: dict[str, Any] = {
        "measures": MEASURES,
        "threshold": THRESHOLD,
        "false_alarms_by_theory": FALSE_ALARMS,
        "seed": seed,
        "real": _errors(real, "real"),
        "other_keys": _other_keys(real[:: max(1, len(real) // 100)]),
    }
    if made:
        result["model_sha256"] = pipe.model_sha256
        result["generated"] = _errors(made, "generated")
        result["kid"] = _kid_cost(made, real, seed)
    return result


def _made(
    pipe: Any, prompts: Sequence[str], seed: int, steps: int | None, guidance: float | None, batch: int
) -> Iterator[tuple[str, DicomProfile, np.ndarray]]:
    """Float pixels as the pipeline has them before it marks and stores them."""
    pipe.set_progress_bar_config(disable=True)
    for start in tqdm(range(0, len(prompts), batch), desc="generating", mininterval=2):
        some = list(prompts[start : start + batch])
        seeds = [seed + start + i for i in range(len(some))]
        numbers = {"num_inference_steps": steps, "guidance_scale": guidance}
        for prompt, pixels in zip(some, pipe(some, seed=seeds, output_type="np", **numbers).images, strict=True):
            yield prompt, choose_profile(prompt), pixels


# ---- attacks ------------------------------------------------------------------------------------------------------


def attacked(text: str, profile: DicomProfile, pixels: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """What can become of an image: name of the attack, and the pixels that a finder gets.

    Parameters
    ----------
    text
        The prompt, which decides the window of CT.
    profile
        What DICOM object the image becomes.
    pixels
        Floats of [0, 1], (rows, columns) or (rows, columns, 3).
    """
    facts = parse_prompt(text)
    stored = quantise(pixels, profile, facts)
    yield "stored values", stored
    window = profile.window(facts.window)
    if window is None:
        grey = stored / (255 if stored.ndim == 3 else 2**profile.bits_stored - 1)
        ends = dict(WINDOWS)
    else:
        grey = stored * window.rescale_slope + window.rescale_intercept
        ends = {name: (c - w / 2, c + w / 2) for name, (c, w) in CT_WINDOWS[profile.name].items()}
    shown = np.asarray(to_picture(pixels, profile))
    pictures = {"": shown, "inverted": 255 - shown}
    for name, (low, high) in ends.items():
        pictures[f"window {name}"] = np.rint(np.clip((grey - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    for name, picture in pictures.items():
        for words, treat in _TREATMENTS.items():
            yield " + ".join(filter(None, (name, words))) or "8 bits", treat(picture)


def _smaller(picture: np.ndarray) -> np.ndarray:
    image = Image.fromarray(picture)
    return np.asarray(image.resize((round(image.width * 0.75), round(image.height * 0.75)), Image.Resampling.BICUBIC))


def _jpeg(picture: np.ndarray) -> np.ndarray:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=90)
    with Image.open(out) as image:
        return np.asarray(image)


_TREATMENTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda picture: picture,
    "JPEG 90": _jpeg,
    "rescaled 0.75": _smaller,
    "rescaled 0.75 + JPEG 90": lambda picture: _jpeg(_smaller(picture)),
}


# ---- measures -----------------------------------------------------------------------------------------------------


def _errors(images: Sequence[tuple[str, DicomProfile, np.ndarray]], words: str) -> dict[str, Any]:
    """Errors of both kinds by attack, and PSNR by profile; each image stands for itself, marked and unmarked."""
    scores: dict[str, tuple[list[float], list[float]]] = {}
    costs: dict[str, list[float]] = {}
    for text, profile, pixels in tqdm(images, desc=f"attacking {words} images", mininterval=5):
        marked = embed(pixels)
        pair = [np.asarray(to_picture(each, profile), np.float64) for each in (marked, pixels)]
        error = float(np.mean((pair[0] - pair[1]) ** 2))
        costs.setdefault(profile.name, []).append(20 * math.log10(255 / math.sqrt(max(error, 1e-9))))
        for side, some in enumerate((marked, pixels)):
            for attack, left in attacked(text, profile, some):
                scores.setdefault(attack, ([], []))[side].append(score(left))
    flat = [value for values in costs.values() for value in values]
    return {
        "count": len(images),
        "psnr": {"mean": np.mean(flat), "least": float(min(flat))}
        | {name: np.mean(v) for name, v in sorted(costs.items())},
        "attacks": {attack: _rates(*both) for attack, both in scores.items()},
        "missed": sum(sum(value <= THRESHOLD for value in both[0]) for both in scores.values()),
        "false_alarms": sum(sum(value > THRESHOLD for value in both[1]) for both in scores.values()),
        "looks": sum(len(both[0]) for both in scores.values()),
    }


def _rates(marked: list[float], unmarked: list[float]) -> dict[str, Any]:
    missed, alarms = sum(value <= THRESHOLD for value in marked), sum(value > THRESHOLD for value in unmarked)
    return {
        "count": len(marked),
        "missed": missed,
        "missed_limit": upper_limit(missed, len(marked)),
        "false_alarms": alarms,
        "false_alarms_limit": upper_limit(alarms, len(unmarked)),
        "score_least": min(marked),
        "score_median": float(np.median(marked)),
        "score_unmarked_most": max(unmarked),
    }


def upper_limit(events: int, count: int) -> float:
    """Upper end of the two-sided 95 % Clopper-Pearson interval of a rate."""
    if events == count:
        return 1.0

    def at_most(rate: float) -> float:
        logs = [
            math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
            + k * math.log(rate) + (count - k) * math.log1p(-rate)
            for k in range(events + 1)
        ]  # fmt: skip
        return sum(math.exp(value) for value in logs)

    low, high = 1e-12, 1 - 1e-12
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at_most(middle) > 0.025 else (low, middle)
    return high


def _other_keys(images: Sequence[tuple[str, DicomProfile, np.ndarray]]) -> dict[str, Any]:
    """What chance does: unmarked images under signs that nobody put in."""
    found = [
        score(np.asarray(to_picture(pixels, profile)), key=f"other {number}")
        for number in range(KEYS)
        for _, profile, pixels in images
    ]
    return {"looks": len(found), "above_threshold": sum(value > THRESHOLD for value in found), "most": max(found)}


def _kid_cost(made: Sequence[Any], real: Sequence[Any], seed: int) -> dict[str, Any]:
    """KID against the real images, of generated images with and without the mark; of all modalities together."""

    def features(images: Sequence[Any], mark: bool) -> np.ndarray:
        pictures = [to_picture(embed(x) if mark else x, profile).convert("RGB") for _, profile, x in images]
        return extract_features(np.stack([np.asarray(picture) for picture in pictures]))

    base = features(real, False)
    unmarked, marked = (kernel_distance(features(made, mark), base, seed=seed) for mark in (False, True))
    real_marked = kernel_distance(features(real, True), base, seed=seed)
    return {
        "unmarked": vars(unmarked),
        "marked": vars(marked),
        "cost": marked.kid - unmarked.kid,
        "real_marked_against_the_same_unmarked": vars(real_marked),
    }
