"""Folders that fail a run: a full disk, one that cannot be written to; and a prompt that fails among others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .survive_list import ROOT, command, looked_through, whole, write_list

IMAGES = 6
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
# A small disk in memory, for these processes alone; what was on it is kept before there is more room, and at the end.
SMALL_DISK = """
out=$1; bytes=$2; shift 2
mount -t tmpfs -o size=$bytes tmpfs "$out" || exit 99
"$@" > /dev/null; echo $?
cp -a "$out" "$out.when-full" && mount -o remount,size=64m "$out" || exit 99
"$@" > /dev/null; echo $?
cp -a "$out" "$out.at-last"
"""


def faults_of(model: str, folder: Path, steps: int) -> dict[str, dict[str, Any]]:
    """Try each; gives for each what came of it, with `survived`, or `skipped` and why."""
    rows = folder / "few.csv"
    wanted = write_list(rows, IMAGES, steps)
    words = command(rows, folder / "few", model)
    _run(words)
    return {
        "a prompt that fails": _failing(folder, model, steps),
        "a folder that is read-only": _read_only(folder / "read-only", rows, model),
        "a full disk": _full_disk(folder, rows, model, wanted),
    }


def _run(words: Sequence[str], before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, preexec_fn=before)


def _sentence(text: str) -> str:
    """Give the one line that a run says when it breaks off; empty where there are more, or it is a traceback."""
    lines = [line for line in text.splitlines() if "tmpfs" not in line]
    return lines[0] if len(lines) == 1 and lines[0].startswith("error: `--out`") else ""


def _failing(folder: Path, model: str, steps: int) -> dict[str, Any]:
    """One prompt in the middle names no modality: the others are made, and the exit status is 1."""
    rows, out = folder / "one-fails.csv", folder / "one-fails"
    write_list(rows, IMAGES, steps)
    lines = rows.read_text(encoding="utf-8").splitlines()
    lines[IMAGES // 2] = f"a nice picture,{IMAGES // 2},{steps}"
    rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = _run(command(rows, out, model))
    made = len(list(out.glob("*.dcm")))
    told = sum(line.startswith("error: row") for line in done.stderr.splitlines())
    return {"exit_status": done.returncode, "made": made, "of": IMAGES, "told": told} | {
        "survived": (done.returncode, made, told) == (1, IMAGES - 1, 1)
    }


def _read_only(out: Path, rows: Path, model: str) -> dict[str, Any]:
    """A folder whose mode forbids writing: one sentence, status 2, nothing left."""
    out.mkdir()
    out.chmod(0o555)
    try:
        if _run([sys.executable, "-c", f"open({str(out / 'probe')!r}, 'w')"], _obey).returncode == 0:
            (out / "probe").unlink()
            return {"skipped": "this user may write into any folder"}
        done = _run(command(rows, out, model), _obey)
        left = os.listdir(out)
    finally:
        out.chmod(0o755)
    said = _sentence(done.stderr)
    return {"exit_status": done.returncode, "one_sentence": bool(said), "left": left} | {
        "survived": done.returncode == 2 and bool(said) and not left
    }


def _obey() -> None:
    """Have an administrator's next program obey the modes of files, as everybody's does."""
    if sys.platform == "linux" and os.geteuid() == 0:
        import ctypes

        library = ctypes.CDLL(None)
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            library.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def _full_disk(folder: Path, rows: Path, model: str, wanted: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """A disk that is full after some images: one sentence, no half of one; with more room the same command goes on."""
    sizes = [path.stat().st_size for path in (folder / "few").glob("*.dcm")]
    if len(sizes) != IMAGES:
        return {"survived": False, "why": "the list cannot be made at all"}
    out = folder / "full"
    out.mkdir()
    words = command(rows, out, model)
    small = ["sh", "-c", SMALL_DISK, "sh", str(out), str(int(2.5 * max(sizes)) + 16384), *words]
    if shutil.which("unshare"):
        done = _run(["unshare", "--user", "--map-root-user", "--mount", *small])
        if done.returncode != 99 and len(done.stdout.split()) == 2:
            first, second = map(int, done.stdout.split())
            when_full, at_last = (out.with_name(f"full.{name}") for name in ("when-full", "at-last"))
            said = _sentence("\n".join(done.stderr.splitlines()[:1]))
            return _of_full_disk("a small disk", first, said, when_full, second, at_last, wanted)
    try:
        import resource
    except ImportError:
        return {"skipped": "no small disk can be made here, and no limit on files set"}

    def no_image_fits() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (min(sizes) // 2,) * 2)

    done = _run(words, no_image_fits)
    shutil.copytree(out, when_full := out.with_name("full.when-full"))
    again = _run(words).returncode
    return _of_full_disk("a limit on files", done.returncode, _sentence(done.stderr), when_full, again, out, wanted)


def _of_full_disk(
    how: str,
    status: int,
    said: str,
    when_full: Path,
    again: int,
    at_last: Path,
    wanted: Sequence[tuple[str, int]],
) -> dict[str, Any]:
    then, last = looked_through(when_full, wanted), looked_through(at_last, wanted)
    sound = not then["half_written"] and not then["stray"] and not then["doubled"] and then["whole"] < IMAGES
    return {
        "how": how,
        "exit_status": status,
        "one_sentence": bool(said) and "goes on" in said,
        "whole_when_full": then["whole"],
        "half_written_when_full": len(then["half_written"]) + len(then["stray"]),
        "exit_status_with_room": again,
        "whole_at_last": last["whole"],
        "survived": (status, again) == (2, 0) and bool(said) and sound and whole(last),
    }
