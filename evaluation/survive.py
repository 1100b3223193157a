"""Runs that are killed over and over: what is lost, doubled or half-written, and whether memory stays flat.

A list of prompts is made twice by `python -m pipeline generate --from-csv`: once in peace, while its memory is
watched, and once killed (SIGKILL, the whole process group) and started again, over and over. Then every image is
looked at, and the two folders must be equal byte by byte. `survive_faults` does the same to the folder.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from .survive_faults import faults_of
from .survive_list import ROOT, command, looked_through, whole, write_list

MARKS = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)  # of the run: where memory is told
MOST_GROWTH_MIB = 32  # from a tenth of the run to its end: more is not flat
EARLY = 4  # each so-many-th kill comes while the model is loaded or what is there is looked through


def survive(
    *,
    model: str | Path = "pipeline",
    count: int = 2000,
    kills: int = 20,
    steps: int = 1,
    workers: int = 1,
    seed: int = 0,
    faults: bool = True,
) -> dict[str, Any]:
    """Make a list of images in peace and under kills, and compare.

    Parameters
    ----------
    model
        Folder or Hub id of the pipeline.
    count
        Rows of the list, one image each, at least 2.
    kills
        How often the second run is killed: spread over it, at moments drawn by chance.
    steps
        Denoising steps of each image.
    workers
        Processes of the run that is killed; the one in peace has one.
    seed
        Of the moments.
    faults
        Whether to try a full disk, a folder that is read-only and a prompt that fails, too.

    Returns
    -------
    dict
        `in_peace` and `killed`: what `looked_through` finds in each folder; `differing`: files that are not equal in
        both; `killed_at`: after how many images and seconds each kill came; `memory`; `faults`;
        `survived`: whether all of it is well.

    Raises
    ------
    ValueError
        A number is out of range, or the run in peace fails.
    """
    bounds = {"count": (count, 2, 100_000), "kills": (kills, 0, 1000), "steps": (steps, 1, 1000)}
    for name, (value, low, high) in (bounds | {"workers": (workers, 1, 256)}).items():
        if not low <= value <= high:
            raise ValueError(f"`{name}` is {value}: allowed are numbers from {low} to {high}")
    model = str(Path(model).resolve()) if Path(model).is_dir() else str(model)
    with tempfile.TemporaryDirectory(prefix="survive-") as temporary:
        folder = Path(temporary)
        rows = write_list(folder / "prompts.csv", count, steps)
        peace, killed = folder / "in-peace", folder / "killed"
        memory, took = _in_peace(command(folder / "prompts.csv", peace, model), count)
        told, status = _killed(
            command(folder / "prompts.csv", killed, model, "--workers", str(workers)), killed, count, kills, seed, took
        )
        found = {"in_peace": looked_through(peace, rows), "killed": looked_through(killed, rows)}
        differing = _differing(peace, killed)
        more = faults_of(model, folder, steps) if faults else {}
    survived = (
        status == 0
        and not differing
        and all(whole(each) for each in found.values())
        and memory["flat"] is not False
        and all(each.get("survived", True) for each in more.values())
    )
    return {"count": count, "seed": seed, "steps": steps, "workers": workers, "survived": survived, **found} | {
        "differing": differing,
        "last_exit_status": status,
        "kills": len(told),
        "killed_in_time": sum(not each["came_too_late"] for each in told),
        "killed_at": told,
        "memory": memory,
        "faults": more,
    }


def _differing(first: Path, second: Path) -> int:
    """Count the files that are not in both folders with the same bytes: pixels, headers, and the manifest."""
    one, other = ({p.name: _hash(p) for p in folder.iterdir() if p.is_file()} for folder in (first, second))
    return sum(one.get(name) != other.get(name) for name in one.keys() | other.keys())


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- the run in peace -----------------------------------------------------------------------------------------------


def _in_peace(words: Sequence[str], count: int) -> tuple[dict[str, Any], tuple[float, float]]:
    """Run it to its end; gives its memory, and the seconds until the first image and for all."""
    marks = {max(round(share * count), 1) for share in MARKS}
    told: dict[int, dict[str, float | None]] = {}
    first, start = 0.0, time.monotonic()
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for number, _ in enumerate(tqdm(process.stdout, desc="in peace", total=count, mininterval=5), 1):
            first = first or time.monotonic() - start
            if number in marks:
                told[number] = {"now": memory_of(process.pid), "peak": memory_of(process.pid, "VmHWM")}
    if process.returncode != 0:
        raise ValueError(f"`model`: the run in peace ended with status {process.returncode}")
    return _flatness(told, count), (first, time.monotonic() - start)


def _flatness(told: dict[int, dict[str, float | None]], count: int) -> dict[str, Any]:
    early, late = told.get(max(round(0.1 * count), 1), {}).get("now"), told.get(count, {}).get("now")
    growth = None if early is None or late is None else round(late - early, 1)
    return {
        "mib_at_images": {str(number): values for number, values in sorted(told.items())},
        "growth_mib": growth,
        "most_growth_mib": MOST_GROWTH_MIB,
        "flat": None if growth is None else growth <= MOST_GROWTH_MIB,
    }


def memory_of(process: int, what: str = "VmRSS") -> float | None:
    """Mebibytes; None where the system does not tell."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    return next((round(int(line.split()[1]) / 1024, 1) for line in lines if line.startswith(what + ":")), None)


# ---- the run under kills --------------------------------------------------------------------------------------------


def moments(count: int, kills: int, seed: int) -> Iterator[tuple[int | None, float]]:
    """Draw when to kill: at how many images (None: soon after the start), and how far into the next one (0 to 1).

    The run is cut into as many parts as there are kills, and one comes in each part; the first is an early one.
    """
    rng = random.Random(f"{seed} {count} {kills}")
    for number in range(kills):
        images = int((number + rng.random()) / kills * count)
        yield (None if number % EARLY == 0 else images), rng.random()


def _killed(
    words: Sequence[str], out: Path, count: int, kills: int, seed: int, took: tuple[float, float]
) -> tuple[list[dict[str, Any]], int]:
    """Run it until it ends by itself, killed at those moments; gives them, and the last exit status."""
    first, each = took[0], (took[1] - took[0]) / count
    told = []
    for images, share in tqdm(list(moments(count, kills, seed)), desc="killed", mininterval=5):
        with subprocess.Popen(
            words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        ) as process:
            start = time.monotonic()
            while images is not None and process.poll() is None and _images(out) < images:
                time.sleep(0.01)
            until = time.monotonic() + share * (first if images is None else each)
            while process.poll() is None and time.monotonic() < until:
                time.sleep(0.001)
            ended = process.poll() is not None
            if not ended:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            told.append({"images": _images(out), "seconds": round(time.monotonic() - start, 2), "came_too_late": ended})
    return told, subprocess.run(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode


def _images(out: Path) -> int:
    return sum(name.endswith(".dcm") for name in os.listdir(out)) if out.is_dir() else 0
