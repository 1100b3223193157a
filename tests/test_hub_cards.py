"""The folders that are pushed, and their cards: what is in them, and that every number comes from a file."""

from __future__ import annotations

import ast
import copy
import hashlib
import io
import json
import re
import shutil
from pathlib import Path

import pydicom
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from hub_cards import cards
from hub_cards.build import Project, build, copy_model
from hub_cards.facts import Facts, MissingNumber
from hub_cards.samples import Sampler, base_requests
from pipeline import Recipe, read_recipe
from pipeline.adapter_names import shipped_adapters

from .hub_project import ADAPTER, RECORD, ROOT, make_project

NAMES = cards.Names(
    "ORG",
    "synthetic-dicom",
    {ADAPTER: f"synthetic-dicom-lora-{ADAPTER}"},
    "synthetic-dicom-space",
    "synthetic-dicom-samples",
)
CARDS = {
    "synthetic-dicom": lambda facts: cards.model_card(facts, NAMES),
    f"synthetic-dicom-lora-{ADAPTER}": lambda facts: cards.adapter_card(facts, NAMES, ADAPTER),
    "synthetic-dicom-samples": lambda facts: cards.samples_card(facts, NAMES),
    "synthetic-dicom-space": lambda facts: cards.space_card(facts, NAMES),
}
# No measurements: names of things, and code that is shown.
CODE = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)|Apache-2\.0|ORG/\S+|synthetic-dicom\S*", re.DOTALL)
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def out(project) -> Path:
    folder = project.root / "build" / "hub"
    built = build(project, "ORG", folder, samples=2)
    # What a card refers to is pushed before it.
    assert [repository.name for repository in built] == list(CARDS)
    assert [repository.repo_type for repository in built] == ["model", "model", "dataset", "space"]
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def untraced(card: str, taken: list[dict]) -> set[str]:
    """Numbers of a card that no record accounts for."""
    text, known = CODE.sub(" ", card), " ".join(record["text"] for record in taken)
    return set(NUMBER.findall(text.split("---\n", 2)[2])) - set(NUMBER.findall(known))


# ---- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CARDS)
def test_every_number_is_traced_to_a_file(project, out, name):
    numbers = json.loads((out / "numbers.json").read_text())
    taken = numbers[f"{name}/README.md"]
    card = (out / name / "README.md").read_text()
    assert untraced(card, taken) == set()
    for record in taken:
        if record["file"].startswith(name):
            facts, file = Facts(project.root, out / name), "./" + record["file"].partition("/")[2]
        else:
            facts, file = Facts(project.root, out / name), record["file"]
        value = facts.value(file, record["key"])
        assert (sum(value) if "*" in record["key"] else value) == record["value"]
    for result in getattr(ModelCard(card).data, "eval_results", None) or []:
        assert any(record["text"] == f"{result.metric_value:.4f}" for record in taken)


def test_the_check_finds_a_typed_number():
    assert untraced("---\na: 1\n---\nKID 0.123 of `x1` 77", [{"text": "0.123"}]) == {"77"}


@pytest.mark.parametrize("name", [name for name in CARDS if name != "synthetic-dicom-space"])
def test_every_missing_key_fails_with_its_name(project, out, name):
    for record in json.loads((out / "numbers.json").read_text())[f"{name}/README.md"]:
        path = project.root / record["file"]
        if not path.is_file():
            assert record["file"].startswith(name)  # written by the build itself
            continue
        before = path.read_text()
        *parents, last = record["key"].replace("*", "0").split(".")
        changed = json.loads(before)
        place = changed
        for part in parents:
            place = place[int(part) if isinstance(place, list) else part]
        del place[last]
        try:
            path.write_text(json.dumps(changed))
            with pytest.raises(MissingNumber, match=re.escape(record["file"])) as caught:
                CARDS[name](Facts(project.root, out / name))
        finally:
            path.write_text(before)
        assert re.search(rf"no key '\S*\b{re.escape(last)}", str(caught.value)), (record, str(caught.value))


