"""A volume as DICOM: one file a slice, or one enhanced multi-frame object; MR or CT, as its profile is.

Slices, enhanced object and label map of a volume are three series of one study, in one frame of reference. UIDs follow
from the recipe, and from the given patient and study, as those of images do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID, EnhancedCTImageStorage, EnhancedMRImageStorage, SegmentationStorage

from . import (
    dicom_limits,
    dicom_modules,
    dicom_output,
    dicom_patient,
    dicom_profiles,
    dicom_provenance,
    dicom_seal,
    dicom_volume,
)

DicomProfile = dicom_profiles.DicomProfile
Part = dicom_output.Part
Patient = dicom_patient.Patient
PromptFacts = dicom_output.PromptFacts
Recipe = dicom_provenance.Recipe
Slices = dicom_volume.Slices
Study = dicom_patient.Study
VolumeRecipe = dicom_volume.VolumeRecipe

ENHANCED: dict[str, UID] = {"MR": EnhancedMRImageStorage, "CT": EnhancedCTImageStorage}
SLICES, MULTI_FRAME, SEGMENTATION = "slices", "enhanced", "segmentation"
_NUMBERS = {SLICES: 1, MULTI_FRAME: 2, SEGMENTATION: 3}
_LONGEST_COMMENT = 10_000
_INTRAVENOUS = dicom_profiles.Code("47625008", "SCT", "Intravenous route")


def recipe_of(output: Any, index: int, subject: str) -> Recipe:
    """Give the recipe of a volume of `SyntheticDicomVolumePipelineOutput`.

    Parameters
    ----------
    output
        What a call of the volume pipeline gave.
    index
        Which of its volumes.
    subject
        What the model draws, in words (`pipe.config.subject["description"]`).

    Raises
    ------
    ValueError
        The subject names no modality of CT or MR.
    """
    made, geometry = output.recipes[index], output.geometry
    profile = dicom_profiles.choose_profile(subject)
    volume = VolumeRecipe(
        subject=subject,
        shape=tuple(geometry["shape"]),
        axes=geometry["axes"],
        spacing=tuple(geometry["spacing"]),
        labels=tuple(geometry["labels"]) if output.masks is not None else (),
        covariates=_pairs(made["covariates"]),
        warnings=tuple(output.warnings[index]),
        obtained=_pairs(output.obtained[index]) if output.obtained else (),
    )
    values = {name: made[name] for name in ("prompt", "seed", "num_inference_steps", "guidance_scale", "scheduler")}
    values |= {"model": made["model"], "model_sha256": made["model_sha256"], "negative_prompt": ""}
    recipe = Recipe(
        **values,
        modality=profile.name,
        height=1,
        width=1,
        versions=tuple(made["versions"].items()),
        volume=volume,
    )
    _, rows, columns = slices_of(recipe).shape
    return Recipe(**{**vars(recipe), "height": rows, "width": columns})


def slices_of(recipe: Recipe) -> Slices:
    """Give how a volume is cut: along the plane that the prompt names, else the profile's first."""
    profile = profile_of(recipe)
    assert recipe.volume is not None
    return Slices(dicom_output.facts_of(recipe).plane or profile.planes[0], recipe.volume)


def profile_of(recipe: Recipe) -> DicomProfile:
    """Give the profile of a volume's recipe.

    Raises
    ------
    ValueError
        The recipe is that of an image, or neither of CT nor of MR.
    """
    profile = dicom_profiles.PROFILES.get(recipe.modality)
    if recipe.volume is None or profile is None or profile.modality not in ENHANCED:
        raise ValueError(f"`recipe` must be that of a volume of CT or MR, not of {recipe.modality!r:.40}")
    return profile


def part_of(dataset: Dataset) -> Part | None:
    """Give which part of a volume an object of ours is, by its SOP class and instance number; None for any other."""
    kinds = {str(uid): MULTI_FRAME for uid in ENHANCED.values()}
    kinds |= {str(p.sop_class_uid): SLICES for p in dicom_profiles.PROFILES.values() if p.modality in ENHANCED}
    try:
        kind = (kinds | {str(SegmentationStorage): SEGMENTATION}).get(str(dataset.get("SOPClassUID", "")))
        number = dataset.get("InstanceNumber")
    except Exception:  # hostile elements raise anything when they are first looked at
        return None
    if kind is None or not isinstance(number, int) or number < 1:
        return None
    return kind, int(number) - 1


