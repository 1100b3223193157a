"""Is a generated image a copy of one that the model was trained on? A small index of the training set tells.

The measure is the ratio of Carlini et al. 2023 ("Extracting Training Data from Diffusion Models"): the distance to the
nearest training image over the mean distance to the next 20. Near means near for that kind of picture: slices of CT
lie closer together than fields of cells. What ratio makes a copy was found on real images of other people, so that a
copy is what is closer than real people are to one another.

What is compared are decoded images at 16 x 16 cells, without their mean and contrast, as 64 signed sums; the image that
is asked about also a little moved. (Latents were tried first: they lose a copy that is moved by three pixels.) No
picture can be drawn from them: 64 numbers stand for 65,536 pixels, nothing finer than a sixteenth of the picture went
in, and brightness and contrast are gone. What an index does tell is whether a picture that somebody already has was in
the training set: it is made to tell just that.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch.nn import functional

from . import adapter_names, dicom_provenance, pipeline_checks

INDEX_NAME = "memorisation_index.safetensors"
FEATURES, CELLS, NEIGHBOURS, LARGEST = 64, 16, 20, 128
REDRAWS = 3
SEED_STEP = 1_000_003  # so far away that a redrawn image does not repeat another one of the same call
_MAX_BYTES = 64 * 2**20


@torch.no_grad()
def thumbnails(images: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, H, W) of any size and range as 16 x 16 cells without mean and contrast, float32 (N, 768), length 1.

    Copies are recognised by them, also recompressed, brighter or a little moved; likeness of kind is not.
    """
    cells = functional.adaptive_avg_pool2d(images.float().cpu(), CELLS)
    cells = (cells - cells.mean((2, 3), keepdim=True)).flatten(1)
    return cells / cells.norm(dim=1, keepdim=True).clamp_min(1e-6)


def index_features(images: torch.Tensor) -> torch.Tensor:
    """What an index holds of images (N, 3, H, W): float32 (N, 64) on the CPU."""
    flat = thumbnails(images)
    return flat @ _signs(flat.shape[1])


def moved(images: torch.Tensor) -> Iterator[torch.Tensor]:
    """Images (N, C, H, W) as they are and moved by up to 2.5 % each way, 25 times; edges are repeated outwards."""
    images = images.float().cpu()
    if min(images.shape[2:]) > LARGEST:  # finer than that makes no difference to the cells
        images = functional.adaptive_avg_pool2d(images, LARGEST)
    height, width = images.shape[2:]
    rows, columns = ([round(side * step / 80) for step in range(-2, 3)] for side in (height, width))
    for down, right in itertools.product(rows, columns):
        edges = (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0))
        padded = functional.pad(images, edges, "replicate")
        top, left = max(-down, 0), max(-right, 0)
        yield padded[:, :, top : top + height, left : left + width]


