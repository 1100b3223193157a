"""Adapters in the model: strict loading, which ones are in use, and the one that a call's `modality` asks for.

diffusers keeps the state of adapters in peft's layers, part by part, and some of its methods leave the parts in
disagreement. What is told here is read from the layers themselves, since they decide the pixels.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from peft.tuners.lora import LoraLayer

from . import adapter_files, adapter_names, dicom_profiles

known_modality = dicom_profiles.known_modality

_RESERVED = set(dir(torch.nn.ModuleDict())) | set(dir(torch.nn.ParameterDict()))  # peft keeps adapters in such


def uses_adapter_of_modality(call: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a pipeline's call: for its length, the one adapter loaded for its `modality` is used alone."""

    @functools.wraps(call)
    def wrapped(self: Any, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        name = self.adapter_for(prompt, kwargs.get("modality"))
        if name is None:
            return call(self, prompt, *args, **kwargs)
        with self.only_adapter(name):
            return call(self, prompt, *args, **kwargs)

    return wrapped


class AdapterMixin:
    """What a Stable Diffusion pipeline of diffusers gets on top; stands before it among the base classes."""

    # Given by the pipeline.
    unet: Any
    text_encoder: Any
    load_lora_into_unet: Any
    load_lora_into_text_encoder: Any
    get_list_adapters: Any
    _model_hash: Any

    def _start_adapters(self) -> None:
        self._adapter_modalities: dict[str, str | None] = {}
        self._adapter_hashes: dict[str, tuple[Any, str]] = {}
        self._adapter_sources: dict[str, tuple[Any, dict[str, Any]]] = {}  # where an index may lie beside the weights
        self._unfused: list[tuple[LoraLayer, torch.Tensor, dict[str, float], list[str]]] = []

    # ---- loading and taking off ---------------------------------------------------------------------------------

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> str:
        """Load an adapter, or raise and leave the model as it was; afterwards it is the one in use, with weight 1.

        Parameters
        ----------
        pretrained_model_name_or_path_or_dict
            A folder, a .safetensors file, a Hub id or a state dict; see `read_adapter`.
        adapter_name
            By default the name that the file gives itself, else that of its folder: "brain-mri".
        hotswap
            Not supported: load each adapter under a name of its own and switch between them.
        **kwargs
            `weight_name`, `max_bytes`, and for the Hub `revision`, `token`, `cache_dir`, ...

        Returns
        -------
        str
            The adapter's name.

        Raises
        ------
        ValueError
            The file is no safetensors, is partial, too large or made for another model, or the name is in use.
        """
        source = pretrained_model_name_or_path_or_dict
        if hotswap:
            raise ValueError("`hotswap` is True; load each adapter under its own name and switch by `set_adapters`")
        self._refuse_while_fused("load another adapter")
        kwargs = {key: value for key, value in kwargs.items() if key not in ("use_safetensors", "low_cpu_mem_usage")}
        adapter = (
            adapter_files.adapter_of(source)
            if isinstance(source, Mapping)
            else adapter_files.read_adapter(source, **kwargs)
        )
        adapter = adapter.named(
            self._free_name(adapter.name) if adapter_name is None else adapter_names.check_name(adapter_name)
        )
        if adapter.name in _RESERVED or adapter.name in self._loaded():
            why = "already loaded" if adapter.name in self._loaded() else "a word that peft uses itself"
            raise ValueError(f"`adapter_name` is {adapter.name!r}, which is {why}; choose another")
        adapter_files.check_adapter(adapter, self.unet, self.text_encoder)
        off = any(layer.disable_adapters for _, layer in self._layers())
        before = self._active()
        try:
            self._inject(adapter)
        except Exception:
            self._remove([adapter.name], before)
            raise
        self._adapter_modalities[adapter.name] = adapter.modality
        self._adapter_hashes.pop(adapter.name, None)
        self._adapter_sources[adapter.name] = source, kwargs
        self.set_adapters(adapter.name)
        for _, layer in self._layers():
            layer.enable_adapters(not off)
            layer.eval()
        return adapter.name

    def _inject(self, adapter: adapter_files.Adapter) -> None:
        """Hand the tensors to diffusers, with a configuration made of them and of nothing that the file claims."""
        for part, load in (("unet", self.load_lora_into_unet), ("text_encoder", self.load_lora_into_text_encoder)):
            tensors = adapter.part(part)
            if not tensors:
                continue  # diffusers would warn
            ranks = {key.rpartition(".lora_A.")[0]: len(t) for key, t in tensors.items() if ".lora_A." in key}
            alphas = {layer: adapter.scalings[f"{part}.{layer}"] * rank for layer, rank in ranks.items()}
            rank, alpha = (Counter(table.values()).most_common(1)[0][0] for table in (ranks, alphas))
            config = {
                "r": rank,
                "lora_alpha": alpha,
                "rank_pattern": {f"^{layer}": value for layer, value in ranks.items() if value != rank},
                "alpha_pattern": {f"^{layer}": value for layer, value in alphas.items() if value != alpha},
                "target_modules": sorted(ranks),
            }
            with _quiet():
                load(
                    {f"{part}.{key}": tensor for key, tensor in tensors.items()},
                    None,
                    getattr(self, part),
                    adapter_name=adapter.name,
                    metadata={f"{part}.{key}": value for key, value in config.items()},
                    _pipeline=self,
                )

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Take adapters off for good. The others stay as they are: none is switched on for the one that goes."""
        names = self._checked(adapter_names)
        self._refuse_while_fused("delete an adapter")
        self._remove(names, self._active())

    def _remove(self, names: Sequence[str], active: Sequence[str]) -> None:
        rest = [name for name in self._loaded() if name not in names]
        for name in names:
            self._adapter_modalities.pop(name, None)
            self._adapter_hashes.pop(name, None)
            for part in adapter_files.PARTS:
                if name in getattr(getattr(self, part), "peft_config", {}):
                    self._activate([])  # else peft switches another one on, layer by layer
                    super().delete_adapters(name)  # type: ignore[misc]
        if rest:
            self._activate([name for name in active if name not in names])
        else:
            self.unload_lora_weights()

    def unload_lora_weights(self) -> None:
        """Take all adapters off: the base is bit for bit what it was, with what was fused into it."""
        super().unload_lora_weights()  # type: ignore[misc]
        self._merged_adapters: set[str] = set()
        self._model_hash = None
        self._start_adapters()

    # ---- fusing, switching off ----------------------------------------------------------------------------------

    def fuse_lora(self, *args: Any, **kwargs: Any) -> None:
        """Make the adapters in use part of the model, as in diffusers; `unfuse_lora` brings back the very weights."""
        self._refuse_while_fused("fuse again")
        if any(layer.disable_adapters for _, layer in self._layers()):
            raise ValueError("adapters are switched off; call `enable_lora()` before `fuse_lora()`")
        self._unfused = [
            (
                layer,
                layer.get_base_layer().weight.detach().to("cpu", copy=True),
                dict(layer.scaling),
                list(layer.active_adapters),
            )
            for _, layer in self._layers()
        ]
        try:
            super().fuse_lora(*args, **kwargs)  # type: ignore[misc]
        except Exception:
            self.unfuse_lora()
            raise
        self._model_hash = None  # peft changes the weights in a way that torch does not count
        self._activate(sorted(self._merged_adapters))  # none beside the fused ones in layers that those do not have

    def unfuse_lora(self, *args: Any, **kwargs: Any) -> None:
        """Undo `fuse_lora`: weights (bit for bit), adapters in use and their weights are those of before."""
        with _quiet():  # peft warns of every layer that was not fused
            super().unfuse_lora(*args, **kwargs)  # type: ignore[misc]
        with torch.no_grad():
            for layer, weight, scaling, active in self._unfused:
                layer.get_base_layer().weight.copy_(weight)
                layer.scaling = scaling
                layer.set_adapter(active, inference_mode=True)
        self._unfused, self._model_hash = [], None

    def disable_lora(self) -> None:
        """Switch all adapters off, fused ones too, until `enable_lora`."""
        if self._unfused:
            self.unfuse_lora()
        super().disable_lora()  # type: ignore[misc]

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: Any = None) -> None:
        """Use these adapters and no others (of an empty list none), with these weights; see diffusers."""
        self._refuse_while_fused("switch adapters")
        names = self._checked(adapter_names)
        if names:
            super().set_adapters(names, adapter_weights)  # type: ignore[misc]
        else:
            self._activate([])

    def weigh_adapters(self, weights: Mapping[str, Mapping[str, float]]) -> None:
        """Bring adapters in use to weights as `adapters_in_use` lists them: by name, then by the place behind a colon.

        The place "" is the whole adapter.
        """
        for path, layer in self._layers():
            for name, places in weights.items():
                fitting = [place for place in places if not place or f"{path}.".startswith(f"{place}.")]
                if name in layer.lora_A and fitting:
                    layer.set_scale(name, places[max(fitting, key=len)])

    def _checked(self, adapter_names: str | Sequence[str]) -> list[str]:
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if missing := [name for name in names if name not in self._loaded()]:
            raise ValueError(f"`adapter_names` has {missing[0]!r}; loaded are {', '.join(self._loaded()) or 'none'}")
        if len(set(names)) < len(names):
            raise ValueError(f"`adapter_names` has {', '.join(map(repr, names))}; each may be named once")
        return names

    def _refuse_while_fused(self, what: str) -> None:
        if any(layer.merged for _, layer in self._layers()):
            raise ValueError(
                f"an adapter is fused into the model; call `unfuse_lora()`, or `unload_lora_weights()` to keep it "
                f"fused, before you {what}"
            )

    # ---- what is in use -----------------------------------------------------------------------------------------

    def adapters_in_use(self) -> tuple[tuple[str, str, float], ...]:
        """Adapters that change the pixels now, as (name, hash, weight).

        Fused ones are part of the model and not listed. An adapter with different weights in different places has a
        row for each: ("ct:unet.down_blocks", hash, 0.5), ("ct:unet.up_blocks", hash, 1.0).
        """
        weights: dict[str, dict[str, float]] = {}
        for path, layer in self._layers():
            if layer.disable_adapters or layer.merged:
                continue
            for name in layer.active_adapters:
                if name in layer.lora_A:
                    base = _scaling(layer, name)
                    weights.setdefault(name, {})[path] = round(layer.scaling[name] / base, 6) + 0.0
        order = [name for name in dict.fromkeys(n for _, layer in self._layers() for n in layer.active_adapters)]
        return tuple(
            (row, self._adapter_sha256(name), weight)
            for name in sorted(weights, key=order.index)
            for row, weight in _rows(name, weights[name])
        )

    def modality_in_use(self) -> str | None:
        """The modality of the adapters in use, where they agree; of a single one without modality its name."""
        names = list(dict.fromkeys(name.partition(":")[0] for name, _, _ in self.adapters_in_use()))
        modalities = {self._modality_of(name) for name in names}
        if len(modalities) == 1 and (only := modalities.pop()):
            return only
        return names[0] if len(names) == 1 else None

    def adapter_for(self, prompt: Any, modality: str | None) -> str | None:
        """The adapter that a call with this modality must switch to; None where things are to stay as they are."""
        layers = [layer for _, layer in self._layers()]
        if modality is None or not layers or any(layer.disable_adapters or layer.merged for layer in layers):
            return None
        prompts = prompt if isinstance(prompt, (list, tuple)) else [prompt]
        if not prompts or not all(isinstance(text, str) for text in prompts) or known_modality(modality) is None:
            return None  # the call itself says what is wrong
        profiles = [dicom_profiles.choose_profile(text, modality) for text in prompts]
        fitting = [
            name for name in self._loaded() if all(dicom_profiles.serves(self._modality_of(name), p) for p in profiles)
        ]
        if set(fitting) & set(self._active()):
            return None
        same = [name for name in fitting if known_modality(name) == known_modality(modality)]
        named = [name for name in fitting if known_modality(name)]
        return next((names[0] for names in (same, named, fitting) if len(names) == 1), None)

    @contextmanager
    def only_adapter(self, name: str) -> Iterator[None]:
        """Use one loaded adapter alone, with the weight it has, and afterwards what was used before."""
        before = [(layer, list(layer.active_adapters)) for _, layer in self._layers()]
        trained = [p for layer, _ in before for p in layer.parameters() if p.requires_grad]
        self._activate([name])
        try:
            yield
        finally:
            for layer, active in before:
                layer.set_adapter(active, inference_mode=True)
            for parameter in trained:
                parameter.requires_grad_(True)

    def _modality_of(self, name: str) -> str | None:
        return self._adapter_modalities.get(name) or known_modality(name)

    def _layers(self) -> list[tuple[str, LoraLayer]]:
        """Every layer that carries adapters, by the name it has without them."""
        return [
            (f"{part}.{name.removeprefix('text_model.')}", module)
            for part in adapter_files.PARTS
            if getattr(self, part, None) is not None
            for name, module in getattr(self, part).named_modules()
            if isinstance(module, LoraLayer)
        ]

    def _loaded(self) -> list[str]:
        return list(dict.fromkeys(name for names in self.get_list_adapters().values() for name in names))

    def _active(self) -> list[str]:
        return list(dict.fromkeys(name for _, layer in self._layers() for name in layer.active_adapters))

    def _activate(self, names: Sequence[str]) -> None:
        for _, layer in self._layers():
            layer.set_adapter(list(names), inference_mode=True)

    def _free_name(self, name: str) -> str:
        """A name like this one that can be used: brain-mri, brain-mri-2, ..."""
        name = f"{name}-adapter" if name in _RESERVED else name
        number, free = 1, name
        while free in self._loaded():
            number += 1
            free = f"{name[:60]}-{number}"
        return free

    def _adapter_sha256(self, name: str) -> str:
        """Hash of a loaded adapter, reckoned anew only when its tensors were changed."""
        tensors, scalings = {}, {}
        for path, layer in self._layers():
            if name in layer.lora_A:
                tensors[f"{path}.lora_A.weight"] = layer.lora_A[name].weight
                tensors[f"{path}.lora_B.weight"] = layer.lora_B[name].weight
                scalings[path] = _scaling(layer, name)
        state = [(key, tensor.data_ptr(), tensor._version) for key, tensor in tensors.items()]
        known = self._adapter_hashes.get(name)
        if known is None or known[0][0] != state:
            # The tensors are kept with their hash, so that no others can come to lie at their address.
            known = (state, tensors), adapter_files.adapter_sha256(tensors, scalings)
            self._adapter_hashes[name] = known
        return known[1]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what libraries suspect of an adapter (other adapters' weights "missing" from it, ...): it was checked."""
    loggers = (diffusers.utils.logging, transformers.utils.logging)
    before = [logger.get_verbosity() for logger in loggers]
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    for logger in loggers:
        logger.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, verbosity in zip(loggers, before, strict=True):
            logger.set_verbosity(verbosity)
        if bars:
            transformers.utils.logging.enable_progress_bar()


def _scaling(layer: LoraLayer, name: str) -> float:
    """Alpha / rank: the strength of an adapter with weight 1."""
    rank = layer.r[name]
    return layer.lora_alpha[name] / (math.sqrt(rank) if layer.use_rslora.get(name) else rank)


def _rows(name: str, weights: Mapping[str, float], depth: int = 0) -> list[tuple[str, float]]:
    """One row where all layers have the same weight, else rows for the parts, blocks, ... that have."""
    if len(set(weights.values())) == 1:
        return [(name, next(iter(weights.values())))]
    groups: dict[str, dict[str, float]] = {}
    for path, weight in weights.items():
        groups.setdefault(".".join(path.split(".")[: depth + 1]), {})[path] = weight
    adapter = name.partition(":")[0]
    return [row for group, inside in groups.items() for row in _rows(f"{adapter}:{group}", inside, depth + 1)]
