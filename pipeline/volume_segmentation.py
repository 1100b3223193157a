"""The label map of a volume as DICOM Segmentation, made by highdicom, on the very slices of the series."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

from . import (
    dicom_decode,
    dicom_modules,
    dicom_patient,
    dicom_profiles,
    dicom_provenance,
    volume_dicom,
)

Code = dicom_profiles.Code
Patient = dicom_patient.Patient
Recipe = dicom_provenance.Recipe
Study = dicom_patient.Study

ANATOMICAL_STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")
# What a model draws, found in the words of its subject; a label is a part of it.
STRUCTURES = {"hippocamp": Code("5366008", "SCT", "Hippocampus")}
MODIFIERS = {
    "anterior": Code("255549009", "SCT", "Anterior"),
    "posterior": Code("255551008", "SCT", "Posterior"),
    "left": Code("7771000", "SCT", "Left"),
    "right": Code("24028007", "SCT", "Right"),
}
COLOURS = ((230, 97, 76), (64, 176, 230), (240, 200, 60), (120, 200, 100), (180, 130, 220), (240, 150, 190))
"""RGB of the labels 1, 2, ...; then from the first again."""


def to_segmentation(
    mask: np.ndarray,
    recipe: Recipe,
    series: list[Dataset],
    *,
    patient: Patient | None = None,
    study: Study | None = None,
) -> Dataset:
    """Make a segmentation of a label map.

    Parameters
    ----------
    mask
        Whole numbers, shape as `recipe.volume` has it: 0 background, then the labels of the recipe from 1.
    recipe
        From `volume_dicom.recipe_of`.
    series
        Of the same volume, from `volume_dicom.to_series`, with the same patient and study.
    patient, study
        Values for the header.

    Raises
    ------
    ValueError
        The label map is not as the recipe says, or the recipe has no labels.
    """
    import highdicom  # takes a second, and only this needs it

    assert recipe.volume is not None
    labels = recipe.volume.labels
    mask = np.asarray(mask)
    if not labels:
        raise ValueError("`recipe` has no labels: there is no label map to write")
    if mask.shape != recipe.volume.shape or mask.dtype.kind not in "iu":
        raise ValueError(f"`mask` is {mask.dtype} {mask.shape}; allowed are whole numbers, {recipe.volume.shape}")
    if mask.size and not 0 <= mask.min() <= mask.max() <= len(labels):
        raise ValueError(f"`mask` reaches from {mask.min()} to {mask.max()}; allowed are 0 to {len(labels)}")
    slices = volume_dicom.slices_of(recipe)
    base = volume_dicom.base_part(recipe, patient, study, (volume_dicom.SEGMENTATION, 0))
    dataset = highdicom.seg.Segmentation(
        source_images=series,
        pixel_array=slices.cut(mask).astype(np.uint8),
        segmentation_type="BINARY",
        segment_descriptions=[_described(number, name, recipe) for number, name in enumerate(labels, 1)],
        series_instance_uid=base.SeriesInstanceUID,
        series_number=base.SeriesNumber,
        sop_instance_uid=base.SOPInstanceUID,
        instance_number=base.InstanceNumber,
        manufacturer=base.Manufacturer,
        manufacturer_model_name=base.ManufacturerModelName,
        software_versions=base.SoftwareVersions,
        device_serial_number=base.DeviceSerialNumber,
        content_label="LABELS",
        content_description="Label map of a synthetic volume",
        omit_empty_frames=False,  # so that every frame lies on a slice, whatever the labels are
    )
    plain = Dataset()
    plain.update({element.tag: element for element in dataset})
    for element in base:  # highdicom takes some from the series and makes others up: a UID, today's date
        if element.keyword not in ("Modality", "SOPClassUID", "ImageType", "PatientPosition"):
            plain[element.tag] = element
    del plain.InstanceCreationDate, plain.InstanceCreationTime
    organization = dicom_provenance.uid_of("dimensions", plain.SeriesInstanceUID)
    for item in (*plain.DimensionOrganizationSequence, *plain.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    plain.file_meta, plain.preamble = base.file_meta, base.preamble
    plain.file_meta.MediaStorageSOPClassUID = plain.SOPClassUID = SegmentationStorage
    plain.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    volume_dicom.finish(plain, recipe, dicom_decode.decode_stored(plain))
    return plain


def colour_of(number: int) -> tuple[int, int, int]:
    """Give the colour of a label, from 1."""
    return COLOURS[(number - 1) % len(COLOURS)]


def _described(number: int, name: str, recipe: Recipe) -> Any:
    import highdicom
    from pydicom.sr.codedict import codes

    assert recipe.volume is not None
    subject = recipe.volume.subject.lower()
    structure = next((code for words, code in STRUCTURES.items() if words in subject), ANATOMICAL_STRUCTURE)
    described = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=highdicom.sr.CodedConcept(*_parts(ANATOMICAL_STRUCTURE)),
        segmented_property_type=highdicom.sr.CodedConcept(*_parts(structure)),
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=dicom_provenance.header_text(recipe.model, 64) or dicom_provenance.MANUFACTURER,
            family=codes.cid7162.ArtificialIntelligence,
            version=recipe.model_sha256[:16],
        ),
        display_color=highdicom.color.CIELabColor.from_rgb(*colour_of(number)),
    )
    modifiers = [dicom_modules.coded(code) for word, code in MODIFIERS.items() if word in name.lower().split()]
    if modifiers:
        described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = modifiers
    return described


def _parts(code: Code) -> tuple[str, str, str]:
    return code.value, code.scheme, code.meaning
