"""Whether a picture shows what its prompt asked for: modality, plane, view, sex, side, class.

Asked of judges that learnt from real train images only, each beside its own accuracy on unseen real images: where a
judge cannot tell real images apart, its word on generated ones means nothing. With `draw`, several images a prompt are
made and the most faithful is kept. Then two judges that share no training image take part: one chooses, the other
says what was gained, for a judge always approves of what it chose itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lora.base_data import load_images, read_rows
from pipeline.adapter_names import parse_adapter
from pipeline.batch_maker import load_pipeline

from .classify import judge_images, worded_anew
from .images import SIZE, count_by, generate, spread
from .judge import (
    SIDES,
    TASKS,
    Judge,
    side_rows,
    task_rows,
    train_judge,
    train_side_judge,
    wilson_interval,
)
from .prompt_requests import Request, folder_requests

MINIMUM_COUNT = 10
# What is asked for together, and of which packs: each prompt of a group says all of it.
GROUPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "chest-xray": (("cxr_nih",), ("modality", "view", "sex")),
    "ct": (("ct_lung_iqothnccd", "ct_chest_luad", "ct_head_hemorrhage"), ("modality",)),
    "brain-mri": (("mri_brain_tumor",), ("modality", "plane", "brain-tumour")),
    "blood-smear": (("blood_pbc",), ("modality", "blood-cell")),
    "malaria": (("blood_malaria",), ("modality", "malaria")),
}
ALL_TASKS = (*TASKS, "side")
# Least accuracy, and least share of what the judge reaches on real images.
GOALS = {
    "modality": ("accuracy_of_4_modalities", 0.9),
    "plane": ("accuracy", 0.9),
    "brain-tumour": ("share_of_real", 0.7),
    "blood-cell": ("share_of_real", 0.7),
}


def draw_requests(
    data: str | Path, count: int, *, groups: Sequence[str] = tuple(GROUPS), seed: int = 0, varied: bool = False
) -> list[Request]:
    """Draw `count` prompts a group from captions of val rows, all combinations of answers equally often.

    Parameters
    ----------
    data
        Folder with the packs.
    count
        Prompts a group.
    groups
        Some of `GROUPS`.
    seed
        Decides which rows, and the wording.
    varied
        Word each caption anew as in training, with all that is asked for said, instead of the pack's plain text.

    Raises
    ------
    ValueError
        No such group, or no val row that answers all its questions.
    """
    rng = np.random.default_rng(seed)
    result = []
    for group in groups:
        if group not in GROUPS:
            raise ValueError(f"`groups` has {group!r}: allowed are {', '.join(GROUPS)}")
        packs, tasks = GROUPS[group]
        rows = []
        for row in read_rows(Path(data), packs, "val"):
            asked = {task: TASKS[task].answer(row) for task in tasks}
            if all(answer in TASKS[task].shares for task, answer in asked.items()):
                rows.append({**row, **{f"asked {task}": answer for task, answer in asked.items()}})
                rows[-1]["combination"] = " / ".join(asked.values())
        if not rows:
            raise ValueError(f"`data` has no val rows for {group!r} that answer {', '.join(tasks)}")
        combinations = dict.fromkeys((row["combination"] for row in rows), 1)
        for row in spread(rows, "combination", combinations, count, seed):
            prompt = worded_anew(row, tasks, rng) if varied else row["text"]
            asked = {task: row[f"asked {task}"] for task in tasks}
            if group == "chest-xray":
                asked["side"] = SIDES[0]
            result.append(Request(prompt, asked))
    return result


def make_judges(
    tasks: Sequence[str], data: str | Path, *, half: int | None = None, seed: int = 0, cache: str | Path | None = None
) -> dict[str, Judge]:
    """Train the judges of some of `ALL_TASKS`, or take them from `cache`; parameters as for `train_judge`."""
    return {
        task: train_side_judge(data, seed=seed, half=half, cache=cache)
        if task == "side"
        else train_judge(task, data, seed=seed, half=half, cache=cache)
        for task in tasks
    }


def judged_real(task: str, judge: Judge, data: str | Path, cache: str | Path | None = None) -> dict[str, Any]:
    """Score of a judge on unseen real images, which is what its word is worth."""
    kept = Path(cache) if cache else None
    if task == "side":
        images = np.asarray(load_images(rows := side_rows(data, "val"), SIZE, kept))
        both = np.concatenate([images, images[:, :, ::-1]])
        return judge_images(judge, both, [side for side in SIDES for _ in rows])
    rows = task_rows(task, data, "val")
    return judge_images(judge, load_images(rows, SIZE, kept), [row["answer"] for row in rows])


def by_request(judged: dict[str, Any], real: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Share of the images that show what was asked for, for each answer; beside it that of real images."""
    result = {}
    matrix, known = np.asarray(judged["confusion"]), np.asarray(real["confusion"])
    for index, name in enumerate(judged["classes"]):
        asked, shown = int(matrix[index].sum()), int(matrix[index, index])
        if asked == 0:
            continue
        low, high = wilson_interval(shown, asked)
        seen_as = {other: int(n) for other, n in zip(judged["classes"], matrix[index], strict=True) if n}
        total = int(known[index].sum())
        result[name] = {
            **{"asked": asked, "shown": shown, "share": shown / asked, "low": low, "high": high},
            "share_of_real_images": int(known[index, index]) / total if total else None,
            "seen_as": seen_as,
        }
    return result


