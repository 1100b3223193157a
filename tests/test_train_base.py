"""The base's training, end to end at tiny length: every stage, the export, resuming after a break, captions."""

from __future__ import annotations

import csv
import itertools
import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image

from lora import base_autoencoder, base_rounds, base_unet, train_base
from lora.base_data import PACKS, draw_weights, load_images, read_rows
from lora.captions import vary_caption
from lora.checkpoint import load_checkpoint
from lora.perceptual import fold_normalisation, load_perceptual, perceptual_features, perceptual_loss
from pipeline.pipeline import SyntheticDicomPipeline

from .tiny import tiny_pipeline

LABELS = {
    "cxr_kermany": ("normal", "AP"),
    "cxr_nih": ("pneumonia", "PA"),
    "cxr_shenzhen_tb": ("tuberculosis", "PA"),
    "ct_lung_iqothnccd": ("benign", "axial"),
    "ct_chest_luad": ("contrast", "axial"),
    "ct_head_hemorrhage": ("normal", "axial"),
    "mri_brain_tumor": ("glioma", "coronal"),
    "blood_pbc": ("basophil", ""),
    "blood_malaria": ("uninfected", ""),
    "blood_rbc_chula": ("mostly_normal", ""),
    "blood_bccd": ("neutrophil", ""),
}
EXTRA = {"cxr_nih": {"findings": "Effusion|Pneumonia"}, "ct_chest_luad": {"window": "lung"}}
SMALL = {
    "sample_size": 32,
    "in_channels": 8,
    "out_channels": 8,
    "layers_per_block": 1,
    "block_out_channels": (16, 32),
    "norm_num_groups": 8,
    "cross_attention_dim": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 2,
}


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """Eleven packs of three small images each, with the columns of the real ones."""
    data = tmp_path_factory.mktemp("packs")
    rng = np.random.default_rng(0)
    for pack, (label, view) in LABELS.items():
        (data / pack / "images").mkdir(parents=True)
        with (data / pack / "metadata.csv").open("w", newline="") as handle:
            table = csv.DictWriter(
                handle,
                [
                    "file_name",
                    "modality",
                    "label",
                    "text",
                    "sex",
                    "age",
                    "view",
                    "split",
                    "source",
                    "licence",
                    "group_id",
                    "extra",
                ],
            )
            table.writeheader()
            for i in range(3):
                grey = np.add.outer(np.linspace(0, 150, 60), np.linspace(0, 80, 70)) + rng.random((60, 70)) * 20
                Image.fromarray(grey.astype(np.uint8)).save(data / pack / "images" / f"{i}.png")
                text = "light microscopy, single basophil" if pack == "blood_pbc" else f"{pack} microscopy, {label}"
                known = {"sex": "F", "age": "54"} if pack in ("cxr_nih", "ct_chest_luad") else {}
                row = {
                    "file_name": f"images/{i}.png",
                    "modality": "X",
                    "label": label,
                    "text": text,
                    "view": view,
                    "split": "val" if i == 2 else "train",
                }
                table.writerow(
                    {
                        **row,
                        **known,
                        "source": "made up",
                        "licence": "CC0",
                        "group_id": f"{pack}{i}",
                        "extra": json.dumps(EXTRA.get(pack, {})),
                    }
                )
    return data


