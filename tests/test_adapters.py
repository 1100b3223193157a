"""Adapters in use: mixing, switching by modality, what recipes and DICOM say of them, and stock diffusers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file

from pipeline.adapter_files import read_adapter
from pipeline.adapter_names import parse_adapter, shipped_adapters
from pipeline.dicom_provenance import read_recipe

from .adapter_samples import ALL, ATTENTION, TEXT, WEIGHTS, configured, rewrite, save_adapter, without
from .tiny import tiny_pipeline

ROOT = Path(__file__).parents[1]
CHEST = "chest X-ray, PA view"
BRAIN = "axial T1 brain MRI with contrast, meningioma"


def draw(pipe, prompt: str = CHEST, **arguments) -> np.ndarray:
    return pipe(prompt, seed=1, output_type="np", **arguments).images


def names(pipe) -> list[str]:
    return [name for name, _, _ in pipe.adapters_in_use()]


# ---- use ------------------------------------------------------------------------------------------------------------


def test_loaded_adapter_draws_as_the_trained_model_and_as_stock_diffusers(tmp_path):
    for targets, text in ((ALL, ()), (ATTENTION, TEXT)):
        folder = tmp_path / f"a{len(text)}"
        trained = save_adapter(folder, targets, text_targets=text)
        truth = draw(trained)
        pipe = tiny_pipeline()
        bare = draw(pipe)
        pipe.load_lora_weights(folder)
        assert np.array_equal(draw(pipe), truth) and np.abs(truth - bare).max() > 0.01
        assert pipe.adapters_in_use() == ((f"a{len(text)}", read_adapter(folder).sha256, 1.0),)
        assert trained.adapters_in_use()[0][1] == read_adapter(folder).sha256

        base = tmp_path / f"base{len(text)}"
        parts = tiny_pipeline(DDIMScheduler(steps_offset=1)).components
        StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(base)
        stock = StableDiffusionPipeline.from_pretrained(base)
        stock.load_lora_weights(folder)
        stock.set_progress_bar_config(disable=True)
        ours = type(pipe).from_pretrained(base)
        ours.load_lora_weights(folder)
        ours.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": 2, "guidance_scale": 2.0}
        theirs = stock(CHEST, generator=torch.Generator().manual_seed(1), output_type="np", **options).images
        assert np.allclose(theirs, draw(ours, **options), atol=1e-5)


def test_dropout_of_the_training_is_off(copied):
    rewrite(copied, configured(lora_dropout=0.9))
    pipe = tiny_pipeline()
    pipe.load_lora_weights(copied)
    assert np.array_equal(draw(pipe), draw(pipe))


def test_mixing_switching_and_taking_off(saved):
    pipe = tiny_pipeline()
    base, bare = {k: v.clone() for k, v in pipe.unet.state_dict().items()}, draw(pipe)
    text = {k: v.clone() for k, v in pipe.text_encoder.state_dict().items()}
    model = pipe.model_sha256
    pictures = {}
    for name, folder in saved.items():
        assert pipe.load_lora_weights(folder) == name
        assert names(pipe) == [name] and pipe.model_sha256 == model  # alone, also where the text encoder has another
        pictures[name] = draw(pipe)
    for name, picture in pictures.items():
        pipe.set_adapters(name)
        assert np.array_equal(draw(pipe), picture)
    pipe.set_adapters(["brain-mri", "style"], [0.25, -1.5])
    assert [(name, weight) for name, _, weight in pipe.adapters_in_use()] == [("brain-mri", 0.25), ("style", -1.5)]
    mixed = draw(pipe)
    pipe.disable_lora()
    assert pipe.adapters_in_use() == () and np.array_equal(draw(pipe), bare)
    pipe.enable_lora()
    assert np.array_equal(draw(pipe), mixed)
    with pytest.raises(ValueError, match="`adapter_names`"):
        pipe.set_adapters(["style", "style"])
    pipe.delete_adapters("brain-mri")
    assert names(pipe) == ["style"]
    pipe.delete_adapters("style")
    assert names(pipe) == [] and np.array_equal(draw(pipe), bare)  # no other is switched on for it
    with pytest.raises(ValueError, match="`adapter_names`"):
        pipe.delete_adapters("style")
    pipe.unload_lora_weights()
    assert pipe.get_list_adapters() == {} and pipe.model_sha256 == model
    for part, before in ((pipe.unet, base), (pipe.text_encoder, text)):
        assert part.state_dict().keys() == before.keys()
        assert all(torch.equal(tensor, before[key]) for key, tensor in part.state_dict().items())


def test_deleting_the_last_adapter_gives_back_the_base_itself(saved):
    pipe = tiny_pipeline()
    keys = list(pipe.unet.state_dict())
    pipe.load_lora_weights(saved["style"])
    pipe.delete_adapters(["style"])
    assert list(pipe.unet.state_dict()) == keys and pipe.get_list_adapters() == {}


def test_weights_by_block_have_a_row_each(saved):
    pipe = tiny_pipeline()
    pipe.load_lora_weights(saved["style"])
    blocks = {"unet": {"down": 0.5, "mid": 0.5, "up": 1.0}, "text_encoder": 0.0}
    pipe.set_adapters("style", blocks)
    rows = {name: weight for name, _, weight in pipe.adapters_in_use()}
    assert rows == {
        "style:text_encoder": 0.0,
        "style:unet.down_blocks": 0.5,
        "style:unet.mid_block": 0.5,
        "style:unet.up_blocks": 1.0,
    }
    pipe.set_adapters("style", {"unet": {"up": {"block_0": [0.1, 0.9]}}})
    rows = {name: weight for name, _, weight in pipe.adapters_in_use()}
    assert rows["style:unet.up_blocks.0.attentions.0"] == 0.1
    assert rows["style:unet.up_blocks.0.attentions.1"] == 0.9
    assert read_recipe(pipe(CHEST, seed=1).dicoms[0]).adapters == pipe.adapters_in_use()


def test_fused_adapters_are_part_of_the_model_until_unfused(saved):
    pipe = tiny_pipeline()
    pipe.load_lora_weights(saved["chest-xray"])
    pipe.load_lora_weights(saved["style"])
    pipe.set_adapters("style", 0.5)
    model, used, picture = pipe.model_sha256, pipe.adapters_in_use(), draw(pipe)
    for options in ({}, {"lora_scale": 0.5}, {"safe_fusing": True}):
        pipe.fuse_lora(**options)
        assert pipe.adapters_in_use() == () and pipe.model_sha256 != model
        if "lora_scale" not in options:
            assert np.allclose(draw(pipe), picture, atol=1e-4)
        for forbidden in (
            lambda: pipe.fuse_lora(),
            lambda: pipe.set_adapters("chest-xray"),
            lambda: pipe.delete_adapters("style"),
            lambda: pipe.load_lora_weights(saved["brain-mri"]),
        ):
            with pytest.raises(ValueError, match="unfuse_lora"):
                forbidden()
        assert pipe(CHEST, modality="chest-xray", seed=1).recipes[0].adapters == ()
        pipe.unfuse_lora()
        assert (pipe.adapters_in_use(), pipe.model_sha256) == (used, model)
        assert np.array_equal(draw(pipe), picture)
    pipe.fuse_lora()
    pipe.disable_lora()  # peft would take the fused weights out at the next step, behind the hash's back
    assert pipe.model_sha256 == model and pipe.adapters_in_use() == ()
    with pytest.raises(ValueError, match="enable_lora"):
        pipe.fuse_lora()
    pipe.enable_lora()
    pipe.fuse_lora()
    fused = pipe.model_sha256
    pipe.unload_lora_weights()
    assert pipe.model_sha256 == fused != model and pipe.adapters_in_use() == ()


def test_a_failure_half_way_leaves_the_model_as_it_was(saved, monkeypatch):
    pipe = tiny_pipeline()
    pipe.load_lora_weights(saved["brain-mri"])
    before, picture = list(pipe.unet.state_dict()), draw(pipe)

    def fail(*arguments, **options):
        raise RuntimeError("no memory")

    monkeypatch.setattr(pipe, "load_lora_into_text_encoder", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        pipe.load_lora_weights(saved["style"])
    assert list(pipe.unet.state_dict()) == before
    assert names(pipe) == ["brain-mri"] and np.array_equal(draw(pipe), picture)


def test_adapter_of_the_text_encoder_alone(tmp_path):
    save_adapter(tmp_path / "words", (), text_targets=TEXT)
    pipe = tiny_pipeline()
    bare, model = draw(pipe), pipe.model_sha256
    pipe.load_lora_weights(tmp_path / "words")
    assert pipe.adapters_in_use() == (("words", read_adapter(tmp_path / "words").sha256, 1.0),)
    assert not np.array_equal(draw(pipe), bare)
    pipe.set_adapters("words", 0.0)
    assert np.allclose(draw(pipe), bare, atol=1e-6)
    pipe.unload_lora_weights()
    assert pipe.model_sha256 == model and np.array_equal(draw(pipe), bare)


def test_half_precision_file_and_model_hash_alike(saved):
    pipe = tiny_pipeline().to(torch.float16)
    pipe.load_lora_weights(saved["style"])
    assert pipe.adapters_in_use()[0][1] == read_adapter(saved["style"]).sha256
    assert {p.dtype for n, p in pipe.unet.named_parameters() if "lora_" in n} == {torch.float16}


def test_loading_while_switched_off_stays_off(saved):
    pipe = tiny_pipeline()
    bare = draw(pipe)
    pipe.load_lora_weights(saved["brain-mri"])
    pipe.disable_lora()
    pipe.load_lora_weights(saved["chest-xray"])  # has layers that the first has not
    assert pipe.adapters_in_use() == () and np.array_equal(draw(pipe, modality="brain-mri"), bare)
    pipe.enable_lora()
    assert names(pipe) == ["chest-xray"]


def test_hash_follows_changed_and_replaced_weights(saved, tmp_path):
    pipe = tiny_pipeline()
    pipe.load_lora_weights(saved["brain-mri"], adapter_name="a")
    first = pipe.adapters_in_use()[0][1]
    parameter = next(p for n, p in pipe.unet.named_parameters() if "lora_B" in n)
    with torch.no_grad():
        parameter += 1
    assert pipe.adapters_in_use()[0][1] != first
    save_adapter(tmp_path, ATTENTION, seed=9)
    for folder in (saved["brain-mri"], tmp_path, saved["brain-mri"], tmp_path):  # memory may be had at the same place
        pipe.delete_adapters("a")
        pipe.load_lora_weights(folder, adapter_name="a")
        assert pipe.adapters_in_use()[0][1] == read_adapter(folder).sha256


def test_a_model_with_adapters_is_not_saved(saved, tmp_path):
    pipe = tiny_pipeline()
    pipe.load_lora_weights(saved["brain-mri"])
    with pytest.raises(ValueError, match="unload_lora_weights"):
        pipe.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(ValueError, match="`hotswap`"):
        pipe.load_lora_weights(saved["brain-mri"], hotswap=True)


# ---- modality -------------------------------------------------------------------------------------------------------


def test_modality_picks_the_adapter_for_one_call(saved):
    pipe = tiny_pipeline()
    for name in ("chest-xray", "brain-mri", "style"):
        pipe.load_lora_weights(saved[name])
    pipe.set_adapters(["style", "brain-mri"], [0.5, 0.25])
    before, picture = pipe.adapters_in_use(), draw(pipe, CHEST)
    output = pipe(CHEST, modality="chest-xray", seed=1)
    assert [row[0] for row in output.recipes[0].adapters] == ["chest-xray"]
    assert read_recipe(output.dicoms[0]).adapters == output.recipes[0].adapters
    assert output.dicoms[0].Modality == "DX"
    assert pipe.adapters_in_use() == before and np.array_equal(draw(pipe, CHEST), picture)
    kept = pipe(BRAIN, modality="brain-mri", seed=1).recipes[0].adapters  # one in use is for it: left as it is
    assert kept == before
    assert pipe("blood smear", modality="blood-smear", seed=1).recipes[0].adapters == before  # none is loaded for it

    def stop(*arguments):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        pipe(CHEST, modality="chest-xray", seed=1, callback_on_step_end=stop)
    assert pipe.adapters_in_use() == before
    for wrong in ({"modality": "ultrasound"}, {"modality": "chest-xray", "num_inference_steps": 0}):
        with pytest.raises(ValueError, match=list(wrong)[-1]):
            pipe(CHEST, **wrong)
    assert pipe.adapters_in_use() == before
    pipe.disable_lora()
    assert pipe(CHEST, modality="chest-xray", seed=1).recipes[0].adapters == ()


def test_several_adapters_of_one_modality(saved):
    pipe = tiny_pipeline()
    pipe.load_lora_weights(saved["brain-mri"])
    state = load_file(saved["style"] / WEIGHTS)
    for name in ("covid", "paediatric"):
        pipe.load_lora_weights(state, adapter_name=name)
        pipe._adapter_modalities[name] = "chest-xray"
    pipe.set_adapters("brain-mri")
    assert pipe.adapter_for(CHEST, "chest-xray") is None  # two, and none by that name: which one, the user must say
    pipe.load_lora_weights(saved["chest-xray"])
    pipe.set_adapters("brain-mri")
    assert pipe.adapter_for(CHEST, "chest-xray") == "chest-xray"
    assert pipe.adapter_for([CHEST, CHEST], "Chest_Xray") == "chest-xray"
    assert pipe.adapter_for(CHEST, None) is None
    assert pipe.adapter_for(5, "chest-xray") is None
    pipe.set_adapters("covid")
    assert pipe.adapter_for(CHEST, "chest-xray") is None


def test_family_adapters_serve_each_of_their_profiles(saved):
    pipe = tiny_pipeline()
    for name, modality in (("ct", None), ("head", "ct-head"), ("nuclei", None)):
        pipe.load_lora_weights(saved["brain-mri"], adapter_name=name)
        pipe._adapter_modalities[name] = modality
    pipe.set_adapters([])
    assert pipe.adapters_in_use() == ()
    assert pipe.adapter_for("chest", "ct") == "ct"
    assert pipe.adapter_for("head", "ct-head") == "ct"  # by its name
    assert pipe.adapter_for("", "nuclei-histology") == pipe.adapter_for("H&E", "nuclei") == "nuclei"


def test_profile_comes_from_the_adapter_in_use(saved, tmp_path):
    pipe = tiny_pipeline()
    pipe.load_lora_weights(saved["style"], adapter_name="nuclei")
    for prompt, profile in (
        ("a picture", "nuclei-fluorescence"),
        ("H&E", "nuclei-histology"),
        (BRAIN, "nuclei-fluorescence"),
    ):
        assert pipe(prompt, seed=1).recipes[0].modality == profile
    save_adapter(tmp_path / "covid", ATTENTION, modality="chest-xray")
    pipe.load_lora_weights(tmp_path / "covid")
    assert pipe("nothing special", seed=1).dicoms[0].Modality == "DX"
    pipe.load_lora_weights(saved["chest-xray"])
    pipe.set_adapters(["covid", "chest-xray"])  # they agree
    assert pipe("nothing special", seed=1).dicoms[0].Modality == "DX"
    pipe.set_adapters(["covid", "nuclei"])
    assert pipe(BRAIN, seed=1).dicoms[0].Modality == "MR"
    with pytest.raises(ValueError, match="`prompt`"):
        pipe("nothing special")


# ---- DICOM and command line -----------------------------------------------------------------------------------------


def test_dicom_names_adapter_hash_and_weight(saved):
    pipe = tiny_pipeline()
    pipe.load_lora_weights(saved["chest-xray"])
    pipe.set_adapters("chest-xray", 0.75)
    first = pipe(CHEST, seed=1).dicoms[0]
    text = first.ContributingEquipmentSequence[0].ContributionDescription
    assert f"Adapter chest-xray, weight 0.75, SHA-256 {read_adapter(saved['chest-xray']).sha256}" in text
    pipe.set_adapters("chest-xray", 0.76)
    assert pipe(CHEST, seed=1).dicoms[0].SOPInstanceUID != first.SOPInstanceUID
    with pytest.raises(ValueError, match="`adapters`"):
        pipe.set_adapters("chest-xray", float("nan"))
        pipe(CHEST, seed=1)


def test_adapter_options_are_parsed(saved, tmp_path, monkeypatch):
    path = str(saved["style"])
    assert parse_adapter(path) == (path, 1.0)
    assert parse_adapter(f"{path}:-0.5") == (path, -0.5)
    assert parse_adapter("org/name:2") == ("org/name", 2.0)
    colon = tmp_path / "x:1"
    colon.mkdir()
    assert parse_adapter(str(colon)) == (str(colon), 1.0)
    assert parse_adapter(f"{colon}:0.5") == (str(colon), 0.5)
    monkeypatch.setattr("pipeline.adapter_names._LORA_FOLDER", saved["style"].parent)
    assert list(shipped_adapters()) == ["brain-mri", "chest-xray", "style"]
    assert parse_adapter("brain-mri:0.5") == (str(saved["brain-mri"]), 0.5)
    monkeypatch.chdir(ROOT)
    for text in (
        "lora/misspelt",
        "x",
        "brain-mri:",
        "brain-mri:much",
        "brain-mri:nan",
        "brain-mri:2.1",
        "brain-mri:inf",
        "../lora/x",
    ):
        with pytest.raises(ValueError, match="`adapter`"):
            parse_adapter(text)


def generate(tiny_folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", "generate", *arguments, "--model", str(tiny_folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_command_line_mixes_adapters(tiny_folder, saved, tmp_path):
    options = ["--adapter", f"{saved['chest-xray']}:0.5", "--adapter", str(saved["style"]), "--modality", "chest-xray"]
    done = generate(tiny_folder, "as usual", *options, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    recipe = read_recipe(pydicom.dcmread(done.stdout.strip()))
    assert [(name, weight) for name, _, weight in recipe.adapters] == [("chest-xray", 0.5), ("style", 1.0)]
    assert recipe.adapters[0][1] == read_adapter(saved["chest-xray"]).sha256


@pytest.mark.parametrize(("adapter", "says"), [("{}:3", "`adapter`"), ("nowhere", "`adapter`"), ("{}", "incomplete")])
def test_command_line_says_what_is_wrong_with_an_adapter(tiny_folder, copied, tmp_path, adapter, says):
    rewrite(copied, without("mid_block"))
    out = tmp_path / "out"
    done = generate(tiny_folder, CHEST, "--adapter", adapter.format(copied.parent), "--out", str(out))
    assert done.returncode == 2 and done.stdout == "" and not out.exists()
    assert len(done.stderr.splitlines()) == 1 and says in done.stderr, done.stderr


def test_copied_code_takes_adapters(tiny_folder, saved, tmp_path):
    """The folder that `save_pretrained` wrote holds all the code, as other people's diffusers load it."""
    code = (
        "import json\nfrom diffusers import DiffusionPipeline\n"
        f"pipe = DiffusionPipeline.from_pretrained({str(tiny_folder)!r}, trust_remote_code=True)\n"
        f"pipe.load_lora_weights({str(saved['chest-xray'])!r})\n"
        "print(json.dumps(pipe('a picture', seed=1).recipes[0].adapters))\n"
    )
    environment = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    adapters = json.loads(done.stdout.splitlines()[-1])
    assert adapters == [["chest-xray", read_adapter(saved["chest-xray"]).sha256, 1.0]]
