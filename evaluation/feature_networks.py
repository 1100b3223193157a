"""Feature networks by name: `efficientnet-lite0` (the default), `own`, and models of the Hub for who asks for one.

A distance between sets of images is a distance as one network sees it. Two that learnt from different pictures should
agree on the direction; where they do not, the result says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .features import IMAGENET_MEAN, IMAGENET_STANDARD_DEVIATION, FeatureNetwork, efficientnet_lite0

OFFLINE_NETWORKS = ("efficientnet-lite0", "own")


def feature_network(
    name: str, *, data: str | Path | None = None, cache: str | Path | None = None, seed: int = 0
) -> FeatureNetwork:
    """Load a feature network; only a Hub id may touch the internet.

    Parameters
    ----------
    name
        "efficientnet-lite0"; "own", see `own_network`; or the Hub id or folder of an image encoder that transformers
        loads, such as "microsoft/rad-dino" or "facebook/dinov2-base".
    data
        Folder with the packs, on which "own" is trained.
    cache
        Folder that keeps "own".
    seed
        Of the training of "own".

    Raises
    ------
    ValueError
        No such network, or one that is no image encoder.
    """
    if name == "efficientnet-lite0":
        return efficientnet_lite0()
    if name == "own":
        from .own_network import own_network

        if data is None:
            raise ValueError("`networks` has 'own': it is trained on the packs, so that `data` must name their folder")
        return own_network(data, cache=cache, seed=seed)
    if "/" in name or Path(name).is_dir():
        return _of_transformers(name)
    raise ValueError(
        f"`networks` has {name!r}: allowed are {', '.join(OFFLINE_NETWORKS)}, and Hub ids such as microsoft/rad-dino"
    )


def _of_transformers(name: str) -> FeatureNetwork:
    from transformers import AutoModel
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        model = AutoModel.from_pretrained(name).eval().requires_grad_(False).float()
        # Only its numbers are wanted: the processors themselves may need torchvision.
        settings, _ = BaseImageProcessor.get_image_processor_dict(name)
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"`networks` has {name!r}: transformers cannot load it: {first}") from error
    model = getattr(model, "vision_model", model)  # of CLIP and its like
    size = _side(settings)
    label = Path(name).name if Path(name).is_dir() else name
    return FeatureNetwork(
        label,
        f"{label} (transformers), {size} px, float32",
        size,
        lambda batch: _pooled(model(pixel_values=batch)),
        tuple(settings.get("image_mean") or IMAGENET_MEAN),
        tuple(settings.get("image_std") or IMAGENET_STANDARD_DEVIATION),
    )


def _side(settings: dict[str, Any]) -> int:
    asked = settings.get("crop_size") or settings.get("size") or 224
    if isinstance(asked, dict):
        asked = asked.get("height") or asked.get("shortest_edge") or 224
    return int(asked)


def _pooled(output: Any) -> torch.Tensor:
    found = getattr(output, "pooler_output", None)
    if found is None:
        found = output.last_hidden_state
        found = found[:, 0] if found.ndim == 3 else found.mean(dim=(2, 3))  # the class token, or a map
    return found.flatten(1)
