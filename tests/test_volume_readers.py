"""Independent readers find the voxels of a volume at the same places in slices, enhanced object, labels and NIfTI."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from pipeline.dicom_volume import Slices, affine_of
from pipeline.volume_nifti import shown_values

from .volume_samples import slices_in


def sampled(sitk, image, points):
    """Values of an image of SimpleITK at places in millimetres, LPS."""
    return [image[image.TransformPhysicalPointToIndex([float(v) for v in point])] for point in points]


def places(recipe):
    """Array indices of every voxel, and where they lie, LPS."""
    indices = np.argwhere(np.ones(recipe.volume.shape, bool))
    ras = indices @ affine_of(recipe.volume)[:3, :3].T + affine_of(recipe.volume)[:3, 3]
    return indices, ras * [-1, -1, 1]


def test_simpleitk_reads_the_same_voxels_at_the_same_places(volume, files, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    indices, points = places(volume.recipe)
    wanted = shown_values(volume.voxels, volume.recipe)[tuple(indices.T)]
    reader = sitk.ImageSeriesReader()
    folder = str(slices_in(files)[0].parent)
    # GDCM sorts by position, and takes files by their series: the other objects lie in the same folder.
    uid = str(pydicom.dcmread(slices_in(files)[0]).SeriesInstanceUID)
    names = reader.GetGDCMSeriesFileNames(folder, uid)
    assert list(names) == [str(path) for path in slices_in(files)]
    reader.SetFileNames(names)
    series = reader.Execute()
    np.testing.assert_allclose(sampled(sitk, series, points), wanted, atol=1e-3)
    if len(names) > 1:  # of one slice, the reader cannot know what lies between slices
        assert sorted(series.GetSpacing()) == pytest.approx(sorted(volume.recipe.volume.spacing))
    if volume.recipe.volume.shape != (1, 1, 1):  # SimpleITK takes such a NIfTI for a point
        nifti = sitk.ReadImage(str(files["volume.nii.gz"]))
        np.testing.assert_allclose(sampled(sitk, nifti, points), wanted, atol=1e-3)
        labels = sitk.ReadImage(str(files["labels.nii.gz"]))
        assert sampled(sitk, labels, points) == volume.mask[tuple(indices.T)].tolist()


def test_nibabel_and_pydicom_say_the_same_place(volume, files):
    nibabel = pytest.importorskip("nibabel")
    nifti = nibabel.load(files["volume.nii.gz"])
    assert nifti.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(nifti.affine, affine_of(volume.recipe.volume))
    back = np.linalg.inv(nifti.affine)
    values = np.asarray(nifti.dataobj)
    for path in slices_in(files):
        dataset = pydicom.dcmread(path)
        across, down = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
        corner, (between_rows, between_columns) = np.array(dataset.ImagePositionPatient, float), dataset.PixelSpacing
        rows, columns = np.indices((dataset.Rows, dataset.Columns))
        lps = corner + rows[..., None] * down * between_rows + columns[..., None] * across * between_columns
        index = (lps * [-1, -1, 1]) @ back[:3, :3].T + back[:3, 3]
        assert abs(index - np.rint(index)).max() < 1e-4
        shown = dataset.pixel_array * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
        np.testing.assert_allclose(values[tuple(np.rint(index).astype(int).reshape(-1, 3).T)], shown.ravel(), atol=1e-3)


def test_highdicom_finds_enhanced_object_and_labels_on_the_slices(volume, files):
    highdicom = pytest.importorskip("highdicom")
    indices, points = places(volume.recipe)
    image = highdicom.imread(files["enhanced.dcm"])
    found = image.get_volume() if len(slices_in(files)) > 1 else None
    wanted = shown_values(volume.voxels, volume.recipe)[tuple(indices.T)]
    if found is not None:
        at = np.rint(found.map_reference_to_indices(points)).astype(int)
        np.testing.assert_allclose(found.array[tuple(at.T)], wanted, atol=1e-3)
    labels = highdicom.seg.segread(files["labels.dcm"])
    assert [labels.get_segment_description(n).segment_label for n in labels.segment_numbers] == [
        "anterior",
        "posterior",
    ]
    assert labels.FrameOfReferenceUID == image.FrameOfReferenceUID
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in slices_in(files)]
    array = labels.get_pixels_by_source_instance(uids, combine_segments=True)
    cut = Slices(_plane(files), volume.recipe.volume).cut(volume.mask)
    np.testing.assert_array_equal(array, cut)
    if len(uids) > 1:
        found = labels.get_volume(combine_segments=True)
        at = np.rint(found.map_reference_to_indices(points)).astype(int)
        assert found.array[tuple(at.T)].tolist() == volume.mask[tuple(indices.T)].tolist()


def _plane(files):
    orientation = [int(float(v)) for v in pydicom.dcmread(slices_in(files)[0]).ImageOrientationPatient]
    return next(
        plane for plane in ("axial", "coronal", "sagittal") if list(Slices(plane, None).orientation) == orientation
    )
