"""`python -m evaluation survive`: lists of prompts under kills and on folders that fail, at tiny size."""

from __future__ import annotations

import shutil
import sys

import pytest

from evaluation.survive import moments, survive
from evaluation.survive_faults import faults_of
from evaluation.survive_list import MANIFEST, command, looked_through, whole, write_list
from pipeline.__main__ import main

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    rows = write_list(folder / "list.csv", 4, 1)
    assert main(command(folder / "list.csv", folder / "out", str(tiny_folder))[3:]) == 0
    return folder / "out", rows


def test_a_killed_run_loses_and_doubles_nothing(tiny_folder):
    found = survive(model=tiny_folder, count=4, kills=2, faults=False)
    assert found["survived"] and found["differing"] == 0 and found["last_exit_status"] == 0
    assert found["killed"] == {"whole": 4, "lost": 0, "doubled": 0, "half_written": [], "stray": []}
    assert len(found["killed_at"]) == 2 and found["killed_in_time"] > 0
    if sys.platform == "linux":
        assert found["memory"]["mib_at_images"]["4"]["peak"] > 50 and found["memory"]["flat"] is True


def test_folders_that_fail(tiny_folder, tmp_path):
    found = faults_of(str(tiny_folder), tmp_path, 1)
    assert all(each.get("survived") or each.get("skipped") for each in found.values()), found
    assert found["a prompt that fails"]["made"] == 5 and found["a full disk"]["whole_when_full"] < 6


def test_what_is_wrong_with_a_folder_is_found(made, tmp_path):
    whole_folder, rows = made
    assert whole(looked_through(whole_folder, rows))

    def after(change) -> dict:
        folder = tmp_path / change.__name__
        shutil.copytree(whole_folder, folder)
        change(folder, sorted(folder.glob("*.dcm")))
        found = looked_through(folder, rows)
        assert not whole(found)
        return {name: value for name, value in found.items() if value}

    def deleted(_, files):
        files[1].unlink()

    def cut(_, files):
        files[1].write_bytes(files[1].read_bytes()[:-50])

    def emptied(_, files):
        files[1].write_bytes(b"")

    def copied(folder, files):
        shutil.copyfile(files[1], folder / "copy.dcm")

    def told_twice(folder, _):
        text = (folder / MANIFEST).read_text()
        (folder / MANIFEST).write_text(text + text.splitlines()[-1] + "\n")

    def not_told(folder, _):
        lines = (folder / MANIFEST).read_text().splitlines()
        (folder / MANIFEST).write_text("\n".join(lines[:-1]) + "\n")

    def left_behind(folder, _):
        (folder / ".batch" / "x").mkdir(parents=True)
        (folder / "a.part").write_bytes(b"")

    def exchanged(_, files):
        first, second = files[0].read_bytes(), files[1].read_bytes()
        files[0].write_bytes(second)
        files[1].write_bytes(first)

    assert after(deleted) == {"whole": 3, "lost": 1}
    assert after(cut)["lost"] == 1 and len(after(emptied)["half_written"]) == 1
    assert after(copied) == {"whole": 3, "doubled": 1, "stray": ["copy.dcm"]}
    assert after(told_twice) == {"whole": 3, "doubled": 1}
    assert after(not_told)["lost"] == 1
    assert after(left_behind) == {"whole": 4, "stray": [".batch", ".batch/x", "a.part"]}
    assert len(after(exchanged)["stray"]) == 2


def test_moments_are_spread_over_the_run_and_drawn_by_the_seed():
    found = list(moments(2000, 20, 0))
    assert found == list(moments(2000, 20, 0)) and found != list(moments(2000, 20, 1))
    late = [images for images, _ in found if images is not None]
    assert late == sorted(late) and late[0] < 300 and late[-1] > 1800
    assert sum(images is None for images, _ in found) == 5 and all(0 <= share < 1 for _, share in found)


@pytest.mark.parametrize("bad", [{"count": 1}, {"kills": -1}, {"steps": 0}, {"workers": 0}])
def test_bad_numbers_are_refused(bad):
    with pytest.raises(ValueError, match=f"`{next(iter(bad))}` is"):
        survive(**bad)


def test_a_model_that_makes_nothing():
    with pytest.raises(ValueError, match="`model`: the run in peace ended with status 2"):
        survive(model="none", count=2, kills=1)
