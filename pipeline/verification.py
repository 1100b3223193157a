"""What a file says of itself: whether it was made here, is marked and unaltered, and what was taken out of it.

`python -m pipeline verify FILE...`. Nothing but the file is needed. What comes back holds names of attributes, and
never their values: not a patient's name, number or date.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom.datadict import keyword_for_tag

from . import (
    dicom_decode,
    dicom_input,
    dicom_limits,
    dicom_output,
    dicom_patient,
    dicom_profiles,
    dicom_provenance,
    dicom_seal,
    given_values,
    guarded_child,
    pipeline_watermark,
    verification_added,
    verification_result,
    volume_dicom,
)

MARK = dicom_provenance.MARK
Patient = dicom_patient.Patient
Study = dicom_patient.Study
Recipe = dicom_provenance.Recipe
Verification = verification_result.Verification
_values = given_values.values
_items = given_values.items

MAX_SIDE = 2048  # of what the pipeline draws
_TEXTS = ("PatientName", "StudyDescription", "SeriesDescription", "ImageComments", "DerivationDescription")
# What a transfer syntax, an archive or another call of ours may change without touching the image.
_FREE = {"SpecificCharacterSet", "SeriesNumber", "InstanceNumber", "PixelData"}
_FIXED = ("PixelSpacing", "WindowCenter", "WindowWidth")  # of the group of pixels: what does not depend on them
_PICTURES = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff"}
# Where there is no recipe to compare with: what every file of ours has.
_EXPECTED = ("PatientID", "StudyDate", "StudyTime", "StudyID", "SeriesDate", "Manufacturer", "DeviceSerialNumber")


def verify(source: str | os.PathLike[str] | bytes | Dataset, *, key: bytes | None = None) -> Verification:
    """Say of a DICOM file, a PNG or a JPEG where it comes from and what was done to it.

    Parameters
    ----------
    source
        A path, the bytes of a file, or a dataset.
    key : bytes, optional
        Check the signature with it.

    Raises
    ------
    ValueError
        It cannot be read as DICOM, PNG or JPEG; the message repeats nothing of the file.
    """
    if key is not None:
        dicom_seal.check_key(key)
    dataset, picture = read(source)
    with dicom_limits.quiet():
        if picture is not None:
            return _of_picture(picture, key)
        assert dataset is not None
        return dicom_limits.attempt(lambda: _of_dataset(dataset, key), "the DICOM header is damaged and cannot be read")


def verify_guarded(
    path: str | os.PathLike[str],
    *,
    seconds: float = guarded_child.MAX_SECONDS,
    memory: int = guarded_child.MAX_MEMORY,
) -> dict[str, Any]:
    """Verify a file in a child process.

    Parameters
    ----------
    path, seconds, memory
        As of `guarded_reading.read_guarded`.

    Returns
    -------
    dict
        `ok`, `lines` (what was found, in words), `kind`, `watermark` (whether it was found) and `made_here`.

    Raises
    ------
    ValueError
        In one sentence that repeats nothing of the file, also where the child crashed or was ended.
    """
    data = guarded_child.ask_child("verification.answer", 0, path, named="file", seconds=seconds, memory=memory)
    damaged = "`file` cannot be read; it may be damaged"
    found: dict[str, Any] = dicom_limits.attempt(lambda: dict(json.loads(data)), damaged)
    if "error" in found:
        raise ValueError(str(found["error"])[:400])
    return found


def answer(stream: BinaryIO, _: int) -> bytes:
    """In the child of `verify_guarded`: what was found, as JSON."""
    try:
        found = verify(dicom_input.read_stream(stream))
    except ValueError as error:
        return json.dumps({"error": str(error)}).encode()
    said = {"ok": found.ok, "lines": found.in_words(), "kind": found.kind, "watermark": found.watermark == "found"}
    return json.dumps(said | {"made_here": found.made_here}).encode()


def read(source: Any) -> tuple[Dataset | None, Image.Image | None]:
    """Read a file under limits: a dataset, or a PNG or JPEG as a picture with its texts."""
    if isinstance(source, Dataset):
        return source, None
    data = source if isinstance(source, bytes) else dicom_input.read_file(source)
    with dicom_limits.quiet():
        name = next((name for name, start in _PICTURES.items() if data.startswith(start)), "")
        if name:
            return None, dicom_limits.attempt(lambda: _opened(data, name), f"`file` is a {name} that cannot be read")
        if not dicom_limits.looks_like_dicom(data):
            raise ValueError("`file` is neither DICOM nor PNG nor JPEG")
        return dicom_limits.parse_dicom(data, None), None


def recipe_in(dataset: Dataset | None, picture: Image.Image | None) -> Recipe | None:
    """Give the recipe of what `read` read; None where there is none.

    Raises
    ------
    ValueError
        There is one that cannot be understood or followed.
    """
    try:
        if dataset is not None:
            recipe = dicom_provenance.read_recipe(dataset)
        else:
            text = _note(getattr(picture, "text", {}), "Recipe")
            recipe = None if text is None else Recipe.from_json(text)
        wrong = ""
    except (ValueError, RecursionError) as error:
        field = re.match(r"`[\w.]+`", str(error))  # all that is told: the rest may be text of the file
        wrong = f"the recipe cannot be understood{f', by its {field[0]}' if field else ''}"
    if wrong:
        raise ValueError(wrong)
    if recipe is not None:
        if recipe.modality not in dicom_profiles.PROFILES:
            raise ValueError("the recipe names a modality that is not known here")
        if not (1 <= recipe.height <= MAX_SIDE and 1 <= recipe.width <= MAX_SIDE):
            raise ValueError(f"the recipe wants more than the {MAX_SIDE} x {MAX_SIDE} pixels allowed")
        if recipe.volume is not None and volume_dicom.slices_of(recipe).shape[1:] != (recipe.height, recipe.width):
            raise ValueError("the recipe's height and width are not those of its volume's slices")
    return recipe


def _opened(data: bytes, name: str) -> Image.Image:
    dicom_limits.check_scans(data)
    picture = Image.open(io.BytesIO(data), formats=[name])
    dicom_limits.check_size(picture.height, picture.width)
    picture.load()
    return picture


def _of_picture(picture: Image.Image, key: bytes | None) -> Verification:
    recipe, state = _recipe_and_state(lambda: recipe_in(None, picture))
    notes = getattr(picture, "text", {})
    shown = picture if picture.mode[0] in "LIF" and picture.mode != "LA" else picture.convert("RGB")
    watermark = _watermark(np.asarray(shown))
    seal, state, pixels, signature = _by_seal(
        recipe, state, lambda: _seal_of_text(_note(notes, "Digest")), np.asarray(picture), None, key
    )
    return Verification(
        str(picture.format),
        recipe is not None,
        recipe,
        state,
        pixels,
        "not known",
        signature,
        () if MARK in str(notes.get("Comment", "")) else ("Comment",),
        traces=("the watermark",) if recipe is None and watermark == "found" else (),
        wants_signature=key is not None,
        watermark=watermark,
        added=verification_added.added_to_picture(picture) if recipe is not None else (),
    )


def _seal_of_text(text: str | None) -> dicom_seal.Seal | None:
    return None if text is None else dicom_seal.Seal.from_json(text)


def _note(notes: Mapping[str, Any], name: str) -> str | None:
    """A text of a picture; a ValueError where it is longer than any that we write: JSON takes many times its length."""
    text = notes.get(name)
    if text is not None and len(str(text)) > dicom_provenance.LONGEST_TEXT:
        raise ValueError(f"the picture's text is longer than the {dicom_provenance.LONGEST_TEXT} characters allowed")
    return None if text is None else str(text)


def _of_dataset(dataset: Dataset, key: bytes | None) -> Verification:
    recipe, state = _recipe_and_state(lambda: recipe_in(dataset, None))
    decoded = _decoded(dataset)
    frames = 1 if decoded is None or decoded.ndim == 2 or decoded.shape[2:] == (3,) else len(decoded)
    watermark = _watermark(decoded if frames == 1 else None)  # objects of several frames are not marked
    seal, state, pixels, signature = _by_seal(
        recipe,
        state,
        lambda: dicom_seal.read_seal(dataset),
        decoded,
        dataset,
        key,
    )
    uids, given = "not known", None
    stripped: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    reference: Dataset | None = None
    traces = () if recipe is not None else tuple(_traces(dataset))
    if recipe is None and watermark == "found":
        traces += ("the watermark",)
    if recipe is not None:
        found = given_values.given_for(dataset, recipe)
        uids = "differ" if found is None else "follow"
        given = None if found is None else tuple(sorted(dicom_patient.given_values(*found)))
        reference = _reference(dataset, recipe, *(found or (Patient(), Study())))
        if reference is not None:
            stripped, changed = _against_reference(dataset, reference)
    elif traces:
        stripped = tuple(name for name in _EXPECTED if not _values(dataset, name))
        stripped += ("the recipe",) if state == "missing" else ()
    sealed = seal is not None and state == "unaltered" and pixels == "unaltered"
    return Verification(
        "DICOM",
        recipe is not None and (uids == "follow" or sealed),
        recipe,
        state,
        pixels,
        uids,
        signature,
        tuple(missing_marks(dataset)),
        stripped,
        changed,
        traces,
        given,
        (_values(dataset, "SOPInstanceUID") or [""])[0],
        key is not None,
        watermark,
        *(verification_added.added_to(dataset, reference if uids == "follow" else None) if recipe or traces else ()),
    )


def _decoded(dataset: Dataset) -> np.ndarray | None:
    try:
        return dicom_decode.decode_stored(dataset)
    except Exception:  # decoders raise anything
        return None


def _watermark(pixels: np.ndarray | None) -> str:
    if pixels is None:
        return "not looked for"
    return "found" if pipeline_watermark.is_marked(pixels) else "not found"


def _recipe_and_state(take: Callable[[], Recipe | None]) -> tuple[Recipe | None, str]:
    try:
        recipe = take()
    except ValueError:
        return None, "not readable"
    return recipe, "missing" if recipe is None else "no digest"


def _by_seal(
    recipe: Recipe | None,
    state: str,
    take: Callable[[], dicom_seal.Seal | None],
    decoded: np.ndarray | None,
    dataset: Dataset | None,
    key: bytes | None,
) -> tuple[dicom_seal.Seal | None, str, str, str]:
    """Hold recipe and pixels against the digest; a digest that cannot be understood fits nothing."""
    try:
        seal, damaged = take(), False
    except ValueError:
        seal, damaged = None, True
    found = None if decoded is None else dicom_seal.pixel_digest(decoded, dataset)
    pixels = "not readable" if found is None else "altered" if damaged else "no digest"
    if damaged:
        return None, "altered" if recipe else state, pixels, "wrong" if key else "none"
    if seal is None:
        return None, state, pixels, "none"
    if found is not None:
        pixels = "unaltered" if found == seal.pixels else "altered"
    if recipe is not None:
        state = "unaltered" if dicom_seal.recipe_digest(recipe) == seal.recipe else "altered"
    signature = "none"
    if seal.signature is not None:
        signature = "not checked"
        if key is not None:
            wrong = "wrong" if seal.key == dicom_seal.key_name(key) else "other key"
            signature = "valid" if seal.is_signed_by(key) else wrong
    return seal, state, pixels, signature


def missing_marks(dataset: Dataset) -> Iterator[str]:
    """Name the marks of a synthetic image that a dataset lacks."""
    if _values(dataset, "SyntheticData") != ["YES"]:
        yield "SyntheticData"
    if not any(_is_synthesizing(item) for item in _items(dataset, "ContributingEquipmentSequence")):
        yield "ContributingEquipmentSequence"
    if _values(dataset, "ImageType")[:1] != ["DERIVED"]:
        yield "ImageType"
    for keyword in _TEXTS:
        if MARK not in " ".join(_values(dataset, keyword)).upper():
            yield keyword


def _is_synthesizing(item: Dataset) -> bool:
    codes = _items(item, "PurposeOfReferenceCodeSequence")
    return any(
        (_values(code, "CodeValue"), _values(code, "CodingSchemeDesignator")) == (["109100"], ["DCM"]) for code in codes
    )


def _traces(dataset: Dataset) -> Iterator[str]:
    if dicom_provenance.MANUFACTURER in _values(dataset, "Manufacturer"):
        yield "Manufacturer"
    for item in _items(dataset, "ContributingEquipmentSequence"):
        if dicom_provenance.MANUFACTURER in _values(item, "Manufacturer"):
            yield "ContributingEquipmentSequence"
            break
    meta = getattr(dataset, "file_meta", None)
    if meta is not None and "SYNTHETIC_DICOM" in _values(meta, "ImplementationVersionName"):
        yield "ImplementationVersionName"


def _against_reference(dataset: Dataset, reference: Dataset) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Name what is missing or empty, and what is other, than in the dataset that this version would write."""
    stripped, changed = [], []
    for element in reference:
        keyword = keyword_for_tag(element.tag)
        if not keyword or keyword in _FREE or element.is_empty:
            continue
        if element.tag.group == 0x0028 and keyword not in _FIXED:  # of pixels and compression, which are blank here
            continue
        if element.VR == "SQ":
            if not _items(dataset, keyword):
                stripped.append(keyword)
        elif not (found := _values(dataset, keyword)):
            stripped.append(keyword)
        elif found != _values(reference, keyword):
            changed.append(keyword)
    return tuple(stripped), tuple(changed)


def _reference(dataset: Dataset, recipe: Recipe, patient: Patient, study: Study) -> Dataset | None:
    """Make the dataset of blank pixels that this version would write; None where it would write none."""
    try:
        if recipe.volume is None:
            blank = np.zeros((recipe.height, recipe.width), np.float32)
            return dicom_output.to_dataset(
                blank, dicom_profiles.PROFILES[recipe.modality], recipe, patient=patient, study=study
            )
        part = volume_dicom.part_of(dataset)
        return None if part is None else volume_dicom.blank_part(recipe, part, patient, study)
    except ValueError:
        return None
