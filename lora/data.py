"""Read a user's own images for an adapter: a folder of DICOM or pictures, an imagefolder, or a `datasets` set.

What comes out holds pixels, wordings and numbers, and nothing that names a person: identifiers are used while reading,
to keep all images of a person on one side of the split, and are then forgotten.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from pipeline.dicom_input import ImageInputError, read_image, square
from pipeline.dicom_limits import parse_dicom, quiet

from .data_headers import NoImageError, Record, Words, examine, holds_identifier, keys_of
from .data_sources import Columns, Source, list_source
from .data_split import draw_people, number_people, split_people
from .header_captions import HeaderFacts, plain_header_caption, vary_header_caption, vary_text

MAX_UNREADABLE = 0.1  # share of the files that are tried
DARK = 26  # of 255: an image without a brighter pixel is dark


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Images, their captions and how they are split.

    Attributes
    ----------
    images : numpy.ndarray
        uint8 (N, size, size, 3).
    captions : tuple of str or HeaderFacts
        The text given for each image, or the facts of its DICOM header; see ``caption`` and ``plain``.
    groups : numpy.ndarray
        int64 (N,), the person (or group) of each image, numbered from 0 in order of first appearance. Images with
        equal pixels are of one person, whatever their files say.
    validation : numpy.ndarray
        bool (N,), True for the images that are held out.
    people_known : bool
        False where some images had no PatientID, no `patient_id` and no `group_column`: a `group_id` may be a run of
        similar images, and a file without counts as one of its own.
    unreadable : tuple of (int, str)
        Position and reason, never a name. Positions count from 1 over all sources: the rows of a table, or the sorted
        files of a folder, without those that are passed over by their names (hidden ones, DICOMDIR, .csv, .txt, ...).
    modalities : dict of str to int
        Images by DICOM Modality or by the `modality` column; "unknown" where there is neither.
    licences : tuple of str
        Distinct values of the `licence` column, sorted.
    attributions : tuple of str
        Distinct values of the column `attribution_column`, sorted: whom the licences want named.
    kind : str
        "dicom", "imagefolder" or "dataset"; where several sources differ, joined by "+".
    """

    images: np.ndarray
    captions: tuple[str | HeaderFacts, ...]
    groups: np.ndarray
    validation: np.ndarray
    people_known: bool
    unreadable: tuple[tuple[int, str], ...]
    modalities: dict[str, int]
    licences: tuple[str, ...]
    attributions: tuple[str, ...]
    kind: str

    def __len__(self) -> int:
        """Give the number of images."""
        return len(self.images)

    @property
    def people(self) -> int:
        """Number of people (or groups)."""
        return len(np.unique(self.groups))

    def plain(self, index: int) -> str:
        """Give the plain caption of an image: the text as it was given, or the header's facts in order."""
        caption = self.captions[index]
        return caption if isinstance(caption, str) else plain_header_caption(caption)

    def caption(self, index: int, rng: np.random.Generator) -> str:
        """Give one wording of the caption of an image, drawn by `rng`."""
        caption = self.captions[index]
        return vary_text(caption, rng) if isinstance(caption, str) else vary_header_caption(caption, rng)


