"""Sets read from folders, and what networks learn from them: known answers on small made-up images."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydicom.data import get_testdata_file

from evaluation.__main__ import main
from evaluation.cnns import FAMILIES, build_network
from evaluation.folders import ImageSet, read_set
from evaluation.training import Training, augmented, kept_network, probabilities, run, train_network
from evaluation.utility import compare_training, linear_score, utility
from evaluation.utility_results import differences, interval_of_mean, redrawn, summarise, weights_of
from evaluation.utility_sets import DOMAINS, REGIMES, make_task, split_real, synthetic_set, training_set
from tests.tiny import tiny_pipeline

SIDE = 32
QUICK = Training("vgg19", 0.125, epochs=2, updates=20, batch=16)
CLASSES = ("disc", "stripes")


def drawn(kind: str, count: int, seed: int, side: int = SIDE) -> np.ndarray:
    """Noisy discs or stripes of random place and grey: uint8 (N, side, side, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    images = []
    for _ in range(count):
        top, left = rng.uniform(0.3, 0.7, 2)
        shape = np.hypot(y - top, x - left) < 0.25 if kind == "disc" else np.sin(40 * (y + left)) > 0
        images.append(60 + rng.uniform(80, 120) * shape + rng.normal(0, 10, (side, side)))
    return np.repeat(np.clip(np.stack(images), 0, 255).astype(np.uint8)[..., None], 3, 3)


def made_set(each: int, seed: int) -> ImageSet:
    images = np.concatenate([drawn(kind, each, seed + number) for number, kind in enumerate(CLASSES)])
    count = len(images)
    labels = tuple(np.repeat(CLASSES, each).tolist())
    rows = tuple({"text": f"chest X-ray, {label}"} for label in labels)
    order = np.random.default_rng(seed).permutation(count)
    return ImageSet(images, labels, np.arange(count), ("",) * count, ("",) * count, rows).take(order)


def write(folder: Path, images: np.ndarray, suffix: str = "png") -> None:
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.{suffix}")


@pytest.fixture()
def layout(tmp_path) -> Path:
    """The layout of the paper's Kaggle sets, wrapped as an archive unpacks."""
    for split, count in (("Training", 6), ("Testing", 3)):
        for number, kind in enumerate(CLASSES):
            write(tmp_path / "archive" / split / kind, drawn(kind, count, 10 * count + number))
    return tmp_path / "archive"


# Folders


def test_classes_and_splits_come_from_the_folders_of_kaggle_sets(layout):
    for folder in (layout, layout.parent):
        found = read_set(folder, size=SIDE)
        assert found.images.shape == (18, SIDE, SIDE, 3) and found.images.dtype == np.uint8
        assert found.classes == CLASSES and found.splits.count("train") == 12 and found.splits.count("test") == 6
        assert len(np.unique(found.groups)) == 18
    assert len(read_set(layout, size=SIDE, split="test")) == 6
    with pytest.raises(ValueError, match="`folder` is .* it has no split 'val', only test, train"):
        read_set(layout, size=SIDE, split="val")


def test_one_subfolder_is_one_class_and_a_flat_folder_has_none(layout):
    one = read_set(layout / "Testing", size=16)
    assert one.classes == CLASSES and set(one.splits) == {""}
    assert read_set(layout / "Testing" / "disc", size=16).labels is None
    (layout / "Testing" / "stripes").rename(layout / "elsewhere")
    assert read_set(layout / "Testing", size=16).classes == ("disc",)


def test_mixed_sizes_and_kinds_are_squared(tmp_path):
    write(tmp_path / "a", np.zeros((1, 20, 50, 3), np.uint8), "jpg")
    write(tmp_path / "b", drawn("disc", 2, 0, 64))
    (tmp_path / "b" / "slice").write_bytes(Path(get_testdata_file("CT_small.dcm")).read_bytes())
    found = read_set(tmp_path, size=24)
    assert found.images.shape == (4, 24, 24, 3) and found.labels == ("a", "b", "b", "b")


def test_a_table_names_labels_splits_and_people(tmp_path):
    write(tmp_path / "images", drawn("disc", 4, 0))
    rows = [
        {
            "file_name": f"images/{i}.png",
            "label": "ab"[i % 2],
            "kind": "x",
            "split": ["train", "val"][i // 2],
            "group_id": g,
        }
        for i, g in enumerate("ppq")
    ] + [{"file_name": "images/3.png", "label": "b", "kind": "y", "split": "val", "group_id": ""}]
    with (tmp_path / "metadata.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    found = read_set(tmp_path, size=SIDE, cache=tmp_path / "kept")
    assert found.labels == ("a", "b", "a", "b") and found.splits == ("train", "train", "val", "val")
    assert found.groups.tolist() == [0, 0, 1, 2] and found.rows[3]["kind"] == "y"
    again = read_set(tmp_path, size=SIDE, cache=tmp_path / "kept")
    assert np.array_equal(found.images, again.images)
    assert read_set(tmp_path, size=SIDE, label_column="kind", split="val").labels == ("x", "y")
    with pytest.raises(ValueError, match="`label_column` is 'colour'"):
        read_set(tmp_path, size=SIDE, label_column="colour")


def test_copies_are_of_one_person_and_flat_images_are_not(tmp_path):
    images = drawn("disc", 3, 0)
    write(tmp_path / "a", np.stack([images[0], images[1], images[0], 0 * images[0], 0 * images[0]]))
    assert read_set(tmp_path / "a", size=SIDE).groups.tolist() == [0, 1, 0, 2, 3]


def test_folders_that_cannot_be_read_say_why(tmp_path):
    with pytest.raises(ValueError, match="`real` is .* there is no such folder"):
        read_set(tmp_path / "absent", size=SIDE, argument="real")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="the folder holds no image"):
        read_set(tmp_path / "empty", size=SIDE)
    write(tmp_path / "one", drawn("disc", 1, 0))
    (tmp_path / "one" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"`folder`: file \d+ .of \d+; .*, cannot be read: "):
        read_set(tmp_path / "one", size=SIDE)
    (tmp_path / "one" / "bad.png").unlink()
    write(tmp_path / "one" / "disc", drawn("disc", 1, 0))
    with pytest.raises(ValueError, match="1 images lie beside subfolders"):
        read_set(tmp_path / "one", size=SIDE)
    for wrong, words in (({"size": 0}, "`size` is 0"), ({"size": 8, "split": "dev"}, "`split` is 'dev'")):
        with pytest.raises(ValueError, match=words):
            read_set(tmp_path / "one", **wrong)


# Networks


@pytest.mark.parametrize("family", FAMILIES)
def test_families_have_the_size_of_the_paper_at_width_1_and_take_small_images(family):
    import torch

    # Parameters in millions of the published networks with 2 outputs; VGG-19 without its 7x7 layers.
    wanted = {"vgg19": 20.6, "densenet121": 6.96, "resnet50": 23.5}[family]
    with torch.device("meta"):
        whole = build_network(family, 2)
    assert sum(p.numel() for p in whole.parameters()) / 1e6 == pytest.approx(wanted, rel=0.01)
    small = build_network(family, 3, width=0.125).eval()
    assert small(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_wrong_networks_and_trainings_are_refused():
    for arguments, words in (
        (("alexnet", 2), "`family` is 'alexnet'"),
        (("vgg19", 1), "`classes` is 1"),
    ):
        with pytest.raises(ValueError, match=words):
            build_network(*arguments)
    with pytest.raises(ValueError, match="`width` is 0"):
        build_network("vgg19", 2, width=0)
    with pytest.raises(ValueError, match="`epochs` is 0"):
        Training(epochs=0)
    with pytest.raises(ValueError, match="every class needs one"):
        train_network(drawn("disc", 4, 0), np.zeros(4, int), 2, QUICK, 0)
    with pytest.raises(ValueError, match="`size` is 16"):
        train_network(drawn("disc", 4, 0, 16), np.array([0, 1, 0, 1]), 2, QUICK, 0)


def test_training_depends_on_its_seed_alone_and_is_kept(tmp_path):
    images, labels = made_set(8, 0).images, np.array([CLASSES.index(x) for x in made_set(8, 0).labels or ()])
    how = replace(QUICK, updates=2, epochs=1)
    first = run(images, labels, images, 2, how, 0, tmp_path)
    assert first.shape == (16, 2) and np.allclose(first.sum(1), 1, atol=1e-5)
    assert np.array_equal(first, run(images, labels, images, 2, how, 0))
    assert not np.array_equal(first, run(images, labels, images, 2, how, 1))
    (kept,) = (tmp_path / "utility").glob("*.npz")
    np.savez(kept, probabilities=np.zeros((16, 2), np.float32))
    assert not run(images, labels, images, 2, how, 0, tmp_path).any()  # taken from there, not trained again
    assert run(images, 1 - labels, images, 2, how, 0, tmp_path).any()
    network = kept_network(images, labels, 2, how, 0, tmp_path)
    again = kept_network(images, labels, 2, how, 0, tmp_path)
    assert np.allclose(probabilities(network, images), probabilities(again, images), atol=1e-6)


def test_augmentation_moves_a_little_and_never_flips():
    side = torch.linspace(-1, 1, 48)
    waves = [(one * (side + 0.3 * side[:, None])).sin() for one in (1.0, 1.5, 2.0)]
    scene = torch.stack(waves).expand(64, 3, 48, 48)
    torch.manual_seed(3)
    found = augmented(scene)
    torch.manual_seed(3)
    assert torch.equal(found, augmented(scene)) and found.shape == scene.shape
    assert found.min() >= -1 and found.max() <= 1
    assert len({round(one.mean().item(), 4) for one in found}) > 60  # each in its own way
    for one in found:
        alike = [
            torch.corrcoef(torch.stack([one.ravel(), other.ravel()]))[0, 1] for other in (scene[0], scene[0].flip(2))
        ]
        assert alike[0] > 0.9 and alike[0] > alike[1] + 0.5


# Sets


def test_people_of_the_test_set_are_in_no_training_set():
    whole = made_set(20, 0)
    whole = replace(whole, groups=np.arange(40) // 2, splits=("train",) * 29 + ("val",) * 11)
    train, test, dropped = split_real(whole)
    assert len(test) == 11 and dropped == 1 and len(train) == 28
    assert not set(train.groups) & set(test.groups)
    train, test, dropped = split_real(replace(whole, splits=("",) * 40))
    assert dropped == 0 and len(test) == 8 and not set(train.groups) & set(test.groups)


def test_sets_that_cannot_be_compared_say_why():
    real = made_set(6, 0)
    with pytest.raises(ValueError, match="`real` has 0 classes"):
        split_real(replace(real, labels=None))
    with pytest.raises(ValueError, match="`real` has 1 classes"):
        split_real(replace(real, labels=("disc",) * 12))
    with pytest.raises(ValueError, match="1 images without a class"):
        split_real(replace(real, labels=("", *real.labels[1:])))
    with pytest.raises(ValueError, match="no training image of disc: every class"):
        split_real(replace(real, splits=tuple("val" if x == "disc" else "train" for x in real.labels)))
    with pytest.raises(ValueError, match="`synthetic` has the classes disc: they must be those of `real`, disc, str"):
        make_task(real, replace(real, labels=("disc",) * 12), real_count=None)


def test_regimes_hold_what_they_say():
    task, _ = make_task(made_set(20, 0), made_set(6, 100), real_count=24)
    real, labels = task.train
    assert len(real) == 24 and 10 <= labels.sum() <= 14
    assert np.array_equal(training_set(task, "real", 12, 0)[0], real)
    assert np.array_equal(training_set(task, "synthetic", 5, 0)[0], task.synthetic[0][:5])
    assert len(training_set(task, "both", 5, 0)[0]) == len(training_set(task, "duplicated", 5, 0)[0]) == 29
    doubled, twice = training_set(task, "duplicated", 12, 0)
    found = [next(i for i in range(24) if np.array_equal(real[i], image)) for image in doubled]
    assert np.array_equal(labels[found], twice) and max(np.bincount(found)) == 2
    mixed = training_set(task, "shuffled", 12, 0)[1]
    assert mixed.sum() == labels.sum()
    assert abs(mixed[labels == 0].mean() - mixed[labels == 1].mean()) < 0.15  # nothing of the truth is left
    with pytest.raises(ValueError, match="`regime` is 'none'"):
        training_set(task, "none", 5, 0)


# Results


def test_intervals_and_shares_have_their_known_values():
    low, high = interval_of_mean([0.7, 0.8, 0.9])
    assert low == pytest.approx(0.5516, abs=1e-3) and high == pytest.approx(1.0484, abs=1e-3)
    assert interval_of_mean([0.5]) == (None, None)
    answers = np.array([0] * 30 + [1] * 10)
    sure = np.eye(2)[answers][None]
    half = np.eye(2)[np.where(np.arange(40) % 2, answers, 1 - answers)][None]
    groups = np.arange(40)
    found = summarise(np.concatenate([sure, sure]), answers, groups, CLASSES)
    assert found["balanced_accuracy"]["mean"] == found["auroc"]["mean"] == found["balanced_accuracy"]["people_low"] == 1
    assert found["confusion"].tolist() == [[30, 0], [0, 10]]
    assert redrawn(half, answers, np.ones((1, 40), int)) == pytest.approx(0.5)
    compared = differences({"real": sure, "synthetic": half, "both": sure, "duplicated": sure}, answers, groups)
    assert compared["synthetic_share_of_real"]["value"] == pytest.approx(0.5)
    assert 0.3 < compared["synthetic_share_of_real"]["low"] < 0.5 < compared["synthetic_share_of_real"]["high"] < 0.7
    assert not compared["synthetic_is_enough"] and compared["both_is_at_least_real"]
    assert compared["both_minus_duplicated"] == {"value": 0, "low": 0, "high": 0}
    worse = differences({"real": sure, "both": half}, answers, groups)
    assert compared["both_is_not_worse"] and not worse["both_is_not_worse"] and not worse["both_is_at_least_real"]


def test_few_people_widen_the_interval():
    rng = np.random.default_rng(0)
    answers, right = np.tile([0, 1], 60), rng.random(6) < 0.5
    groups = np.repeat(np.arange(6), 20)
    runs = np.eye(2)[np.where(right[groups], answers, 1 - answers)][None]
    spreads = [np.std(redrawn(runs, answers, weights_of(some))) for some in (groups, np.arange(120))]
    assert spreads[0] > 2 * spreads[1]


# Known answers


@pytest.fixture(scope="module")
def compared() -> dict:
    """Real discs and stripes, and a "synthetic" set of the same kind, in every regime."""
    task, _ = make_task(made_set(60, 0), made_set(30, 1000), real_count=None)
    # 40 updates: after 20 not every network has converged, and the order of sums decides which
    found = compare_training(task, how=replace(QUICK, updates=40), regimes=REGIMES, seeds=(0, 1, 2))
    return {**found, "linear": linear_score(task)}


def test_a_set_against_its_own_kind_is_worth_as_much(compared):
    accuracy = {name: one["balanced_accuracy"]["mean"] for name, one in compared["regimes"].items()}
    assert min(accuracy[name] for name in REGIMES[:4]) > 0.9, accuracy
    assert compared["synthetic_is_enough"] and compared["both_is_not_worse"]
    assert compared["synthetic_share_of_real"]["value"] > 0.9
    assert 0.5 < compared["linear"] <= 1


def test_shuffled_labels_end_at_chance(compared):
    shuffled = compared["regimes"]["shuffled"]
    assert 0.25 < shuffled["balanced_accuracy"]["mean"] < 0.75
    assert shuffled["balanced_accuracy"]["mean"] < compared["regimes"]["real"]["balanced_accuracy"]["mean"] - 0.2


# The whole command


def test_two_folders_are_compared_from_the_command_line(layout, tmp_path, capsys):
    synthetic, out, cache = tmp_path / "made", tmp_path / "result.json", tmp_path / "cache"
    for number, kind in enumerate(CLASSES):
        write(synthetic / kind, drawn(kind, 4, 50 + number))
    words = ["utility", "--real", str(layout), "--synthetic", str(synthetic), "--size", "32", "--width", "0.125"]
    words += ["--epochs", "1", "--updates", "2", "--seeds", "0", "1", "--families", "resnet50", "vgg19"]
    assert main([*words, "--out", str(out), "--cache", str(cache)]) == 0
    result = json.loads(out.read_text())
    own = result["domains"]["own"]
    assert own["counts"] == {
        "real_train": 12,
        "synthetic": 8,
        "test": 6,
        "test_groups": 6,
        "dropped_from_training": 0,
    }
    assert set(own["families"]) == {"resnet50", "vgg19"} and own["settings"] == {"source": "folder"}
    assert set(own["families"]["vgg19"]["regimes"]) == set(REGIMES[:4])
    points = {(one["regime"], one["synthetic_count"]) for one in own["families"]["vgg19"]["curve"]}
    assert points == {("synthetic", count) for count in (2, 4, 8)}
    kept = {path: path.stat().st_mtime_ns for path in (cache / "utility").iterdir()}
    assert main([*words, "--out", str(out), "--cache", str(cache)]) == 0
    assert kept == {path: path.stat().st_mtime_ns for path in (cache / "utility").iterdir()}
    assert json.loads(out.read_text())["domains"] == result["domains"]
    assert main([*words, "--families", "alexnet", "--out", str(out)]) == 2
    assert "`families` has alexnet" in capsys.readouterr().err


def test_a_model_draws_by_the_captions_of_the_training_images(tmp_path):
    real = made_set(6, 0)
    made, settings = synthetic_set(real, count=4, size=32, pipe=tiny_pipeline(), modality="chest-xray", steps=1)
    assert made.images.shape == (4, 32, 32, 3) and sorted(made.labels) == ["disc", "disc", "stripes", "stripes"]
    assert settings["num_inference_steps"] == 1
    with pytest.raises(ValueError, match="`real` has no `text`"):
        synthetic_set(replace(real, rows=({},) * 12), count=4, size=32, pipe=tiny_pipeline())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"domains": ["liver"]}, "`domains` has liver: allowed are brain-tumour"),
        ({"families": []}, "`families` has nothing"),
        ({"seeds": []}, "`seeds` has 0"),
        ({"synthetic": "x"}, "`real` is missing"),
        ({"regimes": ["all"]}, "`regimes` has 'all'"),
        ({"width": 9}, "`width` is 9"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        utility(**arguments)


def test_domains_are_packs():
    from lora.base_data import PACKS

    assert set(DOMAINS.values()) <= set(PACKS)
