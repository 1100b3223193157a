"""`verify` on files that something was added to: what a viewer would show, and what archives add."""

from __future__ import annotations

import io

import numpy as np
import pydicom
import pytest
from PIL import Image, PngImagePlugin
from pydicom import Dataset, Sequence
from pydicom.uid import ImplicitVRLittleEndian

from pipeline import verify
from pipeline.__main__ import main
from pipeline.dicom_files import write_files
from pipeline.dicom_pixels import compress
from pipeline.dicom_profiles import PROFILES
from pipeline.dicom_provenance import PRIVATE_CREATOR, PRIVATE_GROUP

from .dicom_samples import pixels_of
from .test_verification import GIVEN, MARKS, make, written

SECRET = "Roe^Jane 4711"


def item(**values) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def table() -> Sequence:
    return Sequence([item(LUTDescriptor=[2, 0, 16], LUTExplanation=SECRET, LUTData=b"\0\0\1\0")])


def overlay(group: int = 0x6000):
    def add(dataset: Dataset) -> None:
        for element, vr, value in (
            (0x0010, "US", dataset.Rows), (0x0011, "US", dataset.Columns), (0x0022, "LO", SECRET),
            (0x0040, "CS", "G"), (0x0050, "SS", [1, 1]), (0x0100, "US", 1), (0x0102, "US", 0),
            (0x3000, "OW", b"\xff" * (dataset.Rows * dataset.Columns // 8)),
        ):  # fmt: skip
            dataset.add_new((group, element), vr, value)

    return add


def curve(dataset: Dataset) -> None:
    dataset.add_new((0x5000, 0x0005), "US", 2)
    dataset.add_new((0x5000, 0x3000), "OW", b"\0" * 16)


def graphic(dataset: Dataset) -> None:
    text = item(UnformattedTextValue=SECRET, AnchorPoint=[1.0, 1.0], AnchorPointAnnotationUnits="PIXEL")
    layer = item(GraphicLayer="ONE", TextObjectSequence=Sequence([text]))
    dataset.GraphicAnnotationSequence = Sequence([layer])


def icon(dataset: Dataset) -> None:
    dataset.IconImageSequence = Sequence([
        item(
            Rows=8, Columns=8, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=8,
            BitsStored=8, HighBit=7, PixelRepresentation=0, PixelData=b"\0" * 64,
        )
    ])  # fmt: skip


def of(keyword: str, value):
    return lambda dataset: setattr(dataset, keyword, value)


SHOWN = {
    "overlay (group 6000)": overlay(),
    "overlay (group 601E)": overlay(0x601E),
    "curve (group 5000)": curve,
    "graphic annotation (group 0070)": graphic,
    "IconImageSequence": icon,
    "ShutterShape": of("ShutterShape", "RECTANGULAR"),
    "VOILUTSequence": lambda dataset: setattr(dataset, "VOILUTSequence", table()),
    "PixelPaddingValue": lambda dataset: dataset.add_new("PixelPaddingValue", "US", 5),
    "PixelAspectRatio": of("PixelAspectRatio", [1, 4]),
    "EncapsulatedDocument": of("EncapsulatedDocument", b"%PDF-1.7"),
    "PresentationLUTShape": of("PresentationLUTShape", "INVERSE"),
    "preamble": of("preamble", b"II*\0" + bytes(124)),
}


@pytest.mark.parametrize("how", ["plain", "implicit", "compressed"])
@pytest.mark.parametrize("name", SHOWN)
def test_what_a_viewer_shows_is_named_and_does_not_pass(name, how):
    dataset = make()
    SHOWN[name](dataset)
    data = written(
        compress(dataset, "rle") if how == "compressed" else dataset, *[ImplicitVRLittleEndian] * (how == "implicit")
    )
    found = verify(data)
    assert found.added == (name,) and not found.ok
    assert (found.made_here, found.pixels, found.recipe_state) == (True, "unaltered", "unaltered")
    words = "\n".join(found.in_words())
    assert f"changes what is shown: {name}" in words and "Roe" not in words and "4711" not in repr(found)


def test_what_is_shown_is_named_of_files_whose_uids_were_changed():
    dataset = make()
    overlay()(dataset)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
    assert verify(written(dataset)).added == ("overlay (group 6000)",)


def test_nothing_is_said_of_files_of_others():
    dataset = make()
    dataset.remove_private_tags()
    for keyword in (*MARKS, "Manufacturer"):
        del dataset[keyword]
    dataset.file_meta.ImplementationVersionName = "OTHER"
    overlay()(dataset)
    assert (verify(written(dataset)).added, verify(written(dataset)).also_added) == ((), ())


def test_foreign_private_attributes_are_named_and_pass():
    dataset = make()
    dataset.private_block(0x0029, SECRET, create=True).add_new(0x10, "LO", SECRET)
    dataset.private_block(PRIVATE_GROUP, SECRET, create=True).add_new(0x01, "LO", SECRET)
    found = verify(written(dataset))
    assert found.ok and found.added == ()
    assert set(found.also_added) == {"private group 0029", f"private group {PRIVATE_GROUP:04X}"}
    assert "Roe" not in repr(found) + "\n".join(found.in_words())
    more = make()
    more.private_block(PRIVATE_GROUP, PRIVATE_CREATOR).add_new(0x10, "LO", SECRET)  # in a block of ours
    assert verify(written(more)).also_added == (f"private group {PRIVATE_GROUP:04X}",)


@pytest.mark.parametrize("given", [{}, GIVEN])
@pytest.mark.parametrize("name", PROFILES)
def test_what_archives_add_passes(name, given):
    dataset = make(name, **given)
    dataset.RetrieveAETitle, dataset.InstanceAvailability = "ARCHIVE", "ONLINE"
    dataset.StorageMediaFileSetID, dataset.InstanceCreatorUID = "DISK", "2.25.5"
    dataset.OriginalAttributesSequence = Sequence(
        [item(SourceOfPreviousValues="X", ReasonForTheAttributeModification="COERCE")]
    )
    dataset.TimezoneOffsetFromUTC = "+0100"
    dataset.file_meta.SourceApplicationEntityTitle = "SENDER"
    dataset.add_new((0x0008, 0x0000), "UL", 100)  # group lengths, which old archives write
    dataset.add_new((0x0010, 0x0000), "UL", 100)
    dataset.add_new((0xFFFC, 0xFFFC), "OB", b"\0" * 8)
    found = verify(written(dataset))
    assert found.ok and found.added == ()
    names = {"RetrieveAETitle", "InstanceAvailability", "StorageMediaFileSetID", "InstanceCreatorUID"}
    assert set(found.also_added) == names | {"OriginalAttributesSequence", "TimezoneOffsetFromUTC"}
    assert verify(written(compress(dataset, "jpegls"))).ok


@pytest.mark.parametrize("name", ["brain-mri", "ct-chest", "chest-xray"])
def test_another_window_is_told_and_passes(name):
    dataset = make(name)
    dataset.WindowWidth, dataset.WindowCenter = "7", ["9", "1000"]  # as workstations write what somebody has set
    found = verify(written(dataset))
    assert found.ok and found.changed == ("WindowCenter", "WindowWidth")


def test_another_character_set_and_syntax_pass():
    dataset = make(**GIVEN)
    data = written(dataset, ImplicitVRLittleEndian)
    again = pydicom.dcmread(io.BytesIO(data))
    again.PatientName = again.PatientName  # decoded, to be written anew
    again.decode()
    again.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    found = verify(written(again, ImplicitVRLittleEndian))
    assert found.ok and (found.added, found.also_added) == ((), ())


def test_a_million_additions_are_named_in_few_words():
    dataset = make()
    for group in range(0x0301, 0x0501, 2):
        dataset.private_block(group, SECRET, create=True).add_new(0x10, "LO", SECRET)
    found = verify(written(dataset))
    assert len(found.also_added) == 41 and found.also_added[-1] == "and 216 more"


def test_pictures(tmp_path):
    _, png = write_files([make("ct-head")], tmp_path, png_pixels=[pixels_of("ct-head")])
    assert verify(png).ok and verify(png).added == ()
    with Image.open(png) as picture:
        notes = PngImagePlugin.PngInfo()
        for name, text in picture.text.items():
            notes.add_text(name, text, zip=False)
        pixels = np.asarray(picture)
    more = Image.fromarray(255 - pixels)
    for name, options in {
        "transparency": {"transparency": 0},
        "icc_profile": {"icc_profile": b"\0" * 200},
        "more frames": {"save_all": True, "append_images": [more], "duration": 100},
    }.items():
        Image.fromarray(pixels).save(tmp_path / "changed.png", pnginfo=notes, **options)
        found = verify(tmp_path / "changed.png")
        assert found.added == (name,) and not found.ok and found.pixels == "unaltered", name


def test_command_line(tmp_path, capsys):
    dataset = make()
    overlay()(dataset)
    (tmp_path / "overlay.dcm").write_bytes(written(dataset))
    assert main(["verify", str(tmp_path / "overlay.dcm")]) == 1
    assert "changes what is shown: overlay (group 6000)" in capsys.readouterr().out


def test_nothing_was_added_to_what_is_made_here(volume, files):
    for name, path in files.items():
        if path.suffix == ".dcm":
            found = verify(path)
            assert found.ok and (found.added, found.also_added) == ((), ()), name


@pytest.mark.parametrize("name", PROFILES)
def test_nothing_was_added_to_images(name):
    for given in ({}, GIVEN):
        assert verify(written(make(name, **given))).also_added == ()
