"""Copies of training images: the index, redrawing inside a call, and the measures of privacy, with known answers."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.images import SIZE
from evaluation.privacy import find_copies, membership, privacy, source_ranks, thumbnail_features
from lora import memorisation
from lora.memorisation import build_index, copy_threshold
from pipeline.dicom_provenance import CopyCheck, Recipe, read_recipe
from pipeline.pipeline import SyntheticDicomPipeline
from pipeline.pipeline_memorisation import INDEX_NAME, REDRAWS, SEED_STEP, MemorisationIndex

CHEST = "chest X-ray, PA view, 54 year old woman"


def people(count: int, seed: int, side: int = 64) -> np.ndarray:
    """Smooth grey pictures, each of another "person": uint8 (N, side, side, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    images = []
    for _ in range(count):
        waves = sum(
            rng.normal() / (1 + a + b) * np.cos(np.pi * (a * x + b * y) + rng.uniform(0, 6))
            for a in range(5)
            for b in range(5)
        )
        images.append(np.clip(128 + 40 * waves, 0, 255))
    return np.repeat(np.stack(images)[..., None], 3, axis=3).astype(np.uint8)


def changed(image: np.ndarray, how: int) -> np.ndarray:
    """As it is, recompressed, brighter, or moved by a pixel."""
    if how == 1:
        data = io.BytesIO()
        Image.fromarray(image).save(data, "JPEG", quality=50)
        return np.asarray(Image.open(data))
    if how == 2:
        return np.clip(image * 1.1 + 6, 0, 255).astype(np.uint8)
    return np.pad(image, ((1, 0), (1, 0), (0, 0)), mode="edge")[:-1, :-1] if how == 3 else image


TRAINING, UNSEEN, OTHERS = people(300, 1), people(150, 2), people(200, 3)
PLANTED = np.stack([changed(image, i % 4) for i, image in enumerate(TRAINING[:60])])


def tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


# ---- the index ------------------------------------------------------------------------------------------------------


def test_index_finds_the_planted_and_little_else():
    index = build_index(TRAINING, UNSEEN)
    assert (index.score(tensor(PLANTED)) < 1).float().mean() >= 0.95
    assert (index.score(tensor(OTHERS)) < 1).float().mean() <= 0.02


def test_index_with_few_unseen_images_learns_from_people_among_themselves():
    groups = np.arange(300) // 2
    for unseen in (UNSEEN[:5], UNSEEN[:0]):
        index = build_index(TRAINING, unseen, groups)
        assert 0.1 < index.threshold < 0.9
        assert index.calibration["training_images_against_other_people"] == 300
    assert build_index(TRAINING[:2], UNSEEN[:0]).threshold == memorisation.FALLBACK
    with pytest.raises(ValueError, match="at least 2"):
        build_index(TRAINING[:1], UNSEEN)


def test_index_is_written_whole_small_and_in_no_order(tmp_path):
    index = build_index(TRAINING, UNSEEN)
    path = index.save(tmp_path / INDEX_NAME)
    again = MemorisationIndex.load(path)
    assert again.sha256 == index.sha256 and path.read_bytes() == again.to_bytes()
    assert again.threshold == index.threshold and again.calibration == index.calibration
    assert path.stat().st_size < 300 * 64 * 2 + 1000
    shuffled = build_index(TRAINING[::-1], UNSEEN)
    assert shuffled.sha256 == index.sha256
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="no whole memorisation index"):
        MemorisationIndex.load(path)


def test_threshold_is_a_quantile_of_real_images():
    assert copy_threshold(np.linspace(0.5, 1, 1000)) == pytest.approx(0.505, abs=1e-3)
    assert copy_threshold(np.array([0.7, 0.9])) == 0.7
    assert copy_threshold(np.zeros(0)) == memorisation.FALLBACK
    assert copy_threshold(np.zeros(10)) > 0


