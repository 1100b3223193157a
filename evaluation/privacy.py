"""Does a synthetic set give real people away? Copies of training images, membership, and sources found again.

A copy is what is closer to a training image than unseen real people are to it, measured as Carlini et al. 2023 do:
the distance to the nearest training image over the mean distance to the next 20 (`nearness`). The threshold comes
from the unseen real images and is stated, with the false alarms that it makes on real images it was not fitted to.
Membership (Hayes et al. 2019, LOGAN, without access to the model): are training images nearer to the synthetic set
than unseen real images are? An area under the curve of 0.5 says no.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lora.memorisation import FALSE_ALARMS, copy_threshold
from pipeline.batch_maker import load_pipeline
from pipeline.pipeline_memorisation import CELLS, NEIGHBOURS, nearest_of_moved, thumbnails

from .card import privacy_card
from .feature_networks import feature_network
from .features import extract_features
from .folders import ImageSet, read_set
from .images import SIZE, generate
from .judge import wilson_interval
from .privacy_pairs import draw_pairs, outside_the_project

MINIMUM_UNSEEN, DRAWS = 20, 1000
SHARES = np.linspace(0, 1, 41)  # of the images, at which their nearness is put down
Features = Callable[[np.ndarray], np.ndarray]


def thumbnail_features(images: np.ndarray) -> np.ndarray:
    """`thumbnails` of uint8 images (N, H, W, 3), float32 (N, 768)."""
    parts = [torch.zeros(0, 3 * CELLS**2)]
    for start in range(0, len(images), 256):
        parts.append(thumbnails(torch.from_numpy(np.array(images[start : start + 256])).permute(0, 3, 1, 2)))
    return torch.cat(parts).numpy()


def features_by_name(name: str, cache: str | Path | None = None) -> tuple[Features, str]:
    """Give a function from images to features by name, and words on it: "thumbnail", or as `feature_network` has."""
    if name == "thumbnail":
        return thumbnail_features, f"thumbnails of {CELLS} px without mean and contrast"
    if name == "own":
        raise ValueError(
            "`network` is 'own', which knows the packs alone: allowed are thumbnail, efficientnet-lite0, Hub ids"
        )
    network = feature_network(name, cache=cache)
    return lambda images: extract_features(images, network=network), network.description


def find_copies(
    synthetic: np.ndarray,
    training: np.ndarray,
    unseen: np.ndarray,
    features: Features | None = None,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Which synthetic images are copies, also slightly moved ones; all uint8 images (N, H, W, 3).

    `features` turns images into numbers (N, D); None for thumbnails.

    Returns
    -------
    dict
        `threshold`; `scores` (N,), `nearness` over the threshold, below 1 for a copy; `nearest` (N,), the training
        image that is nearest; `copies`, how many, and their `share` with its 95 % interval; `false_alarms`, the share
        of unseen real images called copies by a threshold from the other half of them, with its interval; `quantiles`,
        the nearness of both at `SHARES`.

    Raises
    ------
    ValueError
        There are fewer than 1, 2 and 20 images.
    """
    features = features or thumbnail_features
    for name, some, least in (
        ("synthetic", synthetic, 1),
        ("training", training, 2),
        ("unseen", unseen, MINIMUM_UNSEEN),
    ):
        if len(some) < least:
            raise ValueError(f"`{name}` holds {len(some)} images: at least {least} are needed")
    known = torch.from_numpy(features(training))
    near, nearest = _nearest(synthetic, known, features)
    real = _nearest(unseen, known, features)[0]
    threshold = copy_threshold(real)
    order = np.random.default_rng(seed).permutation(len(real))
    halves = order[: len(real) // 2], order[len(real) // 2 :]
    alarms = sum(int((real[some] < copy_threshold(real[others])).sum()) for some, others in (halves, halves[::-1]))
    copies = int((near < threshold).sum())
    share_low, share_high = wilson_interval(copies, len(near))
    alarms_low, alarms_high = wilson_interval(alarms, len(real))
    return {
        "threshold": threshold,
        "scores": near.astype(np.float64) / threshold,
        "nearest": nearest,
        "copies": copies,
        "share": copies / len(near),
        "share_low": share_low,
        "share_high": share_high,
        "false_alarms": alarms / len(real),
        "false_alarms_low": alarms_low,
        "false_alarms_high": alarms_high,
        "median_synthetic": float(np.median(near)),
        "median_unseen_real": float(np.median(real)),
        "quantiles": {
            name: np.quantile(some, SHARES).round(3) for name, some in (("synthetic", near), ("unseen_real", real))
        },
    }


def _nearest(images: np.ndarray, known: torch.Tensor, features: Features) -> tuple[np.ndarray, np.ndarray]:
    """`nearest_of_moved`, some images at a time."""

    def numbers(moved: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(features(moved.permute(0, 2, 3, 1).byte().numpy()))

    parts = [
        nearest_of_moved(torch.from_numpy(np.array(images[i : i + 64])).permute(0, 3, 1, 2), known, numbers)
        for i in range(0, len(images), 64)
    ]
    return torch.cat([ratio for ratio, _ in parts]).numpy(), torch.cat([place for _, place in parts]).numpy()


def membership(
    synthetic: np.ndarray, training: np.ndarray, unseen: np.ndarray, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, float | int]:
    """Can the synthetic set tell who was trained on? Area under the curve of the distance to the nearest of it.

    Above 0.5, training images are nearer to the synthetic ones than unseen real images are. With a 95 % bootstrap
    interval over the real images. Arguments are features (N, D), (M, D) and (K, D).
    """
    made = torch.from_numpy(np.asarray(synthetic, np.float32))

    def distances(real: np.ndarray) -> np.ndarray:
        parts = [
            torch.cdist(torch.from_numpy(np.asarray(real[i : i + 256], np.float32)), made).min(1).values
            for i in range(0, len(real), 256)
        ]
        return torch.cat(parts).numpy()

    ours, others = distances(training), distances(unseen)
    rng = np.random.default_rng(seed)
    drawn = [
        _area(rng.choice(ours, len(ours)), rng.choice(others, len(others)))
        for _ in range(draws)
    ]  # fmt: skip
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {
        "auc": _area(ours, others),
        "low": float(low),
        "high": float(high),
        "training_images": len(ours),
        "unseen_images": len(others),
    }


def _area(members: np.ndarray, others: np.ndarray) -> float:
    """Share of pairs in which the member is nearer; ties count half (Mann-Whitney)."""
    others = np.sort(others)
    farther = len(others) - np.searchsorted(others, members, "right")
    ties = len(others) - np.searchsorted(others, members, "left") - farther
    return float((farther + ties / 2).mean() / len(others))


def source_ranks(results: np.ndarray, sources: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """At which place among all real images each result's own source is found again, from 1; features (N, D), (M, D).

    The crowd are the other real images: a rank of 1 is a source that is recognised, len(crowd) / 2 is chance.
    """
    made, own, rest = (torch.from_numpy(np.asarray(some, np.float32)) for some in (results, sources, crowd))
    return 1 + (torch.cdist(made, rest) < (made - own).norm(dim=1)[:, None]).sum(1).numpy()


def image_to_image(
    pipe: Any,
    real: ImageSet,
    strengths: Sequence[float],
    features: Features,
    *,
    count: int = 20,
    modality: str | None = None,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
) -> list[dict[str, Any]]:
    """How often a source is found again among the real images, for each strength."""
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(real))[:count])
    known = features(real.images)
    asked: dict[str, Any] = {"modality": modality, "output_type": "pil"}
    asked |= {"num_inference_steps": steps} if steps is not None else {}
    asked |= {"guidance_scale": guidance} if guidance is not None else {}
    table = []
    for strength in strengths:
        made = [
            np.asarray(
                pipe(_prompt(real, i), real.images[i], strength, seed=seed + int(i), **asked).images[0].convert("RGB")
            )
            for i in chosen
        ]
        ranks = np.array(
            [
                source_ranks(one[None], known[i : i + 1], np.delete(known, i, 0))[0]
                for one, i in zip(features(np.stack(made)), chosen, strict=True)
            ]
        )
        low, high = wilson_interval(int((ranks == 1).sum()), len(ranks))
        table.append(
            {
                "strength": strength,
                "count": len(ranks),
                "among": len(real),
                "first": float((ranks == 1).mean()),
                "first_low": low,
                "first_high": high,
                "median_rank": float(np.median(ranks)),
                "chance_rank": (len(real) + 1) / 2,
            }
        )
    return table


def _prompt(real: ImageSet, index: int) -> str:
    text = real.rows[index].get("text", "").strip() or (real.labels[index] if real.labels else "")
    if not text:
        raise ValueError("`real` has neither a `text` column nor classes: with `model` each image needs a caption")
    return text


def read_real(real: str | Path, unseen: str | Path | None, size: int, cache: str | Path | None) -> list[ImageSet]:
    """Training images and unseen real ones: two folders, or the splits of one; nobody is in both."""
    whole = read_set(real, size=size, argument="real", cache=cache)
    if unseen is not None:
        return [whole, read_set(unseen, size=size, argument="unseen", cache=cache)]
    train = np.array([split == "train" for split in whole.splits])
    if train.all() or not train.any():
        raise ValueError(
            f"`real` is {str(real)!r}, which is not split into train and val; `unseen` must name a folder of real "
            "images that the model was not trained on"
        )
    known = np.isin(whole.groups, whole.groups[train])
    return [whole.take(train), whole.take(~known)]


def privacy(
    real: str | Path,
    *,
    synthetic: str | Path | None = None,
    unseen: str | Path | None = None,
    model: str | Path = "pipeline",
    pipe: Any = None,
    modality: str | None = None,
    count: int = 100,
    strengths: Sequence[float] = (),
    source_count: int = 20,
    network: str = "thumbnail",
    size: int = SIZE,
    pairs: str | Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int = 4,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """Copies, membership and, with `strengths`, how well a source is found again.

    Parameters
    ----------
    real
        Folder of the training images, as `read_set` takes it; its `split` says which the model did not see.
    synthetic
        Folder of DICOM or picture files; None to generate `count` images from captions of training images.
    unseen
        Folder of real images that the model was not trained on, where `real` has no split.
    model, pipe, modality, steps, guidance, batch
        As for `generate`.
    count, source_count
        Images to generate, and sources a strength.
    strengths
        Of image-to-image, each above 0 and at most 1; sources are unseen real images.
    network
        "thumbnail", or the name of a feature network.
    size
        Side in pixels at which images are read.
    pairs
        PNG to draw the nearest pairs into. It shows real people: it may not lie in the project.
    seed
        Of every draw.
    cache
        Folder that keeps what was read and made.

    Raises
    ------
    ValueError
        A folder cannot be used, or there are too few images.
    """
    if wrong := [strength for strength in strengths if not 0 < strength <= 1]:
        raise ValueError(f"`strengths` has {wrong[0]}: allowed are numbers above 0 and at most 1")
    picture = outside_the_project(pairs) if pairs is not None else None
    features, words = features_by_name(network, cache)
    training, others = read_real(real, unseen, size, cache)
    settings: dict[str, Any] = {"source": "folder"}
    if pipe is None and (synthetic is None or strengths):
        pipe = load_pipeline(model)
    if synthetic is not None:
        images = read_set(synthetic, size=size, argument="synthetic", cache=cache).images
    else:
        drawn = np.random.default_rng(seed).choice(len(training), count, replace=count > len(training))
        prompts = [_prompt(training, int(i)) for i in drawn]
        images, settings = generate(
            pipe, prompts, seed=seed, modality=modality, steps=steps, guidance=guidance, batch=batch, cache=cache
        )
        settings["source"] = "generated"
    made, known, rest = (features(some) for some in (images, training.images, others.images))
    copies = find_copies(images, training.images, others.images, features, seed=seed)
    nearest, scores = copies.pop("nearest"), copies.pop("scores")
    if picture is not None:
        draw_pairs(images, training.images[nearest], scores, picture)
    order = np.argsort(scores)
    result = {
        "what": "privacy",
        "measure": f"distance to the nearest training image over the mean of the next {NEIGHBOURS}; a copy is below "
        f"what {FALSE_ALARMS:.0%} of unseen real images reach; 95 % intervals",
        "network": words,
        "seed": seed,
        "counts": {"synthetic": len(images), "training": len(training), "unseen": len(others)},
        "settings": settings,
        "copies": copies,
        "scores": {"lowest": scores[order[:20]].round(3), "quantiles_5_50_95": np.quantile(scores, (0.05, 0.5, 0.95))},
        "membership": membership(made, known, rest, seed=seed),
    }
    if strengths:
        result["image_to_image"] = image_to_image(
            pipe, others, strengths, features, count=source_count, modality=modality, seed=seed, steps=steps,
            guidance=guidance,
        )  # fmt: skip
    return {**result, "card": privacy_card(result)}
