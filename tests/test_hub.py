"""The pipeline and adapters on a Hub: the real clients, in processes of their own, against the loopback Hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lora import train
from pipeline import read_recipe
from pipeline.pipeline import SyntheticDicomPipeline
from pipeline.pipeline_saving import COMMAND_FILES

from .fresh_process import run_fresh
from .hub_server import HubServer
from .test_lora_train import SMALL, make_folder
from .tiny import tiny_pipeline

ROOT = Path(__file__).parents[1]
PROMPT = "axial T1 brain MRI with contrast, meningioma"

# What a process tells of images: UID, hash of the pixels as stored and of the whole file.
TELL = f"""
import hashlib, io, json, logging
logging.disable(logging.WARNING)
import torch
from diffusers import DiffusionPipeline
torch.set_num_threads(1)

def tell(pipe, **call):
    pipe.set_progress_bar_config(disable=True)
    dataset = pipe({PROMPT!r}, seed=5, **call).dicoms[0]
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    parts = dataset.PixelData, buffer.getvalue()
    return [str(dataset.SOPInstanceUID), *(hashlib.sha256(part).hexdigest() for part in parts)]
"""

PUBLISH = """
from datasets import Dataset
from diffusers import EulerDiscreteScheduler
from huggingface_hub import HfApi

api, told = HfApi(), {}
for name, folder in (("tiny", MODEL), ("tiny-lora-brain-mri", ADAPTER)):
    api.create_repo(f"ORG/{name}")
    api.upload_folder(repo_id=f"ORG/{name}", folder_path=folder)
    api.create_tag(f"ORG/{name}", tag="v1")
pipe = DiffusionPipeline.from_pretrained(MODEL, trust_remote_code=True)
told["base"] = tell(pipe)
pipe.load_lora_weights(ADAPTER)
told["adapter"] = tell(pipe)
pipe.unload_lora_weights()

# What a user makes of it: another scheduler.
pipe.scheduler = EulerDiscreteScheduler(steps_offset=1)
told["mine"] = tell(pipe)
pipe.save_pretrained("mine", push_to_hub=True, repo_id="ORG/saved")
for _ in range(2):
    pipe.push_to_hub("ORG/mine", private=True, commit_message="Mine")
# The tagged model goes on: main is another one now.
api.upload_folder(repo_id="ORG/tiny", folder_path="mine")
Dataset.from_dict({"prompt": ["a", "b"]}).push_to_hub("ORG/samples")
print(json.dumps(told))
"""

LOAD = """
from datasets import load_dataset
from huggingface_hub import snapshot_download

pipe = DiffusionPipeline.from_pretrained("ORG/tiny", revision="v1", trust_remote_code=True)
told = {"module": type(pipe).__module__, "base": tell(pipe)}
told["name"] = pipe.load_lora_weights("ORG/tiny-lora-brain-mri", revision="v1")
told["adapter"] = tell(pipe, modality="brain-mri")
pipe.unload_lora_weights()
pipe.save_pretrained("again")  # from the Hub, and on to a folder
told["again"] = tell(DiffusionPipeline.from_pretrained("again", trust_remote_code=True))
for name in ("tiny", "mine", "saved"):
    told[name] = tell(DiffusionPipeline.from_pretrained(f"ORG/{name}", trust_remote_code=True))
told["dataset"] = list(load_dataset("ORG/samples", split="train")["prompt"])
told["snapshot"] = snapshot_download("ORG/tiny", revision="v1")
print(json.dumps(told))
"""

OFFLINE = """
import shutil, sys
from huggingface_hub import snapshot_download

folder = snapshot_download("ORG/tiny", revision="v1")
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
told = {"base": tell(pipe)}
pipe.load_lora_weights("ORG/tiny-lora-brain-mri", revision="v1")
told["adapter"] = tell(pipe)

shutil.copytree(folder, "pipeline")  # the repository is the package
sys.path.insert(0, ".")
from pipeline import SyntheticDicomPipeline

pipe = SyntheticDicomPipeline.from_pretrained("ORG/tiny", revision="v1")
told |= {"module": type(pipe).__module__, "class": tell(pipe)}
print(json.dumps(told))
"""


def told_by(code: str, folder: Path, env: dict[str, str]) -> dict[str, Any]:
    return json.loads(run_fresh(TELL + code, folder, env).splitlines()[-1])


@dataclass
class World:
    """A Hub with a tiny model, an adapter, a user's own pipelines and a data set, and who loaded them from there."""

    hub: HubServer
    cache: Path
    root: Path
    local: dict[str, Any]
    remote: dict[str, Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_folder: Path, saved: dict[str, Path]) -> Iterator[World]:
    root = tmp_path_factory.mktemp("hub")
    with HubServer(root / "hub") as hub:
        names = f"MODEL, ADAPTER = {str(tiny_folder)!r}, {str(saved['brain-mri'])!r}\n"
        local = told_by(names + PUBLISH, root / "maker", hub.env(root / "maker-cache"))
        remote = told_by(LOAD, root / "user", hub.env(root / "cache"))
        yield World(hub, root / "cache", root, local, remote)


