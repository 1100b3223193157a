"""Names of adapters: what one may be called, which ones are shipped, and what `NAME_OR_PATH:WEIGHT` means. No torch."""

import math
import re
from pathlib import Path

WEIGHT_NAME = "pytorch_lora_weights.safetensors"
MAXIMUM_WEIGHT = 2.0

_LORA_FOLDER = Path(__file__).resolve().parents[1] / "lora"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def check_name(name: str) -> str:
    """Give back a name that recipes, DICOM text and peft can all hold; a ValueError for any other."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        shown = repr(name) if len(repr(name)) <= 80 else repr(name)[:77] + "..."
        raise ValueError(
            f"`adapter_name` is {shown}; allowed are 1 to 64 letters, digits, hyphens and underscores, the first a "
            "letter or a digit"
        )
    return name


def fit_name(text: str) -> str:
    """Make a text (a folder's name, a file's name) fit for `check_name`."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-_")[:64] or "adapter"


def is_hub_id(text: str) -> bool:
    """Tell whether a text looks like ORG/NAME, and not like a misspelt path in a folder that is here."""
    return _HUB_ID.fullmatch(text) is not None and not Path(text).parent.is_dir()


def shipped_adapters() -> dict[str, Path]:
    """Give the adapters that lie in the repository's `lora/`, by name; none where the package stands alone."""
    return {path.parent.name: path.parent for path in sorted(_LORA_FOLDER.glob(f"*/{WEIGHT_NAME}"))}


def find_adapter(name: str) -> str:
    """Turn the name of a shipped adapter, a path or a Hub id into what `load_lora_weights` takes.

    Raises
    ------
    ValueError
        If it is none of them.
    """
    shipped = shipped_adapters()
    if name in shipped:
        return str(shipped[name])
    if Path(name).exists() or is_hub_id(name):
        return name
    raise ValueError(
        f"`adapter` is {name!r}; allowed are a folder or .safetensors file that exists, a Hub id such as org/name"
        + (f", and the shipped ones: {', '.join(shipped)}" if shipped else "")
    )


def parse_adapter(text: str) -> tuple[str, float]:
    """Split NAME_OR_PATH[:WEIGHT]; the weight is 1 where none is given.

    Raises
    ------
    ValueError
        If the weight is no number from -2 to 2, or there is no such adapter.
    """
    name, colon, tail = text.rpartition(":")
    if not colon or Path(text).exists():
        return find_adapter(text), 1.0
    try:
        weight = float(tail)
    except ValueError:
        weight = math.nan
    if not -MAXIMUM_WEIGHT <= weight <= MAXIMUM_WEIGHT:
        raise ValueError(f"`adapter` is {text!r}; allowed is NAME_OR_PATH[:WEIGHT] with a weight from -2 to 2")
    return find_adapter(name), weight
