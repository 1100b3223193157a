"""How far are synthetic images from unseen real ones? Several measures by several networks, with their controls.

Read each with its scale: the floor is what as many real training images get against the same unseen images, and the
blurs say what a known loss of sharpness costs. Measures: KID, Frechet distance, precision, recall, density, coverage
(see `set_measures`), and how alike the images are among themselves (MS-SSIM). By class too, where there are enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora.base_data import load_images
from pipeline.batch_maker import load_pipeline

from .compare import Side, blur, compare
from .feature_networks import feature_network
from .features import FeatureNetwork
from .folders import ImageSet, read_set
from .images import SIZE, count_by, generate, real_rows, spread
from .kid import DRAWS, MINIMUM_COUNT, Distance, kernel_distance
from .ranked_sheet import write_ranked_sheet
from .set_measures import NEIGHBOURS, REDRAWS, SSIM_PAIRS

__all__ = [
    "DRAWS",
    "MINIMUM_COUNT",
    "Distance",
    "blur",
    "compare",
    "fidelity",
    "fidelity_of_folders",
    "kernel_distance",
]
MEASURES = (
    "KID, unbiased, cubic polynomial kernel; 95 % bootstrap interval. FD: Frechet distance, strongly biased upwards in "
    f"small sets: compare it with the floor only. Precision, recall, density, coverage: {NEIGHBOURS} nearest "
    f"neighbours. MS-SSIM: mean over {SSIM_PAIRS} pairs within a set, high where images are alike. Intervals of all "
    "but KID: value and 1.96 bootstrap standard errors"
)


# Of the packs


def pack_class(row: dict[str, str]) -> str:
    """Class of a pack's row: normal lungs of two packs are two classes."""
    return f"{row['pack']}/{row['label']}"


def with_classes(
    rows: Sequence[dict[str, str]], drawn: list[dict[str, str]], per_class: int, seed: int, *, repeat: bool
) -> list[dict[str, str]]:
    """`drawn`, and behind it rows that bring each class up to `per_class`; without `repeat` as far as they last."""
    result = list(drawn)
    for name in sorted({pack_class(row) for row in rows}):
        members = [{**row, "class": name} for row in rows if pack_class(row) == name]
        missing = per_class - sum(pack_class(row) == name for row in drawn)
        if not repeat:
            used = {row["file_name"] for row in drawn if pack_class(row) == name}
            members = [row for row in members if row["file_name"] not in used]
            missing = min(missing, len(members))
        if missing > 0:
            result += spread(members, "class", {name: 1}, missing, seed)
    return result


