"""Ways to damage a file: cut, flip, lie about lengths and sizes, nest, blow up, and put markup where text stands."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

import pydicom
from pydicom import Dataset
from pydicom.uid import AllTransferSyntaxes

from pipeline.dicom_limits import quiet

from .hostile_seeds import PLANTED, dataset_of, file_of

MAX_BYTES = 16 * 2**20  # of what comes out: it is the file that is hostile, not this machine that is small
INTEGERS: tuple[int, ...] = (
    0,
    1,
    2,
    3,
    7,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFE,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFE,
)
INTEGERS += (0xFFFFFFFF, 2**40, 2**63 - 1, 2**64 - 1)
STRINGS = (
    *("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "../../../../etc/passwd", "..\\..\\windows\\x"),
    *("/dev/zero", "C:\\x", "%s%n%x{0}{__class__}", "=cmd|' /C calc'!A1", "'; DROP TABLE x; --", "\x00\x01\x1b[31m"),
    *(
        "\x1b$B\x1b(B",
        "A" * 70_000,
        "\\" * 3000,
        "^" * 500,
        "=" * 50,
        "\u202e\ufeff\ud7ff",
        "1e999",
        "-1",
        "nan",
        "",
        " ",
    ),
)
_NUMBERS = (
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
    *("PlanarConfiguration", "SmallestImagePixelValue", "PixelPaddingValue"),
)
_TEXTS = (
    *("NumberOfFrames", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "PixelSpacing", "Modality"),
    *("PhotometricInterpretation", "VOILUTFunction", "PixelAspectRatio", "PatientName", "SpecificCharacterSet"),
    *(
        "SOPInstanceUID",
        "StudyDescription",
        "PatientAge",
        "PatientSex",
        "BodyPartExamined",
        "ImageType",
        "Manufacturer",
    ),
)


def cut(data: bytes, rng: random.Random) -> bytes:
    """Truncate."""
    return data[: rng.randrange(len(data) + 1)]


def lengthen(data: bytes, rng: random.Random) -> bytes:
    """Add bytes at the end."""
    return data + rng.randbytes(rng.choice((1, 2, 100, 70_000)))


def flip(data: bytes, rng: random.Random) -> bytes:
    """Flip bits, near the beginning rather than the end."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 64))):
        changed[min(int(rng.expovariate(4) * len(data)), len(data) - 1)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """Replace a stretch by noise or by one value."""
    start, length = rng.randrange(len(data)), rng.choice((1, 4, 16, 200))
    noise = rng.choice((rng.randbytes(length), b"\0" * length, b"\xff" * length))
    return data[:start] + noise + data[start + length :]


def lie(data: bytes, rng: random.Random) -> bytes:
    """Overwrite a place with a number that is at some edge: lengths, offsets, counts."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3))):
        size = rng.choice((1, 2, 4, 8))
        start = min(int(rng.expovariate(4) * len(data)), len(data) - 1)
        value = rng.choice(INTEGERS) % 256**size
        changed[start : start + size] = value.to_bytes(size, rng.choice(("little", "big")))
    return bytes(changed)


def repeat(data: bytes, rng: random.Random) -> bytes:
    """Repeat a stretch, once or very often."""
    start = rng.randrange(len(data))
    piece = data[start : start + rng.choice((2, 8, 64, 1000))]
    return data[:start] + piece * min(rng.choice((2, 20, 2000)), MAX_BYTES // len(piece)) + data[start:]


def drop(data: bytes, rng: random.Random) -> bytes:
    """Take a stretch out."""
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice((1, 2, 8, 100)) :]


def swap(data: bytes, rng: random.Random) -> bytes:
    """Let two halves change places at a random cut."""
    middle = rng.randrange(len(data))
    return data[middle:] + data[:middle]


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (cut, lengthen, flip, overwrite, lie, repeat, drop, swap)


# ---- DICOM ----------------------------------------------------------------------------------------------------------


def lying_length(data: bytes, rng: random.Random) -> bytes:
    """Give the length of one element, found by its tag, another value."""
    tags = [b"\xe0\x7f\x10\x00", b"\x28\x00", b"\x08\x00", b"\x10\x00", b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"]
    places = [start for tag in tags for start in _places(data, tag)]
    if not places:
        return lie(data, rng)
    start = rng.choice(places) + 4
    if data[start : start + 2].isalpha():
        start += 4 if data[start : start + 2] in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF", b"UC", b"UR") else 2
    size = 4 if rng.random() < 0.5 else 2
    return data[:start] + (rng.choice(INTEGERS) % 256**size).to_bytes(size, "little") + data[start + size :]


def _places(data: bytes, part: bytes) -> list[int]:
    found: list[int] = []
    start = data.find(part)
    while start >= 0 and len(found) < 200:
        found.append(start)
        start = data.find(part, start + 1)
    return found


def wrong_syntax(data: bytes, rng: random.Random) -> bytes:
    """Name another transfer syntax than the file is in."""
    start = data.find(b"\x02\x00\x10\x00UI", 132, 1000)
    if start < 0:
        return flip(data, rng)
    length = int.from_bytes(data[start + 6 : start + 8], "little")
    uid = rng.choice([str(syntax) for syntax in AllTransferSyntaxes] + ["1.2.3", "../../x", ""]).encode()
    uid += b"\0" * (len(uid) % 2)
    group = int.from_bytes(data[140:144], "little") + len(uid) - length
    new = data[start : start + 6] + len(uid).to_bytes(2, "little") + uid
    return data[:140] + max(group, 0).to_bytes(4, "little") + data[144:start] + new + data[start + 8 + length :]


def lying_header(data: bytes, rng: random.Random) -> bytes:
    """Change what the header says of the pixels, and put markup, paths and nonsense where text stands."""
    dataset = dataset_of(rng.choice(("chest-xray", "ct-chest", "blood-smear")))
    with pydicom.config.disable_value_validation():
        for _ in range(rng.choice((1, 1, 2, 4))):
            if rng.random() < 0.5:
                dataset.add_new(rng.choice(_NUMBERS), "US", rng.choice(INTEGERS) % 65536)
            else:
                value = rng.choice((*STRINGS, "1000000", "0", "4294967296", "1e308", "-1e308", "1\\2\\3", "1e-300"))
                keyword = rng.choice(_TEXTS)
                dataset.add_new(keyword, "LO", value)
                dataset[keyword].VR = "LO"
        return _written(dataset, data)


def lying_recipe(data: bytes, rng: random.Random) -> bytes:
    """Change the recipe inside one of our files."""
    dataset = dataset_of()
    element = dataset[0x0099, 0x1001]
    recipe = json.loads(element.value)
    for _ in range(rng.choice((1, 1, 3))):
        field = rng.choice([*recipe, "new field"])
        recipe[field] = rng.choice(
            (*STRINGS[:16], *INTEGERS, -1, 1e308, None, True, [], {}, [["a", "b", 1]], [[]] * 1000)
        )
    text = json.dumps(recipe)
    element.value = rng.choice(
        (text, text, text[: rng.randrange(len(text))], "[" * 100_000, text.replace("1", "1" * 5000))
    )
    return _written(dataset, data)


def _written(dataset: Dataset, otherwise: bytes) -> bytes:
    try:
        with quiet():  # pydicom says a word about each lie that it is made to write
            return file_of(dataset)
    except Exception:  # what cannot be written is no file
        return otherwise[: len(otherwise) // 2]


def nested(data: bytes, rng: random.Random) -> bytes:
    """Nest sequences, of known and of unknown length, without end."""
    depth, body = rng.choice((3, 60, 500, 5000, 20_000)), b""
    tag = rng.choice((b"\x08\x00\x40\x11", b"\x28\x00\x10\x30", b"\x00\x52\x29\x92"))
    if rng.random() < 0.5:
        body = (tag + b"SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * depth
    else:
        for _ in range(min(depth, 1500)):
            item = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(body)) + body
            body = tag + b"SQ\0\0" + struct.pack("<I", len(item)) + item
    start = data.find(b"\x28\x00\x02\x00US")
    start = start if start > 0 else len(data)
    return data[:start] + body + data[start:]


DICOM: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(lying_length, lying_length, wrong_syntax, lying_header, lying_header, nested),
)


# ---- adapters -------------------------------------------------------------------------------------------------------


def lying_tensors(data: bytes, rng: random.Random) -> bytes:
    """Change names, types, shapes and offsets in the header of a safetensors file, or the length of the header."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        name = rng.choice([name for name, entry in header.items() if isinstance(entry, dict) and "dtype" in entry])
    except (ValueError, AttributeError, IndexError, RecursionError):  # damaged already
        return lie(data, rng)
    entry = header[name]
    how = rng.randrange(9)
    if how == 0:
        entry["shape"] = rng.choice(([2**40, 2**40], [2**63], [0, 2**62], [-1, 8], [1] * 5000, ["8"], None, [16], []))
    elif how == 1:
        entry["data_offsets"] = rng.choice(
            ([0, 2**63], [64, 0], [-8, 56], [0], None, [0, 64], [10**30, 10**30], [1, 65])
        )
    elif how == 2:
        entry["dtype"] = rng.choice(("F64", "I64", "BOOL", "F8_E4M3", "U8", "BF16", "", "../x", None, "C64", "F4"))
    elif how == 3:
        header[rng.choice(("../../x", "", "unet." * 2000, "a" * 10**6, "__class__", name + ".lora_A.weight"))] = entry
    elif how == 4:
        notes: Any = rng.choice(
            ({"name": "../../<b>"}, {"lora_adapter_metadata": "[" * 50_000}, {"modality": "x" * 10**6})
        )
        notes = rng.choice((notes, {"a": 1}, [], "text", {"lora_adapter_metadata": '{"unet.r": 1e999}'}))
        header["__metadata__"] = notes
    elif how == 5:
        config: Any = rng.choice((
            {"unet.target_modules": "(a+)+$"}, {"unet.r": 0}, {"unet.r": -2}, {"unet.lora_alpha": 1e308},
            {"unet.rank_pattern": {"(x*)*y": 2}}, {"unet.r": "2"}, {"unet.target_modules": [[]]},
            {"unet.use_dora": True},
            {"unet.alpha_pattern": {"": 0}}, {"unet.r": 2, "unet.lora_alpha": None}, {"unet.auto_mapping": {}},
        ))  # fmt: skip
        header["__metadata__"] = {"lora_adapter_metadata": json.dumps(config)}
    elif how == 6:
        header = {f"{name}.{i}": entry for i in range(50_000)}
    elif how == 7:
        text = json.dumps(header).encode()
        claimed = rng.choice((0, 1, len(text) - 1, len(data), 2**31, 2**63, 2**64 - 1, 100_000_001))
        return struct.pack("<Q", claimed) + text + data[8 + length :]
    else:
        text = rng.choice(
            (b"[" * 200_000, b"{}", b'{"a":' * 50_000, b"\xff" * 100, b'{"a":{"dtype":"F32"}}', b" " * 2**20)
        )
        return struct.pack("<Q", len(text)) + text + data[8 + length :]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


# ---- tables ---------------------------------------------------------------------------------------------------------


def lying_table(data: bytes, rng: random.Random) -> bytes:
    """Put paths, formulas, quotes and endless cells into a CSV table."""
    lines = data.decode("utf-8", "replace").splitlines()
    cell = rng.choice(
        (*STRINGS, '"', '""",""', "a,b,c,d,e,f", "\n" * 1000, f"image.png,{PLANTED}", "9" * 30, "x" * 10**6)
    )
    how = rng.randrange(4)
    if how == 0:
        lines.insert(rng.randrange(len(lines) + 1), cell)
    elif how == 1:
        lines[rng.randrange(len(lines))] += "," + cell
    elif how == 2:
        lines += lines[1:] * min(20_000, MAX_BYTES // max(1, len(data)))
    else:
        lines[-1] = ",".join([cell] * len(lines[0].split(",")))
    return "\n".join(lines).encode("utf-8", "surrogatepass")
