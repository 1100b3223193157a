"""Captions in many wordings, so that a prompt in a person's own words is understood.

The packs' own `text` is a template of their labels. Here each fact (modality, view or plane, demographics, finding,
technique) has synonyms and abbreviations, is sometimes left out, and stands in varying order. What was said is
returned beside the text: the text encoder learns to read it back.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Caption:
    """A caption and the facts that its words state, by name (`finding`, `view`, `sex`, ...)."""

    text: str
    said: dict[str, str] = field(default_factory=dict)


HEADS = {
    "cxr": ["chest X-ray", "chest X-ray", "chest radiograph", "CXR", "frontal chest X-ray", "chest xray", "X-ray of the chest", "thoracic radiograph"],
    "ct_chest": ["chest CT slice", "chest CT", "CT of the chest", "thoracic CT", "CT chest", "lung CT", "computed tomography of the chest", "CT scan of the lungs"],
    "ct_head": ["head CT slice", "head CT", "CT of the head", "CT head", "brain CT", "cranial CT", "computed tomography of the head", "CT scan of the brain"],
    "mri": ["brain MRI slice", "brain MRI", "MRI of the brain", "MRI brain", "cranial MRI", "MR image of the brain", "head MRI", "brain magnetic resonance image"],
    "blood": ["blood smear", "peripheral blood smear", "blood film", "microscopy of a blood smear", "light microscopy, blood smear", "peripheral blood film"],
}
VIEWS = {
    "AP": ["AP view", "AP", "anteroposterior view", "AP projection", "antero-posterior"],
    "PA": ["PA view", "PA", "posteroanterior view", "PA projection", "postero-anterior"],
}
PLANES = {
    "axial": ["axial", "axial", "axial slice", "transverse", "axial plane", "transaxial"],
    "coronal": ["coronal", "coronal", "coronal slice", "coronal plane", "frontal plane"],
}
FINDINGS = {
    "cxr/normal": ["normal lungs", "normal", "no finding", "no acute finding, clear lungs", "clear lungs", "healthy lungs", "no abnormality", "unremarkable"],
    "cxr/bacterial_pneumonia": ["bacterial pneumonia", "bacterial pneumonia", "pneumonia, bacterial", "bacterial lung infection", "pneumonia due to bacteria"],
    "cxr/viral_pneumonia": ["viral pneumonia", "viral pneumonia", "pneumonia, viral", "viral lung infection", "pneumonia due to a virus"],
    "cxr/pneumonia": ["pneumonia", "pneumonia", "lung infection", "pneumonic infiltrate", "signs of pneumonia"],
    "cxr/tuberculosis": ["pulmonary tuberculosis", "tuberculosis", "TB", "lung tuberculosis", "pulmonary TB"],
    "ct_chest/malignant": ["malignant lung tumour", "lung cancer", "malignant lung tumor", "lung carcinoma", "malignant lung nodule", "malignant mass"],
    "ct_chest/benign": ["benign lung nodule", "benign nodule", "benign lung lesion", "benign pulmonary nodule"],
    "ct_chest/normal": ["normal lungs", "normal", "healthy lungs", "no finding", "no nodule", "unremarkable"],
    "ct_head/haemorrhage": ["intracranial haemorrhage", "intracranial hemorrhage", "haemorrhage", "brain bleed", "hemorrhage", "intracranial bleeding", "cerebral haemorrhage"],
    "ct_head/normal": ["normal brain", "normal", "no haemorrhage", "no hemorrhage", "healthy brain", "unremarkable"],
    "mri/glioma": ["glioma", "glioma", "glioma tumour", "glial tumor", "brain tumour, glioma"],
    "mri/meningioma": ["meningioma", "meningioma", "meningioma tumour", "meningeal tumor", "brain tumour, meningioma"],
    "mri/pituitary": ["pituitary tumour", "pituitary tumor", "pituitary adenoma", "tumour of the pituitary gland", "pituitary"],
    "malaria/parasitized": ["red blood cell parasitised by Plasmodium falciparum malaria", "malaria", "malaria parasite", "infected red blood cell", "parasitized red blood cell", "Plasmodium falciparum", "erythrocyte with malaria parasite"],
    "malaria/uninfected": ["uninfected red blood cell", "healthy red blood cell", "no malaria", "red blood cell without parasite", "uninfected erythrocyte", "normal red blood cell"],
}
CELLS = {
    "basophil": ["basophil", "basophil granulocyte", "basophilic granulocyte"],
    "eosinophil": ["eosinophil", "eosinophil granulocyte", "eosinophilic granulocyte"],
    "erythroblast": ["erythroblast", "nucleated red blood cell", "normoblast"],
    "lymphocyte": ["lymphocyte", "lymphocyte white blood cell"],
    "monocyte": ["monocyte", "monocyte white blood cell"],
    "neutrophil": ["neutrophil", "neutrophil granulocyte", "polymorphonuclear neutrophil"],
    "platelet": ["platelet", "thrombocyte", "platelets"],
    "immature_granulocyte": ["immature granulocyte", "immature granulocyte, IG", "immature white cell of the granulocyte line"],
}
NIH_FINDINGS = {
    "Atelectasis": ["atelectasis", "lung collapse"],
    "Cardiomegaly": ["cardiomegaly", "enlarged heart"],
    "Consolidation": ["consolidation"],
    "Edema": ["edema", "pulmonary edema", "oedema"],
    "Effusion": ["effusion", "pleural effusion"],
    "Emphysema": ["emphysema"],
    "Fibrosis": ["fibrosis"],
    "Hernia": ["hernia"],
    "Infiltration": ["infiltration", "infiltrate"],
    "Mass": ["mass"],
    "Nodule": ["nodule"],
    "Pleural_Thickening": ["pleural thickening"],
    "Pneumothorax": ["pneumothorax"],
}
WINDOWS = {
    "lung": ["lung window"],
    "soft-tissue": ["soft-tissue window", "soft tissue window", "mediastinal window"],
    "wide-lung": ["wide lung window", "wide window"],
    "brain": ["brain window"],
}


def _pick(rng: np.random.Generator, options: list[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _demographics(row: dict[str, str], rng: np.random.Generator) -> tuple[str, dict[str, str]]:
    """A phrase for sex and age where the row knows them, and what it said."""
    sex, age = row["sex"], row["age"]
    if row["pack"] == "cxr_kermany":
        words = ["paediatric patient 1 to 5 years", "paediatric patient", "pediatric", "child", "young child",
                 f"{rng.integers(1, 6)} year old child", f"paediatric patient {rng.integers(1, 6)} years"]
        return _pick(rng, words), {"age_group": "child"}
    if row["pack"] == "cxr_shenzhen_tb":
        return _pick(rng, ["adult", "adult patient", "grown-up patient"]), {"age_group": "adult"}
    if not age.isdigit():
        return "", {}
    child = int(age) < 18
    noun = {"M": ["boy", "male"] if child else ["man", "male", "gentleman"],
            "F": ["girl", "female"] if child else ["woman", "female", "lady"]}[sex]
    adult = "paediatric" if child else "adult"
    said = {"sex": sex, "age_group": "child" if child else "adult", "age": str(min(int(age) // 15, 5))}
    full = [f"{age} year old {_pick(rng, noun)}", f"{age}-year-old {_pick(rng, noun)}", f"{age} yo {sex}", f"{adult} {_pick(rng, noun)} {age} years",
            f"{sex} {age}", f"{_pick(rng, noun)} aged {age}", f"{_pick(rng, noun)}, {age} years old"]
    if rng.random() < 0.75:
        return _pick(rng, full), said
    return _pick(rng, [_pick(rng, noun), f"{adult} {_pick(rng, noun)}"]), {"sex": sex, "age_group": said["age_group"]}


def _chest_xray(row: dict[str, str], rng: np.random.Generator) -> list[tuple[str, dict[str, str]]]:
    label = "normal" if row["label"] == "no_finding" else row["label"]
    finding, said = _pick(rng, FINDINGS[f"cxr/{label}"]), {"finding": f"cxr/{label}"}
    listed = [f for f in json.loads(row["extra"] or "{}").get("findings", "").split("|") if f in NIH_FINDINGS]
    if listed and rng.random() < 0.8:
        rng.shuffle(listed)
        finding += _pick(rng, [" with ", ", ", " and "]) + ", ".join(_pick(rng, NIH_FINDINGS[f]) for f in listed)
        said |= {f"sign_{name}": "yes" for name in listed}
    return [(_pick(rng, VIEWS[row["view"]]), {"view": row["view"]}), _demographics(row, rng), (finding, said)]


def _ct(row: dict[str, str], rng: np.random.Generator) -> list[tuple[str, dict[str, str]]]:
    parts = [(_pick(rng, PLANES["axial"]), {"view": "axial"})]
    if row["pack"] == "ct_chest_luad":
        window = json.loads(row["extra"])["window"]
        contrast = row["label"] == "contrast"
        words = ["with intravenous contrast", "with contrast", "contrast-enhanced", "post-contrast"] if contrast else ["without intravenous contrast", "non-contrast", "without contrast", "no contrast", "unenhanced"]
        return [*parts, (_pick(rng, WINDOWS[window]), {"window": window}), (_pick(rng, words), {"contrast": row["label"]}), _demographics(row, rng)]
    place, window = ("ct_head", "brain") if row["pack"] == "ct_head_hemorrhage" else ("ct_chest", "wide-lung")
    finding = f"{place}/{row['label']}"
    parts += [(_pick(rng, WINDOWS[window]), {"window": window}), (_pick(rng, FINDINGS[finding]), {"finding": finding})]
    if place == "ct_head":
        parts.append((_pick(rng, ["non-contrast", "without contrast", "unenhanced"]), {"contrast": "no_contrast"}))
    return parts


def _brain_mri(row: dict[str, str], rng: np.random.Generator) -> list[tuple[str, dict[str, str]]]:
    size = next((s for s in ("small", "large") if f"{s} " in row["text"]), "")
    finding, said = _pick(rng, FINDINGS[f"mri/{row['label']}"]), {"finding": f"mri/{row['label']}"}
    if size and rng.random() < 0.8:
        finding, said = f"{size} {finding}", said | {"size": size}
    technique = ["contrast-enhanced T1-weighted", "contrast-enhanced T1", "T1 with contrast", "T1-weighted with gadolinium", "T1 post-contrast", "T1w contrast", "T1", "T1 weighted, contrast enhanced"]
    return [(_pick(rng, PLANES[row["view"]]), {"view": row["view"]}), (_pick(rng, technique), {}), (finding, said)]


def _blood(row: dict[str, str], rng: np.random.Generator) -> list[tuple[str, dict[str, str]]]:
    pack, label, text = row["pack"], row["label"], row["text"]
    if pack == "blood_malaria":
        stain = ["Giemsa-stained thin blood smear", "Giemsa stain", "thin blood smear", "Giemsa-stained"]
        single = ["segmented single cell", "single cell on black background", "segmented single red blood cell", "single red blood cell"]
        key = f"malaria/{label}"
        return [(_pick(rng, stain), {}), (_pick(rng, single), {"layout": "malaria"}), (_pick(rng, FINDINGS[key]), {"finding": key})]
    if pack == "blood_pbc":
        subtype = re.search(r"single (\w[\w ]*?)(?: \(immature granulocyte\))?$", text)
        name, said = _pick(rng, CELLS[label]), {"finding": f"pbc/{label}", "layout": "pbc"}
        if subtype and subtype[1] != label and rng.random() < 0.5:
            name, said = f"{subtype[1]}" + _pick(rng, ["", f" ({label.replace('_', ' ')})"]), said | {"subtype": subtype[1]}
        stain = ["May Grunwald-Giemsa stain", "May-Grünwald Giemsa", "MGG stain", "light microscopy", "stained"]
        return [(_pick(rng, stain), {}), (_pick(rng, ["single ", "single ", "one ", "a ", ""]) + name, said)]
    if pack == "blood_rbc_chula":
        finding = text.split("microscopy, ")[-1]
        if rng.random() < 0.4:
            finding = finding.replace("red blood cells with ", _pick(rng, ["", "erythrocytes with ", "many "])).replace("anemia", _pick(rng, ["anemia", "anaemia"]))
        field_words = ["blood smear field", "1000x light microscopy", "many red blood cells", "1000x field", "red blood cell morphology"]
        return [(_pick(rng, field_words), {"layout": "chula"}), (finding, {"finding": f"chula/{label}"})]
    counts = re.findall(r"(\d+) (red blood cells|platelets)", text)
    field_words = ["Giemsa-stained blood smear field", "blood smear field", "field of a blood smear with red blood cells"]
    parts = [(_pick(rng, field_words), {"layout": "bccd"}), (f"one {_pick(rng, CELLS[label])}", {"finding": f"pbc/{label}"})]
    if counts and rng.random() < 0.6:
        parts.append((", ".join(f"{n} {what}" for n, what in counts), {}))
    return parts


_MAKERS = {"cxr": ("cxr", _chest_xray), "ct_head": ("ct_head", _ct), "ct": ("ct_chest", _ct), "mri": ("mri", _brain_mri), "blood": ("blood", _blood)}


def vary_caption(row: dict[str, str], rng: np.random.Generator) -> Caption:
    """One caption for a row of `read_rows`, drawn by `rng`.

    One time in five the pack's own text stands unchanged; else the facts are worded anew, each left out one time in
    six, and (but for the modality, which mostly comes first) in any order.
    """
    kind, maker = next(v for k, v in _MAKERS.items() if row["pack"].startswith(k))
    parts = [p for p in maker(row, rng) if p[0]]
    head = (_pick(rng, HEADS[kind]), {"pack_group": kind})
    if rng.random() < 0.2:
        return Caption(row["text"], {k: v for _, said in [head, *parts] for k, v in said.items() if k in {"pack_group", "view", "finding", "layout", "window"}})
    parts = [p for p in parts if rng.random() > 1 / 6]
    order = list(rng.permutation(len(parts)))
    parts = [parts[i] for i in order]
    if parts and rng.random() < 0.5 and len(parts[0][0].split()) < 4:
        # "axial T1 brain MRI", "PA chest X-ray": short facts often stand before the modality
        lead = 2 if len(parts) > 1 and len(parts[1][0].split()) < 3 and rng.random() < 0.5 else 1
        words = " ".join([*(p[0] for p in parts[:lead]), head[0]])
        head, parts = (words, {k: v for p in [head, *parts[:lead]] for k, v in p[1].items()}), parts[lead:]
    pieces = [head, *parts] if rng.random() < 0.9 else [*parts, head]
    joiner = _pick(rng, [", ", ", ", ", ", " ", "; "])
    text = joiner.join(p[0] for p in pieces)
    if rng.random() < 0.25:
        text = text.lower()
    return Caption(text, {k: v for p in pieces for k, v in p[1].items()})
