"""Lines of the README's tables on trust and on volumes that are made slice by slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .report import read_json

HEAD = ["| put to the test | with | found |", "|---|---|---|"]


def trust_table(results: Path) -> list[str]:
    """Lines of the table, of those measurements whose JSON is there; none where there is none."""
    lines: list[str] = []
    for name, lines_of in (
        ("watermark", _watermark),
        ("burned-in", _burned_in),
        ("hostile", _hostile),
        ("survive", _survive),
        ("replays", _replays),
        ("load", _load),
    ):
        if (path := results / f"{name}.json").is_file():
            lines += [f"| {' | '.join(cells)} |" for cells in lines_of(read_json(path))]
    return [*HEAD, *lines] if lines else []


def stacks_table(found: dict[str, Any]) -> list[str]:
    """Lines of the table of volumes made slice by slice: likeness of neighbouring slices, and of asked positions."""
    lines = ["| slices made out of | strength | neighbours alike (SSIM), source | one noise | noise of their own |"]
    lines.append("|---|---|---|---|---|")
    for one in found["volumes"]:
        like = one["agreement"]
        for strength, shared in like["shared"].items():
            numbers = f"{like['source']:.3f} | {shared:.3f} | {like['own'][strength]:.3f}"
            lines.append(f'| {one["slices"]} slices, "{one["prompt"]}" | {strength} | {numbers} |')
    if place := found.get("positions"):
        lines += [
            "",
            f"From a prompt alone a slice cannot be placed: in {place['generated_images']} images the position asked "
            f'for ("{place["prompt"]}") and the one shown correlate with {place["generated_correlation"]:.2f}; '
            f"in {place['real_slices']} real slices of {place['people']} people with {place['real_correlation']:.2f}.",
        ]
    return lines


def _watermark(found: dict[str, Any]) -> list[list[str]]:
    rows = []
    for kind, where in (("real", "real images, marked and not"), ("generated", "generated images, marked and not")):
        if kind in found:
            one = found[kind]
            told = f"{one['missed']} missed and {one['false_alarms']} false alarms in {one['looks']:,} looks each"
            worst = max((rates["missed"] / rates["count"], name) for name, rates in one["attacks"].items())
            told += f"; PSNR {one['psnr']['mean']:.1f} dB, at least {one['psnr']['least']:.1f}"
            told += f"; worst: {worst[1]}, {worst[0]:.1%} missed" if worst[0] else ""
            rows.append([f"watermark, after {one['looks'] // one['count']} changes", f"{one['count']} {where}", told])
    if "kid" in found:
        kid = found["kid"]
        rows.append(["watermark, cost in KID", f"{kid['marked']['count']} images", f"{kid['cost']:+.4f}"])
    return rows


def _burned_in(found: dict[str, Any]) -> list[list[str]]:
    told = f"{found['hit_rate']:.1%} found, {found['false_alarm_rate']:.1%} false alarms"
    return [["burned-in text", f"{found['images']} real images, with and without text drawn in", told]]


def _hostile(found: dict[str, Any]) -> list[list[str]]:
    told = f"{found['crashes']} crashes, {found['hangs']} hangs, {found['leaks']} leaks of identifiers"
    told += f", {found['over_memory']} over 2 GiB; peak {found['peak_memory_mib']} MiB"
    doors = ", ".join(found["by_door"])
    return [
        ["damaged and malicious files", f"{found['files']:,} files at {len(found['by_door'])} doors ({doors})", told]
    ]


def _survive(found: dict[str, Any]) -> list[list[str]]:
    killed, memory = found["killed"], found["memory"]
    told = f"{killed['whole']:,} whole, {killed['lost']} lost, {killed['doubled']} doubled, "
    told += f"{len(killed['half_written'])} half-written; {found['differing']} files other than in a run in peace"
    rows = [["a list under SIGKILL", f"{found['count']:,} images, {found['killed_in_time']} kills", told]]
    if memory["growth_mib"] is not None:
        peak = max(each["peak"] for each in memory["mib_at_images"].values() if each["peak"] is not None)
        grown = f"{memory['growth_mib']:+.1f} MiB from a tenth of the run to its end; peak {peak:.0f} MiB"
        rows.append(["memory along a list", f"{found['count']:,} images", grown])
    for name, fault in found["faults"].items():
        told = (
            f"skipped: {fault['skipped']}" if "skipped" in fault else "as promised" if fault["survived"] else "not so"
        )
        rows.append(["a list of prompts", name, told])
    return rows


def _replays(found: dict[str, Any]) -> list[list[str]]:
    return [["replay of all that README and cards show", f"{found['files']} files", f"{found['equal']} equal"]]


def _load(found: dict[str, Any]) -> list[list[str]]:
    memory, files = found["memory_mib"], found["files"]
    outcomes = ", ".join(f"{count} {name}" for name, count in found["outcomes"].items())
    told = f"{found['wrong_results']} wrong results ({outcomes}); memory {memory['idle']:.0f} MiB idle, "
    told += f"{memory['peak']:.0f} at most; files left {files['left']}"
    return [
        [
            "server under load",
            f"{found['clients']} clients for {found['seconds']:g} s, {found['requests']} requests",
            told,
        ]
    ]
