"""Small files that claim, or unpack to, far more than there is memory or time for."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial

from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from .hostile_lies import lies
from .hostile_seeds import dataset_of, file_of, safetensors_of

_DEFLATED = b"1.2.840.10008.1.2.1.99"


def bombs() -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Names, and what makes the file: some take a second or two."""
    for rows, columns, frames in ((65535, 65535, 1), (65535, 65535, 1_000_000), (1, 1, 1_000_000), (512, 512, 10**9)):
        yield f"DICOM of {frames} x {rows} x {columns}", partial(_claimed, rows, columns, frames)
    for length in (0xFFFFFFFE, 0xF0000000, 0x7FFFFFFF):
        yield f"DICOM with {length} bytes of pixels", partial(_long_pixels, length)
    yield "deflated DICOM of 1 GiB", lambda: _deflated(2**30)
    yield "DICOM of a million elements", _many_elements
    yield "DICOM of a million empty items", lambda: _sequence(b"\xfe\xff\x00\xe0\0\0\0\0" * 10**6)
    yield "DICOM of a million fragments", lambda: _fragments(10**6)
    for syntax, data in (
        (JPEGBaseline8Bit, _jpeg_header(65500, 65500)),
        (JPEGLSLossless, _jpeg_header(65535, 65535, 0xF7)),
        (JPEG2000Lossless, _jpeg2000_header(2**31 - 1)),
        (RLELossless, struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x00" * 2**20),
        (RLELossless, struct.pack("<16I", 15, *[0xFFFFFFFF] * 15)),
    ):
        yield f"DICOM of {syntax.name} that claims more", partial(_encapsulated, syntax, data)
    yield "JPEG header of 65500 x 65500", lambda: _jpeg_header(65500, 65500)
    yield "JPEG 2000 header of 2 billion a side", lambda: _jpeg2000_header(2**31 - 1)
    for side in (6_000, 30_000, 2**31 - 1):
        yield f"PNG of {side} a side", partial(_png, side)
    yield "PNG with a text of 1 GiB", lambda: _png(8, b"zTXtComment\0\0" + _packed_zeros(2**30))
    yield "PNG with a profile of 512 MiB", lambda: _png(8, b"iCCPp\0\0" + _packed_zeros(2**29))
    yield "GIF of 20,000 frames", lambda: _gif(20_000)
    yield (
        "GIF of 65535 a side",
        lambda: b"GIF89a" + b"\xff\xff\xff\xff\x80\0\0" + bytes(6) + b"," + bytes(9) + b"\x08\0;",
    )
    yield "BMP of 2 billion a side", lambda: b"BM" + struct.pack("<IIIIii", 0, 0, 54, 40, *[2**31 - 1] * 2) + bytes(28)
    yield "TIFF whose directory leads to itself", lambda: b"II*\0\x08\0\0\0\0\0\x08\0\0\0"
    yield (
        "TIFF of 4 billion entries",
        lambda: b"II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 256, 4, 2**32 - 1, 8) * 99,
    )
    yield (
        "WebP of 16383 a side",
        lambda: b"RIFF\xff\xff\xff\xffWEBPVP8L\xff\xff\xff\xff\x2f\xff\xff\xff\x0f" + bytes(64),
    )
    yield "zip that leads out of its folder", _zip_slip
    yield "zip named DICOM", lambda: bytes(128) + b"DICM" + _zip_slip()
    yield from lies()
    yield "adapter of a million tensors", lambda: safetensors_of({f"unet.{i}": (0,) for i in range(300_000)}, {})
    yield (
        "adapter with a header of 40 MiB",
        lambda: struct.pack("<Q", 40 * 2**20) + b"{" + b" " * (40 * 2**20 - 2) + b"}",
    )
    yield "table of a cell of 60 MiB", lambda: b"prompt\n" + b"x" * (60 * 2**20)
    yield "table of 10 million rows", lambda: b"prompt\n" + b"a\n" * 10**7


def _claimed(rows: int, columns: int, frames: int) -> bytes:
    dataset = dataset_of()
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = rows, columns, frames
    return file_of(dataset)


def _long_pixels(length: int) -> bytes:
    data = file_of(dataset_of())
    start = data.rfind(b"\xe0\x7f\x10\x00") + 8
    return data[:start] + struct.pack("<I", length) + data[start + 4 :]


def _with_syntax(data: bytes, uid: bytes) -> tuple[bytes, bytes]:
    """The file's meta information naming another syntax, and the rest."""
    body = 144 + int.from_bytes(data[140:144], "little")
    start = data.find(b"\x02\x00\x10\x00UI") + 6
    length = int.from_bytes(data[start : start + 2], "little")
    uid += b"\0" * (len(uid) % 2)
    meta = data[144:start] + struct.pack("<H", len(uid)) + uid + data[start + 2 + length : body]
    return data[:140] + struct.pack("<I", len(meta)) + meta, data[body:]


def _deflated(size: int) -> bytes:
    meta, body = _with_syntax(file_of(dataset_of()), _DEFLATED)
    start = body.rfind(b"\xe0\x7f\x10\x00") + 8
    return meta + _packed_zeros(size, body[:start] + struct.pack("<I", size), -zlib.MAX_WBITS)


def _packed_zeros(count: int, before: bytes = b"", window: int = zlib.MAX_WBITS) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, window)
    packed = packer.compress(before)
    while count > 0:
        packed += packer.compress(bytes(min(count, 2**20)))
        count -= 2**20
    return packed + packer.flush()


