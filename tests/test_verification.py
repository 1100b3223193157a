"""`verify`: made here, marked, unaltered, and what was taken out; the digest and the signature behind it."""

from __future__ import annotations

import io
import json

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from pipeline import Patient, Study, sign, verify
from pipeline.__main__ import main
from pipeline.dicom_files import write_files
from pipeline.dicom_output import to_dataset
from pipeline.dicom_pixels import COMPRESSIONS
from pipeline.dicom_profiles import PROFILES
from pipeline.dicom_provenance import PRIVATE_CREATOR, PRIVATE_GROUP, read_recipe
from pipeline.dicom_seal import Seal, read_key, read_seal

from .dicom_samples import pixels_of, recipe_of

KEY = b"a key of sixteen or more bytes"
GIVEN = {
    "patient": Patient(name="Roe^Jane=山田", id="4711", birth_date="19500101"),
    "study": Study("Head", "Series", "A1", "S1", "20040607", "080000", "Doctor^No"),
}
MARKS = ("SyntheticData", "ContributingEquipmentSequence", "ImageType", "PatientName", "StudyDescription")
MARKS += ("SeriesDescription", "ImageComments", "DerivationDescription")


def make(name="brain-mri", **given):
    prompt = "" if given else None
    return to_dataset(pixels_of(name), PROFILES[name], recipe_of(name, prompt), **given)


def written(dataset, syntax=None) -> bytes:
    out = io.BytesIO()
    if syntax is not None:
        dataset.file_meta.TransferSyntaxUID = syntax
    implicit = syntax == ImplicitVRLittleEndian
    dataset.save_as(out, enforce_file_format=True, implicit_vr=implicit, little_endian=True)
    return out.getvalue()


def spoil(dataset, element, old, new):
    block = dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)
    assert old in block[element].value
    block[element].value = block[element].value.replace(old, new)


@pytest.mark.parametrize("compression", [None, *COMPRESSIONS])
@pytest.mark.parametrize("name", PROFILES)
def test_every_object_in_every_syntax_is_whole(name, compression, tmp_path):
    (path,) = write_files([make(name)], tmp_path, compression=compression)
    found = verify(path)
    assert found.ok and (found.pixels, found.recipe_state, found.uids) == ("unaltered", "unaltered", "follow")
    assert (found.missing_marks, found.stripped, found.changed, found.given) == ((), (), (), ())
    assert found.recipe == recipe_of(name)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_other_encodings_keep_it_whole(syntax):
    assert verify(written(make(), syntax)).ok


def test_recompression_from_one_syntax_to_another_keeps_it_whole(tmp_path):
    (path,) = write_files([make("blood-smear")], tmp_path, compression="jpeg2000", key=KEY)
    dataset = pydicom.dcmread(path)
    dataset.decompress(generate_instance_uid=False)
    for compression in COMPRESSIONS.values():
        dataset.compress(compression, generate_instance_uid=False)
        assert verify(written(dataset), key=KEY).ok
        dataset = pydicom.dcmread(io.BytesIO(written(dataset)))
        dataset.decompress(generate_instance_uid=False)


@pytest.mark.parametrize(
    "given",
    [
        GIVEN,
        {"patient": Patient(age=54)},
        {"patient": Patient(name="SYNTHETIC^One"), "study": Study(description="SYNTHETIC - two")},
        {"patient": Patient(id="1", birth_date="20500101")},
        {"study": Study(series_description="three", date="20200101")},
    ],
)
def test_given_values_are_found_and_never_told(given):
    found = verify(written(make(**given)))
    assert found.ok and found.uids == "follow"
    values = {f"{kind}.{name}" for kind, value in given.items() for name, v in vars(value).items() if v is not None}
    assert set(found.given) == values
    for secret in ("Roe", "4711", "山田", "19500101", "Doctor"):
        assert secret not in repr(found) and secret not in "\n".join(found.in_words())


def test_the_digest_changes_no_uid():
    dataset = make("ct-head")
    block = dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)
    uid = dataset.SOPInstanceUID
    del block[2]
    assert make("ct-head").SOPInstanceUID == uid
    found = verify(written(dataset))  # made here, but whoever takes the digest out must not pass
    assert (
        found.made_here
        and not found.ok
        and (found.pixels, found.recipe_state, found.uids) == ("no digest", "no digest", "follow")
    )


def test_an_old_file_in_the_folder_is_left_as_it_is(tmp_path):
    old = make("ct-head")
    del old.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)[2]
    (path,) = write_files([old], tmp_path)
    before = path.read_bytes()
    assert write_files([make("ct-head")], tmp_path) == [path] and path.read_bytes() == before
    with pytest.raises(FileExistsError):
        write_files([make("ct-head")], tmp_path, key=KEY)