def fidelity(
    modality: str,
    count: int,
    data: str | Path,
    *,
    model: str | Path = "pipeline",
    pipe: Any = None,
    synthetic: str | Path | None = None,
    networks: Sequence[str] = ("efficientnet-lite0",),
    per_class: int = 0,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int = 4,
    cache: str | Path | None = None,
    sheet: str | Path | None = None,
) -> dict[str, Any]:
    """Measure one modality against its val split.

    Parameters
    ----------
    modality
        User-facing name.
    count
        Images to generate, from the plain captions of val rows drawn at random with the packs in proportion; with
        `synthetic`, at most so many of the folder's images, drawn at random.
    data
        Folder with the packs.
    model, pipe
        Folder or Hub id of the pipeline, or the pipeline itself.
    synthetic
        Folder of DICOM or picture files to measure instead of generating.
    networks
        Names of feature networks, see `feature_network`; the first fills the head of the result.
    per_class
        Bring each class that has 20 val images up to so many generated ones, at least 20; 0 for none. Of a folder,
        classes are not measured here: use `fidelity_of_folders`.
    seed
        Of the draws, the bootstrap and the first image.
    steps, guidance, batch, cache
        As for `generate`.
    sheet
        JPEG for the best, the median and the worst of the images, see `ranked_sheet`; None for none.
    """
    if count < MINIMUM_COUNT:
        raise ValueError(f"`count` is {count}: KID needs at least {MINIMUM_COUNT} images")
    if per_class and per_class < MINIMUM_COUNT:
        raise ValueError(f"`per_class` is {per_class}: allowed are 0 and numbers from {MINIMUM_COUNT}")
    if per_class and synthetic is not None:
        raise ValueError(f"`per_class` is {per_class}: it draws images, which does not go with `synthetic`")
    val_rows, train_rows = real_rows(data, modality, "val"), real_rows(data, modality, "train")
    if len(val_rows) < MINIMUM_COUNT:
        raise ValueError(f"`data` holds {len(val_rows)} val images of {modality!r}: KID needs at least {MINIMUM_COUNT}")
    shares = count_by(val_rows, "pack")
    if synthetic is not None:
        found = _some(read_set(synthetic, size=SIZE, argument="synthetic", cache=cache), count, seed)
        made, facts = Side(found.images), _facts_of(found)
        settings: dict[str, Any] = {"source": "folder"}
    else:
        sizes = count_by([{"class": pack_class(row)} for row in val_rows], "class")
        large = [row for row in val_rows if sizes[pack_class(row)] >= MINIMUM_COUNT]
        drawn = with_classes(large, spread(val_rows, "pack", shares, count, seed), per_class, seed, repeat=True)
        pipe = pipe if pipe is not None else load_pipeline(model)
        how: dict[str, Any] = {"steps": steps, "guidance": guidance, "batch": batch, "cache": cache}
        images, settings = generate(pipe, [row["text"] for row in drawn], seed=seed, modality=modality, **how)
        settings |= {"source": "generated", "prompts_by_pack": count_by(drawn[:count], "pack")}
        made, facts = (
            Side(images, [pack_class(row) for row in drawn], count),
            _facts([row["text"] for row in drawn], seed),
        )
    leading = min(made.leading or len(made.images), len(train_rows))
    sample = spread(train_rows, "pack", shares, leading, seed)
    if made.labels is not None:
        sample = with_classes(train_rows, sample, max(per_class, MINIMUM_COUNT), seed, repeat=False)
    kept = Path(cache) if cache else None
    result = compare(
        made,
        Side(load_images(val_rows, SIZE, kept), [pack_class(row) for row in val_rows]),
        Side(load_images(sample, SIZE, kept), [pack_class(row) for row in sample], leading),
        networks=(seen := [feature_network(name, data=data, cache=cache) for name in networks]),
        seed=seed,
    )
    _write_sheet(sheet, made.images, result, facts)
    counts = {"synthetic": made.leading or len(made.images), "val": len(val_rows), "train_sample": leading}
    head = {"modality": modality, "seed": seed, "counts": {**counts, **_draws()}, "val_by_pack": shares}
    return {**_title(seen), **head, "settings": settings, **result}


def _title(networks: Sequence[FeatureNetwork]) -> dict[str, Any]:
    return {"what": "fidelity", "measure": MEASURES, "network": networks[0].description}


def _facts(prompts: Sequence[str], seed: int) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "seed": seed + number} for number, prompt in enumerate(prompts)]


def _facts_of(found: ImageSet) -> list[dict[str, Any]]:
    """What a folder says of its images: a file's name, and prompt and seed where `metadata.csv` has them."""
    known = (("prompt", "text"), ("seed", "seed"))
    return [
        {"name": name, **{key: row[column] for key, column in known if row.get(column)}}
        for name, row in zip(found.names, found.rows, strict=True)
    ]


def _write_sheet(
    path: str | Path | None, images: np.ndarray, result: dict[str, Any], facts: Sequence[dict[str, Any]]
) -> None:
    """Write the sheet if there is to be one, and put into the result what is on it."""
    found = result.pop("to_real")
    if path is not None:
        result["sheet"] = write_ranked_sheet(path, images, found, facts)


def _draws() -> dict[str, int]:
    return {"bootstrap": DRAWS, "bootstrap_of_other_measures": REDRAWS}


# Of anyone's folders


def _some(found: ImageSet, count: int, seed: int) -> ImageSet:
    if len(found) < MINIMUM_COUNT:
        raise ValueError(f"`synthetic` holds {len(found)} images: KID needs at least {MINIMUM_COUNT}")
    return found.take(np.sort(np.random.default_rng(seed).permutation(len(found))[:count]))


