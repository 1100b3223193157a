"""Measures with known answers, on small made-up images; nothing is downloaded."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation import history, table
from evaluation.__main__ import main
from evaluation.classify import classify, draw_prompts, judge_images
from evaluation.curve import curve
from evaluation.features import FEATURES, extract_features
from evaluation.fidelity import blur, compare, fidelity, kernel_distance
from evaluation.images import count_by, generate, real_rows, spread
from evaluation.judge import Judge, augment, fit_linear, score, train_judge, wilson_interval
from evaluation.report import write_json
from evaluation.sheet import draw_sheet, make_sheet
from evaluation.speed import bare_loop, speed
from lora.base_data import PACKS, load_images
from pipeline.dicom_profiles import PROFILES
from tests.tiny import tiny_pipeline

SHARED = Path(__file__).resolve().parents[1] / "../shared/data/images"
COUNT = 24


def structured(count: int, seed: int, side: int = 96, kind: str = "disc") -> np.ndarray:
    """Discs or stripes of random place, size and grey, with fine texture: uint8 (N, side, side, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    images = []
    for _ in range(count):
        top, left, radius = rng.uniform(30, 66), rng.uniform(30, 66), rng.uniform(12, 28)
        shape = np.hypot(y - top, x - left) < radius if kind == "disc" else (y + left) // (radius / 2) % 2 > 0
        texture = rng.normal(0, 12, (side, side))
        images.append(rng.uniform(40, 90) + rng.uniform(60, 120) * shape + texture)
    grey = np.clip(np.stack(images), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=3)


@pytest.fixture(scope="module")
def packs(tmp_path_factory) -> Path:
    """A folder like the real data: every pack of the modality task, a few images each."""
    root = tmp_path_factory.mktemp("packs")
    labels = {
        "mri_brain_tumor": ("glioma", "meningioma", "pituitary"),
        "blood_pbc": ("basophil", "eosinophil", "erythroblast", "immature_granulocyte")
        + ("lymphocyte", "monocyte", "neutrophil", "platelet"),
    }
    for number, pack in enumerate(PACKS):
        (root / pack / "images").mkdir(parents=True)
        images = structured(2 * COUNT, number, side=48, kind="disc" if number % 2 else "stripes")
        rows = []
        for index, image in enumerate(images):
            name = f"images/{index}.png"
            Image.fromarray(image).save(root / pack / name)
            label = labels.get(pack, ("normal",))[index % len(labels.get(pack, ("normal",)))]
            text, split = f"{PACKS[pack]}, {label} {index}", ("train", "val")[index % 5 == 4]
            rows.append({"file_name": name, "split": split, "label": label, "text": text})
        with (root / pack / "metadata.csv").open("w", newline="") as handle:
            writer = csv.DictWriter(handle, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return root


def write_pictures(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:03d}.png")
    return folder


# Features


def test_features_do_not_depend_on_batch_kind_or_colour_layout():
    images = structured(5, 0)
    whole = extract_features(images, progress=False)
    assert whole.shape == (5, FEATURES) and whole.dtype == np.float32
    assert np.allclose(whole, extract_features(images, batch=2, progress=False), atol=1e-4)
    assert np.allclose(whole, extract_features(images.astype(np.float32) / 255, progress=False), atol=1e-4)
    assert np.allclose(whole, extract_features(images[..., 0], progress=False), atol=1e-4)
    assert extract_features([], progress=False).shape == (0, FEATURES)


def test_features_take_images_of_mixed_sizes():
    images = [structured(1, 1, side)[0] for side in (64, 96, 300)]
    assert extract_features(images, progress=False).shape == (3, FEATURES)


def test_features_refuse_other_shapes():
    with pytest.raises(ValueError, match=r"`images` has shape \(2, 8, 8, 5\)"):
        extract_features(np.zeros((2, 8, 8, 5)), progress=False)


# KID


def test_kid_of_equal_feature_sets_is_about_zero_and_grows_with_their_distance():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 200, 16))
    values = [kernel_distance(first + shift, second, draws=10).kid for shift in (0, 0.2, 0.5, 1)]
    assert abs(values[0]) < 0.02
    assert values == sorted(values) and values[3] > 0.5


