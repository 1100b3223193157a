"""Sample images: the pictures on the cards, and the data set of images with their DICOM files.

The same requests give the same bytes, so that publishing again commits nothing: nothing here is drawn by chance, and
what was drawn before with the same model, code and libraries is taken from a cache, also where another number of
threads would change a last digit.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pydicom

from pipeline import read_recipe
from pipeline.adapter_names import WEIGHT_NAME
from pipeline.dicom_files import png_notes

# What the cards and the data set show of the base, by modality; adapters show the prompts that they were trained with.
PROMPTS = {
    "chest-xray": (
        "chest X-ray, PA view, normal lungs, adult woman",
        "chest X-ray, AP view, bacterial pneumonia, young child",
        "chest X-ray, PA view, pulmonary tuberculosis, adult",
        "chest X-ray, AP view, viral pneumonia, young child",
        "chest X-ray, PA view, cardiomegaly, 61 year old man",
        "chest X-ray, AP view, pleural effusion, 58 year old woman",
    ),
    "ct": (
        "chest CT, lung window, lung cancer",
        "head CT, brain window, intracranial haemorrhage",
        "chest CT, soft-tissue window",
        "head CT, brain window, normal brain",
        "chest CT, wide lung window, normal lungs",
        "chest CT, wide lung window, benign lung nodule",
    ),
    "brain-mri": (
        "axial T1 brain MRI with contrast, meningioma",
        "coronal T1 brain MRI with contrast, pituitary tumour",
        "axial T1 brain MRI with contrast, glioma",
        "coronal T1 brain MRI with contrast, glioma",
        "axial T1 brain MRI with contrast, pituitary tumour",
        "coronal T1 brain MRI with contrast, meningioma",
    ),
    "blood-smear": (
        "blood smear, neutrophil, May-Grünwald-Giemsa",
        "blood smear, red blood cell with malaria parasite, Giemsa",
        "blood smear, lymphocyte, May-Grünwald-Giemsa",
        "blood smear, eosinophil, May-Grünwald-Giemsa",
        "blood smear, platelet, May-Grünwald-Giemsa",
        "blood smear, monocyte, May-Grünwald-Giemsa",
    ),
}
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "numpy", "pillow", "pydicom")
PARQUET = "data/train-00000-of-00001.parquet"
COLUMNS = ("image", "dicom", "prompt", "recipe", "modality", "sop_instance_uid")


@dataclass(frozen=True)
class Request:
    """One image to draw: `kind` is the modality of the base or the name of an adapter of its own modality."""

    kind: str
    prompt: str
    seed: int
    modality: str | None = None
    adapter: str | None = None


@dataclass(frozen=True)
class Sample:
    """One image that was drawn: the bytes of its PNG (8 bits a channel) and of its DICOM file."""

    request: Request
    png: bytes
    dicom: bytes

    def header(self) -> pydicom.Dataset:
        """Read the DICOM header."""
        return pydicom.dcmread(io.BytesIO(self.dicom), stop_before_pixels=True)


class Sampler:
    """Draws samples with the model; loads it only if something is not in the cache.

    Parameters
    ----------
    model
        Folder of the pipeline.
    adapters
        Folders of the adapters that requests may name.
    cache
        Folder of what was drawn before; may be deleted at any time.
    """

    def __init__(self, model: Path, adapters: Mapping[str, Path], cache: Path) -> None:
        self.model, self.adapters, self.cache = model, adapters, cache
        self._pipe: Any = None
        self._loaded: str | None = None
        versions = {name: metadata.version(name) for name in LIBRARIES}
        kinds = ("*.py", "model_index.json", "*/*")  # all that decides an image
        found = [path for kind in kinds for path in model.glob(kind) if path.is_file() and path.suffix != ".pyc"]
        files = sorted(path for path in found if path.parent.name != "volume")
        self._key = [versions, [(path.relative_to(model).as_posix(), _sha256(path)) for path in files]]

    def draw(self, requests: Iterable[Request]) -> list[Sample]:
        """Draw the images of requests, with the model's own steps and guidance.

        Raises
        ------
        ValueError
            A prompt or an adapter does not fit.
        """
        return [self._draw(request) for request in requests]

    def _draw(self, request: Request) -> Sample:
        weights = _sha256(self.adapters[request.adapter] / WEIGHT_NAME) if request.adapter else None
        text = json.dumps([self._key, asdict(request), weights])
        stem = hashlib.sha256(text.encode()).hexdigest()
        png, dicom = (self.cache / f"{stem}{suffix}" for suffix in (".png", ".dcm"))
        if not (png.is_file() and dicom.is_file()):
            self.cache.mkdir(parents=True, exist_ok=True)
            output = self._ready(request.adapter)(request.prompt, modality=request.modality, seed=request.seed)
            part = self.cache / "sample.part"
            notes = png_notes(output.images[0], output.recipes[0])
            output.images[0].save(part, format="PNG", optimize=True, pnginfo=notes)
            part.replace(png)
            output.dicoms[0].save_as(part)
            part.replace(dicom)
        return Sample(request, png.read_bytes(), dicom.read_bytes())

    def _ready(self, adapter: str | None) -> Any:
        """Give the pipeline with this adapter alone."""
        if self._pipe is None:
            from diffusers.utils import logging as diffusers_logging
            from transformers.utils import logging as transformers_logging

            from pipeline import SyntheticDicomPipeline

            diffusers_logging.disable_progress_bar()
            transformers_logging.disable_progress_bar()
            self._pipe = SyntheticDicomPipeline.from_pretrained(self.model)
            self._pipe.set_progress_bar_config(disable=True)
        if adapter != self._loaded:
            self._pipe.unload_lora_weights()
            if adapter is not None:
                self._pipe.load_lora_weights(self.adapters[adapter], adapter_name=adapter)
            self._loaded = adapter
        return self._pipe


def base_requests(count: int, adapters: Sequence[str] = ()) -> list[Request]:
    """Ask for `count` images of each modality of the base, by the adapter of that name if it is among these."""
    return [
        Request(kind, prompts[i % len(prompts)], i, kind, kind if kind in adapters else None)
        for kind, prompts in PROMPTS.items()
        for i in range(count)
    ]


def adapter_requests(name: str, modality: str | None, prompts: Sequence[str], count: int) -> list[Request]:
    """Ask for `count` images of an adapter: of a modality of the base, or of the prompts that its training showed."""
    if name in PROMPTS:
        return [request for request in base_requests(count, [name]) if request.kind == name]
    prompts = list(dict.fromkeys(prompts))
    return [Request(name, prompts[i % len(prompts)], i, modality, name) for i in range(count)]


def write_pictures(samples: Sequence[Sample], folder: Path) -> None:
    """Write PNG files, and `samples.json` that says what each shows."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name, sample in zip(_names(samples), samples, strict=True):
        (folder / name).write_bytes(sample.png)
        rows.append({"file": name} | {key: value for key, value in _row(sample).items() if key != "recipe"})
    recipe = read_recipe(samples[0].header())
    model = {"model_sha256": recipe.model_sha256 if recipe else None}
    _write_json(folder / "samples.json", {"what": "samples", "settings": model, "images": rows})


