"""Read a file of a stranger in a process of its own, under limits on memory, time and bytes: for servers.

`guarded_child` runs the process; here is what it is asked, and that nothing it answers is believed unseen.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from . import dicom_burned_in, dicom_input, dicom_limits, guarded_child

ImageInputError = dicom_limits.ImageInputError
InputImage = dicom_input.InputImage

_LONGEST = dicom_limits.MAX_PIXELS * 3 * 4 + 2**20
_DAMAGED = "`image` cannot be read; it may be damaged."
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class GuardedImage:
    """What came of reading a stranger's image.

    Attributes
    ----------
    image : InputImage
        As of `read_image`.
    text : tuple of (top, left, bottom, right)
        Where there looks to be text in the picture, in pixels of `image.pixels`, the surest first.
    """

    image: InputImage
    text: tuple[tuple[int, int, int, int], ...]

    @property
    def warning(self) -> str | None:
        """Where text was found, in a sentence; None where there is none."""
        return dicom_burned_in.in_words(self.text, self.image.burned_in_annotation)


def read_guarded(
    path: str | os.PathLike[str],
    *,
    frame: int | None = None,
    seconds: float = guarded_child.MAX_SECONDS,
    memory: int = guarded_child.MAX_MEMORY,
) -> GuardedImage:
    """Read a DICOM file or picture as `read_image` does, in a child process, and look for burned-in text.

    Parameters
    ----------
    path
        The file.
    frame
        As of `read_image`.
    seconds
        The child is ended after so long, and after 30 seconds of work.
    memory
        Bytes of address space that the child may have (not held on Windows and macOS).

    Raises
    ------
    ImageInputError
        In one sentence that repeats nothing of the file, also where the child crashed or was ended.
    """
    if frame is not None:
        dicom_limits.chosen_frame(frame, dicom_limits.MAX_FRAMES, 1)
    dicom_input.check_file(path)
    data = guarded_child.ask_child(
        "guarded_reading.answer", frame or 0, path, named="image", seconds=seconds, memory=memory, longest=_LONGEST
    )
    return _understood(data)


def _understood(data: bytes) -> GuardedImage:
    """Take the child's answer apart, believing nothing of it."""
    head, _, body = data.partition(b"\n")
    found = dicom_limits.attempt(lambda: _parts(json.loads(head), body), _DAMAGED)
    if isinstance(found, str):
        raise ImageInputError(found)
    return found


def _parts(head: dict[str, Any], body: bytes) -> GuardedImage | str:
    if "error" in head:
        return str(head["error"])[:400]
    shape = tuple(int(side) for side in head["shape"])
    if len(shape) not in (2, 3) or min(shape) < 1 or (len(shape) == 3 and shape[2] != 3):
        raise ValueError
    dicom_limits.check_size(*shape[:2])
    pixels = np.frombuffer(body, "<f4").reshape(shape)
    if not (pixels.min() >= 0 and pixels.max() <= 1) or not _SHA256.fullmatch(head["sha256"]):
        raise ValueError
    spacing = None if head["spacing"] is None else (float(head["spacing"][0]), float(head["spacing"][1]))
    modality = None if head["modality"] is None else str(head["modality"])[:16]
    boxes = tuple((int(a), int(b), int(c), int(d)) for a, b, c, d in head["text"])
    return GuardedImage(InputImage(pixels, modality, spacing, head["sha256"], bool(head["says"])), boxes)


def answer(stream: BinaryIO, frame: int) -> bytes:
    """In the child: a line that says what was read (no frame is 0), and the pixels."""
    try:
        data = dicom_input.read_stream(stream)
        image = dicom_input.read_image(data, frame=frame or None)
        text = dicom_burned_in.find_text(image.pixels)
    except ImageInputError as error:
        return json.dumps({"error": str(error)}).encode()
    except Exception:  # hostile files raise anything
        return json.dumps({"error": _DAMAGED}).encode()
    head: dict[str, Any] = {"shape": image.pixels.shape, "modality": image.modality, "spacing": image.pixel_spacing}
    head |= {"sha256": image.sha256, "text": [region.box for region in text], "says": image.burned_in_annotation}
    return json.dumps(head).encode() + b"\n" + np.ascontiguousarray(image.pixels, "<f4").tobytes()
