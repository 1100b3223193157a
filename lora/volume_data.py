"""Volumes with label maps for training: reading, splitting, captions, and augmentation that keeps the anatomy."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch.nn import functional

from pipeline.dicom_limits import MAX_BYTES, attempt
from pipeline.volume.volume_covariates import Distribution, structure

from .data_sources import read_table

PARTS = ("train", "val", "test")
PERCENTILES = (0.5, 99.5)  # of a volume: what becomes black and white
SOFTNESS = 0.6  # standard deviation, in voxels, of the blur on the labels: a slope learns better than a step
_COLUMNS = ("file_name", "axes", "spacing_mm", "licence", "source")
_TEMPLATES = (
    "3D T1-weighted MRI crop of the hippocampus",
    "T1 MRI of the hippocampus",
    "T1-weighted brain MRI, hippocampus",
    "brain MRI, volume of the hippocampus",
    "hippocampus, 3D T1 MRI",
    "MR volume of the hippocampal region",
    "hippocampus",
)
_SMALL, _LARGE = ("small", "atrophic", "reduced"), ("large", "enlarged", "big")


@dataclass(frozen=True, eq=False)
class VolumeSet:
    """Volumes of one shape, orientation and spacing.

    Attributes
    ----------
    names
        File names.
    images
        Float32 (N, X, Y, Z) in [-1, 1]: each volume's 0.5th and 99.5th percentile are -1 and 1, what is beyond is cut.
    masks
        uint8 (N, X, Y, Z): 0 background, label i is structure i.
    covariates
        Names of the structures' volumes, such as "anterior_mm3", in the order of the labels.
    axes, spacing
        As in the pipeline's `geometry`.
    licences, sources
        Those of the rows.
    """

    names: tuple[str, ...]
    images: np.ndarray
    masks: np.ndarray
    covariates: tuple[str, ...]
    axes: str
    spacing: tuple[float, ...]
    licences: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def measured(self) -> np.ndarray:
        """Volumes of the structures in the label maps, in mm3: float64 (N, covariates)."""
        voxel = float(np.prod(self.spacing))
        return np.stack([(self.masks == i + 1).sum((1, 2, 3)) * voxel for i in range(len(self.covariates))], 1)


def part_of(name: str) -> str:
    """Part that a volume belongs to for good, by the hash of its name: about 80 % "train", 10 % "val", 10 % "test"."""
    number = int(hashlib.sha256(Path(name).name.encode()).hexdigest()[:8], 16) % 10
    return {0: "val", 1: "test"}.get(number, "train")


def normalise(image: np.ndarray) -> np.ndarray:
    """Intensities to float32 in [-1, 1] by the volume's own percentiles."""
    low, high = np.percentile(image, PERCENTILES)
    scaled = np.clip((image.astype(np.float32) - low) / max(float(high - low), 1e-6) * 2 - 1, -1, 1)
    return scaled.astype(np.float32)  # percentiles are float64, and numpy lets them win


