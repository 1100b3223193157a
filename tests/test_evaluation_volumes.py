"""Volumes: measures on what is known beforehand, a segmenter that learns, resuming, and the whole command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.metrics import compute_ms_ssim  # type: ignore[attr-defined]

from evaluation.__main__ import main
from evaluation.report_bars import FAILED, HELD, MISSING, UNSETTLED, all_verdicts
from evaluation.volumes import judged, volumes
from evaluation.volumes_copies import copy_distances, disguise, find_copies
from evaluation.volumes_measures import (
    agreement,
    blurred,
    difference,
    distances_from,
    scales_for,
    slice_features,
    volume_similarity,
)
from evaluation.volumes_segmenter import Segmenting, dice, kept_segmenter, middle_features, segment, train_segmenter
from evaluation.volumes_sets import VolumePairs, generate_volumes, measured, read_real
from evaluation.volumes_utility import compare_segmenters, gain, real_counts, subset, summarise_dice
from lora.volume_data import part_of

from .tiny_volume import SHAPE, tiny_volume_pipeline, write_pack


def smooth(count: int, seed: int = 0, shape: tuple[int, ...] = (12, 16, 12)) -> np.ndarray:
    """Volumes of unlike blobs, in [0, 1]."""
    made = blurred(np.random.default_rng(seed).random((count, *shape)).astype(np.float32), 1.5)
    low, high = made.min((1, 2, 3), keepdims=True), made.max((1, 2, 3), keepdims=True)
    return ((made - low) / (high - low)).astype(np.float32)


def blocks(count: int, seed: int = 0) -> VolumePairs:
    """Volumes with a grey and a white block somewhere, and their label maps."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, 12, 16, 12), np.uint8)
    for mask in masks:
        x, y, z = rng.integers(1, 4, 3)
        mask[x : x + 6, y : y + 5, z : z + 6], mask[x : x + 6, y + 5 : y + 10, z : z + 6] = 1, 2
    images = masks * 0.4 + 0.1 * rng.random(masks.shape)
    return VolumePairs(images.astype(np.float32), masks)


# Diversity and distance


def test_similarity_is_monais_and_high_for_like_volumes():
    images = smooth(2, shape=(32, 48, 32))
    first, second = (torch.from_numpy(one[None, None]) for one in images)
    weights = np.array([0.0448, 0.2856, 0.3001])
    expected = compute_ms_ssim(first, second, 3, kernel_size=7, weights=tuple(weights / weights.sum())).item()
    assert volume_similarity(images).value == pytest.approx(expected, abs=1e-5)
    same = np.repeat(images[:1], 5, 0)
    assert volume_similarity(same).value == pytest.approx(1, abs=1e-5)
    near = same + 0.05 * np.random.default_rng(0).random(same.shape, np.float32)
    assert expected < volume_similarity(near).value < 1


@pytest.mark.parametrize(
    ("shape", "expected"), [((32, 48, 32), (3, 7)), ((16, 16, 12), (3, 3)), (SHAPE, (1, 3)), ((3, 9, 9), (1, 3))]
)
def test_scales_fit_the_shape(shape, expected):
    assert scales_for(shape) == expected
    assert np.isfinite(volume_similarity(smooth(3, shape=shape)).value)


def test_flat_volumes_have_no_scale():
    with pytest.raises(ValueError, match="sides from 3 voxels"):
        scales_for((2, 9, 9))


def test_difference_has_the_intervals_of_both():
    one, other = volume_similarity(smooth(6)), volume_similarity(smooth(6, 1))
    found = difference(one, other)
    assert found["value"] == abs(one.value - other.value) and found["low"] <= found["value"] <= found["high"]
    assert found["high"] - found["value"] >= max(one.high - one.low, other.high - other.low) / 2 - 1e-9


def test_distance_beside_its_floor():
    rng = np.random.default_rng(0)
    sets = {"synthetic": rng.normal(0.5, 1, (40, 16)), "floor": rng.normal(0, 1, (60, 16))}
    found = distances_from(sets, rng.normal(0, 1, (30, 16)))
    assert found["floor"]["kid"]["low"] < 0 < found["floor"]["kid"]["high"]
    assert found["synthetic"]["kid"]["low"] > found["floor"]["kid"]["high"]
    assert found["synthetic"]["fd"]["value"] > found["floor"]["fd"]["value"]
    assert found["floor"]["count"] == 40  # of equal counts
    assert "20 are needed" in distances_from({"synthetic": sets["floor"][:19]}, sets["floor"])["too_few"]


