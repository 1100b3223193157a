"""The report's sections, one a measure: tables and plots from its result files, and how it was measured."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .faithfulness import by_request
from .report_bars import KID_BAR, percent, title_of, utility_domains, with_interval
from .report_parts import folded, paragraph, plot, ranked_tiles, table
from .report_plots import Point, interval_plot, line_plot, matrix_plot

Files = dict[str, dict[str, Any]]
SHOWN = {
    "synthetic": "synthetic",
    "floor": "floor: real images",
    "blur_sigma_1": "real, blur sigma 1",
    "blur_sigma_2": "real, blur sigma 2",
}
REGIMES = {
    "real": "real (TRTR)",
    "synthetic": "synthetic (TSTR)",
    "both": "both",
    "duplicated": "real, twice",
    "shuffled": "labels shuffled",
}
OTHER_MEASURES = ("fd", "precision", "recall", "density", "coverage", "ms_ssim")


def _point(found: dict[str, Any], value: str = "value", low: str = "low", high: str = "high") -> Point:
    return found[value], found.get(low), found.get(high)


def _accuracy(found: dict[str, Any]) -> Point:
    """Mean of runs; Student's interval of few runs may leave [0, 1], where no accuracy is."""
    value, low, high = _point(found, "mean")
    return value, None if low is None else max(low, 0.0), None if high is None else min(high, 1.0)


def fidelity_section(files: Files, folder: Path) -> str:
    """KID beside its controls, the other measures beside their floor, classes, networks, and the ranked images."""
    head = ["set", "network", "images", *SHOWN.values()]
    rows, others, classes, parts = [], [], [], []
    for name, result in files.items():
        title = title_of(name, result)
        for network, one in {"first": result, **result.get("networks", {})}.items():
            kids = [with_interval(one[kind], "kid") for kind in SHOWN]
            rows.append([title, one.get("network", network), one["synthetic"]["count"], *kids])
        for measure in OTHER_MEASURES:
            if measure in result["synthetic"]:
                pair = [with_interval(result[kind][measure]) for kind in ("synthetic", "floor")]
                others.append(
                    [title, measure.upper().replace("_", "-") if len(measure) < 3 else measure.replace("_", "-"), *pair]
                )
        for label, one in result.get("by_class", {}).items():
            cells = [with_interval(one[kind], "kid") for kind in ("synthetic", "floor")]
            coverage = [with_interval(one[kind]["coverage"]) for kind in ("synthetic", "floor")]
            classes.append([title, label, one["synthetic"]["count"], *cells, *coverage])
        few = result.get("classes_with_too_few", {})
        classes += [[title, label, min(counts.values()), "too few images", "", "", ""] for label, counts in few.items()]
    points = {
        words: {title_of(name, result): _point(result[kind], "kid") for name, result in files.items()}
        for kind, words in SHOWN.items()
    }
    parts += [
        plot(
            interval_plot({"": points}, "KID, lower is nearer to real", bar=KID_BAR),
            "KID with 95 % intervals; the floor is what real images get, the dashed line is the bar.",
        ),
        table(head, rows),
        table(["set", "other measures", "synthetic", "floor: real images"], others),
    ]
    if classes:
        names = ["set", "class", "images", "KID", "floor", "coverage", "floor"]
        parts.append(folded("By class", table(names, classes)))
    for name, result in files.items():
        if "sheet" in result:
            parts += [
                f"<h3>Best, median and worst: {title_of(name, result)}</h3>",
                ranked_tiles(folder, result["sheet"]),
            ]
    if not any("sheet" in result for result in files.values()):
        parts.append(paragraph("No sheet of the best, median and worst images: `fidelity --sheet` writes it."))
    return "".join(parts)


