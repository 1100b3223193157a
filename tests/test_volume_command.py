"""`python -m pipeline volume` and `replay` of what it wrote, with the tiny model."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest

from pipeline.__main__ import main
from pipeline.dicom_provenance import PRIVATE_CREATOR, PRIVATE_GROUP, read_recipe
from pipeline.replaying import CannotReplay, Replayer
from pipeline.verification import verify

from .tiny_volume import SHAPE, tiny_volume_pipeline

PROMPT = "T1 MRI of the hippocampus, 54 year old woman"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volume-model")
    tiny_volume_pipeline().save_pretrained(folder)
    return folder


def run(model, out, *arguments):
    return main(["volume", PROMPT, "--model", str(model), "--device", "cpu", "--out", str(out), *map(str, arguments)])


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("written")
    assert run(model, out, "--covariate", "anterior_mm3=25", "--seed", 7, "--enhanced", "--seg", "--nifti") == 0
    return {path.name: path for path in out.rglob("*") if path.is_file()}


def test_everything_is_written(written):
    slices = [f"slice-{i:03d}.dcm" for i in range(1, SHAPE[2] + 1)]
    assert set(written) == {*slices, "enhanced.dcm", "labels.dcm", "volume.nii.gz", "labels.nii.gz"}
    recipe = read_recipe(pydicom.dcmread(written["slice-001.dcm"]))
    assert recipe.seed == 7 and dict(recipe.volume.covariates)["anterior_mm3"] == 25
    mask = pydicom.dcmread(written["labels.dcm"]).pixel_array.reshape(2, -1)
    assert dict(recipe.volume.obtained) == {"anterior_mm3": mask[0].sum(), "posterior_mm3": mask[1].sum()}
    assert main(["verify", *(str(path) for path in written.values() if path.suffix == ".dcm")]) == 0


def test_it_prints_paths_and_the_same_command_changes_nothing(model, written, capsys):
    out = written["enhanced.dcm"].parents[1]
    before = {path: path.stat().st_mtime_ns for path in written.values()}
    arguments = ("--covariate", "anterior_mm3=25", "--seed", 7, "--enhanced", "--seg", "--nifti")
    assert run(model, out, *arguments) == 0
    assert {Path(line) for line in capsys.readouterr().out.splitlines()} == set(before)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_several_volumes_are_people_of_their_own_and_as_made_alone(model, tmp_path):
    assert run(model, tmp_path / "two", "--seed", 3, "--count", 2, "--nifti") == 0
    assert run(model, tmp_path / "one", "--seed", 4) == 0
    folders = sorted((tmp_path / "two").iterdir())
    (alone,) = (tmp_path / "one").iterdir()
    assert len(folders) == 2 and alone.name in {folder.name for folder in folders}
    for path in alone.iterdir():
        assert path.read_bytes() == (tmp_path / "two" / alone.name / path.name).read_bytes()
    assert len({pydicom.dcmread(folder / "slice-001.dcm").PatientID for folder in folders}) == 2
    assert not (folders[0] / "labels.nii.gz").exists()  # no label map was wanted


def test_a_cut_and_a_range_are_warned_of(model, tmp_path, capsys):
    assert (
        run(model, tmp_path, "--shape", 5, 7, 1, "--covariate", "anterior_mm3=90", "--seed", 1, "--zip", "--seg") == 0
    )
    said = capsys.readouterr()
    assert "anterior_mm3 of 90 mm3 is outside the range" in said.err and "cut to (5, 7, 1)" in said.err
    with zipfile.ZipFile(said.out.strip()) as archive:
        assert sorted(Path(name).name for name in archive.namelist()) == ["labels.dcm", "slice-001.dcm"]
        for name in archive.namelist():
            dataset = pydicom.dcmread(archive.open(name))
            assert "outside the range" in dataset.ImageComments and verify(dataset).ok
            assert (dataset.Rows, dataset.Columns) == (7, 5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--covariate", "anterior_mm3"], "`--covariate` is 'anterior_mm3'"),
        (["--covariate", "anterior_mm3=big"], "`--covariate`"),
        (["--covariate", "anterior_mm3=nan"], "numbers above 0"),
        (["--covariate", "age=50"], "`covariates` has 'age'"),
        (["--covariate", "anterior_mm3=5", "--covariate", "anterior_mm3=6"], "twice"),
        (["--count", "0"], "`--count` is 0"),
        (["--seed", "-1"], "`seed` is -1"),
        (["--steps", "0"], "`num_inference_steps`"),
        (["--shape", "99", "1", "1"], "`shape`"),
        (["--patient", "sex=M"], "`patient.sex`"),
        (["--device", "abacus"], "`device`"),
        (["--model", "nowhere"], "`--model`"),
        (["--model", str(Path(__file__).parent)], "holds no volume model"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(model, tmp_path, capsys, arguments, says):
    assert run(model, tmp_path / "out", *arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and says in said.err and len(said.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_without_a_model_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pipeline.volume_models.FOLDER", tmp_path)
    assert main(["volume", PROMPT, "--out", str(tmp_path / "out")]) == 2
    assert "no volume model is here" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "package"), [("--seg", "highdicom"), ("--nifti", "nibabel")])
def test_a_missing_package_is_named_before_any_work(model, tmp_path, capsys, monkeypatch, option, package):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    assert run(model, tmp_path / "out", option) == 2
    assert f"`{option}` needs the Python package {package}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---- replay ---------------------------------------------------------------------------------------------------------


def test_every_part_is_made_again(model, written, tmp_path, capsys):
    files = [str(path) for path in written.values() if path.suffix == ".dcm"]
    assert main(["replay", *files, "--model", str(model), "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("equal: pixels and UIDs") == len(files) == SHAPE[2] + 2
    again = {path.name: path for path in tmp_path.rglob("*.dcm")}
    assert {name: path.read_bytes() for name, path in again.items()} == {
        name: written[name].read_bytes() for name in again
    }


@pytest.mark.parametrize("name", ["slice-002.dcm", "enhanced.dcm", "labels.dcm"])
def test_what_differs_is_told(model, written, tmp_path, name):
    replayer = Replayer([model], device="cpu")
    dataset = pydicom.dcmread(written[name])
    pixels = bytearray(dataset.PixelData)
    pixels[0] ^= 1
    dataset.PixelData = bytes(pixels)
    found = replayer.replay(dataset, tmp_path)
    assert not found.pixels_equal and found.uids_equal
    assert found.differences[0].startswith("pixels differ: 1 of ")
    assert np.prod(pydicom.dcmread(written[name]).pixel_array.shape) == int(found.differences[0].split()[4])


def test_another_model_and_foreign_recipes_are_refused(model, written, tmp_path):
    replayer = Replayer([model], device="cpu")

    def spoilt(old, new):
        dataset = pydicom.dcmread(written["slice-002.dcm"])
        element = dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)[1]
        assert old in element.value
        element.value = element.value.replace(old, new)
        return dataset

    sha256 = read_recipe(pydicom.dcmread(written["slice-002.dcm"])).model_sha256
    with pytest.raises(CannotReplay, match="no volume model at hand"):
        replayer.replay(spoilt(sha256, "0" * 64), tmp_path)
    for old, new, says in (
        ('"negative_prompt":""', '"negative_prompt":"x"', "`volume`"),
        ('"shape":[6,8,4]', '"shape":[60,80,4]', "height"),
        ('"covariates":[["anterior_mm3",25.0]', '"covariates":[["age",25.0]', "`covariates`"),
    ):
        with pytest.raises(ValueError, match=says):
            replayer.replay(spoilt(old, new), tmp_path)
    dataset = pydicom.dcmread(written["slice-002.dcm"])
    dataset.InstanceNumber = 99
    with pytest.raises(ValueError, match="no such slice"):
        replayer.replay(dataset, tmp_path)
    assert not list(tmp_path.iterdir())