def test_slice_features_see_every_axis():
    images = smooth(2)
    features = slice_features(images, progress=False)
    assert features.shape == (2, 3840)
    changed = images.copy()
    changed[:, :, :, 6] = 0  # the middle of the last axis: a line of the other slices
    moved = np.abs(slice_features(changed, progress=False) - features).reshape(2, 3, -1).mean((0, 2))
    assert moved[2] > moved[0] > 0 and moved[2] > moved[1] > 0


# Sizes


def test_agreement_of_what_is_known():
    asked = np.random.default_rng(0).normal(1500, 200, (50, 2))
    got = np.stack([0.5 * asked[:, 0] + 700, np.full(50, 900.0)], 1)
    found = agreement(asked, got, ("one", "other"))
    assert found["one"]["correlation"]["value"] == pytest.approx(1)
    assert found["one"]["slope"] == pytest.approx(0.5)
    assert found["one"]["bias"] == pytest.approx((got - asked)[:, 0].mean())
    assert found["other"]["correlation"] == {"value": None, "low": None, "high": None}


def test_agreement_of_noise_has_an_interval_around_none():
    rng = np.random.default_rng(1)
    one = agreement(rng.random((60, 1)), rng.random((60, 1)), ("one",))["one"]["correlation"]
    assert one["low"] < 0 < one["high"]


# Copies


def test_a_shift_gamma_and_noise_hide_no_copy():
    images = smooth(6)
    assert copy_distances(images, images).diagonal() == pytest.approx(0, abs=1e-3)
    table = copy_distances(disguise(images), images)
    assert (table.argmin(1) == np.arange(6)).all() and table.diagonal().max() < 0.5
    assert copy_distances(smooth(6, 1), images).min() > 0.8


def test_copies_are_counted_and_new_volumes_are_not():
    training, unseen = smooth(30), smooth(15, 1)
    new = find_copies(smooth(10, 2), training, unseen)
    assert new["closer"] <= 1 and new["copies"] <= 1 and new["disguised_found"] == new["disguised_closer"] == 1
    found = find_copies(np.concatenate([smooth(8, 2), disguise(training[:2], 5)]), training, unseen)
    assert found["closer"] - new["closer"] == found["copies"] - new["copies"] == 2
    assert found["sets"]["synthetic"]["distance"]["minimum"] < found["closest_real"]


# Segmenters


def test_dice_of_what_is_known():
    truth = np.zeros((1, 2, 2, 2), np.uint8)
    truth[0, 0] = 1
    found = np.zeros_like(truth)
    found[0, 0, 0] = 1
    assert dice(found, truth, 2).tolist() == [[2 * 2 / (2 + 4), 1.0]]  # nobody has label 2
    assert dice(truth * 2, truth, 2).tolist() == [[0.0, 0.0]]


def test_a_segmenter_learns_and_the_same_seed_gives_the_same(tmp_path):
    how, test = Segmenting(updates=40), blocks(6, 1)
    network = kept_segmenter([blocks(8)], 2, how, 0, tmp_path)
    assert dice(segment(network, test.images), test.masks, 2).mean() > 0.8
    again = train_segmenter([blocks(8)], 2, how, 0)
    read = kept_segmenter([blocks(8)], 2, how, 0, tmp_path)
    assert len(list((tmp_path / "segmenters").iterdir())) == 1
    for key, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]) and torch.equal(value, read.state_dict()[key])
    kept_segmenter([blocks(8)], 2, how, 1, tmp_path)
    assert len(list((tmp_path / "segmenters").iterdir())) == 2
    assert middle_features(network, test.images).shape == (6, 128)


def test_sizes_that_do_not_halve_are_segmented_whole():
    pairs = VolumePairs(np.random.default_rng(0).random((3, *SHAPE), np.float32), np.zeros((3, *SHAPE), np.uint8))
    network = train_segmenter([pairs, pairs], 2, Segmenting(updates=2), 0)
    assert segment(network, pairs.images).shape == (3, *SHAPE)


def test_few_real_volumes_are_part_of_the_many():
    pairs = blocks(9)
    few, more = ({one.tobytes() for one in subset(pairs, count, 3).images} for count in (2, 5))
    assert few < more and len(few) == 2
    assert real_counts([5, 2], 9) == [2, 5, 9]
    with pytest.raises(ValueError, match="`real_counts` has 10"):
        real_counts([10], 9)


