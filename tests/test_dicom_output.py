"""Datasets, files and the checks on what is given. Every file is read back strictly."""

import datetime
import os
import re
import zipfile

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.config import RAISE, settings
from pydicom.fileset import FileSet
from pydicom.uid import ExplicitVRLittleEndian

from pipeline.dicom_files import write_files
from pipeline.dicom_output import to_dataset
from pipeline.dicom_patient import Patient, Study, age_string
from pipeline.dicom_pixels import COMPRESSIONS, compress, quantise, to_picture
from pipeline.dicom_profiles import PROFILES
from pipeline.dicom_prompt import PromptFacts
from pipeline.dicom_provenance import read_recipe
from pipeline.dicom_windows import HOUNSFIELD_WINDOWS
from tests.dicom_samples import pixels_of, recipe_of, smooth_pixels

GREY_PROFILES = [name for name in PROFILES if PROFILES[name].bits_stored > 8]


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    monkeypatch.setattr(settings, "reading_validation_mode", RAISE)
    monkeypatch.setattr(settings, "writing_validation_mode", RAISE)


def make(name, prompt=None, *, pixels=None, seed=7, changes=None, **given):
    pixels = pixels_of(name) if pixels is None else pixels
    return to_dataset(pixels, PROFILES[name], recipe_of(name, prompt, seed, **(changes or {})), **given)


def read(path):
    """Read a file and every value in it."""
    dataset = pydicom.dcmread(path)
    str(dataset)
    return dataset


# --- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROFILES)
def test_of_an_image_nobody_promises_that_no_text_is_in_it(name):
    """A cleaner of archives believes a NO."""
    made_of_one = make(name, changes={"strength": 0.5, "input_sha256": "12" * 32})
    assert make(name).BurnedInAnnotation == "NO"
    assert made_of_one.get("BurnedInAnnotation") == ("YES" if made_of_one.Modality == "DX" else None)


@pytest.mark.parametrize("name", GREY_PROFILES)
def test_smooth_grey_uses_more_than_a_thousand_levels(name):
    pixels = smooth_pixels(256, 256)
    assert len(np.unique(quantise(pixels, PROFILES[name]))) > 1000
    for window in HOUNSFIELD_WINDOWS if name.startswith("ct") else ():
        assert len(np.unique(quantise(pixels, PROFILES[name], PromptFacts(window=window)))) > 1000


@pytest.mark.parametrize("name", PROFILES)
def test_quantise_keeps_order_and_ends(name):
    stored = quantise(np.linspace(0, 1, 999, dtype=np.float32).reshape(1, -1), PROFILES[name]).astype(int)
    assert (np.diff(stored, axis=1) >= 0).all()
    assert stored.min() >= 0
    assert stored.max() <= 2 ** PROFILES[name].bits_stored - 1


@pytest.mark.parametrize("window", HOUNSFIELD_WINDOWS)
def test_hounsfield_units_survive_the_file(window, tmp_path):
    name = "ct-head" if window == "brain" else "ct-chest"
    words = {"soft-tissue": "soft-tissue window", "wide-lung": "wide lung window"}.get(window, f"{window} window")
    dataset = make(name, f"CT, {words}", pixels=smooth_pixels())
    (path,) = write_files([dataset], tmp_path)
    read_back = read(path)
    hounsfield = read_back.pixel_array * float(read_back.RescaleSlope) + float(read_back.RescaleIntercept)
    expected = HOUNSFIELD_WINDOWS[window].to_hounsfield(smooth_pixels())
    np.testing.assert_allclose(hounsfield, expected, atol=float(read_back.RescaleSlope) / 2 + 1e-6)
    assert -1024 <= hounsfield.min() <= -1000
    assert 900 <= hounsfield.max() <= 3000
    # A viewer that applies the window shows the float picture, but for the half unit of DICOM's LINEAR function.
    center, width = float(read_back.WindowCenter), float(read_back.WindowWidth)
    shown = (hounsfield - (center - 0.5)) / (width - 1) + 0.5
    inside = (smooth_pixels() > 0.25) & (smooth_pixels() < 0.94)
    np.testing.assert_allclose(shown[inside], smooth_pixels()[inside], atol=0.02)


