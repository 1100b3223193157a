"""What other programs say of our files: dciodvfy, the standard's tables in highdicom, and the archive Orthanc."""

import numpy as np
import pydicom
import pytest

from pipeline.dicom_files import write_files
from pipeline.dicom_output import to_dataset
from pipeline.dicom_patient import Patient, Study
from pipeline.dicom_pixels import COMPRESSIONS
from pipeline.dicom_profiles import PROFILES
from pipeline.dicom_provenance import read_recipe
from tests.dicom_judges import dciodvfy_errors, store_and_fetch
from tests.dicom_samples import PROMPTS, pixels_of, recipe_of, smooth_pixels

# Prompts that take every branch of the dataset's making.
MORE_PROMPTS = [
    ("chest-xray", "chest X-ray"),
    ("chest-xray", "lateral chest X-ray of a 4-month-old boy"),
    ("ct-chest", "coronal chest CT, soft-tissue window, with contrast"),
    ("ct-chest", "sagittal chest CT, bone window"),
    ("ct-head", "head CT with contrast, 3 day old girl"),
    ("brain-mri", "brain MRI"),
    ("brain-mri", "sagittal FLAIR"),
    ("brain-mri", "axial T2 with contrast"),
    ("blood-smear", "blood smear"),
    ("blood-smear", "Wright-Giemsa stained blood smear, 54 year old man"),
    ("nuclei-fluorescence", "nuclei"),
    ("nuclei-fluorescence", "54 year old woman, fluorescence"),
    ("nuclei-histology", "brightfield microscopy of nuclei"),
    ("secondary-capture", ""),
    ("secondary-capture", "left knee"),
]


def make(name, prompt=None, **given):
    return to_dataset(pixels_of(name), PROFILES[name], recipe_of(name, prompt), **given)


@pytest.mark.parametrize("compression", [None, *COMPRESSIONS])
@pytest.mark.parametrize("name", PROFILES)
def test_dciodvfy_finds_no_error(name, compression, tmp_path):
    (path,) = write_files([make(name)], tmp_path, compression=compression)
    assert dciodvfy_errors(path) == []


@pytest.mark.parametrize(("name", "prompt"), MORE_PROMPTS)
def test_dciodvfy_finds_no_error_whatever_the_prompt(name, prompt, tmp_path):
    (path,) = write_files([make(name, prompt)], tmp_path)
    assert dciodvfy_errors(path) == []


@pytest.mark.parametrize("compression", [None, *COMPRESSIONS])
def test_dciodvfy_finds_no_error_in_a_coloured_secondary_capture(compression, tmp_path):
    dataset = to_dataset(smooth_pixels(64, 64, 3), PROFILES["secondary-capture"], recipe_of("secondary-capture"))
    (path,) = write_files([dataset], tmp_path, compression=compression)
    assert dciodvfy_errors(path) == []


@pytest.mark.parametrize("name", PROFILES)
def test_dciodvfy_finds_no_error_in_what_was_made_of_an_image(name, tmp_path):
    recipe = recipe_of(name, strength=0.5, input_sha256="12" * 32)
    (path,) = write_files([to_dataset(pixels_of(name), PROFILES[name], recipe)], tmp_path)
    assert dciodvfy_errors(path) == []


@pytest.mark.parametrize("name", PROFILES)
def test_dciodvfy_finds_no_error_with_everything_given(name, tmp_path):
    patient = Patient(name="Müller^Ü=山田^太郎", id="1", age=54, birth_date="19500101")
    study = Study("Description", "Series", "A1", "S1", "20040607", "080000", "Doctor^No")
    (path,) = write_files([make(name, "", patient=patient, study=study)], tmp_path)
    assert dciodvfy_errors(path) == []


@pytest.mark.parametrize("side", ["", "left"])
def test_dciodvfy_finds_no_error_in_a_secondary_capture_of_any_body_part(side, tmp_path):
    words = "brain head chest abdomen breast pelvis spine neck heart hip knee ankle foot hand wrist elbow shoulder"
    datasets = [make("secondary-capture", f"{side} {word}") for word in words.split()]
    assert len({dataset.BodyPartExamined for dataset in datasets}) == len(datasets)
    for path in write_files(datasets, tmp_path):
        assert dciodvfy_errors(path) == []


def test_dciodvfy_finds_what_is_wrong(tmp_path):
    dataset = make("ct-head")
    del dataset.ImageType
    dataset.save_as(tmp_path / "wrong.dcm")
    assert dciodvfy_errors(tmp_path / "wrong.dcm")


@pytest.mark.parametrize(("name", "prompt"), [*PROMPTS.items(), *MORE_PROMPTS])
def test_required_attributes_of_every_module(name, prompt):
    standard = pytest.importorskip("highdicom._standard_utils")
    dataset = make(name, prompt)
    iod = standard.get_sop_class_iod_map()[dataset.SOPClassUID]
    modules = [module["key"] for module in standard.get_iod_module_map()[iod] if module["usage"] == "M"]
    assert len(modules) > 5
    if dataset.Modality == "GM":
        modules.append("specimen")
    if name == "nuclei-fluorescence":
        modules.append("optical-path")
    for module in modules:
        standard.check_required_attributes(dataset, module)
        for attribute in standard.get_module_attribute_map()[module]:
            if attribute["type"] == "1" and not attribute["path"]:
                assert dataset[attribute["keyword"]].value not in (None, "", []), attribute["keyword"]


@pytest.fixture(scope="module")
def stored_datasets(tmp_path_factory):
    """One file of every profile and transfer syntax, each a SOP instance of its own."""
    folder = tmp_path_factory.mktemp("sent")
    datasets = []
    for number, compression in enumerate((None, *COMPRESSIONS)):
        for name in PROFILES:
            dataset = to_dataset(pixels_of(name), PROFILES[name], recipe_of(name, seed=number))
            (path,) = write_files([dataset], folder / str(number), compression=compression)
            datasets.append(pydicom.dcmread(path))
    return datasets


@pytest.mark.parametrize("way", ["C-STORE", "STOW-RS"])
def test_orthanc_takes_and_returns_every_object(way, orthanc, stored_datasets):
    client, fetched = store_and_fetch(orthanc, way, stored_datasets)
    for sent, returned in zip(stored_datasets, fetched, strict=True):
        np.testing.assert_array_equal(returned.pixel_array, sent.pixel_array)
        assert returned.SyntheticData == "YES"
        assert read_recipe(returned) == read_recipe(sent)
    found = client.search_for_studies(search_filters={"PatientID": stored_datasets[0].PatientID})
    assert len(found) == 1


@pytest.mark.parametrize("name", PROFILES)
def test_a_plain_save_as_writes_a_whole_file_too(name, tmp_path):
    path = tmp_path / "plain.dcm"
    make(name).save_as(path)
    assert dciodvfy_errors(path) == []
