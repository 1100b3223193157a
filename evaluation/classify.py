"""Does a generated image show what its prompt asked for? Asked of judges that have seen real images only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora.base_data import load_images
from lora.captions import vary_caption
from pipeline.batch_maker import load_pipeline

from .images import SIZE, count_by, generate, spread
from .judge import TASKS, Judge, score, task_rows, train_judge

MINIMUM_COUNT = 10
# What a caption must say for its task; of the others the finding.
NEEDED = {"modality": "pack_group", "plane": "view", "view": "view", "sex": "sex"}


def draw_prompts(
    task: str, data: str | Path, count: int, *, seed: int = 0, varied: bool = False
) -> tuple[list[str], list[str]]:
    """Prompts that name their class, from captions of val rows, and the classes.

    Parameters
    ----------
    task
        One of `TASKS`; its classes are asked for in equal shares (the modality task: the four modalities).
    data
        Folder with the packs.
    count
        How many prompts.
    seed
        Decides which rows, and the wording.
    varied
        Word each caption anew as in training, with its class always said, instead of the pack's plain text.
    """
    rows = spread(task_rows(task, data, "val"), "answer", TASKS[task].shares, count, seed)
    if not varied:
        return [row["text"] for row in rows], [row["answer"] for row in rows]
    rng = np.random.default_rng(seed)
    return [worded_anew(row, [task], rng) for row in rows], [row["answer"] for row in rows]


def worded_anew(row: dict[str, str], tasks: Sequence[str], rng: np.random.Generator) -> str:
    """A caption of a row in other words, in which the answer to each of some tasks is said."""
    needed = {NEEDED.get(task, "finding") for task in tasks}
    caption = vary_caption(row, rng)
    while not needed <= set(caption.said):
        caption = vary_caption(row, rng)
    return caption.text


def judge_images(judge: Judge, images: np.ndarray, answers: Sequence[str]) -> dict[str, Any]:
    """Score what the judge says of images that should show `answers`."""
    indices = [judge.classes.index(answer) for answer in answers]
    predicted = judge.predict(images)
    result = score(indices, predicted, judge.classes)
    if judge.task == "modality":
        # "ct" is one modality for the user: head taken for chest is the wrong place, not the wrong modality.
        names = np.array(["ct" if name.startswith("ct-") else name for name in judge.classes])
        result["accuracy_of_4_modalities"] = float((names[indices] == names[predicted]).mean())
    return result


def classify(
    data: str | Path,
    *,
    tasks: Sequence[str] = ("modality", "blood-cell", "brain-tumour"),
    count: int = 200,
    model: str | Path = "pipeline",
    pipe: Any = None,
    varied: bool = False,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int = 4,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """Accuracy of each task's judge on real val images and on images generated from prompts of known class.

    Parameters
    ----------
    data
        Folder with the packs.
    tasks
        Some of `TASKS`.
    count
        Images to generate a task; 0 trains and checks the judges alone.
    model, pipe
        Folder or Hub id of the pipeline, or the pipeline itself.
    varied
        As for `draw_prompts`.
    seed
        Of the judges, the prompts and the first image.
    steps, guidance, batch, cache
        As for `generate`.
    """
    if count != 0 and count < MINIMUM_COUNT:
        raise ValueError(f"`count` is {count}: allowed are 0 (judges only) and {MINIMUM_COUNT} or more")
    for task in tasks:
        if task not in TASKS:
            raise ValueError(f"`task` is {task!r}: allowed are {', '.join(TASKS)}")
    if count and pipe is None:
        pipe = load_pipeline(model)
    results: dict[str, Any] = {}
    for task in tasks:
        judge = train_judge(task, data, seed=seed, cache=cache)
        val_rows = task_rows(task, data, "val")
        val = load_images(val_rows, SIZE, Path(cache) if cache else None)
        results[task] = {"real_val": judge_images(judge, val, [row["answer"] for row in val_rows])}
        if count:
            prompts, answers = draw_prompts(task, data, count, seed=seed, varied=varied)
            # No modality is passed on: the words alone must do.
            images, settings = generate(
                pipe, prompts, seed=seed, steps=steps, guidance=guidance, batch=batch, cache=cache
            )
            results[task]["generated"] = judge_images(judge, images, answers)
            results[task] |= {"settings": settings, "asked_for": count_by([{"a": a} for a in answers], "a")}
    return {
        "what": "classify",
        "judges": "linear on EfficientNet-Lite0 features at 128 px, trained on the real train split only",
        "captions": "varied" if varied else "plain",
        "seed": seed,
        "counts": {"generated_per_task": count},
        "tasks": results,
    }
