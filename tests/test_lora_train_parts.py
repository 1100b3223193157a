"""The parts of an adapter's training: options, objectives, the check for copies, when to stop, the verdict."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from lora.adapter_record import guess_modality
from lora.config import AdapterConfig, add_options, parse_config
from lora.data import TrainingData, read_training_data
from lora.encoding import choose_prompts
from lora.objective import Objective, learning_rate_at
from lora.own_samples import OwnSamples, discriminative_loss
from lora.run_history import RunHistory
from lora.samples import CopyCheck, decode, write_sheet
from lora.verdict import paired_difference

from .test_lora_train import CAPTIONS, make_folder
from .tiny import tiny_pipeline


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "pictures")


def test_every_setting_is_an_option_with_help():
    parser = argparse.ArgumentParser()
    add_options(parser, AdapterConfig)
    assert {action.dest for action in parser._actions if action.help} >= {
        f.name for f in dataclasses.fields(AdapterConfig)
    }
    config = parse_config(["--data", "a", "b", "--out", "lora/x", "--rank", "4", "--sample-prompts", "one", "two"], "")
    assert config.data == ("a", "b") and config.rank == 4 and config.sample_prompts == ("one", "two")
    assert config == dataclasses.replace(
        AdapterConfig(("a", "b"), Path("lora/x")), rank=4, sample_prompts=("one", "two")
    )
    assert "data" not in config.public() and "out" not in config.public() and "model" not in config.public()


def test_objectives_predict_what_the_scheduler_asks_for():
    torch.manual_seed(0)
    clean, noise, position = torch.randn(6, 4, 8, 8), torch.randn(6, 4, 8, 8), torch.linspace(0.01, 0.99, 6)
    flow = Objective.of(tiny_pipeline().scheduler, 32)
    noisy, timesteps, target = flow.corrupt(clean, noise, position)
    sigma = (timesteps / 1000).view(-1, 1, 1, 1)
    assert torch.allclose(noisy - sigma * target, clean, atol=1e-5) and (timesteps.diff() > 0).all()
    middle = Objective.of(tiny_pipeline().scheduler, 16).corrupt(clean, noise, torch.full((6,), 0.5))[1]
    assert torch.allclose(middle, torch.full((6,), 500.0))  # logit-normal: half of the levels below a half
    shifted = Objective.of(tiny_pipeline().scheduler, 16, 0.25).corrupt(clean, noise, torch.full((6,), 0.5))[1]
    assert torch.allclose(shifted, torch.full((6,), 200.0))  # below 1: less noise
    for kind in ("epsilon", "v_prediction", "sample"):
        scheduler = DDPMScheduler(prediction_type=kind, beta_schedule="scaled_linear", clip_sample=False)
        noisy, timesteps, target = Objective.of(scheduler, 32).corrupt(clean, noise, position)
        for i, t in enumerate(timesteps):  # the scheduler finds the clean image from a perfect prediction
            found = scheduler.step(target[i : i + 1], t, noisy[i : i + 1]).pred_original_sample
            assert torch.allclose(found, clean[i : i + 1], atol=2e-2)
        with pytest.raises(ValueError, match="`noise_shift` is 0.5"):
            Objective.of(scheduler, 32, 0.5)
    with pytest.raises(ValueError, match="prediction_type"):
        Objective.of(type("Odd", (), {"config": {"prediction_type": "score"}}), 32)


def test_learning_rate_rises_holds_and_falls():
    rates = [learning_rate_at(step, 1000, 1.0) for step in range(1000)]
    assert rates[0] == 1 / 50 and rates[50] == rates[700] == 1.0 and 0 < rates[-1] < 0.02
    assert all(0 < learning_rate_at(step, 2, 1.0) <= 1 for step in range(2))


def test_copies_of_training_images_are_found():
    torch.manual_seed(0)
    latents, groups = torch.randn(40, 4, 16, 16), np.repeat(np.arange(20), 2)
    validation = groups >= 15
    check = CopyCheck(latents, groups, validation)
    new = torch.randn(5, 4, 16, 16)
    copies = latents[:5] + 0.1 * torch.randn(5, 4, 16, 16)
    assert check.count(torch.cat([new, copies])) == 5
    alone = CopyCheck(latents, groups, np.zeros(40, bool))
    assert alone.count(torch.cat([new, copies])) == 5
    # Near twins of the same person do not lower the bar to nothing.
    twins = latents.clone()
    twins[1::2] = twins[::2] + 0.001
    assert CopyCheck(twins, groups, np.zeros(40, bool)).count(torch.cat([new, twins[:5]])) == 5
    assert CopyCheck(latents, np.zeros(40, int), np.zeros(40, bool)).count(copies) == 5


def history(*losses: float, copies: dict[int, int] | None = None) -> list[dict[str, Any]]:
    found = copies or {}
    return [{"step": i, "validation_loss": v, "copies": found.get(i, 0), "samples": 8} for i, v in enumerate(losses)]


@pytest.mark.parametrize(
    ("past", "kept", "reason"),
    [
        (history(1.0), None, None),
        (history(1.0, 0.9, 0.8), 2, None),
        (history(1.0, 0.9, 0.8, 0.85, 0.81), 2, "validation loss no longer falls"),
        (history(1.0, 1.1, 1.2, 1.3), 1, "validation loss no longer falls"),
        (history(1.0, 0.9, 0.8, copies={2: 3}), 1, "samples copy training images"),
        (history(1.0, 0.9, 0.8, copies={2: 2}), 2, None),
        (history(1.0, 0.9, 0.8, copies={0: 4, 1: 4, 2: 4}), 2, None),  # the bare base makes as many
        (history(1.0, 0.9, copies={1: 8}), None, "samples copy training images"),
    ],
)
def test_when_to_stop_and_what_to_keep(past, kept, reason):
    told = RunHistory(AdapterConfig(("x",), Path("x"), patience=2, steps=100))
    told.records = past
    best = told.best()
    assert (None if best is None else best["step"]) == kept
    assert told.stop_reason(len(past)) == reason


def with_rounds(past: list[dict[str, Any]], *copies: int) -> list[dict[str, Any]]:
    """`past`, and behind it rounds of ten steps, each with a worse loss and some copies."""
    end, loss = past[-1]["step"], past[-1]["validation_loss"]
    added = [
        {"step": end + 10 * n, "validation_loss": loss + n, "copies": c, "samples": 8, "round": n}
        for n, c in enumerate(copies, 1)
    ]
    return past + added


PLAIN = history(1.0, 0.9, 0.8, 0.85, 0.81)  # ends at step 4 as the loss no longer falls, best is step 2


@pytest.mark.parametrize(
    ("past", "steps", "begun", "kept", "reason"),
    [
        (history(1.0, 0.9, 0.8), 100, None, 2, None),
        (history(1.0), 0, 0, None, None),
        (PLAIN, 100, 4, 2, None),
        (with_rounds(PLAIN, 0), 100, 4, 14, None),
        (with_rounds(PLAIN, 0, 2), 100, 4, 24, "all rounds done"),
        (with_rounds(PLAIN, 0, 3), 100, 4, 14, "samples copy training images"),
        (with_rounds(PLAIN, 3), 100, 4, 2, "samples copy training images"),
        (with_rounds(history(1.0), 0, 0), 0, 0, 20, "all rounds done"),
    ],
)
def test_rounds_follow_plain_denoising_and_the_last_without_copies_is_kept(past, steps, begun, kept, reason):
    told = RunHistory(AdapterConfig(("x",), Path("x"), patience=2, steps=steps, rounds=2, round_steps=10))
    told.records, step = past, past[-1]["step"]
    best = told.best()
    assert (None if best is None else best["step"]) == kept
    assert told.rounds_begin() == begun and told.stop_reason(step) == reason


def test_discriminative_loss_wants_real_images_nearer_and_own_samples_farther_than_the_reference():
    reference = torch.tensor([[0.4, 0.4], [0.3, 0.3]])
    same = discriminative_loss(reference, reference)
    assert torch.allclose(same, torch.full((2,), 2 * math.log(2)))
    errors = reference.clone().requires_grad_()
    discriminative_loss(errors, reference).sum().backward()
    assert (errors.grad[0] > 0).all() and (errors.grad[1] < 0).all()
    shift = torch.tensor([[-0.01, 0.01], [0.01, -0.01]])
    better, worse = discriminative_loss(reference + shift, reference)
    assert better < same[0] < worse


def test_difference_is_taken_by_person():
    rng = np.random.default_rng(0)
    before, people = rng.random(40) + 1, np.arange(40)
    helped = paired_difference(before, before - 0.1 + 0.02 * rng.standard_normal(40), people)
    assert helped["low"] < helped["difference"] < helped["high"] < 0
    nothing = paired_difference(before, before + 0.1 * rng.standard_normal(40), people)
    assert nothing["low"] < 0 < nothing["high"]
    # Forty images of two people say less than forty people.
    two = paired_difference(before, before - 0.1 + np.where(people < 20, 0.2, -0.1), people // 20)
    assert two["low"] < 0 < two["high"]


def test_prompts_shared_by_most_people_come_first(data):
    read = read_training_data([data], size=64)
    prompts = choose_prompts(read, 5)
    assert prompts == [CAPTIONS[0], CAPTIONS[1]] and len(choose_prompts(read, 1)) == 1


def test_modality_is_guessed_from_the_captions(data):
    read = read_training_data([data], size=64)

    def of(*captions: str) -> str | None:
        changed: TrainingData = dataclasses.replace(read, captions=captions * (len(read) // len(captions)))
        return guess_modality(changed)

    assert guess_modality(read) == "chest-xray"
    assert of("chest CT, lung window", "head CT") == "ct"
    assert of("fluorescence microscopy, nuclei", "histology, nuclei, H&E") == "nuclei"
    assert of("chest X-ray", "brain MRI") is None and of("a thing") is None


def test_own_samples_have_their_captions_in_all_wordings_as_real_images_do():
    wordings = np.arange(40).reshape(4, 10)  # four of each of ten images
    encoded = SimpleNamespace(latents=torch.zeros(10, 1, 2, 2), wordings=wordings, plain=np.arange(10))
    config = SimpleNamespace(seed=0, round_samples=2000)
    own = OwnSamples(SimpleNamespace(config=config, lora=[], encoded=encoded, training=np.arange(8)))
    drawn = own.captions(0)
    assert set(drawn) == set(wordings[:, :8].ravel()), "of training images only"
    assert np.bincount(drawn // 10, minlength=4).min() > 400
    assert np.array_equal(drawn, own.captions(0)) and not np.array_equal(drawn, own.captions(1))


def test_sheet_says_synthetic_and_leaves_no_part(tmp_path):
    images = np.full((5, 64, 64, 3), 128, np.uint8)
    write_sheet(images, tmp_path / "sheets" / "one.jpg")
    sheet = np.asarray(Image.open(tmp_path / "sheets" / "one.jpg"))
    assert sheet.shape == (128, 256, 3) and sheet[:64, :64].max() > 200 and sheet[:64, :64].min() < 50
    assert [path.name for path in (tmp_path / "sheets").iterdir()] == ["one.jpg"]


def test_noise_of_a_modality_is_drawn_as_the_pipeline_draws_it():
    pipe = tiny_pipeline()
    fit = {
        "level": [-2.0, 0, 0, 0, 0, 0],
        "lowest": 0.01,
        "highest": 0.5,
        "spectrum": [0.0] + [1.0] * 16,
        "strength": 1,
    }
    pipe.register_to_config(image_noise={"ct-head": fit})
    prompts = ["axial CT of the head, brain window", "chest X-ray, PA view"]
    with torch.no_grad():
        latents = pipe(prompts, seed=[3, 4], output_type="latent", num_inference_steps=2).images
        wanted = pipe(prompts, seed=[3, 4], output_type="pt", num_inference_steps=2).images.mean(1)
    found = decode(pipe.vae, latents.cpu().float(), torch.device("cpu"), [fit, None], [3, 4]).mean(3) / 255
    plain = decode(pipe.vae, latents.cpu().float(), torch.device("cpu")).mean(3) / 255
    assert np.abs(found - wanted.numpy()).max() < 0.02
    assert np.abs(found - plain)[0].mean() > 0.02 and (found == plain)[1].all()
