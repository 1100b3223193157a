"""Adapters against the bare base: real classes at tiny size on made-up images; nothing is downloaded."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation import table
from evaluation.__main__ import main
from evaluation.adapters import (
    ADAPTERS,
    CLASSES,
    NEW_PACKS,
    _draw,
    adapter_rows,
    class_of,
    compare,
    compare_adapters,
    compare_features,
    find_adapters,
    kept_results,
    real_images,
    recognised,
    train_judge,
)
from evaluation.features import load_network
from evaluation.fidelity import Distance
from evaluation.images import SIZE, count_by
from evaluation.report import write_json
from lora.base_data import PACKS, read_square
from lora.data import read_training_data
from pipeline.adapter_files import read_adapter

from .adapter_samples import ATTENTION, WEIGHTS, rewrite, save_adapter
from .test_evaluation import structured
from .tiny import tiny_pipeline

try:
    load_network()
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "images"
TRAIN, VAL, TRAIN_NEW, VAL_NEW = 9, 8, 24, 22
FEW = {"count": 20, "steps": 1, "batch": 10}


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the real data: every pack, a few images each; a brain MRI has too few of them for KID."""
    root = tmp_path_factory.mktemp("packs")
    texts = {"nuclei": "fluorescence microscopy, nuclei", "covid-chest-xray": "frontal chest X-ray"}
    for number, (pack, name) in enumerate({**PACKS, **NEW_PACKS}.items()):
        (root / pack / "images").mkdir(parents=True)
        train, val = (TRAIN_NEW, VAL_NEW) if pack in NEW_PACKS else (TRAIN, VAL)
        images = structured(train + val, number, side=48, kind="disc" if number % 2 else "stripes")
        if name == "nuclei":
            images = images // 8  # as dark as fluorescence
        rows = []
        for index, image in enumerate(images):
            file = f"images/{index}.png"
            Image.fromarray(image).save(root / pack / file)
            text = texts.get(name, name)
            split = "train" if index < train else "val"
            rows.append({"file_name": file, "split": split, "text": f"{text}, {index}", "group_id": str(index // 2)})
        with (root / pack / "metadata.csv").open("w", newline="") as handle:
            writer = csv.DictWriter(handle, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return root


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny adapters: one that changes what is drawn, one that changes nothing, one with too few val images."""
    root = tmp_path_factory.mktemp("lora")
    save_adapter(root / "nuclei", modality="nuclei", base_model_sha256=tiny_pipeline().model_sha256)
    save_adapter(root / "covid-chest-xray", ATTENTION, modality="chest-xray", base_model_sha256="ab")
    rewrite(
        root / "covid-chest-xray" / WEIGHTS,
        lambda tensors, _: tensors.update({key: torch.zeros_like(t) for key, t in tensors.items() if "lora_B" in key}),
    )
    save_adapter(root / "brain-mri", ATTENTION)
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


# What is compared


def test_every_adapter_has_packs_and_every_pack_a_class():
    assert ADAPTERS == ("chest-xray", "ct", "brain-mri", "blood-smear", "nuclei", "covid-chest-xray")
    assert [class_of({"pack": pack}) for pack in NEW_PACKS] == ["nuclei", "covid-chest-xray"]
    assert {class_of({"pack": pack}) for pack in {**PACKS, **NEW_PACKS}} == set(CLASSES)


def test_rows_are_those_of_the_adapters_packs(packs):
    assert {row["pack"] for row in adapter_rows("covid-chest-xray", packs, "val")} == {"cxr_covid"}
    assert {row["pack"] for row in adapter_rows("ct", packs, "val")} == {p for p, name in PACKS.items() if name == "ct"}
    with pytest.raises(ValueError, match="`data` has no 'test' rows for 'nuclei'"):
        adapter_rows("nuclei", packs, "test")


def test_real_nuclei_are_stretched_as_in_training_and_others_are_not(packs):
    rows = adapter_rows("nuclei", packs, "val")
    trained = read_training_data([packs / "nuclei_dsb2018"], size=SIZE, contrast="stretch")
    images = real_images("nuclei", rows)
    assert np.array_equal(images, trained.images[trained.validation])
    assert images.max() == 255 and read_square(rows[0]["path"], SIZE).max() < 40
    rows = adapter_rows("covid-chest-xray", packs, "val")[:2]
    assert np.array_equal(real_images("covid-chest-xray", rows), [read_square(row["path"], SIZE) for row in rows])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real images (../shared) are not here")
def test_real_fluorescence_is_brightened():
    rows = [row for row in adapter_rows("nuclei", SHARED, "val") if row["label"] == "fluorescence"][:4]
    plain = np.stack([read_square(row["path"], SIZE) for row in rows])
    assert np.quantile(real_images("nuclei", rows), 0.99) > np.quantile(plain, 0.99)


def test_adapters_are_found_by_name_and_by_folder(lora, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="`adapters` has 'spleen': allowed are chest-xray, ct"):
        find_adapters(["spleen"])
    with pytest.raises(ValueError, match=f"`adapters` has '.*ct': there is no {WEIGHTS}"):
        find_adapters([str(tmp_path / "ct")])
    with pytest.raises(ValueError, match="`adapters` has 'nuclei' twice"):
        find_adapters([str(lora / "nuclei"), str(lora / "nuclei")])
    monkeypatch.setattr("pipeline.adapter_names._LORA_FOLDER", tmp_path)
    with pytest.raises(ValueError, match="`adapters` is not given, and no folder of lora/ holds the weights"):
        find_adapters(None)
    monkeypatch.setattr("pipeline.adapter_names._LORA_FOLDER", lora)
    assert list(find_adapters(None)) == ["brain-mri", "nuclei", "covid-chest-xray"]  # in the order of the README
    assert find_adapters(["nuclei"]) == find_adapters([str(lora / "nuclei")]) == {"nuclei": lora / "nuclei"}


# Known answers


def test_fall_and_overlap_of_two_distances():
    before, after = Distance(0.2, 0.18, 0.22, 60, 60), Distance(0.15, 0.14, 0.16, 60, 60)
    result = compare(before, after)
    assert result["fall"] == pytest.approx(0.25) and result["intervals_overlap"] is False
    assert compare(before, Distance(0.15, 0.1, 0.19, 60, 60))["intervals_overlap"] is True
    assert compare(after, before)["fall"] == pytest.approx(-1 / 3)
    assert compare(before, Distance(0.2, 0.0, 0.5, 60, 60))["intervals_overlap"] is True  # one inside the other
    assert compare(Distance(-0.001, -0.002, 0.001, 60, 60), after)["fall"] is None


def test_target_is_met_only_by_a_fall_that_is_deep_and_clear():
    rng = np.random.default_rng(0)

    def features(shift: float) -> dict[int, np.ndarray]:
        return {seed: rng.normal(size=(40, 16)) + shift for seed in (0, 1)}

    real = rng.normal(size=(100, 16))
    clear = compare_features(features(1.5), features(0.3), real, 0.6)
    assert clear["met"] is True and clear["fall"] > 0.6 and clear["with"]["count"] == 80
    assert list(clear["by_seed"]) == ["0", "1"] and clear["by_seed"]["1"]["with"]["count"] == 40
    shallow = compare_features(features(1.5), features(1.2), real, 0.6)
    assert not shallow["intervals_overlap"] and 0 < shallow["fall"] < 0.6 and shallow["met"] is False
    worse = compare_features(features(0.3), features(1.5), real, 0.3)
    assert not worse["intervals_overlap"] and worse["fall"] < 0 and worse["met"] is False
    same = features(0.3)
    assert compare_features(same, same, real, 0.3)["met"] is False


def test_intervals_keep_the_packs_in_proportion():
    rng = np.random.default_rng(0)
    names = ["a", "b"] * 20
    apart = np.array([[1.5 if name == "a" else -1.5] for name in names])

    def features(shift: float) -> dict[int, np.ndarray]:
        return {seed: rng.normal(size=(40, 16)) + apart + shift for seed in (0, 1)}

    sets, real = (features(0.6), features(0.3)), features(0)[0]
    plain = compare_features(*sets, real, 0.3)
    strata = compare_features(*sets, real, 0.3, {0: names, 1: names}, names)
    assert strata["with"]["kid"] > plain["with"]["kid"]  # no image makes a pair with itself: of one pack are too few
    assert plain["intervals_overlap"] is True and strata["intervals_overlap"] is False


def test_runs_have_the_packs_in_proportion_and_two_images_of_each():
    """A single image of a pack makes no pair: it is refused before the work."""
    rows = [{"pack": "large", "n": str(i)} for i in range(45)] + [{"pack": "small", "n": str(i)} for i in range(5)]
    drawn = _draw(rows, 20, [0, 3])
    assert [count_by(some, "pack") for some in drawn.values()] == [{"large": 18, "small": 2}] * 2
    assert drawn[0] != drawn[3]
    with pytest.raises(ValueError, match="`count` is 10: that is one image of small, and a pack needs two"):
        _draw(rows, 10, [0])


def test_recognised_counts_what_the_adapter_was_made_for():
    def seen(name: str, *kinds: str) -> dict:
        return recognised(name, np.array([CLASSES.index(kind) for kind in kinds]))

    found = seen("ct", "ct-chest", "ct-head", "brain-mri", "ct-head")
    assert found["recognised"]["share"] == 0.75 and "any_chest_xray" not in found
    assert found["seen_as"] == {"ct-chest": 1, "ct-head": 2, "brain-mri": 1} and found["count"] == 4
    found = seen("covid-chest-xray", "covid-chest-xray", "chest-xray", "chest-xray", "nuclei")
    assert (found["recognised"]["share"], found["any_chest_xray"]["share"]) == (0.25, 0.75)
    assert seen("chest-xray", "covid-chest-xray")["recognised"]["share"] == 0
    assert found["recognised"]["low"] < 0.25 < found["recognised"]["high"]


def test_judge_has_seven_classes_and_is_trained_once(packs, cache):
    judge = train_judge(packs, cache=cache)
    assert judge.classes == CLASSES and judge.weight.shape[1] == len(judge.bias) == 7
    kept = {path: path.stat().st_mtime_ns for path in cache.glob("judge-adapters-*.npz")}
    assert len(kept) == 1
    assert np.array_equal(judge.weight, train_judge(packs, cache=cache).weight)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    images = real_images("nuclei", adapter_rows("nuclei", packs, "train"))
    assert recognised("nuclei", judge.predict(images))["recognised"]["share"] > 0.9


# The whole


@pytest.fixture(scope="module")
def result(packs, lora, cache) -> dict:
    """Two adapters, two seeds, with a pipeline that must be bare again afterwards."""
    pipe = tiny_pipeline()
    before = pipe.model_sha256
    names = [str(lora / name) for name in ("nuclei", "covid-chest-xray")]
    found = compare_adapters(packs, adapters=names, seeds=(0, 4), pipe=pipe, cache=cache, **FEW)
    assert not pipe.get_list_adapters() and pipe.model_sha256 == before
    return found


def test_result_says_what_was_measured(result, lora, packs):
    assert list(result["adapters"]) == ["nuclei", "covid-chest-xray"]
    assert result["seeds"] == [0, 4] and result["counts"]["images_a_seed"] == 20
    assert result["judge"]["real_val"]["count"] == len(PACKS) * VAL + 2 * VAL_NEW
    text = json.dumps(result, default=lambda value: value.tolist())
    assert str(lora) not in text and str(packs) not in text
    for name, one in result["adapters"].items():
        kid = one["kid"]
        assert kid["with"]["count"] == kid["without"]["count"] == 40 and kid["target"] == 0.6
        assert kid["floor"]["count"] == one["counts"]["train_sample"] == TRAIN_NEW
        assert kid["floor"]["count_real"] == one["counts"]["val"] == VAL_NEW and one["counts"]["val_groups"] == 11
        assert list(kid["by_seed"]) == ["0", "4"]
        ((used, sha256, weight),) = one["settings"]["adapters"]
        assert (used, sha256, weight) == (name, read_adapter(lora / name).sha256, 1)
        assert set(one["judge"]) == {"real_val", "with", "without"} and one["judge"]["with"]["count"] == 40
        assert one["settings"]["num_inference_steps"] == 1
    nuclei, covid = result["adapters"].values()
    assert (nuclei["settings"]["modality"], covid["settings"]["modality"]) == ("nuclei", "chest-xray")
    assert (nuclei["contrast"], covid["contrast"]) == ("stretch", "none")
    assert (nuclei["made_for_this_base"], covid["made_for_this_base"]) == (True, False)
    assert "any_chest_xray" in covid["judge"]["with"] and "any_chest_xray" not in nuclei["judge"]["with"]


def test_adapter_that_changes_nothing_falls_by_nothing(result):
    nuclei, covid = (one["kid"] for one in result["adapters"].values())
    assert covid["fall"] == 0 and covid["intervals_overlap"] is True and covid["met"] is False
    assert covid["with"] == covid["without"]
    assert nuclei["with"]["kid"] != nuclei["without"]["kid"]


def test_run_goes_on_from_its_images(result, packs, lora, cache):
    generated = cache / "generated"
    kept = {path: path.stat().st_mtime_ns for path in generated.glob("*.png")}
    assert len(kept) == 2 * 2 * 2 * 20  # adapters, sides, seeds: no image is taken twice
    names = [str(lora / "nuclei")]
    again = compare_adapters(packs, adapters=names, seeds=(4,), pipe=tiny_pipeline(), cache=cache, **FEW)
    assert kept == {path: path.stat().st_mtime_ns for path in generated.glob("*.png")}
    before, now = result["adapters"]["nuclei"]["kid"]["by_seed"]["4"], again["adapters"]["nuclei"]["kid"]
    assert now["with"] == now["by_seed"]["4"]["with"] == before["with"]


def test_pipeline_that_has_adapters_already_is_refused(packs, lora):
    pipe = tiny_pipeline()
    pipe.load_lora_weights(lora / "nuclei")
    with pytest.raises(ValueError, match="`pipe` has adapters loaded"):
        compare_adapters(packs, adapters=[str(lora / "nuclei")], pipe=pipe)
    assert pipe.get_list_adapters()


def test_adapter_of_another_model_is_refused_before_the_work(packs, lora, tmp_path):
    shutil.copytree(lora / "nuclei", tmp_path / "nuclei")
    rewrite(
        tmp_path / "nuclei" / WEIGHTS,
        lambda tensors, _: tensors.update({key: t[:, :1] for key, t in tensors.items() if "to_q.lora_A" in key}),
    )
    with pytest.raises(ValueError, match="`source` was made for another model"):
        compare_adapters(packs, adapters=[str(tmp_path / "nuclei")], pipe=tiny_pipeline(), cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--count", "3"], "`count` is 3: allowed are 20"),
        (["--seeds", "1", "1"], "`seeds` are [1, 1]: allowed are different whole numbers"),
        (["--seeds", "-1"], "`seeds` are [-1]"),
        (["--adapters", "spleen"], "`adapters` has 'spleen': allowed are chest-xray, ct, brain-mri"),
        (["--adapters", "{lora}/brain-mri"], "`data` holds 8 val images of 'brain-mri': KID needs at least 20"),
        (["--adapters", "{lora}/nuclei", "--data", "nowhere"], "`data` has no pack"),
    ],
)
def test_bad_arguments_end_in_one_clear_line(packs, lora, tmp_path, capsys, arguments, words):
    arguments = [text.format(lora=lora) for text in arguments]
    data = [] if "--data" in arguments else ["--data", str(packs)]
    assert main(["adapters", *arguments, *data, "--out", str(tmp_path / "out.json")]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1 and not (tmp_path / "out.json").exists()


def test_command_writes_the_file_that_the_table_is_made_of(packs, lora, cache, tiny_folder, tmp_path):
    out = tmp_path / "adapters.json"
    asked = ["adapters", "--adapters", str(lora / "covid-chest-xray"), "--count", "20", "--seeds", "0", "--steps", "1"]
    asked += ["--data", str(packs), "--model", str(tiny_folder), "--cache", str(cache), "--out", str(out)]
    asked += ["--networks", "efficientnet-lite0", "efficientnet-lite0"]  # another would have to learn first
    assert main(asked) == 0
    found = json.loads(out.read_text())
    one = found["adapters"]["covid-chest-xray"]
    assert one["networks"]["efficientnet-lite0"] == {"network": found["network"], "kid": one["kid"]}
    assert found["what"] == "adapters" and found["versions"]["torch"] and found["seeds"] == [0]
    head, _, line = table.adapters_table(found)
    assert line.startswith("| covid-chest-xray | 20 | ") and " | 0% (60%): missed | 0% | " in line
    assert line.count("any chest X-ray") == 3 and line.count("|") == head.count("|")


def test_what_was_found_of_other_adapters_stays_if_it_was_made_alike(result, lora, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.adapters.shipped_adapters", lambda: {"nuclei": lora / "nuclei"})
    path = tmp_path / "adapters.json"
    write_json(path, result)
    settings = {key: result["adapters"]["nuclei"]["settings"][key] for key in ("model_sha256", "num_inference_steps")}
    kept = kept_results(path, ["covid-chest-xray"], settings, {})
    assert kept == {"nuclei": json.loads(path.read_text())["adapters"]["nuclei"]}
    for key in settings:
        with pytest.raises(ValueError, match=f"`keep`: adapters.json has 'nuclei' with another {key};"):
            kept_results(path, ["covid-chest-xray"], {**settings, key: 0}, {})
    with pytest.raises(ValueError, match="with another own;"):
        kept_results(path, ["covid-chest-xray"], settings, {"own": "trained today"})
    monkeypatch.setattr("evaluation.adapters.shipped_adapters", lambda: {"nuclei": lora / "covid-chest-xray"})
    with pytest.raises(ValueError, match="with another adapter;"):
        kept_results(path, ["covid-chest-xray"], settings, {})


def test_table_says_whether_the_target_is_reached():
    kid = {"kid": 0.04321, "low": 0.03, "high": 0.05, "count": 180}
    judged = {"recognised": {"share": 0.955}}
    one = {
        "kid": {"without": kid, "with": kid, "floor": kid, "fall": 0.721, "target": 0.6, "met": True},
        "judge": dict.fromkeys(("without", "with", "real_val"), judged),
    }
    line = table.adapters_table({"adapters": {"nuclei": one}})[-1]
    assert "| nuclei | 180 | 0.043 [0.030, 0.050] |" in line
    assert line.endswith("| 72% (60%): reached | - | 95.5% | 95.5% | 95.5% |")
    one["kid"] |= {"fall": None, "met": False}
    one["networks"] = {"own": {"network": "ours", "kid": {**one["kid"], "fall": 0.12}}}
    assert "| - (60%): missed | 12% |" in table.adapters_table({"adapters": {"nuclei": one}})[-1]


def test_table_of_adapters_stands_only_where_they_were_measured(tmp_path):
    root = Path(__file__).parents[1]
    if not (root / "evaluation" / "results" / "speed.json").is_file():
        pytest.skip("no results in evaluation/results: `make evaluate` writes them")
    results = shutil.copytree(root / "evaluation" / "results", tmp_path / "results")
    (results / "adapters.json").unlink(missing_ok=True)
    without = table.results_table(results, root / "pipeline" / "training.json")
    (results / "adapters.json").write_text(json.dumps({"adapters": {}}))
    lines = "\n".join(["", *table.adapters_table({"adapters": {}}), ""])
    with_them = table.results_table(results, root / "pipeline" / "training.json")
    assert lines not in without and with_them.replace(lines, "", 1) == without
