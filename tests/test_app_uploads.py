"""Uploads: read under guard, stored without a name, and refused where text is burned in and not confirmed."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

gr = pytest.importorskip("gradio", reason="gradio is not installed")
gradio_client = pytest.importorskip("gradio_client", reason="gradio_client is not installed")

from .app_server import load_app, served  # noqa: E402
from .test_burned_in import with_text  # noqa: E402

CHEST = "chest X-ray, PA view"
SECRET = "Jane_Doe_1961_secret"


@pytest.fixture(scope="module")
def app(tiny_folder):
    return load_app(tiny_folder)


@pytest.fixture(scope="module")
def address(app):
    with served(app) as address:
        yield address


@pytest.fixture
def written(tmp_path) -> Path:
    """A picture with a name burned in."""
    path = tmp_path / f"{SECRET}.png"
    pixels, _ = with_text()
    Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(path)
    return path


def test_burned_in_text_is_refused_until_confirmed(app, written):
    with pytest.raises(gr.Error) as raised:
        app.image_to_image(str(written), CHEST, 0.5, steps=1)
    assert "burned-in text" in str(raised.value) and "rows" in str(raised.value) and "onfirm" in str(raised.value)
    with pytest.raises(gr.Error):
        app.image_to_image(str(written), CHEST, 0.5, text_confirmed="yes", steps=1)
    files, _ = app.image_to_image(str(written), CHEST, 0.5, text_confirmed=True, steps=1)
    assert files


def test_the_page_shows_where_the_text_is_and_asks(app, written):
    picture, box = app.show_source(str(written), None)
    assert box["visible"] is True and box["value"] is False
    red = (np.asarray(picture).astype(int) * (1, -1, -1)).sum(-1) > 100
    assert red.any()
    clean = written.with_name("clean.png")
    Image.new("L", (64, 64), 90).save(clean)
    picture, box = app.show_source(str(clean), None)
    assert picture.mode == "L" and box["visible"] is False


def test_the_server_keeps_no_name_of_an_upload(app, address, written):
    name = f"../../{SECRET}<b>.dcm"
    reply = httpx.post(f"{address}gradio_api/upload", files={"files": (name, written.read_bytes())})
    assert reply.status_code == 200
    (stored,) = reply.json()
    assert SECRET not in stored and Path(stored).name == "upload"
    assert Path(stored).is_relative_to(Path(app.demo.GRADIO_CACHE))
    reply = httpx.post(f"{address}gradio_api/upload", files={"files": (f"{SECRET}.safetensors", b"x")})
    assert Path(reply.json()[0]).name == "upload.safetensors"
    for path in Path(app.demo.GRADIO_CACHE).rglob("*"):
        assert SECRET not in str(path)


def test_one_file_a_request_and_none_too_large(app, address):
    before = {path for path in Path(app.demo.GRADIO_CACHE).rglob("*") if path.is_file()}
    many = [("files", (f"{SECRET}{i}", b"x")) for i in range(3)]
    assert httpx.post(f"{address}gradio_api/upload", files=many).status_code == 400
    large = httpx.post(f"{address}gradio_api/upload", files={"files": ("a", bytes(51 * 2**20))})
    assert large.status_code == 413
    after = {path for path in Path(app.demo.GRADIO_CACHE).rglob("*") if path.is_file()}
    assert after == before, "what was refused is not kept"


@pytest.mark.parametrize(
    "path", ["/etc/hostname", "../../../etc/hostname", "http://127.0.0.1:9/x.png", "file:///etc/hostname"]
)
def test_a_request_cannot_name_a_file_of_the_server_or_of_another(address, path):
    client = gradio_client.Client(address, verbose=False)
    with pytest.raises(Exception) as raised:
        client.predict(
            image={"path": path, "meta": {"_type": "gradio.FileData"}}, prompt=CHEST, strength=0.5, steps=1,
            api_name="/image_to_image",
        )  # fmt: skip
    assert "root:" not in str(raised.value)


def test_the_server_fetches_nothing_for_a_request(app, address):
    """Held against what Gradio does: an address that it would fetch is refused before a connection is made."""
    body = {"data": [], "kwargs": {}}
    info = httpx.get(f"{address}gradio_api/info").json()["named_endpoints"]["/image_to_image"]["parameters"]
    values = {one["parameter_name"]: one.get("parameter_default") for one in info} | {"prompt": CHEST, "steps": 1}
    values["image"] = {"path": "http://192.0.2.1/x.png", "meta": {"_type": "gradio.FileData"}}
    body["data"] = [values[one["parameter_name"]] for one in info]
    event = httpx.post(f"{address}gradio_api/call/image_to_image", json=body).json()["event_id"]
    reply = httpx.get(f"{address}gradio_api/call/image_to_image/{event}", timeout=60).text
    assert "event: error" in reply and "not an address" in reply


def test_markup_in_what_is_typed_is_text_on_the_page(app):
    markup = "<img src=x onerror=alert(1)>"
    with pytest.raises(gr.Error) as raised:
        app.text_to_image(CHEST, seed=markup)
    assert "<img" not in str(raised.value)
    result = list(app.show_text_to_image(f"{CHEST} {markup}", 1, patient_name="<b>Doe</b>", steps=1))[-1]
    assert "<" not in result[0].replace("<div", "")
    assert app.header.datatype in ("str", ["str"] * 3)  # cells are shown as text, not as HTML
    assert all("<" not in Path(path).name for path in (*result[2].dicoms, *result[2].pngs))