def test_picture_and_quantise_agree_on_colour():
    grey, colour = smooth_pixels(8, 9), smooth_pixels(8, 9, 3)
    three_grey = np.repeat(grey[:, :, None], 3, axis=2)
    assert quantise(colour, PROFILES["chest-xray"]).shape == (8, 9)
    np.testing.assert_array_equal(quantise(three_grey, PROFILES["ct-head"]), quantise(grey, PROFILES["ct-head"]))
    assert quantise(grey, PROFILES["blood-smear"]).shape == (8, 9, 3)
    assert quantise(colour, PROFILES["secondary-capture"]).shape == (8, 9, 3)
    assert quantise(three_grey, PROFILES["secondary-capture"]).shape == (8, 9)
    assert to_picture(colour, PROFILES["chest-xray"]).mode == "L"
    assert to_picture(colour, PROFILES["blood-smear"]).mode == "RGB"
    assert to_picture(grey, PROFILES["chest-xray"]).size == (9, 8)
    assert make("secondary-capture", pixels=colour).PhotometricInterpretation == "RGB"
    assert make("secondary-capture", pixels=grey).PhotometricInterpretation == "MONOCHROME2"


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((4, 4), np.nan, np.float32),
        np.full((4, 4), np.inf, np.float32),
        np.full((4, 4), 1.2, np.float32),
        np.full((4, 4), -0.2, np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4), bool),
        np.zeros((4, 4), complex),
        np.zeros((4, 4), object),
        np.zeros((4, 4, 4), np.float32),
        np.zeros((4, 4, 2), np.float32),
        np.zeros((3, 4, 4), np.float32),
        np.zeros((1, 4, 4, 3), np.float32),
        np.zeros((0, 4), np.float32),
        np.zeros(4, np.float32),
        np.zeros((1, 65536), np.float32),
        "picture",
        None,
    ],
)
@pytest.mark.parametrize("name", ["chest-xray", "ct-head", "blood-smear"])
def test_pixels_that_cannot_be_stored_are_refused(pixels, name):
    with pytest.raises(ValueError, match="`pixels`"):
        quantise(pixels, PROFILES[name])
    with pytest.raises(ValueError, match="`pixels`"):
        to_picture(pixels, PROFILES[name])


def test_rounding_overshoot_is_clipped():
    pixels = np.array([[-1e-4, 1.0001]], np.float16)
    assert quantise(pixels, PROFILES["chest-xray"]).tolist() == [[0, 4095]]


# --- the dataset ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("shape", [(1, 1), (8, 33), (37, 61), (256, 256)])
def test_any_size_and_compression_comes_back_bit_for_bit(name, shape, tmp_path):
    dataset = make(name, pixels=pixels_of(name, *shape))
    for compression in (None, *COMPRESSIONS):
        if min(shape) < {"jpeg2000": 32, "jpegls": 8}.get(compression, 1):
            with pytest.raises(ValueError, match="needs at least (32|8) rows and columns"):
                compress(dataset, compression)
            continue
        (path,) = write_files([dataset], tmp_path / str(compression), compression=compression)
        read_back = read(path)
        assert read_back.file_meta.TransferSyntaxUID == COMPRESSIONS.get(compression, ExplicitVRLittleEndian)
        assert read_back.SOPInstanceUID == dataset.SOPInstanceUID == read_back.file_meta.MediaStorageSOPInstanceUID
        np.testing.assert_array_equal(read_back.pixel_array, dataset.pixel_array)
        assert read_recipe(read_back) == recipe_of(name)
        assert read_back.LossyImageCompression == "00"


