"""Captions from DICOM headers, and given captions in other words.

Nothing of a header is copied: each element is compared with terms known here, and only those come out, since free text
may hold names. Wording varies as it does for the base (`lora.captions`): synonyms, any order, parts left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from pipeline.dicom_decode import MODALITIES
from pipeline.dicom_limits import number, text

from .captions import CELLS, FINDINGS, HEADS, NIH_FINDINGS, PLANES, VIEWS, WINDOWS

HEADER_KEYWORDS = (
    "Modality", "BodyPartExamined", "ViewPosition", "PatientSex", "PatientAge", "SeriesDescription",
    "ImageOrientationPatient", "WindowCenter", "WindowWidth",
)  # fmt: skip
XRAY = frozenset(("CR", "DX", "RG"))
SLICES = frozenset(("CT", "MR", "PT"))
# Modalities that name the part of the body themselves stand alone: "mammogram", not "breast mammogram".
WHOLE_NAMES = {
    "MG": ["mammogram", "mammography image"], "PX": ["panoramic dental X-ray"], "IO": ["intra-oral dental X-ray"],
    "OP": ["fundus photograph", "ophthalmic photograph"], "OPT": ["optical coherence tomography of the eye"],
    "SM": ["slide microscopy", "light microscopy"], "GM": ["microscopy", "light microscopy"],
}  # fmt: skip
MODALITY_NAMES = {
    **dict.fromkeys(XRAY, ["X-ray", "radiograph", "xray"]), "CT": ["CT", "CT slice", "computed tomography"],
    "MR": ["MRI", "MRI slice", "MR image"], "US": ["ultrasound", "ultrasound image", "sonogram"],
    "PT": ["PET", "positron emission tomography"], "NM": ["scintigram", "nuclear medicine image"],
    "XA": ["X-ray angiogram", "angiogram"], "RF": ["fluoroscopy image", "fluoroscopy"],
    "ES": ["endoscopy image", "endoscopic image"], "XC": ["clinical photograph", "photograph"],
    "IVUS": ["intravascular ultrasound"], "OCT": ["optical coherence tomography"],
}  # fmt: skip
# Terms of PS3.16 Annex L, and some that are common in their place.
BODY_PARTS = {
    **{part.upper(): part for part in (
        "abdomen", "ankle", "aorta", "arm", "bladder", "brain", "breast", "calcaneus", "chest", "clavicle", "coccyx",
        "ear", "elbow", "extremity", "eye", "face", "femur", "finger", "foot", "forearm", "hand", "head", "heart",
        "hip", "humerus", "jaw", "kidney", "knee", "leg", "liver", "lung", "mandible", "maxilla", "neck", "nose",
        "orbit", "pancreas", "patella", "pelvis", "prostate", "rib", "scapula", "shoulder", "skin", "skull", "spine",
        "spleen", "sternum", "stomach", "thumb", "thyroid", "toe", "uterus", "wrist", "zygoma",
    )},
    "CSPINE": "cervical spine", "TSPINE": "thoracic spine", "LSPINE": "lumbar spine", "SSPINE": "sacrum",
    "WHOLEBODY": "whole body", "THORAX": "chest", "LUNGS": "lung", "CRANIUM": "head", "ABD": "abdomen",
    "CHESTABDOMEN": "chest and abdomen", "ABDOMENPELVIS": "abdomen and pelvis", "HEADNECK": "head and neck",
    "CHESTABDPELVIS": "chest, abdomen and pelvis", "KIDNEYS": "kidney", "SINUS": "paranasal sinuses",
}  # fmt: skip
_OBLIQUE, _LATERAL = ["oblique view", "oblique"], ["lateral view", "lateral projection", "lateral"]
VIEW_WORDS = {
    **VIEWS,
    "LL": ["left lateral view", "left lateral projection"], "RL": ["right lateral view", "right lateral projection"],
    "LATERAL": _LATERAL, "LAT": _LATERAL, "OBLIQUE": _OBLIQUE, **dict.fromkeys(("LPO", "RPO", "LAO", "RAO"), _OBLIQUE),
    **dict.fromkeys(("LLO", "RLO"), _OBLIQUE), **dict.fromkeys(("LLD", "RLD"), ["lateral decubitus view"]),
    "CC": ["craniocaudal view", "CC view"], "MLO": ["mediolateral oblique view", "MLO view"],
    "ML": ["mediolateral view", "ML view"], "LM": ["lateromedial view", "LM view"],
}  # fmt: skip
PLANE_WORDS = {**PLANES, "sagittal": ["sagittal", "sagittal", "sagittal slice", "sagittal plane"]}
PLANE_TERMS = {
    **dict.fromkeys(("axial", "ax", "tra", "transverse", "transversal", "transaxial"), "axial"),
    **dict.fromkeys(("coronal", "cor"), "coronal"), **dict.fromkeys(("sagittal", "sag"), "sagittal"),
}  # fmt: skip
SEQUENCE_WORDS = {
    "T1": ["T1-weighted", "T1", "T1w"], "T2": ["T2-weighted", "T2", "T2w"], "FLAIR": ["FLAIR", "T2 FLAIR"],
    "DWI": ["diffusion-weighted", "DWI"], "ADC": ["ADC map", "apparent diffusion coefficient"],
    "PD": ["proton density-weighted", "PD"], "STIR": ["STIR"], "SWI": ["susceptibility-weighted", "SWI"],
    "TOF": ["time-of-flight angiography", "TOF"],
}  # fmt: skip
SEQUENCE_TERMS = {
    **{name.lower(): name for name in SEQUENCE_WORDS}, "t1w": "T1", "t1wi": "T1", "mprage": "T1", "t2w": "T2",
    "t2wi": "T2", "diffusion": "DWI", "pdw": "PD",
}  # fmt: skip
CONTRAST_WORDS = {
    True: ["with contrast", "contrast-enhanced", "post-contrast"],
    False: ["without contrast", "non-contrast", "unenhanced"],
}
CONTRAST_TERMS = frozenset(("contrast", "post", "postcontrast", "gad", "gd", "gadolinium", "ce", "enhanced", "km"))
PLAIN_TERMS = frozenset(("pre", "precontrast", "non", "noncontrast", "without", "unenhanced", "nativ", "native"))
WINDOW_WORDS = {**{k: v for k, v in WINDOWS.items() if k != "wide-lung"}, "bone": ["bone window", "bone setting"]}
# Lowest and highest centre, lowest and highest width in HU. The window decides how the picture looks, whatever the
# description says.
WINDOW_RANGES = {
    "lung": (-800, -350, 1000, 2500), "soft-tissue": (15, 90, 250, 500), "brain": (25, 55, 60, 130),
    "bone": (250, 800, 1200, 4100),
}  # fmt: skip
WINDOW_TERMS = {"lung": "lung", "soft": "soft-tissue", "mediastinum": "soft-tissue", "mediastinal": "soft-tissue"} | {
    "bone": "bone", "brain": "brain"}  # fmt: skip
OLDEST = 90  # higher ages are rare enough to point at a person, so they are told as this one
UNITS = {"Y": "year", "M": "month", "W": "week", "D": "day"}
# Words of packs that the base has not seen. `kind` is what a caption is about: a key of HEADS, or "nuclei".
MORE_WORDS: dict[str, list[list[str]]] = {
    "cxr": [
        ["COVID-19 pneumonia", "COVID-19 pneumonia", "COVID-19", "COVID pneumonia", "SARS-CoV-2 pneumonia"],
        ["intensive care patient", "ICU patient", "intensive care", "critically ill patient"],
    ],
    "nuclei": [
        ["fluorescence microscopy", "fluorescence microscopy", "fluorescence micrograph", "fluorescence image"],
        ["DAPI-type stained cell nuclei on dark background", "DAPI-stained nuclei", "DAPI", "nuclei, DAPI stain",
         "cell nuclei", "nuclei", "stained cell nuclei on dark background"],
        ["stained tissue light microscopy", "histology", "H&E-stained tissue", "H&E", "histology, light microscopy"],
        ["purple cell nuclei", "purple nuclei", "cell nuclei, purple", "stained nuclei"],
        ["greyscale brightfield microscopy", "brightfield microscopy", "bright-field microscopy", "brightfield"],
        ["dark cell nuclei", "dark nuclei", "cell nuclei, dark"],
        ["sparse", "few nuclei", "sparse nuclei"],
        ["moderately dense", "medium density"],
        ["dense", "many nuclei", "densely packed nuclei"],
    ],
}  # fmt: skip


@dataclass(frozen=True)
class HeaderFacts:
    """What a DICOM header says that may stand in a caption; None where it says nothing.

    Attributes
    ----------
    modality, view : str or None
        The standard's terms.
    body_part, plane, sequence, window : str or None
        Names of this module: "chest", "axial", "T1", "lung".
    contrast : bool or None
        With or without a contrast agent.
    sex : {"M", "F"} or None
    age : (int, str) or None
        A number and its unit: "year", "month", "week" or "day".
    """

    modality: str | None = None
    body_part: str | None = None
    view: str | None = None
    plane: str | None = None
    sequence: str | None = None
    contrast: bool | None = None
    window: str | None = None
    sex: str | None = None
    age: tuple[int, str] | None = None


def header_facts(header: Dataset) -> HeaderFacts:
    """Take from a DICOM header what may stand in a caption; see ``HEADER_KEYWORDS`` for what is read."""

    def term(keyword: str) -> str:
        return re.sub(r"[^A-Z0-9]", "", (text(header, keyword) or "").upper())

    modality = term("Modality") if term("Modality") in MODALITIES else None
    described = (text(header, "SeriesDescription") or "").lower().replace("w/o", "without")
    words = re.findall(r"[^\W_]+", described)
    parts = [BODY_PARTS.get(term("BodyPartExamined")), *(BODY_PARTS.get(word.upper()) for word in words)]
    views = [v for v in (term("ViewPosition"), *(w.upper() for w in words)) if v in VIEW_WORDS]
    sex = term("PatientSex")
    return HeaderFacts(
        modality=modality,
        body_part=next((part for part in parts if part), None),
        view=views[0] if views and modality in XRAY | {"MG"} else None,
        plane=(_plane(header) or _first(PLANE_TERMS, words)) if modality in SLICES else None,
        sequence=_sequence(words) if modality == "MR" else None,
        contrast=_contrast(words) if modality in ("CT", "MR") else None,
        window=_window(header, words) if modality == "CT" else None,
        sex=sex if sex in ("M", "F") else None,
        age=_age(term("PatientAge")),
    )


def plain_header_caption(facts: HeaderFacts) -> str:
    """Give all facts in a fixed order, each in its plainest words."""
    head, parts = _pieces(facts)
    plane = f"{facts.plane} " if facts.plane else ""
    return ", ".join([plane + head[0], *(options[0] for name, options in parts if name != "plane")])


def vary_header_caption(facts: HeaderFacts, rng: np.random.Generator) -> str:
    """Give one wording of the facts, drawn by `rng`; one time in five the plain one."""
    if rng.random() < 0.2:
        return plain_header_caption(facts)
    head, parts = _pieces(facts)
    return _arranged(_pick(rng, head), [_pick(rng, options) for _, options in parts], rng, lead=True)


def vary_text(caption: str, rng: np.random.Generator) -> str:
    """Give one wording of a given caption, drawn by `rng`.

    One time in five it stands unchanged. Else its pieces between commas are exchanged for synonyms of the base's own
    captions where they are known, each but the first is left out one time in six, and the order varies, the first
    piece mostly staying first. Sentences are never taken apart: "no effusion, nodule or mass" would be turned round.
    """
    if rng.random() < 0.2:
        return caption
    pieces = [piece.strip() for piece in re.split(r",(?!\d)", caption.rstrip(" .")) if piece.strip()]
    if not pieces or re.search(r"[.!?;:]\s", caption) or any(re.match(r"(and|or|nor|but)\b", p, re.I) for p in pieces):
        return caption
    groups = _groups(caption)
    frontal = re.search(r"\b(frontal|AP|PA)\b", caption)
    worded = []
    for piece in pieces:
        options = [o for o in _synonyms(piece, groups) if frontal or "frontal " not in o]
        worded.append(_pick(rng, options) if options else piece)
    return _arranged(worded[0], worded[1:], rng)


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _arranged(head: str, parts: list[str], rng: np.random.Generator, lead: bool = False) -> str:
    """Put a caption together, as `lora.captions.vary_caption` does."""
    parts = [part for part in parts if rng.random() > 1 / 6]
    parts = [parts[i] for i in rng.permutation(len(parts))]
    if lead and parts and rng.random() < 0.5 and len(parts[0].split()) < 3:  # "axial brain MRI", "PA chest X-ray"
        head, parts = f"{parts[0]} {head}", parts[1:]
    joined = _pick(rng, [", ", ", ", ", ", " ", "; "]).join([head, *parts] if rng.random() < 0.9 else [*parts, head])
    return joined.lower() if rng.random() < 0.25 else joined


def _pieces(facts: HeaderFacts) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Give the wordings of the modality, and those of every other fact by its name, the plainest first."""
    parts: list[tuple[str, list[str]]] = []
    if facts.view:
        parts.append(("view", VIEW_WORDS[facts.view]))
    if facts.plane:
        parts.append(("plane", PLANE_WORDS[facts.plane]))
    if facts.sequence:
        parts.append(("sequence", SEQUENCE_WORDS[facts.sequence]))
    if facts.contrast is not None:
        parts.append(("contrast", CONTRAST_WORDS[facts.contrast]))
    if facts.window:
        parts.append(("window", WINDOW_WORDS[facts.window]))
    if facts.sex or facts.age:
        parts.append(("person", _person(facts.sex, facts.age)))
    return _heads(facts), parts


