"""Hostile files at every door: the command that tries them, and that it would see harm if there were any."""

from __future__ import annotations

import ast
import json
import random
import subprocess
from pathlib import Path

import pytest

from evaluation import hostile_bombs, hostile_doors, hostile_mutations, hostile_seeds
from evaluation.hostile import Case, _damaged, _Tester, hostile, summary
from evaluation.hostile_doors import Outcome

ROOT = Path(__file__).parents[1]
FAST = ("image", "verify", "prompts")


def test_damaged_files_and_bombs_do_no_harm(tmp_path, monkeypatch):
    """A small run of what `python -m evaluation hostile` does; larger ones are for the command."""
    few = (
        "DICOM of 1 x 65535",
        "DICOM of 1000000 x",
        "deflated",
        "DICOM with 4294967294",
        "PNG of 2147",
        "zip",
        "TIFF",
    )
    all_bombs = list(hostile_bombs.bombs())
    monkeypatch.setattr(hostile_bombs, "bombs", lambda: [bomb for bomb in all_bombs if bomb[0].startswith(few)])
    found = hostile(count=120, seed=5, doors=FAST, seconds=120, keep=tmp_path)
    assert found["harm"] == [] and found["crashes"] == found["hangs"] == found["leaks"] == found["over_memory"] == 0
    assert found["files"] > 130 and all(found["by_door"][door]["refused"] for door in FAST)
    assert found["by_door"]["image"]["read"], "files that are only scratched are still read"
    assert not list(tmp_path.iterdir())


def test_lying_safetensors_are_refused(tmp_path):
    from pipeline.adapter_files import read_adapter

    path, refused = tmp_path / "a.safetensors", 0
    for number in range(60):
        rng = random.Random(number)
        path.write_bytes(hostile_mutations.lying_tensors(list(hostile_seeds.adapter_seeds())[number % 3], rng))
        try:
            read_adapter(path)
        except ValueError as error:
            refused += 1
            assert len(str(error)) < 1200
    assert refused > 40
    for name, make in hostile_bombs.bombs():
        if name.startswith("adapter"):
            path.write_bytes(make())
            with pytest.raises(ValueError, match="no whole safetensors"):
                read_adapter(path)


def test_the_same_seed_makes_the_same_files():
    made = [
        [_damaged(door, [], random.Random(f"{n}")) for n in range(6)] for door in ("image", "adapter") for _ in "ab"
    ]
    assert made[0] == made[1] and made[2] == made[3] and made[0] != made[2]


def _crash(path: Path):
    raise KeyError(path.name)


def _leak(path: Path):
    print(path.name)


def _writes(path: Path):
    import tempfile

    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(b"left")


def _wordy(path: Path):
    raise ValueError("x" * 5000)


@pytest.mark.parametrize(
    ("door", "how", "leaks"),
    [
        (_crash, "crashed", ()),
        (_wordy, "crashed", ()),
        (_leak, "read", ("output",)),
        (_writes, "read", ("temporary file",)),
    ],
)
def test_harm_is_seen(door, how, leaks, tmp_path, monkeypatch, capsys):
    """A count of zero says something only if it is not always zero."""
    monkeypatch.setitem(hostile_doors.DOORS, "image", door)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    output = tmp_path / "output"
    output.write_bytes(b"")
    with output.open("a") as file, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", file)
        outcome = hostile_doors._tried("image", b"data", output, tmp_path / "scratch")
    assert (outcome.how, outcome.leaks) == (how, leaks)


def test_a_process_that_dies_or_hangs_is_seen_and_the_rest_goes_on():
    with _Tester(["prompts"], 120) as tester:
        assert tester.tried(Case("prompts", "", b"prompt\nchest X-ray\n")).how == "read"
        tester._process.kill()
        assert tester.tried(Case("prompts", "", b"prompt\nchest X-ray\n")).how == "crashed"
        assert tester.tried(Case("prompts", "", b"prompt\nchest X-ray\n")).how == "read"
        tester._seconds = 0.0
        assert tester.tried(Case("prompts", "", b"prompt\n" + b"a\n" * 400_000)).how == "hung"


def test_summary_counts():
    case = Case("image", "cut", b"\x01")
    found = summary(
        [(case, Outcome("read")), (case, Outcome("crashed", "x")), (case, Outcome("read", leaks=("answer",)))]
    )
    assert (found["files"], found["crashes"], found["leaks"], len(found["harm"])) == (3, 1, 1, 2)
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("options", [{"count": -1}, {"doors": ["window"]}, {"data": ["nowhere"]}])
def test_bad_arguments(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        hostile(**options)


def test_no_archive_is_ever_unpacked():
    """What is never done needs no defence: no module opens a zip or tar to read it, or loads a pickle."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        if name.startswith("tests/"):
            continue
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"tarfile", "pickle", "marshal", "shelve", "unpack_archive"}, name
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("extractall", "extract", "unpack_archive"), name
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "ZipFile":
                assert [getattr(argument, "value", None) for argument in node.args][1:2] == ["w"], name
            if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
                assert getattr(node.value, "value", None) is (node.arg == "weights_only"), name