def utility_section(files: Files, folder: Path) -> str:
    """Accuracy by what was trained on, the curve over synthetic images, confusions."""
    rows, shares = [], []
    domains = utility_domains(files)
    regimes: dict[str, dict[str, dict[str, Point]]] = {}
    curves: dict[str, dict[str, list[tuple[float, Point]]]] = {}
    levels: dict[str, dict[str, float]] = {}
    confusions = []
    for title, found in domains.items():
        for family, one in found["families"].items():
            for regime, measured in one["regimes"].items():
                accuracy = measured["balanced_accuracy"]
                people = f"{accuracy['people_low']:.3f} to {accuracy['people_high']:.3f}"
                cells = [with_interval(accuracy, "mean"), people, with_interval(measured["auroc"], "mean")]
                rows.append([title, family, REGIMES.get(regime, regime), *cells])
                name = REGIMES.get(regime, regime)
                regimes.setdefault(title, {}).setdefault(family, {})[name] = _accuracy(accuracy)
            for key, words in (
                ("synthetic_share_of_real", "TSTR / TRTR"),
                ("both_minus_real", "both minus real"),
                ("both_minus_duplicated", "both minus real twice"),
            ):
                if key in one:
                    shares.append([title, family, words, with_interval(one[key])])
            for point in sorted(one.get("curve", []), key=lambda point: point["synthetic_count"]):
                line = f"{family}, {REGIMES[point['regime']]}"
                place = (point["synthetic_count"], _accuracy(point["balanced_accuracy"]))
                curves.setdefault(title, {}).setdefault(line, []).append(place)
                real = one["regimes"].get("real")
                levels.setdefault(title, {})["chance"] = found["chance"]
                if real:
                    levels[title][f"{family}, real alone"] = real["balanced_accuracy"]["mean"]
        family, one = next(iter(found["families"].items()))
        matrices = {
            f"trained on {name}": np.asarray(one["regimes"][name]["confusion"], float)
            for name in ("real", "synthetic")
            if name in one["regimes"]
        }
        if matrices:
            uri = matrix_plot(matrices, found["classes"])
            confusions.append(
                plot(uri, f"{title}, {family}: real test images by class, and what the network takes them for.")
            )
    base = [
        [title, f"{found['chance']:.3f}", f"{found['linear_24px_balanced_accuracy']:.3f}", *found["counts"].values()]
        for title, found in domains.items()
    ]
    counts = next(iter(domains.values()))["counts"]
    parts = [
        plot(
            interval_plot(regimes, "class-balanced accuracy on unseen real people"),
            "Accuracy by what was trained on; 95 % intervals over the runs.",
        ),
        table(["domain", "family", "trained on", "balanced accuracy", "if other people were tested", "AUROC"], rows),
        table(["domain", "family", "comparison", "value [95 % interval over people]"], shares),
        table(["domain", "chance", "linear model on 24 pixels", *(key.replace("_", " ") for key in counts)], base),
    ]
    if curves:
        uri = line_plot(curves, ("synthetic images", "balanced accuracy"), lines=levels)
        parts.append(plot(uri, "Accuracy against the number of synthetic images, beside chance and real images alone."))
    return "".join(parts) + folded("Confusion matrices", "".join(confusions))


