"""The Verify tab: what it says, and that a bad file costs nobody anything."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed")

import app_verify  # noqa: E402
from pipeline.dicom_output import to_dataset  # noqa: E402
from pipeline.dicom_profiles import PROFILES  # noqa: E402
from pipeline.pipeline_watermark import NAME, embed  # noqa: E402

from .dicom_samples import pixels_of, recipe_of  # noqa: E402

SECRET = "Jane_Doe_1961_secret"


def saved(dataset, path):
    dataset.save_as(path, enforce_file_format=True)
    return str(path)


@pytest.fixture(scope="module")
def grey():
    return np.random.default_rng(0).random((16, 16)).repeat(16, 0).repeat(16, 1) * 0.8 + 0.1


def test_what_it_says(tmp_path, grey):
    recipe = recipe_of("brain-mri", watermark=NAME)
    rough = grey + np.random.default_rng(1).normal(0, 0.03, grey.shape)
    dataset = to_dataset(embed(rough), PROFILES["brain-mri"], recipe)
    said = app_verify.show_verdict(saved(dataset, tmp_path / f"{SECRET}.dcm"))
    assert "✓ Synthetic, made here" in said and "found, so the image is synthetic" in said and SECRET not in said
    picture = tmp_path / "a.jpg"
    stored = (dataset.pixel_array / 16).astype(np.uint8)
    Image.fromarray(stored).save(picture, quality=90)
    assert "! Synthetic, by its watermark" in app_verify.show_verdict(str(picture))
    dataset.PatientName = f"<img src=x>{SECRET}"
    pixels = dataset.pixel_array.copy()
    pixels[0, 0] += 1
    dataset.PixelData = pixels.tobytes()
    said = app_verify.show_verdict(saved(dataset, tmp_path / "b.dcm"))
    assert "! Synthetic, but not as it was made" in said and "altered" in said and SECRET not in said
    Image.fromarray(np.full((32, 32), 7, np.uint8)).save(tmp_path / "c.png")
    assert "? Nothing sure shows" in app_verify.show_verdict(str(tmp_path / "c.png"))
    assert app_verify.show_verdict(None) == ""


def bomb() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.zeros((12000, 12000), np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + b"\0" * 99, b"text", bomb()])
def test_a_bad_file_is_a_sentence(data, tmp_path):
    path = tmp_path / f"{SECRET}.png"
    path.write_bytes(data)
    said = app_verify.show_verdict(str(path))
    assert "✗ Cannot be verified" in said and SECRET not in said and "Traceback" not in said


def test_a_child_that_is_late_or_greedy_is_ended(tmp_path):
    path = saved(to_dataset(pixels_of("brain-mri"), PROFILES["brain-mri"], recipe_of("brain-mri")), tmp_path / "a.dcm")
    late, greedy = ({"seconds": 0.05}, "longer than the 0.05 seconds"), ({"memory": 60 * 2**20}, "cannot be read")
    for limits, said in (late, greedy):
        with pytest.raises(ValueError, match=said):
            app_verify.verify_guarded(path, **limits)
    assert app_verify.verify_guarded(path)["ok"]
