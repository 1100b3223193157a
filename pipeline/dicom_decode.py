"""Decode one frame of a DICOM object to float pixels, as a screen would show it.

Every claim of the header is checked against the bytes that are really there before memory is allocated for it. This is
the inner half of ``dicom_input``: call that one.
"""

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    RLELossless,
)

from . import dicom_limits

ImageInputError = dicom_limits.ImageInputError
attempt = dicom_limits.attempt
integer = dicom_limits.integer
number = dicom_limits.number
text = dicom_limits.text

MAX_PIXEL_ASPECT = 20.0  # a header that claims longer pixels than this is not believed
MODALITIES = frozenset(
    ("AR", "AS", "BDUS", "BI", "BMD", "CR", "CT", "DG", "DX", "ECG", "EPS", "ES", "GM", "IO", "IVOCT", "IVUS", "LS")
    + ("MG", "MR", "NM", "OAM", "OCT", "OP", "OPM", "OPT", "OPTBSV", "OPTENF", "OPV", "OT", "PT", "PX", "RF", "RG")
    + ("RTDOSE", "RTIMAGE", "SC", "SEG", "SM", "TG", "US", "VA", "XA", "XC")
)


@dataclass(frozen=True)
class _Layout:
    """The Image Pixel module, checked."""

    rows: int
    columns: int
    samples: int
    frames: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric: str
    planar: int
    keyword: str
    transfer_syntax: UID


