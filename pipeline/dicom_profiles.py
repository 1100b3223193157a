"""The DICOM rules of each modality, one frozen profile each, and how a profile is chosen.

A profile says which DICOM object is written, how float pixels become stored values, which field of view and
orientation are claimed and which codes of the standard name them. Spacing and geometry are nominal: nothing was
measured, so they are the usual ones of such an examination.

Fluorescence microscopy is VL Microscopic too: visible light at a microscope, and that object names specimen, stain and
epifluorescence illumination, where Secondary Capture would name nothing. Its VL Image Module (C.8.12.1.1.2) allows 8
bits and no more; one stain is one channel, so it is grey. For colour (histology, blood) the optional optical path would
have to come with an ICC profile, but these pixels were made in no known colour space, so it is left out.
"""

import re
from dataclasses import dataclass

from pydicom import uid

from . import dicom_prompt, dicom_windows


@dataclass(frozen=True)
class Code:
    """A coded concept of the standard: value, coding scheme and meaning."""

    value: str
    scheme: str
    meaning: str


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
    specimen_type : Code or None
        Of microscopy: what lies on the slide (CID 8103).
    illumination : tuple of Code or None
        Of grey microscopy: illumination type (CID 8123) and colour (CID 8122) of the one optical path.
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
    specimen_type: Code | None = None
    illumination: tuple[Code, Code] | None = None

    def window(self, name: str | None) -> dicom_windows.HounsfieldWindow | None:
        """Give the HU window of a name found in a prompt, or the usual one; None where there are no HU."""
        if self.hounsfield_window is None:
            return None
        return dicom_windows.HOUNSFIELD_WINDOWS[name or self.hounsfield_window]


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
    "haematoxylin-eosin": (
        Code("12710003", "SCT", "Hematoxylin stain"),
        Code("36879007", "SCT", "Water soluble eosin stain"),
    ),
    "fluorescent": (Code("35352008", "SCT", "Fluorescent stain"),),  # it has none for DAPI and Hoechst
}

