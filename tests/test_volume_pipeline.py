"""The volume pipeline: seeds, covariates, errors, saving and loading in other people's code."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.utils.dynamic_modules_utils import get_relative_import_files

from pipeline import volume
from pipeline.volume import SyntheticDicomVolumePipeline
from pipeline.volume.volume_covariates import Distribution, read_prompt

from .fresh_process import run_fresh
from .hub_server import HubServer
from .tiny_volume import NAMES, SHAPE, VALUES, tiny_volume_pipeline

PROMPT = "T1 MRI of the hippocampus"
BOTH = {"anterior_mm3": 25, "posterior_mm3": 33}


@pytest.fixture(scope="module")
def pipe():
    return tiny_volume_pipeline()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("volume-model")
    tiny_volume_pipeline().save_pretrained(path)
    return path


def test_a_volume_and_its_label_map(pipe):
    out = pipe(PROMPT, BOTH, seed=7, num_volumes_per_prompt=2)
    assert out.volumes.shape == out.masks.shape == (2, *SHAPE)
    assert out.volumes.dtype == np.float32 and out.masks.dtype == np.uint8
    assert out.volumes.min() >= 0 and out.volumes.max() <= 1 and out.masks.max() <= 2
    assert len(np.unique(out.volumes)) > 256  # more grey levels than 8 bits hold
    assert out.covariates == [{k: float(v) for k, v in BOTH.items()}] * 2
    assert out.obtained[1] == {name: float((out.masks[1] == i).sum()) for i, name in enumerate(NAMES, 1)}
    assert out.warnings == [[], []]
    assert out.geometry == {
        "axes": "RAS",
        "spacing": [1.0, 1.0, 1.0],
        "shape": list(SHAPE),
        "labels": ["anterior", "posterior"],
    }
    assert out.affine @ [2.5, 3.5, 1.5, 1] == pytest.approx([0, 0, 0, 1])  # the centre
    assert json.loads(json.dumps(out.recipes[1]))["seed"] == 8
    assert out.recipes[0]["model_sha256"] == pipe.model_sha256 and out.recipes[0]["covariates"] == out.covariates[0]


def test_an_affine_of_other_axes():
    out = tiny_volume_pipeline()
    out.register_to_config(geometry={"axes": "PLS", "spacing": [2.0, 1.0, 3.0]})
    affine = out(PROMPT, seed=1, num_inference_steps=1).affine
    assert affine[:3, :3].tolist() == [[0, -1, 0], [-2, 0, 0], [0, 0, 3]]


def test_the_same_seed_gives_the_same_volume_alone_and_among_others(pipe):
    several = pipe([PROMPT, "large hippocampus"], seed=3, num_volumes_per_prompt=2)
    again = pipe([PROMPT, "large hippocampus"], seed=3, num_volumes_per_prompt=2)
    alone = pipe("large hippocampus", seed=5)
    assert (several.volumes == again.volumes).all()
    assert alone.covariates[0] == several.covariates[2]
    np.testing.assert_allclose(alone.volumes[0], several.volumes[2], atol=1e-4)
    assert (alone.volumes == pipe("large hippocampus", seed=5).volumes).all()
    assert abs(several.volumes[0] - several.volumes[1]).max() > 0.01


def test_a_recipe_makes_its_volume_again(pipe):
    first = pipe("small hippocampus", seed=11)
    recipe = first.recipes[0]
    names = ("prompt", "covariates", "seed", "num_inference_steps", "guidance_scale")
    second = pipe(**{name: recipe[name] for name in names})
    assert (second.volumes == first.volumes).all() and second.recipes[0] == recipe


def test_more_volumes_than_fit_together(pipe, monkeypatch):
    whole = pipe(PROMPT, seed=3, num_volumes_per_prompt=3)
    monkeypatch.setattr("pipeline.volume.volume_pipeline.AT_ONCE", 2)
    np.testing.assert_allclose(pipe(PROMPT, seed=3, num_volumes_per_prompt=3).volumes, whole.volumes, atol=1e-4)


def test_without_a_mask_the_volume_is_the_same(pipe):
    out = pipe(PROMPT, BOTH, seed=7, mask=False)
    assert out.masks is None and out.obtained is None
    assert (out.volumes == pipe(PROMPT, BOTH, seed=7).volumes).all()


@pytest.mark.parametrize("shape", [(6, 8, 1), (1, 8, 4), (5, 3, 2)])
def test_a_smaller_shape_is_cut_out(pipe, shape):
    whole, part = pipe(PROMPT, BOTH, seed=7), pipe(PROMPT, BOTH, seed=7, shape=shape)
    assert part.volumes.shape == part.masks.shape == (1, *shape) and part.geometry["shape"] == list(shape)
    first = [(old - new) // 2 for old, new in zip(SHAPE, shape, strict=True)]
    middle = tuple(slice(at, at + new) for at, new in zip(first, shape, strict=True))
    assert (part.volumes[0] == whole.volumes[0][middle]).all() and (part.masks[0] == whole.masks[0][middle]).all()
    assert "covariates refer to the whole" in part.warnings[0][0]
    assert part.recipes[0]["shape"] == list(shape)


def test_other_outputs(pipe):
    latent = pipe(PROMPT, BOTH, seed=7, output_type="latent").volumes
    assert latent.shape == (1, SHAPE[0] * 3, *SHAPE[1:])
    tensor = pipe(PROMPT, BOTH, seed=7, output_type="pt").volumes
    assert torch.is_tensor(tensor)
    image, masks = pipe.decode(latent)
    assert torch.equal(image, tensor) and (masks == pipe(PROMPT, BOTH, seed=7).masks).all()


def test_decoding_takes_the_strongest_label(pipe):
    latent = torch.full((1, 3, *SHAPE), -1.0)
    latent[0, 1, 2:4], latent[0, 2, 3:5] = 0.9, 0.5
    masks = pipe.decode(latent.flatten(1, 2))[1]
    assert [int(masks[0, x, 0, 0]) for x in range(6)] == [0, 0, 1, 1, 2, 0]
    latent[0, 1:] = -0.4  # both labels together are weaker than the background
    assert not pipe.decode(latent.flatten(1, 2))[1].any()


def test_covariates_change_the_volume(pipe):
    a, b = (pipe(PROMPT, {**BOTH, "anterior_mm3": value}, seed=7).volumes for value in (22, 34))
    assert abs(a - b).max() > 1e-3


def test_one_covariate_for_each_volume(pipe):
    out = pipe(PROMPT, {"anterior_mm3": [21, 33], "posterior_mm3": None}, seed=7, num_volumes_per_prompt=2)
    assert [row["anterior_mm3"] for row in out.covariates] == [21, 33]
    assert all(28 <= row["posterior_mm3"] <= 44 for row in out.covariates)
    alone = pipe(PROMPT, {"anterior_mm3": np.array(21.0)}, seed=7)
    assert alone.covariates[0]["anterior_mm3"] == 21


def test_a_covariate_outside_the_training_range_is_made_and_warned_of(pipe):
    out = pipe(PROMPT, {"anterior_mm3": 100, "posterior_mm3": 33}, seed=7)
    assert out.warnings == [
        [
            "anterior_mm3 of 100 mm3 is outside the range of the training volumes, 20 to 36 mm3: "
            "the volume may not follow it"
        ]
    ]


def test_the_prompt_states_covariates(pipe):
    out = pipe("hippocampus, anterior 25 mm3, posterior 0.04 ml", seed=1, num_inference_steps=1)
    assert out.covariates == [{"anterior_mm3": 25, "posterior_mm3": 40}]
    out = pipe("hippocampus, anterior 25 mm3", {"anterior_mm3": 30}, seed=1, num_inference_steps=1)
    assert out.covariates[0]["anterior_mm3"] == 30 and "not 25 as the prompt says" in out.warnings[0][0]
    assert "names none of" in pipe("chest X-ray", seed=1, num_inference_steps=1).warnings[0][0]


def test_reading_a_prompt():
    assert read_prompt("T1 MRI, anterior 1500 mm3, posterior 1.7 ml", NAMES)[0] == {
        "anterior_mm3": 1500,
        "posterior_mm3": 1700,
    }
    assert read_prompt("small anterior and large posterior part", NAMES)[1] == {
        "anterior_mm3": "small",
        "posterior_mm3": "large",
    }
    assert read_prompt("atrophic hippocampus", NAMES)[1] == dict.fromkeys(NAMES, "small")
    assert read_prompt("hippocampus of 1500 mm3, 1 mm slices", NAMES) == ({}, {})  # of which structure?


@pytest.mark.parametrize(
    "words",
    [
        "anterior 1500 mm3 posterior 1400 mm3",
        "anterior: 1500 mm3, posterior: 1.4 ml",
        "anterior (1,500 mm3), posterior (1,400 mm3)",
        "anterior=1500mm3; 1400 mm3 posterior",
    ],
)
def test_numbers_are_read_however_they_are_put(words):
    assert read_prompt(f"MRI of the hippocampus, {words}", NAMES) == (dict(zip(NAMES, (1500, 1400), strict=True)), {})


@pytest.mark.parametrize(
    "words", ["no atrophy", "not small", "without reduced volume", "anterior -5 mm3", "anterior 1e3 mm3"]
)
def test_what_is_denied_or_no_plain_number_is_not_read(words):
    assert read_prompt(f"MRI of the hippocampus, {words}", NAMES) == ({}, {})


def test_drawing_covariates():
    known = Distribution.of(NAMES, VALUES)
    assert Distribution.from_config(json.loads(json.dumps(known.to_config()))) == known
    assert known.draw(5, {}, {}) == known.draw(5, {}, {}) != known.draw(6, {}, {})
    for seed in range(50):
        row = known.draw(seed, {}, {"anterior_mm3": "small"})
        assert 20 <= row["anterior_mm3"] <= known.mean[0] - 0.5 * known.standard_deviation[0]
        assert 28 <= row["posterior_mm3"] <= 44
    assert known.draw(1, {"anterior_mm3": 1000.0}, {})["anterior_mm3"] == 1000  # what is given stays


def test_what_the_denoiser_sees_of_covariates():
    known = Distribution.of(NAMES, VALUES)
    some = known.features(np.array([[25, np.nan], [26, np.nan], [np.nan, 40]]))
    assert some.dtype == np.float32 and some.shape == (3, 24)
    assert not some[0, 12:].any() and not some[2, :12].any()
    assert abs(some[0] - some[1]).max() > 0.2  # a small difference is plain to see
    assert np.isfinite(known.features(np.array([[1e9, 1.0]]))).all()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"prompt": ""}, "`prompt` must be text"),
        ({"prompt": []}, "`prompt` is an empty list"),
        ({"covariates": {"age": 50}}, "`covariates` has 'age'; allowed are anterior_mm3, posterior_mm3"),
        ({"covariates": {"anterior_mm3": "big"}}, "anterior_mm3 'big'; allowed are numbers above 0 and at most 192"),
        ({"covariates": {"anterior_mm3": 0}}, "numbers above 0"),
        ({"covariates": {"anterior_mm3": float("nan")}}, "numbers above 0"),
        ({"covariates": {"anterior_mm3": 150, "posterior_mm3": 150}}, "at most 192 mm3 together"),
        ({"covariates": {"anterior_mm3": [20, 30]}}, "2 values of anterior_mm3; allowed is one, or 1"),
        ({"covariates": 1500}, "`covariates` is 1500; allowed is a dictionary"),
        ({"prompt": "hippocampus, anterior 5000 mm3"}, "anterior_mm3 5000.0; allowed"),
        ({"prompt": "hippocampus \ud800"}, "allowed is sound Unicode"),
        ({"seed": -1}, "`seed` is -1"),
        ({"seed": 2**63 - 1, "num_volumes_per_prompt": 2}, "`seed` is 9223372036854775807; allowed"),
        ({"num_volumes_per_prompt": 0}, "`num_volumes_per_prompt` is 0"),
        ({"num_inference_steps": 0}, "`num_inference_steps` is 0; allowed"),
        ({"guidance_scale": float("inf")}, "`guidance_scale` is inf"),
        ({"shape": (6, 8, 5)}, "`shape` is (6, 8, 5); allowed are three whole numbers"),
        ({"shape": 8}, "`shape` is 8"),
        ({"shape": (6, 8.0, 4)}, "at least 1 and at most (6, 8, 4)"),
        ({"mask": "yes"}, "`mask` is 'yes'; allowed are True and False"),
        ({"output_type": "pil"}, "`output_type` is 'pil'; allowed are 'np', 'pt', 'latent'"),
    ],
)
def test_what_cannot_be_made_is_refused(pipe, changed, words):
    with pytest.raises(ValueError) as caught:
        pipe(**{"prompt": PROMPT, "seed": 1, **changed})
    assert words in str(caught.value)


def test_a_callback_sees_progress_and_can_break_off(pipe):
    seen = []

    def stop(pipeline, step, timestep, tensors):
        seen.append((step, tuple(tensors["latents"].shape)))
        pipeline._interrupt = step == 1
        return tensors

    out = pipe(PROMPT, seed=1, num_volumes_per_prompt=9, callback_on_step_end=stop)
    assert [step for step, _ in seen] == [0, 1]
    assert len(out.volumes) == len(out.covariates) == len(out.recipes) == 8  # the first group, unfinished
    assert pipe.interrupt


def test_another_stock_scheduler():
    pipe = tiny_volume_pipeline()
    pipe.scheduler = DDIMScheduler(prediction_type="sample")
    out = pipe(PROMPT, seed=1)
    assert out.recipes[0]["scheduler"] == "DDIMScheduler" and np.isfinite(out.volumes).all()


def test_it_loads_with_its_own_files_in_a_fresh_process(pipe, folder, tmp_path):
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == [
        "volume_pipeline",
        "SyntheticDicomVolumePipeline",
    ]
    code = f"""
