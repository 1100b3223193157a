"""Read a file of a stranger in a process of its own, under limits on memory, time and bytes: for servers.

Decoders are C code, and a file can be made to crash them or to keep them busy. Here that ends the child alone: its
owner gets one sentence, and nobody else anything. The child writes no file, has none of the environment's secrets, and
what it sends back is checked like any other input.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from . import dicom_burned_in, dicom_input, dicom_limits

ImageInputError = dicom_limits.ImageInputError
InputImage = dicom_input.InputImage

MAX_SECONDS = 120.0  # from start to answer, on a machine that has other things to do
MAX_WORK = 30  # seconds of a processor; one is usual
MAX_MEMORY = 3 * 2**30  # address space: an image of all the pixels allowed fits
_LONGEST_ANSWER = dicom_limits.MAX_PIXELS * 3 * 4 + 2**20
_PACKAGE = Path(__file__).resolve().parent
_START = "import sys; sys.path[:] = sys.argv[3:]; from {0}.guarded_reading import answer; answer(*sys.argv[1:3])"
# What Python and its libraries need to start; tokens and keys stay behind.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "LANG", "LC_ALL", "TMPDIR", "TEMP")
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
    seconds: float = MAX_SECONDS,
    memory: int = MAX_MEMORY,
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
    command = [sys.executable, "-P", "-c", _START.format(_PACKAGE.name), str(frame or 0), str(memory)]
    # The parent's own places of modules, made absolute: the child must find the same ones, wherever it is started.
    command += [str(_PACKAGE.parent), *(os.path.abspath(place) for place in sys.path if place)]
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    environment |= {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    returned, data = _asked(command, path, environment, seconds)
    if returned is None:
        raise ImageInputError(f"`image` takes longer than the {seconds:g} seconds allowed to read.")
    if returned:
        raise ImageInputError("`image` cannot be read within the memory and time allowed; the file may be damaged.")
    return _understood(data)


def _asked(
    command: list[str], path: str | os.PathLike[str], environment: dict[str, str], seconds: float
) -> tuple[int | None, bytes]:
    """Run the child; gives its exit status, None if it was ended for being late, and what it wrote."""
    missing = "`image` is a path at which there is no file that can be opened."
    late = threading.Event()
    with (
        dicom_limits.attempt(lambda: open(path, "rb"), missing) as file,
        subprocess.Popen(
            command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, cwd=_PACKAGE.parent
        ) as child,
    ):

        def end() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            assert child.stdout is not None
            data = child.stdout.read(_LONGEST_ANSWER)
            if len(data) == _LONGEST_ANSWER:
                child.kill()
            status = child.wait()
        finally:
            timer.cancel()
            child.kill()  # where this was broken off; else it has ended already
    return (None if late.is_set() else status), data


def _understood(data: bytes) -> GuardedImage:
    """Take the child's answer apart, believing nothing of it."""
    head, _, body = data.partition(b"\n")
    found = dicom_limits.attempt(lambda: _parts(json.loads(head), body), "`image` cannot be read; it may be damaged.")
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


def answer(frame: str, memory: str) -> None:
    """Be the child: read standard input, write the answer to standard output."""
    _limit(int(memory))
    head, body = _read(sys.stdin.buffer, int(frame) or None)
    sys.stdout.buffer.write(json.dumps(head).encode() + b"\n")
    sys.stdout.buffer.write(body)
    sys.stdout.buffer.flush()
    os._exit(0)  # at once: what a damaged file may have left behind in a decoder is not tidied up


def _limit(memory: int) -> None:
    try:
        import resource
    except ImportError:  # Windows: the time alone is held
        return
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),  # no file may be written
        (resource.RLIMIT_CORE, 0),  # and no memory dumped after a crash: it holds the image
        (resource.RLIMIT_CPU, MAX_WORK),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(what, (most, most))
        except (ValueError, OSError):  # macOS knows no limit on address space
            continue


def _read(stream: BinaryIO, frame: int | None) -> tuple[dict[str, Any], bytes]:
    """Read an image; gives what stands in the answer's first line, and the pixels."""
    try:
        data = dicom_input.read_stream(stream)
        image = dicom_input.read_image(data, frame=frame)
        text = dicom_burned_in.find_text(image.pixels)
    except ImageInputError as error:
        return {"error": str(error)}, b""
    except Exception:  # hostile files raise anything
        return {"error": "`image` cannot be read; it may be damaged."}, b""
    head: dict[str, Any] = {"shape": image.pixels.shape, "modality": image.modality, "spacing": image.pixel_spacing}
    head |= {"sha256": image.sha256, "text": [region.box for region in text], "says": image.burned_in_annotation}
    return head, np.ascontiguousarray(image.pixels, "<f4").tobytes()
