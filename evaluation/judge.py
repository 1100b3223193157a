"""Judges: what does a picture show? Trained on real train images only, never on generated ones.

Each is a linear layer on EfficientNet-Lite0 features of 128 pixel images; at that size shape counts for more than fine
texture. Shifted, zoomed and brightened copies join the training set; nothing is flipped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lora.base_data import PACKS, files_of, load_images, read_rows

from .features import extract_features
from .images import SIZE, count_by, spread

JUDGE_SIZE = 128
COPIES = 2  # augmented copies of each training image, beside the image itself
MODALITY_ROWS = 300  # training images a pack that the modality judge takes at most
SIDE_ROWS = 150  # likewise of the judge of sides, which sees each twice
DECAY = 0.1  # chosen on bare features: val accuracy moves by 2 points between 0.001 and 0.1


def kind_of(row: dict[str, str]) -> str:
    """Modality of a row, with the two places that CT is taken of kept apart."""
    if row["pack"] == "ct_head_hemorrhage":
        return "ct-head"
    return "ct-chest" if PACKS[row["pack"]] == "ct" else PACKS[row["pack"]]


def label_of(row: dict[str, str]) -> str:
    """Take the pack's own label of a row."""
    return row["label"]


def view_of(row: dict[str, str]) -> str:
    """Take the view of a radiograph or the plane of a slice."""
    return row.get("view", "")


def sex_of(row: dict[str, str]) -> str:
    """Take the sex of a row, "F" or "M", or "" where it is not known."""
    return row.get("sex", "")


@dataclass(frozen=True)
class Task:
    """A question with a closed set of answers: which packs hold it, and where a row has the answer."""

    packs: tuple[str, ...]
    answer: Callable[[dict[str, str]], str]
    shares: dict[str, int]  # classes, and how often a prompt asks for each


CELLS = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "immature_granulocyte",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
)
TASKS = {
    "modality": Task(
        tuple(PACKS), kind_of, {"chest-xray": 2, "ct-chest": 1, "ct-head": 1, "brain-mri": 2, "blood-smear": 2}
    ),
    "blood-cell": Task(("blood_pbc",), label_of, dict.fromkeys(CELLS, 1)),
    "malaria": Task(("blood_malaria",), label_of, dict.fromkeys(("parasitized", "uninfected"), 1)),
    "brain-tumour": Task(("mri_brain_tumor",), label_of, dict.fromkeys(("glioma", "meningioma", "pituitary"), 1)),
    "plane": Task(("mri_brain_tumor",), view_of, {"axial": 1, "coronal": 1}),
    # One pack alone for both: between packs the source would give the answer away.
    "view": Task(("cxr_nih",), view_of, {"PA": 1, "AP": 1}),
    "sex": Task(("cxr_nih",), sex_of, {"F": 1, "M": 1}),
}
SIDES = ("as taken", "mirrored")  # of a chest X-ray: the heart lies on the picture's right, or on its left
SIDE_PACKS = ("cxr_kermany", "cxr_nih", "cxr_shenzhen_tb")


def task_rows(task: str, data: str | Path, split: str) -> list[dict[str, str]]:
    """Rows of a task's packs, each with its `answer`.

    Raises
    ------
    ValueError
        No such task.
    """
    if task not in TASKS:
        raise ValueError(f"`task` is {task!r}: allowed are {', '.join(TASKS)}")
    rows = [{**row, "answer": TASKS[task].answer(row)} for row in read_rows(Path(data), TASKS[task].packs, split)]
    return [row for row in rows if row["answer"] in TASKS[task].shares]


