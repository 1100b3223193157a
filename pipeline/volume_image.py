"""Image-to-image on a real volume with the pipeline of images, slice by slice, so that neighbours agree.

All slices start from the same noise: what the denoiser makes of it then changes from slice to slice as the source does,
and no more. (With noise of their own, slices of one organ differ like images of different people.) This is no
anonymisation: the source stays recognisable.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np

from . import (
    dicom_burned_in,
    dicom_input,
    dicom_output,
    dicom_profiles,
    dicom_prompt,
    dicom_volume,
    pipeline_noise,
    volume_dicom,
    volume_files,
    volume_input,
)

Volume = volume_files.Volume
InputVolume = volume_input.InputVolume

STRENGTH = 0.4
BRIGHTEST = 99.9  # percentile of a volume without window that becomes white


def image_to_image(
    pipe: Any,
    prompt: str,
    source: InputVolume,
    strength: float = STRENGTH,
    *,
    seed: int,
    modality: str | None = None,
    negative_prompt: str | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    one_object: bool = False,
    progress: bool = False,
) -> Volume:
    """Make a volume out of another one.

    Parameters
    ----------
    pipe
        A `SyntheticDicomPipeline`, with adapters as they are to be used.
    prompt
        What the result is to be; CT or MR, and in the plane of the source.
    source
        From `volume_input.read_volume`.
    strength
        Share of the denoising that slices go through, in (0, 1].
    seed, modality, negative_prompt, num_inference_steps, guidance_scale
        As for images.
    one_object
        Whether the result must go into one object (`to_enhanced`): then a larger one is refused before it is drawn.
    progress
        Whether to show a bar.

    Returns
    -------
    Volume
        Voxels float32 (slices, rows, columns) in [0, 1], no label map, and the recipe. The longer side of a slice has
        as many pixels as the pipeline's images; the shorter one fewer, so that pixels are square.

    Raises
    ------
    ValueError
        An argument is out of range, the prompt is for neither CT nor MR, or for another plane than the source's.
    """
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength <= 1:
        raise ValueError(f"`strength` is {strength!r}; allowed is above 0 and at most 1")
    plan = pipe.plan(
        prompt,
        seed=seed,
        modality=modality,
        negative_prompt=negative_prompt,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
    )
    profile, facts = dicom_profiles.PROFILES[plan.modality], dicom_prompt.parse_prompt(prompt)
    if profile.modality not in volume_dicom.ENHANCED:
        raise ValueError(f"`modality` is {profile.name!r} by the prompt; volumes are of CT or MR")
    plane = facts.plane or profile.planes[0]
    if plane != source.plane:
        raise ValueError(
            f"`prompt` is for {plane} slices, but those of `image` are {source.plane}; say so in the prompt"
        )
    side = plan.height
    grey = to_grey(source, profile, facts)
    extent = [count * step for count, step in zip(grey.shape[1:], source.spacing[1:], strict=True)]
    rows, columns = (max(1, round(side * each / max(extent))) for each in extent)
    top, left = (side - rows) // 2, (side - columns) // 2
    place = slice(top, top + rows), slice(left, left + columns)
    volume = dicom_volume.VolumeRecipe(
        subject=prompt,
        shape=(len(grey), rows, columns),
        axes=volume_input.AXES[plane],
        spacing=(source.spacing[0], extent[0] / rows, extent[1] / columns),
        warnings=source.warnings,
    )
    if one_object:
        volume_dicom.check_one_object(volume.shape)
    recipe = dataclasses.replace(
        plan, height=rows, width=columns, strength=float(strength), input_sha256=source.sha256, volume=volume
    )
    fit = (pipe.config.image_noise or {}).get(profile.name)
    voxels = np.empty(volume.shape, np.float32)
    suspicious: list[int] = []
    pipe.set_progress_bar_config(disable=True)  # one bar over slices instead
    bar = _bar(len(grey), progress)
    for index, each in enumerate(grey):
        padded = np.zeros((side, side), np.float32)
        padded[place] = dicom_input.resize(np.ascontiguousarray(each), rows, columns)
        if dicom_burned_in.find_text(each):  # at its own size: smaller, letters are lost to the eye alone
            suspicious.append(index + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dicom_burned_in.BurnedInTextWarning)
            latents = pipe(
                prompt,
                padded,
                strength,
                modality=modality,
                seed=seed,
                negative_prompt=negative_prompt,
                num_inference_steps=plan.num_inference_steps,
                guidance_scale=plan.guidance_scale,
                output_type="latent",
            ).images
        pixels = pipe.decode_latents_to_float(latents)
        if fit is not None:  # of the scanner, so anew in each slice
            pixels = pipeline_noise.add_image_noise(pixels, [fit], [seed + index])
        voxels[index] = pixels[0].mean(0).numpy()[place]
        bar.update()
    bar.close()
    if suspicious or source.burned_in_annotation:
        first = f"the first being number {suspicious[0]}, hold what looks like burned-in text" if suspicious else ""
        found = f"{len(suspicious)} slice(s) of `image`, {first}" if first else "`image` holds burned-in text"
        said = ", as its header says" if source.burned_in_annotation else ""
        warnings.warn(
            f"{found}{said}; it may name a person, and nothing here removes it",
            dicom_burned_in.BurnedInTextWarning,
            stacklevel=2,
        )
    return Volume(voxels, None, recipe)


def to_grey(source: InputVolume, profile: dicom_profiles.DicomProfile, facts: dicom_output.PromptFacts) -> np.ndarray:
    """Give a volume's grey values in [0, 1], float32, by one rule for all its slices.

    CT (and NIfTI, where the prompt is for CT) through the window that the prompt names, so that Hounsfield units go in
    and come out alike; anything else from its smallest value to its 99.9th percentile.
    """
    window = profile.window(facts.window)
    if window is not None and source.modality in ("CT", None):
        return np.asarray(window.to_grey(source.values), np.float32)
    low, high = float(source.values.min()), float(np.percentile(source.values, BRIGHTEST))
    if high <= low:
        return np.zeros(source.values.shape, np.float32)
    return np.clip((source.values - low) / np.float32(high - low), 0, 1).astype(np.float32)


def _bar(total: int, shown: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, disable=not shown, unit="slice", desc="image to image")
