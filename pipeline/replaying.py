"""Make an image again from the recipe in its file, and say whether it is equal: `python -m pipeline replay FILE...`.

A recipe that comes in a file is nobody's word. Every field is checked before anything is done, models and adapters are
found by their hashes among those that the user has, and no path that a recipe names is opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset

from . import (
    adapter_files,
    adapter_names,
    dicom_decode,
    dicom_files,
    dicom_input,
    dicom_limits,
    dicom_patient,
    dicom_profiles,
    dicom_provenance,
    given_values,
    pipeline_checks,
    pipeline_watermark,
    verification,
    volume_dicom,
    volume_files,
    volume_image,
    volume_input,
    volume_models,
    volume_replaying,
)
from . import pipeline as pipeline_module

Recipe = dicom_provenance.Recipe
Patient = dicom_patient.Patient
Study = dicom_patient.Study
CannotReplay = volume_replaying.CannotReplay

MAX_TEXT, MAX_ROWS, MAX_ADAPTERS = 20_000, 64, 8  # each adapter takes seconds to load
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ROW = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}(:[\w.]{1,200})?")


@dataclass(frozen=True)
class Replay:
    """What came of making an image again.

    Attributes
    ----------
    paths : tuple of pathlib.Path
        What was written.
    pixels_equal, uids_equal : bool
        Pixels: every stored value. UIDs: study, series and instance; of a PNG, which has none, true.
    differences : tuple of str
        What differs, and what of it may be the reason; empty where all is equal.
    notes : tuple of str
        What is other than then, though the image may be equal.
    """

    paths: tuple[Path, ...]
    pixels_equal: bool
    uids_equal: bool
    differences: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether pixels and UIDs are equal."""
        return self.pixels_equal and self.uids_equal

    def in_words(self) -> list[str]:
        """Say it, a line a finding."""
        return ["equal: pixels and UIDs" if self.equal else "differs", *self.differences, *self.notes]


def _first_of(images: Sequence[Any], read: Callable[[Any], Any], sha256: str | None) -> tuple[Any, Any] | None:
    """Give the image whose hash is that, and what was read of it; others may be of another kind, but not all of them.

    Raises
    ------
    ImageInputError
        None of them can be read so.
    """
    problems = []
    for image in images:
        try:
            found = read(image)
        except dicom_input.ImageInputError as error:
            problems.append(error)
            continue
        if found.sha256 == sha256:
            return image, found
    if problems and len(problems) == len(images):
        raise problems[0]
    return None


def check_recipe(recipe: Recipe) -> Recipe:
    """Refuse a recipe that this pipeline would not write.

    Raises
    ------
    ValueError
        In one sentence, naming the field and what is allowed.
    """

    def refuse(field: str, allowed: str) -> None:
        raise ValueError(f"the recipe's `{field}` is not allowed: it must be {allowed}")

    if not recipe.prompt.strip():
        refuse("prompt", "text, and not empty")
    for name in ("prompt", "negative_prompt", "model"):
        text = getattr(recipe, name)
        if len(text) > MAX_TEXT or not _is_sound(text):
            refuse(name, f"at most {MAX_TEXT} characters of sound Unicode")
    for name, low, high in (
        ("num_inference_steps", 1, 1000),
        ("guidance_scale", 0, 100),
        ("seed", 0, pipeline_checks.MAX_SEED),
        ("height", 1, verification.MAX_SIDE),
        ("width", 1, verification.MAX_SIDE),
    ):
        if not low <= getattr(recipe, name) <= high:
            refuse(name, f"from {low} to {high}")
    if recipe.modality not in dicom_profiles.PROFILES:
        refuse("modality", f"one of {', '.join(dicom_profiles.PROFILES)}")
    if not re.fullmatch(r"[A-Za-z_]\w{0,99}", recipe.scheduler, re.ASCII):
        refuse("scheduler", "the name of a class")
    if not _SHA256.fullmatch(recipe.model_sha256):
        refuse("model_sha256", "64 hexadecimal digits")
    if (recipe.strength is None) != (recipe.input_sha256 is None):
        refuse("strength", "given with `input_sha256` and only then")
    if recipe.strength is not None and not 0 < recipe.strength <= 1:
        refuse("strength", "above 0 and at most 1")
    if recipe.input_sha256 is not None and not _SHA256.fullmatch(recipe.input_sha256):
        refuse("input_sha256", "64 hexadecimal digits")
    if recipe.watermark not in (None, pipeline_watermark.NAME):
        refuse("watermark", f"{pipeline_watermark.NAME}, the one that this version makes, or none")
    if recipe.volume is not None and recipe.strength is None and (recipe.adapters or recipe.negative_prompt):
        refuse("volume", "in a recipe without adapters and negative prompt, unless it has an input image")
    names = {name.partition(":")[0] for name, _, _ in recipe.adapters}
    if len(recipe.adapters) > MAX_ROWS or len(names) > MAX_ADAPTERS:
        refuse("adapters", f"at most {MAX_ROWS} rows of at most {MAX_ADAPTERS} adapters")
    for name, sha256, weight in recipe.adapters:
        if not _ROW.fullmatch(name) or not _SHA256.fullmatch(sha256) or not abs(weight) <= 100:
            refuse("adapters", "rows of a name, 64 hexadecimal digits and a weight from -100 to 100")
    if len(recipe.versions) > 64 or any(len(text) > 200 for pair in recipe.versions for text in pair):
        refuse("versions", "at most 64 pairs of at most 200 characters")
    return recipe