def to_series(
    voxels: np.ndarray, recipe: Recipe, *, patient: Patient | None = None, study: Study | None = None
) -> list[Dataset]:
    """Make one dataset a slice.

    Parameters
    ----------
    voxels
        Floats of [0, 1], shape as `recipe.volume` has it.
    recipe
        From `recipe_of`.
    patient, study
        Values for the header.

    Raises
    ------
    ValueError
        The voxels are not as the recipe says, or a given value contradicts the prompt.
    """
    datasets = []
    for index, stored in enumerate(_stored(voxels, recipe)):
        dataset = base_part(recipe, patient, study, (SLICES, index))
        _add_slice(dataset, recipe, index, stored)
        datasets.append(dataset)
    return datasets


def to_enhanced(
    voxels: np.ndarray, recipe: Recipe, *, patient: Patient | None = None, study: Study | None = None
) -> Dataset:
    """Make one Enhanced MR or Enhanced CT dataset of all slices; parameters and errors as `to_series`."""
    profile, slices, facts = profile_of(recipe), slices_of(recipe), dicom_output.facts_of(recipe)
    check_one_object(slices.shape)
    stored = _stored(voxels, recipe)
    dataset = base_part(recipe, patient, study, (MULTI_FRAME, 0))
    kind = profile.modality
    frame_type = ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    dataset.ImageType = frame_type
    del dataset.AcquisitionDate, dataset.AcquisitionTime  # of single frames
    # Enhanced MR Image, Enhanced CT Image: what was not acquired needs no times, coils or tubes.
    dataset.PixelPresentation, dataset.VolumetricProperties = "MONOCHROME", "VOLUME"
    dataset.VolumeBasedCalculationTechnique = "NONE"
    dataset.ContentQualification = "RESEARCH"
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.AcquisitionContextSequence = []
    if kind == "MR":
        dataset.ComplexImageComponent = "MAGNITUDE"
        dataset.AcquisitionContrast = {"T1": "T1", "T2": "T2", "FLAIR": "FLUID_ATTENUATED"}.get(
            facts.sequence or "", "UNKNOWN"
        )
        dataset.ApplicableSafetyStandardAgency = "NONE"  # must have a value; nothing was scanned
    if facts.contrast and profile.contrast_agent:
        dataset.ContrastBolusAgentSequence = [_agent(dicom_modules.coded(profile.contrast_agent))]
    # Multi-frame Functional Groups, Multi-frame Dimension
    dataset.NumberOfFrames = len(stored)
    dataset.SharedFunctionalGroupsSequence = [_shared(profile, slices, facts, dataset, frame_type)]
    dataset.PerFrameFunctionalGroupsSequence = [_frame(slices, index) for index in range(len(stored))]
    organization = dicom_provenance.uid_of("dimensions", dataset.SeriesInstanceUID)
    dataset.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=organization)]
    dataset.DimensionOrganizationType = "3D"
    dataset.DimensionIndexSequence = [
        _item(
            DimensionOrganizationUID=organization,
            DimensionIndexPointer=Tag(pointer),
            FunctionalGroupPointer=Tag("FrameContentSequence"),
            DimensionDescriptionLabel=label,
        )
        for pointer, label in (("StackID", "Stack ID"), ("InStackPositionNumber", "In-Stack Position Number"))
    ]
    bits = profile.bits_stored
    dataset.set_pixel_data(stored, "MONOCHROME2", bits, generate_instance_uid=False)
    finish(dataset, recipe, stored)
    return dataset


def check_one_object(shape: Sequence[int]) -> None:
    """Refuse more voxels in one object than are read again."""
    if math.prod(shape) > dicom_limits.MAX_PIXELS:
        raise ValueError(
            f"a volume of {' x '.join(map(str, shape))} voxels does not go into one object, which may have "
            f"{dicom_limits.MAX_PIXELS}; write slices alone"
        )


