"""`generate --from-csv --ray`: the same files and manifest on a Ray cluster, here one of this machine."""

from __future__ import annotations

import csv
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import batch_csv, batch_maker, batch_ray
from pipeline.__main__ import main

ROOT = Path(__file__).parents[1]
LIST = """prompt,seed,count,steps
axial T1 brain MRI,3,4,2
a nice picture,1,,2
blood smear,5,4,2
head CT,9,1,2
"""
IMAGES = 9


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def arguments(folder: Path, out: Path, model: Path, *more: str) -> list[str]:
    (folder / "list.csv").write_text(LIST)
    own = ["--from-csv", str(folder / "list.csv"), "--out", str(out), "--model", str(model), "--device", "cpu"]
    return ["generate", *own, *more]


def test_it_needs_a_list_and_says_what_it_lacks(tmp_path, tiny_folder, capsys, monkeypatch):
    assert main(["generate", "head CT", "--out", str(tmp_path), "--ray", "local"]) == 2
    assert "`--ray` needs `--from-csv`" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)  # what an import finds where it is not installed
    assert main(arguments(tmp_path, tmp_path / "out", tiny_folder, "--ray", "local")) == 2
    assert "which is not installed: pip install ray" in capsys.readouterr().err


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path, tiny_folder):
    settings = batch_maker.Settings(tmp_path, str(tiny_folder), "cpu")
    row = batch_csv.Row(1, "head CT", None, None, 1, 2, None, 1, None)
    kind, words = batch_ray.Worker(settings, str(ROOT), str(tmp_path / "no mark")).make(row, [])
    assert kind == "error" and "does not see the folder" in words
    (tmp_path / "mark").touch()
    bad = batch_maker.Settings(tmp_path, str(tmp_path / "no model"), "cpu")
    assert batch_ray.Worker(bad, str(ROOT), str(tmp_path / "mark")).make(row, [])[0] == "error"


def begun(out: Path) -> list[int]:
    """Workers that are making images: each has a folder for what is not whole yet, named by its process."""
    return [int(path.name.rpartition("-")[2]) for path in (out / batch_maker.STAGING).glob("*-*")]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_local_ray_equals_one_process_also_when_a_worker_is_killed_in_a_row(tmp_path, tiny_folder):
    pytest.importorskip("ray", reason="ray is not installed")
    one, out = tmp_path / "one", tmp_path / "ray"
    assert main(arguments(tmp_path, one, tiny_folder)) == 1
    more = ("--ray", "local", "--workers", "2")
    command = [sys.executable, "-m", "pipeline", *arguments(tmp_path, out, tiny_folder, *more)]
    victim = whole = 0
    own = os.environ | {"RAY_worker_niceness": "0"}  # else its workers wait for whatever else the machine does
    with subprocess.Popen(
        command, cwd=ROOT, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not victim:
            if workers := begun(out):
                victim = workers[0]
                os.kill(victim, signal.SIGKILL)  # it has drawn one image of its first row, perhaps two
                whole = len(list(out.glob("*.dcm")))
            time.sleep(0.002)
        said = process.communicate(timeout=1800)[1]
    assert victim and process.returncode == 1, said
    assert whole < IMAGES, "it was killed after the end"
    assert contents(out) == contents(one)  # nothing lost, doubled, half-written or otherwise made
    with open(out / "manifest.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["row"]), row["status"]) for row in rows] == [
        *[(1, "made")] * 4, (2, "failed"), *[(3, "made")] * 4, (4, "made")
    ]  # fmt: skip
    assert len({row["file"] for row in rows}) == IMAGES + 1