# ---- inside a call --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known(tiny, tmp_path_factory) -> tuple[SyntheticDicomPipeline, Path]:
    """A model in a folder whose training set holds the image of seed 7."""
    folder = tmp_path_factory.mktemp("known")
    tiny.save_pretrained(folder)
    real = torch.cat([tiny(CHEST, seed=s, output_type="pt").images for s in (7, *range(100, 125))])
    features = memorisation.index_features(real)
    MemorisationIndex(features, 0.5, {"training_images": len(real)}).save(folder / INDEX_NAME)
    pipe = SyntheticDicomPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe, folder


def test_copy_is_redrawn_and_said_so_and_others_stay(known, tiny):
    pipe, folder = known
    whole = pipe(CHEST, seed=6, num_images_per_prompt=3, check_memorisation=True)
    assert whole.seeds == [6, 7 + SEED_STEP, 8]
    first, second, _ = (recipe.copy_check for recipe in whole.recipes)
    assert (first.redraws, first.first_seed, first.is_copy) == (0, 6, False)
    assert (second.redraws, second.first_seed, second.is_copy) == (1, 7, False)
    assert second.indexes == (("tiny", MemorisationIndex.load(folder / INDEX_NAME).sha256),)
    assert "Redrawn 1 time: seed 7" in whole.dicoms[1].DerivationDescription
    assert read_recipe(whole.dicoms[1]) == whole.recipes[1]
    again = pipe(CHEST, seed=7, check_memorisation=True)  # the same image in any call
    assert again.seeds == [7 + SEED_STEP]
    assert again.dicoms[0].SOPInstanceUID == whole.dicoms[1].SOPInstanceUID
    # What the recipe says makes the image again, with the same UIDs, also without a check.
    plain = tiny(CHEST, seed=whole.recipes[1].seed)
    assert plain.dicoms[0].SOPInstanceUID == whole.dicoms[1].SOPInstanceUID
    difference = plain.dicoms[0].pixel_array.astype(int) - whole.dicoms[1].pixel_array.astype(int)
    assert np.abs(difference).max() <= 1
    assert plain.recipes[0].copy_check is None and "copy_check" not in plain.recipes[0].to_json()


def test_copy_that_cannot_be_avoided_is_named(known, monkeypatch):
    pipe, folder = known
    index = MemorisationIndex.load(folder / INDEX_NAME)
    monkeypatch.setattr(pipe, "model_memorisation_index", lambda: replace(index, threshold=50.0))
    output = pipe(CHEST, seed=1, check_memorisation=True)
    check = output.recipes[0].copy_check
    assert (check.redraws, check.is_copy) == (REDRAWS, True)
    assert output.seeds == [1 + REDRAWS * SEED_STEP]
    assert "may be a copy" in output.dicoms[0].DerivationDescription


def test_missing_index_is_an_error_that_names_whose(tiny, known, saved):
    with pytest.raises(ValueError, match=f"the model 'tiny' comes without {INDEX_NAME}"):
        tiny(CHEST, seed=1, check_memorisation=True)
    assert not tiny.can_check_memorisation()
    pipe = SyntheticDicomPipeline.from_pretrained(known[1])
    assert pipe.can_check_memorisation()
    pipe.load_lora_weights(saved["chest-xray"])
    with pytest.raises(ValueError, match=f"the adapter 'chest-xray' comes without {INDEX_NAME}"):
        pipe(CHEST, seed=1, check_memorisation=True)
    pipe.set_adapters([])
    assert pipe.can_check_memorisation()
    index = MemorisationIndex.load(known[1] / INDEX_NAME)
    index.save(saved["brain-mri"] / INDEX_NAME)
    try:
        pipe.load_lora_weights(saved["brain-mri"])
        assert [name for name, _ in pipe.memorisation_indexes()] == ["tiny", "brain-mri"]
    finally:
        (saved["brain-mri"] / INDEX_NAME).unlink()


def test_saved_model_takes_its_index_along(known, tmp_path):
    pipe, folder = known
    pipe.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / INDEX_NAME).read_bytes() == (folder / INDEX_NAME).read_bytes()


