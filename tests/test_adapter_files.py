"""Adapters as files: what is read of them, what is refused, their hash and their names."""

from __future__ import annotations

import pickle
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.adapter_files import adapter_of, adapter_sha256, check_adapter, read_adapter
from pipeline.adapter_names import check_name, fit_name

from .adapter_samples import ATTENTION, WEIGHTS, configured, filled, renamed, rewrite, save_adapter, wider, without
from .tiny import tiny_pipeline

# ---- files ----------------------------------------------------------------------------------------------------------


def test_reads_tensors_metadata_name_modality_and_hash(saved, tmp_path):
    adapter = read_adapter(saved["chest-xray"])
    assert (adapter.name, adapter.modality) == ("chest-xray", "chest-xray")
    assert (adapter.metadata["unet.r"], adapter.metadata["unet.lora_alpha"]) == (4, 8)
    assert "unet.conv_in.lora_A.weight" in adapter.state_dict and set(adapter.scalings.values()) == {2.0}
    assert read_adapter(saved["chest-xray"] / WEIGHTS).sha256 == adapter.sha256
    save_adapter(tmp_path / "my own: adapter!", ATTENTION)
    assert (read_adapter(tmp_path / "my own: adapter!").name, read_adapter(saved["style"]).modality) == (
        "my-own-adapter",
        None,
    )
    save_adapter(tmp_path / "x", ATTENTION, modality="Brain_MRI", name="mine", base_model_sha256="ab")
    adapter = read_adapter(str(tmp_path / "x"))
    assert (adapter.name, adapter.modality, adapter.metadata["base_model_sha256"]) == ("mine", "brain-mri", "ab")


def test_hash_is_of_values_names_and_scaling_alone(saved, tmp_path):
    tensors = load_file(saved["brain-mri"] / WEIGHTS)
    digest = read_adapter(saved["brain-mri"]).sha256
    assert digest == adapter_sha256(tensors) == adapter_sha256({k: v.float() for k, v in reversed(tensors.items())})
    old = {k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): v for k, v in tensors.items()}
    assert adapter_of(old).sha256 == digest  # alpha is the rank: the same without metadata
    save_adapter(tmp_path, ATTENTION, seed=2, alpha=8)
    assert read_adapter(tmp_path).sha256 != digest
    one = next(iter(tensors))
    assert adapter_sha256(tensors | {one: tensors[one] * 1.01}) != digest


def test_kohya_files_are_translated(saved):
    kohya = {}
    for key, tensor in load_file(saved["brain-mri"] / WEIGHTS).items():
        layer, _, kind = key.removesuffix(".weight").removeprefix("unet.").rpartition(".lora_")
        name = "lora_unet_" + layer.replace(".", "_")
        kohya |= {f"{name}.lora_{'down' if kind == 'A' else 'up'}.weight": tensor, f"{name}.alpha": torch.tensor(4.0)}
    assert adapter_of(kohya).sha256 == read_adapter(saved["brain-mri"]).sha256
    assert set(adapter_of(kohya | {k: v * 2 for k, v in kohya.items() if "alpha" in k}).scalings.values()) == {2.0}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A"), "incomplete"),
        (without("mid_block"), "incomplete"),
        (without("fc1"), "incomplete"),
        (renamed("unet.", "unet.base_model.model."), "another model"),
        (renamed("unet.", ""), "no LoRA tensor"),
        (renamed("unet.", "transformer."), "no LoRA tensor"),
        (renamed("text_encoder.", "text_encoder_2."), "no LoRA tensor"),
        (renamed("lora_A", "lora_magnitude_vector"), "no LoRA tensor"),
        (renamed("transformer_blocks.0", "transformer_blocks.9"), "another model"),
        (wider, "another model"),
        (filled(float("nan")), "not finite"),
        (filled(float("inf"), "lora_A"), "not finite"),
        (filled(1e300, dtype=torch.float64), "too large"),
        (filled(1, dtype=torch.int64), "floating-point"),
        (configured(r=8), "rank"),
        (configured(r="4"), "rank"),
        (configured(lora_alpha=0), "alpha"),
        (configured(lora_alpha=-1), "alpha"),
        (configured(lora_alpha=float("nan")), "alpha"),
        (configured(rank_pattern=[1]), "rank_pattern"),
        (configured(rank_pattern={f"layer{i}": 4 for i in range(2000)}), "rank_pattern"),
        (configured(target_modules="(a+)+(b+)+$"), "patterns"),
        (configured(target_modules=[["to_q"]]), "patterns"),
        (configured(rank_pattern={"(.*)*x": 4}), "patterns"),
        (configured(target_modules="["), "patterns"),
        (configured(use_dora=True), "use_dora"),
        (configured(bias="all"), "bias"),
        (configured(modules_to_save=["conv_out"]), "modules_to_save"),
        (configured(layer_replication=[[0, 4]]), "layer_replication"),
        (configured(target_modules=[*ATTENTION, "conv_out"]), "incomplete"),
    ],
)
def test_wrong_and_partial_files_raise_in_one_sentence_and_change_nothing(copied, change, says):
    rewrite(copied, change)
    pipe = tiny_pipeline()
    before, base = list(pipe.unet.state_dict()), pipe.model_sha256
    with pytest.raises(ValueError, match=f"`source`.*{says}") as raised:
        pipe.load_lora_weights(copied)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400
    assert list(pipe.unet.state_dict()) == before and pipe.model_sha256 == base
    assert pipe.get_list_adapters() == {} and pipe.adapters_in_use() == ()