def test_plain_save_as_writes_a_dicom_file(tmp_path):
    make("chest-xray").save_as(tmp_path / "x.dcm")
    assert (tmp_path / "x.dcm").read_bytes()[128:132] == b"DICM"
    read(tmp_path / "x.dcm")


@pytest.mark.parametrize("name", PROFILES)
def test_marks_are_in_every_object(name):
    dataset = make(name, patient=Patient(name="Doe^Jane"), study=Study(description="My study", series_description="S"))
    assert dataset.SyntheticData == "YES"
    assert dataset.ImageType[0] == "DERIVED"
    assert dataset.PatientName == "SYNTHETIC Doe^Jane"
    assert dataset.StudyDescription == "SYNTHETIC - My study"
    assert dataset.SeriesDescription == "SYNTHETIC - S"
    assert "SYNTHETIC" in dataset.ImageComments
    assert dataset.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "109100"
    assert "SYNTHETIC" in make(name).PatientName
    assert make(name).PatientID.startswith("SYNTHETIC-")


@pytest.mark.parametrize(
    ("prompt", "sex", "age"),
    [
        ("54 year old woman", "F", "054Y"),
        ("4-month-old boy", "M", "004M"),
        ("18 months old", "", "018M"),
        ("1 year old", "", "001Y"),
        ("3 day old", "", "003D"),
        ("6 weeks old", "", "006W"),
        ("paediatric patient 1 to 5 years", "", "003Y"),
        ("adult", "", None),
        ("", "", None),
    ],
)
def test_sex_and_age_of_the_prompt(prompt, sex, age):
    dataset = make("chest-xray", prompt)
    assert dataset.PatientSex == sex
    assert dataset.get("PatientAge") == age
    if age is None:
        assert dataset.PatientBirthDate == ""
    else:
        birth = datetime.datetime.strptime(dataset.PatientBirthDate, "%Y%m%d")
        days = (datetime.datetime.strptime(dataset.StudyDate, "%Y%m%d") - birth).days
        assert age_string(days / 365.2425)[-4:].endswith(age[-1]) or age == "001Y"
        assert abs(days / 365.2425 - {"Y": 1, "M": 1 / 12, "W": 7 / 365, "D": 1 / 365}[age[3]] * int(age[:3])) < 0.6


def test_age_strings():
    years = [
        0,
        3 / 365.25,
        27 / 365.25,
        6 * 7 / 365.25,
        1 / 12,
        2 / 12,
        4 / 12,
        11.99 / 12,
        1,
        1.5,
        1.99,
        2,
        54,
        54.9,
        125,
    ]
    written = "000D 003D 027D 006W 001M 002M 004M 012M 001Y 018M 023M 002Y 054Y 054Y 125Y".split()  # noqa: SIM905
    assert [age_string(value) for value in years] == written


@pytest.mark.parametrize(
    ("view", "code", "orientation", "words"),
    [
        ("PA", "272479007", ["L", "F"], "PA view"),
        ("AP", "399348003", ["L", "F"], "anteroposterior"),
        ("LL", "399173006", ["P", "F"], "lateral view"),
        (None, "399033003", ["L", "F"], ""),
    ],
)
def test_view_of_a_radiograph(view, code, orientation, words):
    dataset = make("chest-xray", f"chest X-ray {words}")
    assert dataset.get("ViewPosition") == view
    assert dataset.ViewCodeSequence[0].CodeValue == code
    assert list(dataset.PatientOrientation) == orientation
    assert dataset.ImagerPixelSpacing == [350 / 64, 350 / 64]
    assert dataset.BitsStored == 12