@pytest.mark.usefixtures("fresh_accelerate")
def test_all_stages_and_the_export(packs, tmp_path, monkeypatch):
    monkeypatch.setattr(base_unet, "CONFIG", SMALL)
    monkeypatch.setattr(train_base, "SHEET_PROMPTS", train_base.SHEET_PROMPTS[:1])
    out = tmp_path / "model"
    options = [
        "--data",
        packs,
        "--work",
        tmp_path / "work",
        "--out",
        out,
        "--autoencoder-steps",
        2,
        "--decoder-steps",
        2,
        "--text-steps",
        2,
        "--unet-128-steps",
        2,
        "--unet-steps",
        2,
        "--rounds",
        2,
        "--round-steps",
        3,
        "--round-samples",
        2,
    ]
    assert train_base.main([str(o) for o in [*options, "--batch", 2, "--caption-variants", 1]]) == 0
    record = json.loads((out / "training.json").read_text())
    assert {p["pack"]: p["images"] for p in record["packs"]} == dict.fromkeys(PACKS, 2)
    assert all(p["licence"] == ["CC0"] for p in record["packs"])
    assert record["images_seen"] == 2 * 2 * 2 + 6 and record["stages"]["unet"]["steps"] == 2
    assert record["stages"]["rounds"]["steps"] == 6 and (tmp_path / "work" / "sheet-rounds.png").is_file()
    halves = {}
    for stage in ("unet", "rounds"):
        trained = UNet2DConditionModel(**SMALL)
        load_checkpoint(tmp_path / "work" / stage, {"ema": trained})
        halves[stage] = trained.conv_in.weight.half().float()
    assert set(record["autoencoder_psnr_val"]) == {*PACKS, *PACKS.values()}
    assert (out / "training_loss.png").stat().st_size > 1000
    assert list(tmp_path.glob("work/sheet-unet-*.png"))
    assert str(tmp_path) not in "".join(p.read_text() for p in out.rglob("*.json"))
    pipe = SyntheticDicomPipeline.from_pretrained(out)
    assert torch.equal(pipe.unet.conv_in.weight, halves["rounds"])
    assert not torch.equal(pipe.unet.conv_in.weight, halves["unet"])
    assert pipe("head CT", seed=1, num_inference_steps=2).dicoms[0].Rows == 256
    stock = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    assert stock("head CT", num_inference_steps=2).images[0].size == (256, 256)

    # Going on from what is shipped, without the checkpoints: same latents and captions, another denoiser.
    common = ["--data", packs, "--init", out, "--batch", 2, "--caption-variants", 1]
    more = ["--work", tmp_path / "more", "--out", tmp_path / "better", "--unet-steps", 2, "--snapshot-every", 1]
    more += ["--noise-shift", 1.2]
    assert train_base.main([str(o) for o in [*common, *more, "--stages", "unet", "export"]]) == 0
    better = SyntheticDicomPipeline.from_pretrained(tmp_path / "better")
    assert torch.equal(better.vae.decoder.conv_in.weight, pipe.vae.decoder.conv_in.weight)
    assert not torch.equal(better.unet.conv_in.weight, pipe.unet.conv_in.weight)
    later = json.loads((tmp_path / "better" / "training.json").read_text())
    assert later["config"]["noise_shift"] == 1.2
    assert later["earlier"] == [record["stages"]] and later["images_seen"] == record["images_seen"] + 2 * 2
    snapshots = sorted(tmp_path.glob("more/snapshots/*"))
    assert [s.name for s in snapshots] == ["unet-0000001", "unet-0000002"]
    taken = SyntheticDicomPipeline.from_pretrained(snapshots[-1])
    assert torch.equal(taken.unet.conv_in.weight, better.unet.conv_in.weight)
    assert json.loads((snapshots[-1] / "training.json").read_text())["seconds"] == later["seconds"]

    # Exported into what it came from, and exported again: nothing counts twice.
    again = [*common[:3], tmp_path / "better", *common[4:], "--work", tmp_path / "same", "--out", tmp_path / "better"]
    for _ in range(2):
        assert train_base.main([str(o) for o in [*again, "--unet-steps", 2, "--stages", "unet", "export"]]) == 0
        twice = json.loads((tmp_path / "better" / "training.json").read_text())
        assert twice["images_seen"] == later["images_seen"] + 2 * 2 and len(twice["earlier"]) == 2

    # Rounds start from what is shipped too; those of a denoiser that has since gone on are not exported.
    work = tmp_path / "same"
    few = ["--rounds", 1, "--round-steps", 1, "--round-samples", 1, "--unet-steps"]
    for steps, stages, kept in ((2, ("rounds",), True), (2, ("unet", "rounds"), True), (3, ("unet",), False)):
        assert train_base.main([str(o) for o in [*again, *few, steps, "--stages", *stages]]) == 0
        assert (work / "rounds.safetensors").is_file() == (work / "rounds.log.jsonl").is_file() == kept

    # The autoencoder goes on in the latent space that it has; the decoder alone changes no latent.
    more = ["--work", tmp_path / "decoder", "--out", tmp_path / "sharper", "--decoder-steps", 2, "--perceptual", 0.5]
    assert train_base.main([str(o) for o in [*common, *more, "--stages", "decoder", "export"]]) == 0
    log = (tmp_path / "decoder" / "decoder.log.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["perceptual"] > 0
    sharper = SyntheticDicomPipeline.from_pretrained(tmp_path / "sharper")
    assert torch.equal(sharper.vae.encoder.conv_in.weight, pipe.vae.encoder.conv_in.weight)
    assert not torch.equal(sharper.vae.decoder.conv_in.weight, pipe.vae.decoder.conv_in.weight)
    assert torch.equal(sharper.unet.conv_in.weight, pipe.unet.conv_in.weight)  # which none has trained since
    more = ["--work", tmp_path / "again", "--out", tmp_path / "again", "--autoencoder-steps", 2]
    assert train_base.main([str(o) for o in [*common, *more, "--stages", "autoencoder"]]) == 0
    again = AutoencoderKL.from_pretrained(tmp_path / "again" / "vae")
    assert again.config.scaling_factor == pipe.vae.config.scaling_factor
    assert not torch.equal(again.encoder.conv_in.weight, pipe.vae.encoder.conv_in.weight.float())


def decoder_of(folder, **options):
    """Decoder of a tiny run, from weights that are always the same, on two images of noise."""
    images = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    torch.manual_seed(0)
    start = base_autoencoder.build_autoencoder()
    options = {"steps": 3, "batch": 2, "crop": 32, "init": start, "decoder_only": True} | options
    model = base_autoencoder.train_autoencoder(images, np.full(2, 0.5), folder, **options)
    for name, parameter in start.encoder.named_parameters():
        assert torch.equal(parameter, model.encoder.get_parameter(name))
    return model.decoder.conv_out.weight


def test_critic_and_perceptual_loss_pull_the_decoder_only_where_asked_to(tmp_path, monkeypatch):
    monkeypatch.setattr(base_autoencoder, "CRITIC_AHEAD", 0)
    both = {"adversarial": 0.5, "perceptual": 0.5}
    asked = [{}, *({key: value} for key, value in both.items()), both]
    last = [decoder_of(tmp_path / "-".join(pulls), **pulls) for pulls in asked]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(last, 2))