def test_kid_is_unbiased():
    rng = np.random.default_rng(1)
    values = [kernel_distance(*rng.normal(size=(2, 25, 8)), draws=2).kid for _ in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_interval_covers_the_true_value(shift):
    rng = np.random.default_rng(2)
    truth = kernel_distance(*(rng.normal(size=(2, 4000, 8)) + [[[shift]], [[0]]]), draws=1).kid
    covered = 0
    for trial in range(100):
        found = kernel_distance(*(rng.normal(size=(2, 60, 8)) + [[[shift]], [[0]]]), draws=200, seed=trial)
        assert found.low < found.high
        covered += found.low <= truth <= found.high
    assert covered >= 88


def test_interval_of_strata_covers_the_true_value_and_is_narrower():
    rng = np.random.default_rng(3)

    def drawn(count: int) -> tuple[np.ndarray, list[str]]:
        """As many about each of two points far apart."""
        names = ["one", "other"] * (count // 2)
        return rng.normal(size=(count, 8)) + np.array([[1.5 if name == "one" else -1.5] for name in names]), names

    truth = kernel_distance(drawn(4000)[0] + 0.3, drawn(4000)[0], draws=1).kid
    covered, values, widths, plain = 0, [], [], []
    for trial in range(100):
        (made, groups), (real, real_groups) = drawn(60), drawn(60)
        found = kernel_distance(made + 0.3, real, groups=groups, real_groups=real_groups, draws=200, seed=trial)
        whole = kernel_distance(made + 0.3, real, draws=200, seed=trial)
        values.append(found.kid)
        covered += found.low <= truth <= found.high
        widths.append(found.high - found.low)
        plain.append(whole.high - whole.low)
    assert covered >= 88
    assert abs(np.mean(values) - truth) < 3 * np.std(values) / np.sqrt(len(values))
    assert np.mean(widths) < 0.6 * np.mean(plain)
    with pytest.raises(ValueError, match="`real_groups` holds 59 names for 60 images"):
        kernel_distance(made, real, real_groups=real_groups[1:])
    with pytest.raises(ValueError, match="`groups` has one image of lone: each group needs two"):
        kernel_distance(made, real, groups=["lone", *groups[1:]])


def test_one_stratum_redraws_as_none():
    made, real = np.random.default_rng(4).normal(size=(2, 30, 8))
    assert kernel_distance(made, real, groups=["a"] * 30, real_groups=["b"] * 30) == kernel_distance(made, real)


def test_images_against_themselves_their_blur_and_noise():
    val, train, noise = structured(30, 0), structured(30, 1), np.random.default_rng(2).integers(0, 256, (30, 96, 96, 3))
    result = compare(noise.astype(np.uint8), val, train)
    floor, blurs = result["floor"]["kid"], [result[f"blur_sigma_{sigma}"]["kid"] for sigma in (1, 2)]
    assert floor < 0.03
    assert floor + 0.01 < blurs[0] < blurs[1]
    assert result["synthetic"]["kid"] > 2 * floor + 0.2
    features = extract_features(val, progress=False)
    assert kernel_distance(features, features, draws=20).kid < 0.001


def test_blur_keeps_the_mean_and_removes_texture():
    images = structured(2, 0)
    soft = blur(images, 2)
    assert soft.shape == images.shape and soft.dtype == np.uint8
    assert abs(float(soft.mean()) - float(images.mean())) < 1
    assert np.diff(soft.astype(float), axis=1).std() < np.diff(images.astype(float), axis=1).std() / 2


def test_kid_of_three_images_is_refused():
    features = np.ones((3, 4))
    with pytest.raises(ValueError, match="`features` holds 3 images: KID needs at least 20"):
        kernel_distance(features, np.ones((30, 4)))


# Drawing rows


def test_spread_keeps_proportions_and_repeats_only_when_it_must():
    rows = [{"pack": "a", "n": str(n)} for n in range(60)] + [{"pack": "b", "n": str(n)} for n in range(20)]
    drawn = spread(rows, "pack", {"a": 3, "b": 1}, 40, 0)
    assert count_by(drawn, "pack") == {"a": 30, "b": 10}
    assert len({(row["pack"], row["n"]) for row in drawn}) == 40
    assert drawn == spread(rows, "pack", {"a": 3, "b": 1}, 40, 0) != spread(rows, "pack", {"a": 3, "b": 1}, 40, 1)
    assert count_by(spread(rows, "pack", {"a": 1, "b": 1}, 100, 0), "pack") == {"a": 50, "b": 50}


def test_prompts_ask_for_each_class_equally_often(packs):
    prompts, answers = draw_prompts("brain-tumour", packs, 12)
    assert [answers.count(name) for name in ("glioma", "meningioma", "pituitary")] == [4, 4, 4]
    assert all(answer in prompt for prompt, answer in zip(prompts, answers, strict=True))
    _, answers = draw_prompts("modality", packs, 40)
    wanted = {"blood-smear": 10, "brain-mri": 10, "chest-xray": 10, "ct-chest": 5, "ct-head": 5}
    assert {name: answers.count(name) for name in sorted(set(answers))} == wanted


# Judges


def test_judge_tells_shapes_apart_and_shuffled_answers_fall_to_chance():
    images = np.concatenate([structured(40, 0, 128), structured(40, 1, 128, "stripes")])
    features, labels = extract_features(images, size=128, progress=False), np.repeat([0, 1], 40)
    judge = Judge("shape", ("disc", "stripes"), *fit_linear(features, labels, 2))
    unseen = np.concatenate([structured(20, 2, 128), structured(20, 3, 128, "stripes")])
    answers = ["disc"] * 20 + ["stripes"] * 20
    result = judge_images(judge, unseen, answers)
    assert result["accuracy"] > 0.95 and result["chance"] == 0.5
    assert np.allclose(judge.probabilities(unseen).sum(1), 1, atol=1e-5)
    shuffled = list(np.random.default_rng(0).permutation(answers))
    assert 0.2 < judge_images(judge, unseen, shuffled)["accuracy"] < 0.8


def test_head_is_not_swayed_by_the_larger_class():
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(-1, 1, (300, 4)), rng.normal(1, 1, (20, 4))]).astype(np.float32)
    weight, bias = fit_linear(features, np.repeat([0, 1], [300, 20]), 2)
    small = rng.normal(1, 1, (200, 4))
    assert ((small @ weight + bias).argmax(1) == 1).mean() > 0.9