def augment(images: np.ndarray, seed: int) -> np.ndarray:
    """Each uint8 image (N, H, W, 3) a little shifted, zoomed and brightened; edges are repeated outwards."""
    rng = np.random.default_rng(seed)
    count = len(images)
    transform = torch.zeros(count, 2, 3)
    transform[:, 0, 0] = transform[:, 1, 1] = torch.from_numpy(rng.uniform(0.88, 1.08, count)).float()
    transform[:, :, 2] = torch.from_numpy(rng.uniform(-0.08, 0.08, (count, 2))).float()
    gain = torch.from_numpy(rng.uniform(0.85, 1.15, (count, 1, 1, 1))).float()
    offset = torch.from_numpy(rng.uniform(-0.06, 0.06, (count, 1, 1, 1))).float()
    result = np.empty_like(images)
    for start in range(0, count, 64):
        part = slice(start, start + 64)
        pixels = torch.from_numpy(np.array(images[part])).permute(0, 3, 1, 2).float() / 255
        grid = functional.affine_grid(transform[part], list(pixels.shape), align_corners=False)
        moved = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
        changed = ((moved - 0.5) * gain[part] + 0.5 + offset[part]).clamp(0, 1)
        result[part] = (changed * 255).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)
    return result


def judge_features(images: np.ndarray, halves: bool, description: str) -> np.ndarray:
    """Features that a judge sees, (N, D); with `halves` of the left half and the flipped right half, side by side.

    The network averages over the picture and was taught that a flip changes nothing: of the whole it could not tell
    left from right.
    """
    if not halves:
        return extract_features(images, size=JUDGE_SIZE, description=description)
    middle = images.shape[2] // 2
    sides = images[:, :, :middle], images[:, :, ::-1][:, :, :middle]
    return np.concatenate([extract_features(side, size=JUDGE_SIZE, description=description) for side in sides], axis=1)


@dataclass(frozen=True)
class Judge:
    """A trained judge; `weight` is (features, classes), and `halves` as for `judge_features`."""

    task: str
    classes: tuple[str, ...]
    weight: np.ndarray
    bias: np.ndarray
    halves: bool = False

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Of each class for each image, (N, classes)."""
        features = judge_features(images, self.halves, f"judging, {self.task}")
        logits = features @ self.weight + self.bias
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Index into `classes` for each image."""
        return self.probabilities(images).argmax(1)


