"""The app's handlers and its endpoints, with the tiny model."""

from __future__ import annotations

import json
import logging
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

gr = pytest.importorskip("gradio", reason="gradio is not installed")
gradio_client = pytest.importorskip("gradio_client", reason="gradio_client is not installed")

from pipeline import Recipe, read_recipe  # noqa: E402

from .app_server import load_app, served  # noqa: E402

CHEST = "chest X-ray, PA view, 54 year old woman"
SECRET = "Jane_Doe_1961_secret"


@pytest.fixture(scope="module")
def app(tiny_folder):
    return load_app(tiny_folder)


@pytest.fixture(scope="module")
def client(app):
    with served(app) as address:
        yield gradio_client.Client(address, verbose=False)


@pytest.fixture
def upload(tmp_path) -> Path:
    """A picture whose file name says who it is of."""
    path = tmp_path / f"{SECRET}.png"
    Image.fromarray(np.tile(np.arange(96, dtype=np.uint8), (80, 1))).save(path)
    return path


# ---- handlers -----------------------------------------------------------------------------------------------------


def test_text_to_image_shows_progress_then_previews_then_images(app):
    updates = list(app.show_text_to_image(CHEST, "7", number_of_images=2, steps=6))
    statuses = [update[0] for update in updates]
    assert "Step 1 of 6" in statuses[1] and "Step 6 of 6" in statuses[-2]
    previews = [update[1]["value"] for update in updates[1:-1] if update[1].get("value")]
    assert len(previews) >= 2 and all(len(pictures) == 2 for pictures in previews)
    words, gallery, result, _ = updates[-1]
    assert "2 images" in words and "seeds 7 to 8" in words
    assert [caption for _, caption in gallery["value"]] == ["Seed 7", "Seed 8"]
    assert len(result.dicoms) == len(result.pngs) == 2
    names = {Path(path).name for path in result.dicoms + result.pngs}
    assert set(zipfile.ZipFile(result.archive).namelist()) == names
    dataset = pydicom.dcmread(result.dicoms[1])
    assert dataset.SyntheticData == "YES" and read_recipe(dataset).seed == 8 and dataset.PatientAge == "054Y"


def test_details_are_those_of_the_chosen_image(app):
    result = list(app.show_text_to_image(CHEST, 3, number_of_images=2, steps=1))[-1][2]
    shown = app.show_image(result, 1)
    rows = shown[app.header]
    assert ["(0008,001C)", "Synthetic Data", "YES"] in rows
    assert any(name.startswith("› ") for _, name, _ in rows)
    assert not any("Pixel Data" in name and len(value) > 40 for _, name, value in rows)
    assert Recipe.from_json(shown[app.recipe]) == read_recipe(pydicom.dcmread(result.dicoms[1]))
    assert shown[app.dicom_button]["value"] == result.dicoms[1]
    assert shown[app.comparison]["visible"] is False
    assert app.show_image(None) == {app.details: gr.skip()}


def test_patient_and_study_reach_the_header(app):
    result = list(
        app.show_text_to_image(CHEST, 1, "54", patient_name="Doe^Jane", patient_sex="F", study_date="20200102", steps=1)
    )[-1][2]
    dataset = pydicom.dcmread(result.dicoms[0])
    assert str(dataset.PatientName) == "SYNTHETIC Doe^Jane" and dataset.StudyDate == "20200102"


def test_image_to_image_keeps_only_pixels(app, upload):
    updates = list(app.show_image_to_image(str(upload), CHEST, 0.5, "", "5", steps=4))
    assert "Step 2 of 2" in updates[-2][0]
    result = updates[-1][2]
    shown = app.show_image(result)
    before, after = shown[app.comparison]["value"]
    assert before.size == Image.open(after).size
    for path in (*result.dicoms, *result.pngs, result.archive):
        assert SECRET not in path and SECRET.encode() not in Path(path).read_bytes()
    assert app.show_source(str(upload), "")[0].size == (96, 80)


