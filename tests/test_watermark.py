"""The invisible mark: found in what is left of an image, and in nothing else; recorded and replayed."""

from __future__ import annotations

import csv
import io

import numpy as np
import pydicom
import pytest
from PIL import Image

from pipeline import Recipe, read_recipe, verify
from pipeline.__main__ import main
from pipeline.dicom_output import to_dataset
from pipeline.dicom_profiles import PROFILES
from pipeline.pipeline_watermark import FALSE_ALARMS, LEAST_PSNR, NAME, THRESHOLD, embed, is_marked, score
from pipeline.replaying import replay

from .dicom_samples import recipe_of

HEAD = "head CT, brain window"


def textured(seed: int = 0, shape: tuple[int, ...] = (256, 256), steepness: float = 1.2) -> np.ndarray:
    """Noise with the spectrum of a picture, in [0, 1], with black borders as a scan has."""
    rng = np.random.default_rng(seed)
    radius = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])[None])
    waves = np.fft.fft2(rng.normal(size=shape[:2])) / np.maximum(radius, 1 / max(shape)) ** steepness
    grey = np.fft.ifft2(waves).real
    grey = np.clip(0.5 + 0.2 * (grey - grey.mean()) / grey.std(), 0, 1)
    grey[:, : shape[1] // 8] = 0
    return grey if len(shape) == 2 else np.stack([grey, grey**2, 1 - grey], -1)


def eight_bit(pixels: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def jpeg(picture: np.ndarray, quality: int = 90) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=quality)
    return out.getvalue()


def resized(picture: np.ndarray, factor: float, way: Image.Resampling = Image.Resampling.BICUBIC) -> np.ndarray:
    image = Image.fromarray(picture)
    return np.asarray(image.resize((round(image.width * factor), round(image.height * factor)), way))


ATTACKS = {
    "stored": lambda x: x,
    "8 bits": eight_bit,
    "12 bits": lambda x: np.rint(x * 4095).astype(np.uint16),
    "JPEG 90": lambda x: np.asarray(Image.open(io.BytesIO(jpeg(eight_bit(x))))),
    "three quarters": lambda x: resized(eight_bit(x), 0.75),
    "three quarters, nearest": lambda x: resized(eight_bit(x), 0.75, Image.Resampling.NEAREST),
    "twice as large": lambda x: resized(eight_bit(x), 2),
    "squashed": lambda x: np.asarray(Image.fromarray(eight_bit(x)).resize((200, 256))),
    "narrow window": lambda x: eight_bit((x - 0.3) / 0.5),
    "wide window": lambda x: eight_bit(x / 2 + 0.25),
    "inverted": lambda x: eight_bit(1 - x),
    "turned": lambda x: np.rot90(eight_bit(x)),
    "mirrored": lambda x: eight_bit(x)[:, ::-1],
    "all": lambda x: np.asarray(Image.open(io.BytesIO(jpeg(resized(eight_bit(1.1 - 1.3 * x), 0.75))))),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("shape", [(256, 256), (256, 256, 3), (192, 320)])
def test_the_mark_survives_and_nothing_else_has_it(attack, shape):
    image = textured(1, shape)
    assert score(ATTACKS[attack](embed(image))) > 1.5 * THRESHOLD
    assert score(ATTACKS[attack](image)) < THRESHOLD


@pytest.mark.parametrize("image", [textured(2), textured(3, (64, 96, 3)), np.zeros((64, 64)), np.ones((20, 8))])
def test_it_is_faint_and_stays_in_range(image):
    marked = embed(image.astype(np.float32))
    assert marked.dtype == np.float32 and marked.shape == image.shape
    assert marked.min() >= 0 and marked.max() <= 1
    assert np.mean((marked - image) ** 2) <= 10 ** (-LEAST_PSNR / 10) * 1.001
    assert np.array_equal(marked, embed(image.astype(np.float32)))
    assert image.ndim == 3 or not marked[image == 0].any()


def test_no_other_key_finds_it_and_chance_does_not_either():
    marked = embed(textured(4))
    scores = [score(marked, key=f"another {number}") for number in range(60)]
    assert score(marked) > 2 * THRESHOLD > 2 * max(scores) and FALSE_ALARMS < 1e-4
    assert 1 < np.mean(scores) < 3  # the largest of eight readings of fair coins


@pytest.mark.parametrize(
    "image",
    [np.zeros((1, 1)), np.full((300, 300), 7), np.eye(256), np.tile([0, 255], (256, 128)), np.full((9, 9), np.nan)],
)
def test_odd_images_have_no_mark(image):
    assert not is_marked(image)


def test_what_is_no_image_is_refused():
    for bad in (np.zeros(5), np.zeros((4, 4, 4)), np.zeros((0, 4))):
        with pytest.raises(ValueError, match="`pixels` has shape"):
            score(bad)
    with pytest.raises(ValueError, match="`pixels` has type"):
        embed(np.zeros((8, 8), np.uint8))


# ---- in files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROFILES)
def test_verify_finds_it_in_dicom_also_when_the_header_is_gone(name):
    pixels = textured(5, (256, 256, 3) if name in ("blood-smear", "nuclei-histology") else (256, 256))
    recipe = recipe_of(name, watermark=NAME)
    dataset = to_dataset(embed(pixels), PROFILES[name], recipe)
    found = verify(dataset)
    assert found.ok and found.watermark == "found"
    for element in list(dataset):
        if element.tag.group != 0x0028 and element.keyword not in ("PixelData", "Modality", "SOPClassUID"):
            del dataset[element.tag]
    del dataset.file_meta.ImplementationVersionName
    found = verify(dataset)
    assert not found.ok and not found.made_here and found.traces == ("the watermark",)
    assert "watermark: found, so the image is synthetic" in found.in_words()
    other = verify(to_dataset(pixels, PROFILES[name], recipe))
    assert other.watermark == "not found" and "watermark: not found, though the recipe has one" in other.in_words()
    assert "watermark: not found" in verify(to_dataset(pixels, PROFILES[name], recipe_of(name))).in_words()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "I;16"])
