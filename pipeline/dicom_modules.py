"""The parts of a DICOM dataset that differ from modality to modality, by the modules of the standard's part 3."""

import numpy as np
from pydicom import Dataset

from . import dicom_profiles, dicom_prompt, dicom_provenance

Code = dicom_profiles.Code
DicomProfile = dicom_profiles.DicomProfile
PromptFacts = dicom_prompt.PromptFacts


def add_radiograph(dataset: Dataset, profile: DicomProfile, facts: PromptFacts, spacing: float) -> None:
    """Add what a DX image has: presentation, anatomy, detector, view and orientation."""
    # DX Series, DX Image
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.PixelIntensityRelationship = "LOG"
    dataset.PixelIntensityRelationshipSign = -1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "US"
    dataset.PresentationLUTShape = "IDENTITY"
    # DX Anatomy Imaged, DX Detector, DX Positioning, Acquisition Context
    dataset.AnatomicRegionSequence = [coded(profile.region)] if profile.region else []
    dataset.ImageLaterality = "U"
    dataset.DetectorType = ""
    dataset.ImagerPixelSpacing = [decimal(spacing), decimal(spacing)]
    dataset.PositionerType = ""
    if facts.view_position:
        dataset.ViewPosition = facts.view_position
    dataset.ViewCodeSequence = [coded(dicom_profiles.VIEW_CODES[facts.view_position])]
    dataset.PatientOrientation = list(dicom_profiles.PATIENT_ORIENTATION[facts.view_position or "PA"])
    dataset.AcquisitionContextSequence = []


def add_slice(
    dataset: Dataset, profile: DicomProfile, facts: PromptFacts, spacing: float, shape: tuple[int, ...]
) -> None:
    """Add the plane of a CT or MR image: a slice of its own through the origin, and no part of a volume."""
    # Image Plane
    plane = facts.plane or profile.planes[0]
    orientation = dicom_profiles.IMAGE_ORIENTATION[plane]
    across, down = np.array(orientation[:3]), np.array(orientation[3:])
    corner = -spacing * ((shape[1] - 1) / 2.0 * across + (shape[0] - 1) / 2.0 * down)
    dataset.ImageOrientationPatient = list(orientation)
    dataset.ImagePositionPatient = [decimal(value) for value in corner]
    dataset.PixelSpacing = [decimal(spacing), decimal(spacing)]
    dataset.SliceThickness = decimal(profile.slice_thickness or 0.0)
    dataset.SliceLocation = "0"
    dataset.PatientOrientation = list(dicom_profiles.PATIENT_ORIENTATION[plane])
    dataset.AcquisitionNumber = 1


def add_contrast(dataset: Dataset, profile: DicomProfile, facts: PromptFacts) -> None:
    """Add the contrast agent where the prompt speaks of one."""
    # Contrast/Bolus
    if facts.contrast and profile.contrast_agent:
        dataset.ContrastBolusAgent = profile.contrast_agent.meaning
        dataset.ContrastBolusAgentSequence = [coded(profile.contrast_agent)]


def add_ct(dataset: Dataset, facts: PromptFacts) -> None:
    """Add what a CT image has."""
    # CT Image
    dataset.KVP = None


def add_mr(dataset: Dataset, facts: PromptFacts) -> None:
    """Add what an MR image has: nominal times of the sequence that the prompt names, else none."""
    # MR Image
    sequence, variant, repetition, echo, inversion, train = {
        "T1": ("SE", "NONE", "500", "15", None, 1),
        "T2": ("SE", "SK", "4000", "100", None, 16),
        "FLAIR": (["SE", "IR"], "SK", "9000", "120", "2500", 16),
        None: ("RM", "NONE", None, None, None, None),
    }[facts.sequence]
    dataset.ScanningSequence, dataset.SequenceVariant = sequence, variant
    dataset.ScanOptions = ""
    dataset.MRAcquisitionType = "2D"
    dataset.RepetitionTime, dataset.EchoTime, dataset.EchoTrainLength = repetition, echo, train
    if inversion is not None:
        dataset.InversionTime = inversion
    if facts.sequence is not None:
        dataset.SequenceName = facts.sequence


