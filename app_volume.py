"""The page's Volume tab: a prompt and sizes to a volume, three views of it, and its files as a zip.

There is one only where a volume model lies in pipeline/volume, or SYNTHETIC_DICOM_VOLUME_MODEL names its folder or Hub
id. It has settings and results of its own, which take the place of those of images while it is open.
"""

from __future__ import annotations

import html
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from app_parts import Step, number_in, progress_html, steps_of, toasts
from app_sweep import PREFIX
from pipeline.dicom_provenance import Recipe
from pipeline.pipeline import best_device
from pipeline.volume_dicom import recipe_of
from pipeline.volume_files import Volume, Wanted, write_volumes
from pipeline.volume_models import FOLDER, is_model, load
from pipeline.volume_pictures import HEIGHT, PLANES, legend_of, middle_of, view_of

MAX_SEED, MAX_STEPS, MAX_GUIDANCE, MAX_TEXT = 2**32 - 1, 100, 20, 1000
BEYOND = 0.2  # how far the sliders reach beyond the training range
EXTRAS = {"One enhanced multi-frame file": "enhanced", "NIfTI": "nifti"}


def load_volume_model() -> Any:
    """Load the volume model onto the best device there is; None where there is no model."""
    place = os.environ.get("SYNTHETIC_DICOM_VOLUME_MODEL") or FOLDER
    return load(place, best_device()) if place != FOLDER or is_model(FOLDER) else None


@dataclass(frozen=True)
class Shown:
    """A volume as the page keeps it."""

    voxels: np.ndarray
    mask: np.ndarray
    recipe: Recipe
    archive: str

    def view(self, plane: str, index: float, overlay: float) -> Image.Image:
        """Draw a slice, counted from 1."""
        assert self.recipe.volume is not None
        return view_of(self.voxels, self.mask, self.recipe.volume, plane, int(index) - 1, overlay)