def read_training_data(
    data: Sequence[str | Path],
    *,
    size: int = 256,
    validation_share: float = 0.2,
    seed: int = 0,
    image_column: str = "image",
    caption_column: str = "text",
    group_column: str | None = None,
    attribution_column: str | None = None,
    frames_per_file: int = 8,
    contrast: str = "none",
    most: int | None = None,
    default_caption: str | None = None,
    show_names: bool = False,
) -> TrainingData:
    """Read one or more sources of training images.

    Parameters
    ----------
    data
        Each a folder with a `metadata.csv` (imagefolder), a folder of DICOM files and pictures (found recursively), a
        folder written by `datasets.save_to_disk`, or else the Hub id ORG/NAME of a data set, the only case that uses
        the network.
    size : int
        Side of the images in pixels.
    validation_share : float
        Share of the images that is held out, in [0, 1); people are never divided. 0 holds out none.
        Where a table or a `datasets` set has a split, that one holds.
    seed : int
        Of the random draws (split, `most`).
    image_column, caption_column : str
        Columns of a `datasets` set; `caption_column` also of `metadata.csv` and `captions.csv`.
    group_column : str, optional
        Column that says which images belong together, and alone says so. Default: `group_id` and `patient_id`, whoever
        shares one of them; where a DICOM file has neither, its PatientID.
    attribution_column : str, optional
        Column whose texts may be made known: the sources that the licences want named.
    frames_per_file : int
        At most so many evenly spread frames of a multi-frame file.
    contrast : {"none", "stretch"}
        "stretch" brings each image's 0.5 and 99.5 percentile to 0 and 1, for very dark pictures.
    most : int, optional
        At most so many images, drawn by person.
    default_caption : str, optional
        Caption of pictures that have none, and of DICOM files whose header says nothing.
    show_names : bool
        Print the names of unreadable files to stderr. Names may hold patients' names, so only on request.

    Raises
    ------
    ValueError
        With one sentence that says what is wrong with the data or an argument. It holds no text of the data.
    """
    _check(size, validation_share, frames_per_file, contrast, most)
    sources = [data] if isinstance(data, (str, Path)) else list(data)
    if not sources:
        raise ValueError("`data` is empty; give at least one folder.")
    named = Columns(image_column, caption_column, group_column, attribution_column)
    listed: list[Source] = []
    positions = itertools.count(1)
    for number, source in enumerate(sources, 1):
        found = list_source(source, number, named)
        for record in found.records:
            record.position = next(positions)
        listed.append(_examined(found, default_caption))
    records = [record for found in listed for record in found.records]
    items = [(record, frame) for record in records for frame in _frames(record.frames, frames_per_file)]
    if most is not None and most < len(items):
        people = number_people(keys_of(record) for record, _ in items)
        items = [items[i] for i in draw_people(people, most, np.random.default_rng([seed, 1]))]
    _check_memory(len(items), size)
    images, items, keys, unreadable = _read(items, size, contrast, default_caption)
    if show_names:
        for record in unreadable:
            print(f"unreadable: {record.position}: {record.name!r}: {record.reason}", file=sys.stderr)
    _check_unreadable(unreadable, len(unreadable) + len({id(record) for record, _ in items}))
    used = [record for record, _ in items]
    if default_caption and not any(_caption(record, default_caption) == default_caption for record in used):
        raise ValueError(
            f"`default_caption` is {default_caption!r}, but every image has a caption of a table or of its header; "
            "what headers say is replaced by a `captions.csv` with `file_name` and `text`"
        )
    _warn_of_darkness(images)
    groups = number_people(keys)
    given = np.array([{"train": 0, "val": 1}.get(record.split or "", -1) for record in used])
    return TrainingData(
        images=images,
        captions=tuple(_caption(record, default_caption) for record in used),
        groups=groups,
        validation=split_people(groups, given, validation_share, np.random.default_rng([seed, 2])),
        people_known=all(record.person_known for record in used),
        unreadable=tuple((record.position, record.reason or "") for record in unreadable),
        modalities=dict(Counter(record.modality or "unknown" for record in used).most_common()),
        licences=tuple(sorted({record.licence for record in used} - {""})),
        attributions=tuple(sorted({record.attribution for record in used} - {""})),
        kind="+".join(sorted({found.kind for found in listed if found.records})),
    )


def _check(size: int, validation_share: float, frames_per_file: int, contrast: str, most: int | None) -> None:
    for name, value in (("size", size), ("frames_per_file", frames_per_file), ("most", 1 if most is None else most)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"`{name}` is {value!r}; it must be a whole number from 1.")
    if not 0 <= validation_share < 1:
        raise ValueError(f"`validation_share` is {validation_share!r}; it must be from 0 to below 1.")
    if contrast not in ("none", "stretch"):
        raise ValueError(f"`contrast` is {contrast!r}; allowed are 'none' and 'stretch'.")


def _check_memory(count: int, size: int) -> None:
    needed, pages = count * size * size * 3, getattr(os, "sysconf_names", {}).get("SC_PHYS_PAGES")
    if pages is not None and needed > os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE") // 2:
        raise ValueError(
            f"`data` holds {count} images, which need {needed / 2**30:.0f} GiB, more than half of the memory here; "
            "use fewer with `most`."
        )


def _warn_of_darkness(images: np.ndarray) -> None:
    dark = sum(int(image.max()) < DARK for image in images)
    if dark > len(images) / 2:
        warnings.warn(
            f"{dark} of {len(images)} images are nowhere brighter than a tenth of white, as values of 12 bits in files "
            'of 16 are; `contrast` "stretch" brings each image to its full range',
            stacklevel=3,
        )


