"""The Space: a page over the pipeline. Type a prompt or upload an image; see the result, download valid DICOM.

`python app.py` serves it at http://127.0.0.1:7860. SYNTHETIC_DICOM_MODEL names another model folder or Hub id;
SYNTHETIC_DICOM_KEEP_SECONDS says how long uploads and results are kept (an hour).
"""

from __future__ import annotations

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: the page asks no other machine anything
os.environ["TRANSFORMERS_VERBOSITY"] = os.environ["DIFFUSERS_VERBOSITY"] = "error"

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

try:
    import spaces  # before torch, or the shared GPU of a Space is not found

    on_gpu: Callable[[Any], Any] = spaces.GPU(duration=120)
except ImportError:

    def on_gpu(handler: Any) -> Any:
        """Leave a handler as it is where there is no shared GPU."""
        return handler


import gradio as gr
import pydicom

from app_adapters import AUTOMATIC, Adapters, PagePipeline
from app_parts import (
    CSS,
    HEAD,
    THEME,
    Result,
    Step,
    given,
    header_rows,
    indented,
    number_in,
    progress_html,
    recipe_of,
    save,
    sentence,
    steps_of,
    toasts,
)
from app_sweep import keep_swept
from app_uploads import checked_upload, confirmation, guard_uploads, preview_of
from app_verify import verify_tab
from app_volume import VolumeTab, load_volume_model
from pipeline.dicom_profiles import choose_profile
from pipeline.pipeline import best_device

MAX_IMAGES, MAX_STEPS, MAX_GUIDANCE, MAX_TEXT = 8, 100, 20, 1000
MAX_SEED = 2**32 - 1
MAX_UPLOAD = "50mb"
MAX_WAITING = 24  # requests in the queue; one more is asked to come again later
KEEP_SECONDS = int(os.environ.get("SYNTHETIC_DICOM_KEEP_SECONDS") or 3600)  # of uploads and results on this machine
MODALITY_CHOICES = [
    ("Automatic: what the prompt names", AUTOMATIC),
    ("Chest X-ray", "chest-xray"),
    ("CT", "ct"),
    ("Brain MRI", "brain-mri"),
    ("Blood smear", "blood-smear"),
    ("Cell nuclei", "nuclei"),
    ("Other (Secondary Capture)", "secondary-capture"),
]
EXAMPLES = [
    "axial T1 brain MRI with contrast, meningioma",
    "chest X-ray, PA view, pneumonia, 54 year old woman",
    "chest CT, lung window, malignant nodule, 61 year old man",
    "head CT, brain window, intracranial haemorrhage",
    "blood smear, neutrophil, May-Grünwald-Giemsa",
]
ADAPTER_EXAMPLES = {
    "nuclei": "fluorescence microscopy, cell nuclei",
    "covid-chest-xray": "frontal chest X-ray, AP view, COVID-19 pneumonia",
}


def load_model() -> PagePipeline:
    """Load the model onto the best device there is."""
    model = os.environ.get("SYNTHETIC_DICOM_MODEL") or str(Path(__file__).parent / "pipeline")
    if Path(model).is_dir() and not (Path(model) / "model_index.json").is_file():
        raise SystemExit("No model was found: SYNTHETIC_DICOM_MODEL, or else pipeline/, must hold a model_index.json.")
    pipe = PagePipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(best_device())


guard_uploads()
PIPE = load_model()
ADAPTERS = Adapters(PIPE)
VOLUME = VolumeTab(load_volume_model())
EXAMPLES += [prompt for name, prompt in ADAPTER_EXAMPLES.items() if name in ADAPTERS.shipped]


class Options(TypedDict, total=False):
    """What both tabs and both endpoints share; what is left out or empty is the model's own or made up."""

    modality: str
    number_of_images: int
    steps: int
    guidance: float
    negative_prompt: str
    patient_name: str
    patient_id: str
    patient_sex: str
    patient_birth_date: str
    study_description: str
    study_date: str
    study_accession_number: str
    study_referring_physician_name: str
    adapter: str
    adapter_strength: float
    adapter_hub_id: str


