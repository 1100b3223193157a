"""`python -m evaluation replays`: what the README's commands make is replayed, and equal.

Here they have few steps; the command leaves them as they stand, takes the Python and the cards too, and needs minutes.
"""

from __future__ import annotations

import pydicom
import pytest

from evaluation.replays import ROOT, _replayed, commands_in, made_place, python_in, replayed_command, replays
from pipeline.commands import quieten
from pipeline.replaying import Replayer

README = (ROOT / "README.md").read_text(encoding="utf-8")
FEW = ("--steps", "2")


def test_what_is_shown_is_found():
    lines = commands_in(README)
    assert len(lines) >= 6 and any("--from-csv" in line for line in lines) and any(" volume " in line for line in lines)
    assert README.count("\npython -m pipeline generate ") + README.count("\npython -m pipeline volume ") == len(lines)
    assert {"From Python", "Volumes"} <= {title for title, _ in python_in(README)}
    assert all("ORG/" not in line for _, code in python_in(README) for line in code.splitlines() if "#" not in line)
    assert any(commands_in(path.read_text(encoding="utf-8")) for path in (ROOT / "hub_cards").glob("*.md"))


def test_every_command_of_the_readme_replays_equal(tmp_path):
    quieten()
    place, replayer = made_place(tmp_path), Replayer()
    # Lists of prompts start processes of their own: they have tests in test_batch.
    lines = [line for line in commands_in(README) if "--from-csv" not in line]
    for line in lines:
        found = replayed_command(line, place, replayer, *(() if "--steps" in line else FEW))
        assert found["files"] > 0 and found["equal"] == found["files"], found
    written = map(pydicom.dcmread, sorted((place / "out").glob("*.dcm")))
    some = next(each for each in written if not each.file_meta.TransferSyntaxUID.is_compressed)
    some.PixelData = bytes([some.PixelData[0] ^ 1]) + some.PixelData[1:]
    some.save_as(place / "altered.dcm")
    found = _replayed([place / "altered.dcm"], replayer)
    assert (found["files"], found["equal"]) == (1, 0) and "pixels differ: 1 of" in found["differing"][0]


def test_what_does_not_run_is_told(tmp_path):
    place = made_place(tmp_path)
    with pytest.raises(ValueError, match="this does not run: .*--steps"):
        replayed_command('python -m pipeline generate "head CT" --steps 0 --out out', place, Replayer())
    with pytest.raises(ValueError, match="`readme` is .*no file"):
        replays(readme=tmp_path / "none")
