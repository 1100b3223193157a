"""No identifier of an input reaches an output, a log, a temporary file, a recipe or the server's folders.

Identifiers are unique strings, planted by hypothesis into text of every kind, private elements, UIDs, file names, the
preamble and the pixels, and looked for in every byte that comes out.
"""

from __future__ import annotations

import io
import logging
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.datadict import DicomDictionary

from evaluation.hostile_seeds import PLANTED, PLANTED_NUMBER, dataset_of, dicom_seeds, file_of, picture_seeds, plant
from pipeline import read_image, write_files
from pipeline.dicom_input import ImageInputError
from pipeline.guarded_reading import read_guarded
from pipeline.verification import verify

TEXT_VRS = {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"}
PUBLIC = sorted(  # all but the file's meta, commands, DICOMDIR and overlays
    tag for tag, (vr, *_) in DicomDictionary.items() if vr in TEXT_VRS and tag >> 16 > 4 and tag >> 16 < 0x5000
)
WORDS = st.text("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789", min_size=12, max_size=16).map("ZQ".__add__)
QUIET = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def assert_absent(words, *outputs):
    """None of the words in any of the outputs: bytes, texts, or whole folders with the names in them."""
    data = []
    for output in outputs:
        if isinstance(output, Path):
            for path in output.rglob("*"):
                data += [str(path.relative_to(output)).encode(), path.read_bytes() if path.is_file() else b""]
                if path.suffix == ".zip":
                    with zipfile.ZipFile(path) as archive:
                        data += [part for name in archive.namelist() for part in (name.encode(), archive.read(name))]
        else:
            data.append(output if isinstance(output, bytes) else str(output).encode())
    for word in words:
        for code in ("utf-8", "utf-16-le"):
            assert not any(word.lower().encode(code) in part.lower() for part in data), word


def _forget(capfd, caplog):
    """What pydicom says while the test writes its files is no leak of ours."""
    capfd.readouterr()
    caplog.clear()


@st.composite
def planted_files(draw):
    """A DICOM file with words in public elements of any text VR, private ones, nested ones, preamble and meta."""
    dataset, words = dataset_of(draw(st.sampled_from(("chest-xray", "ct-chest", "blood-smear")))), set()
    del dataset[0x0099, 0x1001]
    keep = {int(element.tag) for element in dataset if element.tag.group == 0x0028} | {0x00080060, 0x00080016}
    for tag in draw(st.lists(st.sampled_from(PUBLIC), min_size=1, max_size=12, unique=True)):
        if tag in keep:
            continue
        words.add(word := draw(WORDS))
        element = pydicom.DataElement(tag, "LO", word)
        (dataset if draw(st.booleans()) else _nested(dataset)).add(element)
    block = dataset.private_block(draw(st.sampled_from((0x0009, 0x0043, 0x7FE1))), creator := draw(WORDS), create=True)
    words |= {creator, word := draw(WORDS)}
    block.add_new(draw(st.integers(1, 0xFF)), draw(st.sampled_from(("LO", "UT", "ST", "PN"))), word)
    number = str(draw(st.integers(10**24, 10**25)))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.{number}"
    words.add(number)
    words.add(word := draw(WORDS))
    dataset.preamble = (word * 16).encode()[:128]
    words.add(word := draw(WORDS))
    dataset.file_meta.SourceApplicationEntityTitle = word[:16]
    words.add(word[:16])
    return file_of(dataset), words | {draw(WORDS)}


def _nested(dataset):
    if "RequestAttributesSequence" not in dataset:
        dataset.RequestAttributesSequence = [pydicom.Dataset()]
    return dataset.RequestAttributesSequence[0]


@given(planted_files())
@QUIET
def test_no_word_of_a_header_is_in_what_is_read_or_said(capfd, caplog, planted):
    data, words = planted
    _forget(capfd, caplog)
    caplog.set_level(logging.DEBUG)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{sorted(words)[0]}.dcm")
        path.write_bytes(data)
        read = read_image(path)
        assert_absent(words, repr(read), repr(read.pixels.tobytes()), repr(verify(path).in_words()))
    assert_absent(words, *capfd.readouterr(), caplog.text)


@given(planted_files(), st.data())
@QUIET
def test_no_word_is_in_a_refusal(capfd, caplog, planted, draw):
    data, words = planted
    _forget(capfd, caplog)
    damaged = data[: draw.draw(st.integers(0, len(data) - 1))]
    for door in (read_image, verify):
        try:
            door(damaged)
        except ValueError as error:
            assert_absent(words, str(error), repr(error.__cause__), repr(error.__context__))
    assert_absent(words, *capfd.readouterr(), caplog.text)


def test_files_made_of_an_image_hold_nothing_of_its_header(tiny, tmp_path, capfd, caplog, monkeypatch):
    """Image to image, of every kind of file: DICOM, PNG, zip, DICOMDIR, recipe, logs, and no temporary file."""
    caplog.set_level(logging.DEBUG)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    source = tmp_path / f"{PLANTED}.dcm"
    out = tmp_path / "out"
    files = [*dicom_seeds(), *picture_seeds()][::4]
    _forget(capfd, caplog)
    for number, data in enumerate(files):
        source.write_bytes(data)
        made = tiny("chest X-ray, PA view", source, num_inference_steps=1, seed=number)
        pictures = [np.asarray(image, np.float32) / 255 for image in made.images]
        write_files(made.dicoms, out / str(number), png_pixels=pictures)
        write_files(made.dicoms, out / f"zip{number}", zip_archive=True)
        write_files(made.dicoms, out / f"set{number}", dicomdir=True)
        assert_absent((PLANTED, PLANTED_NUMBER), *(recipe.to_json() for recipe in made.recipes))
    assert_absent((PLANTED, PLANTED_NUMBER), out, *capfd.readouterr(), caplog.text)
    assert not [path for path in scratch.rglob("*") if path.is_file()]


def test_burned_in_pixels_are_in_no_byte_of_the_output_as_they_were(tiny, tmp_path):
    """What is drawn anew may still show them, which is why they are warned of; the source's own pixels are not kept."""
    noise = np.random.default_rng(5).integers(0, 256, (64, 64), np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "PNG")
    made = tiny("chest X-ray, PA view", data.getvalue(), strength=0.3, num_inference_steps=4, seed=1)
    write_files(made.dicoms, tmp_path, png_pixels=[np.asarray(image, np.float32) / 255 for image in made.images])
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert not any(row.tobytes() in content for row in noise)
    for picture in made.images:
        assert not np.array_equal(np.asarray(picture.convert("L").resize((64, 64))), noise)


@pytest.mark.parametrize("content", [file_of, lambda dataset: file_of(dataset)[:900]], ids=["whole", "cut"])
def test_the_guarded_reader_says_nothing_of_a_header(content, tmp_path, capfd):
    dataset = dataset_of()
    plant(dataset)
    path = tmp_path / f"{PLANTED}.dcm"
    path.write_bytes(content(dataset))
    capfd.readouterr()
    try:
        said = repr(read_guarded(path))
    except ImageInputError as error:
        said = str(error)
    assert_absent((PLANTED, PLANTED_NUMBER), said, *capfd.readouterr())


def test_the_search_finds_what_it_looks_for(tmp_path):
    """A leak test that cannot fail is none."""
    dataset = dataset_of()
    plant(dataset)
    (tmp_path / "a.dcm").write_bytes(file_of(dataset))
    for word in (PLANTED, PLANTED_NUMBER):
        with pytest.raises(AssertionError):
            assert_absent([word], tmp_path)