def test_a_seed_is_drawn_when_none_is_given(app):
    first, second = (app.arguments_of(CHEST, empty, None, {})["seed"] for empty in ("", None))
    assert first != second
    assert 0 <= int(app.roll()) <= app.MAX_SEED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": " "}, "Prompt is empty; describe the image that you want."),
        ({"prompt": "a <b>cat</b>"}, "Prompt names no modality: 'a &lt;b&gt;cat&lt;/b&gt;'"),
        ({"prompt": "x" * 1001}, "Prompt has 1001 characters; at most 1000 are allowed."),
        ({"number_of_images": 9}, "Number of images is 9; allowed is a whole number from 1 to 8."),
        ({"steps": 101}, "Steps is 101"),
        ({"guidance": -1}, "Guidance is -1; allowed is a number from 0 to 20."),
        ({"seed": "seven"}, "Seed is 'seven'; allowed is a number, or nothing."),
        ({"seed": -1}, "Seed is -1"),
        ({"seed": 1.5}, "Seed is 1.5"),
        ({"modality": "ultrasound"}, "Modality is 'ultrasound'"),
        ({"patient_sex": "M"}, "Patient sex is 'M', but the prompt says 'F'."),
        ({"study_date": "yesterday"}, "Study date is 'yesterday'"),
    ],
)
def test_bad_input_is_a_sentence(app, arguments, message):
    with pytest.raises(gr.Error) as caught:
        list(app.show_text_to_image(**{"prompt": CHEST, **arguments}))
    assert caught.value.message.startswith(message) and "`" not in caught.value.message
    assert caught.value.message.endswith(".") and not caught.value.print_exception


@pytest.mark.parametrize("image", [None, "missing", "broken"])
def test_bad_images_are_refused_without_their_name(app, tmp_path, caplog, image):
    path = tmp_path / f"{SECRET}.dcm"
    if image == "broken":
        path.write_bytes(b"not an image")
    with pytest.raises(gr.Error) as caught:
        list(app.show_image_to_image(image and str(path), CHEST, 0.5))
    assert caught.value.message.startswith("Image") and SECRET not in caught.value.message + caplog.text


def test_unknown_errors_tell_nothing(app, monkeypatch, caplog):
    def fail(**_):
        raise RuntimeError(f"cannot open {SECRET}")

    monkeypatch.setattr(
        app, "PIPE", type("Pipe", (), {"__call__": lambda self, **_: fail(), "config": app.PIPE.config})()
    )
    with caplog.at_level(logging.ERROR), pytest.raises(gr.Error) as caught:
        list(app.show_text_to_image(CHEST))
    assert "went wrong" in caught.value.message and SECRET not in caught.value.message
    assert "RuntimeError" in caplog.text and SECRET not in caplog.text


def test_a_run_that_nobody_watches_stops(app, monkeypatch):
    steps = []
    decode = type(app.PIPE).decode_latents_to_float
    monkeypatch.setattr(app.PIPE, "decode_latents_to_float", lambda x: steps.append(1) or decode(app.PIPE, x))
    updates = app.show_text_to_image(CHEST, 1, steps=100)
    next(updates), next(updates), next(updates)
    updates.close()
    list(app.show_text_to_image(CHEST, 1, steps=1))  # waits for its turn, so the first one is over
    assert len(steps) < 6  # a full run shows four previews and decodes the result; the second run decodes once


def test_results_lie_where_gradio_deletes_them(app):
    result = list(app.show_text_to_image(CHEST, 1, steps=1))[-1][2]
    assert app.demo.delete_cache and all(Path(app.demo.GRADIO_CACHE) in Path(p).parents for p in result.dicoms)


# ---- endpoints ----------------------------------------------------------------------------------------------------


def test_endpoint_text_to_image_returns_files(client):
    files, recipes = client.predict(CHEST, seed=11, number_of_images=2, steps=2, api_name="/text_to_image")
    assert [Path(path).suffix for path in files] == [".dcm", ".dcm", ".png", ".png", ".zip"]
    dataset = pydicom.dcmread(files[0])
    assert dataset.SOPClassUID.name.startswith("Digital X-Ray") and dataset.pixel_array.shape == (64, 64)
    assert [recipe["seed"] for recipe in recipes] == [11, 12]
    assert Recipe.from_json(json.dumps(recipes[0])) == read_recipe(dataset)


def test_endpoint_image_to_image_takes_a_file(client, upload):
    image = gradio_client.handle_file(str(upload))
    files, recipes = client.predict(image, "axial brain MRI", strength=0.5, seed=2, api_name="/image_to_image")
    assert pydicom.dcmread(files[0]).Modality == "MR" and recipes[0]["strength"] == 0.5
    assert recipes[0]["input_sha256"] and not any(SECRET in path for path in files)


def test_endpoints_have_limits_and_readable_errors(client):
    with pytest.raises(Exception, match="8"):
        client.predict(CHEST, number_of_images=9, api_name="/text_to_image")
    with pytest.raises(Exception, match="Prompt names no modality"):
        client.predict("a cat", api_name="/text_to_image")


def test_only_the_two_endpoints_are_public(client):
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(named) == {"/text_to_image", "/image_to_image"}
    required = [p["parameter_name"] for p in named["/text_to_image"]["parameters"] if not p["parameter_has_default"]]
    assert required in ([], ["prompt"])
