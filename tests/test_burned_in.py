"""Burned-in text is found, other things are not, and it is told where."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from pipeline.dicom_burned_in import BurnedInTextWarning, _connected, find_text, in_words
from pipeline.dicom_input import read_image

from .dicom_samples import smooth_pixels
from .test_dicom_input import as_file, made


def with_text(text="DOE^JANE 1961-04-12", size=14, place=(20, 30), colour=255, ground=None, side=256):
    ground = smooth_pixels(side, side) * 0.5 if ground is None else ground
    picture = Image.fromarray(np.rint(ground * 255).astype(np.uint8))
    drawing = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size)
    drawing.text(place, text, fill=colour, font=font)
    return np.asarray(picture, np.float32) / 255, drawing.textbbox(place, text, font=font)


@pytest.mark.parametrize("size", [10, 14, 20, 32])
@pytest.mark.parametrize("colour", [255, 0])
def test_text_is_found_where_it_stands(size, colour):
    ground = np.full((256, 400), 0.15 if colour else 0.8, np.float32)
    pixels, (left, top, right, bottom) = with_text(size=size, colour=colour, ground=ground)
    boxes = [region.box for region in find_text(pixels)]
    assert boxes
    found = np.zeros(pixels.shape, bool)
    for a, b, c, d in boxes:
        assert 0 <= a < c <= 256 and 0 <= b < d <= 400
        found[a:c, b:d] = True
    truth = np.zeros_like(found)
    truth[int(top) : int(bottom), int(left) : int(right)] = True
    assert found[truth].mean() > 0.5 and (found & ~truth).sum() < 0.5 * truth.sum()


def test_colour_and_large_pictures():
    ground = np.full((3000, 2400), 0.2, np.float32)
    assert find_text(with_text(size=60, ground=ground)[0])
    grey, _ = with_text()
    assert find_text(np.stack([grey, grey, grey * 0.1], -1).astype(np.float32))


@pytest.mark.parametrize("pixels", [
    np.zeros((64, 64)), np.ones((1, 1)), np.ones((3, 500)), smooth_pixels(), np.indices((300, 300)).sum(0) // 20 % 2,
    np.random.default_rng(0).random((256, 256)), np.random.default_rng(1).random((200, 200, 3)),
])  # fmt: skip
def test_nothing_is_found_where_there_is_no_text(pixels):
    assert find_text(np.asarray(pixels, np.float32), 6.0) == []


def test_connected_pixels_are_those_of_a_flood_fill():
    rng = np.random.default_rng(3)
    for share in (0.1, 0.4, 0.6):
        mask = rng.random((40, 50)) < share
        ink = rng.random(mask.shape).astype(np.float32)
        left, boxes = mask.copy(), []
        while left.any():
            todo, part = [tuple(np.argwhere(left)[0])], []
            left[todo[0]] = False
            while todo:
                y, x = todo.pop()
                part.append((y, x))
                for i in range(max(y - 1, 0), min(y + 2, 40)):
                    for j in range(max(x - 1, 0), min(x + 2, 50)):
                        if left[i, j]:
                            left[i, j] = False
                            todo.append((i, j))
            ys, xs = zip(*part, strict=True)
            boxes.append((min(ys), min(xs), max(ys), max(xs), len(part), max(ink[p] for p in part)))
        found = _connected(mask, ink)
        names = ("top", "left", "bottom", "right", "area", "peak")
        assert sorted(zip(*(getattr(found, name).tolist() for name in names), strict=True)) == sorted(
            tuple(map(float, box)) for box in boxes
        )


def test_it_is_said_in_words():
    assert in_words([], False) is None
    assert "rows 3 to 9, columns 1 to 40" in in_words([(2, 0, 9, 40)], False)
    assert "as its header says" in in_words([], True)
    assert "and 2 more" in in_words([(1, 2, 3, 4)] * 5, True)


def test_the_header_is_heard():
    assert read_image(as_file(made(BurnedInAnnotation="YES"))).burned_in_annotation
    for value in ("NO", "", "<b>"):
        assert not read_image(as_file(made(BurnedInAnnotation=value))).burned_in_annotation


def test_the_pipeline_warns_of_an_input_with_text(tiny):
    pixels, _ = with_text()
    with pytest.warns(BurnedInTextWarning, match="rows"):
        tiny("chest X-ray", pixels, num_inference_steps=1, seed=1, output_type="np")
    with warnings.catch_warnings():
        warnings.simplefilter("error", BurnedInTextWarning)
        tiny("chest X-ray", smooth_pixels(64, 64), num_inference_steps=1, seed=1, output_type="np")


def test_text_is_drawn_within_the_picture():
    from evaluation.burned_in import write_text

    rng = random.Random(0)
    for _ in range(20):
        picture, size = write_text(Image.new("L", (200, 120), 60), rng)
        assert picture.size == (200, 120) and size >= 9 and np.ptp(np.asarray(picture)) > 60