@pytest.mark.parametrize("name", ["ct-chest", "ct-head", "brain-mri"])
@pytest.mark.parametrize(
    ("plane", "orientation", "letters"),
    [
        ("axial", [1, 0, 0, 0, 1, 0], ["L", "P"]),
        ("coronal", [1, 0, 0, 0, 0, -1], ["L", "F"]),
        ("sagittal", [0, 1, 0, 0, 0, -1], ["P", "F"]),
        ("", [1, 0, 0, 0, 1, 0], ["L", "P"]),
    ],
)
def test_geometry_of_a_slice(name, plane, orientation, letters):
    rows, columns = 37, 61
    dataset = make(name, f"{plane} slice", pixels=smooth_pixels(rows, columns))
    assert list(dataset.ImageOrientationPatient) == orientation
    assert list(dataset.PatientOrientation) == letters
    spacing = float(dataset.PixelSpacing[0])
    assert spacing == pytest.approx(PROFILES[name].field_of_view / columns)
    # The middle of the picture is the origin, and letters and direction cosines agree.
    across, down = np.array(orientation[:3]), np.array(orientation[3:])
    middle = np.array(dataset.ImagePositionPatient, float) + spacing * (
        (columns - 1) / 2 * across + (rows - 1) / 2 * down
    )
    np.testing.assert_allclose(middle, 0, atol=1e-5)
    axes = {"L": [1, 0, 0], "P": [0, 1, 0], "F": [0, 0, -1]}
    assert [axes[letter] for letter in letters] == [list(across), list(down)]


def test_contrast_reaches_the_header_where_the_object_allows():
    assert make("brain-mri", "T1 with contrast").ContrastBolusAgent == "Gadolinium"
    assert "ContrastBolusAgent" in make("ct-chest", "CT with contrast")
    for prompt in ("CT without contrast", "CT"):
        assert "ContrastBolusAgent" not in make("ct-chest", prompt)
    assert "ContrastBolusAgent" not in make("chest-xray", "with contrast")


@pytest.mark.parametrize(
    ("prompt", "scanning", "inversion"),
    [("T1 MRI", "SE", None), ("T2 MRI", "SE", None), ("FLAIR", ["SE", "IR"], 2500), ("brain MRI", "RM", None)],
)
def test_sequence_of_an_mr_image(prompt, scanning, inversion):
    dataset = make("brain-mri", prompt)
    assert dataset.ScanningSequence == scanning
    assert dataset.get("InversionTime") == inversion
    if prompt == "brain MRI":
        assert dataset.RepetitionTime is None
    if prompt == "T1 MRI":
        assert dataset.RepetitionTime < 800 and dataset.EchoTime < 30
    if prompt == "T2 MRI":
        assert dataset.RepetitionTime > 2000 and dataset.EchoTime > 70


def test_stain_of_a_smear():
    specimen = make("blood-smear", "Wright-Giemsa stained blood smear").SpecimenDescriptionSequence[0]
    items = specimen.SpecimenPreparationSequence[0].SpecimenPreparationStepContentItemSequence
    values = [item.ConceptCodeSequence[0].CodeMeaning for item in items if item.ValueType == "CODE"]
    assert values == ["Staining", "Wright stain", "Giemsa stain"]
    assert not make("blood-smear", "blood smear").SpecimenDescriptionSequence[0].SpecimenPreparationSequence


def test_microscopy_says_specimen_stain_and_light():
    fluorescence = make("nuclei-fluorescence", "DAPI")
    assert (fluorescence.PhotometricInterpretation, fluorescence.BitsStored) == ("MONOCHROME2", 8)
    (path,) = fluorescence.OpticalPathSequence
    assert path.IlluminationTypeCodeSequence[0].CodeMeaning == "Epifluorescence illumination"
    histology = make("nuclei-histology", "H&E")
    assert histology.PhotometricInterpretation == "RGB" and "OpticalPathSequence" not in histology
    specimen = histology.SpecimenDescriptionSequence[0]
    assert specimen.SpecimenTypeCodeSequence[0].CodeMeaning == "Tissue section"
    items = specimen.SpecimenPreparationSequence[0].SpecimenPreparationStepContentItemSequence
    assert [item.ConceptCodeSequence[0].CodeValue for item in items[2:]] == ["12710003", "36879007"]
    smear = make("blood-smear").SpecimenDescriptionSequence[0]
    assert smear.SpecimenTypeCodeSequence[0].CodeMeaning == "Smear sample"


