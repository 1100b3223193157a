"""What the page needs besides its layout: style, errors as sentences, a header as rows, steps as they happen."""

from __future__ import annotations

import html
import json
import logging
import queue
import re
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import PIL.Image
import pydicom
from gradio.context import LocalContext
from pydicom import Dataset
from pydicom.dataelem import DataElement
from pydicom.uid import UID

from app_sweep import PREFIX
from pipeline.dicom_files import write_files
from pipeline.dicom_input import square
from pipeline.dicom_pixels import to_picture
from pipeline.dicom_profiles import PROFILES, DicomProfile
from pipeline.dicom_provenance import read_recipe

LOGGER = logging.getLogger("synthetic_dicom.app")
PREVIEWS = 5  # a run: each costs a decode, and the eye needs no more
LONGEST_VALUE = 200  # characters of a header value in the table
_ONE_AT_A_TIME = threading.Lock()

# System fonts: the page asks no other machine for anything.
THEME = gr.themes.Default(
    primary_hue="teal",
    neutral_hue="slate",
    radius_size="md",
    font=["ui-sans-serif", "system-ui", "sans-serif"],
    font_mono=["ui-monospace", "Consolas", "monospace"],
).set(
    # Darker than the theme's own, so that white letters can be read on it.
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    block_label_text_color="*neutral_600",
    block_info_text_color="*neutral_600",
)

CSS = """
footer { display: none !important; }
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
#title > div, #status > div { padding: 0; }
#title h1 { font-size: 1.7rem; margin: 0; }
#title p { margin: .15rem 0 0; }
#title p, .note { color: color-mix(in srgb, var(--body-text-color) 75%, transparent); }
.note { font-size: .9rem; }
#banner > div { border: 1px solid #d97706; border-left-width: 6px; border-radius: 6px; padding: .5rem .8rem;
  background: color-mix(in srgb, #f59e0b 14%, var(--body-background-fill)); }
.bar { height: 6px; border-radius: 3px; background: var(--border-color-primary); overflow: hidden; margin-top: .3rem; }
.bar > div { height: 100%; background: var(--color-accent); }
#gallery img, #source img { background: #000; }
#source img { width: 100%; height: 100%; object-fit: contain; }
#seed { background: var(--block-background-fill); align-items: flex-end; }
#dice { margin: 0 .8rem .75rem 0; }
#files .label-clear-button { display: none; }
.tab-container button.selected { color: var(--primary-700); }
.dark .tab-container button.selected { color: var(--primary-400); }
#results { scroll-margin-top: .5rem; }
.view img { background: #000; width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated; }
#legend .key { margin-right: 1rem; }
#legend .key::before { content: ""; display: inline-block; width: .8em; height: .8em; border-radius: 2px;
  margin-right: .35em; background: var(--label); }
@media (max-width: 900px) { #results { min-height: 95vh; } }
.tab-container button { padding-inline: .55rem !important; }
@media (max-width: 480px) { .tab-container button { padding-inline: .35rem !important; font-size: .8rem !important; } }
"""


# A file's name may be a patient's: it is taken off before the page or the server sees it. And files can be dropped.
HEAD = """<script>
const nameless = (files) => {
  const kept = new DataTransfer();
  for (const file of files) {
    const suffix = file.name.toLowerCase().endsWith(".safetensors") ? ".safetensors" : "";
    kept.items.add(new File([file], "upload" + suffix, {type: file.type}));
  }
  return kept.files;
};
document.addEventListener("change", ({target}) => {
  if (target.type === "file") target.files = nameless(target.files);
}, true);
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  const zone = event.target.closest("#image-tab, #verify-tab, #adapter-file");
  const input = zone?.querySelector("input[type=file]");
  if (zone) event.stopPropagation();  // Gradio would send the name
  if (!input || !event.dataTransfer.files.length) return;
  input.files = event.dataTransfer.files;
  input.dispatchEvent(new Event("change", {bubbles: true}));
}, true);
</script>"""


# ---- errors -------------------------------------------------------------------------------------------------------


@contextmanager
def toasts() -> Iterator[None]:
    """Turn errors into messages for the page: a ValueError as a sentence, any other without its text."""
    try:
        yield
    except gr.Error:
        raise
    except ValueError as error:
        raise gr.Error(html.escape(sentence(str(error)), quote=False), print_exception=False) from None
    except Exception as error:
        # The text of an error may hold a path or the name of an uploaded file: only its kind and place are logged.
        place = traceback.extract_tb(error.__traceback__)[-1]
        LOGGER.error("%s in %s, line %s", type(error).__name__, Path(place.filename).name, place.lineno)
        message = "Something went wrong on this side. Please try again."
        raise gr.Error(message, print_exception=False) from None


def sentence(message: str) -> str:
    """Write an error of the code for a person: no backticks and underscores, a capital and a full stop."""
    text = re.sub(r"`([^`]*)`", lambda name: name[1].replace("_", " ").replace(".", " "), " ".join(message.split()))
    text = text.replace("num inference steps", "steps").replace("num images per prompt", "number of images")
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."


# ---- the header ---------------------------------------------------------------------------------------------------


def header_rows(dataset: Dataset) -> list[list[str]]:
    """Give tag, name and value of every element, also those inside sequences; the file meta information comes last."""
    meta = getattr(dataset, "file_meta", None) or Dataset()
    return [row for part in (dataset, meta) for element in part for row in _rows(element, "")]