def test_arms_are_compared_on_the_same_volumes_and_kept(tmp_path):
    real, test = blocks(6), blocks(5, 1)
    wrong = VolumePairs(blocks(6, 2).images, np.zeros_like(real.masks))  # pairs that teach that nothing is there
    how = {"counts": [2], "seeds": [0, 1], "how": Segmenting(updates=30)}
    found = compare_segmenters(real, wrong, test, ("one", "other"), cache=tmp_path, **how)
    arms = {(arm["regime"], arm["real"]): arm for arm in found["arms"]}
    assert set(arms) == {("synthetic", 0), ("real", 2), ("both", 2), ("real", 6), ("both", 6)}
    assert arms["synthetic", 0]["synthetic"] == 6 and arms["real", 2]["synthetic"] == 0
    assert arms["real", 6]["dice"]["mean"] > 0.7 > arms["synthetic", 0]["dice"]["mean"]
    assert found["synthetic_share_of_real"]["value"] < 0.5 and not found["synthetic_share_of_real"]["enough"]
    assert found["gains"]["6"]["value"] < 0 and found["gains"]["6"]["high"] < 0
    assert compare_segmenters(real, wrong, test, ("one", "other"), cache=tmp_path, **how) == found
    assert len(list((tmp_path / "segmenters").iterdir())) == 10


def test_gain_says_whether_intervals_overlap():
    rng = np.random.default_rng(0)
    real = 0.7 + 0.01 * rng.random((3, 20, 2))
    far, near = gain(real + 0.2, real), gain(real + 0.0001, real)
    assert far["intervals_overlap"] is False and far["between_intervals"]["low"] > 0 and far["low"] > 0
    assert near["intervals_overlap"] is True and near["value"] == pytest.approx(0.0001)
    assert gain(real[:1], real[:1])["intervals_overlap"] is None
    assert summarise_dice(real, ("one", "other"))["by_label"]["one"] == pytest.approx(real[..., 0].mean())


# Sets


def test_unseen_is_what_training_does_not_read(tmp_path):
    pack = write_pack(tmp_path / "pack", 40)
    real = read_real(pack)
    names = [path.name for path in sorted(pack.glob("*.npz"))]
    assert len(real.train) == sum(part_of(name) == "train" for name in names) and len(real.unseen) == 40 - len(
        real.train
    )
    assert real.labels == ("anterior", "posterior") and real.voxel == 1
    assert real.train.images.dtype == np.float32 and 0 <= real.train.images.min() <= real.train.images.max() <= 1


def test_generation_goes_on_and_gives_the_same(tmp_path):
    pipe = tiny_volume_pipeline()
    whole, settings = generate_volumes(pipe, 10, seed=5, cache=tmp_path)
    files = sorted((tmp_path / "volumes").iterdir())
    assert len(files) == 10 and settings["model"] == "tiny-volume" and settings["num_inference_steps"] == 3
    for path in files[::3]:
        path.unlink()
    again, _ = generate_volumes(pipe, 10, seed=5, cache=tmp_path)
    # A volume made with others or alone may differ by rounding.
    np.testing.assert_allclose(again.images, whole.images, atol=1e-4)
    assert (again.requested == whole.requested).all() and whole.requested.shape == (10, 2)
    alone = pipe("3D T1-weighted MRI crop of the hippocampus", seed=7)
    np.testing.assert_allclose(alone.volumes[0], whole.images[2], atol=1e-4)
    assert list(alone.covariates[0].values()) == whole.requested[2].tolist()
    assert measured(alone.masks, 2, 1.0)[0].tolist() == list(alone.obtained[0].values())


def test_a_changed_setting_makes_new_volumes(tmp_path):
    pipe = tiny_volume_pipeline()
    first, _ = generate_volumes(pipe, 2, cache=tmp_path)
    second, _ = generate_volumes(pipe, 2, steps=2, cache=tmp_path)
    other, _ = generate_volumes(tiny_volume_pipeline(1), 2, cache=tmp_path)
    assert len(list((tmp_path / "volumes").iterdir())) == 6
    assert not np.allclose(first.images, second.images) and not np.allclose(first.images, other.images)