@pytest.mark.parametrize(("value", "words"), [(None, "is None"), (float("nan"), "is nan"), ("0.2", "no number")])
def test_what_is_no_number_fails(project, out, value, words):
    path = project.root / "evaluation/results/fidelity-ct.json"
    before = path.read_text()
    changed = json.loads(before)
    changed["synthetic"]["kid"] = value
    try:
        path.write_text(json.dumps(changed))
        with pytest.raises(MissingNumber, match=f"fidelity-ct.json: key 'synthetic.kid' .*{words}"):
            CARDS["synthetic-dicom"](Facts(project.root, out / "synthetic-dicom"))
    finally:
        path.write_text(before)


def test_a_missing_file_fails_and_leaves_the_former_folder(project, out):
    path = project.root / "evaluation/results/fidelity-ct.json"
    former, before = hashes(out), path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(MissingNumber, match="fidelity-ct.json: there is no such file, .* 'synthetic.kid'"):
            build(project, "ORG", out, only=["synthetic-dicom"])
    finally:
        path.write_bytes(before)
    assert hashes(out) == former


def test_what_is_not_measured_is_said_until_it_is(project, out):
    facts = Facts(project.root, out / "synthetic-dicom")
    path = project.root / "evaluation/results/privacy.json"
    before = path.read_bytes()
    row = {"measure": "copies found", "value": 0.0125, "low": 0.001, "high": 0.03, "floor": 0.01, "floor_is": "real"}
    try:
        path.unlink()
        assert "Not measured yet: whether generated images copy" in cards.model_card(facts, NAMES)
        path.write_text(json.dumps({"card": [row]}))
        card = cards.model_card(facts, NAMES)
        assert "| copies found | 0.013 | 0.001 to 0.030 | 0.010: real |" in card or "| copies found | 0.012 |" in card
        assert not untraced(card, facts.taken) and "images copy" not in card
        path.write_text(json.dumps({"else": 1}))
        with pytest.raises(MissingNumber, match="privacy.json: no key 'card'"):
            cards.model_card(facts, NAMES)
    finally:
        path.write_bytes(before)


def test_results_of_another_model_are_told(project, out):
    facts = Facts(project.root, out / "synthetic-dicom")
    stale = cards.stale_results(facts)
    assert len(stale) == 4 + 2 and "evaluation/results/fidelity-ct.json" in stale  # the results are the real model's
    path = project.root / "evaluation/results/fidelity-ct.json"
    before = path.read_text()
    result = json.loads(before)
    result["settings"]["model_sha256"] = facts.value("./samples/samples.json", "settings.model_sha256")
    try:
        path.write_text(json.dumps(result))
        assert "evaluation/results/fidelity-ct.json" not in cards.stale_results(facts)
    finally:
        path.write_text(before)


def test_the_shipped_cards_can_be_written(tmp_path):
    """With this project's own results, and each adapter that it ships."""
    names = tuple(shipped_adapters())
    hub = cards.Names("ORG", "synthetic-dicom", {name: f"synthetic-dicom-lora-{name}" for name in names}, "s", "d")
    (tmp_path / "samples").mkdir()
    image = {"file": "a.png", "prompt": "a prompt", "seed": 0, "modality": "ct"}
    (tmp_path / "samples" / "samples.json").write_text(json.dumps({"images": [image]}))
    facts = Facts(ROOT, tmp_path)
    assert untraced(cards.model_card(facts, hub), facts.taken) == set()
    for name in names:
        facts = Facts(ROOT, tmp_path)
        assert untraced(cards.adapter_card(facts, hub, name), facts.taken) == set()


# ---- front matter -------------------------------------------------------------------------------------------------