def faithfulness_section(files: Files, folder: Path) -> str:
    """Share of the images that show what was asked for, by request, beside real images; also of `classify`."""
    judges, rows = [], []
    panels: dict[str, dict[str, dict[str, Point]]] = {}
    for file, result in files.items():
        for name, found in result["tasks"].items():
            task = f"{name} ({file})" if sum(name in other["tasks"] for other in files.values()) > 1 else name
            real, made = found["real_val"], found.get("generated")
            able = "" if found.get("judge_is_able", True) else "cannot tell real images apart"
            cells = [percent(real["accuracy"], real["accuracy_low"], real["accuracy_high"]), f"{real['chance']:.1%}"]
            seen = (
                [made["count"], percent(made["accuracy"], made["accuracy_low"], made["accuracy_high"])]
                if made
                else ["-", "-"]
            )
            judges.append([task, *cells, *seen, able])
            requests = found.get("by_request") or (by_request(made, real) if made else {})
            for answer, one in requests.items():
                taken = ", ".join(f"{other} {n}" for other, n in one["seen_as"].items() if other != answer)
                share = one["share_of_real_images"]
                known = "-" if share is None else f"{share:.1%}"
                rows.append([task, answer, one["asked"], percent(one["share"], one["low"], one["high"]), known, taken])
                panel = panels.setdefault(task, {"generated": {}, "real": {}})
                panel["generated"][answer] = _point(one, "share")
                if share is not None:
                    panel["real"][answer] = (share, None, None)
    parts = []
    if panels:
        words = "Share of the images that show what was asked for, by request, beside unseen real images."
        parts.append(plot(interval_plot(panels, "share that shows it"), words))
    parts += [
        table(["judge", "on unseen real images", "chance", "images", "on generated images", ""], judges),
        table(["judge", "asked for", "images", "show it", "real images", "taken for instead"], rows),
    ]
    for result in files.values():
        if draw := result.get("draw"):
            words = f"Of {draw['draws']} draws a prompt the best was kept, {draw['thrown_away']} images thrown away: "
            words += "; ".join(
                f"{task} {percent(one['first_draw']['accuracy'])} before, {percent(one['kept']['accuracy'])} after"
                for task, one in draw["tasks"].items()
            )
            parts.append(paragraph(words + "."))
    return "".join(parts)


def privacy_section(files: Files, folder: Path) -> str:
    """Copies beside false alarms, membership, and how well sources are found again."""
    rows, parts = [], []
    for name, result in files.items():
        copies, member, counts = result["copies"], result["membership"], result["counts"]
        title = result["settings"].get("modality") or name
        share = percent(copies["share"], copies["share_low"], copies["share_high"])
        alarms = percent(copies["false_alarms"], copies["false_alarms_low"], copies["false_alarms_high"])
        rows.append([title, "called copies of a training image", share, f"{alarms} of unseen real images"])
        rows.append([title, "membership test, area under the curve", with_interval(member, "auc"), "0.500, chance"])
        medians = f"{copies['median_synthetic']:.3f}", f"{copies['median_unseen_real']:.3f}, unseen real images"
        rows.append([title, "median nearness to a training image", *medians])
        rows.append([title, "images", counts["synthetic"], f"{counts['training']} training, {counts['unseen']} unseen"])
        if "quantiles" in copies:
            series = {kind.replace("_", " "): _cumulated(values) for kind, values in copies["quantiles"].items()}
            uri = line_plot(
                {title: series},
                ("nearness to the nearest training image", "share of the images below"),
                upright={"threshold of a copy": copies["threshold"]},
            )
            parts.append(
                plot(
                    uri,
                    "Distance to the nearest training image over that to the next 20; left of the line are copies.",
                )
            )
        if found := result.get("image_to_image"):
            for one in found:
                first = percent(one["first"], one["first_low"], one["first_high"])
                beside = f"{1 / one['among']:.1%} by chance; median rank {one['median_rank']:g} of {one['among']}"
                rows.append(
                    [title, f"source recognised at strength {one['strength']:g}, {one['count']} sources", first, beside]
                )
            ranks: dict[str, list[tuple[float, Point]]] = {
                "median rank": [(one["strength"], (one["median_rank"], None, None)) for one in found]
            }
            firsts = {
                "found first": [(one["strength"], _point(one, "first", "first_low", "first_high")) for one in found]
            }
            level = {
                "rank of the source": {"chance": found[0]["chance_rank"]},
                "share found at rank 1": {"chance": 1 / found[0]["among"]},
            }
            uri = line_plot(
                {"rank of the source": ranks, "share found at rank 1": firsts}, ("strength", ""), lines=level, columns=2
            )
            parts.append(
                plot(
                    uri,
                    "Image-to-image: at which place a source is found again among real images; 1 is recognised.",
                )
            )
    return table(["set", "measure", "value", "beside it"], rows) + "".join(parts)