def _check_unreadable(unreadable: Sequence[Record], tried: int) -> None:
    if not tried:
        raise ValueError("`data` holds no image.")
    if len(unreadable) > MAX_UNREADABLE * tried:
        first = "; ".join(f"file {record.position}: {record.reason}" for record in unreadable[:5])
        raise ValueError(
            f"{len(unreadable)} of {tried} files cannot be read, more than the {MAX_UNREADABLE:.0%} allowed. By their "
            f"place in the sorted list of files: {first} (`show_names` prints the names)"
        )


def _examined(source: Source, default_caption: str | None) -> Source:
    """Read the headers of a source, drop what is no image or belongs to the test split, check the captions."""
    kept: list[Record] = []
    known: set[Words] = set()
    for record in tqdm(source.records, desc="reading headers", mininterval=2, leave=False):
        if record.split == "test":
            continue
        try:
            known |= examine(record)
        except NoImageError:
            continue
        kept.append(record)
    for record in kept:
        if holds_identifier(record.caption, known):
            raise ValueError(
                f"Row {record.row} of {source.table} holds a name, number or birth date of a patient, found in the "
                "headers of the same folder; take it out."
            )
    if holds_identifier(default_caption or "", known):
        raise ValueError("`default_caption` holds a name, number or birth date of a patient; take it out.")
    if not any(record.split == "val" for record in kept):  # nothing is held out, so people are drawn instead
        for record in kept:
            record.split = None
    kind = source.kind
    if kind == "folder":
        kind = "dicom" if any(record.is_dicom for record in kept) else "imagefolder"
    return Source(kind, kept, source.table)


def _frames(count: int, most: int) -> list[int | None]:
    """Give frames evenly spread, counted from 1: the middles of equal stretches; None is the only one."""
    if count == 1:
        return [None]
    taken = min(count, most)
    return [(2 * i + 1) * count // (2 * taken) + 1 for i in range(taken)]


def _caption(record: Record, default_caption: str | None) -> str | HeaderFacts:
    facts = record.facts if record.facts != HeaderFacts() else None
    return record.caption or facts or default_caption or record.facts or ""


def _read(
    items: Iterable[tuple[Record, int | None]], size: int, contrast: str, default_caption: str | None
) -> tuple[np.ndarray, list[tuple[Record, int | None]], list[list[str]], list[Record]]:
    """Read pixels: the images, the items that they are of, what tells their person, and the records that failed."""
    frames: dict[int, list[int | None]] = {}
    records: dict[int, Record] = {}
    for record, frame in items:
        frames.setdefault(record.position, []).append(frame)
        records[record.position] = record
    images = np.empty((sum(map(len, frames.values())), size, size, 3), np.uint8)
    done: list[tuple[Record, int | None]] = []
    keys: list[list[str]] = []
    failed: list[Record] = []
    for position, record in tqdm(records.items(), desc="reading images", mininterval=2):
        try:
            if record.reason:
                raise ImageInputError(record.reason)
            source: Any = record.load(-1)
            if record.is_dicom:  # parsed once for all of its frames
                with quiet():
                    source = parse_dicom(source)
            for offset, frame in enumerate(frames[position], len(done)):
                pixels = squared(read_image(source, frame=frame).pixels, size, contrast)
                images[offset] = pixels
                flat = pixels.min() == pixels.max()  # empty slices are alike in all people
                same = [] if flat else [f"pixels {hashlib.sha256(pixels.tobytes()).hexdigest()}"]
                keys.append([*keys_of(record), *same])
        except ImageInputError as error:
            record.reason = str(error)
            failed.append(record)
            del keys[len(done) :]
            continue
        if not _caption(record, default_caption):
            raise ValueError(
                f"File {position} is a picture without a caption: write it into the column `text`, or that of "
                "`caption_column`, of `metadata.csv` or `captions.csv` (with `file_name`) in its folder, or give one "
                "`default_caption` for all."
            )
        done += [(record, frame) for frame in frames[position]]
    return images[: len(done)], done, keys, failed


def squared(pixels: np.ndarray, size: int, contrast: str = "none") -> np.ndarray:
    """Make of an image that `read_image` read what is trained on: uint8 (size, size, 3), contrast as told."""
    if contrast == "stretch":
        low, high = np.percentile(pixels, [0.5, 99.5])
        if high > low:
            pixels = np.clip((pixels - low) / (high - low), 0, 1, dtype=np.float32)
    pixels = np.rint(square(pixels, size) * 255).astype(np.uint8)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
