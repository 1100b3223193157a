"""The folder of an adapter while it is trained: checkpoint, settings and log, and how it becomes whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from .checkpoint import log_line
from .config import AdapterConfig

WEIGHTS = "pytorch_lora_weights.safetensors"


class RunFolder:
    """Knows what lies in the output folder; writes there under temporary names.

    The weights come last into the folder and the checkpoint goes after that: a folder with weights and no checkpoint is
    finished, one with a checkpoint is not.
    """

    def __init__(self, config: AdapterConfig) -> None:
        self.out, self.overwrite = config.out, config.overwrite
        self.checkpoint = self.out / "checkpoint"
        self.stem = self.checkpoint / "state"
        self.log = self.out / "log.jsonl"
        self.samples = self.out / "samples"
        self.removed = self.out / "checkpoint.removed"

    def check(self) -> None:
        """Refuse a folder that is not ours to write in, before anything is read.

        Raises
        ------
        ValueError
            It holds a finished adapter, or something else.
        """
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"`out` is {str(self.out)!r}, which is a file; allowed is a folder")
        others = [] if not self.checkpoint.is_dir() else [path.name for path in self.checkpoint.iterdir()]
        if others and not {"settings.json", "settings.json.part"} & set(others):
            raise ValueError(f"`out` is {str(self.out)!r}, whose folder `checkpoint` is not ours; give another folder")
        shutil.rmtree(self.removed, ignore_errors=True)
        if self.checkpoint.is_dir() or not self.out.is_dir() or not any(self.out.iterdir()):
            return
        if not (self.out / WEIGHTS).is_file():
            raise ValueError(f"`out` is {str(self.out)!r}, which holds other files; allowed is a new or empty folder")
        if not self.overwrite:
            raise ValueError(f"`out` is {str(self.out)!r}, a finished adapter; --overwrite replaces it")

    def open(self, settings: dict[str, Any]) -> None:
        """Begin a run, or go on with one of the same settings.

        Raises
        ------
        ValueError
            The checkpoint was made with other settings.
        """
        path = self.checkpoint / "settings.json"
        wanted = json.loads(json.dumps(settings))
        if path.is_file():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored == wanted:
                return
            names = [name for name in {**stored, **wanted} if stored.get(name) != wanted.get(name)]
            if not self.overwrite:
                known = {"data_sha256": "data", "base": "model"}
                named = ", ".join(f"`{known.get(name, name)}`" for name in names)
                raise ValueError(
                    f"`out` is {str(self.out)!r}, whose checkpoint was made with other values of {named}; give the "
                    "same to go on, another folder, or --overwrite to begin anew"
                )
        shutil.rmtree(self.checkpoint, ignore_errors=True)
        shutil.rmtree(self.samples, ignore_errors=True)
        self.log.unlink(missing_ok=True)
        self.checkpoint.mkdir(parents=True)
        write_text(path, json.dumps(wanted, indent=1))

    @property
    def finished(self) -> bool:
        """Whether a whole adapter lies here."""
        return (self.out / WEIGHTS).is_file() and not self.checkpoint.is_dir()

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        return self.stem.with_name(self.stem.name + ".safetensors").is_file()

    def read_log(self, step: int | None = None) -> list[dict[str, Any]]:
        """Lines of the log, up to a step: what was written after the checkpoint of that step happens again."""
        lines: list[dict[str, Any]] = []
        for line in self.log.read_text(encoding="utf-8").splitlines() if self.log.is_file() else ():
            try:
                record = json.loads(line)
            except ValueError:  # a line that a kill broke off
                break
            if step is not None and record["step"] > step:
                break
            lines.append(record)
        return lines

    def write_log(self, lines: list[dict[str, Any]]) -> None:
        """Replace the log."""
        write_text(self.log, "".join(json.dumps(record) + "\n" for record in lines))

    def add_to_log(self, record: dict[str, Any]) -> None:
        """Append a line."""
        log_line(self.log, record)

    def publish(self, part: Path) -> None:
        """Move finished files from a folder below the checkpoint into place, the weights last; drop the checkpoint."""
        for path in sorted(part.iterdir(), key=lambda path: path.name == WEIGHTS):
            path.replace(self.out / path.name)
        self.checkpoint.rename(self.removed)  # at once: half a checkpoint would be taken for a run to go on with
        shutil.rmtree(self.removed)


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
