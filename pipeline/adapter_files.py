"""Adapters (LoRA) as files: read and checked before a tensor reaches the model, and hashed.

diffusers and peft take a file that does not fit with a warning or with none: unknown keys are passed over, missing
ones stay random, and of a file that mixes peft's and diffusers' names half is lost. Here all of that is an error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load

from . import adapter_names, dicom_profiles

known_modality = dicom_profiles.known_modality

MAX_BYTES = 512 * 2**20
MAX_HEADER, MAX_TENSORS = 8 * 2**20, 20_000  # an adapter of every layer of Stable Diffusion has some 1,500
PARTS = ("text_encoder", "unet")

_CONFIG_KEY = "lora_adapter_metadata"  # where diffusers writes peft's LoraConfig, as JSON
_KEY = re.compile(r"(unet|text_encoder)\.([\w.]+)\.lora_([AB])\.weight")
# diffusers' names beside peft's, and the prefix that text encoders had before transformers 5.
_OTHER_NAMES = (
    (".lora.down.", ".lora_A."),
    (".lora.up.", ".lora_B."),
    (".lora_linear_layer.down.", ".lora_A."),
    (".lora_linear_layer.up.", ".lora_B."),
    ("text_encoder.text_model.", "text_encoder."),
)
_OLD_ATTENTION = re.compile(r"(?:\.processor)?\.to_(q|k|v|out)_lora\.")  # of diffusers before 0.22, and out of kohya's
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# What of a LoraConfig decides which layers are adapted and how strongly; and what would change the model otherwise.
_USED = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "use_rslora"}
_REFUSED = {
    "bias": "none", "lora_bias": False, "use_dora": False, "modules_to_save": None, "layer_replication": None,
    "layers_to_transform": None, "target_parameters": None, "trainable_token_indices": None, "fan_in_fan_out": False,
}  # fmt: skip
# Patterns of a file are regular expressions to peft. Without groups and counts none of them can take forever.
_PATTERN = re.compile(r"[\w.^$\\|-]*(?:\.\*[\w.^$\\|-]*){0,3}")


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter as read from a file, not yet held against a model.

    Attributes
    ----------
    state_dict : dict of str to torch.Tensor
        Tensors under peft's names with the part of the model before them: `unet.mid_block. ... .to_q.lora_A.weight`,
        `text_encoder. ... .lora_B.weight`. Files in diffusers' or kohya's names are translated.
    metadata : dict
        The peft LoraConfig that diffusers writes (`unet.r`, `unet.lora_alpha`, `unet.target_modules`, ...), and the
        file's other safetensors metadata (`modality`, `name`, `base_model_sha256`); empty where the file has none.
    sha256 : str
        `adapter_sha256` with the scalings: what a recipe names.
    modality : str or None
        The file's "modality" where it names one, else `name` where that is a modality's name.
    name : str
        The file's "name", else the name of the folder or file, fit for recipes and DICOM text.
    scalings : dict of str to float
        alpha / rank of every layer, by `unet. ... .to_q`.
    """

    state_dict: dict[str, torch.Tensor]
    metadata: dict[str, Any]
    sha256: str
    modality: str | None
    name: str
    scalings: dict[str, float] = dataclasses.field(default_factory=dict)

    def named(self, name: str) -> Adapter:
        """The same adapter under a name of the caller's, which may tell its modality where the file does not."""
        modality = known_modality(str(self.metadata.get("modality", ""))) or known_modality(name) or self.modality
        return dataclasses.replace(self, name=adapter_names.check_name(name), modality=modality)

    def part(self, part: str) -> dict[str, torch.Tensor]:
        """The tensors of one part of the model, keys without its name."""
        return {key.removeprefix(f"{part}."): t for key, t in self.state_dict.items() if key.startswith(f"{part}.")}


