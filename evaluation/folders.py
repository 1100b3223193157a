"""Anyone's images as one set: a flat folder, one subfolder a class, or an imagefolder with a `metadata.csv`.

DICOM files and pictures alike. The layouts of the Kaggle data sets that the literature uses are read as they are
downloaded: `Training/glioma/*.jpg` beside `Testing/glioma/*.jpg`, or `COVID/*.png` beside `non-COVID/*.png`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from lora.data import squared
from lora.data_headers import NoImageError, Record, examine
from lora.data_sources import GROUP_COLUMNS, SPLITS, list_files, person_of, read_bytes, read_table
from lora.data_split import number_people
from pipeline.dicom_input import ImageInputError, read_image

FOLDER_SPLITS = {**SPLITS, "testing": "test", "valid": "val"}
LARGEST_SIZE = 2048


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with what is known of each.

    Attributes
    ----------
    images : numpy.ndarray
        uint8 (N, size, size, 3), squared without squashing.
    labels : tuple of str or None
        Class of each image; None where the folder has no classes.
    groups : numpy.ndarray
        int64 (N,): images of one number are of one person or group, by `group_id` or `patient_id`, else by the
        PatientID of a DICOM file, else each its own; images with equal pixels always share one.
    names : tuple of str
        Path of each below the folder.
    splits : tuple of str
        "train", "val" or "test" of each, or "" where the folder says nothing.
    rows : tuple of dict
        The row of `metadata.csv` of each; empty dicts where there is none.
    """

    images: np.ndarray
    labels: tuple[str, ...] | None
    groups: np.ndarray
    names: tuple[str, ...]
    splits: tuple[str, ...]
    rows: tuple[dict[str, str], ...]

    def __len__(self) -> int:
        """Give the number of images."""
        return len(self.images)

    @property
    def classes(self) -> tuple[str, ...]:
        """Distinct labels in alphabetical order; none where there are no labels."""
        return tuple(sorted(set(self.labels or ())))

    def take(self, chosen: Sequence[int] | np.ndarray) -> ImageSet:
        """Some of the images, by index or by a bool mask, in the order asked for."""
        where = np.arange(len(self))[np.asarray(chosen)] if len(chosen) else np.zeros(0, int)
        return replace(
            self,
            images=np.asarray(self.images)[where],
            labels=None if self.labels is None else tuple(self.labels[i] for i in where),
            groups=self.groups[where],
            names=tuple(self.names[i] for i in where),
            splits=tuple(self.splits[i] for i in where),
            rows=tuple(self.rows[i] for i in where),
        )


@dataclass
class _Item:
    path: Path
    name: str
    label: str = ""
    split: str = ""
    group: str | None = None
    person: str | None = None
    row: dict[str, str] | None = None
    number: int = 0


def read_set(
    folder: str | Path,
    *,
    size: int,
    split: str | None = None,
    label_column: str = "label",
    argument: str = "folder",
    cache: str | Path | None = None,
) -> ImageSet:
    """Read a folder of images, in order of their names or of the rows of `metadata.csv`.

    Parameters
    ----------
    folder
        Flat; or one subfolder a class, these perhaps below `train`, `test` and the like; or with a `metadata.csv`
        that has a column `file_name`, and may have `label`, `split`, `group_id` or `patient_id`, and others.
    size
        Side of the squared images in pixels, 1 to 2048.
    split
        "train", "val" or "test"; None for all.
    label_column
        Column of `metadata.csv` that holds the classes.
    argument
        What errors call the folder.
    cache
        Folder that keeps the squared images for the next time.

    Raises
    ------
    ValueError
        No such folder or split, no image in it, an image that cannot be read (told by its place among the files), or
        a layout that is none of these.
    """
    folder = Path(folder)
    if not 1 <= size <= LARGEST_SIZE:
        raise ValueError(f"`size` is {size}: allowed are 1 to {LARGEST_SIZE} pixels")
    if split not in (None, "train", "val", "test"):
        raise ValueError(f"`split` is {split!r}: allowed are train, val, test or none")
    if not folder.is_dir():
        raise ValueError(f"`{argument}` is {str(folder)!r}: there is no such folder")
    table = (folder / "metadata.csv").is_file()
    items = _from_table(folder, label_column, argument) if table else _from_folder(folder, argument)
    if not items:
        raise ValueError(f"`{argument}` is {str(folder)!r}: the folder holds no image")
    if split is not None:
        found = sorted({item.split for item in items})
        items = [item for item in items if item.split == split]
        if not items:
            said = ", ".join(name or "(none)" for name in found)
            raise ValueError(f"`{argument}` is {str(folder)!r}: it has no split {split!r}, only {said}")
    items = _with_people(items, argument)
    images = _read(items, size, argument, Path(cache) if cache else None)
    keys = []
    for number, (item, image) in enumerate(zip(items, images, strict=True)):
        # Flat images are alike in all people; any other two with equal pixels are copies of one.
        copies = [] if image.min() == image.max() else [f"pixels {hashlib.sha256(image.tobytes()).hexdigest()}"]
        keys.append([item.group or f"image {number}", *([item.person] if item.person else []), *copies])
    return ImageSet(
        images,
        tuple(item.label for item in items) if any(item.label for item in items) else None,
        number_people(keys),
        tuple(item.name for item in items),
        tuple(item.split for item in items),
        tuple(item.row or {} for item in items),
    )


