"""Where the volume model lies, and how it is loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "volume"
"""The embedded model; its code lies there too, as the folder is a Hub repository of its own."""
CLASS = "SyntheticDicomVolumePipeline"


def is_model(place: str | os.PathLike[str]) -> bool:
    """Tell whether a folder holds a volume model."""
    try:
        index = json.loads((Path(place) / "model_index.json").read_text(encoding="utf-8"))
        name = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return (name[-1] if isinstance(name, list) and name else name) == CLASS


def load(place: str | os.PathLike[str], device: str | None = None) -> Any:
    """Load a volume model from a folder or by a Hub id, with the code that lies here.

    Raises
    ------
    ValueError
        There is no volume model there, or the device cannot be used.
    """
    if Path(place).is_dir() and not is_model(place):
        raise ValueError(f"`model` is {str(place)!r}, which holds no volume model")
    try:
        from .volume import SyntheticDicomVolumePipeline
    except ImportError as error:
        raise ValueError(
            "the code of the volume model is not here; it comes with its own repository, and with the whole project"
        ) from error
    pipe = SyntheticDicomVolumePipeline.from_pretrained(place)
    pipe.set_progress_bar_config(disable=True)
    try:
        pipe.to(device or "cpu")
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`device` is {device!r}, which cannot be used here") from error
    return pipe
