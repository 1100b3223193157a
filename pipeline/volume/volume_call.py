"""What a call of the volume pipeline may ask for, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput

OUTPUT_TYPES = ("np", "pt", "latent")
MAX_SEED = 2**63 - 1


@dataclass
class SyntheticDicomVolumePipelineOutput(BaseOutput):
    """What a call returns.

    Attributes
    ----------
    volumes
        Float32 (N, X, Y, Z) in [0, 1], a numpy array for `output_type` "np" and a tensor for "pt"; axes as
        `geometry` says. For "latent": what the denoiser gave, (N, X * (1 + labels), Y, Z), about [-1, 1].
    masks
        uint8 (N, X, Y, Z): 0 background, then the labels in the order of the covariates (1 anterior, 2 posterior);
        None where none is wanted.
    covariates
        One dictionary a volume: what it was asked to have, in mm3, given, read from the prompt or drawn.
    obtained
        One dictionary a volume: what its label map has, in mm3; None where none is wanted.
    recipes
        One dictionary a volume, for JSON: all that is needed to make it again, and what made it.
    warnings
        One list of sentences a volume: for the header, and for who asked.
    geometry
        "axes" (letters of the direction in which each array axis grows: R right, A anterior, S superior), "spacing"
        in mm, "labels" (names) and "shape".
    """

    volumes: np.ndarray | torch.Tensor
    masks: np.ndarray | None
    covariates: list[dict[str, float]]
    obtained: list[dict[str, float]] | None
    recipes: list[dict[str, Any]]
    warnings: list[list[str]]
    geometry: dict[str, Any]

    @property
    def affine(self) -> np.ndarray:
        """Voxel indices to millimetres as NIfTI has them (R, A, S), the volume's centre at 0: float64 (4, 4)."""
        spacing, shape = np.array(self.geometry["spacing"]), np.array(self.geometry["shape"])
        affine = np.eye(4)
        rows = ["RAS".index({"L": "R", "P": "A", "I": "S"}.get(letter, letter)) for letter in self.geometry["axes"]]
        signs = [1.0 if letter in "RAS" else -1.0 for letter in self.geometry["axes"]]
        affine[:3, :3] = 0
        for axis, (row, sign) in enumerate(zip(rows, signs, strict=True)):
            affine[row, axis] = sign * spacing[axis]
        affine[:3, 3] = -affine[:3, :3] @ ((shape - 1) / 2)
        return affine


def check_call(
    prompts: list[Any], seed: Any, count: Any, steps: Any, guidance: Any, mask: Any, output_type: Any
) -> None:
    """Refuse what cannot work, before any work.

    Raises
    ------
    ValueError
        An argument is out of its range: its name, value and what is allowed.
    """
    if not prompts:
        raise ValueError("`prompt` is an empty list; give at least one prompt")
    for text in prompts:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"`prompt` must be text, and not empty; got {text!r}")
        if any("\ud800" <= c <= "\udfff" for c in text):  # half a surrogate pair: tokenizers take no such
            raise ValueError(f"`prompt` is {text!r}; allowed is sound Unicode")
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"`output_type` is {output_type!r}; allowed are {', '.join(map(repr, OUTPUT_TYPES))}")
    if not isinstance(mask, bool):
        raise ValueError(f"`mask` is {mask!r}; allowed are True and False")
    if not is_whole(count) or count < 1:
        raise ValueError(f"`num_volumes_per_prompt` is {count!r}; allowed is a whole number of at least 1")
    if steps is not None and (not is_whole(steps) or not 1 <= steps <= 1000):
        raise ValueError(f"`num_inference_steps` is {steps!r}; allowed is a whole number from 1 to 1000")
    number = isinstance(guidance, (int, float, np.integer, np.floating)) and not isinstance(guidance, bool)
    if guidance is not None and not (number and 0 <= guidance <= 100):
        raise ValueError(f"`guidance_scale` is {guidance!r}; allowed is a number from 0 to 100")
    if seed is not None and (not is_whole(seed) or not 0 <= seed <= MAX_SEED):
        raise ValueError(f"`seed` is {seed!r}; allowed is a whole number from 0 to {MAX_SEED}")


def check_shape(shape: Any, whole: tuple[int, int, int]) -> tuple[int, int, int]:
    """Give the shape that a call asks for, by default the model's own.

    Raises
    ------
    ValueError
        It is no three whole numbers from 1 to those of the model: a crop can be cut out, more cannot be drawn.
    """
    if shape is None:
        return whole
    values = tuple(shape) if isinstance(shape, (list, tuple, np.ndarray)) else ()
    if len(values) != 3 or not all(is_whole(v) and 1 <= v <= most for v, most in zip(values, whole, strict=True)):
        raise ValueError(
            f"`shape` is {shape!r}; allowed are three whole numbers of voxels, at least 1 and at most {whole}"
        )
    return tuple(int(value) for value in values)  # type: ignore[return-value]


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, Python's or numpy's."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