def _from_table(folder: Path, label_column: str, argument: str) -> list[_Item]:
    columns, rows = read_table(folder / "metadata.csv", f"`{argument}`")
    if "file_name" not in columns:
        raise ValueError(f"`metadata.csv` of `{argument}` has no column `file_name`; every image needs one")
    if label_column not in columns and label_column != "label":
        raise ValueError(f"`label_column` is {label_column!r}: `metadata.csv` has {', '.join(columns)}")
    items = []
    for row in rows:
        name = Path(row["file_name"].strip())
        if name.is_absolute() or ".." in name.parts or not name.parts:
            raise ValueError(f"`metadata.csv` of `{argument}` has a `file_name` that leads out of the folder")
        group = next((f"{column} {row[column]}" for column in GROUP_COLUMNS if row.get(column)), None)
        split = row.get("split", "").strip().lower()
        if split and split not in FOLDER_SPLITS:
            raise ValueError(f"`metadata.csv` of `{argument}` has another `split` than train, val and test")
        label = row.get(label_column, "").strip()
        person = person_of(row["patient_id"]) if row.get("patient_id") else None
        items.append(_Item(folder / name, name.as_posix(), label, FOLDER_SPLITS.get(split, ""), group, person, row))
    return items


def _from_folder(folder: Path, argument: str) -> list[_Item]:
    items = [_Item(path, path.relative_to(folder).as_posix()) for path in list_files(folder)]
    parts = [item.name.split("/")[:-1] for item in items]
    while parts and parts[0] and len({tuple(part[:1]) for part in parts}) == 1 and all(len(part) > 1 for part in parts):
        parts = [part[1:] for part in parts]  # a folder that only wraps others, as in an unpacked archive
    if parts and all(part and part[0].lower() in FOLDER_SPLITS for part in parts):
        for item, part in zip(items, parts, strict=True):
            item.split = FOLDER_SPLITS[part[0].lower()]
        parts = [part[1:] for part in parts]
    beside = sum(not part for part in parts)
    if 0 < beside < len(parts):
        raise ValueError(
            f"`{argument}` is {str(folder)!r}: {beside} images lie beside subfolders that hold others; allowed are one "
            "subfolder a class, or no subfolder"
        )
    for item, part in zip(items, parts, strict=True):
        item.label = part[0] if part else ""
    return items


def _with_people(items: list[_Item], argument: str) -> list[_Item]:
    """Add the person of each DICOM file, and leave out sound DICOM files that are no picture (reports, plans)."""
    kept = []
    for number, item in enumerate(items, 1):
        item.number = number
        record = Record(partial(read_bytes, item.path), item.name, group=item.group, person=item.person)
        try:
            examine(record)
        except NoImageError:
            continue
        if record.reason:
            raise ValueError(_unreadable(argument, number, len(items), record.reason))
        item.group, item.person = record.group, record.person
        kept.append(item)
    if not kept:
        raise ValueError(f"`{argument}`: the {len(items)} DICOM files hold no picture")
    return kept


def _read(items: Sequence[_Item], size: int, argument: str, cache: Path | None) -> np.ndarray:
    stored = None
    if cache:
        status = [(item.name, item.path.stat().st_size, item.path.stat().st_mtime_ns) for item in items]
        stored = cache / f"set-{hash_of([size, status])}.npy"
        if stored.is_file():
            return np.load(stored)
    images = np.empty((len(items), size, size, 3), np.uint8)
    for number, item in enumerate(tqdm(items, desc=f"reading {argument} images", mininterval=2)):
        try:
            images[number] = squared(read_image(item.path).pixels, size)
        except ImageInputError as error:
            raise ValueError(_unreadable(argument, item.number, len(items), str(error))) from error
    if stored:
        stored.parent.mkdir(parents=True, exist_ok=True)
        part = stored.with_suffix(f".{os.getpid()}.part.npy")
        np.save(part, images)
        part.replace(stored)
    return images


def _unreadable(argument: str, number: int, count: int, reason: str) -> str:
    """Tell a file by its place and not by its name, which may be a patient's: it goes to a log."""
    place = f"file {number} (of {count}; sorted by name, or as `metadata.csv` has them)"
    return f"`{argument}`: {place}, cannot be read: {reason}"


def hash_of(what: Any) -> str:
    """Short name of all that decides a result, given as JSON values: the key that it is kept under."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:20]


def count_classes(labels: Sequence[str]) -> dict[str, int]:
    """How many images each class has, in alphabetical order."""
    return dict(sorted(Counter(labels).items()))