def _heads(facts: HeaderFacts) -> list[str]:
    modality, part = facts.modality or "", facts.body_part
    if part in ("chest", "lung") and (modality in XRAY or modality == "CT"):
        heads = HEADS["ct_chest" if modality == "CT" else "cxr"]
        return heads if facts.view in ("AP", "PA") else [h for h in heads if not h.startswith("frontal")]
    if part in ("head", "brain") and modality in ("CT", "MR"):
        return HEADS["ct_head" if modality == "CT" else "mri"]
    if modality in WHOLE_NAMES:
        return WHOLE_NAMES[modality]
    names = MODALITY_NAMES.get(modality, ["medical image"])
    return [*(f"{part} {name}" for name in names), *(f"{name} of the {part}" for name in names)] if part else names


def _person(sex: str | None, age: tuple[int, str] | None, adult: bool | None = None) -> list[str]:
    """Give phrases for sex and age; `adult` counts where the age is not known."""
    young = (age[1] != "year" or age[0] < 18) if age else adult is False
    nouns = {
        "M": ["boy", "male"] if young else ["man", "male", "gentleman"],
        "F": ["girl", "female"] if young else ["woman", "female", "lady"],
    }.get(sex or "", ["child"] if young else ["patient"])
    group = "paediatric" if young else "adult"
    if age is None:
        known = [f"{group} {nouns[1]}", nouns[0], f"{group} {nouns[0]}"] if sex else [f"{group} patient"]
        return known if adult is not None else [nouns[0], nouns[min(1, len(nouns) - 1)]]
    count, unit = age
    phrases = [f"{count} {unit} old {noun}" for noun in nouns] + [f"{count}-{unit}-old {nouns[0]}"]
    if unit == "year":
        phrases += [f"{nouns[0]} aged {count}", f"{nouns[0]}, {count} years old", f"{group} {nouns[-1]} {count} years"]
        phrases += [f"{count} yo {sex}", f"{sex} {count}"] if sex else []
    return [*phrases, nouns[0]]


