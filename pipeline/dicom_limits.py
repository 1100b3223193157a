"""What the input stage allows, and how it takes things out of a DICOM header that it does not trust.

Only the elements named in this module are ever read; names, numbers, UIDs and dates of the input are skipped while
parsing. No message repeats a word of the input.
"""

import logging
import math
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

MAX_BYTES = 256 * 1024 * 1024  # of a file, also after inflating a deflated one
MAX_PIXELS = 36_000_000  # of one frame or picture: the largest mammography and phone cameras fit
MAX_FRAMES = 1_000_000
MAX_READS = 500_000  # steps of the parser: stops files that are made of millions of tiny or nested elements
MAX_SCANS = 200  # of a JPEG: each goes over the whole picture, and may be ten bytes long
MAX_SEQUENCE_BYTES = 16 * 1024 * 1024
MAX_ITEMS = 50_000  # of a sequence, nested ones included
MAX_VALUE_BYTES = 256 * 1024  # of an element other than the pixels, before its values become Python objects
MAX_TEXT_BYTES = 2**20  # of a public element, else it is dropped after parsing; `sequence_item` minds sequences
MAX_CREATOR_BYTES = 1024  # of the name of a private block
MAX_CHARSET_BYTES = 1024  # of Specific Character Set, which pydicom splits while it parses
MAX_BACKSLASHES = 2**20  # within a sequence, so of values that pydicom may make of it

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
PALETTES = ("Red", "Green", "Blue")
WANTED = [
    "Modality", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows",
    "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelAspectRatio", "PixelSpacing",
    "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "VOILUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths", "BurnedInAnnotation", *PIXEL_KEYWORDS,
    *(f"{colour}PaletteColorLookupTable{part}" for colour in PALETTES for part in ("Descriptor", "Data")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in PALETTES),
]  # fmt: skip
_TABLES = (
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *(f"{start}{colour}PaletteColorLookupTableData" for start in ("", "Segmented") for colour in PALETTES),
)
# Of these VRs pydicom hands on bytes; of any other it makes an object a value, and of pixels called so, millions.
_BINARY = ("OB", "OW", "OF", "OD", "OL", "OV", "UN")
_CHARSET_TAGS = (b"\x08\x00\x05\x00", b"\x00\x08\x00\x05")
_LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_LOUD = ("pydicom", "nibabel", "PIL", "pylibjpeg", "libjpeg", "openjpeg", "rle", "jpeg_ls")
_LOCK = threading.Lock()


class ImageInputError(ValueError):
    """An image that cannot be used; the message is one sentence and holds no text of the input."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what pydicom, its decoders and Pillow warn of or log on this thread, because they quote the file."""
    thread = threading.get_ident()

    def others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # a filter is not inherited by the loggers below, so each needs its own
        loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if name.startswith(_LOUD)]
        for logger in loggers:
            logger.addFilter(others)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(others)


def attempt(work: Callable[[], Any], message: str) -> Any:
    """Return ``work()``; on any failure raise ``message`` instead, without the failure's own words or traceback."""
    try:
        return work()
    except ImageInputError:
        raise
    except Exception:  # hostile files raise anything, RecursionError and MemoryError among them
        pass
    raise ImageInputError(message)  # outside the handler, so that the cause is not chained to it