def judge_requests(
    judges: dict[str, Judge], images: np.ndarray, requests: Sequence[Request]
) -> dict[str, dict[str, Any]]:
    """Score of each judge on the images whose prompt asked its question."""
    result = {}
    for task, judge in judges.items():
        some = [i for i, request in enumerate(requests) if task in request.asked]
        if some:
            result[task] = judge_images(judge, images[some], [requests[i].asked[task] for i in some])
    return result


def faithful_scores(judges: dict[str, Judge], images: np.ndarray, requests: Sequence[Request]) -> np.ndarray:
    """Geometric mean of the probabilities that the judges give to what was asked for, float64 (N,) in [0, 1].

    Raises
    ------
    ValueError
        A prompt asks nothing that a judge could answer.
    """
    logs, questions = np.zeros(len(images)), np.zeros(len(images))
    for task, judge in judges.items():
        some = np.array([i for i, request in enumerate(requests) if task in request.asked], int)
        if len(some):
            wanted = [judge.classes.index(requests[i].asked[task]) for i in some]
            found = judge.probabilities(images[some])[np.arange(len(some)), wanted]
            logs[some] += np.log(np.maximum(found, 1e-12))
            questions[some] += 1
    if not questions.all():
        raise ValueError(f"`requests` asks nothing in {requests[int(questions.argmin())].prompt!r}")
    return np.exp(logs / questions)


