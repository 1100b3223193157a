"""The input stage: what it reads, how it reads it, what it refuses, and that nothing of an input's text comes out."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import warnings
import zlib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from pipeline import dicom_limits
from pipeline.dicom_input import ImageInputError, read_image, square

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data" / "dicom"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared DICOM files are not here")
RAMP = np.arange(12 * 10, dtype=np.uint16).reshape(12, 10) * 30
# where pydicom itself is no measure: YCbCr labelled RGB, empty LUTs, a big endian palette read as little endian
NOT_COMPARED = ("OT_ts.4.50_RGB_265.dcm", "MONOCHROME2_164.dcm", "US_ts.2_PALETTECOLOR_152.dcm", "PALETTECOLOR_176.dcm")


def made(pixels: np.ndarray = RAMP, photometric: str = "MONOCHROME2", bits: int | None = None, **elements) -> Dataset:
    """Make a small native DICOM object with a name in it that must not come out."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.PatientName, dataset.PatientID, dataset.Modality = "Leaky^Name", "LEAK-1234", "CT"
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3.4.5"
    colour = photometric in ("RGB", "YBR_FULL")
    dataset.Rows, dataset.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3 if colour else 1, photometric
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = pixels.dtype.itemsize * 8
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes() + b"\x00" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def as_file(dataset: Dataset) -> bytes:
    """Write a DICOM object to bytes."""
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def stretched(values: np.ndarray) -> np.ndarray:
    """Scale to [0, 1] by the smallest and largest value."""
    values = values.astype(np.float64)
    return (values - values.min()) / np.ptp(values)


