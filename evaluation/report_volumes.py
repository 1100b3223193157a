"""The report's section on volumes."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

from .report_bars import with_interval
from .report_parts import folded, paragraph, plot, table
from .report_plots import Point, line_plot

SETS = {"synthetic": "synthetic", "floor": "floor: training real", "blurred": "training real, blurred"}
SEEN = {"by_label_map": "label map", "by_segmenter": "segmenter", "segmenter_on_unseen_real": "segmenter, unseen real"}
ARMS = {"synthetic": "synthetic alone", "real": "real (duplicated)", "both": "real and synthetic"}


def volumes_section(files: dict[str, dict[str, Any]], folder: Path) -> str:
    """Similarity, distances, sizes, copies, Dice by what was trained on, and the sheet."""
    parts = []
    for name, result in files.items():
        if len(files) > 1:
            parts.append(f"<h3>{escape(name)}</h3>")
        parts += [_dice(result), _sizes(result), _distances(result), _copies(result), _sheet(folder, result)]
        parts.append(paragraph(f"Limits: {result['limits']}.", "small"))
    return "".join(parts)


def _dice(result: dict[str, Any]) -> str:
    found = result["utility"]
    lines: dict[str, list[tuple[float, Point]]] = {}
    rows, levels = [], {}
    for arm in found["arms"]:
        one = arm["dice"]
        more = f"{one['volumes_low']:.3f} to {one['volumes_high']:.3f}"
        labels = [f"{value:.3f}" for value in arm["by_label"].values()]
        regime = ARMS[arm["regime"]]
        rows.append([regime, arm["real"], arm["synthetic"], with_interval(one, "mean"), more, *labels])
        if arm["regime"] == "synthetic":
            levels[regime] = one["mean"]
        else:
            lines.setdefault(regime, []).append((arm["real"], (one["mean"], one["low"], one["high"])))
    words = "Dice on unseen real volumes by the real volumes trained on; bands are 95 % intervals over seeds."
    uri = line_plot({"": lines}, ("real volumes", "Dice"), lines={"": levels})
    head = ["trained on", "real", "synthetic", "Dice", "if other volumes were tested", *result["labels"]]
    gains = [
        [count, f"{one['value']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]", _overlap(one["intervals_overlap"])]
        for count, one in found["gains"].items()
    ]
    return (
        plot(uri, words)
        + table(head, rows)
        + table(["real volumes", "Dice gained by synthetic pairs (same test volumes)", "intervals over seeds"], gains)
        + paragraph(f"{found['control']}; {found['test_volumes']} unseen volumes, seeds {found['seeds']}.", "small")
    )


def _overlap(value: bool | None) -> str:
    return {None: "single seed", True: "overlap", False: "do not overlap"}[value]


def _sizes(result: dict[str, Any]) -> str:
    rows = []
    for way, words in SEEN.items():
        for label, one in result["sizes"][way].items():
            found = one["correlation"]
            cell = "does not vary" if found["value"] is None else with_interval(found)
            slope = "" if one["slope"] is None else f"{one['slope']:.2f}"
            rows.append([words, label, cell, slope, f"{one['bias']:+.0f}", f"{one['absolute_error']:.0f}"])
    head = ["volume judged by", "structure", "correlation", "slope", "mean error, mm3", "mean absolute error, mm3"]
    return table(head, rows)


def _distances(result: dict[str, Any]) -> str:
    rows = [
        ["MS-SSIM among", words, with_interval(result["similarity"][key])]
        for key, words in {"synthetic": "synthetic", "unseen": "unseen real", "training": "training real"}.items()
    ]
    for space, found in result["feature_distance"].items():
        if not isinstance(found, dict):
            continue
        if "too_few" in found:
            rows.append([space, "not measured", found["too_few"]])
            continue
        for measure in ("kid", "fd"):
            for key, words in SETS.items():
                rows.append([f"{measure.upper()}, {space}", words, with_interval(found[key][measure])])
    how = [
        f"{space}: {found['features']}." for space, found in result["feature_distance"].items() if space != "against"
    ]
    return table(["measure", "of", "value"], rows) + folded(
        "How it was measured", "".join(paragraph(one) for one in [result["similarity"]["measure"], *how])
    )


def _copies(result: dict[str, Any]) -> str:
    found = result["copies"]
    rows = [
        [name, one["count"], *(f"{one[kind][key]:.3f}" for kind in ("distance", "share") for key in _ENDS)]
        for name, one in found["sets"].items()
    ]
    words = (
        f"{found['closer']} generated volumes are nearer to a training volume than any two real ones to each other; "
        f"{found['copies']} are copies by their share of the next neighbours, as are {found['false_alarms']} unseen "
        f"real ones; of altered training volumes {found['disguised_found']:.0%} are found."
    )
    head = [
        "nearest training volume of",
        "volumes",
        *(f"{kind}, {key}" for kind in ("distance", "share") for key in _ENDS),
    ]
    return table([one.replace("_", " ") for one in head], rows) + paragraph(words)


_ENDS = ("minimum", "median")


def _sheet(folder: Path, result: dict[str, Any]) -> str:
    if "sheet" not in result:
        return ""
    path = folder / Path(str(result["sheet"]["file"])).name  # never out of the folder
    if not path.is_file():
        return paragraph(f"The sheet {path.name} is not in the folder.")
    uri = "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()
    words = "SYNTHETIC volumes, unchosen: sagittal, coronal, axial, then with the label map's outlines."
    picture = f'<img src="{uri}" alt="{escape(words)}" style="width: 100%">'
    return f"<figure>{picture}<figcaption>{escape(words)}</figcaption></figure>"
