"""Distances between sets of images: known answers, controls, folders of one's own; and networks by name."""

import json

import numpy as np
import pytest
from PIL import Image

from evaluation.__main__ import main
from evaluation.compare import Side, agreement, compare
from evaluation.feature_networks import feature_network
from evaluation.features import FeatureNetwork, extract_features
from evaluation.fidelity import fidelity_of_folders, unseen_and_floor, with_classes
from evaluation.folders import ImageSet
from evaluation.own_network import own_network
from evaluation.set_measures import frechet_distance, overlap, pair_similarity
from evaluation.training import Training

from .test_evaluation import structured, write_pictures


@pytest.fixture(scope="module")
def coarse() -> FeatureNetwork:
    """A stand-in that is quick: 8 x 8 means of the picture."""
    return FeatureNetwork("coarse", "8 x 8 means", 8, lambda batch: batch.mean(1).flatten(1))


# On features


def test_frechet_distance_is_the_formula_of_two_gaussians():
    rng = np.random.default_rng(0)
    for count, dimension in ((60, 8), (10, 16)):  # more images than features, and fewer
        first, second = rng.normal(size=(count, dimension)), rng.normal(0.3, 2, (count + 5, dimension))
        one, other = np.cov(first.T), np.cov(second.T)
        root = np.sqrt(np.maximum(np.linalg.eigvals(one @ other).real, 0)).sum()
        wanted = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(one) + np.trace(other) - 2 * root
        found = frechet_distance(first, second, draws=5)
        assert found.value == pytest.approx(wanted, rel=1e-6) and found.low < found.value < found.high
    assert frechet_distance(first, first, draws=2).value == pytest.approx(0, abs=1e-9)


