"""The list of prompts that a batch works through, and the manifest of what came of it. No torch."""

from __future__ import annotations

import csv
import errno
import io
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from . import dicom_provenance

COLUMNS = ("prompt", "negative_prompt", "modality", "seed", "steps", "guidance", "count", "adapter")
MANIFEST = "manifest.csv"
MANIFEST_COLUMNS = ("row", "status", "file", "UID", "seed", "error")
MAX_BYTES, MAX_ROWS, MAX_CELL, MAX_COUNT, MAX_IMAGES = 64 * 2**20, 1_000_000, 4000, 10_000, 1_000_000
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Row:
    """One row of the list; `seed` is that of its first image, `first_instance` and `series` are its place in the study.

    `number` counts rows from 1, without the header. What is None is the model's own.
    """

    number: int
    prompt: str
    negative_prompt: str | None
    modality: str | None
    seed: int
    steps: int | None
    guidance: float | None
    count: int
    adapter: str | None
    first_instance: int = 1
    series: int = 1

    def request(self) -> tuple[object, ...]:
        """Everything but seed and count."""
        return self.prompt, self.negative_prompt, self.modality, self.steps, self.guidance, self.adapter


@dataclass(frozen=True)
class Entry:
    """One image in the manifest; `seed` is the one that was asked for."""

    row: int
    status: str
    file: str
    UID: str
    seed: int
    error: str = ""


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Read and check the whole list, before anything is made.

    Comma, semicolon and tab are understood, as is the byte order mark that office programs write. A row without a seed
    gets one that follows from its words; of equal rows without a seed each gets another.

    Raises
    ------
    ValueError
        In one sentence that names row and column.
    """
    text = _text(Path(path))
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    limit = csv.field_size_limit(MAX_BYTES)
    try:
        table = _table(text, delimiter)
    finally:
        csv.field_size_limit(limit)
    if not table:
        raise ValueError("`--from-csv` is an empty file; its first row must name the columns, `prompt` among them")
    header = [cell.strip().lower() for cell in table[0]]
    while header and not header[-1]:  # office programs add empty columns
        header.pop()
    if "prompt" not in header:
        raise ValueError("`--from-csv` has no column `prompt`; its first row must name the columns")
    for column in header:
        if column not in COLUMNS:
            raise ValueError(f"`--from-csv` has a column {column!r:.60}; allowed are {', '.join(COLUMNS)}")
        if header.count(column) > 1:
            raise ValueError(f"`--from-csv` has the column `{column}` twice")
    rows: list[Row] = []
    without_seed: Counter[tuple[object, ...]] = Counter()
    for number, cells in enumerate(table[1:], 1):
        if any(cell.strip() for cell in cells):
            rows.append(_row(number, header, cells, without_seed))
    if not rows:
        raise ValueError("`--from-csv` has no rows below its header")
    if sum(row.count for row in rows) > MAX_IMAGES:
        raise ValueError(f"`--from-csv` asks for more than the {MAX_IMAGES} images allowed")
    return _placed(rows)


def _text(path: Path) -> str:
    if not path.is_file():
        raise ValueError("`--from-csv` is no file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"`--from-csv` has {path.stat().st_size} bytes; allowed are {MAX_BYTES}")
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError("`--from-csv` is in UTF-16; save it as CSV in UTF-8")
    if b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise ValueError(f"`--from-csv` holds a NUL byte in line {line}; a CSV file is text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"`--from-csv` is not UTF-8 in line {line}; save it as CSV in UTF-8") from error


def _table(text: str, delimiter: str) -> list[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    table: list[list[str]] = []
    try:
        for cells in reader:
            table.append(cells)
            if len(table) > MAX_ROWS + 1:
                raise ValueError(f"`--from-csv` has more than the {MAX_ROWS} rows allowed")
    except csv.Error as error:
        raise ValueError(
            f"`--from-csv`: row {max(len(table), 1)} is no CSV ({error}); are its quotes closed?"
        ) from error
    return table


def _row(number: int, header: Sequence[str], cells: Sequence[str], without_seed: Counter[tuple[object, ...]]) -> Row:
    where = f"`--from-csv`: row {number}"
    if any(cell.strip() for cell in cells[len(header) :]):
        raise ValueError(
            f"{where} has {len(cells)} cells, but there are {len(header)} columns; put texts with commas between quotes"
        )
    given = {column: cell.strip() for column, cell in zip(header, cells, strict=False)}
    for column, cell in given.items():
        if len(cell) > MAX_CELL:
            raise ValueError(f"{where}, column `{column}` has {len(cell)} characters; at most {MAX_CELL} are allowed")
        # Office programs put no-break spaces into texts; Python does not call those printable.
        if any(not c.isprintable() and c not in "\r\n\t" and unicodedata.category(c) != "Zs" for c in cell):
            raise ValueError(f"{where}, column `{column}` holds control characters")
    if not given.get("prompt"):
        raise ValueError(f"{where}, column `prompt` is empty")

    def whole(column: str, low: int, high: int) -> int | None:
        cell = given.get(column, "")
        if not cell:
            return None
        if not (cell.isascii() and cell.isdigit() and len(cell) < 20 and low <= int(cell) <= high):
            raise ValueError(
                f"{where}, column `{column}` is {cell[:40]!r}; allowed is a whole number from {low} to {high}"
            )
        return int(cell)

    guidance = None
    if given.get("guidance"):
        try:
            guidance = float(given["guidance"].replace(",", "."))
        except ValueError:
            guidance = -1.0
        if not 0 <= guidance <= 100:
            raise ValueError(
                f"{where}, column `guidance` is {given['guidance'][:40]!r}; allowed is a number from 0 to 100"
            )
    steps, seed = whole("steps", 1, 1000), whole("seed", 0, MAX_SEED - MAX_COUNT)
    negative, modality, adapter = (given.get(name) or None for name in ("negative_prompt", "modality", "adapter"))
    count = whole("count", 1, MAX_COUNT) or 1
    row = Row(number, given["prompt"], negative, modality, seed or 0, steps, guidance, count, adapter)
    if seed is None:
        turn = without_seed[row.request()]
        without_seed[row.request()] += 1
        digest = dicom_provenance.digest_of("seed of a row", *row.request(), turn)
        row = replace(row, seed=int(digest[:8], 16))
    return row


def _placed(rows: Sequence[Row]) -> list[Row]:
    """Refuse images that are asked for twice, and give each row its place in its series."""
    placed: list[Row] = []
    seen: dict[tuple[object, ...], dict[int, int]] = {}
    series: dict[tuple[object, ...], int] = {}
    for row in rows:
        known = seen.setdefault(row.request(), {})
        for seed in range(row.seed, row.seed + row.count):
            if seed in known:
                raise ValueError(
                    f"`--from-csv`: row {row.number}, column `seed` asks for the image of row {known[seed]} again (the "
                    f"same words and seed {seed}); give it another seed, or none"
                )
        which = series.setdefault(row.request(), len(series) + 1)
        placed.append(replace(row, first_instance=len(known) + 1, series=which))
        known.update(dict.fromkeys(range(row.seed, row.seed + row.count), row.number))
    return placed


class Manifest:
    """`manifest.csv`: a line an image, appended as soon as the image is there; one process writes it.

    A line that a kill has cut short is dropped when the file is next opened.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / MANIFEST
        self.entries: dict[tuple[int, int], Entry] = {}
        if self._path.exists():
            whole = self._path.read_bytes().rpartition(b"\n")[0].decode("utf-8", "replace")
            with suppress(csv.Error):  # damaged from there on: images that are there are found without it
                for cells in csv.reader(io.StringIO(whole, newline="")):
                    if len(cells) == len(MANIFEST_COLUMNS) and _is_number(cells[0]) and _is_number(cells[4]):
                        self._keep(Entry(int(cells[0]), cells[1], cells[2], cells[3], int(cells[4]), cells[5]))

    def _keep(self, entry: Entry) -> None:
        self.entries[entry.row, entry.seed] = entry

    def of_row(self, row: Row) -> list[str]:
        """Files that were made for a row, as far as is known."""
        seeds = range(row.seed, row.seed + row.count)
        found = [self.entries.get((row.number, seed)) for seed in seeds]
        return [entry.file for entry in found if entry is not None and entry.file]

    def open(self, rows: Sequence[Row]) -> None:
        """Write what is known of these rows anew, in their order and whole, and drop the rest."""
        wanted = [(row.number, seed) for row in rows for seed in range(row.seed, row.seed + row.count)]
        self.entries = {key: self.entries[key] for key in wanted if key in self.entries}
        part = self._path.with_name(f".{MANIFEST}.part")
        try:
            with open(part, "w", encoding="utf-8", newline="") as file:
                file.write(_line(MANIFEST_COLUMNS))
                file.writelines(_line(asdict(entry).values()) for entry in self.entries.values())
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self._path)
        finally:
            part.unlink(missing_ok=True)

    def add(self, entry: Entry) -> None:
        """Append a line, or leave the file as it was."""
        if self.entries.get((entry.row, entry.seed)) == entry:
            return
        line = _line(asdict(entry).values()).encode()
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            before = os.fstat(file).st_size
            try:
                if os.write(file, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file)
            except OSError:
                os.ftruncate(file, before)
                raise
        finally:
            os.close(file)
        self._keep(entry)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def _line(cells: Iterable[object]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow([" ".join(str(cell).split()) for cell in cells])
    return out.getvalue()
