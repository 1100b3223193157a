"""What the networks of `evaluation utility` are trained on and tested on: sets divided by people, and what is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lora.base_data import PACKS
from lora.data_split import split_people
from pipeline.batch_maker import load_pipeline

from .folders import ImageSet, count_classes, read_set
from .images import generate, spread

DOMAINS = {
    "brain-tumour": "mri_brain_tumor",
    "blood-cell": "blood_pbc",
    "lung-ct": "ct_lung_iqothnccd",
    "chest-xray": "cxr_kermany",
    "tuberculosis": "cxr_shenzhen_tb",
}
PAPER_DOMAINS = ("brain-tumour", "blood-cell", "lung-ct", "chest-xray")  # the three of the paper, and one
REGIMES = ("real", "synthetic", "both", "duplicated", "shuffled")


@dataclass(frozen=True, eq=False)
class Task:
    """Two labelled sets to learn from and one of unseen people to be tested on; labels are indices into `classes`."""

    classes: tuple[str, ...]
    train: tuple[np.ndarray, np.ndarray]
    synthetic: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    test_groups: np.ndarray


def split_real(real: ImageSet, *, seed: int = 0) -> tuple[ImageSet, ImageSet, int]:
    """Divide a set into what may be trained on and what is tested on, by people.

    The test images are the split "test" of the set, else "val", else a fifth of the people. Images of people who are
    in the test set are dropped from the others: the third value says how many.

    Raises
    ------
    ValueError
        No classes or one, an image without a class, or a side that lacks a class.
    """
    if real.labels is None or len(real.classes) < 2:
        raise ValueError(
            f"`real` has {len(real.classes)} classes: at least 2 are needed, one subfolder or `label` each"
        )
    if not all(real.labels):
        raise ValueError(f"`real` has {real.labels.count('')} images without a class: each needs one")
    splits = np.array(real.splits)
    wanted = next((name for name in ("test", "val") if (splits == name).any()), None)
    if wanted:
        held = splits == wanted
    else:
        held = split_people(real.groups, np.full(len(real), -1), 0.2, np.random.default_rng(seed))
    leaking = ~held & np.isin(real.groups, real.groups[held])
    train, test = real.take(~held & ~leaking), real.take(held)
    for name, side in (("training", train), ("test", test)):
        absent = sorted(set(real.classes) - set(side.classes))
        if absent:
            raise ValueError(
                f"`real` has no {name} image of {', '.join(absent)}: every class needs people on both sides"
            )
    return train, test, int(leaking.sum())


def make_task(real: ImageSet, synthetic: ImageSet, *, real_count: int | None, seed: int = 0) -> tuple[Task, int]:
    """Bring a real and a synthetic set together; the second value is how many images `split_real` dropped.

    Parameters
    ----------
    real, synthetic
        Of equal size and classes; the synthetic ones are used in the order in which they come.
    real_count
        Most real training images, drawn at random; None for all.
    seed
        Of that draw.
    """
    train, test, dropped = split_real(real, seed=seed)
    if synthetic.classes != real.classes:
        raise ValueError(
            f"`synthetic` has the classes {', '.join(synthetic.classes) or '(none)'}: they must be those of `real`, "
            f"{', '.join(real.classes)}"
        )
    if real_count is not None and real_count < len(train):
        rows = [{"label": label, "index": str(i)} for i, label in enumerate(train.labels or ())]
        drawn = spread(rows, "label", count_classes(train.labels or ()), real_count, seed)
        train = train.take([int(row["index"]) for row in drawn])

    def pair(images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
        return images.images, np.array([real.classes.index(label) for label in images.labels or ()])

    return Task(real.classes, pair(train), pair(synthetic), pair(test), test.groups), dropped


def training_set(task: Task, regime: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What a network is trained on.

    Parameters
    ----------
    task
        See `make_task`.
    regime
        "real" (TRTR); "synthetic" (TSTR); "both"; "duplicated", real images drawn again until there are as many as in
        "both"; "shuffled", real images with labels dealt anew, which must end at chance.
    count
        How many of the synthetic images, from the first.
    seed
        Of the duplicates and the shuffling.
    """
    if regime not in REGIMES:
        raise ValueError(f"`regime` is {regime!r}: allowed are {', '.join(REGIMES)}")
    (images, labels), (made, made_labels) = task.train, tuple(part[:count] for part in task.synthetic)
    rng = np.random.default_rng(seed)
    if regime == "synthetic":
        return made, made_labels
    if regime == "both":
        return np.concatenate([images, made]), np.concatenate([labels, made_labels])
    if regime == "duplicated":
        rounds = [rng.permutation(len(images)) for _ in range(-(-len(made) // len(images)))]
        order = np.concatenate([np.arange(len(images)), *rounds])[: len(images) + len(made)]
        return images[order], labels[order]
    return images, shuffled(labels, rng) if regime == "shuffled" else labels


def shuffled(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Deal labels (N,) out anew, to each true class all labels in their overall proportions.

    A plain permutation leaves a little of the truth by chance, and on classes that are easy to tell apart a network
    finds that little and makes all of it.
    """
    rank = np.empty(len(labels))
    for one in np.unique(labels):
        members = np.flatnonzero(labels == one)
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    order = np.lexsort((rng.random(len(labels)), labels))  # by true class, at random within
    dealt = np.empty_like(labels)
    dealt[order] = labels[np.argsort(rank, kind="stable")]
    return dealt


def synthetic_set(
    real: ImageSet,
    *,
    count: int,
    size: int,
    model: str | Path = "pipeline",
    pipe: Any = None,
    modality: str | None = None,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int = 4,
    cache: str | Path | None = None,
) -> tuple[ImageSet, dict[str, Any]]:
    """Draw images with the captions of the real training images, every class as often; and the settings.

    Parameters
    ----------
    real
        With a `text` and a label for every image; see `read_set`.
    count
        Images in all; any first part of them holds the classes in equal shares too.
    size
        Side to which they are brought, as the real ones are.
    model, pipe, modality, seed, steps, guidance, batch, cache
        As for `generate`.
    """
    train, _, _ = split_real(real, seed=seed)
    rows = [
        {"label": label, "text": row.get("text", "")} for label, row in zip(train.labels or (), train.rows, strict=True)
    ]
    if not all(row["text"] for row in rows):
        raise ValueError("`real` has no `text` for some images: to draw by caption, `metadata.csv` needs that column")
    drawn = spread(rows, "label", dict.fromkeys(real.classes, 1), count, seed)
    pipe = pipe if pipe is not None else load_pipeline(model)
    images, settings = generate(
        pipe,
        [row["text"] for row in drawn],
        seed=seed,
        modality=modality,
        steps=steps,
        guidance=guidance,
        batch=batch,
        cache=cache,
    )
    images = resized(images, size)
    names = tuple(f"generated {number}" for number in range(count))
    labels = tuple(row["label"] for row in drawn)
    return ImageSet(images, labels, np.arange(count), names, ("",) * count, tuple(drawn)), settings


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """Bring uint8 images (N, H, W, 3) to another side, antialiased."""
    if images.shape[1:3] == (size, size):
        return images
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    pixels = functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return pixels.round().clamp(0, 255).permute(0, 2, 3, 1).numpy().astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Pair:
    """A real and a synthetic set of one domain.

    `folder` is that of the real set, `settings` say what made the synthetic one, `dropped` how many real images
    `split_real` dropped.
    """

    name: str
    folder: Path
    real: ImageSet
    synthetic: ImageSet
    settings: dict[str, Any]
    task: Task
    dropped: int


def pairs(
    *,
    count: int,
    per_class: bool = False,
    real: str | Path | None = None,
    synthetic: str | Path | None = None,
    domains: Sequence[str] = PAPER_DOMAINS,
    data: str | Path = "../shared/data/images",
    label_column: str = "label",
    real_count: int | None = 600,
    size: int = 64,
    model: str | Path = "pipeline",
    pipe: Any = None,
    cache: str | Path | None = None,
    **drawing: Any,
) -> Iterator[Pair]:
    """Give the sets of each domain of the packs, or of a folder of one's own.

    Parameters
    ----------
    count
        Most synthetic images.
    per_class
        `count` is of each class: so many are drawn, and a folder's are all taken.
    real, synthetic
        Folders as for `read_set`; with `real` there is one domain, "own". Without `synthetic` the model draws the
        images from the captions.
    domains, data, label_column
        Some of `DOMAINS`, the folder with the packs, and the column of the classes.
    real_count
        Most real training images of a domain; None for all.
    size
        Side of all images in pixels.
    model, pipe, cache, drawing
        As for `synthetic_set`.

    Raises
    ------
    ValueError
        An argument is not one of those allowed, or a folder is not as it must be.
    """
    wrong = [one for one in domains if one not in DOMAINS]
    if wrong or not domains:
        raise ValueError(f"`domains` has {', '.join(wrong) or 'nothing'}: allowed are {', '.join(DOMAINS)}")
    if count < (1 if per_class else 2) or (real_count is not None and real_count < 2):
        raise ValueError(f"`count` is {count}, `real_count` {real_count}: too few, a network learns from 2 images up")
    if synthetic is not None and real is None:
        raise ValueError("`real` is missing: a folder of synthetic images is compared with a folder of real ones")
    sources = {"own": Path(real)} if real is not None else {name: Path(data) / DOMAINS[name] for name in domains}
    for name, folder in sources.items():
        images = read_set(folder, size=size, label_column=label_column, argument="real", cache=cache)
        settings: dict[str, Any]
        if synthetic is not None:
            made = read_set(synthetic, size=size, label_column=label_column, argument="synthetic", cache=cache)
            order = np.random.default_rng(0).permutation(len(made))
            made, settings = made.take(order if per_class else order[:count]), {"source": "folder"}
        else:
            split_real(images)  # before a model is loaded
            pipe = pipe if pipe is not None else load_pipeline(model)
            modality = PACKS.get(DOMAINS.get(name, ""))
            wanted = count * len(images.classes) if per_class else count
            made, settings = synthetic_set(
                images, count=wanted, size=size, pipe=pipe, modality=modality, cache=cache, **drawing
            )
            settings = {"source": "generated", **settings}
        task, dropped = make_task(images, made, real_count=real_count)
        yield Pair(name, folder, images, made, settings, task, dropped)
