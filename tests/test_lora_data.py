"""The user's own data: what is read, how it is split and captioned, what is refused, and no identifier comes out."""

from __future__ import annotations

import collections
import csv
import os
import re
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from evaluation.folders import read_set
from lora.data import TrainingData, read_training_data
from lora.header_captions import HeaderFacts, header_facts, plain_header_caption, vary_header_caption, vary_text
from pipeline.dicom_prompt import parse_prompt

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
CT, DX, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.4"
SECRETS = ("Quillfeather", "Zebediah", "PID-77431", "ACC99812", "19510203", "OLDID5521")
SMALL: dict[str, Any] = {"size": 16}


def ramp(seed: int = 0, side: int = 20) -> np.ndarray:
    """A picture like no other, uint8."""
    return np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)


def write_dicom(path: Path, pixels: np.ndarray | None = None, **elements: Any) -> None:
    """Write a small chest X-ray of an invented patient; an element that is None is left out."""
    pixels = ramp(zlib.crc32(path.name.encode())) if pixels is None else pixels
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.StudyInstanceUID = DX, generate_uid(), generate_uid()
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "DX", "CHEST", "PA"
    dataset.PatientName, dataset.PatientID = "Quillfeather^Zebediah", "PID-77431"
    dataset.AccessionNumber, dataset.PatientBirthDate, dataset.OtherPatientIDs = "ACC99812", "19510203", "OLDID5521"
    dataset.PatientSex, dataset.PatientAge = "F", "054Y"
    dataset.SeriesDescription = "Thorax PA Quillfeather"
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    dataset.Rows, dataset.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        dataset.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def write_picture(path: Path, pixels: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ramp(zlib.crc32(path.name.encode())) if pixels is None else pixels).save(path)


def write_table(path: Path, rows: list[dict[str, str]], **options: Any) -> None:
    with path.open("w", newline="", encoding=options.pop("encoding", "utf-8")) as handle:
        table = csv.DictWriter(handle, list(rows[0]), **options)
        table.writeheader()
        table.writerows(rows)


def pictures(folder: Path, count: int, **columns: list[str]) -> Path:
    """A folder of pictures with a table, one value of each column a picture."""
    rows = []
    for i in range(count):
        write_picture(folder / f"{i:03}.png", ramp(i))
        row = {"file_name": f"{i:03}.png", "text": f"chest X-ray, PA view, finding {i}"}
        rows.append(row | {name: values[i] for name, values in columns.items()})
    write_table(folder / "metadata.csv", rows)
    return folder


def told(data: TrainingData) -> str:
    """Everything in words that the data hold, wordings included."""
    rng = np.random.default_rng(0)
    indices = range(len(data))
    wordings = [data.caption(i, rng) for i in indices for _ in range(5)] + [data.plain(i) for i in indices]
    return repr([data.captions, data.unreadable, data.modalities, data.licences, data.kind, wordings])


def undivided(data: TrainingData) -> bool:
    return all(len(set(data.validation[data.groups == group])) == 1 for group in set(data.groups.tolist()))


# --- DICOM folders


def test_dicom_folder_keeps_a_person_whole_and_tells_nothing_of_him(tmp_path, capfd, caplog):
    for i in range(40):
        write_dicom(tmp_path / "study one" / f"Quillfeather_Zebediah_{i:02}")
    for i in range(20):
        write_dicom(tmp_path / "b" / f"IM{i:04}.dcm", PatientID=f"other {i}", PatientName="Doe^Jane", PatientSex="M")
    data = read_training_data([tmp_path], **SMALL)
    assert data.images.shape == (60, 16, 16, 3)
    assert data.images.dtype == np.uint8
    assert data.people == 21
    assert data.people_known
    assert collections.Counter(data.groups.tolist()).most_common(1) == [(20, 40)]  # the sorted list begins with b/
    assert data.groups[0] == 0
    assert undivided(data)
    assert data.validation.sum() == 12  # 20 %, and not the forty of one person
    assert data.modalities == {"DX": 60}
    assert data.kind == "dicom"
    assert data.unreadable == ()
    assert data.plain(59) == "chest X-ray, PA view, 54 year old woman"
    out = capfd.readouterr()
    for secret in SECRETS:
        assert secret.lower() not in (told(data) + out.out + out.err + caplog.text).lower()


def test_the_same_seed_gives_the_same_data(tmp_path):
    for i in range(12):
        write_dicom(tmp_path / f"{i}.dcm", ramp(i), PatientID=f"P{i // 2}")
    first, second, *others = (read_training_data([tmp_path], **SMALL, seed=seed) for seed in (3, 3, 4, 5, 6, 7))
    assert (first.images == second.images).all()
    assert (first.validation == second.validation).all()
    assert any((first.validation != other.validation).any() for other in others)