def test_front_matter_of_the_model(out):
    data = ModelCard.load(out / "synthetic-dicom" / "README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "diffusers", "text-to-image")
    assert {result.metric_type for result in data.eval_results} == {"kid"}
    assert [result.dataset_type for result in data.eval_results] == [
        "real-chest-xray",
        "real-ct",
        "real-brain-mri",
        "real-blood-smear",
    ]
    for example in data.widget:
        assert example["text"] and (out / "synthetic-dicom" / example["output"]["url"]).is_file()


def test_front_matter_of_an_adapter(out):
    folder = out / f"synthetic-dicom-lora-{ADAPTER}"
    data = ModelCard.load(folder / "README.md").data
    assert (data.base_model, data.base_model_relation) == ("ORG/synthetic-dicom", "adapter")
    assert {"lora", "diffusers", "template:diffusion-lora"} <= set(data.tags)
    assert data.instance_prompt == RECORD["samples"]["prompts"][0] == data.widget[0]["text"]
    assert (folder / data.widget[0]["output"]["url"]).is_file()
    assert data.eval_results[0].metric_value == 0.2345


def test_front_matter_of_the_space(out):
    data = ModelCard.load(out / "synthetic-dicom-space" / "README.md").data.to_dict()
    requirements = (ROOT / "requirements.txt").read_text()
    assert data["sdk"] == "gradio" and f"gradio=={data['sdk_version']}\n" in requirements
    assert data["app_file"] == "app.py" and data["python_version"] == "3.11" and data["suggested_hardware"]
    assert data["models"] == ["ORG/synthetic-dicom", f"ORG/synthetic-dicom-lora-{ADAPTER}"]
    assert len(data["short_description"]) <= 60  # the Hub takes no more
    assert "spaces.GPU" in (out / "synthetic-dicom-space" / "app.py").read_text()


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["CC BY 4.0", "CC BY 3.0 (TCIA)", "CC BY", "MIT", "CC0 (Kaggle page)"], "apache-2.0"),
        (["public domain / CC0 (as stated by mirror)", "public domain (US NLM)"], "apache-2.0"),
        (["CC BY 4.0", "CC BY-NC 4.0"], "other"),
        (["CC BY-SA 4.0"], "other"),
        (["CC0 / CC BY-NC 4.0"], "other"),
        ([], "other"),
    ],
)
def test_weights_are_free_where_their_data_is(licences, expected):
    found = cards._licence(licences, "ORG/x")
    assert found["license"] == expected and ("license_name" in found) == (expected == "other")


# ---- folders ------------------------------------------------------------------------------------------------------


def test_the_model_folder_is_the_pipeline_and_a_card(project, out):
    found = hashes(out / "synthetic-dicom")
    assert found.pop("README.md")
    shown = {name for name in found if name.startswith("samples/")}
    assert len(shown) == 4 * 2 + 1
    real = {name: value for name, value in hashes(project.root / "pipeline").items() if "pycache" not in name}
    for stray in (".DS_Store", "unet/config.json.bak"):
        del real[stray]
    assert {name: value for name, value in found.items() if name not in shown} == real


def test_the_shipped_pipeline_is_copied_whole(tmp_path):
    copy_model(ROOT / "pipeline", tmp_path / "model")
    real = {name for name in hashes(ROOT / "pipeline") if "pycache" not in name and not name.endswith(".pyi")}
    assert set(hashes(tmp_path / "model")) == real


def test_the_adapter_folder(project, out):
    names = set(hashes(out / f"synthetic-dicom-lora-{ADAPTER}"))
    assert {"README.md", "pytorch_lora_weights.safetensors", "training.json"} <= names
    assert {"samples/before.jpg", "samples/after.jpg"} <= names and "samples/0001.png" not in names


