"""Adapters (LoRA) on the page: the controls, which adapter a request means, and drawing with that one alone.

All users of a server share one pipeline. So between two calls no adapter is in use, a user's own is taken off as soon
as its call is over, and a call's `modality` switches to none by itself: see `PagePipeline`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from pipeline.adapter_files import read_adapter
from pipeline.adapter_names import fit_name, is_hub_id, shipped_adapters
from pipeline.dicom_profiles import choose_profile, modality_of, serves
from pipeline.pipeline import SyntheticDicomPipeline

LOGGER = logging.getLogger("synthetic_dicom.app")
AUTOMATIC, NONE, OWN = "automatic", "none", "own"
MAX_STRENGTH = 1.5
MAX_BYTES = 50 * 2**20


class PagePipeline(SyntheticDicomPipeline):
    """The pipeline, but only the page decides on adapters: "none" means none, and a chosen one stays."""

    def adapter_for(self, prompt: Any, modality: str | None) -> None:
        """Switch to no adapter, whatever is loaded."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Mark each image, and hold it against the training images where model and adapter have an index of them."""
        kwargs.setdefault("check_memorisation", self.can_check_memorisation())
        kwargs.setdefault("watermark", True)
        return super().__call__(*args, **kwargs)


@dataclass(frozen=True)
class Choice:
    """The adapter of one call.

    Attributes
    ----------
    name, strength : str, float
        As the recipe will have them.
    modality : str
        What `choose_profile` takes as `adapter`.
    source : str or None
        File or Hub id of a user's own adapter; None for a shipped one.
    """

    name: str
    modality: str
    strength: float
    source: str | None = None


class Adapters:
    """The adapters of one pipeline; the shipped ones are loaded here, and left out where they do not fit its model.

    Attributes
    ----------
    shipped : dict of str to str
        Modality (or name, where there is none) of the shipped adapters, by name.
    """

    def __init__(self, pipe: PagePipeline) -> None:
        self.pipe = pipe
        self.shipped: dict[str, str] = {}
        for name, folder in shipped_adapters().items():
            try:
                adapter = read_adapter(folder).named(name)
                pipe.load_lora_weights(folder, adapter_name=name)
            except ValueError as error:
                LOGGER.warning("The shipped adapter %s is left out: %s", name, error)
            else:
                self.shipped[name] = adapter.modality or name
        pipe.set_adapters([])

    # ---- which one --------------------------------------------------------------------------------------------------

    def choose(
        self, prompt: str, modality: str | None, options: Mapping[str, Any], file: str | None = None
    ) -> Choice | None:
        """Give the adapter that a request means; None for the base alone. Only an own one may use the network.

        Raises
        ------
        ValueError
            The adapter is unknown, unreadable or missing, the strength out of range, or `automatic` finds no modality.
        """
        which, strength = options.get("adapter") or AUTOMATIC, options.get("adapter_strength", 1.0)
        if not 0 <= strength <= MAX_STRENGTH:
            raise ValueError(f"`adapter_strength` is {strength}; allowed is a number from 0 to {MAX_STRENGTH}")
        if which == AUTOMATIC:
            which = self.automatic(prompt, modality) or NONE
        if which == NONE:
            return None
        if which == OWN:
            return self._own((options.get("adapter_hub_id") or "").strip(), file, strength)
        if which not in self.shipped:
            allowed = ", ".join(map(repr, (AUTOMATIC, NONE, *self.shipped, OWN)))
            raise ValueError(f"`adapter` is {str(which)[:80]!r}; allowed are {allowed}")
        return Choice(which, self.shipped[which], strength)

    def automatic(self, prompt: str, modality: str | None) -> str | None:
        """Give the shipped adapter for what is asked for; None where there is none, or no telling which of several.

        The one whose name says more than the modality and all of it in the prompt (covid-chest-xray) goes before the
        one that bears the modality's name. What says more than was asked for is never taken.
        """
        profile = choose_profile(prompt, modality)
        asked, said = modality_of(profile), set(re.findall(r"[^\W_]+", prompt.lower()))
        fitting = [name for name, adapter in self.shipped.items() if serves(adapter, profile)]
        extra = {name: set(name.lower().split("-")) - set(asked.split("-")) for name in fitting}
        told = [name for name in fitting if extra[name] and extra[name] <= said]
        named = [name for name in fitting if name == asked]
        general = [name for name in fitting if not extra[name]]
        return next((names[0] for names in (told, named, general) if len(names) == 1), None)

    def _own(self, hub_id: str, file: str | None, strength: float) -> Choice:
        if bool(hub_id) == bool(file):
            given = "both are" if file else "neither is"
            raise ValueError(f"`adapter` is 'own', which takes a Hub id or a file, but {given} given")
        if file and Path(file).suffix != ".safetensors":
            raise ValueError("the adapter is no .safetensors file")
        if hub_id and not is_hub_id(hub_id):  # else it might be a path on this machine
            raise ValueError(f"`adapter_hub_id` is {hub_id[:80]!r}; allowed is a Hub id such as org/name")
        source = file or hub_id
        with readable():
            adapter = read_adapter(source, max_bytes=MAX_BYTES, token=False)  # not with this server's rights
        # A file's name may be a patient's; what the file calls itself was written by its training.
        name = adapter.name if hub_id else fit_name(str(adapter.metadata.get("name") or OWN))
        if name in self.shipped:
            name = f"own-{name}"[:64]
        return Choice(name, adapter.modality or name, strength, source)

    # ---- drawing with it --------------------------------------------------------------------------------------------

    def draw(self, choice: Choice, **arguments: Any) -> Any:
        """Call the pipeline with this adapter alone. One call at a time, which `steps_of` sees to."""
        if choice.source:
            with readable():  # it is there already: no network while others wait
                self.pipe.load_lora_weights(
                    choice.source, adapter_name=choice.name, max_bytes=MAX_BYTES, token=False, local_files_only=True
                )
        try:
            self.pipe.set_adapters(choice.name, choice.strength)
            return self.pipe(**arguments)
        finally:
            self.pipe.set_adapters([])
            if choice.source:
                self.pipe.delete_adapters(choice.name)

    # ---- the controls -----------------------------------------------------------------------------------------------

    def controls(self, quick: dict[str, Any]) -> dict[str, Any]:
        """Lay out the controls; gives them by the names of the endpoints' parameters."""
        choices = [
            ("Automatic: by modality", AUTOMATIC),
            ("None: the base alone", NONE),
            *((name, name) for name in self.shipped),
            ("My own", OWN),
        ]
        with gr.Row():
            picker = gr.Dropdown(choices, value=AUTOMATIC, label="Adapter", elem_id="adapter", min_width=240)
            strength = gr.Slider(0, MAX_STRENGTH, 1, step=0.05, label="Adapter strength", min_width=240)
        with gr.Row(visible=False, equal_height=True) as own:
            hub_id = gr.Textbox(
                "", label="Hub id", max_length=200, placeholder="org/name", min_width=240,
                info="Of a public LoRA, or give a file",
            )  # fmt: skip
            file = gr.File(
                label=".safetensors file", file_types=[".safetensors"], height=160, min_width=240,
                elem_id="adapter-file",
            )  # fmt: skip
        picker.change(lambda which: gr.update(visible=which == OWN), picker, own, **quick)
        return {"adapter": picker, "adapter_strength": strength, "adapter_hub_id": hub_id, "adapter_file": file}


@contextmanager
def readable() -> Iterator[None]:
    """Make errors about an own adapter speak to the one who gave it, and not by its file's name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("`source`", "the adapter")) from None