def test_a_decoder_broken_off_ends_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(base_autoencoder, "CRITIC_AHEAD", 1)
    options = {"adversarial": 0.5, "perceptual": 0.5, "steps": 13, "save_every": 1}
    whole = decoder_of(tmp_path / "whole", **options)
    save = base_autoencoder.save_checkpoint

    def break_off(stem, models, optimizer, step, seconds):
        save(stem, models, optimizer, step, seconds)
        if step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(base_autoencoder, "save_checkpoint", break_off)
        decoder_of(tmp_path / "broken", **options)
    assert torch.equal(decoder_of(tmp_path / "broken", **options), whole)


def test_the_perceptual_loss_misses_what_blur_takes():
    rng = np.random.default_rng(0)
    real = torch.from_numpy(rng.uniform(-1, 1, (2, 3, 64, 64))).float()
    blurred = torch.nn.functional.avg_pool2d(real, 3, 1, 1)
    network = load_perceptual()
    assert perceptual_loss(network, real, real) == 0
    half, whole = (perceptual_loss(network, real.lerp(blurred, share), real) for share in (0.5, 1.0))
    assert 0 < half < whole
    assert [f.shape[2] for f in perceptual_features(network, real)] == [32, 16, 8, 4]


def test_folding_the_normalisation_changes_no_feature():
    lite = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    torch.manual_seed(0)
    network = lite.from_name("efficientnet-lite0").eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.running_mean, module.running_var, module.weight, module.bias):
                values.data.uniform_(0.5, 1.5)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = network.extract_features(images)
        fold_normalisation(network)
        after = network.extract_features(images)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    assert before.std() > 0 and torch.allclose(before, after, rtol=1e-3, atol=1e-4)


