"""What a source of training images holds: one record a file or row, found without decoding pixels.

Names of files and identifiers are kept in memory while reading and in nothing that is returned or raised.
"""

from __future__ import annotations

import csv
import io
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline.dicom_decode import MODALITIES
from pipeline.dicom_limits import MAX_BYTES, ImageInputError, attempt

from .data_headers import Record, as_identifiers, holds_identifier, words_of

# What lies beside images on a disk or an exported CD.
PASSED_OVER = frozenset(
    (".json", ".jsonl", ".csv", ".tsv", ".txt", ".md", ".rst", ".xml", ".yaml", ".yml", ".htm", ".html", ".css", ".js")
    + (".pdf", ".ini", ".inf", ".db", ".log", ".py", ".exe", ".dll", ".jar", ".ico")
)
PASSED_OVER_NAMES = frozenset(("dicomdir", "lockfile", "version", "readme", "licence", "license"))
SPLITS = {"train": "train", "training": "train", "val": "val", "validation": "val", "test": "test"}
MAX_TABLE_BYTES, MAX_ROWS = 256 * 2**20, 1_000_000
GROUP_COLUMNS = ("group_id", "patient_id")


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read: image and caption, group and attribution where there are such."""

    image: str = "image"
    caption: str = "text"
    group: str | None = None
    attribution: str | None = None


@dataclass
class Source:
    """The records of a source; `table` is what errors call the table that its captions stand in."""

    kind: str
    records: list[Record]
    table: str


def list_source(source: str | Path, number: int, named: Columns) -> Source:
    """List what a source holds; `number` is its place on the command line, for errors."""
    folder = Path(source)
    place = f"source {number}"
    if folder.is_dir():
        if not os.access(folder, os.R_OK | os.X_OK):
            raise ValueError(f"`data`: {place} is a folder that may not be opened; check its permissions.")
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            return _from_dataset(_saved_dataset(folder, place), place, named)
        if (folder / "metadata.csv").is_file():
            columns, rows = read_table(folder / "metadata.csv", place)
            if "file_name" in columns or "Series UID" not in columns:  # that one is the list of a TCIA download
                return _from_table(folder, columns, rows, place, named)
        return _from_folder(folder, place, named)
    if folder.exists():
        raise ValueError(f"`data`: {place} is a file; give the folder that it lies in.")
    identifier = str(source)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", identifier) and not identifier.startswith(".") and not folder.parent.exists():
        return _from_dataset(_hub_dataset(identifier, place), place, named)
    raise ValueError(f"`data`: {place} is {identifier!r}; it must be a folder, or the Hub id ORG/NAME of a data set.")


def read_bytes(path: Path, count: int = -1) -> bytes:
    """Read a regular file, or its first bytes; no error repeats the path."""
    absent = "there is no file that can be opened."
    status = attempt(path.stat, absent)
    if not stat.S_ISREG(status.st_mode):
        raise ImageInputError("it is no regular file.")
    if status.st_size > MAX_BYTES:
        raise ImageInputError(f"it has {status.st_size} bytes; at most {MAX_BYTES} are allowed.")

    def read() -> bytes:
        with path.open("rb") as handle:
            return handle.read(count)

    return attempt(read, absent)


def read_table(path: Path, place: str) -> tuple[list[str], list[dict[str, str]]]:
    """Read a CSV table: its columns, and its rows with no value missing."""
    name = f"`{path.name}` of {place}"
    csv.field_size_limit(2**30)
    if attempt(path.stat, f"{name} cannot be read.").st_size > MAX_TABLE_BYTES:
        raise ValueError(f"{name} has more than the {MAX_TABLE_BYTES} bytes allowed.")
    data = attempt(path.read_bytes, f"{name} cannot be read.")
    content = attempt(lambda: data.decode("utf-8-sig"), f"{name} is not UTF-8 text; save it as CSV UTF-8.")
    first = content.partition("\n")[0]
    separator = ";" if ";" in first and "," not in first else ","  # what Excel writes in half of Europe
    lines = attempt(
        lambda: list(
            islice(csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True), MAX_ROWS + 2)
        ),
        f"{name} is no CSV table: a quotation mark is not closed, or the file is damaged.",
    )
    if len(lines) > MAX_ROWS + 1:
        raise ValueError(f"{name} has more than the {MAX_ROWS} rows allowed.")
    table = [line for line in lines if any(value.strip() for value in line)]
    if not table:
        raise ValueError(f"{name} is empty; its first line must name the columns.")
    columns = [column.strip() for column in table[0]]
    for row, line in enumerate(table[1:], 1):
        if len(line) > len(columns):
            raise ValueError(
                f"Row {row} of {name} (the header not counted) has {len(line)} values for {len(columns)} columns; "
                'a text that holds commas must stand in "double quotes".'
            )
    return columns, [dict(zip(columns, line + [""] * (len(columns) - len(line)), strict=True)) for line in table[1:]]


def list_files(folder: Path) -> list[Path]:
    """All files below a folder that may be images, sorted; links are followed, but no folder is entered twice."""
    failed: list[OSError] = []
    seen: set[tuple[int, int]] = set()
    found: list[Path] = []
    for here, folders, names in os.walk(folder, onerror=failed.append, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(here, name)
            for name in names
            if not name.startswith(".")
            and Path(name).suffix.lower() not in PASSED_OVER
            and name.lower() not in PASSED_OVER_NAMES
        ]
    if failed:
        raise ValueError(f"`data`: {len(failed)} folder(s) in it may not be opened; check their permissions.")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _caption(value: Any) -> str:
    return " ".join(str(value).split()) if value is not None else ""


def _group(row: dict[str, Any], column: str | None, place: str) -> str | None:
    """Give the group of a row: people are the same in all sources, other groups only within theirs."""
    for name in (column,) if column else GROUP_COLUMNS:
        value = _caption(row.get(name))
        if value:
            return person_of(value) if name == "patient_id" else f"{place} {name} {value}"
    return None


def person_of(patient_id: str) -> str:
    """Give the key of a person, the same however the identifier is written."""
    return f"person {' '.join(words_of(patient_id))}"


def _split(value: Any, where: str) -> str:
    split = SPLITS.get(str(value).strip().lower())
    if split is None:
        raise ValueError(f"{where} has another `split` than train, val, validation or test.")
    return split


def _modality(value: Any) -> str | None:
    """Keep the standard's terms and names such as chest-xray, nothing freer."""
    name = str(value or "").strip()
    return name if name in MODALITIES or re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) else None