import sys
import numpy as np
import torch
from diffusers import DiffusionPipeline
torch.set_num_threads({torch.get_num_threads()})  # sums of floats depend on it
pipe = DiffusionPipeline.from_pretrained({str(folder)!r}, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
out = pipe({PROMPT!r}, {BOTH!r}, seed=7)
np.savez("out.npz", volumes=out.volumes, masks=out.masks)
assert "pipeline" not in sys.modules
pipe.save_pretrained("again")
print(pipe.model_sha256, type(pipe).__module__)
"""
    printed = run_fresh(code, tmp_path, {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}).split()
    assert printed[-2:] == [pipe.model_sha256, "diffusers_modules.local.volume_pipeline"]
    out = pipe(PROMPT, BOTH, seed=7)
    with np.load(tmp_path / "out.npz") as there:
        assert (there["volumes"] == out.volumes).all() and (there["masks"] == out.masks).all()
    again = SyntheticDicomVolumePipeline.from_pretrained(tmp_path / "again")
    assert isinstance(again, SyntheticDicomVolumePipeline) and again.model_sha256 == pipe.model_sha256
    code_files = {path.name for path in folder.glob("*.py")}
    assert code_files == {path.name for path in (tmp_path / "again").glob("*.py")} | {"__init__.py"}


def test_it_loads_from_a_hub_in_one_line(pipe, folder, tmp_path):
    code = f"""
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi
HfApi().create_repo("ORG/tiny-volume")
HfApi().upload_folder(repo_id="ORG/tiny-volume", folder_path={str(folder)!r})
pipe = DiffusionPipeline.from_pretrained("ORG/tiny-volume", trust_remote_code=True)
print(pipe.model_sha256)
"""
    with HubServer(tmp_path / "hub") as hub:
        assert run_fresh(code, tmp_path / "user", hub.env(tmp_path / "cache")).split()[-1] == pipe.model_sha256


def test_the_folder_stands_alone():
    """diffusers copies what the pipeline imports by a dot, and nothing else."""
    here = Path(volume.__file__).parent
    own = {path for path in here.glob("*.py") if path.name != "__init__.py"}
    found = {Path(name).name for name in get_relative_import_files(here / "volume_pipeline.py")}
    assert found == {path.name for path in own} - {"volume_pipeline.py"}
    for path in own:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not {name.split(".")[0] for name in names} & {"pipeline", "lora", "evaluation", "gradio"}, path
            if path.name == "volume_covariates.py":
                assert not {name.split(".")[0] for name in names} & {"torch", "diffusers"}


def test_only_safetensors_are_saved(pipe, tmp_path, folder):
    with pytest.raises(ValueError, match="safe_serialization"):
        pipe.save_pretrained(tmp_path, safe_serialization=False)
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".json", ".py", ".safetensors"}
