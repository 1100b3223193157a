"""`python -m pipeline generate` as a user runs it, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pydicom
import pytest

ROOT = Path(__file__).parents[1]
BRAIN = "axial T1 brain MRI with contrast, meningioma"


def run(tiny_folder: Path, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", "generate", *arguments, "--model", str(tiny_folder)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_writes_and_prints_one_path_a_line(tiny_folder, tmp_path):
    out = tmp_path / "new" / "folder"
    done = run(
        tiny_folder,
        BRAIN,
        "--count",
        "2",
        "--seed",
        "7",
        "--png",
        "--compress",
        "jpegls",
        "--patient",
        "age=54",
        "--out",
        str(out),
    )
    assert done.returncode == 0, done.stderr
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert sorted(p.suffix for p in paths) == [".dcm", ".dcm", ".png", ".png"]
    assert set(paths) == set(out.iterdir())
    dataset = pydicom.dcmread(next(p for p in paths if p.suffix == ".dcm"))
    assert (dataset.Modality, dataset.PatientAge, dataset.Rows) == ("MR", "054Y", 64)

    picture = next(p for p in paths if p.suffix == ".png")
    done = run(
        tiny_folder,
        BRAIN,
        "--image",
        str(picture),
        "--strength",
        "0.5",
        "--steps",
        "4",
        "--zip",
        "--out",
        str(tmp_path / "zip"),
    )
    assert done.returncode == 0, done.stderr
    (archive,) = done.stdout.splitlines()
    with zipfile.ZipFile(archive) as members:
        assert any(name.endswith(".dcm") for name in members.namelist())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a nice picture"], "`prompt`"),
        ([BRAIN, "--modality", "ultrasound"], "`modality`"),
        ([BRAIN, "--compress", "jpeg"], "`--compress`"),
        ([BRAIN, "--image", "absent.dcm"], "`--image`"),
        ([BRAIN, "--strength", "0.5"], "`--strength`"),
        ([BRAIN, "--count", "0"], "`num_images_per_prompt`"),
        ([BRAIN, "--count", "many"], "--count"),
        ([BRAIN, "--patient", "shoe_size=43"], "`--patient`"),
        ([BRAIN, "--image", str(Path(__file__))], "image"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tiny_folder, tmp_path, arguments, says):
    out = tmp_path / "out"
    out.mkdir()
    done = run(tiny_folder, *arguments, "--out", str(out))
    assert done.returncode == 2, done.stderr
    assert done.stdout == "" and list(out.iterdir()) == []
    assert len(done.stderr.splitlines()) == 1 and says in done.stderr and "Traceback" not in done.stderr