def test_monochrome1_is_inverted_and_16_bits_are_windowed(tmp_path):
    values = (np.arange(400).reshape(20, 20) * 10).astype(np.uint16)
    write_dicom(tmp_path / "a.dcm", values, BitsStored=12, HighBit=11)
    write_dicom(tmp_path / "b.dcm", values, BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1")
    write_dicom(tmp_path / "c.dcm", values, WindowCenter=1000, WindowWidth=2000)
    with pytest.warns(UserWarning, match="one person"):
        data = read_training_data([tmp_path], size=20)
    assert np.abs(data.images[0].astype(int) + data.images[1] - 255).max() <= 1
    assert data.images[0, 0, 0, 0] == 0
    assert data.images[0, -1, -1, 0] == 255
    assert (data.images[2, 11:] == 255).all()
    assert not data.validation.any()


def test_frames_are_evenly_spread_and_of_one_person(tmp_path):
    frames = np.stack([np.full((20, 20), 10 * i, np.uint8) + (ramp(i) % 8) for i in range(20)])
    write_dicom(tmp_path / "a.dcm", frames, WindowCenter=128, WindowWidth=256)
    write_dicom(tmp_path / "b.dcm", PatientID="somebody else")
    data = read_training_data([tmp_path], **SMALL, frames_per_file=4)
    assert data.groups.tolist() == [0, 0, 0, 0, 1]
    levels = data.images[:4].mean((1, 2, 3))
    assert np.abs(levels - [23, 73, 123, 173]).max() < 4  # frames 3, 8, 13, 18 of 20
    assert read_training_data([tmp_path], **SMALL).groups.tolist() == [0] * 8 + [1]


def test_colour_and_mixed_modalities(tmp_path):
    colour = np.stack([ramp(1), ramp(2), ramp(3)], -1)
    write_dicom(tmp_path / "a.dcm", colour, Modality="SM", BodyPartExamined=None, PatientID="A")
    write_dicom(
        tmp_path / "b.dcm", Modality="MR", BodyPartExamined="BRAIN", SeriesDescription="AX T1 POST GAD", PatientID="B"
    )
    write_dicom(tmp_path / "c.dcm", Modality="CT", PatientID="C", SOPClassUID=CT)
    write_dicom(tmp_path / "d.dcm", Modality="XX", PatientID="D")
    data = read_training_data([tmp_path], size=20)
    assert (data.images[0] == colour).all()
    assert data.modalities == {"SM": 1, "MR": 1, "CT": 1, "unknown": 1}
    assert data.plain(1) == "axial brain MRI slice, T1-weighted, with contrast, 54 year old woman"


def test_without_a_patient_id_a_study_is_a_person(tmp_path):
    study = generate_uid()
    for i in range(6):
        write_dicom(tmp_path / f"{i}", PatientID="" if i % 2 else None, StudyInstanceUID=study)
    for i in range(3):
        write_dicom(tmp_path / f"x{i}", PatientID=None)
    data = read_training_data([tmp_path], **SMALL)
    assert data.groups.tolist() == [0] * 6 + [1, 2, 3]
    assert not data.people_known


def test_copies_under_other_names_are_of_one_person(tmp_path):
    for i in range(4):
        write_dicom(tmp_path / f"{i}", ramp(7 if i in (1, 3) else i), PatientID=f"P{i}")
        write_dicom(tmp_path / f"empty {i}", np.zeros((9, 9), np.uint8), PatientID=f"P{i}")  # says nothing
    assert read_training_data([tmp_path], **SMALL).groups.tolist() == [0, 1, 2, 1, 0, 1, 2, 1]


def test_what_is_no_image_is_passed_over(tmp_path):
    for i in range(3):
        write_dicom(tmp_path / f"{i}.dcm", PatientID=f"P{i}")
    for name in ("DICOMDIR", "a.json", "b.csv", "c.TXT", "d.md", ".hidden", ".git/config", "LICENSE", "x/Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    write_dicom(tmp_path / "report.dcm", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR", PixelData=None)
    write_dicom(tmp_path / "mask.dcm", SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", Modality="SEG")
    write_dicom(tmp_path / "dose.dcm", SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2", Modality="RTDOSE")
    data = read_training_data([tmp_path], **SMALL)
    assert len(data) == 3
    assert data.unreadable == ()


def damaged(folder: Path, good: int, name: str = "Quillfeather.dcm") -> Path:
    for i in range(good):
        write_dicom(folder / f"{i:03}.dcm", PatientID=f"P{i}")
    (folder / name).write_bytes((folder / "000.dcm").read_bytes()[:-100])
    return folder


def test_unreadable_files_are_listed_by_position(tmp_path, capfd):
    data = read_training_data([damaged(tmp_path, 19)], **SMALL)
    assert len(data) == 19
    assert [position for position, _ in data.unreadable] == [20]
    assert "cut short" in data.unreadable[0][1]
    assert "Quillfeather" not in capfd.readouterr().err
    read_training_data([tmp_path], **SMALL, show_names=True)
    assert "unreadable: 20: 'Quillfeather.dcm'" in capfd.readouterr().err


@pytest.mark.parametrize("content", [b"", b"\0" * 500, b"PK\3\4" + bytes(99), b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_more_than_a_tenth_unreadable_stops(tmp_path, capfd, content):
    damaged(tmp_path, 18)
    (tmp_path / "zz Zebediah.bin").write_bytes(content)
    assert len(read_training_data([tmp_path], **SMALL)) == 18  # of 20: just allowed
    (tmp_path / "000.dcm").unlink()
    with pytest.raises(ValueError, match="2 of 19 files cannot be read, more than the 10% allowed.") as error:
        read_training_data([tmp_path], **SMALL)
    assert "file 18: " in str(error.value)
    assert "file 19: " in str(error.value)
    assert not re.search("Zebediah|Quillfeather", str(error.value) + capfd.readouterr().err)
    assert error.value.__cause__ is None


def test_links_pipes_and_loops(tmp_path):
    inside, outside = tmp_path / "data", tmp_path / "elsewhere"
    write_dicom(inside / "a.dcm", PatientID="A")
    write_dicom(outside / "b.dcm", PatientID="B")
    (inside / "loop").symlink_to(inside, target_is_directory=True)
    (inside / "other").symlink_to(outside, target_is_directory=True)
    (outside / "back").symlink_to(inside, target_is_directory=True)
    assert len(read_training_data([inside], **SMALL)) == 2
    for i in range(20):
        write_dicom(inside / f"more {i}", PatientID=f"{i}")
    (inside / "broken").symlink_to(tmp_path / "nothing")
    os.mkfifo(inside / "pipe")
    data = read_training_data([inside], **SMALL)
    assert len(data) == 22
    assert len(data.unreadable) == 2


def test_captions_csv_overrides_the_header(tmp_path):
    for i in range(4):
        write_dicom(tmp_path / "deep" / f"{i}.dcm", PatientID="the same in all")
    write_picture(tmp_path / "p.png")
    rows = [
        {"file_name": "deep/1.dcm", "text": "chest X-ray, atelectasis", "group_id": "one"},
        {"file_name": "deep\\2.dcm", "text": "", "group_id": "two"},
        {"file_name": "p.png", "text": "hand X-ray", "group_id": "two"},
    ]
    write_table(tmp_path / "captions.csv", rows)
    data = read_training_data([tmp_path], **SMALL)
    assert [data.plain(i).split(",")[-1].strip() for i in (0, 1, 2, 4)] == [
        "54 year old woman",
        "atelectasis",
        "54 year old woman",
        "hand X-ray",
    ]
    assert data.groups.tolist() == [0, 1, 2, 0, 2]
    for name, message in (
        ("deep/9.dcm", "Row 4 .* names a file that is not in the folder"),
        ("p.png", "Row 4 .* names the same file as row 3"),
        ("../p.png", "Row 4 .* leads out of the folder"),
        ("", "Row 4 .* is empty or leads"),
    ):
        write_table(tmp_path / "captions.csv", [*rows, {"file_name": name, "text": "x", "group_id": "y"}])
        with pytest.raises(ValueError, match=message):
            read_training_data([tmp_path], **SMALL)


def test_a_person_in_two_groups_is_one_person(tmp_path):
    """A group may be a study: a person has several."""
    groups, people = list("aabbccdd"), ["1", "1", "1", "1", "2", "2", "", ""]
    pictures(tmp_path, 8, group_id=groups, patient_id=people)
    data = read_training_data([tmp_path], **SMALL)
    assert data.groups.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert read_training_data([tmp_path], **SMALL, group_column="group_id").groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert read_set(tmp_path, size=16).groups.tolist() == data.groups.tolist()


@pytest.mark.parametrize(
    "text",
    [
        "chest X-ray of zebediah, normal",
        "Chest X-ray, QUILLFEATHER",
        "chest X-ray (pid 77431)",
        "chest X-ray, PID77431",
        "chest X-ray, acc99812",
        "chest X-ray, born 1951-02-03",
        "chest X-ray, born 03.02.1951",
        "chest X-ray OLDID5521",
        "chest X-ray, Zébédiah",
    ],
)
def test_a_caption_with_an_identifier_is_refused_without_repeating_it(tmp_path, text):
    for i in range(3):
        write_dicom(tmp_path / f"{i}.dcm")
    rows = [{"file_name": "0.dcm", "text": "chest X-ray"}, {"file_name": "1.dcm", "text": text}]
    write_table(tmp_path / "captions.csv", rows)
    with pytest.raises(ValueError, match="Row 2 of `captions.csv` of source 1") as error:
        read_training_data([tmp_path], **SMALL)
    assert not re.search("|".join(SECRETS) + "|1951|77431|" + re.escape(text), str(error.value), re.I)
    with pytest.raises(ValueError, match="`default_caption` holds"):
        rows[1]["text"] = "fine"
        write_table(tmp_path / "captions.csv", rows)
        read_training_data([tmp_path], **SMALL, default_caption=text)


def test_words_that_name_nobody_are_allowed_in_captions(tmp_path):
    for i, name in enumerate(("CHEST^PHANTOM", "Anonymous^Patient", "Lo^Xu", "View^Normal")):
        write_dicom(tmp_path / f"{i}.dcm", PatientName=name, PatientID=f"{i}")
    rows = [{"file_name": f"{i}.dcm", "text": "chest X-ray, patient upright, lo, normal view"} for i in range(4)]
    write_table(tmp_path / "captions.csv", rows)
    assert read_training_data([tmp_path], **SMALL).plain(0) == rows[0]["text"]
    rows[3]["text"] = "chest X-ray of Xu Lo"
    write_table(tmp_path / "captions.csv", rows)
    with pytest.raises(ValueError, match="Row 4"):
        read_training_data([tmp_path], **SMALL)


# --- pictures and imagefolders


def test_pictures_of_every_kind(tmp_path):
    grey = ramp(5)
    write_picture(tmp_path / "a8.png", grey)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "b16.png")
    Image.fromarray(np.stack([grey, grey.T, grey], -1)).save(tmp_path / "c.png")
    Image.fromarray(np.stack([grey, grey.T, grey], -1)).quantize(256).save(tmp_path / "d palette.png")
    Image.fromarray(np.stack([grey] * 3 + [np.full_like(grey, 255)], -1)).save(tmp_path / "e.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "f.tif")
    Image.fromarray(grey > 127).save(tmp_path / "g.png")
    data = read_training_data([tmp_path], size=20, default_caption="noise")
    assert (data.images[0] == grey[..., None]).all()
    assert (data.images[1] == grey[..., None]).all()
    assert (data.images[2] == np.stack([grey, grey.T, grey], -1)).all()
    assert (data.images[4] == grey[..., None]).all()
    assert (data.images[5] == grey[..., None]).all()
    assert set(np.unique(data.images[6])) == {0, 255}
    assert data.people == 4  # a8, b16, f have equal pixels; e is the same in colour
    assert data.kind == "imagefolder"
    assert not data.people_known
    assert data.plain(3) == "noise"


def test_a_picture_without_a_caption_says_how_to_give_one(tmp_path):
    write_picture(tmp_path / "Quillfeather.png")
    with pytest.raises(ValueError, match="File 1 is a picture without a caption: write it into the column") as error:
        read_training_data([tmp_path], **SMALL)
    assert "Quillfeather" not in str(error.value)


def test_a_default_caption_that_no_image_takes_is_refused(tmp_path):
    for i in range(3):
        write_dicom(tmp_path / f"{i}.dcm", PatientID=f"{i}")
    with pytest.raises(ValueError, match="`default_caption` is 'lung', but every image has a caption"):
        read_training_data([tmp_path], **SMALL, default_caption="lung")
    write_picture(tmp_path / "a.png")
    assert "lung" in read_training_data([tmp_path], **SMALL, default_caption="lung").captions


def test_pictures_that_are_dark_throughout_are_warned_of(tmp_path):
    for i in range(3):
        Image.fromarray(ramp(i).astype(np.uint16) * 16).save(tmp_path / f"{i}.png")  # 12 bits in files of 16
    with pytest.warns(UserWarning, match='3 of 3 images are nowhere brighter .* `contrast` "stretch"'):
        read_training_data([tmp_path], **SMALL, default_caption="x")


def test_not_flipped_not_squashed(tmp_path):
    pixels = np.zeros((20, 40), np.uint8)
    pixels[2:8, 22:28] = 255
    write_picture(tmp_path / "a.png", pixels)
    image = read_training_data([tmp_path], size=40, default_caption="x", validation_share=0).images[0]
    assert (image[10:30, ..., 0] == pixels).all()  # dark borders: padded, not cropped


def test_imagefolder_with_everything(tmp_path):
    columns = {
        "split": ["train"] * 6 + ["val"] * 2 + ["validation", "test"],
        "group_id": ["a", "a", "b", "b", "", "", "c", "c", "d", "e"],
        "patient_id": ["1"] * 4 + ["2", "2", "3", "3", "4", "5"],
        "licence": ["CC0"] * 5 + ["CC BY 4.0"] * 5,
        "modality": ["chest-xray"] * 5 + ["DX"] * 4 + ["DX"],
    }
    data = read_training_data([pictures(tmp_path, 10, **columns)], **SMALL)
    assert data.groups.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3]  # person 1 has two groups
    assert data.validation.tolist() == [False] * 6 + [True] * 3
    assert data.licences == ("CC BY 4.0", "CC0")
    assert data.modalities == {"chest-xray": 5, "DX": 4}
    assert data.kind == "imagefolder"
    assert data.people_known
    assert data.plain(3) == "chest X-ray, PA view, finding 3"
    by_patient = read_training_data([tmp_path], **SMALL, group_column="patient_id")
    assert by_patient.groups.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3]


def test_groups_alone_are_not_called_people_and_sources_are_named_on_request(tmp_path):
    folder = pictures(tmp_path, 6, group_id=list("aabbcc"), source=["Hospital A"] * 4 + ["Hospital B", ""])
    data = read_training_data([folder], **SMALL)
    assert data.people == 3 and not data.people_known and data.attributions == ()
    data = read_training_data([folder], **SMALL, group_column="group_id", attribution_column="source")
    assert data.people_known and data.attributions == ("Hospital A", "Hospital B")
    with pytest.raises(ValueError, match="no column 'origin', which `attribution_column` asks for"):
        read_training_data([folder], **SMALL, attribution_column="origin")


def test_a_person_on_both_sides_of_the_given_split_is_reported(tmp_path):
    columns = {"split": ["train", "train", "val"], "group_id": ["a", "b", "a"]}
    with pytest.warns(UserWarning, match=r"1 person\(s\) on both sides"):
        read_training_data([pictures(tmp_path, 3, **columns)], **SMALL)


def test_a_split_without_validation_is_drawn(tmp_path):
    data = read_training_data([pictures(tmp_path, 10, split=["train"] * 10)], **SMALL)
    assert data.validation.sum() == 2
    assert not read_training_data([tmp_path], **SMALL, validation_share=0).validation.any()


@pytest.mark.parametrize("options", [{"encoding": "utf-8-sig"}, {"delimiter": ";"}, {"quoting": csv.QUOTE_ALL}])
def test_tables_as_office_programs_write_them(tmp_path, options):
    pictures(tmp_path, 3)
    rows = [{"file_name": f"{i:03}.png", "text": f"Röntgen,  no\n {i}"} for i in range(3)]
    if options.get("delimiter") == ";":
        rows = [row | {"text": "Röntgen no"} for row in rows]
    write_table(tmp_path / "metadata.csv", rows, **options)
    data = read_training_data([tmp_path], **SMALL)
    assert data.plain(1).startswith("Röntgen")
    assert "\n" not in data.plain(1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("name,text\n000.png,x\n", "no column `file_name`"),
        ("file_name,text\n000.png,chest X-ray, PA\n", 'Row 1 .* has 3 values for 2 columns; .*"double quotes"'),
        ('file_name,text\n000.png,"chest\n', "quotation mark"),
        ("file_name,text\n000.png,x\n000.png,y\n", "Row 2 .* same file as row 1"),
        ("file_name,text\n./000.png,x\n000.png,y\n", "Row 2 .* same file as row 1"),
        ("file_name,text\n/etc/x.png,x\n", "Row 1 .* leads out"),
        ("file_name,text\n000.png,\n", "File 1 is a picture without a caption"),
        ("file_name,text\n000.png\n", "File 1 is a picture without a caption"),
        ("file_name\n000.png\n", "File 1 is a picture without a caption"),
        ("file_name,text,split\n000.png,x,maybe\n", "Row 1 .* has another `split`"),
        ("file_name,text,split\n000.png,x,train\n001.png,x,\n", "Row 2 .* has no `split`"),
        ("file_name,text,split\n000.png,x,val\n001.png,x,val\n", "holds out every image"),
        ("file_name,text,patient_id\n000.png,x-ray of p-4711,P 4711\n", "Row 1 .* `patient_id` in the caption"),
        ("file_name,text\n", "`data` holds no image"),
        ("file_name,text\nabsent.png,x\n", "1 of 1 files cannot be read.* there is no file"),
        ("file_name,text\n000.png,x\xff\n", "is not UTF-8"),
    ],
)
def test_bad_tables(tmp_path, content, message):
    pictures(tmp_path, 3)
    (tmp_path / "metadata.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        read_training_data([tmp_path], **SMALL)


def test_columns_by_name(tmp_path):
    pictures(tmp_path, 4)
    rows = [{"file_name": f"{i:03}.png", "report": f"hand X-ray {i}", "family": str(i // 2)} for i in range(4)]
    write_table(tmp_path / "metadata.csv", rows)
    data = read_training_data([tmp_path], **SMALL, caption_column="report", group_column="family")
    assert data.plain(2) == "hand X-ray 2"
    assert data.groups.tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="no column 'raport'"):
        read_training_data([tmp_path], **SMALL, caption_column="raport")
    with pytest.raises(ValueError, match="no column 'clan'"):
        read_training_data([tmp_path], **SMALL, caption_column="report", group_column="clan")


def test_dicom_in_an_imagefolder_and_the_list_of_a_tcia_download(tmp_path):
    for i in range(4):
        write_dicom(tmp_path / f"{i}.dcm", PatientID=f"P{i // 2}")
    write_table(
        tmp_path / "metadata.csv", [{"file_name": f"{i}.dcm", "text": "hand X-ray" * (i == 1)} for i in range(4)]
    )
    data = read_training_data([tmp_path], **SMALL)
    assert [data.plain(1), data.plain(2)] == ["hand X-ray", "chest X-ray, PA view, 54 year old woman"]
    assert data.groups.tolist() == [0, 0, 1, 1]
    write_table(tmp_path / "metadata.csv", [{"Series UID": "1.2.3", "Collection": "LIDC"}])
    assert read_training_data([tmp_path], **SMALL).kind == "dicom"


def test_several_sources(tmp_path):
    first = pictures(tmp_path / "a", 5, split=["train"] * 4 + ["val"], patient_id=["PID 77431"] + list("wxyz"))
    for i in range(10):
        write_dicom(tmp_path / "b" / f"{i}.dcm", PatientID="PID-77431" if i == 4 else f"P{i}")
    (tmp_path / "b" / "zz").write_bytes(b"")
    data = read_training_data([first, tmp_path / "b"], **SMALL)
    assert len(data) == 15
    assert data.kind == "dicom+imagefolder"
    assert data.groups[9] == data.groups[0]  # the person of the first source
    assert not data.validation[9]
    assert data.validation.sum() == 3  # one that is given, two of the other nine
    assert data.unreadable[0][0] == 16
    with pytest.raises(ValueError, match="`data` is empty"):
        read_training_data([])


# --- datasets


def test_saved_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    images = [Image.fromarray(ramp(i).astype(np.uint16) * 257) for i in range(10)]
    columns = {"image": images, "text": [f"hand X-ray {i}" for i in range(10)], "family": [i // 2 for i in range(10)]}
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "family": datasets.Value("int64")}
    )
    plain = datasets.Dataset.from_dict(columns, features=features)
    plain.save_to_disk(tmp_path / "plain")
    before = sorted(p.name for p in (tmp_path / "plain").rglob("*"))
    data = read_training_data([tmp_path / "plain"], size=20, group_column="family")
    assert (data.images[3] == ramp(3)[..., None]).all()  # 16 bits
    assert data.plain(9) == "hand X-ray 9"
    assert data.people == 5
    assert data.validation.sum() == 2
    assert data.kind == "dataset"
    assert before == sorted(p.name for p in (tmp_path / "plain").rglob("*"))  # nothing is cached there
    parts = {"train": plain.select(range(6)), "validation": plain.select(range(6, 8)), "test": plain.select([8, 9])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "parts")
    data = read_training_data([tmp_path / "parts"], **SMALL)
    assert data.validation.tolist() == [False] * 6 + [True] * 2
    with pytest.raises(ValueError, match="no column 'picture', which `image_column` asks for"):
        read_training_data([tmp_path / "plain"], image_column="picture")
    with pytest.raises(ValueError, match="Row 1 of the data set of source 1 has another `split`"):
        datasets.DatasetDict({"a": plain, "b": plain}).save_to_disk(tmp_path / "odd")
        read_training_data([tmp_path / "odd"])


def test_datasets_of_arrays_and_of_bytes(tmp_path):
    datasets = pytest.importorskip("datasets")
    dark = ramp(1).astype(np.uint16)
    arrays = datasets.Features({"image": datasets.Array2D((20, 20), "uint16"), "text": datasets.Value("string")})
    datasets.Dataset.from_dict({"image": [dark], "text": ["x"]}, features=arrays).save_to_disk(tmp_path / "arrays")
    data = read_training_data([tmp_path / "arrays"], size=20, validation_share=0)
    assert data.images.max() <= 1  # not taken for 8 bits
    write_dicom(tmp_path / "a.dcm", ramp(2))
    files = {"image": [(tmp_path / "a.dcm").read_bytes()] * 2, "text": ["x", None]}
    datasets.Dataset.from_dict(files).save_to_disk(tmp_path / "bytes")
    data = read_training_data([tmp_path / "bytes"], size=20, validation_share=0)
    assert data.people == 1
    assert data.people_known
    assert data.plain(1) == "chest X-ray, PA view, 54 year old woman"
    paths = {"image": [str(tmp_path / "a.dcm")], "text": ["x"]}
    datasets.Dataset.from_dict(paths).save_to_disk(tmp_path / "paths")
    with pytest.raises(ValueError, match="the row holds no image"):
        read_training_data([tmp_path / "paths"])
    (tmp_path / "arrays" / "state.json").write_text("{")
    with pytest.raises(ValueError, match="`datasets` cannot load"):
        read_training_data([tmp_path / "arrays"])


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    write_picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match="source 1 is a file; give the folder"):
        read_training_data([tmp_path / "a.png"])
    with pytest.raises(ValueError, match="source 1 is 'here/absent'; it must be a folder"):
        read_training_data("here/absent")  # a slip of the pen is not looked for on the Hub
    with pytest.raises(ValueError, match="source 2 is .*absent"):
        read_training_data([tmp_path / "here", tmp_path / "absent"])
    with pytest.raises(ValueError, match="source 1 is 'nobody-here/nothing', .* of the Hub it cannot be loaded"):
        read_training_data(["nobody-here/nothing"])


# --- splits, `most`, contrast


@pytest.mark.parametrize(
    ("sizes", "share", "held"),
    [
        ([1] * 10, 0.2, {2}),
        ([1] * 10, 0.01, {1}),
        ([50, 50], 0.2, {50}),
        ([90, 5, 5], 0.2, {10}),
        ([40, *[1] * 20], 0.2, {12}),
        ([3, 3], 0.95, {3}),
        ([1, 30], 0.2, {1}),
    ],
)
def test_people_are_held_out_until_the_share_is_reached(tmp_path, sizes, share, held):
    people = [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)]
    pictures(tmp_path, len(people), group_id=people)
    for seed in range(3):
        data = read_training_data([tmp_path], size=4, validation_share=share, seed=seed)
        assert int(data.validation.sum()) in held
        assert undivided(data)


def test_most_keeps_people_whole_but_one(tmp_path):
    people = [f"g{i // 5}" for i in range(40)]
    pictures(tmp_path, 40, group_id=people)
    data = read_training_data([tmp_path], **SMALL, most=17)
    assert len(data) == 17
    assert sorted(collections.Counter(data.groups.tolist()).values()) == [2, 5, 5, 5]
    again = read_training_data([tmp_path], **SMALL, most=17)
    assert [data.plain(i) for i in range(17)] == [again.plain(i) for i in range(17)]
    assert len(read_training_data([tmp_path], **SMALL, most=400)) == 40
    write_dicom(tmp_path / "d" / "a.dcm", np.stack([ramp(i) for i in range(30)]))
    with pytest.warns(UserWarning, match="one person"):
        assert len(read_training_data([tmp_path / "d"], **SMALL, most=3)) == 3


def test_contrast(tmp_path):
    dark = (ramp(3, 64) // 16 + 2).astype(np.uint8)
    dark[0, 0] = 255  # one hot pixel does not matter
    write_picture(tmp_path / "a.png", dark)
    write_picture(tmp_path / "b.png", np.full((20, 20, 3), 9, np.uint8))
    options: dict[str, Any] = {"size": 64, "default_caption": "x", "validation_share": 0}
    assert read_training_data([tmp_path], **options).images[0, 1:].max() == 17
    stretched = read_training_data([tmp_path], **options, contrast="stretch").images
    assert stretched[0].min() == 0
    assert np.percentile(stretched[0], 98) == 255
    assert (stretched[1] == 9).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "`size` is 0"),
        ({"size": True}, "`size` is True"),
        ({"frames_per_file": 0}, "`frames_per_file` is 0"),
        ({"most": 0}, "`most` is 0"),
        ({"validation_share": 1}, "`validation_share` is 1"),
        ({"validation_share": float("nan")}, "`validation_share` is nan"),
        ({"contrast": "more"}, "`contrast` is 'more'; allowed are 'none' and 'stretch'"),
    ],
)
def test_bad_arguments(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        read_training_data([tmp_path], **options)


def test_more_images_than_memory(tmp_path):
    pictures(tmp_path, 3)
    with pytest.raises(ValueError, match="use fewer with `most`"):
        read_training_data([tmp_path], size=10**6)


# --- captions


def header(**elements: str | list[float]) -> Dataset:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


AXIAL, CORONAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1]


@pytest.mark.parametrize(
    ("elements", "caption"),
    [
        ({}, "medical image"),
        ({"Modality": "CR", "BodyPartExamined": "CHEST", "ViewPosition": "AP"}, "chest X-ray, AP view"),
        ({"Modality": "DX", "BodyPartExamined": "hand ", "PatientAge": "007Y"}, "hand X-ray, 7 year old child"),
        ({"Modality": "DX", "SeriesDescription": "W034 Thorax lat."}, "chest X-ray, lateral view"),
        ({"Modality": "CT", "SeriesDescription": "5/5mm Plain"}, "CT"),
        ({"Modality": "CT", "SeriesDescription": "Thorax 1.0 lung window"}, "chest CT slice, lung window"),
        ({"Modality": "CT", "BodyPartExamined": "HEAD", "WindowCenter": [40, 40], "WindowWidth": [80, 100]},
         "head CT slice, brain window"),
        ({"Modality": "CT", "BodyPartExamined": "LUNG", "WindowCenter": "-600", "WindowWidth": "1500",
          "ImageOrientationPatient": AXIAL}, "axial chest CT slice, lung window"),
        ({"Modality": "CT", "BodyPartExamined": "ABDOMEN", "SeriesDescription": "Abd w/o contrast cor"},
         "coronal abdomen CT, without contrast"),
        ({"Modality": "MR", "BodyPartExamined": "BRAIN", "SeriesDescription": "t2_tirm_flair_sag"},
         "sagittal brain MRI slice, FLAIR"),
        ({"Modality": "MR", "SeriesDescription": "AX T1 POST GAD head", "ImageOrientationPatient": CORONAL},
         "coronal brain MRI slice, T1-weighted, with contrast"),
        ({"Modality": "MR", "BodyPartExamined": "KNEE", "SeriesDescription": "PD fs, pre and post op"},
         "knee MRI, proton density-weighted"),
        ({"Modality": "MG", "BodyPartExamined": "BREAST", "ViewPosition": "MLO", "PatientSex": "F"},
         "mammogram, mediolateral oblique view, woman"),
        ({"Modality": "US", "BodyPartExamined": "THYROID", "PatientSex": "O"}, "thyroid ultrasound"),
        ({"Modality": "SM"}, "slide microscopy"),
        ({"Modality": "CR", "BodyPartExamined": "CHEST", "PatientSex": "M", "PatientAge": "004M"},
         "chest X-ray, 4 month old boy"),
        ({"Modality": "CR", "BodyPartExamined": "CHEST", "PatientSex": "F", "PatientAge": "097Y"},
         "chest X-ray, 90 year old woman"),
        ({"Modality": "CR", "BodyPartExamined": "CHEST", "PatientAge": "000Y"}, "chest X-ray"),
        ({"Modality": "CR", "BodyPartExamined": "CHEST", "PatientAge": "Smith"}, "chest X-ray"),
        ({"Modality": "Quillfeather", "BodyPartExamined": "Quillfeather", "ViewPosition": "Quillfeather",
          "SeriesDescription": "Quillfeather, Zebediah 03.02.1951"}, "medical image"),
    ],
)  # fmt: skip
def test_header_captions(elements, caption):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values that are no terms of the standard
        assert plain_header_caption(header_facts(header(**elements))) == caption


def test_every_wording_of_a_header_is_understood_by_the_pipeline():
    facts = HeaderFacts("CT", "chest", plane="axial", contrast=True, window="soft-tissue", sex="F", age=(54, "year"))
    xray = HeaderFacts("DX", "chest", view="PA", sex="M", age=(31, "year"))
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(400):
        seen.add(vary_header_caption(facts, rng))
        said = parse_prompt(vary_header_caption(facts, rng))
        assert said.plane in ("axial", None)
        assert said.contrast in (True, None)
        assert said.window in ("soft-tissue", None)
        assert said.sex in ("F", None)
        assert said.age_years in (54, None)
        assert said.body_part == "CHEST"
        said = parse_prompt(vary_header_caption(xray, rng))
        assert said.view_position in ("PA", None)
        assert said.sex in ("M", None)
        assert said.age_years in (31, None)
    assert len(seen) > 200
    plain = parse_prompt(plain_header_caption(facts))
    assert (plain.plane, plain.contrast, plain.window, plain.sex, plain.age_years) == (
        "axial",
        True,
        "soft-tissue",
        "F",
        54,
    )
    lateral = HeaderFacts("DX", "chest", view="LATERAL")
    assert not any("frontal" in vary_header_caption(lateral, rng) for _ in range(200))


def test_given_captions_are_varied():
    rng = np.random.default_rng(0)
    text = "frontal chest X-ray, AP view, adult male 54 years, bacterial pneumonia"
    wordings = [vary_text(text, rng) for _ in range(2000)]
    assert 0.17 < wordings.count(text) / 2000 < 0.24
    assert len(set(wordings)) > 500
    heads = ("frontal", "chest", "cxr", "x-ray", "thoracic")
    assert np.mean([w.lower().startswith(heads) for w in wordings]) > 0.85
    assert 0.75 < np.mean(["bacteria" in w.lower() for w in wordings]) < 0.95
    for wording in wordings:
        said = parse_prompt(wording)
        assert said.view_position in ("AP", None)
        assert said.sex in ("M", None)
        assert said.age_years in (54, None)
    assert [vary_text(text, np.random.default_rng(5)) for _ in range(2)] == [
        vary_text(text, np.random.default_rng(5))
    ] * 2


@pytest.mark.parametrize(
    ("text", "never"),
    [
        ("head CT, normal", "lung|X-ray"),
        ("chest X-ray, lateral view, normal", r"frontal|\b(AP|PA)\b"),
        ("brain MRI, normal, pituitary", "lung|tumour|adenoma"),
        ("hand X-ray, normal, nodule", "lung|chest"),
        ("dense breast, mammogram, dense", "nuclei"),
    ],
)
def test_synonyms_do_not_change_what_is_said(text, never):
    rng = np.random.default_rng(0)
    assert not [w for w in (vary_text(text, rng) for _ in range(500)) if re.search(never, w, re.I)]


@pytest.mark.parametrize(
    "text",
    [
        "No pleural effusion, pneumothorax, or consolidation",
        "Heart is normal. Lungs are clear, no effusion.",
        "findings: mass, nodule",
    ],
)
def test_sentences_are_not_taken_apart(text):
    rng = np.random.default_rng(0)
    assert {vary_text(text, rng) for _ in range(50)} == {text}


def test_numbers_and_odd_texts_survive():
    rng = np.random.default_rng(0)
    assert all(
        "3,5 mm" in w or "nodule" not in w for w in (vary_text("chest CT, 3,5 mm nodule", rng) for _ in range(200))
    )
    for odd in (",", "x", ", ,", "é" * 5000, "a," * 500):
        assert isinstance(vary_text(odd, rng), str)


# --- real data


@needs_data
def test_real_packs():
    nuclei = read_training_data([SHARED / "images" / "nuclei_dsb2018"], **SMALL, contrast="stretch", most=40)
    assert len(nuclei) == 40
    assert nuclei.licences == ("CC0",)
    covid = read_training_data([SHARED / "images" / "cxr_covid"], **SMALL)
    assert (len(covid), int(covid.validation.sum()), covid.people) == (221, 38, 70)
    assert undivided(covid)


@needs_data
def test_real_dicom_files(capfd):
    data = read_training_data([SHARED / "dicom" / "good"], **SMALL, most=120)
    assert data.unreadable == ()
    assert len(data) == 120
    assert undivided(data)
    assert {"MR", "CT"} <= set(data.modalities)
    assert "SEG" not in data.modalities
    with pytest.raises(ValueError, match="files cannot be read, more than the 10% allowed"):
        read_training_data([SHARED / "dicom" / "bad"], **SMALL, default_caption="x")
    assert "craft_" not in capfd.readouterr().err
