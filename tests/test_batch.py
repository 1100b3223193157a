"""`generate --from-csv`: lists of prompts, the manifest, kills, workers, full disks."""

from __future__ import annotations

import csv
import hashlib
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import RLELossless

from pipeline.__main__ import main
from pipeline.batch_csv import MANIFEST, MAX_CELL, Entry, Manifest, read_rows

ROOT = Path(__file__).parents[1]
LIST = """prompt,seed,count,steps,modality
"axial T1 brain MRI with contrast, meningioma",3,2,2,
blood smear,,2,2,
a nice picture,1,,,
blood smear,,,2,
head CT,9,3,2,ct
"""
IMAGES, FAILED = 8, 1


def listed(folder: Path, text: str = LIST) -> Path:
    path = folder / "list.csv"
    path.write_bytes(text.encode())
    return path


def command(folder: Path, out: Path, model: Path, *more: str) -> list[str]:
    own = ["--from-csv", str(listed(folder)), "--out", str(out), "--model", str(model), "--device", "cpu"]
    return [sys.executable, "-m", "pipeline", "generate", *own, *more]


def contents(folder: Path) -> dict[str, str]:
    assert all(path.is_file() for path in folder.iterdir()), "a folder of what is half-written is left"
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    done = subprocess.run(command(folder, folder / "out", tiny_folder), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "error: row 3: `prompt` names no modality" in done.stderr
    assert len(done.stdout.splitlines()) == IMAGES
    return folder / "out"


def test_a_row_that_fails_stops_no_other(whole):
    with open(whole / MANIFEST, newline="") as file:
        entries = list(csv.DictReader(file))
    assert [int(entry["row"]) for entry in entries] == [1, 1, 2, 2, 3, 4, 5, 5, 5]
    assert [entry["status"] for entry in entries].count("failed") == FAILED
    files = {entry["file"] for entry in entries} - {""}
    assert len(files) == IMAGES and contents(whole).keys() == files | {MANIFEST}
    assert len({entry["UID"] for entry in entries}) == IMAGES + 1


def test_a_second_run_makes_nothing_and_a_damaged_file_is_made_again(whole, tiny_folder, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    for path in whole.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    (out / MANIFEST).unlink()
    some = sorted(out.glob("*.dcm"))[0]
    some.write_bytes(some.read_bytes()[:-100])
    arguments = command(tmp_path, out, tiny_folder)[3:]
    assert main(arguments) == 1
    assert capsys.readouterr().out.splitlines() == [str(some)]
    assert contents(out) == contents(whole) | {f"{some.name}.damaged": contents(out)[f"{some.name}.damaged"]}
    assert main(arguments) == 1
    assert capsys.readouterr().out == ""


def test_another_patient_or_compression_is_not_what_is_there(tiny_folder, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = command(tmp_path, out, tiny_folder)[3:]
    listed(tmp_path, "prompt,seed,steps\nblood smear,3,1\n")
    made = []
    for more in ([], ["--patient", "id=4711"], ["--patient", "id=4711", "--compress", "rle"]):
        assert main([*arguments, *more]) == 0
        made.append(capsys.readouterr().out.split())
        assert len(made[-1]) == 1
        assert main([*arguments, *more]) == 0 and capsys.readouterr().out == ""
    assert made[0] != made[1] == made[2] and len(list(out.glob("*.dcm"))) == 2
    found = pydicom.dcmread(made[2][0])
    assert found.PatientID.endswith("4711") and found.file_meta.TransferSyntaxUID == RLELossless


def test_killed_at_any_moment_and_run_again(whole, tiny_folder, tmp_path):
    out = tmp_path / "out"
    for images in (0, 1, 4, 6):
        with subprocess.Popen(command(tmp_path, out, tiny_folder), cwd=ROOT, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and len(list(out.glob("*.dcm"))) < images:
                time.sleep(0.002)
            if images == 0:
                time.sleep(1)
            process.send_signal(signal.SIGKILL)
        if (out / MANIFEST).exists() and images == 4:  # as a kill in the midst of a line leaves it
            with open(out / MANIFEST, "a") as file:
                file.write('5,made,"half')
    process = subprocess.run(command(tmp_path, out, tiny_folder), cwd=ROOT, capture_output=True)
    assert process.returncode == 1
    assert contents(out) == contents(whole)


def test_two_workers_equal_one_also_when_one_is_killed(whole, tiny_folder, tmp_path):
    out = tmp_path / "out"
    more = command(tmp_path, out, tiny_folder, "--workers", "2")
    with subprocess.Popen(more, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(out.glob("*.dcm")):
            time.sleep(0.002)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = [int(child) for child in children.read_text().split()] if children.exists() else []
        lines = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in workers}
        victims = [pid for pid, line in lines.items() if "spawn_main" in line]
        if victims:
            subprocess.run(["kill", "-9", str(victims[-1])])
        said = process.communicate()[1]
    assert process.returncode == 1, said
    assert contents(out) == contents(whole)


def test_a_full_disk_ends_in_one_sentence_and_the_same_command_goes_on(whole, tiny_folder, tmp_path):
    out = tmp_path / "out"

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))  # no DICOM file fits

    done = subprocess.run(
        command(tmp_path, out, tiny_folder), cwd=ROOT, capture_output=True, text=True, preexec_fn=small_files
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: `--out`") and "goes on" in done.stderr
    assert not list(out.glob("*.dcm")) and not (out / ".batch").exists()
    assert subprocess.run(command(tmp_path, out, tiny_folder), cwd=ROOT, capture_output=True).returncode == 1
    assert contents(out) == contents(whole)


def test_a_folder_that_cannot_be_written_to(tiny_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        assert main(command(tmp_path, out, tiny_folder)[3:]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "column `prompt`|empty"),
        (b"text\nx\n", "no column `prompt`"),
        (b"prompt\n", "no rows"),
        (b"prompt,sede\nx,1\n", "column 'sede'"),
        (b"prompt,seed,seed\nx,1,2\n", "`seed` twice"),
        (b"prompt\nx\0y\n", "NUL byte in line 2"),
        (b"prompt\nok\n\xff\n", "UTF-8 in line 3"),
        ("prompt\nx\n".encode("utf-16"), "UTF-16"),
        (b"prompt\n" + b"x" * 10_000_000 + b"\n", "row 1, column `prompt` has 10000000 characters"),
        (b"prompt,seed\nok,1\nx,-1\n", "row 2, column `seed` is '-1'"),
        (b"prompt,seed\nx,1.5\n", "row 1, column `seed`"),
        (b"prompt,steps\nx,5000\n", "row 1, column `steps`"),
        (b"prompt,guidance\nx,nan\n", "row 1, column `guidance`"),
        (b"prompt,count\nx,0\n", "row 1, column `count`"),
        (b"prompt,seed\n,1\n", "row 1, column `prompt` is empty"),
        (b"prompt,seed\naxial T1, brain MRI, x,1\n", "row 1 has 4 cells.*quotes"),
        (b"prompt,seed\nx,1\nx,1\n", "row 2, column `seed`.*row 1 again"),
        (b"prompt,seed,count\nx,1,5\nx,4,\n", "row 2, column `seed`.*row 1 again"),
        (b'prompt\nx\n"y\n', "quotes closed"),
        (b"prompt\nx\x1b[31m\n", "row 1, column `prompt` holds control"),
    ],
)
def test_bad_lists_are_refused(data, says, tmp_path):
    (tmp_path / "list.csv").write_bytes(data)
    with pytest.raises(ValueError, match=says) as error:
        read_rows(tmp_path / "list.csv")
    assert len(str(error.value)) < 400
    assert csv.field_size_limit() == 131072


def test_lists_of_office_programs_are_read(tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes(
        '\ufeffPrompt;Seed;Guidance;;\r\n"axial T1; brain, ü";7;2,5;;\r\n\r\nCT;;;;\r\nCT;;;;\r\n'.encode()
    )
    rows = read_rows(path)
    assert [(row.number, row.prompt, row.guidance) for row in rows] == [(1, "axial T1; brain, ü", 2.5), *[
        (number, "CT", None) for number in (3, 4)]]  # fmt: skip
    assert rows[0].seed == 7 and len({row.seed for row in rows}) == 3
    assert [(row.first_instance, row.series) for row in rows] == [(1, 1), (1, 2), (2, 2)]
    assert read_rows(path) == rows
    assert MAX_CELL >= 1000
    path.write_text("prompt\nCT of the\u00a0chest", encoding="utf-8")  # a no-break space
    assert read_rows(path)[0].prompt == "CT of the\u00a0chest"


@pytest.mark.parametrize(
    "more",
    [["x"], ["--seed", "1"], ["--seed", "0"], ["--guidance", "0"], ["--count", "2"], ["--zip"], ["--workers", "0"]],
)
def test_options_that_a_list_does_not_go_with(more, tiny_folder, tmp_path, capsys):
    assert main([*command(tmp_path, tmp_path / "out", tiny_folder)[3:], *more]) == 2
    assert "error: `--" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_manifest_cut_anywhere_keeps_its_whole_lines(tmp_path):
    (tmp_path / "a").mkdir()
    manifest = Manifest(tmp_path / "a")
    manifest.open([])
    entries = [Entry(n, "made", f"file-{n}.dcm", f"2.25.{n}", n, 'a, "b"\nc') for n in range(4)]
    for entry in entries:
        manifest.add(entry)
    data = (tmp_path / "a" / MANIFEST).read_bytes()
    for length in range(len(data) + 1):
        (tmp_path / "a" / MANIFEST).write_bytes(data[:length])
        found = Manifest(tmp_path / "a").entries
        assert len(found) == max(data[:length].count(b"\n") - 1, 0)
        assert all(f"2.25.{n}" == found[n, n].UID for n in range(len(found)))
