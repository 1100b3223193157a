"""Are generated volumes any good? Diversity, distance, sizes, copies, and segmenters trained on them.

The real volumes are those of a pack, split for good by their names: "training" ones the model may have seen, "unseen"
ones not. The packs name no people, so that a person's other side or other visit may be on either side of the split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .utility_results import PASS_SHARE
from .volumes_copies import find_copies
from .volumes_measures import (
    BLUR,
    PAIRS,
    agreement,
    blurred,
    difference,
    distances_from,
    scales_for,
    slice_features,
    standardised,
    volume_similarity,
)
from .volumes_segmenter import Segmenting, dice, kept_segmenter, middle_features, segment
from .volumes_sets import (
    PROMPT,
    RealVolumes,
    VolumePairs,
    generate_volumes,
    load_volume_pipeline,
    measured,
    read_real,
)
from .volumes_sheet import write_volume_sheet
from .volumes_utility import compare_segmenters, real_counts

CORRELATION_BAR, SIMILARITY_BAR = 0.8, 0.05
SPACES = {
    "slices": "EfficientNet-Lite0 (ImageNet) on the three slices through the middle, 3 x 1280 numbers: it has seen no "
    "volume of ours and needs no download, but looks at three slices only and knows photographs best",
    "segmenter": "mean and spread of each channel at the middle of a 3D U-Net that was trained to segment the real "
    "training volumes, 2 x 64 numbers, standardised by the unseen ones: it looks at the whole volume in 3D and at what "
    "matters for segmentation, but knows the training volumes, so that its floor is a little too high",
}
LIMITS = (
    "unseen are volumes whose names fell to the parts val and test; the pack names no people, so a training volume may "
    "be the other side or another visit of the same person"
)


def volumes(
    data: str | Path,
    model: str | Path = "pipeline/volume",
    *,
    count: int = 150,
    prompt: str = PROMPT,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    pairs: int = PAIRS,
    counts: Sequence[int] = (8, 16, 32),
    seeds: Sequence[int] = (0, 1, 2),
    updates: int = 400,
    cache: str | Path | None = None,
    sheet: str | Path | None = None,
    pipe: Any = None,
) -> dict[str, Any]:
    """Measure all that the module says.

    Parameters
    ----------
    data
        Pack of volumes with label maps.
    model
        Folder or Hub id of the volume pipeline.
    count
        Volumes to generate, at least 2; distances need 20.
    prompt, seed, steps, guidance
        As for `generate_volumes`.
    pairs
        Pairs for the similarity within a set.
    counts, seeds
        Of real volumes and of trainings, as for `compare_segmenters`.
    updates
        Of a training.
    cache
        Folder that keeps volumes and segmenters, so that an interrupted run goes on.
    sheet
        JPEG to write generated volumes to; None for none.
    pipe
        A loaded pipeline, instead of `model`.

    Returns
    -------
    dict
        `judged` lists what was asked of the model, each with value, interval and bar; the rest is what was measured.

    Raises
    ------
    ValueError
        An argument is not one of those allowed, or the pack does not fit the model.
    """
    if count < 2:
        raise ValueError(f"`count` is {count}: numbers from 2 are allowed")
    if pairs < 1:
        raise ValueError(f"`pairs` is {pairs}: numbers from 1 are allowed")
    if not seeds:
        raise ValueError("`seeds` has 0: at least 1 is needed, and 2 for an interval")
    how = Segmenting(updates=updates)
    real = read_real(data)
    real_counts(counts, len(real.train))
    pipe = load_volume_pipeline(model) if pipe is None else pipe
    names = tuple(name.removesuffix("_mm3") for name in pipe.distribution.names)
    if tuple(pipe.shape) != real.train.images.shape[1:] or names != real.labels:
        raise ValueError(
            f"`data` has volumes of {real.train.images.shape[1:]} with {', '.join(real.labels)}, but the model makes "
            f"{tuple(pipe.shape)} with {', '.join(names)}; allowed is a pack like the one it was trained on"
        )
    made, settings = generate_volumes(
        pipe, count, seed=seed, prompt=prompt, steps=steps, guidance=guidance, cache=cache
    )
    judge = kept_segmenter([real.train], len(names), how, seeds[0], cache)
    parts = {
        "similarity": _similarity(made, real, pairs, seed),
        "feature_distance": _feature_distance(made, real, judge, seed),
        "sizes": _sizes(made, real, judge, seed),
        "copies": find_copies(made.images, real.train.images, real.unseen.images, seed),
        "utility": {
            "training": asdict(how),
            **compare_segmenters(
                real.train, made, real.unseen, names, counts=counts, seeds=seeds, how=how, cache=cache
            ),
        },
    }
    result = {
        "what": "volumes",
        "seed": seed,
        "seeds": list(seeds),
        "settings": settings,
        "labels": list(names),
        "counts": {"training": len(real.train), "unseen": len(real.unseen), "synthetic": len(made)},
        "shape": list(made.images.shape[1:]),
        "limits": LIMITS,
        "judged": judged(parts),
        **parts,
    }
    if sheet is not None:
        result["sheet"] = write_volume_sheet(sheet, made, measured(made.masks, len(names), real.voxel), names, seed)
    return result


def _similarity(made: VolumePairs, real: RealVolumes, pairs: int, seed: int) -> dict[str, Any]:
    scales, kernel = scales_for(made.images.shape[1:])
    sets = {"synthetic": made, "unseen": real.unseen, "training": real.train}
    found = {name: volume_similarity(one.images, pairs=pairs, seed=seed) for name, one in sets.items()}
    return {
        "measure": f"3D MS-SSIM by MONAI, {scales} scales, kernel of {kernel} voxels",
        "pairs": pairs,
        **{name: asdict(one) for name, one in found.items()},
        "difference_from_unseen": difference(found["synthetic"], found["unseen"]),
        "difference_from_training": difference(found["synthetic"], found["training"]),
        "floor": difference(found["training"], found["unseen"]),
    }


def _feature_distance(made: VolumePairs, real: RealVolumes, judge: Any, seed: int) -> dict[str, Any]:
    some = np.random.default_rng([seed, 9]).permutation(len(real.train))[: len(made)]
    training = real.train.images[some]
    sets = {"synthetic": made.images, "floor": training, "blurred": blurred(training)}
    found: dict[str, Any] = {}
    for space, words in SPACES.items():
        if space == "slices":
            features = {name: slice_features(images, f"{name} volumes") for name, images in sets.items()}
            unseen = slice_features(real.unseen.images, "unseen volumes")
        else:
            raw = middle_features(judge, real.unseen.images)
            features = {name: standardised(middle_features(judge, images), raw) for name, images in sets.items()}
            unseen = standardised(raw, raw)
        found[space] = {"features": words, **distances_from(features, unseen, seed)}
    return {
        "against": "unseen real volumes; `floor` is real training volumes, `blurred` those after a Gaussian of "
        f"{BLUR} voxels",
        **found,
    }


def _sizes(made: VolumePairs, real: RealVolumes, judge: Any, seed: int) -> dict[str, Any]:
    labels = len(real.labels)
    assert made.requested is not None
    by_judge = segment(judge, made.images)
    scores = dice(by_judge, made.masks, labels)
    unseen = segment(judge, real.unseen.images)
    truth = measured(real.unseen.masks, labels, real.voxel)
    return {
        "by_label_map": agreement(made.requested, measured(made.masks, labels, real.voxel), real.labels, seed),
        "by_segmenter": agreement(made.requested, measured(by_judge, labels, real.voxel), real.labels, seed),
        "segmenter_on_unseen_real": agreement(truth, measured(unseen, labels, real.voxel), real.labels, seed),
        "dice_of_label_map_and_segmenter": {name: float(scores[:, k].mean()) for k, name in enumerate(real.labels)},
        "dice_of_segmenter_on_unseen_real": {
            name: float(dice(unseen, real.unseen.masks, labels)[:, k].mean()) for k, name in enumerate(real.labels)
        },
    }


def judged(parts: dict[str, Any]) -> list[dict[str, Any]]:
    """List what is asked of the model: `question`, `value`, its interval, the `bar`, and whether to be at `least` it.

    `holds` is of the value alone, but for the Dice gained, which holds where the intervals over seeds do not overlap;
    None where it could not be measured.
    """
    found: list[dict[str, Any]] = []

    def ask(question: str, one: dict[str, Any] | None, bar: float, least: bool, words: str = "") -> None:
        value = None if one is None else one["value"]
        holds = None if value is None else bool(value >= bar if least else value <= bar)
        ends = {"low": None, "high": None} if one is None else {key: one[key] for key in ("low", "high")}
        found.append(
            {"question": question, "value": value, **ends, "bar": bar, "least": least, "holds": holds, "words": words}
        )

    for way, said in (("by_label_map", "label map"), ("by_segmenter", "image, by a segmenter trained on real ones")):
        for name, one in parts["sizes"][way].items():
            ask(f"Correlation of {name} volume, requested and in the {said}", one["correlation"], CORRELATION_BAR, True)
    similarity = parts["similarity"]
    values = ", ".join(f"{name} {similarity[name]['value']:.3f}" for name in ("synthetic", "unseen", "training"))
    ask(
        "MS-SSIM among synthetic volumes, away from that among unseen real ones",
        similarity["difference_from_unseen"],
        SIMILARITY_BAR,
        False,
        values,
    )
    copies = parts["copies"]
    closest = copies["sets"]["synthetic"]["distance"]["minimum"]
    closer = {"value": copies["closer"], "low": copies["closer"], "high": copies["closer"]}
    words = f"nearest synthetic to training {closest:.3f}, nearest two real ones {copies['closest_real']:.3f}; "
    words += f"{copies['disguised_closer']:.0%} of disguised copies are nearer than that"
    ask("Synthetic volumes closer to a training volume than real volumes are to one another", closer, 0, False, words)
    utility = parts["utility"]
    dices = {(arm["regime"], arm["real"]): arm["dice"]["mean"] for arm in utility["arms"]}
    few = min(utility["gains"], key=int)  # where synthetic pairs should help most
    one, apart = utility["gains"][few], utility["gains"][few]["between_intervals"]
    gained = None if apart is None else {"value": one["value"], **apart}
    words = (
        f"Dice {dices['both', int(few)]:.3f} and {dices['real', int(few)]:.3f}; the interval is the gap between both's "
    )
    words += "intervals over seeds, so that it lies above 0 where they do not overlap"
    ask(f"Dice gained by adding synthetic pairs to {few} real, beside those duplicated", gained, 0, True, words)
    found[-1]["holds"] = None if apart is None else bool(apart["low"] > 0)
    ask("Dice trained on synthetic alone as a share of all real", utility["synthetic_share_of_real"], PASS_SHARE, True)
    return found
