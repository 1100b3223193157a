"""Explanations with known answers: a network that looks at one place, masks that follow their image."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.__main__ import main
from evaluation.explain import (
    Explanation,
    choose,
    explain_image,
    mask_of,
    share_inside,
    square_mask,
    summarise_shares,
)
from evaluation.explain_sheet import overlay
from evaluation.folders import ImageSet
from pipeline.dicom_input import square

SHARED = Path(__file__).resolve().parents[1] / "../shared/data/images"
SIDE = 32


class Corner(torch.nn.Module):
    """Says class 1 as sure as the upper left quarter is textured, and sees nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(8.0))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        half = pixels.shape[-1] // 2
        one = self.scale * pixels[:, :, :half, :half].std(dim=(1, 2, 3))
        return torch.stack([torch.ones_like(one), one], 1)


def noise(seed: int = 0, side: int = SIDE) -> np.ndarray:
    grey = np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def test_lime_finds_the_place_that_a_network_looks_at():
    found = explain_image(Corner(), noise(), segments=16, samples=150)
    corner = np.zeros((SIDE, SIDE), bool)
    corner[: SIDE // 2, : SIDE // 2] = True
    share = share_inside(found, corner)
    assert found.predicted == 1 and 0.5 < found.probability < 1
    assert share is not None and share[0] > 0.75 and 0.2 < share[1] < 0.35
    away = share_inside(found, ~corner)
    assert away is not None and away[0] == pytest.approx(1 - share[0])
    again = explain_image(Corner(), noise(), segments=16, samples=150)
    assert np.array_equal(found.weights, again.weights) and np.array_equal(found.segments, again.segments)


def test_shares_count_segments_by_the_part_that_is_inside():
    segments = np.repeat([[0, 0, 1, 1]], 4, axis=0)
    mask = np.zeros((4, 4), bool)
    mask[:, :1] = True  # half of segment 0
    found = Explanation(segments, np.array([3.0, 1.0]), 0, 0.9)
    assert share_inside(found, mask) == (0.375, 0.25)
    assert share_inside(found, np.zeros((4, 4), bool)) is None
    assert share_inside(Explanation(segments, np.array([-1.0, 0.0]), 0, 0.9), mask) is None
    summary = summarise_shares([(0.5, 0.2), (0.7, 0.2)])
    assert summary["inside"] == pytest.approx(0.6) and summary["more_than_random"]["mean"] == pytest.approx(0.4)
    assert summarise_shares([(0.5, 0.2)])["more_than_random"]["low"] is None


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (50, 50)])
@pytest.mark.parametrize("border", [0.0, 0.5])
def test_a_mask_goes_where_its_image_goes(shape, border):
    mask = np.zeros(shape, bool)
    mask[15:30, 18:33] = True
    pixels = np.where(mask, 1.0, border).astype(np.float32)
    moved = square(pixels, SIDE) > (1 + border) / 2
    assert np.mean(square_mask(pixels, mask, SIDE) != moved) < 0.03


def test_marks_come_from_boxes_and_masks_of_the_table(tmp_path):
    Image.fromarray(noise(side=40)).save(tmp_path / "a.png")
    shown = np.zeros((80, 80), np.uint8)
    shown[:40] = 255
    Image.fromarray(shown).save(tmp_path / "m.png")
    upper = mask_of(tmp_path, {"file_name": "a.png", "mask": "m.png"}, SIDE)
    assert upper is not None and upper[:16].all() and not upper[16:].any()
    box = mask_of(tmp_path, {"file_name": "a.png", "extra": json.dumps({"bbox_cxcywh": [0.25, 0.5, 0.5, 1]})}, SIDE)
    assert box is not None and box[:, :16].all() and not box[:, 16:].any()
    for mask, says in (("DOE_JANE.png", "cannot be read"), ("../DOE_JANE.png", "leads out of the folder")):
        with pytest.raises(ValueError, match=says) as raised:
            mask_of(tmp_path, {"file_name": "a.png", "mask": mask}, SIDE)
        assert "DOE" not in str(raised.value)
    assert mask_of(tmp_path, {"file_name": "a.png"}, SIDE) is None
    assert mask_of(tmp_path, {"file_name": "a.png", "extra": "{}"}, SIDE) is None