def decode_dicom(
    dataset: Dataset, frame: int | None
) -> tuple[np.ndarray, str | None, tuple[float, float] | None, float]:
    """Decode one frame as a screen would show it.

    Returns
    -------
    tuple
        Float pixels in [0, 1], the modality if it is one of the standard's, the pixel spacing (row, column) in mm if
        known, and the height of a pixel divided by its width.
    """
    layout = _layout(dataset)
    index = dicom_limits.chosen_frame(frame, layout.frames, layout.frames // 2 + layout.frames % 2) - 1
    unreadable = "`image`: the pixels of the DICOM object are damaged, cut short or not as its header describes them."
    stored = attempt(lambda: _stored_pixels(dataset, layout, index), unreadable)
    if layout.samples == 3:
        pixels = stored.astype(np.float32)
        pixels /= np.float32(2**layout.bits_stored - 1)  # in place: colour frames are large
        np.clip(pixels, 0, 1, out=pixels)
    elif layout.photometric == "PALETTE COLOR":
        pixels = attempt(
            lambda: _palette(dataset, stored, layout), "`image`: the colour palette of the DICOM object is damaged."
        )
    else:
        pixels = _grey(dataset, stored, layout, index)
    spacing, aspect = _spacing(dataset, index)
    modality = text(dataset, "Modality")
    return pixels, modality if modality in MODALITIES else None, spacing, aspect


def decode_stored(dataset: Dataset) -> np.ndarray:
    """Decode the stored values, integers; several frames lie along the first axis, colours come back as RGB."""
    layout = _layout(dataset)
    if layout.keyword != "PixelData":
        raise ImageInputError("`image`: the DICOM object has pixels that are no whole numbers.")
    dicom_limits.check_size(layout.rows * layout.frames, layout.columns)
    unreadable = "`image`: the pixels of the DICOM object are damaged, cut short or not as its header describes them."
    decoded = attempt(lambda: [_stored_pixels(dataset, layout, at) for at in range(layout.frames)], unreadable)
    return decoded[0] if layout.frames == 1 else np.stack(decoded)


def decode_values(dataset: Dataset, index: int) -> np.ndarray:
    """Decode one frame, counted from 0, of a grey object to modality values, float32; padding is the smallest value.

    Raises
    ------
    ImageInputError
        It is coloured or MONOCHROME1, which volumes are not, or cannot be decoded.
    """
    layout = _layout(dataset)
    if layout.photometric != "MONOCHROME2":
        raise ImageInputError("`image`: the slices of a volume must be MONOCHROME2.")
    unreadable = "`image`: the pixels of the DICOM object are damaged, cut short or not as its header describes them."
    stored = attempt(lambda: _stored_pixels(dataset, layout, index), unreadable)
    with np.errstate(all="ignore"):
        values = np.asarray(_modality_values(dataset, stored, index), np.float32)
        padding = _padding(dataset, stored)
    if not np.isfinite(values).all():
        raise ImageInputError("`image`: the DICOM object has values that are no finite numbers.")
    if padding is not None and padding.any() and not padding.all():
        values = np.where(padding, values[~padding].min(), values)
    return values


def _layout(dataset: Dataset) -> _Layout:
    keywords = [keyword for keyword in dicom_limits.PIXEL_KEYWORDS if keyword in dataset]
    if not keywords:
        raise ImageInputError(
            "`image`: this DICOM object has no pixels; it is a report, plan or the like, or the file is damaged."
        )
    meta = getattr(dataset, "file_meta", None)
    transfer_syntax = UID(text(meta, "TransferSyntaxUID") or "") if meta is not None else UID("")
    if not transfer_syntax:  # only native pixels can lack it
        big = dataset.original_encoding[1] is False
        transfer_syntax = ExplicitVRBigEndian if big else ExplicitVRLittleEndian
    is_float = keywords[0] != "PixelData"
    allocated = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}.get(keywords[0], integer(dataset, "BitsAllocated"))
    stored = allocated if is_float else integer(dataset, "BitsStored", allocated)
    layout = _Layout(
        rows=integer(dataset, "Rows"),
        columns=integer(dataset, "Columns"),
        samples=integer(dataset, "SamplesPerPixel", 1),
        frames=integer(dataset, "NumberOfFrames", 1) or 1,  # 0 is written for 1
        bits_allocated=allocated,
        bits_stored=stored,
        signed=bool(integer(dataset, "PixelRepresentation", 0)) and not is_float,
        photometric=text(dataset, "PhotometricInterpretation") or "",
        planar=integer(dataset, "PlanarConfiguration", 0),
        keyword=keywords[0],
        transfer_syntax=transfer_syntax,
    )
    grey = layout.photometric in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    colour = layout.photometric in ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
    sound = (
        len(keywords) == 1
        and layout.rows > 0
        and layout.columns > 0
        and layout.samples == (1 if grey else 3)
        and layout.planar in (0, 1)
        and (allocated == 1 or allocated in (8, 16, 32, 64))
        and 1 <= stored <= allocated
        and integer(dataset, "PixelRepresentation", 0) in (0, 1)
        and (is_float or integer(dataset, "HighBit", stored - 1) == stored - 1)
    )
    if not (grey or colour):
        raise ImageInputError("`image`: the DICOM object has a photometric interpretation that cannot be shown.")
    if not sound:
        raise ImageInputError("`image`: the DICOM header describes its pixels in a way that contradicts itself.")
    dicom_limits.check_size(layout.rows, layout.columns)
    if not 1 <= layout.frames <= dicom_limits.MAX_FRAMES:
        raise ImageInputError(f"`image`: the number of frames must be from 1 to {dicom_limits.MAX_FRAMES}.")
    return layout


