"""A stranger's file in a process of its own: the same image, and no harm done by what is no image."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipeline import guarded_child, guarded_reading
from pipeline.dicom_input import ImageInputError, read_image
from pipeline.guarded_reading import _parts, read_guarded

SECRET = "Doe_Jane_1961"


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / f"{SECRET}.png"
    Image.fromarray(np.tile(np.arange(96, dtype=np.uint8), (80, 1))).save(path)
    return path


def test_the_same_as_without_a_guard(picture):
    read, plain = read_guarded(picture), read_image(picture)
    np.testing.assert_array_equal(read.image.pixels, plain.pixels)
    assert read.image.sha256 == plain.sha256 and read.text == () and read.warning is None


@pytest.mark.parametrize("content", [b"", b"nothing", bytes(128) + b"DICM" + b"\xff" * 500])
def test_refused_in_one_sentence_without_the_name(tmp_path, content):
    path = tmp_path / f"{SECRET}.dcm"
    path.write_bytes(content)
    with pytest.raises(ImageInputError) as raised:
        read_guarded(path)
    assert SECRET not in str(raised.value) and "\n" not in str(raised.value) and raised.value.__cause__ is None


def test_what_is_not_there_is_refused(tmp_path):
    for path in (tmp_path / SECRET, tmp_path):
        with pytest.raises(ImageInputError) as raised:
            read_guarded(path)
        assert SECRET not in str(raised.value)


def test_time_is_limited(picture):
    with pytest.raises(ImageInputError, match="longer than the 0.01 seconds"):
        read_guarded(picture, seconds=0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux")
def test_memory_is_limited(tmp_path):
    path = tmp_path / "large.png"
    Image.new("RGB", (2500, 2500)).save(path)
    with pytest.raises(ImageInputError, match="image"):
        read_guarded(path, memory=300 * 2**20)
    assert read_guarded(path).image.pixels.shape == (2500, 2500, 3)


def test_a_child_that_dies_costs_its_owner_an_error(picture, monkeypatch):
    """As a decoder's crash would: the child ends by a signal, and the caller goes on."""
    code = f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})"
    monkeypatch.setattr(guarded_child, "_START", code)
    with pytest.raises(ImageInputError, match="cannot be read"):
        read_guarded(picture)
    monkeypatch.undo()
    assert read_guarded(picture).image.pixels.shape == (80, 96)


def test_a_child_that_talks_without_end_is_stopped(picture, monkeypatch):
    monkeypatch.setattr(guarded_child, "_START", "import os\nwhile True: os.write(1, bytes(1000))")
    monkeypatch.setattr(guarded_reading, "_LONGEST", 10_000)
    with pytest.raises(ImageInputError, match="cannot be read"):
        read_guarded(picture)


def test_the_child_has_no_secrets_and_writes_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    seen = {}
    real = subprocess.Popen

    def spy(command, **options):
        seen.update(options.get("env") or {})  # ctypes and others start processes too
        return real(command, **options)

    monkeypatch.setattr(subprocess, "Popen", spy)
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    read_guarded(tmp_path / "a.png")
    assert "HF_TOKEN" not in seen and "hf_secret" not in seen.values()
    code = (
        "from pipeline.guarded_child import limit; import os; limit(3 * 2**30)\n"
        f"fd = os.open({str(tmp_path / 'written')!r}, os.O_CREAT | os.O_WRONLY); os.write(fd, b'x')"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=os.getcwd(), capture_output=True)
    assert ended.returncode != 0 and (tmp_path / "written").read_bytes() == b""


def answer(**changes):
    head = {"shape": [2, 2], "modality": None, "spacing": None, "sha256": "ab" * 32, "text": [], "says": False}
    return json.loads(json.dumps(head | changes))


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (answer(), b""),
        (answer(), np.full(4, 2, "<f4").tobytes()),
        (answer(), np.full(4, np.nan, "<f4").tobytes()),
        (answer(shape=[65535, 65535]), bytes(16)),
        (answer(shape=[-2, -2]), bytes(16)),
        (answer(sha256="../../x"), bytes(16)),
        (answer(text=[["<b>"]]), bytes(16)),
        ({}, bytes(16)),
        ([], bytes(16)),
    ],
)
def test_a_childs_answer_is_not_believed(head, body):
    assert _parts(answer(), bytes(16)).image.pixels.shape == (2, 2)
    with pytest.raises((ValueError, KeyError, TypeError)):
        _parts(head, body)
