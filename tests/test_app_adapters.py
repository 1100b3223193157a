"""Adapters in the app: what the picker means, what one user's choice leaves for the next, and what is refused."""

from __future__ import annotations

import inspect
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch

gr = pytest.importorskip("gradio", reason="gradio is not installed")
gradio_client = pytest.importorskip("gradio_client", reason="gradio_client is not installed")

from pipeline import SyntheticDicomPipeline, read_recipe  # noqa: E402
from pipeline.adapter_files import read_adapter  # noqa: E402

from .adapter_samples import ATTENTION, WEIGHTS, rewrite, save_adapter  # noqa: E402
from .app_server import load_app, served  # noqa: E402

CHEST = "chest X-ray, PA view"
BRAIN = "axial T1 brain MRI"
SECRET = "Jane_Doe_1961_secret"
NAMES = ["brain-mri", "chest-xray", "covid-chest-xray", "nuclei"]


def wider(tensors, config):
    tensors.update({key: tensor.repeat(1, 2) for key, tensor in tensors.items() if "lora_A" in key})


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Path:
    """A folder like `lora/`, with one adapter for another model and one that is no adapter."""
    root = tmp_path_factory.mktemp("lora")
    save_adapter(root / "chest-xray", seed=1)
    save_adapter(root / "brain-mri", ATTENTION, seed=2, alpha=4)
    save_adapter(root / "covid-chest-xray", ATTENTION, seed=3, modality="chest-xray")
    save_adapter(root / "nuclei", ATTENTION, seed=4, modality="nuclei")
    save_adapter(root / "bigger", ATTENTION, seed=5)
    rewrite(root / "bigger" / WEIGHTS, wider)
    (root / "broken").mkdir()
    (root / "broken" / WEIGHTS).write_bytes(b"nothing")
    return root


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A user's file, whose name says who it is of."""
    folder = tmp_path_factory.mktemp("own")
    save_adapter(folder, ATTENTION, seed=6, name="mine", text_targets=("q_proj",))
    return (folder / WEIGHTS).rename(folder / f"{SECRET}.safetensors")


@pytest.fixture(scope="module")
def app(tiny_folder, shipped):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.adapter_names._LORA_FOLDER", shipped)
        return load_app(tiny_folder)


@pytest.fixture(scope="module")
def client(app):
    with served(app) as address:
        yield gradio_client.Client(address, verbose=False)


@pytest.fixture(autouse=True)
def nothing_stays(app):
    """After each test the pipeline is as it was: the shipped adapters loaded, none in use, the base untouched."""
    state = {key: tensor.clone() for key, tensor in app.PIPE.unet.state_dict().items()}
    yield
    left = app.PIPE.unet.state_dict()
    assert app.PIPE._loaded() == NAMES and app.PIPE.adapters_in_use() == ()
    assert set(left) == set(state) and all(torch.equal(left[key], state[key]) for key in state)


def dataset_of(updates) -> pydicom.Dataset:
    return pydicom.dcmread(list(updates)[-1][2].dicoms[0])


def draw(app, prompt: str = CHEST, **options) -> pydicom.Dataset:
    return dataset_of(app.show_text_to_image(prompt, 1, steps=2, **options))


def rows(dataset: pydicom.Dataset) -> list[tuple[str, float]]:
    return [(name, weight) for name, _, weight in read_recipe(dataset).adapters]


@pytest.fixture(scope="module")
def truth(tiny_folder, shipped, own):
    """Draws with a pipeline that has one adapter or none, as from Python."""

    def drawn(adapter: Path | None, prompt: str = CHEST, weight: float = 1, **options) -> pydicom.Dataset:
        pipe = SyntheticDicomPipeline.from_pretrained(tiny_folder)
        pipe.set_progress_bar_config(disable=True)
        if adapter:
            pipe.set_adapters(pipe.load_lora_weights(adapter, adapter_name="x"), weight)
        return pipe(prompt, seed=1, num_inference_steps=2, watermark=True, **options).dicoms[0]  # as the app does

    return drawn


# ---- which one ------------------------------------------------------------------------------------------------------


def test_the_picker_offers_what_fits_the_model(app):
    picker = app.adapter_controls["adapter"]
    assert [value for _, value in picker.choices] == ["automatic", "none", *NAMES, "own"]
    assert picker.value == "automatic" and app.adapter_controls["adapter_strength"].value == 1