def header_of(length: int, text: bytes = b"{}") -> bytes:
    return struct.pack("<Q", length) + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        header_of(2),
        header_of(10**18),
        header_of(2**63),
        header_of(2, b"[]"),
        header_of(4, b"nope"),
        header_of(50_000, b'{"a":' * 10_000),
        header_of(63, b'{"a":{"dtype":"F32","shape":[4000000000],"data_offsets":[0,16]}}' + b"\0" * 16),
        header_of(66, b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,99999999999]}}' + b"\0" * 16),
        pickle.dumps({"unet.conv_in.lora_A.weight": [1.0]}),
        b"PK\3\4" + b"\0" * 100,
    ],
)
def test_what_is_no_safetensors_is_refused(data, tmp_path):
    path = tmp_path / WEIGHTS
    path.write_bytes(data)
    with pytest.raises(ValueError, match="`source`"):
        read_adapter(tmp_path)


def test_truncated_and_lengthened_files_are_refused(copied):
    data = copied.read_bytes()
    for spoilt in (data[:-1], data[: len(data) // 2], data[:100], data + b"\0"):
        copied.write_bytes(spoilt)
        with pytest.raises(ValueError, match="no whole safetensors"):
            read_adapter(copied)


def test_pickles_sizes_and_strange_sources_are_refused(saved, tmp_path, monkeypatch):
    torch.save({"unet.conv_in.lora_A.weight": torch.zeros(1)}, tmp_path / "lora.bin")
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(ValueError, match="bytes; allowed are 1000"):
        read_adapter(saved["style"], max_bytes=1000)
    for source in (tmp_path / "lora.bin", tmp_path, tmp_path / "x.safetensors", tmp_path / "absent", "absent", "", 5):
        with pytest.raises(ValueError, match="`source`"):
            read_adapter(source)
    for source in ("a/b/c", "../x", "x" * 5000, "http://x/y", "org/name\0"):
        with pytest.raises(ValueError, match="`source`"):
            read_adapter(source)
    for options in ({"weight_name": "lora.bin"}, {"weight_name": "../x.safetensors"}, {"proxies": {}}):
        with pytest.raises(ValueError, match=next(iter(options))):
            read_adapter(saved["style"], **options)
    with pytest.raises(ValueError, match="cannot be had from the Hub"):
        read_adapter("org/name", cache_dir=tmp_path, local_files_only=True)


@pytest.mark.parametrize("config", ["nope", "[1]", "[" * 100_000, '"x"'])
def test_unreadable_configuration_is_refused(copied, config):
    save_file(load_file(copied), copied, metadata={"lora_adapter_metadata": config})
    with pytest.raises(ValueError, match="lora_adapter_metadata"):
        read_adapter(copied)


def test_state_dicts_are_checked_as_well(tiny):
    key = "down_blocks.4.attentions.1.transformer_blocks.9.attn1.to_q"
    sdxl = {f"unet.{key}.lora_{kind}.weight": torch.zeros(4, 4) for kind in "AB"}
    for state, says in (
        ({}, "no tensors"),
        ({"a": 5}, "no named tensor"),
        ({"lora.A": torch.zeros(1)}, "no LoRA tensor"),
        (sdxl, "another model"),
        ({"lora_unet_nonsense.lora_down.weight": torch.zeros(1)}, "kohya"),
    ):
        with pytest.raises(ValueError, match=f"`source`.*{says}"):
            check_adapter(adapter_of(state), tiny.unet, tiny.text_encoder)


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a/b", "a.b", "x" * 300, "", " ", "-a", "ü", "a:b", "a\\b", "type", "keys", 5])
def test_names_that_recipe_dicom_or_peft_cannot_hold_are_refused(saved, name):
    with pytest.raises(ValueError, match="`adapter_name`"):
        tiny_pipeline().load_lora_weights(saved["brain-mri"], adapter_name=name)


def test_names_made_of_anything_are_usable(saved, tmp_path):
    for text in ("", "...", "ünï", "x" * 300, "a/b", "-_-", "Doe^Jane"):
        assert check_name(fit_name(text))
    pipe = tiny_pipeline()
    folder = tmp_path / "type"
    shutil.copytree(saved["brain-mri"], folder)
    assert [pipe.load_lora_weights(folder) for _ in range(3)] == ["type-adapter", "type-adapter-2", "type-adapter-3"]
    with pytest.raises(ValueError, match="already loaded"):
        pipe.load_lora_weights(folder, adapter_name="type-adapter")
    for name in ("weight", "lora_A", "0", "to_q", "base_layer"):  # words that stand in peft's keys
        assert pipe.load_lora_weights(folder, adapter_name=name) == name
        assert pipe.adapters_in_use() == ((name, read_adapter(folder).sha256, 1.0),)