def _is_sound(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True


class Replayer:
    """Models and adapters to make images with, found by hash; a model stays loaded until another one is wanted.

    Parameters
    ----------
    models, adapters
        Folders to look in, besides the embedded model and the shipped adapters; of adapters files too.
    allow_hub
        Whether a model that a recipe calls by a Hub id may be fetched from there. Its code is not run.
    device
        By default the best there is.
    """

    def __init__(
        self,
        models: Sequence[str | os.PathLike[str]] = (),
        adapters: Sequence[str | os.PathLike[str]] = (),
        *,
        allow_hub: bool = False,
        device: str | None = None,
    ) -> None:
        for path in models:
            if not Path(path, "model_index.json").is_file():
                raise ValueError(f"`--model` is {str(path)!r}; allowed is a folder that holds a model_index.json")
        for path in adapters:
            if not Path(path).exists():
                raise ValueError(f"`--adapter` is {str(path)!r}; allowed is a folder or a .safetensors file")
        self._places = [*map(str, models), str(Path(__file__).parent)]
        self._adapter_places = [*map(str, adapters), *map(str, adapter_names.shipped_adapters().values())]
        self._allow_hub, self._device = allow_hub, device or pipeline_module.best_device()
        self._models: dict[str, str] = {}  # hash to place, of those that were looked at
        self._adapters: dict[str, str] | None = None
        self._loaded: tuple[str, Any] | None = None
        self._volumes = volume_replaying.VolumeMaker([*map(str, models), str(volume_models.FOLDER)], self._device)

    def replay(
        self,
        source: Any,
        out: str | os.PathLike[str],
        *,
        images: Sequence[Any] = (),
        frame: int | None = None,
        patient: Patient | None = None,
        study: Study | None = None,
    ) -> Replay:
        """Make the image of a DICOM file, or of a PNG of ours, again; of a volume, the slice or the object.

        Parameters
        ----------
        source
            A path, the bytes of a file, or a dataset.
        out
            Folder to write into.
        images, frame
            Of image-to-image: the image it was made of, found by its hash among these; of a multi-frame one the frame.
        patient, study
            What was given for the image: the recipe does not hold it, and it is not taken from the file.

        Raises
        ------
        ValueError
            The file cannot be read, its recipe is not allowed, or (`CannotReplay`) a model, an adapter or the input
            image is missing.
        """
        dataset, picture = verification.read(source)
        recipe = verification.recipe_in(dataset, picture)
        if recipe is None:
            raise ValueError("the file holds no recipe")
        check_recipe(recipe)
        if recipe.volume is not None:
            return self._replay_part(dataset, recipe, out, images, patient, study)
        image = self._input(recipe, images, frame)
        with self._as_then(recipe) as pipe:
            output = pipe(
                recipe.prompt,
                image,
                1.0 if recipe.strength is None else recipe.strength,
                modality=recipe.modality,
                seed=recipe.seed,
                negative_prompt=recipe.negative_prompt,
                num_inference_steps=recipe.num_inference_steps,
                guidance_scale=recipe.guidance_scale,
                height=recipe.height,
                width=recipe.width,
                frame=frame if image is not None else None,
                watermark=recipe.watermark is not None,
                patient=patient,
                study=study,
            )
            made, again = output.dicoms[0], output.recipes[0]
        if dataset is not None:
            before, after = _stored(dataset), made.pixel_array
        else:
            before, after = np.asarray(picture), np.asarray(output.images[0])
        png = None if picture is None else [np.asarray(output.images[0], np.float32) / 255]
        paths = dicom_files.write_files([made], out, png_pixels=png)
        return _compared(paths, (before, after), (recipe, again), dataset, made)

    def _replay_part(
        self,
        dataset: Dataset | None,
        recipe: Recipe,
        out: str | os.PathLike[str],
        images: Sequence[Any],
        patient: Patient | None,
        study: Study | None,
    ) -> Replay:
        part = None if dataset is None else volume_dicom.part_of(dataset)
        if part is None:
            raise ValueError("the file holds the recipe of a volume, but is no part of one")
        remake = None if recipe.input_sha256 is None else lambda: self._of_image(recipe, images)
        made, again = self._volumes.make(recipe, part, patient, study, remake)
        folder = volume_files.folder_of(made, again)
        name = f"{folder}/{volume_files.name_of(part)}"
        paths = dicom_files.write_together(out, lambda at: volume_files.put({name: made}, at))
        assert dataset is not None
        return _compared(paths, (_stored(dataset), dicom_decode.decode_stored(made)), (recipe, again), dataset, made)

    def _of_image(self, recipe: Recipe, images: Sequence[Any]) -> volume_files.Volume:
        """Make a volume again that was made of another one, which must be among `images`."""
        assert recipe.volume is not None and recipe.strength is not None
        plane = volume_dicom.slices_of(recipe).plane
        found = _first_of(images, lambda image: volume_input.read_volume(image, plane), recipe.input_sha256)
        if found is None:
            given = "`--image` is not the volume that this one was made of: their hashes differ"
            raise CannotReplay(given if images else "the volume was made of another one; give that with `--image`")
        source = found[1]
        with self._as_then(recipe) as pipe:
            return volume_image.image_to_image(
                pipe,
                recipe.prompt,
                source,
                recipe.strength,
                seed=recipe.seed,
                modality=recipe.modality,
                negative_prompt=recipe.negative_prompt,
                num_inference_steps=recipe.num_inference_steps,
                guidance_scale=recipe.guidance_scale,
            )

    @contextmanager
    def _as_then(self, recipe: Recipe) -> Iterator[Any]:
        """Give the model of a recipe with its adapters, under the name and with the threads that it had."""
        pipe = self._model(recipe)
        called = pipe.model_name
        self._use_adapters(pipe, recipe)
        try:
            pipe.register_to_config(model_name=recipe.model)  # by its hash it is that one, whatever it is called here
            with volume_replaying.threads_of(recipe):
                yield pipe
        finally:
            pipe.register_to_config(model_name=called)

    def _input(self, recipe: Recipe, images: Sequence[Any], frame: int | None) -> Any:
        if recipe.input_sha256 is None:
            return None
        if not images:
            raise CannotReplay("the image was made of another one; give that with `--image`")
        found = _first_of(images, lambda image: dicom_input.read_image(image, frame=frame), recipe.input_sha256)
        if found is None:
            raise CannotReplay("`--image` is not the image that this one was made of: their hashes differ")
        return found[0]

    def _model(self, recipe: Recipe) -> Any:
        places = [self._models[recipe.model_sha256]] if recipe.model_sha256 in self._models else []
        places += [place for place in self._places if place not in self._models.values()]
        if self._allow_hub and adapter_names.is_hub_id(recipe.model):
            places.append(recipe.model)
        unloadable = ""
        for place in places:
            try:
                pipe = self._load(place)
            except CannotReplay as error:  # of volumes, or damaged: another may do
                unloadable = f" ({error})"
                continue
            pipe.unload_lora_weights()
            if self._models.setdefault(pipe.model_sha256, place) and pipe.model_sha256 == recipe.model_sha256:
                return pipe
        hub = "" if self._allow_hub or not adapter_names.is_hub_id(recipe.model) else "; `--allow-hub` asks the Hub"
        raise CannotReplay(
            f"another model: none at hand has the hash {recipe.model_sha256[:16]}..., which includes the settings of "
            f"the scheduler ({recipe.scheduler}); give its folder with `--model`{hub}{unloadable}"
        )

    def _load(self, place: str) -> Any:
        if self._loaded is None or self._loaded[0] != place:
            self._loaded = None  # so that two models never lie in memory
            try:
                pipe = pipeline_module.SyntheticDicomPipeline.from_pretrained(place)
                pipe.to(self._device)
            except (OSError, RuntimeError, AssertionError, KeyError, TypeError, ValueError) as error:
                raise CannotReplay(f"a model could not be loaded ({type(error).__name__})") from error
            pipe.set_progress_bar_config(disable=True)
            self._loaded = place, pipe
        return self._loaded[1]

    def _use_adapters(self, pipe: Any, recipe: Recipe) -> None:
        if not recipe.adapters:
            return
        if self._adapters is None:
            self._adapters = {adapter_files.read_adapter(place).sha256: place for place in self._adapter_places}
        weights: dict[str, dict[str, float]] = {}
        for row, sha256, weight in recipe.adapters:
            name, _, path = row.partition(":")
            if sha256 not in self._adapters:
                raise CannotReplay(
                    f"missing adapter: none at hand has the hash {sha256[:16]}... of {name!r}; give its folder with "
                    "`--adapter`"
                )
            if name not in weights:
                pipe.load_lora_weights(self._adapters[sha256], adapter_name=name)
            weights.setdefault(name, {})[path] = weight
        pipe.set_adapters(list(weights), [rows.get("", 1.0) for rows in weights.values()])
        pipe.weigh_adapters(weights)
        if set(pipe.adapters_in_use()) != set(recipe.adapters):
            raise CannotReplay("the adapters cannot be brought to the weights that the recipe names")


def replay(source: Any, out: str | os.PathLike[str], **options: Any) -> Replay:
    """Make one image again: `Replayer` (`models`, `adapters`, `allow_hub`, `device`) and its `replay` in one."""
    own = {name: options.pop(name) for name in ("models", "adapters", "allow_hub", "device") if name in options}
    return Replayer(**own).replay(source, out, **options)


def _stored(dataset: Dataset) -> np.ndarray:
    with dicom_limits.quiet():
        found: np.ndarray = dicom_limits.attempt(
            lambda: dicom_decode.decode_stored(dataset), "the pixels of the file cannot be read"
        )
    return found


def _compared(
    paths: Sequence[Path],
    pixels: tuple[np.ndarray, np.ndarray],
    recipes: tuple[Recipe, Recipe],
    dataset: Dataset | None,
    made: Dataset,
) -> Replay:
    """Say what of the old (first) and the new one differs, and what may be the reason."""
    recipe = recipes[0]
    differences = list(_pixel_differences(*pixels))
    pixels_equal = not differences
    changed = list(_changes(*recipes))
    if not pixels_equal:
        differences += changed or ["nothing else differs that the recipe records; perhaps the processor"]
    uid_differences = [] if dataset is None else list(_uid_differences(dataset, recipe, made))
    notes = [] if not pixels_equal else changed
    if recipe.copy_check is not None:
        notes = [*notes, "the comparison with the training images was not repeated"]
    return Replay(tuple(paths), pixels_equal, not uid_differences, (*differences, *uid_differences), tuple(notes))


def _pixel_differences(before: np.ndarray | None, after: np.ndarray) -> Iterator[str]:
    if before is None or before.shape != after.shape:
        yield "pixels differ: another size"
    elif count := int((before != after).sum()):
        most = int(np.abs(before.astype(np.int64) - after.astype(np.int64)).max())
        yield f"pixels differ: {count} of {before.size} values, by at most {most}"


def _uid_differences(dataset: Dataset, recipe: Recipe, made: Dataset) -> Iterator[str]:
    names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    if differing := [name for name in names if given_values.values(dataset, name) != [str(made[name].value)]]:
        found = given_values.given_for(dataset, recipe)
        given = sorted(dicom_patient.given_values(*found)) if found else []
        why = "the file's do not follow from its recipe"
        if given:
            why = f"{', '.join(given)} went in, which no recipe holds; repeat them with --patient and --study"
        yield f"UIDs differ ({', '.join(differing)}): {why}"


def _changes(recipe: Recipe, again: Recipe) -> Iterator[str]:
    """Versions and the like that are other than then."""
    then, now = dict(recipe.versions), dict(again.versions)
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            yield f"{name}: then {_shown(then.get(name))}, now {_shown(now.get(name))}"


def _shown(text: str | None) -> str:
    return "not recorded" if text is None else "".join(c if c.isprintable() and c.isascii() else "?" for c in text)[:60]
