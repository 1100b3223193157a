"""Where does a classifier look? LIME (Ribeiro et al. 2016) on real and synthetic images, side by side.

One network is trained on real images and asked about unseen real people and about synthetic images. Where the data
says where the finding is (a tumour's box, a lung's mask), the share of the explanation that falls inside is measured,
beside the share that weights laid at random would have there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from pipeline.dicom_input import BORDER_WIDTH, DARK_BORDER, read_image, square
from pipeline.dicom_limits import attempt

from .explain_sheet import draw_overlays
from .folders import ImageSet
from .privacy_pairs import outside_the_project
from .training import Training, kept_network, probabilities
from .utility_results import interval_of_mean
from .utility_sets import pairs, split_real

SHOWN = 2  # rows of the sheet a class


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why a network says what it says of one image.

    Attributes
    ----------
    segments : numpy.ndarray
        int (H, W), the superpixel of each pixel, from 0.
    weights : numpy.ndarray
        float (segments,): how much each speaks for the predicted class.
    predicted : int
        That class.
    probability : float
        Of that class.
    """

    segments: np.ndarray
    weights: np.ndarray
    predicted: int
    probability: float


def explain_image(
    network: nn.Module, image: np.ndarray, *, segments: int = 48, samples: int = 200, seed: int = 0
) -> Explanation:
    """Explain the class that a network gives an image, uint8 (H, W, 3).

    Parameters
    ----------
    network, image
        What is asked, and about what.
    segments
        About how many superpixels (SLIC) the image is cut into, from 4.
    samples
        Images with some superpixels blanked to their mean that the network is asked about, from 20.
    seed
        Of which are blanked.
    """
    if segments < 4 or samples < 20:
        raise ValueError(f"`segments` is {segments} and `samples` {samples}: at least 4 and 20 are needed")
    from lime.lime_image import LimeImageExplainer
    from skimage.segmentation import slic

    pixels = image.astype(np.float64) / 255
    cut = slic(pixels, n_segments=segments, compactness=10, start_label=0)
    if len(np.unique(cut)) < segments / 3:  # SLIC merges what is all noise or all flat: a grid then
        side = round(segments**0.5)
        rows, columns = (np.arange(length) * side // length for length in cut.shape)
        cut = rows[:, None] * side + columns
    numbers, place = np.unique(cut, return_inverse=True)
    cut = place.reshape(cut.shape)

    def ask(some: Sequence[np.ndarray]) -> np.ndarray:
        return probabilities(network, np.asarray(some))

    with redirect_stderr(StringIO()):  # lime's own progress bar, one an image
        found = LimeImageExplainer(random_state=seed).explain_instance(
            pixels, ask, top_labels=1, num_samples=samples, batch_size=64, segmentation_fn=lambda _: cut
        )
    label = found.top_labels[0]
    weights = np.zeros(len(numbers))
    for number, weight in found.local_exp[label]:
        weights[number] = weight
    return Explanation(cut, weights, int(label), float(ask([pixels])[0, label]))


def share_inside(found: Explanation, mask: np.ndarray) -> tuple[float, float] | None:
    """Share of the positive weights that falls inside a mask, and what weights laid at random would have there.

    A superpixel counts by the part of it that is inside. None where nothing speaks for the class or the mask is empty.

    Parameters
    ----------
    found
        See `explain_image`.
    mask
        bool (H, W).
    """
    areas = np.bincount(found.segments.ravel())
    parts = np.bincount(found.segments.ravel(), weights=mask.ravel().astype(float)) / areas
    positive = np.maximum(found.weights, 0)
    if not mask.any() or positive.sum() == 0:
        return None
    return float((positive * parts).sum() / positive.sum()), float(parts.mean())


def square_mask(pixels: np.ndarray, mask: np.ndarray, size: int) -> np.ndarray:
    """Bring a mask (H, W) to where `square` brings the image that it belongs to: bool (size, size)."""
    height, width = pixels.shape[:2]
    along = pixels if height > width else pixels.swapaxes(0, 1)
    strip = max(1, round(BORDER_WIDTH * max(height, width)))
    dark = max(float(along[:strip].mean()), float(along[-strip:].mean())) < DARK_BORDER
    short, long = min(height, width), max(height, width)
    if dark:
        whole = np.zeros((long, long), np.float32)
        top, left = (long - height) // 2, (long - width) // 2
        whole[top : top + height, left : left + width] = mask
    else:
        top, left = (height - short) // 2, (width - short) // 2
        whole = mask[top : top + short, left : left + short].astype(np.float32)
    return square(whole, size) > 0.5


def mask_of(folder: Path, row: dict[str, str], size: int) -> np.ndarray | None:
    """Where the finding is, as bool (size, size): the `mask` of a row, or the box in its `extra`; None without either.

    Parameters
    ----------
    folder
        Of the `metadata.csv`.
    row
        Its `mask` is the path of a picture, white inside; its `extra` JSON with `bbox_cxcywh`, parts of the sides.
    size
        Side in pixels.
    """
    extra = json.loads(row["extra"]) if row.get("extra", "").startswith("{") else {}
    if not row.get("mask") and "bbox_cxcywh" not in extra:
        return None
    pixels = read_image(folder / row["file_name"]).pixels
    height, width = pixels.shape[:2]
    if row.get("mask"):
        place = Path(row["mask"])
        if place.is_absolute() or ".." in place.parts:
            raise ValueError("`metadata.csv` has a `mask` that leads out of the folder")

        def opened() -> np.ndarray:
            with Image.open(folder / place) as picture:
                return np.asarray(picture.convert("L").resize((width, height), Image.Resampling.NEAREST)) > 127

        # What goes wrong would name the file, which may name a patient.
        mask = attempt(opened, "the `mask` of a row of `metadata.csv` cannot be read")
    else:
        x, y, wide, high = extra["bbox_cxcywh"]
        across, down = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
        mask = (abs(down - y) <= high / 2)[:, None] & (abs(across - x) <= wide / 2)
    return square_mask(pixels, mask, size)


def choose(images: ImageSet, name: str, count: int, seed: int) -> ImageSet:
    """Take `count` images of a class, each of another person while they last."""
    members = [i for i, label in enumerate(images.labels or ()) if label == name]
    order = np.random.default_rng(seed).permutation(members)
    seen: dict[int, int] = {}
    ranked = []
    for index in order:
        group = int(images.groups[index])
        ranked.append((seen.get(group, 0), index))
        seen[group] = seen.get(group, 0) + 1
    ranked.sort(key=lambda item: item[0])  # stable: the drawn order within each round
    return images.take([index for _, index in ranked[:count]])


def summarise_shares(shares: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Mean share inside and at random, and the mean of their difference with its 95 % interval (Student's t)."""
    inside, chance = np.array(shares).T
    low, high = interval_of_mean(inside - chance)
    return {
        "count": len(inside),
        "inside": float(inside.mean()),
        "at_random": float(chance.mean()),
        "more_than_random": {"mean": float((inside - chance).mean()), "low": low, "high": high},
    }


def explain(
    *,
    sheets: str | Path,
    domains: Sequence[str] = ("brain-tumour", "tuberculosis"),
    count: int = 8,
    size: int = 64,
    family: str = "vgg19",
    width: float = 0.25,
    epochs: int = 10,
    updates: int = 150,
    segments: int = 48,
    samples: int = 200,
    seed: int = 0,
    cache: str | Path | None = None,
    **sets: Any,
) -> dict[str, Any]:
    """Train on real images, explain unseen real and synthetic ones, and lay them side by side on one sheet a domain.

    Parameters
    ----------
    sheets
        Folder for the sheets, `explain-<domain>.png`. They show real people: it may not lie in the project.
    count
        Real and synthetic images to explain of each class.
    size
        Side of the images in pixels, from 32.
    family, width, epochs, updates
        As for `Training`.
    segments, samples, seed
        As for `explain_image`; the seed also of the training and of the choice of images.
    cache
        Folder that keeps images and networks.
    domains, sets
        What is compared, and by which model, as for `pairs`.

    Raises
    ------
    ValueError
        An argument is not one of those allowed, or a folder is not as it must be.
    """
    how = Training(family, width, epochs, updates)
    if count < 1:
        raise ValueError(f"`count` is {count}: at least 1 image a class is needed")
    outside_the_project(sheets, "sheets")
    results: dict[str, Any] = {}
    for pair in pairs(count=count, per_class=True, size=size, domains=domains, cache=cache, **sets):
        name, task = pair.name, pair.task
        network = kept_network(*task.train, len(task.classes), how, seed, cache)
        test = split_real(pair.real)[1]
        sides: dict[str, list[dict[str, Any]]] = {"real": [], "synthetic": []}
        with tqdm(total=2 * count * len(task.classes), desc=f"explaining {name}", mininterval=2) as bar:
            for kind, side in (("real", test), ("synthetic", pair.synthetic)):
                for label in task.classes:
                    some = choose(side, label, count, seed)
                    for image, row in zip(some.images, some.rows, strict=True):
                        answer = explain_image(network, image, segments=segments, samples=samples, seed=seed)
                        mask = mask_of(pair.folder, row, size) if kind == "real" else None
                        sides[kind].append({"label": label, "image": image, "found": answer, "mask": mask})
                        bar.update()
        sheet = Path(sheets) / f"explain-{name}.png"
        draw_overlays(sides, task.classes, sheet, shown=SHOWN)
        shares = [
            share
            for one in sides["real"]
            if one["mask"] is not None and (share := share_inside(one["found"], one["mask"])) is not None
        ]
        results[name] = {
            "classes": list(task.classes),
            "training": asdict(how),
            "settings": pair.settings,
            "sheet": sheet.name,
            "explanation_inside_the_mark": summarise_shares(shares) if shares else None,
            "right": {
                kind: {
                    "count": len(some),
                    "share": float(np.mean([task.classes[one["found"].predicted] == one["label"] for one in some])),
                }
                for kind, some in sides.items()
            },
        }
    return {
        "what": "explain",
        "method": f"LIME 0.2.0.1, {samples} samples, about {segments} SLIC superpixels, of the predicted class",
        "size": size,
        "seed": seed,
        "domains": results,
    }
