"""From float pixels, a profile and a recipe to a whole DICOM dataset.

The functions below follow the modules of the standard's part 3, one each. Everything that a caller of the DICOM stage
needs can be imported from here.
"""

import dataclasses
import datetime
from collections import Counter
from collections.abc import Sequence

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID, ExplicitVRLittleEndian

from . import (
    dicom_modules,
    dicom_patient,
    dicom_pixels,
    dicom_profiles,
    dicom_prompt,
    dicom_provenance,
    dicom_seal,
)

Patient = dicom_patient.Patient
Study = dicom_patient.Study
full_years_between = dicom_patient.full_years_between
parsed_date = dicom_patient.parsed_date
written_date = dicom_patient.written_date
years_of = dicom_patient.years_of
quantise = dicom_pixels.quantise
DicomProfile = dicom_profiles.DicomProfile
PromptFacts = dicom_prompt.PromptFacts
Recipe = dicom_provenance.Recipe
# Of a volume: which of its series, and which instance there; an image is an instance of the one series of its request.
Part = tuple[str, int]


def to_dataset(
    pixels: np.ndarray,
    profile: DicomProfile,
    recipe: Recipe,
    *,
    patient: Patient | None = None,
    study: Study | None = None,
    series_number: int = 1,
    instance_number: int = 1,
) -> Dataset:
    """Make a DICOM dataset of one synthetic image, ready for `save_as`.

    UIDs, dates and the made-up patient follow from the recipe and from the given patient and study alone. All images
    of a request (a recipe without its seed) make one series. Where the patient or the study is named (by name, ID or
    accession number), all requests for it make one study; else each request is a study, with a patient of its own.

    Parameters
    ----------
    pixels : numpy.ndarray
        Floats of [0, 1], shape (rows, columns) or (rows, columns, 3).
    profile : DicomProfile
        What kind of object to write.
    recipe : Recipe
        What made the pixels. Its prompt gives sex, age, view, plane, contrast and the like.
    patient, study : Patient, Study, optional
        Values for the header.
    series_number, instance_number : int
        Numbers that people see; the UIDs do not depend on them.

    Returns
    -------
    pydicom.Dataset
        With file meta information.

    Raises
    ------
    ValueError
        If the pixels cannot be stored, or a given value contradicts the prompt.
    """
    patient, study = patient or Patient(), study or Study()
    if recipe.modality != profile.name:
        raise ValueError(f"`recipe.modality` is {recipe.modality!r}, but `profile` is {profile.name!r}")
    for name, number in (("series_number", series_number), ("instance_number", instance_number)):
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**31:
            raise ValueError(f"`{name}` is {number!r}; allowed are whole numbers from 0 to {2**31 - 1}")
    if recipe.volume is not None:
        raise ValueError("`recipe` is that of a volume; allowed is that of an image")
    facts = facts_of(recipe)
    stored = quantise(pixels, profile, facts)
    dataset = base_dataset(profile, recipe, patient, study)
    dataset.SeriesNumber, dataset.InstanceNumber = series_number, instance_number
    spacing = profile.field_of_view / max(stored.shape[:2])
    if profile.modality == "DX":
        dicom_modules.add_radiograph(dataset, profile, facts, spacing)
    elif profile.modality in ("CT", "MR"):
        dicom_modules.add_slice(dataset, profile, facts, spacing, stored.shape[:2])
        dicom_modules.add_contrast(dataset, profile, facts)
        (dicom_modules.add_ct if profile.modality == "CT" else dicom_modules.add_mr)(dataset, facts)
    elif profile.modality == "GM":
        dicom_modules.add_specimen(dataset, profile, facts, spacing)
    else:
        dicom_modules.add_secondary_capture(dataset, facts)
    dicom_modules.add_pixels(dataset, profile, facts, stored)
    dicom_provenance.mark_synthetic(dataset, recipe)
    dicom_seal.write_seal(dataset, dicom_seal.seal_of(stored, recipe, dataset))
    return dataset


def base_dataset(
    profile: DicomProfile, recipe: Recipe, patient: Patient, study: Study, part: Part | None = None
) -> Dataset:
    """Make what every object has: patient, study, series, equipment, and what the object is."""
    facts = facts_of(recipe)
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    _add_patient_and_study(dataset, patient, study, facts, recipe)
    _add_series_and_equipment(dataset, profile, study, facts, recipe, part)
    _add_image(dataset, profile, recipe, patient, study, part)
    return dataset