def _stored_pixels(dataset: Dataset, layout: _Layout, index: int) -> np.ndarray:
    """Decode the stored values of one frame; colours come back as RGB."""
    unsupported = "`image`: the pixels are compressed in a way that cannot be decoded here."
    decoder = attempt(lambda: get_decoder(layout.transfer_syntax), unsupported)
    if not decoder.is_available:
        raise ImageInputError(unsupported)
    element = dataset[layout.keyword]
    if layout.bits_allocated == 1 and not decoder.is_encapsulated:
        return _bits(element.value, layout, index)
    photometric = layout.photometric
    options: dict[str, Any] = {}
    if decoder.is_encapsulated:
        tables = [getattr(dataset, name, None) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
        if all(tables):
            options["extended_offsets"] = tuple(tables)
        if (
            element.value.count(b"\xfe\xff\x00\xe0") > dicom_limits.MAX_FRAMES
            or int.from_bytes(element.value[4:8], "little") > 2**23
        ):
            raise ValueError  # more fragments, or a longer table of offsets, than an image can have
        encoded = get_frame(element.value, index, number_of_frames=layout.frames, **options)
        if layout.transfer_syntax == RLELossless:
            options["decoding_plugin"] = "pylibjpeg"  # pydicom's own unpacks bombs to their full length
        elif _checked_codestream(encoded, layout):
            photometric = "YBR_FULL"
    pixels, _ = decoder.as_array(
        element.value,
        index=index,
        rows=layout.rows,
        columns=layout.columns,
        samples_per_pixel=layout.samples,
        number_of_frames=layout.frames,
        bits_allocated=layout.bits_allocated,
        bits_stored=layout.bits_stored,
        pixel_representation=int(layout.signed),
        photometric_interpretation=photometric,
        planar_configuration=layout.planar,
        pixel_keyword=layout.keyword,
        pixel_vr=element.VR,
        **options,
    )
    return pixels


def _bits(value: bytes, layout: _Layout, index: int) -> np.ndarray:
    """Unpack a frame of single bits, which may begin within a byte; pydicom's decoder misses that."""
    size = layout.rows * layout.columns * layout.samples
    start, end = index * size, (index + 1) * size
    if len(value) * 8 < end or layout.samples != 1:
        raise ValueError
    packed = np.frombuffer(value[start // 8 : -(-end // 8)], np.uint8)
    bits = np.unpackbits(packed, bitorder="little")[start % 8 :][:size]
    return bits.reshape(layout.rows, layout.columns)


def _checked_codestream(encoded: bytes, layout: _Layout) -> bool:
    """Refuse compressed data whose own header, which decoders believe, asks for another size than the DICOM header.

    Returns
    -------
    bool
        Whether these are the YCbCr values of a JPEG that the DICOM header calls RGB. As in libjpeg, that is so where
        the components are numbered 1, 2, 3 and no Adobe marker says otherwise.
    """
    dicom_limits.check_scans(encoded)
    is_jpeg = encoded[:2] == b"\xff\xd8"
    size, components, adobe = _jpeg_header(encoded) if is_jpeg else (_jpeg2000_size(encoded), b"", False)
    if size != (layout.rows, layout.columns, layout.samples):
        raise ImageInputError("`image`: the compressed pixels do not have the size that the DICOM header claims.")
    lossy = layout.transfer_syntax in (JPEGBaseline8Bit, JPEGExtended12Bit)
    return lossy and layout.photometric == "RGB" and components == b"\x01\x02\x03" and not adobe


def _jpeg2000_size(encoded: bytes) -> tuple[int, int, int] | None:
    """Return rows, columns and components of the codestream that a decoder will find, bare or in the boxes of a JP2."""
    start, boxes = 0, 0
    while encoded[start : start + 4] != b"\xff\x4f\xff\x51":
        length, kind = int.from_bytes(encoded[start : start + 4], "big"), encoded[start + 4 : start + 8]
        if kind != b"jp2c" and length < 8 or boxes > 100:
            return None
        start, boxes = start + (8 if kind == b"jp2c" else length), boxes + 1
    width, height, left, top = (int.from_bytes(encoded[start + n : start + n + 4], "big") for n in (8, 12, 16, 20))
    return height - top, width - left, int.from_bytes(encoded[start + 40 : start + 42], "big")


def _jpeg_header(encoded: bytes) -> tuple[tuple[int, int, int] | None, bytes, bool]:
    """Return the size (with components), their numbers, and whether there is an Adobe marker, of JPEG and JPEG-LS."""
    position, adobe = 2, False
    while position + 9 < len(encoded) and encoded[position] == 0xFF:
        marker, segment = encoded[position + 1], encoded[position + 4 : position + 20]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == 0xDE:  # hierarchical: the decoder takes the size from here
            break
        adobe |= marker == 0xEE and segment.startswith(b"Adobe")
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            size = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
            return (*size, segment[5] if len(segment) > 5 else 0), segment[6:15:3], adobe
        position += 2 + int.from_bytes(encoded[position + 2 : position + 4], "big")
    return None, b"", adobe


def _grey(dataset: Dataset, stored: np.ndarray, layout: _Layout, index: int) -> np.ndarray:
    """Apply the modality LUT or rescale, then the VOI LUT or first window, then MONOCHROME1; padding becomes black."""
    with np.errstate(all="ignore"):
        padding = _padding(dataset, stored)
        values = _modality_values(dataset, stored, index)
        finite = np.isfinite(values)
        if layout.keyword == "PixelData" and not finite.all():
            raise ImageInputError("`image`: the rescale slope or intercept of the DICOM object is not usable.")
        visible = finite if padding is None else finite & ~padding
        if not visible.any():
            visible = finite
        if not finite.any():
            raise ImageInputError("`image`: the DICOM object has no finite pixel value.")
        low, high = float(values[visible].min()), float(values[visible].max())
        shown = _voi(dataset, values, index)
        spread = 0.0 if shown is None else float(np.ptp(shown[visible]))
        if (
            shown is None or not math.isfinite(spread) or (high > low and spread == 0)
        ):  # no window, or one that hides all
            span = high - low
            shown = np.clip((values - low) / span, 0, 1) if span > 0 and math.isfinite(span) else np.zeros(values.shape)
        if layout.photometric == "MONOCHROME1":
            shown = 1 - shown
        return np.where(visible, shown, 0).astype(np.float32)


def _padding(dataset: Dataset, stored: np.ndarray) -> np.ndarray | None:
    first = number(dataset, "PixelPaddingValue")
    if first is None:
        return None
    last = number(dataset, "PixelPaddingRangeLimit")
    last = first if last is None else last
    return (stored >= min(first, last)) & (stored <= max(first, last))


def _modality_values(dataset: Dataset, stored: np.ndarray, index: int) -> np.ndarray:
    table = dicom_limits.sequence_item(dataset, "ModalityLUTSequence")
    if table is not None:
        with suppress(Exception):  # an empty or damaged LUT is passed over
            return _lookup(table, stored)[0]
    group = dicom_limits.functional_group(dataset, index, "PixelValueTransformationSequence")
    values: np.ndarray = stored.astype(np.float64 if stored.dtype.itemsize > 2 else np.float32)
    slope, intercept = number(group, "RescaleSlope"), number(group, "RescaleIntercept")
    return values * (1.0 if slope is None else slope) + (intercept or 0.0)


def _voi(dataset: Dataset, values: np.ndarray, index: int) -> np.ndarray | None:
    group = dicom_limits.functional_group(dataset, index, "FrameVOILUTSequence")
    table = dicom_limits.sequence_item(group, "VOILUTSequence")
    if table is not None:
        with suppress(Exception):
            looked_up, bits = _lookup(table, values)
            return np.clip(looked_up / (2**bits - 1), 0, 1)
    center, width = number(group, "WindowCenter"), number(group, "WindowWidth")
    if center is None or width is None or width <= 0:
        return None
    function = text(group, "VOILUTFunction") or "LINEAR"
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR_EXACT" or width <= 1:
        return np.clip((values - center) / width + 0.5, 0, 1)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def _lookup(table: Dataset, values: np.ndarray) -> tuple[np.ndarray, int]:
    """Apply a LUT item; return the values and the bits of its entries."""
    entries, first, bits = (integer(table, "LUTDescriptor", index=part) for part in range(3))
    if dicom_limits.oversized(table, "LUTData"):
        raise ValueError
    raw = table.LUTData
    if isinstance(raw, bytes):
        order = "<" if table.original_encoding[1] in (True, None) else ">"
        data = np.frombuffer(raw, f"{order}u2" if len(raw) >= 2 * (entries or 65536) else "u1").astype(np.float32)
    else:
        data = np.atleast_1d(np.asarray(raw, np.int64)).astype(np.uint16).astype(np.float32)
    data = data[: entries or 65536]
    if not 1 <= bits <= 16 or data.size == 0:
        raise ValueError
    return data[np.clip(np.rint(values) - first, 0, data.size - 1).astype(np.int64)], bits


def _palette(dataset: Dataset, stored: np.ndarray, layout: _Layout) -> np.ndarray:
    order = "<" if layout.transfer_syntax.is_little_endian else ">"
    result = np.empty((*stored.shape, 3), np.float32)
    for channel, colour in enumerate(dicom_limits.PALETTES):
        descriptor = f"{colour}PaletteColorLookupTableDescriptor"
        entries, first, bits = (integer(dataset, descriptor, index=part) for part in range(3))
        entries = entries or 65536
        keyword = f"{colour}PaletteColorLookupTableData"
        segmented = keyword not in dataset
        raw = bytes(dataset[f"Segmented{keyword}" if segmented else keyword].value)
        wide = bits == 16 or (not segmented and len(raw) >= 2 * entries)
        table = np.frombuffer(raw[: len(raw) // 2 * 2], f"{order}u2") if wide else np.frombuffer(raw, "u1")
        if segmented:
            table = _expanded(table.astype(np.int64), entries)
        table = table[:entries].astype(np.float32) / (65535 if bits == 16 else 255)
        result[..., channel] = table[np.clip(stored.astype(np.int64) - first, 0, table.size - 1)]
    return np.clip(result, 0, 1)


def _expanded(data: np.ndarray, entries: int) -> np.ndarray:
    """Expand discrete (0) and linear (1) segments of a segmented palette, and indirect ones (2) that copy those."""

    def expand(position: int, segments: int | None, table: list[int]) -> None:
        while position + 1 < data.size and segments != 0 and len(table) < entries:
            kind, length = int(data[position]), int(data[position + 1])
            position += 2
            if length == 0:  # adds nothing, so millions of them would never reach the end of the table
                raise ValueError
            if kind == 0:
                table.extend(data[position : position + length].tolist())
                position += length
            elif kind == 1:
                steps = np.linspace(table[-1], int(data[position]), length + 1)[1:]
                table.extend(np.rint(steps).astype(int).tolist())
                position += 1
            elif kind == 2 and segments is None:
                expand(int(data[position + 1]) << 16 | int(data[position]), length, table)
                position += 2
            else:
                raise ValueError
            segments = None if segments is None else segments - 1

    table: list[int] = []
    expand(0, None, table)
    return np.asarray(table)


def _spacing(dataset: Dataset, index: int) -> tuple[tuple[float, float] | None, float]:
    """Return the spacing (row, column) in mm if known, and the height of a pixel over its width."""
    measures = dicom_limits.functional_group(dataset, index, "PixelMeasuresSequence")
    for source, keyword in (
        (measures, "PixelSpacing"),
        (dataset, "ImagerPixelSpacing"),
        (dataset, "NominalScannedPixelSpacing"),
        (dataset, "PixelAspectRatio"),
    ):
        row, column = number(source, keyword, 0), number(source, keyword, 1)
        if row and column and 1e-6 < row < 1e6 and 1e-6 < column < 1e6:
            if not 1 / MAX_PIXEL_ASPECT <= row / column <= MAX_PIXEL_ASPECT:
                continue
            known = keyword != "PixelAspectRatio"
            return ((round(row, 6), round(column, 6)) if known else None), row / column
    return None, 1.0