def _plane(header: Dataset) -> str | None:
    values = [number(header, "ImageOrientationPatient", i) for i in range(6)]
    if None in values:
        return None
    normal = np.abs(np.cross(np.array(values[:3], float), np.array(values[3:], float)))
    return ("sagittal", "coronal", "axial")[int(normal.argmax())] if 0.9 < normal.max() < 1.1 else None


def _first(terms: dict[str, str], words: list[str]) -> str | None:
    return next((terms[word] for word in words if word in terms), None)


def _sequence(words: list[str]) -> str | None:
    return "FLAIR" if "flair" in words else _first(SEQUENCE_TERMS, words)  # "T2 FLAIR" is FLAIR


def _contrast(words: list[str]) -> bool | None:
    said = set(words)
    given = bool(said & CONTRAST_TERMS) and "op" not in said  # "post op"
    if {"pre", "post"} <= said or not (given or said & PLAIN_TERMS):
        return None
    return not said & PLAIN_TERMS


def _window(header: Dataset, words: list[str]) -> str | None:
    center, width = number(header, "WindowCenter"), number(header, "WindowWidth")
    if center is not None and width is not None:
        for name, (low, high, narrow, wide) in WINDOW_RANGES.items():
            if low <= center <= high and narrow <= width <= wide:
                return name
        return None
    named = {"window", "windows", "kernel", "tissue", "setting"} & set(words)
    return _first(WINDOW_TERMS, words) if named else None


