"""What strangers send: read in a process of its own, stored without its name, refused where text is burned in."""

from __future__ import annotations

from typing import Any

import gradio as gr
import gradio.processing_utils
import gradio.route_utils
import numpy as np
import PIL.Image
import PIL.ImageDraw

from pipeline.dicom_input import InputImage
from pipeline.dicom_pixels import to_picture
from pipeline.dicom_profiles import PROFILES
from pipeline.guarded_reading import GuardedImage, read_guarded

MAX_FILES = 1  # of one request
CONFIRM = "The picture holds no text that names a person, or I may share it"
_RED, _SIDE = (255, 64, 64), 512


def checked_upload(image: str, frame: int | None, confirmed: bool) -> InputImage:
    """Read an upload; one with what looks like burned-in text only if its user has confirmed it.

    Raises
    ------
    ValueError
        It cannot be read within the limits, or holds text that was not confirmed.
    """
    read = read_guarded(image, frame=frame)
    if read.warning and confirmed is not True:
        raise ValueError(f"{read.warning}. Cut it out, or confirm that it may be used (`text_confirmed`)")
    return read.image


def preview_of(image: str, frame: int | None) -> tuple[PIL.Image.Image, str | None]:
    """Give an upload as it was read, with boxes about what looks like text, and a sentence about it."""
    read = read_guarded(image, frame=frame)
    picture = to_picture(read.image.pixels, PROFILES["secondary-capture"])
    if read.text:
        picture = _with_boxes(picture, read)
    picture.thumbnail((_SIDE, _SIDE))
    return picture, read.warning


def _with_boxes(picture: PIL.Image.Image, read: GuardedImage) -> PIL.Image.Image:
    picture = picture.convert("RGB")
    drawing = PIL.ImageDraw.Draw(picture)
    width = max(1, round(max(picture.size) / _SIDE))  # is seen after the picture is made smaller
    for top, left, bottom, right in read.text:
        box = np.clip((left - 2, top - 2, right + 1, bottom + 1), 0, (*picture.size, *picture.size))
        drawing.rectangle([int(side) for side in box], outline=_RED, width=width)
    return picture


def confirmation() -> gr.Checkbox:
    """Lay out the box that a user ticks; it is there only where there is something to confirm."""
    return gr.Checkbox(False, label=CONFIRM, visible=False, elem_id="text-confirmed")


class NamelessUpload(gradio.route_utils.GradioUploadFile):
    """An upload of which the server keeps no name: it may be a patient's, and a program may send any."""

    def __init__(self, *args: Any, filename: str | None = None, **options: Any) -> None:
        suffix = ".safetensors" if (filename or "").lower().endswith(".safetensors") else ""
        super().__init__(*args, filename="upload" + suffix, **options)


class OneFile(gradio.route_utils.GradioMultiPartParser):
    """Takes one file a request: Gradio's own limit is on the size of each of a thousand."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "max_files": MAX_FILES, "max_fields": 8})


async def fetch_nothing(url: str, cache_dir: str) -> str:
    """Refuse the address that a request gives for a file: Gradio would go and fetch it, whatever its size."""
    raise gr.Error("Give a file, not an address.", print_exception=False)


def guard_uploads() -> None:
    """Make Gradio store uploads without their names, one a request, and fetch nothing for anybody."""
    gradio.processing_utils.async_ssrf_protected_download = fetch_nothing
    gradio.route_utils.GradioUploadFile = NamelessUpload  # type: ignore[misc]
    gradio.route_utils.GradioMultiPartParser = OneFile  # type: ignore[misc]
