"""Guidance distillation: the adapter draws at the default guidance what its start drew at another one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lora.objective import denoising_losses

from .test_lora_train import data, ends_the_same_when_broken_off, finished, run, trainers  # noqa: F401 (fixtures)

DISTIL = ("--distil-guidance", 8)


def test_it_learns_to_draw_at_the_default_as_its_start_at_the_other(data, finished, tiny_folder, tmp_path, trainers):  # noqa: F811
    out = tmp_path / "adapter"
    options = ("--init", finished, "--learning-rate", 0.002, "--batch", 8, "--validate-every", 20)
    assert run(data, out, tiny_folder, *DISTIL, *options, steps=40) == 0
    trainer, errors = trainers[0], []
    for weights in (trainer.losses.start, trainer.best):
        with trainer.weights(weights), torch.no_grad():
            errors.append(trainer.validation_loss.measure(trainer.pipe.unet).mean())
            # Mixed precision keeps what it has cast: a start that is the adapter itself would be as good as taught.
            with torch.autocast("cpu", torch.bfloat16):
                rounded = trainer.validation_loss.measure(trainer.pipe.unet).mean()
            assert rounded == pytest.approx(errors[-1], rel=0.5)
    assert errors[1] < 0.6 * errors[0]
    assert errors[1] == pytest.approx(trainer.history.best()["validation_loss"], abs=1e-5)

    record, card = (json.loads((out / "training.json").read_text()), (out / "README.md").read_text())
    assert record["config"]["distil_guidance"] == 8
    assert "taught to draw at guidance 2 what its start drew at 8" in card
    # The loss fell, which says nothing of how real the images look; KID was not measured.
    assert record["verdict"]["conclusion"] == "not measured"


def test_what_it_is_taught_is_told_by_the_start(data, finished, tiny_folder, tmp_path, trainers):  # noqa: F811
    """Nothing is to be learnt where both guidances are the same; else the loss is that of the guided predictions."""
    options = ("--init", finished, "--distil-guidance", 2, "--learning-rate", 1e-12)
    assert run(data, tmp_path / "adapter", tiny_folder, *options, steps=1) == 0
    trainer = trainers[0]
    losses = trainer.losses
    clean, noise, position, _ = trainer._draw_batch(0, None)
    text = trainer.encoded.embeddings[[0, int(trainer.encoded.plain[0])]].float()  # without and with caption
    noisy, timesteps, target = trainer.objective.corrupt(clean, noise, position)
    given = (trainer.pipe.unet, noisy, timesteps, text, target)
    with torch.no_grad(), trainer.weights(losses.start):
        assert losses(*given).abs().max() < 1e-10
        losses.guidance = 1.0
        empty = trainer.encoded.embeddings[:1].float().expand_as(text)
        named, free = (trainer.pipe.unet(noisy, timesteps, t, return_dict=False)[0] for t in (text, empty))
        found, expected = losses(*given), (named - free).square().mean((1, 2, 3))
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-9)
        assert found[0] < 1e-10 < 1e-8 < found[1]
    with torch.no_grad(), trainer.bare_base():  # not the start here
        losses.guidance = 2.0
        assert losses(*given).min() > 1e-10


def test_the_bare_base_is_the_model_without_adapter(data, finished, tiny_folder, tmp_path, trainers):  # noqa: F811
    assert run(data, tmp_path / "adapter", tiny_folder, "--init", finished, steps=1) == 0
    trainer = trainers[0]
    clean, noise, position, text = trainer._draw_batch(0, None)
    noisy, timesteps, target = trainer.objective.corrupt(clean, noise, position)
    unet = trainer.pipe.unet.eval()

    def errors() -> np.ndarray:
        return denoising_losses(unet, noisy, timesteps, text, target).numpy()

    with torch.no_grad():
        with_adapter = errors()
        with trainer.bare_base():
            bare = errors()
        assert np.array_equal(errors(), with_adapter)
        unet.disable_adapters()
        assert np.allclose(errors(), bare, rtol=1e-5) and not np.allclose(bare, with_adapter, rtol=1e-4)


def test_a_broken_off_distillation_ends_with_the_same_weights(data, finished, tiny_folder, tmp_path, monkeypatch):  # noqa: F811
    options = ("--init", finished, *DISTIL)
    ends_the_same_when_broken_off(data, tiny_folder, tmp_path, monkeypatch, 3, *options, steps=4)


def test_a_guidance_that_cannot_be_is_refused(data, tiny_folder, tmp_path, capsys):  # noqa: F811
    assert run(data, tmp_path / "adapter", tiny_folder, "--distil-guidance", 0) == 2
    assert "`distil_guidance` is 0.0; allowed is a number above 0" in capsys.readouterr().err
