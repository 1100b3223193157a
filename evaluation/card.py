"""Rows for the model's card on the Hub: `measure`, `value`, `low`, `high`, and a `floor` with what it is."""

from __future__ import annotations

import math
from typing import Any

from .utility_results import PASS_SHARE


def card_row(measure: str, found: dict[str, Any], floor: float, floor_is: str) -> dict[str, Any]:
    """One row; `found` holds `value`, `low` and `high`."""
    return {"measure": measure, **{key: found[key] for key in ("value", "low", "high")}} | {
        "floor": floor,
        "floor_is": floor_is,
    }


def utility_card(domains: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the result of `utility`: accuracy on synthetic images alone, its share of real ones', and what both gain.

    Parameters
    ----------
    domains
        As in that result. What was not trained, or has no interval, has no row.
    """
    rows = []
    for name, domain in domains.items():
        for family, found in domain["families"].items():
            which = f"{name}, {family}"
            trained = found["regimes"]
            if {"real", "synthetic"} <= set(trained):
                one, other = (trained[regime]["balanced_accuracy"] for regime in ("synthetic", "real"))
                value = {"value": one["mean"], "low": one["people_low"], "high": one["people_high"]}
                words = "balanced accuracy, trained on synthetic, tested on real images"
                rows.append(card_row(f"{words}: {which}", value, other["mean"], "trained on real images"))
            for key, words, floor, floor_is in (
                ("synthetic_share_of_real", "share of the accuracy of real training images", PASS_SHARE, "wanted"),
                ("both_minus_real", "balanced accuracy, real and synthetic minus real alone", 0.0, "no change"),
                ("both_minus_duplicated", "balanced accuracy, real and synthetic minus real twice", 0.0, "no change"),
            ):
                if key in found:
                    rows.append(card_row(f"{words}: {which}", found[key], floor, floor_is))
    return [row for row in rows if all(math.isfinite(row[key]) for key in ("value", "low", "high", "floor"))]


def privacy_card(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the result of `privacy`: copies, membership, and sources found again."""
    copies, member = result["copies"], result["membership"]
    found = {"value": copies["share"], "low": copies["share_low"], "high": copies["share_high"]}
    rows = [
        card_row(
            "share of generated images that copy a training image",
            found,
            copies["false_alarms"],
            "false alarms among unseen real images",
        ),
        card_row(
            "membership test, area under the curve",
            {"value": member["auc"], "low": member["low"], "high": member["high"]},
            0.5,
            "chance",
        ),
    ]
    for one in result.get("image_to_image", []):
        found = {"value": one["first"], "low": one["first_low"], "high": one["first_high"]}
        words = f"image-to-image at strength {one['strength']:g}: share of sources recognised"
        rows.append(card_row(words, found, 1 / one["among"], "chance"))
    return rows
