"""The README's table of results, made of the JSON files alone, so that no number in it is typed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .history import history_table
from .images import MODALITIES
from .report import read_json
from .report_bars import with_interval
from .table_trust import stacks_table, trust_table

BEGIN, END = "<!-- results: written by `python -m evaluation table` -->", "<!-- end of results -->"


def results_table(results: Path, training: Path) -> str:
    """Markdown of fidelity, judges, speed, training and adapters, from `results`/*.json and a `training.json`.

    Raises
    ------
    FileNotFoundError, KeyError
        A result is missing: nothing is filled in for it.
    """
    lines = ["| modality | images | KID | floor | blur sigma 1 | blur sigma 2 |", "|---|---|---|---|---|---|"]
    for modality in MODALITIES:
        found = read_json(results / f"fidelity-{modality}.json")
        kinds = [_kid(found[kind]) for kind in ("synthetic", "floor", "blur_sigma_1", "blur_sigma_2")]
        lines.append(f"| {modality} | {found['counts']['synthetic']} | {' | '.join(kinds)} |")
    lines += ["", *faithfulness_table(read_json(results / "faithfulness.json"))]
    speed, record = read_json(results / "speed.json"), read_json(training)
    steps = speed["settings"]["default_steps"]
    first = next((row for row in speed["generation"] if (row["batch"], row["steps"]) == (1, steps)), None)
    if first is None:
        raise ValueError(f"`results`: speed.json has not measured one image at the default {steps} steps")
    seconds, machine, psnr = first["seconds_an_image"], speed["machine"], record["autoencoder_psnr_val"]
    decibels = ", ".join(f"{m} {psnr[m]['autoencoder_db']} ({psnr[m]['pca_db']})" for m in MODALITIES)
    lines += [
        "",
        f"One image of {speed['size'][0]}x{speed['size'][1]} at the default {first['steps']} steps takes "
        f"{seconds['pipeline_to_dicom']:.1f} s with its DICOM ({machine['torch_threads']} threads, "
        f"{machine['processor']}); without it, {first['pipeline_to_bare']:.3f} times the bare diffusers loop.",
        "",
        f"The base was trained for {record['seconds'] / 3600:.1f} hours on {record['hardware']['device']} and saw "
        f"{record['images_seen']:,} images. Its autoencoder restores unseen images with {decibels} dB PSNR; "
        "in brackets linear PCA of the same latent size.",
    ]
    if (path := results / "curve.json").is_file():
        lines += ["", f"| hours of training | {' | '.join(f'KID {m}' for m in MODALITIES)} |", "|---|---|---|---|---|"]
        for point in read_json(path)["points"]:
            kids = " | ".join(f"{point['kid'][m]['kid']:.3f}" for m in MODALITIES)
            lines.append(f"| {point['hours']:.2f} | {kids} |")
    if (path := results / "history.json").is_file():
        lines += ["", *history_table(read_json(path))]
    for name, lines_of in (
        ("adapters", adapters_table),
        ("utility", utility_table),
        ("volumes", volumes_table),
        ("stacks", stacks_table),
    ):
        for number, path in enumerate(sorted(results.glob(f"{name}*.json"))):  # one table of all of a kind
            table = lines_of(read_json(path))
            lines += table[2:] if number else ["", *table]
    if trust := trust_table(results):
        lines += ["", *trust]
    return "\n".join(lines)


def adapters_table(found: dict[str, Any]) -> list[str]:
    """Lines of the table of adapters: KID and judge without and with each."""
    lines = [
        "| adapter | images | KID, base | KID, with adapter | floor | fall (wanted) | fall by another network "
        "| recognised, base | with adapter | real |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found["adapters"].items():
        kid, judged = one["kid"], one["judge"]
        fall, *others = [
            "-" if each["fall"] is None else f"{each['fall']:.0%}"
            for each in (kid, *(other["kid"] for other in one.get("networks", {}).values()))
        ]
        reached = "reached" if kid["met"] else "missed"
        cells = [name, str(kid["with"]["count"]), *(_kid(kid[kind]) for kind in ("without", "with", "floor"))]
        cells.append(f"{fall} ({kid['target']:.0%}): {reached}")
        cells.append(", ".join(others) or "-")
        cells += [_recognised(judged[kind]) for kind in ("without", "with", "real_val")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def utility_table(found: dict[str, Any]) -> list[str]:
    """Lines of the table of CNNs: balanced accuracy on unseen real people, by what they were trained on."""
    lines = ["| CNN | trained on real | on synthetic | on both | share, synthetic of real |", "|---|---|---|---|---|"]
    for domain, one in found["domains"].items():
        for family, trained in one["families"].items():
            regimes = trained["regimes"]
            kinds = [
                with_interval(regimes[kind]["balanced_accuracy"], "mean") if kind in regimes else "-"
                for kind in ("real", "synthetic", "both")
            ]
            share = trained.get("synthetic_share_of_real")
            kinds.append(with_interval(share, spec=".2f") if share else "-")
            lines.append(f"| {domain}, {family} | {' | '.join(kinds)} |")
    return lines


def faithfulness_table(found: dict[str, Any]) -> list[str]:
    """Lines of the table of what was asked for and shown, beside the accuracy on real images of the same judge."""
    lines = ["| asked for | shown, says a judge trained on real images | unseen real images | chance |"]
    lines.append("|---|---|---|---|")
    for task, one in found["tasks"].items():
        made, real = one["generated"], one["real_val"]
        shown = f"{made['accuracy']:.1%} of {made['count']}"
        lines.append(f"| {task} | {shown} | {real['accuracy']:.1%} | {made['chance']:.1%} |")
    return lines


def volumes_table(found: dict[str, Any]) -> list[str]:
    """Lines of the table of what is asked of volumes."""
    lines = ["| asked of volumes | found | bar |", "|---|---|---|"]
    for one in found["judged"]:
        bar = f"at {'least' if one['least'] else 'most'} {one['bar']:g}: {'held' if one['holds'] else 'missed'}"
        value = "-" if one["value"] is None else with_interval(one)
        lines.append(f"| {one['question']} | {value} | {bar} |")
    return lines


def with_table(readme: str, table: str) -> str:
    """The README's text with its table replaced.

    Raises
    ------
    ValueError
        The marks between which the table stands are missing.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError("`readme` lacks the marks between which the results stand")
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}"


def _recognised(found: dict[str, Any]) -> str:
    own = f"{found['recognised']['share']:.1%}"
    return own + (f" (any chest X-ray {found['any_chest_xray']['share']:.1%})" if "any_chest_xray" in found else "")


def _kid(found: dict[str, float]) -> str:
    return f"{found['kid']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