def blank_part(recipe: Recipe, part: Part, patient: Patient, study: Study) -> Dataset:
    """Make the header of a part of a volume, as this version would write it; of a label map what all parts have.

    Raises
    ------
    ValueError
        The volume has no such part.
    """
    kind, index = part
    slices = slices_of(recipe)
    if index >= (slices.shape[0] if kind == SLICES else 1):
        raise ValueError(f"`part` is {part}; the volume has {slices.shape[0]} slices")
    assert recipe.volume is not None
    if kind != SLICES:
        check_one_object(slices.shape)
    if kind == MULTI_FRAME:
        return to_enhanced(np.zeros(recipe.volume.shape, np.float32), recipe, patient=patient, study=study)
    dataset = base_part(recipe, patient, study, part)
    if kind == SLICES:
        _add_slice(dataset, recipe, index, np.zeros(slices.shape[1:], np.uint16))
    else:
        dataset.Modality, dataset.SOPClassUID = "SEG", SegmentationStorage
        dataset.ImageType = ["DERIVED", "PRIMARY"]
        del dataset.PatientPosition
        finish(dataset, recipe, np.zeros(slices.shape, np.uint8))
    return dataset


def finish(dataset: Dataset, recipe: Recipe, stored: np.ndarray) -> None:
    """Say what was asked for and obtained, mark it as synthetic, and seal it."""
    assert recipe.volume is not None
    words = [dicom_provenance.NOT_FOR_DIAGNOSIS]
    words += [f"Requested {name}: {value:g}" for name, value in recipe.volume.covariates]
    words += [f"Obtained {name}: {value:g}" for name, value in recipe.volume.obtained]
    words += [f"Warning: {warning}" for warning in recipe.volume.warnings]
    dataset.ImageComments = dicom_provenance.header_text(". ".join(words), _LONGEST_COMMENT)
    dicom_provenance.mark_synthetic(dataset, recipe)
    frames = stored[0] if stored.ndim == 3 and len(stored) == 1 else stored  # as `decode_stored` gives them
    dicom_seal.write_seal(dataset, dicom_seal.seal_of(frames, recipe, dataset))


def base_part(recipe: Recipe, patient: Patient | None, study: Study | None, part: Part) -> Dataset:
    """Make what every object of a volume has."""
    profile, kind = profile_of(recipe), part[0]
    dataset = dicom_output.base_dataset(profile, recipe, patient or Patient(), study or Study(), part)
    dataset.SeriesNumber, dataset.InstanceNumber = _NUMBERS[kind], part[1] + 1
    if not (study and study.series_description):
        dataset.SeriesDescription += {SLICES: " volume", MULTI_FRAME: " volume, enhanced"}.get(kind, " label map")
    if kind == MULTI_FRAME:
        dataset.SOPClassUID = ENHANCED[profile.modality]
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    return dataset


