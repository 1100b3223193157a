"""SyntheticDicomPipeline: seeds, batches, outputs, image to image, loading, errors. Real classes at tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler, StableDiffusionPipeline
from PIL import Image

from pipeline import Patient, Study, read_recipe
from pipeline.pipeline import SyntheticDicomPipeline

from .tiny import tiny_pipeline

CHEST = "chest X-ray, PA view, 54 year old woman"
BRAIN = "axial T1 brain MRI with contrast, meningioma"


def stored(output) -> list[np.ndarray]:
    return [dataset.pixel_array for dataset in output.dicoms]


def test_same_recipe_gives_equal_pixels_and_uids(tiny):
    first, second, other = tiny(CHEST, seed=7), tiny(CHEST, seed=7), tiny(CHEST, seed=8)
    assert np.array_equal(stored(first)[0], stored(second)[0])
    assert first.dicoms[0].SOPInstanceUID == second.dicoms[0].SOPInstanceUID
    assert first.recipes == second.recipes
    assert not np.array_equal(stored(first)[0], stored(other)[0])
    assert first.dicoms[0].SOPInstanceUID != other.dicoms[0].SOPInstanceUID


def test_one_call_and_several_calls_agree_image_by_image(tiny):
    whole = tiny(CHEST, seed=20, num_images_per_prompt=6)
    parts = [tiny(CHEST, seed=20 + k, num_images_per_prompt=2) for k in (0, 2, 4)]
    pieces = [dataset for part in parts for dataset in part.dicoms]
    for one, other in zip(whole.dicoms, pieces, strict=True):
        assert np.abs(one.pixel_array.astype(int) - other.pixel_array.astype(int)).max() <= 1
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID"):
            assert one[keyword].value == other[keyword].value


def test_images_of_a_call_make_one_study(tiny):
    output = tiny([CHEST, BRAIN], seed=1, num_images_per_prompt=2, patient=Patient(id="P1"), study=Study(id="S1"))
    assert len({d.StudyInstanceUID for d in output.dicoms}) == 1
    assert [(d.SeriesNumber, d.InstanceNumber) for d in output.dicoms] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert [d.Modality for d in output.dicoms] == ["DX", "DX", "MR", "MR"]
    assert output.seeds == [1, 2, 3, 4]
    several = tiny([CHEST, CHEST, BRAIN], seed=1).dicoms  # no patient named: a study for each request
    assert [(d.SeriesNumber, d.InstanceNumber) for d in several] == [(1, 1), (1, 2), (1, 1)]
    assert len({d.StudyInstanceUID for d in several}) == 2


def test_prompt_reaches_the_header_and_recipe_is_inside(tiny):
    dataset = tiny(CHEST, seed=3).dicoms[0]
    assert (dataset.PatientSex, dataset.PatientAge, dataset.ViewPosition) == ("F", "054Y", "PA")
    assert dataset.SyntheticData == "YES"
    recipe = read_recipe(dataset)
    assert (recipe.prompt, recipe.seed, recipe.num_inference_steps, recipe.guidance_scale) == (CHEST, 3, 3, 2.0)
    assert recipe.model == "tiny" and recipe.model_sha256 == tiny.model_sha256


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_output_types_agree_with_one_another(tiny, output_type):
    output = tiny(CHEST, seed=5, output_type=output_type, num_images_per_prompt=2)
    assert output.dicoms is None and len(output.recipes) == 2
    floats = tiny(CHEST, seed=5, output_type="np", num_images_per_prompt=2).images
    if output_type == "pil":
        assert output.images[0].size == (64, 64) and output.images[0].mode == "L"
    elif output_type == "np":
        assert output.images.shape == (2, 64, 64, 3) and output.images.dtype == np.float32
    elif output_type == "pt":
        assert torch.equal(output.images, torch.from_numpy(floats).permute(0, 3, 1, 2))
    else:
        assert torch.equal(tiny.decode_latents_to_float(output.images), torch.from_numpy(floats).permute(0, 3, 1, 2))


def test_return_dict_false_gives_a_tuple(tiny):
    images, dicoms, recipes = tiny(CHEST, seed=5, return_dict=False)
    assert len(images) == len(dicoms) == len(recipes) == 1


def test_float_decode_keeps_more_levels_than_eight_bits(tiny):
    pixels = tiny(CHEST, seed=1).dicoms[0].pixel_array
    levels = np.unique(tiny(CHEST, seed=1, output_type="np").images.mean(-1)).size
    assert levels > 256 and np.unique(pixels).size > 256


def test_image_to_image_keeps_more_of_the_source_at_lower_strength(tiny):
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    weak = tiny(CHEST, ramp, 0.34, seed=2, num_inference_steps=6, guidance_scale=1, output_type="latent").images
    strong = tiny(CHEST, ramp, 1.0, seed=2, num_inference_steps=6, guidance_scale=1, output_type="latent").images
    tensor = torch.from_numpy(ramp)[None, None].repeat(1, 3, 1, 1) * 2 - 1
    source = tiny.vae.encode(tensor).latent_dist.mode() * tiny.vae.config.scaling_factor
    assert (weak - source).square().mean() < (strong - source).square().mean()


def test_image_to_image_takes_many_kinds_of_input_and_keeps_no_identifier(tiny, tmp_path):
    dataset = tiny(CHEST, seed=1, patient={"name": "Doe^Jane", "id": "HOSP-4711"}).dicoms[0]
    path = tmp_path / "Doe-Jane.dcm"
    dataset.save_as(path)
    picture = Image.fromarray((np.random.default_rng(0).random((50, 80)) * 255).astype(np.uint8))
    for image in (
        path,
        str(path),
        path.read_bytes(),
        dataset,
        picture,
        np.zeros((64, 64), np.uint8),
        torch.rand(3, 64, 64),
    ):
        result = tiny(BRAIN, image, 0.5, seed=1).dicoms[0]
        text = str(result) + result.ImageComments
        assert "Doe" not in text and "4711" not in text and dataset.SOPInstanceUID not in text
        assert read_recipe(result).input_sha256


def test_patient_that_contradicts_the_prompt_is_refused_before_work(tiny):
    with pytest.raises(ValueError, match="sex"):
        tiny(CHEST, patient={"sex": "M"})


def test_callback_sees_every_step_and_may_stop(tiny):
    seen = []

    def stop_after_two(pipe, step, timestep, tensors):
        seen.append((step, sorted(tensors), tensors["denoised"].shape))
        pipe._interrupt = step == 1
        return tensors

    output = tiny(
        CHEST,
        seed=1,
        num_inference_steps=5,
        callback_on_step_end=stop_after_two,
        callback_on_step_end_tensor_inputs=["latents", "denoised"],
    )
    assert output.dicoms == []  # half denoised is no DICOM
    assert [s[0] for s in seen] == [0, 1]
    assert seen[0][1:] == (["denoised", "latents"], (1, 4, 16, 16))


def test_generator_draws_the_seeds(tiny):
    one = tiny(CHEST, generator=torch.Generator().manual_seed(1), num_images_per_prompt=2)
    two = tiny(CHEST, generator=torch.Generator().manual_seed(1), num_images_per_prompt=2)
    assert one.seeds == two.seeds and len(set(one.seeds)) == 2
    assert tiny(CHEST, seed=[9, 4], num_images_per_prompt=2).seeds == [9, 4]
    assert tiny(CHEST).seeds != tiny(CHEST).seeds


def test_negative_prompt_and_guidance_change_the_image(tiny):
    plain = stored(tiny(CHEST, seed=1))[0]
    assert not np.array_equal(plain, stored(tiny(CHEST, seed=1, negative_prompt="blood smear"))[0])
    assert not np.array_equal(plain, stored(tiny(CHEST, seed=1, guidance_scale=6))[0])


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler])
def test_stable_diffusion_checkpoints_are_wrapped(tiny, scheduler, tmp_path):
    parts = {k: v for k, v in tiny.components.items() if k != "scheduler"}
    options = {"skip_prk_steps": True} if scheduler is PNDMScheduler else {}  # as Stable Diffusion 1.x ships it
    chosen = scheduler(beta_schedule="scaled_linear", steps_offset=1, **options)
    stock = StableDiffusionPipeline(**parts, scheduler=chosen, requires_safety_checker=False)
    stock.save_pretrained(tmp_path)
    wrapped = SyntheticDicomPipeline.from_pretrained(tmp_path)
    assert isinstance(wrapped, SyntheticDicomPipeline)
    wrapped.set_progress_bar_config(disable=True)
    assert wrapped(BRAIN, seed=1, num_inference_steps=2).dicoms[0].Modality == "MR"
    assert wrapped(BRAIN, np.zeros((64, 64)), 0.5, seed=1, num_inference_steps=4).dicoms[0].Rows == 64
    assert wrapped.model_name == tmp_path.name


def test_same_pixels_as_the_stock_pipeline(tiny):
    stock = StableDiffusionPipeline(**tiny.components, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)
    theirs = stock(
        CHEST, num_inference_steps=3, guidance_scale=2.0, generator=torch.Generator().manual_seed(11), output_type="pt"
    ).images
    ours = tiny(CHEST, seed=11, output_type="pt").images
    assert torch.allclose(theirs.clamp(0, 1), ours, atol=1e-5)


def test_save_and_load_again_give_the_same_images(tiny, tiny_folder):
    again = SyntheticDicomPipeline.from_pretrained(tiny_folder)
    again.set_progress_bar_config(disable=True)
    assert type(again) is SyntheticDicomPipeline
    assert again.model_sha256 == tiny.model_sha256
    assert np.array_equal(stored(again(CHEST, seed=4))[0], stored(tiny(CHEST, seed=4))[0])
    assert {p.name for p in Path("pipeline").glob("*.py")} <= {p.name for p in tiny_folder.glob("*.py")}
    assert json.loads((tiny_folder / "model_index.json").read_text())["_class_name"] == [
        "pipeline",
        "SyntheticDicomPipeline",
    ]


def test_half_precision_runs_and_hash_follows_the_weights(tiny_folder):
    pipe = SyntheticDicomPipeline.from_pretrained(tiny_folder, torch_dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.dtype == torch.bfloat16
    assert pipe(CHEST, seed=1).dicoms[0].Rows == 64
    before = pipe.model_sha256
    with torch.no_grad():
        pipe.unet.conv_in.weight += 1
    assert pipe.model_sha256 != before


def test_loads_with_stock_packages_alone(tiny_folder, tmp_path):
    """As other people's code does: a process whose path does not hold this repository."""
    code = (
        "from diffusers import DiffusionPipeline\n"
        f"pipe = DiffusionPipeline.from_pretrained({str(tiny_folder)!r}, trust_remote_code=True)\n"
        "out = pipe('axial T1 brain MRI with contrast, meningioma', seed=3, patient={'id': 'X'})\n"
        "out.dicoms[0].save_as('mr.dcm')\n"
        "print(type(pipe).__module__, out.dicoms[0].Modality, out.dicoms[0].PatientID)\n"
    )
    environment = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    module, modality, patient = done.stdout.split()[-3:]
    assert module.startswith("diffusers_modules") and modality == "MR" and patient
    assert (tmp_path / "mr.dcm").stat().st_size > 64 * 64 * 2


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "a nice picture"}, "prompt"),
        ({"modality": "ultrasound"}, "modality"),
        ({"output_type": "jpg"}, "output_type"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"num_images_per_prompt": 1.5}, "num_images_per_prompt"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"seed": -1}, "seed"),
        ({"seed": "7"}, "seed"),
        ({"seed": [1, 2]}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"generator": 5}, "generator"),
        ({"seed": 1, "generator": torch.Generator()}, "generator"),
        ({"height": 63}, "height"),
        ({"width": 65536}, "width"),
        ({"image": np.zeros((64, 64)), "strength": 0}, "strength"),
        ({"image": np.zeros((64, 64)), "strength": 1.1}, "strength"),
        ({"image": np.zeros((64, 64)), "height": 64, "width": 128}, "height"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt"),
        ({"patient": {"shoe_size": 43}}, "patient"),
        ({"patient": "Jane"}, "patient"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "callback_on_step_end_tensor_inputs"),
    ],
)
def test_errors_name_the_argument_and_come_before_any_work(tiny, arguments, name, monkeypatch):
    monkeypatch.setattr(tiny, "_denoise", lambda *a, **k: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=f"`{name}`"):
        tiny(**{"prompt": CHEST, **arguments})


def test_embedded_base_draws_each_modality():
    folder = Path(__file__).parents[1] / "pipeline"
    if not (folder / "unet").is_dir():
        pytest.skip("no embedded base in pipeline/")
    pipe = SyntheticDicomPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    prompts = [CHEST, "axial chest CT, wide lung window, normal lungs", BRAIN, "blood smear, single eosinophil"]
    output = pipe(prompts, seed=1)
    for dataset, modality in zip(output.dicoms, ("DX", "CT", "MR", "SM"), strict=True):
        assert dataset.Modality in (modality, "GM")
        assert dataset.Rows == 256
        if dataset.SamplesPerPixel == 1:
            assert np.unique(dataset.pixel_array).size > 1000
        assert dataset.pixel_array.std() > 10


def test_full_size_wrapping_uses_the_callers_classes():
    pipe = tiny_pipeline(scheduler=DDIMScheduler())
    assert pipe(CHEST, seed=1).recipes[0].scheduler == "DDIMScheduler"