def _before_pixels(part: bytes) -> bytes:
    data = file_of(dataset_of())
    start = data.find(b"\x28\x00\x02\x00US")
    return data[:start] + part + data[start:]


def _many_elements() -> bytes:
    return _before_pixels(b"\x09\x00\x10\x00LO\x02\x00AA" * 10**6)


def _sequence(items: bytes) -> bytes:
    return _before_pixels(b"\x28\x00\x10\x30SQ\0\0" + struct.pack("<I", len(items)) + items)


def _encapsulated(syntax: UID, frame: bytes) -> bytes:
    dataset = dataset_of()
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    return file_of(dataset)


def _fragments(count: int) -> bytes:
    data = _encapsulated(JPEGBaseline8Bit, b"\xff\xd8\xff\xd9")
    start = data.rfind(b"\xe0\x7f\x10\x00") + 20
    return data[:start] + b"\xfe\xff\x00\xe0\x02\0\0\0\xff\xd8" * count + data[start:]


def _jpeg_header(rows: int, columns: int, marker: int = 0xC0) -> bytes:
    frame = struct.pack(">BHHB", 8, rows, columns, 1) + b"\x01\x11\x00"
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
    return (
        b"\xff\xd8\xff" + bytes([marker]) + struct.pack(">H", 2 + len(frame)) + frame + scan + bytes(500) + b"\xff\xd9"
    )


def _jpeg2000_header(side: int) -> bytes:
    size = struct.pack(">HIIIIIIIIH", 0, side, side, 0, 0, side, side, 0, 0, 1) + b"\x07\x01\x01"
    return b"\xff\x4f\xff\x51" + struct.pack(">H", 2 + len(size)) + size + b"\xff\x52\x00\x0c" + bytes(10) + b"\xff\xd9"


def _png(side: int, more: bytes = b"") -> bytes:
    def chunk(part: bytes) -> bytes:
        return struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))

    rows = _packed_zeros((side + 1) * side) if side <= 30_000 else b""
    head = chunk(b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + (chunk(more) if more else b"") + chunk(b"IDAT" + rows) + chunk(b"IEND")


def _gif(frames: int) -> bytes:
    target = io.BytesIO()
    Image.new("P", (4, 4)).save(target, "GIF", save_all=True, append_images=[Image.new("P", (4, 4), 1)])
    data = target.getvalue()
    start = data.rfind(b"!\xf9") if b"!\xf9" in data else data.rfind(b",")
    return data[:start] + data[start:-1] * frames + b";"


def _zip_slip() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("../../../outside.txt", "outside")
        archive.writestr("/tmp/outside.txt", "outside")
    return target.getvalue()