# --- identity ---------------------------------------------------------------------------------------------------------


def test_same_recipe_same_dataset_and_other_seed_other_instance():
    one, two, other = make("ct-head"), make("ct-head"), make("ct-head", seed=8)
    assert one == two
    assert one.SOPInstanceUID != other.SOPInstanceUID
    for keyword in (
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "FrameOfReferenceUID",
        "PatientID",
        "PatientName",
        "StudyDate",
    ):
        assert one[keyword].value == other[keyword].value


def test_numbers_of_the_call_change_no_uid():
    one, two = make("ct-head"), make("ct-head", series_number=3, instance_number=12)
    assert (two.SeriesNumber, two.InstanceNumber) == (3, 12)
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert one[keyword].value == two[keyword].value


def test_another_request_is_another_patient_unless_one_is_named():
    one, two = make("chest-xray", "PA chest X-ray"), make("chest-xray", "AP chest X-ray")
    assert one.StudyInstanceUID != two.StudyInstanceUID
    assert one.PatientID != two.PatientID
    for given in (
        {"patient": Patient(id="42")},
        {"patient": Patient(name="Doe")},
        {"study": Study(accession_number="A1")},
    ):
        one, two = make("chest-xray", "PA chest X-ray", **given), make("brain-mri", "T2 brain MRI", **given)
        assert one.StudyInstanceUID == two.StudyInstanceUID
        assert one.PatientID == two.PatientID
        assert one.StudyDate == two.StudyDate
        assert one.SeriesInstanceUID != two.SeriesInstanceUID
    # A sex alone names nobody.
    one, two = (make("chest-xray", prompt, patient=Patient(sex="F")) for prompt in ("PA", "AP"))
    assert one.StudyInstanceUID != two.StudyInstanceUID


def test_given_values_make_other_instances():
    assert make("ct-head").SOPInstanceUID != make("ct-head", patient=Patient(id="1")).SOPInstanceUID
    assert (
        make("ct-head", patient=Patient(id="1")).SOPInstanceUID
        != make("ct-head", patient=Patient(id="2")).SOPInstanceUID
    )
    one, two = (make("ct-head", study=Study(id="1", series_description=text)) for text in ("a", "b"))
    assert one.StudyInstanceUID == two.StudyInstanceUID
    assert one.SeriesInstanceUID != two.SeriesInstanceUID


def test_library_versions_change_no_uid():
    one, two = make("ct-head"), make("ct-head", changes={"versions": (("torch", "9"), ("x", "\\" * 99))})
    assert one.SOPInstanceUID == two.SOPInstanceUID


# --- patient and study ------------------------------------------------------------------------------------------------


def test_everything_given_reaches_the_header(tmp_path):
    patient = Patient(name="Müller^Jürgen=山田^太郎", id="ID 1", sex="m", age=54, birth_date=datetime.date(1950, 5, 6))
    study = Study(
        description="Beschreibung ü",
        series_description="Série é",
        accession_number="ACC-1",
        id="S1",
        date="20040607",
        time="081530.5",
        referring_physician_name="Döctor^No",
    )
    (path,) = write_files([make("brain-mri", "T1", patient=patient, study=study)], tmp_path)
    dataset = read(path)
    assert dataset.PatientName == "SYNTHETIC Müller^Jürgen=山田^太郎"
    assert dataset.PatientName.ideographic == "山田^太郎"
    assert (dataset.PatientID, dataset.PatientSex, dataset.PatientAge) == ("ID 1", "M", "054Y")
    assert (dataset.PatientBirthDate, dataset.StudyDate, dataset.StudyTime) == ("19500506", "20040607", "081530.5")
    assert (dataset.AccessionNumber, dataset.StudyID) == ("ACC-1", "S1")
    assert dataset.ReferringPhysicianName == "Döctor^No"
    assert dataset.SeriesDescription == "SYNTHETIC - Série é"


