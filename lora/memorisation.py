"""The index of a training set that ships beside a model's or an adapter's weights, so that copies are found.

    python -m lora.memorisation --data PACKS                                   # of the embedded base
    python -m lora.memorisation --data FOLDER --adapter lora/NAME              # of an adapter trained before

Training writes an adapter's index by itself. What an index holds, and why no picture: `pipeline.pipeline_memorisation`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from pipeline.pipeline_memorisation import (
    FEATURES,
    INDEX_NAME,
    MemorisationIndex,
    index_features,
    nearest_of_moved,
    quantised,
)

from .base_data import load_images, read_rows
from .config import AdapterConfig
from .data import TrainingData
from .data_split import number_people

FALSE_ALARMS = 0.01  # share of real images of other people that may count as copies
FEW, MOST = 100, 1000  # fewer unseen images than that: training images of different people help out
FALLBACK = 0.5  # where nothing real can be compared with anything
CHUNK = 256
SIDE = 256  # pixels at which images are read; an index does not depend on it but for the rounding
# What of an adapter's settings decides which images it saw, and how.
_READING = (
    *("validation_share", "seed", "image_column", "caption_column", "group_column", "frames_per_file", "contrast"),
    *("most", "default_caption"),
)


def build_index(training: np.ndarray, unseen: np.ndarray, groups: np.ndarray | None = None) -> MemorisationIndex:
    """Make an index, and find the threshold on real images.

    Parameters
    ----------
    training, unseen
        Training images, and real images that were held out: uint8 (M, H, W, 3) and (N, H, W, 3); M is at least 2, N
        may be 0.
    groups
        int (M,), the person of each training image; None where nothing is known.

    Raises
    ------
    ValueError
        There are fewer than 2 training images.
    """
    if len(training) < 2:
        raise ValueError(f"`training` has {len(training)} images; an index needs at least 2")
    rough, step = quantised(features_of(training))
    stored = rough.float() * step  # as they will be read
    scores = scores_of(unseen, stored)
    others = torch.zeros(0)
    if len(unseen) < FEW:
        others = _between_people(training, stored, groups)
    threshold = copy_threshold(torch.cat([scores, others]).numpy())
    calibration = {
        "training_images": len(training),
        "unseen_images": len(unseen),
        "training_images_against_other_people": len(others),
        "false_alarms_allowed": FALSE_ALARMS,
        "median": round(float(torch.cat([scores, others]).median()), 4) if len(scores) + len(others) else None,
    }
    return MemorisationIndex(stored, threshold, calibration)


def copy_threshold(scores: np.ndarray, share: float = FALSE_ALARMS) -> float:
    """Give the score below which an image is a copy: at most a `share` of these real images is below it."""
    if not len(scores):
        return FALLBACK
    threshold = float(np.sort(scores)[int(share * len(scores))])
    return threshold if threshold > 0 else 1e-3  # real images of others with equal pixels


def _between_people(images: np.ndarray, stored: torch.Tensor, groups: np.ndarray | None) -> torch.Tensor:
    """Scores of training images among those of other people; where all is one person's, among every other image."""
    people = np.arange(len(images)) if groups is None else np.asarray(groups)
    if len(np.unique(people)) < 2:
        people = np.arange(len(images))
    chosen = np.random.default_rng(0).permutation(len(images))[:MOST]
    chosen = np.array([i for i in chosen if (people != people[i]).sum() >= 2], int)
    return scores_of(images[chosen], stored, torch.from_numpy(people[chosen, None] == people[None]))


def scores_of(images: np.ndarray, stored: torch.Tensor, excluded: torch.Tensor | None = None) -> torch.Tensor:
    """`nearest_of_moved` of uint8 images (N, H, W, 3), some at a time; see `nearness` for `excluded`."""
    parts = [torch.zeros(0)]
    for start in range(0, len(images), CHUNK):
        part = slice(start, start + CHUNK)
        leave_out = None if excluded is None else excluded[part]
        parts.append(nearest_of_moved(to_tensor(images[part]), stored, index_features, leave_out)[0])
    return torch.cat(parts)


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """Images (N, H, W, 3) as (N, 3, H, W)."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)


def features_of(images: np.ndarray) -> torch.Tensor:
    """`index_features` of uint8 images (N, H, W, 3), some at a time."""
    parts = [torch.zeros(0, FEATURES)]
    for start in range(0, len(images), CHUNK):
        parts.append(index_features(to_tensor(images[start : start + CHUNK])))
    return torch.cat(parts)


def index_of_data(data: TrainingData) -> MemorisationIndex:
    """Make the index of an adapter from the data of its training."""
    held = data.validation
    return build_index(data.images[~held], data.images[held], data.groups[~held])


def index_base(model: str, data: Path, cache: Path | None = None) -> Path:
    """Write the index of a base that was trained on the packs in `data`; gives the file."""
    if not Path(model).is_dir():
        raise ValueError(f"`model` is {model!r}; allowed is the folder of a model, where its index is to lie")
    rows, unseen = read_rows(data, split="train"), read_rows(data, split="val")
    training, others = (load_images(some, SIDE, cache) for some in (rows, unseen))
    groups = number_people([[f"{row['pack']} {row['group_id']}"] for row in rows])
    return build_index(training, others, groups).save(Path(model) / INDEX_NAME)


def index_adapter(adapter: Path, data: tuple[str, ...]) -> Path:
    """Write the index of an adapter from the data that it was trained on; gives the file.

    Raises
    ------
    ValueError
        The folder is no adapter of ours, or the data are not those of its training.
    """
    from .train import read_data  # which needs this module

    record = adapter / "training.json"
    if not record.is_file():
        raise ValueError(f"`adapter` is {str(adapter)!r}, which has no training.json; allowed is a trained adapter")
    known = json.loads(record.read_text(encoding="utf-8"))
    settings = {key: known["config"][key] for key in _READING if key in known["config"]}
    found = read_data(AdapterConfig(data=data, out=adapter, **settings), SIDE)
    expected, training = known["data"]["training_images"], int((~found.validation).sum())
    if training != expected:
        raise ValueError(f"`data` gives {training} training images, but the adapter was trained on {expected}")
    return index_of_data(found).save(adapter / INDEX_NAME)


def main(arguments: list[str] | None = None) -> int:
    """Write an index; returns the exit status."""
    parser = argparse.ArgumentParser("python -m lora.memorisation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True, help="folder of the packs, or an adapter's training data")
    parser.add_argument("--model", default="pipeline", help="folder of the base (default: %(default)s)")
    parser.add_argument("--adapter", type=Path, help="folder of an adapter; without it the base's index is written")
    parser.add_argument("--cache", type=Path, help="folder that keeps the squared images of the packs")
    options = parser.parse_args(arguments)
    try:
        if options.adapter is not None:
            path = index_adapter(options.adapter, tuple(options.data))
        elif len(options.data) == 1:
            path = index_base(options.model, Path(options.data[0]), options.cache)
        else:
            raise ValueError(f"`data` names {len(options.data)} folders; the base's packs lie in one")
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    index = MemorisationIndex.load(path)
    print(f"{path}: {len(index.features)} images, {path.stat().st_size} bytes, copies below {index.threshold:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
