"""Names, tables and recipes of strangers steer no terminal and lead nowhere else; a kill leaves nothing half-done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from evaluation.hostile_seeds import PLANTED, dataset_of, file_of
from lora.volume_data import read_volumes
from pipeline import batch_csv, dicom_files
from pipeline.__main__ import main
from pipeline.replaying import check_recipe
from pipeline.verification import read, recipe_in, verify

from .dicom_samples import recipe_of
from .tiny_volume import write_pack


@pytest.mark.parametrize("name", ["a\nb.dcm: ok", "a\x1b[31mb.dcm", os.fsdecode(b"a\xff.dcm")])
def test_a_files_name_begins_no_line_and_steers_no_terminal(name, tmp_path):
    (tmp_path / name).write_bytes(file_of(dataset_of()))
    (tmp_path / f"{name}x").write_bytes(b"nothing")
    command = [sys.executable, "-m", "pipeline", "verify", str(tmp_path / name), str(tmp_path / f"{name}x")]
    done = subprocess.run(command, capture_output=True, cwd=os.path.dirname(os.path.dirname(__file__)))
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"\x1b" not in done.stdout + done.stderr
    told = [line for line in done.stdout.splitlines() if not line.startswith(b"  ")]
    assert len(told) == 1 and told[0].endswith((b": ok", b": NOT OK"))


@pytest.mark.parametrize("change", [{"prompt": [PLANTED]}, {PLANTED: 1}, {"seed": PLANTED}, {"volume": {PLANTED: 1}}])
def test_what_is_wrong_with_a_recipe_is_told_without_its_words(change, tmp_path, capsys):
    dataset = dataset_of()
    element = dataset[0x0099, 0x1001]
    element.value = json.dumps(json.loads(element.value) | change)
    with pytest.raises(ValueError, match="the recipe cannot be understood") as caught:
        recipe_in(*read(file_of(dataset)))
    assert PLANTED not in f"{caught.value} {caught.value.__cause__} {caught.value.__context__}"


@pytest.mark.parametrize("note", ["Recipe", "Digest"])
def test_texts_of_a_picture_are_bounded_before_they_are_parsed(note, tmp_path):
    notes = PngInfo()
    notes.add_text(note, "[" + "[]," * 2**20 + "[]]")
    Image.new("L", (8, 8)).save(tmp_path / "a.png", pnginfo=notes)
    found = verify(tmp_path / "a.png")
    assert not found.ok and found.recipe_state == ("not readable" if note == "Recipe" else "missing")


def test_a_recipe_names_a_few_adapters():
    rows = tuple((f"a{number}", "0" * 64, 1.0) for number in range(9))
    check_recipe(recipe_of("ct-chest", adapters=rows[:8]))
    with pytest.raises(ValueError, match="`adapters` is not allowed"):
        check_recipe(recipe_of("ct-chest", adapters=rows))


def test_more_images_than_memory_holds_are_refused(capsys, tmp_path):
    assert main(["generate", "chest X-ray", "--count", "1000000000", "--out", str(tmp_path / "out")]) == 2
    assert "`--count` is 1000000000" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b"\xc2\xb2,made,a.dcm,1.2,\xc2\xb2,\n", b"1" * 200_000 + b"\n"])
def test_a_damaged_manifest_stops_nothing(damage, tmp_path):
    path = tmp_path / batch_csv.MANIFEST
    path.write_bytes(b"row,status,file,UID,seed,error\n1,made,a.dcm,1.2,7,\n" + damage)
    assert batch_csv.Manifest(tmp_path).entries[1, 7].file == "a.dcm"


def _bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("image.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (1024, 1024, 300)})
        for _ in range(300):
            file.write(bytes(2**20))


def _lying(path):
    with zipfile.ZipFile(path, "w") as archive, archive.open("image.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 9, 9)})


BAD_VOLUMES = {
    "objects": lambda path: np.savez(path, image=np.array([{}], object), mask=np.zeros(1, np.uint8)),
    "a bomb": _bomb,
    "a header that lies": _lying,
    "no zip": lambda path: path.write_bytes(b"PK\3\4" + bytes(99)),
    "an array alone": lambda path: path.write_bytes(b"\x93NUMPY\1\0v\0{}"),
    "other names": lambda path: np.savez(path, picture=np.zeros((2, 2, 2)), mask=np.zeros((2, 2, 2), np.uint8)),
    "not finite": lambda path: np.savez(path, image=np.full((2, 2, 2), np.nan), mask=np.zeros((2, 2, 2), np.uint8)),
    "nothing": lambda path: path.write_bytes(b""),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("kind", BAD_VOLUMES)
def test_a_bad_volume_is_told_by_its_row(kind, tmp_path):
    pack = write_pack(tmp_path / f"pack-{PLANTED}", 3)
    BAD_VOLUMES[kind](pack / "v01.npz")
    with pytest.raises(ValueError, match="row 2 of `metadata.csv` of `data`") as caught:
        read_volumes(pack)
    assert PLANTED not in str(caught.value) and "v01" not in str(caught.value)


@pytest.mark.parametrize("name", ["../v00.npz", "/etc/passwd", ""])
def test_a_table_of_volumes_leads_nowhere_else(name, tmp_path):
    pack = write_pack(tmp_path / "pack", 3)
    (tmp_path / "v00.npz").write_bytes((pack / "v00.npz").read_bytes())
    table = (pack / "metadata.csv").read_text()
    (pack / "metadata.csv").write_text(table.replace("v01.npz", name))
    with pytest.raises(ValueError, match="row 2 .* leads out of the folder"):
        read_volumes(pack)


def test_what_a_killed_process_left_is_swept_away_and_a_living_ones_is_not(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = [f"{dicom_files._WRITING}{number}-x" for number in (ended.pid, os.getpid())]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "half.dcm").write_bytes(b"half")
    dicom_files.write_files([dataset_of()], tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == names[1:]


def test_a_folder_of_files_comes_whole(tmp_path, monkeypatch):
    """A kill between two moves leaves a volume there or not there, and not a part of its slices."""

    def fill(folder):
        (folder / "volume").mkdir()
        for name in ("1", "2"):
            (folder / "volume" / name).write_text(name)
        return [folder / "volume" / "1", folder / "volume" / "2"]

    moved = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(b), replace(a, b))[1])
    assert dicom_files.write_together(tmp_path, fill) == [tmp_path / "volume" / "1", tmp_path / "volume" / "2"]
    assert moved == [tmp_path / "volume"]
    (tmp_path / "volume" / "2").unlink()
    dicom_files.write_together(tmp_path, fill)
    assert moved[1:] == [tmp_path / "volume" / "2"] and (tmp_path / "volume" / "1").read_text() == "1"
