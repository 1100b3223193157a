"""Numbers for the cards: read from JSON files by dotted key, never typed, each written down with where it is from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


class MissingNumber(ValueError):
    """A card wants a number that no file holds."""


class Facts:
    """What one card may say: the values of JSON files, and the record of those that it took.

    A file is named by its path from the project's root, or from the card's own folder if it begins with `./`. A key is
    dotted (`synthetic.kid`, `packs.0.images`); `packs.*.images` is that of all in a list, which `number` adds up.

    Parameters
    ----------
    root
        The project.
    folder
        The folder that the card is for.

    Attributes
    ----------
    taken : list of dict
        `text` as the card has it, raw `value`, `file` and `key` of each value that was taken.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        self.taken: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        """Name of the repository that the card is for, also while its folder has a temporary one."""
        return self.folder.name.removesuffix(".part")

    def exists(self, file: str) -> bool:
        """Tell whether there is such a file; what is not measured yet is said in words."""
        return self._path(file).is_file()

    def value(self, file: str, key: str) -> Any:
        """Give what stands in a file, unformatted and unrecorded: for loops and conditions.

        Raises
        ------
        MissingNumber
            There is no such file, or no such key in it.
        """
        path = self._path(file)
        if not path.is_file():
            raise MissingNumber(f"{self._name(file)}: there is no such file, but a card needs its key {key!r}")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise MissingNumber(f"{self._name(file)}: no JSON ({error})") from error
        return self._walk(found, key.split("."), self._name(file), key)

    def number(self, file: str, key: str, spec: str = ",", scale: float = 1) -> str:
        """Give a number as text, by a format specification, after multiplying it with `scale`.

        Raises
        ------
        MissingNumber
            It is not there or no finite number.
        """
        value = self.value(file, key)
        if "*" in key.split(".") and all(type(part) in (int, float) for part in value):
            value = sum(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise MissingNumber(f"{self._name(file)}: key {key!r} is {value!r}, which is no number")
        return self._take(format(value * scale if scale != 1 else value, spec), value, file, key)

    def rounded(self, file: str, key: str, digits: int = 4) -> float:
        """Give a number as a number, for front matter."""
        return float(self.number(file, key, f".{digits}f"))

    def text(self, file: str, key: str) -> str:
        """Give a text, or the texts of a list with semicolons between, fit for a line of a table.

        Raises
        ------
        MissingNumber
            It is not there or no text.
        """
        value = self.value(file, key)
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, str) for part in parts):
            raise MissingNumber(f"{self._name(file)}: key {key!r} is {value!r}, which is no text")
        return self._take(" ".join("; ".join(parts).split()).replace("|", "\\|"), value, file, key)

    def _take(self, text: str, value: Any, file: str, key: str) -> str:
        record = {"text": text, "value": value, "file": self._name(file), "key": key}
        if record not in self.taken:
            self.taken.append(record)
        return text

    def _path(self, file: str) -> Path:
        return self.folder / file[2:] if file.startswith("./") else self.root / file

    def _name(self, file: str) -> str:
        return f"{self.name}/{file[2:]}" if file.startswith("./") else file

    def _walk(self, found: Any, parts: list[str], file: str, key: str) -> Any:
        for index, part in enumerate(parts):
            if part == "*" and isinstance(found, list):
                return [self._walk(item, parts[index + 1 :], file, key) for item in found]
            if isinstance(found, dict) and part in found:
                found = found[part]
            elif isinstance(found, list) and part.isdigit() and int(part) < len(found):
                found = found[int(part)]
            else:
                raise MissingNumber(f"{file}: no key {key!r}")
        return found