def fit_linear(
    features: np.ndarray, labels: np.ndarray, classes: int, decay: float = DECAY
) -> tuple[np.ndarray, np.ndarray]:
    """Softmax regression on standardised features, classes weighted equally; returns (weight, bias).

    The standardisation is folded into what is returned. The problem is convex: no seed is involved.
    """
    mean, deviation = features.mean(0), features.std(0) + 1e-3
    inputs = torch.from_numpy((features - mean) / deviation)
    targets = torch.from_numpy(labels.astype(np.int64))
    sizes = np.bincount(labels, minlength=classes)
    balance = torch.from_numpy((len(labels) / (classes * np.maximum(sizes, 1))).astype(np.float32))
    weight = torch.zeros(features.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(inputs @ weight + bias, targets, weight=balance) + decay * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    scaled = weight.detach().numpy() / deviation[:, None]
    return scaled.astype(np.float32), (bias.detach().numpy() - mean @ scaled).astype(np.float32)


def in_half(row: dict[str, str], half: int) -> bool:
    """Say whether a row's person or group belongs to one half (0 or 1) of all, by a hash."""
    group = f"{row['pack']} {row.get('group_id') or row['file_name']}"
    return hashlib.sha256(group.encode()).digest()[0] % 2 == half


def train_judge(
    task: str, data: str | Path, *, seed: int = 0, half: int | None = None, cache: str | Path | None = None
) -> Judge:
    """Train the judge of a task on the train split, or take it from `cache`.

    Parameters
    ----------
    task
        One of `TASKS`.
    data
        Folder with the packs.
    seed
        Of the augmentations and of which rows the modality judge takes.
    half
        Train on one half of the people and groups, 0 or 1: two judges that share no image. None for all.
    cache
        Folder for trained judges and squared images.
    """
    rows = [row for row in task_rows(task, data, "train") if half is None or in_half(row, half)]
    if task == "modality":
        sizes = count_by(rows, "pack")
        rows = [row for pack in sizes for row in spread(rows, "pack", {pack: 1}, min(sizes[pack], MODALITY_ROWS), seed)]
    classes = tuple(TASKS[task].shares)
    labels = [classes.index(row["answer"]) for row in rows]
    recipe = [task, seed, files_of(rows), labels]

    def parts() -> Iterator[tuple[np.ndarray, list[int]]]:
        yield load_images(rows, SIZE, Path(cache) if cache else None), labels

    return fit_judge(task, classes, parts(), recipe, seed=seed, cache=cache)


def side_rows(data: str | Path, split: str, half: int | None = None) -> list[dict[str, str]]:
    """Chest X-rays whose sides are known: they were not mirrored."""
    return [row for row in read_rows(Path(data), SIDE_PACKS, split) if half is None or in_half(row, half)]


def train_side_judge(
    data: str | Path, *, seed: int = 0, half: int | None = None, cache: str | Path | None = None
) -> Judge:
    """Train a judge that tells chest X-rays from their mirror images; parameters as for `train_judge`.

    The only thing that it is shown mirrored images for. It may go by letters on the film as well as by the heart.
    """
    rows = side_rows(data, "train", half)
    sizes = count_by(rows, "pack")
    rows = [row for pack in sizes for row in spread(rows, "pack", {pack: 1}, min(sizes[pack], SIDE_ROWS), seed)]

    def parts() -> Iterator[tuple[np.ndarray, list[int]]]:
        images = np.asarray(load_images(rows, SIZE, Path(cache) if cache else None))
        for side, some in enumerate((images, images[:, :, ::-1])):
            yield np.ascontiguousarray(some), [side] * len(rows)

    recipe = ["side", seed, files_of(rows)]
    return fit_judge("side", SIDES, parts(), recipe, seed=seed, halves=True, cache=cache)


def fit_judge(
    task: str,
    classes: tuple[str, ...],
    parts: Iterable[tuple[np.ndarray, list[int]]],
    recipe: list[Any],
    *,
    seed: int = 0,
    halves: bool = False,
    cache: str | Path | None = None,
) -> Judge:
    """Fit a judge on real images and augmented copies of them, or take it from `cache`.

    Parameters
    ----------
    task
        Name of the judge.
    classes
        What it may answer.
    parts
        Images, uint8 (N, H, W, 3), with their index into `classes`; not read where the judge is cached.
    recipe
        All that decides which images these are, as JSON values.
    seed
        Of the augmentations.
    halves
        As for `judge_features`.
    cache
        Folder of trained judges.
    """
    text = json.dumps([recipe, classes, seed, COPIES, JUDGE_SIZE, DECAY])
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    stored = Path(cache) / f"judge-{task}-{key}.npz" if cache else None
    if stored and stored.is_file():
        with np.load(stored) as arrays:
            return Judge(task, classes, arrays["weight"], arrays["bias"], halves)
    features, labels = [], []
    for images, answers in parts:
        for copy in range(COPIES + 1):
            some = images if copy == 0 else augment(images, seed * COPIES + copy - 1)
            words = f"{task} judge, features {copy + 1} of {COPIES + 1}"
            features.append(judge_features(some, halves, words))
            labels += answers
    weight, bias = fit_linear(np.concatenate(features), np.array(labels), len(classes))
    if stored:
        stored.parent.mkdir(parents=True, exist_ok=True)
        part = stored.with_suffix(f".{os.getpid()}.part.npz")
        np.savez(part, weight=weight, bias=bias)
        part.replace(stored)
    return Judge(task, classes, weight, bias, halves)


def score(answers: Sequence[int] | np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Accuracy with its 95 % interval, class-balanced accuracy, chance level and confusion matrix (rows: asked for)."""
    matrix = np.zeros((len(classes), len(classes)), int)
    np.add.at(matrix, (np.asarray(answers), predicted), 1)
    count, right = int(matrix.sum()), int(np.trace(matrix))
    present = matrix.sum(1) > 0
    low, high = wilson_interval(right, count)
    return {
        "count": count,
        "accuracy": right / count,
        "accuracy_low": low,
        "accuracy_high": high,
        "balanced_accuracy": float((np.diag(matrix)[present] / matrix.sum(1)[present]).mean()),
        "chance": 1 / len(classes),
        "classes": list(classes),
        "confusion": matrix,
    }


def wilson_interval(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share, sound for small counts and for shares near 0 and 1."""
    share = right / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return float(centre - half), float(centre + half)
