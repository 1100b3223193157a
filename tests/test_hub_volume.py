"""The volume model on the Hub: a repository of its own that loads in one line and holds the command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from hub_cards import cards
from hub_cards.build import MODEL, SPACE, VOLUME, Project, build, copy_model, repositories
from hub_cards.facts import Facts, MissingNumber
from pipeline.dicom_provenance import Recipe

from .fresh_process import run_fresh
from .hub_project import make_project
from .hub_server import HubServer
from .test_hub_cards import untraced
from .tiny_volume import tiny_volume_pipeline

HUB = cards.Names("ORG", MODEL, {}, SPACE, "samples", VOLUME)
# What `lora.volume_record.training_record` writes, as far as the card reads it.
RECORD = {
    "packs": [
        {"pack": "made-up", "modality": "MR", "volumes": 4321, "licence": ["CC BY-SA 4.0"], "sources": ["nobody"]}
    ],
    "split": "by volume: 80 % train",
    "parameters": {"unet": 765_432},
    "hardware": {"device": "cpu", "gpu": None, "cores": 2},
    "seconds": 5555,
    "volumes_seen": 9876,
}
JUDGED = [
    {"question": "Correlation of anterior", "value": 0.8765, "low": 0.81, "high": 0.92, "bar": 0.8, "least": True}
    | {"holds": True},
    {"question": "Copies", "value": None, "low": None, "high": None, "bar": 0, "least": False, "holds": None},
]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    made = make_project(tmp_path_factory.mktemp("project"))
    tiny_volume_pipeline().save_pretrained(made.volume)
    (made.volume / "training.json").write_text(json.dumps(RECORD))
    return Project(made.root, ())


@pytest.fixture(scope="module")
def folder(project) -> Path:
    (built,) = build(project, "ORG", project.root / "build", only=[VOLUME])
    assert built.repo_type == "model"
    return built.folder


def test_the_folder_is_the_model_its_code_and_a_card(project, folder):
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"README.md", "model_index.json", "training.json", "unet/diffusion_pytorch_model.safetensors"} <= names
    assert {"volume_pipeline.py", "pipeline/__main__.py", "pipeline/volume/volume_pipeline.py"} <= names
    assert not any(name.startswith("pipeline/") and not name.endswith(".py") for name in names)
    for path in folder.glob("*.py"):
        assert path.read_bytes() == (project.volume / path.name).read_bytes()


def test_what_is_a_link_in_the_tree_is_a_file_on_the_hub(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "volume" / "text_encoder").mkdir(parents=True)
    (tmp_path / "volume" / "text_encoder" / "model.safetensors").symlink_to("../../base/model.safetensors")
    copy_model(tmp_path / "volume", tmp_path / "out")
    copied = tmp_path / "out" / "text_encoder" / "model.safetensors"
    assert copied.read_bytes() == b"weights" and not copied.is_symlink()


def test_the_card(project, folder):
    taken = json.loads((folder.parent / "numbers.json").read_text())[f"{VOLUME}/README.md"]
    card = (folder / "README.md").read_text()
    assert untraced(card, taken) - {"1", "3"} == set()  # "T1", "text-to-3d"
    data = ModelCard(card).data
    assert (data.license, data.library_name) == ("other", "diffusers")
    for example in data.widget:
        with Image.open(folder / example["output"]["url"]) as picture:
            assert (
                Recipe.from_json(picture.text["Recipe"]).volume is not None and "SYNTHETIC" in picture.text["Comment"]
            )


def test_what_was_measured_is_on_the_card(project, folder):
    path = project.root / "evaluation/results/volumes.json"
    before = path.read_bytes() if path.is_file() else None
    try:
        path.unlink(missing_ok=True)
        assert "Not measured yet" in cards.volume_card(Facts(project.root, folder), HUB)
        path.write_text(json.dumps({"judged": JUDGED}))
        card = cards.volume_card(Facts(project.root, folder), HUB)
        assert "| Correlation of anterior | 0.876 | 0.810 to 0.920 | at least 0.8: held |" in card
        assert "| Copies | not measured |  | at most 0: not measured |" in card
        path.write_text(json.dumps({}))
        with pytest.raises(MissingNumber, match=re.escape("no key 'judged'")):
            cards.volume_card(Facts(project.root, folder), HUB)
    finally:
        path.unlink() if before is None else path.write_bytes(before)


def test_the_model_of_images_is_without_it_and_the_space_with_it(project, tmp_path):
    assert [repository.name for repository in repositories(project, tmp_path)][1] == VOLUME
    copy_model(project.model, tmp_path / "model", without=("volume",))
    assert not (tmp_path / "model" / "volume").exists() and (tmp_path / "model" / "volume_dicom.py").is_file()
    build(project, "ORG", tmp_path, only=[SPACE])
    assert (tmp_path / SPACE / "pipeline/volume/model_index.json").is_file()
    assert (tmp_path / SPACE / "app_volume.py").is_file()
    assert f"ORG/{VOLUME}" in ModelCard.load(tmp_path / SPACE / "README.md").data.to_dict()["models"]


def test_without_a_model_there_is_no_repository(tmp_path):
    project = make_project(tmp_path)
    assert VOLUME not in [repository.name for repository in repositories(project, tmp_path / "hub")]
    with pytest.raises(ValueError, match="`only` has"):
        build(project, "ORG", tmp_path / "hub", only=[VOLUME])


def test_the_same_content_gives_the_same_bytes(project, folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    build(project, "ORG", project.root / "build", only=[VOLUME])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_it_loads_by_one_line_from_a_hub(project, folder, tmp_path):
    code = f"""
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi
HfApi().create_repo("ORG/{VOLUME}")
HfApi().upload_folder(repo_id="ORG/{VOLUME}", folder_path={str(folder)!r})
pipe = DiffusionPipeline.from_pretrained("ORG/{VOLUME}", trust_remote_code=True)
out = pipe("T1 MRI of the hippocampus", {{"anterior_mm3": 25, "posterior_mm3": 33}}, seed=7)
print(out.volumes.shape, pipe.model_sha256)
"""
    with HubServer(tmp_path / "hub") as hub:
        printed = run_fresh(code, tmp_path / "user", hub.env(tmp_path / "cache")).splitlines()[-1]
    assert printed == f"(1, 6, 8, 4) {tiny_volume_pipeline().model_sha256}"


def test_the_downloaded_folder_writes_dicom_by_itself(folder, tmp_path):
    command = [sys.executable, "-m", "pipeline", "volume", "T1 MRI of the hippocampus", "--seg", "--model", "."]
    done = subprocess.run([*command, "--out", str(tmp_path)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4 + 1