# ---- from the page to the pipeline and to files -------------------------------------------------------------------


def arguments_of(
    prompt: str, seed: int | str | None, patient_age: float | str | None, options: Options
) -> dict[str, Any]:
    """Give the pipeline's arguments; refuses what the page does not offer, whoever asks."""
    config, negative = PIPE.config, options.get("negative_prompt") or ""
    count = options.get("number_of_images", 1)
    steps = options.get("steps", config.default_num_inference_steps)
    guidance = options.get("guidance", config.default_guidance_scale)
    modality, first = options.get("modality") or AUTOMATIC, number_in(seed, "seed")
    for name, value, low, high in (
        ("number of images", count, 1, MAX_IMAGES),
        ("steps", steps, 1, MAX_STEPS),
        ("guidance", guidance, 0, MAX_GUIDANCE),
        ("seed", first or 0, 0, MAX_SEED),
    ):
        if not low <= value <= high or (name != "guidance" and value != int(value)):
            kind = "a number" if name == "guidance" else "a whole number"
            raise ValueError(f"`{name}` is {value}; allowed is {kind} from {low} to {high}")
    for name, text in (("prompt", prompt or ""), ("negative prompt", negative)):
        if len(text) > MAX_TEXT:
            raise ValueError(f"`{name}` has {len(text)} characters; at most {MAX_TEXT} are allowed")
    if not (prompt or "").strip():
        raise ValueError("`prompt` is empty; describe the image that you want")
    values = {**options, "patient_age": number_in(patient_age, "patient.age")}
    return {
        "prompt": prompt,
        "modality": None if modality == AUTOMATIC else modality,
        "num_images_per_prompt": int(count),
        "seed": random.randint(0, MAX_SEED - MAX_IMAGES) if first is None else int(first),
        "num_inference_steps": int(steps),
        "guidance_scale": guidance,
        "negative_prompt": negative,
        "patient": given("patient_", values),
        "study": given("study_", values),
    }


def with_image(
    arguments: dict[str, Any], image: str | None, strength: float, frame: int | str | None, confirmed: bool
) -> dict[str, Any]:
    """Add an input image, of which only the pixels are kept; burned-in text must be confirmed."""
    if not image:
        raise ValueError("`image` is missing; upload a DICOM file or a picture")
    if not 0 < strength <= 1:
        raise ValueError(f"`strength` is {strength}; allowed is above 0 and at most 1")
    return {
        **arguments,
        "image": checked_upload(image, number_in(frame, "frame"), confirmed).pixels,
        "strength": strength,
    }


# ---- handlers -----------------------------------------------------------------------------------------------------


def run(arguments: dict[str, Any], options: Options, adapter_file: str | None) -> Iterator[tuple[Any, Any, Any, Any]]:
    """Run the pipeline; give status, gallery, result and stop button: progress, previews, at last the images."""
    total = arguments["num_inference_steps"]
    if "image" in arguments:
        total = max(int(total * arguments["strength"]), 1)
    yield progress_html(0, total), gr.skip(), gr.skip(), gr.update(visible=True)
    prompt, modality = arguments["prompt"], arguments["modality"]
    adapter = ADAPTERS.choose(prompt, modality, options, adapter_file)
    draw = partial(ADAPTERS.draw, adapter) if adapter else PIPE
    profile = choose_profile(prompt, modality, adapter.modality if adapter else None)
    for news in steps_of(draw, profile, total, arguments):
        if isinstance(news, Step):
            previews = gr.update(value=news.previews, selected_index=0) if news.previews else gr.skip()
            yield progress_html(news.number, news.total), previews, gr.skip(), gr.skip()
        else:
            result = save(news, arguments.get("image"), demo.GRADIO_CACHE)
            pictures = [(path, f"Seed {seed}") for path, seed in zip(result.pngs, news.seeds, strict=True)]
            first, last = news.seeds[0], news.seeds[-1]
            words = f"1 image · {profile.title} · seed {first}"
            if len(pictures) > 1:
                words = f"{len(pictures)} images · {profile.title} · seeds {first} to {last}"
            if adapter:
                words += f" · adapter {adapter.name}, strength {adapter.strength:g}"
            checks = [recipe.copy_check for recipe in news.recipes if recipe.copy_check]
            if checks:
                copies, redrawn = sum(c.is_copy for c in checks), sum(c.redraws > 0 for c in checks)
                words += f" · {copies or 'no'} cop{'y' if copies == 1 else 'ies'} of training images"
                words += f", {redrawn} redrawn" if redrawn else ""
            yield words, gr.update(value=pictures, selected_index=0), result, gr.update(visible=False)