def test_verify_finds_it_in_a_picture_without_header(mode, tmp_path, capsys):
    grey = embed(textured(6))
    picture = Image.fromarray(np.rint(grey * 65535).astype(np.uint16)) if mode == "I;16" else None
    (picture or Image.fromarray(eight_bit(grey)).convert(mode)).save(tmp_path / "a.png")
    assert main(["verify", str(tmp_path / "a.png")]) == 1
    said = capsys.readouterr().out
    assert "NOT OK" in said and "made here: perhaps, by the watermark" in said and "so the image is synthetic" in said


def test_verify_reads_jpeg(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(jpeg(resized(eight_bit(embed(textured(7))), 0.75)))
    (tmp_path / "b.jpg").write_bytes(jpeg(resized(eight_bit(textured(7)), 0.75)))
    assert verify(tmp_path / "a.jpg").watermark == "found" and verify(tmp_path / "a.jpg").kind == "JPEG"
    assert verify(tmp_path / "b.jpg").watermark == "not found" and not verify(tmp_path / "b.jpg").traces
    (tmp_path / "c.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:300])
    assert main(["verify", *map(str, sorted(tmp_path.iterdir()))]) == 2
    assert "is a JPEG that cannot be read" in capsys.readouterr().err


def test_recipes_without_one_are_as_they_were():
    plain, marked = recipe_of("ct-head"), recipe_of("ct-head", watermark=NAME)
    assert "watermark" not in plain.to_json() and Recipe.from_json(plain.to_json()) == plain
    assert Recipe.from_json(marked.to_json()) == marked and marked.digest() != plain.digest()
    assert marked.request_digest() != plain.request_digest()
    with pytest.raises(ValueError, match="`watermark` must be a string"):
        recipe_of("ct-head", watermark=True)


def test_the_pipeline_marks_records_and_replays(tiny, tiny_folder, tmp_path):
    call = {"seed": 5, "num_inference_steps": 2, "height": 256, "width": 256}
    plain, marked = tiny(HEAD, **call), tiny(HEAD, **call, watermark=True)
    assert [verify(each.dicoms[0]).watermark for each in (plain, marked)] == ["not found", "found"]
    assert marked.recipes[0].watermark == NAME and plain.recipes[0].watermark is None
    assert plain.dicoms[0].SOPInstanceUID != marked.dicoms[0].SOPInstanceUID
    assert is_marked(np.asarray(marked.images[0]))
    numbers = tiny(HEAD, **call, watermark=True, output_type="np").images[0]
    assert np.abs(numbers - tiny(HEAD, **call, output_type="np").images[0]).max() < 0.1 and is_marked(numbers)
    again = replay(marked.dicoms[0], tmp_path, models=[tiny_folder])
    assert again.equal, again.differences
    with pytest.raises(ValueError, match="`watermark` is True, but `output_type` is 'latent'"):
        tiny(HEAD, watermark=True, output_type="latent")
    alien = to_dataset(textured(1), PROFILES["ct-head"], recipe_of("ct-head", watermark="another"))
    with pytest.raises(ValueError, match="the recipe's `watermark` is not allowed"):
        replay(alien, tmp_path)


def test_command_line_and_lists_of_prompts(tiny_folder, tmp_path, capsys):
    common = ["--model", str(tiny_folder), "--device", "cpu", "--watermark"]
    assert main(["generate", HEAD, "--seed", "1", "--steps", "2", "--out", str(tmp_path / "a"), *common]) == 0
    (tmp_path / "list.csv").write_text(f'prompt,seed,steps\n"{HEAD}",1,2\n')
    arguments = ["generate", "--from-csv", str(tmp_path / "list.csv"), "--out", str(tmp_path / "b"), *common]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(arguments) == 0 and "1 there already" in capsys.readouterr().err
    (first,), (second,) = (list((tmp_path / folder).glob("*.dcm")) for folder in "ab")
    assert read_recipe(pydicom.dcmread(first)).watermark == NAME and first.name == second.name
    assert main(arguments[:-1]) == 0  # without the mark it is another image
    assert len(list((tmp_path / "b").glob("*.dcm"))) == 2
    with open(tmp_path / "b" / "manifest.csv", newline="") as file:
        assert [row["file"] != first.name for row in csv.DictReader(file)] == [True]