def lookup_table(data: list[int], first: int, bits: int) -> Dataset:
    """Make an item of a modality or VOI LUT sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(data), first, bits])
    item.add_new("LUTData", "US", data)
    return item


def expected_by_pydicom(dataset: Dataset, index: int) -> np.ndarray:
    """Decode with the whole of pydicom, by another way than the input stage goes."""
    pixels = dataset.pixel_array
    frame = pixels[index] if int(dataset.get("NumberOfFrames") or 1) > 1 else pixels
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        coloured = apply_color_lut(frame, dataset)
        return coloured / (65535 if coloured.dtype == np.uint16 else 255)
    if dataset.SamplesPerPixel == 3:
        return frame / (2**dataset.BitsStored - 1)
    values = apply_modality_lut(frame, dataset)
    if dataset.get("WindowWidth") is None and "VOILUTSequence" not in dataset:
        shown = stretched(values) if np.ptp(values) else np.zeros(values.shape)
    else:
        low, high = apply_voi_lut(np.array([-1e7, 1e7]), dataset)  # what the window calls black and white
        shown = (apply_voi_lut(values, dataset) - low) / (high - low)
    return 1 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown


# --- DICOM: what a screen would show


def test_without_a_window_the_smallest_value_is_black_and_the_largest_white():
    read = read_image(as_file(made()))
    assert read.pixels.dtype == np.float32 and read.modality == "CT" and read.pixel_spacing is None
    np.testing.assert_allclose(read.pixels, stretched(RAMP), atol=1e-6)
    assert [field.name for field in fields(read)] == ["pixels", "modality", "pixel_spacing", "sha256"] + [
        "burned_in_annotation"
    ]


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_rescale_and_first_window(function):
    dataset = made(
        bits=12,
        RescaleSlope="0.5",
        RescaleIntercept="-100",
        WindowCenter=["700", "1"],
        WindowWidth=["900", "2"],
        VOILUTFunction=function,
    )
    np.testing.assert_allclose(read_image(dataset).pixels, expected_by_pydicom(dataset, 0), atol=1e-5)


@pytest.mark.parametrize("width", ["0", "-5", "nan", "1e400"])
def test_a_window_that_cannot_be_used_is_passed_over(width):
    data = as_file(made(WindowCenter="40", WindowWidth="80")).replace(b"80", width[:2].encode().ljust(2), 1)
    assert np.isfinite(read_image(data).pixels).all()
    for center, width, function in ((1e6, 3, "LINEAR"), (0, 1e-300, "SIGMOID"), (1e300, 1e300, "LINEAR")):
        read = read_image(made(WindowCenter=center, WindowWidth=width, VOILUTFunction=function)).pixels
        np.testing.assert_allclose(read, stretched(RAMP), atol=1e-6)


def test_monochrome1_is_inverted_and_padding_is_black():
    pixels = RAMP.copy()
    pixels[:2] = 5000
    read = read_image(made(pixels, "MONOCHROME1", PixelPaddingValue=5000)).pixels
    assert (read[:2] == 0).all()
    np.testing.assert_allclose(read[2:], 1 - stretched(RAMP[2:]), atol=1e-6)


def test_modality_and_voi_luts():
    dataset = made(np.arange(256, dtype=np.uint8).reshape(16, 16))
    dataset.ModalityLUTSequence = [lookup_table([value * 3 for value in range(200)], 20, 16)]
    dataset.VOILUTSequence = [lookup_table([value * 100 for value in range(500)], 50, 16)]
    modality = apply_modality_lut(dataset.pixel_array, dataset)
    expected = apply_voi_lut(modality, dataset) / 65535
    np.testing.assert_allclose(read_image(as_file(dataset)).pixels, expected, atol=1e-6)


def test_functional_groups_of_each_frame():
    dataset = made(np.stack([RAMP, RAMP + 7]), NumberOfFrames=2)
    dataset.PerFrameFunctionalGroupsSequence = []
    for center in (500, 2500):
        group, window = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, 800
        group.FrameVOILUTSequence = [window]
        dataset.PerFrameFunctionalGroupsSequence.append(group)
    shared, measures = Dataset(), Dataset()
    measures.PixelSpacing = [0.5, 0.5]
    shared.PixelMeasuresSequence = [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    first, second = (read_image(as_file(dataset), frame=number) for number in (1, 2))
    assert first.pixel_spacing == second.pixel_spacing == (0.5, 0.5)
    assert first.pixels.mean() > second.pixels.mean() + 0.3


def test_the_middle_frame_is_the_default_and_frames_count_from_one():
    frames = np.zeros((5, 4, 6), np.uint8)
    for number in range(5):
        frames[number, 0, number] = 200
    data = as_file(made(frames, NumberOfFrames=5))
    assert [int(read_image(data, frame=number).pixels[0].argmax()) for number in range(1, 6)] == [0, 1, 2, 3, 4]
    assert read_image(data).sha256 == read_image(data, frame=3).sha256 != read_image(data, frame=2).sha256
    for frame in (0, 6, -1, True, 1.5, "2"):
        with pytest.raises(ImageInputError, match="`frame`"):
            read_image(data, frame=frame)


def test_colours():
    rgb = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    np.testing.assert_allclose(read_image(made(rgb, "RGB")).pixels, rgb / 255, atol=1e-6)
    red = np.tile(np.array([76, 85, 255], np.uint8), (8, 8, 1))
    np.testing.assert_allclose(read_image(made(red, "YBR_FULL")).pixels[0, 0], [1, 0, 0], atol=0.01)
    wide = (rgb.astype(np.uint16) << 8) + rgb
    np.testing.assert_allclose(read_image(made(wide, "RGB")).pixels, rgb / 255, atol=1e-6)


def test_palette_plain_and_segmented():
    dataset = made(np.arange(16, dtype=np.uint8).reshape(4, 4), "PALETTE COLOR")
    ramp = np.linspace(0, 65535, 16).round().astype("<u2")
    for colour, table in (("Red", ramp), ("Green", ramp[::-1]), ("Blue", ramp * 0)):
        dataset.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [16, 0, 16])
        setattr(dataset, f"{colour}PaletteColorLookupTableData", table.tobytes())
    plain = read_image(as_file(dataset)).pixels
    np.testing.assert_allclose(plain, apply_color_lut(dataset.pixel_array, dataset) / 65535, atol=1e-6)
    for colour, ends in (("Red", (0, 65535)), ("Green", (65535, 0)), ("Blue", (0, 0))):
        delattr(dataset, f"{colour}PaletteColorLookupTableData")
        segments = np.array([0, 1, ends[0], 1, 15, ends[1]], "<u2")
        setattr(dataset, f"Segmented{colour}PaletteColorLookupTableData", segments.tobytes())
    np.testing.assert_allclose(read_image(as_file(dataset)).pixels, plain, atol=2e-5)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_lossless_compression_changes_nothing(syntax):
    dataset = made(np.kron(RAMP, np.ones((8, 8), np.uint16)), bits=12)
    plain = read_image(dataset).sha256
    dataset.compress(syntax, generate_instance_uid=False)
    assert read_image(as_file(dataset)).sha256 == plain


def test_one_bit_32_bit_and_float_pixels():
    mask = np.eye(16, dtype=np.uint8)
    packed = np.packbits(mask, axis=None, bitorder="little")
    one_bit = made(packed.reshape(1, -1), Rows=16, Columns=16, BitsAllocated=1, BitsStored=1, HighBit=0)
    np.testing.assert_array_equal(read_image(one_bit).pixels, mask)
    np.testing.assert_allclose(read_image(made(RAMP.astype(np.uint32) << 16)).pixels, stretched(RAMP), atol=1e-6)
    signed = RAMP.astype(np.int16) - 2000
    np.testing.assert_allclose(read_image(as_file(made(signed))).pixels, stretched(RAMP), atol=1e-6)
    values = RAMP.astype(np.float32)
    values[0, 0], values[0, 1] = np.inf, np.nan
    floats = made(RAMP.astype(np.uint32), BitsAllocated=32)
    del floats.PixelData
    floats.FloatPixelData = values.tobytes()
    read = read_image(as_file(floats)).pixels
    assert read[0, 0] == read[0, 1] == 0 and read.max() == 1 and np.isfinite(read).all()


def test_pixels_become_square():
    read = read_image(made(PixelSpacing=["2", "1"]))
    assert read.pixels.shape == (24, 10) and read.pixel_spacing == (1.0, 1.0)
    read = read_image(made(PixelAspectRatio=["1", "3"]))
    assert read.pixels.shape == (12, 30) and read.pixel_spacing is None
    assert read_image(made(PixelSpacing=["0", "1"])).pixels.shape == (12, 10)
    assert read_image(made(PixelSpacing=["9999", "1"])).pixels.shape == (12, 10)


def test_deflated_and_without_preamble():
    data = as_file(made())
    plain = read_image(data).sha256
    body = 144 + int.from_bytes(data[140:144], "little")
    assert read_image(data[body:]).sha256 == plain
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    assert read_image(as_file(dataset)).sha256 == plain
    native = made()
    native.file_meta = None
    assert read_image(native).sha256 == plain


# --- pictures, arrays, tensors, files


def test_pictures_of_every_mode():
    grey = np.random.default_rng(0).integers(0, 256, (6, 7), np.uint8)
    expected = grey / 255
    assert np.allclose(read_image(Image.fromarray(grey)).pixels, expected)
    colour = Image.fromarray(np.stack([grey, grey // 2, 255 - grey], -1))
    for mode in ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa"):
        picture = colour.convert("RGBA").convert(mode) if mode == "RGBa" else None
        picture = picture or (colour.convert("P").convert(mode) if mode == "PA" else None)
        picture = picture or (colour if mode != "LAB" else Image.new("LAB", (7, 6)))
        picture = picture.convert(mode) if picture.mode != mode else picture
        read = read_image(picture).pixels
        assert read.shape == (6, 7, 3) and read.min() >= 0 and read.max() <= 1, mode
    for mode in ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B"):
        array = {"I": grey.astype(np.int32) * 257, "F": expected.astype(np.float32)}.get(mode)
        if mode.startswith("I;16"):
            array = (grey.astype(np.uint16) * 257).astype(">u2" if mode.endswith("B") else "<u2")
        picture = Image.fromarray(grey).convert("LA").convert(mode) if array is None else Image.fromarray(array)
        read = read_image(picture).pixels
        assert read.shape == (6, 7) and (mode == "1" or np.allclose(read, expected, atol=1e-6)), mode


def test_transparent_is_black_and_the_camera_orientation_is_applied():
    picture = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    assert read_image(picture).pixels.max() == 0
    wide = np.zeros((4, 8), np.uint8)
    wide[:, :4] = 250
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    buffer = io.BytesIO()
    Image.fromarray(wide).save(buffer, "PNG", exif=exif)
    read = read_image(buffer.getvalue()).pixels
    assert read.shape == (8, 4) and read[0].mean() > 0.9 and read[-1].mean() < 0.1


def test_pages_of_a_picture():
    pages = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (0, 51, 255)]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    assert [float(read_image(buffer.getvalue(), frame=page).pixels.max()) for page in (None, 2, 3)] == [
        0.0,
        pytest.approx(0.2),
        1.0,
    ]
    with pytest.raises(ImageInputError, match="3 frame"):
        read_image(buffer.getvalue(), frame=4)


def test_arrays():
    grey = np.random.default_rng(0).random((5, 6), np.float32)
    for array in (grey, grey[None], grey[..., None], grey[None, None], grey.astype(np.float64), np.ma.array(grey)):
        np.testing.assert_array_equal(read_image(array).pixels, grey)
    assert read_image(np.full((2, 2), 65535, ">u2")).pixels.min() == 1
    assert read_image(np.eye(3, dtype=bool)).pixels.sum() == 3
    colour = np.random.default_rng(0).random((5, 6, 3), np.float32)
    for array in (colour, colour[None], colour.transpose(2, 0, 1)):
        np.testing.assert_array_equal(read_image(array).pixels, colour)
    assert read_image(np.dstack([colour, colour[..., 0] * 0])).pixels.max() == 0
    assert read_image(grey).sha256 != read_image(grey.T.copy()).sha256


def test_tensors_are_read_without_importing_torch():
    torch = pytest.importorskip("torch")
    colour = np.random.default_rng(0).random((3, 5, 3), np.float32)
    for tensor in (torch.from_numpy(colour), torch.from_numpy(colour)[None], torch.from_numpy(colour).requires_grad_()):
        np.testing.assert_array_equal(read_image(tensor).pixels, colour.transpose(1, 2, 0))
    assert read_image(torch.ones(1, 3, 4, 4, dtype=torch.bfloat16)).pixels.shape == (4, 4, 3)
    for module in ("dicom_input", "dicom_decode", "dicom_limits"):
        source = (ROOT / "pipeline" / f"{module}.py").read_text()
        assert not re.search(r"^\s*(import|from) (torch|diffusers)", source, re.MULTILINE)


def test_the_same_from_a_path_bytes_a_stream_and_a_dataset(tmp_path):
    data = as_file(made())
    path = tmp_path / "named.png"  # told apart by content, not by the extension
    path.write_bytes(data)
    read = [read_image(form) for form in (path, str(path), data, bytearray(data), io.BytesIO(data), made())]
    assert len({one.sha256 for one in read}) == 1
    dataset = made()
    before = dataset.to_json()
    read_image(dataset)
    assert dataset.to_json() == before


# --- what is refused


class _Endless:
    def read(self, size: int) -> bytes:
        return bytes(size)


@pytest.mark.parametrize(
    "image",
    [
        np.full((4, 4), np.nan),
        np.zeros((0, 4)),
        np.zeros((4, 4), np.int64),
        np.zeros((4, 4), np.complex64),
        np.full((4, 4), 2.0),
        np.zeros(4),
        np.zeros((2, 3, 4, 4)),
        np.zeros((5, 4, 6)),
        np.array([["a"]]),
        np.broadcast_to(np.uint8(0), (100_000, 100_000)),
        None,
        7,
        [1, 2],
        b"",
        b"Leaky^Name" * 20,
        bytes(128) + b"DICM",
        io.StringIO("Leaky^Name"),
        Path("no such Leaky^Name file.dcm"),
        "no such\x00Leaky^Name",
        Path(__file__).parent,
        Path(os.devnull),
        Image.new("I", (2, 2), -1),
        made(PixelData=None),
        made(Rows=0),
        made(Rows=65535, Columns=65535),
        made(NumberOfFrames=1_000_000),
        made(NumberOfFrames=-1),
        made(BitsStored=17),
        made(BitsAllocated=24),
        made(HighBit=63),
        made(PixelRepresentation=9),
        made(SamplesPerPixel=3),
        made(PhotometricInterpretation="Leaky^Name"),
        made(photometric="PALETTE COLOR"),
        made(PixelData=b""),
        made(PixelData=RAMP.tobytes()[:-2]),
        made(RescaleSlope=1e308, RescaleIntercept=0),
    ],
)
def test_refused_in_one_sentence_without_text_of_the_input(image, recwarn):
    for form in [image] + ([as_file(image)] if isinstance(image, Dataset) else []):
        with pytest.raises(ImageInputError) as caught:
            read_image(form)
        message = str(caught.value)
        assert message.startswith("`image`") and message.endswith(".") and "\n" not in message and len(message) < 200
        assert "eak" not in message and not [warning for warning in recwarn if "eak" in str(warning.message)]
        assert caught.value.__cause__ is None and caught.value.__context__ is None


def test_limits_are_kept_before_anything_large_is_made(monkeypatch):
    monkeypatch.setattr(dicom_limits, "MAX_BYTES", 1 << 20)
    with pytest.raises(ImageInputError, match="bytes"):
        read_image(_Endless())
    meta = as_file(made())
    body = 144 + int.from_bytes(meta[140:144], "little")
    deflated = meta[:body].replace(b"1.2.840.10008.1.2.1\x00", b"1.2.840.10008.1.2.1.99")
    deflated = deflated.replace(b"\x14\x001.2.840.10008.1.2.1.99", b"\x16\x001.2.840.10008.1.2.1.99")
    length = int.from_bytes(meta[140:144], "little") + 2
    deflated = deflated[:140] + length.to_bytes(4, "little") + deflated[144:]
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = deflated + packer.compress(bytes(1 << 21)) + packer.flush()
    with pytest.raises(ImageInputError, match="deflated"):
        read_image(bomb)
    picture = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(picture, "PNG")
    with pytest.raises(ImageInputError, match="pixels"):
        read_image(picture.getvalue())
    many = as_file(made()) + b"\x09\x00\x10\x10LO\x00\x00" * dicom_limits.MAX_READS
    monkeypatch.setattr(dicom_limits, "MAX_BYTES", 1 << 30)
    with pytest.raises(ImageInputError, match="too many elements"):
        read_image(many)


def test_a_compressed_size_that_the_header_does_not_claim_is_refused():
    dataset = made(np.kron(RAMP, np.ones((8, 8), np.uint16)), bits=12)
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    codestream = bytearray(pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1))
    start = codestream.find(b"\xff\x4f\xff\x51")
    codestream[start + 8 : start + 16] = b"\x00\x01\x00\x00" * 2
    dataset.PixelData = encapsulate([bytes(codestream)])
    with pytest.raises(ImageInputError, match="size"):
        read_image(dataset)


def test_pictures_cut_short_are_refused():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
    with pytest.raises(ImageInputError):
        read_image(buffer.getvalue()[: len(buffer.getvalue()) // 2])


def test_warnings_and_logs_stay_silent(caplog):
    dataset = pydicom.dcmread(get_testdata_file("MR_small_RLE.dcm"))
    dataset.PixelData = dataset.PixelData[:2000] + bytes(2000)
    with caplog.at_level("DEBUG"), warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageInputError):
            read_image(dataset)
    assert not caplog.records


# --- square


def test_square_pads_what_is_dark_at_the_border_and_crops_the_rest():
    dark = np.zeros((40, 100), np.float32)
    dark[10:30, 20:80] = 1
    padded = square(dark, 50)
    assert padded.shape == (50, 50) and padded[:14].max() == 0 and padded[-14:].max() == 0
    assert 25 < (padded > 0.5).sum() / 10 < 35  # 60 x 20 at half size, nothing lost and nothing squashed
    bright = np.tile(np.linspace(0.2, 1, 100, dtype=np.float32), (40, 1))
    cropped = square(bright, 20)
    assert cropped[0, 0] == pytest.approx(bright[0, 30], abs=0.02)
    assert cropped[0, -1] == pytest.approx(bright[0, 69], abs=0.02)
    half_dark = dark.copy()
    half_dark[:, -5:] = 1  # one dark border is not enough
    assert square(half_dark, 40)[12:28].min() > 0.9
    np.testing.assert_allclose(square(dark.T.copy(), 50), padded.T, atol=1e-6)


def test_square_is_deterministic_antialiased_and_in_range():
    noise = np.random.default_rng(0).random((300, 200, 3), np.float32)
    small = square(noise, 20)
    assert small.shape == (20, 20, 3) and small.dtype == np.float32 and small.std() < 0.06
    assert np.array_equal(small, square(noise.copy(), 20)) and small.min() >= 0 and small.max() <= 1
    same = np.random.default_rng(0).random((8, 8), np.float32)
    kept = square(same, 8)
    assert np.array_equal(kept, same) and kept is not same
    assert square(np.zeros((1, 60000), np.float32), 16).shape == (16, 16)
    for pixels in (np.zeros((0, 3)), np.zeros((3, 3), np.uint8), np.zeros((3, 3, 4))):
        with pytest.raises(ValueError, match="`pixels`"):
            square(pixels, 8)
    with pytest.raises(ValueError, match="`size`"):
        square(np.zeros((3, 3)), 0)


# --- pydicom's own files, and the shared ones


@pytest.mark.parametrize(
    "name",
    ["CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "examples_palette.dcm", "SC_rgb_rle.dcm"]
    + ["examples_ybr_color.dcm", "liver_1frame.dcm", "SC_rgb_jpeg_dcmtk.dcm", "JPGExtended.dcm"],
)
def test_files_that_pydicom_ships(name):
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"pydicom does not ship {name} here")
    dataset = pydicom.dcmread(path)
    index = (int(dataset.get("NumberOfFrames") or 1) - 1) // 2
    np.testing.assert_allclose(read_image(path).pixels, expected_by_pydicom(dataset, index), atol=2e-4)


@needs_data
def test_every_good_file_is_read_as_pydicom_would():
    compared = 0
    with (DATA / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        path = DATA / row["file"]
        read = read_image(path)
        assert read.modality == (row["modality"] or None), path.name
        assert read.pixels.ndim == (3 if row["photometric"].startswith(("RGB", "YBR", "PAL")) else 2), path.name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, force=True)
            dataset.file_meta.setdefault("TransferSyntaxUID", ExplicitVRLittleEndian)
            if (
                read.pixels.shape[:2] != (int(row["rows"]), int(row["cols"]))  # made square
                or "PerFrameFunctionalGroupsSequence" in dataset  # pydicom does not look into them
                or path.name.endswith(NOT_COMPARED)
            ):
                continue
            expected = expected_by_pydicom(dataset, (int(row["frames"]) - 1) // 2)
        if dataset.get("PixelPaddingValue") is not None:
            expected = np.where(read.pixels == 0, 0, expected)
        np.testing.assert_allclose(read.pixels, expected, atol=2e-3, err_msg=path.name)
        compared += 1
    assert len(rows) == 149 and compared > 110
    same = [read_image(next((DATA / "good").glob(f"*_{number}.dcm"))).sha256 for number in ("152", "074")]
    assert same[0] == same[1]  # the big endian palette and its little endian twin
    bars, wrong = (read_image(next((DATA / "good").glob(f"*_{number}.dcm"))).pixels for number in ("023", "265"))
    np.testing.assert_allclose(wrong[4::10], bars[4::10], atol=0.03)  # the middle of each colour bar


CHILD = """
import json, logging, resource, sys, time
from pathlib import Path
logging.basicConfig(level="INFO")
from pipeline.dicom_input import ImageInputError, read_image
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
for path in sys.stdin.read().splitlines():
    try:
        read = read_image(Path(path))
        finite = bool(0 <= read.pixels.min() and read.pixels.max() <= 1)
        print(json.dumps([path, None, finite, read.modality]), flush=True)
    except ImageInputError as error:
        print(json.dumps([path, str(error), error.__context__ is None, None]), flush=True)
"""


@needs_data
@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_no_bad_file_crashes_hangs_takes_2_gb_or_leaks():
    paths = [str(path) for path in sorted((DATA / "bad").rglob("*")) if path.is_file()]
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input="\n".join(paths),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert done.returncode == 0 and done.stderr == ""
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result[0] for result in results] == paths
    messages = {message for _, message, _, _ in results if message}
    assert len(messages) < 12  # a handful of fixed sentences: there is no room for a file's own words
    for _, message, sound, modality in results:
        assert sound and (message is None or re.fullmatch(r"`image`[^\n]{5,150}\.", message))
        assert modality in (None, "CT", "MR", "NM", "OT")
    read = {Path(path).name for path, message, _, _ in results if message is None}
    assert {"craft_inject_strings.dcm", "craft_uid_traversal.dcm", "craft_window_0.dcm", "craft_flat_zero.dcm"} <= read