def test_recipe_with_a_check_round_trips_and_keeps_its_uids():
    plain = Recipe(CHEST, "", "chest-xray", 7, 3, 2.0, "X", 64, 64, "tiny", "ab" * 32)
    checked = replace(plain, copy_check=CopyCheck((("tiny", "cd" * 32),), 0.4, 3, 1))
    assert Recipe.from_json(checked.to_json()) == checked
    assert checked.digest() == plain.digest() and checked.request_digest() == plain.request_digest()
    broken = json.loads(checked.to_json())
    broken["copy_check"] = {"score": 1}
    with pytest.raises(ValueError, match="`copy_check`"):
        Recipe.from_json(json.dumps(broken))


def test_adapter_gets_its_index_later(tmp_path):
    data, adapter = tmp_path / "data", tmp_path / "adapter"
    data.mkdir()
    adapter.mkdir()
    for i, image in enumerate(TRAINING[:12]):
        Image.fromarray(image).save(data / f"{i}.png")
    record = {"config": {"default_caption": "chest X-ray", "seed": 0}, "data": {"training_images": 10}}
    (adapter / "training.json").write_text(json.dumps(record))
    assert memorisation.main(["--data", str(data), "--adapter", str(adapter)]) == 0
    assert MemorisationIndex.load(adapter / INDEX_NAME).calibration["unseen_images"] == 2
    record["data"]["training_images"] = 9
    (adapter / "training.json").write_text(json.dumps(record))
    assert memorisation.main(["--data", str(data), "--adapter", str(adapter)]) == 2


# ---- measures -------------------------------------------------------------------------------------------------------


def test_planted_copies_are_found_and_real_people_are_not():
    mixed = np.concatenate([PLANTED, OTHERS])
    result = find_copies(mixed, TRAINING, UNSEEN)
    found = result["scores"] < 1
    assert found[:60].mean() >= 0.95 and found[60:].mean() <= 0.02 and result["false_alarms"] <= 0.05
    assert (result["nearest"][:60] == np.arange(60)).mean() >= 0.95
    with pytest.raises(ValueError, match="`unseen` holds 3 images"):
        find_copies(mixed, TRAINING, UNSEEN[:3])


def test_membership_is_chance_for_strangers_and_certain_for_copies():
    training, unseen = thumbnail_features(TRAINING), thumbnail_features(UNSEEN)
    assert membership(training, training, unseen, draws=50)["auc"] == 1.0
    chance = membership(thumbnail_features(OTHERS), training, unseen, draws=50)
    assert 0.4 < chance["auc"] < 0.6 and chance["low"] < chance["auc"] < chance["high"]


def test_source_ranks():
    crowd = thumbnail_features(OTHERS)
    own = thumbnail_features(UNSEEN[:5])
    assert (source_ranks(own, own, crowd) == 1).all()
    assert source_ranks(crowd[:5], own, crowd).min() >= 2


def test_privacy_of_folders(tmp_path):
    for name, images in (("real", TRAINING[:80]), ("unseen", UNSEEN[:60]), ("made", PLANTED[:10]), ("few", UNSEEN[:3])):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{i:03}.png")
    pairs = tmp_path / "pairs.png"
    result = privacy(
        tmp_path / "real", unseen=tmp_path / "unseen", synthetic=tmp_path / "made", size=64, pairs=pairs
    )  # fmt: skip
    assert result["copies"]["copies"] >= 9 and result["counts"] == {"synthetic": 10, "training": 80, "unseen": 60}
    assert pairs.is_file() and json.dumps(result["membership"])
    for arguments, message in (
        ({"unseen": tmp_path / "few"}, "`unseen` holds 3 images"),
        ({}, "not split into train and val"),
        ({"unseen": tmp_path / "unseen", "pairs": "pairs.png"}, "inside the project"),
        ({"unseen": tmp_path / "unseen", "strengths": [2.0]}, "`strengths`"),
    ):
        with pytest.raises(ValueError, match=message):
            privacy(tmp_path / "real", synthetic=tmp_path / "made", size=64, **arguments)
    assert SIZE == 256