def facts_of(recipe: Recipe) -> PromptFacts:
    """Give what the prompt states; of a volume, its model draws one sequence and contrast, whatever the prompt says."""
    facts = dicom_prompt.parse_prompt(recipe.prompt)
    if recipe.volume is None:
        return facts
    drawn = dicom_prompt.parse_prompt(recipe.volume.subject)
    return dataclasses.replace(facts, sequence=drawn.sequence, contrast=drawn.contrast)


def uids_of(
    recipe: Recipe,
    patient: Patient | None = None,
    study: Study | None = None,
    facts: PromptFacts | None = None,
    part: Part | None = None,
) -> tuple[UID, UID, UID]:
    """Give the UIDs of study, series and instance that `to_dataset` would write, or of a part of a volume.

    `facts` are those of the recipe's prompt, for callers that try many patients.
    """
    patient, study = patient or Patient(), study or Study()
    facts = facts or dicom_prompt.parse_prompt(recipe.prompt)
    key = _study_key(patient, study, recipe)
    date, _, _ = _dates(patient, study, dicom_patient.age_of(patient, facts), key)
    study_uid = _study_uid(key, date, patient)
    series_uid = dicom_provenance.uid_of("series", *_series_key(study_uid, recipe, study, part))
    return study_uid, series_uid, _instance_uid(series_uid, recipe, patient, study, part)


def number_in_order(datasets: Sequence[Dataset]) -> None:
    """Number series within their study and images within their series, from 1 in the order given; in place."""
    series: dict[str, list[str]] = {}
    images: Counter[str] = Counter()
    for dataset in datasets:
        known = series.setdefault(dataset.StudyInstanceUID, [])
        if dataset.SeriesInstanceUID not in known:
            known.append(dataset.SeriesInstanceUID)
        images[dataset.SeriesInstanceUID] += 1
        dataset.SeriesNumber = known.index(dataset.SeriesInstanceUID) + 1
        dataset.InstanceNumber = images[dataset.SeriesInstanceUID]


def _add_patient_and_study(
    dataset: Dataset, patient: Patient, study: Study, facts: PromptFacts, recipe: Recipe
) -> None:
    # Patient
    key = _study_key(patient, study, recipe)
    made_up = dicom_provenance.digest_of("patient", key)[:8].upper()
    sex, age = dicom_patient.sex_of(patient, facts), dicom_patient.age_of(patient, facts)
    date, time, birth_date = _dates(patient, study, age, key)
    if age is None and patient.birth_date is not None:
        age = f"{full_years_between(parsed_date(birth_date), date):03d}Y"
    dataset.PatientName = patient.name or f"SYNTHETIC^Patient {made_up}"
    dataset.PatientID = patient.id or f"SYNTHETIC-{made_up}"
    dataset.PatientBirthDate = birth_date
    dataset.PatientSex = sex or ""
    # Patient Study
    if age is not None:
        dataset.PatientAge = age
    # General Study
    dataset.StudyInstanceUID = _study_uid(key, date, patient)
    dataset.StudyDate = written_date(date)
    dataset.StudyTime = time
    dataset.StudyID = study.id or made_up
    dataset.AccessionNumber = study.accession_number or ""
    dataset.ReferringPhysicianName = study.referring_physician_name or ""
    dataset.StudyDescription = study.description or ""


def _study_uid(key: str, date: datetime.date, patient: Patient) -> UID:
    return dicom_provenance.uid_of("study", key, written_date(date) if patient.birth_date else "")


def _series_key(study_uid: str, recipe: Recipe, study: Study, part: Part | None) -> tuple[str | None, ...]:
    return study_uid, recipe.request_digest(), study.series_description, *(part[:1] if part else ())


def _instance_uid(series_uid: str, recipe: Recipe, patient: Patient, study: Study, part: Part | None) -> UID:
    given = dicom_patient.given_values(patient, study)
    return dicom_provenance.uid_of("instance", series_uid, recipe.digest(), given, *(part[1:] if part else ()))


def _study_key(patient: Patient, study: Study, recipe: Recipe) -> str:
    """Give what the study, the patient and the dates follow from."""
    values = dicom_patient.given_values(patient, study)
    values.pop("study.series_description", None)
    # A sex, an age or a description alone names nobody: without the request, strangers would share one study.
    return dicom_provenance.digest_of(
        values, "" if dicom_patient.names_someone(patient, study) else recipe.request_digest()
    )


