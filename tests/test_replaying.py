"""`replay`: the image made again from its recipe, with models and adapters found by their hashes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline import Patient
from pipeline.__main__ import main
from pipeline.dicom_files import write_files
from pipeline.dicom_input import ImageInputError
from pipeline.dicom_pixels import compress
from pipeline.dicom_provenance import PRIVATE_CREATOR, PRIVATE_GROUP
from pipeline.pipeline import SyntheticDicomPipeline
from pipeline.replaying import CannotReplay, Replayer, check_recipe

from .dicom_samples import recipe_of

BRAIN = "axial T1 brain MRI with contrast, meningioma"


@pytest.fixture(scope="module")
def replayer(tiny_folder, saved):
    found = Replayer([tiny_folder], list(saved.values()), device="cpu")
    found._places = [str(tiny_folder)]  # not the embedded model: it takes seconds to load
    return found


@pytest.fixture()
def pipe(tiny_folder):
    pipe = SyntheticDicomPipeline.from_pretrained(tiny_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_text_to_image_is_equal_also_of_a_batch_and_compressed(replayer, pipe, tmp_path):
    out = pipe([BRAIN, "blood smear"], seed=3, num_images_per_prompt=2, negative_prompt="x", guidance_scale=3.5)
    pictures = [np.asarray(image, np.float32) / 255 for image in out.images]
    paths = write_files(out.dicoms, tmp_path / "a", compression="jpegls", png_pixels=pictures)
    assert len(paths) == 8
    for path in paths:
        found = replayer.replay(path, tmp_path / "b")
        assert found.equal and found.differences == () and found.in_words() == ["equal: pixels and UIDs"]


def test_adapters_are_found_by_hash(replayer, pipe, saved, tmp_path):
    pipe.load_lora_weights(saved["style"], adapter_name="mine")
    pipe.load_lora_weights(saved["brain-mri"], adapter_name="other")
    pipe.set_adapters(["other", "mine"], [0.5, {"unet": {"down": 0.25, "up": 1.0}, "text_encoder": 0.75}])
    with_blocks = pipe(BRAIN, seed=1).dicoms[0]
    pipe.set_adapters("mine", 0.5)
    single = pipe(BRAIN, seed=1).dicoms[0]
    for number, dataset in enumerate((with_blocks, single)):
        assert replayer.replay(dataset, tmp_path / str(number)).equal
    without = Replayer([], [saved["brain-mri"]], device="cpu")
    without._places = replayer._places
    with pytest.raises(CannotReplay, match="missing adapter.*'mine'"):
        without.replay(single, tmp_path)


def test_image_to_image_needs_the_image(replayer, pipe, tmp_path):
    grey = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "in.png")
    Image.fromarray(255 - grey).save(tmp_path / "other.png")
    dataset = pipe(BRAIN, tmp_path / "in.png", 0.5, seed=1).dicoms[0]
    with pytest.raises(CannotReplay, match="`--image`"):
        replayer.replay(dataset, tmp_path / "out")
    with pytest.raises(CannotReplay, match="hashes differ"):
        replayer.replay(dataset, tmp_path / "out", images=[tmp_path / "other.png"])
    assert not (tmp_path / "out").exists()
    assert replayer.replay(dataset, tmp_path / "out", images=[tmp_path / "other.png", tmp_path / "in.png"]).equal
    of_another_kind = [tmp_path, tmp_path / "in.png"]  # a series, for a volume in the same call
    assert replayer.replay(dataset, tmp_path / "out", images=of_another_kind).equal
    with pytest.raises(ImageInputError, match="folder"):
        replayer.replay(dataset, tmp_path / "out", images=[tmp_path])


def test_what_differs_is_told(replayer, pipe, tmp_path):
    patient = Patient(name="Roe^Jane", id="4711")
    dataset = pipe(BRAIN, seed=1, patient=patient).dicoms[0]
    found = replayer.replay(dataset, tmp_path / "a")
    assert found.pixels_equal and not found.equal
    assert "patient.id, patient.name" in found.differences[0] and "Roe" not in "".join(found.in_words())
    assert replayer.replay(dataset, tmp_path / "b", patient=patient).equal
    pixels = bytearray(dataset.PixelData)
    pixels[0] ^= 1
    dataset.PixelData = bytes(pixels)
    block = dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)
    block[1].value = block[1].value.replace('["device","cpu"]', '["device","cuda"]')
    found = replayer.replay(compress(dataset, "rle"), tmp_path / "c", patient=patient)
    assert not found.pixels_equal and found.uids_equal
    assert found.differences == ("pixels differ: 1 of 4096 values, by at most 1", "device: then cuda, now cpu")


def test_the_same_model_of_another_name_gives_the_same_uids(replayer, pipe, tmp_path):
    plain = pipe(BRAIN, seed=1).dicoms[0]
    pipe.register_to_config(model_name="org/of-somebody")
    named = pipe(BRAIN, seed=1).dicoms[0]
    assert named.SOPInstanceUID != plain.SOPInstanceUID
    for dataset in (named, plain):
        assert replayer.replay(dataset, tmp_path).equal


def test_a_model_of_another_kind_is_passed_over(tiny_folder, pipe, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text("{}")
    dataset = pipe(BRAIN, seed=1).dicoms[0]
    assert Replayer([tmp_path / "broken", tiny_folder], device="cpu").replay(dataset, tmp_path / "out").equal


def test_another_model_is_told(replayer, tiny, tmp_path):
    dataset = tiny(BRAIN, seed=1).dicoms[0]
    block = dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)
    block[1].value = block[1].value.replace(tiny.model_sha256, "0" * 64)
    with pytest.raises(CannotReplay, match="another model"):
        replayer.replay(dataset, tmp_path)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_inference_steps": 10**9}, "num_inference_steps"),
        ({"seed": -1}, "seed"),
        ({"height": 65536}, "height"),
        ({"width": 0}, "width"),
        ({"guidance_scale": 1e30}, "guidance_scale"),
        ({"prompt": "x" * 30_000}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": " "}, "prompt"),
        ({"modality": "../../etc"}, "modality"),
        ({"scheduler": "os.system('x')"}, "scheduler"),
        ({"model_sha256": "../model"}, "model_sha256"),
        ({"strength": 0.5}, "strength"),
        ({"strength": 5, "input_sha256": "0" * 64}, "strength"),
        ({"strength": 0.5, "input_sha256": "/etc/passwd"}, "input_sha256"),
        ({"adapters": (("../x", "0" * 64, 1.0),)}, "adapters"),
        ({"adapters": (("x", "/etc/passwd", 1.0),)}, "adapters"),
        ({"adapters": (("x", "0" * 64, 1e9),)}, "adapters"),
        ({"adapters": (("x", "0" * 64, 1.0),) * 65}, "adapters"),
        ({"versions": (("x", "y" * 201),)}, "versions"),
    ],
)
def test_recipes_that_we_would_not_write_are_refused(changes, field):
    with pytest.raises(ValueError, match=f"`{field}`"):
        check_recipe(replace(recipe_of("brain-mri"), **changes))


def test_command_line(tiny_folder, tiny, tmp_path, capsys, monkeypatch):
    first = Replayer.__init__

    def without_embedded(self, *args, **kwargs):
        first(self, *args, **kwargs)
        self._places = self._places[:-1]

    monkeypatch.setattr(Replayer, "__init__", without_embedded)
    (path,) = write_files(tiny(BRAIN, seed=2).dicoms, tmp_path / "a")
    (tmp_path / "text").write_text("x")
    out = ["--out", str(tmp_path / "b"), "--model", str(tiny_folder), "--device", "cpu"]
    assert main(["replay", str(path), *out]) == 0
    assert "equal: pixels and UIDs" in capsys.readouterr().out
    assert main(["replay", str(tmp_path / "text"), str(path), *out]) == 2
    assert main(["replay", str(path), "--out", str(tmp_path / "c"), "--device", "cpu"]) == 1
    assert "another model" in capsys.readouterr().err
    assert main(["replay", str(path), "--out", str(tmp_path / "c"), "--model", "nowhere"]) == 2