def test_augmentation_is_small_repeatable_and_never_a_flip():
    images = structured(12, 0)
    changed = augment(images, 0)
    assert changed.dtype == np.uint8 and changed.shape == images.shape
    assert np.array_equal(changed, augment(images, 0)) and not np.array_equal(changed, augment(images, 1))

    def correlation(first, second):
        return np.corrcoef(first.ravel(), second.ravel())[0, 1]

    left = np.zeros((20, 64, 64, 3), np.uint8)
    left[:, :, :24] = 255
    assert all(correlation(a, b) > 0.7 for a, b in zip(left, augment(left, 3), strict=True))


def test_score_counts_rows_as_asked_and_columns_as_seen():
    result = score([0, 0, 0, 1], np.array([0, 0, 1, 1]), ("a", "b"))
    assert result["confusion"].tolist() == [[2, 1], [0, 1]]
    assert result["accuracy"] == 0.75 and result["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)


def test_wilson_interval_matches_known_values():
    assert wilson_interval(95, 100) == pytest.approx((0.8882, 0.9785), abs=1e-3)
    low, high = wilson_interval(0, 10)
    assert low == pytest.approx(0, abs=1e-9) and 0.2 < high < 0.35


def test_judge_is_trained_once_and_then_read(packs, tmp_path):
    first = train_judge("brain-tumour", packs, cache=tmp_path)
    assert list(tmp_path.glob("judge-brain-tumour-*.npz"))
    again = train_judge("brain-tumour", packs, cache=tmp_path)
    assert np.array_equal(first.weight, again.weight) and first.classes == again.classes


# Files and commands


def test_result_is_written_whole_or_not_at_all(tmp_path):
    path = write_json(tmp_path / "a" / "result.json", {"value": np.float32(0.5), "matrix": np.eye(2, dtype=int)})
    assert json.loads(path.read_text()) == {"value": 0.5, "matrix": [[1, 0], [0, 1]]}
    with pytest.raises(TypeError, match="a result holds a object"):
        write_json(path, {"value": object()})
    assert json.loads(path.read_text())["value"] == 0.5
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "the folder holds no image"),
        (lambda folder: write_pictures(folder, structured(3, 0)), "`synthetic` holds 3 images: KID needs at least 20"),
        (lambda folder: (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno"), "`synthetic`: file 1 (of 1; "),
        (lambda folder: folder.rmdir(), "there is no such folder"),
    ],
)
def test_bad_folders_end_in_one_clear_line(packs, tmp_path, capsys, make, words):
    (tmp_path / "some").mkdir()
    make(tmp_path / "some")
    asked = ["fidelity", "--modality", "ct", "--data", str(packs), "--synthetic", str(tmp_path / "some")]
    assert main([*asked, "--out", str(tmp_path / "out.json")]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in line and not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fidelity", "--modality", "ct", "--count", "3"], "`count` is 3: KID needs at least 20"),
        (["fidelity", "--modality", "toe"], "`modality` is 'toe': allowed are chest-xray, ct, brain-mri, blood-smear"),
        (["fidelity", "--modality", "ct", "--data", "nowhere"], "`data` has no pack"),
        (["classify", "--count", "3"], "`count` is 3"),
        (["classify", "--tasks", "mood"], "`task` is 'mood'"),
        (["sheet", "--rows", "0"], "`rows` and `columns` are 0 and 8"),
        (["fidelity", "--modality", "ct", "--batch", "0"], "`batch` is 0"),
    ],
)
def test_bad_arguments_end_in_one_clear_line(packs, tmp_path, capsys, arguments, words):
    data = [] if "--data" in arguments else ["--data", str(packs)]
    assert main([*arguments, *data, "--out", str(tmp_path / "out.json")]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1


def test_fidelity_of_a_folder_from_the_command_line(packs, tmp_path):
    folder = write_pictures(tmp_path / "made", structured(30, 9))
    out = tmp_path / "fidelity.json"
    asked = ["fidelity", "--modality", "chest-xray", "--count", "25", "--data", str(packs)]
    assert main([*asked, "--synthetic", str(folder), "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    counts = {"synthetic": 25, "val": 27, "train_sample": 25, "bootstrap": 1000, "bootstrap_of_other_measures": 100}
    assert result["counts"] == counts
    assert result["versions"]["torch"] and result["command"].startswith("python -m evaluation")
    for name in ("synthetic", "floor", "blur_sigma_1", "blur_sigma_2"):
        assert result[name]["low"] <= result[name]["high"]


def test_sheet_lays_out_tiles_and_captions():
    images = structured(6, 0, side=64)
    assert draw_sheet(images, ["a word"] * 6, 3, tile=64).size == (3 * 70 + 6, 2 * (64 + 60 + 6) + 6)
    assert draw_sheet(images, [""] * 6, 3, tile=64).size == (3 * 70 + 6, 2 * 70 + 6)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real images (../shared) are not here")
def test_real_brain_mri_is_near_itself_and_far_from_its_blur():
    val = load_images(spread(real_rows(SHARED, "brain-mri", "val"), "pack", {"mri_brain_tumor": 1}, 40, 0), 256)
    train = load_images(spread(real_rows(SHARED, "brain-mri", "train"), "pack", {"mri_brain_tumor": 1}, 40, 0), 256)
    result = compare(blur(train, 3), val, train)
    assert result["floor"]["kid"] < 0.03
    assert result["floor"]["kid"] < result["blur_sigma_1"]["kid"] < result["synthetic"]["kid"]


# With a pipeline


@pytest.fixture(scope="module")
def pipe():
    """Real classes at tiny size with random weights."""
    return tiny_pipeline()


def test_generated_images_are_kept_and_a_run_goes_on(pipe, tmp_path):
    prompts = ["chest X-ray, PA view", "axial brain MRI", "head CT"]
    first, settings = generate(pipe, prompts[:2], seed=3, steps=1, batch=2, cache=tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "generated").glob("*.png")}
    assert len(kept) == 2 and settings["num_inference_steps"] == 1
    again, _ = generate(pipe, prompts, seed=3, steps=1, batch=1, cache=tmp_path)
    assert np.array_equal(again[:2], first) and len(again) == 3
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    alone, _ = generate(pipe, prompts[2:], seed=5, steps=1)
    assert np.abs(alone[0].astype(int) - again[2]).max() <= 1  # image i has seed + i, whatever the batch
    other, _ = generate(pipe, prompts[:2], seed=4, steps=1, cache=tmp_path)
    assert not np.array_equal(other, first)


def test_bare_loop_draws_what_the_pipeline_draws(pipe):
    prompts, seeds = ["chest X-ray", "head CT"], [7, 8]
    ours = pipe(prompts, seed=seeds, num_inference_steps=3, guidance_scale=2.0, output_type="np").images
    bare = bare_loop(pipe, prompts, seeds, 3, 2.0, *ours.shape[1:3])
    assert bare.shape == ours.shape and np.abs(bare - ours).max() < 1e-3


def test_speed_reports_every_combination_and_every_profile(pipe):
    result = speed(pipe=pipe, steps=[1, 2], batches=[1, 2], repeats=1)
    assert [(row["steps"], row["batch"]) for row in result["generation"]] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    for row in result["generation"]:
        assert set(row["seconds_an_image"]) == {"bare_loop", "pipeline", "pipeline_to_dicom"}
        assert row["pipeline_to_bare"] > 0
    assert set(result["dicom_seconds_an_image"]) == set(PROFILES)
    with pytest.raises(ValueError, match=r"`steps` is \[0\]"):
        speed(pipe=pipe, steps=[0])


def test_whole_measures_of_a_random_model(pipe, packs, tmp_path):
    result = fidelity("blood-smear", 20, packs, pipe=pipe, steps=1, batch=10)
    assert result["settings"]["prompts_by_pack"] == dict.fromkeys(sorted(n for n in PACKS if n.startswith("blood")), 5)
    assert result["synthetic"]["kid"] > result["floor"]["kid"]
    result = classify(packs, tasks=["brain-tumour"], count=12, pipe=pipe, steps=1, batch=6)["tasks"]["brain-tumour"]
    assert result["asked_for"] == {"glioma": 4, "meningioma": 4, "pituitary": 4}
    assert result["generated"]["count"] == 12 and 0 <= result["generated"]["accuracy"] <= 1
    result = make_sheet(packs, tmp_path / "sheet.png", rows=2, columns=4, pipe=pipe, steps=1, blind=True)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (4 * 262 + 6, 2 * 262 + 6)
    assert len(result["tiles"]) == 8


def test_curve_orders_copies_by_their_hours_and_gives_each_its_distances(pipe, packs, tmp_path):
    folders = [tmp_path / name for name in ("later", "sooner")]
    for folder, seconds in zip(folders, (7200, 1800), strict=True):
        pipe.save_pretrained(folder)
        (folder / "training.json").write_text(json.dumps({"seconds": seconds}))
    few = {"modalities": ["blood-smear"], "count": 20, "steps": 1, "batch": 10}
    result = curve(folders, packs, **few, cache=tmp_path / "cache")
    assert [point["hours"] for point in result["points"]] == [0.5, 2.0]
    first, second = (point["kid"] for point in result["points"])
    assert first == second and list(first) == ["blood-smear"]  # the same weights draw the same images
    (folders[1] / "training.json").unlink()
    with pytest.raises(ValueError, match="`models` has 'sooner'"):
        curve(folders, packs, **few)


def test_table_of_results_comes_from_the_files_alone(tmp_path):
    kid = {"kid": 0.04321, "low": 0.03, "high": 0.05}
    for modality in table.MODALITIES:
        kinds = dict.fromkeys(("synthetic", "floor", "blur_sigma_1", "blur_sigma_2"), kid)
        (tmp_path / f"fidelity-{modality}.json").write_text(json.dumps({"counts": {"synthetic": 77}, **kinds}))
    judged = {"accuracy": 0.5, "count": 10, "chance": 0.25}
    tasks = {"modality": {"real_val": judged, "generated": judged}}
    (tmp_path / "faithfulness.json").write_text(json.dumps({"tasks": tasks}))
    row = {"batch": 1, "steps": 9, "seconds_an_image": {"pipeline_to_dicom": 1.25}, "pipeline_to_bare": 1.0}
    machine = {"torch_threads": 2, "processor": "a processor"}
    speed = {"generation": [row], "size": [64, 64], "machine": machine, "settings": {"default_steps": 9}}
    (tmp_path / "speed.json").write_text(json.dumps(speed))
    record = {"seconds": 3600, "hardware": {"device": "cpu"}, "images_seen": 1234567}
    record["autoencoder_psnr_val"] = {m: {"autoencoder_db": 30.5, "pca_db": 29.5} for m in table.MODALITIES}
    (tmp_path / "training.json").write_text(json.dumps(record))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    arguments = [
        "table",
        "--results",
        str(tmp_path),
        "--training",
        str(tmp_path / "training.json"),
        "--readme",
        str(readme),
    ]
    assert main(arguments) == 0
    text = readme.read_text()
    assert "0.043 [0.030, 0.050]" in text and "1,234,567" in text and "old" not in text
    assert text.startswith("before\n") and text.endswith("after\n") and "hours of training" not in text
    point = {"hours": 1.5, "kid": {modality: kid for modality in table.MODALITIES}}
    (tmp_path / "curve.json").write_text(json.dumps({"points": [point]}))
    assert main(arguments) == 0
    text = readme.read_text()
    assert "| 1.50 | 0.043 | 0.043 | 0.043 | 0.043 |" in text
    (tmp_path / "speed.json").unlink()
    assert main(arguments) == 2 and readme.read_text() == text


def results_of(folder: Path, model: str, kid: float, share: float) -> Path:
    folder.mkdir(exist_ok=True)
    settings = {"model_sha256": model}
    for modality in table.MODALITIES:
        measured = {"kid": kid, "low": kid - 0.01, "high": kid + 0.01, "count": 100}
        (folder / f"fidelity-{modality}.json").write_text(json.dumps({"synthetic": measured, "settings": settings}))
    tasks = dict.fromkeys(history.JUDGED, {"generated": {"accuracy": share, "count": 64}})
    (folder / "faithfulness.json").write_text(json.dumps({"tasks": tasks, "settings": settings}))
    return folder


def test_history_keeps_each_round_and_refuses_a_mixture(tmp_path, capsys):
    out = tmp_path / "history.json"

    def add(label: str, results: Path) -> int:
        return main(["history", "--label", label, "--results", str(results), "--out", str(out)])

    assert add("first", results_of(tmp_path / "a", "aa", 0.2, 0.5)) == 0
    assert add("second", results_of(tmp_path / "b", "bb", 0.1, 0.75)) == 0
    assert add("second", tmp_path / "b") == 0  # again: no third line
    lines = history.history_table(json.loads(out.read_text()))
    assert lines[2:] == [
        "| first | 0.200 | 0.200 | 0.200 | 0.200 | 50.0% of 64 | 50.0% of 64 |",
        "| second | 0.100 | 0.100 | 0.100 | 0.100 | 75.0% of 64 | 75.0% of 64 |",
    ]
    (tmp_path / "b" / "fidelity-ct.json").write_text((tmp_path / "a" / "fidelity-ct.json").read_text())
    kept = out.read_text()
    assert add("third", tmp_path / "b") == 2 and "2 models" in capsys.readouterr().err
    assert add("a | b", tmp_path / "a") == 2 and "`label`" in capsys.readouterr().err
    assert out.read_text() == kept


def test_readme_holds_what_the_result_files_say():
    root = Path(__file__).parents[1]
    if not (root / "evaluation" / "results" / "speed.json").is_file():
        pytest.skip("no results in evaluation/results: `make evaluate` writes them")
    readme = (root / "README.md").read_text(encoding="utf-8")
    fresh = table.results_table(root / "evaluation" / "results", root / "pipeline" / "training.json")
    assert table.with_table(readme, fresh) == readme
