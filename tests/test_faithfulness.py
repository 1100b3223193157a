"""Judges and requests: what a prompt asks, what a picture shows, and which of several to keep."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.__main__ import main
from evaluation.faithfulness import (
    by_request,
    draw_requests,
    faithful_scores,
    keep_most_faithful,
    reached,
    save_kept,
)
from evaluation.judge import Judge, fit_linear, in_half, judge_features
from evaluation.prompt_requests import Request, folder_requests, read_request

from .adapter_samples import save_adapter
from .test_evaluation import structured
from .tiny import tiny_pipeline

SHARED = Path(__file__).resolve().parents[1] / "../shared/data/images"


@pytest.fixture(scope="module")
def bright() -> Judge:
    """A real judge of the simplest of questions: is the picture dark or bright?"""
    levels = np.linspace(0, 1, 12)
    features = judge_features(grey(*levels), False, "")
    return Judge("plane", ("dark", "bright"), *fit_linear(features, (levels > 0.5).astype(int), 2))


def grey(*levels: float) -> np.ndarray:
    return np.stack([np.full((4, 4, 3), 255 * level, np.uint8) for level in levels])


def test_words_of_a_prompt_become_questions():
    asked = read_request("axial T1 brain MRI with contrast, meningioma, 54 year old woman").asked
    assert asked == {"modality": "brain-mri", "plane": "axial", "brain-tumour": "meningioma"}
    asked = read_request("frontal chest X-ray, PA view, adult male 77 years, pneumonia").asked
    assert asked == {"modality": "chest-xray", "view": "PA", "sex": "M", "side": "as taken"}
    asked = read_request("blood smear, single immature granulocyte").asked
    assert asked == {"modality": "blood-smear", "blood-cell": "immature_granulocyte"}
    asked = read_request("thin blood smear, single red blood cell parasitised by Plasmodium falciparum malaria").asked
    assert asked == {"modality": "blood-smear", "malaria": "parasitized"}
    assert read_request("head CT, haemorrhage").asked == {"modality": "ct-head"}
    assert read_request("coronal brain MRI, glioma or meningioma").asked == {
        "modality": "brain-mri",
        "plane": "coronal",
    }
    assert read_request("a cat").asked == {}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real images (../shared) are not here")
def test_words_of_real_captions_say_what_their_rows_say():
    requests = draw_requests(SHARED, 60)
    assert len(requests) == 300 and all(read_request(one.prompt).asked == one.asked for one in requests)
    planes = [one.asked["plane"] for one in requests if "plane" in one.asked]
    assert planes.count("axial") == planes.count("coronal") == 30
    for one in draw_requests(SHARED, 60, varied=True):  # words may be missed, but never misread
        assert read_request(one.prompt).asked.items() <= one.asked.items()


def test_scores_are_of_what_was_asked_and_the_best_draw_is_kept(bright):
    requests = [Request("p", {"plane": "bright"}), Request("q", {"plane": "dark"})]
    scores = faithful_scores({"plane": bright}, grey(0.9, 0.9), requests)
    assert scores[0] > 0.6 and scores[1] < 0.4
    drawn = np.stack([grey(0.2, 0.1), grey(0.9, 0.8), grey(0.6, 0.9)])
    best, found = keep_most_faithful({"plane": bright}, {"plane": bright}, drawn, requests, seed=5)
    assert best.tolist() == [1, 0]
    assert found["thrown_away"] == 4 and found["kept"] == 2 and found["first_draw_kept"] == 0.5
    assert found["tasks"]["plane"]["first_draw"]["accuracy"] == 0.5
    assert found["tasks"]["plane"]["kept"]["accuracy"] == 1
    assert found["images"][0]["kept_seed"] == 5 + 2 and found["images"][0]["thrown_away_seeds"] == [5, 9]
    with pytest.raises(ValueError, match="`requests` asks nothing in 'r'"):
        faithful_scores({"plane": bright}, grey(0.5), [Request("r", {"view": "PA"})])


def test_kept_images_are_an_imagefolder_that_can_be_judged_again(bright, tmp_path):
    requests = [Request("axial brain MRI, glioma", {"plane": "axial"}), Request("a cat", {})]
    found = {"images": [{"kept_seed": 3}, {"kept_seed": 4}]}
    save_kept(tmp_path / "kept", grey(0.2, 0.8), requests, found)
    with (tmp_path / "kept" / "metadata.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert rows[0]["text"] == "axial brain MRI, glioma" and rows[1]["seed"] == "4"
    images, again = folder_requests(tmp_path / "kept")
    assert len(images) == 1 and again[0].asked["brain-tumour"] == "glioma"  # who asks nothing is not judged


def test_table_by_request_counts_what_was_shown():
    judged = {"classes": ["a", "b", "c"], "confusion": [[3, 1, 0], [0, 0, 0], [2, 0, 2]]}
    real = {"classes": ["a", "b", "c"], "confusion": [[9, 1, 0], [0, 10, 0], [5, 0, 5]]}
    found = by_request(judged, real)
    assert list(found) == ["a", "c"]
    assert found["a"]["share"] == 0.75 and found["a"]["share_of_real_images"] == 0.9
    assert found["c"]["seen_as"] == {"a": 2, "c": 2} and found["c"]["low"] < 0.5 < found["c"]["high"]


def test_goals_are_met_or_not_and_said():
    assert reached("plane", {"accuracy": 0.95}, 1.0)["goal"]["met"] is True
    assert reached("brain-tumour", {"accuracy": 0.9}, 0.6)["goal"] == {
        **{"of": "share_of_real", "at_least": 0.7, "value": 0.6, "met": False}
    }
    assert reached("sex", {"accuracy": 0.5}, 0.5) == {}
    assert reached("blood-cell", {"accuracy": 0.9}, None)["goal"]["met"] is False  # the judge is never right


def test_halves_tell_a_picture_from_its_mirror_image_and_swap_with_it():
    images = structured(2, 0, side=64)
    seen = judge_features(images, True, "")
    mirrored = judge_features(np.ascontiguousarray(images[:, :, ::-1]), True, "")
    middle = seen.shape[1] // 2
    assert np.allclose(seen[:, :middle], mirrored[:, middle:], atol=1e-4)
    assert not np.allclose(seen[:, :middle], seen[:, middle:], atol=1e-2)


def test_halves_of_the_people_share_nobody():
    rows = [{"pack": "p", "group_id": str(n // 2), "file_name": str(n)} for n in range(200)]
    halves = [{row["group_id"] for row in rows if in_half(row, half)} for half in (0, 1)]
    assert not halves[0] & halves[1] and len(halves[0] | halves[1]) == 100 and min(map(len, halves)) > 30


@pytest.fixture(scope="module")
def packs(tmp_path_factory) -> Path:
    """The one pack of two questions, a few images each."""
    root = tmp_path_factory.mktemp("packs")
    folder = root / "mri_brain_tumor"
    (folder / "images").mkdir(parents=True)
    rows = []
    for index, image in enumerate(structured(60, 0, side=48)):
        Image.fromarray(image).save(folder / f"images/{index}.png")
        label, view = ("glioma", "meningioma", "pituitary")[index % 3], ("axial", "coronal")[index // 3 % 2]
        text, split = f"{view} brain MRI, {label}", ("train", "train", "val")[index % 5 % 3]
        row = {"file_name": f"images/{index}.png", "split": split, "label": label, "view": view, "text": text}
        rows.append({**row, "group_id": str(index // 2)})
    with (folder / "metadata.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return root


def test_whole_measure_of_a_random_model_with_two_draws(packs, tmp_path, monkeypatch):
    from evaluation import faithfulness

    # The judge of modality would need all packs.
    monkeypatch.setitem(faithfulness.GROUPS, "brain-mri", (("mri_brain_tumor",), ("plane", "brain-tumour")))
    how = {"pipe": tiny_pipeline(), "steps": 1, "batch": 12, "cache": tmp_path}
    result = faithfulness.faithfulness(packs, groups=["brain-mri"], count=12, draw=2, keep=tmp_path / "kept", **how)
    assert result["counts"] == {"images": 12, "asked": {"brain-tumour": 12, "plane": 12}}
    assert set(result["tasks"]["plane"]["by_request"]) == {"axial", "coronal"}
    assert result["tasks"]["plane"]["goal"]["at_least"] == 0.9
    assert result["draw"]["thrown_away"] == 12 and len(list((tmp_path / "kept").glob("*.png"))) == 12
    json.dumps(result, default=lambda value: value.tolist())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--count", "3"], "`count` is 3: numbers from 10 are allowed"),
        (["--groups", "toe"], "`groups` has 'toe': allowed are chest-xray, ct, brain-mri, blood-smear, malaria"),
        (["--adapter", "no/such/one"], "`adapter` is 'no/such/one'; allowed are a folder"),
        (["--adapter", "nuclei", "--synthetic", "x"], "`adapter` is nuclei, but so is `synthetic`"),
        (["--draw", "0"], "`draw` is 0"),
        (["--synthetic", "nowhere"], "`synthetic` is 'nowhere': there is no such folder"),
        (["--data", "nowhere"], "`data` has no pack"),
    ],
)
def test_bad_arguments_end_in_one_clear_line(packs, tmp_path, capsys, arguments, words):
    data = [] if "--data" in arguments else ["--data", str(packs)]
    assert main(["faithfulness", *arguments, *data, "--out", str(tmp_path / "out.json")]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1


def test_adapter_is_drawn_with(packs, tmp_path, monkeypatch):
    """Bare and with an adapter of a saved model: other images, and its weight stands in the result."""
    from evaluation import faithfulness

    monkeypatch.setitem(faithfulness.GROUPS, "brain-mri", (("mri_brain_tumor",), ("plane",)))
    tiny_pipeline().save_pretrained(tmp_path / "model")
    save_adapter(tmp_path / "wide")
    how = {"groups": ["brain-mri"], "count": 12, "model": tmp_path / "model", "steps": 1, "batch": 12}
    bare, adapted = (
        faithfulness.faithfulness(packs, cache=tmp_path / "cache", adapter=names, **how)
        for names in ([], [f"{tmp_path / 'wide'}:0.5"])
    )
    assert not bare["settings"]["adapters"] and [one[2] for one in adapted["settings"]["adapters"]] == [0.5]
    assert len({path.read_bytes() for path in (tmp_path / "cache" / "generated").glob("*.png")}) == 24


def test_folder_whose_prompts_ask_nothing_is_refused(packs, tmp_path, capsys):
    folder = tmp_path / "some"
    folder.mkdir()
    Image.fromarray(structured(1, 0)[0]).save(folder / "one.png")
    asked = ["faithfulness", "--synthetic", str(folder), "--data", str(packs), "--out", str(tmp_path / "out.json")]
    assert main(asked) == 2
    assert "no prompt asks for anything that a judge knows" in capsys.readouterr().err
