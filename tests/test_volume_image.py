"""Image-to-image on a volume: the command, the noise that slices share, and replay; with the tiny model."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont

from evaluation.__main__ import main as evaluate
from pipeline.__main__ import main
from pipeline.dicom_burned_in import BurnedInTextWarning
from pipeline.dicom_profiles import PROFILES
from pipeline.dicom_provenance import read_recipe
from pipeline.replaying import CannotReplay, Replayer
from pipeline.verification import verify
from pipeline.volume_image import image_to_image
from pipeline.volume_input import InputVolume, read_volume

from .adapter_samples import save_adapter
from .test_volume_input import NAME, ORIENTATIONS, SPACING, VALUES, series

PROMPT = "axial CT of the chest, lung window"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return series(tmp_path_factory.mktemp("real") / "series")


@pytest.fixture(scope="module")
def written(tiny_folder, source, tmp_path_factory):
    out = tmp_path_factory.mktemp("written")
    arguments = ["--image", str(source), "--seed", "7", "--steps", "4", "--enhanced", "--nifti"]
    assert run(tiny_folder, out, *arguments) == 0
    return {path.name: path for path in out.rglob("*") if path.is_file()}


def run(model, out, *arguments, prompt=PROMPT):
    return main(["volume", prompt, "--model", str(model), "--device", "cpu", "--out", str(out), *arguments])


def test_it_writes_the_series_where_the_source_lay_about_its_centre(written, source):
    assert set(written) == {*(f"slice-{i:03d}.dcm" for i in range(1, 6)), "enhanced.dcm", "volume.nii.gz"}
    first, last = (pydicom.dcmread(written[f"slice-00{i}.dcm"]) for i in (1, 5))
    rows, columns = 7 * SPACING[1], 6 * SPACING[2]
    assert (first.Rows, first.Columns) == (64, round(64 * columns / rows))
    assert [first.Rows * first.PixelSpacing[0], first.Columns * first.PixelSpacing[1]] == pytest.approx([rows, columns])
    assert last.ImagePositionPatient[2] - first.ImagePositionPatient[2] == pytest.approx(4 * SPACING[0])
    assert first.SpacingBetweenSlices == SPACING[0] and first.Modality == "CT"
    recipe = read_recipe(first)
    assert recipe.strength == 0.4 and recipe.input_sha256 == read_volume(source).sha256
    assert recipe.volume.axes == "SPL" and recipe.volume.shape == (5, first.Rows, first.Columns)
    assert "an input image" in first.DerivationDescription
    assert all(verify(path).ok for path in written.values() if path.suffix == ".dcm")


def test_nothing_of_the_source_goes_on(written, source):
    uids = {str(pydicom.dcmread(path, force=True).get("SOPInstanceUID", "-")) for path in source.iterdir()}
    for name, path in written.items():
        data = path.read_bytes()
        assert NAME.encode() not in data and NAME not in str(path)
        assert not any(uid.encode() in data for uid in uids), name


def test_hounsfield_units_go_in_and_come_out(tiny, tmp_path):
    """What goes into the pipeline is the source in the window that the prompt names."""
    seen = []

    class Watched:
        def __getattr__(self, name):
            return getattr(tiny, name)

        def __call__(self, prompt, image, *rest, **options):
            seen.append(image)
            return tiny(prompt, image, *rest, **options)

    flat = np.full((3, 64, 64), -700 // 2 + 12, np.int16)  # -700 HU, as the slope is 2
    found = read_volume(series(tmp_path / "flat", values=flat, PixelSpacing=[1, 1]))
    assert (found.values == -700).all()
    image_to_image(Watched(), PROMPT, found, 0.1, seed=1, num_inference_steps=1)
    window = PROFILES["ct-chest"].window("lung")
    assert len(seen) == 3 and np.allclose(seen, window.to_grey(-700), atol=1e-5)


def test_slices_share_their_noise(tiny, tmp_path):
    """Of a source whose slices are all alike nothing changes from slice to slice."""
    same = read_volume(series(tmp_path / "same", values=np.repeat(VALUES[:1], 4, axis=0)))
    options = {"num_inference_steps": 4, "progress": False}
    out = image_to_image(tiny, PROMPT, same, 0.8, seed=3, **options).voxels
    assert (out == out[0]).all() and np.ptp(out[0]) > 0.01
    other = image_to_image(tiny, PROMPT, same, 0.8, seed=4, **options).voxels
    assert abs(other - out).max() > 1e-3
    lower = image_to_image(tiny, PROMPT, same, 0.2, seed=3, **options).voxels
    assert abs(lower - out).max() > 1e-3


def test_every_part_is_made_again(tiny_folder, written, source, tmp_path, capsys):
    out = tmp_path / "again"
    files = [str(written[name]) for name in ("slice-002.dcm", "slice-005.dcm", "enhanced.dcm")]
    known = ["--model", str(tiny_folder), "--device", "cpu", "--out", str(out)]
    assert main(["replay", *files, "--image", str(source), *known]) == 0, capsys.readouterr()
    assert capsys.readouterr().out.count("equal: pixels and UIDs") == 3
    replayer = Replayer([tiny_folder], device="cpu")
    with pytest.raises(CannotReplay, match="give that with `--image`"):
        replayer.replay(files[0], out)
    other = series(tmp_path / "other", values=VALUES[::-1])
    with pytest.raises(CannotReplay, match="hashes differ"):
        replayer.replay(files[0], out, images=[other])


def test_adapters_and_what_is_not_wanted_are_in_the_recipe(tiny_folder, source, tmp_path):
    adapter = tmp_path / "mine"
    save_adapter(adapter)
    arguments = ["--image", str(source), "--seed", "1", "--steps", "2", "--adapter", f"{adapter}:0.5"]
    assert run(tiny_folder, tmp_path / "out", *arguments, "--negative-prompt", "noise", "--strength", "1") == 0
    path = next((tmp_path / "out").rglob("slice-001.dcm"))
    recipe = read_recipe(pydicom.dcmread(path))
    assert recipe.negative_prompt == "noise" and recipe.strength == 1 and recipe.adapters[0][2] == 0.5
    found = Replayer([tiny_folder], [adapter], device="cpu").replay(path, tmp_path / "again", images=[source])
    assert found.equal


def test_two_volumes_and_mr_that_has_no_window(tiny_folder, tmp_path):
    mr = series(tmp_path / "mr", ORIENTATIONS["coronal"], Modality="MR")
    arguments = ["--image", str(mr), "--seed", "1", "--steps", "1", "--count", "2"]
    assert run(tiny_folder, tmp_path / "out", *arguments, prompt="coronal T1 brain MRI") == 0
    folders = list((tmp_path / "out").iterdir())
    assert len(folders) == 2
    assert {read_recipe(pydicom.dcmread(folder / "slice-001.dcm")).seed for folder in folders} == {1, 2}


@pytest.mark.parametrize(
    ("arguments", "prompt", "says"),
    [
        (["--strength", "0"], PROMPT, "`strength` is 0"),
        (["--strength", "nan"], PROMPT, "`strength` is nan"),
        (["--seg"], PROMPT, "no label map"),
        (["--covariate", "anterior_mm3=1500"], PROMPT, "no label map"),
        (["--shape", "3", "3", "3"], PROMPT, "no label map"),
        ([], "coronal CT of the chest", "are axial; say so in the prompt"),
        ([], "chest X-ray, PA view", "volumes are of CT or MR"),
        (["--adapter", "nowhere"], PROMPT, "adapter"),
        (["--image", "nowhere"], PROMPT, "neither a folder nor a file"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tiny_folder, source, tmp_path, capsys, arguments, prompt, says):
    arguments = ["--image", str(source), "--steps", "1", *arguments]
    assert run(tiny_folder, tmp_path / "out", *arguments, prompt=prompt) == 2
    error = capsys.readouterr().err.strip()
    assert says in error and len(error.splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [["--strength", "0.5"], ["--adapter", "x"], ["--modality", "ct"]])
def test_options_of_images_need_one(tmp_path, capsys, option):
    assert main(["volume", "T1 MRI of the hippocampus", *option, "--out", str(tmp_path / "out")]) == 2
    assert "needs `--image`" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["highdicom", "nibabel"])
def test_a_missing_package_is_named_before_any_work(tiny_folder, source, tmp_path, capsys, monkeypatch, package):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    assert run(tiny_folder, tmp_path / "out", "--image", str(source)) == 2
    assert f"`--image` needs the Python package {package}" in capsys.readouterr().err


def test_text_in_many_slices_is_warned_of_once(tiny, source):
    found = read_volume(source)
    letters = np.zeros((3, 128, 128), np.float32)
    picture = Image.new("L", (128, 128))
    ImageDraw.Draw(picture).text((8, 8), "DOE JANE 1970", 255, ImageFont.load_default(16))
    letters += np.asarray(picture, np.float32) * 4 - 600
    written_on = dataclasses.replace(found, values=letters, spacing=(1.0, 1.0, 1.0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image_to_image(tiny, PROMPT, written_on, 0.1, seed=1, num_inference_steps=1)
    told = [str(one.message) for one in caught if "burned-in" in str(one.message)]
    assert len(told) == 1 and told[0].startswith("3 slice(s)")
    with pytest.warns(BurnedInTextWarning, match="as its header says"):
        image_to_image(
            tiny, PROMPT, dataclasses.replace(found, burned_in_annotation=True), 0.1, seed=1, num_inference_steps=1
        )


def test_small_letters_are_seen_before_slices_are_made_smaller(tiny):
    """The tiny model has 64 pixels a side: there the letters of 512 are dust."""
    picture = Image.new("L", (512, 512))
    ImageDraw.Draw(picture).text((8, 8), "DOE JANE 19700101", 255, ImageFont.load_default(14))
    values = np.stack([np.asarray(picture, np.float32) * 4 - 600] * 2)
    source = InputVolume(values, "axial", (1.0, 1.0, 1.0), "CT", "0" * 64)
    with pytest.warns(BurnedInTextWarning, match="2 slice"):
        image_to_image(tiny, PROMPT, source, 0.1, seed=1, num_inference_steps=1)


def test_what_does_not_go_into_one_object_is_refused_before_it_is_drawn(tiny, source, monkeypatch):
    monkeypatch.setattr("pipeline.dicom_limits.MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match="does not go into one object"):
        image_to_image(tiny, PROMPT, read_volume(source), 0.1, seed=1, one_object=True)


def test_a_stray_file_does_not_change_what_is_made(tiny, source, tmp_path):
    other = series(tmp_path / "same")
    (other / "notes.txt").write_text("hello")
    digests = {
        image_to_image(tiny, PROMPT, read_volume(folder), 0.1, seed=1, num_inference_steps=1).recipe.digest()
        for folder in (source, other)
    }
    assert len(digests) == 1


def test_command_of_agreement(tiny_folder, source, tmp_path):
    out = tmp_path / "stacks.json"
    arguments = ["--images", str(source), "--prompts", PROMPT, "--strengths", "0.5", "--slices", "3"]
    assert evaluate(["stacks", *arguments, "--model", str(tiny_folder), "--out", str(out)]) == 0
    found = json.loads(out.read_text())["volumes"][0]
    assert found["slices"] == 3 and set(found["agreement"]) == {"source", "shared", "own"}
    assert found["agreement"]["shared"]["0.5"] > found["agreement"]["own"]["0.5"]
    assert Path(out.with_suffix(".jpg")).stat().st_size > 1000