def read_adapter(
    source: str | Path, *, weight_name: str = adapter_names.WEIGHT_NAME, max_bytes: int = MAX_BYTES, **hub: Any
) -> Adapter:
    """Read an adapter and check all that can be checked without the model.

    Parameters
    ----------
    source : str or pathlib.Path
        A folder that holds `weight_name`, a .safetensors file, or a Hub id ORG/NAME (the only case that may use the
        network).
    weight_name : str
        Name of the file in the folder or Hub repository.
    max_bytes : int
        A larger file is not read.
    **hub
        `revision`, `subfolder`, `token`, `cache_dir`, `force_download`, `local_files_only` of `hf_hub_download`.

    Returns
    -------
    Adapter
        Its `sha256` is the one that recipes name: after training, read the file again for it.

    Raises
    ------
    ValueError
        In one sentence: no such file, no safetensors, too large, no LoRA, unusable metadata.
    """
    known = {"revision", "subfolder", "token", "cache_dir", "force_download", "local_files_only"}
    if unknown := sorted(set(hub) - known):
        raise ValueError(
            f"`{unknown[0]}` is no argument of `read_adapter`; of the Hub's it takes {', '.join(sorted(known))}"
        )
    path, name = _find(source, weight_name, max_bytes, hub)
    if path.stat().st_size > max_bytes:
        raise ValueError(f"`source` has {path.stat().st_size} bytes; allowed are {max_bytes}")
    data = path.read_bytes()
    damaged = "`source` is no whole safetensors file"  # its name is not repeated: it may be a patient's
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        raise ValueError(damaged)
    if length > MAX_HEADER:
        raise ValueError(f"{damaged}: its header is longer than the {MAX_HEADER} bytes allowed")
    try:
        header = json.loads(data[8 : 8 + length])
        if not isinstance(header, dict) or len(header) > MAX_TENSORS + 1:
            raise ValueError(f"the header names no tensors, or more than {MAX_TENSORS}")
        tensors = load(data)
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OverflowError, RecursionError):
        tensors = None
    if tensors is None:  # outside the handler: what it said may hold text of the file
        raise ValueError(damaged)
    return adapter_of(tensors, header.get("__metadata__") or {}, name)


def adapter_of(
    state_dict: Mapping[str, torch.Tensor], header: Mapping[str, str] | None = None, name: str = "adapter"
) -> Adapter:
    """Make an adapter of tensors at hand; `header` is the metadata that a safetensors file would have."""
    metadata = {key: value for key, value in (header or {}).items() if key not in (_CONFIG_KEY, "format")}
    if config := (header or {}).get(_CONFIG_KEY):
        try:
            parsed = json.loads(config)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"`source` has metadata {_CONFIG_KEY!r} that is not JSON") from error
        if not isinstance(parsed, dict):
            raise ValueError(f"`source` has metadata {_CONFIG_KEY!r} that is no JSON object")
        metadata |= parsed
    tensors, alphas = _translated(state_dict)
    for key, tensor in tensors.items():
        if tensor.dtype not in _FLOATS:
            raise ValueError(f"`source` holds {key} as {tensor.dtype}; allowed are floating-point numbers")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"`source` holds values in {key} that are not finite")
    scalings = _scalings(tensors, alphas, metadata)
    name = adapter_names.fit_name(str(metadata.get("name") or name))
    modality = known_modality(str(metadata.get("modality", ""))) or known_modality(name)
    return Adapter(tensors, metadata, adapter_sha256(tensors, scalings), modality, name, scalings)


def check_adapter(adapter: Adapter, unet: torch.nn.Module, text_encoder: torch.nn.Module | None) -> None:
    """Hold an adapter against the model that is to take it.

    Raises
    ------
    ValueError
        In one sentence, naming the first layer: a layer that the model does not have, a shape that does not fit, a
        layer that the file's own configuration names and the file lacks, values too large for the model's precision.
    """
    for part, model in (("unet", unet), ("text_encoder", text_encoder)):
        tensors = adapter.part(part)
        layers = base_layers(model) if model is not None else {}
        for key, tensor in tensors.items():
            layer, _, kind = key.removesuffix(".weight").rpartition(".lora_")
            if layer not in layers:
                raise ValueError(f"`source` was made for another model: this one has no layer {part}.{layer} to adapt")
            weight: Any = layers[layer].weight
            rank = tensors[f"{layer}.lora_A.weight"].shape[0]
            shape = (rank, *weight.shape[1:]) if kind == "A" else (weight.shape[0], rank, *[1] * (weight.ndim - 2))
            if tuple(tensor.shape) != shape:
                raise ValueError(
                    f"`source` was made for another model: {part}.{key} has shape {tuple(tensor.shape)}, but this "
                    f"model's layer takes {shape}"
                )
            if not torch.isfinite(tensor.to(weight.dtype)).all():
                raise ValueError(f"`source` has values in {part}.{key} too large for the model's {weight.dtype}")
        if tensors and (config := _config(adapter.metadata, part)) is not None and config.target_modules:
            adapted = {key.rpartition(".lora_")[0] for key in tensors}
            for layer in layers:
                named = check_target_module_exists(config, layer)  # True, a match, or an object for an excluded layer
                if layer not in adapted and (named is True or isinstance(named, re.Match)):
                    raise ValueError(
                        f"`source` is incomplete: its configuration names layer {part}.{layer}, but it has no tensors "
                        "for it"
                    )