def _dates(patient: Patient, study: Study, age: str | None, key: str) -> tuple[datetime.date, str, str]:
    """Give study date, study time and birth date, which agree with the age."""
    date, time = dicom_provenance.date_and_time_of(key)
    clock = str(study.time or f"{time:%H%M%S}")
    if patient.birth_date is None:
        date = parsed_date(str(study.date)) if study.date else date
        return date, clock, _birth_date(date, age)
    birth_date = parsed_date(str(patient.birth_date))
    if study.date:
        date = parsed_date(str(study.date))
        if date < birth_date:
            raise ValueError(f"`study.date` is {study.date}, which is before `patient.birth_date` {patient.birth_date}")
    elif age is not None:
        date = _later(birth_date, years_of(age) + 1e-3)
    elif not 0 <= full_years_between(birth_date, date) <= 100:
        date = _later(birth_date, 40.0)
    if age is not None and study.date and full_years_between(birth_date, date) != int(years_of(age) + 1e-6):
        raise ValueError(
            f"`patient.birth_date` {patient.birth_date} and `study.date` {study.date} give an age of "
            f"{full_years_between(birth_date, date)} years, but the age is {age}"
        )
    return date, clock, str(patient.birth_date)


def _birth_date(date: datetime.date, age: str | None) -> str:
    """Make up a birth date for an age: empty where the age is not known."""
    if age is None:
        return ""
    return written_date(_later(date, -(years_of(age) + (0.4 if age.endswith("Y") else 0.0))))


def _later(date: datetime.date, years: float) -> datetime.date:
    days = date.toordinal() + round(years * 365.2425)
    return datetime.date.fromordinal(min(max(days, 1), datetime.date.max.toordinal()))


def _add_series_and_equipment(
    dataset: Dataset, profile: DicomProfile, study: Study, facts: PromptFacts, recipe: Recipe, part: Part | None
) -> None:
    # General Series
    dataset.Modality = profile.modality
    series = _series_key(dataset.StudyInstanceUID, recipe, study, None)
    dataset.SeriesInstanceUID = dicom_provenance.uid_of("series", *series, *(part[:1] if part else ()))
    dataset.SeriesNumber = 1
    dataset.SeriesDescription = study.series_description or _title(profile, facts)
    dataset.SeriesDate, dataset.SeriesTime = dataset.StudyDate, dataset.StudyTime
    if profile.body_part is not None:
        dataset.BodyPartExamined = profile.body_part
    # Frame of Reference: one for all series of a volume
    if profile.planes:
        dataset.FrameOfReferenceUID = dicom_provenance.uid_of("frame of reference", *series)
        dataset.PositionReferenceIndicator = ""
        dataset.PatientPosition = "HFS"
    # General Equipment
    dataset.Manufacturer = dicom_provenance.MANUFACTURER
    dataset.ManufacturerModelName = dicom_provenance.header_text(recipe.model, 64) or dicom_provenance.MANUFACTURER
    dataset.DeviceSerialNumber = dicom_provenance.header_text(recipe.model_sha256, 64) or "0"
    dataset.SoftwareVersions = dicom_provenance.MANUFACTURER


def _title(profile: DicomProfile, facts: PromptFacts) -> str:
    """Say in a few words what the prompt asked for, of facts and never of the prompt's own words."""
    contrast = {True: "with contrast", False: "without contrast", None: None}[facts.contrast]
    words: list[str | None] = [profile.title]
    if profile.modality == "DX" and facts.view_position:
        words.append(facts.view_position)
    elif profile.modality == "CT":
        words = [facts.plane or profile.planes[0], *words, contrast]
    elif profile.modality == "MR":
        words = [facts.plane or profile.planes[0], facts.sequence, *words, contrast]
    return " ".join(word for word in words if word)


def _add_image(
    dataset: Dataset, profile: DicomProfile, recipe: Recipe, patient: Patient, study: Study, part: Part | None
) -> None:
    # SOP Common
    dataset.SOPClassUID = profile.sop_class_uid
    dataset.SOPInstanceUID = _instance_uid(dataset.SeriesInstanceUID, recipe, patient, study, part)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.FileMetaInformationGroupLength = 0  # reckoned anew when written
    dataset.file_meta.FileMetaInformationVersion = b"\0\1"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    dataset.file_meta.ImplementationVersionName = "SYNTHETIC_DICOM"
    dataset.preamble = b"\0" * 128  # without it `save_as` writes no DICOM file
    # General Image
    dataset.InstanceNumber = 1
    dataset.ImageType = list(profile.image_type)
    dataset.ContentDate = dataset.AcquisitionDate = dataset.StudyDate
    dataset.ContentTime = dataset.AcquisitionTime = dataset.StudyTime
    if recipe.input_sha256 is None:
        dataset.BurnedInAnnotation = "NO"
    elif profile.modality == "DX":  # type 1 there; of what was made of an image, nobody can promise "NO"
        dataset.BurnedInAnnotation = "YES"
    dataset.LossyImageCompression = "00"
