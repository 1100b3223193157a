"""The doors through which files come in, tried one file at a time in a process of its own.

A door takes a file as a user would give it, and gives all that it says of it. What it may do: read the file, or refuse
it with a ValueError of one sentence.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .hostile_seeds import PLANTED, PLANTED_NUMBER

LIMIT = 8 * 2**30  # bytes of address space, of which torch alone takes half
LONGEST_MESSAGE = 1200  # characters: a sentence that names what is wrong, and not the file's content


@dataclass(frozen=True)
class Outcome:
    """What came of one file at one door.

    Attributes
    ----------
    how : {"read", "refused", "crashed", "hung"}
        Crashed: any error that is not a ValueError, or the end of the process.
    detail : str
        Kind and place of a crash; empty otherwise.
    leaks : tuple of str
        Where a planted identifier was found: "answer", "output" (standard output, error and logs) or "temporary file".
    memory : int
        Bytes that the process took at most while it was tried, beyond what it had before.
    seconds : float
        How long it took.
    """

    how: str
    detail: str = ""
    leaks: tuple[str, ...] = ()
    memory: int = 0
    seconds: float = 0.0


# ---- the doors ------------------------------------------------------------------------------------------------------


def _image(path: Path) -> Any:
    from pipeline.dicom_input import read_image

    read = read_image(path)
    return read.modality, read.pixel_spacing, read.sha256


def _upload(path: Path) -> Any:
    from pipeline.guarded_reading import read_guarded

    read = read_guarded(path)
    return read.image.modality, read.image.pixel_spacing, read.warning


def _verify(path: Path) -> Any:
    from pipeline.verification import verify

    return verify(path).in_words()


def _recipe(path: Path) -> Any:
    from pipeline import verification
    from pipeline.replaying import check_recipe

    recipe = verification.recipe_in(*verification.read(path))
    return None if recipe is None else check_recipe(recipe).digest()


def _training(path: Path) -> Any:
    """A folder with the file beside its captions, as `lora.train` reads it."""
    from lora.data import read_training_data

    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, Path(folder, f"{PLANTED}.dcm"))
        data = read_training_data(folder, size=32, validation_share=0, default_caption="an image", frames_per_file=2)
        return data.captions, data.modalities, data.unreadable, data.attributions, data.licences


def _captions(path: Path) -> Any:
    """A table of captions beside a picture, as `lora.train` reads it."""
    from PIL import Image

    from lora.data import read_training_data

    with tempfile.TemporaryDirectory() as folder:
        Image.new("L", (8, 8), 3).save(Path(folder, "image.png"))
        shutil.copy(path, Path(folder, "metadata.csv" if path.stat().st_size % 2 else "captions.csv"))
        read_training_data(folder, size=32, validation_share=0, default_caption="an image")


def _prompts(path: Path) -> Any:
    from pipeline.batch_csv import read_rows

    read_rows(path)  # what it says, it says to whom the list is


def _adapter(path: Path) -> Any:
    from pipeline.adapter_files import read_adapter

    adapter = read_adapter(path, max_bytes=50 * 2**20)
    return adapter.sha256, adapter.modality, adapter.scalings


DOORS: dict[str, Callable[[Path], Any]] = {
    "image": _image,
    "upload": _upload,
    "verify": _verify,
    "recipe": _recipe,
    "training": _training,
    "captions": _captions,
    "prompts": _prompts,
    "adapter": _adapter,
}
# What they import, loaded before the first file comes.
MODULES: dict[str, tuple[str, ...]] = {
    "image": ("pipeline.dicom_input",),
    "upload": ("pipeline.guarded_reading",),
    "verify": ("pipeline.verification",),
    "recipe": ("pipeline.verification", "pipeline.replaying"),
    "training": ("lora.data",),
    "captions": ("lora.data",),
    "prompts": ("pipeline.batch_csv",),
    "adapter": ("pipeline.adapter_files",),
}
# How a file that comes in there is called.
SUFFIXES = {"adapter": ".safetensors", "prompts": ".csv", "captions": ".csv"}


# ---- trying ---------------------------------------------------------------------------------------------------------


def serve(connection: Connection, folder: str) -> None:
    """Load what doors need, then try what comes, door and bytes; `folder` holds output and temporary files."""
    output, scratch = Path(folder, "output"), Path(folder, "scratch")
    scratch.mkdir(exist_ok=True)
    tempfile.tempdir = str(scratch)
    os.environ["TMPDIR"] = str(scratch)
    _limit_memory()
    log = os.open(output, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["TQDM_DISABLE"] = "1"
    for name in sorted({name for door in connection.recv() for name in MODULES[door]}):
        importlib.import_module(name)
    connection.send("ready")
    while True:
        try:
            door, data = connection.recv()
        except EOFError:
            return
        connection.send(_tried(door, data, output, scratch))


def _limit_memory() -> None:
    """A file that gets past all limits must not take the machine along; what it wanted is an error, and counted."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    except (ImportError, ValueError, OSError):  # not on this system
        return


def _tried(door: str, data: bytes, output: Path, scratch: Path) -> Outcome:
    path = scratch.parent / f"{PLANTED}{SUFFIXES.get(door, '.dcm')}"
    path.write_bytes(data)
    shutil.rmtree(scratch, ignore_errors=True)  # of a file that stopped the process before
    scratch.mkdir()
    before, start = _memory_now(), time.perf_counter()
    how, detail, answer = "read", "", ""
    try:
        answer = repr(DOORS[door](path))
    except ValueError as error:
        how, answer = "refused", f"{error} {_causes(error)}"
        if len(str(error)) > LONGEST_MESSAGE or "\n" in str(error):
            how, detail = "crashed", f"a message of {len(str(error))} characters"
    except BaseException as error:
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = f"{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place else ""
        how, detail = "crashed", f"{type(error).__name__} at {where}"
    seconds, memory = time.perf_counter() - start, _most_memory() - before
    sys.stdout.flush()
    sys.stderr.flush()
    said = output.read_bytes()
    os.truncate(output, 0)
    left = [file for file in scratch.rglob("*") if file.is_file()]
    leaks = ["answer"] * (door not in ("prompts",) and _leaks(answer.encode("utf-8", "replace")))
    leaks += ["output"] * _leaks(said)
    leaks += ["temporary file"] * bool(left)
    for file in left:
        file.unlink()
    path.unlink(missing_ok=True)
    return Outcome(how, detail, tuple(leaks), max(memory, 0), seconds)


def _causes(error: BaseException) -> str:
    """What a traceback would print with it."""
    texts: list[str] = []
    while len(texts) < 9:
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if cause is None:
            break
        texts.append(str(cause))
        error = cause
    return " ".join(texts)


def _leaks(data: bytes) -> bool:
    """Whether a planted identifier is in there, in any case and in the encodings that files have."""
    data = data.lower()
    words = (PLANTED.lower(), PLANTED_NUMBER)
    return any(word.encode(code) in data for word in words for code in ("utf-8", "utf-16-le", "utf-16-be"))


def _status(name: str) -> int:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:  # not Linux: not measured
        return 0
    return 1024 * int(found[1]) if found else 0


def _memory_now() -> int:
    """Memory in use; the record of the most is set back to it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _status("VmHWM")
    return _status("VmRSS")


def _most_memory() -> int:
    return _status("VmHWM")