def _rows(element: DataElement, indent: str) -> Iterator[list[str]]:
    tag, name = f"({element.tag.group:04X},{element.tag.element:04X})", indent + element.name
    if element.VR == "SQ":
        yield [tag, name, f"{len(element.value)} item" + ("s" if len(element.value) != 1 else "")]
        for item in element.value:
            for inner in item:
                yield from _rows(inner, indent + "› ")
    else:
        yield [tag, name, _text(element)]


def _text(element: DataElement) -> str:
    value = element.value
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, UID) and value.name != value:
        return f"{value.name} ({value})"
    text = " \\ ".join(map(str, value)) if element.VM > 1 else str(value)
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + " …"


# ---- what the page is given, and what it shows ---------------------------------------------------------------------


def number_in(text: str | float | None, name: str) -> Any:
    """Read a number that may be typed as text; None where it is empty."""
    if text is None or not str(text).strip():
        return None
    try:
        value = float(text)
        return int(value) if value == int(value) else value
    except (ValueError, OverflowError):
        raise ValueError(f"`{name}` is {str(text)[:40]!r}; allowed is a number, or nothing") from None


def given(prefix: str, values: dict[str, Any]) -> dict[str, Any] | None:
    """Give the values of one prefix that are not empty; None where all are."""
    found = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    return {name: value for name, value in found.items() if value not in ("", None)} or None


@dataclass(frozen=True)
class Result:
    """Files of one run, in the order of its images, and the source it started from."""

    dicoms: list[str]
    pngs: list[str]
    archive: str
    source: PIL.Image.Image | None = None


def save(output: Any, source: np.ndarray | None, cache: str) -> Result:
    """Write DICOM, PNG and zip into a new folder of the cache, which Gradio empties after a while."""
    Path(cache).mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=PREFIX, dir=cache)
    pictures = [np.asarray(image, np.float32) / 255 for image in output.images]
    paths = [str(path) for path in write_files(output.dicoms, folder, png_pixels=pictures)]
    archive = write_files(output.dicoms, folder, png_pixels=pictures, zip_archive=True)
    before = None
    if source is not None:
        before = to_picture(square(source, output.dicoms[0].Rows), PROFILES[output.recipes[0].modality])
    return Result(paths[: len(output.dicoms)], paths[len(output.dicoms) :], str(archive[0]), before)


def recipe_of(dataset: pydicom.Dataset) -> dict[str, Any]:
    """Give the recipe inside a dataset, for JSON."""
    recipe = read_recipe(dataset)
    return json.loads(recipe.to_json()) if recipe else {}


def indented(values: dict[str, Any]) -> str:
    """Write JSON for people: a line a field, and short lists on one line."""
    text = json.dumps(values, indent=2)
    return re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda row: "[" + re.sub(r",\n\s+", ", ", row[1]) + "]", text)


# ---- progress -----------------------------------------------------------------------------------------------------


def progress_html(number: int, total: int) -> str:
    """Draw a bar: so many steps of so many."""
    percent = round(100 * number / max(total, 1))
    words = f"Step {number} of {total}" if number else "Starting …"
    return (
        f'<div role="status">{words}<div class="bar" role="progressbar" aria-label="Denoising" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{percent}"><div style="width:{percent}%"></div></div></div>'
    )


@dataclass(frozen=True)
class Step:
    """One step of the denoising: its number, of how many, and now and then what the images look like."""

    number: int
    total: int
    previews: list[PIL.Image.Image] | None


def steps_of(draw: Any, profile: DicomProfile | None, total: int, arguments: dict[str, Any]) -> Iterator[Any]:
    """Run a pipeline (`draw`, called as one) and give each `Step` as it happens, then the output.

    Without a profile there are no previews.
    It runs in a thread of its own, one run at a time; when the caller stops listening, or the user who asked cancels or
    goes away, it stops at its next step.
    """
    waited_for = somebody_waits()
    happened: queue.Queue[Any] = queue.Queue()
    left = threading.Event()
    every = max(1, -(-total // PREVIEWS))

    def report(pipe: Any, index: int, _: int, tensors: dict[str, Any]) -> dict[str, Any]:
        if left.is_set() or not waited_for():
            raise _NobodyListens
        number, previews = index + 1, None
        if profile is not None and number % every == 0 and number < total:
            decoded = pipe.image_processor.pt_to_numpy(pipe.decode_latents_to_float(tensors["denoised"]))
            previews = [to_picture(pixels, profile) for pixels in decoded]
        happened.put(Step(min(number, total), total, previews))
        return {}

    def work() -> None:
        try:
            with _ONE_AT_A_TIME:
                callback: dict[str, Any] = {"callback_on_step_end": report}
                if profile is not None:
                    callback["callback_on_step_end_tensor_inputs"] = ("denoised",)
                happened.put(draw(**arguments, **callback))
        except BaseException as error:
            happened.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        while isinstance(news := happened.get(), Step):
            yield news
        if isinstance(news, BaseException):
            raise news
        yield news
    finally:
        left.set()


def somebody_waits() -> Callable[[], bool]:
    """Give a question to ask during the present call, namely whether its user still waits for it.

    Gradio stops calling a generator whose user has cancelled or gone, but it cannot stop a function.
    """
    event, blocks = LocalContext.event_id.get(None), LocalContext.blocks.get(None)
    if event is None or blocks is None:  # called by no page and no program
        return lambda: True
    jobs = blocks._queue.active_jobs
    return lambda: any(job._id == event and job.alive for some in list(jobs) for job in list(some or ()))


class _NobodyListens(Exception):
    """Ends a run whose page was closed or whose user pressed stop."""
