"""What a prompt asks for, as answers that a judge can give; and prompts of finished images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora.captions import CELLS, FINDINGS
from pipeline.dicom_limits import quiet
from pipeline.dicom_profiles import choose_profile
from pipeline.dicom_prompt import parse_prompt
from pipeline.verification import read, recipe_in

from .folders import read_set
from .images import SIZE
from .judge import SIDES

_PLACES = {"HEAD": "ct-head", "BRAIN": "ct-head", "CHEST": "ct-chest"}


@dataclass(frozen=True)
class Request:
    """A prompt, and what it asks for: by task of the judges the answer that they should give."""

    prompt: str
    asked: dict[str, str]


def read_request(prompt: str) -> Request:
    """Find in the words of a prompt what judges can be asked about; what it does not say is not asked.

    Parameters
    ----------
    prompt
        What the user typed. Chest X-rays are always asked for the right way round.
    """
    try:
        modality = choose_profile(prompt).name
    except ValueError:
        return Request(prompt, {})
    facts, text = parse_prompt(prompt), prompt.lower().replace("_", " ")
    asked: dict[str, str | None] = {}
    if modality.startswith("ct-"):
        asked["modality"] = _PLACES.get(facts.body_part or "", modality if modality in _PLACES.values() else None)
    elif modality in ("chest-xray", "brain-mri", "blood-smear"):
        asked["modality"] = modality
    if modality == "chest-xray":
        view = facts.view_position
        asked |= {"view": view if view in ("PA", "AP") else None, "sex": facts.sex, "side": SIDES[0]}
    if modality == "brain-mri":
        asked["plane"] = facts.plane if facts.plane in ("axial", "coronal") else None
        tumours = {name.removeprefix("mri/"): words for name, words in FINDINGS.items() if name.startswith("mri/")}
        asked["brain-tumour"] = _named(text, tumours)
    if modality == "blood-smear" and not re.search(r"\bfield\b|\bcells\b", text):
        asked["blood-cell"] = _named(text, CELLS)  # a field shows many cells: the judge learnt from single ones
        asked["malaria"] = _named(text, {"parasitized": ["parasitised", "parasitized"], "uninfected": ["uninfected"]})
    return Request(prompt, {task: answer for task, answer in asked.items() if answer})


def _named(text: str, names: dict[str, list[str]]) -> str | None:
    """Give the one class that is named by any of its words; None where none or several are."""
    found = {name for name, words in names.items() if any(re.search(rf"\b{re.escape(w.lower())}", text) for w in words)}
    return found.pop() if len(found) == 1 else None


def folder_requests(folder: str | Path, cache: str | Path | None = None) -> tuple[np.ndarray, list[Request]]:
    """Images of a folder, uint8 (N, 256, 256, 3), whose prompts ask something, and these.

    Raises
    ------
    ValueError
        The folder cannot be read, or no prompt in it asks for anything that a judge knows.
    """
    found = read_set(folder, size=SIZE, argument="synthetic", cache=cache)
    prompts = [row.get("text") or _prompt_in(Path(folder) / n) for n, row in zip(found.names, found.rows, strict=True)]
    requests = [read_request(prompt) for prompt in prompts]
    some = [i for i, request in enumerate(requests) if request.asked]
    if not some:
        raise ValueError(
            f"`synthetic` is {str(folder)!r}: no prompt asks for anything that a judge knows; it needs DICOM files "
            "with their recipe, or a `metadata.csv` with a column `text`"
        )
    return found.images[some], [requests[i] for i in some]


def _prompt_in(path: Path) -> str:
    """Prompt in the recipe of a DICOM file, else nothing."""
    try:
        source = read(path)
        with quiet():
            recipe = recipe_in(*source)
    except ValueError:
        return ""
    return recipe.prompt if recipe else ""
