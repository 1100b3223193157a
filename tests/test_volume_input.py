"""Reading real volumes: order, axes and values as SimpleITK has them; what is no volume is refused in one sentence."""

from __future__ import annotations

import gzip
import os
import struct

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from pipeline import volume_dicom
from pipeline.volume_files import Wanted, write_volumes
from pipeline.volume_input import AXES, ImageInputError, read_volume

from .volume_samples import CT, made_up, volume_recipe

SPACING = (2.5, 0.7, 0.8)  # slices, rows, columns
VALUES = np.arange(5 * 7 * 6).reshape(5, 7, 6).astype(np.int16) * 9 - 1000
ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "axial, prone": (-1, 0, 0, 0, -1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "sagittal, from the left": (0, -1, 0, 0, 0, -1),
}
NAME = "Zqxj9^Planted"


def series(folder, orientation=ORIENTATIONS["axial"], values=VALUES, skip=(), turned=False, **changes):
    """Write a series whose file names and numbers say nothing of its order."""
    folder.mkdir(parents=True, exist_ok=True)
    across, down = np.array(orientation[:3], float), np.array(orientation[3:], float)
    normal, uid = np.cross(across, down), generate_uid()
    for index, pixels in enumerate(values):
        if index in skip:
            continue
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.SeriesInstanceUID = CTImageStorage, generate_uid(), uid
        dataset.Modality, dataset.PatientName, dataset.PatientID = "CT", NAME, NAME
        dataset.SeriesDescription = dataset.ImageComments = NAME
        dataset.ImageOrientationPatient = list(orientation)
        place = (-index if turned else index) * SPACING[0]
        dataset.ImagePositionPatient = [round(float(n), 4) for n in 11 + place * normal]
        dataset.PixelSpacing, dataset.InstanceNumber = list(SPACING[1:]), (index * 3) % 7
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.RescaleSlope, dataset.RescaleIntercept = 2, -24
        dataset.PixelData = np.ascontiguousarray(pixels).tobytes()
        for name, value in changes.items():
            found = value(index) if callable(value) else value
            if found is None:
                del dataset[name]
            else:
                setattr(dataset, name, found)
        dataset.save_as(folder / f"{NAME}{(index * 7) % 5}.dcm", enforce_file_format=True)
    return folder


def by_simpleitk(folder, axes):
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = SimpleITK.DICOMOrient(reader.Execute(), axes[::-1])  # SimpleITK counts columns first
    return SimpleITK.GetArrayFromImage(image), image.GetSpacing()[::-1]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_series_is_read_as_simpleitk_reads_it(tmp_path, name, turned):
    folder = series(tmp_path / "in", ORIENTATIONS[name], turned=turned)
    found = read_volume(folder)
    assert found.plane == name.split(",")[0] and found.modality == "CT" and not found.warnings
    values, spacing = by_simpleitk(folder, AXES[found.plane])
    assert found.values.dtype == np.float32 and (found.values == values).all()
    assert found.spacing == pytest.approx(spacing) and found.spacing == pytest.approx(SPACING)


def test_a_multi_frame_object_is_the_volume_of_its_series(tmp_path):
    volume = made_up(volume_recipe("sagittal CT", **CT))
    paths = write_volumes([volume], tmp_path, Wanted(enhanced=True))
    enhanced = read_volume(paths[-1])
    paths[-1].rename(tmp_path / "enhanced.dcm")
    one_by_one = read_volume(paths[0].parent)
    assert one_by_one.plane == enhanced.plane == "sagittal" and one_by_one.modality == "CT"
    assert (one_by_one.values == enhanced.values).all() and one_by_one.sha256 == enhanced.sha256
    assert one_by_one.spacing == enhanced.spacing == volume_dicom.slices_of(volume.recipe).spacing


@pytest.mark.parametrize("axes", [("R", "A", "S"), ("L", "P", "S"), ("P", "I", "L")])
@pytest.mark.parametrize("plane", AXES)
def test_nifti_of_any_axes_is_cut_along_the_plane(tmp_path, axes, plane):
    affine = nibabel.orientations.inv_ornt_aff(nibabel.io_orientation(np.diag([1.0, 2, 3, 1])), (4, 5, 6)) @ np.diag(
        [1.0, 2, 3, 1]
    )
    image = nibabel.Nifti1Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), affine)
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(axes)
    )
    nibabel.save(image.as_reoriented(turn), tmp_path / "in.nii.gz")
    found = read_volume(tmp_path / "in.nii.gz", plane)
    reference = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(tmp_path / "in.nii.gz")), AXES[plane][::-1])
    assert (found.values == SimpleITK.GetArrayFromImage(reference)).all() and found.plane == plane
    assert found.spacing == pytest.approx(reference.GetSpacing()[::-1]) and found.modality is None


def test_an_oblique_series_is_read_and_told(tmp_path):
    turn = np.deg2rad(20)
    folder = series(tmp_path / "in", (np.cos(turn), np.sin(turn), 0, -np.sin(turn), np.cos(turn), 0))
    found = read_volume(folder)
    assert found.plane == "axial" and "oblique by 20 degrees" in found.warnings[0]
    assert (found.values == VALUES * 2.0 - 24).all()