def _fill(record: Record, row: dict[str, Any], named: Columns, place: str, where: str) -> None:
    record.caption = _caption(row.get(named.caption))
    if holds_identifier(record.caption, as_identifiers([_caption(row.get("patient_id"))])):
        raise ValueError(f"{where} has its `patient_id` in the caption; take it out.")
    record.group = _group(row, named.group, place)
    # A `group_id` alone may be a run of similar images; a column that the user names is taken at the user's word.
    person = _caption(row.get("patient_id"))
    record.person = person_of(person) if person and not named.group else None
    record.person_known = record.group is not None and bool(named.group or person)
    record.modality = _modality(row.get("modality"))
    record.licence = _caption(row.get("licence") or row.get("license"))
    record.attribution = _caption(row.get(named.attribution)) if named.attribution else ""


def _need(columns: Iterable[str], named: Columns, where: str) -> None:
    _need_column(columns, None if named.caption == "text" else named.caption, where, "caption_column")
    _need_column(columns, named.group, where, "group_column")
    _need_column(columns, named.attribution, where, "attribution_column")


def _need_column(columns: Iterable[str], name: str | None, where: str, option: str) -> None:
    if name is not None and name not in columns:
        raise ValueError(f"{where} has no column {name!r}, which `{option}` asks for.")


def _from_table(folder: Path, columns: list[str], rows: list[dict[str, str]], place: str, named: Columns) -> Source:
    table = f"`metadata.csv` of {place}"
    if "file_name" not in columns:
        raise ValueError(f"{table} has no column `file_name`; it needs `file_name` and `{named.caption}`.")
    _need(columns, named, table)
    first: dict[str, int] = {}
    records = []
    for number, row in enumerate(rows, 1):
        where = f"Row {number} of {table} (the header not counted)"
        name = _file_name(row, where)
        if name in first:
            raise ValueError(f"{where} names the same file as row {first[name]}; each image has one row.")
        first[name] = number
        record = Record(partial(read_bytes, folder / name), name, number)
        _fill(record, row, named, place, where)
        if row.get("split"):
            record.split = _split(row["split"], where)
        elif "split" in columns and any(r["split"] for r in rows):
            raise ValueError(f"{where} has no `split`; every row must say train, val or test, or none.")
        records.append(record)
    return Source("imagefolder", records, table)