_CHEST = Code("816094009", "SCT", "Chest")
# CID 4030/4031: Anatomic Region where an object wants a code and not only Body Part Examined.
REGIONS: dict[str, Code] = {
    "BRAIN": Code("12738006", "SCT", "Brain"),
    "HEAD": Code("69536005", "SCT", "Head"),
    "CHEST": _CHEST,
}
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
            specimen_type=Code("258433009", "SCT", "Smear sample"),
        ),
        DicomProfile(
            name="nuclei-fluorescence",
            sop_class_uid=uid.VLMicroscopicImageStorage,
            modality="GM",
            image_type=("DERIVED", "PRIMARY"),
            photometric_interpretation="MONOCHROME2",
            bits_stored=8,
            field_of_view=0.15,
            body_part=None,
            title="fluorescence microscopy of nuclei",
            specimen_type=Code("1179252003", "SCT", "Slide"),  # cells or tissue: the prompt does not say
            illumination=(
                Code("111743", "DCM", "Epifluorescence illumination"),
                Code("415770004", "SCT", "Ultraviolet"),
            ),
        ),
        DicomProfile(
            name="nuclei-histology",
            sop_class_uid=uid.VLMicroscopicImageStorage,
            modality="GM",
            image_type=("DERIVED", "PRIMARY"),
            photometric_interpretation="RGB",
            bits_stored=8,
            field_of_view=0.1,
            body_part=None,
            title="histology of nuclei",
            specimen_type=Code("430856003", "SCT", "Tissue section"),
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

MODALITIES: tuple[str, ...] = tuple(dict.fromkeys("ct" if name[:3] == "ct-" else name for name in PROFILES))
"""What a user may give as `modality`; the names of `PROFILES` and of `FAMILIES` are taken as well."""

FAMILIES: dict[str, tuple[str, ...]] = {
    "ct": ("ct-chest", "ct-head"),
    "nuclei": ("nuclei-fluorescence", "nuclei-histology"),
}
"""Modalities of several profiles, between which the words of the prompt decide."""

MODALITY_NAMES: tuple[str, ...] = tuple(dict.fromkeys((*MODALITIES, *FAMILIES, *PROFILES)))
"""Every word that names a modality."""
# Words that name a modality, and words that only one of them is usually asked for.
_STRONG_WORDS = {
    "chest-xray": r"\bcxr\b|\bx[\s-]?rays?\b|\bradiograph(?:s|y)?\b|\br(?:oe|ö)ntgen\w*|\bchest film\b",
    "ct": r"\bct\b|\bcta\b|\bncct\b|\bcect\b|\bhrct\b|\bcomputed tomograph\w*|\bcat scan\b|\bhounsfield\b",
    "brain-mri": r"\bmri\b|\bmr\b(?=[\s-]*(?:imag|scan|slice|brain|head|of\b))"
    r"|\bmagnetic resonance\b|\bflair\b|\bt[12](?:[\s-]?w(?:i|eighted)?)?\b(?![\s-]?n\d)"
    r"|\bt1(?:c|ce|gd)\b",
    "blood-smear": r"\b(?:blood|thin|thick|peripheral)[\s-]+(?:smear|film)s?\b|\bsmears?\b|\bgiemsa\b"
    r"|\bwright(?:'s)?[\s-]+stain\w*|\bleishman\b|\bromanowsky\b|\bhaematology\b|\bhematology\b",
    "nuclei-fluorescence": r"\b(?:immuno|auto)?-?fluorescen(?:ce|t)\b|\bepi-?fluorescen(?:ce|t)\b|\bdapi\b|\bhoechst\b",
    "nuclei-histology": r"\bhisto(?:log|patholog)\w*|\bh\s?(?:&|\+|and)\s?e\b|\bhe[\s-]+stain\w*|\bha?ematoxylin\b"
    r"|\beosin\b|\bstained tissue\b|\btissue[\s-]+(?:section|slide)s?\b|\bbright-?\s?field\b",
    "secondary-capture": r"\bsecondary[\s-]+capture\b|\bscreen[\s-]?shot\b",
}
_WEAK_WORDS = {
    "chest-xray": r"\bpneumonia\b|\btuberculosis\b|\b(?:pa|ap)\s+(?:view|projection|chest)\b|\bchest pa\b"
    r"|\bcardiomegaly\b|\bpneumothorax\b|\bcovid(?:-?19)?\b",
    "ct": r"\b(?:lung|brain|soft[\s-]tissue|mediastinal|bone)[\s-]+window\b|\bha?emorrhage\b",
    "brain-mri": r"\bmeningiomas?\b|\bgliomas?\b|\bglioblastomas?\b|\bpituitary\b|\bgadolinium\b",
    "blood-smear": r"\b(?:red|white)[\s-]+(?:blood[\s-]+)?cells?\b|\b\w*(?:neutrophil|eosinophil|basophil|lymphocyte"
    r"|monocyte|leu[ck]ocyte|erythrocyte|erythroblast|reticulocyte|spherocyte|elliptocyte|myelocyte)s?\b"
    r"|\bplatelets?\b|\bmalaria\b|\bplasmodium\b|\bblood cells?\b|\bsickle\b|\bthrombocytes?\b"
    r"|\bimmature granulocytes?\b",
}
# Words of any microscopy: a blood smear, unless others in the prompt name or hint at nuclei.
_MICROSCOPY_WORDS = re.compile(r"\bmicroscop\w*|\bmicrograph\w*")
_NUCLEI_WORDS = re.compile(r"(?<!basal )(?<!caudate )\bnuclei\b|\bcell nucleus\b")
_HISTOLOGY_WORDS = re.compile(_STRONG_WORDS["nuclei-histology"] + r"|\btissue\b|\blight microscop\w*|\bpurple\b")
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
        What the user typed. It also tells a head CT from a chest CT, and fluorescence from histology.
    modality : str, optional
        One of `MODALITY_NAMES`; decides alone where it is given.
    adapter : str, optional
        Modality or name of the adapter in use; counts where no modality is given and its words name one.

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
        name = known_modality(modality)
        if name is None:
            raise ValueError(f"`modality` is {modality!r}; allowed are {_allowed()}")
        return PROFILES[_profile_name(name, prompt)]
    if adapter is not None:
        words = adapter.strip().lower().replace("_", "-")
        if name := known_modality(words):
            return PROFILES[_profile_name(name, prompt)]
        if found := _modality_in(words.replace("-", " ")):
            return PROFILES[_profile_name(found, f"{words} {prompt}")]
    found = _modality_in(prompt)
    if found is None:
        raise ValueError(
            f"`prompt` names no modality: {_shortened(prompt)!r}; say it in the prompt (for example 'chest X-ray') or "
            f"give `modality`, one of {_allowed()}"
        )
    body_part = dicom_prompt.parse_prompt(prompt).body_part
    if found in _FITTING_BODY_PARTS and body_part is not None and body_part not in _FITTING_BODY_PARTS[found]:
        raise ValueError(
            f"`prompt` asks for {found} of {body_part}, which no profile describes; give `modality`, one of "
            f"{_allowed()}"
        )
    return PROFILES[_profile_name(found, prompt)]


def known_modality(text: str) -> str | None:
    """Give the entry of `MODALITY_NAMES` that a text is, whatever its case and hyphens; else None."""
    name = str(text).strip().lower().replace("_", "-").replace(" ", "-")
    return name if name in MODALITY_NAMES else None


def serves(modality: str | None, profile: DicomProfile) -> bool:
    """Tell whether what is meant for a modality (an adapter, say) is meant for images of this profile."""
    return modality is not None and profile.name in (modality, *FAMILIES.get(modality, ()))


def modality_of(profile: DicomProfile) -> str:
    """Give the user's name for the modality of a profile: "ct" for both CT profiles."""
    return "ct" if profile.name.startswith("ct-") else profile.name


def _allowed() -> str:
    return ", ".join(f"'{name}'" for name in MODALITY_NAMES)


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _profile_name(modality: str, prompt: str) -> str:
    """Give the profile of a modality; of a family the one that the words of the prompt ask for."""
    if modality == "nuclei":
        return "nuclei-histology" if _asks_for_histology(prompt.lower()) else "nuclei-fluorescence"
    if modality != "ct":
        return modality
    body_part = dicom_prompt.parse_prompt(prompt).body_part
    if body_part in ("CHEST", "HEART"):
        return "ct-chest"
    return "ct-head" if body_part in ("HEAD", "BRAIN") or _HEAD_WORDS.search(prompt.lower()) else "ct-chest"


def _asks_for_histology(text: str) -> bool:
    named = [(match.start(), name) for name in FAMILIES["nuclei"] if (match := re.search(_STRONG_WORDS[name], text))]
    return min(named)[1] == "nuclei-histology" if named else _HISTOLOGY_WORDS.search(text) is not None


def _modality_in(text: str) -> str | None:
    """Find the modality that a text names: the first one named outright, else the only one hinted at."""
    text = re.sub(r"[\s_]+", " ", text.lower())
    named = [(match.start(), name) for name, words in _STRONG_WORDS.items() if (match := re.search(words, text))]
    microscopy, nuclei = _MICROSCOPY_WORDS.search(text), _NUCLEI_WORDS.search(text)
    if microscopy and not any(name.startswith(("nuclei", "blood")) for _, name in named):
        named.append((microscopy.start(), "nuclei" if nuclei else "blood-smear"))
    if named:
        return min(named)[1]
    hinted = [name for name, words in _WEAK_WORDS.items() if re.search(words, text)]
    if not hinted and nuclei:
        return "nuclei"
    return hinted[0] if len(hinted) == 1 else None