def test_remote_output_equals_the_local_one(world, tiny):
    assert world.remote["module"].startswith("diffusers_modules")
    assert world.remote["base"] == world.local["base"]  # UID, pixels and every other byte
    assert world.remote["base"][0] == tiny(PROMPT, seed=5).dicoms[0].SOPInstanceUID
    assert world.remote["dataset"] == ["a", "b"]


def test_adapter_by_id(world):
    assert world.remote["name"] == "tiny-lora-brain-mri"
    assert world.local["adapter"] != world.local["base"]
    # Its name is that of the folder here and of the repository there, and names are part of a recipe.
    assert world.remote["adapter"][1] == world.local["adapter"][1]


def test_own_pipeline_goes_to_a_folder_and_to_the_hub_and_comes_back(world):
    assert world.local["mine"] != world.local["base"]
    assert world.remote["mine"] == world.remote["saved"] == world.local["mine"]
    files = world.hub.files("ORG/mine")
    assert json.loads(files["model_index.json"])["_class_name"] == ["pipeline", "SyntheticDicomPipeline"]
    assert json.loads(files["model_index.json"])["scheduler"] == ["diffusers", "EulerDiscreteScheduler"]
    assert "synthetic" in files["README.md"].decode() and 'from_pretrained("ORG/mine"' in files["README.md"].decode()
    # What the pipeline itself needs: diffusers fetched no more of it than that.
    code = {path.name: path.read_bytes() for path in (ROOT / "pipeline").glob("*.py") if path.name not in COMMAND_FILES}
    assert {name: content for name, content in files.items() if name.endswith(".py")} == code
    assert len(world.hub.commits("ORG/mine")) == 2  # it was pushed twice; the other one is the empty repository's
    repo = world.hub.store.read("model", "ORG/mine")
    assert repo["private"] and repo["commits"][world.hub.commits("ORG/mine")[0]]["title"] == "Mine"


def test_loaded_from_the_hub_and_saved_again(world):
    assert world.remote["again"] == world.local["base"]


def test_revision_is_the_tagged_model_and_main_the_latest(world):
    assert world.remote["base"] == world.local["base"]
    assert world.remote["tiny"] == world.local["mine"]


def test_offline_after_one_download(world):
    env = world.hub.env(world.cache) | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    told = told_by(OFFLINE, world.root / "offline", env)
    assert told["module"] == "pipeline.pipeline"
    assert told["base"] == told["class"] == world.remote["base"]
    assert told["adapter"] == world.remote["adapter"]


def test_card_of_the_repository_stays_and_no_stray_file_is_pushed(world, tiny_folder):
    code = f"""
from huggingface_hub import HfApi
pipe = DiffusionPipeline.from_pretrained({str(tiny_folder)!r}, trust_remote_code=True)
HfApi().create_repo("ORG/carded")
HfApi().upload_file(repo_id="ORG/carded", path_or_fileobj=b"# Mine alone", path_in_repo="README.md")
import pathlib
pathlib.Path("model").mkdir()
pathlib.Path("model/diary.txt").write_text("private")
pipe.save_pretrained("model", push_to_hub=True, repo_id="ORG/carded")
print("{{}}")
"""
    told_by(code, world.root / "carded", world.hub.env(world.root / "maker-cache"))
    files = world.hub.files("ORG/carded")
    assert files["README.md"] == b"# Mine alone" and "diary.txt" not in files and "unet/config.json" in files


class Renamed(SyntheticDicomPipeline):
    """A user's class that is not part of the pipeline's folder."""