def write_dataset(samples: Sequence[Sample], folder: Path) -> None:
    """Write the data set's parquet file, and `samples.json` with counts and settings."""
    from datasets import Dataset, Features, Image, Value, disable_progress_bars

    disable_progress_bars()
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for name, sample in zip(_names(samples), samples, strict=True):
        row = _row(sample)
        values = ({"bytes": sample.png, "path": name}, sample.dicom, *(row[column] for column in COLUMNS[2:]))
        for column, value in zip(COLUMNS, values, strict=True):
            columns[column].append(value)
    texts = {name: Value("string") for name in COLUMNS[2:]}
    features = Features({"image": Image(), "dicom": Value("binary"), **texts})
    path = folder / PARQUET
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features=features).to_parquet(path)
    recipe = json.loads(columns["recipe"][0])
    _write_json(
        folder / "samples.json",
        {
            "what": "data set",
            "counts": {"images": len(samples), "by_kind": dict(Counter(sample.request.kind for sample in samples))},
            "settings": {key: recipe[key] for key in ("num_inference_steps", "guidance_scale", "model_sha256")},
            "prompts": list(dict.fromkeys(columns["prompt"])),
        },
    )


def _names(samples: Sequence[Sample]) -> list[str]:
    """Names of PNG files: the kind, and a number within it."""
    counts: Counter[str] = Counter()
    names = []
    for sample in samples:
        names.append(f"{sample.request.kind}-{counts[sample.request.kind]}.png")
        counts[sample.request.kind] += 1
    return names


def _row(sample: Sample) -> dict[str, Any]:
    header = sample.header()
    recipe = read_recipe(header)
    if recipe is None:
        raise ValueError(f"the image of {sample.request.prompt!r} holds no recipe")
    return {
        "prompt": recipe.prompt,
        "modality": recipe.modality,
        "seed": recipe.seed,
        "adapter": sample.request.adapter,
        "sop_instance_uid": str(header.SOPInstanceUID),
        "recipe": recipe.to_json(),
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