def add_specimen(dataset: Dataset, profile: DicomProfile, facts: PromptFacts, spacing: float) -> None:
    """Add the slide, what lies on it and its stain, and for grey pixels the light that made them."""
    # Acquisition Context, General Image
    dataset.AcquisitionContextSequence = []
    dataset.PatientOrientation = ""
    dataset.PixelSpacing = [decimal(spacing), decimal(spacing)]
    # Specimen
    identifier = f"{dataset.PatientID[:60]}-1"
    dataset.ContainerIdentifier = identifier
    dataset.IssuerOfTheContainerIdentifierSequence = []
    dataset.ContainerTypeCodeSequence = [coded(Code("433466003", "SCT", "Microscope slide"))]
    specimen = Dataset()
    specimen.SpecimenIdentifier = identifier
    specimen.SpecimenUID = dicom_provenance.uid_of("specimen", dataset.SeriesInstanceUID)
    specimen.IssuerOfTheSpecimenIdentifierSequence = []
    specimen.SpecimenTypeCodeSequence = [coded(profile.specimen_type)] if profile.specimen_type else []
    specimen.SpecimenShortDescription = f"SYNTHETIC {profile.title}"
    specimen.SpecimenPreparationSequence = []
    if facts.stain is not None:
        step = Dataset()
        step.SpecimenPreparationStepContentItemSequence = [
            _content_item(Code("121041", "DCM", "Specimen Identifier"), identifier),
            _content_item(Code("111701", "DCM", "Processing type"), Code("127790008", "SCT", "Staining")),
            *(
                _content_item(Code("424361007", "SCT", "Using substance"), stain)
                for stain in dicom_profiles.STAIN_CODES[facts.stain]
            ),
        ]
        specimen.SpecimenPreparationSequence = [step]
    dataset.SpecimenDescriptionSequence = [specimen]
    # Optical Path
    if profile.illumination is not None:
        path = Dataset()
        path.OpticalPathIdentifier = "1"
        path.IlluminationTypeCodeSequence = [coded(profile.illumination[0])]
        path.IlluminationColorCodeSequence = [coded(profile.illumination[1])]
        dataset.OpticalPathSequence = [path]


def add_secondary_capture(dataset: Dataset, facts: PromptFacts) -> None:
    """Add what a secondary capture has; no spacing, since it could show anything."""
    # SC Equipment, General Image, General Series
    dataset.ConversionType = "SYN"
    dataset.PatientOrientation = ""
    if facts.body_part is not None:
        dataset.BodyPartExamined = facts.body_part
    if facts.body_part is None or facts.body_part in dicom_prompt.PAIRED_BODY_PARTS:  # of others it may not be said
        dataset.Laterality = facts.laterality if facts.laterality in ("L", "R") else ""


def _content_item(name: Code, value: Code | str) -> Dataset:
    item = Dataset()
    item.ConceptNameCodeSequence = [coded(name)]
    if isinstance(value, Code):
        item.ValueType = "CODE"
        item.ConceptCodeSequence = [coded(value)]
    else:
        item.ValueType = "TEXT"
        item.TextValue = value
    return item


def add_pixels(dataset: Dataset, profile: DicomProfile, facts: PromptFacts, stored: np.ndarray) -> None:
    """Add stored values and how they are displayed."""
    # Image Pixel
    colour = stored.ndim == 3
    bits = 8 if colour else profile.bits_stored
    dataset.set_pixel_data(stored, "RGB" if colour else "MONOCHROME2", bits, generate_instance_uid=False)
    if colour:
        return
    # VOI LUT, and Rescale of the CT Image
    window = profile.window(facts.window)
    if window is None:
        center, width = 2.0 ** (bits - 1), 2.0**bits
    else:
        center, width = window.center, window.width
        dataset.RescaleIntercept, dataset.RescaleType = decimal(window.rescale_intercept), "HU"
        dataset.RescaleSlope = decimal(window.rescale_slope)
        dataset.WindowCenterWidthExplanation = (facts.window or profile.hounsfield_window or "").upper()
    dataset.WindowCenter, dataset.WindowWidth = decimal(center), decimal(width)


def coded(code: Code) -> Dataset:
    """Give a code as an item of a sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
    return item


def decimal(value: float) -> str:
    """Write a number as a Decimal String, which has at most 16 characters."""
    return f"{value + 0.0:.9g}"