class _CountingReader(BytesIO):
    """A file in memory that gives up after ``MAX_READS`` reads, and at values that pydicom would split by millions."""

    reads = 0
    tag = b""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as BytesIO does, and count."""
        self.reads += 1
        if self.reads > MAX_READS:
            raise ImageInputError("`image`: the DICOM header has too many elements to be read.")
        if size is None or size < 0:  # what pydicom inflates, without end; `_inflated` has not seen it
            raise ImageInputError("`image`: the deflated DICOM data are damaged.")
        if (size > MAX_CHARSET_BYTES and self.tag in _CHARSET_TAGS) or (
            size > MAX_VALUE_BYTES and self.tag.startswith(b"\x02\x00")
        ):
            raise ImageInputError("`image`: the DICOM header has a value too long to be read.")
        data = super().read(size)
        if len(data) == 8:  # tag and length: read before each value
            self.tag = data[:4]
        return data


def looks_like_dicom(data: bytes) -> bool:
    """Tell by content whether ``data`` is a DICOM file, with or without the 128 byte preamble."""
    if data[128:132] == b"DICM":
        return True
    group_two_or_eight = data[:2] in (b"\x02\x00", b"\x08\x00") and data[3:4] == b"\x00"
    explicit = data[4:6].isalpha() and data[4:6].isupper()
    return group_two_or_eight and (explicit or data[6:8] == b"\x00\x00") and len(data) > 8


def parse_dicom(data: bytes, tags: list[str] | None = WANTED) -> Dataset:
    """Parse the few elements that make an image; everything else is skipped unread. Of None, parse them all."""
    source = _CountingReader(_inflated(data))
    force = data[128:132] != b"DICM"
    return attempt(
        lambda: _bounded(pydicom.dcmread(source, force=force, specific_tags=None if tags is None else list(tags))),
        "`image`: the DICOM header is damaged and cannot be read.",
    )


def _bounded(dataset: Dataset) -> Dataset:
    """Refuse pixels and drop elements of which pydicom would make more Python objects than there is memory for."""
    if any(_is_no_binary(dataset, keyword) for keyword in (*PIXEL_KEYWORDS, *_TABLES)):
        raise ImageInputError("`image`: the DICOM header says of its pixels that they are something else.")
    for tag in list(dataset.keys()):
        raw = dataset.get_item(tag)
        is_creator = tag.is_private_creator
        if not isinstance(raw, RawDataElement) or (tag.is_private and not is_creator):
            continue
        vr = raw.VR or "UN"
        if vr == "UN":  # pydicom knows better
            vr = dictionary_VR(tag) if dictionary_has_tag(tag) else vr
        most = MAX_CREATOR_BYTES if is_creator else MAX_TEXT_BYTES
        if len(raw.value or b"") > most and (is_creator or (vr != "SQ" and vr[:2] not in _BINARY)):
            del dataset[tag]
    return dataset


def _is_no_binary(dataset: Dataset, keyword: str) -> bool:
    """Whether a long element, which is read as bytes here, is said to be a sequence or text."""
    raw = dataset.get_item(keyword) if keyword in dataset else None
    return isinstance(raw, RawDataElement) and oversized(dataset, keyword) and raw.VR not in (None, *_BINARY)


def _inflated(data: bytes) -> bytes:
    """Undo the deflated transfer syntax here, where the size of the result can be bounded."""
    deflated, plain = b"1.2.840.10008.1.2.1.99", ExplicitVRLittleEndian.encode()
    body, steps = (132 if data[128:132] == b"DICM" else 0), 0
    while data[body : body + 2] == b"\x02\x00" and steps < 1000:  # not by the group's length, which may lie
        is_long = data[body + 4 : body + 6] in _LONG_VRS
        length = data[body + 8 : body + 12] if is_long else data[body + 6 : body + 8]
        body, steps = body + (12 if is_long else 8) + int.from_bytes(length, "little"), steps + 1
    if deflated not in data[:body]:
        return data
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    result = attempt(
        lambda: inflater.decompress(data[body:], MAX_BYTES), "`image`: the deflated DICOM data are damaged."
    )
    if inflater.unconsumed_tail:
        raise ImageInputError(f"`image`: the deflated DICOM data are larger than the {MAX_BYTES} bytes allowed.")
    return data[:body].replace(deflated, plain.ljust(len(deflated), b"\x00")) + result


def chosen_frame(frame: int | None, frames: int, default: int) -> int:
    """Return the frame, counted from 1, that was asked for, or the default."""
    if frame is None:
        return default
    if isinstance(frame, bool) or not isinstance(frame, (int, np.integer)):
        kind = type(frame).__name__
        raise ImageInputError(f"`frame` is of type {kind}; it must be a whole number from 1 to {frames}.")
    if not 1 <= frame <= frames:
        raise ImageInputError(f"`frame` is {frame}; this image has {frames} frame(s), counted from 1.")
    return int(frame)


def check_size(rows: int, columns: int) -> None:
    """Refuse an image that would take too much memory, before any of it is allocated."""
    if rows * columns > MAX_PIXELS:
        raise ImageInputError(f"`image` has {rows} x {columns} pixels; at most {MAX_PIXELS} in all are allowed.")


def check_scans(data: bytes) -> None:
    """Refuse a JPEG that is gone over so often that it takes hours."""
    if data[:2] == b"\xff\xd8" and data.count(b"\xff\xda") > MAX_SCANS:
        raise ImageInputError(f"`image` is a JPEG of more than the {MAX_SCANS} scans allowed.")


def functional_group(dataset: Dataset, index: int, keyword: str) -> Dataset:
    """Return the functional group of a frame that holds ``keyword``, or the data set itself where there is none."""
    for sequence, item in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
        group = sequence_item(dataset, sequence, item)
        inner = None if group is None else sequence_item(group, keyword)
        if inner is not None:
            return inner
    return dataset


def sequence_item(dataset: Dataset, keyword: str, index: int = 0) -> Dataset | None:
    """Return an item of a sequence if there is one; a sequence made to exhaust the reader is refused."""
    if keyword not in dataset:
        return None
    try:
        raw = dataset.get_item(keyword)
    except Exception:  # within another sequence it is parsed at once
        return None
    if isinstance(raw, RawDataElement):
        value = bytes(raw.value or b"")
        items = value.count(b"\xfe\xff\x00\xe0") + value.count(b"\xff\xfe\xe0\x00")
        many = items > MAX_ITEMS or value.count(b"\\") > MAX_BACKSLASHES
        if len(value) > MAX_SEQUENCE_BYTES or many:
            raise ImageInputError("`image`: the DICOM header has too many elements to be read.")
    try:
        return dataset[keyword].value[index]
    except Exception:
        return None


def oversized(dataset: Dataset, keyword: str) -> bool:
    """Tell whether an element is too long to be what it should be, or a sequence of items instead."""
    raw = dataset.get_item(keyword)
    return isinstance(raw, RawDataElement) and (raw.VR == "SQ" or len(raw.value or b"") > MAX_VALUE_BYTES)


def _value(dataset: Dataset, keyword: str, index: int) -> Any:
    """Return one value of an element, or None where it is absent, empty or unreadable."""
    try:
        if oversized(dataset, keyword):
            return None
        value = dataset[keyword].value
        if isinstance(value, (str, bytes, int, float)):
            return value if index == 0 else None
        return value[index]
    except Exception:
        return None


def number(dataset: Dataset, keyword: str, index: int = 0) -> float | None:
    """Return a finite number of an element, or None."""
    try:
        value = float(_value(dataset, keyword, index))
    except Exception:
        return None
    return value if math.isfinite(value) else None


def integer(dataset: Dataset, keyword: str, default: int = -1, *, index: int = 0) -> int:
    """Return the whole number of an element, the default where it is absent or empty, -1 where it is something else."""
    if not oversized(dataset, keyword) and _value(dataset, keyword, index) in (None, ""):
        return default
    value = number(dataset, keyword, index)
    return int(value) if value is not None and value == int(value) else -1


def text(dataset: Dataset, keyword: str) -> str | None:
    """Return the text of an element without its padding, or None; for comparison with the standard's terms only."""
    value = _value(dataset, keyword, 0)
    return value.strip(" \x00") if isinstance(value, str) else None