def test_absent_pack_is_a_clear_error(tmp_path, capsys):
    assert train_base.main(["--data", str(tmp_path), "--work", str(tmp_path)]) == 2
    assert "no pack 'cxr_kermany'" in capsys.readouterr().err


def test_a_broken_off_run_ends_with_the_same_weights(tmp_path):
    torch.manual_seed(0)
    latents, captions, empty = torch.randn(6, 8, 8, 8).half(), torch.randn(2, 6, 7, 128).half(), torch.zeros(7, 128)

    def train(folder, **options):
        init = UNet2DConditionModel(**SMALL)
        init.load_state_dict(start)
        return base_unet.train_unet(
            latents, captions, empty, np.full(6, 1 / 6), folder, steps=5, batch=2, save_every=1, init=init, **options
        )

    start = UNet2DConditionModel(**SMALL).state_dict()
    whole = train(tmp_path / "whole")

    def break_off(model, step, last):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", on_step=break_off)
    resumed = train(tmp_path / "broken")
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def rounds_of(folder, start, **options):
    """Rounds of the tiny pipeline, from weights given, with 6 latents near 1."""
    pipe = tiny_pipeline()
    pipe.unet.load_state_dict(start)
    shape = (pipe.unet.config.in_channels, pipe.unet.config.sample_size, pipe.unet.config.sample_size)
    draw = torch.Generator().manual_seed(0)
    latents = (1 + 0.1 * torch.randn(6, *shape, generator=draw)).half()
    captions = torch.randn(2, 6, 7, pipe.unet.config.cross_attention_dim, generator=draw).half()
    options = {"rounds": 2, "steps": 3, "samples": 4, "batch": 2, "save_every": 1} | options
    trained = base_rounds.train_rounds(
        pipe, latents, captions, torch.zeros(7, captions.shape[-1]), np.full(6, 1 / 6), folder, **options
    )
    return trained, latents.float(), captions[0].float()


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("kept", [1, 3, 4])
def test_broken_off_rounds_end_with_the_same_weights(tmp_path, monkeypatch, kept):
    start = tiny_pipeline().unet.state_dict()
    whole = rounds_of(tmp_path / "whole", start)[0]
    save = base_rounds.save_checkpoint

    def break_off(stem, models, optimizer, step, seconds):
        save(stem, models, optimizer, step, seconds)
        if step == kept:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(base_rounds, "save_checkpoint", break_off)
        rounds_of(tmp_path / "broken", start)
    resumed = rounds_of(tmp_path / "broken", start)[0]
    assert not torch.equal(whole.conv_in.weight, start["conv_in.weight"])
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="`round_samples` is 5, but"):
        rounds_of(tmp_path / "broken", start, samples=5)


