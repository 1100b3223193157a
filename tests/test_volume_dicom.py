"""Volumes as DICOM and NIfTI: the same voxels at the same places for every reader, valid, marked, and verifiable."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pydicom
import pytest

from pipeline.dicom_patient import Patient, Study
from pipeline.dicom_provenance import PRIVATE_CREATOR, PRIVATE_GROUP, Recipe, read_recipe
from pipeline.dicom_seal import sign
from pipeline.dicom_volume import VolumeRecipe, affine_of
from pipeline.verification import verify
from pipeline.volume_dicom import blank_part, part_of, to_enhanced, to_series
from pipeline.volume_files import Volume, Wanted, to_datasets, write_volumes
from pipeline.volume_nifti import to_nifti
from pipeline.volume_segmentation import to_segmentation
from tests.dicom_judges import dciodvfy_errors, store_and_fetch

from .volume_samples import ALL, KINDS, made_up, slices_in, volume_recipe


def test_the_series_is_in_order(volume, files):
    datasets = [pydicom.dcmread(path) for path in slices_in(files)]
    normal = np.cross(datasets[0].ImageOrientationPatient[:3], datasets[0].ImageOrientationPatient[3:])
    along = [float(np.dot(np.array(d.ImagePositionPatient, float), normal)) for d in datasets]
    assert [d.InstanceNumber for d in datasets] == list(range(1, len(datasets) + 1))
    np.testing.assert_allclose(np.diff(along), float(datasets[0].SpacingBetweenSlices))
    assert [float(d.SliceLocation) for d in datasets] == pytest.approx(along)
    others = [pydicom.dcmread(files[name]) for name in ("enhanced.dcm", "labels.dcm")]
    for keyword, count in {
        "StudyInstanceUID": 1,
        "PatientID": 1,
        "FrameOfReferenceUID": 1,
        "SeriesInstanceUID": 3,
    }.items():
        assert len({d[keyword].value for d in [*datasets, *others]}) == count
    assert len({d.SOPInstanceUID for d in [*datasets, *others]}) == len(datasets) + 2
    assert len({d.SeriesNumber for d in [*datasets, *others]}) == 3


def test_every_object_verifies(files):
    for name, path in files.items():
        if path.suffix == ".dcm":
            found = verify(path)
            assert found.ok and found.pixels == found.recipe_state == "unaltered", (name, found.in_words())
            assert found.stripped == found.changed == ()


def test_dciodvfy_finds_no_error(files):
    for path in [*slices_in(files)[::3], files["enhanced.dcm"], files["labels.dcm"]]:
        assert dciodvfy_errors(path) == [], path.name


def test_required_attributes_of_every_module(files):
    standard = pytest.importorskip("highdicom._standard_utils")
    for path in (slices_in(files)[0], files["enhanced.dcm"], files["labels.dcm"]):
        dataset = pydicom.dcmread(path)
        iod = standard.get_sop_class_iod_map()[dataset.SOPClassUID]
        for module in [m["key"] for m in standard.get_iod_module_map()[iod] if m["usage"] == "M"]:
            for attribute in standard.get_module_attribute_map()[module]:
                if attribute["type"] in ("1", "2") and not attribute["path"]:
                    assert attribute["keyword"] in dataset, (path.name, module, attribute["keyword"])
                    if attribute["type"] == "1":
                        assert dataset[attribute["keyword"]].value not in (None, ""), attribute["keyword"]


@pytest.mark.parametrize("name", ["axial", "CT"])
def test_other_dates_and_patients_change_uids_and_still_verify(name):
    given = {"patient": Patient(name="Roe^Jane", id="4711"), "study": Study(series_description="mine", date="20200101")}
    volume = made_up(KINDS[name])
    plain, other = to_datasets(volume, ALL), to_datasets(volume, ALL, **given)
    for key, dataset in other.items():
        assert dataset.SOPInstanceUID != plain[key].SOPInstanceUID
        found = verify(dataset)
        assert found.ok and set(found.given) == {"patient.name", "patient.id", "study.series_description", "study.date"}
    assert len({d.FrameOfReferenceUID for d in other.values()}) == 1


def test_the_same_volume_gives_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        write_volumes([made_up(KINDS["axial"])], tmp_path / folder, replace(ALL, archive=True))
    (first,), (second,) = (tmp_path / "a").iterdir(), (tmp_path / "b").iterdir()
    with zipfile.ZipFile(first) as one, zipfile.ZipFile(second) as two:
        assert one.namelist() == two.namelist() and len(one.namelist()) == 5 + 4
        for name in one.namelist():
            assert one.read(name) == two.read(name), name


def test_uids_follow_the_recipe_but_not_what_came_out():
    def uids(recipe):
        return [d.SOPInstanceUID for d in to_datasets(made_up(recipe), ALL).values()]

    first = uids(volume_recipe())
    assert first == uids(volume_recipe(obtained=(("anterior_mm3", 1.0),)))
    for other in (
        volume_recipe(seed=8),
        volume_recipe(covariates=(("anterior_mm3", 41.0), ("posterior_mm3", 60.0))),
        volume_recipe(prompt="small hippocampus"),
    ):
        assert not set(first) & set(uids(other))


def test_the_header_says_what_was_asked_for_and_warns():
    for dataset in to_datasets(made_up(KINDS["warned"]), ALL).values():
        assert "SYNTHETIC" in dataset.ImageComments and "outside the range" in dataset.ImageComments
        assert "Requested anterior_mm3: 40" in dataset.ImageComments
        assert "Obtained posterior_mm3: 63" in dataset.ImageComments


def test_the_prompt_does_not_make_another_sequence():
    dataset = to_series(made_up(volume_recipe("T2 hippocampus with contrast")).voxels, volume_recipe("T2 hippocampus"))[
        0
    ]
    assert dataset.SequenceName == "T1" and "ContrastBolusAgent" not in dataset


@pytest.mark.parametrize("name", ["slice-003.dcm", "enhanced.dcm", "labels.dcm"])
def test_what_was_changed_is_seen(name):
    dataset = to_datasets(made_up(KINDS["CT"]), ALL)[name]
    buffer = io.BytesIO()
    dataset.save_as(buffer)

    def changed(change):
        again = pydicom.dcmread(io.BytesIO(buffer.getvalue()))
        change(again)
        return verify(again)

    def one_pixel(again):
        pixels = bytearray(again.PixelData)
        pixels[3] ^= 1
        again.PixelData = bytes(pixels)

    def recipe(again):
        again.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)[1].value = (
            read_recipe(again).to_json().replace("40.0", "50.0")
        )

    def place(again):
        again.ImageComments = "SYNTHETIC"

    def meaning(again):
        group = again if "RescaleSlope" in again else again.SharedFunctionalGroupsSequence[0]
        if "PixelValueTransformationSequence" in group:
            group = group.PixelValueTransformationSequence[0]
        group.RescaleIntercept = "7"

    assert changed(lambda again: None).ok
    assert changed(one_pixel).pixels == "altered"
    assert changed(recipe).recipe_state == "altered" and changed(recipe).uids == "differ"
    assert changed(lambda again: setattr(again, "InstanceNumber", 4)).uids == "differ"
    assert changed(place).changed == ("ImageComments",)
    assert changed(lambda again: delattr(again, "SyntheticData")).missing_marks == ("SyntheticData",)
    if name != "labels.dcm":
        assert changed(meaning).pixels == "altered"


def test_a_moved_slice_is_named():
    dataset = to_datasets(made_up(KINDS["axial"]), Wanted())["slice-002.dcm"]
    dataset.ImagePositionPatient[2] = 99
    assert verify(dataset).changed == ("ImagePositionPatient",)


def test_signing(tmp_path):
    key = b"0123456789abcdef"
    for path in write_volumes([made_up(KINDS["axial"])], tmp_path, ALL, key=key):
        if path.suffix == ".dcm":
            assert verify(path, key=key).signature == "valid"
            assert verify(path, key=b"another key, 16 bytes").signature == "other key"
    dataset = to_datasets(made_up(KINDS["axial"]), Wanted())["slice-001.dcm"]
    sign(dataset, key)
    assert verify(dataset, key=key).ok


@pytest.mark.parametrize("way", ["C-STORE", "STOW-RS"])
def test_orthanc_takes_and_returns_series_enhanced_object_and_labels(way, orthanc):
    for name in ("axial", "CT"):
        sent = list(to_datasets(made_up(KINDS[name]), ALL).values())
        client, fetched = store_and_fetch(orthanc, way, sent)
        for before, after in zip(sent, fetched, strict=True):
            np.testing.assert_array_equal(after.pixel_array, before.pixel_array)
            assert verify(after).ok
        found = client.search_for_series(str(sent[0].StudyInstanceUID))
        assert len(found) == 3


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"shape": (6, 9)}, "shape"),
        ({"shape": (6, 9, 0)}, "shape"),
        ({"shape": (1024, 1024, 1024)}, "shape"),
        ({"shape": (6, 9, 5.0)}, "shape"),
        ({"axes": "RRS"}, "axes"),
        ({"axes": "XYZ"}, "axes"),
        ({"axes": "RASL"}, "axes"),
        ({"spacing": (1, 0, 1)}, "spacing"),
        ({"spacing": (1, float("nan"), 1)}, "spacing"),
        ({"labels": "anterior"}, "labels"),
        ({"labels": ("x" * 3000,)}, "labels"),
        ({"covariates": (("a", "b"),)}, "covariates"),
        ({"obtained": (("a",),)}, "obtained"),
        ({"subject": 7}, "subject"),
    ],
)
def test_volumes_that_cannot_be_are_refused(changes, field):
    with pytest.raises(ValueError, match=f"`volume.{field}`"):
        volume_recipe(**changes)


def test_recipes_survive_json_and_old_ones_are_as_they_were():
    recipe = volume_recipe()
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert "volume" not in json.loads(replace(recipe, volume=None).to_json())
    broken = json.loads(recipe.to_json())
    del broken["volume"]["axes"]
    with pytest.raises(ValueError, match="`volume` must have the fields"):
        Recipe.from_json(json.dumps(broken))


def test_arrays_that_do_not_fit_are_refused(tmp_path):
    volume = made_up(KINDS["axial"])
    series = to_series(volume.voxels, volume.recipe)
    with pytest.raises(ValueError, match="`voxels` has shape"):
        to_series(volume.voxels[1:], volume.recipe)
    with pytest.raises(ValueError, match="not finite"):
        to_enhanced(volume.voxels * np.nan, volume.recipe)
    for mask in (volume.mask[1:], volume.mask.astype(float), volume.mask + 1):
        with pytest.raises(ValueError, match="`mask`"):
            to_segmentation(mask, volume.recipe, series)
    with pytest.raises(ValueError, match="no labels"):
        to_segmentation(volume.mask, volume_recipe(labels=()), series)
    with pytest.raises(ValueError, match="`mask` is None"):
        write_volumes([Volume(volume.voxels, None, volume.recipe)], tmp_path / "new", ALL)
    with pytest.raises(ValueError, match="one volume twice"):
        write_volumes([volume, volume], tmp_path / "new")
    with pytest.raises(ValueError, match="`volumes` is empty"):
        write_volumes([], tmp_path / "new")
    with pytest.raises(ValueError, match="`array` has shape"):
        to_nifti(volume.voxels[1:], volume.recipe)
    with pytest.raises(ValueError, match="slices"):
        blank_part(volume.recipe, ("slices", 5), Patient(), Study())
    with pytest.raises(ValueError, match="CT or MR"):
        to_series(volume.voxels, replace(volume.recipe, modality="blood-smear"))
    assert not (tmp_path / "new").exists()


def test_nothing_is_half_written(tmp_path):
    volume = made_up(KINDS["axial"])
    first = write_volumes([volume], tmp_path, Wanted(segmentation=True))
    before = {path: path.read_bytes() for path in first}
    assert write_volumes([volume], tmp_path, Wanted(segmentation=True)) == first  # the same again is left as it is
    first[2].write_bytes(b"something else")
    first[0].unlink()
    with pytest.raises(FileExistsError):
        write_volumes([volume], tmp_path, ALL)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(before) - {first[0]}


def test_no_labels_no_segmentation():
    recipe = volume_recipe(labels=(), obtained=())
    volume = Volume(made_up(recipe).voxels, None, recipe)
    datasets = to_datasets(volume, Wanted(enhanced=True))
    assert set(datasets) == {f"slice-{i:03d}.dcm" for i in range(1, 6)} | {"enhanced.dcm"}
    assert datasets["slice-001.dcm"].SOPInstanceUID == to_series(volume.voxels, volume_recipe())[0].SOPInstanceUID
    assert all(verify(dataset).ok for dataset in datasets.values())


def test_parts_are_told_by_their_class():
    datasets = to_datasets(made_up(KINDS["axial"]), ALL)
    assert [part_of(d) for d in datasets.values()] == [("slices", i) for i in range(5)] + [
        ("enhanced", 0),
        ("segmentation", 0),
    ]
    dataset = datasets["slice-001.dcm"]
    dataset.InstanceNumber = None
    assert part_of(dataset) is None and not verify(dataset).ok


def test_the_affine_of_the_pipeline_is_this_one():
    from pipeline.volume.volume_call import SyntheticDicomVolumePipelineOutput

    for axes in ("RAS", "PIL", "SLA"):
        spacing, shape = [1.0, 1.5, 2.0], [6, 9, 5]
        output = SyntheticDicomVolumePipelineOutput(
            None, None, [], None, [], [], {"axes": axes, "spacing": spacing, "shape": shape}
        )
        np.testing.assert_allclose(output.affine, affine_of(VolumeRecipe("MRI", tuple(shape), axes, tuple(spacing))))
