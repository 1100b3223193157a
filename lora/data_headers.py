"""What the headers of training images say: who is one person, and which words may never stand in a caption.

Identifiers live in memory while reading, and in nothing that is returned, written or raised.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import UID

from pipeline.dicom_limits import (
    ImageInputError,
    integer,
    looks_like_dicom,
    oversized,
    parse_dicom,
    quiet,
    sequence_item,
    text,
)

from .captions import CELLS, FINDINGS, HEADS, NIH_FINDINGS, PLANES, VIEWS, WINDOWS
from .header_captions import BODY_PARTS, HEADER_KEYWORDS, HeaderFacts, header_facts

NO_IMAGE = frozenset(("SEG", "RTDOSE"))  # pixels, but of no picture
IDENTIFIERS = ("PatientID", "OtherPatientIDs", "AccessionNumber")
NAMES = ("PatientName", "OtherPatientNames", "PatientBirthName")
SHORTEST = 4  # letters and digits of an identifier that counts: shorter ones are met by chance
_HEADER = (
    *HEADER_KEYWORDS, *IDENTIFIERS, *NAMES, "OtherPatientIDsSequence", "PatientBirthDate", "SpecificCharacterSet",
    "SOPClassUID", "StudyInstanceUID", "NumberOfFrames",
)  # fmt: skip

Words = tuple[str, ...]


class NoImageError(Exception):
    """A file that is sound but holds no picture: a report, a segmentation, a plan."""


@dataclass
class Record:
    """One file or row, before its pixels are read.

    Attributes
    ----------
    load : callable
        Gives what `read_image` takes; with a number, at least so many of the first bytes of a file.
    name : str
        For `show_names` only.
    row : int
        Row of its table, the header not counted; 0 where it has none.
    position : int
        Place among all files and rows, counted from 1.
    group : str or None
        What it shares with other images of the same person (or group).
    person : str or None
        What it shares with other images of the same person, where that is known beside the group.
    """

    load: Callable[[int], Any]
    name: str
    row: int = 0
    position: int = 0
    caption: str = ""
    group: str | None = None
    person: str | None = None
    person_known: bool = False
    split: str | None = None
    modality: str | None = None
    licence: str = ""
    attribution: str = ""
    facts: HeaderFacts | None = None
    frames: int = 1
    is_dicom: bool = False
    reason: str | None = None


def examine(record: Record) -> set[Words]:
    """Read the header of a DICOM object, not its pixels, into its record; note the reason if that fails.

    Returns
    -------
    set of tuple of str
        The identifiers that the header holds; see ``identifiers``.

    Raises
    ------
    NoImageError
        For a sound DICOM object that is no picture.
    """
    try:
        data = record.load(132)
        if not isinstance(data, bytes) or not looks_like_dicom(data):
            return set()
        record.is_dicom = True
        data = record.load(-1)
        with quiet():
            record.frames = max(1, integer(parse_dicom(data), "NumberOfFrames", 1))
            header = parse_dicom(data, list(_HEADER))
            if _is_no_image(header):
                raise NoImageError
            record.facts = header_facts(header)
            found = identifiers(header)
            person, study = (words_of(" ".join(_texts(header, name))) for name in ("PatientID", "StudyInstanceUID"))
    except ImageInputError as error:
        record.reason = str(error)
        return set()
    record.modality = record.modality or record.facts.modality
    if record.group is None:  # a table is taken at its word: many a header names everybody alike
        record.person_known = bool(person)
        # Where the PatientID was taken out, a study is still of one person.
        record.group = f"person {' '.join(person)}" if person else f"study {' '.join(study)}" if study else None
    return found


def keys_of(record: Record) -> list[str]:
    """What tells of whom an image is: images that share any of these belong together (`number_people`)."""
    return [record.group or f"file {record.position}", *([record.person] if record.person else [])]


def identifiers(header: Dataset) -> set[Words]:
    """Give what a header holds that names a person: names, numbers and the birth date, as people write them."""
    texts = [value for keyword in IDENTIFIERS for value in _texts(header, keyword)]
    for index in range(8):
        item = sequence_item(header, "OtherPatientIDsSequence", index)
        texts += [] if item is None else _texts(item, "PatientID")
    for date in _texts(header, "PatientBirthDate"):
        year, month, day = date[:4], date[4:6], date[6:8]
        texts += [f"{year} {month} {day}", f"{day} {month} {year}", f"{month} {day} {year}"]
    for keyword in NAMES:
        for parts in map(words_of, _texts(header, keyword)):
            texts += [*parts, " ".join(parts[:2]), " ".join(parts[1::-1])]
    return as_identifiers(texts)


def as_identifiers(texts: Iterable[str]) -> set[Words]:
    """Give texts as tuples of words, apart and run together, without those that would be met by chance."""
    found = {tuple(words_of(value)) for value in texts}
    found = {words for words in found if sum(map(len, words)) >= SHORTEST and not _COMMON.issuperset(words)}
    return found | {("".join(words),) for words in found}


def holds_identifier(caption: str, known: set[Words]) -> bool:
    """Tell whether whole words of a caption are an identifier."""
    words, longest = words_of(caption), max(map(len, known), default=0)
    return any(
        tuple(words[start : start + count]) in known
        for start in range(len(words))
        for count in range(1, min(longest, len(words) - start) + 1)
    )


def words_of(value: str) -> list[str]:
    """Give the words of a text without case, accents and punctuation."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", value) if not unicodedata.combining(c))
    return re.findall(r"[^\W_]+", plain.casefold())


# Words that a name or number may hold without naming anyone: what phantoms are called and anonymisers write.
_LISTS: tuple[dict[str, list[str]], ...] = (HEADS, FINDINGS, CELLS, NIH_FINDINGS, VIEWS, PLANES, WINDOWS)
_PHRASES = [
    *(phrase for lists in _LISTS for phrases in lists.values() for phrase in phrases),
    *BODY_PARTS.values(),
    "anonymous anonymized anonymised unknown none noname test phantom patient subject volunteer case image",
    "adult paediatric pediatric child male female woman girl gentleman lady year years aged",
]
_COMMON = frozenset(word for phrase in _PHRASES for word in words_of(phrase))


def _texts(header: Dataset, keyword: str) -> list[str]:
    try:
        value = None if oversized(header, keyword) else header[keyword].value
        return [str(part) for part in (value if isinstance(value, (list, MultiValue)) else [value]) if part]
    except Exception:  # absent or damaged
        return []


def _is_no_image(header: Dataset) -> bool:
    """Tell a report, plan, segmentation or the like from an image, where the standard knows its SOP class."""
    if text(header, "Modality") in NO_IMAGE:
        return True
    value = text(header, "SOPClassUID") or ""
    name = UID(value).name
    return name != value and not re.search(r"Image|Volume Storage", name)
