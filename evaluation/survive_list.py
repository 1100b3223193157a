"""A list of prompts, the command that makes it, and whether all of it lies whole in a folder."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydicom
from tqdm.auto import tqdm

from pipeline.verification import verify

ROOT = Path(__file__).resolve().parents[1]
MANIFEST = "manifest.csv"
PROMPTS = (
    "chest X-ray, PA view, normal lungs",
    "chest CT, lung window, lung cancer",
    "axial T1 brain MRI with contrast, meningioma",
    "blood smear, neutrophil",
    "head CT, brain window",
)


def command(rows: Path, out: Path, model: str, *more: str) -> list[str]:
    """Give the command that makes a list."""
    own = ["--from-csv", str(rows), "--out", str(out), "--model", model, "--device", "cpu"]
    return [sys.executable, "-m", "pipeline", "generate", *own, *more]


def write_list(path: Path, count: int, steps: int, prompts: Sequence[str] = PROMPTS) -> list[tuple[str, int]]:
    """Write a list of prompts with seeds from 1; gives both, row by row."""
    rows = [(prompts[number % len(prompts)], number + 1) for number in range(count)]
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("prompt", "seed", "steps"), *((prompt, seed, steps) for prompt, seed in rows)])
    return rows


def looked_through(folder: Path, rows: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Hold a folder against its list: each row one whole DICOM file, told once in the manifest, and nothing else.

    Returns
    -------
    dict
        `whole`: images that pydicom decodes, that `verify` passes and whose recipe is their row's; `lost`: rows
        without one; `doubled`: images beyond one a row, or lines beyond one in the manifest; `half_written`: DICOM
        files that are not whole; `stray`: names of what else is there.
    """
    with open(folder / MANIFEST, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    told = Counter(int(line["row"]) for line in lines)
    named = {line["file"]: int(line["row"]) for line in lines}
    images: Counter[int] = Counter()
    half: list[str] = []
    stray: list[str] = []
    by_request = {row: number for number, row in enumerate(rows, 1)}
    for path in tqdm(sorted(folder.rglob("*")), desc="look", mininterval=5):
        if path.name == MANIFEST and path.parent == folder:
            continue
        if not path.is_file() or path.parent != folder or path.suffix != ".dcm":
            stray.append(path.relative_to(folder).as_posix())
            continue
        number = _row_of(path, by_request)
        if number is None:
            half.append(path.name)
        elif named.get(path.name) != number:
            stray.append(path.name)
        images[number or 0] += 1
    numbers = range(1, len(rows) + 1)
    return {
        "whole": sum(images[number] == 1 and told[number] == 1 for number in numbers),
        "lost": sum(not images[number] or not told[number] for number in numbers),
        "doubled": sum(max(images[number], told[number]) > 1 for number in numbers),
        "half_written": half,
        "stray": sorted(stray)[:20],
    }


def whole(found: dict[str, Any]) -> bool:
    """Whether `looked_through` found all well."""
    return not any(found[name] for name in ("lost", "doubled", "half_written", "stray"))


def _row_of(path: Path, by_request: dict[tuple[str, int], int]) -> int | None:
    """Give the row that a whole file is of; None where it is not whole, or of no row."""
    try:
        found = verify(path)
        dataset = pydicom.dcmread(path)
        decoded = dataset.pixel_array.size
    except Exception:  # whatever a decoder says: it is not whole
        return None
    if not found.ok or found.recipe is None or not decoded:
        return None
    return by_request.get((found.recipe.prompt, found.recipe.seed))
