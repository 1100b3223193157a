"""Files that say of a part that it is something else, so that a reader makes millions of objects of it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial

from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless

from .hostile_seeds import dataset_of, file_of

_MIB = 2**20
_ITEM = b"\xfe\xff\x00\xe0\0\0\0\0"
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_DEFLATED = b"1.2.840.10008.1.2.1.99"


def lies() -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Names, and what makes the file."""
    for name, vr, unit in (
        ("text", b"UC", b"\\"),
        ("text", b"UC", b"ab\\c"),
        ("numbers", b"UV", b"12345678"),
        ("items", b"SQ", _ITEM),
        ("text", b"UT", b"\xff\xfe"),
    ):
        value = unit * (8 * _MIB // len(unit))
        yield f"DICOM whose pixels are {name} ({vr.decode()})", partial(_pixels, 0x10, vr, value)
    many = _ITEM * 10**6
    yield "DICOM whose float pixels are items", partial(_pixels, 8, b"SQ", many)
    for vr, value in ((b"UT", b"\\" * 16 * _MIB), (b"CS", b"abc\\" * 16_000)):
        yield f"DICOM of millions of character sets ({vr.decode()})", partial(_first, (8, 5, vr, value))
    palettes = [(0x28, 0x1201 + i, b"SQ", many) for i in range(3)]
    yield "DICOM whose palette is items", partial(_first, *palettes)
    yield "DICOM whose private creators are long", partial(_first, (0x99, 0x10, b"UT", b"a\\" * 4 * _MIB))
    yield (
        "DICOM whose texts are items",
        partial(_first, *[(0x10, n, b"SQ", _ITEM * 30_000) for n in (0x10, 0x20, 0x40)]),
    )
    yield "DICOM whose transfer syntax is a list", partial(_meta, element(2, 0x10, b"UC", b"a\\" * 8 * _MIB))
    offsets = element(0x7FE0, 1, b"SQ", many) + element(0x7FE0, 2, b"SQ", many)
    yield "DICOM whose offsets are items", partial(_compressed, JPEGBaseline8Bit, b"\xff\xd8\xff\xd9", 64, 1, offsets)
    for how in ("no group length", "no preamble", "a lying group length", "a long group"):
        yield f"deflated DICOM of 300 MiB with {how}", partial(_deflated, how)
    jp2 = _box(b"jP  ", b"\r\n\x87\n") + _box(b"ftyp", b"jp2 \0\0\0\0jp2 ") + _box(b"free", _size(64, 64))
    for side in (30_000, 2**31 - 1):
        image = _box(b"ihdr", struct.pack(">IIHBBBB", side, side, 1, 7, 7, 0, 0)) + _box(
            b"colr", b"\1" + bytes(5) + b"\x11"
        )
        data = jp2 + _box(b"jp2h", image) + _box(b"jp2c", _size(side, side) + _REST)
        yield f"DICOM of a JPEG 2000 of {side} a side behind another size", partial(_compressed, JPEG2000Lossless, data)
    data = _size(6000, 6000, 16_384) + _REST
    yield "DICOM of a JPEG 2000 of 16,384 colours", partial(_compressed, JPEG2000Lossless, data, 6000)
    head = b"\xff\xd8" + _segment(0xDE, struct.pack(">BHHB", 8, 65_500, 65_500, 1) + b"\1\x11\0")
    yield (
        "DICOM of a hierarchical JPEG of 65,500 a side",
        partial(_compressed, JPEGBaseline8Bit, head + _frame(0xC0, 64)),
    )
    data = b"\xff\xd8" + _frame(0xF7, 6000, 255) + _segment(0xDA, b"\1\1\0\0\0\0") + bytes(99)
    yield "DICOM of a JPEG-LS of 255 colours", partial(_compressed, JPEGLSLossless, data, 6000)
    scans = b"\xff\xd8" + _frame(0xC2, 64) + _segment(0xDA, b"\1\1\0\1\x3f\0") * 100_000
    yield "DICOM of a JPEG of 100,000 scans", partial(_compressed, JPEGBaseline8Bit, scans)
    yield "JPEG of 100,000 scans", lambda: scans


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    """Encode an element as explicit VR, little endian."""
    head = struct.pack("<HH", group, number) + vr
    return head + (struct.pack("<xxI", len(value)) if vr in _LONG else struct.pack("<H", len(value))) + value


def _parts() -> tuple[bytes, bytes]:
    """The meta information with all before it, and the rest, of a sound file."""
    data = file_of(dataset_of())
    body = 144 + int.from_bytes(data[140:144], "little")
    return data[:body], data[body:]


def _pixels(number: int, vr: bytes, value: bytes) -> bytes:
    data = file_of(dataset_of())
    return data[: data.rfind(b"\xe0\x7f\x10\x00")] + element(0x7FE0, number, vr, value)


def _first(*elements: tuple[int, int, bytes, bytes]) -> bytes:
    meta, rest = _parts()
    return meta + b"".join(element(*each) for each in elements) + rest


def _meta(more: bytes) -> bytes:
    meta, rest = _parts()
    return meta + more + rest


def _deflated(how: str) -> bytes:
    meta, rest = _parts()
    start = meta.find(b"\x02\x00\x10\x00UI")
    length = int.from_bytes(meta[start + 6 : start + 8], "little")
    meta = meta[:start] + element(2, 0x10, b"UI", _DEFLATED) + meta[start + 8 + length :]
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = rest[: rest.rfind(b"\xe0\x7f\x10\x00") + 8] + struct.pack("<I", 300 * _MIB)
    packed = packer.compress(head) + b"".join(packer.compress(bytes(_MIB)) for _ in range(300)) + packer.flush()
    if how == "no group length":
        return meta[:132] + meta[144:] + packed
    if how == "no preamble":
        return meta[132:] + packed
    if how == "a lying group length":
        return meta[:140] + struct.pack("<I", 8) + meta[144:] + packed
    return meta[:144] + element(2, 1, b"OB", b"\0\1" * 5000) + meta[144:] + packed


def _compressed(syntax: UID, frame: bytes, side: int = 64, colours: int = 1, before: bytes = b"") -> bytes:
    dataset = dataset_of()
    dataset.Rows = dataset.Columns = side
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = colours, 8, 8, 7
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = syntax
    data = file_of(dataset)
    start = data.find(b"\xe0\x7f\x10\x00OB")
    return data[:start] + before + data[start:]


# ---- JPEG -----------------------------------------------------------------------------------------------------------

_REST = (  # coding, quantisation, and a tile that holds next to nothing
    b"\xff\x52\x00\x0c\x00\x00\x00\x01\x00\x05\x04\x04\x00\x01\xff\x5c\x00\x13\x40" + bytes(16)
    + b"\xff\x90\x00\x0a\0\0\0\0\0\0\0\1\xff\x93" + b"\x80" * 20 + b"\xff\xd9"
)  # fmt: skip


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, kind) + content


def _size(width: int, height: int, colours: int = 1) -> bytes:
    body = struct.pack(">H8IH", 0, width, height, 0, 0, width, height, 0, 0, colours) + b"\x07\1\1" * colours
    return b"\xff\x4f\xff\x51" + struct.pack(">H", len(body) + 2) + body


def _segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def _frame(marker: int, side: int, colours: int = 1) -> bytes:
    rows = b"".join(bytes([number + 1, 0x11, 0]) for number in range(colours))
    return _segment(marker, struct.pack(">BHHB", 8, side, side, colours) + rows)