def keep_most_faithful(
    choosing: dict[str, Judge], measuring: dict[str, Judge], drawn: np.ndarray, requests: Sequence[Request], seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Keep one image a prompt; returns which draw of each, int (N,), and what was thrown away.

    Parameters
    ----------
    choosing, measuring
        Two judges a task that share no training image.
    drawn
        (draws, N, H, W, 3); draw j of prompt i has the seed `seed` + j * N + i.
    requests
        One a prompt.
    seed
        Of the first image.
    """
    draws, count = drawn.shape[:2]
    scores = np.stack([faithful_scores(choosing, images, requests) for images in drawn])
    best = scores.argmax(0)
    kept = drawn[best, np.arange(count)]
    before, after, flattered = (
        judge_requests(judges, images, requests)
        for judges, images in ((measuring, drawn[0]), (measuring, kept), (choosing, kept))
    )
    away = np.ones_like(scores, bool)
    away[best, np.arange(count)] = False
    return best, {
        "draws": draws,
        "kept": count,
        "thrown_away": int(away.sum()),
        "first_draw_kept": float((best == 0).mean()),
        "mean_score": {"kept": scores.max(0).mean(), "thrown_away": scores[away].mean() if draws > 1 else None},
        "tasks": {
            task: {
                "first_draw": before[task],
                "kept": after[task],
                "kept_as_the_choosing_judge_sees_it": flattered[task]["accuracy"],
            }
            for task in before
        },
        "images": [
            {
                "prompt": request.prompt,
                "kept_seed": seed + int(best[i]) * count + i,
                "thrown_away_seeds": [seed + j * count + i for j in range(draws) if j != best[i]],
                "scores": scores[:, i],
            }
            for i, request in enumerate(requests)
        ],
    }


def save_kept(folder: str | Path, images: np.ndarray, requests: Sequence[Request], found: dict[str, Any]) -> None:
    """Write the kept images as an imagefolder: PNG files, and a `metadata.csv` that is written last."""
    import csv

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "metadata.csv.part"
    with part.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, ["file_name", "text", "seed", *ALL_TASKS])
        writer.writeheader()
        for index, (image, request) in enumerate(zip(images, requests, strict=True)):
            name = f"{index:05d}.png"
            Image.fromarray(image).save(folder / name)
            seed = found["images"][index]["kept_seed"]
            writer.writerow({"file_name": name, "text": request.prompt, "seed": seed, **request.asked})
    part.replace(folder / "metadata.csv")


def faithfulness(
    data: str | Path,
    *,
    groups: Sequence[str] = tuple(GROUPS),
    count: int = 48,
    draw: int = 1,
    keep: str | Path | None = None,
    synthetic: str | Path | None = None,
    model: str | Path = "pipeline",
    adapter: Sequence[str] = (),
    pipe: Any = None,
    varied: bool = False,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int = 4,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """Table by request of what images show that were generated from prompts of known content.

    Parameters
    ----------
    data
        Folder with the packs, from which judges and prompts come.
    groups
        Some of `GROUPS`.
    count
        Prompts a group, at least 10.
    draw
        Images a prompt; from 2 on the most faithful is kept, and what that brought is reported.
    keep
        Folder for the kept images, with a `metadata.csv`.
    synthetic
        Folder to judge instead of generating: DICOM files with their recipe, or pictures with a `metadata.csv` that has
        a column `text`. What was asked for is then read out of the words.
    model, pipe, steps, guidance, batch, cache
        As for `generate`.
    adapter
        Adapters to draw with, each NAME_OR_PATH[:WEIGHT].
    varied
        As for `draw_requests`.
    seed
        Of the judges, the prompts and the first image.

    Raises
    ------
    ValueError
        Too few images, or a folder whose prompts ask nothing that a judge can answer.
    """
    if count < MINIMUM_COUNT:
        raise ValueError(f"`count` is {count}: numbers from {MINIMUM_COUNT} are allowed")
    if adapter and (synthetic is not None or pipe is not None):
        given = "`synthetic`, a folder of finished images" if synthetic is not None else "`pipe`, which has its own"
        raise ValueError(f"`adapter` is {', '.join(adapter)}, but so is {given}: allowed is one of them")
    adapters = [parse_adapter(text) for text in adapter]
    if draw < 1 or (synthetic is not None and draw > 1):
        raise ValueError(f"`draw` is {draw}: allowed are numbers from 1, and 1 for a folder of finished images")
    if keep is not None and draw < 2:
        raise ValueError(f"`keep` is given, but `draw` is {draw}: with 2 or more, the most faithful are kept")
    if synthetic is not None:
        images, requests = folder_requests(synthetic, cache)
        settings: dict[str, Any] = {"source": "folder"}
        drawn = images[None]
    else:
        requests = draw_requests(data, count, groups=groups, seed=seed, varied=varied)
        pipe = pipe if pipe is not None else load_pipeline(model, adapters=adapters)
        prompts = [request.prompt for request in requests] * draw
        # No modality is passed on: the words alone must do.
        images, settings = generate(pipe, prompts, seed=seed, steps=steps, guidance=guidance, batch=batch, cache=cache)
        settings["source"] = "generated"
        drawn = images.reshape(draw, len(requests), *images.shape[1:])
    tasks = [task for task in ALL_TASKS if any(task in request.asked for request in requests)]
    judges = make_judges(tasks, data, seed=seed, cache=cache)
    shown = judge_requests(judges, drawn[0], requests)
    table: dict[str, Any] = {}
    for task in tasks:
        real = judged_real(task, judges[task], data, cache)
        known = real["balanced_accuracy"]
        share = shown[task]["balanced_accuracy"] / known if known else None  # of a judge that is never right
        able = real["accuracy_low"] > real["chance"]
        row = {"real_val": real, "generated": shown[task], "share_of_real": share, "judge_is_able": able}
        table[task] = {**row, "by_request": by_request(shown[task], real), **reached(task, shown[task], share)}
    result: dict[str, Any] = {
        "what": "faithfulness",
        "judges": "linear on EfficientNet-Lite0 features at 128 px, trained on the real train split only",
        "captions": "varied" if varied else "plain",
        "seed": seed,
        "counts": {"images": len(requests), "asked": count_by([{"t": t} for r in requests for t in r.asked], "t")},
        "settings": settings,
        "tasks": table,
    }
    if draw > 1:
        choosing, measuring = (make_judges(tasks, data, half=half, seed=seed, cache=cache) for half in (0, 1))
        best, result["draw"] = keep_most_faithful(choosing, measuring, drawn, requests, seed)
        if keep is not None:
            save_kept(keep, drawn[best, np.arange(len(requests))], requests, result["draw"])
    return result


def reached(task: str, judged: dict[str, Any], share: float | None) -> dict[str, Any]:
    """Say whether a task's goal is met; nothing for a task without one."""
    if task not in GOALS:
        return {}
    what, least = GOALS[task]
    value = share if what == "share_of_real" else judged[what]
    return {"goal": {"of": what, "at_least": least, "value": value, "met": bool(value is not None and value >= least)}}
