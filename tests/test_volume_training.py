"""Training of the volume model at tiny size: data, augmentation, resuming, export."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lora import train_volumes
from lora.volume_data import PARTS, Batches, count_labels, normalise, part_of, read_volumes, vary_caption
from pipeline.volume import SyntheticDicomVolumePipeline
from pipeline.volume.volume_covariates import Distribution, read_prompt

from .tiny import tiny_pipeline
from .tiny_volume import SHAPE, write_pack


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return write_pack(tmp_path_factory.mktemp("volumes") / "pack")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    tiny_pipeline().save_pretrained(folder)
    return folder


def run(pack, text, work, steps, *more):
    # The learning rate must not depend on the number of steps, or a break would be one of the schedule too.
    options = [
        "--data",
        pack,
        "--work",
        work,
        "--out",
        work / "model",
        "--text",
        text,
        "--blocks",
        16,
        16,
        "--batch",
        4,
    ]
    options += ["--steps", steps, "--decay-share", 0, "--sheet-every", 0, *more]
    assert train_volumes.main([str(option) for option in options]) == 0
    return load_file(work / "volume.safetensors")


def test_going_on_gives_the_same_weights(pack, text, tmp_path):
    straight = run(pack, text, tmp_path / "a", 6)
    half = run(pack, text, tmp_path / "b", 3)
    resumed = run(pack, text, tmp_path / "b", 6)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)
    assert any(not torch.equal(half[key], resumed[key]) for key in half)
    log = [json.loads(line) for line in (tmp_path / "b" / "volume.log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [3, 6] and log[1]["volumes"] == 24


def test_the_exported_model_loads_and_says_what_it_is(pack, text, tmp_path):
    run(pack, text, tmp_path, 2, "--sheet-every", 2)
    assert (tmp_path / "sheet-000002.png").is_file()
    pipe = SyntheticDicomVolumePipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.dtype == pipe.text_encoder.dtype == torch.float32  # stored in half
    assert load_file(tmp_path / "model/unet/diffusion_pytorch_model.safetensors")["conv_in.weight"].dtype == torch.half
    out = pipe("hippocampus", seed=1, num_inference_steps=2)
    assert out.volumes.shape == (1, *SHAPE)
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    train = read_volumes(pack, "train")
    assert record["packs"][0]["volumes"] == len(train.names) == len(record["names"])
    assert record["packs"][0]["licence"] == ["CC0"] and record["steps"] == 2 and record["volumes_seen"] == 8
    assert str(tmp_path) not in json.dumps(record)
    assert pipe.distribution == Distribution.of(train.covariates, train.measured)


def test_the_split_is_fixed_and_whole(pack):
    assert [part_of(f"hippocampus_{i:03d}.npz") for i in (1, 3, 7)] == [
        part_of(f"folder/hippocampus_{i:03d}.npz") for i in (1, 3, 7)
    ]
    names = [f"{i}.npz" for i in range(2000)]
    shares = {part: sum(part_of(name) == part for name in names) / 2000 for part in PARTS}
    assert shares == pytest.approx({"train": 0.8, "val": 0.1, "test": 0.1}, abs=0.03)
    parts = [
        set(read_volumes(pack, part).names)
        for part in PARTS
        if any(part_of(f"v{i:02d}.npz") == part for i in range(12))
    ]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 12


def test_reading_a_pack(pack):
    volumes = read_volumes(pack)
    assert volumes.images.shape == volumes.masks.shape == (12, *SHAPE)
    assert volumes.images.min() == -1 and volumes.images.max() == 1
    assert (volumes.covariates, volumes.axes, volumes.spacing) == (("anterior_mm3", "posterior_mm3"), "RAS", (1, 1, 1))
    assert volumes.measured[0, 0] == (volumes.masks[0] == 1).sum()
    assert normalise(np.zeros(SHAPE)).max() <= 1  # a blank volume is no division by zero


def test_bad_packs_and_settings(pack, text, tmp_path, capsys):
    with pytest.raises(ValueError, match="`part` is 'all'"):
        read_volumes(pack, "all")
    assert train_volumes.main(["--data", str(tmp_path), "--work", str(tmp_path), "--text", str(text)]) == 2
    assert train_volumes.main(["--data", str(pack), "--work", str(tmp_path), "--text", str(tmp_path)]) == 2
    assert train_volumes.main(["--data", str(pack), "--work", str(tmp_path), "--blocks", "20"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")][2].endswith("two or more multiples of 16")


def test_unwarped_volumes_are_only_shifted(pack):
    volumes = read_volumes(pack)
    batches = Batches(volumes.images, volumes.masks, 2, warped=0)
    clean, values, warped = batches.draw(np.arange(12), torch.Generator().manual_seed(0))
    assert clean.shape == (12, SHAPE[0] * 3, *SHAPE[1:]) and not warped.any()
    assert clean.min() >= -1 and clean.max() <= 1
    soft = clean.unflatten(1, (3, -1))[:, 1:] / 2 + 0.5
    assert (count_labels(soft) == values).all()
    again = batches.draw(np.arange(12), torch.Generator().manual_seed(0))[0]
    assert torch.equal(clean, again)


def test_warped_volumes_keep_their_side_and_tell_their_new_covariates():
    shape = (16, 24, 16)
    masks = np.zeros((8, *shape), np.uint8)
    masks[:, 3:8, 12:20, 5:11], masks[:, 3:8, 4:12, 5:11] = 1, 2
    batches = Batches(masks / 1.0 - 1, masks, 2, voxel=2.0, warped=1)
    clean, values, warped = batches.draw(np.arange(8), torch.Generator().manual_seed(0))
    assert warped.all() and values.std(0).min() > 5
    assert abs(values / 2 / np.array([240, 240]) - 1).max() < 0.5
    soft = clean.unflatten(1, (3, -1))[:, 1:]
    assert (soft[:, :, :8].mean((1, 2, 3, 4)) > soft[:, :, 8:].mean((1, 2, 3, 4))).all()  # never mirrored
    assert (soft[:, 0, :, 12:].mean((1, 2, 3)) > soft[:, 0, :, :12].mean((1, 2, 3))).all()


def test_captions_agree_with_the_volumes(pack):
    volumes = read_volumes(pack)
    known = Distribution.of(volumes.covariates, volumes.measured)
    rng = np.random.default_rng(0)
    for values in np.repeat(volumes.measured, 20, axis=0):
        numbers, bands = read_prompt(vary_caption(values, known, rng), known.names)
        z = dict(zip(known.names, known.standardise(values[None])[0], strict=True))
        assert all(value == values[known.names.index(name)] for name, value in numbers.items())
        assert all((z[name] > 0) == (size == "large") for name, size in bands.items() if size != "medium")


def test_errors_weigh_as_those_of_the_velocity():
    clean, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    noisy, timesteps, weight = train_volumes.corrupt(clean, noise, torch.tensor([0.3, 0.9]))
    sigma = (timesteps / 1000).view(-1, 1, 1, 1)
    guess = clean + 0.1
    velocity, guessed = noise - clean, (noisy - guess) / sigma
    assert torch.allclose((guessed - velocity).square().mean((1, 2, 3)), weight * 0.01, rtol=1e-3)