@pytest.mark.parametrize(
    ("prompt", "modality", "name"),
    [
        (CHEST, None, "chest-xray"),
        ("chest X-ray, COVID-19 pneumonia", None, "covid-chest-xray"),
        (BRAIN, None, "brain-mri"),
        ("DAPI, nuclei", None, "nuclei"),
        ("H&E, nuclei", None, "nuclei"),
        ("blood smear", None, None),
        ("head CT", None, None),
        (BRAIN, "chest-xray", "chest-xray"),
        ("a cat", "nuclei-fluorescence", "nuclei"),
        (CHEST, "secondary-capture", None),
    ],
)
def test_automatic_is_the_shipped_one_for_the_modality(app, prompt, modality, name):
    assert app.ADAPTERS.automatic(prompt, modality) == name
    choice = app.ADAPTERS.choose(prompt, modality, {})
    assert (choice and choice.name) == name


def test_automatic_takes_nothing_narrower_than_what_was_asked_for(app, monkeypatch):
    monkeypatch.delitem(app.ADAPTERS.shipped, "chest-xray")
    assert app.ADAPTERS.automatic(CHEST, None) is None
    assert app.ADAPTERS.automatic("chest X-ray, COVID-19 pneumonia", None) == "covid-chest-xray"


def test_without_shipped_adapters_automatic_is_the_base(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.adapter_names._LORA_FOLDER", tmp_path)
    bare = load_app(tiny_folder)
    assert [value for _, value in bare.adapter_controls["adapter"].choices] == ["automatic", "none", "own"]
    assert rows(draw(bare)) == []


# ---- pixels, recipe, header -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "adapter", "name", "weight"),
    [
        ({}, "chest-xray", "chest-xray", 1),
        ({"adapter_strength": 0.5}, "chest-xray", "chest-xray", 0.5),
        ({"adapter": "covid-chest-xray", "adapter_strength": 1.5}, "covid-chest-xray", "covid-chest-xray", 1.5),
        ({"adapter": "brain-mri", "modality": "chest-xray"}, "brain-mri", "brain-mri", 1),
        ({"adapter": "brain-mri", "modality": "ct"}, "brain-mri", "brain-mri", 1),
        ({"adapter": "none"}, None, None, 1),
        ({"adapter": "none", "modality": "chest-xray"}, None, None, 1),
    ],
)
def test_the_choice_draws_as_that_adapter_alone(app, truth, shipped, options, adapter, name, weight):
    ours = draw(app, **options)
    theirs = truth(adapter and shipped / adapter, weight=weight, modality=options.get("modality", "chest-xray"))
    assert np.array_equal(ours.pixel_array, theirs.pixel_array)
    assert ours.SOPClassUID == theirs.SOPClassUID
    assert rows(ours) == ([(name, weight)] if name else [])
    if adapter:
        assert read_recipe(ours).adapters[0][1] == read_adapter(shipped / adapter).sha256


def test_recipe_header_and_status_name_the_adapter(app):
    words, _, result, _ = list(app.show_text_to_image(CHEST, 1, steps=1, adapter_strength=0.5))[-1]
    assert words == "1 image · chest X-ray · seed 1 · adapter chest-xray, strength 0.5"
    shown = app.show_image(result)
    digest = app.PIPE._adapter_sha256("chest-xray")
    assert '"chest-xray"' in shown[app.recipe] and digest in shown[app.recipe]
    assert any("chest-xray" in value and "Recipe" not in value for _, _, value in shown[app.header])


def test_a_chosen_adapter_says_the_modality_that_the_prompt_does_not(app):
    assert draw(app, "meningioma or not", adapter="chest-xray").Modality == "DX"
    assert draw(app, "large", adapter="brain-mri").Modality == "MR"


def test_image_to_image_takes_adapters(app, own):
    source = list(app.show_text_to_image(BRAIN, 1, steps=1))[-1][2].pngs[0]
    found = dataset_of(
        app.show_image_to_image(source, CHEST, 0.5, seed=1, adapter="own", adapter_file=str(own), steps=2)
    )
    assert rows(found) == [("mine", 1)]


# ---- own ones -------------------------------------------------------------------------------------------------------


