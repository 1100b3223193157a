"""Profiles, how one is chosen, and the Hounsfield curves."""

import csv
from pathlib import Path

import numpy as np
import pytest
from pydicom.sr.codedict import codes

from pipeline.dicom_profiles import (
    FAMILIES,
    MODALITIES,
    PROFILES,
    STAIN_CODES,
    VIEW_CODES,
    choose_profile,
    known_modality,
    modality_of,
    serves,
)
from pipeline.dicom_windows import HOUNSFIELD_WINDOWS

SHARED_IMAGES = Path(__file__).resolve().parents[2] / "shared" / "data" / "images"


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("chest X-ray, PA view", "chest-xray"),
        ("CXR 54yo F", "chest-xray"),
        ("frontal chest radiograph", "chest-xray"),
        ("portable AP chest, pneumonia", "chest-xray"),
        ("axial chest CT slice, wide lung window", "ct-chest"),
        ("computed tomography of the thorax", "ct-chest"),
        ("CT", "ct-chest"),
        ("axial non-contrast head CT slice, brain window", "ct-head"),
        ("CT of the brain with subdural haemorrhage", "ct-head"),
        ("axial T1 brain MRI with contrast, meningioma", "brain-mri"),
        ("FLAIR", "brain-mri"),
        ("pituitary tumour", "brain-mri"),
        ("peripheral blood smear", "blood-smear"),
        ("single neutrophil", "blood-smear"),
        ("malaria parasite in a red blood cell", "blood-smear"),
        ("Giemsa-stained thin film", "blood-smear"),
        ("light microscopy of a smear", "blood-smear"),
        ("microscopy, single neutrophil", "blood-smear"),
        ("lymphocyte with two nuclei", "blood-smear"),
        ("fluorescence microscopy, nuclei", "nuclei-fluorescence"),
        ("microscopy of nuclei, fluorescence", "nuclei-fluorescence"),
        ("nuclei", "nuclei-fluorescence"),
        ("DAPI", "nuclei-fluorescence"),
        ("immunofluorescence of cells", "nuclei-fluorescence"),
        ("H&E", "nuclei-histology"),
        ("histology, nuclei", "nuclei-histology"),
        ("cell nuclei, haematoxylin and eosin", "nuclei-histology"),
        ("brightfield microscopy, cell nuclei", "nuclei-histology"),
        ("stained tissue light microscopy, purple cell nuclei", "nuclei-histology"),
        ("COVID-19, intensive care patient", "chest-xray"),
        ("COVID-19, chest CT", "ct-chest"),
        ("secondary capture of anything", "secondary-capture"),
        ("chest X-ray, no CT was made", "chest-xray"),
    ],
)
def test_prompt_decides(prompt, name):
    assert choose_profile(prompt).name == name


def test_modality_decides_before_adapter_and_prompt():
    assert choose_profile("brain MRI", modality="chest-xray", adapter="blood-smear").name == "chest-xray"
    assert choose_profile("brain MRI", adapter="blood-smear").name == "blood-smear"
    assert choose_profile("brain MRI", adapter="my-own-adapter").name == "brain-mri"
    assert choose_profile("a lung", adapter="covid-chest-xray").name == "chest-xray"
    assert choose_profile("", modality="ct").name == "ct-chest"
    assert choose_profile("head", modality="ct").name == "ct-head"
    assert choose_profile("head", modality="ct-chest").name == "ct-chest"
    assert choose_profile("", modality="Brain_MRI").name == "brain-mri"
    assert choose_profile("", modality="nuclei").name == "nuclei-fluorescence"
    assert choose_profile("H&E", modality="nuclei").name == "nuclei-histology"
    assert choose_profile("H&E", modality="nuclei-fluorescence").name == "nuclei-fluorescence"
    assert choose_profile("purple, tissue", adapter="nuclei").name == "nuclei-histology"
    assert choose_profile("fluorescence, then H&E", adapter="nuclei").name == "nuclei-fluorescence"


def test_what_serves_what():
    chest, histology = PROFILES["ct-chest"], PROFILES["nuclei-histology"]
    assert serves("ct", chest) and serves("ct-chest", chest) and serves("nuclei", histology)
    assert not (serves("ct-head", chest) or serves(None, chest) or serves("nuclei-fluorescence", histology))
    assert known_modality(" Brain_MRI ") == "brain-mri" and known_modality("covid") is None
    assert all(set(names) <= set(PROFILES) for names in FAMILIES.values())


@pytest.mark.parametrize("modality", ["mammography", "", "ct head spine"])
def test_unknown_modality_is_refused(modality):
    with pytest.raises(ValueError, match="`modality`.*'chest-xray', 'ct'"):
        choose_profile("chest X-ray", modality=modality)