# The whole


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The command at a tiny size: its folder of results, and what it needs to go on."""
    root = tmp_path_factory.mktemp("whole")
    write_pack(root / "pack", 60)
    tiny_volume_pipeline().save_pretrained(root / "model")
    words = ["volumes", "--data", root / "pack", "--model", root / "model", "--count", 4, "--pairs", 5]
    words += ["--real-counts", 2, "--seeds", 0, 1, "--updates", 3, "--cache", root / "cache"]
    words += ["--out", root / "results" / "volumes.json"]
    assert main([str(word) for word in words]) == 0
    return root


def test_the_command_answers_what_is_judged(result):
    text = (result / "results" / "volumes.json").read_text()
    found = json.loads(text)
    assert str(result) not in text and found["what"] == "volumes" and found["seeds"] == [0, 1]
    assert found["versions"]["monai"] and found["command"].startswith("python -m evaluation")
    assert found["counts"]["synthetic"] == 4 and found["counts"]["training"] + found["counts"]["unseen"] == 60
    questions = [one["question"] for one in found["judged"]]
    assert len(questions) == len(set(questions)) == 4 + 1 + 1 + 1 + 1
    assert {arm["regime"] for arm in found["utility"]["arms"]} == {"synthetic", "real", "both"}
    assert found["sheet"]["file"] == "volumes.jpg" and (result / "results" / "volumes.jpg").is_file()
    assert [one["seed"] for one in found["sheet"]["volumes"]] == [0, 1, 2, 3]


def test_the_command_goes_on_from_its_cache(result, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in (result / "cache").rglob("*.*")}
    found = json.loads((result / "results" / "volumes.json").read_text())
    options = {"count": 4, "pairs": 5, "counts": [2], "seeds": [0, 1], "updates": 3, "cache": result / "cache"}
    again = volumes(result / "pack", result / "model", **options)
    assert {path: path.stat().st_mtime_ns for path in (result / "cache").rglob("*.*")} == before
    for key in ("judged", "utility", "sizes", "copies", "similarity", "settings"):
        assert json.loads(json.dumps(again[key])) == found[key], key


def test_the_report_shows_it_all(result, tmp_path):
    assert main(["report", "--results", str(result / "results"), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    section = page.partition('<section id="volumes">')[2].partition('<section id="speed">')[0]
    for words in ("Dice on unseen real volumes", "MS-SSIM among", "synthetic alone", "disguised", "data:image/jpeg"):
        assert words in section, words
    assert "KID, slices" not in section  # four volumes are too few for that
    assert page.count("Volumes: Correlation of anterior volume") == 2


def test_states_of_the_bars():
    def one(value, low, high, least=True):
        bar = 0.8 if least else 0.05
        return {"value": value, "low": low, "high": high, "bar": bar, "least": least, "words": "", "question": "q"}

    rows = [one(0.9, 0.85, 0.95), one(0.82, 0.7, 0.9), one(0.5, 0.4, 0.6), one(None, None, None)]
    rows += [one(0.01, 0, 0.02, False), one(0.1, 0.08, 0.2, False)]
    found = all_verdicts({"volumes": {"volumes": {"judged": rows}}})
    states = [verdict.state for verdict in found if verdict.subject == "Volumes: q"]
    assert states == [HELD, UNSETTLED, FAILED, MISSING, HELD, FAILED]


def test_what_is_judged_holds_by_its_value(result):
    found = json.loads((result / "results" / "volumes.json").read_text())
    found["similarity"]["difference_from_unseen"] = {"value": 0.04, "low": 0.0, "high": 0.08}
    found["copies"]["closer"] = 1
    found["utility"]["gains"]["2"] |= {"value": 0.1, "between_intervals": {"low": -0.1, "high": 0.3}}
    by = {one["question"]: one["holds"] for one in judged(found)}
    assert by["MS-SSIM among synthetic volumes, away from that among unseen real ones"] is True
    assert by["Synthetic volumes closer to a training volume than real volumes are to one another"] is False
    gained = "Dice gained by adding synthetic pairs to 2 real, beside those duplicated"
    assert by[gained] is False
    found["utility"]["gains"]["2"]["between_intervals"]["low"] = 0.01
    assert {one["question"]: one["holds"] for one in judged(found)}[gained] is True


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": 1}, "`count` is 1"),
        ({"pairs": 0}, "`pairs` is 0"),
        ({"seeds": []}, "`seeds` has 0"),
        ({"updates": 1}, "`updates` is 1"),
        ({"counts": [0]}, "`real_counts` has 0"),
    ],
)
def test_mistakes_are_said_before_any_work(result, options, said):
    with pytest.raises(ValueError, match=said):
        volumes(result / "pack", result / "none", **options)


def test_a_pack_that_does_not_fit_the_model_is_refused(result, tmp_path, capsys):
    other = write_pack(tmp_path / "pack", 30, (8, 8, 4))
    words = ["volumes", "--data", str(other), "--model", str(result / "model"), "--out", str(tmp_path / "a.json")]
    assert main([*words, "--real-counts", "2"]) == 2
    assert "`data` has volumes of (8, 8, 4)" in capsys.readouterr().err and not (tmp_path / "a.json").exists()
    (tmp_path / "empty").mkdir()
    assert main([*words[:4], str(tmp_path / "empty"), *words[5:], "--real-counts", "2"]) == 2
    assert "no model_index.json" in capsys.readouterr().err
