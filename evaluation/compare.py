"""Synthetic images against unseen real ones, and the controls that give every number its scale, network by network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from .features import FeatureNetwork, efficientnet_lite0, extract_features
from .kid import MINIMUM_COUNT, kernel_distance
from .ranked_sheet import distance_to_real
from .set_measures import pair_similarity, set_measures

BLURS = (1.0, 2.0)
BLURRED = tuple(f"blur_sigma_{sigma:g}" for sigma in BLURS)


@dataclass(frozen=True)
class Side:
    """Images (N, H, W, 3) of one side of a comparison.

    `labels` are their classes, if any. Only the first `leading` enter the comparison of all (None: all of them); those
    behind are there for the classes, each of which would otherwise have too few.
    """

    images: np.ndarray
    labels: Sequence[str] | None = None
    leading: int | None = None


def blur(images: np.ndarray, sigma: float) -> np.ndarray:
    """Each uint8 image (N, H, W, 3) under a Gaussian blur of `sigma` pixels."""
    return np.stack([np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma))) for image in images])


def compare(
    synthetic: np.ndarray | Side,
    val: np.ndarray | Side,
    train: np.ndarray | Side,
    *,
    networks: Sequence[FeatureNetwork] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure synthetic images against `val`, and the controls: `train` as it is and blurred.

    The result has `synthetic`, `floor` and each blur as the first network sees them, further `networks`, whether they
    agree, `to_real`, how far each synthetic image is from real ones, and `by_class` where all sides have labels.

    Parameters
    ----------
    synthetic, val, train
        uint8 images, (N, H, W, 3), of any size. As many of `synthetic` as of `train` enter, drawn at random.
    networks
        None for EfficientNet-Lite0 alone.
    seed
        Of the draws and the bootstraps.

    Raises
    ------
    ValueError
        A side has fewer than 20 images.
    """
    sides = {
        name: side if isinstance(side, Side) else Side(side)
        for name, side in {"synthetic": synthetic, "val": val, "floor": train}.items()
    }
    for name, words in (("synthetic", "synthetic"), ("val", "real"), ("floor", "real")):
        if len(sides[name].images) < MINIMUM_COUNT:
            raise ValueError(
                f"`{words}` holds {len(sides[name].images)} images: KID needs at least {MINIMUM_COUNT} on each side"
            )
    networks = list(networks or [efficientnet_lite0()])
    pictures = {name: side.images for name, side in sides.items()}
    pictures |= {name: blur(sides["floor"].images, s) for name, s in zip(BLURRED, BLURS, strict=True)}
    seen = {
        network.name: {
            name: extract_features(images, network=network, description=f"{network.name} features, {name}")
            for name, images in pictures.items()
        }
        for network in networks
    }

    def measured(chosen: dict[str, np.ndarray]) -> dict[str, Any]:
        chosen = _equal_counts(chosen, seed)
        found = {network.name: _against_val(seen[network.name], chosen, seed) for network in networks}
        first, *others = networks
        result = found[first.name]
        for name in ("synthetic", "floor"):
            result[name]["ms_ssim"] = asdict(pair_similarity(pictures[name][chosen[name]], seed=seed))
        more = {other.name: {"network": other.description, **found[other.name]} for other in others}
        return {**result, "networks": more, "agreement": agreement(found)}

    whole = measured({name: np.arange(len(side.images))[: side.leading] for name, side in sides.items()})
    first = seen[networks[0].name]
    whole["to_real"] = distance_to_real(first["synthetic"][: sides["synthetic"].leading], first["val"])
    if any(side.labels is None for side in sides.values()):
        return whole
    places = {name: _by_label(side) for name, side in sides.items()}
    by_class, left_out = {}, {}
    for label in sorted(set().union(*places.values())):
        chosen = {name: found.get(label, np.zeros(0, int)) for name, found in places.items()}
        if min(map(len, chosen.values())) >= MINIMUM_COUNT:
            by_class[label] = measured(chosen)
        else:
            left_out[label] = {name: len(some) for name, some in chosen.items()}
    return {**whole, "by_class": by_class, "classes_with_too_few": left_out}


def _by_label(side: Side) -> dict[str, np.ndarray]:
    labels = np.array(side.labels or [])
    return {str(label): np.flatnonzero(labels == label) for label in np.unique(labels)}


def _equal_counts(chosen: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """As many synthetic images as there are for the floor, and the reverse: most measures depend on the count."""
    count = min(len(chosen["synthetic"]), len(chosen["floor"]))
    result = {"val": chosen["val"]}
    for name in ("synthetic", "floor"):
        order = np.random.default_rng(seed).permutation(len(chosen[name]))[:count]
        result[name] = chosen[name] if len(chosen[name]) == count else chosen[name][np.sort(order)]
    return result


def _against_val(features: dict[str, np.ndarray], chosen: dict[str, np.ndarray], seed: int) -> dict[str, Any]:
    real = features["val"][chosen["val"]]
    result = {}
    for name in ("synthetic", "floor", *BLURRED):
        some = features[name][chosen["synthetic" if name == "synthetic" else "floor"]]
        found = {key: asdict(measure) for key, measure in set_measures(some, real, seed=seed).items()}
        result[name] = {**asdict(kernel_distance(some, real, seed=seed)), **found}
    return result


def agreement(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Say whether the networks place the synthetic images on the same side of each control.

    Parameters
    ----------
    found
        By network, then by "synthetic", "floor" and so on, a KID with its interval.

    Returns
    -------
    dict
        `agree`: False where two contradict one another, None where none does but one is undecided on what the first
        has decided, or is the only one. `places`: by control and network, whether the synthetic images are
        "farther" or "nearer" than it, or "undecided" where the intervals overlap. `disagreements` and
        `unconfirmed`: sentences.
    """
    places: dict[str, dict[str, str]] = {}
    sentences, unconfirmed = [], []
    first, *others = found
    for control in ("floor", *BLURRED):
        for network, sides in found.items():
            made, scale = sides["synthetic"], sides[control]
            place = "farther" if made["low"] > scale["high"] else "nearer" if made["high"] < scale["low"] else ""
            places.setdefault(control, {})[network] = place or "undecided"
        if {"farther", "nearer"} <= set(places[control].values()):
            said = ", ".join(f"{network} {place}" for network, place in places[control].items())
            sentences.append(f"The networks disagree whether the synthetic images are beyond {control}: {said}.")
        if (said := places[control][first]) != "undecided":
            silent = [other for other in others if places[control][other] == "undecided"]
            unconfirmed += [f"{other} does not confirm that they are {said} than {control}." for other in silent]
    if not others:
        unconfirmed = ["One network only: nothing confirms it."]
    agree = False if sentences else None if unconfirmed else True
    return {"agree": agree, "places": places, "disagreements": sentences, "unconfirmed": unconfirmed}
