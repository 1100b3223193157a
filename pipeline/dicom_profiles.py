"""The DICOM rules of each modality, one frozen profile each, and how a profile is chosen.

A profile says which DICOM object is written, how float pixels become stored values, which field of view and
orientation are claimed and which codes of the standard name them. Spacing and geometry are nominal: nothing was
measured, so they are the usual ones of such an examination.
"""

import re
from dataclasses import dataclass

import numpy as np
from pydicom import uid

from .dicom_prompt import parse_prompt


@dataclass(frozen=True)
class Code:
    """A coded concept of the standard: value, coding scheme and meaning."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class HounsfieldWindow:
    """How grey of [0, 1] becomes Hounsfield units, for one display window.

    Between its ends a window is linear. What lies outside of it was cut off in the pictures that a model learnt
    from, so that air and bone are only "black" and "white": near the ends the curve is stretched, and air comes
    out near -1000 HU and bone above the window. In its own window the picture looks the same.

    Attributes
    ----------
    low, high : float
        Ends of the display window in HU.
    grey, hounsfield : tuple of float
        Corners of the curve, both rising.
    rescale_slope : float
        HU of one stored level. Fine enough for more than 1,000 levels inside the window.
    """

    low: float
    high: float
    grey: tuple[float, ...]
    hounsfield: tuple[float, ...]
    rescale_slope: float = 1.0 / 16.0
    rescale_intercept: float = -1024.0

    @property
    def center(self) -> float:
        """Window Center in HU."""
        return (self.low + self.high) / 2.0

    @property
    def width(self) -> float:
        """Window Width in HU."""
        return self.high - self.low

    def to_hounsfield(self, pixels: np.ndarray) -> np.ndarray:
        """Give the HU of float pixels of [0, 1]."""
        return np.interp(pixels, self.grey, self.hounsfield)

    def to_grey(self, hounsfield: np.ndarray) -> np.ndarray:
        """Give the float pixels of HU, the inverse of `to_hounsfield`."""
        return np.interp(hounsfield, self.hounsfield, self.grey)


def _hounsfield_window(
    low: float,
    high: float,
    below: tuple[tuple[float, float], ...],
    linear: tuple[float, float],
    above: tuple[tuple[float, float], ...],
    rescale_slope: float = 1.0 / 16.0,
) -> HounsfieldWindow:
    """Join (grey, HU) corners below and above to the linear part between two greys."""
    inner = tuple((grey, low + grey * (high - low)) for grey in linear)
    grey, hounsfield = zip(*below, *inner, *above, strict=True)
    return HounsfieldWindow(low, high, grey, hounsfield, rescale_slope)


# The two lung windows already reach air inside the window, so only the little below air is pressed together there.
# The ends were read off the real pictures: air, fat and muscle lie where these windows put -1000, -105 and 55 HU.
HOUNSFIELD_WINDOWS: dict[str, HounsfieldWindow] = {
    "lung": _hounsfield_window(-1350, 150, ((0.0, -1024.0),), (0.2275, 0.97), ((0.985, 180.0), (1.0, 900.0))),
    "wide-lung": _hounsfield_window(-1250, 250, ((0.0, -1024.0),), (0.161, 0.97), ((0.985, 290.0), (1.0, 1000.0))),
    "soft-tissue": _hounsfield_window(
        -160, 240, ((0.0, -1000.0), (0.015, -900.0)), (0.04, 0.96), ((0.985, 320.0), (1.0, 1100.0))
    ),
    # A narrow window needs finer steps; 1/32 HU still reaches 1,023 HU.
    "brain": _hounsfield_window(
        0, 80, ((0.0, -1000.0), (0.03, -900.0)), (0.06, 0.95), ((0.98, 250.0), (1.0, 1000.0)), 1.0 / 32.0
    ),
    "bone": _hounsfield_window(-450, 1050, ((0.0, -1010.0), (0.02, -800.0)), (0.05, 0.97), ((1.0, 1600.0),)),
}


@dataclass(frozen=True)
class DicomProfile:
    """How one kind of image is written as DICOM.

    Attributes
    ----------
    name : str
        Key in `PROFILES`.
    sop_class_uid, modality, image_type : str, str, tuple of str
        The DICOM object.
    photometric_interpretation : {"MONOCHROME2", "RGB"}
        Grey or colour.
    bits_stored : int
        8 for colour; for grey 12, or 16 for HU.
    field_of_view : float
        Millimetres that the longer side of the image stands for.
    body_part : str or None
        Body Part Examined.
    title : str
        A few words for Series Description.
    hounsfield_window : str or None
        Window for a prompt that names none; None where the stored values are no HU.
    planes : tuple of str
        Planes that the profile can claim, the first where the prompt names none; empty for a projection.
    slice_thickness : float or None
        Nominal slice thickness in millimetres.
    contrast_agent : str, Code
        What Contrast/Bolus Agent says where the prompt speaks of contrast.
    region : Code or None
        Anatomic Region.
    colour_where_seen : bool
        A grey profile that keeps the colour of a coloured image.
    """

    name: str
    sop_class_uid: uid.UID
    modality: str
    image_type: tuple[str, ...]
    photometric_interpretation: str
    bits_stored: int
    field_of_view: float
    body_part: str | None
    title: str
    hounsfield_window: str | None = None
    planes: tuple[str, ...] = ()
    slice_thickness: float | None = None
    contrast_agent: Code | None = None
    region: Code | None = None
    colour_where_seen: bool = False

    def window(self, name: str | None) -> HounsfieldWindow | None:
        """Give the HU window of a name found in a prompt, or the usual one; None where there are no HU."""
        if self.hounsfield_window is None:
            return None
        return HOUNSFIELD_WINDOWS[name or self.hounsfield_window]


# Row direction, then column direction, for pictures whose left side is the patient's right (or front).
IMAGE_ORIENTATION: dict[str, tuple[int, int, int, int, int, int]] = {
    "axial": (1, 0, 0, 0, 1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
}
PATIENT_ORIENTATION: dict[str, tuple[str, str]] = {
    "axial": ("L", "P"),
    "coronal": ("L", "F"),
    "sagittal": ("P", "F"),
    "PA": ("L", "F"),
    "AP": ("L", "F"),
    "LL": ("P", "F"),
    "RL": ("A", "F"),
}
# CID 4010 "DX View".
VIEW_CODES: dict[str | None, Code] = {
    "PA": Code("272479007", "SCT", "postero-anterior"),
    "AP": Code("399348003", "SCT", "antero-posterior"),
    "LL": Code("399173006", "SCT", "left lateral"),
    "RL": Code("399198007", "SCT", "right lateral"),
    None: Code("399033003", "SCT", "frontal"),
}
# CID 8112 "Specimen Stain". The standard has no code for Wright-Giemsa: both stains are named.
STAIN_CODES: dict[str, tuple[Code, ...]] = {
    "may-grunwald-giemsa": (Code("255803006", "SCT", "May-Grunwald giemsa stain"),),
    "wright-giemsa": (Code("373682001", "SCT", "Wright stain"), Code("373646006", "SCT", "Giemsa stain")),
    "giemsa": (Code("373646006", "SCT", "Giemsa stain"),),
    "wright": (Code("373682001", "SCT", "Wright stain"),),
    "leishman": (Code("255802001", "SCT", "Leishman stain"),),
    "romanowsky": (Code("255810000", "SCT", "Romanowsky stain"),),
}

_CHEST = Code("816094009", "SCT", "Chest")
_IODINE = Code("7140000", "SCT", "Contrast agent")
_GADOLINIUM = Code("768763008", "SCT", "Gadolinium")

PROFILES: dict[str, DicomProfile] = {
    profile.name: profile
    for profile in (
        DicomProfile(
            name="chest-xray",
            sop_class_uid=uid.DigitalXRayImageStorageForPresentation,
            modality="DX",
            image_type=("DERIVED", "PRIMARY"),
            photometric_interpretation="MONOCHROME2",
            bits_stored=12,
            field_of_view=350.0,
            body_part="CHEST",
            title="chest X-ray",
            region=_CHEST,
        ),
        DicomProfile(
            name="ct-chest",
            sop_class_uid=uid.CTImageStorage,
            modality="CT",
            image_type=("DERIVED", "PRIMARY", "AXIAL"),
            photometric_interpretation="MONOCHROME2",
            bits_stored=16,
            field_of_view=360.0,
            body_part="CHEST",
            title="chest CT",
            hounsfield_window="wide-lung",
            planes=("axial", "coronal", "sagittal"),
            slice_thickness=5.0,
            contrast_agent=_IODINE,
        ),
        DicomProfile(
            name="ct-head",
            sop_class_uid=uid.CTImageStorage,
            modality="CT",
            image_type=("DERIVED", "PRIMARY", "AXIAL"),
            photometric_interpretation="MONOCHROME2",
            bits_stored=16,
            field_of_view=240.0,
            body_part="HEAD",
            title="head CT",
            hounsfield_window="brain",
            planes=("axial", "coronal", "sagittal"),
            slice_thickness=5.0,
            contrast_agent=_IODINE,
        ),
        DicomProfile(
            name="brain-mri",
            sop_class_uid=uid.MRImageStorage,
            modality="MR",
            image_type=("DERIVED", "PRIMARY", "OTHER"),
            photometric_interpretation="MONOCHROME2",
            bits_stored=12,
            field_of_view=240.0,
            body_part="BRAIN",
            title="brain MRI",
            planes=("axial", "coronal", "sagittal"),
            slice_thickness=5.0,
            contrast_agent=_GADOLINIUM,
        ),
        DicomProfile(
            name="blood-smear",
            sop_class_uid=uid.VLMicroscopicImageStorage,
            modality="GM",
            image_type=("DERIVED", "PRIMARY"),
            photometric_interpretation="RGB",
            bits_stored=8,
            field_of_view=0.04,
            body_part=None,
            title="blood smear",
        ),
        DicomProfile(
            name="secondary-capture",
            sop_class_uid=uid.SecondaryCaptureImageStorage,
            modality="OT",
            image_type=("DERIVED", "SECONDARY"),
            photometric_interpretation="MONOCHROME2",
            bits_stored=12,
            field_of_view=350.0,
            body_part=None,
            title="secondary capture",
            colour_where_seen=True,
        ),
    )
}

MODALITIES: tuple[str, ...] = ("chest-xray", "ct", "brain-mri", "blood-smear", "secondary-capture")
"""What a user may give as `modality`; the names of `PROFILES` are taken as well."""

# Words that name a modality, and words that only one of them is usually asked for.
_STRONG_WORDS = {
    "chest-xray": r"\bcxr\b|\bx[\s-]?rays?\b|\bradiograph(?:s|y)?\b|\br(?:oe|ö)ntgen\w*|\bchest film\b",
    "ct": r"\bct\b|\bcta\b|\bncct\b|\bcect\b|\bhrct\b|\bcomputed tomograph\w*|\bcat scan\b|\bhounsfield\b",
    "brain-mri": r"\bmri\b|\bmr\b(?=[\s-]*(?:imag|scan|slice|brain|head|of\b))"
    r"|\bmagnetic resonance\b|\bflair\b|\bt[12](?:[\s-]?w(?:i|eighted)?)?\b(?![\s-]?n\d)"
    r"|\bt1(?:c|ce|gd)\b",
    "blood-smear": r"\b(?:blood|thin|thick|peripheral)[\s-]+(?:smear|film)s?\b|\bsmears?\b|\bmicroscop\w*|\bgiemsa\b"
    r"|\bwright(?:'s)?[\s-]+stain\w*|\bleishman\b|\bromanowsky\b|\bmicrograph\w*|\bhaematology\b|\bhematology\b",
    "secondary-capture": r"\bsecondary[\s-]+capture\b|\bscreen[\s-]?shot\b",
}
_WEAK_WORDS = {
    "chest-xray": r"\bpneumonia\b|\btuberculosis\b|\b(?:pa|ap)\s+(?:view|projection|chest)\b|\bchest pa\b"
    r"|\bcardiomegaly\b|\bpneumothorax\b",
    "ct": r"\b(?:lung|brain|soft[\s-]tissue|mediastinal|bone)[\s-]+window\b|\bha?emorrhage\b",
    "brain-mri": r"\bmeningiomas?\b|\bgliomas?\b|\bglioblastomas?\b|\bpituitary\b|\bgadolinium\b",
    "blood-smear": r"\b(?:red|white)[\s-]+(?:blood[\s-]+)?cells?\b|\b\w*(?:neutrophil|eosinophil|basophil|lymphocyte"
    r"|monocyte|leu[ck]ocyte|erythrocyte|erythroblast|reticulocyte|spherocyte|elliptocyte|myelocyte)s?\b"
    r"|\bplatelets?\b|\bmalaria\b|\bplasmodium\b|\bblood cells?\b|\bsickle\b|\bthrombocytes?\b"
    r"|\bimmature granulocytes?\b",
}
_HEAD_WORDS = re.compile(
    r"\b(?:head|brain|skull|intra-?cranial|cranial|cerebral|stroke|sub-?dural|epi-?dural|sub-?arachnoid)\b"
)
_FITTING_BODY_PARTS = {
    "chest-xray": {"CHEST", "HEART"},
    "ct": {"CHEST", "HEART", "HEAD", "BRAIN"},
    "brain-mri": {"BRAIN", "HEAD"},
}


def choose_profile(prompt: str, modality: str | None = None, adapter: str | None = None) -> DicomProfile:
    """Choose the profile of an image.

    Parameters
    ----------
    prompt : str
        What the user typed. It also tells a head CT from a chest CT.
    modality : str, optional
        One of `MODALITIES` or a name of `PROFILES`; decides alone where it is given.
    adapter : str, optional
        Name of the loaded adapter; counts where no modality is given and its words name one.

    Returns
    -------
    DicomProfile
        One of `PROFILES`.

    Raises
    ------
    ValueError
        If `modality` is not known, or nothing names a modality.
    """
    if modality is not None:
        name = str(modality).strip().lower().replace("_", "-").replace(" ", "-")
        if name not in MODALITIES and name not in PROFILES:
            raise ValueError(f"`modality` is {modality!r}; allowed are {_allowed()}")
        return PROFILES[_profile_name(name, prompt)]
    if adapter is not None:
        name = adapter.strip().lower().replace("_", "-")
        if name in MODALITIES or name in PROFILES:
            return PROFILES[_profile_name(name, prompt)]
        if found := _modality_in(name.replace("-", " ")):
            return PROFILES[_profile_name(found, f"{name} {prompt}")]
    found = _modality_in(prompt)
    if found is None:
        raise ValueError(
            f"`prompt` names no modality: {_shortened(prompt)!r}; say it in the prompt (for example 'chest X-ray') or "
            f"give `modality`, one of {_allowed()}"
        )
    body_part = parse_prompt(prompt).body_part
    if found in _FITTING_BODY_PARTS and body_part is not None and body_part not in _FITTING_BODY_PARTS[found]:
        raise ValueError(
            f"`prompt` asks for {found} of {body_part}, which no profile describes; give `modality`, one of "
            f"{_allowed()}"
        )
    return PROFILES[_profile_name(found, prompt)]


def modality_of(profile: DicomProfile) -> str:
    """Give the user's name for the modality of a profile: "ct" for both CT profiles."""
    return "ct" if profile.name.startswith("ct-") else profile.name


def _allowed() -> str:
    return ", ".join(f"'{name}'" for name in dict.fromkeys(MODALITIES + tuple(PROFILES)))


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _profile_name(modality: str, prompt: str) -> str:
    if modality != "ct":
        return modality
    body_part = parse_prompt(prompt).body_part
    if body_part in ("CHEST", "HEART"):
        return "ct-chest"
    return "ct-head" if body_part in ("HEAD", "BRAIN") or _HEAD_WORDS.search(prompt.lower()) else "ct-chest"


def _modality_in(text: str) -> str | None:
    """Find the modality that a text names: the first one named outright, else the only one hinted at."""
    text = re.sub(r"[\s_]+", " ", text.lower())
    named = [(match.start(), name) for name, words in _STRONG_WORDS.items() if (match := re.search(words, text))]
    if named:
        return min(named)[1]
    hinted = [name for name, words in _WEAK_WORDS.items() if re.search(words, text)]
    return hinted[0] if len(hinted) == 1 else None
