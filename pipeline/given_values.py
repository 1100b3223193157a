"""Which patient and study values a user gave for an image: the header holds them among made-up ones, the UIDs tell."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from pydicom import Dataset

from . import dicom_limits, dicom_output, dicom_patient, dicom_prompt, dicom_provenance, volume_dicom

MARK = dicom_provenance.MARK
Patient = dicom_patient.Patient
Study = dicom_patient.Study
Recipe = dicom_provenance.Recipe

_MAX_GUESSES = 4096


def given_for(dataset: Dataset, recipe: Recipe) -> tuple[Patient, Study] | None:
    """Find the patient and study values that a user gave for an image; None where the UIDs follow from no such values.

    The recipe does not hold them, but the header does, among made-up ones. The UIDs tell which ones were given.
    """
    wanted = tuple(
        (values(dataset, name) or [""])[0] for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    )
    facts = dicom_prompt.parse_prompt(recipe.prompt)
    part = None if recipe.volume is None else volume_dicom.part_of(dataset)
    for patient, study in itertools.islice(_guesses(dataset), _MAX_GUESSES):
        try:
            if dicom_output.uids_of(recipe, patient, study, facts, part) == wanted:
                return patient, study
        except (ValueError, OverflowError):  # contradicts the prompt: not what was given
            continue
    return None


def _guesses(dataset: Dataset) -> Iterator[tuple[Patient, Study]]:
    """Give every way in which the header's values may have been given; that none was is the first."""
    yield Patient(), Study()
    given = {
        "name": _unmarked(dataset, "PatientName", f"{MARK} ", MARK),
        "id": _or_none(dataset, "PatientID"),
        "sex": _or_none(dataset, "PatientSex"),
        "age": _or_none(dataset, "PatientAge"),
        "birth_date": _or_none(dataset, "PatientBirthDate"),
        "description": _unmarked(dataset, "StudyDescription", f"{MARK} - "),
        "series_description": _unmarked(dataset, "SeriesDescription", f"{MARK} - "),
        "accession_number": _or_none(dataset, "AccessionNumber"),
        "study_id": _or_none(dataset, "StudyID"),
        "date": _or_none(dataset, "StudyDate"),
        "time": _or_none(dataset, "StudyTime"),
        "referring_physician_name": _or_none(dataset, "ReferringPhysicianName"),
    }
    if re.fullmatch(r"SYNTHETIC\^Patient [0-9A-F]{8}", str(given["name"][-1])):
        given["name"] = [None]
    if re.fullmatch(r"SYNTHETIC-[0-9A-F]{8}", str(given["id"][-1])):
        given["id"] = [None]
    # Such can only have been given: nothing makes them up.
    for name in ("name", "id", "accession_number", "referring_physician_name"):
        given[name] = [value for value in given[name] if value is not None] or [None]
    if not re.fullmatch(r"[0-9A-F]{8}", str(given["study_id"][-1])):
        given["study_id"] = given["study_id"][1:] or [None]
    if dicom_provenance.NOT_FOR_DIAGNOSIS in given["description"]:
        given["description"] = [None]
    else:
        given["description"] = given["description"][1:] or [None]
    for chosen in itertools.product(*given.values()):
        one = dict(zip(given, chosen, strict=True))
        try:
            patient = Patient(**{name: one[name] for name in ("name", "id", "sex", "age", "birth_date")})
            study = Study(
                id=one["study_id"],
                **{
                    name: one[name]
                    for name in ("description", "series_description", "accession_number", "date", "time")
                    + ("referring_physician_name",)
                },
            )
        except ValueError:
            continue
        yield patient, study


def _or_none(dataset: Dataset, keyword: str) -> list[str | None]:
    return [None, *[value for value in values(dataset, keyword)[:1] if value]]


def _unmarked(dataset: Dataset, keyword: str, *marks: str) -> list[str | None]:
    """A value may have been given with the mark, or the mark was put before it."""
    found = _or_none(dataset, keyword)
    whole = found[-1]
    for mark in marks:
        if whole is not None and whole.startswith(mark) and len(whole) > len(mark):
            found.insert(1, whole[len(mark) :])
    return found


def values(dataset: Dataset, keyword: str) -> list[str]:
    """The values of an element as texts; none where it is absent, empty, too long or unreadable."""
    if keyword not in dataset or dicom_limits.oversized(dataset, keyword):
        return []
    try:
        value = dataset[keyword].value
        several = isinstance(value, (list, tuple)) or hasattr(value, "append")
        texts = [str(each) for each in (value if several else [value]) if each is not None]
    except Exception:  # hostile values raise anything
        return []
    return [text for text in texts if text]


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence, at most 100; none where it is absent or unreadable."""
    first = dicom_limits.sequence_item(dataset, keyword)
    if first is None:
        return []
    return [item for item in itertools.islice(dataset[keyword].value, 100) if isinstance(item, Dataset)]