@on_gpu
def show_text_to_image(
    prompt: str, seed: int | str | None = None, patient_age: float | str | None = None,
    adapter_file: str | None = None, **options: Unpack[Options],
) -> Iterator[tuple[Any, Any, Any, Any]]:  # fmt: skip
    """Generate for the page."""
    with toasts():
        yield from run(arguments_of(prompt, seed, patient_age, options), options, adapter_file)


@on_gpu
def show_image_to_image(
    image: str | None, prompt: str, strength: float, frame: int | str | None = None, seed: int | str | None = None,
    patient_age: float | str | None = None, adapter_file: str | None = None, text_confirmed: bool = False,
    **options: Unpack[Options],
) -> Iterator[tuple[Any, Any, Any, Any]]:  # fmt: skip
    """Transform for the page."""
    with toasts():
        arguments = with_image(arguments_of(prompt, seed, patient_age, options), image, strength, frame, text_confirmed)
        yield from run(arguments, options, adapter_file)


def files_of(updates: Iterator[tuple[Any, Any, Any, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    """Wait for the end of a run; give its files and recipes."""
    result = list(updates)[-1][2]
    recipes = [recipe_of(pydicom.dcmread(path, stop_before_pixels=True)) for path in result.dicoms]
    return [*result.dicoms, *result.pngs, result.archive], recipes


@on_gpu
def text_to_image(
    prompt: str, seed: int | str | None = None, patient_age: float | str | None = None,
    adapter_file: str | None = None, **options: Unpack[Options],
) -> tuple[list[str], list[dict[str, Any]]]:  # fmt: skip
    """Make synthetic images of a prompt: paths of the DICOM files, the PNGs and a zip of all, and a recipe an image."""
    with toasts():
        return files_of(run(arguments_of(prompt, seed, patient_age, options), options, adapter_file))


@on_gpu
def image_to_image(
    image: str | None, prompt: str, strength: float, frame: int | str | None = None, seed: int | str | None = None,
    patient_age: float | str | None = None, adapter_file: str | None = None, text_confirmed: bool = False,
    **options: Unpack[Options],
) -> tuple[list[str], list[dict[str, Any]]]:  # fmt: skip
    """Make synthetic images of a DICOM file or picture and a prompt. The source may stay recognisable."""
    with toasts():
        arguments = with_image(arguments_of(prompt, seed, patient_age, options), image, strength, frame, text_confirmed)
        return files_of(run(arguments, options, adapter_file))


def show_source(image: str | None, frame: int | str | None) -> tuple[Any, Any]:
    """Show an upload as it was read, and what must be confirmed of it."""
    with toasts():
        if not image:
            return None, gr.update(visible=False, value=False)
        picture, warning = preview_of(image, number_in(frame, "frame"))
        if warning:
            gr.Warning(sentence(warning))
        return picture, gr.update(visible=bool(warning), value=False)


def show_image(result: Result | None, index: int = 0) -> dict[Any, Any]:
    """Show downloads, header and recipe of one image of a run."""
    if result is None or index >= len(result.dicoms):
        return {details: gr.skip()}
    dataset = pydicom.dcmread(result.dicoms[index])
    of = f" {index + 1}/{len(result.dicoms)}" if len(result.dicoms) > 1 else ""
    pair = (result.source, result.pngs[index]) if result.source else None
    return {
        details: gr.update(visible=True),
        comparison: gr.update(visible=pair is not None, value=pair),
        dicom_button: gr.update(value=result.dicoms[index], label="Download DICOM" + of),
        png_button: gr.update(value=result.pngs[index], label="Download PNG" + of),
        zip_button: gr.update(value=result.archive),
        files: [*result.dicoms, *result.pngs],
        header: header_rows(dataset),
        recipe: indented(recipe_of(dataset)),
    }


def show_chosen(result: Result | None, chosen: gr.SelectData) -> dict[Any, Any]:
    """Show the image that was chosen in the gallery."""
    return show_image(result, chosen.index)


def roll() -> str:
    """Roll a seed."""
    return str(random.randint(0, 999_999))


# ---- the page -----------------------------------------------------------------------------------------------------

NARROW_SCROLL = """(...values) => {
  if (window.innerWidth < 900) document.querySelector('#results')?.scrollIntoView({behavior: 'smooth'});
  return values;
}"""
RUNNING: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

CLEANING = min(600, 1 + KEEP_SECONDS // 4), KEEP_SECONDS  # how often, and what is how old

with gr.Blocks(title="Synthetic DICOM", delete_cache=CLEANING, analytics_enabled=False) as demo:
    results = gr.State(None)
    gr.HTML(
        "<h1>Synthetic DICOM</h1><p>Describe a medical image in a radiologist's words; "
        "get the picture and a valid DICOM file.</p>",
        elem_id="title",
    )
    gr.HTML(
        "<div role='note'><strong>Synthetic – not for diagnosis.</strong> "
        "A model makes up every image; no patient was examined.</div>",
        elem_id="banner",
    )
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            with gr.Tabs():
                with gr.Tab("Text to image") as text_tab:
                    text_prompt = gr.Textbox(
                        EXAMPLES[0], label="Prompt", lines=2, max_length=MAX_TEXT, elem_id="text-prompt"
                    )
                    generate_button = gr.Button("Generate", variant="primary", elem_id="generate")
                    gr.Examples(EXAMPLES, text_prompt, label="Examples", api_visibility="private")
                with gr.Tab("Image to image", elem_id="image-tab") as image_tab:
                    upload = gr.UploadButton("Upload or drop a DICOM file or a picture", size="md", elem_id="upload")
                    source_view = gr.Image(
                        label="Source",
                        format="png",
                        interactive=False,
                        visible=False,
                        height=240,
                        buttons=[],
                        elem_id="source",
                    )
                    text_confirmed = confirmation()
                    image_prompt = gr.Textbox(
                        "", label="Prompt", lines=2, max_length=MAX_TEXT, elem_id="image-prompt",
                        placeholder="What the result should be, for example: chest X-ray, PA view, pneumonia",
                    )  # fmt: skip
                    strength = gr.Slider(
                        0.05, 1, 0.6, step=0.05, label="Strength", info="How far to leave the source: 1 forgets it"
                    )
                    frame = gr.Textbox(
                        "", label="Frame", placeholder="the middle one", info="Of a file with several, counted from 1"
                    )
                    transform_button = gr.Button("Transform", variant="primary", elem_id="transform")
                    gr.HTML(
                        "The result may still resemble the source. This is not anonymisation: upload only what you "
                        "may share. Of a DICOM file only the pixels are used, nothing of its header.",
                        elem_classes="note",
                    )
                VOLUME.controls()
                verifying = verify_tab()
            with gr.Group() as settings:
                modality = gr.Dropdown(MODALITY_CHOICES, value=AUTOMATIC, label="Modality")
                adapter_controls = ADAPTERS.controls(QUICK)
                number_of_images = gr.Slider(1, MAX_IMAGES, 1, step=1, label="Number of images")
                with gr.Row(elem_id="seed"):
                    seed = gr.Textbox("", label="Seed", placeholder="another one each time", scale=4)
                    dice_button = gr.Button("⚄ Roll", elem_id="dice", scale=0, min_width=90, size="md")
            with gr.Accordion("More settings", open=False) as more:
                steps = gr.Slider(1, MAX_STEPS, PIPE.config.default_num_inference_steps, step=1, label="Steps")
                guidance = gr.Slider(
                    0, MAX_GUIDANCE, PIPE.config.default_guidance_scale, step=0.1, label="Guidance",
                    info="How closely to follow the prompt",
                )  # fmt: skip
                negative_prompt = gr.Textbox("", label="Negative prompt", max_length=MAX_TEXT)
            with gr.Accordion("Patient and study (optional)", open=False) as people:
                gr.HTML("What stays empty is made up, recognisably. Do not enter a real person.", elem_classes="note")
                with gr.Row():
                    patient_name = gr.Textbox("", label="Patient's name", placeholder="Doe^Jane")
                    patient_id = gr.Textbox("", label="Patient ID")
                with gr.Row():
                    patient_sex = gr.Dropdown(
                        [("As prompted", ""), ("Female", "F"), ("Male", "M"), ("Other", "O")],
                        value="", label="Sex",
                    )  # fmt: skip
                    patient_age = gr.Textbox("", label="Age in years")
                with gr.Row():
                    patient_birth_date = gr.Textbox("", label="Birth date", placeholder="YYYYMMDD")
                    study_date = gr.Textbox("", label="Study date", placeholder="YYYYMMDD")
                with gr.Row():
                    study_description = gr.Textbox("", label="Study description")
                    study_accession_number = gr.Textbox("", label="Accession number")
                study_referring_physician_name = gr.Textbox("", label="Referring physician")
        with gr.Column(scale=6, min_width=320, elem_id="results") as column:
            status = gr.HTML("Your images appear here.", elem_id="status", elem_classes="note")
            gallery = gr.Gallery(
                label="Images", format="png", columns=4, object_fit="contain", height=420, preview=True,
                buttons=["fullscreen"], elem_id="gallery", interactive=False,
            )  # fmt: skip
            stop_button = gr.Button("Stop", size="sm", visible=False)
            with gr.Column(visible=False) as details:
                with gr.Row():
                    dicom_button = gr.DownloadButton("Download DICOM", variant="primary", size="md", elem_id="dicom")
                    png_button = gr.DownloadButton("Download PNG", size="md", elem_id="png")
                    zip_button = gr.DownloadButton("Download all (zip)", size="md", elem_id="zip")
                comparison = gr.ImageSlider(
                    label="Before and after", format="png", interactive=False, visible=False, height=380,
                    buttons=[], elem_id="comparison",
                )  # fmt: skip
                with gr.Tabs():
                    with gr.Tab("DICOM header"):
                        header = gr.Dataframe(
                            headers=["Tag", "Name", "Value"], show_search="search", interactive=False, wrap=True,
                            max_height=420, show_label=False, column_widths=["21%", "34%", "45%"], elem_id="header",
                        )  # fmt: skip
                    with gr.Tab("Recipe"):
                        gr.HTML("All that is needed to make this image again.", elem_classes="note")
                        recipe = gr.Code(
                            language="json", max_lines=24, interactive=False, show_label=False, wrap_lines=True,
                            buttons=["copy", "download"], elem_id="recipe",
                        )  # fmt: skip
                    with gr.Tab("Files"):
                        files = gr.File(file_count="multiple", interactive=False, show_label=False, elem_id="files")
        VOLUME.results()

    shared = {
        "seed": seed, "patient_age": patient_age, "modality": modality, "number_of_images": number_of_images,
        "steps": steps, "guidance": guidance, "negative_prompt": negative_prompt, "patient_name": patient_name,
        "patient_id": patient_id, "patient_sex": patient_sex, "patient_birth_date": patient_birth_date,
        "study_description": study_description, "study_date": study_date,
        "study_accession_number": study_accession_number,
        "study_referring_physician_name": study_referring_physician_name, **adapter_controls,
    }  # fmt: skip
    from_text = {"prompt": text_prompt, **shared}
    from_image = {
        "image": upload, "prompt": image_prompt, "strength": strength, "frame": frame, "text_confirmed": text_confirmed,
        **shared,
    }  # fmt: skip
    shown = [details, comparison, dicom_button, png_button, zip_button, files, header, recipe]
    runs = [
        gr.on(
            triggers, handler, inputs_kwargs=inputs, outputs=[status, gallery, results, stop_button],
            js=NARROW_SCROLL, show_progress="minimal", show_progress_on=status, api_visibility="private", **RUNNING,
        )
        for triggers, handler, inputs in (
            ([generate_button.click, text_prompt.submit], show_text_to_image, from_text),
            ([transform_button.click, image_prompt.submit], show_image_to_image, from_image),
        )
    ]  # fmt: skip
    for event in runs:
        event.success(show_image, results, shown, **QUICK)
        event.failure(lambda: "", outputs=status, **QUICK)
        event.then(lambda: gr.update(visible=False), outputs=stop_button, **QUICK)
    stop_button.click(
        lambda: ("Stopped.", gr.update(visible=False)), outputs=[status, stop_button], cancels=runs, **QUICK
    )
    gallery.select(show_chosen, results, shown, **QUICK)
    dice_button.click(roll, outputs=seed, **QUICK)
    source = [source_view, text_confirmed]
    upload.upload(show_source, [upload, frame], source, api_visibility="private").then(
        lambda: gr.update(visible=True), outputs=source_view, **QUICK
    )
    gr.on([frame.submit, frame.blur], show_source, [upload, frame], source, api_visibility="private")
    # At once, in the browser: a picture that is still being read has not been confirmed by anybody.
    gr.on([upload.upload, frame.input], None, None, text_confirmed, js="() => false", api_visibility="private")
    image_parts = [settings, more, people, column]
    VOLUME.wire([text_tab, image_tab], image_parts, on_gpu, RUNNING, QUICK, lambda: demo.GRADIO_CACHE)
    everything = image_parts + ([VOLUME.column] if VOLUME.pipe is not None else [])
    verifying.select(lambda: [gr.update(visible=False)] * len(everything), outputs=everything, **QUICK)
    if VOLUME.pipe is None:
        for tab in (text_tab, image_tab):
            tab.select(lambda: [gr.update(visible=True)] * len(image_parts), outputs=image_parts, **QUICK)
    # The endpoints for programs: the inputs of the page, numbers as numbers; files and recipes as the answer.
    numbers = {name: gr.Number(None, label=name, visible=False) for name in ("seed", "patient_age", "frame")}
    for endpoint, inputs in ((text_to_image, from_text), (image_to_image, from_image)):
        inputs = {name: numbers.get(name, component) for name, component in inputs.items()}
        answer = [
            gr.File(file_count="multiple", visible=False, label="Files"), gr.JSON(visible=False, label="Recipes")
        ]  # fmt: skip
        gr.Button(visible=False).click(
            endpoint, inputs_kwargs=inputs, outputs=answer, api_name=endpoint.__name__, **RUNNING
        )

keep_swept(demo.GRADIO_CACHE, CLEANING[1], CLEANING[0])
demo.queue(max_size=MAX_WAITING, default_concurrency_limit=2, api_open=False)
LAUNCH: dict[str, Any] = {
    "theme": THEME, "css": CSS, "head": HEAD, "max_file_size": MAX_UPLOAD, "footer_links": [], "run_history": False,
    "ssr_mode": False, "quiet": True, "show_error": False,
}  # fmt: skip

if __name__ == "__main__":
    host = os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if os.environ.get("SPACE_ID") else "127.0.0.1")
    port = int(os.environ.get("GRADIO_SERVER_PORT") or 7860)
    demo.launch(server_name=host, server_port=port, prevent_thread_lock=True, **LAUNCH)
    print(f"Synthetic DICOM is at http://{host}:{port}", flush=True)
    demo.block_thread()