def test_an_own_file_is_used_once_and_its_name_is_nowhere(app, truth, own):
    before = draw(app, adapter="none")
    result = list(app.show_text_to_image(CHEST, 1, steps=2, adapter="own", adapter_strength=0.5, adapter_file=str(own)))
    found = pydicom.dcmread(result[-1][2].dicoms[0])
    assert np.array_equal(found.pixel_array, truth(own, weight=0.5).pixel_array)
    assert read_recipe(found).adapters == (("mine", read_adapter(own).sha256, 0.5),)
    for path in (*result[-1][2].dicoms, result[-1][2].archive):
        assert SECRET not in path and SECRET.encode() not in Path(path).read_bytes()
    assert app.PIPE._loaded() == NAMES
    after = draw(app, adapter="none")
    assert np.array_equal(after.pixel_array, before.pixel_array) and after.SOPInstanceUID == before.SOPInstanceUID


def test_own_names(app, shipped, tmp_path):
    def own_name(file: Path) -> tuple[str, str]:
        choice = app.ADAPTERS.choose(CHEST, None, {"adapter": "own"}, str(file))
        return choice.name, choice.modality

    assert own_name(shipped / "chest-xray" / WEIGHTS) == ("own", "chest-xray")  # the folder's name tells the modality
    copy = Path(shutil.copy(shipped / "nuclei" / WEIGHTS, tmp_path / f"{SECRET}.safetensors"))
    assert own_name(copy) == ("own", "nuclei")
    rewrite(copy, header={"name": "chest-xray"})
    assert own_name(copy) == ("own-chest-xray", "nuclei")
    assert rows(draw(app, adapter="own", adapter_file=str(copy))) == [("own-chest-xray", 1)]
    rewrite(copy, header={"name": "../ü <b>"})
    assert own_name(copy) == ("b", "nuclei")


def test_an_own_adapter_is_gone_after_a_failure_and_after_a_stop(app, own):
    options = {"adapter": "own", "adapter_file": str(own)}
    with pytest.raises(gr.Error, match="Study date"):
        draw(app, **options, study_date="yesterday")
    assert app.PIPE._loaded() == NAMES
    updates = app.show_text_to_image(CHEST, 1, steps=50, **options)
    next(updates), next(updates)
    updates.close()
    assert rows(draw(app, BRAIN)) == [("brain-mri", 1)]  # waits for its turn, so the stopped one is over
    assert app.PIPE._loaded() == NAMES and app.PIPE.adapters_in_use() == ()


def test_calls_at_the_same_time_do_not_mix(app, own):
    calls = [
        {"adapter": "own", "adapter_file": str(own)},
        {},
        {"adapter": "none", "modality": "chest-xray"},
        {"adapter": "brain-mri", "adapter_strength": 0.5, "modality": "chest-xray"},
        {"adapter": "own", "adapter_file": str(own), "adapter_strength": 0.25},
        {"adapter": "covid-chest-xray"},
    ]
    alone = [draw(app, **options) for options in calls]
    assert len({dataset.pixel_array.tobytes() for dataset in alone}) == len(calls)
    with ThreadPoolExecutor(len(calls)) as pool:
        together = list(pool.map(lambda options: draw(app, **options), calls * 2))
    for one, other in zip(alone * 2, together, strict=True):
        assert np.array_equal(one.pixel_array, other.pixel_array) and rows(one) == rows(other)
        assert one.SOPInstanceUID == other.SOPInstanceUID


# ---- refusals -------------------------------------------------------------------------------------------------------


def spoilt(own: Path, folder: Path, how: str) -> Path:
    path = folder / own.name
    if how == "pickle":
        torch.save({"unet.conv_in.lora_A.weight": torch.zeros(1)}, path.with_suffix(".bin"))
        return path.with_suffix(".bin")
    path.write_bytes(own.read_bytes()[:1000] if how == "cut" else own.read_bytes())
    changes = {
        "wider": wider,
        "partial": lambda tensors, _: [tensors.pop(key) for key in list(tensors) if "mid_block" in key],
        "foreign": lambda tensors, _: tensors.update({"conv.weight": torch.zeros(1)}),
    }
    if how in changes:
        rewrite(path, changes[how])
    if how == "reserved":
        rewrite(path, header={"name": "keys"})
    return path


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("pickle", "The adapter is no .safetensors file."),
        ("cut", "The adapter is no whole safetensors file."),
        ("wider", "The adapter was made for another model: unet."),
        ("partial", "The adapter is incomplete: its configuration names layer unet.mid_block"),
        ("foreign", "The adapter holds 'conv.weight', which is no LoRA tensor"),
        ("large", "The adapter has"),
        ("reserved", "Adapter name is 'keys'"),
    ],
)
def test_bad_files_are_refused_in_a_sentence_without_their_name(app, own, tmp_path, monkeypatch, caplog, how, message):
    if how == "large":
        monkeypatch.setattr("app_adapters.MAX_BYTES", 1000)
    with pytest.raises(gr.Error) as caught:
        draw(app, adapter="own", adapter_file=str(spoilt(own, tmp_path, how)))
    said = caught.value.message
    assert said.startswith(message) and said.endswith(".") and "\n" not in said and "`" not in said
    assert SECRET not in said + caplog.text and str(tmp_path) not in said and not caught.value.print_exception