class VolumeTab:
    """The tab's components and handlers; without a model there is none."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self._tab: Any = None

    def controls(self) -> None:
        """Lay out the tab; call it among the tabs."""
        if self.pipe is None:
            return
        config, known = self.pipe.config, self.pipe.distribution
        examples = [f"T1 MRI of the {word}" for word in ("hippocampus", "hippocampus, small anterior part")]
        with gr.Tab("Volume", elem_id="volume-tab") as self._tab:
            subject = html.escape(config.subject["description"])
            gr.HTML(
                f"Makes {subject}, {' × '.join(map(str, self.pipe.shape))} voxels, and a label map that fits it.",
                elem_classes="note",
            )
            self.prompt = gr.Textbox(
                examples[0], label="Prompt", lines=2, max_length=MAX_TEXT, elem_id="volume-prompt",
                info="Sizes in words or numbers are read: “large posterior part”, “anterior 1500 mm3”",
            )  # fmt: skip
            self.chosen = gr.Checkbox(False, label="Set the sizes myself", info="Else as the prompt says, or drawn")
            self.sliders: dict[str, Any] = {}
            with gr.Group(visible=False) as self.sizes:
                rows = zip(known.names, known.mean, known.minimum, known.maximum, strict=True)
                for name, mean, low, high in rows:
                    part = name.removesuffix("_mm3").replace("_", " ")
                    self.sliders[name] = gr.Slider(
                        round(low * (1 - BEYOND)), round(high * (1 + BEYOND)), round(mean), step=1,
                        label=f"{part.capitalize()} part in mm³" if name.endswith("_mm3") else name,
                        info=f"The model saw {low:g} to {high:g}",
                    )  # fmt: skip
            with gr.Row():
                self.seed = gr.Textbox("", label="Seed", placeholder="another one each time", elem_id="volume-seed")
            with gr.Accordion("More settings", open=False):
                self.steps = gr.Slider(1, MAX_STEPS, config.default_num_inference_steps, step=1, label="Steps")
                self.guidance = gr.Slider(0, MAX_GUIDANCE, config.default_guidance_scale, step=0.1, label="Guidance")
                self.extras = gr.CheckboxGroup(list(EXTRAS), label="Write into the zip too")
            self.button = gr.Button("Generate volume", variant="primary", elem_id="generate-volume")

    def results(self) -> None:
        """Lay out the results; call it where those of images are."""
        if self.pipe is None:
            return
        legend = legend_of([name.removesuffix("_mm3") for name in self.pipe.distribution.names])
        words = " ".join(
            f'<span class="key" style="--label:{colour}">{html.escape(name)}</span>' for name, colour in legend
        )
        with gr.Column(scale=6, min_width=320, visible=False, elem_id="volume-results") as self.column:
            self.status = gr.HTML("Your volume appears here.", elem_id="volume-status", elem_classes="note")
            self.stop = gr.Button("Stop", size="sm", visible=False)
            with gr.Column(visible=False) as self.details:
                self.views: dict[str, tuple[Any, Any]] = {}
                with gr.Row():
                    for plane in PLANES:
                        with gr.Column(min_width=180):
                            picture = gr.Image(
                                label=plane.capitalize(), format="png", interactive=False, buttons=[],
                                height=HEIGHT, elem_id=f"view-{plane}", elem_classes="view",
                            )  # fmt: skip
                            place = gr.Slider(1, 2, 1, step=1, label="Slice", elem_id=f"slice-{plane}")
                            self.views[plane] = picture, place
                gr.HTML(f"{words} <strong>SYNTHETIC – not for diagnosis</strong>", elem_id="legend")
                self.overlay = gr.Slider(0, 1, 0.4, step=0.05, label="How strongly the labels are shown")
                self.download = gr.DownloadButton(
                    "Download DICOM series and label map (zip)", variant="primary", size="md", elem_id="volume-zip"
                )

    def wire(
        self,
        image_tabs: list[Any],
        image_parts: list[Any],
        on_gpu: Callable[[Any], Any],
        running: dict[str, Any],
        quick: dict[str, Any],
        cache: Callable[[], str],
    ) -> None:
        """Connect everything; `image_parts` are hidden while the tab is open."""
        if self.pipe is None:
            return
        shown = gr.State(None)
        parts = [*image_parts, self.column]
        for tabs, here in ((image_tabs, False), ([self._tab], True)):
            visible = [gr.update(visible=not here)] * len(image_parts) + [gr.update(visible=here)]
            for tab in tabs:
                tab.select(lambda visible=visible: visible, outputs=parts, **quick)
        self.chosen.change(lambda chosen: gr.update(visible=chosen), self.chosen, self.sizes, **quick)
        names = list(self.sliders)

        @on_gpu
        def show(
            prompt: str, seed: Any, steps: float, guidance: float, extras: list[str], chosen: bool, *sizes: float
        ) -> Iterator[tuple[Any, ...]]:
            with toasts():
                covariates = dict(zip(names, sizes, strict=True)) if chosen else None
                yield from self._run(prompt, covariates, seed, steps, guidance, extras, cache())

        inputs = [self.prompt, self.seed, self.steps, self.guidance, self.extras, self.chosen, *self.sliders.values()]
        run = gr.on(
            [self.button.click, self.prompt.submit], show, inputs, [self.status, shown, self.stop],
            show_progress="minimal", show_progress_on=self.status, api_visibility="private", **running,
        )  # fmt: skip
        pictures, places = [view[0] for view in self.views.values()], [view[1] for view in self.views.values()]
        run.success(self._open, [shown, self.overlay], [self.details, self.download, *places, *pictures], **quick)
        run.failure(lambda: "", outputs=self.status, **quick)
        run.then(lambda: gr.update(visible=False), outputs=self.stop, **quick)
        self.stop.click(
            lambda: ("Stopped.", gr.update(visible=False)), outputs=[self.status, self.stop], cancels=run, **quick
        )
        latest = {**quick, "trigger_mode": "always_last"}
        for plane, (picture, place) in self.views.items():
            place.input(_draw(plane), [shown, place, self.overlay], picture, **latest)
        self.overlay.input(_draw_all, [shown, self.overlay, *places], pictures, **latest)

    # ---- handlers ---------------------------------------------------------------------------------------------------

    def _run(
        self,
        prompt: str,
        covariates: dict[str, float] | None,
        seed: Any,
        steps: float,
        guidance: float,
        extras: list[str],
        cache: str,
    ) -> Iterator[tuple[Any, ...]]:
        """Make a volume and write its files: status, volume and stop button."""
        number = number_in(seed, "seed")
        for name, value, low, high in (
            ("seed", number or 0, 0, MAX_SEED),
            ("steps", steps, 1, MAX_STEPS),
            ("guidance", guidance, 0, MAX_GUIDANCE),
        ):
            if not low <= value <= high or (name != "guidance" and value != int(value)):
                raise ValueError(f"`{name}` is {value}; allowed is from {low} to {high}")
        if len(prompt or "") > MAX_TEXT:
            raise ValueError(f"`prompt` has {len(prompt)} characters; at most {MAX_TEXT} are allowed")
        if not (prompt or "").strip():
            raise ValueError("`prompt` is empty; describe the volume that you want")
        yield progress_html(0, int(steps)), gr.skip(), gr.update(visible=True)
        arguments = {
            "prompt": prompt,
            "covariates": covariates,
            "seed": random.randint(0, MAX_SEED) if number is None else int(number),
            "num_inference_steps": int(steps),
            "guidance_scale": float(guidance),
        }
        for news in steps_of(self.pipe, None, int(steps), arguments):
            if isinstance(news, Step):
                yield progress_html(news.number, news.total), gr.skip(), gr.skip()
            else:
                recipe = recipe_of(news, 0, self.pipe.config.subject["description"])
                wanted = Wanted(segmentation=True, archive=True, **{EXTRAS[name]: True for name in extras or []})
                Path(cache).mkdir(parents=True, exist_ok=True)
                folder = tempfile.mkdtemp(prefix=PREFIX, dir=cache)
                (path,) = write_volumes([Volume(news.volumes[0], news.masks[0], recipe)], folder, wanted)
                result = Shown(news.volumes[0], news.masks[0], recipe, str(path))
                yield _words(recipe), result, gr.update(visible=False)

    def _open(self, shown: Shown | None, overlay: float) -> list[Any]:
        """Show a new volume, at the middle of its labels."""
        if shown is None or shown.recipe.volume is None:
            return [gr.skip()] * (2 + 2 * len(PLANES))
        middle = middle_of(shown.mask, shown.recipe.volume)
        places, pictures = [], []
        for plane in PLANES:
            count = _count(shown, plane)
            places.append(gr.update(value=middle[plane] + 1, maximum=max(count, 2), interactive=count > 1))
            pictures.append(shown.view(plane, middle[plane] + 1, overlay))
        return [gr.update(visible=True), gr.update(value=shown.archive), *places, *pictures]


def _draw(plane: str) -> Callable[[Shown | None, float, float], Any]:
    def draw(shown: Shown | None, index: float, overlay: float) -> Any:
        return gr.skip() if shown is None else shown.view(plane, index, overlay)

    return draw


def _draw_all(shown: Shown | None, overlay: float, *places: float) -> list[Any]:
    if shown is None:
        return [gr.skip()] * len(PLANES)
    return [shown.view(plane, place, overlay) for plane, place in zip(PLANES, places, strict=True)]


def _count(shown: Shown, plane: str) -> int:
    from pipeline.dicom_volume import Slices

    assert shown.recipe.volume is not None
    return Slices(plane, shown.recipe.volume).shape[0]


def _words(recipe: Recipe) -> str:
    """Say what was made: seed, sizes asked for and obtained, warnings."""
    assert recipe.volume is not None
    obtained = dict(recipe.volume.obtained)
    sizes = " · ".join(
        f"{name.removesuffix('_mm3')} {obtained.get(name, 0):g} mm³ ({value:g} asked for)"
        for name, value in recipe.volume.covariates
    )
    warnings = "".join(f"<br>⚠ {html.escape(warning)}" for warning in recipe.volume.warnings)
    return f"1 synthetic volume · seed {recipe.seed} · {html.escape(sizes)}{warnings}"