def unseen_and_floor(real: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """Real images in two: those to compare with, and those for the floor; no person or group is in both.

    As the folder says (val and test, train), else halves of the people drawn at random.
    """
    unseen = np.array([split in ("val", "test") for split in real.splits])
    if not unseen.any() or unseen.all() or "" in real.splits:
        order = np.random.default_rng(seed).permutation(np.unique(real.groups))
        sizes = np.array([(real.groups == group).sum() for group in order])
        unseen = np.isin(real.groups, order[np.cumsum(sizes) - sizes < len(real) / 2])
    known = np.isin(real.groups, real.groups[unseen])  # a split of a folder may divide people, or hold copies
    return real.take(unseen), real.take(~known)


def fidelity_of_folders(
    real: str | Path,
    synthetic: str | Path | None = None,
    *,
    count: int = 200,
    modality: str | None = None,
    model: str | Path = "pipeline",
    pipe: Any = None,
    networks: Sequence[str] = ("efficientnet-lite0",),
    data: str | Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int = 4,
    cache: str | Path | None = None,
    sheet: str | Path | None = None,
) -> dict[str, Any]:
    """Measure anyone's synthetic images against anyone's real ones, as a whole and class by class.

    Parameters
    ----------
    real
        Folder that `read_set` reads, of at least 40 images; see `unseen_and_floor` for what is compared with what.
    synthetic
        Another one; its classes must be called as those of `real` to be measured one by one. None to generate from
        captions, which are taken from the column `text` of the real folder's `metadata.csv`.
    count
        Images to generate, or at most so many of the folder's, drawn at random.
    modality
        Of the images to generate; None leaves the choice to the captions.
    model, pipe, steps, guidance, batch
        As for `generate`.
    networks, data, cache
        As for `feature_network`.
    seed
        Of the draws and the bootstrap.
    sheet
        As for `fidelity`.

    Raises
    ------
    ValueError
        A folder is none, is empty, has an unreadable file or too few images.
    """
    if count < MINIMUM_COUNT:
        raise ValueError(f"`count` is {count}: KID needs at least {MINIMUM_COUNT} images")
    known = read_set(real, size=SIZE, argument="real", cache=cache)
    if len(known) < 2 * MINIMUM_COUNT:
        raise ValueError(
            f"`real` holds {len(known)} images: {2 * MINIMUM_COUNT} are needed, half of them for the floor"
        )
    unseen, floor = unseen_and_floor(known, seed)
    if synthetic is not None:
        found = _some(read_set(synthetic, size=SIZE, argument="synthetic", cache=cache), count, seed)
        made, settings, facts = Side(found.images, found.labels), {"source": "folder"}, _facts_of(found)
    else:
        rows = [{**row, "class": row.get("label", ""), "all": ""} for row in unseen.rows if row.get("text")]
        if not rows:
            raise ValueError("`real` has no captions: generating needs a `metadata.csv` with a column `text`")
        drawn = spread(rows, "all", {"": 1}, count, seed)
        pipe = pipe if pipe is not None else load_pipeline(model)
        how: dict[str, Any] = {"steps": steps, "guidance": guidance, "batch": batch, "cache": cache}
        images, settings = generate(pipe, [row["text"] for row in drawn], seed=seed, modality=modality, **how)
        made = Side(images, [row["class"] for row in drawn] if all(row["class"] for row in drawn) else None)
        facts = _facts([row["text"] for row in drawn], seed)
    result = compare(
        made,
        Side(unseen.images, unseen.labels),
        Side(floor.images, floor.labels),
        networks=(seen := [feature_network(name, data=data, cache=cache) for name in networks]),
        seed=seed,
    )
    _write_sheet(sheet, made.images, result, facts)
    used = result["synthetic"]["count"]
    counts = {"synthetic": used, "val": len(unseen), "train_sample": used, **_draws()}
    people = {"val": len(np.unique(unseen.groups)), "floor": len(np.unique(floor.groups))}
    return {**_title(seen), "seed": seed, "counts": counts, "groups": people, "settings": settings, **result}