def base_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The layers of a model that can be adapted, by the names they have without adapters."""
    return {
        name.replace(".base_layer", "").removeprefix("text_model."): module
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
        and not re.search(r"\.lora_[AB]\.", name)
        and getattr(module, "groups", 1) == 1
    }


def adapter_sha256(state_dict: Mapping[str, torch.Tensor], scalings: Mapping[str, float] | None = None) -> str:
    """Hash an adapter: the same for a file and for what it became in a model of full precision.

    Parameters
    ----------
    state_dict : mapping of str to torch.Tensor
        Under peft's or diffusers' names, which begin with "unet." or "text_encoder.". Values count as float32, so a
        half-precision file and its copy in a full-precision model hash alike.
    scalings : mapping of str to float, optional
        alpha / rank by layer. Only what differs from 1 counts: where alpha is the rank, it need not be given.
    """
    digest = hashlib.sha256()
    tensors = {_peft_name(key): tensor for key, tensor in state_dict.items()}
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    for layer, scaling in sorted((scalings or {}).items()):
        if (written := f"{scaling:.6g}") != "1":
            digest.update(f"{layer} {written}".encode())
    return digest.hexdigest()


def _find(source: str | Path, weight_name: str, max_bytes: int, hub: dict[str, Any]) -> tuple[Path, str]:
    """The file that a source means, and the name that the source suggests."""
    allowed = "allowed are a folder, a .safetensors file and a Hub id such as org/name"
    if not isinstance(source, (str, Path)) or not str(source).strip() or "\0" in str(source):
        raise ValueError(f"`source` is {type(source).__name__} {str(source)[:80]!r}; {allowed}")
    if not weight_name.endswith(".safetensors") or Path(weight_name).name != weight_name:
        raise ValueError(f"`weight_name` is {weight_name!r}; allowed is the name of a .safetensors file")
    path = Path(source)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # a name longer than the file system allows
        raise ValueError(f"`source` is {str(source)[:80]!r}, which does not exist; {allowed}") from error
    if is_folder:
        file = path / str(hub.get("subfolder") or "") / weight_name
        if not file.is_file():
            raise ValueError(f"`source` is a folder without {weight_name}")
        return file, path.resolve().name
    if is_file:
        if path.suffix != ".safetensors":
            raise ValueError(f"`source` is a file {path.suffix or 'without suffix'!r}; {allowed}")
        return path, path.absolute().parent.name if path.name == adapter_names.WEIGHT_NAME else path.stem
    if path.exists() or not adapter_names.is_hub_id(str(source)):
        raise ValueError(f"`source` is {str(source)[:80]!r}, which is no adapter; {allowed}")
    return _downloaded(str(source), weight_name, max_bytes, hub), path.name


def _downloaded(repository: str, weight_name: str, max_bytes: int, hub: dict[str, Any]) -> Path:
    """Fetch one file of a Hub repository, having asked for its size; from the cache where there is no network."""
    try:
        if not hub.get("local_files_only"):
            where = {key: hub[key] for key in ("revision", "subfolder") if hub.get(key)}
            try:
                size = get_hf_file_metadata(hf_hub_url(repository, weight_name, **where), token=hub.get("token")).size
            except Exception:  # no network, or no such file: the next call says which, or finds it in the cache
                size = None
            if size is not None and size > max_bytes:
                raise ValueError(f"`source` has {size} bytes; allowed are {max_bytes}")
        return Path(hf_hub_download(repository, weight_name, **hub))
    except OSError as error:
        reason = type(error).__name__
        raise ValueError(f"`source` {repository!r}: {weight_name} cannot be had from the Hub ({reason})") from error


def _peft_name(key: str) -> str:
    key = _OLD_ATTENTION.sub(lambda old: f".to_{old[1]}{'.0' if old[1] == 'out' else ''}.lora.", key)
    for other, name in _OTHER_NAMES:
        key = key.replace(other, name)
    return key


def _translated(state_dict: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Tensors under peft's names, in pairs, and the alphas by layer that kohya's format holds as tensors."""
    state, alphas = dict(state_dict), {}
    if not state:
        raise ValueError("`source` holds no tensors")
    if wrong := [key for key, value in state.items() if not isinstance(key, str) or not torch.is_tensor(value)]:
        raise ValueError(f"`source` holds {str(wrong[0])[:80]!r}, which is no named tensor")
    if all(key.startswith(("lora_unet_", "lora_te_")) for key in state):
        try:
            state, alphas, _ = StableDiffusionPipeline.lora_state_dict(state, return_lora_metadata=True)
        except (ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
            raise ValueError("`source` is in kohya's format, and diffusers cannot translate it") from error
    tensors: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        name = _peft_name(key)
        if not _KEY.fullmatch(name) or name in tensors:
            raise ValueError(
                f"`source` holds {key[:120]!r}, which is no LoRA tensor of a Stable Diffusion UNet or text encoder"
            )
        tensors[name] = tensor
    for name in tensors:
        twin = name.replace(".lora_A.", ".lora_B.") if ".lora_A." in name else name.replace(".lora_B.", ".lora_A.")
        if twin not in tensors:
            raise ValueError(f"`source` is incomplete: it holds {name} but not {twin}")
    return tensors, {re.split(r"\.lora_A\.|\.alpha$", _peft_name(k))[0]: float(a) for k, a in (alphas or {}).items()}


def _scalings(
    tensors: Mapping[str, torch.Tensor], alphas: Mapping[str, float], metadata: Mapping[str, Any]
) -> dict[str, float]:
    """Give alpha / rank of every layer: by the configuration, else by alphas in the file, else 1, as diffusers does."""
    configs = {part: _config(metadata, part) for part in PARTS}
    scalings = {}
    for key, tensor in tensors.items():
        if ".lora_A." not in key:
            continue
        layer, rank = key.rpartition(".lora_A.")[0], tensor.shape[0] if tensor.ndim else 0
        part, _, name = layer.partition(".")
        config, alpha = configs[part], alphas.get(layer, float(rank))
        if config is not None:
            claimed = _of_layer(config.rank_pattern, name, config.r)
            alpha = _of_layer(config.alpha_pattern, name, config.lora_alpha)
            if claimed != rank:
                raise ValueError(f"`source` says that {layer} has rank {claimed}, but its tensor has rank {rank}")
        if not (math.isfinite(alpha) and alpha > 0 and rank > 0):
            raise ValueError(f"`source` gives {layer} rank {rank} and alpha {alpha}; both must be above 0")
        scalings[layer] = alpha / (math.sqrt(rank) if config is not None and config.use_rslora else rank)
    return scalings


def _of_layer(table: Mapping[str, float], layer: str, default: float) -> float:
    """A layer's entry in peft's rank_pattern or alpha_pattern; its exact name is looked up first, being quick."""
    for name in (layer, f"^{layer}"):
        if name in table:
            return table[name]
    return table.get(get_pattern_key(list(table), layer), default)


def _config(metadata: Mapping[str, Any], part: str) -> LoraConfig | None:
    """What the metadata says of one part, and nothing in it that would run or change anything else."""
    given = {key.removeprefix(f"{part}."): value for key, value in metadata.items() if key.startswith(f"{part}.")}
    if not given:
        return None
    for key, harmless in _REFUSED.items():
        if given.get(key, harmless) not in (harmless, None, [], {}):
            raise ValueError(f"`source` asks for {key} {given[key]!r:.80}, which is not supported in an adapter")
    used = {key: value for key, value in given.items() if key in _USED and value is not None}
    numbers = [used.get("r", 8), used.get("lora_alpha", 8)]
    patterns = []
    for key in ("rank_pattern", "alpha_pattern"):
        entries = used.get(key, {})
        if not isinstance(entries, dict):
            raise ValueError(f"`source` has {part}.{key} {entries!r:.80}, which is no table of layers")
        if len(entries) > 1000:
            raise ValueError(f"`source` has {len(entries)} entries in {part}.{key}; allowed are 1000")
        patterns += list(entries)
        numbers += entries.values()
    for key in ("target_modules", "exclude_modules"):
        entries = used.get(key, [])
        patterns += [entries] if isinstance(entries, str) else entries if isinstance(entries, list) else [None]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number < 1e6:
            raise ValueError(f"`source` has a rank or alpha {number!r:.80}; allowed are numbers above 0")
    for pattern in patterns:
        if not isinstance(pattern, str) or len(pattern) > 200 or not _PATTERN.fullmatch(pattern):
            raise ValueError(
                f"`source` names the layers {pattern!r:.80}; allowed are names and simple patterns of names"
            )
    try:
        for pattern in patterns:
            re.compile(pattern)
        return LoraConfig(**used)
    except (TypeError, ValueError, re.error) as error:
        raise ValueError(f"`source` has a configuration of {part} that peft does not take") from error