def nearest_of_moved(
    images: torch.Tensor,
    training: torch.Tensor,
    features: Callable[[torch.Tensor], torch.Tensor],
    excluded: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`nearness` of images (N, 3, H, W) to the features of training images: of their 25 moved versions the least."""
    found = [nearness(features(some), training, excluded) for some in moved(images)]
    ratios, places = torch.stack([ratio for ratio, _ in found]), torch.stack([place for _, place in found])
    least, which = ratios.min(0)
    return least, places.gather(0, which[None])[0]


@functools.cache
def _signs(width: int) -> torch.Tensor:
    """A projection (width, 64) that keeps distances (Achlioptas 2003), the same on every machine: bits of a hash."""
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(b"memorisation").digest(width * FEATURES // 8), np.uint8))
    return torch.from_numpy(bits.reshape(width, FEATURES).astype(np.float32) * 2 - 1) / FEATURES**0.5


def nearness(
    features: torch.Tensor, training: torch.Tensor, excluded: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance to the nearest training image over the mean distance to the next 20, as far as there are.

    Parameters
    ----------
    features, training
        (N, D) and (M, D); M is at least 2.
    excluded
        bool (N, M): pairs to leave out, such as images of the same person; each row must keep two.

    Returns
    -------
    ratio, place : torch.Tensor
        (N,) in [0, 1], about 0.9 for a real image of somebody else and near 0 for a copy; and which training image is
        the nearest, int64 (N,).
    """
    ratios, places = [torch.zeros(0)], [torch.zeros(0, dtype=torch.long)]
    for start in range(0, len(features), 256):
        part = slice(start, start + 256)
        distances = torch.cdist(features[part], training)
        if excluded is not None:
            distances[excluded[part]] = torch.inf
        near, nearest = distances.topk(min(NEIGHBOURS + 1, distances.shape[1]), largest=False)
        rest = near[:, 1:]
        there = rest.isfinite()
        mean = torch.where(there, rest, 0).sum(1) / there.sum(1).clamp_min(1)
        ratios.append(near[:, 0] / mean.clamp_min(1e-6))
        places.append(nearest[:, 0])
    return torch.cat(ratios), torch.cat(places)


def quantised(features: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Features (M, D) as int8, and the step that they are multiples of."""
    step = float(features.abs().max().clamp_min(1e-6)) / 127
    return (features / step).round().to(torch.int8), step


@dataclass(frozen=True, eq=False)
class MemorisationIndex:
    """Features of a training set, and from what nearness on an image counts as a copy.

    Attributes
    ----------
    features
        float32 (M, 64), from `index_features`; M is at least 2.
    threshold
        A copy is what has a `nearness` below it.
    calibration
        How the threshold was found, in numbers and words.
    """

    features: torch.Tensor
    threshold: float
    calibration: dict[str, Any] = field(default_factory=dict)

    def score(self, images: torch.Tensor) -> torch.Tensor:
        """`nearest_of_moved` of images (N, 3, H, W) over the threshold: below 1 is a copy."""
        return nearest_of_moved(images, self.features, index_features)[0] / self.threshold

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Give the file's content: features in eight bits, in an order that says nothing of the data set's."""
        rough, step = quantised(self.features)
        rough = rough[torch.from_numpy(np.lexsort(rough.numpy().T))].contiguous()
        words = {"threshold": self.threshold, "calibration": self.calibration, "step": step}
        return save({"features": rough}, {"memorisation": json.dumps(words, sort_keys=True)})

    def save(self, path: str | Path) -> Path:
        """Write the file, under a temporary name until it is whole."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        part.write_bytes(self.to_bytes())
        part.replace(path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> MemorisationIndex:
        """Read the file.

        Raises
        ------
        ValueError
            It is no index.
        """
        path = Path(path)
        wrong = f"{path.name} is no whole memorisation index; `python -m lora.memorisation` makes one"
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"{path.name} has {path.stat().st_size} bytes; allowed are {_MAX_BYTES}")
        data = path.read_bytes()
        try:
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            words = json.loads(header["memorisation"])
            features = load(data)["features"].float() * float(words["step"])
            index = cls(features, float(words["threshold"]), dict(words["calibration"]))
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, RecursionError) as error:
            raise ValueError(wrong) from error
        if features.ndim != 2 or features.shape[1] != FEATURES or len(features) < 2 or not features.isfinite().all():
            raise ValueError(wrong)
        if not 0 < index.threshold < 1e3:
            raise ValueError(wrong)
        return index


class MemorisationMixin:
    """What the pipeline gets: the indexes of the model and of the adapters in use, and redrawing of copies."""

    # Given by the pipeline.
    vae: Any
    config: Any
    _layers: Any
    decode_latents_to_float: Any
    _adapter_sources: dict[str, tuple[Any, dict[str, Any]]]

    def memorisation_indexes(self) -> list[tuple[str, MemorisationIndex]]:
        """The indexes of all that decides the pixels now, by name: the model's own and that of each adapter in use.

        Raises
        ------
        ValueError
            One is missing or damaged; the message says whose.
        """
        name: str = self.model_name  # type: ignore[attr-defined]
        places = [("model", name, self.model_memorisation_index())]
        places += [("adapter", name, self._adapter_index(name)) for name in self._adapters_drawing()]
        found = []
        for kind, name, index in places:
            if index is None:
                raise ValueError(
                    f"`check_memorisation` is True, but the {kind} {name!r} comes without {INDEX_NAME}; "
                    "`python -m lora.memorisation` makes one of its training images"
                )
            found.append((name, index))
        return found

    def can_check_memorisation(self) -> bool:
        """Whether `check_memorisation=True` would find all indexes that it needs."""
        try:
            return bool(self.memorisation_indexes())
        except ValueError:
            return False

    def model_memorisation_index(self) -> MemorisationIndex | None:
        """The index that lies beside the model's weights, in its folder or on the Hub; None where there is none."""
        name = str(self.config.get("_name_or_path") or "")
        if name and (Path(name) / INDEX_NAME).is_file():
            return _read(Path(name) / INDEX_NAME)
        if not adapter_names.is_hub_id(name):
            return None
        # diffusers loads a model of the Hub from a folder that is named by its commit: the index is to be of the same.
        folder = Path(str(self.vae.config.get("_name_or_path") or "")).parent
        return _fetched(name, {"revision": folder.name if folder.parent.name == "snapshots" else None})

    def _adapter_index(self, name: str) -> MemorisationIndex | None:
        source, options = self._adapter_sources.get(name, (None, {}))
        if not isinstance(source, (str, Path)):
            return None
        path = Path(source)
        if path.is_dir() or path.name == options.get("weight_name", adapter_names.WEIGHT_NAME):
            folder = path / str(options.get("subfolder") or "") if path.is_dir() else path.parent
            return _read(folder / INDEX_NAME) if (folder / INDEX_NAME).is_file() else None
        if path.exists() or not adapter_names.is_hub_id(str(source)):
            return None
        known = ("revision", "subfolder", "token", "cache_dir", "local_files_only")
        return _fetched(str(source), {key: options[key] for key in known if key in options})

    def _adapters_drawing(self) -> list[str]:
        """Adapters that are in use or fused."""
        return sorted(
            {
                name
                for _, layer in self._layers()
                if not layer.disable_adapters
                for name in (*layer.active_adapters, *layer.merged_adapters)
                if name in layer.lora_A
            }
        )

    def _redraw_copies(
        self,
        indexes: Sequence[tuple[str, MemorisationIndex]],
        latents: torch.Tensor,
        recipes: Sequence[dicom_provenance.Recipe],
        draw: Callable[[list[int], list[int]], torch.Tensor],
    ) -> tuple[torch.Tensor, list[dicom_provenance.Recipe]]:
        """Replace copies by images of other seeds, at most three times each; the recipes say what was done.

        `draw` takes places in `latents` and a seed for each and gives new latents. An image depends on its own seed
        alone, so the same request ends at the same seed in any batch.
        """
        checked, made = tuple((name, index.sha256) for name, index in indexes), list(recipes)
        latents, places, first = latents.clone(), list(range(len(made))), [recipe.seed for recipe in recipes]
        for redraw in range(REDRAWS + 1):
            images = self.decode_latents_to_float(latents[places])
            scores = torch.stack([index.score(images) for _, index in indexes]).amin(0)
            for place, score in zip(places, scores.tolist(), strict=True):
                seen = dicom_provenance.CopyCheck(checked, round(score, 3), first[place], redraw)
                made[place] = replace(made[place], copy_check=seen)
            places = [place for place in places if made[place].copy_check.is_copy]  # type: ignore[union-attr]
            if not places or redraw == REDRAWS:
                break
            seeds = [(made[place].seed + SEED_STEP) % (pipeline_checks.MAX_SEED + 1) for place in places]
            latents[places] = draw(places, seeds)
            for place, seed in zip(places, seeds, strict=True):
                made[place] = replace(made[place], seed=seed)
            if self.interrupt:  # type: ignore[attr-defined]  # half denoised: no DICOM comes of this call
                break
        return latents, made


@functools.lru_cache(maxsize=16)
def _read_cached(path: str, changed: int, size: int) -> MemorisationIndex:
    return MemorisationIndex.load(path)


def _read(path: Path) -> MemorisationIndex:
    state = path.stat()
    return _read_cached(str(path.resolve()), state.st_mtime_ns, state.st_size)


def _fetched(repository: str, options: dict[str, Any]) -> MemorisationIndex | None:
    """Index of a Hub repository; None where it has none or cannot be reached."""
    try:
        return _read(Path(hf_hub_download(repository, INDEX_NAME, **options)))
    except OSError:
        return None
