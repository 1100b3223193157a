"""The Volume tab: its handlers, and the page in a real browser, with the tiny models."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import gradio as gr
import numpy as np
import pydicom
import pytest

from app_sweep import PREFIX
from app_volume import Shown, VolumeTab
from pipeline.verification import verify
from pipeline.volume_dicom import recipe_of
from pipeline.volume_pictures import HEIGHT, PLANES, middle_of, sheet_of, view_of

from .app_server import load_app, served
from .tiny_volume import SHAPE, tiny_volume_pipeline
from .volume_samples import KINDS, made_up

PROMPT = "T1 MRI of the hippocampus"


@pytest.fixture(scope="module")
def tab():
    return VolumeTab(tiny_volume_pipeline())


def run(tab, tmp_path, prompt=PROMPT, covariates=None, seed="7", steps=3, guidance=1.5, extras=()):
    return list(tab._run(prompt, covariates, seed, steps, guidance, list(extras), str(tmp_path)))


def test_a_run_shows_steps_and_gives_files(tab, tmp_path):
    updates = run(tab, tmp_path, covariates={"anterior_mm3": 25.0, "posterior_mm3": 33.0}, extras=["NIfTI"])
    assert len(updates) == 1 + 3 + 1 and 'aria-valuenow="67"' in updates[2][0]
    words, shown, _ = updates[-1]
    assert "seed 7" in words and "(25 asked for)" in words and "synthetic" in words
    with zipfile.ZipFile(shown.archive) as archive:
        names = {Path(name).name for name in archive.namelist()}
        assert names == {f"slice-{i:03d}.dcm" for i in range(1, SHAPE[2] + 1)} | {
            "labels.dcm",
            "volume.nii.gz",
            "labels.nii.gz",
        }
        for name in archive.namelist():
            if name.endswith(".dcm"):
                assert verify(archive.read(name)).ok
    assert Path(shown.archive).parent.name.startswith(PREFIX)  # what `sweep` knows as ours
    opened = tab._open(shown, 0.4)
    assert [update["value"] for update in opened[2:5]] == [
        middle_of(shown.mask, shown.recipe.volume)[plane] + 1 for plane in PLANES
    ]
    assert [update["maximum"] for update in opened[2:5]] == [SHAPE[2], SHAPE[1], SHAPE[0]]


def test_a_warning_is_shown(tab, tmp_path):
    words = run(tab, tmp_path, covariates={"anterior_mm3": 90.0, "posterior_mm3": 33.0})[-1][0]
    assert "outside the range of the training volumes" in words


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"prompt": " "}, "`prompt` is empty"),
        ({"prompt": "x" * 2000}, "`prompt` has 2000"),
        ({"seed": "-1"}, "`seed` is -1"),
        ({"seed": "x"}, "`seed` is 'x'"),
        ({"steps": 1000}, "`steps` is 1000"),
        ({"guidance": -1}, "`guidance` is -1"),
        ({"covariates": {"anterior_mm3": -5.0}}, "`covariates`"),
    ],
)
def test_bad_input_is_refused(tab, tmp_path, arguments, says):
    with pytest.raises(ValueError, match=says):
        run(tab, tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_without_a_model_there_is_no_tab():
    with gr.Blocks() as page:
        none = VolumeTab(None)
        none.controls()
        none.results()
        none.wire([], [], lambda handler: handler, {}, {}, str)
    assert not page.blocks.keys() - {page._id}


@pytest.mark.parametrize("name", ["axial", "other axes", "one slice", "one voxel"])
def test_views_look_from_the_right_side(name):
    volume = made_up(KINDS[name])
    spec = volume.recipe.volume
    for plane in PLANES:
        plain = view_of(volume.voxels, None, spec, plane, 0)
        assert plain.mode == "RGB" and max(plain.size) <= HEIGHT
        assert view_of(volume.voxels, None, spec, plane, -5).tobytes() == plain.tobytes()
        view_of(volume.voxels, None, spec, plane, 99)
        over = view_of(volume.voxels, volume.mask, spec, plane, middle_of(volume.mask, spec)[plane], 1.0)
        assert name == "one voxel" or (np.asarray(over).std(2).max() > 20)  # labels are coloured
    assert sheet_of(volume.voxels, volume.mask, spec).height > sheet_of(volume.voxels, None, spec).height
    if name == "axial":  # voxels grow with z: the top of a coronal view is bright, and anterior is up
        coronal = np.asarray(view_of(volume.voxels, None, spec, "coronal", 4).convert("L"), float)
        assert coronal[5:40, 20:40].mean() > coronal[-80:-50, 20:40].mean() + 50


def test_a_view_has_slices_from_one(tab):
    output = tab.pipe(PROMPT, seed=1)
    shown = Shown(output.volumes[0], output.masks[0], recipe_of(output, 0, "a T1 MRI of the hippocampus"), "")
    assert shown.view("axial", 1, 0).tobytes() != shown.view("axial", SHAPE[2], 0).tobytes()


# ---- in a browser ---------------------------------------------------------------------------------------------------

CHROMIUM = "/usr/bin/chromium" if Path("/usr/bin/chromium").exists() else shutil.which("chromium")


@pytest.fixture(scope="module")
def address(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("volume-model")
    tiny_volume_pipeline().save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNTHETIC_DICOM_VOLUME_MODEL", str(folder))
        app = load_app(tiny_folder)
    with served(app) as url:
        yield url


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, 390])
def test_make_look_and_download(address, tmp_path, width):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    from .test_app_browser import PATIENCE, QUIET

    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_context(accept_downloads=True, viewport={"width": width, "height": 900}).new_page()
        page.set_default_timeout(PATIENCE)
        outside, failures = [], []
        page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else outside.append(r.url))
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(address)
        page.get_by_role("tab", name="Volume").click()
        page.locator("#text-prompt").wait_for(state="hidden")
        page.locator("#gallery").wait_for(state="hidden")
        page.get_by_label("Set the sizes myself").check()
        page.get_by_label("number input for Anterior part in mm³").fill("30")
        page.locator("#volume-seed").locator("textarea, input").first.fill("7")
        page.locator("#generate-volume").click()
        picture = page.locator("#view-axial img")
        picture.wait_for()
        assert "(30 asked for)" in page.locator("#volume-status").inner_text()
        assert "SYNTHETIC" in page.locator("#legend").inner_text()
        before = picture.get_attribute("src")
        page.locator("#slice-axial input[type=number]").fill("1")
        page.locator("#slice-axial input[type=number]").press("Enter")
        page.wait_for_function(f"document.querySelector('#view-axial img').src !== {before!r}")
        with page.expect_download() as waiting:
            page.locator("#volume-zip").click()
        waiting.value.save_as(tmp_path / "volume.zip")
        with zipfile.ZipFile(tmp_path / "volume.zip") as archive:
            assert len(archive.namelist()) == SHAPE[2] + 1
            dataset = pydicom.dcmread(io.BytesIO(archive.read(archive.namelist()[0])))
            assert dataset.SyntheticData == "YES" and verify(dataset).ok
        assert not page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
        page.get_by_role("tab", name="Text to image").click()
        page.locator("#generate").wait_for()
        page.locator("#volume-results").wait_for(state="hidden")
        assert not outside and not failures
        browser.close()