def _stored(voxels: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Check voxels and bring them to stored values, (slices, rows, columns)."""
    array = np.asarray(voxels)
    assert recipe.volume is not None
    if array.shape != recipe.volume.shape:
        raise ValueError(f"`voxels` has shape {array.shape}, but the recipe says {recipe.volume.shape}")
    profile, facts = profile_of(recipe), dicom_output.facts_of(recipe)
    return np.stack([dicom_output.quantise(each, profile, facts) for each in slices_of(recipe).cut(array)])


def _add_slice(dataset: Dataset, recipe: Recipe, index: int, stored: np.ndarray) -> None:
    profile, facts = profile_of(recipe), dicom_output.facts_of(recipe)
    _add_plane(dataset, slices_of(recipe), index)
    dicom_modules.add_contrast(dataset, profile, facts)
    (dicom_modules.add_ct if profile.modality == "CT" else _add_mr)(dataset, facts)
    dicom_modules.add_pixels(dataset, profile, facts, stored)
    finish(dataset, recipe, stored)


def _add_plane(dataset: Dataset, slices: Slices, index: int) -> None:
    # Image Plane
    position, spacing = slices.position(index), [dicom_modules.decimal(value) for value in slices.spacing]
    normal = np.cross(slices.orientation[:3], slices.orientation[3:])
    dataset.ImageOrientationPatient = list(slices.orientation)
    dataset.ImagePositionPatient = [dicom_modules.decimal(value) for value in position]
    dataset.PixelSpacing = spacing[1:]
    dataset.SliceThickness = dataset.SpacingBetweenSlices = spacing[0]
    dataset.SliceLocation = dicom_modules.decimal(float(position @ normal))
    dataset.PatientOrientation = list(dicom_profiles.PATIENT_ORIENTATION[slices.plane])
    dataset.AcquisitionNumber = 1


def _add_mr(dataset: Dataset, facts: PromptFacts) -> None:
    dicom_modules.add_mr(dataset, facts)
    dataset.MRAcquisitionType = "3D"


def _shared(
    profile: DicomProfile, slices: Slices, facts: PromptFacts, dataset: Dataset, frame_type: list[str]
) -> Dataset:
    """Functional groups that all frames share."""
    spacing = [dicom_modules.decimal(value) for value in slices.spacing]
    window, slope = profile.window(facts.window), ("1", "0", "US")
    center, width = 2.0 ** (profile.bits_stored - 1), 2.0**profile.bits_stored
    if window is not None:
        slope = (dicom_modules.decimal(window.rescale_slope), dicom_modules.decimal(window.rescale_intercept), "HU")
        center, width = window.center, window.width
    kind = {
        name: dataset[name].value
        for name in (
            *("PixelPresentation", "VolumetricProperties", "VolumeBasedCalculationTechnique"),
            *("ComplexImageComponent", "AcquisitionContrast"),
        )
        if name in dataset
    }
    frame = _item(FrameType=list(frame_type), **kind)
    region = dicom_profiles.REGIONS[profile.body_part or ""]
    groups = _item(
        PixelMeasuresSequence=[
            _item(PixelSpacing=spacing[1:], SliceThickness=spacing[0], SpacingBetweenSlices=spacing[0])
        ],
        PlaneOrientationSequence=[_item(ImageOrientationPatient=list(slices.orientation))],
        FrameAnatomySequence=[_item(FrameLaterality="U", AnatomicRegionSequence=[dicom_modules.coded(region)])],
        PixelValueTransformationSequence=[
            _item(RescaleSlope=slope[0], RescaleIntercept=slope[1], RescaleType=slope[2])
        ],
        FrameVOILUTSequence=[
            _item(WindowCenter=dicom_modules.decimal(center), WindowWidth=dicom_modules.decimal(width))
        ],
        **{("MRImageFrameTypeSequence" if profile.modality == "MR" else "CTImageFrameTypeSequence"): [frame]},
    )
    if "ContrastBolusAgentSequence" in dataset:
        usage = _item(ContrastBolusAgentNumber=1, ContrastBolusAgentAdministered="YES", ContrastBolusAgentDetected=None)
        groups.ContrastBolusUsageSequence = [usage]
    if profile.modality == "CT":  # must be there, though no tube was ever switched on
        event = dicom_provenance.uid_of("irradiation event", dataset.SeriesInstanceUID)
        groups.IrradiationEventIdentificationSequence = [_item(IrradiationEventUID=event)]
    return groups


def _frame(slices: Slices, index: int) -> Dataset:
    """Functional groups of one frame."""
    position = [dicom_modules.decimal(value) for value in slices.position(index)]
    return _item(
        FrameContentSequence=[_item(StackID="1", InStackPositionNumber=index + 1, DimensionIndexValues=[1, index + 1])],
        PlanePositionSequence=[_item(ImagePositionPatient=position)],
    )


def _agent(agent: Dataset) -> Dataset:
    """Add what Enhanced Contrast/Bolus wants beside the agent's code."""
    agent.ContrastBolusAgentNumber = 1
    agent.ContrastBolusAdministrationRouteSequence = [dicom_modules.coded(_INTRAVENOUS)]
    agent.ContrastBolusIngredientCodeSequence = []
    agent.ContrastBolusVolume = agent.ContrastBolusIngredientConcentration = None
    return agent


def _item(**values: Any) -> Dataset:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item


def _pairs(values: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple((name, float(value)) for name, value in values.items())