@pytest.mark.parametrize("prompt", ["", "a nice picture", "a patient with contrast", "expectant mother"])
def test_prompt_without_a_modality_is_refused(prompt):
    with pytest.raises(ValueError, match="`prompt`.*'chest-xray', 'ct'"):
        choose_profile(prompt)


@pytest.mark.parametrize("prompt", ["X-ray of the left hand", "knee MRI", "abdominal CT"])
def test_other_body_part_is_refused_rather_than_mislabelled(prompt):
    with pytest.raises(ValueError, match="`prompt`"):
        choose_profile(prompt)


def test_every_modality_has_a_profile_and_back():
    assert {modality_of(profile) for profile in PROFILES.values()} == set(MODALITIES)
    assert all(PROFILES[name].name == name for name in PROFILES)
    assert all(choose_profile("", modality=name) for name in (*MODALITIES, *PROFILES))


@pytest.mark.parametrize("name", HOUNSFIELD_WINDOWS)
def test_hounsfield_curve(name):
    window = HOUNSFIELD_WINDOWS[name]
    grey = np.linspace(0, 1, 4001)
    hounsfield = window.to_hounsfield(grey)
    assert (np.diff(hounsfield) > 0).all()
    assert -1024 <= hounsfield[0] <= -1000
    assert hounsfield[-1] >= 900
    stored = (hounsfield - window.rescale_intercept) / window.rescale_slope
    assert stored.min() >= 0
    assert stored.max() <= 65535
    # Inside the window it is linear: a viewer shows the float picture.
    shown = np.clip((hounsfield - window.low) / window.width, 0, 1)
    middle = (grey > 0.25) & (grey < 0.94)
    np.testing.assert_allclose(shown[middle], grey[middle], atol=1e-9)
    np.testing.assert_allclose(window.to_grey(hounsfield), grey, atol=1e-9)


def test_lung_windows_reach_air():
    for name in ("lung", "wide-lung"):
        window = HOUNSFIELD_WINDOWS[name]
        assert window.to_hounsfield(np.array((-990 - window.low) / window.width)) == pytest.approx(-990)


def test_codes_are_those_of_the_standard():
    views = {
        "PA": "PosteroAnterior",
        "AP": "AnteroPosterior",
        "LL": "LeftLateral",
        "RL": "RightLateral",
        None: "Frontal",
    }
    for name, keyword in views.items():
        code = getattr(codes.cid4010, keyword)
        assert (VIEW_CODES[name].value, VIEW_CODES[name].scheme) == (code.value, code.scheme_designator)
        assert VIEW_CODES[name].meaning.lower() == code.meaning.lower()
    stains = {code.value: code.meaning for values in STAIN_CODES.values() for code in values}
    known = {getattr(codes.cid8112, keyword).value: getattr(codes.cid8112, keyword) for keyword in codes.cid8112.dir()}
    assert all(known[value].meaning.lower() == meaning.lower() for value, meaning in stains.items())
    agents = {getattr(codes.cid12, keyword).value for keyword in codes.cid12.dir()}
    assert all(p.contrast_agent.value in agents for p in PROFILES.values() if p.contrast_agent)


@pytest.mark.skipif(not SHARED_IMAGES.is_dir(), reason="the shared real images are not beside the repository")
@pytest.mark.parametrize(
    ("pack", "modality"),
    [
        ("cxr_kermany", "chest-xray"),
        ("cxr_nih", "chest-xray"),
        ("cxr_shenzhen_tb", "chest-xray"),
        ("ct_lung_iqothnccd", "ct"),
        ("ct_chest_luad", "ct"),
        ("ct_head_hemorrhage", "ct"),
        ("mri_brain_tumor", "brain-mri"),
        ("blood_pbc", "blood-smear"),
        ("blood_malaria", "blood-smear"),
        ("blood_rbc_chula", "blood-smear"),
        ("blood_bccd", "blood-smear"),
        ("cxr_covid", "chest-xray"),
        ("nuclei_dsb2018", "nuclei"),
    ],
)
def test_captions_of_the_real_images_choose_their_modality(pack, modality):
    with open(SHARED_IMAGES / pack / "metadata.csv", encoding="utf-8", newline="") as file:
        captions = {row["text"] for row in csv.DictReader(file)}
    profiles = {choose_profile(caption) for caption in captions}
    if modality == "nuclei":
        assert {profile.name for profile in profiles} == set(FAMILIES[modality])
    else:
        assert {modality_of(profile) for profile in profiles} == {modality} and len(profiles) == 1