@pytest.mark.parametrize(
    "values",
    [
        {"name": "x" * 65},
        {"name": "x" * 55},
        {"name": "a^b^c^d^e^f"},
        {"name": "a=b=c=d"},
        {"name": "a\\b"},
        {"name": "a\nb"},
        {"name": 5},
        {"id": "x" * 65},
        {"id": "a\\b"},
        {"id": "a\0"},
        {"sex": "X"},
        {"sex": 1},
        {"age": -1},
        {"age": 126},
        {"age": "54"},
        {"age": "999Y"},
        {"age": float("nan")},
        {"age": True},
        {"age": "٠٥٤Y"},
        {"birth_date": "20260230"},
        {"birth_date": "1950-05-06"},
        {"birth_date": 19500506},
        {"birth_date": "00000101"},
    ],
)
def test_wrong_patient_is_refused(values):
    (name,) = values
    with pytest.raises(ValueError, match=rf"`patient\.{name}`"):
        Patient(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"description": "x" * 65},
        {"description": "x" * 53},
        {"series_description": "x" * 53},
        {"accession_number": "x" * 17},
        {"id": "x" * 17},
        {"date": "20260230"},
        {"date": "2026"},
        {"time": "25:00"},
        {"time": "250000"},
        {"time": 8},
        {"referring_physician_name": "x" * 65},
    ],
)
def test_wrong_study_is_refused(values):
    (name,) = values
    with pytest.raises(ValueError, match=rf"`study\.{name}`"):
        Study(**values)


def test_longest_values_are_written(tmp_path):
    patient = Patient(name="x" * 54, id="x" * 64)
    study = Study(description="x" * 52, series_description="x" * 52, accession_number="x" * 16, id="x" * 16)
    (path,) = write_files([make("blood-smear", patient=patient, study=study)], tmp_path)
    assert len(str(read(path).PatientName)) == 64


def test_empty_text_is_not_given():
    assert Patient(name="", id=" ", age="", birth_date="") == Patient()
    assert Study(description=" ", date="", time="") == Study()


@pytest.mark.parametrize(
    ("patient", "study", "prompt", "message"),
    [
        ({"sex": "M"}, {}, "54 year old woman", "`patient.sex` is 'M'.*'F'"),
        ({"sex": "O"}, {}, "woman", "`patient.sex`"),
        ({"age": 30}, {}, "54 year old woman", "`patient.age` is '030Y'.*054Y"),
        ({"age": 30}, {}, "paediatric patient 1 to 5 years", "`patient.age`"),
        ({"age": 5}, {}, "adult woman", "`patient.age`"),
        ({"age": 54, "birth_date": "19900101"}, {"date": "20200101"}, "", "`patient.birth_date`.*30 years"),
        ({"birth_date": "19900101"}, {"date": "20200101"}, "54 year old", "`patient.birth_date`"),
        ({"birth_date": "19900101"}, {"date": "19800101"}, "", "`study.date`"),
    ],
)
def test_contradictions_are_refused(patient, study, prompt, message):
    with pytest.raises(ValueError, match=message):
        make("chest-xray", prompt, patient=Patient(**patient), study=Study(**study))


@pytest.mark.parametrize(
    ("age", "prompt"),
    [
        (54, "54 year old"),
        (3, "1 to 5 years"),
        (5, "1 to 5 years"),
        (58, "in his fifties"),
        (40, "adult"),
        ("004M", "4-month-old"),
    ],
)
def test_agreeing_ages_are_taken(age, prompt):
    assert make("chest-xray", prompt, patient=Patient(age=age)).PatientAge == Patient(age=age).age