def test_each_image_is_of_another_person_while_they_last():
    images = np.stack([noise(i) for i in range(9)])
    some = ImageSet(images, ("a",) * 8 + ("b",), np.array([0] * 5 + [1, 2, 2, 3]), ("",) * 9, ("",) * 9, ({},) * 9)
    assert sorted(choose(some, "a", 3, 0).groups) == [0, 1, 2]
    assert len(choose(some, "a", 5, 0)) == 5 and len(choose(some, "b", 5, 0)) == 1


def test_overlays_are_red_for_and_blue_against():
    segments = np.repeat([[0, 1]], 2, axis=0)
    laid = overlay(np.full((2, 2, 3), 128, np.uint8), segments, np.array([2.0, -1.0]))
    assert laid.shape == (2, 2, 3) and laid[0, 0, 0] > 0.7 > laid[0, 0, 2] and laid[0, 1, 2] > laid[0, 1, 0]
    assert np.allclose(overlay(np.full((2, 2, 3), 128, np.uint8), segments, np.zeros(2)), 128 / 255)


def test_too_few_questions_are_refused():
    with pytest.raises(ValueError, match="`segments` is 2 and `samples` 200"):
        explain_image(Corner(), noise(), segments=2)


def test_a_sheet_and_its_numbers_come_from_the_command_line(tmp_path, capsys):
    real, synthetic = tmp_path / "real", tmp_path / "made"
    rows = []
    for number in range(16):
        name = f"{number}.png"
        label = "ab"[number % 2]
        for folder in (real, synthetic / label):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise(number + (100 if folder != real else 0))).save(folder / name)
        extra = json.dumps({"bbox_cxcywh": [0.5, 0.5, 0.5, 0.5]})
        rows.append({"file_name": name, "label": label, "split": ["train", "val"][number >= 10], "extra": extra})
    with (real / "metadata.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    out = tmp_path / "explain.json"
    words = ["explain", "--real", str(real), "--synthetic", str(synthetic), "--size", "32", "--width", "0.125"]
    words += ["--epochs", "1", "--updates", "2", "--count", "2", "--segments", "9", "--samples", "20"]
    words += ["--out", str(out), "--cache", str(tmp_path / "cache")]
    assert main(words) == 0
    own = json.loads(out.read_text())["domains"]["own"]
    assert own["right"]["real"]["count"] == own["right"]["synthetic"]["count"] == 4
    marked = own["explanation_inside_the_mark"]
    assert (
        0 < marked["count"] <= 4 and 0 <= marked["inside"] <= 1 and marked["at_random"] == pytest.approx(0.25, abs=0.15)
    )
    with Image.open(tmp_path / own["sheet"]) as sheet:
        assert sheet.format == "PNG" and sheet.width > 500
    assert len(list((tmp_path / "cache" / "networks").iterdir())) == 1
    assert main([*words, "--count", "0"]) == 2
    assert "`count` is 0" in capsys.readouterr().err


@pytest.mark.skipif(not SHARED.is_dir(), reason="the project's real data is not here")
@pytest.mark.parametrize(("pack", "least", "most"), [("mri_brain_tumor", 0.0005, 0.3), ("cxr_shenzhen_tb", 0.1, 0.5)])
def test_marks_of_the_real_data_are_of_plausible_size(pack, least, most):
    with (SHARED / pack / "metadata.csv").open(newline="") as handle:
        row = next(csv.DictReader(handle))
    found = mask_of(SHARED / pack, row, 128)
    assert found is not None and least < found.mean() < most