def _file_name(row: dict[str, str], where: str) -> str:
    name = row["file_name"].strip().replace("\\", "/")
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError(f"{where} has a `file_name` that is empty or leads out of the folder.")
    return path.as_posix()


def _from_folder(folder: Path, place: str, named: Columns) -> Source:
    records = {
        path.relative_to(folder).as_posix(): Record(partial(read_bytes, path), path.relative_to(folder).as_posix())
        for path in list_files(folder)
    }
    table = f"`captions.csv` of {place}"
    if (folder / "captions.csv").is_file():
        columns, rows = read_table(folder / "captions.csv", place)
        for column in ("file_name", named.caption):
            if column not in columns:
                raise ValueError(f"{table} has no column `{column}`; it needs `file_name` and `{named.caption}`.")
        _need(columns, named, table)
        for number, row in enumerate(rows, 1):
            where = f"Row {number} of {table} (the header not counted)"
            record = records.get(_file_name(row, where))
            if record is None:
                raise ValueError(f"{where} names a file that is not in the folder or is no image.")
            if record.row:
                raise ValueError(f"{where} names the same file as row {record.row}; each image has one row.")
            record.row = number
            _fill(record, row, named, place, where)
    return Source("folder", list(records.values()), table)


def _saved_dataset(folder: Path, place: str) -> Any:
    import datasets

    message = f"`data`: {place} is a folder of a saved data set that `datasets` cannot load."
    return attempt(lambda: datasets.load_from_disk(str(folder)), message)


def _hub_dataset(identifier: str, place: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(identifier)
    except Exception as error:  # offline, absent, private, of many configurations: the library says which
        raise ValueError(
            f"`data`: {place} is {identifier!r}, which is no folder here, and as a data set of the Hub it cannot be "
            f"loaded ({type(error).__name__})."
        ) from error


def _from_dataset(data: Any, place: str, named: Columns) -> Source:
    import datasets

    parts = dict(data) if isinstance(data, dict) else {"": data}
    table = f"the data set of {place}"
    records: list[Record] = []
    for name, part in parts.items():
        _need_column(part.column_names, named.image, table, "image_column")
        _need(part.column_names, named, table)
        if isinstance(part.features[named.image], datasets.Image):
            part = part.cast_column(named.image, datasets.Image(decode=False))
        kind = part.features[named.image]
        while hasattr(kind, "feature"):
            kind = kind.feature  # of the values in lists of lists
        dtype = getattr(kind, "dtype", None)
        wanted = {
            named.caption,
            named.group,
            named.attribution,
            *GROUP_COLUMNS,
            "split",
            "modality",
            "licence",
            "license",
        }
        rows = part.select_columns([column for column in part.column_names if column in wanted])
        for index in range(len(part)):
            row = rows[index] if rows.column_names else {}
            number = len(records) + 1
            where = f"Row {number} of {table}"
            record = Record(partial(_cell, part, index, named.image, dtype), f"row {number}", number)
            _fill(record, row, named, place, where)
            if len(parts) > 1 or row.get("split"):
                record.split = _split(row.get("split") or name, where)
            records.append(record)
    return Source("dataset", records, table)


def _cell(part: Any, index: int, column: str, dtype: str | None, _: int = -1) -> Any:
    """Give an image of a data set as `read_image` takes it."""
    value = attempt(lambda: part[index][column], "the row cannot be read.")
    if isinstance(value, dict) and "bytes" in value:
        value = value["bytes"] if value["bytes"] is not None else read_bytes(Path(value["path"] or ""))
    if isinstance(value, list):
        return attempt(lambda: np.asarray(value, dtype), "the row's values are no image.")
    if isinstance(value, str) or value is None:
        raise ImageInputError("the row holds no image.")
    return value