@pytest.mark.parametrize("birth_date", ["19500506", "20500101", "19000101", "00010101", "99991231", "20000229"])
@pytest.mark.parametrize("prompt", ["", "54 year old", "4-month-old", "3 day old"])
def test_made_up_study_date_agrees_with_a_given_birth_date(birth_date, prompt):
    dataset = make("chest-xray", prompt, patient=Patient(id="1", birth_date=birth_date))
    assert dataset.PatientBirthDate == birth_date
    assert dataset.StudyDate >= birth_date
    assert re.fullmatch(r"\d{3}[DWMY]", dataset.PatientAge)


@pytest.mark.parametrize("number", [-1, 1.5, True, 2**31, "1"])
def test_wrong_numbers_are_refused(number):
    with pytest.raises(ValueError, match="`series_number`"):
        make("ct-head", series_number=number)
    with pytest.raises(ValueError, match="`instance_number`"):
        make("ct-head", instance_number=number)


def test_recipe_of_another_profile_is_refused():
    with pytest.raises(ValueError, match="`recipe.modality`"):
        to_dataset(pixels_of("ct-head"), PROFILES["ct-chest"], recipe_of("ct-head"))


def test_strange_prompts_and_model_names_are_written(tmp_path):
    for number, text in enumerate(["\\\\ \0\n\r\t\x1b[31m 🧠", "x" * 20_000, "', DROP TABLE", "../../etc/passwd"]):
        dataset = make("chest-xray", text, changes={"model": text, "model_sha256": text, "negative_prompt": text})
        (path,) = write_files([dataset], tmp_path / str(number))
        assert read_recipe(read(path)).prompt == text
        assert re.fullmatch(r"chest-xray-7-[0-9a-f]{8}\.dcm", path.name)


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_of_a_series(tmp_path):
    datasets = [make("ct-head", seed=seed, instance_number=seed) for seed in (1, 2, 3)]
    paths = write_files(datasets, tmp_path / "new" / "folder", png_pixels=[pixels_of("ct-head")] * 3)
    assert [path.suffix for path in paths] == [".dcm"] * 3 + [".png"] * 3
    assert sorted(tmp_path.rglob("*.*")) == sorted(paths)
    for dataset, path in zip(datasets, paths[:3], strict=True):
        assert read(path).SOPInstanceUID == dataset.SOPInstanceUID
    picture = Image.open(paths[3])
    assert (picture.mode, picture.size) == ("L", (64, 64))
    assert "SYNTHETIC" in picture.text["Comment"]
    assert '"seed":1' in picture.text["Recipe"]


def test_writing_twice_is_fine_and_changes_nothing(tmp_path):
    for options in ({}, {"compression": "jpeg2000"}, {"zip_archive": True}, {"dicomdir": True}):
        folder = tmp_path / "-".join(options)
        first = write_files([make("ct-head")], folder, **options)
        content = [path.read_bytes() for path in first]
        assert write_files([make("ct-head")], folder, **options) == first
        assert [path.read_bytes() for path in first] == content