def test_class_outside_the_folder_is_saved_as_ours_with_a_warning(tiny, tmp_path, caplog):
    Renamed(**tiny.components).save_pretrained(tmp_path)
    assert "Renamed" in caplog.text
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"][1] == "SyntheticDicomPipeline"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("arguments", [{"safe_serialization": False}, {"repo_id": "ORG/x"}])
def test_what_cannot_be_saved_is_refused_before_anything_is_written(tiny, tmp_path, arguments):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}`"):
        tiny.save_pretrained(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_adapters_are_no_part_of_a_saved_model(saved, tmp_path):
    pipe = tiny_pipeline()
    pipe.load_lora_weights(saved["style"])
    with pytest.raises(ValueError, match="unload_lora_weights"):
        pipe.push_to_hub("ORG/x")  # says so before it asks a Hub


# ---- python -m lora.train --push-to-hub -----------------------------------------------------------------------------

TRAIN = """
import sys
sys.path.insert(0, ROOT)
from lora import train
def run(*more):
    return train.main([*COMMAND, *more])
"""


@pytest.fixture(scope="module")
def training(tmp_path_factory, tiny_folder) -> tuple[Path, str]:
    """The adapter's folder, and code that offers `run(*options)`."""
    root = tmp_path_factory.mktemp("training")
    data, out = make_folder(root / "data"), root / "mine"
    steps = ["--steps", "2", "--validate-every", "1", "--verdict-count", "0"]
    command = ["--data", str(data), "--out", str(out), "--model", str(tiny_folder), *steps, *SMALL]
    return out, f"ROOT, COMMAND = {str(ROOT)!r}, {command!r}\n{TRAIN}"


def test_training_pushes_only_when_asked_and_once(training, tmp_path):
    out, code = training
    with HubServer(tmp_path / "hub") as hub:
        env = hub.env(tmp_path / "cache")
        run_fresh(code + "assert run() == 0", tmp_path, env)
        assert hub.requests == []
        written = (out / "pytorch_lora_weights.safetensors").stat().st_mtime_ns
        push = 'assert run("--push-to-hub", "ORG/mine", "--private") == 0\n'
        printed = run_fresh(code + push * 2, tmp_path, env)
        assert (out / "pytorch_lora_weights.safetensors").stat().st_mtime_ns == written  # not trained again
        assert printed.count("pushed as it is") == 2 and f"{hub.url}/ORG/mine" in printed
        assert len(hub.commits("ORG/mine")) == 2
        assert hub.store.read("model", "ORG/mine")["private"]
        files = hub.files("ORG/mine")
    local = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert files.keys() == local.keys() - {"log.jsonl"} >= {"samples/before.jpg", "samples/after.jpg"}
    assert {name for name in files if files[name] != local[name]} == {"README.md"}
    card = files["README.md"].decode()
    assert 'load_lora_weights("ORG/mine"' in card and "PATH_OR_HUB_ID" not in card and "**synthetic**" in card
    (tmp_path / "w.safetensors").write_bytes(files["pytorch_lora_weights.safetensors"])
    assert load_file(tmp_path / "w.safetensors")


def test_push_that_fails_leaves_the_adapter_and_says_how_to_go_on(training, tmp_path):
    out, code = training
    refused = """
import contextlib, io
with contextlib.redirect_stderr(io.StringIO()) as said:
    assert run("--push-to-hub", "ORG/mine") == 1
assert "is whole in" in said.getvalue() and "same command" in said.getvalue(), said.getvalue()
"""
    if not out.exists():
        run_fresh(code + "assert run() == 0", tmp_path, {"HF_HUB_OFFLINE": "1"})
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    binary = len([path for path in before if path.suffix in (".safetensors", ".jpg")])
    with HubServer(tmp_path / "hub", fail_after=binary) as hub:  # these arrive, the commit does not
        run_fresh(code + refused, tmp_path, hub.env(tmp_path / "cache"))
        assert len(hub.commits("ORG/mine")) == 1 and hub.dead
    with HubServer(tmp_path / "hub") as hub:
        run_fresh(code + refused, tmp_path, hub.env(tmp_path / "cache") | {"HF_TOKEN": "hf_wrong"})
        run_fresh(code + 'assert run("--push-to-hub", "ORG/mine") == 0', tmp_path, hub.env(tmp_path / "cache"))
        nobody = {key: value for key, value in hub.env(tmp_path / "nobody").items() if key != "HF_TOKEN"}
        run_fresh(code + 'assert run("--push-to-hub", "ORG/mine") == 2  # not logged in', tmp_path, nobody)
        assert len(hub.commits("ORG/mine")) == 2
        assert not any(request.startswith("PUT /_lfs") for request in hub.requests)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("options", [["--push-to-hub", "no repository"], ["--push-to-hub", "mine"], ["--private"]])
def test_options_of_a_push_are_checked_before_any_work(tmp_path, capsys, options):
    assert train.main(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "mine"), *options]) == 2
    said = capsys.readouterr().err
    assert f"`{options[0].strip('-').replace('-', '_')}`" in said and said.count("\n") == 1


def test_recipe_of_a_pushed_model_names_no_path(world, tiny_folder, tmp_path):
    shutil.copytree(Path(world.remote["snapshot"]), tmp_path / "snapshot")
    pipe = SyntheticDicomPipeline.from_pretrained(tmp_path / "snapshot")
    pipe.set_progress_bar_config(disable=True)
    recipe = read_recipe(pipe(PROMPT, seed=5).dicoms[0])
    assert recipe is not None and recipe.model == "tiny"