@pytest.mark.usefixtures("fresh_accelerate")
def test_rounds_tell_real_images_from_own_samples(tmp_path):
    """The error of denoising falls on real images relative to that on own samples."""
    start = tiny_pipeline().unet.eval()
    trained, real, text = rounds_of(
        tmp_path, start.state_dict(), rounds=1, steps=40, learning_rate=1e-3, save_every=40, samples=6
    )
    kept = torch.nn.ParameterList([torch.zeros_like(real)])
    load_checkpoint(tmp_path / "rounds", {"own_samples": kept})
    assert kept[0].std() > 0
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(1))
    timesteps, gained = torch.full((6,), 500.0), []
    for clean in (real, kept[0]):
        with torch.no_grad():
            errors = [
                (unet(0.5 * clean + 0.5 * noise, timesteps, text).sample - (noise - clean)).square().mean()
                for unet in (start, trained)
            ]
        gained.append(float(errors[0] - errors[1]))
    assert gained[0] > gained[1]


def test_noise_shift_moves_the_noise_levels(tmp_path):
    """By default it follows from the latents' size: 0.5 for 8 by 8."""
    torch.manual_seed(0)
    latents, captions, empty = torch.randn(6, 8, 8, 8).half(), torch.randn(2, 6, 7, 128).half(), torch.zeros(7, 128)
    init = UNet2DConditionModel(**SMALL)
    trained = [
        base_unet.train_unet(
            latents, captions, empty, np.full(6, 1 / 6), tmp_path / str(shift), steps=2, init=init, noise_shift=shift
        ).conv_in.weight
        for shift in (None, 0.5, 2.0)
    ]
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def test_rotated_latents_are_tidy_and_decode_alike():
    torch.manual_seed(0)
    model = base_autoencoder.build_autoencoder().eval()
    images = base_autoencoder.to_tensor(np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3), dtype=np.uint8))
    with torch.no_grad():
        before = model(images).sample
        base_autoencoder.rotate_latents(model, base_autoencoder.encode_moments(model, images))
        latents = model.encode(images).latent_dist
        assert torch.allclose(before, model(images).sample, atol=1e-4)
        flat = latents.mean.permute(0, 2, 3, 1).reshape(-1, 8)
        covariance = torch.cov(flat.T)
        assert torch.allclose(flat.mean(0), torch.zeros(8), atol=1e-4)
        assert (covariance - torch.diag(covariance.diag())).abs().max() < 1e-4 * covariance.max() + 1e-6
        assert (covariance.diag().diff() <= 1e-6).all()
        assert latents.std.max() < 1e-4


def test_pca_bar_is_perfect_for_enough_components():
    images = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), dtype=np.uint8)
    assert base_autoencoder.pca_bar(images, images, patch=4, components=48).min() > 60
    few, more = (base_autoencoder.pca_bar(images, images, patch=4, components=k).mean() for k in (4, 16))
    assert few < more


def test_captions_vary_and_say_only_what_the_row_knows(packs):
    rows = read_rows(packs, split="train")
    rng = np.random.default_rng(0)
    for row in rows[::2]:
        captions = [vary_caption(row, rng) for _ in range(60)]
        assert len({c.text for c in captions}) > 15, row["pack"]
        for caption in captions:
            if row["sex"] == "F":
                assert not {"man", "male", "gentleman", "boy"} & set(caption.text.lower().replace(",", " ").split())
            else:
                assert "sex" not in caption.said
            if row["pack"] == "mri_brain_tumor":
                assert caption.said.get("view", "coronal") == "coronal" and "axial" not in caption.text.split()


def test_images_are_read_once_and_drawn_by_weight(packs, tmp_path):
    rows = read_rows(packs, split="train")
    images = load_images(rows, 32, tmp_path)
    assert images.shape == (22, 32, 32, 3) and images.dtype == np.uint8
    assert np.array_equal(images, load_images(rows, 32, tmp_path))
    other = tmp_path / "other.png"
    Image.fromarray(np.full((40, 40), 77, np.uint8)).save(other)  # another picture of the same name
    assert (load_images([{**rows[0], "path": str(other)}, *rows[1:]], 32, tmp_path)[0] == 77).all()
    weights = draw_weights(rows)
    assert weights.shape == (22,) and abs(weights.sum() - 1) < 1e-9