@pytest.mark.parametrize("name", ["brain-mri", "blood-smear", "ct-chest"])
def test_a_changed_pixel_is_seen(name):
    dataset = make(name)
    pixels = bytearray(dataset.PixelData)
    pixels[len(pixels) // 2] ^= 1
    dataset.PixelData = bytes(pixels)
    found = verify(written(dataset))
    assert (found.made_here, found.ok, found.pixels, found.recipe_state) == (True, False, "altered", "unaltered")


@pytest.mark.parametrize(
    ("keyword", "value"), [("RescaleIntercept", "0"), ("PhotometricInterpretation", "MONOCHROME1")]
)
def test_a_changed_meaning_of_pixels_is_seen(keyword, value):
    dataset = make("ct-chest")
    setattr(dataset, keyword, value)
    assert verify(written(dataset)).pixels == "altered"


@pytest.mark.parametrize(
    ("old", "new", "uids"),
    [
        ('"seed":7', '"seed":8', "differ"),
        ('"torch","2.13.0"', '"torch","2.12.0"', "follow"),
        ("meningioma", "x", "differ"),
    ],
)
def test_a_changed_recipe_is_seen(old, new, uids):
    dataset = make()
    spoil(dataset, 1, old, new)
    found = verify(written(dataset))
    assert (found.ok, found.recipe_state, found.uids, found.pixels) == (False, "altered", uids, "unaltered")


@pytest.mark.parametrize("text", ["{broken", "[" * 50_000, '{"format":1}', '{"format":1e999}', "1" * 5000, "x" * 2**21])
@pytest.mark.parametrize("element", [1, 2])
def test_broken_recipes_and_digests_are_told_apart_from_good_ones(element, text):
    dataset = make()
    dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)[element].value = text
    found = verify(written(dataset))
    assert not found.ok
    assert found.recipe_state == ("not readable" if element == 1 else "altered")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\x99\0\x10\0LO", b"\x99\0\x10\0UL"),  # 22 bytes: no whole number of four
        (b"\x99\0\x01\x10UT", b"\x99\0\x01\x10SV"),
        (b"\x99\0\x02\x10UT", b"\x99\0\x02\x10SV"),
    ],
)
def test_elements_that_pydicom_cannot_read_are_refused(old, new, tmp_path, capsys):
    data = written(make())
    assert data.count(old) == 1
    path = tmp_path / "file.dcm"
    path.write_bytes(data.replace(old, new))
    if b"\x02" not in old:
        with pytest.raises(ValueError, match="^the recipe"):
            read_recipe(pydicom.dcmread(path))
        assert main(["replay", str(path), "--out", str(tmp_path)]) == 2
    assert main(["verify", str(path)]) in (1, 2) and not verify_ok(path)
    assert "Traceback" not in capsys.readouterr().err


def verify_ok(path) -> bool:
    try:
        return verify(path).ok
    except ValueError:
        return False


@pytest.mark.parametrize("value", ["1" + "0" * 400, "NaN", "-Infinity", "1e999", '"7"', "[7]", "null", "true"])
def test_numbers_that_are_none_are_refused(value):
    dataset = make()
    spoil(dataset, 1, '"guidance_scale":4.0', f'"guidance_scale":{value}')
    assert verify(written(dataset)).recipe_state == "not readable"


@pytest.mark.parametrize("how", ["deleted", "emptied"])
@pytest.mark.parametrize("mark", MARKS)
def test_every_missing_mark_is_named(mark, how):
    dataset = make()
    if how == "deleted":
        del dataset[mark]
    else:
        dataset[mark].value = None
    found = verify(written(dataset))
    assert found.missing_marks == (mark,) and found.made_here and not found.ok
    assert found.pixels == "unaltered"


def test_marks_that_say_something_else_do_not_count():
    dataset = make()
    dataset.SyntheticData, dataset.ImageType[0], dataset.PatientName = "NO", "ORIGINAL", "Roe^Jane"
    found = verify(dataset)
    assert found.missing_marks == ("SyntheticData", "ImageType", "PatientName")
    assert "PatientName" in found.changed and "Roe" not in "\n".join(found.in_words())


def deidentified(dataset, private: bool):
    """As the Basic Profile of PS3.15 does: dates and descriptions go, UIDs and the patient are replaced."""
    for keyword in ("PatientBirthDate", "StudyDate", "SeriesDate", "ContentDate", "StudyDescription", "StudyTime"):
        dataset[keyword].value = ""
    for keyword in ("SeriesDescription", "ImageComments", "DeviceSerialNumber", "ContributingEquipmentSequence"):
        dataset.pop(keyword, None)
    dataset.PatientName, dataset.PatientID, dataset.PatientIdentityRemoved = "ANON", "0001", "YES"
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(dataset, keyword, generate_uid())
    if private:
        dataset.remove_private_tags()
    return dataset