def test_another_file_is_never_overwritten(tmp_path):
    datasets = [make("ct-head", seed=1), make("ct-head", seed=2)]
    second = write_files(datasets, tmp_path / "other")[1]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / second.name).write_text("mine")
    with pytest.raises(FileExistsError, match="`out`"):
        write_files(datasets, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [second.name]
    assert (tmp_path / "out" / second.name).read_text() == "mine"


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    datasets = [make("ct-head", seed=seed) for seed in (1, 2, 3)]
    replace_file, calls = os.replace, []

    def fail_at_the_last(source, target):
        calls.append(target)
        if len(calls) == lasts[0]:
            raise OSError("disk full")
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", fail_at_the_last)
    lasts = [0]
    for options, lasts[0] in (({}, 3), ({"dicomdir": True}, 2)):  # a folder moves whole
        calls.clear()
        with pytest.raises(OSError, match="disk full"):
            write_files(datasets, tmp_path / "a" / "b", **options)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compression": "jpeg"}, "`compression` is 'jpeg'.*'jpeg2000', 'jpegls', 'rle'"),
        ({"png_pixels": []}, "`png_pixels`"),
        ({"png_pixels": [np.full((4, 4), np.nan)]}, "`pixels`"),
    ],
)
def test_wrong_options_are_refused_and_leave_nothing(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_files([make("ct-head")], tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_wrong_datasets_are_refused(tmp_path):
    dataset = make("ct-head")
    for datasets in ([], [dataset, make("ct-head")], [pydicom.Dataset()]):
        with pytest.raises((ValueError, AttributeError)):
            write_files(datasets, tmp_path / "out")
    with pytest.raises(ValueError, match="compressed already"):
        compress(compress(dataset, "rle"), "rle")
    assert not list(tmp_path.iterdir())


def test_out_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError):
            write_files([make("ct-head")], out)
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_folder_that_cannot_be_written_to_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        write_files([make("ct-head")], tmp_path)


def test_zip_holds_everything(tmp_path):
    datasets = [make("ct-head", seed=seed) for seed in (1, 2)]
    (path,) = write_files(datasets, tmp_path, zip_archive=True, png_pixels=[pixels_of("ct-head")] * 2)
    assert list(tmp_path.iterdir()) == [path]
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert len([name for name in names if name.endswith(".dcm")]) == 2
        assert len([name for name in names if name.endswith(".png")]) == 2
        archive.extractall(tmp_path / "x")
    assert read(tmp_path / "x" / names[0]).SOPInstanceUID == datasets[0].SOPInstanceUID


@pytest.mark.parametrize("compression", [None, "jpegls"])
def test_dicomdir(tmp_path, compression):
    named = {"patient": Patient(name="Müller^Ü", id="1"), "study": Study(id="1")}
    datasets = [
        make(name, instance_number=number, series_number=number, **named)
        for number, name in enumerate(PROFILES, 1)
        if name in ("ct-head", "blood-smear")
    ]
    datasets += [make("brain-mri", "T1", seed=seed, instance_number=seed) for seed in range(1, 13)]
    paths = write_files(datasets, tmp_path / "out", dicomdir=True, compression=compression)
    assert paths[0].name == "DICOMDIR"
    assert len(paths) == len(datasets) + 1
    file_set = FileSet(paths[0])
    assert {instance.load().SOPInstanceUID for instance in file_set} == {dataset.SOPInstanceUID for dataset in datasets}
    assert len(file_set.find_values("PatientID")) == 2
    for path in paths[1:]:
        read(path)
        assert all(re.fullmatch(r"[A-Z0-9_]{1,8}", part) for part in path.relative_to(tmp_path / "out").parts)
    (archive,) = write_files(datasets, tmp_path / "zip", dicomdir=True, zip_archive=True)
    assert "DICOMDIR" in zipfile.ZipFile(archive).namelist()


def test_file_names_hold_nothing_of_the_patient(tmp_path):
    patient = Patient(name="Secret^Name", id="SECRET")
    for options in ({}, {"zip_archive": True}, {"dicomdir": True}):
        for path in write_files([make("ct-head", patient=patient)], tmp_path / "-".join(options), **options):
            assert "secret" not in str(path.relative_to(tmp_path)).lower()


def test_compress_leaves_its_input_alone():
    dataset = make("blood-smear")
    before = dataset.PixelData
    for name, syntax in COMPRESSIONS.items():
        assert compress(dataset, name).file_meta.TransferSyntaxUID == syntax
    assert dataset.PixelData == before
    assert dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert dataset.PhotometricInterpretation == "RGB"


def test_recipe_survives_implicit_value_representation(tmp_path):
    """Archives may store or send in implicit VR, where a private element becomes of unknown kind."""
    dataset = make("ct-head")
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    dataset.save_as(tmp_path / "implicit.dcm", implicit_vr=True, little_endian=True, enforce_file_format=True)
    assert read_recipe(read(tmp_path / "implicit.dcm")) == recipe_of("ct-head")
