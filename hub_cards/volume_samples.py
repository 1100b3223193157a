"""Sample volumes for the card of the volume model: three views of each, with its labels below."""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.dicom_files import png_notes
from pipeline.volume_dicom import recipe_of
from pipeline.volume_models import load
from pipeline.volume_pictures import sheet_of

from .samples import LIBRARIES

# Prompts that any volume model reads; `{}` is what the model draws.
PROMPTS = ("{}", "{}, all parts small", "{}, all parts large")


def write_volume_pictures(model: Path, folder: Path, cache: Path) -> None:
    """Draw a volume of each prompt and write PNG files, and `samples.json` that says what each shows.

    What was drawn before with the same model, code and libraries is taken from `cache`, so that publishing again
    commits nothing.
    """
    files = sorted(
        path for path in model.rglob("*") if path.is_file() and path.suffix in (".py", ".json", ".safetensors")
    )
    versions = {name: metadata.version(name) for name in LIBRARIES}
    parts = [(path.relative_to(model).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
    stem = hashlib.sha256(json.dumps([versions, parts, PROMPTS]).encode()).hexdigest()
    kept = cache / f"volume-{stem}"
    if not kept.is_dir():
        part = cache / f"volume-{stem}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _draw(model, part)
        part.rename(kept)
    shutil.copytree(kept, folder)


def _draw(model: Path, folder: Path) -> None:
    pipe = load(model)
    subject = pipe.config.subject["description"]
    rows: list[dict[str, Any]] = []
    for seed, prompt in enumerate(PROMPTS):
        output = pipe(prompt.format(subject.removeprefix("a ")), seed=seed)
        recipe = recipe_of(output, 0, subject)
        assert recipe.volume is not None
        picture = sheet_of(output.volumes[0], output.masks[0], recipe.volume)
        name = f"volume-{seed}.png"
        picture.save(folder / name, optimize=True, pnginfo=png_notes(picture, recipe))
        sizes = {"requested": output.covariates[0], "obtained": output.obtained[0]}
        rows.append({"file": name, "prompt": recipe.prompt, "seed": seed, **sizes})
    settings = {
        "model_sha256": pipe.model_sha256,
        "shape": list(pipe.shape),
        "spacing": pipe.config.geometry["spacing"],
    }
    text = json.dumps({"what": "volumes", "settings": settings, "images": rows}, indent=1) + "\n"
    (folder / "samples.json").write_text(text, encoding="utf-8")