def test_what_a_deidentifier_took_is_told():
    found = verify(written(deidentified(make(), private=False)))
    assert (found.made_here, found.ok, found.uids, found.pixels) == (True, False, "differ", "unaltered")
    assert {"StudyDate", "ContributingEquipmentSequence", "ImageComments", "DeviceSerialNumber"} <= set(found.stripped)
    assert {"PatientID", "SOPInstanceUID"} <= set(found.changed)
    found = verify(written(deidentified(make(), private=True)))
    assert (found.made_here, found.ok, found.recipe_state, found.pixels) == (False, False, "missing", "no digest")
    assert found.traces and {"the recipe", "StudyDate"} <= set(found.stripped)
    assert found.missing_marks == MARKS[1:2] + MARKS[3:7]


@pytest.mark.parametrize("name", ["brain-mri", "chest-xray", "ct-chest"])
def test_another_spacing_is_told(name):
    dataset = make(name)
    keyword = "PixelSpacing" if "PixelSpacing" in dataset else "ImagerPixelSpacing"
    dataset[keyword].value = [9, 9]
    assert verify(written(dataset)).changed == (keyword,)


def test_files_of_others_are_not_ours():
    dataset = make()
    dataset.remove_private_tags()
    for keyword in (*MARKS, "Manufacturer"):
        del dataset[keyword]
    dataset.file_meta.ImplementationVersionName = "OTHER"
    found = verify(dataset)
    assert (found.made_here, found.traces, found.missing_marks) == (False, (), MARKS)


def test_signature(tmp_path):
    dataset = make("blood-smear")
    sign(dataset, KEY)
    assert verify(dataset).signature == "not checked" and verify(dataset).ok
    assert verify(dataset, key=KEY).ok and verify(dataset, key=KEY).signature == "valid"
    assert verify(dataset, key=KEY * 2).signature == "other key" and not verify(dataset, key=KEY * 2).ok
    assert not verify(make(), key=KEY).ok
    # A forger without the key makes the digests fit, but not the signature.
    forged = make("blood-smear")
    seal, mine = read_seal(dataset), read_seal(forged)
    text = Seal("0" * 64, mine.recipe, seal.signature, seal.key).to_json()
    forged.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)[2].value = text
    assert verify(forged, key=KEY).signature == "wrong"
    for bad in (b"short", b"x" * 5000, "text" * 8):
        with pytest.raises(ValueError, match="`key`"):
            verify(dataset, key=bad)
    (tmp_path / "key").write_bytes(KEY + b"\r\n")
    assert read_key(tmp_path / "key") == KEY
    with pytest.raises(ValueError, match="`key`"):
        read_key(tmp_path)


def test_pictures(tmp_path):
    dicom, png = write_files([make("ct-head")], tmp_path, png_pixels=[pixels_of("ct-head")], key=KEY)
    assert verify(png, key=KEY).ok and verify(png).recipe == read_recipe(pydicom.dcmread(dicom))
    with Image.open(png) as picture:
        notes, pixels = dict(picture.text), np.asarray(picture).copy()
    pixels[5, 5] ^= 1
    from PIL.PngImagePlugin import PngInfo

    for change, state in (({}, "altered"), ({"Comment": "mine"}, "altered"), ({"Digest": None}, "no digest")):
        info = PngInfo()
        for name, text in (notes | change).items():
            if text is not None:
                info.add_text(name, text)
        Image.fromarray(pixels).save(tmp_path / "changed.png", pnginfo=info)
        found = verify(tmp_path / "changed.png")
        assert found.pixels == state and found.missing_marks == (("Comment",) if "Comment" in change else ())
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    assert not verify(tmp_path / "plain.png").made_here


def test_command_line(tmp_path, capsys):
    whole, *_ = write_files([make(**GIVEN)], tmp_path)
    altered = tmp_path / "altered.dcm"
    dataset = make()
    del dataset.SyntheticData
    altered.write_bytes(written(dataset))
    (tmp_path / "text.txt").write_text("Roe^Jane")
    (tmp_path / "cut.dcm").write_bytes(whole.read_bytes()[:300])
    assert main(["verify", str(whole)]) == 0
    assert main(["verify", str(whole), str(altered)]) == 1
    assert "missing SyntheticData" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "absent"), str(whole)]) == 2
    assert main(["verify", str(tmp_path / "text.txt"), str(altered)]) == 2
    assert main(["verify", str(tmp_path / "cut.dcm")]) in (1, 2)
    said = capsys.readouterr()
    assert "Roe" not in said.out + said.err and "4711" not in said.out + said.err


def test_the_digest_is_json_that_names_its_format():
    seal = read_seal(make())
    assert json.loads(seal.to_json()).keys() == {"format", "pixels", "recipe"}
    assert Seal.from_json(seal.to_json()) == seal