def _cumulated(quantiles: list[float]) -> list[tuple[float, Point]]:
    shares = np.linspace(0, 1, len(quantiles))
    return [(place, (float(share), None, None)) for place, share in zip(quantiles, shares, strict=True)]


def explain_section(files: Files, folder: Path) -> str:
    """How much of an explanation lies inside the mark, beside chance; the sheets show real people and stay out."""
    rows = []
    for name, result in files.items():
        for domain, found in result["domains"].items():
            title = name if domain == "own" else domain
            for kind, right in found["right"].items():
                rows.append([title, f"{kind} images named rightly", right["count"], f"{right['share']:.1%}", ""])
            if mark := found.get("explanation_inside_the_mark"):
                more = mark["more_than_random"]
                beside = f"{mark['at_random']:.1%} at random; difference {with_interval(more, 'mean')}"
                rows.append(
                    [title, "explanation inside the mark, real images", mark["count"], f"{mark['inside']:.1%}", beside]
                )
            else:
                rows.append([title, "explanation inside the mark", 0, "-", "the data has no marks"])
    return table(["domain", "measure", "images", "value", "beside it"], rows) + paragraph(
        "The overlays show real people and are therefore not on this page: the command writes them elsewhere."
    )


def adapters_section(files: Files, folder: Path) -> str:
    """KID and recognition without and with each adapter."""
    rows: list[list[Any]] = []
    series: dict[str, dict[str, Point]] = {"base alone": {}, "with adapter": {}, "floor: real images": {}}
    for result in files.values():
        for name, one in result["adapters"].items():
            kid, judge = one["kid"], one["judge"]
            kinds = ("without", "with", "floor")
            for kind, words in zip(kinds, series, strict=True):
                series[words][name] = _point(kid[kind], "kid")
            fall = "-" if kid["fall"] is None else f"{kid['fall']:.0%} (wanted {kid['target']:.0%})"
            known = [percent(*judge[k]["recognised"].values()) for k in ("without", "with", "real_val")]
            rows.append(
                [name, kid["with"]["count"], *(with_interval(kid[kind], "kid") for kind in kinds), fall, *known]
            )
    head = ["adapter", "images", "KID, base", "KID, adapter", "floor", "fall", "recognised, base", "adapter", "real"]
    words = "KID against unseen real images of what the adapter is for; 95 % intervals."
    return plot(interval_plot({"": series}, "KID, lower is nearer to real"), words) + table(head, rows)


def curve_section(files: Files, folder: Path) -> str:
    """KID by hours of training."""
    parts = []
    for result in files.values():
        names = list(result["points"][0]["kid"])
        series = {m: [(p["hours"], _point(p["kid"][m], "kid")) for p in result["points"]] for m in names}
        parts.append(
            plot(
                line_plot({"": series}, ("hours of training", "KID")), "KID by hours of training, with 95 % intervals."
            )
        )
        rows = [[f"{p['hours']:.2f}", *(with_interval(p["kid"][m], "kid") for m in names)] for p in result["points"]]
        parts.append(table(["hours", *names], rows))
        falls = [after["mean_kid"] < before["mean_kid"] for before, after in pairwise(result["points"])]
        if not all(falls):
            parts.append(paragraph("More training did not always lower the mean KID."))
    return "".join(parts)


def speed_section(files: Files, folder: Path) -> str:
    """Seconds an image beside the bare loop."""
    rows = [
        [
            one["steps"],
            one["batch"],
            *(f"{one['seconds_an_image'][kind]:.2f}" for kind in ("bare_loop", "pipeline", "pipeline_to_dicom")),
        ]
        for result in files.values()
        for one in result["generation"]
    ]
    return table(["steps", "images a call", "bare diffusers loop", "pipeline", "with DICOM (seconds an image)"], rows)