def _age(term: str) -> tuple[int, str] | None:
    """Read an Age String; 000Y is what anonymisers write for an age that is not known."""
    match = re.fullmatch(r"0*([1-9]\d{0,2})([DWMY])", term)
    if match is None or (match[2] == "Y" and int(match[1]) > 125):
        return None
    return (min(int(match[1]), OLDEST) if match[2] == "Y" else int(match[1])), UNITS[match[2]]


def _groups(caption: str) -> list[list[str]]:
    """Give the groups of synonyms that hold for what a caption is about: "normal" means something else in a head CT."""
    lower = caption.lower()
    heads = [(len(name), kind) for kind, names in HEADS.items() for name in names if name.lower() in lower]
    if not heads:
        return MORE_WORDS["nuclei"] if re.search(r"\bnuclei\b", lower) else []
    kind = max(heads)[1]
    groups = [HEADS[kind], *MORE_WORDS.get(kind, ())]
    prefix = "malaria" if kind == "blood" else kind
    groups += [words for key, words in FINDINGS.items() if key.startswith(f"{prefix}/")]
    if kind == "cxr":
        return [*groups, *VIEWS.values(), *NIH_FINDINGS.values()]
    if kind == "blood":
        return [*groups, *CELLS.values(), *([f"single {name}" for name in names] for names in CELLS.values())]
    groups += [*PLANE_WORDS.values(), *CONTRAST_WORDS.values()]
    return groups + list(SEQUENCE_WORDS.values() if kind == "mri" else WINDOW_WORDS.values())


_PERSON = re.compile(r"(adult|pa?ediatric) (male|female)(?: (\d{1,3}) years)?|(\d{1,3})[ -]year[ -]old (man|woman)")


def _synonyms(piece: str, groups: list[list[str]]) -> list[str]:
    """Give other wordings of a piece, none where it is not known or means more than one thing."""
    person = _PERSON.fullmatch(piece)
    if person:
        group, noun, age = person[1] or "adult", person[2] or person[5], person[3] or person[4]
        sex = "F" if noun in ("female", "woman") else "M"
        return _person(sex, (int(age), "year") if age else None, adult=group == "adult")
    found = [options for options in groups if piece.lower() in (option.lower() for option in options)]
    if len(found) == 1 and piece.lower() != "pituitary":  # that alone may be the healthy gland
        return found[0]
    for head in sorted(groups[0] if groups else (), key=len, reverse=True):
        if piece.lower().endswith(f" {head.lower()}"):  # "axial contrast-enhanced brain MRI"
            return [f"{piece[: -len(head)]}{other}" for other in groups[0]]
    return []
