"""Did the adapter help? Loss and KID before and after, on images that it was not trained on, with their intervals."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from .data import TrainingData
from .samples import decode
from .trainer import AdapterTrainer

MINIMUM = 20  # images a side, below which KID says nothing
MOST_REAL = 500
DRAWS = 2000
FIRST_SEED = 1_000_000  # none of the sample sheets'
HELPED, UNCLEAR, WORSE, NOT_MEASURED = "helped", "no clear difference", "made it worse", "not measured"


def paired_difference(before: np.ndarray, after: np.ndarray, people: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Mean of `after - before` with its 95 % bootstrap interval; people are redrawn, not images.

    Parameters
    ----------
    before, after
        Loss of each image, (N,).
    people
        Whose image it is, (N,).
    """
    numbers, place = np.unique(people, return_inverse=True)
    sums = np.bincount(place, after - before)
    counts = np.bincount(place)
    drawn = np.random.default_rng(seed).multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), DRAWS)
    low, high = np.quantile(drawn @ sums / (drawn @ counts), (0.025, 0.975))
    return {"difference": float(sums.sum() / counts.sum()), "low": float(low), "high": float(high)}


def judge(trainer: AdapterTrainer, data: TrainingData) -> dict[str, Any]:
    """Compare the bare base with the adapter whose weights are in place now."""
    loss, kid = _loss(trainer, data), _kid(trainer, data)
    config = trainer.config
    found = [_kid_says(kid)]
    # Neither rounds against own samples nor matching seek the least loss, and distilling has another.
    if not (config.rounds or config.match_steps or config.distil_guidance is not None):
        found.append(_loss_says(loss))
    # The pictures count first; where they cannot tell, the loss does.
    clear = [word for word in found if word in (HELPED, WORSE)]
    conclusion = clear[0] if clear else UNCLEAR if UNCLEAR in found else NOT_MEASURED
    return {
        "conclusion": conclusion,
        "sentence": _sentence(conclusion, loss, kid),
        "validation_loss": loss,
        "kid": kid,
    }


def _loss(trainer: AdapterTrainer, data: TrainingData) -> dict[str, Any]:
    people = data.groups[trainer.validation_loss.images]
    if not len(people):
        return {"not_measured": "no images were held out"}
    with trainer.bare_base():
        before = trainer.validation_loss.measure(trainer.pipe.unet)
    after = trainer.validation_loss.measure(trainer.pipe.unet)
    found = {"before": float(before.mean()), "after": float(after.mean())}
    counts = {"images": len(people), "people": len(np.unique(people))}
    if counts["people"] < 2:
        return found | counts
    return found | paired_difference(before, after, people) | counts


def _kid(trainer: AdapterTrainer, data: TrainingData) -> dict[str, Any]:
    count, held_out = trainer.config.verdict_count, np.flatnonzero(data.validation)
    if count < MINIMUM:
        return {"not_measured": f"`verdict_count` is {count}; KID needs at least {MINIMUM}"}
    if len(held_out) < MINIMUM:
        few = f"{len(held_out)} images were held out"
        return {"not_measured": f"{few}; KID needs at least {MINIMUM}, see `validation_share`"}
    try:
        from evaluation.features import extract_features, load_network
        from evaluation.fidelity import kernel_distance

        load_network()
    except ImportError as error:
        return {"not_measured": str(error)}
    order = np.random.default_rng([trainer.config.seed, 2]).permutation(held_out)
    rows = [int(trainer.encoded.plain[order[i % len(order)]]) for i in range(count)]
    seeds = [FIRST_SEED + trainer.config.seed + i for i in range(count)]
    with trainer.bare_base():
        before = trainer.sampler.draw(rows, seeds, "samples before")
    after = trainer.sampler.draw(rows, seeds, "samples after")
    if not trainer.accelerator.is_main_process:
        return {"not_measured": "another process does"}
    real = extract_features(data.images[order[:MOST_REAL]], progress=False)
    found = {}
    noise = [trainer.noise_of(int(order[i % len(order)])) for i in range(count)]
    for name, latents in (("before", before), ("after", after)):
        images = decode(trainer.pipe.vae, latents, trainer.accelerator.device, noise, seeds)
        found[name] = asdict(kernel_distance(extract_features(images, progress=False), real))
    return found


def _loss_says(loss: dict[str, Any]) -> str:
    if "not_measured" in loss:
        return NOT_MEASURED
    if "low" not in loss:
        return UNCLEAR
    return HELPED if loss["high"] < 0 else WORSE if loss["low"] > 0 else UNCLEAR


def _kid_says(kid: dict[str, Any]) -> str:
    if "not_measured" in kid:
        return NOT_MEASURED
    before, after = kid["before"], kid["after"]
    return HELPED if after["high"] < before["low"] else WORSE if after["low"] > before["high"] else UNCLEAR


def _sentence(conclusion: str, loss: dict[str, Any], kid: dict[str, Any]) -> str:
    words = {
        HELPED: "The adapter helped",
        WORSE: "The adapter made it worse",
        UNCLEAR: "The adapter made no clear difference",
    }
    parts = []
    if "not_measured" in kid:
        parts.append(f"KID was not measured ({kid['not_measured']})")
    else:
        before, after = kid["before"], kid["after"]
        parts.append(
            f"KID to unseen images went from {before['kid']:.3f} ({before['low']:.3f} to {before['high']:.3f}) to "
            f"{after['kid']:.3f} ({after['low']:.3f} to {after['high']:.3f})"
        )
    if "not_measured" in loss:
        parts.append(f"validation loss was not measured ({loss['not_measured']})")
    else:
        interval = f", difference {loss['low']:+.4f} to {loss['high']:+.4f}" if "low" in loss else ""
        parts.append(f"validation loss from {loss['before']:.4f} to {loss['after']:.4f}{interval}")
    return f"{words.get(conclusion, 'Whether the adapter helped is not known')}: {'; '.join(parts)}."
