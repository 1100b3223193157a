"""Noise that an autoencoder loses: measured, and drawn anew in generated images."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lora import image_noise
from lora.image_noise import choose_strength, fit_noise, measure_image_noise
from pipeline.pipeline import SyntheticDicomPipeline
from pipeline.pipeline_noise import BINS, add_image_noise, noise_like, smooth

from .tiny import tiny_pipeline

FIT = {"strength": 1.0, "level": [-3.0, 0, 0, 0, 0, 0], "lowest": 0.001, "highest": 0.5, "spectrum": [0.0] + [1.0] * 16}


def scenes(count: int, side: int, seed: int) -> torch.Tensor:
    """Smooth pictures (N, H, W) in [0.2, 0.8]."""
    rough = torch.randn(count, side, side, generator=torch.Generator().manual_seed(seed))
    even = smooth(rough)
    return (0.5 + 0.1 * even / even.std()).clamp(0.2, 0.8)


def coloured(grey: torch.Tensor) -> np.ndarray:
    return (grey[..., None].expand(*grey.shape, 3) * 255).numpy()


def test_strength_and_spectrum_are_found_again():
    clean = scenes(12, 128, 0)
    truth = {**FIT, "level": [-4.0, 1.5, 0, 0, 0, 0], "spectrum": [0.0] + [16.0 / n for n in range(1, BINS)]}
    noisy = torch.stack([one + noise_like(truth, one, seed) for seed, one in enumerate(clean)])
    fit = fit_noise(coloured(noisy), coloured(clean))
    drawn = torch.stack([noise_like(fit, one, 100 + seed) for seed, one in enumerate(clean)])
    lost = noisy - clean
    assert drawn.std().item() == pytest.approx(lost.std().item(), rel=0.1)
    bright, dark = clean > clean.quantile(0.9), clean < clean.quantile(0.1)
    wanted = lost[bright].std() / lost[dark].std()
    assert wanted > 1.2 and drawn[bright].std() / drawn[dark].std() == pytest.approx(wanted.item(), rel=0.1)
    spectrum, given = np.array(fit["spectrum"][2:-1]), np.array(truth["spectrum"][2:-1])
    assert np.corrcoef(np.log(spectrum), np.log(given))[0, 1] > 0.97


def test_the_strength_nearest_to_real_images_is_chosen():
    kinds = scenes(24, 64, 1), scenes(24, 64, 2)
    restored = coloured(kinds[0])
    real = [(one + noise_like(FIT, one, seed)).clamp(0, 1) for seed, one in enumerate(kinds[1])]
    strength, found = choose_strength(FIT, restored, (coloured(torch.stack(real))).astype(np.uint8), colour=False)
    assert strength >= 0.5 and found["0.0"] > 2 * found[str(strength)]
    strength, found = choose_strength(FIT, restored, coloured(kinds[1]).astype(np.uint8), colour=False)
    assert strength == 0


@pytest.mark.usefixtures("fresh_accelerate")
def test_noise_is_chosen_on_images_that_the_model_draws(monkeypatch):
    monkeypatch.setattr(image_noise, "STRENGTHS", (0.0, 1.0))
    monkeypatch.setattr(image_noise, "IMAGES", 44)
    asked = []
    draw = image_noise.draw_images
    monkeypatch.setattr(image_noise, "draw_images", lambda *given: asked.append(draw(*given)) or asked[-1])
    pipe = tiny_pipeline()
    rows = [{"text": "axial T1 brain MRI"}] * 44 + [{"text": "chest X-ray, PA view"}] * 5
    images = np.random.default_rng(0).integers(0, 256, (49, 64, 64, 3), dtype=np.uint8)
    found = measure_image_noise(pipe, rows, images)
    assert list(found["kid"]) == ["brain-mri"] and set(found["kid"]["brain-mri"]) == {"0.0", "1.0"}
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    assert [drawn.shape for drawn in asked] == [(22, side, side, 3)]
    assert len(np.unique(asked[0].reshape(22, -1), axis=0)) == 22  # each caption has a seed of its own
    fits = found["image_noise"]
    best = min(found["kid"]["brain-mri"], key=found["kid"]["brain-mri"].get)
    assert fits.get("brain-mri", {"strength": 0.0})["strength"] == float(best)


def test_noise_follows_the_seed_and_leaves_other_images_alone():
    images = torch.full((3, 3, 64, 48), 0.5)
    noisy = add_image_noise(images, [FIT, None, FIT], [1, 2, 3])
    assert torch.equal(noisy[1], images[1]) and not torch.equal(noisy[0], noisy[2])
    assert torch.equal(noisy[0], add_image_noise(images[:1], [FIT], [1])[0])
    assert torch.equal(noisy[0, 0], noisy[0, 2])  # grey stays grey
    assert (noisy[0] - 0.5).std().item() == pytest.approx(np.exp(-3), rel=0.05)
    assert abs((noisy[0] - 0.5).mean().item()) < 1e-3


def test_pipeline_draws_its_noise_and_keeps_it(tmp_path):
    plain, noisy = tiny_pipeline(), tiny_pipeline()
    noisy.register_to_config(image_noise={"brain-mri": FIT})
    assert plain.model_sha256 != noisy.model_sha256
    prompts = ["axial T1 brain MRI", "chest X-ray, PA view"]
    one, other = (pipe(prompts, seed=5, num_inference_steps=2, output_type="np").images for pipe in (plain, noisy))
    assert np.array_equal(one[1], other[1])
    added = other[0] - one[0]
    assert added.std() > 0.02
    alone = noisy(prompts[0], seed=5, num_inference_steps=2, output_type="np").images
    assert np.array_equal(alone[0], other[0])
    noisy.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "model_index.json").read_text())["image_noise"] == {"brain-mri": FIT}
    again = SyntheticDicomPipeline.from_pretrained(tmp_path / "saved")
    assert again.model_sha256 == noisy.model_sha256
    assert np.array_equal(again(prompts[0], seed=5, num_inference_steps=2, output_type="np").images, alone)