def read_volumes(folder: Path, part: str | None = None) -> VolumeSet:
    """Read a pack of volumes: `metadata.csv` and `npz` files with `image` and `mask`.

    Parameters
    ----------
    folder
        Metadata needs the columns `file_name`, `shape`, `axes`, `spacing_mm`, `licence`, `source` and, for each label
        from 1 on, `vol_NAME_mm3`. The covariates are counted in the label maps themselves: the crop may have cut some
        voxels of what the metadata says.
    part
        "train", "val" or "test"; all if None.

    Raises
    ------
    FileNotFoundError
        There is no `metadata.csv`.
    ValueError
        No such part, no volume in it, volumes of several shapes or geometries, or a row whose file leads out of the
        folder or is no sound volume: told by its number.
    """
    if part is not None and part not in PARTS:
        raise ValueError(f"`part` is {part!r}; allowed are {', '.join(map(repr, PARTS))} and None")
    if not (folder / "metadata.csv").is_file():
        raise FileNotFoundError(f"`data` is {str(folder)!r}, which holds no metadata.csv")
    columns, table = read_table(folder / "metadata.csv", "`data`")
    if absent := [name for name in _COLUMNS if name not in columns]:
        raise ValueError(f"`metadata.csv` of `data` has no column `{absent[0]}`")
    rows = [(number, row) for number, row in enumerate(table, 1) if part in (None, part_of(row["file_name"]))]
    if not rows:
        raise ValueError(f"`data` is {str(folder)!r}, which has no volume{f' of part {part!r}' if part else ''}")
    names = tuple(key.removeprefix("vol_") for key in columns if key.startswith("vol_") and key.endswith("_mm3"))
    facts, images, masks = set(), [], []
    for number, row in rows:
        where = f"row {number} of `metadata.csv` of `data`"  # no word of the row: file names hold patients' names
        spacing = attempt(partial(_spacing, row["spacing_mm"]), f"{where} has no `spacing_mm` such as 1x1x1.5")
        facts.add(((row["axes"].split() or [""])[0], spacing))
        name = PurePosixPath(row["file_name"].replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or not name.parts:
            raise ValueError(f"{where} has a `file_name` that is empty or leads out of the folder")
        if not (folder / name).is_file():
            raise ValueError(f"{where} names a file that is not there")
        image, mask = attempt(partial(_read_pair, folder / name), f"{where} names a file that is no sound volume")
        images.append(normalise(image))
        masks.append(mask)
    if len(facts) != 1 or len({image.shape for image in images}) != 1:
        raise ValueError(f"`data` is {str(folder)!r}, whose volumes differ in shape, axes or spacing; allowed is one")
    axes, spacing = facts.pop()
    return VolumeSet(
        tuple(row["file_name"] for _, row in rows),
        np.stack(images),
        np.stack(masks),
        names,
        axes,
        spacing,
        tuple(sorted({row["licence"] for _, row in rows})),
        tuple(sorted({row["source"] for _, row in rows})),
    )


def _spacing(text: str) -> tuple[float, ...]:
    values = tuple(float(value) for value in text.split("x"))
    if len(values) != 3 or not all(0 < value < 1e3 for value in values):
        raise ValueError
    return values


def _read_pair(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read image and label map of a file, having asked how large they are; any error where they are none."""
    if path.stat().st_size > MAX_BYTES:
        raise ValueError
    with np.load(path, allow_pickle=False) as arrays:
        if any(info.file_size > MAX_BYTES for info in arrays.zip.infolist()):
            raise ValueError
        image, mask = arrays["image"], arrays["mask"]
    numbers = image.dtype.kind in "uif" and mask.dtype.kind in "uib" and image.dtype.itemsize <= 8
    if image.ndim != 3 or image.shape != mask.shape or not image.size or not numbers or not np.isfinite(image).all():
        raise ValueError
    if mask.min() < 0 or mask.max() > 255:
        raise ValueError
    return image, mask.astype(np.uint8)


def vary_caption(values: np.ndarray, distribution: Distribution, rng: np.random.Generator) -> str:
    """Word a volume's description: the subject and, at times, sizes in words or in numbers that agree with it."""
    words = [str(rng.choice(_TEMPLATES))]
    z = distribution.standardise(values[None])[0]
    kind = rng.random()
    if kind < 0.35:
        if (abs(z) > 0.6).all() and len(set(np.sign(z))) == 1 and rng.random() < 0.5:
            return f"{rng.choice(_LARGE if z[0] > 0 else _SMALL)} {words[0]}"
        for name, value in zip(distribution.names, z, strict=True):
            size = rng.choice(_LARGE if value > 0.6 else _SMALL) if abs(value) > 0.6 else "average"
            words.append(f"{size} {structure(name)} part")
    elif kind < 0.6:
        words += [f"{structure(n)} {v:.0f} mm3" for n, v in zip(distribution.names, values, strict=True)]
    return ", ".join(words)


class Batches:
    """Draws augmented batches: a small smooth warp that fades to none at the border, a small shift, a mild gamma.

    No flips, which would change the side, and no rotation beyond a few degrees. The warp enlarges and shrinks the
    structures by some percent each way, so the covariates are counted anew in each warped label map. Warping blurs a
    little; which volumes are warped is told to the denoiser, so that it can be asked for unwarped ones (non-leaky
    augmentation, Karras et al. 2022).

    Parameters
    ----------
    images, masks
        As in `VolumeSet`.
    labels
        Number of labels.
    voxel
        Volume of a voxel in mm3.
    warped
        Share of volumes that are warped.
    """

    def __init__(
        self, images: np.ndarray, masks: np.ndarray, labels: int, voxel: float = 1.0, warped: float = 0.5
    ) -> None:
        self.labels, self.voxel, self.warped = labels, voxel, warped
        self.images = torch.from_numpy(_finer(images).astype(np.float32))
        self.soft = _blur(torch.from_numpy(np.stack([masks == i + 1 for i in range(labels)], 1)).float())
        self.shape: tuple[int, ...] = images.shape[1:]
        axes = [torch.linspace(-1, 1, size) for size in self.shape]
        self.grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)  # (X, Y, Z, 3), -1 and 1 at the border
        self.half = torch.tensor([(size - 1) / 2 for size in self.shape])
        self.fade = (1 - self.grid.square()).prod(-1, keepdim=True)

    def draw(
        self, index: Sequence[int] | np.ndarray, generator: torch.Generator
    ) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
        """Draw a batch of these volumes.

        Returns
        -------
        clean : float32 (B, X * (1 + labels), Y, Z)
            What the denoiser is to learn, in [-1, 1].
        values : float64 (B, labels)
            Its covariates, in mm3.
        warped : float32 (B,)
            1 where the volume is warped, else 0.
        """
        count, chosen = len(index), torch.as_tensor(np.asarray(index))
        warped = (torch.rand(count, generator=generator) < self.warped).float()
        shift = (torch.rand(count, 1, 1, 1, 3, generator=generator) * 2 - 1).round()  # whole voxels do not blur
        moved = self._warp(count, generator) * warped.view(-1, 1, 1, 1, 1) + shift
        grid = (self.grid + moved / self.half).flip(-1)  # grid_sample wants the last axis first
        images = functional.grid_sample(self.images[chosen, None], grid, padding_mode="reflection", align_corners=True)
        soft = functional.grid_sample(self.soft[chosen], grid, padding_mode="border", align_corners=True)
        gamma = torch.exp(0.1 * torch.randn(count, 1, 1, 1, 1, generator=generator))
        images = (images / 2 + 0.5).clamp(0, 1) ** gamma * 2 - 1
        x, *plane = self.shape
        clean = torch.cat([images, soft * 2 - 1], 1).reshape(count, x * (1 + self.labels), *plane)
        return clean, count_labels(soft) * self.voxel, warped

    def _warp(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Where each voxel comes from, relative to itself, in voxels: (B, X, Y, Z, 3)."""
        # Stretched about the centre by 7 % (one standard deviation) an axis, sheared and turned by 2 degrees.
        linear = torch.randn(count, 3, 3, generator=generator) * (0.035 + 0.035 * torch.eye(3))
        turned = torch.einsum("bij,xyzj->bxyzi", linear, self.grid * self.half)
        nodes = torch.randn(count, 3, 5, 6, 5, generator=generator) * 0.8
        elastic = functional.interpolate(nodes, self.shape, mode="trilinear", align_corners=True)
        return (turned + elastic.permute(0, 2, 3, 4, 1)) * self.fade


def _finer(images: np.ndarray) -> np.ndarray:
    """Cubic upsampling of (N, X, Y, Z) to 2 X - 1, ...: the voxels stay; what lies between is warped with less blur."""
    for axis in (1, 2, 3):
        rows = np.moveaxis(images, axis, 0)
        wide = np.concatenate([rows[:1], rows, rows[-1:]])
        between = (9 * (wide[1:-2] + wide[2:-1]) - wide[:-3] - wide[3:]) / 16
        out = np.empty((2 * len(rows) - 1, *rows.shape[1:]), rows.dtype)
        out[::2], out[1::2] = rows, between
        images = np.moveaxis(out, 0, axis)
    return images


def _blur(labels: torch.Tensor) -> torch.Tensor:
    """Gaussian blur of (B, labels, X, Y, Z) that leaves the border's values as they are outside."""
    offsets = torch.arange(-2, 3, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * SOFTNESS**2))
    kernel = kernel / kernel.sum()
    count, channels = labels.shape[:2]
    flat = labels.reshape(count * channels, 1, *labels.shape[2:])
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = 5
        padding = [0] * 6
        padding[4 - 2 * axis] = padding[5 - 2 * axis] = 2
        flat = functional.conv3d(functional.pad(flat, padding, mode="replicate"), kernel.view(shape))
    return flat.reshape(labels.shape)


def count_labels(soft: torch.Tensor) -> np.ndarray:
    """Voxels that each label of (B, labels, X, Y, Z) wins, decided as the pipeline decodes: float64 (B, labels)."""
    rivals = [1 - soft.sum(1), *soft.unbind(1)]
    counts = []
    for i in range(1, len(rivals)):
        wins = torch.ones_like(rivals[0], dtype=torch.bool)
        for j, rival in enumerate(rivals):
            if j != i:  # at a tie the first one wins
                wins &= rivals[i] > rival if j < i else rivals[i] >= rival
        counts.append(wins.sum((1, 2, 3)))
    return torch.stack(counts, 1).double().numpy()