def test_the_space_folder_needs_nothing_else(project, out):
    folder = out / "synthetic-dicom-space"
    top = {path.name for path in folder.iterdir()}
    assert top == {"README.md", "LICENSE", "requirements.txt", "pipeline", "lora"} | {
        path.name for path in ROOT.glob("app*.py")
    }
    assert {path.name for path in (folder / "lora" / ADAPTER).iterdir()} == {
        "pytorch_lora_weights.safetensors",
        "training.json",
    }
    for path in folder.glob("app*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in ("lora", "evaluation", "hub_cards", "tests")


def test_nothing_names_this_machine(project, out):
    for path in out.rglob("*"):
        if path.is_file() and path.suffix in (".md", ".json"):
            assert str(project.root) not in path.read_text() and str(ROOT) not in path.read_text(), path


def test_the_data_set_loads_and_holds_valid_files(out, tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = out / "synthetic-dicom-samples"
    rows = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path))
    assert rows.column_names == ["image", "dicom", "prompt", "recipe", "modality", "sop_instance_uid"]
    assert len(rows) == 5 * 2 and len(set(rows["sop_instance_uid"])) == len(rows)
    assert {"chest-xray", "ct-chest", "ct-head", "brain-mri", "blood-smear"} < set(rows["modality"])
    for row in rows:
        dataset = pydicom.dcmread(io.BytesIO(row["dicom"]))
        assert dataset.SyntheticData == "YES" and dataset.SOPInstanceUID == row["sop_instance_uid"]
        recipe = Recipe.from_json(row["recipe"])
        assert read_recipe(dataset) == recipe and row["prompt"] == recipe.prompt
        assert isinstance(row["image"], Image.Image) and row["image"].size == (64, 64)
    drawn_with = [json.loads(row["recipe"])["adapters"] for row in rows]
    assert [bool(adapters) for adapters in drawn_with] == [False] * 8 + [True] * 2


def test_other_settings_are_drawn_anew(project, tmp_path):
    request = base_requests(1)[0]
    first = Sampler(project.model, {}, tmp_path).draw([request])[0]
    path = project.model / "model_index.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(before) | {"default_num_inference_steps": 2}))
        assert Sampler(project.model, {}, tmp_path).draw([request])[0].dicom != first.dicom
    finally:
        path.write_text(before)


def test_pictures_say_that_they_are_synthetic(out):
    for path in out.rglob("samples/*-0.png"):
        assert "SYNTHETIC" in Image.open(path).text["Comment"]


def test_the_same_content_gives_the_same_bytes(project, out, tmp_path):
    first = hashes(out)
    build(project, "ORG", out, samples=2)  # from the cache
    assert hashes(out) == first
    build(project, "ORG", tmp_path / "again", samples=2)  # drawn anew
    assert hashes(tmp_path / "again") == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"only": ["nonsense"]}, "`only` has 'nonsense'; allowed are synthetic-dicom, "),
        ({"samples": 0}, "`samples` is 0"),
    ],
)
def test_bad_arguments(project, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(project, "ORG", tmp_path / "hub", **arguments)
    assert not (tmp_path / "hub").exists()


def test_only_the_named_ones_are_built(project, out, tmp_path):
    again = tmp_path / "hub"
    shutil.copytree(out / ".samples", again / ".samples")
    build(project, "ORG", again, only=["synthetic-dicom-space"])
    assert [path.name for path in again.iterdir() if path.is_dir() and path.name[0] != "."] == ["synthetic-dicom-space"]
    build(project, "ORG", again, only=["synthetic-dicom"])
    assert set(json.loads((again / "numbers.json").read_text())) == {
        "synthetic-dicom/README.md",
        "synthetic-dicom-space/README.md",
    }


def test_an_adapter_without_results_fails(project, out):
    path = project.root / "evaluation/results/adapters.json"
    before = path.read_text()
    changed = copy.deepcopy(json.loads(before))
    del changed["adapters"][ADAPTER]
    try:
        path.write_text(json.dumps(changed))
        with pytest.raises(MissingNumber, match=f"adapters.json: no key 'adapters.{ADAPTER}.kid.with.kid'"):
            cards.adapter_card(Facts(project.root, out / f"synthetic-dicom-lora-{ADAPTER}"), NAMES, ADAPTER)
    finally:
        path.write_text(before)


def test_hub_cards_imports_only_the_pipeline_and_is_imported_by_nobody():
    ours = {"lora", "evaluation", *(path.stem for path in ROOT.glob("app*.py")), "tests"}
    for folder in ("hub_cards", "pipeline", "lora", "evaluation", "."):
        for path in (ROOT / folder).glob("*.py"):
            names = set()
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names.add((node.module or "").split(".")[0])
            assert not names & (ours if folder == "hub_cards" else {"hub_cards"}), path
