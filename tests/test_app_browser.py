"""The page in a real headless browser: generate, transform, download, phone, dark, and no request to anywhere else."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from pipeline import read_recipe  # noqa: E402

from .adapter_samples import ATTENTION, WEIGHTS, save_adapter  # noqa: E402
from .app_server import load_app, served  # noqa: E402
from .tiny import tiny_pipeline  # noqa: E402

CHROMIUM = "/usr/bin/chromium" if Path("/usr/bin/chromium").exists() else shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-default-apps",
    "--disable-features=Translate,OptimizationHints,MediaRouter",
]
PATIENCE = 180_000  # milliseconds; the machine may be busy
playwright.expect.set_options(timeout=PATIENCE)
SECRET = "Jane_Doe_1961_secret"


@pytest.fixture(scope="module")
def address(tiny_folder) -> Iterator[str]:
    with served(load_app(tiny_folder)) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield running
        running.close()


@pytest.fixture
def open_page(browser, address) -> Iterator[Callable[..., playwright.Page]]:
    """Opens the page; at the end nothing may have asked another machine, and no script may have failed."""
    outside: list[str] = []
    failures: list[str] = []
    contexts = []

    def opened(width: int = 1280, height: int = 900, theme: str = "light") -> playwright.Page:
        contexts.append(browser.new_context(accept_downloads=True, viewport={"width": width, "height": height}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else outside.append(r.url))
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(f"{address}?__theme={theme}")
        page.locator("#generate").wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not outside and not failures


def download(page: playwright.Page, button: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.locator(button).click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def generate(page: playwright.Page) -> None:
    page.locator("#generate").click()
    page.locator("#dicom").wait_for()
    page.locator("#gallery img").first.wait_for()


def is_too_wide(page: playwright.Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth > window.innerWidth")


def test_generate_look_and_download(open_page, tmp_path):
    page = open_page()
    assert "not for diagnosis" in page.locator("#banner").inner_text().lower()
    page.locator("#text-prompt textarea").fill("chest X-ray, PA view, 54 year old woman")
    page.get_by_label("number input for Number of images").fill("2")
    page.get_by_role("textbox", name="Seed").fill("41")
    generate(page)
    playwright.expect(page.locator("#dicom")).to_contain_text("1/2")
    page.locator("#gallery .thumbnail-item").nth(1).click()
    playwright.expect(page.locator("#dicom")).to_contain_text("2/2")
    dataset = pydicom.dcmread(download(page, "#dicom", tmp_path))
    assert dataset.Modality == "DX" and dataset.pixel_array.shape == (64, 64) and read_recipe(dataset).seed == 42
    assert Image.open(download(page, "#png", tmp_path)).size == (64, 64)
    assert len(zipfile.ZipFile(download(page, "#zip", tmp_path)).namelist()) == 4
    page.locator("#header input").first.fill("Patient's Sex")
    playwright.expect(page.locator("#header")).not_to_contain_text("Study Date")
    playwright.expect(page.locator("#header")).to_contain_text("(0010,0040)")
    page.get_by_role("tab", name="Recipe").click()
    playwright.expect(page.locator("#recipe")).to_contain_text('"seed": 42')


def test_transform_an_uploaded_dicom(open_page, tmp_path):
    source = tmp_path / f"{SECRET}.dcm"
    tiny_pipeline()("axial brain MRI", seed=1, num_inference_steps=1).dicoms[0].save_as(source)
    page = open_page()
    page.get_by_role("tab", name="Image to image").click()
    assert "not anonymisation" in page.content()
    page.locator("input[type=file]").first.set_input_files(source)
    page.locator("#source img").wait_for()
    page.locator("#image-prompt textarea").fill("chest CT, lung window")
    page.locator("#transform").click()
    page.locator("#comparison img").first.wait_for()
    dataset = pydicom.dcmread(download(page, "#dicom", tmp_path))
    assert dataset.Modality == "CT" and read_recipe(dataset).input_sha256
    assert SECRET not in page.content()


def test_an_upload_that_is_too_large_is_refused_without_its_name(open_page, tmp_path):
    source = tmp_path / f"{SECRET}.dcm"
    with source.open("wb") as file:
        file.truncate(51 * 1024 * 1024)
    page = open_page()
    page.get_by_role("tab", name="Image to image").click()
    page.locator("input[type=file]").first.set_input_files(source)
    playwright.expect(page.get_by_test_id("toast-body")).to_contain_text("maximum allowed size")
    assert SECRET not in page.content()


def test_an_own_adapter_is_used_and_a_bad_one_refused_without_their_names(open_page, tmp_path):
    save_adapter(tmp_path, ATTENTION, name="mine")
    page = open_page()
    assert page.locator("#adapter-file").count() == 0
    page.locator("#adapter input").click()
    page.get_by_role("option", name="My own").click()
    page.locator("#adapter-file input[type=file]").set_input_files(
        (tmp_path / WEIGHTS).rename(tmp_path / f"{SECRET}.safetensors")
    )
    playwright.expect(page.locator("#adapter-file")).to_contain_text("upload")
    page.get_by_label("number input for Adapter strength").fill("0.5")
    generate(page)
    playwright.expect(page.locator("#status")).to_contain_text("adapter mine, strength 0.5")
    page.get_by_role("tab", name="Recipe").click()
    playwright.expect(page.locator("#recipe")).to_contain_text('"mine"')
    page.locator("#adapter-file").get_by_label("Clear").click()
    made = f"() => {{ const d = new DataTransfer(); d.items.add(new File(['x'], '{SECRET}.safetensors')); return d; }}"
    page.locator("#adapter-file button").first.dispatch_event("drop", {"dataTransfer": page.evaluate_handle(made)})
    playwright.expect(page.locator("#adapter-file")).to_contain_text("upload")
    page.locator("#generate").click()
    playwright.expect(page.get_by_test_id("toast-body")).to_contain_text("The adapter is no whole safetensors file.")
    assert SECRET not in page.content()


def test_errors_are_toasts(open_page):
    page = open_page()
    page.locator("#text-prompt textarea").fill("a cat")
    page.locator("#generate").click()
    toast = page.get_by_test_id("toast-body")
    playwright.expect(toast).to_contain_text("Prompt names no modality")
    assert "Traceback" not in toast.inner_text() and "/" not in toast.inner_text()


def test_phone(open_page):
    page = open_page(width=390, height=844)
    assert not is_too_wide(page)
    generate(page)
    assert not is_too_wide(page)
    page.get_by_role("tab", name="Recipe").click()
    playwright.expect(page.locator("#recipe")).to_contain_text('"seed"')
    assert not is_too_wide(page)
    page.get_by_role("tab", name="Image to image").click()
    page.locator("#transform").wait_for()
    assert not is_too_wide(page)


def test_dark(open_page):
    letters = """getComputedStyle(document.querySelector('#title h1')).color
        .match(/[0-9.]+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0)"""
    assert open_page(theme="dark").evaluate(letters) > 500 > 250 > open_page().evaluate(letters)