def test_overlap_of_a_set_with_itself_a_part_and_a_far_one():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(80, 4))
    same = overlap(real, real, draws=10)
    assert [same[name].value for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    assert same["density"].value >= 1
    far = overlap(real + 50, real, draws=10)
    assert [measure.value for measure in far.values()] == [0, 0, 0, 0]
    middle = overlap(real[:40] * 0.1, real, draws=10)  # sure to look real, and all alike
    assert middle["precision"].value == 1 and middle["recall"].value < 0.3
    assert all(measure.low <= measure.value <= measure.high for measure in middle.values())
    with pytest.raises(ValueError, match="`neighbours` is 5: allowed are 1 to 2"):
        overlap(real[:3], real)


def test_overlap_of_two_samples_of_one_distribution_is_high():
    rng = np.random.default_rng(1)
    found = overlap(*rng.normal(size=(2, 150, 4)), draws=20)
    assert found["precision"].value > 0.85 and found["coverage"].value > 0.85 and 0.8 < found["density"].value < 1.25


@pytest.mark.parametrize("measure", [frechet_distance, lambda a, b, **how: overlap(a, b, **how)["coverage"]])
def test_interval_is_as_wide_as_values_of_fresh_samples_spread(measure):
    rng = np.random.default_rng(2)
    found = [measure(*(rng.normal(size=(2, 50, 6)) + [[[0.8]], [[0]]]), draws=40, seed=t) for t in range(40)]
    spread_of_values = np.std([one.value for one in found])
    claimed = np.mean([(one.high - one.low) / (2 * 1.96) for one in found])
    assert 0.6 < claimed / spread_of_values < 1.7


def test_pairs_of_one_picture_are_alike_and_pairs_of_noise_are_not():
    picture = structured(1, 0)
    alike = pair_similarity(np.repeat(picture, 4, axis=0))
    assert alike.value == pytest.approx(1, abs=1e-4)
    noise = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    found = pair_similarity(noise, pairs=8)
    assert found.value < 0.5 and found.low <= found.value <= found.high
    assert found == pair_similarity(noise, pairs=8)
    with pytest.raises(ValueError, match="`images` holds 1 images: pairs need at least 2"):
        pair_similarity(picture)


# On images


def test_every_measure_stands_beside_its_floor_and_classes_beside_the_whole(coarse):
    val, train, made = (structured(48, seed, side=32) for seed in (0, 1, 2))
    labels = ["a"] * 24 + ["b"] * 24
    few = labels[:30] + ["c"] * 18
    result = compare(Side(made, few), Side(val, labels), Side(train, labels), networks=[coarse])
    for kind in ("synthetic", "floor", "blur_sigma_1", "blur_sigma_2"):
        assert {"kid", "low", "high", "count", "count_real", "fd", "precision", "recall"} <= set(result[kind])
        assert result[kind]["count"] == 48 and result[kind]["fd"]["low"] <= result[kind]["fd"]["value"]
    assert {"ms_ssim", "density", "coverage"} <= set(result["synthetic"]) & set(result["floor"])
    assert list(result["by_class"]) == ["a"] and result["by_class"]["a"]["synthetic"]["count"] == 24
    assert result["classes_with_too_few"]["c"] == {"synthetic": 18, "val": 0, "floor": 0}
    assert result["agreement"]["agree"] is None


def test_counts_are_made_equal_and_only_leading_images_enter_the_whole(coarse):
    made, val, train = (structured(count, seed, side=32) for seed, count in enumerate((50, 30, 40)))
    result = compare(Side(made, leading=25), val, train, networks=[coarse])
    assert result["synthetic"]["count"] == result["floor"]["count"] == 25
    assert result["synthetic"]["count_real"] == 30


def test_set_against_itself_its_blur_and_noise_in_every_measure():
    val, train = structured(30, 0), structured(30, 1)
    noise = np.random.default_rng(2).integers(0, 256, val.shape, dtype=np.uint8)
    same, far = compare(val, val, train), compare(noise, val, train)
    assert same["synthetic"]["kid"] < 0.001 and same["synthetic"]["fd"]["value"] < 1e-6
    assert same["synthetic"]["precision"]["value"] == same["synthetic"]["coverage"]["value"] == 1
    assert far["synthetic"]["precision"]["value"] == far["synthetic"]["coverage"]["value"] == 0
    assert far["floor"]["fd"]["value"] < far["blur_sigma_1"]["fd"]["value"] < far["blur_sigma_2"]["fd"]["value"]
    assert far["synthetic"]["fd"]["value"] > far["blur_sigma_2"]["fd"]["value"]
    assert far["floor"]["coverage"]["value"] > 0.5


def test_networks_that_contradict_one_another_are_said_to():
    def seen(kid: float) -> dict:
        scale = {"floor": 0.0, "blur_sigma_1": 0.1, "blur_sigma_2": 0.2, "synthetic": kid}
        return {name: {"kid": value, "low": value - 0.01, "high": value + 0.01} for name, value in scale.items()}

    assert agreement({"a": seen(0.15), "b": seen(0.16)})["agree"] is True
    found = agreement({"a": seen(0.15), "b": seen(0.25)})
    assert found["agree"] is False and found["places"]["blur_sigma_2"] == {"a": "nearer", "b": "farther"}
    assert found["disagreements"] == [
        "The networks disagree whether the synthetic images are beyond blur_sigma_2: a nearer, b farther."
    ]
    assert agreement({"a": seen(0.105), "b": seen(0.15)})["agree"] is True  # undecided is no contradiction
    found = agreement({"a": seen(0.15), "b": seen(0.105)})
    assert found["agree"] is None
    assert found["unconfirmed"] == ["b does not confirm that they are farther than blur_sigma_1."]
    assert agreement({"a": seen(0.15)})["unconfirmed"] == ["One network only: nothing confirms it."]


def test_classes_are_filled_up_without_repeats_where_asked():
    rows = [{"pack": "p", "label": "ab"[n % 4 == 0], "file_name": str(n)} for n in range(40)]  # 30 of a, 10 of b
    drawn = rows[:8]
    more = with_classes(rows, drawn, 12, 0, repeat=False)
    assert more[:8] == drawn and len({row["file_name"] for row in more}) == len(more) == 12 + 10
    assert len(with_classes(rows, drawn, 12, 0, repeat=True)) == 24
    assert with_classes(rows, drawn, 0, 0, repeat=True) == drawn


# Folders of one's own


def test_no_group_is_on_both_sides_of_the_floor():
    groups = np.repeat(np.arange(20), 3)
    images = np.zeros((60, 2, 2, 3), np.uint8)
    names, rows = tuple(map(str, range(60))), ({},) * 60
    unseen, floor = unseen_and_floor(ImageSet(images, None, groups, names, ("",) * 60, rows), 0)
    assert not set(unseen.groups) & set(floor.groups) and len(unseen) == len(floor) == 30
    splits = ("train",) * 40 + ("test",) * 20
    unseen, floor = unseen_and_floor(ImageSet(images, None, groups, names, splits, rows), 0)
    assert not set(unseen.groups) & set(floor.groups)
    assert len(unseen) == 20 and len(floor) == 39  # the folder's own split divides a group


def test_two_folders_with_classes_from_the_command_line(tmp_path):
    for number, folder in enumerate(("real", "made")):
        for label, kind in (("ring", "disc"), ("bar", "stripes")):
            (tmp_path / folder).mkdir(exist_ok=True)
            count = (40, 20)[number]
            write_pictures(tmp_path / folder / label, structured(count, 10 * number + len(label), 48 + number, kind))
    asked = ["fidelity", "--real", str(tmp_path / "real"), "--synthetic", str(tmp_path / "made")]
    assert main([*asked, "--out", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["counts"]["synthetic"] == result["counts"]["train_sample"] == result["floor"]["count"] == 40
    assert set(result["by_class"]) | set(result["classes_with_too_few"]) == {"ring", "bar"}
    assert result["network"].startswith("EfficientNet") and result["versions"] and result["groups"]


def test_one_class_and_mixed_sizes_are_no_trouble(tmp_path):
    (tmp_path / "real").mkdir()
    write_pictures(tmp_path / "real" / "only", structured(40, 0, side=40))
    made = tmp_path / "made"
    made.mkdir()
    for number, image in enumerate([*structured(10, 1, side=40), *structured(10, 2, side=90)]):
        Image.fromarray(image[: 40 + number]).save(made / f"{number}.png")
    result = fidelity_of_folders(tmp_path / "real", made)
    assert result["synthetic"]["count"] == 20 and "by_class" not in result


@pytest.mark.parametrize(
    ("count", "spoil", "words"),
    [
        (3, "", "`real` holds 3 images: 40 are needed, half of them for the floor"),
        (0, "", "`real` is "),
        (1, "broken.png", "`real`: file 2 (of 2; "),
    ],
)
def test_bad_real_folders_end_in_one_clear_line(tmp_path, capsys, count, spoil, words):
    folder = write_pictures(tmp_path / "real", structured(count, 0, side=40) if count else [])
    if spoil:
        (folder / spoil).write_bytes(b"\x89PNG\r\n\x1a\nno")
    made = write_pictures(tmp_path / "made", structured(3, 1, side=40))
    asked = ["fidelity", "--real", str(folder), "--synthetic", str(made), "--out", str(tmp_path / "out.json")]
    assert main(asked) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in error and not (tmp_path / "out.json").exists()


def test_generating_needs_captions(tmp_path):
    folder = write_pictures(tmp_path / "real", structured(40, 0, side=40))
    with pytest.raises(ValueError, match="`real` has no captions"):
        fidelity_of_folders(folder)


# Networks by name


def test_unknown_network_is_refused_and_own_needs_the_packs():
    with pytest.raises(ValueError, match="`networks` has 'vgg': allowed are efficientnet-lite0, own, and Hub ids"):
        feature_network("vgg")
    with pytest.raises(ValueError, match="`networks` has 'own': it is trained on the packs"):
        feature_network("own")


def test_own_network_is_trained_on_the_packs_once_and_then_read(tmp_path):
    folder = tmp_path / "data" / "blood_pbc"
    (folder / "images").mkdir(parents=True)
    lines = ["file_name,split,label,text"]
    for index, image in enumerate([*structured(20, 0, 40), *structured(20, 1, 40, "stripes")]):
        Image.fromarray(image).save(folder / f"images/{index}.png")
        lines.append(f"images/{index}.png,train,{'ab'[index // 20]},words")
    (folder / "metadata.csv").write_text("\n".join(lines))
    quick = Training("resnet50", width=0.125, epochs=1, updates=2, batch=8)
    first, again = (own_network(tmp_path / "data", cache=tmp_path / "cache", how=quick) for _ in range(2))
    assert first.description == again.description and "40 train images of the packs in 2 classes" in first.description
    features = extract_features(structured(2, 2, 40), network=first, progress=False)
    assert features.shape[0] == 2 and np.array_equal(
        features, extract_features(structured(2, 2, 40), network=again, progress=False)
    )
    with pytest.raises(ValueError, match="`data` holds too few images for the network 'own'"):
        own_network(tmp_path)


def test_hub_model_that_cannot_be_had_ends_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="`networks` has 'nobody/nothing': transformers cannot load it"):
        feature_network("nobody/nothing")


def test_encoder_of_transformers_gives_features_of_its_own_scale(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path / "tiny-dino")
    settings = {"crop_size": {"height": 28, "width": 28}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "tiny-dino" / "preprocessor_config.json").write_text(json.dumps(settings))
    network = feature_network(str(tmp_path / "tiny-dino"))
    assert (network.name, network.size, network.mean) == ("tiny-dino", 28, (0.5, 0.5, 0.5))
    features = extract_features(structured(3, 0, side=40), network=network, progress=False)
    assert features.shape == (3, 16) and features.dtype == np.float32