def test_an_adapter_for_another_model_is_refused(app, shipped):
    with pytest.raises(gr.Error, match="The adapter was made for another model"):
        draw(app, adapter="own", adapter_file=str(shipped / "bigger" / WEIGHTS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter": "own"}, "Adapter is 'own', which takes a Hub id or a file, but neither is given."),
        ({"adapter": "bigger"}, "Adapter is 'bigger'; allowed are 'automatic', 'none', 'brain-mri'"),
        ({"adapter_strength": 1.6}, "Adapter strength is 1.6; allowed is a number from 0 to 1.5."),
        ({"adapter_strength": -0.1}, "Adapter strength is -0.1"),
        ({"adapter_strength": float("nan")}, "Adapter strength is nan"),
        *(
            ({"adapter": "own", "adapter_hub_id": text}, f"Adapter hub id is {text!r}; allowed is a Hub id such as")
            for text in ("lora", "lora/data", "/etc/passwd", "../x", "https://x/y", "a/b/c")
        ),
        ({"adapter": "own", "adapter_hub_id": "an--org/name"}, "Cannot have -- or .. in repo_id"),
        (
            {"adapter": "own", "adapter_hub_id": " org/name "},
            "The adapter 'org/name': pytorch_lora_weights.safetensors",
        ),
    ],
)
def test_bad_choices_are_a_sentence(app, monkeypatch, options, message):
    monkeypatch.chdir(Path(__file__).parents[1])
    with pytest.raises(gr.Error) as caught:
        draw(app, **options)
    assert caught.value.message.startswith(message) and caught.value.message.endswith(".")


def test_a_hub_id_and_a_file_are_one_too_many(app, own):
    with pytest.raises(gr.Error, match="but both are given"):
        draw(app, adapter="own", adapter_hub_id="org/name", adapter_file=str(own))
    assert rows(draw(app, adapter_hub_id="org/name", adapter_file=str(own))) == [("chest-xray", 1)]  # not asked for


# ---- endpoints ------------------------------------------------------------------------------------------------------


def test_endpoints_have_the_parameters_with_defaults(app, client):
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    for endpoint in ("/text_to_image", "/image_to_image"):
        last = named[endpoint]["parameters"][-4:]
        assert [p["parameter_name"] for p in last] == list(app.adapter_controls)
        assert all(p["parameter_has_default"] for p in last)
    _, recipes = client.predict(BRAIN, seed=1, steps=1, api_name="/text_to_image")
    assert recipes[0]["adapters"][0][0] == "brain-mri"


def test_endpoints_take_own_files(client, own):
    options = {"seed": 1, "steps": 1, "adapter": "own", "api_name": "/text_to_image"}
    _, recipes = client.predict(CHEST, adapter_file=gradio_client.handle_file(str(own)), **options)
    assert recipes[0]["adapters"] == [["mine", read_adapter(own).sha256, 1.0]]
    with pytest.raises(Exception, match="neither is given"):
        client.predict(CHEST, **options)
    with pytest.raises(Exception, match="Invalid file type"):
        client.predict(CHEST, adapter_file=gradio_client.handle_file(__file__), **options)


def test_page_and_endpoints_share_their_options(app):
    pairs = (app.show_text_to_image, app.text_to_image), (app.show_image_to_image, app.image_to_image)
    for page, endpoint in pairs:
        assert list(inspect.signature(page).parameters) == list(inspect.signature(endpoint).parameters)