def test_other_files_of_the_folder_are_passed_over_and_told(tmp_path):
    folder = series(tmp_path / "in")
    (folder / "notes.txt").write_text("hello")
    os.mkfifo(folder / "pipe.dcm")
    found = read_volume(folder)
    assert found.passed_over == 1 and not found.warnings


def test_what_the_header_says_of_text_is_heard(tmp_path):
    assert read_volume(series(tmp_path / "says", BurnedInAnnotation="YES")).burned_in_annotation
    assert not read_volume(series(tmp_path / "not", BurnedInAnnotation="NO")).burned_in_annotation


def _spoilt(**changes):
    return lambda path: series(path, **changes)


def _two_series(path):
    series(path / "a")
    return series(path / "b").parent


def _empty(path):
    path.mkdir()
    return path


def _text(path):
    path.write_text("not an image")
    return path


def _one_file(path):
    return sorted(series(path).iterdir())[0]


def _nifti(path, shape=(3, 3, 3), **changes):
    header = nibabel.Nifti1Image(np.zeros((3, 3, 3), np.int16), np.eye(4)).header
    header.set_data_shape(shape)
    header["vox_offset"] = 352
    raw = bytearray(header.binaryblock + b"\0\0\0\0")
    for offset, value in changes.items():
        struct.pack_into("<h", raw, int(offset[1:]), value)
    path = path.with_suffix(".nii.gz")
    path.write_bytes(gzip.compress(bytes(raw)))
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_spoilt(skip=(2,)), "evenly spaced"),
        (_spoilt(ImagePositionPatient=lambda i: [0, 0, max(1, i)]), "evenly spaced"),
        (_spoilt(ImagePositionPatient=lambda i: [0, i, 3 * i]), "gantry was tilted"),
        (_spoilt(ImagePositionPatient=lambda i: None if i == 3 else [0, 0, i]), "without ImagePositionPatient"),
        (_spoilt(PixelSpacing=lambda i: None), "without PixelSpacing"),
        (_spoilt(PixelSpacing=lambda i: [0, 0]), "no scanner has"),
        (_spoilt(ImageOrientationPatient=lambda i: [0, 0, 0, 0, 0, 0]), "no scanner has"),
        (_spoilt(ImageOrientationPatient=lambda i: [1, 0, 0, 1, 0, 0]), "no scanner has"),
        (_spoilt(PixelSpacing=lambda i: [1, 1 + (i == 3)]), "different orientation, spacing or size"),
        (_spoilt(PhotometricInterpretation="MONOCHROME1"), "MONOCHROME2"),
        (_spoilt(RescaleSlope=lambda i: "1e300"), "no finite numbers"),
        (_spoilt(values=VALUES[:1]), "one slice"),
        (_spoilt(NumberOfFrames=2), "give that file itself"),
        (_spoilt(Rows=60000, Columns=60000), "at most 36000000"),
        (_two_series, "more than one DICOM series"),
        (_empty, "no DICOM image"),
        (_one_file, "1 frame(s)"),
        (_text, "is neither a folder"),
        (_nifti, "damaged"),
        (lambda path: _nifti(path, (30000, 30000, 30000)), "another shape"),
        (lambda path: _nifti(path, (4000, 4000, 4000)), "voxels allowed"),
        (lambda path: _nifti(path, (1, 9, 9)), "another shape"),
        (lambda path: _nifti(path, (9, 9)), "another shape"),
        (lambda path: _nifti(path, _70=1792), "damaged"),  # complex numbers
    ],
)
def test_what_is_no_volume_is_refused(tmp_path, make, says):
    path = make(tmp_path / NAME)
    with pytest.raises(ImageInputError) as error:
        read_volume(path)
    assert says in str(error.value) and NAME not in str(error.value) and len(str(error.value)) < 250


def test_damage_of_any_kind_ends_in_one_sentence(tmp_path, capfd):
    """Bytes changed by chance, in headers above all: read or refused, and nothing is said besides."""
    rng = np.random.default_rng(0)
    volume = made_up(volume_recipe("sagittal CT", **CT))
    enhanced = write_volumes([volume], tmp_path, Wanted(enhanced=True))[-1].read_bytes()
    whole = {"slices.dcm": enhanced, "volume.nii": gzip.decompress(_nifti(tmp_path / "n", (3, 2, 2)).read_bytes())}
    outcomes = set()
    for number in range(300):
        name, data = list(whole.items())[number % 2]
        spoilt = bytearray(data)
        for place in rng.integers(0, min(len(data), 40_000), rng.integers(1, 17)):
            spoilt[place] = rng.choice([0, 255, 128, rng.integers(256)])
        path = tmp_path / name
        path.write_bytes(bytes(spoilt[: rng.integers(1, len(data))] if number % 7 == 0 else spoilt))
        try:
            read_volume(path)
            outcomes.add("read")
        except ImageInputError as error:
            outcomes.add("refused")
            assert len(str(error)) < 250
    # One that pydicom cannot parse, deep in the sequences of frames.
    path = tmp_path / "slices.dcm"
    path.write_bytes(enhanced.replace(b"\x20\x00\x13\x91SQ", b"\x20\x00\x13\x91S\0"))
    with pytest.raises(ImageInputError):
        read_volume(path)
    assert outcomes == {"read", "refused"} and capfd.readouterr() == ("", "")
